"""Paths of weight decay, against scikit-learn's heads that are tuned by cross-validation."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from pyarrow import parquet
from scipy.special import softmax
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, RidgeCV
from sklearn.metrics import f1_score, log_loss, r2_score
from sklearn.multiclass import OneVsRestClassifier

from pipeline.config import HeadsSettings
from pipeline.heads import path
from pipeline.heads.choosing import choose_thresholds
from pipeline.heads.configurations import list_configurations
from pipeline.heads.features import MemoryFeatures, Scaling
from pipeline.heads.held_out import encode_held_out
from pipeline.heads.path import PathSearch
from pipeline.heads.targets import draw_folds, make_targets
from pipeline.heads.task_types import LabelSummary
from pipeline.heads.tasks import Task
from pipeline.heads.training import TrainedHead, fit_heads
from pipeline.model.decision import Decision
from pipeline.model.tasks import TASK_TYPES

TRAIN, JUDGED, ROWS = 600, 800, 1800
WIDTH = 40


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_task(name: str, values: np.ndarray, metric: str) -> Task:
    train = values[:TRAIN]
    if name == "regression":
        summary = LabelSummary((), TRAIN, float(train.mean()), float(train.std()))
        return Task("y", name, (), summary, metric=metric)  # type: ignore[arg-type]
    counts = train.sum(axis=0) if name == "multilabel" else np.bincount(train)
    classes = tuple(map(str, range(len(counts))))
    summary = LabelSummary(tuple(counts.tolist()), TRAIN)
    return Task("y", name, classes, summary, metric=metric)  # type: ignore[arg-type]


def search(
    features: np.ndarray, values: np.ndarray, task: Task, **changes: object
) -> tuple[TrainedHead, np.ndarray]:
    """The head that the default search finds, and what it says about the rows behind the judged."""
    settings = HeadsSettings(**{"head": "linear", **changes})  # type: ignore[arg-type]
    scaling = Scaling.fit(features[:TRAIN])
    scaled = torch.from_numpy(scaling.apply(features[:JUDGED]))
    targets = make_targets(
        [task], {"y": values[:JUDGED]}, TRAIN, draw_folds(np.arange(TRAIN), 5, 0), "cpu"
    )
    fit = fit_heads(
        lambda _: (MemoryFeatures(scaled, TRAIN), scaling),
        targets, [task], list_configurations(settings, (0,)), settings,
    )  # fmt: skip
    (head,) = fit.heads
    return head, task.labels.restore(head.candidate.head.compute_logits(features[JUDGED:]))


def make_classes(noise: float, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    features, values = make_classification(
        ROWS, WIDTH, n_informative=12, n_classes=classes, flip_y=noise, random_state=1
    )
    return (features * 3 + 5).astype(np.float32), values


@pytest.mark.parametrize("noise", [0.0, 0.3, 0.9])
def test_classes_are_as_likely_as_by_a_tuned_logistic_regression(noise: float) -> None:
    features, values = make_classes(noise)
    head, logits = search(features, values, make_task("multiclass", values, "loss"))
    scaled = Scaling.fit(features[:TRAIN]).apply(features)
    reference = LogisticRegressionCV(
        Cs=np.logspace(-5, 3, 17), cv=5, scoring="neg_log_loss", max_iter=2000,
        use_legacy_attributes=False, l1_ratios=(0,),
    ).fit(scaled[:TRAIN], values[:TRAIN])  # fmt: skip
    expected = log_loss(values[JUDGED:], reference.predict_proba(scaled[JUDGED:]))
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    found = log_loss(values[JUDGED:], odds / odds.sum(axis=1, keepdims=True))
    assert found <= expected + 0.02
    assert head.bound is None
    decay = head.configuration.weight_decay
    assert decay is not None
    # Within a step of the path of what cross-validation finds: C is 1 / (λ n).
    assert abs(np.log10(decay * TRAIN * float(reference.C_))) <= 1.01


def test_numbers_are_those_of_a_tuned_ridge_regression() -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((ROWS, 200)).astype(np.float32)
    values = features @ rng.standard_normal(200) / 14 + rng.standard_normal(ROWS) * 2
    head, numbers = search(features, values, make_task("regression", values, "r2"))
    scaled = Scaling.fit(features[:TRAIN]).apply(features)
    reference = RidgeCV(np.logspace(-2, 6, 33)).fit(scaled[:TRAIN], values[:TRAIN])
    expected = r2_score(values[JUDGED:], reference.predict(scaled[JUDGED:]))
    assert r2_score(values[JUDGED:], numbers[:, 0]) >= expected - 0.01
    assert head.configuration.weight_decay == pytest.approx(reference.alpha_ / TRAIN, rel=1.5)


@pytest.mark.parametrize("tags", [3, 60])
def test_tags_are_those_of_tuned_heads_one_against_the_rest(tags: int) -> None:
    """The number of tags does not move the range of the path."""
    rng = np.random.default_rng(tags)
    features = rng.standard_normal((ROWS, WIDTH)).astype(np.float32)
    mix = rng.standard_normal((WIDTH, tags)) / 2
    values = (features @ mix + rng.gumbel(size=(ROWS, tags)) > 2).astype(np.int8)
    head, logits = search(features, values, make_task("multilabel", values, "f1_micro"))
    scaled = Scaling.fit(features[:TRAIN]).apply(features)
    best = 0.0
    for strength in np.logspace(-4, 2, 7):
        model = OneVsRestClassifier(LogisticRegression(C=strength, max_iter=1000))
        model.fit(scaled[:TRAIN], values[:TRAIN])
        found = f1_score(values[JUDGED:], model.predict(scaled[JUDGED:]), average="micro")
        best = max(best, found)
    assert f1_score(values[JUDGED:], logits > 0, average="micro") >= best - 0.02
    assert head.bound is None


def test_a_head_at_a_bound_of_the_path_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels of pure noise want a stronger decay than a path that is cut short has."""
    monkeypatch.setattr(path, "_STRONGEST", path._FIRST)
    rng = np.random.default_rng(0)
    features = rng.standard_normal((ROWS, WIDTH)).astype(np.float32)
    values = rng.integers(0, 2, ROWS)
    head, _ = search(features, values, make_task("binary", values, "loss"))
    decays = [c.weight_decay for c in head.tried]
    assert head.configuration.weight_decay == max(decays)  # type: ignore[type-var]
    assert head.bound == "strongest"


