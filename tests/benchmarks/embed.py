"""Speed of `pipeline embed` beside the ways that people embed texts today.

    python -m tests.benchmarks.embed [--json FILE] [--quick] [--backbone NAME]
        [--random-weights gte-base] [--device cpu|cuda] [--texts N]
        [--case sms,long,families,growth] [--rounds N]

With `--random-weights` the backbone named is that of the tokenizer alone.

Every engine gets the same distinct texts and the last layer. `end_to_end_seconds` is from texts in
memory to vectors in Parquet on the disk, loading the weights included, imports not;
`forward_seconds` is the backbone alone, on tokens that are ready; seconds of CPU are those of all
threads together, for machines that are busy with other work. Engines run in turn, and each
figure is the best of its rounds. `share_of_matmul` is the rate of the forward pass, all its
floating-point operations counted and none for padding, over that of plain products of the same
shapes, timed in the same rounds. `cosine_min` is to Hugging Face in float32, one text at a time;
`neighbours` is how far a vector moves with the texts around it, 0 if not by a bit.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import transformers

from pipeline.architecture import Architecture
from pipeline.assets import read_assets
from pipeline.corpus.keys import hash_texts
from pipeline.corpus.reading import Reading
from pipeline.corpus.sources import read_source
from pipeline.device import choose_devices
from pipeline.embed.backbone import Backbone
from pipeline.embed.engine import Engine
from pipeline.embed.loading import TOKEN_BUDGET, EnginePlan
from pipeline.embed.tokens import load_tokenizer
from pipeline.onednn import has_onednn
from pipeline.project import Project
from tests.benchmarks.table import PeakMemory, describe_machine, present
from tests.benchmarks.ways import (
    RIVALS,
    Case,
    Notebook,
    Ours,
    SentenceTransformers,
    Way,
    finish,
    pad,
)

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
_BASE = {
    "num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12,
    "intermediate_size": 3072, "vocab_size": 30527,
}  # fmt: skip
_OFFSET = _BASE | {"max_position_embeddings": 514, "layer_norm_eps": 1e-5}
# Model type and configuration of backbones that are made here. Their words are MiniLM's, so that
# XLM-RoBERTa, which differs from RoBERTa in its vocabulary alone, is not among them.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    # CTranslate2's converter asks for the kind of positions, which gte-base's own file names, too.
    "gte-base": ("bert", _BASE | {"position_embedding_type": "absolute"}),
    "all-mpnet-base-v2": ("mpnet", _OFFSET),
    "roberta-base": ("roberta", _OFFSET | {"type_vocab_size": 1}),
    "distilbert-base": (
        "distilbert",
        {"n_layers": 6, "n_heads": 12, "dim": 768, "hidden_dim": 3072, "vocab_size": 30527},
    ),
    "modernbert-base": (
        "modernbert",
        _BASE | {"num_hidden_layers": 22, "intermediate_size": 1152, "pad_token_id": 0,
                 "bos_token_id": 0, "eos_token_id": 0, "cls_token_id": 0, "sep_token_id": 0},
    ),
    "tiny": (
        "bert",
        _BASE | {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2,
                 "intermediate_size": 64},
    ),
    "wide": ("bert", _BASE | {"num_hidden_layers": 1, "intermediate_size": 64}),
}  # fmt: skip
FAMILIES_SHOWN = ("all-mpnet-base-v2", "roberta-base", "distilbert-base", "modernbert-base")
ROOT = Path(__file__).parent.parent.parent
COLUMNS = (
    "case", "engine", "texts", "tokens", "end_to_end_seconds", "end_to_end_cpu_seconds",
    "forward_seconds", "forward_cpu_seconds", "tokens_per_second", "tflops", "share_of_matmul",
    "wall_seconds", "peak_mb", "cosine_min", "neighbours", "microseconds_a_further_text",
)  # fmt: skip


def count_flops(architecture: Architecture, inner: int, lengths: np.ndarray) -> float:
    """Of the forward pass on real tokens: the products with weights, and those of attention."""
    D, T = architecture.width, float(lengths.sum())
    products = T * (4 * D * D + 2 * D * inner)
    attention = 2 * D * float((lengths.astype(np.float64) ** 2).sum())
    return 2 * architecture.layers * (products + attention)


def time_products(width: int, inner: int, case: Case) -> float:
    """Seconds for a layer's four products with weights, on a batch of the engine's own size."""
    T = TOKEN_BUDGET[case.device.type]
    shapes = ((width, 3 * width), (width, width), (width, inner), (inner, width))
    # Random numbers, because a GPU multiplies equal ones faster than any that will come.
    like: Any = {"device": case.device, "dtype": getattr(torch, case.precision)}
    pairs = [(torch.randn(T, k, **like), torch.randn(n, k, **like)) for k, n in shapes]
    repeats = 1 if case.device.type == "cpu" else 20
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        for _ in range(repeats):
            for a, b in pairs:
                out = a @ b.T
        finish(case.device, out)
        best = min(best, (time.perf_counter() - started) / repeats)
    return best


def read_messages() -> list[str]:
    """The distinct messages of the SMS Spam Collection."""
    dataset = read_assets(Project().assets)["dataset"]
    (file,) = dataset.files
    reading = Reading(**{name: dataset.extra[name] for name in ("format", "header", "quoting")})
    frame = read_source(dataset.locate(Project()) / file, reading)
    return list(dict.fromkeys(frame["message"]))


def make_long(messages: Sequence[str], count: int) -> list[str]:
    """Texts of some 256 to 512 tokens: messages joined."""
    generator = np.random.default_rng(0)
    texts = []
    for _ in range(count):
        size = generator.integers(1000, 2000)
        text = ""
        while len(text) < size:
            text += messages[generator.integers(len(messages))] + " "
        texts.append(text)
    return texts


def make_messages(messages: Sequence[str], count: int) -> list[str]:
    """Distinct synthetic messages with the corpus's distribution of lengths: words shuffled."""
    generator = np.random.default_rng(0)
    words = pa.array([word for message in messages for word in message.split()])
    lengths = [len(message.split()) for message in messages]
    sizes = np.maximum(generator.choice(lengths, count), 1)
    chosen = words.take(pa.array(generator.integers(0, len(words), int(sizes.sum()))))
    ends = np.cumsum(sizes)
    # The last word of each message is its number, so that no two are alike.
    is_number = np.zeros(len(chosen), bool)
    is_number[ends - 1] = True
    numbers = pa.array(np.arange(count)).cast(pa.string())
    spread = numbers.take(pa.array(np.repeat(np.arange(count), sizes)))
    chosen = pc.if_else(pa.array(is_number), spread, chosen)
    offsets = pa.array(np.append(0, ends).astype(np.int32))
    joined = pc.binary_join(pa.ListArray.from_arrays(offsets, chosen), " ")
    texts: list[str] = joined.to_pylist()
    return texts


