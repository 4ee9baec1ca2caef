"""Write a trained model for other programs, checked against this one before it gets its name."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.architecture import Architecture
from pipeline.assets import Asset, read_assets
from pipeline.bundle import BACKBONE_FOLDER, HEADS_FOLDER
from pipeline.config import Settings
from pipeline.console import count, format_bytes, say, show_table, warn
from pipeline.corpus.tables import TextReader, read_distinct_keys
from pipeline.errors import ExportError, SettingsError, StageError, WriteError
from pipeline.export.card import UNKNOWN_LICENSE, CardFacts, Figures
from pipeline.export.check import (
    CHECKED_TEXTS,
    Agreement,
    compare_outputs,
    demand_agreement,
    run_graph,
)
from pipeline.export.labels import DATA_ENDING, LABELS, describe_labels
from pipeline.files import (
    SCRATCH_PREFIX,
    format_json,
    hash_file,
    write_files_aside,
    write_folder_aside,
)
from pipeline.model.decision import Logits
from pipeline.model.outgoing import load_outgoing
from pipeline.model.reported import check_scored_heads, read_metrics
from pipeline.model.saved import DESCRIPTION, HELD_OUT
from pipeline.predict.model import Model, check_backbone
from pipeline.project import Project
from pipeline.recipe import TextRecipe

if TYPE_CHECKING:
    from tokenizers import Tokenizer

GRAPH = "model.onnx"
TOKENIZER = "tokenizer.json"
EXAMPLE = "predict.py"
CARD = "README.md"
# What a graph states of itself: the content of labels.json, under this name.
_METADATA = "labels"
_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_FILES = {
    GRAPH: "the backbone, its pooling and all heads as one graph",
    TOKENIZER: "the tokenizer, which cuts and pads",
    LABELS: "names of tasks and classes, thresholds, the model's hashes",
    EXAMPLE: "a program that labels texts",
    f"{HEADS_FOLDER}/": "the heads for embedding-pipeline, and where their backbone comes from",
}


@dataclass(frozen=True)
class ExportOptions:
    """What the command line gives.

    :param target: the folder to write, or a graph alone if its name ends in ``.onnx``.
    :param quantize: how the graph's weights are made smaller; ``None`` for not at all.
    :param with_backbone: whether the folder gets the backbone's own files too.
    :param license: the licence's id on the hub, for the model card.
    :param force: whether an export that exists is replaced.
    """

    target: Path
    quantize: Literal["int8"] | None = None
    with_backbone: bool = False
    license: str | None = None
    force: bool = False


def run_export(project: Project, settings: Settings, options: ExportOptions) -> None:
    """Write a trained model as an ONNX graph, with what belongs to it.

    :param project: the project whose model it is.
    :param settings: all settings.
    :param options: what to write, and where.
    :raises ExportError: if a package is missing, or the graph does not answer as the model does.
    :raises WriteError: if the target exists, or the disk does not take it.
    :raises StageError: if heads or backbone are missing, or do not belong together.
    """
    started = time.perf_counter()
    _check_packages()
    is_graph = options.target.suffix.lower() == ".onnx"
    if is_graph and options.with_backbone:
        raise SettingsError("--with-backbone: needs a folder as the target, not a graph alone")
    target = options.target.expanduser().resolve()
    _check_target(target, is_graph=is_graph, force=options.force)
    export = _Export(project, settings, options.quantize)
    say(f"export: writing {target} …")
    if is_graph:
        with write_files_aside(target) as folder:
            export.write_graph(folder / target.name)
        written = [target, target.with_name(target.name + DATA_ENDING)]
    else:
        with write_folder_aside(target) as folder:
            agreement = export.write_graph(folder / GRAPH)
            export.write_others(folder)
            export.write_bundle(folder, with_backbone=options.with_backbone)
            card = export.describe(target.name, agreement, options.license, folder)
            (folder / CARD).write_text(card, "utf-8")
        written = list(target.rglob("*"))
    sizes = [file.stat().st_size for file in written if file.is_file()]
    size = f"{count(len(sizes), 'file')}, {format_bytes(sum(sizes))}"
    say(f"export: {target}: {size}, in {time.perf_counter() - started:.1f} s")


def _check_packages() -> None:
    """Make sure that all packages are there before anything is computed."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise ExportError(
            f"`pipeline export` needs packages that are not installed: {', '.join(missing)}",
            hint=f"pip install {' '.join(_PACKAGES)}",
        )


def _check_target(target: Path, *, is_graph: bool, force: bool) -> None:
    """Make sure that nothing is replaced but an export, and that only by force.

    :raises WriteError: if something is.
    """
    if not target.exists():
        return
    if is_graph != target.is_file():
        what = "is a folder" if target.is_dir() else "is a file"
        raise WriteError(f"{target}: {what}", hint="give another name")
    if not is_graph and not any(target.iterdir()):
        return
    if not force:
        raise WriteError(
            f"{target}: exists already", hint="give another name, or --force to replace it"
        )
    if not is_graph and not ((target / LABELS).is_file() and (target / GRAPH).is_file()):
        raise WriteError(
            f"{target}: is no folder that `pipeline export` wrote, so that it is not replaced",
            hint="give another name, or remove it yourself",
        )


