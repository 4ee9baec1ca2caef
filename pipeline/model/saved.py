"""Saved heads: the only code that writes, reads and applies them.

``heads.safetensors`` holds the tensors, ``curves.csv`` the losses by epoch, and ``heads.json``,
written last, describes both and states their hashes and its own. Reading believes nothing: hashes
tell a change by accident, and the checks of every value that is used one that was made with a right
hash.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config import TASK_NAME, TASK_NAME_CHARACTERS
from pipeline.corpus.identity import CorpusIdentity
from pipeline.corpus.tables import PARTS
from pipeline.errors import StageError
from pipeline.files import (
    add_hash,
    check_hash,
    format_json,
    hash_json,
    read_json,
    reading,
    write_together,
)
from pipeline.model.decision import Decision, Logits
from pipeline.model.reference import FILE as REFERENCE
from pipeline.model.reference import Reference
from pipeline.model.tasks import TASK_TYPES, TaskType, find_type
from pipeline.model.weights import (
    FORMAT,
    Centers,
    Floats,
    HeadWeights,
    name_tensors,
    read_centers,
    read_weights,
)

DESCRIPTION = "heads.json"
# What train-heads leaves beside them: what heads say about the rows that chose them.
HELD_OUT = "held_out.parquet"
_TENSORS = "heads.safetensors"
_CURVES = "curves.csv"
_STAGE = "train-heads"
_RETRAIN = f"run `pipeline {_STAGE}` again"
# The parts that heads were trained on where heads.json does not say.
_TRAINED_PARTS = ("train",)
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
    :param corpus: the texts, the split and the labels that the heads were trained on.
    :param features: how vectors became features, for people.
    :param training: the settings that all heads share, for people.
    :param folder: the folder that they were read from; empty for heads that are not saved yet.
    :param trained_parts: the parts of the corpus whose rows they were trained on.
    :param reference: what tells how unlike the training texts others are; ``None`` for heads that
        were read, see ``load_reference``.
    :param reference_sha256: the hash of its file; ``None`` for heads of version 0.1.0.
    :param held_out: the content of ``held_out.parquet``, what heads say about the rows that chose
        them; ``None`` for heads that were read, and for those trained again.
    :param held_out_sha256: the hash of that file; ``None`` for heads that state none.
    :param scored_sha256: for heads that were trained again on more rows, the SHA-256 of the
        ``heads.json`` of those that they follow, by whose held-out rows they were chosen.
    """

    heads: tuple[SavedHead, ...]
    layers: tuple[int, ...]
    width: int
    backbone: Mapping[str, Any]
    fingerprint: str
    recipe: Mapping[str, Any]
    corpus: CorpusIdentity
    features: Mapping[str, Any]
    training: Mapping[str, Any]
    folder: Path = Path()
    trained_parts: tuple[str, ...] = _TRAINED_PARTS
    scored_sha256: str | None = None
    reference: Reference | None = None
    reference_sha256: str | None = None
    held_out: bytes | None = field(default=None, repr=False)
    held_out_sha256: str | None = None

    @classmethod
    def load(cls, folder: Path) -> Heads:
        """Read the heads of a folder that ``save`` wrote; this imports no torch.

        :param folder: the folder that holds ``heads.json``, ``heads.safetensors`` and
            ``curves.csv``, such as ``cache/heads`` of a project.
        :raises StageError: if a file is missing, damaged, of another version or of another run, or
            a tensor is not of the shape that ``heads.json`` tells; naming the file and, where it is
            one head's, the head.
        """
        path = folder / DESCRIPTION
        record = _read_description(path)
        tensors = _read_tensors(folder / _TENSORS, record)
        histories = _read_curves(folder / _CURVES, record)
        with reading(path, _STAGE):
            if hash_json(record["recipe"]) != record["fingerprint"]:
                raise ValueError("the fingerprint is not that of the recipe")
            width, layers = _read_shape(record["features"])
            reader = _HeadReader(folder / _TENSORS, tensors, layers, width, histories)
            heads = tuple(
                reader.read(name, entry, record["search"][name])
                for name, entry in record["tasks"].items()
            )
            corpus = CorpusIdentity.from_record(record["corpus"])
            if set(corpus.labels) != {head.name for head in heads}:
                raise ValueError("the labels of the corpus are not those of the tasks")
            return cls(
                heads=heads,
                layers=layers,
                width=width,
                backbone=dict(record["backbone"]),
                fingerprint=record["fingerprint"],
                recipe=dict(record["recipe"]),
                corpus=corpus,
                features=record["features"],
                training=dict(record["training"]),
                folder=folder,
                trained_parts=_read_parts(record),
                scored_sha256=record.get("scored_sha256"),
                reference_sha256=record.get("reference_sha256"),
                held_out_sha256=record.get("held_out_sha256"),
            )

    def load_reference(self) -> Reference | None:
        """Read what the folder holds of the training texts.

        :returns: ``None`` for heads of version 0.1.0, which kept nothing of them.
        :raises StageError: if the file is missing, damaged or of another run.
        """
        if self.reference_sha256 is None:
            return None
        return Reference.load(self.folder / REFERENCE, self.reference_sha256)

    def save(self, folder: Path) -> None:
        """Write tensors, curves, and last the description, whose hashes tie them to it.

        :param folder: the folder to write to; what it holds stays until all is on the disk.
        :raises WriteError: if the disk does not take it.
        """
        write_together({folder / name: content for name, content in self.encode().items()})

    def encode(self) -> dict[str, bytes]:
        """The contents of the files, by their names; the description, which ties them, is last."""
        from safetensors.numpy import save

        kernels = self._name_kernels()
        tensors: dict[str, npt.NDArray[Any]] = {}
        for head in self.heads:
            for name, weights in zip(_name_seeds(head.name, head.seeds), head.weights, strict=True):
                tensors |= name_tensors(name, weights)
        for name, centers in kernels.items():
            tensors |= name_tensors(name, centers)
        content, curves = save(tensors), _format_curves(self.heads)
        description = {
            "format": FORMAT,
            "weights_sha256": hashlib.sha256(content).hexdigest(),
            "curves_sha256": hashlib.sha256(curves).hexdigest(),
            "backbone": self.backbone,
            "fingerprint": self.fingerprint,
            "recipe": self.recipe,
            "corpus": self.corpus.to_record(),
            "features": self.features,
            "tasks": {head.name: _describe_head(head, kernels) for head in self.heads},
            "search": {head.name: _replace_odd(list(head.search)) for head in self.heads},
            "training": self.training,
        }
        if self.trained_parts != _TRAINED_PARTS:
            description["trained_parts"] = list(self.trained_parts)
        if self.scored_sha256 is not None:
            description["scored_sha256"] = self.scored_sha256
        files = {_TENSORS: content, _CURVES: curves}
        if self.reference is not None:
            files[REFERENCE] = self.reference.encode()
            description["reference_sha256"] = hashlib.sha256(files[REFERENCE]).hexdigest()
        if self.held_out is not None:
            files[HELD_OUT] = self.held_out
            description["held_out_sha256"] = hashlib.sha256(self.held_out).hexdigest()
        return {
            **files,
            DESCRIPTION: format_json(add_hash(description)),
        }

    def check_corpus(self, now: CorpusIdentity, path: Path) -> None:
        """Make sure that a corpus is the one that the heads were trained on.

        On another split or other labels, heads would be judged by rows that they trained on.

        :param now: the identity of the corpus.
        :param path: the file that it was read from, for the message.
        :raises StageError: if it is not, saying what is different.
        """
        changes = self.corpus.list_changes(now)
        if changes:
            raise StageError(
                f"{self.folder} was trained on another corpus than {path} holds: "
                f"{'; '.join(changes)}",
                hint=f"run `pipeline {_STAGE}`",
            )

    def compute_logits(self, vectors: Floats) -> dict[str, list[Logits]]:
        """Run all heads over the vectors of some texts.

        ``SavedHead.type`` turns logits into probabilities and answers. A text's logits are the
        same to the last digit whatever texts are beside it.

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

    def prepare(self) -> None:
        """Have at hand what the first call of ``compute_logits`` would else make."""
        for head in self.heads:
            if head.weights[0].centers is not None:
                head.weights[0].centers.prepare()

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


def _read_description(path: Path) -> dict[str, Any]:
    """The contents of ``heads.json``, as they were written.

    :raises StageError: if the file is missing, damaged or of another version.
    """
    record = read_json(path, stage=_STAGE)
    with reading(path, _STAGE):
        if record["format"] != FORMAT:
            raise StageError(
                f"{path}: format {record['format']!r:.20}, this version reads {FORMAT}",
                hint=_RETRAIN,
            )
        return check_hash(record)


def _read_tensors(path: Path, record: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """The tensors that ``heads.json`` tells of: name → tensor."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    with reading(path, _STAGE, SafetensorError):
        tensors: dict[str, npt.NDArray[Any]] = load(_read_file(path, record, "weights_sha256"))
        return tensors


