"""What another threshold of a binary head, or of a tag, would give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config import HeadsSettings, ThresholdAim
from pipeline.model.decision import Floats, Ints, Logits
from pipeline.model.metrics import Bools, divide
from pipeline.model.saved import SavedHead

MAX_THRESHOLDS = 201


@dataclass(frozen=True, eq=False)
class ThresholdCurve:
    """Scores of one class or tag at N thresholds; all arrays are [N].

    :param name: the name of the class or tag.
    :param thresholds: probabilities above which the class is answered, ascending from 0 to 1.
    :param precision: the share of the class among the rows so answered, 0 where none is.
    :param recall: the share of the rows of the class that are so answered, 0 where there is none.
    :param f1: the harmonic mean of both, 0 where neither labels nor answers have the class.
    :param cost: what the wrong answers cost together; ``None`` where the task states no costs.
    :param chosen: the index in ``thresholds`` of the head's own threshold.
    :param tp: the rows of the class that are so answered: int64.
    :param fp: the other rows that are so answered: int64.
    :param fn: the rows of the class that are not so answered: int64.
    :param tn: the other rows that are not so answered: int64.
    """

    name: str
    thresholds: Floats
    precision: Floats
    recall: Floats
    f1: Floats
    cost: Floats | None
    chosen: int
    tp: Ints
    fp: Ints
    fn: Ints
    tn: Ints


def find_costs(heads: HeadsSettings, task: str) -> tuple[float, float] | None:
    """What wrong answers of a task cost, where the settings chose its threshold by that.

    :param heads: the settings of the heads.
    :param task: the name of the task.
    :returns: the cost of a false positive and of a false negative, in one unit; ``None`` if the
        settings state none.
    """
    settings = (heads.tasks or {}).get(task)
    aim = settings.threshold if settings is not None else None
    if not isinstance(aim, ThresholdAim):
        return None
    if aim.false_positive is None or aim.false_negative is None:
        return None
    return aim.false_positive, aim.false_negative


def trace_thresholds(
    head: SavedHead,
    actual: npt.NDArray[Any],
    logits: Logits,
    costs: tuple[float, float] | None = None,
) -> list[ThresholdCurve]:
    """Scores of the positive class, or of each tag, at thresholds from 0 to 1.

    :param head: the head.
    :param actual: the labels of the B rows, none missing.
    :param logits: its outputs, [B, O].
    :param costs: what a false positive and a false negative cost, if the task states it.
    :returns: a curve for the positive class of a binary head, one for each tag, or none for types
        without thresholds, or without rows.
    """
    if not head.type.has_thresholds or not len(actual):
        return []
    probabilities = head.type.compute_probabilities(logits, head.decision)
    positive = head.type.positive_class
    if positive is not None:
        columns, is_class = [positive], np.asarray(actual == positive)[:, None]
    else:
        columns, is_class = list(range(len(head.classes))), np.asarray(actual > 0)
    thresholds = head.decision.thresholds or (0.5,) * len(columns)
    return [
        trace_threshold(
            head.classes[column],
            is_class[:, index],
            probabilities[:, column],
            thresholds[index],
            costs,
        )
        for index, column in enumerate(columns)
    ]


def trace_threshold(
    name: str,
    is_class: Bools,
    probabilities: Floats,
    chosen: float,
    costs: tuple[float, float] | None = None,
) -> ThresholdCurve:
    """Scores of one class at thresholds from 0 to 1, of which one is the chosen threshold itself.

    :param name: the name of the class or tag.
    :param is_class: whether each row is of the class, [B].
    :param probabilities: the probability of the class, [B].
    :param chosen: the head's own threshold.
    :param costs: what a false positive and a false negative cost.
    """
    thresholds = list_thresholds(chosen)
    tp = _count_above(probabilities[is_class], thresholds)
    fp = _count_above(probabilities[~is_class], thresholds)
    support = int(is_class.sum())
    fn, tn = support - tp, len(is_class) - support - fp
    return ThresholdCurve(
        name=name,
        thresholds=thresholds,
        precision=np.nan_to_num(divide(tp, tp + fp)),
        recall=np.nan_to_num(divide(tp, tp + fn)),
        f1=np.nan_to_num(divide(2 * tp, 2 * tp + fp + fn)),
        cost=None if costs is None else costs[0] * fp + costs[1] * fn,
        chosen=int(np.flatnonzero(thresholds == chosen)[0]),
        tp=tp,
        fp=fp,
        fn=fn,
        tn=tn,
    )


def list_thresholds(chosen: float) -> Floats:
    """Thresholds at even distances from 0 to 1, the nearest of them moved to the chosen one.

    :param chosen: a threshold; one above 1, which no row reaches, takes the place of 1.
    :returns: float64, [201], ascending.
    """
    thresholds = np.linspace(0, 1, MAX_THRESHOLDS)
    thresholds[np.abs(thresholds - chosen).argmin()] = chosen
    return thresholds


def _count_above(probabilities: Floats, thresholds: Floats) -> Ints:
    """How many probabilities lie above each threshold: int64, [N]."""
    below = np.searchsorted(np.sort(probabilities), thresholds, side="right")
    return np.asarray(len(probabilities) - below, np.int64)
