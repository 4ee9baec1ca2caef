"""SGD and AdamW for M models at once, each with a learning rate and a weight decay of its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

_MOMENTUM = 0.9  # of SGD
_MEAN_DECAY, _SQUARE_DECAY, _EPSILON = 0.9, 0.999, 1e-8  # of AdamW, as torch has them


class StackedOptimizer(Optimizer):
    """An optimizer of parameters whose first axis is that of M models.

    :param parameters: tensors, [M, …].
    :param learning_rates: one for each model.
    :param weight_decays: one for each model.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rates: Sequence[float],
        weight_decays: Sequence[float],
    ) -> None:
        super().__init__(parameters, {})
        self._learning_rates = torch.tensor(learning_rates)
        self._weight_decays = torch.tensor(weight_decays)
        self._steps = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of each model.

        :param closure: a function that computes the loss and its gradients.
        :returns: what it returns.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._steps += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                shape = (-1, *[1] * (parameter.dim() - 1))
                rate = self._learning_rates.to(parameter).view(shape)
                decay = self._weight_decays.to(parameter).view(shape)
                self._update(parameter, parameter.grad, rate, decay)
        return loss

    @abstractmethod
    def _update(
        self,
        parameter: torch.Tensor,
        gradient: torch.Tensor,
        rate: torch.Tensor,
        decay: torch.Tensor,
    ) -> None:
        """Change a parameter, given rate and decay in shapes that broadcast against it."""


class StackedSgd(StackedOptimizer):
    """SGD with Nesterov momentum of 0.9.

    Source: Sutskever et al. (2013), On the importance of initialization and momentum in deep
    learning.
    """

    def _update(
        self,
        parameter: torch.Tensor,
        gradient: torch.Tensor,
        rate: torch.Tensor,
        decay: torch.Tensor,
    ) -> None:
        gradient = gradient + decay * parameter
        state = self.state[parameter]
        if "momentum" in state:
            state["momentum"].mul_(_MOMENTUM).add_(gradient)
        else:
            state["momentum"] = gradient.clone()
        parameter.sub_(rate * (gradient + _MOMENTUM * state["momentum"]))


class StackedAdamW(StackedOptimizer):
    """AdamW.

    Source: Loshchilov, Hutter (2019), Decoupled weight decay regularization.
    """

    def _update(
        self,
        parameter: torch.Tensor,
        gradient: torch.Tensor,
        rate: torch.Tensor,
        decay: torch.Tensor,
    ) -> None:
        state = self.state[parameter]
        if not state:
            state |= {"mean": torch.zeros_like(gradient), "square": torch.zeros_like(gradient)}
        mean, square = state["mean"], state["square"]
        parameter.mul_(1 - rate * decay)
        mean.lerp_(gradient, 1 - _MEAN_DECAY)
        square.mul_(_SQUARE_DECAY).addcmul_(gradient, gradient, value=1 - _SQUARE_DECAY)
        spread = square.sqrt().div_((1 - _SQUARE_DECAY**self._steps) ** 0.5).add_(_EPSILON)
        parameter.sub_(rate / (1 - _MEAN_DECAY**self._steps) * mean / spread)


OPTIMIZERS: dict[str, type[StackedOptimizer]] = {"sgd": StackedSgd, "adamw": StackedAdamW}
