"""Full-batch L-BFGS for many linear heads at once.

Each of M heads minimizes its mean loss plus λ/2 of its squared weights; biases are not penalized.
All heads take their steps together: one matrix product gives the logits along all directions, one
gives all gradients, and whatever lies between is elementwise. A line search costs no product, since
logits are linear in the weights.

Sources: Liu, Nocedal (1989), On the limited memory BFGS method for large scale optimization;
Böhning (1992), Multinomial logistic regression algorithm (the bound on the curvature).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from pipeline.heads.basis import Basis
from pipeline.onednn import multiply

# A function of logits, [B, M, O], and of the numbers of the M heads that they are of: losses, [M].
Objective = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# A function that gives all features anew each time, in blocks: which rows, and theirs, [B, D].
Blocks = Callable[[], Iterable[tuple[slice | torch.Tensor, torch.Tensor]]]

# The number of past steps that a head remembers. Implementations keep 5 to 10.
_MEMORY_STEPS = 8
_MAX_HALVINGS = 25
# Heads that are done are put aside once they are one in so many of those in the stack: that copies
# the state of all others, so it is not done for each.
_PUT_ASIDE_SHARE = 8


@dataclass(frozen=True)
class _State:
    """Where the M heads in the stack are. P numbers make a head: R·D weights and then O biases."""

    numbers: torch.Tensor  # of the heads among those that the solver began with, int64, [M]
    flat: torch.Tensor  # the heads, [M, P]
    logits: torch.Tensor  # [B, M, O]
    loss: torch.Tensor  # with the penalty, [M]
    gradient: torch.Tensor  # of the loss with the penalty, [M, P]
    scaled: torch.Tensor  # the gradient, multiplied by the preconditioner, [M, P]
    running: torch.Tensor  # whether a head is not done yet; one that is done stays where it is, [M]

    def select(self, mask: torch.Tensor) -> _State:
        """Some of the heads.

        :param mask: which, [M].
        """
        return _State(
            self.numbers[mask],
            self.flat[mask],
            self.logits[:, mask],
            self.loss[mask],
            self.gradient[mask],
            self.scaled[mask],
            self.running[mask],
        )


@dataclass(frozen=True)
class _Pair:
    """A past step of each of M heads, and the change of the gradient that it brought."""

    step: torch.Tensor  # [M, P]
    change: torch.Tensor  # [M, P]
    scaled: torch.Tensor  # the change, multiplied by the preconditioner, [M, P]
    inverse: torch.Tensor  # 1 / (step · change); 0 for a pair that is of no use, [M]

    def select(self, mask: torch.Tensor) -> _Pair:
        """The pairs of some of the heads.

        :param mask: which, [M].
        """
        return _Pair(self.step[mask], self.change[mask], self.scaled[mask], self.inverse[mask])


class StackedLbfgs(Optimizer):
    """L-BFGS on M heads of one task at once, step by step.

    No head's path depends on the others: each has its own step sizes and memory, and stops for
    itself. The parameters hold the heads as they are after each step.

    :param weight: the heads' weights, [M, R, D], R being O, or 1 for a weight that all logits of a
        head share; they must be 0.
    :param bias: the heads' biases, [M, O], alike in all of them.
    :param blocks: a function that gives the features of all rows.
    :param objective: a function that gives the mean loss of each head from logits.
    :param decay: λ of each head, [M].
    :param basis: the directions in which the features vary most.
    :param rows: B.
    :param curvature: about the second derivative of the loss by a logit: the preconditioner takes
        it for the same everywhere.
    :param tolerance: a head is done when a further step promises less than this share of its loss.
    :ivar steps: the number of steps that each head took, int64, [M].
    :ivar logits: the logits of all heads as they were after the last call of ``read_logits``.
    """

    def __init__(
        self,
        weight: nn.Parameter,
        bias: nn.Parameter,
        blocks: Blocks,
        objective: Objective,
        decay: torch.Tensor,
        basis: Basis,
        *,
        rows: int,
        curvature: float,
        tolerance: float,
    ) -> None:
        super().__init__([weight, bias], {})
        self._weight, self._bias = weight, bias
        self._blocks = blocks
        self._objective = objective
        self._decay = decay
        self._basis = basis
        self._R, self._D = weight.shape[1:]
        self._split = self._R * self._D
        self._curvature = curvature
        self._tolerance = tolerance
        self._pairs: deque[_Pair] = deque(maxlen=_MEMORY_STEPS)
        M, device = len(decay), decay.device
        # The factor of each head's preconditioner that its last step calls for, [M].
        self._scale = torch.ones(M, device=device)
        self.steps = torch.zeros(M, dtype=torch.int64)
        flat = torch.cat([weight.detach().flatten(1), bias.detach()], dim=1)
        self.logits = self._multiply(flat, rows)
        numbers = torch.arange(M, device=device)
        loss, slopes = self._differentiate(self.logits, numbers)
        loss = loss + self._penalty(flat, numbers)
        gradient = self._pull_back(slopes) + self._penalty_gradient(flat, numbers)
        self._state = _State(
            numbers,
            flat,
            self.logits,
            loss,
            gradient,
            self._precondition(gradient, numbers),
            torch.ones_like(numbers, dtype=torch.bool),
        )

    @property
    def done(self) -> bool:
        """Whether all heads are done."""
        return not len(self._state.numbers)

    def read_logits(self) -> torch.Tensor:
        """Logits of all heads as they are now: [B, M, O]."""
        self.logits[:, self._state.numbers] = self._state.logits
        return self.logits

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step with each head that is not done, and put aside those that are then.

        :param closure: not used: the objective takes its place.
        """
        if self.done:
            return
        state = self._state
        direction, slope = self._choose_direction(state)
        moved = self._push_forward(direction)
        size = self._search(direction, moved, slope)
        step = size[:, None] * direction
        logits = state.logits + size[:, None] * moved
        flat = state.flat + step
        loss, slopes = self._differentiate(logits, state.numbers)
        loss = loss + self._penalty(flat, state.numbers)
        gradient = self._pull_back(slopes) + self._penalty_gradient(flat, state.numbers)
        scaled = self._precondition(gradient, state.numbers)
        self._remember(step, gradient - state.gradient, scaled - state.scaled)
        self.steps[state.numbers[state.running].cpu()] += 1
        promise = self._scale * (gradient * scaled).sum(dim=1) / 2
        more = (promise > self._tolerance * loss.abs()) & (size > 0) & loss.isfinite()
        self._state = _State(
            state.numbers, flat, logits, loss, gradient, scaled, state.running & more
        )
        self._write_parameters()
        self._put_aside()

    def _choose_direction(self, state: _State) -> tuple[torch.Tensor, torch.Tensor]:
        """A direction for each head, [M, P], and the slope of its loss along it, [M]."""
        direction = -self._precondition_by_pairs(state)
        slope = (state.gradient * direction).sum(dim=1)
        uphill = slope >= 0
        if bool(uphill.any()):
            self._forget(uphill)
            direction = torch.where(uphill[:, None], -state.scaled, direction)
            slope = (state.gradient * direction).sum(dim=1)
        return direction, slope

    def _differentiate(
        self, logits: torch.Tensor, numbers: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of each head, [M], and its gradient by logits, [B, M, O]."""
        leaf = logits.detach().requires_grad_(True)
        with torch.enable_grad():
            losses = self._objective(leaf, numbers)
            (slopes,) = torch.autograd.grad(losses.sum(), leaf)
        return losses.detach(), slopes

    def _penalty(self, flat: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        squares = flat[:, : self._split].square().sum(dim=1)
        return self._decay[numbers] / 2 * squares

    def _penalty_gradient(self, flat: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        gradient = self._decay[numbers][:, None] * flat
        gradient[:, self._split :] = 0
        return gradient

    def _push_forward(self, direction: torch.Tensor) -> torch.Tensor:
        """By how much the logits change along a direction, [M, P]: [B, M, O]."""
        return self._multiply(direction, len(self._state.logits))

    def _multiply(self, flat: torch.Tensor, B: int) -> torch.Tensor:
        """The logits that heads, [M, P], give B rows: [B, M, O]."""
        M, bias = len(flat), flat[:, self._split :]
        weight = flat[:, : self._split].reshape(M * self._R, self._D)
        logits = flat.new_empty(B, *bias.shape)
        if not weight.any():  # as at the start, where no product is needed
            return logits.copy_(bias.expand_as(logits))
        for rows, features in self._blocks():
            logits[rows] = multiply(features, weight).view(-1, M, self._R) + bias
        return logits

    def _pull_back(self, slopes: torch.Tensor) -> torch.Tensor:
        """The gradient by weights and biases, [M, P], from that by logits, [B, M, O]."""
        B, M, outputs = slopes.shape
        by_weight = slopes.sum(dim=2, keepdim=True) if outputs > self._R else slopes
        flat = by_weight.reshape(B, M * self._R)
        weight = torch.zeros(M * self._R, self._D, device=slopes.device)
        for rows, features in self._blocks():
            weight += multiply(flat[rows].T, features.T)
        return torch.cat([weight.view(M, -1), slopes.sum(dim=0)], dim=1)

    def _search(
        self, direction: torch.Tensor, moved: torch.Tensor, slope: torch.Tensor
    ) -> torch.Tensor:
        """The step size of each head, halved from 1 until its loss falls enough (Armijo's rule).

        :param direction: [M, P].
        :param moved: by how much the logits change along it, [B, M, O].
        :param slope: the slope of the loss along it, [M].
        :returns: [M]; 0 if no size will do, or if the head is done.
        """
        state = self._state
        decay = self._decay[state.numbers]
        weight, change = state.flat[:, : self._split], direction[:, : self._split]
        cross = (weight * change).sum(dim=1)
        square = change.square().sum(dim=1)
        squares = weight.square().sum(dim=1)
        size = torch.ones_like(slope)
        # Float32 cannot tell losses apart that differ by less.
        slack = 2e-7 * state.loss.abs()
        for _ in range(_MAX_HALVINGS):
            loss = self._objective(state.logits + size[:, None] * moved, state.numbers)
            loss = loss + decay / 2 * (squares + 2 * size * cross + size * size * square)
            fine = loss <= state.loss + 1e-4 * size * slope + slack
            if bool((fine | ~state.running).all()):
                break
            size = torch.where(fine, size, size / 2)
        return torch.where(fine & state.running, size, 0.0)

    def _precondition(self, vector: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """A vector of each head, [M, P], multiplied by the inverse of an estimate of the curvature.

        By weights, the estimate of the second derivative of the loss is c times the covariance of
        the features, plus λ times the identity, where c is the curvature by a logit; by biases it
        is c. The covariance is known by the V directions of the basis, and taken for the same along
        all others. So the inverse divides the part of the vector that lies along a direction by
        c times the variance there plus λ.
        """
        decay = self._decay[numbers][:, None, None].clamp_min(1e-8)
        basis, c = self._basis, self._curvature
        weight = vector[:, : self._split].reshape(-1, self._D)
        along = multiply(weight, basis.directions.T).view(len(vector), self._R, -1)
        elsewhere = 1 / (c * basis.rest + decay)
        factor = 1 / (c * basis.variances + decay) - elsewhere
        back = multiply((along * factor).view(-1, factor.shape[-1]), basis.directions)
        scaled = back.view(len(vector), -1) + elsewhere[:, 0] * vector[:, : self._split]
        return torch.cat([scaled, vector[:, self._split :] / c], dim=1)

    def _precondition_by_pairs(self, state: _State) -> torch.Tensor:
        """The gradient, multiplied by an estimate of the inverse curvature: [M, P].

        The two-loop recursion makes that estimate of the preconditioner and the pairs, and it
        multiplies by the preconditioner between its loops. Since that is linear, the product is put
        together here from those of the gradient and of the changes, which are known already.
        """
        vector, scaled = state.gradient.clone(), state.scaled.clone()
        factors = []
        for pair in reversed(self._pairs):
            factor = (pair.inverse * (pair.step * vector).sum(dim=1))[:, None]
            vector.addcmul_(factor, pair.change, value=-1)
            scaled.addcmul_(factor, pair.scaled, value=-1)
            factors.append(factor)
        scaled *= self._scale[:, None]
        for pair, factor in zip(self._pairs, reversed(factors), strict=True):
            back = (pair.inverse * (pair.change * scaled).sum(dim=1))[:, None]
            scaled.addcmul_(factor - back, pair.step)
        return scaled

    def _remember(self, step: torch.Tensor, change: torch.Tensor, scaled: torch.Tensor) -> None:
        curve = (step * change).sum(dim=1)
        usable = curve > 1e-20
        inverse = torch.where(usable, 1 / curve.clamp_min(1e-20), 0.0)
        self._pairs.append(_Pair(step, change, scaled, inverse))
        spread = (change * scaled).sum(dim=1)
        scale = torch.where(usable, curve / spread.clamp_min(1e-20), 1.0)
        self._scale = scale.clamp(1e-4, 1e4)

    def _forget(self, mask: torch.Tensor) -> None:
        """Start the memory of some heads afresh: one of rounding errors can point uphill.

        :param mask: which, [M].
        """
        for pair in self._pairs:
            pair.inverse[mask] = 0
        self._scale[mask] = 1

    def _write_parameters(self) -> None:
        """Copy the heads in the stack into the parameters."""
        numbers, flat = self._state.numbers, self._state.flat
        self._weight[numbers] = flat[:, : self._split].view(-1, self._R, self._D)
        self._bias[numbers] = flat[:, self._split :]

    def _put_aside(self) -> None:
        """Go on with a smaller stack, if enough heads are done to make it worth a copy."""
        running = self._state.running
        left = int(running.sum())
        if left and _PUT_ASIDE_SHARE * (len(running) - left) < len(running):
            return
        self.read_logits()
        self._state = self._state.select(running)
        self._pairs = deque((pair.select(running) for pair in self._pairs), maxlen=_MEMORY_STEPS)
        self._scale = self._scale[running]
