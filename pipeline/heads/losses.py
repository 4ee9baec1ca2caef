"""How the rows of one task count: a loss, and what classes weigh in it; for M models at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from pipeline.losses import CrossEntropy, Loss

if TYPE_CHECKING:
    from torch import Tensor

AnyLoss = TypeVar("AnyLoss", bound=Loss)


@dataclass(frozen=True)
class LossOptions:
    """How the rows of one task count under one configuration.

    :param formula: the loss, with its own options.
    :param class_weights: C factors in the order of the class index, or ``None`` for all alike; for
        tags, the weight of a present tag against an absent one.
    :param label_smoothing: ε, 0 to below 1.
    :param logit_adjustment: τ, 0 or more.
    """

    formula: Loss = field(default_factory=CrossEntropy)
    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    logit_adjustment: float = 0.0


@dataclass(frozen=True)
class StackedOptions:
    """The options of M models, stacked.

    :param formula: the loss, each field of which holds a tensor, [M].
    :param class_weights: [M, C], or ``None`` where no model weighs its classes.
    :param label_smoothing: ε of each model, [M].
    :param logit_shift: what is added to the logits in training, [M, O], or ``None`` for nothing.
    """

    formula: Loss
    class_weights: Tensor | None
    label_smoothing: Tensor
    logit_shift: Tensor | None

    @cached_property
    def smooths(self) -> bool:
        """Whether any model smooths its labels."""
        return bool(self.label_smoothing.any())

    def select(self, models: Tensor | slice) -> StackedOptions:
        """The options of some of the models.

        :param models: their numbers, or a mask of them, [M].
        """
        weights, shift = self.class_weights, self.logit_shift
        return StackedOptions(
            map_fields(self.formula, lambda value: value[models]),
            None if weights is None else weights[models],
            self.label_smoothing[models],
            None if shift is None else shift[models],
        )


def stack_options(
    options: Sequence[LossOptions], C: int, log_shares: np.ndarray | None, device: str
) -> StackedOptions:
    """Stack the options of M models.

    :param options: one for each model; all of one kind of loss.
    :param C: the number of classes.
    :param log_shares: what τ multiplies, [O]; ``None`` for a type without logit adjustment.
    :param device: the device that the tensors are for.
    :raises ValueError: if the losses are of several kinds.
    """
    kinds = {type(one.formula) for one in options}
    if len(kinds) > 1:
        raise ValueError(f"one stack has one loss, got {sorted(k.__name__ for k in kinds)}")
    weights = shift = None
    if any(one.class_weights for one in options):
        weights = _stack([one.class_weights or (1.0,) * C for one in options], device)
    if log_shares is not None and any(one.logit_adjustment for one in options):
        factors = _stack([one.logit_adjustment for one in options], device)
        shift = factors[:, None] * _stack(log_shares, device)
    return StackedOptions(
        stack_losses([one.formula for one in options], device),
        weights,
        _stack([one.label_smoothing for one in options], device),
        shift,
    )


def stack_losses(losses: Sequence[AnyLoss], device: str) -> AnyLoss:
    """One loss whose fields hold those of M losses of the same class, [M] each."""
    return replace(
        losses[0],
        **{
            option.name: _stack([getattr(loss, option.name) for loss in losses], device)
            for option in fields(losses[0])
        },
    )


def map_fields(loss: AnyLoss, function: Callable[[Tensor], Tensor]) -> AnyLoss:
    """A stacked loss with a function applied to each of its fields."""
    return replace(
        loss, **{option.name: function(getattr(loss, option.name)) for option in fields(loss)}
    )


def _stack(values: Sequence[float | Sequence[float]] | np.ndarray, device: str) -> Tensor:
    import torch

    return torch.tensor(np.array(values, np.float32), device=device)
