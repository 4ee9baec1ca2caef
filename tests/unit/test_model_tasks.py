"""What logits say, for every type of task: scipy, scikit-learn and counts by hand are the
reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.metrics import log_loss, mean_squared_error

from pipeline.config import Metric
from pipeline.model.decision import Decision
from pipeline.model.metrics import METRICS
from pipeline.model.tasks import OLDER_TYPES, TASK_TYPES, SharedOrdinal, TaskType

CLASSES = {"binary": 2, "multiclass": 4, "ordinal": 4, "multilabel": 3, "regression": 0}
NONE = Decision()


def draw_logits(kind: TaskType, rows: int = 50, seed: int = 0) -> np.ndarray:
    outputs = kind.count_outputs(CLASSES[kind.name])
    logits = np.random.default_rng(seed).normal(0, 2, (rows, outputs)).astype(np.float32)
    # Those of an ordinal head fall from class to class.
    return -np.sort(-logits, axis=1) if kind.name == "ordinal" else logits


@pytest.mark.parametrize("temperature", [1.0, 0.3, 4.0])
def test_probabilities_are_scipys(temperature: float) -> None:
    decision = Decision(temperature)
    binary = draw_logits(TASK_TYPES["binary"])
    yes = expit(binary.astype(np.float64) / temperature)
    found = TASK_TYPES["binary"].compute_probabilities(binary, decision)
    np.testing.assert_allclose(found, np.hstack([1 - yes, yes]), atol=1e-6)
    many = draw_logits(TASK_TYPES["multiclass"])
    found = TASK_TYPES["multiclass"].compute_probabilities(many, decision)
    np.testing.assert_allclose(found, softmax(many / temperature, axis=1), atol=1e-6)
    tags = draw_logits(TASK_TYPES["multilabel"])
    found = TASK_TYPES["multilabel"].compute_probabilities(tags, decision)
    np.testing.assert_allclose(found, expit(tags / temperature), atol=1e-6)
    numbers = draw_logits(TASK_TYPES["regression"])
    assert TASK_TYPES["regression"].compute_probabilities(numbers, decision).shape == (50, 0)


def test_probabilities_of_an_order_by_hand() -> None:
    """P(above class c) is the sigmoid of logit c; a class has what its two neighbours leave."""
    logits = np.array([[2.0, 0.5, -1.0], [-3.0, -3.0, -4.0]])
    above = expit(logits / 1.5)
    expected = np.column_stack(
        [1 - above[:, 0], above[:, 0] - above[:, 1], above[:, 1] - above[:, 2], above[:, 2]]
    )
    found = TASK_TYPES["ordinal"].compute_probabilities(logits, Decision(1.5))
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("name", ["binary", "multiclass", "ordinal"])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_probabilities_of_one_class_a_row_add_up_to_one(name: str, scale: float) -> None:
    kind = TASK_TYPES[name]
    # Logits of an ordinal head that was not trained may rise from class to class.
    logits = np.random.default_rng(1).normal(0, scale, (200, kind.count_outputs(CLASSES[name])))
    probabilities = kind.compute_probabilities(logits, Decision(0.7))
    assert probabilities.shape == (200, CLASSES[name])
    assert (probabilities >= 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-12)


def test_answers_by_hand() -> None:
    binary = TASK_TYPES["binary"]
    logits = np.log(np.array([[0.2 / 0.8], [0.5 / 0.5], [0.7 / 0.3], [0.9 / 0.1]]))
    assert binary.predict(logits, NONE).tolist() == [0, 0, 1, 1]
    assert binary.predict(logits, Decision(1.0, (0.8,))).tolist() == [0, 0, 0, 1]
    # A temperature of 2 takes 0.7 to 0.604 and 0.9 to 0.75.
    assert binary.predict(logits, Decision(2.0, (0.7,))).tolist() == [0, 0, 0, 1]
    assert binary.predict(logits, Decision(2.0, (0.76,))).tolist() == [0, 0, 0, 0]
    tags = np.hstack([logits, logits])
    found = TASK_TYPES["multilabel"].predict(tags, Decision(1.0, (0.1, 0.8)))
    assert found.tolist() == [[1, 0], [1, 0], [1, 0], [1, 1]]
    order = np.array([[-1.0, -2, -3], [1, -1, -2], [2, 1, -1], [3, 2, 1]])
    assert TASK_TYPES["ordinal"].predict(order, NONE).tolist() == [0, 1, 2, 3]
    assert SharedOrdinal().predict(order, Decision(3.0)).tolist() == [0, 1, 2, 3]
    many = np.array([[1.0, 3, 2], [5, 3, 2], [0, 0, 0.1]])
    assert TASK_TYPES["multiclass"].predict(many, Decision(0.1)).tolist() == [1, 0, 2]
    numbers = np.array([[1.5], [-2]], np.float32)
    assert TASK_TYPES["regression"].predict(numbers, NONE).tolist() == [1.5, -2]


def test_a_probability_at_the_threshold_is_not_above_it() -> None:
    zero = np.zeros((1, 1))
    assert TASK_TYPES["binary"].predict(zero, Decision(1.0, (0.5,))).tolist() == [0]
    assert TASK_TYPES["multilabel"].predict(zero, Decision(1.0, (0.5,))).tolist() == [[0]]
    assert TASK_TYPES["ordinal"].predict(zero, NONE).tolist() == [0]
    just_above = np.full((1, 1), 1e-6)
    assert TASK_TYPES["binary"].predict(just_above, Decision(1.0, (0.5,))).tolist() == [1]
    assert TASK_TYPES["multilabel"].predict(just_above, Decision(1.0, (0.5,))).tolist() == [[1]]
    assert TASK_TYPES["ordinal"].predict(just_above, NONE).tolist() == [1]


@pytest.mark.parametrize("kind", [TASK_TYPES["multiclass"], TASK_TYPES["ordinal"], SharedOrdinal()])
def test_the_answer_is_the_highest_probability_or_the_middle(kind: TaskType) -> None:
    logits = draw_logits(kind, 300, seed=3)
    probabilities = kind.compute_probabilities(logits, Decision(0.5))
    if not isinstance(kind, SharedOrdinal):
        expected = probabilities.argmax(axis=1)
    else:  # the median: the class in which the probability of that class or below reaches a half
        expected = (probabilities.cumsum(axis=1) < 0.5).sum(axis=1)
    np.testing.assert_array_equal(kind.predict(logits, Decision(0.5)), expected)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_losses_are_scikit_learns(temperature: float) -> None:
    generator = np.random.default_rng(5)
    decision = Decision(temperature)
    for name in ("binary", "multiclass"):
        kind = TASK_TYPES[name]
        logits, labels = draw_logits(kind), generator.integers(0, CLASSES[name], 50)
        expected = log_loss(
            labels,
            kind.compute_probabilities(logits, decision),
            labels=range(CLASSES[name]),
        )
        assert kind.measure_loss(logits, labels, temperature) == pytest.approx(expected, rel=1e-6)
    kind = TASK_TYPES["multilabel"]
    logits, tags = draw_logits(kind), generator.integers(0, 2, (50, 3)).astype(np.float32)
    odds = kind.compute_probabilities(logits, decision)
    expected = np.mean([log_loss(tags[:, c], odds[:, c], labels=[0, 1]) for c in range(3)])
    assert kind.measure_loss(logits, tags, temperature) == pytest.approx(expected, rel=1e-6)
    kind = TASK_TYPES["ordinal"]
    logits, labels = draw_logits(kind), generator.integers(0, 4, 50)
    above = expit(logits / temperature)
    expected = sum(log_loss(labels > c, above[:, c], labels=[False, True]) for c in range(3))
    assert kind.measure_loss(logits, labels, temperature) == pytest.approx(expected, rel=1e-6)
    kind = TASK_TYPES["regression"]
    logits, numbers = draw_logits(kind), generator.normal(0, 1, 50)
    expected = mean_squared_error(numbers, logits[:, 0])
    assert kind.measure_loss(logits, numbers, temperature) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", TASK_TYPES.values(), ids=TASK_TYPES)
def test_every_name_of_a_metric_stands_in_the_table(kind: TaskType) -> None:
    assert {*kind.metrics, *kind.interval_metrics, *kind.headline} <= set(METRICS)
    assert set(kind.choosing_metrics) - {"loss"} <= set(METRICS)
    assert set(kind.choosing_metrics) <= set(Metric.__args__)
    assert {*kind.interval_metrics, *kind.headline} <= set(kind.metrics)


def test_margins_are_distances_from_another_answer() -> None:
    """Probabilities by hand: 0.2 and 0.9 beside 0.3; 0.5, 0.3, 0.2; above a class by 0.9, 0.25."""

    def logit(*probabilities: float) -> list[float]:
        return [math.log(p / (1 - p)) for p in probabilities]

    cases = {
        "binary": ([logit(0.2), logit(0.9)], (0.3,), [0.1, 0.6]),
        "multiclass": ([[math.log(p) for p in (0.3, 0.5, 0.2)]], None, [0.2]),
        "ordinal": ([logit(0.9, 0.25)], None, [0.4]),
        "multilabel": ([logit(0.2, 0.9)], (0.3, 0.5), [[0.1, 0.4]]),
        "regression": ([[3.0]], None, [math.inf]),
    }
    assert set(cases) == set(TASK_TYPES)
    for name, (logits, thresholds, expected) in cases.items():
        for temperature in (1.0, 2.0):
            kind = TASK_TYPES[name]
            scaled = np.array(logits) * temperature
            found = kind.measure_margins(scaled, Decision(temperature, thresholds))
            np.testing.assert_allclose(found, expected, err_msg=name)
    older = OLDER_TYPES["ordinal"].measure_margins(np.array([logit(0.9, 0.25)]), Decision(1.0))
    np.testing.assert_allclose(older, [0.25])
