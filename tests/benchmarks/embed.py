"""Speed of `pipeline embed` beside the ways that people embed texts today.

    python -m tests.benchmarks.embed [--json FILE] [--quick] [--backbone NAME]
        [--random-weights gte-base] [--device cpu|cuda] [--texts N] [--case sms,long,growth]

Every engine gets the same distinct texts and the last layer. `end_to_end_seconds` is from texts in
memory to vectors in Parquet on the disk, loading the weights included, imports not;
`forward_seconds` is the backbone alone, on tokens that are ready. Engines run in turn, and each
figure is the best of its rounds. `share_of_matmul` is the rate of the forward pass, all its
floating-point operations counted and none for padding, over that of plain products of the same
shapes, timed in the same rounds. `cosine_min` is to Hugging Face in float32, one text at a time.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers

from pipeline import paths
from pipeline.assets import read_assets
from pipeline.config import parse_settings, read_preset
from pipeline.embed.backbone import Architecture, Backbone
from pipeline.embed.batches import plan_batches
from pipeline.embed.engine import Engine
from pipeline.embed.packed import PackedBert, can_pack
from pipeline.embed.run import _TOKEN_BUDGET, run_embed
from pipeline.embed.tokens import Tokens, load_tokenizer, select_tokens
from pipeline.prepare import hash_texts
from pipeline.sources import read_source
from pipeline.store import read_manifest, read_vectors
from tests.benchmarks.table import PeakMemory, describe_machine, present

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
SHAPES = {
    "gte-base": {"num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072},
    "tiny": {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64},
}
HEADS = {"gte-base": 12, "tiny": 2}
COLUMNS = (
    "case", "engine", "texts", "tokens", "end_to_end_seconds", "forward_seconds",
    "tokens_per_second", "tflops", "share_of_matmul", "peak_mb", "cosine_min",
)  # fmt: skip


@dataclass
class Case:
    """Texts to embed with one backbone.

    :param folder: of the backbone.
    :param max_tokens: longer texts are cut.
    """

    name: str
    texts: list[str]
    folder: Path
    max_tokens: int
    device: torch.device
    tokens: Tokens = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = load_tokenizer(self.folder, self.max_tokens).tokenize(pa.array(self.texts))

    @property
    def precision(self) -> str:
        return "float16" if self.device.type == "cuda" else "float32"

    @property
    def half(self) -> bool:
        return self.precision == "float16"


class Way(ABC):
    """One engine: loads, embeds, and runs its forward pass alone."""

    name: str

    @abstractmethod
    def load(self, case: Case) -> None:
        """Read the weights."""

    @abstractmethod
    def run_forward(self, case: Case) -> None:
        """The backbone alone, tokens ready."""

    @abstractmethod
    def run_whole(self, case: Case) -> np.ndarray:
        """Load, embed, and write the vectors to Parquet."""


class Rival(Way):
    """A way that gives an array, to be written as one would without this project."""

    @abstractmethod
    def embed(self, case: Case) -> np.ndarray:
        """From texts to vectors, [B, D]."""

    def run_whole(self, case: Case) -> np.ndarray:
        self.load(case)
        vectors = self.embed(case)
        flat = pa.array(np.ascontiguousarray(vectors, np.float16).reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        pq.write_table(pa.table({"text": case.texts, "vector": column}), "plain.parquet")
        return vectors


class Ours(Way):
    """`pipeline embed`, with all that it does: hashes, the fidelity gauge, flushing to the disk."""

    def __init__(self, layers: str = "last") -> None:
        self.layers = layers
        self.name = "ours" if layers == "last" else f"ours, {layers} layers"

    def load(self, case: Case) -> None:
        asset = read_assets()["backbone"]
        reference = Backbone(asset, case.folder, case.device, "float32")
        self.reference = reference
        top = reference.architecture.layers
        layers = (top,) if self.layers == "last" else tuple(range(top + 1))
        packed = can_pack(reference.model.config)
        encoder = PackedBert(reference, case.precision) if packed else reference  # type: ignore[arg-type]
        budget = _TOKEN_BUDGET[case.device.type]
        self.engine = Engine(encoder, layers, np.dtype("float16"), budget)

    def run_forward(self, case: Case) -> None:
        self.engine.embed(case.tokens)

    def encode_in_batches(self, tokens: Tokens, order: np.ndarray) -> None:
        """The engine's batches in this thread, for a profiler, which sees only its own."""
        engine = self.engine
        plan = plan_batches(tokens.lengths[order], engine.token_budget)
        for batch in plan:
            chosen = select_tokens(tokens, order[batch])
            out = engine.encoder.encode(chosen.ids, chosen.lengths, engine.layers)
        finish(engine.encoder.device, out)

    def run_whole(self, case: Case) -> np.ndarray:
        changed = {"layers": self.layers, "max_tokens": case.max_tokens}
        settings = parse_settings(read_preset("default"), "default")
        settings = settings.model_copy(
            update={
                "embed": settings.embed.model_copy(update=changed),
                "runtime": settings.runtime.model_copy(update={"device": str(case.device)}),
            }
        )
        shutil.rmtree(paths.EMBEDDINGS, ignore_errors=True)
        with contextlib.redirect_stdout(io.StringIO()):
            run_embed(settings)
        keys = pq.read_table(paths.TEXTS)["key"].combine_chunks()
        top = read_manifest(paths.EMBEDDINGS).layers[-1]
        return read_vectors(paths.EMBEDDINGS, keys, (top,))[:, 0]


