"""Heads of a quadratic loss in closed form, against scikit-learn's ridge regression."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from pipeline.config import HeadsSettings, TaskSettings
from pipeline.heads import closed_form, kernel, path, sample, training
from pipeline.heads.closed_form import NormalEquations
from pipeline.heads.configurations import list_configurations
from pipeline.heads.features import MemoryFeatures, Scaling, StreamedFeatures
from pipeline.heads.path import PathSearch
from pipeline.heads.sample import draw_sample
from pipeline.heads.targets import StackedLoss, Targets, draw_folds, make_targets
from pipeline.heads.task_types import TARGET_TYPES
from pipeline.heads.tasks import Task, resolve_loss
from pipeline.heads.training import fit_heads

TRAIN, ROWS, WIDTH, C = 300, 360, 20, 30
SURE = 5.0  # the logit that least squares wants of a class or tag that holds
DECAY = 0.003


def make_rows(kind: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    features = rng.standard_normal((ROWS, WIDTH)).astype(np.float32) + 1
    scores = features @ rng.standard_normal((WIDTH, C)) + rng.standard_normal((ROWS, C))
    if kind == "multilabel":
        return features, (scores > 4).astype(np.int8)
    return features, scores.argmax(axis=1)


def make_task(kind: str, values: np.ndarray, **settings: object) -> Task:
    classes = tuple(map(str, range(C)))
    summary = TARGET_TYPES[kind].summarize(values[:TRAIN], C)
    options = TaskSettings(loss="least_squares", **settings)  # type: ignore[arg-type]
    return Task("y", kind, classes, summary, settings=options)


def solve(
    task: Task,
    features: np.ndarray,
    targets: Targets,
    held: StreamedFeatures | None = None,
    **how: Any,
) -> tuple[np.ndarray, ...]:
    loss = StackedLoss(task, [resolve_loss(task, {})] * targets.fits)

    def objective(logits: torch.Tensor, models: torch.Tensor) -> torch.Tensor:
        masks = targets.masks[:, models]
        return loss.select(models).average(logits, targets.labels["y"], masks)

    rows = held or MemoryFeatures(torch.from_numpy(features), TRAIN)
    solved = NormalEquations(rows, objective, targets.fits, C).solve(DECAY, **how)
    return tuple(part.numpy() for part in solved)


def hold(kind: str, values: np.ndarray) -> np.ndarray:
    """Whether each row has each class or tag: [B, C]."""
    return values == 1 if kind == "multilabel" else values[:, None] == np.arange(C)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_each_fold_is_ridge_regression_on_its_own_rows(kind: str) -> None:
    features, values = make_rows(kind)
    folds = draw_folds(np.arange(TRAIN), 4, 0)
    task = make_task(kind, values)
    targets = make_targets([task], {"y": values}, TRAIN, folds, "cpu")
    weight, bias, logits = solve(task, features, targets)
    wanted = SURE * (2.0 * hold(kind, values) - 1)
    for fit in range(5):
        rows = np.flatnonzero(folds != fit)  # the last fit leaves out none
        # The loss of a row of tags is the mean over tags, so the penalty counts C times more.
        alpha = DECAY * SURE**2 * len(rows) * (C if kind == "multilabel" else 1)
        reference = Ridge(alpha=alpha).fit(features[rows].astype(np.float64), wanted[rows])
        np.testing.assert_allclose(weight[fit], reference.coef_, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(bias[fit], reference.intercept_, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(logits[:, fit], reference.predict(features), atol=2e-3)


def test_class_weights_and_rows_without_a_label_count_as_sample_weights_do() -> None:
    features, values = make_rows("multiclass")
    given = values.copy()
    given[:40] = -1
    task = make_task("multiclass", given[40:], class_weights="balanced")
    targets = make_targets([task], {"y": given}, TRAIN, draw_folds(np.arange(TRAIN), 3, 0), "cpu")
    weight, _, _ = solve(task, features, targets)
    by_class = np.array(resolve_loss(task, {}).class_weights)
    rows = np.arange(40, TRAIN)
    weights = by_class[values[rows]]
    wanted = SURE * (2.0 * hold("multiclass", values) - 1)
    reference = Ridge(alpha=DECAY * SURE**2 * weights.sum())
    reference.fit(features[rows].astype(np.float64), wanted[rows], sample_weight=weights)
    np.testing.assert_allclose(weight[-1], reference.coef_, rtol=1e-3, atol=1e-4)


def test_blocks_and_folds_whose_rows_have_no_label_change_nothing() -> None:
    features, values = make_rows("multiclass")
    given = values.copy()
    given[:100] = -1
    task = make_task("multiclass", given[100:])
    folds = np.append(np.zeros(100, int), draw_folds(np.arange(200), 2, 0) + 1)
    targets = make_targets([task], {"y": given}, TRAIN, folds, "cpu")
    weight, _, _ = solve(task, features, targets)

    def read(rows: int, batch: int, seed: int | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, rows, batch):
            numbers = np.arange(start, min(start + batch, rows))
            yield numbers, features[numbers]

    streamed = StreamedFeatures(read, ROWS, TRAIN, Scaling.identity(WIDTH), "cpu", block_rows=20)
    by_blocks, _, _ = solve(task, features, targets, held=streamed)
    np.testing.assert_allclose(by_blocks, weight, rtol=1e-3, atol=1e-4)
    # The first fold leaves out rows without a label alone.
    wanted = SURE * (2.0 * hold("multiclass", values[100:TRAIN]) - 1)
    reference = Ridge(alpha=DECAY * SURE**2 * 200).fit(features[100:TRAIN], wanted)
    for fit in (0, -1):
        np.testing.assert_allclose(weight[fit], reference.coef_, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_a_task_that_weighs_nothing_has_constant_heads(kind: str) -> None:
    features, values = make_rows(kind)
    task = replace(make_task(kind, values), loss_weight=0.0)
    targets = make_targets([task], {"y": values}, TRAIN, draw_folds(np.arange(TRAIN), 3, 0), "cpu")
    held, settings = MemoryFeatures(torch.from_numpy(features), TRAIN), HeadsSettings()
    configurations = list_configurations(settings, (0,))
    search = PathSearch(task, configurations, targets)
    search.leave_out(lambda _: WIDTH)
    assert all(search.is_closed(family, WIDTH) for family in search.families)
    fit = fit_heads(
        lambda _: (held, Scaling.identity(WIDTH)), targets, [task], configurations, settings
    )
    assert not fit.heads[0].candidate.head.weight.any()


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_lbfgs_ends_where_the_closed_form_does(kind: str) -> None:
    features, values = make_rows(kind)
    task = make_task(kind, values)
    targets = make_targets([task], {"y": values}, TRAIN, None, "cpu")
    settings = HeadsSettings(search=(), weight_decay=DECAY)
    scaling = Scaling.identity(WIDTH)
    held = MemoryFeatures(torch.from_numpy(features), TRAIN)
    fit = fit_heads(
        lambda _: (held, scaling), targets, [task],
        list_configurations(settings, (0,)), settings,
    )  # fmt: skip
    weight, _, _ = solve(task, features, targets)
    np.testing.assert_allclose(
        fit.heads[0].candidate.head.weight, weight[0], rtol=0.02, atol=0.02 * np.abs(weight).max()
    )


def test_columns_some_at_a_time_make_the_same_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    features, values = make_rows("multiclass")
    task = make_task("multiclass", values)
    targets = make_targets([task], {"y": values}, TRAIN, draw_folds(np.arange(TRAIN), 3, 0), "cpu")
    whole = solve(task, features, targets)
    monkeypatch.setattr(closed_form, "_PANEL", 7)  # the width is no multiple of it
    for found, expected in zip(solve(task, features, targets), whole, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_rough_heads_of_some_fits_are_near_the_exact_ones() -> None:
    features, values = make_rows("multiclass")
    task = make_task("multiclass", values)
    targets = make_targets([task], {"y": values}, TRAIN, draw_folds(np.arange(TRAIN), 3, 0), "cpu")
    weight, bias, _ = solve(task, features, targets)
    rough_weight, rough_bias, logits = solve(task, features, targets, fits=[1], is_rough=True)
    np.testing.assert_allclose(rough_weight[0], weight[1], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(rough_bias[0], bias[1], rtol=1e-3, atol=1e-3)
    assert logits.shape == (ROWS, 1, C)


def test_features_that_rounding_makes_dependent_have_finite_heads() -> None:
    features, values = make_rows("multiclass")
    features = np.concatenate([features * 1e4, features * 1e4], axis=1)
    task = make_task("multiclass", values)
    targets = make_targets([task], {"y": values}, TRAIN, None, "cpu")
    for is_rough in (False, True):
        weight, bias, logits = solve(task, features, targets, is_rough=is_rough)
        assert all(np.isfinite(part).all() for part in (weight, bias, logits))
        right = logits[:, 0].argmax(axis=1) == values
        reference = Ridge(alpha=1e-3).fit(features, hold("multiclass", values)).predict(features)
        assert right.mean() >= (reference.argmax(axis=1) == values).mean() - 0.03


def search_families(task: Task, targets: Targets, width: int) -> list[tuple[str, str | None]]:
    configurations = list_configurations(HeadsSettings(), (0,))
    search = PathSearch(task, configurations, targets)
    search.leave_out(lambda family: TRAIN if family.head == "kernel" else width)
    return [(family.head, family.loss_changes.get("loss")) for family in search.families]


def test_least_squares_is_tried_where_outputs_are_many_and_no_loss_is_given() -> None:
    _, values = make_rows("multiclass")
    task = make_task("multiclass", values)
    targets = make_targets([task], {"y": values}, TRAIN, None, "cpu")
    usual = [("linear", None), ("kernel", None)]
    open_task = replace(task, settings=TaskSettings())
    squared = [("linear", None), ("kernel", None), ("kernel", "least_squares")]
    assert search_families(open_task, targets, WIDTH) == squared
    given = replace(open_task, settings=TaskSettings(loss="focal"), kept={"loss": "focal"})
    assert search_families(given, targets, WIDTH) == [("linear", "focal"), ("kernel", "focal")]
    few = np.minimum(values, 1)
    binary = replace(open_task, type="binary", classes=("a", "b"),
                     labels=TARGET_TYPES["binary"].summarize(few[:TRAIN], 2))  # fmt: skip
    assert (
        search_families(binary, make_targets([binary], {"y": few}, TRAIN, None, "cpu"), WIDTH)
        == usual
    )
    number = Task("y", "regression", (), TARGET_TYPES["regression"].summarize(values[:TRAIN], 0))
    targets = make_targets([number], {"y": values.astype(np.float64)}, TRAIN, None, "cpu")
    assert search_families(number, targets, WIDTH) == usual


def test_many_classes_are_told_apart_as_well_as_by_a_tuned_logistic_regression() -> None:
    rng = np.random.default_rng(0)
    classes, rows, judged = 60, 3000, 1500
    values = rng.integers(0, classes, rows)
    centers = rng.standard_normal((classes, 30)).astype(np.float32)
    features = 0.8 * centers[values] + rng.standard_normal((rows, 30)).astype(np.float32)
    train = 1200
    summary = TARGET_TYPES["multiclass"].summarize(values[:train], classes)
    task = Task("y", "multiclass", tuple(map(str, range(classes))), summary, metric="accuracy")
    scaling = Scaling.fit(features[:train])
    scaled = scaling.apply(features)
    held = MemoryFeatures(torch.from_numpy(scaled[:judged]), train)
    settings = HeadsSettings()
    folds = draw_folds(np.arange(train), 5, 0)
    fit = fit_heads(
        lambda _: (held, scaling),
        make_targets([task], {"y": values[:judged]}, train, folds, "cpu"),
        [task], list_configurations(settings, (0,)), settings,
    )  # fmt: skip
    (head,) = fit.heads
    assert "least_squares" in {one.loss_changes.get("loss") for one in head.tried}
    found = head.candidate.head.compute_logits(features[judged:]).argmax(axis=1)
    best = max(
        LogisticRegression(C=strength, max_iter=300)
        .fit(scaled[:train], values[:train])
        .score(scaled[judged:], values[judged:])
        for strength in (0.001, 0.01, 0.1, 1.0)
    )
    assert (found == values[judged:]).mean() >= best - 0.02


@pytest.mark.parametrize("is_sampled", [False, True])
def test_features_of_one_kernel_are_in_memory_at_a_time(
    is_sampled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(path, "_FOLDED_PATH_WORK", 0.0)  # so that finalists are fitted anew
    for module in (kernel, training):
        monkeypatch.setattr(module, "MAX_CENTERS", 40)
    if is_sampled:
        monkeypatch.setattr(sample, "_TRAIN_ROWS", 100)
    fit_kernel = training.fit_kernel
    made: list[weakref.ref[MemoryFeatures]] = []

    def make(*arguments: Any) -> kernel.Kernel:
        assert not any(features() for features in made)
        found = fit_kernel(*arguments)
        made.append(weakref.ref(found.features))
        return found

    monkeypatch.setattr(training, "fit_kernel", make)
    features, values = make_rows("multiclass")
    tasks = [
        replace(make_task("multiclass", values), name=name, settings=TaskSettings())
        for name in ("one", "two")
    ]
    labels = {"one": values, "two": values[::-1].copy()}
    targets = make_targets(tasks, labels, TRAIN, draw_folds(np.arange(TRAIN), 3, 0), "cpu")
    assert (draw_sample(targets, 40, 0) is not None) == is_sampled
    held, scaling = MemoryFeatures(torch.from_numpy(features), TRAIN), Scaling.identity(WIDTH)
    settings = HeadsSettings()
    configurations = list_configurations(settings, (0,))
    fit_heads(lambda _: (held, scaling), targets, tasks, configurations, settings)
    assert len(made) > 2
