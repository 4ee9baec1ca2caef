"""Saved heads: the only code that writes, reads and applies them.

``heads.safetensors`` holds the tensors, ``curves.csv`` the losses by epoch, and ``heads.json``,
written last, describes both and states the hash of the tensors.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import StageError
from pipeline.files import format_json, hash_file, read_json, reading, write_together
from pipeline.model.decision import Decision, Logits
from pipeline.model.tasks import TASK_TYPES, TaskType
from pipeline.model.weights import (
    FORMAT,
    Centers,
    Floats,
    HeadWeights,
    name_tensors,
    read_centers,
    read_weights,
)

_DESCRIPTION = "heads.json"
_TENSORS = "heads.safetensors"
_CURVES = "curves.csv"
_STAGE = "train-heads"
_RETRAIN = f"run `pipeline {_STAGE}` again"
# Entries of a head in heads.json that have fields of their own in SavedHead.
_FIELDS = {
    "type", "classes", "threshold", "kernel", "temperature", "layers", "seeds", "center", "spread",
}  # fmt: skip


@dataclass(frozen=True)
class History:
    """Losses of one task's head by epoch, N of them; empty where none were kept.

    :param epochs: the numbers of the epochs, from 1.
    :param train_loss: the mean loss of the training rows after each epoch.
    :param validation_loss: the mean loss of the validation rows after each epoch.
    """

    epochs: tuple[int, ...] = ()
    train_loss: tuple[float, ...] = ()
    validation_loss: tuple[float, ...] = ()


@dataclass(frozen=True)
class SavedHead:
    """One trained head.

    :param name: the task that it answers.
    :param type: what its outputs mean.
    :param classes: C names in the order of their index; none of a regression.
    :param layers: the numbers of the layers whose vectors, joined, are its features.
    :param decision: how its logits become an answer.
    :param weights: its own, and behind them those of the same head from the other seeds; those of
        a kernel head all compare rows with the same centers.
    :param seeds: the seeds of ``weights``.
    :param center: what is added to the outputs of a regression, once they are multiplied by
        ``spread``: the mean of the labels that it was trained on; 0 of other types.
    :param spread: the standard deviation of these labels; 1 of other types. Both are float64, since
        float32 cannot tell numbers apart that are close to each other and far from 0.
    :param about: what else ``heads.json`` tells of it, for people: its loss, its configuration, how
        it did on held-out rows.
    :param search: the configurations that it was chosen from, best first.
    :param history: its losses by epoch.
    """

    name: str
    type: TaskType
    classes: tuple[str, ...]
    layers: tuple[int, ...]
    decision: Decision
    weights: tuple[HeadWeights, ...]
    seeds: tuple[int, ...] = (0,)
    center: float = 0.0
    spread: float = 1.0
    about: Mapping[str, Any] = field(default_factory=dict)
    search: tuple[Mapping[str, Any], ...] = ()
    history: History = History()

    @property
    def threshold(self) -> float | None:
        """The probability above which the positive class is answered; ``None`` without one."""
        thresholds = self.decision.thresholds
        return thresholds[0] if thresholds and self.type.positive_class is not None else None

    def restore(self, logits: Floats) -> Logits:
        """Logits of its weights as its outputs; those of a regression in the unit of its labels.

        :param logits: float32, [B, O].
        :returns: float32, [B, O]; float64 of a regression.
        """
        if not self.type.has_unit:
            return logits
        numbers: Logits = logits.astype(np.float64) * self.spread + self.center
        return numbers


@dataclass(frozen=True)
class Heads:
    """All heads of one training run.

    :param heads: one for each task.
    :param layers: the numbers of the L layers that the heads want vectors of, ascending.
    :param width: D, the width of one layer's vector.
    :param backbone: the entry of ``assets.json`` that the vectors were made with.
    :param fingerprint: the fingerprint of the store that the heads were trained on.
    :param recipe: what that fingerprint is the hash of.
    :param features: how vectors became features, for people.
    :param training: the settings that all heads share, for people.
    :param folder: the folder that they were read from; empty for heads that are not saved yet.
    """

    heads: tuple[SavedHead, ...]
    layers: tuple[int, ...]
    width: int
    backbone: Mapping[str, Any]
    fingerprint: str
    recipe: Mapping[str, Any]
    features: Mapping[str, Any]
    training: Mapping[str, Any]
    folder: Path = Path()

    @classmethod
    def load(cls, folder: Path) -> Heads:
        """Read the heads of a folder that ``save`` wrote; this imports no torch.

        :param folder: the folder that holds ``heads.json``, ``heads.safetensors`` and
            ``curves.csv``, such as ``cache/heads`` of a project.
        :raises StageError: if a file is missing, damaged, of another version or of another run, or
            a tensor is not of the shape that ``heads.json`` tells; naming the file and, where it is
            one head's, the head.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path, tensors_path = folder / _DESCRIPTION, folder / _TENSORS
        record = read_json(path, stage=_STAGE)
        with reading(tensors_path, _STAGE, SafetensorError):
            tensors = load_file(tensors_path)
        with reading(path, _STAGE):
            if record["format"] != FORMAT:
                raise StageError(
                    f"{path}: format {record['format']}, this version reads {FORMAT}", hint=_RETRAIN
                )
            if record.get("weights_sha256", hash_file(tensors_path)) != hash_file(tensors_path):
                raise StageError(
                    f"{tensors_path} is not the file that {path} tells of", hint=_RETRAIN
                )
            width = int(record["features"]["width"])
            layers = tuple(int(layer) for layer in record["features"]["layers"])
            histories = _read_curves(folder / _CURVES)
            reader = _HeadReader(tensors_path, tensors, layers, width, histories)
            search = record.get("search") or {}
            return cls(
                heads=tuple(
                    reader.read(name, entry, search.get(name, ()))
                    for name, entry in record["tasks"].items()
                ),
                layers=layers,
                width=width,
                backbone=dict(record["backbone"]),
                fingerprint=record["fingerprint"],
                recipe=dict(record.get("recipe") or record["backbone"]),
                features=record["features"],
                training=dict(record["training"]),
                folder=folder,
            )

    def save(self, folder: Path) -> None:
        """Write tensors, curves, and last the description, whose hash ties the tensors to it.

        :param folder: the folder to write to; what it holds stays until all is on the disk.
        :raises WriteError: if the disk does not take it.
        """
        from safetensors.numpy import save

        kernels = self._name_kernels()
        tensors: dict[str, npt.NDArray[Any]] = {}
        for head in self.heads:
            for name, weights in zip(_name_seeds(head.name, head.seeds), head.weights, strict=True):
                tensors |= name_tensors(name, weights)
        for name, centers in kernels.items():
            tensors |= name_tensors(name, centers)
        content = save(tensors)
        description = {
            "format": FORMAT,
            "weights_sha256": hashlib.sha256(content).hexdigest(),
            "backbone": self.backbone,
            "fingerprint": self.fingerprint,
            "recipe": self.recipe,
            "features": self.features,
            "tasks": {head.name: _describe_head(head, kernels) for head in self.heads},
            "search": {head.name: list(head.search) for head in self.heads},
            "training": self.training,
        }
        write_together(
            {
                folder / _TENSORS: content,
                folder / _CURVES: _format_curves(self.heads),
                folder / _DESCRIPTION: format_json(description),
            }
        )

    def compute_logits(self, vectors: Floats) -> dict[str, list[Logits]]:
        """Run all heads over the vectors of some texts.

        ``SavedHead.type`` turns logits into probabilities and answers.

        :param vectors: float32, [B, L, D]: the vectors of the L ``layers``, in their order.
        :returns: task → logits, [B, O] each: first those of its head, then those of the same head
            from each other seed. Logits are float32; of a regression they are numbers in the unit
            of its labels, float64.
        :raises StageError: if the vectors are of another shape than the heads were trained on, or a
            logit is not finite.
        """
        shape = (len(self.layers), self.width)
        if vectors.shape[1:] != shape:
            raise StageError(
                f"vectors of layers × width {vectors.shape[1:]}; {self.folder} was trained on "
                f"{shape}",
                hint=f"run `pipeline {_STAGE}`",
            )
        # Heads may share their centers, and comparing rows with them is most of a head's work.
        likeness: dict[tuple[int, tuple[int, ...]], Floats] = {}
        return {head.name: self._apply(head, vectors, likeness) for head in self.heads}

    def _apply(
        self,
        head: SavedHead,
        vectors: Floats,
        likeness: dict[tuple[int, tuple[int, ...]], Floats],
    ) -> list[Logits]:
        """Logits of one head, and of the same head from each other seed: [B, O] each.

        :param likeness: what rows were compared with already, by centers and layers; added to.
        """
        chosen = [self.layers.index(layer) for layer in head.layers]
        features = vectors[:, chosen].reshape(len(vectors), len(chosen) * self.width)
        logits: list[Logits] = []
        for weights in head.weights:
            if weights.centers is None:
                logits.append(head.restore(weights.compute_logits(features)))
            else:
                shared = id(weights.centers), head.layers
                if shared not in likeness:
                    likeness[shared] = weights.centers.compare(features)
                logits.append(head.restore(weights.weigh(likeness[shared])))
            if not np.isfinite(logits[-1]).all():
                raise StageError(
                    f"{self.folder}: the head {head.name} gives values that are not finite",
                    hint=f"{_RETRAIN}; if by sgd or adamw, with a lower learning rate",
                )
        return logits

    def _name_kernels(self) -> dict[str, Centers]:
        """The centers that heads compare rows with, each once, since tasks often share them."""
        distinct = {
            id(centers): centers
            for head in self.heads
            if (centers := head.weights[0].centers) is not None
        }
        return {f"kernel_{number}": centers for number, centers in enumerate(distinct.values())}