def make_backbone(folder: Path, shape: str, tokenizer: str = MINILM) -> Path:
    """A backbone of that shape with random weights from seed 0, and another's tokenizer."""
    set_project(folder.parent / "tokenizer", tokenizer)
    source = read_assets(Project().assets)["backbone"].locate(Project())
    torch.manual_seed(0)
    kind, sizes = SHAPES[shape]
    config = transformers.CONFIG_MAPPING[kind](**sizes)
    transformers.AutoModel.from_config(config).eval().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    return folder


def set_project(folder: Path, backbone: str) -> None:
    """A project with that backbone fetched; it becomes the working directory."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    text = "prepare: {}\nembed: {}\nheads: {}\nreport: {}\n"
    Project().settings.write_text(f"fetch: {{backbones: [{json.dumps(backbone)}]}}\n{text}")
    subprocess.run(
        [sys.executable, "-m", "pipeline", "fetch"], check=True, stdout=subprocess.DEVNULL
    )


def write_texts(texts: list[str]) -> None:
    table = {"row": np.arange(len(texts)), "text": texts}
    keys = pa.array(hash_texts(texts), pa.binary(16))
    pq.write_table(
        pa.table(table).append_column("key", keys), Project().texts_file, row_group_size=16_384
    )


def embed_reference(case: Case, rows: np.ndarray) -> np.ndarray:
    """Hugging Face in float32 on the CPU, one text at a time."""
    model = transformers.AutoModel.from_pretrained(case.folder).eval()
    vectors = []
    with torch.no_grad():
        for row in rows:
            states = model(**pad(case.tokens, np.array([row]), None)).last_hidden_state
            vectors.append(states[0].mean(dim=0).numpy())
    return np.stack(vectors)


def find_lowest_cosine(vectors: np.ndarray, expected: np.ndarray) -> float:
    found = vectors.astype(np.float64)
    cosine = (found * expected).sum(-1)
    cosine /= np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    return float(cosine.min())


def run_case(case: Case, ways: list[Way], rounds: int) -> list[dict[str, Any]]:
    """Time every way on the same texts, in turn."""
    write_texts(case.texts)
    architecture = Architecture.read(case.folder)
    inner = json.loads((case.folder / "config.json").read_text())["intermediate_size"]
    flops = count_flops(architecture, inner, case.tokens.lengths)
    per_layer = count_flops(architecture, inner, np.ones(1)) / architecture.layers
    per_layer -= 4 * architecture.width  # attention of a single token
    sample = np.unique(np.linspace(0, len(case.texts) - 1, 48).astype(int))
    expected = embed_reference(case, sample)
    rows: dict[Way, dict[str, Any]] = {way: {} for way in ways}
    best: dict[tuple[Way, str], float] = {}

    def note(way: Way, what: str, run: Callable[[], Any]) -> Any:
        started, cpu = time.perf_counter(), time.process_time()
        result = run()
        for key, took in (
            (what, time.perf_counter() - started),
            (f"{what}, CPU", time.process_time() - cpu),
        ):
            best[way, key] = min(took, best.get((way, key), took))
        return result

    products = float("inf")
    for _ in range(rounds):
        for way in ways:
            way.load(case)
            products = min(products, time_products(architecture.width, inner, case))
            note(way, "forward", lambda way=way: way.run_forward(case))
            if isinstance(way, Ours) and "neighbours" not in rows[way]:
                rows[way]["neighbours"] = way.compare_neighbours(case)
            way.unload()
        for way in ways:
            with PeakMemory(case.device) as memory:
                vectors = note(way, "whole", lambda way=way: way.run_whole(case))
            way.unload()
            rows[way]["cosine_min"] = find_lowest_cosine(vectors[sample], expected)
            rows[way]["peak_mb"] = memory.megabytes
    T = TOKEN_BUDGET[case.device.type]
    matmul_rate = per_layer * T / products
    tokens = int(case.tokens.offsets[-1])
    for way in ways:
        forward, whole = best[way, "forward"], best[way, "whole"]
        rows[way] |= {
            "case": case.name,
            "engine": way.name,
            "texts": len(case.texts),
            "tokens": tokens,
            "end_to_end_seconds": whole,
            "end_to_end_cpu_seconds": best[way, "whole, CPU"],
            "forward_seconds": forward,
            "forward_cpu_seconds": best[way, "forward, CPU"],
            "tokens_per_second": tokens / whole,
            "tflops": flops / forward / 1e12,
            "share_of_matmul": flops / forward / matmul_rate,
        }
    tokenizer = load_tokenizer(case.folder, case.max_tokens)
    started = time.perf_counter()
    tokenizer.tokenize(pa.array(case.texts))
    took = time.perf_counter() - started
    tokenizing = {
        "case": case.name, "engine": "tokenizing alone", "texts": len(case.texts),
        "tokens": tokens, "end_to_end_seconds": took, "tokens_per_second": tokens / took,
    }  # fmt: skip
    return [*rows.values(), tokenizing]


def run_families(
    root: Path, device: torch.device, tokenizer: str, messages: Sequence[str], rounds: int
) -> list[dict[str, Any]]:
    """Each packed family beside this project's own way through Hugging Face, forward pass alone."""
    rows = []
    precisions: list[Any] = ["float16"] if device.type == "cuda" else ["float32"]
    if device.type == "cpu" and has_onednn(torch.bfloat16):
        precisions.append("bfloat16")
    for shape in FAMILIES_SHOWN:
        folder = make_backbone(root / shape, shape, tokenizer)
        case = Case(f"families, {shape}", list(messages), folder, 128, device)
        sample = np.unique(np.linspace(0, len(case.texts) - 1, 16).astype(int))
        expected = embed_reference(case, sample)
        for precision in precisions:
            top = (Architecture.read(folder).layers,)
            plan = EnginePlan(folder, precision, top, "float32")
            padded = Backbone(folder, device, precision)
            budget = TOKEN_BUDGET[device.type]
            engines = {
                "packed": plan.make_engine(device),
                "Hugging Face": Engine(padded, top, np.dtype("float32"), budget),
            }
            assert engines["packed"].encoder.is_packed
            seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
            cosine: dict[str, float] = {}
            for _ in range(rounds):
                for name, engine in engines.items():
                    started, cpu = time.perf_counter(), time.process_time()
                    vectors = engine.embed(case.tokens).vectors[:, 0]
                    took = time.perf_counter() - started, time.process_time() - cpu
                    seconds[name].append(took)
                    cosine[name] = find_lowest_cosine(vectors[sample], expected)
            for name, engine in engines.items():
                engine.close()
                wall, cpu = (min(each) for each in zip(*seconds[name], strict=True))
                rows.append(
                    {
                        "case": case.name, "engine": f"{name}, {precision}",
                        "texts": len(case.texts), "tokens": len(case.tokens.ids),
                        "forward_seconds": wall, "forward_cpu_seconds": cpu,
                        "cosine_min": cosine[name],
                    }
                )  # fmt: skip
        shutil.rmtree(folder)
    return rows


