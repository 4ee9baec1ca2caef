"""Losses against torch's own and scikit-learn's, and the papers' formulas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torch.nn import functional

from pipeline.config import TaskSettings
from pipeline.heads.losses import LossOptions
from pipeline.heads.targets import StackedLoss
from pipeline.heads.task_types import LabelSummary
from pipeline.heads.tasks import Task, resolve_loss
from pipeline.losses import LOSSES, CrossEntropy, Focal, Huber, SquaredError, list_losses

YES = Task("t", "binary", ("no", "yes"), LabelSummary((90, 10), 100))
CLASS = Task("t", "multiclass", ("a", "b", "c"), LabelSummary((60, 30, 10), 100))
TAGS = Task("t", "multilabel", ("x", "y"), LabelSummary((20, 50), 100))
LEVEL = Task("t", "ordinal", ("low", "middle", "high"), LabelSummary((1, 1, 1), 3))
PRICE = Task("t", "regression", labels=LabelSummary(center=10.0, spread=2.0))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def measure(
    task: Task, logits: torch.Tensor, labels: torch.Tensor, *options: LossOptions, **others: bool
) -> list[float]:
    """The loss of the same logits under each option."""
    stacked = logits[:, None].expand(-1, len(options), -1)
    return StackedLoss(task, options).average(stacked, labels, **others).tolist()


@pytest.mark.parametrize("weights", [None, (1.0, 6.0)])
def test_binary_loss_is_scikit_learns(weights: tuple[float, float] | None) -> None:
    logits, labels = torch.randn(50, 1), torch.randint(0, 2, (50,))
    sample = np.take(weights, labels) if weights else None
    expected = log_loss(labels, torch.sigmoid(logits.double()).numpy(), sample_weight=sample)
    (found,) = measure(YES, logits, labels, LossOptions(class_weights=weights))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, (1.0, 6.0, 0.5)])
def test_multiclass_loss_is_torchs(weights: tuple[float, ...] | None, smoothing: float) -> None:
    logits, labels = torch.randn(50, 3), torch.randint(0, 3, (50,))
    reference = torch.nn.CrossEntropyLoss(
        torch.tensor(weights) if weights else None, label_smoothing=smoothing
    )
    options = LossOptions(class_weights=weights, label_smoothing=smoothing)
    (found,) = measure(CLASS, logits, labels, options)
    assert found == pytest.approx(reference(logits, labels).item(), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, (1.0, 6.0)])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_a_binary_head_has_the_loss_of_two_classes(
    weights: tuple[float, ...] | None, smoothing: float, gamma: float
) -> None:
    logits, labels = torch.randn(50, 1), torch.randint(0, 2, (50,))
    options = LossOptions(Focal(gamma), weights, smoothing)
    two = Task("t", "multiclass", ("no", "yes"), YES.labels)
    both = torch.cat([torch.zeros(50, 1), logits], dim=1)
    assert measure(YES, logits, labels, options) == pytest.approx(
        measure(two, both, labels, options), rel=1e-5
    )


def test_focal_loss_is_the_papers() -> None:
    """Lin et al. (2017), equation 4: -(1 - p_t)**γ log p_t."""
    logits, labels = torch.randn(50, 3), torch.randint(0, 3, (50,))
    p = torch.softmax(logits, dim=1)[torch.arange(50), labels]
    for gamma in (0.0, 0.5, 2.0):
        expected = (-((1 - p) ** gamma) * p.log()).mean().item()
        (found,) = measure(CLASS, logits, labels, LossOptions(Focal(gamma)))
        assert found == pytest.approx(expected, rel=1e-5)


def test_logit_adjustment_is_the_papers_and_of_training_alone() -> None:
    """Menon et al. (2021), equation 10: cross-entropy of f(x) + τ log π."""
    logits, labels = torch.randn(50, 3), torch.randint(0, 3, (50,))
    shift = torch.tensor([0.6, 0.3, 0.1]).log()
    options = LossOptions(logit_adjustment=1.5)
    (found,) = measure(CLASS, logits, labels, options)
    assert found == pytest.approx(
        functional.cross_entropy(logits + 1.5 * shift, labels).item(), rel=1e-5
    )
    (judged,) = measure(CLASS, logits, labels, options, training=False)
    assert judged == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-5)
    one, yes = torch.randn(50, 1), torch.randint(0, 2, (50,))
    both = torch.cat([torch.zeros(50, 1), one], dim=1) + torch.tensor([0.9, 0.1]).log()
    (found,) = measure(YES, one, yes, LossOptions(logit_adjustment=1.0))
    assert found == pytest.approx(functional.cross_entropy(both, yes).item(), rel=1e-5)


def test_tags_are_torchs_binary_losses_with_pos_weight() -> None:
    logits, labels = torch.randn(50, 2), torch.randint(0, 2, (50, 2)).float()
    for weights in (None, (4.0, 1.0)):
        reference = torch.nn.BCEWithLogitsLoss(
            pos_weight=torch.tensor(weights) if weights else None
        )
        (found,) = measure(TAGS, logits, labels, LossOptions(class_weights=weights))
        assert found == pytest.approx(reference(logits, labels).item(), rel=1e-5)
    labels[3, 0] = np.nan  # one tag of a row is not known
    known = ~labels.isnan()
    expected = functional.binary_cross_entropy_with_logits(logits[known], labels[known]).item()
    assert measure(TAGS, logits, labels, LossOptions())[0] == pytest.approx(expected, rel=1e-5)


def test_ordinal_loss_is_the_papers() -> None:
    """Cao et al. (2020), equation 4: a binary cross-entropy for each step of the ladder."""
    logits, labels = torch.randn(30, 2), torch.randint(0, 3, (30,))
    steps = torch.stack([labels > 0, labels > 1], dim=1).float()
    expected = functional.binary_cross_entropy_with_logits(logits, steps, reduction="none")
    (found,) = measure(LEVEL, logits, labels, LossOptions())
    assert found == pytest.approx(expected.sum(dim=1).mean().item(), rel=1e-5)


def test_regression_losses_are_torchs_in_deviations() -> None:
    values, numbers = torch.randn(40, 1) * 2, torch.randn(40) * 4 + 10
    scaled = (numbers - 10) / 2
    labels = torch.from_numpy(PRICE.target.encode(numbers.double().numpy(), PRICE.labels))
    (found,) = measure(PRICE, values, labels, LossOptions(SquaredError()))
    assert found == pytest.approx(functional.mse_loss(values[:, 0], scaled).item(), rel=1e-5)
    expected = functional.huber_loss(values[:, 0], scaled, delta=0.7).item()
    (found,) = measure(PRICE, values, labels, LossOptions(Huber(0.7)))
    assert found == pytest.approx(expected, rel=1e-5)


def test_rows_without_a_label_weigh_nothing() -> None:
    logits, labels = torch.randn(50, 3), torch.randint(0, 3, (50,))
    options = [LossOptions(), LossOptions(class_weights=(1.0, 2.0, 3.0), label_smoothing=0.1)]
    known = torch.arange(50) % 3 > 0
    expected = measure(CLASS, logits[known], labels[known], *options)
    assert measure(CLASS, logits, torch.where(known, labels, -1), *options) == pytest.approx(
        expected, rel=1e-5
    )
    values, numbers = torch.randn(6, 1), torch.tensor([1.0, np.nan, 3.0, np.nan, 5.0, 6.0])
    present = ~numbers.isnan()
    expected = measure(PRICE, values[present], numbers[present], LossOptions(SquaredError()))
    assert measure(PRICE, values, numbers, LossOptions(SquaredError())) == pytest.approx(expected)


def test_each_configuration_of_a_stack_has_its_own_options() -> None:
    logits, labels = torch.randn(50, 3), torch.randint(0, 3, (50,))
    plain = Focal(0.0)  # which is cross-entropy
    options = [
        LossOptions(plain),
        LossOptions(Focal(2.0)),
        LossOptions(plain, class_weights=(1.0, 2.0, 3.0)),
        LossOptions(plain, label_smoothing=0.1),
        LossOptions(plain, (3.0, 1.0, 1.0), label_smoothing=0.2, logit_adjustment=1.0),
    ]
    alone = [measure(CLASS, logits, labels, one)[0] for one in options]
    assert measure(CLASS, logits, labels, *options) == pytest.approx(alone, rel=1e-5)
    chosen = StackedLoss(CLASS, options).select(torch.tensor([4, 1]))
    stacked = logits[:, None].expand(-1, 2, -1)
    assert chosen.average(stacked, labels).tolist() == pytest.approx([alone[4], alone[1]], rel=1e-5)


def test_a_stack_has_one_kind_of_loss() -> None:
    with pytest.raises(ValueError, match=r"one stack has one loss, got .*CrossEntropy.*Focal"):
        StackedLoss(CLASS, [LossOptions(), LossOptions(Focal(2.0))])


def test_gradients_are_finite_where_a_row_is_certain() -> None:
    logits = torch.tensor([[60.0, -60.0, 0.0], [-60.0, 60.0, 0.0]], requires_grad=True)
    options = [LossOptions(Focal(0.5)), LossOptions(Focal(0.0), label_smoothing=0.1)]
    loss = StackedLoss(CLASS, options).average(
        logits[:, None].expand(-1, 2, -1), torch.tensor([0, 0])
    )
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def expand(task: Task) -> torch.Tensor:
    """Labels whose shares of classes or tags are those of the task, as its type encodes them."""
    counts = task.labels.counts
    if task.type == "regression":
        numbers = np.random.default_rng(0).standard_normal(1000)
        labels = 10 + 2 * (numbers - numbers.mean()) / numbers.std()
    elif task.type == "multilabel":
        labels = np.stack([np.arange(task.labels.rows) < n for n in counts], axis=1).astype(np.int8)
    else:
        labels = np.repeat(np.arange(len(counts)), counts)
    return torch.from_numpy(task.target.encode(labels, task.labels))


@pytest.mark.parametrize("task", [YES, CLASS, TAGS, LEVEL, PRICE], ids=lambda task: task.type)
def test_heads_start_where_their_biases_are_best(task: Task) -> None:
    """The gradient of the loss by the biases is 0 there, and its second derivative by what one row
    of the weight adds to its logits is the curvature, on average over those rows."""
    options, labels = resolve_loss(task, {}), expand(task)
    loss = StackedLoss(task, [options])
    start = task.target.start(task.labels)

    def measure(shift: torch.Tensor) -> torch.Tensor:
        logits = torch.from_numpy(start.bias).double() + shift
        return loss.average(logits.expand(len(labels), 1, -1), labels)[0]

    zero = torch.zeros(task.weight_rows, dtype=torch.float64)
    bend = torch.autograd.functional.hessian(measure, zero).diagonal().mean().item()
    assert options.formula.curvature * start.curvature == pytest.approx(bend, rel=1e-5)
    each = torch.zeros(task.outputs, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(measure(each), each)
    assert slope.abs().max().item() < 1e-6


def test_huber_bends_half_as_much_as_the_square() -> None:
    tasks = {name: replace(PRICE, settings=TaskSettings(loss=name)) for name in ("mse", "huber")}
    zero = torch.zeros(1, 1, 1, dtype=torch.float64)
    for name, task in tasks.items():
        loss = StackedLoss(task, [resolve_loss(task, {})])

        def measure(z: torch.Tensor, loss: StackedLoss = loss) -> torch.Tensor:
            return loss.average(z, torch.zeros(1))[0]

        bend = torch.autograd.functional.hessian(measure, zero).item()
        assert LOSSES[name].curvature == pytest.approx(bend)


def test_a_loss_serves_the_types_that_it_names_and_takes_its_own_options() -> None:
    assert list_losses("ordinal") == ("cross_entropy",)
    assert list_losses("regression") == ("mse", "huber")
    task = replace(CLASS, settings=TaskSettings(loss="focal", focal_gamma=3.0, huber_delta=5.0))
    assert resolve_loss(task, {}).formula == Focal(3.0)
    assert resolve_loss(task, {"focal_gamma": 0.5}).formula == Focal(0.5)
    assert resolve_loss(task, {"loss": "cross_entropy"}).formula == CrossEntropy()
    assert resolve_loss(task, {"loss": "huber"}).formula == Focal(3.0)  # not for classes
    assert resolve_loss(PRICE, {"loss": "focal"}).formula == SquaredError()
