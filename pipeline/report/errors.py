"""The rows of the judged part that a head answers wrongly, or but just right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.model.decision import Floats, Ints, Logits
from pipeline.model.saved import SavedHead
from pipeline.report.inputs import ScoredRows
from pipeline.report.nearest import TrainingNeighbours
from pipeline.report.spreadsheet import Cell, format_csv

# A right answer this near to another one, in probability, is a doubt.
DOUBT_MARGIN = 0.1
DOUBTFUL = "doubtful"
_NO_TAGS = "–"
_LEAST_PROBABILITY = 1e-12  # whose logarithm is taken


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """One wrong or doubtful answer; a row with several wrong tags has one for each.

    :param row: the index of the row in the corpus.
    :param text_code: the code of its text.
    :param actual: the label, or all tags.
    :param predicted: the answer, or all tags answered.
    :param probability: the calibrated probability of the answer, or of the answer to the one tag;
        ``None`` of a number.
    :param kind: what is wrong: ``ham → spam``, ``missing: tag``, ``extra: tag``, ``too high``,
        ``too low``; or ``doubtful``.
    :param loss: the negative logarithm of the probability of the label, or of the one tag as it is
        labelled; of a number the squared error.
    :param neighbour_row: the training row with the nearest text; ``None`` where none is known.
    :param neighbour_label: the label of that row; ``None`` also where it has none.
    :param cosine: the cosine of both texts; 1 where they are the same.
    """

    row: int
    text_code: int
    actual: str
    predicted: str
    probability: float | None
    kind: str
    loss: float
    neighbour_row: int | None = None
    neighbour_label: str | None = None
    cosine: float | None = None

    @property
    def is_wrong(self) -> bool:
        """Whether the answer is wrong, not but doubtful."""
        return self.kind != DOUBTFUL


@dataclass(frozen=True)
class _Answers:
    """A head's answers to rows of the judged part.

    :param rows: the indices of the rows, [B].
    :param actual: their labels.
    :param logits: the head's outputs, [B, O].
    """

    head: SavedHead
    rows: npt.NDArray[np.int64]
    actual: npt.NDArray[Any]
    logits: Logits

    @property
    def predicted(self) -> npt.NDArray[Any]:
        return self.head.type.predict(self.logits, self.head.decision)

    @property
    def probabilities(self) -> Floats:
        return self.head.type.compute_probabilities(self.logits, self.head.decision)

    @property
    def margins(self) -> Floats:
        return self.head.type.measure_margins(self.logits, self.head.decision)


# What is found of one answer: the index among the answers, label, answer, probability, kind, loss.
_Found = tuple[int, str, str, float | None, str, float]


def list_errors(
    head: SavedHead,
    rows: ScoredRows,
    logits: Logits,
    neighbours: TrainingNeighbours | None = None,
) -> list[ErrorRow]:
    """The wrong answers of one head on the judged part, worst first, then its doubts, likewise.

    Answers that are numbers are hardly ever right to the last digit: all rows are listed.

    :param head: the head.
    :param rows: the rows of the corpus.
    :param logits: the head's outputs for the N distinct texts, [N, O].
    :param neighbours: the nearest training texts, if they were looked for.
    """
    chosen = rows.take_rows(rows.judged, head.name)
    if not len(chosen):
        return []
    labels = rows.labels[head.name]
    answers = _Answers(head, chosen, labels[chosen], logits[rows.codes[chosen]])
    found = sorted(_LISTERS[head.type.label_kind](answers), key=_rank)
    at = np.array([index for index, *_ in found], np.int64)
    near = _name_neighbours(head, rows, chosen[at], neighbours)
    return [
        ErrorRow(
            int(chosen[index]), int(rows.codes[chosen[index]]), actual, predicted, probability,
            kind, loss, *neighbour,
        )
        for (index, actual, predicted, probability, kind, loss), neighbour in zip(
            found, near, strict=True
        )
    ]  # fmt: skip


def _rank(found: _Found) -> tuple[bool, float, int]:
    index, *_, kind, loss = found
    return kind == DOUBTFUL, -loss, index


def _list_classes(answers: _Answers) -> Iterator[_Found]:
    """Rows whose class is not the one answered, or of whose answer the head is not sure."""
    predicted, probabilities, names = answers.predicted, answers.probabilities, answers.head.classes
    is_wrong = predicted != answers.actual
    every = np.arange(len(predicted))
    of_label = probabilities[every, answers.actual]
    losses = -np.log(np.maximum(of_label, _LEAST_PROBABILITY))
    for index in np.flatnonzero(is_wrong | (answers.margins < DOUBT_MARGIN)).tolist():
        actual, answer = names[answers.actual[index]], names[predicted[index]]
        kind = f"{actual} → {answer}" if is_wrong[index] else DOUBTFUL
        probability = float(probabilities[index, predicted[index]])
        yield index, actual, answer, probability, kind, float(losses[index])


def _list_tags(answers: _Answers) -> Iterator[_Found]:
    """Tags that are missing from an answer, or too many in it, or that the head is not sure of."""
    head = answers.head
    is_given, is_answered = answers.actual > 0, answers.predicted > 0
    probabilities = answers.probabilities
    of_answer = np.where(is_answered, probabilities, 1 - probabilities)
    of_label = np.where(is_given, probabilities, 1 - probabilities)
    losses = -np.log(np.maximum(of_label, _LEAST_PROBABILITY))
    is_wrong = is_given != is_answered
    # A row whose tags are all right is a doubt once, by the tag that the head is least sure of.
    right = np.flatnonzero(~is_wrong.any(axis=1))
    least = answers.margins[right].argmin(axis=1)
    is_doubt = np.zeros_like(is_wrong)
    is_doubt[right, least] = answers.margins[right, least] < DOUBT_MARGIN
    for index, tag in np.argwhere(is_wrong | is_doubt).tolist():
        kind = f"{'missing' if is_given[index, tag] else 'extra'}: {head.classes[tag]}"
        yield (
            index,
            name_label(head, answers.actual[index]),
            name_label(head, answers.predicted[index]),
            float(of_answer[index, tag]),
            kind if is_wrong[index, tag] else DOUBTFUL,
            float(losses[index, tag]),
        )


def _list_numbers(answers: _Answers) -> Iterator[_Found]:
    """All rows, by how far the answer is off."""
    errors = answers.predicted - answers.actual
    for index in np.flatnonzero(errors).tolist():
        error = float(errors[index])
        yield (
            index,
            name_label(answers.head, answers.actual[index]),
            name_label(answers.head, answers.predicted[index]),
            None,
            "too high" if error > 0 else "too low",
            error * error,
        )


# The kind of label that a head learns → what lists its wrong answers.
_LISTERS: Mapping[str, Callable[[_Answers], Iterable[_Found]]] = {
    "class": _list_classes,
    "tags": _list_tags,
    "number": _list_numbers,
}


def _name_neighbours(
    head: SavedHead,
    rows: ScoredRows,
    chosen: npt.NDArray[np.int64],
    neighbours: TrainingNeighbours | None,
) -> Iterator[tuple[int | None, str | None, float | None]]:
    """The training row nearest to each of some rows, its label, and the cosine."""
    if neighbours is None:
        yield from [(None, None, None)] * len(chosen)
        return
    near, cosines = neighbours.take(rows.codes[chosen])
    for row, cosine in zip(near.tolist(), cosines.tolist(), strict=True):
        if row < 0:
            yield None, None, None
        else:
            is_labelled = rows.present[head.name][row]
            label = name_label(head, rows.labels[head.name][row]) if is_labelled else None
            yield row, label, cosine


def name_label(head: SavedHead, value: Any) -> str:
    """A label or an answer in words.

    :param head: the head of the task.
    :param value: the index of a class; 0 or 1 for each tag, [C]; or a number.
    """
    return _NAMERS[head.type.label_kind](head, value)


def _name_class(head: SavedHead, value: Any) -> str:
    return head.classes[int(value)]


def _name_tags(head: SavedHead, value: Any) -> str:
    return "; ".join(head.classes[tag] for tag in np.flatnonzero(value > 0)) or _NO_TAGS


def _name_number(head: SavedHead, value: Any) -> str:
    return f"{float(value):.6g}"


_NAMERS: Mapping[str, Callable[[SavedHead, Any], str]] = {
    "class": _name_class,
    "tags": _name_tags,
    "number": _name_number,
}


def format_errors(
    errors: Mapping[str, Sequence[ErrorRow]], numbers: Ints, texts: Mapping[int, str] | None
) -> bytes:
    """All errors and doubts as CSV, worst first in each task.

    :param errors: task → its errors.
    :param numbers: the number in the source of each row of the corpus, [B].
    :param texts: row → its text, of all rows named; ``None`` where texts are not to be shown.
    """
    names = [
        "task", "row", "actual", "predicted", "kind", "probability", "loss",
        "neighbour_row", "neighbour_label", "cosine",
    ]  # fmt: skip
    shown = [] if texts is None else ["text", "neighbour_text"]
    return format_csv(
        [*names, *shown],
        (
            [task, *_list_cells(error, numbers), *_list_texts(error, texts)]
            for task, of_task in errors.items()
            for error in of_task
        ),
    )


def _list_cells(error: ErrorRow, numbers: Ints) -> list[Cell]:
    near = error.neighbour_row
    return [
        int(numbers[error.row]), error.actual, error.predicted, error.kind, error.probability,
        error.loss, int(numbers[near]) if near is not None else None, error.neighbour_label,
        error.cosine,
    ]  # fmt: skip


def _list_texts(error: ErrorRow, texts: Mapping[int, str] | None) -> list[Cell]:
    if texts is None:
        return []
    near = error.neighbour_row
    return [texts[error.row], texts[near] if near is not None else None]
