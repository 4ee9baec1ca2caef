"""What layers are worth: scikit-learn's ridge regression on single layers is the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.metrics import f1_score, mean_absolute_error, root_mean_squared_error
from sklearn.preprocessing import StandardScaler

from pipeline.heads.layer_scores import MAX_ROWS, LayerScores, sample_rows, score_layers
from pipeline.heads.tasks import Task
from pipeline.model.decision import Decision
from pipeline.model.saved import SavedHead
from pipeline.model.tasks import TASK_TYPES
from pipeline.report.layers import read_layer_worth, read_path_bound

B, TRAIN, D = 500, 350, 20
PENALTIES = (1e-2, 1e-1, 1.0)


def make_vectors(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three layers, [B, 3, D], of which the second tells most, and what labels are made from."""
    generator = np.random.default_rng(seed)
    signal = generator.normal(size=B)
    vectors = generator.normal(size=(B, 3, D)) * generator.uniform(0.1, 5, D) + 3
    for layer, share in enumerate((0.3, 2.0, 0.6)):
        vectors[:, layer, :4] += share * signal[:, None]
    return vectors.astype(np.float32), signal


def fit_reference(vectors: np.ndarray, model: Any, labels: np.ndarray) -> np.ndarray:
    flat = vectors.reshape(B, -1)
    scaled = StandardScaler().fit(flat[:TRAIN]).transform(flat)
    return np.asarray(model.fit(scaled[:TRAIN], labels[:TRAIN]).predict(scaled[TRAIN:]))


def score(task: Task, vectors: np.ndarray, labels: np.ndarray) -> LayerScores:
    return score_layers(vectors, (0, 4, 6), TRAIN, [task], {"task": labels})["task"]


@pytest.mark.parametrize(
    ("kind", "C", "metric"),
    [("binary", 2, "f1"), ("multiclass", 4, "f1_macro"), ("ordinal", 4, "mean_absolute_error")],
)
def test_classes_have_the_scores_of_scikit_learn(kind: str, C: int, metric: str) -> None:
    vectors, signal = make_vectors()
    labels = np.searchsorted(np.quantile(signal, np.arange(1, C) / C), signal)
    names = tuple("abcd"[:C])
    found = score(Task("task", kind, names, metric=metric), vectors, labels)  # type: ignore[arg-type]
    assert (found.metric, found.rows) == (metric, B - TRAIN)

    def measure(layers: np.ndarray) -> float:
        answers = [
            fit_reference(layers, RidgeClassifier(alpha=penalty * TRAIN), labels)
            for penalty in PENALTIES
        ]
        if metric == "mean_absolute_error":
            return min(mean_absolute_error(labels[TRAIN:], predicted) for predicted in answers)
        average = "binary" if kind == "binary" else "macro"
        return max(f1_score(labels[TRAIN:], answer, average=average) for answer in answers)

    expected = [measure(vectors[:, layer]) for layer in range(3)]
    np.testing.assert_allclose([found.layers[layer] for layer in (0, 4, 6)], expected, atol=1e-6)
    assert found.joined == pytest.approx(measure(vectors), abs=0.01)


@pytest.mark.parametrize("center", [0.0, 1e6])
def test_numbers_have_the_errors_of_scikit_learn(center: float) -> None:
    vectors, signal = make_vectors(1)
    labels = center + 1000 * signal
    task = Task("task", "regression", metric="root_mean_squared_error")
    found = score(task, vectors, labels)

    def measure(layers: np.ndarray) -> float:
        return min(
            root_mean_squared_error(
                labels[TRAIN:], fit_reference(layers, Ridge(alpha=penalty * TRAIN), labels)
            )
            for penalty in PENALTIES
        )

    expected = [measure(vectors[:, layer]) for layer in range(3)]
    np.testing.assert_allclose(list(found.layers.values()), expected, rtol=1e-3)
    assert found.joined == pytest.approx(measure(vectors), rel=0.02)
    assert min(found.layers, key=lambda layer: found.layers[layer]) == 4
    assert found.joined < found.layers[4]


def test_tags_have_the_scores_of_scikit_learn() -> None:
    vectors, signal = make_vectors(2)
    labels = np.stack([signal > 0, signal > 0.8], axis=1).astype(np.int8)
    task = Task("task", "multilabel", ("a", "b"), metric="f1_micro", threshold=0.5)
    found = score(task, vectors, labels)
    expected = max(
        f1_score(
            labels[TRAIN:],
            fit_reference(vectors[:, 1], RidgeClassifier(alpha=penalty * TRAIN), labels),
            average="micro",
        )
        for penalty in PENALTIES
    )
    assert found.layers[4] == pytest.approx(expected)