class _HeadReader:
    """Makes heads of their entries in ``heads.json`` and of tensors.

    :param path: the file of the tensors, for messages.
    :param tensors: name → tensor.
    :param layers: the numbers of the layers that heads may want vectors of.
    :param width: D, the width of one layer's vector.
    :param histories: task → losses by epoch.
    """

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, Any],
        layers: tuple[int, ...],
        width: int,
        histories: Mapping[str, History],
    ) -> None:
        self._path = path
        self._tensors = tensors
        self._layers = layers
        self._width = width
        self._histories = histories
        self._kernels: dict[tuple[str, int], Centers] = {}  # by name and number of features

    def read(
        self, name: str, entry: Mapping[str, Any], search: Sequence[Mapping[str, Any]]
    ) -> SavedHead:
        """One head.

        :param name: the task that it answers.
        :param entry: its entry in ``heads.json``.
        :param search: the configurations that it was chosen from.
        :raises StageError: if a tensor is missing or of another shape.
        :raises ValueError: if the entry cannot be that of a head; ``KeyError`` and ``TypeError``
            likewise.
        """
        classes = tuple(str(name) for name in entry["classes"])
        if entry["type"] not in TASK_TYPES:
            raise ValueError(f"{name}: no type {entry['type']!r}")
        kind = TASK_TYPES[entry["type"]]
        if len(classes) < kind.fewest_classes:
            raise ValueError(f"{name}: {kind.name} with {len(classes)} classes")
        layers = tuple(int(layer) for layer in entry["layers"])
        if not layers or not set(layers) <= set(self._layers):
            raise ValueError(f"{name}: layers {list(layers)} of {list(self._layers)}")
        seeds = tuple(int(seed) for seed in entry.get("seeds", (0,)))
        if not seeds:
            raise ValueError(f"{name}: no seeds")
        return SavedHead(
            name=name,
            type=kind,
            classes=classes,
            layers=layers,
            decision=_read_decision(name, entry, kind, len(classes)),
            weights=self._read_weights(name, seeds, entry, kind, len(classes), layers),
            seeds=seeds,
            **_read_unit(name, entry),
            about={key: value for key, value in entry.items() if key not in _FIELDS},
            search=tuple(dict(row) for row in search),
            history=self._histories.get(name, History()),
        )

    def _read_weights(
        self,
        name: str,
        seeds: Sequence[int],
        entry: Mapping[str, Any],
        kind: TaskType,
        C: int,
        layers: Sequence[int],
    ) -> tuple[HeadWeights, ...]:
        """The weights of one head, and of the same head from each other seed."""
        features = len(layers) * self._width
        rows, outputs = kind.count_weight_rows(C), kind.count_outputs(C)
        centers = None
        try:
            if entry.get("kernel") is not None:
                key = str(entry["kernel"]), features
                if key not in self._kernels:
                    self._kernels[key] = read_centers(key[0], self._tensors, features)
                centers = self._kernels[key]
            return tuple(
                read_weights(prefix, self._tensors, rows, outputs, features, centers)
                for prefix in _name_seeds(name, seeds)
            )
        except ValueError as error:
            raise StageError(f"{self._path}: {error}", hint=_RETRAIN) from error


