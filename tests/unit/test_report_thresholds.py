"""Threshold curves: scikit-learn's scores and counts by hand are the reference."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score, precision_score, recall_score

from pipeline.config import HeadsSettings, TaskSettings, ThresholdAim
from pipeline.model.decision import Decision, compute_sigmoid
from pipeline.model.evaluation import score_head
from pipeline.model.saved import SavedHead
from pipeline.model.tasks import TASK_TYPES
from pipeline.report.thresholds import find_costs, list_thresholds, trace_thresholds


def make_head(kind: str, names: tuple[str, ...], decision: Decision) -> SavedHead:
    return SavedHead("task", TASK_TYPES[kind], names, (0,), decision, ())


def test_every_threshold_gives_the_scores_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    actual = generator.integers(0, 2, 150)
    logits = generator.normal(2 * actual - 1, 2)[:, None]
    head = make_head("binary", ("ham", "spam"), Decision(1.7, (0.4137,)))
    (curve,) = trace_thresholds(head, actual, logits, (5.0, 1.0))
    assert curve.name == "spam"
    assert len(curve.thresholds) == 201
    assert (np.diff(curve.thresholds) > 0).all()
    probabilities = compute_sigmoid(logits[:, 0] / 1.7)
    for index, threshold in enumerate(curve.thresholds):
        predicted = (probabilities > threshold).astype(int)
        counts = confusion_matrix(actual, predicted, labels=[0, 1]).ravel().tolist()
        assert [of[index] for of in (curve.tn, curve.fp, curve.fn, curve.tp)] == counts
        for scores, reference in (
            (curve.precision, precision_score), (curve.recall, recall_score), (curve.f1, f1_score)
        ):  # fmt: skip
            assert scores[index] == pytest.approx(reference(actual, predicted, zero_division=0))
        assert curve.cost is not None
        assert curve.cost[index] == 5 * counts[1] + counts[2]
    assert curve.thresholds[curve.chosen] == 0.4137
    scores = score_head(head, actual, logits)
    assert scores.confusion.tolist() == [
        [curve.tn[curve.chosen], curve.fp[curve.chosen]],
        [curve.fn[curve.chosen], curve.tp[curve.chosen]],
    ]


def test_counts_by_hand_and_a_probability_at_the_threshold_is_not_above_it() -> None:
    logits = np.array([[0.0], [0.0], [4.0], [-4.0]])  # 0.5, 0.5, 0.98, 0.02
    head = make_head("binary", ("no", "yes"), Decision(1.0, (0.5,)))
    (curve,) = trace_thresholds(head, np.array([1, 0, 1, 0]), logits)
    at = curve.chosen
    assert [int(of[at]) for of in (curve.tp, curve.fp, curve.fn, curve.tn)] == [1, 0, 1, 2]
    assert [int(of[at - 1]) for of in (curve.tp, curve.fp, curve.fn, curve.tn)] == [2, 1, 0, 1]
    assert curve.cost is None
    assert (curve.precision[-1], curve.recall[-1], curve.f1[-1]) == (0, 0, 0)
    assert curve.recall[0] == 1


def test_each_tag_has_a_curve_with_its_own_threshold() -> None:
    generator = np.random.default_rng(1)
    actual = (generator.random((80, 3)) < [0.5, 0.1, 0.0]).astype(np.int8)
    logits = generator.normal(2.0 * actual - 1, 1)
    head = make_head("multilabel", ("a", "b", "c"), Decision(1.0, (0.3, 0.6, 1.0)))
    curves = trace_thresholds(head, actual, logits)
    assert [curve.name for curve in curves] == ["a", "b", "c"]
    assert [curve.thresholds[curve.chosen] for curve in curves] == [0.3, 0.6, 1.0]
    for index, curve in enumerate(curves):
        predicted = head.type.predict(logits, head.decision)[:, index]
        assert curve.f1[curve.chosen] == pytest.approx(
            f1_score(actual[:, index], predicted, zero_division=0)
        )


@pytest.mark.parametrize("chosen", [0.0, 0.001, 0.0025, 0.5, 0.99999, 1.0])
def test_the_chosen_threshold_is_among_those_shown(chosen: float) -> None:
    thresholds = list_thresholds(chosen)
    assert chosen in thresholds
    assert len(thresholds) == 201
    assert (np.diff(thresholds) > 0).all()


@pytest.mark.parametrize(("kind", "C"), [("multiclass", 3), ("ordinal", 3), ("regression", 0)])
def test_types_without_thresholds_have_no_curve(kind: str, C: int) -> None:
    names = tuple("abc"[:C])
    outputs = TASK_TYPES[kind].count_outputs(C)
    head = make_head(kind, names, Decision())
    assert trace_thresholds(head, np.zeros(4, int), np.zeros((4, outputs))) == []


def test_costs_are_those_of_the_settings() -> None:
    aim = ThresholdAim(false_positive=5, false_negative=1)
    tasks = {
        "a": TaskSettings(threshold=aim),
        "b": TaskSettings(threshold=ThresholdAim(precision=0.9)),
        "c": TaskSettings(),
    }
    heads = HeadsSettings(tasks=tasks)
    assert [find_costs(heads, task) for task in "abcd"] == [(5, 1), None, None, None]
    assert find_costs(HeadsSettings(), "a") is None


def test_no_rows_have_no_curve() -> None:
    head = make_head("binary", ("no", "yes"), Decision(1.0, (0.5,)))
    assert trace_thresholds(head, np.empty(0, int), np.empty((0, 1))) == []