def test_a_path_on_one_split_ends_where_the_path_in_all_folds_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features, values = make_classes(0.2)
    task = make_task("multiclass", values, "accuracy")
    folded, _ = search(features, values, task)
    monkeypatch.setattr(path, "_FOLDED_PATH_WORK", 0.0)
    screened, _ = search(features, values, task)
    assert len(screened.candidate.held_out) == JUDGED  # of all rows, by the folds that left them
    assert screened.scores[0].value >= folded.scores[0].value - 0.015
    assert len(screened.tried) < len(folded.tried)


def test_paths_in_all_folds_and_on_one_split_are_compared_by_the_same_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The path of kernel heads, which are wider, may be too long for all folds, and that of linear
    ones not."""
    features, values = make_classes(0.2)
    task = make_task("multiclass", values, "accuracy")
    work = path._count_work(task, JUDGED, WIDTH, 6)
    assert work < path._count_work(task, JUDGED, TRAIN, 6)
    monkeypatch.setattr(path, "_FOLDED_PATH_WORK", work * 2)
    head, _ = search(features, values, task, head="auto")
    assert len(head.candidate.held_out) == JUDGED
    for name in ("linear", "kernel"):
        alone, _ = search(features, values, task, head=name)
        assert head.scores[0].value >= alone.scores[0].value - 0.01
    monkeypatch.setattr(path, "_MANY_JUDGED_ROWS", 1)  # no fold is fitted after the paths
    head, _ = search(features, values, task, head="auto")
    assert {c.head for c in head.tried} == {"linear", "kernel"}
    assert len(head.candidate.held_out) == JUDGED - TRAIN


def test_folds_after_a_path_on_one_split_have_not_seen_what_they_judge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Labels of pure noise cannot be told from heads that have not seen them, however weak λ."""
    monkeypatch.setattr(path, "_FOLDED_PATH_WORK", 0.0)
    rng = np.random.default_rng(3)
    features = rng.standard_normal((ROWS, 300)).astype(np.float32)
    values = rng.integers(0, 2, ROWS)
    task = make_task("binary", values, "accuracy")
    scaling = Scaling.fit(features[:TRAIN])
    shown = MemoryFeatures(torch.from_numpy(scaling.apply(features[:JUDGED])), TRAIN)
    folds = draw_folds(np.arange(TRAIN), 5, 0)
    targets = make_targets([task], {"y": values[:JUDGED]}, TRAIN, folds, "cpu")
    configurations = list_configurations(HeadsSettings(head="linear"), (0,))
    one = PathSearch(task, configurations, targets)
    one.walk(one.families[0], shown)
    walked = one._walks[one.families[0]].steps
    steps = one.refit(sorted(walked, key=lambda step: step.decay)[:2], shown)
    for step in steps:
        assert np.mean((step.held_out[:, 0] > 0) == values[:JUDGED]) < 0.58


def test_fits_in_all_folds_end_where_each_would_from_nothing() -> None:
    """A path to a weak decay leads folds to their optimum, which scikit-learn finds, too."""
    features, values = make_classes(0.2, classes=2)
    task = make_task("binary", values, "loss")
    scaling = Scaling.fit(features[:TRAIN])
    scaled = scaling.apply(features[:JUDGED])
    shown = MemoryFeatures(torch.from_numpy(scaled), TRAIN)
    folds = draw_folds(np.arange(TRAIN), 5, 0)
    targets = make_targets([task], {"y": values[:JUDGED]}, TRAIN, folds, "cpu")
    one = PathSearch(task, list_configurations(HeadsSettings(head="linear"), (0,)), targets)
    one.walk(one.families[0], shown)
    walked = one._walks[one.families[0]].steps
    (step,) = one.refit([dataclasses.replace(walked[0], decay=1e-3)], shown)
    decay = step.configuration.weight_decay
    assert decay is not None
    for fold in range(5):
        rows = np.flatnonzero(folds != fold)
        model = LogisticRegression(C=1 / (decay * len(rows)), max_iter=5000, tol=1e-8)
        model.fit(scaled[rows], values[rows])
        left = np.flatnonzero(folds == fold)
        expected = log_loss(values[left], model.predict_proba(scaled[left]))
        odds = 1 / (1 + np.exp(-step.held_out[left, 0]))
        assert log_loss(values[left], odds) == pytest.approx(expected, rel=0.05)