# What a growth run does in its process; the second with a backbone that takes no time.
_EMBED = """
from pipeline.cli import cli
from tests.benchmarks.table import read_memory
cli.main(["embed"], standalone_mode=False)
print(read_memory("VmHWM"))
"""
_EMBED_FREE = f"""
from pipeline.embed import shards
from pipeline.embed.families import FAMILIES
from tests.benchmarks.ways import Free
FAMILIES["bert"] = Free
shards.check_fidelity = lambda fidelity, precision: None
{_EMBED}"""


@dataclass(frozen=True)
class Growth:
    """One run of `pipeline embed` in a process of its own, on synthetic messages.

    :param shape: a key of ``SHAPES``.
    :param texts: number of messages.
    :param layers: the setting ``embed.layers``.
    :param is_free: whether the forward pass is left out, so that what is left is all the rest.
    """

    shape: str
    texts: int
    layers: str = "last"
    is_free: bool = False

    @property
    def engine(self) -> str:
        if self.is_free:
            return "a backbone that takes no time"
        return f"ours, {self.shape}" + (", all layers" if self.layers == "all" else "")


# A tiny backbone leaves a CPU the time to show that no stage beside the forward pass slows down
# with the number of texts; a GPU embeds as many by a real one.
GROWTHS = {
    "cpu": (
        Growth("tiny", 10_000),
        Growth("tiny", 100_000),
        Growth("tiny", 1_000_000),
        Growth("wide", 1_000_000, is_free=True),
    ),
    "cuda": (
        Growth("gte-base", 100_000),
        Growth("gte-base", 1_000_000),
        Growth("gte-base", 200_000, "all"),
        Growth("wide", 1_000_000, is_free=True),
    ),
}


