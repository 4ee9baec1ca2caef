"""Scores of a head's logits against the labels: pure functions on arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.model.decision import Floats, Ints
from pipeline.model.saved import SavedHead

# Names that stand for averages in `f1_macro`, `f1_weighted`; a class may have the same name.
_AVERAGES = ("macro", "weighted")


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class against the rest.

    A class that occurs neither among the labels nor among the predictions has none. Otherwise a
    precision without predictions, or a recall without rows, is 0.

    :param support: rows that are of this class.
    """

    name: str
    support: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class PartScores:
    """Scores of one head on one part of the corpus.

    :param confusion: [C, C]: rows by actual (first axis) and predicted class.
    :param overall: metric → value; one that is undefined on this part is not there.
    :param intervals: metric → ends of its 95 % interval.
    :param seeds: metric → mean and deviation over the heads of several seeds.
    """

    rows: int
    confusion: Ints
    overall: dict[str, float]
    classes: tuple[ClassScores, ...]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    seeds: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def flatten(self) -> dict[str, float | int]:
        """All values under one flat name each, as in ``metrics.json``."""
        flat: dict[str, float | int] = {"rows": self.rows, **self.overall}
        for scores in self.classes:
            name = f"class_{scores.name}" if scores.name in _AVERAGES else scores.name
            for metric in ("precision", "recall", "f1"):
                value = getattr(scores, metric)
                if value is not None:
                    flat[f"{metric}_{name}"] = value
            if self.rows:
                flat[f"support_{name}"] = scores.support
        for metric, (low, high) in self.intervals.items():
            flat |= {f"{metric}_low": low, f"{metric}_high": high}
        for metric, (mean, deviation) in self.seeds.items():
            flat |= {f"{metric}_seed_mean": mean, f"{metric}_seed_deviation": deviation}
        return flat


def score_task(
    head: SavedHead, actual: npt.NDArray[Any], logits: npt.NDArray[np.floating]
) -> PartScores:
    """Score one head on rows that have a label.

    :param actual: their labels, as in ``TaskLabels``.
    :param logits: [B, K].
    """
    kind, C = head.type.name, len(head.classes)
    none = np.zeros((0, 0), np.int64)
    predicted = head.type.predict(logits, head.decision)
    if kind == "regression":
        return PartScores(len(actual), none, score_numbers(actual, logits[:, 0]), ())
    if kind == "multilabel":
        per_tag = tuple(
            score_classes(_cross(actual[:, c], predicted[:, c], 2), ("", name))[1]
            for c, name in enumerate(head.classes)
        )
        return PartScores(len(actual), none, _average_tags(actual, predicted, logits), per_tag)
    confusion = _cross(actual, predicted, C)
    per_class = score_classes(confusion, head.classes)
    overall = average_classes(confusion, per_class)
    if kind == "ordinal":
        if len(actual):
            overall["mean_absolute_error"] = float(np.abs(actual - predicted).mean())
    elif kind == "binary":
        for metric in ("precision", "recall", "f1"):
            value = getattr(per_class[1], metric)
            if value is not None:
                overall[metric] = value
        overall |= rank_scores(actual, logits / head.decision.temperature)
    else:
        overall |= rank_scores(actual, head.type.compute_probabilities(logits, head.decision))
    return PartScores(len(actual), confusion, overall, per_class)


def score_numbers(actual: Floats, predicted: npt.NDArray[np.floating]) -> dict[str, float]:
    """Errors of a regression; empty if there are no rows.

    :param actual: [B].
    :param predicted: [B].
    """
    if not len(actual):
        return {}
    error = predicted.astype(np.float64) - actual
    spread = float(np.var(actual))
    found = {
        "mean_absolute_error": float(np.abs(error).mean()),
        "root_mean_squared_error": float(np.sqrt(np.square(error).mean())),
    }
    return found | ({"r2": 1 - float(np.square(error).mean()) / spread} if spread else {})


def _average_tags(
    actual: Ints, predicted: Ints, logits: npt.NDArray[np.floating]
) -> dict[str, float]:
    """Accuracy (all tags of a row right), and F1 over all tags (micro) and their mean (macro)."""
    if not len(actual):
        return {}
    hits = ((actual == 1) & (predicted == 1)).sum(axis=0)
    whole = (actual == 1).sum(axis=0) + (predicted == 1).sum(axis=0)
    defined = whole > 0
    overall = {"accuracy": float((actual == predicted).all(axis=1).mean())}
    if defined.any():
        overall["f1_micro"] = float(2 * hits.sum() / whole.sum())
        overall["f1_macro"] = float((2 * hits[defined] / whole[defined]).mean())
    ranked = [rank_scores(actual[:, c], logits[:, [c]]) for c in range(actual.shape[1])]
    for metric in ("roc_auc", "average_precision"):
        if all(metric in one for one in ranked):
            overall[metric] = float(np.mean([one[metric] for one in ranked]))
    return overall


def _cross(actual: Ints, predicted: Ints, classes: int) -> Ints:
    """Rows by actual and predicted class: [C, C]."""
    return np.bincount(actual * classes + predicted, minlength=classes * classes).reshape(
        classes, classes
    )