def test_without_folds_where_they_would_take_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    features, values = make_classes(0.2)
    monkeypatch.setattr(path, "_FOLDED_PATH_WORK", 0.0)
    monkeypatch.setattr(path, "_FOLDED_WORK", 0.0)
    head, _ = search(features, values, make_task("multiclass", values, "accuracy"))
    assert len(head.candidate.held_out) == JUDGED - TRAIN
    assert head.scores[0].value > 0.5


def test_an_adjustment_taken_off_the_biases_is_that_of_training_with_it() -> None:
    features, values = make_classes(0.2)
    values = np.where(values == 2, np.where(np.arange(ROWS) % 4, 0, 2), values)
    task = make_task("multiclass", values, "f1_macro")
    head, _ = search(features, values, task)
    adjusted = next(c for c in head.tried if c.loss_changes["logit_adjustment"] == 0.5)
    trained, _ = search(
        features, values, task, search=({"weight_decay": (adjusted.weight_decay,),
                                         "logit_adjustment": (0.5,)},),
    )  # fmt: skip
    number = head.tried.index(adjusted)
    (found,) = (of for of in head.scores if of.numbers[0] == number)
    assert found.value == pytest.approx(trained.scores[0].value, abs=0.01)
    assert found.loss == pytest.approx(trained.scores[0].loss, rel=0.01)


def test_a_tag_without_training_rows_is_never_predicted_and_rare_ones_lean_on_the_others() -> None:
    rng = np.random.default_rng(2)
    features = rng.standard_normal((ROWS, WIDTH)).astype(np.float32)
    values = (features[:, :4] + rng.standard_normal((ROWS, 4)) > 1).astype(np.int8)
    values[:TRAIN, 3] = 0  # no training row has it, validation rows do
    rare = np.flatnonzero(values[:JUDGED, 2])
    values[rare[3:], 2] = 0
    task = make_task("multilabel", values, "f1_macro")
    spreads = {}
    logits_of_all: np.ndarray | None = None
    for aim in ("f1", "auto", "f1_micro", 0.3):
        head, logits = search(features, values, dataclasses.replace(task, threshold=aim))
        thresholds = head.calibration.decision.thresholds
        assert thresholds is not None
        assert thresholds[3] == 1.0
        found = TASK_TYPES["multilabel"].predict(logits + 100, head.calibration.decision)
        assert found[:, :3].all()
        assert not found[:, 3].any()
        if logits_of_all is None:  # spreads are compared on what one head says
            logits_of_all = head.candidate.held_out
        aimed = dataclasses.replace(task, threshold=aim)
        own = np.array(choose_thresholds(aimed, logits_of_all, values[:JUDGED], Decision())[:3])
        spreads[aim] = np.ptp(np.log(own / (1 - own)))
    assert spreads["f1"] > spreads["auto"] > spreads["f1_micro"] == spreads[0.3] == 0


def test_nearly_constant_features_get_no_huge_weight() -> None:
    features, values = make_classes(0.2)
    features[:, 5] = 1 + 1e-5 * np.random.default_rng(0).standard_normal(ROWS)
    head, _ = search(features, values, make_task("multiclass", values, "loss"))
    weights = np.abs(head.candidate.head.weight)
    assert weights[:, 5].max() < 10 * np.delete(weights, 5, axis=1).max()


def test_held_out_predictions_are_kept_by_row_and_fold() -> None:
    features, values = make_classes(0.2)
    head, _ = search(features, values, make_task("multiclass", values, "loss"))
    rows, folds = np.arange(JUDGED) * 2, draw_folds(np.arange(TRAIN), 5, 0)
    content = encode_held_out([head], rows, TRAIN, folds)
    table = parquet.read_table(io.BytesIO(content)).to_pydict()
    assert table["row"] == rows.tolist()
    assert set(table["task"]) == {"y"}
    assert table["fold"] == [*folds.tolist(), *[None] * (JUDGED - TRAIN)]
    # The logits of validation rows are those of the head that is kept.
    kept = head.candidate.head.compute_logits(features[TRAIN:JUDGED])
    np.testing.assert_allclose(np.array(table["logits"])[TRAIN:], kept, atol=1e-3)
    # Those of training rows are not: they come from heads that have not seen the rows.
    seen = head.candidate.head.compute_logits(features[:TRAIN])
    losses = [log_loss(values[:TRAIN], softmax(x, axis=1)) for x in (table["logits"][:TRAIN], seen)]
    assert losses[0] > losses[1]
