"""Scores and curves: scikit-learn's own functions and counts by hand are the reference."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    classification_report,
    confusion_matrix,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from pipeline.model.decision import Decision, compute_softmax
from pipeline.model.evaluation import (
    PartScores,
    bootstrap_intervals,
    rank_classes,
    score_head,
)
from pipeline.model.metrics import Ranking
from pipeline.model.saved import SavedHead
from pipeline.model.tasks import TASK_TYPES
from pipeline.report.plots import trace_precision_recall, trace_roc


def make_head(classes: Sequence[str], threshold: float | None) -> SavedHead:
    """A binary head, or a multiclass one where there is no threshold."""
    kind = TASK_TYPES["multiclass" if threshold is None else "binary"]
    decision = Decision(thresholds=None if threshold is None else (threshold,))
    return SavedHead("task", kind, tuple(classes), (0,), decision, ())


def score_part(
    actual: np.ndarray, logits: np.ndarray, classes: list[str], threshold: float | None
) -> PartScores:
    return score_head(make_head(classes, threshold), actual, logits)


def rank_binary(actual: np.ndarray, logits: np.ndarray) -> list[Ranking]:
    return rank_classes(make_head(["ham", "spam"], 0.5), actual, logits)


def make_rows(rows: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and logits that are right more often than not."""
    generator = np.random.default_rng(seed)
    actual = generator.integers(0, classes, rows)
    if classes == 2:
        logits = generator.normal(2 * actual - 1, 1.5)[:, None]
    else:
        logits = generator.normal(0, 1, (rows, classes))
        logits[np.arange(rows), actual] += 1
    return actual, logits.astype(np.float32)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_scores_are_those_of_scikit_learn(classes: int) -> None:
    names = [f"class {index}" for index in range(classes)]
    actual, logits = make_rows(300, classes)
    binary = classes == 2
    flat = score_part(actual, logits, names, 0.5 if binary else None).to_record()

    predicted = (logits[:, 0] > 0).astype(int) if binary else logits.argmax(axis=1)
    report = classification_report(actual, predicted, target_names=names, output_dict=True)
    assert list(flat["classes"]) == names
    for name, of_class in flat["classes"].items():
        for metric in ("precision", "recall"):
            assert of_class[metric] == pytest.approx(report[name][metric])
        assert of_class["f1"] == pytest.approx(report[name]["f1-score"])
        assert of_class["support"] == report[name]["support"]
    assert flat["rows"] == 300
    assert flat["accuracy"] == pytest.approx(accuracy_score(actual, predicted))
    assert flat["precision_macro"] == pytest.approx(report["macro avg"]["precision"])
    assert flat["recall_macro"] == pytest.approx(report["macro avg"]["recall"])
    assert flat["f1_macro"] == pytest.approx(report["macro avg"]["f1-score"])
    assert flat["f1_weighted"] == pytest.approx(report["weighted avg"]["f1-score"])
    if binary:
        assert flat["f1"] == pytest.approx(report[names[1]]["f1-score"])
        assert flat["roc_auc"] == pytest.approx(roc_auc_score(actual, logits[:, 0]))
        expected = average_precision_score(actual, logits[:, 0])
    else:
        assert not {"f1", "precision", "recall"} & set(flat)
        odds = np.exp(logits.astype(float))
        odds /= odds.sum(axis=1, keepdims=True)
        assert flat["roc_auc"] == pytest.approx(roc_auc_score(actual, odds, multi_class="ovr"))
        expected = average_precision_score(np.eye(classes)[actual], odds, average="macro")
    assert flat["average_precision"] == pytest.approx(expected)