def score_classes(confusion: Ints, classes: Sequence[str]) -> tuple[ClassScores, ...]:
    """Precision, recall and F1 of each class from a confusion matrix.

    :param confusion: [C, C], actual by predicted.
    """
    scores = []
    for index, name in enumerate(classes):
        hits = int(confusion[index, index])
        support = int(confusion[index].sum())
        predicted = int(confusion[:, index].sum())
        occurs = support + predicted > 0
        scores.append(
            ClassScores(
                name=name,
                support=support,
                precision=hits / max(predicted, 1) if occurs else None,
                recall=hits / max(support, 1) if occurs else None,
                f1=2 * hits / (support + predicted) if occurs else None,
            )
        )
    return tuple(scores)


def average_classes(confusion: Ints, scores: Sequence[ClassScores]) -> dict[str, float]:
    """Accuracy, and the averages over the classes that occur: plain (macro) and by support.

    :param confusion: [C, C], actual by predicted.
    :returns: metric → value; empty if there are no rows.
    """
    rows = int(confusion.sum())
    if rows == 0:
        return {}
    defined = [s for s in scores if s.f1 is not None]
    table = np.array([[s.precision, s.recall, s.f1] for s in defined], np.float64)
    support = np.array([s.support for s in defined], np.float64)
    precision, recall, f1 = table.mean(axis=0)
    return {
        "accuracy": float(np.trace(confusion) / rows),
        "precision_macro": float(precision),
        "recall_macro": float(recall),
        "f1_macro": float(f1),
        "f1_weighted": float(table[:, 2] @ support / rows),
    }


def rank_scores(actual: Ints, scores: npt.NDArray[np.floating]) -> dict[str, float]:
    """ROC-AUC and average precision: of class 1, or one-vs-rest and averaged over all classes.

    :param actual: class index of each row, [B].
    :param scores: [B, 1] of class 1, or [B, C]; only their order matters.
    :returns: ``roc_auc`` and ``average_precision``, each only if every class that it averages over
        has the rows that it needs: some for both, some of other classes for ROC-AUC.
    """
    areas, precisions = [], []
    for _, is_class, score in take_classes(actual, scores):
        sweep = sweep_thresholds(is_class, score)
        if sweep.hits[-1] == 0:
            return {}
        precisions.append(np.diff(sweep.recall) @ sweep.precision[1:])
        if sweep.false_alarms[-1] > 0:
            areas.append(np.trapezoid(sweep.recall, sweep.false_positive_rate))
    ranked = {"average_precision": float(np.mean(precisions))}
    if len(areas) == len(precisions):
        ranked = {"roc_auc": float(np.mean(areas)), **ranked}
    return ranked


def take_classes(
    actual: Ints, scores: npt.NDArray[np.floating]
) -> Iterator[tuple[int, npt.NDArray[np.bool_], npt.NDArray[np.floating]]]:
    """Each class that has scores of its own, against the rest.

    :param scores: [B, 1] of class 1, or [B, C].
    :yields: class index; which rows are of that class, [B]; their scores, [B].
    """
    wanted = [1] if scores.shape[1] == 1 else range(scores.shape[1])
    for column, index in enumerate(wanted):
        yield index, actual == index, scores[:, column]


@dataclass(frozen=True)
class Sweep:
    """What a threshold that falls from above the highest score to the lowest one lets through.

    :param hits: rows of the class above each threshold, [N], from 0 to all of them.
    :param false_alarms: other rows above each threshold, [N], from 0 to all of them.
    """

    hits: Ints
    false_alarms: Ints

    @property
    def recall(self) -> Floats:
        """Share of the class's rows above each threshold; also called true positive rate."""
        return _divide(self.hits, self.hits[-1:])

    @property
    def false_positive_rate(self) -> Floats:
        """Share of the other rows above each threshold."""
        return _divide(self.false_alarms, self.false_alarms[-1:])

    @property
    def precision(self) -> Floats:
        """Share of the class among the rows above each threshold; 1 where there are none."""
        above = self.hits + self.false_alarms
        return np.where(above > 0, _divide(self.hits, np.maximum(above, 1)), 1.0)


def sweep_thresholds(is_class: npt.NDArray[np.bool_], score: npt.NDArray[np.floating]) -> Sweep:
    """Count rows above every threshold that makes a difference; equal scores pass together.

    :param is_class: which rows are of the class, [B].
    :param score: [B]; higher for rows more likely of the class.
    """
    order = np.argsort(-score, kind="stable")
    last_of_equal = np.flatnonzero(np.diff(score[order], append=np.nan))
    hits = np.cumsum(is_class[order], dtype=np.int64)[last_of_equal]
    hits = np.concatenate([[0], hits])
    false_alarms = np.concatenate([[0], last_of_equal + 1]) - hits
    return Sweep(hits=hits, false_alarms=false_alarms)


def _divide(part: Ints, whole: Ints) -> Floats:
    share: Floats = part / whole
    return share
