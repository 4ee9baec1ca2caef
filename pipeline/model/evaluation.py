"""The scores of one head on one part of the corpus, and how far they may be off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.model.decision import Floats, Ints, Logits
from pipeline.model.metrics import METRICS, Counts, Ranking
from pipeline.model.saved import SavedHead

REPLICATES = 1000
_ENDS_PERCENT = (2.5, 97.5)
_MOST_NUMBERS = 8_000_000  # in the counts of the replicates that are computed at once: 64 MB
_MOST_RANKED_CLASSES = 20  # more would be ranked again in each replicate for minutes
# More rows than these are ranked by so many different scores in the replicates. By how much that
# changes a figure of the rows themselves is added to the ends of its interval.
_MANY_ROWS = 20_000
_LEVELS = 4096


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class against the rest.

    A class that occurs neither among the labels nor among the answers has none. Otherwise a
    precision without answers, or a recall without rows, is 0.

    :param name: the name of the class.
    :param support: the number of rows that are of this class.
    :param precision: the share of the rows so answered that are of this class.
    :param recall: the share of the rows of this class that were so answered.
    :param f1: the harmonic mean of both.
    """

    name: str
    support: int
    precision: float | None
    recall: float | None
    f1: float | None

    def to_record(self) -> dict[str, float | int]:
        """The scores as JSON; one that is undefined is not there."""
        scores = {"precision": self.precision, "recall": self.recall, "f1": self.f1}
        defined = {metric: value for metric, value in scores.items() if value is not None}
        return {**defined, "support": self.support}


@dataclass(frozen=True)
class PartScores:
    """Scores of one head on one part of the corpus.

    :param rows: the number of rows that have a label.
    :param confusion: rows by actual (first axis) and predicted class, [C, C]; [0, 0] if a row may
        be of many classes, or of none.
    :param overall: metric → value; one that is undefined on this part is not there.
    :param classes: the scores of each class or tag, in the order of their index.
    :param intervals: metric → ends of its 95 % interval.
    :param seeds: metric → mean and deviation over the heads of several seeds.
    """

    rows: int
    confusion: Ints
    overall: dict[str, float]
    classes: tuple[ClassScores, ...]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    seeds: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def to_record(self) -> dict[str, Any]:
        """All scores as JSON, as in ``metrics.json``.

        Metrics stand at the top. Scores of classes, ends of intervals and scores over seeds have
        keys of their own, so that no name of a class can be that of another score.
        """
        record: dict[str, Any] = {"rows": self.rows, **self.overall}
        nested = {
            "classes": {of_class.name: of_class.to_record() for of_class in self.classes},
            "intervals": {
                m: {"low": low, "high": high} for m, (low, high) in self.intervals.items()
            },
            "seeds": {m: {"mean": mean, "deviation": d} for m, (mean, d) in self.seeds.items()},
        }
        return record | {key: scores for key, scores in nested.items() if scores and self.rows}


def score_head(head: SavedHead, actual: npt.NDArray[Any], logits: Logits) -> PartScores:
    """Score one head on rows that have a label.

    :param head: the head.
    :param actual: the labels of the B rows, as in ``TaskLabels``.
    :param logits: its outputs, [B, O].
    """
    answers = head.type.answer(actual, logits, len(head.classes), head.decision)
    overall = {}
    if len(actual):
        for metric in head.type.metrics:
            (value,) = METRICS[metric].measure(answers).tolist()
            if np.isfinite(value):
                overall[metric] = value
    return PartScores(
        rows=len(actual),
        confusion=answers.confusion,
        overall=overall,
        classes=_score_classes(answers.counts, head.classes),
    )


def _score_classes(counts: Counts, classes: Sequence[str]) -> tuple[ClassScores, ...]:
    """The scores of each class of a single sample."""
    (support,), (precision,), (recall,), (f1,) = (
        counts.support, counts.precision, counts.recall, counts.f1
    )  # fmt: skip

    def take(values: Floats, index: int) -> float | None:
        return float(values[index]) if np.isfinite(values[index]) else None

    return tuple(
        ClassScores(name, int(support[c]), take(precision, c), take(recall, c), take(f1, c))
        for c, name in enumerate(classes)
    )


def rank_classes(head: SavedHead, actual: npt.NDArray[Any], logits: Logits) -> list[Ranking]:
    """How one head ranks rows by each class that it has a score for, as its curves show it.

    :param head: the head.
    :param actual: the labels of the B rows, none missing.
    :param logits: its outputs, [B, O].
    """
    return head.type.answer(actual, logits, len(head.classes), head.decision, 1.0).rankings


def bootstrap_intervals(
    head: SavedHead, actual: npt.NDArray[Any], logits: Logits
) -> dict[str, tuple[float, float]]:
    """95 % intervals: rows are drawn again with replacement, a thousand times from a fixed seed.

    Source: Efron (1979), Bootstrap methods: another look at the jackknife (percentile intervals).

    :param head: the head.
    :param actual: the labels of the B rows, none missing.
    :param logits: its outputs, [B, O].
    :returns: metric → lower and upper end; a metric that some replicates leave undefined is judged
        by the others.
    """
    if len(actual) < 2:
        return {}
    # Rows are ranked at temperature 1, as for the curves; the intervals of earlier versions are.
    answers = head.type.answer(actual, logits, len(head.classes), head.decision, 1.0)
    metrics = [
        metric
        for metric in head.type.interval_metrics
        if metric != "roc_auc" or len(head.classes) <= _MOST_RANKED_CLASSES
    ]
    shifts = dict.fromkeys(metrics, 0.0)
    if len(actual) > _MANY_ROWS:
        exact, answers = answers, answers.coarsen(_LEVELS)
        for metric in metrics:
            (shift,) = METRICS[metric].measure(exact) - METRICS[metric].measure(answers)
            shifts[metric] = float(np.nan_to_num(shift))
    pieces: dict[str, list[Floats]] = {metric: [] for metric in metrics}
    for times in _draw_times(len(actual)):
        drawn = answers.draw(times)
        for metric in metrics:
            pieces[metric].append(METRICS[metric].measure(drawn))
    intervals = {}
    for metric in metrics:
        values = np.concatenate(pieces[metric]) + shifts[metric]
        if np.isfinite(values).any():
            low, high = np.nanpercentile(values, _ENDS_PERCENT)
            intervals[metric] = (float(low), float(high))
    return intervals


def _draw_times(rows: int) -> Iterator[Floats]:
    """How often each replicate holds each row: [R, B], R at a time."""
    generator = np.random.default_rng(0)
    at_once = max(1, min(REPLICATES, _MOST_NUMBERS // rows))
    for start in range(0, REPLICATES, at_once):
        R = min(at_once, REPLICATES - start)
        times = np.empty((R, rows))
        for replicate, drawn in zip(times, generator.integers(0, rows, (R, rows)), strict=True):
            replicate[:] = np.bincount(drawn, minlength=rows)
        yield times
