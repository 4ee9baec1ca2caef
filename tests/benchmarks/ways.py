"""The ways to embed texts that `tests.benchmarks.embed` compares, each as its users run it."""

from __future__ import annotations

import contextlib
import gc
import io
import shutil
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tokenizers
import torch
import transformers

from pipeline.architecture import Architecture
from pipeline.config import parse_settings
from pipeline.embed import run
from pipeline.embed.batches import plan_batches
from pipeline.embed.families.bert import PackedBert
from pipeline.embed.loading import EnginePlan
from pipeline.embed.tokens import Tokens, load_tokenizer, select_tokens
from pipeline.presets import read_preset
from pipeline.project import Project
from pipeline.store import read_manifest, read_vectors


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

    def __init__(self) -> None:
        self._settings = dict(self.__dict__)

    def unload(self) -> None:
        """Give the weights back, so that the next engine's memory is its own."""
        self.__dict__ = {**self._settings, "_settings": self._settings}
        gc.collect()

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
    """`pipeline embed`, with all that it does: hashes, the fidelity gauge, flushing to the disk.

    :param precision: that of the case if left out.
    """

    def __init__(self, layers: str = "last", precision: str | None = None) -> None:
        self.layers, self.precision = layers, precision
        told = (f"{layers} layers" if layers != "last" else "", precision or "")
        self.name = ", ".join(["ours", *filter(None, told)])
        super().__init__()

    def load(self, case: Case) -> None:
        top = Architecture.read(case.folder).layers
        layers = (top,) if self.layers == "last" else tuple(range(top + 1))
        precision: Any = self.precision or case.precision
        plan = EnginePlan(case.folder, precision, layers, "float16")
        self.reference = plan.load_reference(case.device)
        self.engine = plan.make_engine(case.device)

    def run_forward(self, case: Case) -> None:
        self.engine.embed(case.tokens)

    def compare_neighbours(self, case: Case) -> float:
        """How far a text's vector in one company is from its vector in another, at most, as a share
        of its length: all texts, and a random half of them."""
        half = np.random.default_rng(0).permutation(len(case.texts))[: len(case.texts) // 2 + 1]
        self.engine.dtype = np.dtype(np.float32)
        among_all = self.engine.embed(case.tokens).vectors[half, -1]
        among_half = self.engine.embed(select_tokens(case.tokens, half)).vectors[:, -1]
        apart = np.linalg.norm(among_all - among_half, axis=-1)
        return float((apart / np.linalg.norm(among_all, axis=-1)).max())

    def encode_in_batches(self, tokens: Tokens, order: np.ndarray) -> None:
        """The engine's batches in this thread, for a profiler, which sees only its own."""
        engine = self.engine
        plan = plan_batches(tokens.lengths[order], engine.token_budget)
        for batch in plan:
            chosen = select_tokens(tokens, order[batch])
            out = engine.encoder.encode(chosen.ids, chosen.lengths, engine.layers)
        finish(engine.encoder.device, out)

    def run_whole(self, case: Case) -> np.ndarray:
        changed = {
            "layers": self.layers,
            "max_tokens": case.max_tokens,
            "precision": self.precision or case.precision,
        }
        settings = parse_settings(read_preset("default"), "default")
        settings = settings.model_copy(
            update={
                "embed": settings.embed.model_copy(update=changed),
                "runtime": settings.runtime.model_copy(update={"devices": str(case.device)}),
            }
        )
        shutil.rmtree(Project().store, ignore_errors=True)
        with contextlib.redirect_stdout(io.StringIO()):
            run.run_embed(Project(), settings)
        keys = pq.read_table(Project().texts_file)["key"].combine_chunks()
        top = read_manifest(Project().store).layers[-1]
        return read_vectors(Project().store, keys, (top,))[:, 0]


class Free(PackedBert):
    """A backbone that takes no time, to see what the rest can feed a fast device."""

    def encode(self, ids: Any, lengths: Any, layers: tuple[int, ...], *_: None) -> torch.Tensor:
        return torch.ones(()).expand(len(lengths), len(layers), self.architecture.width)


class BatchSize:
    """The batch size of a rival: one that it is given, or the fastest on a sample of the texts."""

    def __init__(self, name: str, size: int | None) -> None:
        self.size = size
        self._name = name

    @property
    def told(self) -> str:
        return f"{self._name} ({self.size})" if self.size else self._name

    def choose(self, case: Case, embed: Callable[[list[str], int], Any]) -> None:
        """:param embed: embeds texts in batches of a size."""
        if self.size is not None:
            return
        sample = case.texts[:: max(1, len(case.texts) // 64)]
        sizes = (64, 256, 1024) if case.half else (4, 8, 16, 32, 64)
        seconds = {}
        for _ in range(2):
            for size in sizes:
                started = time.perf_counter()
                embed(sample, size)
                took = time.perf_counter() - started
                seconds[size] = min(took, seconds.get(size, took))
        self.size = min(sizes, key=lambda size: seconds[size])


class SentenceTransformers(Rival):
    """sentence-transformers, on a GPU in float16.

    :param batch_size: its default is 32; ``None`` for its best.
    :param precision: that of the case if left out.
    :param flash: by flash-attention's kernels, for which it packs the texts without padding.
    """

    def __init__(
        self, batch_size: int | None = None, precision: str | None = None, *, flash: bool = False
    ) -> None:
        self.precision, self.flash = precision, flash
        told = ("sentence-transformers", precision or "", "flash" if flash else "",
                "default" if batch_size == 32 else "best")  # fmt: skip
        self.batch = BatchSize(", ".join(filter(None, told)), batch_size)
        super().__init__()

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.batch.told

    def load(self, case: Case) -> None:
        from sentence_transformers import SentenceTransformer

        how = {"attn_implementation": "flash_attention_2"} if self.flash else {}
        dtype = getattr(torch, self.precision or case.precision)
        self.model = SentenceTransformer(
            str(case.folder), device=str(case.device), model_kwargs={"dtype": dtype, **how}
        )
        self.model.max_seq_length = case.max_tokens
        self.batch.choose(case, self._encode)

    def _encode(self, texts: list[str], size: int) -> np.ndarray:
        found = self.model.encode(
            texts, batch_size=size, normalize_embeddings=False, show_progress_bar=False,
            convert_to_tensor=True,
        )  # fmt: skip
        return found.float().cpu().numpy()

    def embed(self, case: Case) -> np.ndarray:
        assert self.batch.size is not None
        return self._encode(case.texts, self.batch.size)

    def run_forward(self, case: Case) -> None:
        with torch.inference_mode():
            for batch in pad_by_length(case.tokens, self.batch.size):
                out = self.model({name: x.to(case.device) for name, x in batch.items()})
            finish(case.device, out["sentence_embedding"])


class GraphRival(Rival):
    """An engine of its own on a CPU, at its best batch size, texts of like length together.

    What it runs is made of the backbone once, before anything is timed.

    :param precision: ``float32``, ``bfloat16`` or ``int8``.
    :param threads: threads of the CPU.
    :cvar label: the engine's name.
    :cvar needs: the packages that it takes in each precision that it has.
    """

    label: ClassVar[str]
    needs: ClassVar[Mapping[str, tuple[str, ...]]]

    def __init__(self, precision: str, threads: int) -> None:
        self.precision, self.threads = precision, threads
        told = precision if precision != "float32" else ""
        self.batch = BatchSize(", ".join(filter(None, (self.label, told, "best"))), None)
        super().__init__()

    @classmethod
    def find_missing(cls, precision: str) -> str | None:
        """The packages that it takes and this environment lacks."""
        missing = [name for name in cls.needs[precision] if not find_spec(name)]
        return ", ".join(missing) or None

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.batch.told

    @abstractmethod
    def open(self, case: Case) -> None:
        """Make ready to run."""

    @abstractmethod
    def run(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The token vectors of padded texts: from int64, [B, T], to [B, T, D]."""

    def load(self, case: Case) -> None:
        self.open(case)
        self.batch.choose(case, lambda texts, size: self._encode(texts, size, case))

    def _pool(self, batch: dict[str, torch.Tensor]) -> np.ndarray:
        ids, mask = batch["input_ids"].numpy(), batch["attention_mask"].numpy()
        states = self.run(ids, mask)
        return (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)

    def _encode(self, texts: list[str], size: int, case: Case) -> np.ndarray:
        tokenizer = tokenizers.Tokenizer.from_file(str(case.folder / "tokenizer.json"))
        tokenizer.enable_truncation(case.max_tokens)
        tokenizer.no_padding()
        pieces = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
        lengths = np.array([len(piece) for piece in pieces])
        tokens = Tokens(np.concatenate(pieces).astype(np.int32), np.append(0, lengths.cumsum()))
        vectors = np.concatenate([self._pool(batch) for batch in pad_by_length(tokens, size)])
        return vectors[np.argsort(np.argsort(-lengths, kind="stable"))]

    def embed(self, case: Case) -> np.ndarray:
        assert self.batch.size is not None
        return self._encode(case.texts, self.batch.size, case)

    def run_forward(self, case: Case) -> None:
        for batch in pad_by_length(case.tokens, self.batch.size):
            self._pool(batch)


class OnnxRuntime(GraphRival):
    """ONNX Runtime; int8 is its dynamic quantization, weights by channel."""

    label = "ONNX Runtime"
    needs: ClassVar[Mapping[str, tuple[str, ...]]] = dict.fromkeys(
        ("float32", "int8"), ("onnxruntime", "onnx", "onnxscript")
    )

    def open(self, case: Case) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        path = export_model(case)
        if self.precision == "int8":
            path = quantize_dynamically(path)
        self.session = onnxruntime.InferenceSession(path, options)

    def run(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        (states,) = self.session.run(None, {"input_ids": ids, "attention_mask": mask})
        return states


class OpenVino(GraphRival):
    """OpenVINO; int8 is NNCF's static quantization for transformers, on some of the texts."""

    label = "OpenVINO"
    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **dict.fromkeys(("float32", "bfloat16"), ("openvino", "onnx", "onnxscript")),
        "int8": ("openvino", "nncf", "onnx", "onnxscript"),
    }

    def open(self, case: Case) -> None:
        import openvino

        path = export_model(case)
        if self.precision == "int8":
            path = quantize_statically(case, path)
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bfloat16" else "f32",
            "INFERENCE_NUM_THREADS": self.threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        model = openvino.Core().compile_model(path, "CPU", options)
        self.request = model.create_infer_request()

    def run(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        found = self.request.infer({"input_ids": ids, "attention_mask": mask})
        return found[0].astype(np.float32)


class CTranslate2(GraphRival):
    """CTranslate2, which packs the texts of a batch; int8 is its quantization of the weights."""

    label = "CTranslate2"
    needs: ClassVar[Mapping[str, tuple[str, ...]]] = dict.fromkeys(
        ("float32", "int8"), ("ctranslate2",)
    )

    def open(self, case: Case) -> None:
        import ctranslate2

        folder = Path("converted")  # in the scratch project, not beside the backbone
        if not folder.exists():
            ctranslate2.converters.TransformersConverter(str(case.folder)).convert(str(folder))
        kind = {"float32": "float32", "int8": "int8_float32"}[self.precision]
        self.encoder = ctranslate2.Encoder(
            str(folder), device="cpu", compute_type=kind, intra_threads=self.threads
        )

    def run(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        texts = [row[: int(real.sum())].tolist() for row, real in zip(ids, mask, strict=True)]
        return np.asarray(self.encoder.forward_batch(texts).last_hidden_state)


RIVALS: tuple[type[GraphRival], ...] = (OnnxRuntime, OpenVino, CTranslate2)


def quantize_dynamically(path: Path) -> Path:
    """Linear layers in int8 by ONNX Runtime's tools, weights by channel."""
    import onnx
    from onnxruntime import quantization

    target = path.with_name("dynamic.onnx")
    if not target.exists():
        graph = onnx.load(path).graph
        weights = {tensor.name for tensor in graph.initializer}
        # Products of activations with each other, in attention, stay as they are.
        other = [n.name for n in graph.node if n.op_type == "MatMul" and not weights & {*n.input}]
        quantization.quantize_dynamic(
            path, target, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True,
            nodes_to_exclude=other, weight_type=quantization.QuantType.QInt8,
        )  # fmt: skip
    return target


def quantize_statically(case: Case, path: Path) -> Path:
    """The graph in int8 by NNCF, whose scales come from some of the texts."""
    import nncf
    import openvino

    target = path.with_name("static.xml")
    if not target.exists():
        some = np.arange(0, len(case.texts), max(1, len(case.texts) // 128))
        batches = list(pad_by_length(select_tokens(case.tokens, some), 4))
        data = nncf.Dataset(
            batches, lambda batch: {name: tensor.numpy() for name, tensor in batch.items()}
        )
        kind = nncf.ModelType.TRANSFORMER
        model = nncf.quantize(openvino.Core().read_model(path), data, model_type=kind)
        openvino.save_model(model, target)
    return target


def export_model(case: Case) -> Path:
    """The backbone's last layer as an ONNX file in the scratch project, made when first asked for,
    for batches of any size and length."""
    path = Path("exported.onnx")
    if path.exists():
        return path

    class Body(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            model = transformers.AutoModel.from_pretrained(case.folder, attn_implementation="eager")
            self.model = model.eval()

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    ids = torch.full((4, 20), 1000)
    any_size = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens")}
    names = ["input_ids", "attention_mask"]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Body(), (ids, torch.ones_like(ids)), path, input_names=names, output_names=["states"],
            dynamic_shapes=dict.fromkeys(names, any_size), dynamo=True, verbose=False,
        )  # fmt: skip
    return path


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


def pad_by_length(tokens: Tokens, size: int | None) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of a size, the longest texts first."""
    order = np.argsort(-tokens.lengths, kind="stable")
    for start in range(0, len(order), size or 32):
        yield pad(tokens, order[start : start + (size or 32)], None)


def finish(device: torch.device, tensor: torch.Tensor) -> None:
    """Wait until it is computed."""
    if device.type == "cuda":
        tensor[:1].cpu()