def _read_file(path: Path, record: Mapping[str, Any], key: str) -> bytes:
    """The bytes of a file whose hash ``heads.json`` states.

    :param record: the contents of ``heads.json``.
    :param key: the key of the hash.
    :raises StageError: if it has another hash.
    """
    described = path.with_name(DESCRIPTION)
    with reading(described, _STAGE):
        stated = record[key]
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != stated:
        raise StageError(f"{path} is not the file that {described} tells of", hint=_RETRAIN)
    return content


def _read_shape(features: Mapping[str, Any]) -> tuple[int, tuple[int, ...]]:
    """The width of a layer, and the numbers of the layers that heads may want.

    :raises ValueError: if they cannot be those of a backbone; ``KeyError`` likewise.
    """
    width, layers = _take_whole(features, "width"), _take_layers(features)
    if not width or list(layers) != sorted(layers):
        raise ValueError(f"layers {list(layers)} of width {width}")
    return width, layers


def _read_parts(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The parts that the heads were trained on, from ``heads.json``.

    :raises ValueError: if one is no part, or there are none.
    """
    parts = tuple(record.get("trained_parts", _TRAINED_PARTS))
    if not parts or not set(parts) <= set(PARTS) or len(set(parts)) < len(parts):
        raise ValueError(f"trained_parts {list(parts)!r:.60}")
    return parts


def _take_whole(entry: Mapping[str, Any], key: str) -> int:
    return _check_whole(entry[key], key)


def _check_whole(value: Any, key: str) -> int:
    """A whole number that is not negative.

    :raises ValueError: if the value is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{key} is {value!r:.60}, not a whole number")
    return value


def _take_layers(entry: Mapping[str, Any]) -> tuple[int, ...]:
    """Numbers of layers, each once.

    :raises ValueError: if there are none, or one twice.
    """
    layers = tuple(_check_whole(layer, "a layer") for layer in entry["layers"])
    if not layers or len(set(layers)) < len(layers):
        raise ValueError(f"layers {list(layers)}")
    return layers


def _take_number(value: Any, key: str) -> float:
    """A finite number.

    :raises ValueError: if the value is none.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{key} is {value!r:.60}, not a number")
    return float(value)


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
        if not re.fullmatch(TASK_NAME, name) or len(name) > TASK_NAME_CHARACTERS:
            raise ValueError(f"{name!r:.60} is no name of a task")
        if entry["type"] not in TASK_TYPES:
            raise ValueError(f"{name}: no type {entry['type']!r:.60}")
        classes = _read_classes(name, entry, TASK_TYPES[entry["type"]])
        weight = self._tensors.get(f"{name}.weight")
        rows = len(weight) if weight is not None and weight.ndim else 0
        kind = find_type(entry["type"], rows, len(classes))
        layers = _take_layers(entry)
        if not set(layers) <= set(self._layers):
            raise ValueError(f"{name}: layers {list(layers)} of {list(self._layers)}")
        seeds = tuple(_check_whole(seed, f"{name}: a seed") for seed in entry["seeds"])
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"{name}: seeds {list(seeds)}")
        return SavedHead(
            name=name,
            type=kind,
            classes=classes,
            layers=layers,
            decision=_read_decision(name, entry, kind, len(classes)),
            weights=self._read_weights(name, seeds, entry, kind, len(classes), layers),
            seeds=seeds,
            **_read_unit(name, entry, kind),
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


def _read_classes(name: str, entry: Mapping[str, Any], kind: TaskType) -> tuple[str, ...]:
    """The classes of one head, from its entry in ``heads.json``.

    :raises ValueError: if a head of its type cannot have these; ``TypeError`` likewise.
    """
    classes = tuple(entry["classes"])
    if not all(isinstance(of_class, str) for of_class in classes):
        raise TypeError(f"{name}: a class that is no text")
    if len(set(classes)) < len(classes):
        raise ValueError(f"{name}: a class that stands there twice")
    is_fixed = kind.positive_class is not None or kind.fewest_classes == 0
    if len(classes) < kind.fewest_classes or (is_fixed and len(classes) > kind.fewest_classes):
        raise ValueError(f"{name}: {kind.name} with {len(classes)} classes")
    return classes


def _read_decision(name: str, entry: Mapping[str, Any], kind: TaskType, C: int) -> Decision:
    """How one head's logits become an answer, from its entry in ``heads.json``.

    :raises ValueError: if its temperature is not above 0, or there is not one threshold from 0 to 1
        for each class that wants one; ``KeyError`` and ``TypeError`` likewise.
    """
    temperature = _take_number(entry["temperature"], f"{name}: temperature")
    if temperature <= 0:
        raise ValueError(f"{name}: temperature {temperature}")
    if not kind.has_thresholds:
        return Decision(temperature)
    given = entry["threshold"] if isinstance(entry["threshold"], list) else [entry["threshold"]]
    wanted = C if kind.positive_class is None else 1
    if len(given) != wanted:
        raise ValueError(f"{name}: {len(given)} thresholds, not {wanted}")
    thresholds = tuple(_take_number(threshold, f"{name}: threshold") for threshold in given)
    if not all(0 <= threshold <= 1 for threshold in thresholds):
        raise ValueError(f"{name}: threshold {given}, not from 0 to 1")
    return Decision(temperature, thresholds)


def _read_unit(name: str, entry: Mapping[str, Any], kind: TaskType) -> dict[str, float]:
    """The centre and the spread of one head's labels, from its entry in ``heads.json``.

    :returns: nothing for a type whose labels have no unit.
    :raises ValueError: if the outputs would not be finite; ``KeyError`` likewise.
    """
    if not kind.has_unit:
        return {}
    center = _take_number(entry["center"], f"{name}: center")
    spread = _take_number(entry["spread"], f"{name}: spread")
    if spread <= 0:
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
    about: dict[str, Any] = _replace_odd(dict(head.about))
    return entry | about | {"seeds": list(head.seeds)}


def _replace_odd(value: Any) -> Any:
    """A value with null for each number that is not finite, which JSON has no word for.

    A configuration that came to nothing has such a loss.
    """
    if isinstance(value, Mapping):
        return {key: _replace_odd(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_odd(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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


def _read_curves(path: Path, record: Mapping[str, Any]) -> dict[str, History]:
    """Losses by epoch of each task in ``curves.csv``.

    :param record: the contents of ``heads.json``.
    """
    lines: dict[str, list[tuple[int, float, float]]] = {}
    with reading(path, _STAGE, csv.Error):
        text = _read_file(path, record, "curves_sha256").decode("utf-8")
        for line in csv.DictReader(io.StringIO(text, newline="")):
            losses = float(line["train_loss"]), float(line["validation_loss"])
            lines.setdefault(line["task"], []).append((int(line["epoch"]), *losses))
    return {task: History(*zip(*sorted(of_task), strict=True)) for task, of_task in lines.items()}
