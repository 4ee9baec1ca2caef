"""What the report reads: the corpus, the heads and their past, each checked against the others."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import paths
from pipeline.corpus import PARTS as SPLITS
from pipeline.corpus import LabelledRows, TaskLabels, read_labelled_rows
from pipeline.errors import StageError
from pipeline.files import hash_file, read_json
from pipeline.heads.weights import (
    FORMAT,
    Centers,
    HeadWeights,
    read_centers,
    read_weights,
)

PARTS = (*SPLITS, "test_unseen")
STAGES = ("fetch", "prepare", "embed", "train-heads")
_RETRAIN = "run `pipeline train-heads` again"

_DAMAGE: tuple[type[Exception], ...] = (
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    OSError,
)

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """One trained head.

    :param type: ``binary``, ``multiclass``, ``ordinal``, ``multilabel`` or ``regression``.
    :param classes: C names in the order of their index; none of a regression.
    :param thresholds: of class 1 of a binary head, or of each tag, in probability.
    :param temperature: what logits are divided by.
    :param layers: whose vectors are joined into its features.
    :param weights: its own, and those of the same head from other seeds.
    :param about: the head's entry in ``heads.json``.
    :param search: the configurations that it was chosen from, best first.
    """

    name: str
    type: str
    classes: tuple[str, ...]
    thresholds: tuple[float, ...] | None
    temperature: float
    layers: tuple[int, ...]
    weights: tuple[HeadWeights, ...]
    about: Mapping[str, Any]
    search: tuple[Mapping[str, Any], ...] = ()

    @property
    def threshold(self) -> float | None:
        """Of a binary head."""
        return self.thresholds[0] if self.type == "binary" and self.thresholds else None


@dataclass(frozen=True)
class Heads:
    """All heads of one training run.

    :param layers: whose vectors are joined into the features.
    :param width: of one layer's vector.
    :param backbone_files: file → SHA-256 of those that decide what a vector is.
    """

    tasks: tuple[Task, ...]
    layers: tuple[int, ...]
    width: int
    backbone: Mapping[str, Any]
    backbone_files: Mapping[str, str]
    fingerprint: str
    features: Mapping[str, Any]
    training: Mapping[str, Any]


@dataclass(frozen=True)
class Corpus:
    """Rows, as places in a list of distinct texts.

    :param keys: of the distinct texts: pyarrow fixed-size binary, [U].
    :param codes: int64, [B]: which of the distinct texts each row has.
    :param parts: part → its rows, int64 each. ``test_unseen``: rows of the test part whose text
        stands in no training row.
    :param labels: task → label of each row, as in ``TaskLabels``.
    :param present: task → which rows have one, [B].
    """

    keys: Any
    codes: Ints
    parts: Mapping[str, Ints]
    labels: Mapping[str, npt.NDArray[Any]]
    present: Mapping[str, npt.NDArray[np.bool_]]

    def take_rows(self, part: str, task: str) -> Ints:
        """The rows of a part that have a label of a task."""
        rows = self.parts[part]
        return rows[self.present[task][rows]]

    def count_texts(self, part: str) -> int:
        """How many distinct texts a part holds."""
        return len(np.unique(self.codes[self.parts[part]]))


@dataclass(frozen=True)
class History:
    """Loss of one task by epoch.

    :param epochs: 1-based.
    :param train_loss: one for each epoch.
    :param validation_loss: one for each epoch.
    """

    epochs: tuple[int, ...] = ()
    train_loss: tuple[float, ...] = ()
    validation_loss: tuple[float, ...] = ()


@contextmanager
def _reading(path: Path, stage: str, *damage: type[Exception]) -> Iterator[None]:
    """Turn what goes wrong while ``path`` is read into an error that names the stage to run."""
    try:
        yield
    except FileNotFoundError as error:
        raise StageError(f"{path}: no such file", hint=f"run `pipeline {stage}` first") from error
    except (*_DAMAGE, *damage) as error:
        raise StageError(
            f"{path}: damaged ({type(error).__name__}: {error})",
            hint=f"run `pipeline {stage}` again",
        ) from error


def read_assets() -> dict[str, Any]:
    """Read ``cache/assets.json``."""
    assets = read_json(paths.ASSETS, stage="fetch")
    with _reading(paths.ASSETS, "fetch"):
        for kind in ("dataset", "backbone"):
            str(assets[kind]["id"])
    return dict(assets)


def read_heads() -> Heads:
    """Read ``heads.json`` and ``heads.safetensors`` of ``cache/heads/``.

    :raises StageError: if a file is missing or damaged, or a tensor is not of the shape that
        ``heads.json`` tells.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = paths.HEADS / "heads.json"
    record = read_json(path, stage="train-heads")
    tensors_path = paths.HEADS / "heads.safetensors"
    with _reading(tensors_path, "train-heads", SafetensorError):
        tensors = load_file(tensors_path)
    with _reading(path, "train-heads"):
        if record.get("weights_sha256", hash_file(tensors_path)) != hash_file(tensors_path):
            raise StageError(f"{tensors_path} is not the file that {path} tells of", hint=_RETRAIN)
        if record["format"] != FORMAT:
            raise StageError(
                f"{path}: format {record['format']}, this version reads {FORMAT}", hint=_RETRAIN
            )
        layers = tuple(int(layer) for layer in record["features"]["layers"])
        width = int(record["features"]["width"])
        kernels: dict[tuple[str, int], Centers] = {}
        tasks = tuple(
            _read_task(name, about, tensors, kernels, width, record.get("search") or {})
            for name, about in record["tasks"].items()
        )
        return Heads(
            tasks=tasks,
            layers=layers,
            width=width,
            backbone=dict(record["backbone"]),
            backbone_files=dict((record.get("recipe") or record["backbone"])["files"]),
            fingerprint=record["fingerprint"],
            features=record["features"],
            training=dict(record["training"]),
        )


