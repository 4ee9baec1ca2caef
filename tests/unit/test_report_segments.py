"""Weak segments: SciPy's tests, and what chance puts on the list, are the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import false_discovery_control, hypergeom, mannwhitneyu
from sklearn.metrics import accuracy_score, mean_absolute_error

from pipeline.corpus.identity import CorpusIdentity
from pipeline.model.decision import Decision
from pipeline.model.saved import Heads, SavedHead
from pipeline.model.tasks import TASK_TYPES
from pipeline.report.inputs import ScoredRows
from pipeline.report.map import MapPoints
from pipeline.report.segments import (
    Grouping,
    correct_for_many,
    find_weak_segments,
    group_classes,
    group_lengths,
    group_points,
    group_values,
    judge_counts,
    judge_ranks,
    score_segments,
)


def make_head(kind: str, C: int, name: str = "task") -> SavedHead:
    names = tuple(f"class {index}" for index in range(C))
    return SavedHead(name, TASK_TYPES[kind], names, (0,), Decision(), ())


def make_heads(*heads: SavedHead) -> Heads:
    empty: dict[str, Any] = {}
    return Heads(heads, (0,), 1, empty, "", empty, CorpusIdentity(0, "", "", {}), empty, empty)


def make_rows(labels: np.ndarray, codes: np.ndarray | None = None) -> ScoredRows:
    """Rows that are all of the test part, each with a text of its own unless codes are given."""
    B = len(labels)
    return ScoredRows(
        keys=None,
        codes=np.arange(B) if codes is None else codes,
        parts={"train": np.empty(0, np.int64), "test": np.arange(B)},
        labels={"task": labels},
        present={"task": np.ones(B, bool)},
    )


def answer(labels: np.ndarray, is_right: np.ndarray, C: int) -> np.ndarray:
    """Logits of a multiclass head that is right where it is said to be."""
    return np.eye(C)[np.where(is_right, labels, (labels + 1) % C)] * 9


@pytest.mark.parametrize(
    ("B", "wrong", "n", "found"),
    [(836, 9, 109, 8), (50, 20, 25, 3), (40, 40, 20, 20), (500, 0, 50, 0)],
)
def test_counts_are_judged_as_by_scipy(B: int, wrong: int, n: int, found: int) -> None:
    expected = hypergeom(B, wrong, n).sf(found - 1)
    assert judge_counts(B, wrong, n, found) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("decimals", [0, 8])
def test_distances_are_judged_as_by_scipy(decimals: int) -> None:
    generator = np.random.default_rng(0)
    errors = np.round(np.abs(generator.normal(size=200)), decimals)
    inside = generator.random(200) < 0.3
    errors[inside] += np.round(0.2, decimals)
    expected = mannwhitneyu(
        errors[inside], errors[~inside], alternative="greater", method="asymptotic"
    )
    assert judge_ranks(errors, inside) == pytest.approx(expected.pvalue, rel=1e-6)
    assert judge_ranks(np.ones(200), inside) == 1


def test_holms_correction_by_hand() -> None:
    p_values = np.array([0.04, 0.001, 0.03, 0.9])
    # 4 × 0.001; 3 × 0.03; 2 × 0.04 is below the one before; 1 × 0.9.
    np.testing.assert_allclose(correct_for_many(p_values), [0.09, 0.004, 0.09, 0.9])
    assert correct_for_many(np.empty(0)).size == 0
    # It is stricter than the control of false discoveries, and than no correction.
    assert (correct_for_many(p_values) >= false_discovery_control(p_values)).all()


def test_a_weak_segment_is_found_with_its_score() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 1000)
    groups = generator.integers(0, 4, 1000)
    is_right = generator.random(1000) < np.where(groups == 2, 0.6, 0.95)
    logits, head = answer(labels, is_right, 3), make_head("multiclass", 3)
    grouping = Grouping("column: source", ("mail", "chat", "phone", "web"), groups)
    (found,) = find_weak_segments(
        make_heads(head), make_rows(labels), {"task": [logits]}, [grouping]
    )
    predicted, inside = logits.argmax(axis=1), groups == 2
    assert (found.task, found.kind, found.name) == ("task", "column: source", "phone")
    assert (found.n_rows, found.metric) == (inside.sum(), "accuracy")
    assert found.score == pytest.approx(accuracy_score(labels[inside], predicted[inside]))
    assert found.overall == pytest.approx(accuracy_score(labels, predicted))
    assert found.interval[0] < found.score < found.interval[1] < found.overall
    assert found.p_value < 1e-6


def test_a_weak_class_and_a_weak_tag_are_found_without_being_named() -> None:
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 2, 600)
    logits = answer(labels, generator.random(600) < np.where(labels == 1, 0.7, 0.97), 2)
    (found,) = find_weak_segments(
        make_heads(make_head("multiclass", 2)), make_rows(labels), {"task": [logits]}, []
    )
    assert (found.kind, found.name) == ("class", "class 1")
    tags = (generator.random((600, 3)) < 0.4).astype(np.int8)
    answers = np.where(tags > 0, 9.0, -9.0)
    answers[(tags[:, 2] > 0) & (generator.random(600) < 0.5), 2] = -9
    (found,) = find_weak_segments(
        make_heads(make_head("multilabel", 3)), make_rows(tags), {"task": [answers]}, []
    )
    assert (found.kind, found.name, found.n_rows) == ("class", "class 2", tags[:, 2].sum())


def test_numbers_are_judged_by_their_distance() -> None:
    generator = np.random.default_rng(2)
    labels = generator.normal(size=500)
    groups = np.arange(500) % 2
    logits = (labels + generator.normal(size=500) * np.where(groups == 1, 2, 1))[:, None]
    grouping = Grouping("length", ("short", "long"), groups)
    (found,) = find_weak_segments(
        make_heads(make_head("regression", 0)), make_rows(labels), {"task": [logits]}, [grouping]
    )
    assert (found.name, found.metric) == ("long", "mean_absolute_error")
    expected = mean_absolute_error(labels[groups == 1], logits[groups == 1, 0])
    assert found.score == pytest.approx(expected)
    assert found.overall < found.interval[0] < found.score < found.interval[1]


@pytest.mark.parametrize("kind", ["multiclass", "regression"])
def test_chance_does_not_fill_the_list(kind: str) -> None:
    """Labels at random: of 200 corpora, one in twenty may have a segment on its list, not more."""
    generator = np.random.default_rng(3)
    lists = 0
    for _ in range(200):
        B, C = 300, 3
        labels = generator.integers(0, C, B) if kind == "multiclass" else generator.normal(size=B)
        logits = generator.normal(size=(B, C if kind == "multiclass" else 1))
        groupings = [
            Grouping(f"column: {n}", tuple("abcdef"), generator.integers(0, 6, B)) for n in range(8)
        ]
        head = make_head(kind, C if kind == "multiclass" else 0)
        lists += bool(
            find_weak_segments(make_heads(head), make_rows(labels), {"task": [logits]}, groupings)
        )
    # 20 lists or more have a probability of 1e-3 where each comes up once in twenty times.
    assert lists < 20


def test_a_text_that_stands_many_times_is_one_find() -> None:
    labels = np.zeros(240, np.int64)
    codes = np.concatenate([np.arange(200), np.full(40, 200)])
    groups = np.concatenate([np.arange(200) % 2, np.zeros(40, np.int64)])
    logits = answer(np.zeros(201, np.int64), np.arange(201) != 200, 2)
    grouping = Grouping("column: x", ("a", "b"), groups)
    head, rows = make_head("multiclass", 2), make_rows(labels, codes)
    # 40 of 140 rows are wrong, but they are one text of 101.
    assert find_weak_segments(make_heads(head), rows, {"task": [logits]}, [grouping]) == []
    scored = {one.name: one for one in score_segments(head, rows, logits, [grouping])}
    assert scored["a"].n_rows == 140
    assert scored["a"].score == pytest.approx(100 / 140)


def test_few_rows_are_not_judged() -> None:
    labels = np.zeros(119, np.int64)
    groups = (np.arange(119) < 19).astype(np.int64)
    logits = answer(labels, groups == 0, 2)
    head = make_head("multiclass", 2)
    assert (
        score_segments(head, make_rows(labels), logits, [Grouping("x", ("a", "b"), groups)]) == []
    )
    none = make_rows(np.empty(0, np.int64))
    assert score_segments(head, none, np.empty((0, 2)), []) == []


def test_lengths_are_grouped_by_fifths() -> None:
    grouping = group_lengths(np.arange(1, 101), np.arange(100))
    assert grouping.names == (
        "1 to 20 characters", "21 to 40 characters", "41 to 60 characters", "61 to 80 characters",
        "81 to 100 characters",
    )  # fmt: skip
    assert np.bincount(grouping.codes).tolist() == [20] * 5
    alike = group_lengths(np.full(30, 7), np.arange(30), "tokens")
    assert alike.names == ("7 tokens",)
    assert set(alike.codes) == {0}


def test_columns_are_grouped_by_value_or_by_size() -> None:
    values = ["mail", " chat ", None, "", "mail", "mail"]
    grouping = group_values("source", values, np.arange(6))
    assert grouping.kind == "column: source"
    assert [grouping.names[code] for code in grouping.codes] == [
        "mail", "chat", "(empty)", "(empty)", "mail", "mail"
    ]  # fmt: skip
    years = group_values("year", [str(1990 + n) for n in range(30)] + [""], np.arange(31))
    assert years.names[0] == "1,990 to 1,995"
    assert np.bincount(years.codes[:30]).tolist() == [6] * 5
    assert years.codes[30] == -1
    few = group_values("stars", [str(n % 5) for n in range(50)], np.arange(50))
    assert sorted(few.names) == ["0", "1", "2", "3", "4"]
    many = group_values("id", [f"id {n}" for n in range(90)], np.arange(90))
    assert len(many.names) == 50
    assert (many.codes == -1).sum() == 40


def test_classes_and_clusters_are_groups() -> None:
    head, rows = make_head("multiclass", 3), make_rows(np.array([2, 0, 1]), np.array([1, 0, 1]))
    (grouping,) = group_classes(head, rows)
    assert (grouping.names, grouping.codes.tolist()) == (head.classes, [2, 0, 1])
    none = np.zeros(1)
    points = MapPoints(np.array([1]), none, none, np.array([0]), "pca", None)
    assert group_points(points, ["1: call"], rows).codes.tolist() == [-1, 0, -1]
    both = MapPoints(np.array([0, 1]), none, none, np.array([1, 0]), "pca", None)
    assert group_points(both, ["1", "2"], rows).codes.tolist() == [1, 0, 1]
    assert group_classes(make_head("regression", 0), make_rows(np.ones(3))) == []
