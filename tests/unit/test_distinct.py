"""Labelers that look at texts: each distinct text once, few bytes a row, the same labels."""

from __future__ import annotations

import math
import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.config import FunctionLabel, LabelSettings, RuntimeSettings, VaderLabel
from pipeline.corpus.cells import Cells, ChosenTexts, Spool, Table
from pipeline.corpus.keys import KeyIndex, pack_keys
from pipeline.prepare.labelers import score_memory, sentiment
from pipeline.prepare.labelers.base import LabelingContext, make_labeler
from pipeline.prepare.labelers.column import label_by_values
from pipeline.prepare.labelers.distinct import DistinctTexts, RowValues, TextValues, split_batches
from pipeline.prepare.labelers.score_memory import ScoreMemory
from pipeline.project import Project

TEXTS = ["b", "a", "", "b", "c", "", "ä", "a", "d"]


def test_distinct_texts_come_in_the_order_of_first_appearance() -> None:
    distinct = DistinctTexts(TEXTS)
    expected = list(dict.fromkeys(TEXTS))
    assert [expected[number] for number in distinct.numbers.tolist()] == TEXTS
    assert distinct.keys.tolist() == pack_keys(expected, len(expected)).tolist()
    filled = distinct.find_filled()
    assert filled.tolist() == [text != "" for text in expected]
    chosen = distinct.choose(filled)
    assert len(chosen) == 5
    for _ in range(2):
        assert list(chosen) == ["b", "a", "c", "ä", "d"]
    assert list(split_batches(chosen, 2)) == [["b", "a"], ["c", "ä"], ["d"]]
    assert distinct.find_rows(range(len(distinct))) == list(map(TEXTS.index, expected))
    assert len(DistinctTexts([])) == 0


def read_keys(raw: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(raw), np.uint8).reshape(-1, 16)


def test_keys_are_found_among_others() -> None:
    generator = random.Random(0)
    raw = [generator.randbytes(16) for _ in range(3000)]
    # Keys that share a half with another are still told from it.
    raw += [raw[0][:8] + b"8 others", b"8 others" + raw[1][8:]]
    held, missing = raw[:2000], raw[2000:]
    index = KeyIndex(read_keys(held))
    asked = [*missing, *held[::-1], *held[:50]]
    generator.shuffle(asked)
    numbers = {key: number for number, key in enumerate(held)}
    found = index.find(read_keys(asked))
    assert found.tolist() == [numbers.get(key, -1) for key in asked]
    nothing = KeyIndex(np.empty((0, 16), np.uint8))
    assert nothing.find(read_keys(held[:3])).tolist() == [-1, -1, -1]


VALUES: dict[str, list[Any]] = {
    "class": ["x", 1, True, 1.0, None, math.nan, "x", float("nan"), "", 0.0, -0.0, ["x"], b"x"],
    "tags": [["x", "y"], ["y"], [], None, "x, y", ["x", "y"], ["x", 1], {"x": 1}, math.nan],
    "number": [1, 1.0, 2.5, None, "3", "three", math.nan, math.inf, True, 2.5, 10**400, ""],
}


@pytest.mark.parametrize("kind", VALUES)
def test_labels_are_those_of_a_list_of_values(kind: str) -> None:
    """As if each row had its own value: labels, faults and notes alike."""
    generator = random.Random(1)
    texts = [str(generator.randrange(60)) for _ in range(300)]
    answers = {text: generator.choice(VALUES[kind]) for text in dict.fromkeys(texts)}
    distinct = DistinctTexts(texts)
    values = TextValues(keeps_numbers=kind == "number")
    of_text = np.zeros(len(distinct), np.int32)
    for number, value in enumerate(answers.values()):
        if value is not None:
            of_text[number] = values.number(value, number)
    rows = values.spread(of_text, distinct.numbers)
    plain = [answers[text] for text in texts]
    assert list(map(repr, rows)) == list(map(repr, plain))
    assert [repr(rows[row]) for row in range(len(rows))] == list(map(repr, plain))
    assert repr(rows[3:9:2]) == repr(plain[3:9:2])
    settings = FunctionLabel(labeler="function", function="m:f", kind=kind)
    made, expected = (label_by_values(settings, of, "f") for of in (rows, plain))
    np.testing.assert_array_equal(made.values, expected.values)
    assert (made.classes, made.unusable, made.notes) == (
        expected.classes, expected.unusable, expected.notes,
    )  # fmt: skip
    assert expected.unusable


def test_answers_that_no_row_has_are_no_classes() -> None:
    """As those of a model that could have given them."""
    numbers = np.array([1, 3, 1], np.int32)
    settings = FunctionLabel(labeler="function", function="m:f")
    values = RowValues([None, "yes", "none", "no", "No"], numbers)
    found = label_by_values(settings, values, "the model")
    expected = label_by_values(settings, ["yes", "no", "yes"], "the model")
    assert found.classes == expected.classes == ("no", "yes")
    assert found.values.tolist() == expected.values.tolist()
    assert found.notes == expected.notes == ()