class SentenceTransformers(Rival):
    """sentence-transformers, at its default batch size or at its best, where there is a GPU in half
    precision."""

    def __init__(self, batch_size: int | None = None) -> None:
        self.batch_size = batch_size
        self.name = "sentence-transformers" + (", best" if batch_size is None else ", default")

    def load(self, case: Case) -> None:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.models import Pooling, Transformer

        body = Transformer(str(case.folder), max_seq_length=case.max_tokens)
        pooling = Pooling(body.get_embedding_dimension(), pooling_mode="mean")
        self.model = SentenceTransformer(modules=[body, pooling], device=str(case.device))
        if case.half:
            self.model.half()

    def embed(self, case: Case) -> np.ndarray:
        return np.asarray(
            self.model.encode(
                case.texts,
                batch_size=self.batch_size or 32,
                normalize_embeddings=False,
                show_progress_bar=False,
            )
        )

    def choose_batch_size(self, case: Case) -> None:
        """The fastest on a sample of the texts."""
        sample = case.texts[:: max(1, len(case.texts) // 200)]
        sizes = (64, 256, 1024) if case.half else (4, 8, 16, 32, 64)
        seconds = {}
        for _ in range(2):
            for size in sizes:
                started = time.perf_counter()
                self.model.encode(sample, batch_size=size, show_progress_bar=False)
                took = time.perf_counter() - started
                seconds[size] = min(took, seconds.get(size, took))
        self.batch_size = min(sizes, key=lambda size: seconds[size])
        self.name = f"sentence-transformers, best ({self.batch_size})"

    def run_forward(self, case: Case) -> None:
        order = np.argsort(-case.tokens.lengths, kind="stable")
        size = self.batch_size or 32
        with torch.inference_mode():
            for start in range(0, len(order), size):
                batch = pad(case.tokens, order[start : start + size], None)
                out = self.model({name: x.to(case.device) for name, x in batch.items()})
            finish(case.device, out["sentence_embedding"])


class Notebook(Rival):
    """The notebook's way: batches of 32 in corpus order, each text padded to the maximum."""

    name = "notebook"

    def load(self, case: Case) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(case.folder)
        self.model = transformers.AutoModel.from_pretrained(case.folder).eval().to(case.device)

    def _pool(self, inputs: dict[str, torch.Tensor], case: Case) -> torch.Tensor:
        inputs = {name: tensor.to(case.device) for name, tensor in inputs.items()}
        states = self.model(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None]
        return (states * mask).sum(dim=1) / mask.sum(dim=1)

    def embed(self, case: Case) -> np.ndarray:
        vectors = []
        with torch.no_grad():
            for start in range(0, len(case.texts), 32):
                inputs = self.tokenizer(
                    case.texts[start : start + 32],
                    padding="max_length",
                    truncation=True,
                    max_length=case.max_tokens,
                    return_tensors="pt",
                )
                vectors.append(self._pool(dict(inputs), case).cpu().numpy())
        return np.concatenate(vectors)

    def run_forward(self, case: Case) -> None:
        with torch.no_grad():
            for start in range(0, len(case.texts), 32):
                rows = np.arange(start, min(start + 32, len(case.texts)))
                out = self._pool(pad(case.tokens, rows, case.max_tokens), case)
            finish(case.device, out)


def pad(tokens: Tokens, rows: np.ndarray, width: int | None) -> dict[str, torch.Tensor]:
    lengths = tokens.lengths[rows]
    ids = np.zeros((len(rows), width or int(lengths.max())), np.int64)
    for number, row in enumerate(rows):
        ids[number, : lengths[number]] = tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]]
    mask = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}