def _read_decision(name: str, entry: Mapping[str, Any], kind: TaskType, C: int) -> Decision:
    """How one head's logits become an answer, from its entry in ``heads.json``.

    :raises ValueError: if its temperature is not above 0, or there is not one threshold for each
        class that wants one; ``KeyError`` and ``TypeError`` likewise.
    """
    temperature = float(entry.get("temperature", 1.0))
    if not 0 < temperature < float("inf"):
        raise ValueError(f"{name}: temperature {temperature}")
    if not kind.has_thresholds:
        return Decision(temperature)
    given = entry["threshold"] if isinstance(entry["threshold"], list) else [entry["threshold"]]
    wanted = C if kind.positive_class is None else 1
    if len(given) != wanted:
        raise ValueError(f"{name}: {len(given)} thresholds, not {wanted}")
    return Decision(temperature, tuple(float(threshold) for threshold in given))


def _read_unit(name: str, entry: Mapping[str, Any]) -> dict[str, float]:
    """The centre and the spread of one head's labels, from its entry in ``heads.json``.

    Heads that earlier versions saved have none: their weights hold both.

    :raises ValueError: if the outputs would not be finite; ``TypeError`` likewise.
    """
    center, spread = float(entry.get("center", 0.0)), float(entry.get("spread", 1.0))
    if not np.isfinite(center) or not 0 < spread < float("inf"):
        raise ValueError(f"{name}: center {center}, spread {spread}")
    return {"center": center, "spread": spread}


