"""Where the time of one embedding run goes: stage by stage, and within the forward pass.

    python -m tests.benchmarks.profile [--backbone NAME] [--random-weights gte-base]
        [--device cpu|cuda] [--texts N] [--case sms|long] [--layers all|last] [--json FILE]

The stages of `pipeline embed` run here one after another, so that each can be timed; in a run they
overlap. The forward pass runs a second time under torch's profiler, in one lane.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from pipeline.assets import read_assets
from pipeline.corpus.keys import hash_texts
from pipeline.device import choose_devices
from pipeline.embed.fidelity import measure_fidelity
from pipeline.embed.tokens import find_distinct, load_tokenizer
from pipeline.project import Project
from pipeline.store import Recipe, Rows, StoreUpdate
from tests.benchmarks.embed import (
    MINILM,
    make_backbone,
    make_long,
    make_messages,
    read_messages,
    set_project,
)
from tests.benchmarks.table import describe_machine, present
from tests.benchmarks.ways import Case, Ours

# Operators of torch by what they are part of; the first that a name contains counts.
_PARTS = {
    "products with weights": ("linear", "addmm", "aten::mm"),
    "attention": ("bmm", "softmax", "attention", "attn"),
    "LayerNorm": ("layer_norm",),
    "GELU, where not fused": ("gelu",),
    "pooling": ("mean", "sum", "segment_reduce", "div"),
    "embedding look-up": ("embedding", "index_select"),
    "copies and joins": ("copy", "cat", "clone", "contiguous", "fill"),
}
# The same of a GPU's kernels.
_KERNELS = {
    "attention": ("flash", "fmha", "softmax", "attention"),
    "products with weights": ("gemm", "nvjet", "cutlass", "xmma", "splitk"),
    "LayerNorm": ("layer_norm", "layernorm", "add_norm"),
    "GELU, where not fused": ("gelu",),
    "pooling": ("segment_reduce", "reduce_kernel", "pool"),
    "embedding look-up": ("embedding", "indexselect", "gather"),
    "copies and joins": ("copy", "cat", "memcpy", "memset", "fill"),
}


def sort_operators(events: Any, on_gpu: bool) -> dict[str, float]:
    """Seconds of each part of the forward pass; on a GPU those of its kernels."""
    parts = _KERNELS if on_gpu else _PARTS
    seconds = dict.fromkeys([*parts, "all else"], 0.0)
    for event in events:
        if on_gpu and event.device_type != DeviceType.CUDA:
            continue  # the operator that started the kernel, whose time is the kernel's
        took = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        name = event.key.lower()
        part = next((p for p, words in parts.items() if any(w in name for w in words)), "all else")
        seconds[part] += took / 1e6
    return seconds


@click.command()
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the rows there.")
@click.option("--backbone", default=MINILM, help="A hub id or a local folder.")
@click.option("--random-weights", type=click.Choice(["gte-base"]), help="A seeded BERT instead.")
@click.option("--device", default="auto", help="auto, cpu, cuda.")
@click.option(
    "--texts", type=int, default=4096, help="Messages; synthetic beyond those of the SMS corpus."
)
@click.option("--case", "name", type=click.Choice(["sms", "long"]), default="sms")
@click.option("--layers", type=click.Choice(["all", "last"]), default="all")
def main(
    path: Path | None,
    backbone: str,
    random_weights: str | None,
    device: str,
    texts: int,
    name: str,
    layers: str,
) -> None:
    """Print a table, and write it as JSON."""
    path = path and path.absolute()
    rows: list[dict[str, Any]] = []

    def clock(stage: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        rows.append({"stage": stage, "seconds": time.perf_counter() - started})
        return result

    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        if random_weights:
            backbone = str(make_backbone(root / random_weights, random_weights, backbone))
        set_project(root / "project", str(backbone))
        folder = read_assets(Project().assets)["backbone"].locate(Project())
        chosen = choose_devices(device)[0]
        messages = read_messages()
        if name == "long":
            chosen_texts = make_long(messages, texts)
        elif texts > len(messages):
            chosen_texts = make_messages(messages, texts)
        else:
            chosen_texts = messages[:texts]
        case = Case(name, chosen_texts, folder, 128 if name == "sms" else 512, chosen)
        column = pa.array(case.texts)
        ours = Ours(layers)
        clock("load the backbone", lambda: ours.load(case))
        # A GPU's kernels are chosen, or compiled, at their first use.
        ours.engine.embed(case.tokens)
        tokenizer = load_tokenizer(folder, case.max_tokens)
        tokens = clock("tokenize", lambda: tokenizer.tokenize(column))
        clock("find texts that are the same tokens", lambda: find_distinct(tokens))
        vectors: Rows = clock("forward pass", lambda: ours.engine.embed(tokens))
        clock(
            "fidelity gauge",
            lambda: measure_fidelity(ours.reference, tokens, vectors, ours.engine.layers),
        )
        keys = pa.array(hash_texts(case.texts), pa.binary(16))
        contents = {"layers": list(ours.engine.layers), "files": {}}
        width = ours.engine.encoder.architecture.width
        recipe = Recipe("profile", contents, ours.engine.layers, width, "float16")

        def write() -> None:
            update = StoreUpdate(root / "store", recipe, keys)
            for start, stop in update.list_missing():
                part = Rows(vectors.n_tokens[start:stop], vectors.vectors[start:stop])
                update.write_shard(start, part)
            update.commit()

        clock("write the store", write)
        total = sum(row["seconds"] for row in rows)
        on_gpu = chosen.type == "cuda"
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        order = np.argsort(-tokens.lengths, kind="stable")
        with profile(activities=kinds) as profiler:
            ours.encode_in_batches(tokens, order)
        torch.set_num_threads(threads)
        os.chdir("/")
    for row in rows:
        row |= {"case": name, "share": row["seconds"] / total}
    parts = sort_operators(profiler.key_averages(), on_gpu)
    whole = sum(parts.values())
    for part, seconds in sorted(parts.items(), key=lambda item: -item[1]):
        rows.append({"case": name, "stage": f"forward: {part}", "share": seconds / whole})
    machine = describe_machine("torch", "transformers", "tokenizers", "pyarrow")
    present(rows, path, machine | {"threads": threads, "tokens": int(tokens.offsets[-1])})


if __name__ == "__main__":
    main()