def finish(device: torch.device, tensor: torch.Tensor) -> None:
    """Wait until it is computed."""
    if device.type == "cuda":
        tensor[:1].cpu()


def count_flops(architecture: Architecture, inner: int, lengths: np.ndarray) -> float:
    """Of the forward pass on real tokens: the products with weights, and those of attention."""
    D, T = architecture.width, float(lengths.sum())
    products = T * (4 * D * D + 2 * D * inner)
    attention = 2 * D * float((lengths.astype(np.float64) ** 2).sum())
    return 2 * architecture.layers * (products + attention)


def time_products(width: int, inner: int, case: Case) -> float:
    """Seconds for a layer's four products with weights, on a batch of the engine's own size."""
    T = _TOKEN_BUDGET[case.device.type]
    shapes = ((width, 3 * width), (width, width), (width, inner), (inner, width))
    like: Any = {"device": case.device, "dtype": getattr(torch, case.precision)}
    pairs = [(torch.ones(T, k, **like), torch.ones(n, k, **like)) for k, n in shapes]
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
    dataset = read_assets()["dataset"]
    (file,) = dataset.files
    frame = read_source(
        dataset.locate() / file, dataset.extra["format"], dataset.extra.get("header")
    )
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
    words = [word for message in messages for word in message.split()]
    lengths = [len(message.split()) for message in messages]
    texts = []
    for number, size in enumerate(generator.choice(lengths, count)):
        chosen = generator.integers(0, len(words), max(int(size) - 1, 0))
        texts.append(" ".join([*(words[w] for w in chosen), str(number)]))
    return texts


def make_backbone(folder: Path, shape: str) -> Path:
    """A BERT of that shape with random weights from seed 0, and MiniLM's tokenizer."""
    set_project(folder.parent / "tokenizer", MINILM)
    source = read_assets()["backbone"].locate()
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30522, num_attention_heads=HEADS[shape], **SHAPES[shape]
    )
    transformers.BertModel(config).eval().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    return folder


