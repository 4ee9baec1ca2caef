"""Full-batch L-BFGS for many linear heads at once.

Each head minimizes its mean loss plus λ/2 of its squared weights; biases go free. All heads take
their steps together: one matrix product gives the logits along all directions, one all gradients,
and whatever lies between is elementwise. A line search costs no product, since logits are linear in
the weights.

Sources: Liu, Nocedal (1989), On the limited memory BFGS method for large scale optimization;
Halko, Martinsson, Tropp (2011), Finding structure with randomness (the principal directions);
Böhning (1992), Multinomial logistic regression algorithm (the bound on the curvature).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from pipeline.onednn import multiply

# Loss of each head from its logits [B, K, outputs]; the second argument says which heads.
Objective = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Rows = slice | torch.Tensor
Blocks = Callable[[], Iterable[tuple[Rows, torch.Tensor]]]

MEMORY = 8  # pairs of steps and gradients, as most implementations keep between 5 and 10
DIRECTIONS = 512
_SAMPLE_ROWS = 8192
_TRIALS = 25
_SHED = 8  # a stack is made smaller once one in so many of its heads is done


@dataclass(frozen=True)
class Basis:
    """The directions in which features vary most, and how much.

    :param directions: [D, R], orthonormal.
    :param variances: [R], mean squares along them.
    :param rest: mean square along any other direction, at most.
    """

    directions: torch.Tensor
    variances: torch.Tensor
    rest: float


def find_basis(features: torch.Tensor, directions: int = DIRECTIONS) -> Basis:
    """The principal directions of a sample of the rows, by randomized subspace iteration.

    They serve as a preconditioner alone, so that neither the sample nor its error changes what the
    heads converge to.

    :param features: float32, [B, D].
    """
    rows = features[:: max(1, len(features) // _SAMPLE_ROWS)]
    R = min(directions, features.shape[1], len(rows))
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(features.shape[1], R, generator=generator).to(features.device)
    span = torch.linalg.qr(multiply(rows.T, multiply(start.T, rows))).Q
    span = torch.linalg.qr(multiply(rows.T, multiply(span.T, rows))).Q
    projected = multiply(rows, span.T)
    squares, rotation = torch.linalg.eigh(multiply(projected.T, projected.T) / len(rows))
    squares = squares.clamp_min(0)
    whole = features.shape[1] == R
    return Basis(span @ rotation, squares, 0.0 if whole else float(squares[0]))


@dataclass(frozen=True)
class _State:
    """Where the heads of the stack are; one entry per head in every tensor."""

    which: torch.Tensor  # their numbers, [K]
    weight: torch.Tensor  # [K, P]: weights and then biases, flat
    logits: torch.Tensor  # [B, K, outputs]
    loss: torch.Tensor  # [K], with the penalty
    gradient: torch.Tensor  # [K, P]
    ahead: torch.Tensor  # [K, P]: the gradient, preconditioned
    going: torch.Tensor  # [K]; a head that is done stays where it is

    def select(self, chosen: torch.Tensor) -> _State:
        """Some of the heads.

        :param chosen: a mask, [K].
        """
        return _State(
            self.which[chosen],
            self.weight[chosen],
            self.logits[:, chosen],
            self.loss[chosen],
            self.gradient[chosen],
            self.ahead[chosen],
            self.going[chosen],
        )


@dataclass(frozen=True)
class _Pair:
    """A step that each head took, and what it did to the gradient."""

    step: torch.Tensor  # [K, P]
    change: torch.Tensor  # [K, P]
    ahead: torch.Tensor  # [K, P]: the change, preconditioned
    inverse: torch.Tensor  # [K]: 1 over step times change; 0 for a pair that is of no use

    def select(self, chosen: torch.Tensor) -> _Pair:
        """Those of some of the heads."""
        return _Pair(
            self.step[chosen], self.change[chosen], self.ahead[chosen], self.inverse[chosen]
        )


class StackedLbfgs:
    """L-BFGS on K heads of one task at once, step by step.

    No head's path depends on the others: each has its own step sizes and memory, and stops for
    itself.

    :param blocks: gives the features anew each time: which rows, and theirs, [b, D].
    :param objective: mean loss of each head.
    :param decay: λ, [K].
    :param rows: B.
    :param weight_rows: rows of each head's weight: one, or one for each logit.
    :param bias: where biases start, [outputs]; weights start at 0.
    :param curvature: about the mean of p (1 - p), by which the preconditioner scales.
    :param tolerance: a head is done when a further step promises less than this share of its loss.
    """

    def __init__(
        self,
        blocks: Blocks,
        objective: Objective,
        decay: torch.Tensor,
        basis: Basis,
        *,
        rows: int,
        weight_rows: int,
        bias: torch.Tensor,
        curvature: float,
        tolerance: float,
    ) -> None:
        self._blocks = blocks
        self._objective = objective
        self._decay = decay
        self._basis = basis
        self._R, self._outputs = weight_rows, len(bias)
        self._D = basis.directions.shape[0]
        self._curvature = curvature
        self._tolerance = tolerance
        self._pairs: deque[_Pair] = deque(maxlen=MEMORY)
        K, device = len(decay), decay.device
        self._scale = torch.ones(K, device=device)  # of the preconditioner, [K]
        self.steps = torch.zeros(K, dtype=torch.int64)
        weight = torch.zeros(K, self._R * self._D + self._outputs, device=device)
        weight[:, self._R * self._D :] = bias
        logits = bias.expand(rows, K, self._outputs).clone()
        self.logits = logits
        self.weight = weight
        which = torch.arange(K, device=device)
        loss, slopes = self._differentiate(logits, which)
        gradient = self._pull_back(slopes) + self._penalty_gradient(weight, which)
        ahead, going = self._precondition(gradient, which), torch.ones_like(which, dtype=torch.bool)
        self._state = _State(which, weight, logits, loss, gradient, ahead, going)

    @property
    def done(self) -> bool:
        """Whether no head is at work any more."""
        return not len(self._state.which)

    def take_heads(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights [K, weight rows, D] and biases [K, outputs] of all heads."""
        self._store()
        split = self._R * self._D
        return self.weight[:, :split].view(-1, self._R, self._D), self.weight[:, split:]

    def peek(self) -> torch.Tensor:
        """Logits of all heads as they are now: [B, K, outputs]."""
        self.logits[:, self._state.which] = self._state.logits
        return self.logits

    def step(self) -> None:
        """Take one step with each head that is at work, and let go of those that are done."""
        state = self._state
        direction = -self._precondition_by_pairs(state)
        slope = (state.gradient * direction).sum(dim=1)
        uphill = slope >= 0
        if bool(uphill.any()):
            self._forget(uphill)
            direction = torch.where(uphill[:, None], -state.ahead, direction)
            slope = (state.gradient * direction).sum(dim=1)
        moved = self._push_forward(direction)
        size = self._search(direction, moved, slope)
        step = size[:, None] * direction
        logits = state.logits + size[:, None] * moved
        weight = state.weight + step
        loss, slopes = self._differentiate(logits, state.which)
        loss = loss + self._penalty(weight, state.which)
        gradient = self._pull_back(slopes) + self._penalty_gradient(weight, state.which)
        ahead = self._precondition(gradient, state.which)
        self._remember(step, gradient - state.gradient, ahead - state.ahead)
        self.steps[state.which[state.going].cpu()] += 1
        promise = self._scale * (gradient * ahead).sum(dim=1) / 2
        more = (promise > self._tolerance * loss.abs()) & (size > 0) & loss.isfinite()
        self._state = _State(state.which, weight, logits, loss, gradient, ahead, state.going & more)
        self._shed()

    def _differentiate(
        self, logits: torch.Tensor, which: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = logits.detach().requires_grad_(True)
        with torch.enable_grad():
            losses = self._objective(leaf, which)
            (slopes,) = torch.autograd.grad(losses.sum(), leaf)
        return losses.detach(), slopes

    def _penalty(self, weight: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        squares = weight[:, : self._R * self._D].square().sum(dim=1)
        return self._decay[which] / 2 * squares

    def _penalty_gradient(self, weight: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        gradient = self._decay[which][:, None] * weight
        gradient[:, self._R * self._D :] = 0
        return gradient

    def _push_forward(self, direction: torch.Tensor) -> torch.Tensor:
        """How the logits change along a direction: [B, K, outputs]."""
        split = self._R * self._D
        K = len(direction)
        weight = direction[:, :split].reshape(K * self._R, self._D)
        moved = torch.empty_like(self._state.logits)
        for rows, features in self._blocks():
            moved[rows] = multiply(features, weight).view(-1, K, self._R) + direction[:, split:]
        return moved

    def _pull_back(self, slopes: torch.Tensor) -> torch.Tensor:
        """The gradient by weights and biases, from that by logits."""
        K = slopes.shape[1]
        by_weight = slopes.sum(dim=2, keepdim=True) if self._outputs > self._R else slopes
        flat = by_weight.reshape(len(slopes), K * self._R)
        weight = torch.zeros(K * self._R, self._D, device=slopes.device)
        for rows, features in self._blocks():
            weight += multiply(flat[rows].T, features.T)
        return torch.cat([weight.view(K, -1), slopes.sum(dim=0)], dim=1)

    def _search(
        self, direction: torch.Tensor, moved: torch.Tensor, slope: torch.Tensor
    ) -> torch.Tensor:
        """Step sizes that lower each loss enough, halved from 1 (Armijo's rule); 0 if none does, or
        if the head is done."""
        state = self._state
        split = self._R * self._D
        decay = self._decay[state.which]
        cross = (state.weight[:, :split] * direction[:, :split]).sum(dim=1)
        square = direction[:, :split].square().sum(dim=1)
        squares = state.weight[:, :split].square().sum(dim=1)
        size = torch.ones_like(slope)
        # Float32 cannot tell losses apart that differ by less.
        slack = 2e-7 * state.loss.abs()
        for _ in range(_TRIALS):
            with torch.no_grad():
                loss = self._objective(state.logits + size[:, None] * moved, state.which)
            loss = loss + decay / 2 * (squares + 2 * size * cross + size * size * square)
            fine = loss <= state.loss + 1e-4 * size * slope + slack
            if bool((fine | ~state.going).all()):
                break
            size = torch.where(fine, size, size / 2)
        return torch.where(fine & state.going, size, 0.0)

    def _precondition(self, vector: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        """Times the inverse of the curvature: c times the features' covariance, plus λ."""
        split = self._R * self._D
        decay = self._decay[which][:, None, None].clamp_min(1e-8)
        basis, c = self._basis, self._curvature
        weight = vector[:, :split].reshape(-1, self._D)
        along = multiply(weight, basis.directions.T).view(len(vector), self._R, -1)
        elsewhere = 1 / (c * basis.rest + decay)
        factor = 1 / (c * basis.variances + decay) - elsewhere
        back = multiply((along * factor).view(-1, factor.shape[-1]), basis.directions)
        scaled = back.view(len(vector), -1) + elsewhere[:, 0] * vector[:, :split]
        return torch.cat([scaled, vector[:, split:] / c], dim=1)

    def _precondition_by_pairs(self, state: _State) -> torch.Tensor:
        """The two-loop recursion on the gradient, around the preconditioner.

        That is linear, so what it makes of the vector between the loops is put together from what
        it made of the gradient and of the changes.
        """
        vector, ahead = state.gradient.clone(), state.ahead.clone()
        factors = []
        for pair in reversed(self._pairs):
            factor = (pair.inverse * (pair.step * vector).sum(dim=1))[:, None]
            vector.addcmul_(factor, pair.change, value=-1)
            ahead.addcmul_(factor, pair.ahead, value=-1)
            factors.append(factor)
        ahead *= self._scale[:, None]
        for pair, factor in zip(self._pairs, reversed(factors), strict=True):
            back = (pair.inverse * (pair.change * ahead).sum(dim=1))[:, None]
            ahead.addcmul_(factor - back, pair.step)
        return ahead

    def _remember(self, step: torch.Tensor, change: torch.Tensor, ahead: torch.Tensor) -> None:
        curve = (step * change).sum(dim=1)
        usable = curve > 1e-20
        inverse = torch.where(usable, 1 / curve.clamp_min(1e-20), 0.0)
        self._pairs.append(_Pair(step, change, ahead, inverse))
        spread = (change * ahead).sum(dim=1)
        scale = torch.where(usable, curve / spread.clamp_min(1e-20), 1.0)
        self._scale = scale.clamp(1e-4, 1e4)

    def _forget(self, which: torch.Tensor) -> None:
        """Start the memory of some heads afresh: one of rounding errors can point uphill."""
        for pair in self._pairs:
            pair.inverse[which] = 0
        self._scale[which] = 1

    def _shed(self) -> None:
        """Put the heads that are done aside, once they are worth a smaller stack."""
        going = self._state.going
        number = int(going.sum())
        if number and _SHED * (len(going) - number) < len(going):
            return
        self._store()
        self._state = self._state.select(going)
        self._pairs = deque((pair.select(going) for pair in self._pairs), maxlen=MEMORY)
        self._scale = self._scale[going]

    def _store(self) -> None:
        state = self._state
        self.weight[state.which] = state.weight
        self.peek()
