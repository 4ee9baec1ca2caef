"""Heads trained again on more rows, against scikit-learn and against training there at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.special import expit
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from pipeline.config import HeadsSettings
from pipeline.corpus.tables import LabelledRows, TaskLabels, encode_parts
from pipeline.heads.configurations import list_configurations
from pipeline.heads.features import MemoryFeatures, Scaling, StreamedFeatures
from pipeline.heads.refit import refit_heads
from pipeline.heads.targets import draw_folds, make_targets
from pipeline.heads.tasks import Task, make_tasks, widen_tasks
from pipeline.heads.training import Candidate, Fit, fit_heads

WIDTH, ROWS, TRAIN_ROWS = 12, 500, 350


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_rows(train_rows: int = TRAIN_ROWS) -> tuple[np.ndarray, LabelledRows]:
    """Features, and a corpus whose first rows are for training; some rows lack a label."""
    features, kind = make_classification(
        ROWS, WIDTH, n_informative=6, n_classes=2, flip_y=0.1, weights=[0.7], random_state=3
    )
    noise = np.random.default_rng(0).standard_normal(ROWS)
    size = features[:, :3].sum(axis=1) * 40 + 1000 + noise
    size[::7] = np.nan
    tasks = {
        "kind": TaskLabels(("a", "b"), kind.astype(np.int64)),
        "size": TaskLabels((), size, kind="number"),
    }
    parts = encode_parts(["train"] * train_rows + ["validation"] * (ROWS - train_rows))
    keys = pa.array([row.to_bytes(16, "big") for row in range(ROWS)], pa.binary(16))
    return (features * 2 + 3).astype(np.float32), LabelledRows(keys, parts, tasks)


def scale(features: np.ndarray, train_rows: int) -> tuple[MemoryFeatures, Scaling]:
    scaling = Scaling.fit(features[:train_rows])
    return MemoryFeatures(torch.from_numpy(scaling.apply(features)), train_rows), scaling


def train(
    names: Sequence[str], rows: int = TRAIN_ROWS, **settings: object
) -> tuple[Fit, list[Task]]:
    """The usual training run, whose first rows are the training rows."""
    features, corpus = make_rows(rows)
    own = HeadsSettings.model_validate({"folds": None, "search": (), **settings})
    tasks = [task for task in make_tasks(None, corpus) if task.name in names]
    labels = {name: corpus.tasks[name].values for name in names}
    folds = draw_folds(np.arange(rows), own.folds, 0) if own.folds else None
    fit = fit_heads(
        lambda _: scale(features, rows),
        make_targets(tasks, labels, rows, folds, "cpu"),
        tasks,
        list_configurations(own, (0,)),
        own,
    )
    return fit, tasks


def train_again(fit: Fit, **settings: object) -> tuple[dict[str, Candidate], list[Task]]:
    """The chosen heads of a run, trained again on all rows."""
    features, corpus = make_rows()
    tasks = widen_tasks([head.task for head in fit.heads], corpus, ("train", "validation"))
    labels = {task.name: corpus.tasks[task.name].values for task in tasks}
    made = refit_heads(
        lambda _: scale(features, ROWS),
        make_targets(tasks, labels, ROWS, None, "cpu"),
        tasks,
        fit.heads,
        HeadsSettings.model_validate({"search": (), **settings}),
    )
    return {task.name: one for task, one in zip(tasks, made, strict=True)}, tasks


@pytest.mark.parametrize("folds", [None, 4])
def test_linear_heads_are_scikit_learns_on_all_rows(folds: int | None) -> None:
    decay = 0.05
    fit, _ = train(["kind", "size"], weight_decay=decay, folds=folds)
    made, tasks = train_again(fit, weight_decay=decay)
    features, corpus = make_rows()
    scaled = StandardScaler().fit_transform(features.astype(np.float64))
    kind = corpus.tasks["kind"].values
    own = LogisticRegression(C=1 / (decay * ROWS), tol=1e-8, max_iter=1000).fit(scaled, kind)
    probabilities = own.predict_proba(scaled)[:, 1]

    def measure(found: np.ndarray, weight: np.ndarray) -> float:
        return float(log_loss(kind, found) + decay / 2 * np.square(weight).sum())

    head = made["kind"].head
    found = expit(head.compute_logits(features)[:, 0].astype(np.float64))
    total = measure(found, head.weight * features.astype(np.float64).std(axis=0))
    assert total == pytest.approx(measure(probabilities, own.coef_), rel=1e-4)
    np.testing.assert_allclose(found, probabilities, atol=2e-3)

    size = corpus.tasks["size"].values
    given = np.isfinite(size)
    center, spread = size[given].mean(), size[given].std()
    summary = tasks[1].labels
    assert (summary.center, summary.spread) == pytest.approx((center, spread))
    # The mean of squares plus λ / 2 of the squared weights is Ridge's with alpha = λ n / 2.
    ridge = Ridge(alpha=decay * given.sum() / 2).fit(scaled[given], (size[given] - center) / spread)
    numbers = made["size"].head.compute_logits(features)[:, 0]
    np.testing.assert_allclose(numbers, ridge.predict(scaled), atol=5e-3)
    # The heads that were chosen are others: they saw fewer rows.
    before = fit.heads[0].candidate.head.compute_logits(features)[:, 0]
    assert np.abs(expit(before) - probabilities).max() > 0.01


@pytest.mark.parametrize(
    "settings",
    [
        {"head": "kernel", "weight_decay": 0.01},
        {"head": "hidden", "optimizer": "adamw", "hidden_size": 8, "max_epochs": 12},
        {"head": "linear", "optimizer": "sgd", "max_epochs": 9, "dropout": 0.2},
        {"head": "linear", "optimizer": "adamw", "max_epochs": 5, "combine": "mix"},
    ],
    ids=["kernel", "hidden", "sgd", "mix"],
)
def test_other_heads_are_those_of_training_on_all_rows_at_once(
    settings: dict[str, object],
) -> None:
    """Heads that learn by batches take as many epochs as the kept one had; the last is kept."""
    fit, _ = train(["kind"], **settings)
    made, tasks = train_again(fit, **settings)
    features, corpus = make_rows()
    epochs = fit.heads[0].candidate.epoch
    own = HeadsSettings.model_validate({"folds": None, "search": (), **settings})
    if own.optimizer != "lbfgs" and own.head != "kernel":
        changes = {"max_epochs": epochs, "keep": "last", "patience": None}
        own = own.model_copy(update=changes)
    # One more row, which is the validation part.
    more = np.concatenate([features, features[:1]])
    labels = {"kind": np.append(corpus.tasks["kind"].values, 0)}
    direct = fit_heads(
        lambda _: scale(more, ROWS),
        make_targets(tasks, labels, ROWS, None, "cpu"),
        tasks,
        list_configurations(own, (0,)),
        own,
    )
    expected = direct.heads[0].candidate.head.compute_logits(features)
    found = made["kind"].head.compute_logits(features)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - fit.heads[0].candidate.head.compute_logits(features)).max() > 1e-3


def test_every_task_takes_its_own_configuration_and_shares_a_kernel() -> None:
    search = [
        {"head": ["kernel"], "weight_decay": [0.001, 1.0]},
        {"head": ["hidden"], "optimizer": ["adamw"], "seeds": [0, 1], "hidden_size": [4]},
    ]
    fit, _ = train(["kind", "size"], search=search, folds=3, max_epochs=30)
    made, _ = train_again(fit, search=search, max_epochs=30)
    for head in fit.heads:
        alone, _ = train_again(replace(fit, heads=(head,)), search=search, max_epochs=30)
        features, _ = make_rows()
        np.testing.assert_allclose(
            made[head.task.name].head.compute_logits(features),
            alone[head.task.name].head.compute_logits(features),
            rtol=0.01,  # the solver stops at the same small slope, not at the same logits
            atol=0.02,
        )
    forced = [
        replace(head, configuration=list_configurations(HeadsSettings(head="kernel"), (0,))[number])
        for number, head in enumerate(fit.heads)
    ]
    both, _ = train_again(replace(fit, heads=tuple(forced)))
    assert both["kind"].head.centers is both["size"].head.centers


def test_streamed_vectors_do() -> None:
    """Where vectors are read from the store, they are read once an epoch: none are for judging."""
    features, corpus = make_rows()
    fit, _ = train(["kind"], optimizer="adamw", learning_rate=0.05, max_epochs=4)
    tasks = widen_tasks([head.task for head in fit.heads], corpus, ("train", "validation"))
    scaling = Scaling.fit(features)
    passes = []

    def read(rows: int, batch: int, seed: int | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        passes.append(seed)
        order = np.arange(rows) if seed is None else np.random.default_rng(seed).permutation(rows)
        for start in range(0, rows, batch):
            yield order[start : start + batch], features[order[start : start + batch]]

    (made,) = refit_heads(
        lambda _: (StreamedFeatures(read, ROWS, ROWS, scaling, "cpu"), scaling),
        make_targets(tasks, {"kind": corpus.tasks["kind"].values}, ROWS, None, "cpu"),
        tasks,
        fit.heads,
        HeadsSettings(optimizer="adamw", search=()),
    )
    assert len(passes) == fit.heads[0].candidate.epoch
    kind = corpus.tasks["kind"].values
    right = ((made.head.compute_logits(features)[:, 0] > 0) == kind).mean()
    assert right > np.bincount(kind).max() / ROWS