def set_project(folder: Path, backbone: str) -> None:
    """A project with that backbone fetched; it becomes the working directory."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    text = "prepare: {}\nembed: {}\nheads: {}\nreport: {}\n"
    paths.PARAMS.write_text(f"fetch: {{backbones: [{json.dumps(backbone)}]}}\n{text}")
    subprocess.run(
        [sys.executable, "-m", "pipeline", "fetch"], check=True, stdout=subprocess.DEVNULL
    )


def write_texts(texts: list[str]) -> None:
    table = {"row": np.arange(len(texts)), "text": texts}
    keys = pa.array(hash_texts(texts), pa.binary(16))
    pq.write_table(pa.table(table).append_column("key", keys), paths.TEXTS, row_group_size=16_384)


def embed_reference(case: Case, rows: np.ndarray) -> np.ndarray:
    """Hugging Face in float32 on the CPU, one text at a time."""
    model = transformers.AutoModel.from_pretrained(case.folder).eval()
    vectors = []
    with torch.no_grad():
        for row in rows:
            states = model(**pad(case.tokens, np.array([row]), None)).last_hidden_state
            vectors.append(states[0].mean(dim=0).numpy())
    return np.stack(vectors)


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
    for way in ways:
        way.load(case)
        if isinstance(way, SentenceTransformers) and way.batch_size is None:
            way.choose_batch_size(case)
    rows = {way.name: {"case": case.name, "engine": way.name} for way in ways}
    best: dict[tuple[str, str], float] = {}

    def note(engine: str, what: str, run: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = run()
        took = time.perf_counter() - started
        best[engine, what] = min(took, best.get((engine, what), took))
        return result

    products = float("inf")
    for _ in range(rounds):
        for way in ways:
            products = min(products, time_products(architecture.width, inner, case))
            note(way.name, "forward", lambda way=way: way.run_forward(case))
        for way in ways:
            with PeakMemory(case.device) as memory:
                vectors = note(way.name, "whole", lambda way=way: way.run_whole(case))
            found = vectors[sample].astype(np.float64)
            cosine = (found * expected).sum(-1)
            cosine /= np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
            rows[way.name]["cosine_min"] = float(cosine.min())
            rows[way.name]["peak_mb"] = memory.megabytes
    T = _TOKEN_BUDGET[case.device.type]
    matmul_rate = per_layer * T / products
    tokens = int(case.tokens.offsets[-1])
    for way in ways:
        forward, whole = best[way.name, "forward"], best[way.name, "whole"]
        rows[way.name] |= {
            "texts": len(case.texts),
            "tokens": tokens,
            "end_to_end_seconds": whole,
            "forward_seconds": forward,
            "tokens_per_second": tokens / whole,
            "tflops": flops / forward / 1e12,
            "share_of_matmul": flops / forward / matmul_rate,
        }
    started = time.perf_counter()
    load_tokenizer(case.folder, case.max_tokens).tokenize(pa.array(case.texts))
    took = time.perf_counter() - started
    rows["tokenizing"] = {
        "case": case.name, "engine": "tokenizing alone", "texts": len(case.texts),
        "tokens": tokens, "end_to_end_seconds": took, "tokens_per_second": tokens / took,
    }  # fmt: skip
    return list(rows.values())


def run_growth(root: Path, counts: Sequence[int], device: str) -> list[dict[str, Any]]:
    """`pipeline embed` on more and more messages with a tiny backbone, each in a fresh process."""
    folder = make_backbone(root / "tiny", "tiny")
    set_project(root / "growth", str(folder))
    messages = read_messages()
    rows = []
    for size in counts:
        shutil.rmtree(paths.EMBEDDINGS, ignore_errors=True)
        write_texts(make_messages(messages, size))
        code = (
            "import resource, time, json, sys\n"
            "from pipeline.cli import cli\n"
            "cli.main(['embed'], standalone_mode=False)\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
        )
        run = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        )
        details = json.loads((paths.TIMINGS / "embed.json").read_text())["details"]
        rows.append(
            {
                "case": f"growth, tiny BERT, {size:,} messages", "engine": "ours", "texts": size,
                "tokens": details["tokens"], "end_to_end_seconds": details["seconds"],
                "tokens_per_second": details["tokens"] / details["seconds"],
                "peak_mb": int(run.stdout.split()[-1]) / 1000,
            }
        )  # fmt: skip
    return rows


@click.command()
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the rows there.")
@click.option("--quick", is_flag=True, help="A part of the SMS corpus, MiniLM, one round.")
@click.option("--backbone", default=MINILM, help="A hub id or a local folder.")
@click.option("--random-weights", type=click.Choice(["gte-base"]), help="A seeded BERT instead.")
@click.option("--device", default="auto", help="auto, cpu, cuda.")
@click.option("--texts", type=int, help="Messages of the SMS corpus; all of them by default.")
@click.option("--case", "cases", default="sms,long,growth", help="Which cases, with commas.")
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
    from pipeline.device import choose_device

    path = path and path.absolute()
    if Path(backbone).exists():
        backbone = str(Path(backbone).absolute())
    chosen = choose_device(device)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        if random_weights:
            backbone = str(make_backbone(root / random_weights, random_weights))
        set_project(root / "project", backbone)
        folder = read_assets()["backbone"].locate()
        messages = read_messages()
        if quick:
            cases, texts, rounds = "sms", 250, 1
        ways = [Ours(), SentenceTransformers(), Notebook()]
        if not quick:
            ways[1:1] = [Ours("all")]
            ways[-1:-1] = [SentenceTransformers(32)]
        if "sms" in cases:
            some = messages[:texts]
            case = Case("sms", some, folder, 128, chosen)
            rows += run_case(case, ways, rounds)
        if "long" in cases:
            count = 2000 if chosen.type == "cuda" else 48
            case = Case("long", make_long(messages, count), folder, 512, chosen)
            rows += run_case(case, ways, rounds)
        if "growth" in cases:
            rows += run_growth(root, (10_000, 100_000, 1_000_000), device)
        os.chdir("/")
    machine = describe_machine("torch", "transformers", "sentence-transformers", "tokenizers")
    machine |= {"threads": torch.get_num_threads(), "backbone": random_weights or backbone}
    if chosen.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(chosen)
    present([{c: row.get(c) for c in COLUMNS} for row in rows], path, machine)


if __name__ == "__main__":
    main()
