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

# Loss of each head from its logits [B, K, outputs]; the second argument says which heads.
Objective = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Rows = slice | torch.Tensor
Blocks = Callable[[], Iterable[tuple[Rows, torch.Tensor]]]

MEMORY = 8  # pairs of steps and gradients, as most implementations keep between 5 and 10
DIRECTIONS = 512
_SAMPLE_ROWS = 8192
_TRIALS = 25


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
    span = torch.linalg.qr(rows.T @ (rows @ start)).Q
    span = torch.linalg.qr(rows.T @ (rows @ span)).Q
    projected = rows @ span
    squares, rotation = torch.linalg.eigh(projected.T @ projected / len(rows))
    squares = squares.clamp_min(0)
    whole = features.shape[1] == R
    return Basis(span @ rotation, squares, 0.0 if whole else float(squares[0]))


@dataclass
class _State:
    """The heads that are still at work; one entry per head in every tensor."""

    which: torch.Tensor  # their numbers, [K]
    weight: torch.Tensor  # [K, P]: weights and then biases, flat
    logits: torch.Tensor  # [B, K, outputs]
    loss: torch.Tensor  # [K], with the penalty
    gradient: torch.Tensor  # [K, P]


class StackedLbfgs:
    """L-BFGS on K heads of one task at once, step by step.

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
        self._pairs: deque[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = deque(maxlen=MEMORY)
        self._scale: torch.Tensor | None = None
        K, device = len(decay), decay.device
        self.steps = torch.zeros(K, dtype=torch.int64)
        weight = torch.zeros(K, self._R * self._D + self._outputs, device=device)
        weight[:, self._R * self._D :] = bias
        logits = bias.expand(rows, K, self._outputs).clone()
        self.logits = logits
        self.weight = weight
        which = torch.arange(K, device=device)
        loss, slopes = self._differentiate(logits, which)
        gradient = self._pull_back(slopes) + self._penalty_gradient(weight, which)
        self._state = _State(which, weight, logits, loss, gradient)

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
        direction = -self._precondition_by_pairs(state.gradient)
        slope = (state.gradient * direction).sum(dim=1)
        # A memory of rounding errors can point uphill: start it afresh.
        if bool((slope >= 0).any()):
            self._pairs.clear()
            self._scale = None
            direction = -self._precondition(state.gradient, state.which)
            slope = (state.gradient * direction).sum(dim=1)
        moved = self._push_forward(direction)
        size = self._search(direction, moved, slope)
        step = size[:, None] * direction
        logits = state.logits + size[:, None] * moved
        weight = state.weight + step
        loss, slopes = self._differentiate(logits, state.which)
        loss = loss + self._penalty(weight, state.which)
        gradient = self._pull_back(slopes) + self._penalty_gradient(weight, state.which)
        self._remember(step, gradient - state.gradient)
        self.steps[state.which.cpu()] += 1
        self._state = _State(state.which, weight, logits, loss, gradient)
        self._let_go(stalled=size == 0)

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
            moved[rows] = (features @ weight.T).view(-1, K, self._R) + direction[:, split:]
        return moved

    def _pull_back(self, slopes: torch.Tensor) -> torch.Tensor:
        """The gradient by weights and biases, from that by logits."""
        K = slopes.shape[1]
        by_weight = slopes.sum(dim=2, keepdim=True) if self._outputs > self._R else slopes
        flat = by_weight.reshape(len(slopes), K * self._R)
        weight = torch.zeros(K * self._R, self._D, device=slopes.device)
        for rows, features in self._blocks():
            weight.addmm_(flat[rows].T, features)
        return torch.cat([weight.view(K, -1), slopes.sum(dim=0)], dim=1)

    def _search(
        self, direction: torch.Tensor, moved: torch.Tensor, slope: torch.Tensor
    ) -> torch.Tensor:
        """Step sizes that lower each loss enough, halved from 1 (Armijo's rule); 0 if none does."""
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
            if bool(fine.all()):
                return size
            size = torch.where(fine, size, size / 2)
        return torch.where(fine, size, 0.0)

    def _precondition(self, vector: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        """Times the inverse of the curvature: c times the features' covariance, plus λ."""
        split = self._R * self._D
        decay = self._decay[which][:, None, None].clamp_min(1e-8)
        basis, c = self._basis, self._curvature
        weight = vector[:, :split].reshape(-1, self._D)
        along = (weight @ basis.directions).view(len(vector), self._R, -1)
        elsewhere = 1 / (c * basis.rest + decay)
        factor = 1 / (c * basis.variances + decay) - elsewhere
        back = (along * factor).view(-1, factor.shape[-1]) @ basis.directions.T
        scaled = back.view(len(vector), -1) + elsewhere[:, 0] * vector[:, :split]
        return torch.cat([scaled, vector[:, split:] / c], dim=1)

    def _precondition_by_pairs(self, vector: torch.Tensor) -> torch.Tensor:
        """The two-loop recursion around the preconditioner."""
        vector = vector.clone()
        factors = []
        for step, change, inverse in reversed(self._pairs):
            factor = inverse * (step * vector).sum(dim=1)
            vector.addcmul_(factor[:, None], change, value=-1)
            factors.append(factor)
        vector = self._precondition(vector, self._state.which)
        if self._scale is not None:
            vector *= self._scale[:, None]
        for (step, change, inverse), factor in zip(self._pairs, reversed(factors), strict=True):
            back = inverse * (change * vector).sum(dim=1)
            vector.addcmul_((factor - back)[:, None], step)
        return vector

    def _remember(self, step: torch.Tensor, change: torch.Tensor) -> None:
        curve = (step * change).sum(dim=1)
        usable = curve > 1e-20
        inverse = torch.where(usable, 1 / curve.clamp_min(1e-20), 0.0)
        self._pairs.append((step, change, inverse))
        spread = (change * self._precondition(change, self._state.which)).sum(dim=1)
        scale = torch.where(usable, curve / spread.clamp_min(1e-20), 1.0)
        self._scale = scale.clamp(1e-4, 1e4)

    def _let_go(self, stalled: torch.Tensor) -> None:
        """Put aside the heads that are done, once they are worth a smaller stack."""
        state = self._state
        ahead = self._precondition(state.gradient, state.which)
        if self._scale is not None:
            ahead = ahead * self._scale[:, None]
        promise = (state.gradient * ahead).sum(dim=1) / 2
        done = (promise <= self._tolerance * state.loss.abs()) | stalled | ~state.loss.isfinite()
        if not bool(done.all()) and 4 * int(done.sum()) < len(done):
            return
        self._store()
        rest = ~done
        self._state = _State(
            state.which[rest],
            state.weight[rest],
            state.logits[:, rest],
            state.loss[rest],
            state.gradient[rest],
        )
        kept = [(s[rest], y[rest], i[rest]) for s, y, i in self._pairs]
        self._pairs = deque(kept, maxlen=MEMORY)
        if self._scale is not None:
            self._scale = self._scale[rest]

    def _store(self) -> None:
        state = self._state
        self.weight[state.which] = state.weight
        self.peek()
