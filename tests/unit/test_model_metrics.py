"""Metrics of samples of rows: scikit-learn on the rows written out is the reference."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from scipy.stats import binom, norm
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    mean_absolute_error,
    precision_recall_fscore_support,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)

from pipeline.model.decision import Decision
from pipeline.model.evaluation import bootstrap_intervals, score_head
from pipeline.model.metrics import METRICS, Ranking, coarsen_scores
from pipeline.model.saved import SavedHead
from pipeline.model.tasks import TASK_TYPES, TaskType

ROWS = 60
CLASSES = {"binary": 2, "multiclass": 3, "ordinal": 4, "multilabel": 3, "regression": 0}
THRESHOLDS = {"binary": (0.4,), "multilabel": (0.3, 0.5, 0.6)}


def make_rows(name: str, rows: int = ROWS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and logits that go along with them; some rows have equal logits."""
    generator = np.random.default_rng(seed)
    C = CLASSES[name]
    if name == "regression":
        labels = generator.normal(1000, 1, rows)
        return labels, (labels + generator.normal(0, 0.5, rows))[:, None].astype(np.float32)
    if name == "multilabel":
        labels = (generator.random((rows, C)) < 0.4).astype(np.int8)
        logits = generator.normal(labels, 1)
    else:
        labels = generator.integers(0, C, rows)
        centers = {
            "binary": labels[:, None] - 0.5,
            "multiclass": np.eye(C)[labels],
            "ordinal": labels[:, None] - np.arange(1, C) + 0.5,
        }[name]
        logits = generator.normal(centers, 1)
        logits = -np.sort(-logits, axis=1) if name == "ordinal" else logits
    return labels, np.round(logits, 1).astype(np.float32)


def score_by_scikit_learn(
    kind: TaskType, labels: np.ndarray, logits: np.ndarray, decision: Decision
) -> Mapping[str, float]:
    predicted = kind.predict(logits, decision)
    if kind.name == "regression":
        return {
            "mean_absolute_error": mean_absolute_error(labels, predicted),
            "root_mean_squared_error": root_mean_squared_error(labels, predicted),
            "r2": r2_score(labels, predicted),
        }
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predicted, average="macro", zero_division=0
    )
    scores = {
        "accuracy": accuracy_score(labels, predicted),
        "precision_macro": precision,
        "recall_macro": recall,
        "f1_macro": f1,
        "f1_weighted": f1_score(labels, predicted, average="weighted", zero_division=0),
        "f1_micro": f1_score(labels, predicted, average="micro", zero_division=0),
    }
    if kind.name == "ordinal":
        return scores | {"mean_absolute_error": mean_absolute_error(labels, predicted)}
    if kind.name == "binary":
        precision, recall, f1, _ = precision_recall_fscore_support(
            labels, predicted, average="binary", zero_division=0
        )
        scores |= {"precision": precision, "recall": recall, "f1": f1}
    ranks = logits[:, 0] if kind.name == "binary" else logits
    if kind.name == "multiclass":
        ranks = kind.compute_probabilities(logits, decision)
        labels = np.eye(CLASSES["multiclass"])[labels]
    return scores | {
        "roc_auc": roc_auc_score(labels, ranks),
        "average_precision": average_precision_score(labels, ranks),
    }


@pytest.mark.parametrize("name", TASK_TYPES)
def test_metrics_are_scikit_learns(name: str) -> None:
    kind, decision = TASK_TYPES[name], Decision(1.3, THRESHOLDS.get(name))
    labels, logits = make_rows(name)
    head = SavedHead("t", kind, tuple("abcd"[: CLASSES[name]]), (0,), decision, ())
    expected = score_by_scikit_learn(kind, labels, logits, decision)
    overall = score_head(head, labels, logits).overall
    assert set(overall) == set(kind.metrics)
    for metric, value in overall.items():
        assert value == pytest.approx(expected[metric], rel=1e-6), metric


@pytest.mark.parametrize("name", TASK_TYPES)
def test_metrics_of_a_sample_are_those_of_its_rows_written_out(name: str) -> None:
    kind, decision = TASK_TYPES[name], Decision(1.3, THRESHOLDS.get(name))
    labels, logits = make_rows(name)
    generator = np.random.default_rng(3)
    times = generator.multinomial(ROWS, np.full(ROWS, 1 / ROWS), 20).astype(np.float64)
    drawn = kind.answer(labels, logits, CLASSES[name], decision).draw(times)
    found = {metric: METRICS[metric].measure(drawn) for metric in kind.metrics}
    for number, counts in enumerate(times.astype(int)):
        rows = np.repeat(np.arange(ROWS), counts)
        expected = score_by_scikit_learn(kind, labels[rows], logits[rows], decision)
        for metric, values in found.items():
            assert values[number] == pytest.approx(expected[metric], rel=1e-6), metric