def test_each_tag_has_its_support_and_scores() -> None:
    generator = np.random.default_rng(0)
    actual = (generator.random((200, 4)) < [0.5, 0.1, 0.02, 0]).astype(np.int8)
    logits = generator.normal(2.0 * actual - 1, 1.2)
    decision = Decision(1.0, (0.5, 0.3, 0.4, 1.0))
    names = ("a", "b", "c", "never")
    head = SavedHead("task", TASK_TYPES["multilabel"], names, (0,), decision, ())
    record = score_head(head, actual, logits).to_record()
    predicted = head.type.predict(logits, decision)
    report = classification_report(
        actual, predicted, target_names=names, output_dict=True, zero_division=0
    )
    for name in names[:3]:
        assert record["classes"][name] == {
            "precision": pytest.approx(report[name]["precision"]),
            "recall": pytest.approx(report[name]["recall"]),
            "f1": pytest.approx(report[name]["f1-score"]),
            "support": report[name]["support"],
        }
    assert record["classes"]["never"] == {"support": 0}  # neither a label nor an answer
    assert record["f1_micro"] == pytest.approx(report["micro avg"]["f1-score"])


def test_a_confusion_matrix_by_hand() -> None:
    actual = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 1, 0, 1, 0, 2])
    scores = score_part(actual, np.eye(3)[predicted] * 9, ["a", "b", "c"], None)
    assert scores.confusion.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert scores.confusion.tolist() == confusion_matrix(actual, predicted).tolist()
    assert scores.classes[0].precision == pytest.approx(2 / 3)
    assert scores.classes[1].recall == pytest.approx(1 / 2)
    assert scores.overall["accuracy"] == pytest.approx(4 / 6)


@pytest.mark.parametrize(("threshold", "expected"), [(0.5, [0, 0, 1]), (0.9, [0, 0, 0])])
def test_class_1_only_above_the_threshold(threshold: float, expected: list[int]) -> None:
    logits = np.array([[-1.0], [0.0], [2.0]], np.float32)  # sigmoid 0.27, 0.5, 0.88
    scores = score_part(np.array(expected), logits, ["no", "yes"], threshold)
    assert scores.overall["accuracy"] == 1


def test_no_predicted_positives_is_a_precision_of_zero() -> None:
    actual = np.array([0, 0, 1])
    flat = score_part(actual, np.full((3, 1), -5.0), ["ham", "spam"], 0.5).to_record()
    assert flat["precision"] == flat["recall"] == flat["f1"] == 0
    assert flat["classes"]["spam"] == {"precision": 0, "recall": 0, "f1": 0, "support": 1}
    assert flat["accuracy"] == pytest.approx(2 / 3)


def test_what_one_class_leaves_undefined_is_left_out() -> None:
    flat = score_part(np.zeros(4, int), np.full((4, 1), -5.0), ["ham", "spam"], 0.5).to_record()
    assert flat["accuracy"] == flat["f1_macro"] == flat["classes"]["ham"]["f1"] == 1
    assert flat["classes"]["spam"] == {"support": 0}
    assert not {"f1", "roc_auc", "average_precision"} & set(flat)
    only_spam = score_part(np.ones(4, int), np.full((4, 1), 5.0), ["ham", "spam"], 0.5).to_record()
    assert only_spam["average_precision"] == only_spam["f1"] == 1
    assert "roc_auc" not in only_spam


@pytest.mark.parametrize(("width", "threshold"), [(1, 0.5), (2, None)])
def test_an_empty_part_has_no_scores(width: int, threshold: float | None) -> None:
    empty = score_part(np.empty(0, int), np.empty((0, width), np.float32), ["a", "b"], threshold)
    assert empty.to_record() == {"rows": 0}


