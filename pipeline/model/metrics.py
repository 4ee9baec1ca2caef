"""What the scores of heads are: every formula once.

A metric is computed from ``Answers``. They hold the rows once, for the figure itself, or R samples
of the rows, for a bootstrap; a metric is one number a sample, NaN where it is undefined. Choosing
among configurations, the report and its intervals all read the table ``METRICS``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.model.decision import Floats, Ints, Logits

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Counts:
    """Rows of each of C classes or tags in each of R samples: float64, [R, C] each.

    :param hits: the rows that are of the class and were answered so.
    :param support: the rows that are of the class.
    :param predicted: the rows that were answered so.
    """

    hits: Floats
    support: Floats
    predicted: Floats

    @cached_property
    def f1(self) -> Floats:
        """F1 of each class, [R, C]; NaN where it occurs neither in labels nor in answers."""
        return divide(2 * self.hits, self.support + self.predicted)

    @cached_property
    def precision(self) -> Floats:
        """Precision of each class, [R, C]: 0 without answers, NaN where it occurs nowhere."""
        return np.where(self._occurs, divide(self.hits, np.maximum(self.predicted, 1)), np.nan)

    @cached_property
    def recall(self) -> Floats:
        """Recall of each class, [R, C]: 0 without rows, NaN where it occurs nowhere."""
        return np.where(self._occurs, divide(self.hits, np.maximum(self.support, 1)), np.nan)

    @property
    def _occurs(self) -> Bools:
        return np.asarray(self.support + self.predicted > 0)


@dataclass(frozen=True, eq=False)
class Ranking:
    """How a head ranks rows by one class or tag.

    :param index: the index of the class or tag.
    :param is_class: whether each row is of it, [B].
    :param scores: floats, [B], higher for rows more likely of it; only their order matters.
    """

    index: int
    is_class: Bools
    scores: Logits

    @cached_property
    def cells(self) -> tuple[Ints, int]:
        """Where each row stands when the highest score comes first, and how many scores differ.

        Rows of one score, those of the class behind the others, are next to each other: [B], from
        2 on.
        """
        level = np.unique(-self.scores, return_inverse=True)[1]
        return 2 + 2 * level + self.is_class, int(level.max(initial=-1)) + 1


def rank_nothing() -> Logits:
    """The scores of a head that does not rank rows by class: [0, 0]."""
    return np.empty((0, 0))


@dataclass(frozen=True, eq=False, kw_only=True)
class Answers(ABC):
    """A head's answers to B rows, beside their labels.

    :param actual: the labels, none missing: class index, [B]; 0 or 1 for each tag, [B, C]; a
        number, [B].
    :param predicted: the answers, in the form of the labels.
    :param rank: a function that gives a score of each row for each of S classes, [B, S]; a function
        because most metrics do without.
    :param times: how often each of R samples holds each row, float64, [R, B]; ``None`` for one
        sample that holds each row once.
    :param known: the rankings, once they were asked for, which samples of the same rows share.
    """

    actual: npt.NDArray[Any]
    predicted: npt.NDArray[Any]
    rank: Callable[[], Logits] = rank_nothing
    times: Floats | None = None
    known: dict[str, list[Ranking]] = field(default_factory=dict)

    def draw(self, times: Floats) -> Answers:
        """The same answers in other samples.

        :param times: how often each sample holds each row, float64, [R, B].
        """
        return replace(self, times=times)

    def coarsen(self, levels: int) -> Answers:
        """The same answers, with so few different scores that many samples are soon ranked.

        :param levels: the number of different scores that each ranking has at most.
        """
        columns = [coarsen_scores(ranking, levels) for ranking in self.rankings]
        scores: Logits = np.stack(columns, axis=1) if columns else rank_nothing()
        return replace(self, rank=lambda: scores, known={})

    @property
    def rows(self) -> Floats:
        """The number of rows in each sample: [R]."""
        if self.times is None:
            return np.array([float(len(self.actual))])
        return np.asarray(self.times.sum(axis=1))

    def average(self, values: npt.NDArray[Any]) -> Floats:
        """The mean over the rows of each sample.

        :param values: one number a row, [B].
        :returns: float64, [R].
        """
        if self.times is None:
            return np.array([values.mean()], np.float64)
        means: Floats = self.times @ values / self.rows
        return means

    def count(self, marks: Bools) -> Floats:
        """How many rows of each sample are marked.

        :param marks: columns of marks, [B, C].
        :returns: float64, [R, C].
        """
        if self.times is None:
            return np.asarray(marks.sum(axis=0, dtype=np.float64)[None])
        counts: Floats = self.times @ marks
        return counts

    @property
    @abstractmethod
    def is_right(self) -> Bools:
        """Whether each row was answered as it is labelled: [B]."""

    @cached_property
    @abstractmethod
    def counts(self) -> Counts:
        """The rows of each class or tag."""

    @property
    def rankings(self) -> list[Ranking]:
        """The S rankings of the rows, one for each class that the head has a score for."""
        if "rankings" not in self.known:
            self.known["rankings"] = self._list_rankings()
        return self.known["rankings"]

    def _list_rankings(self) -> list[Ranking]:
        """The rankings, made anew."""
        return []

    def sweep_classes(self) -> Iterable[Sweep]:
        """What thresholds on each of the S rankings let through, class by class."""
        if self.times is None:
            return self._sweeps
        # Those of all classes in all samples may not fit into memory together.
        return (sweep_thresholds(ranking, self.times) for ranking in self.rankings)

    @cached_property
    def _sweeps(self) -> list[Sweep]:
        return [sweep_thresholds(ranking) for ranking in self.rankings]

    @property
    def confusion(self) -> Ints:
        """Rows by actual (first axis) and predicted class: [C, C].

        It is [0, 0] if rows may be of many classes, or of none.
        """
        return np.zeros((0, 0), np.int64)


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassAnswers(Answers):
    """Answers that are one of C classes.

    :param classes: C.
    """

    classes: int

    @property
    def is_right(self) -> Bools:
        return np.asarray(self.actual == self.predicted)

    @cached_property
    def counts(self) -> Counts:
        if self.times is None:  # as fast with many classes as with two
            hits, support, predicted = (
                np.bincount(indices, minlength=self.classes)[None].astype(np.float64)
                for indices in (self.actual[self.is_right], self.actual, self.predicted)
            )
            return Counts(hits, support, predicted)
        every = np.arange(self.classes)
        is_actual, is_predicted = self.actual[:, None] == every, self.predicted[:, None] == every
        hits = self.count(is_actual & is_predicted)
        return Counts(hits, self.count(is_actual), self.count(is_predicted))

    def _list_rankings(self) -> list[Ranking]:
        scores = self.rank()
        # A single score is that of class 1.
        indices = [1] if scores.shape[1] == 1 else range(scores.shape[1])
        return [
            Ranking(index, np.asarray(self.actual == index), scores[:, column])
            for column, index in enumerate(indices)
        ]

    @property
    def confusion(self) -> Ints:
        C = self.classes
        return np.bincount(self.actual * C + self.predicted, minlength=C * C).reshape(C, C)


@dataclass(frozen=True, eq=False, kw_only=True)
class TagAnswers(Answers):
    """Answers that are any of C tags."""

    @property
    def is_right(self) -> Bools:
        return np.asarray(((self.actual > 0) == (self.predicted > 0)).all(axis=1))

    @cached_property
    def counts(self) -> Counts:
        is_actual, is_predicted = self.actual > 0, self.predicted > 0
        hits = self.count(is_actual & is_predicted)
        return Counts(hits, self.count(is_actual), self.count(is_predicted))

    def _list_rankings(self) -> list[Ranking]:
        scores = self.rank()
        return [
            Ranking(index, np.asarray(self.actual[:, index] > 0), scores[:, index])
            for index in range(scores.shape[1])
        ]


@dataclass(frozen=True, eq=False, kw_only=True)
class NumberAnswers(Answers):
    """Answers that are numbers; there are no classes to count."""

    @property
    def is_right(self) -> Bools:
        return np.asarray(self.actual == self.predicted)

    @cached_property
    def counts(self) -> Counts:
        none = np.empty((len(self.rows), 0))
        return Counts(none, none, none)


@dataclass(frozen=True, eq=False)
class Sweep:
    """What a threshold that falls from above the highest score to the lowest one lets through.

    N is one more than the number of different scores. With samples, each has a line of its own,
    [R, N], else there is one, [N].

    :param hits: the rows of the class above each threshold, from 0 to all of them.
    :param false_alarms: the other rows above each threshold, from 0 to all of them.
    """

    hits: Floats
    false_alarms: Floats

    @cached_property
    def recall(self) -> Floats:
        """Share of the class's rows above each threshold; also called true positive rate."""
        return divide(self.hits, self.hits[..., -1:])

    @property
    def false_positive_rate(self) -> Floats:
        """Share of the other rows above each threshold."""
        return divide(self.false_alarms, self.false_alarms[..., -1:])

    @property
    def precision(self) -> Floats:
        """Share of the class among the rows above each threshold; 1 where there are none."""
        above = self.hits + self.false_alarms
        return np.where(above > 0, divide(self.hits, np.maximum(above, 1)), 1.0)


