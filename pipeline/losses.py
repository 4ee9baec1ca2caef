"""The losses that heads can learn by: the options of each, its formula, and what it serves.

A new loss is a class with the decorator ``@dataclass(frozen=True)`` and an entry in ``LOSSES``. Its
fields, all numbers, become settings of a task and keys of a search, with the bounds and the
description that their annotations give.

The settings stand on this module, so it imports no torch: the formulas are written with the
methods and operators of tensors alone. Where M models are trained at once, every field holds a
tensor with one number a model, whose shape broadcasts against the last axes of the terms.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, get_type_hints

from pydantic import Field

Tensor = Any  # one of torch, which this module does not import


@dataclass(frozen=True)
class Loss(ABC):
    """One way to measure how far the outputs of a head are from a label.

    :cvar task_types: the names of the types of task that it serves, as in ``TASK_TYPES``.
    :cvar curvature: about the second derivative of the loss: by the error for a loss of numbers; by
        a logit for a loss of outputs; in units of p (1 - p), that of cross-entropy, for a loss of
        classes. The full-batch solver starts from it; a wrong value costs steps, and changes
        nothing of what it converges to.
    :cvar is_quadratic: whether that derivative is the same everywhere, so that heads without a
        hidden layer can be had in closed form.
    :cvar is_likelihood: whether heads that minimize it have probabilities of about the right size,
        even before a temperature is fitted.
    """

    task_types: ClassVar[tuple[str, ...]]
    curvature: ClassVar[float] = 1.0
    is_quadratic: ClassVar[bool] = False
    is_likelihood: ClassVar[bool] = True


@dataclass(frozen=True)
class ClassLoss(Loss):
    """A loss of rows that belong to classes or have tags.

    It is a function of p, the probability that the head gives to the true class, or to a tag's
    being present or absent as it is.
    """

    @abstractmethod
    def compute(self, cross_entropy: Tensor, find_wrong: Callable[[], Tensor]) -> Tensor:
        """The loss of each term.

        :param cross_entropy: -log p, with label smoothing and, where that needs it, class weights
            already in it: [B, M], or [B, M, O] where each output is a decision of its own.
        :param find_wrong: a function that computes 1 - p, of the same shape.
        :returns: losses of the same shape.
        """


@dataclass(frozen=True)
class OutputLoss(Loss):
    """A loss of outputs, each of which says by itself whether a class or a tag holds.

    A loss of classes judges the probability of the true class, which all outputs make together.
    """

    @abstractmethod
    def compute(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of each output.

        :param logits: [B, M, O].
        :param target: 1 where the class or tag holds, 0 where it does not, with label smoothing
            between them; a shape that broadcasts to that of the logits.
        :returns: losses, [B, M, O].
        """


@dataclass(frozen=True)
class NumberLoss(Loss):
    """A loss of rows that have a number."""

    @abstractmethod
    def compute(self, error: Tensor) -> Tensor:
        """The loss of each row.

        :param error: output minus label, in deviations of the training labels, [B, M].
        :returns: losses, [B, M].
        """


@dataclass(frozen=True)
class CrossEntropy(ClassLoss):
    """-log p."""

    task_types = ("binary", "multiclass", "multilabel", "ordinal")

    def compute(self, cross_entropy: Tensor, find_wrong: Callable[[], Tensor]) -> Tensor:
        return cross_entropy


@dataclass(frozen=True)
class Focal(ClassLoss):
    """(1 - p)**γ times the cross-entropy.

    Source: Lin et al. (2017), Focal loss for dense object detection.

    :param focal_gamma: γ, 0 or more.
    """

    task_types = ("binary", "multiclass", "multilabel")

    focal_gamma: Annotated[
        float,
        Field(
            ge=0,
            strict=True,
            description="The exponent γ of the focal loss, 0 or more: the higher, the less do rows "
            "count that are classified well already. The default is that of the loss's authors.",
        ),
    ] = 2.0

    def compute(self, cross_entropy: Tensor, find_wrong: Callable[[], Tensor]) -> Tensor:
        # A power below 1 has no finite gradient at 0.
        return cross_entropy * find_wrong().clamp_min(1e-12).pow(self.focal_gamma)


# The logit that least squares wants where a class or tag holds, and the negative of which it wants
# elsewhere. Probabilities are then of about the right size before a temperature is fitted.
_SURE_LOGIT = 5.0


@dataclass(frozen=True)
class LeastSquares(OutputLoss):
    """Half the squared distance of a logit from 5 or -5, in parts of 25.

    Sources: Suykens, Vandewalle (1999), Least squares support vector machine classifiers; Rifkin,
    Klautau (2004), In defense of one-vs-all classification.
    """

    task_types = ("binary", "multiclass", "multilabel")
    curvature = _SURE_LOGIT**-2
    is_quadratic = True
    is_likelihood = False

    def compute(self, logits: Tensor, target: Tensor) -> Tensor:
        wanted = _SURE_LOGIT * (2 * target - 1)
        return (logits - wanted).square() * (0.5 / _SURE_LOGIT**2)


@dataclass(frozen=True)
class SquaredError(NumberLoss):
    """The square of the error."""

    task_types = ("regression",)
    curvature = 2.0
    is_quadratic = True

    def compute(self, error: Tensor) -> Tensor:
        return error.square()


@dataclass(frozen=True)
class Huber(NumberLoss):
    """Half the square of an error e up to δ, and δ (|e| - δ / 2) beyond.

    Source: Huber (1964), Robust estimation of a location parameter.

    :param huber_delta: δ, above 0, in deviations of the training labels.
    """

    task_types = ("regression",)

    huber_delta: Annotated[
        float,
        Field(
            gt=0,
            strict=True,
            description="The error, in standard deviations of the training labels, above which "
            "Huber's loss grows linearly instead of quadratically.",
        ),
    ] = 1.0

    def compute(self, error: Tensor) -> Tensor:
        size = error.abs()
        beyond = self.huber_delta * (size - 0.5 * self.huber_delta)
        return (0.5 * error.square()).where(size <= self.huber_delta, beyond)


# The first loss that serves a type of task is its default.
LOSSES: dict[str, type[Loss]] = {
    "cross_entropy": CrossEntropy,
    "focal": Focal,
    "least_squares": LeastSquares,
    "mse": SquaredError,
    "huber": Huber,
}


def list_losses(task_type: str) -> tuple[str, ...]:
    """The names of the losses that serve a type of task, its default first."""
    return tuple(name for name, loss in LOSSES.items() if task_type in loss.task_types)


def describe_losses() -> str:
    """Each loss and the types of task that it serves, in words."""
    served = {name: [*loss.task_types] for name, loss in LOSSES.items()}
    return "; ".join(
        f"`{name}` for " + ", ".join([*types[:-2], " and ".join(types[-2:])]) + " tasks"
        for name, types in served.items()
    )


def list_options() -> dict[str, tuple[Any, Any]]:
    """The options of all losses.

    :returns: name → type with its bounds and its description, and default.
    """
    return {
        option.name: (get_type_hints(loss, include_extras=True)[option.name], option.default)
        for loss in LOSSES.values()
        for option in fields(loss)
    }


def make_loss(name: str, options: Mapping[str, Any]) -> Loss:
    """A loss with its options.

    :param name: one of ``LOSSES``.
    :param options: values by name; those of other losses are passed over.
    """
    kind = LOSSES[name]
    return kind(**{option.name: options[option.name] for option in fields(kind)})
