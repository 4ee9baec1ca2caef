"""How far the probabilities of a head can be believed, before and after its temperature."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.model.decision import Floats, Logits
from pipeline.model.metrics import Bools, divide
from pipeline.model.saved import SavedHead

BINS = 15  # as many as in the paper by Guo et al.


@dataclass(frozen=True)
class ReliabilityBin:
    """The answers whose confidence lies in one interval.

    :param low: the lower end of the interval, which lies outside it but for that of the first bin.
    :param high: the upper end of the interval, which lies in it.
    :param n: the number of answers in it.
    :param confidence: their mean confidence; ``None`` of an empty bin.
    :param share_right: the share of them that are right; ``None`` of an empty bin.
    """

    low: float
    high: float
    n: int
    confidence: float | None
    share_right: float | None


@dataclass(frozen=True)
class Reliability:
    """The reliability diagram of a head, before and after its temperature.

    :param confidence_of: what confidences are of: ``class`` for the probability of the positive
        class, ``answer`` for that of the most likely class, ``tags`` for those of all tags.
    :param temperature: the number that logits are divided by.
    :param before: the bins of probabilities at temperature 1.
    :param after: the bins of the head's own probabilities.
    :param ece_before: the expected calibration error at temperature 1, in 0 to 1.
    :param ece_after: that of the head's own probabilities.
    """

    confidence_of: str
    temperature: float
    before: tuple[ReliabilityBin, ...]
    after: tuple[ReliabilityBin, ...]
    ece_before: float
    ece_after: float


def measure_reliability(
    head: SavedHead, actual: npt.NDArray[Any], logits: Logits, bins: int = BINS
) -> Reliability | None:
    """Compare how sure a head is with how often it is right.

    The confidence of a binary head is its probability of the positive class, of which the share of
    the rows of this class is expected; that of other heads of one class is the probability of the
    most likely class; that of tags is the probability of each tag of each row.

    Source: Guo, Pleiss, Sun, Weinberger (2017), On calibration of modern neural networks.

    :param head: the head.
    :param actual: the labels of the B rows, none missing.
    :param logits: its outputs, [B, O].
    :param bins: the number of intervals of equal width.
    :returns: ``None`` of a head that has no probabilities, or without rows.
    """
    if not head.type.has_temperature or not len(actual):
        return None
    of, before, is_right = list_confidences(head, actual, logits, 1.0)
    _, after, is_right_after = list_confidences(head, actual, logits, head.decision.temperature)
    return Reliability(
        confidence_of=of,
        temperature=head.decision.temperature,
        before=sort_into_bins(before, is_right, bins),
        after=sort_into_bins(after, is_right_after, bins),
        ece_before=measure_calibration_error(before, is_right, bins),
        ece_after=measure_calibration_error(after, is_right_after, bins),
    )


def list_confidences(
    head: SavedHead, actual: npt.NDArray[Any], logits: Logits, temperature: float
) -> tuple[str, Floats, Bools]:
    """What a head is sure of, how sure it is, and whether it is so.

    :param head: a head that has probabilities.
    :param actual: the labels of the B rows, none missing.
    :param logits: its outputs, [B, O].
    :param temperature: the number that logits are divided by.
    :returns: ``class``, ``answer`` or ``tags``, as in ``Reliability``; confidences in 0 to 1, one
        a row, or one for each tag of each row; and whether each is of what the label says.
    """
    decision = replace(head.decision, temperature=temperature)
    probabilities = head.type.compute_probabilities(logits, decision)
    if head.type.label_kind == "tags":
        return "tags", probabilities.ravel(), np.asarray(actual > 0).ravel()
    positive = head.type.positive_class
    if positive is not None:
        return "class", probabilities[:, positive], np.asarray(actual == positive)
    best = probabilities.argmax(axis=1)
    return "answer", probabilities.max(axis=1), np.asarray(best == actual)


def sort_into_bins(
    confidences: Floats, is_right: Bools, bins: int = BINS
) -> tuple[ReliabilityBin, ...]:
    """Means of confidences and of what came true in intervals of equal width.

    :param confidences: numbers in 0 to 1, [N].
    :param is_right: whether each came true, [N].
    :param bins: the number of intervals.
    """
    counts, confidence, share = _average_bins(confidences, is_right, bins)
    edges = np.linspace(0, 1, bins + 1).tolist()
    return tuple(
        ReliabilityBin(
            low=edges[index],
            high=edges[index + 1],
            n=int(counts[index]),
            confidence=float(confidence[index]) if counts[index] else None,
            share_right=float(share[index]) if counts[index] else None,
        )
        for index in range(bins)
    )


def measure_calibration_error(confidences: Floats, is_right: Bools, bins: int = BINS) -> float:
    """The mean distance of confidence from the share that came true, by the bins' numbers.

    Source: Naeini, Cooper, Hauskrecht (2015), Obtaining well calibrated probabilities using
    Bayesian binning (the expected calibration error).

    :param confidences: numbers in 0 to 1, [N], one at least.
    :param is_right: whether each came true, [N].
    :param bins: the number of intervals.
    :returns: a number in 0 to 1.
    """
    counts, confidence, share = _average_bins(confidences, is_right, bins)
    distances = np.nan_to_num(np.abs(confidence - share))
    return float((counts * distances).sum() / counts.sum())


def _average_bins(confidences: Floats, is_right: Bools, bins: int) -> tuple[Floats, Floats, Floats]:
    """The number, the mean confidence and the share right of each bin: [bins]; NaN if empty."""
    inner = np.linspace(0, 1, bins + 1)[1:-1]
    numbers = np.searchsorted(inner, confidences, side="left")  # an upper end is in its bin
    counts = np.bincount(numbers, minlength=bins).astype(np.float64)
    total = np.bincount(numbers, weights=confidences, minlength=bins)
    right = np.bincount(numbers, weights=is_right, minlength=bins)
    return counts, divide(total, counts), divide(right, counts)
