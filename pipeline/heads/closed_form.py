"""Heads without a hidden layer under a quadratic loss, in closed form.

Where the loss is quadratic, and bends alike for all outputs of a row, the best weights W of a fit
solve (G + λ I) W = C: G is the covariance of the features over its training rows, which all outputs
share, and C that of the features with what the outputs should be. So a thousand outputs take little
longer than one, and each weight decay takes one factorization. Of a fold, G is that of all training
rows less that of the fold's own.

Source: Hoerl, Kennard (1970), Ridge regression: biased estimation for nonorthogonal problems.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from pipeline.heads.features import Features
from pipeline.heads.solver import Objective
from pipeline.onednn import multiply

# Rows whose products are summed in float32, before the sum is added to one in float64.
_CHUNK_ROWS = 2048
# Columns of the sum of products that are computed at a time.
_PANEL = 1024
# The share of the mean square of a feature that rounding may take a covariance from the true one.
_ROUNDING = 1e-6
# Steps that L-BFGS takes about where it is the other way. A number of a Cholesky factor counts
# twice, since it is of float64.
_OTHER_STEPS = 20
# Weight decays of a path, which share the products of the features.
_PATH_STEPS = 8


def is_quicker(rows: int, width: int, outputs: int) -> bool:
    """Whether the closed form takes less work than L-BFGS.

    :param rows: B.
    :param width: D.
    :param outputs: the rows of a head's weight.
    """
    solving = count_work(0, width, outputs, 1)
    shared = 2.0 * rows * width**2 / _PATH_STEPS
    return shared + solving < _OTHER_STEPS * 4.0 * rows * width * outputs


def count_work(rows: int, width: int, outputs: int, fits: int) -> float:
    """Multiplications and additions that F fits take under one weight decay.

    :param rows: B.
    :param width: D.
    :param outputs: the rows of a head's weight.
    :param fits: F.
    """
    shared = 2.0 * rows * width**2 * min(fits, 2)
    return shared + fits * (2 / 3 * width**3 + 8.0 * width**2 * outputs)


class NormalEquations:
    """F fits of one head under one quadratic loss, for any weight decay.

    Two matrices of D × D are kept in float32, that of all training rows and that of the fit that
    was solved last; one more in float64 is made of the latter for each solution.

    :param features: features of all rows, of width D.
    :param objective: a function that gives the mean loss of each fit from logits: quadratic in
        them, and bending alike for all outputs of a row.
    :param fits: F; the last one trains on all rows that any of them trains on.
    :param outputs: O.
    """

    def __init__(self, features: Features, objective: Objective, fits: int, outputs: int) -> None:
        self._features = features
        self._objective = objective
        self._fits, self._O = fits, outputs
        self._device = next(iter(features.blocks()))[1].device
        self._whole: torch.Tensor | None = None
        self._last: tuple[int, torch.Tensor] | None = None

    @torch.no_grad()
    def solve(
        self, decay: float, fits: Sequence[int] | None = None, *, is_rough: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The best heads under one weight decay.

        :param decay: λ of all fits.
        :param fits: the numbers of the n fits to solve; ``None`` for all.
        :param is_rough: whether float32 will do, in half the time, where it can.
        :returns: weights, [n, O, D], biases, [n, O], and logits of all rows, [B, n, O], float32.
        """
        chosen = range(self._fits) if fits is None else fits
        n, D = len(chosen), self._features.width
        weight = torch.empty(n, self._O, D, device=self._device)
        bias = torch.empty(n, self._O, device=self._device)
        for place, fit in enumerate(chosen):
            weight[place], bias[place] = self._solve_one(fit, decay, is_rough)
        logits = torch.empty(self._features.rows, n, self._O, device=self._device)
        for rows, block in self._features.blocks():
            logits[rows] = multiply(block, weight.view(n * self._O, D)).view(-1, n, self._O) + bias
        return weight, bias, logits

    def _solve_one(
        self, fit: int, decay: float, is_rough: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        bends, pulls = self._differentiate(fit)
        total = bends.sum().double()
        if not total:  # nothing is learned where no row weighs anything
            return bends.new_zeros(self._O, self._features.width), bends.new_zeros(self._O)
        mean, by_pull = self._sum_pulls(bends, pulls)
        pull = pulls.sum(dim=0).double()
        right = by_pull - mean[:, None] * pull
        gram = self._find_gram(fit, bends)
        ridge = max(decay, 1e-8)
        lower = _factorize(gram, mean, float(total), ridge, torch.float32) if is_rough else None
        while lower is None:
            lower = _factorize(gram, mean, float(total), ridge, torch.float64)
            ridge = max(10 * ridge, _ROUNDING * float(gram.diagonal().mean()))
        # Not by torch.cholesky_solve, which copies the factor.
        halfway = torch.linalg.solve_triangular(lower, right.to(lower), upper=False)
        weight = torch.linalg.solve_triangular(lower.mT, halfway, upper=True).T.double()
        return weight.float(), (pull / total - weight @ mean).float()

    def _differentiate(self, fit: int) -> tuple[torch.Tensor, torch.Tensor]:
        """How the loss of a fit depends on the logits of each row.

        :returns: by how much it bends when one changes, [B], and the negative of its slope where
            they are 0, [B, O].
        """
        number = torch.tensor([fit], device=self._device)
        slopes = []
        for level in (0.0, 1.0):
            shape = self._features.rows, 1, self._O
            logits = torch.full(shape, level, device=self._device, requires_grad=True)
            with torch.enable_grad():
                loss = self._objective(logits, number).sum()
                (slope,) = torch.autograd.grad(loss, logits)
            slopes.append(slope[:, 0])
        return (slopes[1] - slopes[0]).mean(dim=1).clamp_min(0), -slopes[0]

    def _sum_pulls(
        self, bends: torch.Tensor, pulls: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean of the features, [D], and the sum of their products with pulls, [D, O]."""
        D = self._features.width
        mean = torch.zeros(D, dtype=torch.float64, device=self._device)
        by_pull = torch.zeros(D, self._O, dtype=torch.float64, device=self._device)
        for rows, block in self._features.blocks():
            mean += (bends[rows] @ block).double()
            by_pull += multiply(block.T, pulls[rows].T).double()
        return mean / bends.sum().double(), by_pull

    def _find_gram(self, fit: int, bends: torch.Tensor) -> torch.Tensor:
        """The sum of the outer products of a fit's features, as rows bend its loss: [D, D]."""
        if self._last is not None and self._last[0] == fit:
            return self._last[1]
        self._last = None
        if fit == self._fits - 1:
            if self._whole is None:
                self._whole = self._sum_products(bends)
            return self._whole
        whole, _ = self._differentiate(self._fits - 1)
        if self._whole is None:
            self._whole = self._sum_products(whole)
        left_out = torch.where(bends > 0, 0.0, whole)
        # A fold's rows count for more in the mean over fewer rows.
        share = bends.sum() / (whole - left_out).sum()
        gram = self._sum_products(left_out)
        torch.sub(self._whole, gram, out=gram).mul_(share)
        self._last = fit, gram
        return gram

    def _sum_products(self, bends: torch.Tensor) -> torch.Tensor:
        """The sum of the outer products of all rows, each of which counts as it bends: [D, D].

        It is symmetric, so that of each panel of its columns the part below its diagonal will do.
        """
        D, device = self._features.width, self._device
        panels = [
            torch.zeros(D - first, min(_PANEL, D - first), dtype=torch.float64, device=device)
            for first in range(0, D, _PANEL)
        ]
        for rows, block in self._features.blocks():
            for chunk in _scale_rows(block, bends[rows].sqrt()):
                turned = chunk.T.contiguous()
                for number, panel in enumerate(panels):
                    below = turned[number * _PANEL :]
                    panel += multiply(below, below[:_PANEL])
        gram = torch.empty(D, D, device=device)
        while panels:
            panel = panels.pop()
            first, stop = len(panels) * _PANEL, len(panels) * _PANEL + panel.shape[1]
            gram[first:, first:stop] = panel
            gram[first:stop, first:] = panel.T
        return gram


def _factorize(
    gram: torch.Tensor, mean: torch.Tensor, total: float, ridge: float, dtype: torch.dtype
) -> torch.Tensor | None:
    """The lower Cholesky factor of a covariance with a ridge, [D, D].

    :param gram: the sum of outer products that it is of, [D, D].
    :param mean: the mean of the features, float64, [D].
    :param total: the sum of what rows weigh.
    :param ridge: what is added to the diagonal.
    :param dtype: the precision that it is computed in.
    :returns: ``None`` where rounding makes it no positive matrix.
    """
    matrix = gram.to(dtype, copy=True)
    matrix.addr_(mean.to(dtype), mean.to(dtype), alpha=-total)
    matrix.diagonal().add_(ridge)
    info = torch.empty((), dtype=torch.int32, device=matrix.device)
    # In place, which it is for a matrix of columns alone; this one is symmetric.
    lower = matrix.mT
    torch.linalg.cholesky_ex(lower, out=(lower, info))
    return None if int(info) else lower


def _scale_rows(block: torch.Tensor, factors: torch.Tensor) -> Iterator[torch.Tensor]:
    """The rows of a block whose factor is not 0, multiplied by it, some at a time."""
    for numbers in torch.split(factors.nonzero()[:, 0], _CHUNK_ROWS):
        yield block[numbers] * factors[numbers, None]