@pytest.mark.parametrize("name", TASK_TYPES)
def test_intervals_are_those_that_theory_gives(name: str) -> None:
    """Right answers among rows drawn again are binomial; the mean of many errors is normal."""
    kind, decision = TASK_TYPES[name], Decision(1.0, THRESHOLDS.get(name))
    labels, logits = make_rows(name, 300)
    head = SavedHead("t", kind, tuple("abcd"[: CLASSES[name]]), (0,), decision, ())
    intervals = bootstrap_intervals(head, labels, logits)
    overall = score_head(head, labels, logits).overall
    assert set(intervals) == set(kind.interval_metrics)
    for metric, (low, high) in intervals.items():
        assert low < overall[metric] < high, metric
    if name == "regression":
        errors = np.abs(labels - logits[:, 0])
        expected = norm(errors.mean(), errors.std() / 300**0.5)
        ends, deviation = intervals["mean_absolute_error"], expected.std()
        assert ends == pytest.approx(expected.ppf([0.025, 0.975]), abs=deviation / 2)
    else:
        expected = binom(300, overall["accuracy"])
        ends, deviation = intervals["accuracy"], expected.std() / 300
        assert ends == pytest.approx(expected.ppf([0.025, 0.975]) / 300, abs=deviation / 2)


@pytest.mark.parametrize("name", TASK_TYPES)
def test_intervals_do_not_depend_on_how_many_replicates_are_held_at_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, logits = make_rows(name)
    decision = Decision(1.0, THRESHOLDS.get(name))
    head = SavedHead("t", TASK_TYPES[name], tuple("abcd"[: CLASSES[name]]), (0,), decision, ())
    whole = bootstrap_intervals(head, labels, logits)
    monkeypatch.setattr("pipeline.model.evaluation._MOST_NUMBERS", 7 * ROWS)
    pieces = bootstrap_intervals(head, labels, logits)
    assert list(pieces) == list(whole)
    for metric, ends in whole.items():
        assert pieces[metric] == pytest.approx(ends, rel=1e-9)


@pytest.mark.parametrize("name", TASK_TYPES)
def test_intervals_of_many_rows_are_those_of_every_score(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where rows are many, their ranks are rounded; the intervals stay those of exact ranks."""
    labels, logits = make_rows(name, 3000)
    decision = Decision(1.0, THRESHOLDS.get(name))
    head = SavedHead("t", TASK_TYPES[name], tuple("abcd"[: CLASSES[name]]), (0,), decision, ())
    exact = bootstrap_intervals(head, labels, logits)
    monkeypatch.setattr("pipeline.model.evaluation._MANY_ROWS", 100)
    monkeypatch.setattr("pipeline.model.evaluation._LEVELS", 400)
    coarse = bootstrap_intervals(head, labels, logits)
    assert list(coarse) == list(exact)
    for metric, (low, high) in exact.items():
        assert coarse[metric] == pytest.approx((low, high), abs=(high - low) / 50), metric


def test_coarse_scores_keep_the_order_and_tell_a_rare_class_apart() -> None:
    generator = np.random.default_rng(5)
    is_class = np.zeros(5000, bool)
    is_class[:20] = True
    scores = generator.standard_normal(5000).round(3)  # some are equal
    scores[:20] += 3
    found = coarsen_scores(Ranking(0, is_class, scores), 200)
    order = np.argsort(scores, kind="stable")
    assert (np.diff(found[order]) >= 0).all()
    assert len(np.unique(found)) <= 200
    for value in np.unique(scores[:20]):
        assert len(np.unique(found[scores == value])) == 1
    assert len(np.unique(found[:20])) == len(np.unique(scores[:20]))
    assert roc_auc_score(is_class, found) == pytest.approx(
        roc_auc_score(is_class, scores), abs=1 / 200
    )


def test_r2_of_labels_that_are_all_alike_is_undefined() -> None:
    head = SavedHead("t", TASK_TYPES["regression"], (), (0,), Decision(), ())
    labels, logits = np.full(3, 0.1), np.array([[0.1], [0.2], [0.3]], np.float32)
    assert set(score_head(head, labels, logits).overall) == set(head.type.metrics) - {"r2"}
    assert "r2" not in bootstrap_intervals(head, labels, logits)
    # Every ninth replicate of three rows holds one label alone, and says nothing of the variance.
    low, _ = bootstrap_intervals(head, np.array([0.15, 0.35, 0.95]), logits)["r2"]
    assert low > -10


def test_tags_that_occur_nowhere_have_no_scores() -> None:
    head = SavedHead("t", TASK_TYPES["multilabel"], ("x", "y"), (0,), Decision(), ())
    logits = np.array([[1.0, -1], [-1, -1], [1, -1]])
    scores = score_head(head, np.array([[1, 0], [1, 0], [0, 0]], np.int8), logits)
    assert scores.classes[1].f1 is None
    assert scores.overall["f1_macro"] == scores.classes[0].f1 == pytest.approx(1 / 2)
    assert "roc_auc" not in scores.overall
    none = score_head(head, np.zeros((3, 2), np.int8), -np.ones((3, 2)))
    assert none.overall == {"accuracy": 1.0}
    assert set(bootstrap_intervals(head, np.zeros((3, 2), np.int8), -np.ones((3, 2)))) == {
        "accuracy"
    }