def test_tasks_do_not_disturb_each_other_and_lacking_labels_count_for_nothing() -> None:
    vectors, signal = make_vectors(3)
    labels = {"a": (signal > 0).astype(int), "b": signal.copy(), "c": (signal > 1).astype(int)}
    labels["b"][::3] = np.nan
    labels["c"][:] = -1
    tasks = [
        Task("a", "binary", ("no", "yes"), metric="accuracy"),
        Task("b", "regression", metric="loss"),
        Task("c", "binary", ("no", "yes"), metric="f1"),
    ]
    together = score_layers(vectors, (0, 1, 2), TRAIN, tasks, labels)
    assert set(together) == {"a", "b"}  # nothing can be said of a task without labels
    assert together["b"].metric == "root_mean_squared_error"  # least squares has no likelihood
    for task in tasks[:2]:
        alone = score_layers(vectors, (0, 1, 2), TRAIN, [task], labels)[task.name]
        assert together[task.name].joined == pytest.approx(alone.joined, rel=1e-4)
    kept = np.flatnonzero(np.isfinite(labels["b"]))
    fewer = score_layers(
        vectors[kept], (0, 1, 2), int((kept < TRAIN).sum()), tasks[1:2], {"b": labels["b"][kept]}
    )["b"]
    assert together["b"].rows == fewer.rows == len(kept) - int((kept < TRAIN).sum())
    # The rows without a label still count for the scaling of features, and for nothing else.
    assert together["b"].layers[1] == pytest.approx(fewer.layers[1], rel=0.02)


@pytest.mark.parametrize("rounding", [0.0, 1e-4])  # heads leave such features out as well
def test_constant_features_and_many_classes_are_no_stop(rounding: float) -> None:
    vectors, signal = make_vectors(4)
    vectors[:, 0] = 7 + rounding * np.sign(signal[:, None])
    task = Task("task", "binary", ("no", "yes"), metric="accuracy")
    found = score(task, vectors, (signal > 0).astype(int))
    labels = (signal > 0).astype(int)
    share = max(np.mean(labels[TRAIN:] == label) for label in (0, 1))
    assert found.layers[0] in (pytest.approx(share), pytest.approx(1 - share))
    many = Task("task", "multiclass", tuple(map(str, range(201))), metric="accuracy")
    assert score_layers(vectors, (0, 1, 2), TRAIN, [many], {"task": np.arange(B) % 201}) == {}


def test_a_sample_has_rows_of_both_parts() -> None:
    train, validation = np.arange(10_000), np.arange(10_000, 10_500)
    chosen, train_rows = sample_rows([train, validation], seed=0)
    assert train_rows == MAX_ROWS
    assert len(set(chosen[:train_rows].tolist())) == MAX_ROWS
    assert (chosen[:train_rows] < 10_000).all()
    assert chosen[train_rows:].tolist() == validation.tolist()
    again, _ = sample_rows([train, validation], seed=1)
    assert chosen[:train_rows].tolist() != again[:train_rows].tolist()


def make_head(about: dict[str, Any]) -> SavedHead:
    return SavedHead("task", TASK_TYPES["binary"], ("a", "b"), (0,), Decision(), (), about=about)


def test_the_report_reads_what_was_measured() -> None:
    record = LayerScores("f1", 80, {0: 0.5, 6: 0.7, 12: 0.6}, 0.8).to_record()
    worth = read_layer_worth(make_head({"layer_scores": record}))
    assert worth is not None
    assert (worth.best, worth.rows, worth.joined) == (6, 80, 0.8)
    assert worth.layers == {0: 0.5, 6: 0.7, 12: 0.6}
    errors = LayerScores("mean_absolute_error", 80, {0: 0.5, 6: 0.7}, 0.4).to_record()
    worth = read_layer_worth(make_head({"layer_scores": errors}))
    assert worth is not None
    assert worth.best == 0
    assert read_layer_worth(make_head({})) is None
    for odd in ({"metric": "x"}, {**record, "metric": "odd"}, {**record, "layers": [1]}):
        with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
            read_layer_worth(make_head({"layer_scores": odd}))


def test_a_bound_of_the_path_is_told() -> None:
    assert read_path_bound(make_head({"path_bound": "weakest"})) == "weakest"
    assert read_path_bound(make_head({"path_bound": None})) is None
    with pytest.raises(ValueError, match="path_bound"):
        read_path_bound(make_head({"path_bound": 3}))
