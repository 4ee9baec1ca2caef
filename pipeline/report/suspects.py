"""Labels that are probably wrong: texts labelled twice differently, then confident learning.

Only heads that have not trained on a row speak of its label: their held-out outputs, which
``train-heads`` keeps of the rows that it judges heads by.

Source: Northcutt, Jiang, Chuang (2021), Confident learning: estimating uncertainty in dataset
labels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.corpus.tables import PARTS
from pipeline.model.decision import Floats, Ints
from pipeline.model.saved import SavedHead
from pipeline.report.held_out import HeldOut
from pipeline.report.inputs import ScoredRows
from pipeline.report.spreadsheet import format_csv

CONTRADICTION, CONFIDENT = "contradiction", "confident"
# A residual of so many robust standard deviations is an outlier (Iglewicz, Hoaglin, 1993).
_MOST_DEVIATIONS = 3.5
# The calibrated probability that a class or a tag is not the one given, at least.
_LEAST_CONFIDENCE = 0.9
_NORMAL_QUARTILE = 0.6745  # the median of the absolute deviations of a standard normal


@dataclass(frozen=True, slots=True)
class Suspect:
    """One label that is probably wrong; of tags, one tag of a row.

    :param row: the index of the row in the corpus.
    :param part: the part of the row.
    :param given: the label that it has.
    :param suggested: the label that it probably should have.
    :param confidence: how sure that the label is wrong, from 0 to 1. Of a contradiction the share
        of the rows with the same text that have the suggested label; else the calibrated
        probability of all other labels; of a number the share of a normal distribution that lies
        nearer to its centre.
    :param reason: ``contradiction`` or ``confident``.
    """

    row: int
    part: str
    given: str
    suggested: str
    confidence: float
    reason: str


@dataclass(frozen=True)
class _Judgement:
    """What held-out outputs say of the labels of B rows, in S columns: one, or one for each tag.

    :param is_suspect: whether a label is probably wrong, [B, S].
    :param suggested: the value that it should have, [B, S].
    :param doubt: a number that is higher the less a label is believed, [B, S].
    """

    is_suspect: npt.NDArray[np.bool_]
    suggested: npt.NDArray[Any]
    doubt: Floats


class _Labels(ABC):
    """How labels of one kind are judged and named; they stand in S columns."""

    @abstractmethod
    def judge(self, head: SavedHead, given: npt.NDArray[Any], held_out: Floats) -> _Judgement:
        """Judge labels, [B, S], by a head's outputs, [B, O]."""

    @abstractmethod
    def name(self, head: SavedHead, column: int, value: Any) -> str:
        """A value of a column in words."""

    def agree(self, head: SavedHead, values: npt.NDArray[Any], doubts: Floats) -> Any:
        """The value that rows of one text should have; ``None`` if none is better than another.

        :param head: the head of the task.
        :param values: their values, [b], not all the same.
        :param doubts: how little each is believed, [b]; NaN where no head judged it.
        """
        named, counts = np.unique(values, return_counts=True)
        best = named[counts == counts.max()]
        if len(best) == 1:
            return best[0]
        known = {value: doubts[values == value] for value in best.tolist()}
        means = [np.nan if np.isnan(d).all() else np.nanmean(d) for d in known.values()]
        return None if np.isnan(means).any() or len(set(means)) == 1 else best[np.argmin(means)]

    def differ(self, head: SavedHead, values: npt.NDArray[Any], agreed: Any) -> Any:
        """Which values, [b], are not the one agreed on."""
        return values != agreed

    def measure_confidence(self, doubt: float) -> float:
        """The confidence, from 0 to 1, that a label of some doubt is wrong."""
        return doubt


class _Classes(_Labels):
    """Confident learning, ranked by self-confidence, the probability of the given class."""

    def judge(self, head: SavedHead, given: npt.NDArray[Any], held_out: Floats) -> _Judgement:
        probabilities = head.type.compute_probabilities(held_out, head.decision)
        found = learn_confidently(probabilities, given[:, 0])
        own = probabilities[np.arange(len(given)), given[:, 0]]
        return _judge_found(found[:, None], 1 - own[:, None])

    def name(self, head: SavedHead, column: int, value: Any) -> str:
        return head.classes[int(value)]


