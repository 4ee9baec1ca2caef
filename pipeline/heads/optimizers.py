"""SGD and AdamW for M models at once, each with a learning rate and a weight decay of its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

State = dict[str, torch.Tensor]
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
        self._steps = 0
        rates, decays = torch.tensor(learning_rates), torch.tensor(weight_decays)
        for parameter in self.param_groups[0]["params"]:
            shape = (-1, *[1] * (parameter.dim() - 1))  # which broadcasts against the parameter
            rate, decay = (x.to(parameter.device).view(shape) for x in (rates, decays))
            self.state[parameter] = self._make_state(parameter.detach(), rate, decay)

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
        for parameter in self.param_groups[0]["params"]:
            self._update(parameter, parameter.grad, self.state[parameter])
        return loss

    @abstractmethod
    def _make_state(
        self, parameter: torch.Tensor, rate: torch.Tensor, decay: torch.Tensor
    ) -> State:
        """What ``_update`` goes by and keeps for a parameter, by name, before the first step.

        :param rate: the learning rates, in a shape that broadcasts against the parameter.
        :param decay: the weight decays, likewise.
        """

    @abstractmethod
    def _update(self, parameter: torch.Tensor, gradient: torch.Tensor, state: State) -> None:
        """Change a parameter, and its state with it."""


class StackedSgd(StackedOptimizer):
    """SGD with Nesterov momentum of 0.9.

    Source: Sutskever et al. (2013), On the importance of initialization and momentum in deep
    learning.
    """

    def _make_state(
        self, parameter: torch.Tensor, rate: torch.Tensor, decay: torch.Tensor
    ) -> State:
        return {"momentum": torch.zeros_like(parameter), "rate": rate, "decay": decay}

    def _update(self, parameter: torch.Tensor, gradient: torch.Tensor, state: State) -> None:
        gradient = gradient + state["decay"] * parameter
        momentum = state["momentum"].mul_(_MOMENTUM).add_(gradient)
        parameter.sub_(state["rate"] * (gradient + _MOMENTUM * momentum))


class StackedAdamW(StackedOptimizer):
    """AdamW.

    Source: Loshchilov, Hutter (2019), Decoupled weight decay regularization.
    """

    def _make_state(
        self, parameter: torch.Tensor, rate: torch.Tensor, decay: torch.Tensor
    ) -> State:
        mean, square = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return {"mean": mean, "square": square, "rate": rate, "kept": 1 - rate * decay}

    def _update(self, parameter: torch.Tensor, gradient: torch.Tensor, state: State) -> None:
        mean, square = state["mean"], state["square"]
        parameter.mul_(state["kept"])
        mean.lerp_(gradient, 1 - _MEAN_DECAY)
        square.mul_(_SQUARE_DECAY).addcmul_(gradient, gradient, value=1 - _SQUARE_DECAY)
        spread = square.sqrt().div_((1 - _SQUARE_DECAY**self._steps) ** 0.5).add_(_EPSILON)
        parameter.sub_(state["rate"] / (1 - _MEAN_DECAY**self._steps) * mean / spread)


OPTIMIZERS: dict[str, type[StackedOptimizer]] = {"sgd": StackedSgd, "adamw": StackedAdamW}
