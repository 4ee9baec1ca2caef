"""What a column seems to hold, for columns as people have them."""

from __future__ import annotations

import datetime
import random

import numpy as np
import pytest

from pipeline.init.guess import Guess, find_separator, guess_column, order_pair, read_task

SENTENCES = [f"the {n}th message, it is about the server; or so | they say" for n in range(40)]


def repeat(*values: object, times: int = 20) -> list[object]:
    return list(values) * times


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (SENTENCES, "text"),
        (repeat("a long text that comes again and again, as newsletters and notes do"), "constant"),
        (SENTENCES[:8] * 5, "text"),
        (repeat("yes", "no"), "binary"),
        (repeat(True, False), "binary"),
        (repeat("0", "1"), "binary"),
        (repeat(1, None, 2.0), "binary"),
        (repeat("red", "green", "blue"), "multiclass"),
        (repeat("DESC:manner", "ENTY:animal", "HUM:ind", "LOC:city"), "multiclass"),
        (repeat("Paris, France", "Berlin, Germany", "Rome, Italy"), "multiclass"),
        (repeat("R&D", "Sales, inside", "Sales, outside"), "multiclass"),
        (repeat("a", "b", "a;b", "c;a"), "tags"),
        (repeat("red|blue", "blue", "red"), "tags"),
        (repeat("sport, news", "news", "sport", "sport, arts", "arts"), "tags"),
        (repeat(["a", "b"], [], ["a"]), "tags"),
        (repeat("['a', 'b']", "[]", "['b']"), "tags"),
        (repeat(("a",), np.array(["b", "c"], object)), "tags"),
        (repeat(np.zeros(3), np.ones(3)), "other"),
        ([str(n / 7) for n in range(60)], "number"),
        ([random.Random(n).randrange(1000) for n in range(60)], "number"),
        (repeat(*range(1, 6)), "multiclass"),
        (repeat(*range(0, 100, 5)), "number"),
        ([str(n) for n in range(1, 60)], "id"),
        ([f"user{n}" for n in range(60)], "id"),
        (repeat("train", "dev", "test"), "split"),
        (repeat("Train", "Validation "), "split"),
        (repeat("train", "plane", "ship"), "multiclass"),
        ([f"2024-01-{n:02} 10:00" for n in range(1, 31)] * 3, "time"),
        ([f"{n}.2.2024" for n in range(1, 29)] * 3, "time"),
        (repeat(datetime.date(2024, 1, 1), datetime.datetime(2024, 1, 2)), "time"),
        (repeat("1,5", "2,25", "10,0"), "other"),
        (repeat("x"), "constant"),
        (repeat("", None, float("nan"), "  "), "empty"),
        (repeat("n/a", "-"), "empty"),
        (repeat({"a": 1}, b"x"), "other"),
    ],
)
def test_kinds(values: list[object], kind: str) -> None:
    assert guess_column(values).kind == kind


@pytest.mark.parametrize(
    ("cells", "separator"),
    [
        (["a;b", "a", "b", "c;a", "c"], ";"),
        (["a,b", "a", "b", "c,a", "c"], ","),
        (["a|b", "a", "b", "c|a", "c"], "|"),
        (["a, b; c", "c", "a, b"], ";"),
        (["Doe, Jane", "Roe, Rick", "Poe, Edgar"], None),
        (["no separator", "at all"], None),
        (SENTENCES, None),
    ],
)
def test_separators_of_tags(cells: list[str], separator: str | None) -> None:
    assert find_separator(dict.fromkeys(cells, 1)) == separator


@pytest.mark.parametrize(
    ("counts", "ordered"),
    [
        ({"spam": 700, "ham": 30}, ("ham", "spam")),
        ({"no": 1, "yes": 9}, ("no", "yes")),
        ({"true": 9, "false": 1}, ("false", "true")),
        ({"1": 9, "0": 1}, ("0", "1")),
        ({"10": 9, "9": 1}, ("9", "10")),
        ({"urgent": 90, "Not urgent": 10}, ("Not urgent", "urgent")),
        ({"relevant": 90, "irrelevant": 10}, ("irrelevant", "relevant")),
        ({"high": 90, "low": 10}, ("low", "high")),
        ({"cat": 90, "dog": 10}, ("cat", "dog")),
        ({"cat": 10, "dog": 90}, ("dog", "cat")),
    ],
)
def test_of_two_classes_the_second_is_what_to_find(
    counts: dict[str, int], ordered: tuple[str, str]
) -> None:
    assert order_pair(counts) == ordered


def test_words_for_missing_are_found_as_they_are_written() -> None:
    assert guess_column(repeat("1.5", "2.25", "17.5", "N/A", "none")) == Guess(
        "number", missing=("N/A", "none"), optional=True
    )
    guess = guess_column(repeat("red", "blue", "none", "n/a", " NA "))
    assert (guess.kind, guess.missing, guess.optional) == ("multiclass", ("NA", "n/a"), True)
    assert guess_column(repeat("red", "blue", "green")).optional is False
    assert guess_column(repeat("red", "blue", "")).optional is True


def test_empty_cells_of_tags_are_rows_without_tags() -> None:
    guess = guess_column(repeat("a;b", "a", "b", ""))
    assert (guess.kind, guess.empty_tags, guess.optional) == ("tags", True, False)
    guess = guess_column(repeat("a;b", "a", "b", "", None))
    assert (guess.kind, guess.empty_tags, guess.optional) == ("tags", True, True)
    guess = guess_column(repeat("a;b", "a", "b", "n/a"))
    assert (guess.empty_tags, guess.optional, guess.missing) == (False, True, ("n/a",))
    assert guess_column(repeat(["a"], [], ["b"])).optional is False
    assert guess_column(repeat(["a"], None, ["b"])).optional is True


def test_a_kind_that_is_named_holds() -> None:
    grades = repeat("1", "2", "3")
    assert read_task(grades, "ordinal").classes == ("1", "2", "3")
    assert read_task(repeat("low", "high"), "ordinal").classes == ()
    assert read_task(grades, "number").kind == "number"
    assert read_task(repeat("1", "2", "undefined"), "number").missing == ("undefined",)
    assert read_task(grades, "binary").classes == ()
    assert read_task(repeat("a,b", "c"), "tags").separator == ","
    assert read_task(repeat("a", "c"), "tags").separator == ";"


def test_grades_are_said_to_be_possibly_ordinal() -> None:
    assert guess_column(repeat(*range(-3, 4))).remark.startswith("7 whole numbers from -3 to 3")
    assert guess_column(repeat(*range(100), times=2)).remark == ""