class _OrderedClasses(_Classes):
    """Confident learning, ranked by the probability on the more likely side of the given class.

    The head of an ordered scale may leave a class between two others no probability at all, so that
    this says little against a label there.
    """

    def judge(self, head: SavedHead, given: npt.NDArray[Any], held_out: Floats) -> _Judgement:
        probabilities = head.type.compute_probabilities(held_out, head.decision)
        found = learn_confidently(probabilities, given[:, 0])
        up_to = np.cumsum(probabilities, axis=1)[np.arange(len(given)), given[:, 0]]
        below = up_to - probabilities[np.arange(len(given)), given[:, 0]]
        doubts = np.where(found > given[:, 0], 1 - up_to, below)
        return _judge_found(found[:, None], doubts[:, None])


class _Tags(_Labels):
    """Confident learning for each tag on its own, which is there or not."""

    def judge(self, head: SavedHead, given: npt.NDArray[Any], held_out: Floats) -> _Judgement:
        probabilities = head.type.compute_probabilities(held_out, head.decision)
        columns = [
            learn_confidently(np.stack([1 - of_tag, of_tag], axis=1), of_given)
            for of_tag, of_given in zip(probabilities.T, given.T, strict=True)
        ]
        found = np.stack(columns, axis=1)
        own = np.where(given > 0, probabilities, 1 - probabilities)
        return _judge_found(found, 1 - own)

    def name(self, head: SavedHead, column: int, value: Any) -> str:
        tag = head.classes[column]
        return tag if value > 0 else f"without {tag}"


def _judge_found(found: Ints, doubts: Floats) -> _Judgement:
    """What confident learning found, where it is certain enough for a person's time."""
    return _Judgement((found >= 0) & (doubts >= _LEAST_CONFIDENCE), found, doubts)


class _Numbers(_Labels):
    """Residuals that are outliers; of a text labelled twice, numbers far from the median."""

    def judge(self, head: SavedHead, given: npt.NDArray[Any], held_out: Floats) -> _Judgement:
        residuals = given - held_out
        centred = np.abs(residuals - np.median(residuals))
        scale = float(np.median(centred)) / _NORMAL_QUARTILE
        deviations = centred / scale if scale > 0 else np.zeros_like(centred)
        return _Judgement(deviations > _MOST_DEVIATIONS, held_out, deviations)

    def name(self, head: SavedHead, column: int, value: Any) -> str:
        return f"{float(value):.6g}"

    def agree(self, head: SavedHead, values: npt.NDArray[Any], doubts: Floats) -> Any:
        return np.median(values)

    def differ(self, head: SavedHead, values: npt.NDArray[Any], agreed: Any) -> Any:
        return np.abs(values - agreed) > head.spread

    def measure_confidence(self, doubt: float) -> float:
        return math.erf(doubt / math.sqrt(2))


# The name of a type of task → how its labels are judged.
LABEL_KINDS: Mapping[str, _Labels] = {
    "binary": _Classes(),
    "multiclass": _Classes(),
    "ordinal": _OrderedClasses(),
    "multilabel": _Tags(),
    "regression": _Numbers(),
}


def learn_confidently(probabilities: Floats, given: Ints) -> Ints:
    """The class that each row probably is of, where that is not the one given.

    A class is likely for a row if its probability is at least the mean of those rows that are
    labelled so, which makes up for a head that is more sure of some classes than of others. The
    most likely of these is the row's class. Where it is not the one given, the row is off the
    diagonal of the confident joint; it counts if it is also more probable than the one given.

    Source: Northcutt, Jiang, Chuang (2021), equations 1 and 2.

    :param probabilities: held-out probabilities, [B, C].
    :param given: the classes that rows are labelled with, [B].
    :returns: a class, or -1 where the label stands: int64, [B].
    """
    every = np.arange(len(given))
    counts = np.bincount(given, minlength=probabilities.shape[1])
    sums = np.bincount(given, probabilities[every, given], probabilities.shape[1])
    thresholds = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
    likely = np.where(probabilities >= thresholds, probabilities, -1.0)
    best = likely.argmax(axis=1)
    is_other = (likely[every, best] > probabilities[every, given]) & (best != given)
    return np.where(is_other, best, -1)


