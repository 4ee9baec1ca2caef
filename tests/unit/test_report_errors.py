"""What a head answers wrongly, beside what one sees by hand; CSV as spreadsheets read it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator

import numpy as np
import pytest

from pipeline.model.decision import Decision
from pipeline.report.errors import format_errors, list_errors
from pipeline.report.nearest import find_training_neighbours
from tests.unit.findings import make_head, make_rows, to_logits

TAGS = ("corn", "oil", "tea")


def test_wrong_rows_come_worst_first_and_doubts_behind() -> None:
    head = make_head("binary", ("ham", "spam"))
    rows = make_rows([0, 1, 1, 0, 0, None, 1], {"train": [6], "test": [0, 1, 2, 3, 4, 5]})
    logits = to_logits([0.9, 0.3, 0.55, 0.2, 0.98, 0.99, 0.01])
    errors = list_errors(head, rows, logits)
    assert [error.row for error in errors] == [4, 0, 1, 2]
    assert [error.kind for error in errors] == [
        "ham → spam", "ham → spam", "spam → ham", "doubtful"
    ]  # fmt: skip
    assert [error.probability for error in errors] == pytest.approx([0.98, 0.9, 0.7, 0.55])
    assert errors[2].loss == pytest.approx(-math.log(0.3))
    assert (errors[2].actual, errors[2].predicted) == ("spam", "ham")
    assert [error.is_wrong for error in errors] == [True, True, True, False]
    assert errors[0].neighbour_row is None


def test_threshold_and_temperature_are_those_of_the_head() -> None:
    rows = make_rows([0, 0, 1], {"train": [], "test": [0, 1, 2]})
    logits = to_logits([0.6, 0.9, 0.7])
    head = make_head("binary", ("ham", "spam"), Decision(1.0, (0.8,)))
    assert [(e.row, e.kind) for e in list_errors(head, rows, logits)] == [
        (1, "ham → spam"), (2, "spam → ham")
    ]  # fmt: skip
    hot = make_head("binary", ("ham", "spam"), Decision(2.0, (0.5,)))
    (first, *_) = list_errors(hot, rows, logits)
    assert first.row == 1
    assert first.probability == pytest.approx(1 / (1 + math.exp(-math.log(9) / 2)))


def test_each_wrong_tag_is_a_line_and_a_doubt_is_one() -> None:
    head = make_head("multilabel", TAGS, Decision(1.0, (0.5, 0.5, 0.5)))
    rows = make_rows(
        [np.array(t) for t in ([1, 0, 0], [0, 0, 0], [0, 1, 0])], {"train": [], "test": [0, 1, 2]}
    )
    logits = to_logits([[0.2, 0.9, 0.52], [0.45, 0.42, 0.1], [0.1, 0.9, 0.1]])
    errors = list_errors(head, rows, logits)
    assert [(e.row, e.kind) for e in errors] == [
        (0, "extra: oil"), (0, "missing: corn"), (0, "extra: tea"), (1, "doubtful")
    ]  # fmt: skip
    assert (errors[0].actual, errors[0].predicted) == ("corn", "oil; tea")
    assert (errors[3].actual, errors[3].predicted) == ("–", "–")
    assert [e.probability for e in errors] == pytest.approx([0.9, 0.8, 0.52, 0.55])


def test_numbers_are_listed_by_how_far_off_they_are() -> None:
    head = make_head("regression")
    rows = make_rows([1.0, 2.0, 3.0, -1.0], {"train": [], "test": [0, 1, 2, 3]})
    errors = list_errors(head, rows, np.array([[1.5], [2.0], [1.0], [-1.25]]))
    assert [(e.row, e.kind, e.loss) for e in errors] == [
        (2, "too low", 4.0), (0, "too high", 0.25), (3, "too low", 0.0625)
    ]  # fmt: skip
    assert (errors[0].actual, errors[0].predicted, errors[0].probability) == ("3", "1", None)


def test_an_ordinal_head_is_listed_like_one_of_classes() -> None:
    head = make_head("ordinal", ("low", "mid", "high"))
    rows = make_rows([0, 2], {"train": [], "test": [0, 1]})
    # Above low: 0.9, above mid: 0.2, so that low has 0.1, mid 0.7, high 0.2.
    errors = list_errors(head, rows, to_logits([[0.9, 0.2], [0.9, 0.2]]))
    assert [e.kind for e in errors] == ["low → mid", "high → mid"]
    assert errors[0].loss == pytest.approx(-math.log(0.1))
    assert errors[1].probability == pytest.approx(0.7)


def test_without_rows_nothing_is_listed() -> None:
    rows = make_rows([0, None], {"train": [0], "test": [1]})
    assert list_errors(make_head("binary", ("a", "b")), rows, to_logits([0.5, 0.5])) == []


VECTORS = np.array([[1, 0], [0.6, 0.8], [0, 1], [0.1, 1]], np.float32)


def read(codes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One text at a time."""
    for code in codes.tolist():
        yield np.array([code]), VECTORS[[code]]


