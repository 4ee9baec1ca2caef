"""Curves as data, and as CSV for ``dvc plots``."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.model.decision import Floats, Ints
from pipeline.model.evaluation import PartScores
from pipeline.model.metrics import Ranking, sweep_thresholds
from pipeline.model.saved import Heads

_MAX_POINTS = 400  # in one curve


@dataclass(frozen=True)
class Curve:
    """Points of one class's curve, in drawing order.

    :param index: the index of the class.
    :param x: the coordinates along the first axis: float64, [N], in 0 to 1, never falling.
    :param y: the coordinates along the second axis: float64, [N], in 0 to 1.
    """

    index: int
    x: Floats
    y: Floats


@dataclass(frozen=True)
class TaskCurves:
    """Curves of one task, of each class that its head ranks rows by; none if it ranks nothing.

    :param roc: receiver operating characteristics.
    :param precision_recall: precision over recall.
    """

    roc: list[Curve]
    precision_recall: list[Curve]


def trace_roc(rankings: Sequence[Ranking]) -> list[Curve]:
    """Receiver operating characteristic: false positive rate → true positive rate.

    :param rankings: the rows ranked by each class against the rest.
    :returns: a curve for each class that has rows and lacks some.
    """
    curves = []
    for ranking in rankings:
        if ranking.is_class.any() and not ranking.is_class.all():
            sweep = sweep_thresholds(ranking)
            # Points on a straight line between their neighbours add nothing.
            kept = _keep_corners(
                (np.diff(sweep.hits, 2) != 0) | (np.diff(sweep.false_alarms, 2) != 0)
            )
            curve = Curve(ranking.index, sweep.false_positive_rate[kept], sweep.recall[kept])
            curves.append(_thin_curve(curve))
    return curves


def trace_precision_recall(rankings: Sequence[Ranking]) -> list[Curve]:
    """Recall → precision.

    :param rankings: the rows ranked by each class against the rest.
    :returns: a curve for each class that has rows.
    """
    curves = []
    for ranking in rankings:
        if ranking.is_class.any():
            sweep = sweep_thresholds(ranking)
            # Where only false alarms are added, recall stands still: a line straight down.
            moves = np.diff(sweep.hits) != 0
            kept = _keep_corners(moves[1:] | moves[:-1])
            curves.append(
                _thin_curve(Curve(ranking.index, sweep.recall[kept], sweep.precision[kept]))
            )
    return curves


def _keep_corners(bends: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The first point, the last one, and those between at which the curve bends."""
    return np.concatenate([[True], bends, [True]])


def _thin_curve(curve: Curve) -> Curve:
    """Keep points at even distances along a long curve: the eye and the file size ask no more."""
    if len(curve.x) <= _MAX_POINTS:
        return curve
    steps = np.abs(np.diff(curve.x)) + np.abs(np.diff(curve.y))
    length = np.concatenate([[0.0], np.cumsum(steps)])
    kept = np.searchsorted(length, np.linspace(0, length[-1], _MAX_POINTS))
    kept = np.unique(np.concatenate([[0], kept, [len(length) - 1]]))
    return Curve(curve.index, curve.x[kept], curve.y[kept])


def write_csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """CSV as UTF-8 bytes; floats with six significant digits.

    :param header: the names of the columns.
    :param rows: one cell for each column.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row])
    return buffer.getvalue().encode("utf-8")


def list_files(
    heads: Heads,
    scores: Mapping[str, PartScores],
    curves: Mapping[str, TaskCurves],
) -> dict[str, bytes]:
    """The data behind the plots, one CSV file for each kind and task.

    :param heads: the heads.
    :param scores: task → scores on the part that the curves are of.
    :param curves: task → curves.
    :returns: name below ``plots/`` → content. A table without rows, at which ``dvc plots`` would
        stop, is left out.
    """
    files = {}
    for head in heads.heads:
        history, traced = head.history, curves[head.name]
        losses = zip(history.epochs, history.train_loss, history.validation_loss, strict=True)
        confusion = _list_confusion(scores[head.name].confusion, head.classes)
        roc = list_points(traced.roc, head.classes)
        precision_recall = list_points(traced.precision_recall, head.classes)
        tables: dict[str, tuple[Sequence[str], list[Any]]] = {
            "training": (("epoch", "train_loss", "validation_loss"), list(losses)),
            "confusion": (("actual", "predicted"), confusion),
            "roc": (("class", "false_positive_rate", "true_positive_rate"), list(roc)),
            "precision_recall": (("class", "recall", "precision"), list(precision_recall)),
        }
        for kind, (header, rows) in tables.items():
            if rows:
                files[f"{kind}/{head.name}.csv"] = write_csv(header, rows)
    return files


def _list_confusion(confusion: Ints, classes: Sequence[str]) -> list[tuple[str, str]]:
    """Names of actual and predicted class, once for each row of the part, cell by cell."""
    return [
        (classes[actual], classes[predicted])
        for actual, predicted in zip(*np.nonzero(confusion), strict=True)
        for _ in range(confusion[actual, predicted])
    ]


def list_points(
    curves: Sequence[Curve], classes: Sequence[str]
) -> Iterator[tuple[str, float, float]]:
    """Class name and point of all curves, one after the other.

    :param curves: the curves of one task.
    :param classes: its class names.
    """
    for curve in curves:
        for x, y in zip(curve.x, curve.y, strict=True):
            yield classes[curve.index], float(x), float(y)