def find_suspects(head: SavedHead, held_out: HeldOut | None, rows: ScoredRows) -> list[Suspect]:
    """The labels of one task that are probably wrong: contradictions, then the most certain ones.

    :param head: the head of the task.
    :param held_out: its held-out outputs; ``None`` where none were kept, so that only
        contradictions are found.
    :param rows: the rows of the corpus.
    """
    kind = LABEL_KINDS[head.type.name]
    labels = rows.labels[head.name].reshape(len(rows.codes), -1)
    doubts = np.full(labels.shape, np.nan)
    confident: list[_Found] = []
    if held_out is not None:
        is_labelled = rows.present[head.name][held_out.rows]
        judged, outputs = held_out.rows[is_labelled], held_out.logits[is_labelled]
        if len(judged):
            judgement = kind.judge(head, labels[judged], outputs)
            doubts[judged] = judgement.doubt
            confident = list(_list_confident(kind, judged, judgement))
    contradictions = list(_find_contradictions(head, kind, rows, labels, doubts))
    listed = {(found.row, found.column) for found in contradictions}
    part_of_row = np.empty(len(rows.codes), np.int8)
    for index, part in enumerate(PARTS):
        part_of_row[rows.parts.get(part, [])] = index
    return [
        Suspect(
            found.row,
            PARTS[part_of_row[found.row]],
            kind.name(head, found.column, labels[found.row, found.column]),
            kind.name(head, found.column, found.suggested),
            found.confidence,
            reason,
        )
        for reason, of_reason in ((CONTRADICTION, contradictions), (CONFIDENT, confident))
        for found in of_reason
        if reason == CONTRADICTION or (found.row, found.column) not in listed
    ]


@dataclass(frozen=True)
class _Found:
    """A value, in one column of the labels of one row, that is probably wrong."""

    row: int
    column: int
    suggested: Any
    confidence: float


def _list_confident(kind: _Labels, judged: Ints, judgement: _Judgement) -> Iterator[_Found]:
    """What held-out outputs say is wrong, the most certain first.

    :param judged: the indices of the rows that were judged, [B].
    """
    index, column = np.nonzero(judgement.is_suspect)
    doubts = judgement.doubt[index, column]
    for at in np.argsort(-doubts, kind="stable").tolist():
        suggested = judgement.suggested[index[at], column[at]]
        confidence = kind.measure_confidence(float(doubts[at]))
        yield _Found(int(judged[index[at]]), int(column[at]), suggested, confidence)


def _find_contradictions(
    head: SavedHead,
    kind: _Labels,
    rows: ScoredRows,
    labels: npt.NDArray[Any],
    doubts: Floats,
) -> Iterator[_Found]:
    """Values of rows whose text stands elsewhere with another value.

    :param labels: the labels of all rows, [B, S].
    :param doubts: how little each is believed, [B, S]; NaN where no head judged it.
    """
    for members in _group_same_texts(rows, head.name):
        for column in np.flatnonzero((labels[members] != labels[members[:1]]).any(axis=0)).tolist():
            values = labels[members, column]
            agreed = kind.agree(head, values, doubts[members, column])
            wrong = np.arange(len(values))
            if agreed is not None:
                wrong = np.flatnonzero(kind.differ(head, values, agreed))
            for at in wrong.tolist():
                suggested = agreed if agreed is not None else values[values != values[at]][0]
                share = float((values == suggested).mean()) or 0.5
                yield _Found(int(members[at]), column, suggested, share)


def _group_same_texts(rows: ScoredRows, task: str) -> Iterator[Ints]:
    """The rows that have a label, of each text that stands in several of them."""
    labelled = np.flatnonzero(rows.present[task])
    labelled = labelled[np.argsort(rows.codes[labelled], kind="stable")]
    starts = np.flatnonzero(np.diff(rows.codes[labelled], prepend=-1))
    sizes = np.diff(starts, append=len(labelled))
    for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
        yield labelled[start : start + size]


def format_suspects(
    suspects: Mapping[str, Sequence[Suspect]], numbers: Ints, texts: Mapping[int, str] | None
) -> bytes:
    """All suspects as CSV, in their order.

    :param suspects: task → its suspects.
    :param numbers: the number in the source of each row of the corpus, [B].
    :param texts: row → its text, of all rows named; ``None`` where texts are not to be shown.
    """
    names = ["task", "row", "part", "given", "suggested", "confidence", "reason"]
    return format_csv(
        [*names, *([] if texts is None else ["text"])],
        (
            [
                task, int(numbers[found.row]), found.part, found.given, found.suggested,
                found.confidence, found.reason, *([] if texts is None else [texts[found.row]]),
            ]
            for task, of_task in suspects.items()
            for found in of_task
        ),
    )  # fmt: skip