def test_neighbours_are_other_texts_of_the_training_part() -> None:
    rows = make_rows([0, 1, 1, 0], {"train": [0, 1], "test": [2, 3]})
    neighbours = find_training_neighbours(rows, read)
    assert neighbours.codes.tolist() == [2, 3]
    assert neighbours.rows.tolist() == [1, 1]
    assert neighbours.cosines == pytest.approx([0.8, 0.86 / math.hypot(0.1, 1)])
    assert neighbours.same_rows.tolist() == [-1, -1]
    assert neighbours.sample_cosines == pytest.approx([0.6, 0.6])
    assert neighbours.training_texts == 2


def test_the_nearest_training_row_stands_beside_an_error_with_its_label() -> None:
    """Text 3 stands in training too, in row 5, and is the nearest to text 2 as well."""
    rows = make_rows(
        [0, None, 1, 0, 0, 1], {"train": [0, 1, 5], "test": [2, 3, 4]}, codes=[0, 1, 2, 3, 2, 3]
    )
    neighbours = find_training_neighbours(rows, read)
    head = make_head("binary", ("ham", "spam"))
    logits = to_logits([0.5, 0.5, 0.1, 0.9])
    errors = {e.row: e for e in list_errors(head, rows, logits, neighbours)}
    assert set(errors) == {2, 3}
    assert (errors[2].neighbour_row, errors[2].neighbour_label) == (5, "spam")
    assert errors[2].cosine == pytest.approx(1 / math.hypot(0.1, 1))
    same = errors[3]
    assert (same.neighbour_row, same.neighbour_label, same.cosine) == (5, "spam", 1.0)


def test_a_neighbour_without_a_label_has_none() -> None:
    rows = make_rows([0, None, 1], {"train": [1], "test": [0, 2]})
    neighbours = find_training_neighbours(rows, read)
    assert len(neighbours.sample_cosines) == 0  # the one training text has no other beside it
    error, *_ = list_errors(
        make_head("binary", ("ham", "spam")), rows, to_logits([0.9, 0.5, 0.1]), neighbours
    )
    assert (error.neighbour_row, error.neighbour_label) == (1, None)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "  =1", "＝1"])
def test_no_text_is_a_formula_in_a_spreadsheet(text: str) -> None:
    head = make_head("binary", ("=ham", "spam"))
    rows = make_rows([0], {"train": [], "test": [0]})
    errors = {"=task": list_errors(head, rows, to_logits([0.9]))}
    ((_, *cells),) = list(read_csv(format_errors(errors, np.array([7]), {0: text})))[1:]
    assert cells[:4] == ["7", "'=ham", "spam", "'=ham → spam"]
    assert cells[-2:] == [f"'{text}", ""]


def test_texts_keep_their_lines_and_quotes_or_stay_away() -> None:
    head = make_head("binary", ("ham", "spam"))
    rows = make_rows([0], {"train": [], "test": [0]})
    errors = {"task": list_errors(head, rows, to_logits([0.9]))}
    text = 'one "two", three\nfour\r\nfive\rsix £ 🎉'
    header, cells = read_csv(format_errors(errors, np.array([0]), {0: text}))
    assert dict(zip(header, cells, strict=True))["text"] == text
    header, cells = read_csv(format_errors(errors, np.array([0]), None))
    assert header == [
        "task", "row", "actual", "predicted", "kind", "probability", "loss", "neighbour_row",
        "neighbour_label", "cosine",
    ]  # fmt: skip
    assert cells == ["task", "0", "ham", "spam", "ham → spam", "0.9", "2.3026", "", "", ""]


def read_csv(content: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content.decode("utf-8"), newline="")))