def run_growth(
    root: Path, growths: Sequence[Growth], tokenizer: str, messages: Sequence[str]
) -> list[dict[str, Any]]:
    """`pipeline embed` on more and more messages, each time in a fresh process."""
    rows: list[dict[str, Any]] = []
    last: Growth | None = None
    # This checkout's code, and whatever else this process finds its packages by.
    search = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    for growth in growths:
        project = root / f"growth-{growth.shape}"
        if not project.exists():
            set_project(project, str(make_backbone(root / growth.shape, growth.shape, tokenizer)))
        os.chdir(project)
        plain = "fetch: {{backbones: [{}]}}\nprepare: {{}}\nembed: {{layers: {}}}\nheads: {{}}\n"
        plain = plain.format(json.dumps(str(root / growth.shape)), growth.layers)
        Project().settings.write_text(plain + "report: {}\n")
        shutil.rmtree(Project().store, ignore_errors=True)
        write_texts(make_messages(messages, growth.texts))
        started = time.perf_counter()
        run = subprocess.run(
            [sys.executable, "-c", _EMBED_FREE if growth.is_free else _EMBED],
            check=True, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": search},
        )  # fmt: skip
        wall = time.perf_counter() - started
        details = json.loads((Project().timings / "embed.json").read_text())["details"]
        seconds = details["seconds"]
        added = None
        if last is not None and replace(growth, texts=last.texts) == last:
            before = rows[-1]
            added = 1e6 * (seconds - before["end_to_end_seconds"]) / (growth.texts - last.texts)
        last = growth
        rows.append(
            {
                "case": "growth", "engine": growth.engine,
                "texts": growth.texts, "tokens": details["tokens"], "end_to_end_seconds": seconds,
                "wall_seconds": wall,
                "tokens_per_second": details["tokens"] / seconds,
                "peak_mb": float(run.stdout.split()[-1]),
                "microseconds_a_further_text": added,
            }
        )  # fmt: skip
        shutil.rmtree(Project().store)
    return rows