def _name_seeds(name: str, seeds: Sequence[int]) -> list[str]:
    """The prefixes of the tensors of a head and of its like from the other seeds."""
    return [name, *(f"{name}.seed_{seed}" for seed in seeds[1:])]


def _describe_head(head: SavedHead, kernels: Mapping[str, Centers]) -> dict[str, Any]:
    """A head's entry in ``heads.json``.

    :param kernels: name → centers that heads compare rows with.
    """
    entry: dict[str, Any] = {"type": head.type.name, "classes": list(head.classes)}
    if head.decision.thresholds is not None:
        single = head.threshold
        entry["threshold"] = list(head.decision.thresholds) if single is None else single
    for name, centers in kernels.items():
        if centers is head.weights[0].centers:
            entry["kernel"] = name
    entry |= {"temperature": head.decision.temperature, "layers": list(head.layers)}
    if head.type.has_unit:
        entry |= {"center": head.center, "spread": head.spread}
    return entry | dict(head.about) | {"seeds": list(head.seeds)}


def _format_curves(heads: Sequence[SavedHead]) -> bytes:
    """The content of ``curves.csv``: a line for each epoch of each head."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("epoch", "task", "train_loss", "validation_loss"))
    for head in heads:
        past = head.history
        for epoch, train, validation in zip(
            past.epochs, past.train_loss, past.validation_loss, strict=True
        ):
            writer.writerow((epoch, head.name, train, validation))
    return text.getvalue().encode("utf-8")


def _read_curves(path: Path) -> dict[str, History]:
    """Losses by epoch of each task in ``curves.csv``."""
    lines: dict[str, list[tuple[int, float, float]]] = {}
    with reading(path, _STAGE), path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            losses = float(line["train_loss"]), float(line["validation_loss"])
            lines.setdefault(line["task"], []).append((int(line["epoch"]), *losses))
    return {task: History(*zip(*sorted(of_task), strict=True)) for task, of_task in lines.items()}