def _read_task(
    name: str,
    about: Mapping[str, Any],
    tensors: Mapping[str, Any],
    kernels: dict[tuple[str, int], Centers],
    width: int,
    search: Mapping[str, Any],
) -> Task:
    """:param kernels: read so far, by name and number of features: heads may share them."""
    classes = tuple(str(name) for name in about["classes"])
    kind, C = about["type"], len(classes)
    outputs = {"binary": 1, "multiclass": C, "multilabel": C, "ordinal": C - 1, "regression": 1}
    fewest = {"regression": 0, "multilabel": 1}
    if kind not in outputs or fewest.get(kind, 2) > C:
        raise ValueError(f"{name}: {kind} with {C} classes")
    int(about["best_epoch"]), float(about["validation_loss"])  # the page tells them
    layers = tuple(int(layer) for layer in about["layers"])
    rows = 1 if kind == "ordinal" else outputs[kind]
    prefixes = [name, *(f"{name}.seed_{seed}" for seed in about.get("seeds", [0])[1:])]
    thresholds = None
    if kind in ("binary", "multilabel"):
        given = [about["threshold"]] if kind == "binary" else about["threshold"]
        thresholds = tuple(float(threshold) for threshold in given)
    features = len(layers) * width
    centers = None
    try:
        if about.get("kernel") is not None:
            key = str(about["kernel"]), features
            centers = kernels.get(key) or read_centers(key[0], tensors, features)
            kernels[key] = centers
        weights = tuple(
            read_weights(prefix, tensors, rows, outputs[kind], features, centers)
            for prefix in prefixes
        )
    except ValueError as error:
        raise StageError(f"{paths.HEADS / 'heads.safetensors'}: {error}", hint=_RETRAIN) from error
    return Task(
        name=name,
        type=kind,
        classes=classes,
        thresholds=thresholds,
        temperature=float(about.get("temperature", 1.0)),
        layers=layers,
        weights=weights,
        about=about,
        search=tuple(dict(row) for row in search.get(name, ())),
    )