def list_ways(device: torch.device, *, quick: bool) -> list[Way]:
    """The engines that there are on a device, and say which are not installed."""
    ways: list[Way] = [Ours(), SentenceTransformers(), Notebook()]
    on_gpu = device.type == "cuda"
    if not on_gpu:
        ways[2:2] = list_rivals(quick=quick)
    if quick:
        return ways
    ways[1:1] = [Ours("all")]
    ways.insert(2, SentenceTransformers(32))
    if on_gpu:
        if find_spec("flash_attn"):
            ways.insert(-1, SentenceTransformers(flash=True))
        else:
            click.echo("without sentence-transformers' unpadded path: flash_attn not installed")
    elif has_onednn(torch.bfloat16):
        ways[-1:-1] = [Ours(precision="bfloat16"), SentenceTransformers(precision="bfloat16")]
    return ways


def list_rivals(*, quick: bool) -> list[Way]:
    """The engines of other projects on a CPU in each precision that they and it have."""
    rivals: list[Way] = []
    for rival in RIVALS:
        for precision in rival.needs:
            if precision == "bfloat16" and not has_onednn(torch.bfloat16):
                continue
            if quick and precision != "float32":
                continue
            missing = rival.find_missing(precision)
            if missing:
                click.echo(f"without {rival.label}, {precision}: {missing} not installed")
            else:
                rivals.append(rival(precision, torch.get_num_threads()))
    return rivals


@click.command()
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the rows there.")
@click.option("--quick", is_flag=True, help="A part of the SMS corpus, MiniLM, one round.")
@click.option("--backbone", default=MINILM, help="A hub id or a local folder.")
@click.option("--random-weights", type=click.Choice(["gte-base"]), help="A seeded BERT instead.")
@click.option("--device", default="auto", help="auto, cpu, cuda.")
@click.option("--texts", type=int, help="Messages of the SMS corpus; all of them by default.")
@click.option("--case", "cases", default="sms,long,growth", help="Also: families.")
@click.option("--rounds", default=2, help="How often each way runs.")
def main(
    path: Path | None,
    quick: bool,
    backbone: str,
    random_weights: str | None,
    device: str,
    texts: int | None,
    cases: str,
    rounds: int,
) -> None:
    """Print a table, and write it as JSON."""
    path = path and path.absolute()
    if Path(backbone).exists():
        backbone = str(Path(backbone).absolute())
    chosen = choose_devices(device)[0]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        tokenizer = backbone
        if random_weights:
            backbone = str(make_backbone(root / random_weights, random_weights, tokenizer))
        set_project(root / "project", backbone)
        folder = read_assets(Project().assets)["backbone"].locate(Project())
        messages = read_messages()
        if quick:
            cases, texts, rounds = "sms", 200, 1
        ways = list_ways(chosen, quick=quick)
        if "sms" in cases:
            some = messages[:texts]
            case = Case("sms", some, folder, 128, chosen)
            rows += run_case(case, ways, rounds)
        if "long" in cases:
            count = 2000 if chosen.type == "cuda" else 48
            case = Case("long", make_long(messages, count), folder, 512, chosen)
            rows += run_case(case, ways, rounds)
        if "families" in cases:
            rows += run_families(root, chosen, tokenizer, messages[:texts], rounds)
        if "growth" in cases:
            rows += run_growth(root, GROWTHS[chosen.type], tokenizer, messages)
        os.chdir("/")
    machine = describe_machine("torch", "transformers", "sentence-transformers", "tokenizers")
    machine |= {"threads": torch.get_num_threads(), "backbone": random_weights or backbone}
    if chosen.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(chosen)
    present([{c: row.get(c) for c in COLUMNS} for row in rows], path, machine)


if __name__ == "__main__":
    main()
