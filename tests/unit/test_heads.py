"""Losses, class weights, scaling and training, against scikit-learn and plain torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_class_weight

from pipeline.config import HeadsSettings, TaskSettings
from pipeline.corpus import LabelledRows, TaskLabels
from pipeline.errors import DataError, SettingsError
from pipeline.heads.features import Scaling
from pipeline.heads.module import HeadsModule, TensorBatches, compute_loss
from pipeline.heads.tasks import Task, compute_class_weights, make_tasks
from pipeline.heads.training import Fit, Part, fit_heads

SPAM = Task("spam", "binary", ("ham", "spam"))
MOOD = Task("mood", "multiclass", ("negative", "neutral", "positive"))


def make_part(rows: int, seed: int, width: int = 20) -> Part:
    """Features from which both tasks can be learned, about as well as real ones allow."""
    features, mood = make_classification(
        rows, width, n_informative=8, n_classes=3, flip_y=0.1, class_sep=1.0, random_state=7
    )
    order = np.random.default_rng(seed).permutation(rows)
    noise = np.random.default_rng(3).standard_normal(rows) * 2
    spam = (features[:, :3].sum(axis=1) + noise > 1.0).astype(int)
    labels = np.stack([spam, mood], axis=1)[order]
    return Part((features[order] * 3 + 5).astype(np.float32), labels.astype(np.int64))


def fit(tasks: tuple[Task, ...] = (SPAM, MOOD), **settings: object) -> Fit:
    train = make_part(600, 0)
    held_out = Part(train.features[400:], train.labels[400:])
    train = Part(train.features[:400], train.labels[:400])
    return fit_heads(train, held_out, tasks, HeadsSettings(**{"batch_size": 64, **settings}))


def test_balanced_weights_are_scikit_learns_each_on_its_own_class() -> None:
    # First appearance is not the index: so the notebook's weights landed on wrong classes.
    labels = np.array([2, 2, 0, 2, 1, 2, 0, 2, 2, 2])
    counts = np.bincount(labels, minlength=3)
    found = compute_class_weights("balanced", ("a", "b", "c"), counts, "t")
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(found, expected)
    assert np.argmax(found) == 1  # the rarest class weighs most
    assert compute_class_weights("none", ("a", "b", "c"), counts, "t") is None
    given = compute_class_weights({"c": 3.0, "a": 1.0, "b": 2.0}, ("a", "b", "c"), counts, "t")
    assert given == (1.0, 2.0, 3.0)
    with pytest.raises(SettingsError, match="a weight for each of a, b, c, got a, b"):
        compute_class_weights({"a": 1.0, "b": 2.0}, ("a", "b", "c"), counts, "t")


def test_balanced_weight_of_an_absent_class_is_zero() -> None:
    found = compute_class_weights("balanced", ("a", "b", "c"), np.array([30, 0, 10]), "t")
    assert found is not None
    np.testing.assert_allclose(found, [40 / 60, 0, 2.0])


@pytest.mark.parametrize("weights", [None, (1.0, 6.0)])
def test_binary_loss_is_scikit_learns(weights: tuple[float, float] | None) -> None:
    logits, labels = torch.randn(50, 1), torch.randint(0, 2, (50,))
    task = Task("t", "binary", ("no", "yes"), class_weights=weights)
    sample = np.take(weights, labels) if weights else None
    expected = log_loss(labels, torch.sigmoid(logits.double()).numpy(), sample_weight=sample)
    assert compute_loss(task, logits, labels).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weights", [None, (1.0, 6.0, 0.5)])
def test_multiclass_loss_is_torchs(weights: tuple[float, ...] | None) -> None:
    logits, labels = torch.randn(50, 3), torch.randint(0, 3, (50,))
    task = Task("t", "multiclass", ("a", "b", "c"), class_weights=weights)
    reference = torch.nn.CrossEntropyLoss(torch.tensor(weights) if weights else None)
    torch.testing.assert_close(compute_loss(task, logits, labels), reference(logits, labels))


def test_scaling_is_scikit_learns_and_folds_into_the_weights() -> None:
    features = make_part(300, 1).features
    features[:, 4] = 3.25  # a constant feature
    scaling = Scaling.fit(features)
    expected = StandardScaler().fit_transform(features.astype(np.float64))
    np.testing.assert_allclose(scaling.apply(features), expected, atol=1e-4)
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((3, 20)).astype(np.float32)
    bias = rng.standard_normal(3).astype(np.float32)
    folded, shifted = scaling.fold(weight, bias)
    np.testing.assert_allclose(
        features @ folded.T + shifted, scaling.apply(features) @ weight.T + bias, atol=1e-3
    )


def test_batches_hold_every_row_once_and_differ_by_epoch() -> None:
    features, labels = torch.arange(50.0)[:, None], torch.arange(50)[:, None]
    batches = TensorBatches(features, labels, 16, torch.Generator().manual_seed(0))
    epochs = [[y[:, 0] for _, y in batches] for _ in range(2)]
    assert [len(batch) for batch in epochs[0]] == [16, 16, 16, 2] == [16] * 3 + [2]
    assert len(batches) == 4
    for epoch in epochs:
        assert sorted(torch.cat(epoch).tolist()) == list(range(50))
    assert not torch.equal(torch.cat(epochs[0]), torch.cat(epochs[1]))
    in_order = torch.cat([y for _, y in TensorBatches(features, labels, 16)])
    assert torch.equal(in_order, labels)


def test_long_training_reaches_scikit_learns_optimum() -> None:
    """Without decay or early stopping the heads are plain logistic regressions."""
    train = make_part(600, 0)
    settings = HeadsSettings(
        batch_size=600, weight_decay=0.0, learning_rate=0.5, max_epochs=800, patience=None,
        keep="last",
    )  # fmt: skip
    found = fit_heads(train, train, (SPAM, MOOD), settings)
    for column, head in enumerate(found.heads):
        labels = train.labels[:, column]
        reference = LogisticRegression(C=np.inf, max_iter=5000).fit(
            StandardScaler().fit_transform(train.features), labels
        )
        scaled = StandardScaler().fit_transform(train.features)
        expected = log_loss(labels, reference.predict_proba(scaled))
        assert head.validation_loss == pytest.approx(expected, rel=0.02)


def test_saved_weights_give_the_validation_loss_of_the_kept_epoch() -> None:
    train = make_part(600, 0)
    found = fit()
    held_out, labels = train.features[400:], train.labels[400:]
    for column, head in enumerate(found.heads):
        logits = held_out @ head.weight.T + head.bias
        loss = compute_loss(
            head.task, torch.from_numpy(logits), torch.from_numpy(labels[:, column])
        )
        assert loss.item() == pytest.approx(head.validation_loss, rel=1e-3)
        curve = [r["validation_loss"] for r in found.curves if r["task"] == head.task.name]
        assert head.validation_loss == min(curve)
        assert head.epoch == 1 + int(np.argmin(curve))
        assert [r["epoch"] for r in found.curves if r["task"] == head.task.name] == list(
            range(1, found.epochs + 1)
        )


def test_each_task_keeps_an_epoch_of_its_own_and_training_stops_early() -> None:
    found = fit(learning_rate=0.3, patience=5, max_epochs=200)
    assert found.epochs == max(head.epoch for head in found.heads) + 5
    assert found.epochs < 200


def test_keep_last_takes_the_last_epoch() -> None:
    found = fit(keep="last", patience=None, max_epochs=7)
    assert {head.epoch for head in found.heads} == {7}
    assert found.heads[0].validation_loss == found.curves[-2]["validation_loss"]


def test_the_same_seed_gives_the_same_heads_bit_for_bit() -> None:
    first, second, other = fit(), fit(), fit(seed=1)
    for a, b, c in zip(first.heads, second.heads, other.heads, strict=True):
        np.testing.assert_array_equal(a.weight, b.weight)
        assert not np.array_equal(a.weight, c.weight)


def test_the_total_loss_is_the_weighted_sum() -> None:
    tasks = (SPAM, Task("mood", "multiclass", MOOD.classes, loss_weight=0.25))
    module = HeadsModule(20, tasks, optimizer="sgd", learning_rate=0.1, weight_decay=0.0)
    part = make_part(100, 2)
    batch = (torch.from_numpy(part.features), torch.from_numpy(part.labels))
    spam, mood = module.compute_losses(batch)
    torch.testing.assert_close(module.training_step(batch, 0), spam + 0.25 * mood)


def test_a_loss_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(DataError, match="loss is not a number"):
        fit(learning_rate=1e30, patience=None, max_epochs=5)


def make_labels(train: list[int], classes: tuple[str, ...] = ("ham", "spam")) -> LabelledRows:
    import pyarrow as pa

    labels = np.array([*train, 0, 1], np.int64)
    split = np.array(["train"] * len(train) + ["validation", "test"])
    keys = pa.array([bytes([n]) * 16 for n in range(len(labels))], pa.binary(16))
    return LabelledRows(keys, split, {"spam": TaskLabels(classes, labels)})


def test_tasks_are_checked_against_the_labels(capsys: pytest.CaptureFixture[str]) -> None:
    (task,) = make_tasks(None, make_labels([0, 1, 0]))
    assert task == Task("spam", "binary", ("ham", "spam"))
    with pytest.raises(DataError, match="all 3 training rows are 'ham'"):
        make_tasks(None, make_labels([0, 0, 0]))
    with pytest.raises(SettingsError, match=r"no such label .* did you mean `spam`"):
        make_tasks({"spm": TaskSettings()}, make_labels([0, 1]))
    three = make_labels([0, 1, 0], ("a", "b", "c"))
    with pytest.raises(SettingsError, match="binary needs two classes, the label has 3"):
        make_tasks({"spam": TaskSettings(type="binary")}, three)
    (task,) = make_tasks({"spam": TaskSettings()}, three)
    assert task.type == "multiclass"
    assert "no training row is 'c'" in capsys.readouterr().out
    (task,) = make_tasks({"spam": TaskSettings(type="multiclass")}, make_labels([0, 1]))
    assert task.outputs == 2