def read_corpus(heads: Heads) -> Corpus:
    """Read the keys of the texts and the labels of the heads' tasks.

    :raises StageError: if a file is missing or damaged, or a task's labels are not those that its
        head was trained on.
    """
    rows = read_labelled_rows()
    coded = rows.keys.dictionary_encode()
    codes = coded.indices.to_numpy().astype(np.int64)
    parts = {part: rows.select(part) for part in SPLITS}
    in_training = np.zeros(len(coded.dictionary), bool)
    in_training[codes[parts["train"]]] = True
    parts["test_unseen"] = parts["test"][~in_training[codes[parts["test"]]]]
    labels = {task.name: _take_labels(rows, task) for task in heads.tasks}
    return Corpus(
        keys=coded.dictionary,
        codes=codes,
        parts=parts,
        labels={name: found.values for name, found in labels.items()},
        present={name: found.present for name, found in labels.items()},
    )


def _take_labels(rows: LabelledRows, task: Task) -> TaskLabels:
    """One task's labels, if they are of the classes that its head was trained on."""
    hint = "run `pipeline prepare`, then `pipeline train-heads`"
    if task.name not in rows.tasks:
        raise StageError(
            f"{paths.LABELS}: no labels {task.name!r}, but {paths.HEADS} holds a head of that name",
            hint=hint,
        )
    labels = rows.tasks[task.name]
    if labels.classes != task.classes:
        raise StageError(
            f"{paths.LABELS}: {task.name} has the classes {', '.join(labels.classes)}; its head in "
            f"{paths.HEADS} was trained on {', '.join(task.classes)}",
            hint=hint,
        )
    if labels.kind == "class":
        bad = np.flatnonzero((labels.values < -1) | (labels.values >= len(task.classes)))
        if len(bad):
            raise StageError(
                f"{paths.LABELS}: {task.name} is {labels.values[bad[0]]} at place {bad[0]:,}, not "
                f"a class index from 0 to {len(task.classes) - 1}",
                hint="run `pipeline prepare` again",
            )
    return labels


def check_backbone(assets: Mapping[str, Any], heads: Heads, fingerprint: str) -> None:
    """Make sure that heads, vectors and assets are of the same backbone.

    :param fingerprint: of the embedding store.
    :raises StageError: if they are not, naming the stage to run.
    """
    if heads.fingerprint != fingerprint:
        raise StageError(
            f"{paths.HEADS} was trained on other vectors than those in {paths.EMBEDDINGS} "
            f"(fingerprint {heads.fingerprint[:12]}, now {fingerprint[:12]})",
            hint="run `pipeline train-heads`",
        )
    fetched = assets["backbone"]
    files = fetched.get("files") or {}
    if any(files.get(name) != sha256 for name, sha256 in heads.backbone_files.items()):
        raise StageError(
            f"{paths.HEADS} was trained on the backbone {heads.backbone.get('id')}; "
            f"{paths.ASSETS} now holds {fetched['id']} with other files",
            hint="run `pipeline embed`, then `pipeline train-heads`",
        )


def read_history(heads: Heads) -> dict[str, History]:
    """Read ``curves.csv``: the loss of each task by epoch."""
    path = paths.HEADS / "curves.csv"
    found: dict[str, list[tuple[int, float, float]]] = {task.name: [] for task in heads.tasks}
    with _reading(path, "train-heads"), path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            if line["task"] in found:
                losses = float(line["train_loss"]), float(line["validation_loss"])
                found[line["task"]].append((int(line["epoch"]), *losses))
    return {
        task: History(*zip(*sorted(lines), strict=True)) if lines else History()
        for task, lines in found.items()
    }


def read_timings() -> list[dict[str, Any]]:
    """Read what the earlier stages took, in their order; those without a record are left out."""
    timings = []
    for stage in STAGES:
        path = paths.TIMINGS / f"{stage}.json"
        if path.exists():
            record = read_json(path, stage=stage)
            with _reading(path, stage):
                float(record["wall_seconds"])
                dict(record.get("details") or {})
            timings.append(record)
    return timings