def sweep_thresholds(ranking: Ranking, times: Floats | None = None) -> Sweep:
    """Count rows above every threshold that makes a difference; equal scores pass together.

    :param ranking: the rows and their scores.
    :param times: how often each sample holds each row, [R, B]; ``None`` for one sample.
    """
    cell, N = ranking.cells
    samples = [None] if times is None else times
    counted = np.stack([np.bincount(cell, sample, 2 * N + 2) for sample in samples])
    passed = np.cumsum(counted.reshape(len(samples), N + 1, 2), axis=1, dtype=np.float64)
    if times is None:
        (passed,) = passed
    return Sweep(hits=passed[..., 1], false_alarms=passed[..., 0])


def coarsen_scores(ranking: Ranking, levels: int) -> Logits:
    """Few scores in the order of many: equal ones stay equal, and near ones become so.

    Half of the levels part all rows into groups of one size, half the rows of the class, so that a
    class of few rows is told from others as finely as one of many.

    :param ranking: the rows and their scores.
    :param levels: the number of different scores at most.
    :returns: whole numbers, float32, [B].
    """
    found = np.zeros(len(ranking.scores), np.float32)
    for some in (ranking.scores, ranking.scores[ranking.is_class]):
        below = np.searchsorted(np.sort(some), ranking.scores)  # how many are lower, of each
        found += below * (levels // 2 - 1) // max(len(some), 1)
    return found


def measure_accuracy(answers: Answers) -> Floats:
    """Share of the rows that were answered right; of tags, all tags of a row: [R]."""
    return answers.average(answers.is_right)


def measure_f1_micro(answers: Answers) -> Floats:
    """F1 over the rows of all classes together: [R]."""
    counts = answers.counts
    whole = counts.support.sum(axis=1) + counts.predicted.sum(axis=1)
    return divide(2 * counts.hits.sum(axis=1), whole)


def measure_f1_weighted(answers: Answers) -> Floats:
    """Mean of the classes' F1, by their support: [R]."""
    counts = answers.counts
    return divide(np.nansum(counts.f1 * counts.support, axis=1), answers.rows)


def measure_absolute_error(answers: Answers) -> Floats:
    """Mean distance of answers from labels, in classes of an order or the unit of numbers: [R]."""
    return answers.average(np.abs(answers.predicted - answers.actual))


def measure_squared_error(answers: Answers) -> Floats:
    """Mean squared distance of answers from labels: [R]."""
    return answers.average(np.square(answers.predicted - answers.actual))


def measure_r2(answers: Answers) -> Floats:
    """Share of the labels' variance that the answers explain: [R]; undefined if all are alike."""
    # Squares of distances from the mean of all rows do not cancel, as those of labels far from
    # zero would.
    distances = answers.actual - answers.actual.mean()
    squares = answers.average(np.square(distances))
    variance = squares - np.square(answers.average(distances))
    is_rounding = variance <= 1e-12 * squares  # of a sample that holds one label again and again
    return 1 - divide(measure_squared_error(answers), np.where(is_rounding, 0.0, variance))


def measure_roc_auc(answers: Answers) -> Floats:
    """Area under the ROC curve, averaged over the classes that are ranked: [R].

    It is undefined if a class has no row, or all of them.

    Source: Hanley, McNeil (1982), The meaning and use of the area under a receiver operating
    characteristic curve: the area is the share of pairs of rows in the right order, equal scores
    counting half.
    """
    areas = [_measure_area(sweep) for sweep in answers.sweep_classes()]
    return np.asarray(np.mean(areas, axis=0))


def _measure_area(sweep: Sweep) -> Floats:
    """The area under the ROC curve of one class in each sample: [R]."""
    pairs = sweep.hits[..., -1] * sweep.false_alarms[..., -1]
    if sweep.hits.ndim == 1:
        # The trapezoids under the curve that the page draws. They add up to the share of pairs but
        # for the last digit, which stays that of the figures that earlier versions wrote.
        x, y = sweep.false_positive_rate, sweep.recall
        area = (np.diff(x) * (y[1:] + y[:-1]) / 2.0).sum()
        return np.array([area if pairs else np.nan])
    passed = sweep.false_alarms[:, 1:] + sweep.false_alarms[:, :-1]
    below = sweep.false_alarms[:, -1:] - passed / 2
    return divide((np.diff(sweep.hits) * below).sum(axis=1), pairs)


def measure_average_precision(answers: Answers) -> Floats:
    """Average precision, averaged over the classes that are ranked: [R].

    It is undefined if a class has no row.
    """
    precisions = []
    for sweep in answers.sweep_classes():
        steps, heights = np.diff(sweep.recall)[..., None, :], sweep.precision[..., 1:, None]
        precisions.append(np.where(sweep.hits[..., -1] > 0, (steps @ heights)[..., 0, 0], np.nan))
    return np.atleast_1d(np.mean(precisions, axis=0))


@dataclass(frozen=True)
class Metric:
    """One figure of a head.

    :param title: its name for people.
    :param measure: the formula: answers → [R], NaN where it is undefined.
    :param lower_is_better: whether it is an error.
    """

    title: str
    measure: Callable[[Answers], Floats]
    lower_is_better: bool = False


METRICS: Mapping[str, Metric] = {
    "accuracy": Metric("Accuracy", measure_accuracy),
    "precision": Metric("Precision", lambda answers: answers.counts.precision[:, 1]),
    "recall": Metric("Recall", lambda answers: answers.counts.recall[:, 1]),
    "f1": Metric("F1", lambda answers: answers.counts.f1[:, 1]),
    "precision_macro": Metric(
        "Macro precision", lambda answers: average_defined(answers.counts.precision)
    ),
    "recall_macro": Metric("Macro recall", lambda answers: average_defined(answers.counts.recall)),
    "f1_macro": Metric("Macro F1", lambda answers: average_defined(answers.counts.f1)),
    "f1_weighted": Metric("Weighted F1", measure_f1_weighted),
    "roc_auc": Metric("ROC-AUC", measure_roc_auc),
    "f1_micro": Metric("Micro F1", measure_f1_micro),
    "average_precision": Metric("Avg. precision", measure_average_precision),
    "mean_absolute_error": Metric("Mean abs. error", measure_absolute_error, lower_is_better=True),
    "root_mean_squared_error": Metric(
        "Root mean sq. error",
        lambda answers: np.sqrt(measure_squared_error(answers)),
        lower_is_better=True,
    ),
    "r2": Metric("R²", measure_r2),
}


def measure_softmax_loss(logits: Logits, labels: Ints) -> Floats:
    """Negative log likelihood of the labels under a softmax.

    :param logits: [B, C].
    :param labels: class index, [B].
    :returns: float64, [B].
    """
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    chosen = np.take_along_axis(wide, labels[:, None], axis=1)[:, 0]
    losses: Floats = np.log(np.exp(wide).sum(axis=1)) - chosen
    return losses


def measure_sigmoid_loss(logits: Logits, answers: npt.NDArray[Any]) -> Floats:
    """Negative log likelihood of answers of yes and no, each on its own.

    :param logits: [B, O], those of yes.
    :param answers: 1 or 0, [B, O].
    :returns: float64, [B, O].
    """
    wide = logits.astype(np.float64)
    losses: Floats = np.logaddexp(0, wide) - answers * wide
    return losses


def average_defined(table: Floats) -> Floats:
    """The mean over the columns that are defined.

    :param table: a figure of each class in each sample, [R, C], NaN where it is undefined.
    :returns: [R]; NaN where no class has one.
    """
    return divide(np.nansum(table, axis=1), np.isfinite(table).sum(axis=1))


def divide(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> Floats:
    """Shares, of arrays that broadcast; NaN where the whole is not above 0."""
    unknown = np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan)
    return np.asarray(np.divide(part, whole, out=unknown, where=whole > 0))