class _Export:
    """One model on its way out.

    :param project: the project whose model it is.
    :param settings: all settings.
    :param quantize: how the graph's weights are made smaller.
    """

    def __init__(self, project: Project, settings: Settings, quantize: str | None) -> None:
        self._project = project
        self._quantize = quantize
        self._assets = read_assets(project.assets)
        self._heads = load_outgoing(project.heads)
        if TextRecipe.from_contents(self._heads.recipe).long_texts == "windows":
            raise ExportError(
                f"{project.heads}: the model embeds long texts in windows, which an ONNX graph "
                "cannot join",
                hint="use it by `pipeline predict` or `pipeline.load`, or set embed.long_texts to "
                "cut and run `pipeline embed` and `pipeline train-heads` again",
            )
        self._folder = check_backbone(project, self._heads)
        self._runtime = settings.runtime
        self._texts = _choose_texts(project.texts_file)
        architecture = Architecture.read(self._folder)
        self._tokenizer = _make_tokenizer(
            self._folder, self._heads.recipe["max_tokens"], architecture.pad_id
        )
        self._labels: Mapping[str, Any] = {}

    def write_graph(self, path: Path) -> str:
        """Write and check the graph.

        :param path: the file to write, in a folder that holds nothing else.
        :returns: a sentence that tells how it agrees with the pipeline.
        :raises ExportError: if it does not.
        """
        configured = self._answer_as_configured()
        exact_path = path if self._quantize is None else path.with_name("exact.onnx")
        exact, own_nodes = self._write_exact(exact_path)
        is_close = self._compare("graph", exact_path, exact, configured)
        demand_agreement(is_close)
        if self._quantize is None:
            return self._say_agreement("the graph", is_close)
        from pipeline.export.quantize import quantize_graph

        data = exact_path.with_name(exact_path.name + DATA_ENDING)
        quantize_graph(exact_path, path, own_nodes, is_large=data.exists())
        for file in (exact_path, data):
            file.unlink(missing_ok=True)
        agreements = self._compare(f"{self._quantize} graph", path, exact, configured)
        return self._say_agreement(f"the graph, whose weights are {self._quantize},", agreements)

    def _compare(
        self, what: str, path: Path, exact: Mapping[str, Logits], configured: Mapping[str, Logits]
    ) -> list[Agreement]:
        """Run a graph and print how it agrees: the largest difference, and labels that differ.

        :param what: what it is called.
        :param path: the graph.
        :param exact: the logits in float32, from vectors that were not rounded.
        :param configured: the logits of the model as it labels texts.
        :returns: how it agrees with the logits in float32.
        """
        prompt = TextRecipe.from_contents(self._heads.recipe).prompt
        outputs = run_graph(path, self._tokenizer, [prompt + text for text in self._texts])
        pairs = [compare_outputs(self._heads, logits, outputs) for logits in (exact, configured)]
        recipe = self._heads.recipe
        show_table(
            ["task", "in float32", "as configured"],
            [
                (of_exact.task, of_exact.describe(), of_configured.describe())
                for of_exact, of_configured in zip(*pairs, strict=True)
            ],
            title=f"{what} beside the pipeline: largest difference of a probability, labels that "
            f"differ (configured: {recipe['precision']}, stored as {recipe['dtype']})",
        )
        return pairs[0]

    def _answer_as_configured(self) -> Mapping[str, Logits]:
        """The logits of the model as it labels texts, by the precision and type of the store."""
        with Model(
            self._project,
            devices=self._runtime.devices,
            threads=self._runtime.threads,
            token_budget=self._runtime.token_budget,
        ) as model:
            self._labels = describe_labels(self._heads, model.identity)
            (logits,) = model.stream_logits([self._texts])
            return logits

    def _write_exact(self, path: Path) -> tuple[Mapping[str, Logits], Sequence[str]]:
        """Write the graph with weights as they are.

        :returns: the logits of the same weights in float32, from vectors that were not rounded; and
            the names of the graph's nodes that are not of the backbone.
        """
        import torch

        from pipeline.embed.backbone import Backbone
        from pipeline.embed.embedder import Embedder
        from pipeline.export.graph import write_graph

        form = TextRecipe.from_contents(self._heads.recipe)
        with Embedder(
            self._folder,
            max_tokens=form.max_tokens,
            layers=self._heads.layers,
            precision="float32",
            pooling=form.pooling,
            normalize=form.normalize,
            prompt=form.prompt,
            threads=self._runtime.threads,
        ) as embedder:
            vectors = embedder.embed(self._texts).vectors.astype(np.float32, copy=False)
        backbone = Backbone(self._folder, torch.device("cpu"), "float32", form.pooling)
        about = {_METADATA: json.dumps(self._labels)}
        own_nodes = write_graph(backbone, self._heads, path, about, normalize=form.normalize)
        logits = self._heads.compute_logits(vectors)
        return {name: of_seeds[0] for name, of_seeds in logits.items()}, own_nodes

    def _say_agreement(self, what: str, agreements: Sequence[Agreement]) -> str:
        """How the graph agrees, as a sentence."""
        largest = max(agreement.difference for agreement in agreements)
        others = sum(agreement.others for agreement in agreements)
        return (
            f"On {count(len(self._texts), 'text')} of the corpus, {what} in ONNX Runtime gives "
            f"probabilities within {largest:.1e} of those of backbone and heads in float32, and "
            f"labels that differ for {count(others, 'text')}."
        )

    def write_others(self, folder: Path) -> None:
        """Write tokenizer, labels and example.

        :param folder: the folder to write to.
        """
        (folder / TOKENIZER).write_text(self._tokenizer.to_str(pretty=True), "utf-8")
        (folder / LABELS).write_bytes(format_json(self._labels))
        shutil.copyfile(Path(__file__).with_name("example.py"), folder / EXAMPLE)

    def write_bundle(self, folder: Path, *, with_backbone: bool) -> None:
        """Write what ``pipeline.load`` wants.

        :param folder: the folder to write to.
        :param with_backbone: whether to copy the backbone's files too.
        :raises StageError: if the project's heads were trained anew meanwhile.
        """
        copy = shutil.copytree(
            self._project.heads,
            folder / HEADS_FOLDER,
            ignore=shutil.ignore_patterns(f"{SCRATCH_PREFIX}*", HELD_OUT),
        )
        copied = load_outgoing(copy)
        if hash_file(copied.folder / DESCRIPTION) != self._labels["model"]["heads_sha256"]:
            raise StageError(
                f"{self._project.heads} changed while it was exported",
                hint="run the command again",
            )
        if with_backbone:
            (folder / BACKBONE_FOLDER).mkdir()
            for name in self._heads.backbone["files"]:
                copied_file = folder / BACKBONE_FOLDER / name
                copied_file.parent.mkdir(exist_ok=True)
                shutil.copyfile(self._folder / name, copied_file)
        elif self._heads.backbone.get("path") is not None:
            warn(
                f"the backbone is a local folder, {self._heads.backbone['path']}: for "
                "`pipeline.load` on other machines, export with --with-backbone"
            )

    def describe(self, name: str, agreement: str, license_id: str | None, folder: Path) -> str:
        """The model card.

        :param name: the name of the model.
        :param agreement: a sentence on how the graph was checked.
        :param license_id: the licence's id on the hub.
        :param folder: the folder that holds the other files.
        """
        files = dict(_FILES)
        if (folder / (GRAPH + DATA_ENDING)).exists():
            files[GRAPH + DATA_ENDING] = "the graph's weights"
        if (folder / BACKBONE_FOLDER).exists():
            files[f"{BACKBONE_FOLDER}/"] = "the backbone's own files"
        facts = CardFacts(
            name=name,
            heads=self._heads,
            dataset=self._assets["dataset"],
            backbone=Asset.from_record(self._heads.backbone),
            license=license_id,
            report=self._read_figures(),
            agreement=agreement,
            files=files,
        )
        if facts.hub_license == UNKNOWN_LICENSE:
            say("the model card says that the license is unknown; --license names it")
        return facts.render()

    def _read_figures(self) -> Mapping[str, Figures]:
        """The figures of the last report, if it is of these heads: part → task → metric → value."""
        try:
            check_scored_heads(self._project)
            return read_metrics(self._project)
        except StageError as error:
            warn(f"the model card has no figures: {error.message}; run `pipeline report` before")
            return {}


def _choose_texts(path: Path) -> list[str]:
    """Distinct texts from all over the corpus."""
    _, rows = read_distinct_keys(path)
    chosen = np.unique(np.linspace(0, len(rows) - 1, CHECKED_TEXTS).astype(np.int64))
    texts: list[str] = TextReader(path).take(rows[chosen]).to_pylist()
    return texts


def _make_tokenizer(folder: Path, max_tokens: int, pad_id: int) -> Tokenizer:
    """The backbone's tokenizer, which cuts texts and pads a batch to its longest.

    :param folder: the backbone's folder.
    :param max_tokens: tokens of the longest text, special tokens counted in.
    :param pad_id: id of the padding token.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    tokenizer.enable_truncation(max_tokens, strategy="longest_first", direction="right")
    pad_token = tokenizer.id_to_token(pad_id) or "[PAD]"
    tokenizer.enable_padding(direction="right", pad_id=pad_id, pad_token=pad_token)
    return tokenizer