def test_equal_values_are_one_object() -> None:
    values = TextValues()
    numbers = [values.number(["a", "b"], n) for n in range(5)]
    assert len(set(numbers)) == 1
    assert len(values.values) == 2


def test_scores_are_written_and_looked_up_part_by_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts of seven texts, and as a file of one part, as earlier versions wrote it."""
    monkeypatch.setattr(score_memory, "_PART_ROWS", 7)
    keys = pack_keys(map(str, range(100)), 100)
    scores = np.random.default_rng(0).standard_normal((100, 3)).astype(np.float32)

    def open_memory() -> ScoreMemory:
        return ScoreMemory(tmp_path, "model", {"a": 1}, outputs=3, dtype=np.float32)

    def look_up(memory: ScoreMemory, wanted: np.ndarray) -> dict[int, list[float]]:
        return {
            number: of_text
            for numbers, found in memory.look_up(wanted)
            for number, of_text in zip(numbers.tolist(), found.tolist(), strict=True)
        }

    memory = open_memory()
    assert memory.rows == 0
    assert not list(memory.look_up(keys))
    for start in range(0, 80, 20):
        part = slice(start, start + 20)
        memory.add(lambda part=part: [(keys[part], scores[part])], 20, keys)  # type: ignore[misc]
    assert (memory.rows, open_memory().rows) == (80, 80)
    order = np.random.default_rng(1).permutation(100)
    expected = {n: scores[row].tolist() for n, row in enumerate(order.tolist()) if row < 80}
    assert look_up(memory, keys[order]) == expected
    assert look_up(open_memory(), keys[order]) == expected
    (file,) = tmp_path.iterdir()
    pq.write_table(pq.read_table(file), file, compression="zstd")
    assert look_up(open_memory(), keys[order]) == expected
    few = keys[70:85]
    open_memory().add(lambda: [(keys[80:85], scores[80:85])], 5, few)
    assert look_up(open_memory(), keys) == {n: scores[n].tolist() for n in range(70, 85)}


def test_a_corpus_that_has_not_changed_is_looked_up_in_no_memory(tmp_path: Path) -> None:
    """What is remembered in its order is compared with it, where a search would sort its keys."""
    number = 400_000
    keys = np.random.default_rng(0).integers(0, 256, (number, 16)).astype(np.uint8)
    scores = np.arange(number, dtype=np.float64)[:, None]
    memory = ScoreMemory(tmp_path, "vader", {}, outputs=1, dtype=np.float64)
    memory.add(lambda: [(keys[n : n + 50_000], scores[n : n + 50_000])
                        for n in range(0, number, 50_000)], number, keys)  # fmt: skip
    for wanted, most in ((keys, 10), (np.concatenate([keys, keys[:1] + 1]), 10)):
        tracemalloc.start()
        for numbers, found in memory.look_up(wanted):
            np.testing.assert_array_equal(found[:, 0], numbers)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak / number < most


RULES = """
def name(texts):
    return ["long" if len(text) > 90 else "short" for text in texts]

def count(texts):
    return [len(text) / 7 for text in texts]

def tag(texts):
    return [[tag for tag in "abc" if tag in text] for text in texts]
"""
LABELS: dict[str, LabelSettings] = {
    "vader": VaderLabel(labeler="vader"),
    **{
        kind: FunctionLabel(labeler="function", function=f"rules:{name}", kind=kind)  # type: ignore[arg-type]
        for kind, name in (("class", "name"), ("tags", "tag"), ("number", "count"))
    },
}


@pytest.mark.parametrize("labeler", LABELS)
def test_memory_hardly_grows_with_the_texts(
    tmp_path: Path, labeler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By less than the texts have, which are on the disk: some 100 characters each."""
    monkeypatch.setattr(sentiment, "_KEPT_WORDS", 1000)  # of which each text has a new one
    (tmp_path / "rules.py").write_text(RULES)
    (tmp_path / "lexicon.txt").write_text("good\t1.9\nbad\t-2.5\n")
    context = LabelingContext(Project(tmp_path), RuntimeSettings(threads=1))
    peaks = []
    for rows in (20_000, 60_000):
        with Spool(tmp_path) as spool:
            cells = Cells(spool)
            for row in range(rows):
                cells.append(f"{row} " + "a good text or a bad one " * 4)
            texts = ChosenTexts(cells, frozenset({5}))
            made = make_labeler("t", LABELS[labeler], context)
            tracemalloc.start()
            made.label(Table({}), texts, {"lexicon": tmp_path / "lexicon.txt"})
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 40_000 < 75, peaks