@pytest.mark.parametrize(
    "names",
    [
        ["macro", "weighted"],
        ["low", "high"],
        ["micro", "macro"],
        ["classes", "intervals"],
        ["f1", "rows"],
        ["a.b", "a"],
        ["", "sha256"],
        ["f1_macro", "f1_low"],
    ],
)
def test_no_name_of_a_class_hides_another_score(names: list[str]) -> None:
    actual, predicted = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 1])
    head, logits = make_head(names, None), np.eye(2)[predicted] * 9
    scores = replace(
        score_head(head, actual, logits),
        intervals=bootstrap_intervals(head, actual, logits),
        seeds={"accuracy": (0.5, 0.25)},
    )
    record = json.loads(json.dumps(scores.to_record()))
    # Of class 0 one of two rows is found, of class 1 all three among four answers.
    assert record["classes"] == {
        names[0]: {"precision": 1, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2},
        names[1]: {"precision": 0.75, "recall": 1, "f1": pytest.approx(6 / 7), "support": 3},
    }
    assert record["rows"] == 5
    assert record["accuracy"] == pytest.approx(4 / 5)
    assert record["f1_macro"] == pytest.approx((2 / 3 + 6 / 7) / 2)
    interval = record["intervals"]["f1_macro"]
    assert set(interval) == {"low", "high"}
    assert 0 <= interval["low"] <= record["f1_macro"] <= interval["high"] <= 1
    assert record["seeds"] == {"accuracy": {"mean": 0.5, "deviation": 0.25}}


def test_probabilities_of_extreme_logits_are_finite() -> None:
    binary = TASK_TYPES["binary"].compute_probabilities(
        np.array([[-2000.0], [0.0], [2000.0]]), Decision()
    )
    np.testing.assert_allclose(binary[:, 1], [0, 0.5, 1])
    np.testing.assert_allclose(compute_softmax(np.array([[3000.0, -3000, 0]])), [[1, 0, 0]])


def test_the_area_under_a_traced_curve_is_the_score() -> None:
    actual, logits = make_rows(5000, 2)
    (roc,) = trace_roc(rank_binary(actual, logits))
    assert len(roc.x) < 500  # thinned, and yet the same curve
    assert np.trapezoid(roc.y, roc.x) == pytest.approx(roc_auc_score(actual, logits), abs=2e-3)
    (curve,) = trace_precision_recall(rank_binary(actual, logits))
    area = np.sum(np.diff(curve.x) * curve.y[1:])
    assert area == pytest.approx(average_precision_score(actual, logits), abs=5e-3)
    for traced in (roc, curve):
        assert (np.diff(traced.x) >= 0).all()


def test_a_class_without_rows_has_no_curve() -> None:
    head, logits = make_head(["a", "b", "c"], None), np.zeros((4, 3))
    some = rank_classes(head, np.array([0, 0, 2, 2]), logits)
    only = rank_classes(head, np.zeros(4, int), logits)
    assert [c.index for c in trace_roc(some)] == [0, 2]
    assert trace_roc(only) == []
    assert [c.index for c in trace_precision_recall(some)] == [0, 2]
    assert [c.index for c in trace_precision_recall(only)] == [0]


@pytest.mark.parametrize("decimals", [0, 1, 9])
def test_equal_scores_are_passed_together(decimals: int) -> None:
    actual, logits = make_rows(400, 2, seed=decimals)
    rounded = np.round(logits, decimals)
    flat = score_part(actual, rounded, ["ham", "spam"], 0.5).to_record()
    assert flat["roc_auc"] == pytest.approx(roc_auc_score(actual, rounded))
    assert flat["average_precision"] == pytest.approx(average_precision_score(actual, rounded))


def test_curves_are_those_of_scikit_learn() -> None:
    actual, logits = make_rows(120, 2)
    (roc,) = trace_roc(rank_binary(actual, logits))
    x, y, _ = roc_curve(actual, logits, drop_intermediate=False)
    assert set(zip(roc.x, roc.y, strict=True)) <= set(zip(x, y, strict=True))
    assert np.trapezoid(roc.y, roc.x) == pytest.approx(roc_auc_score(actual, logits))
    (curve,) = trace_precision_recall(rank_binary(actual, logits))
    precision, recall, _ = precision_recall_curve(actual, logits, drop_intermediate=True)
    np.testing.assert_allclose([curve.x, curve.y], [recall[::-1], precision[::-1]])
