"""Heads that are linear in how like a row is to the training rows, by a Gaussian kernel.

A row x is described by k(x, c) = exp(-|x - c|² / (b² m)) for U centres c, which are up to 4,096 of
the training rows: m is the mean of |x - c|² over pairs of training rows, and b the bandwidth. These
numbers are turned so that plain weight decay is the norm of the kernel's own space, and scaled to a
mean square of 1, as standardized features have it; then they are features like any other, and
L-BFGS finds the optimum of a head on them.

Sources: Zhu, Hastie (2005), Kernel logistic regression and the import vector machine; Williams,
Seeger (2001), Using the Nyström method to speed up kernel machines.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.heads.features import Features, Floats, MemoryFeatures, Scaling
from pipeline.model.weights import MAX_COORDINATE, Centers
from pipeline.onednn import multiply

MAX_CENTERS = 4096
# The number of comparisons that may be in memory: fewer centres serve where rows are many.
_MAX_COMPARISONS = 500_000_000
_MIN_CENTERS = 256
# What is added to the diagonal of the centres' kernel matrix, which is 1. Without it, two centres
# with the same text would make the matrix singular, and it would have no Cholesky factor.
_RIDGE = 1e-4
# The number of rows that are turned at a time, since that takes a copy of them.
_CHUNK_ROWS = 1024


@dataclass(frozen=True)
class Kernel:
    """The features that a kernel makes of rows, and the way back from a head on them.

    :param features: the new features, of width U, in memory.
    :param centers: what raw rows are compared with, U of them.
    :param turn: the upper Cholesky factor of the centres' kernel matrix, float64, [U, U], by whose
        inverse the comparisons are multiplied.
    :param mean: what is subtracted then, [U].
    :param size: what the result is divided by, a scalar.
    """

    features: MemoryFeatures
    centers: Centers
    turn: torch.Tensor
    mean: torch.Tensor
    size: torch.Tensor

    def fold(self, weight: Floats, bias: Floats) -> tuple[Floats, Floats]:
        """The head on what ``Centers.compare`` gives that equals a given one on the features.

        :param weight: float32, [R, U]; R is O, or 1 for a weight that all outputs share.
        :param bias: float32, [O].
        """
        wide = torch.from_numpy(weight).to(self.turn) / self.size
        shift = wide @ self.mean.double()
        turned = torch.linalg.solve_triangular(self.turn, wide.mT, upper=True).mT
        return turned.float().contiguous().cpu().numpy(), bias - shift.float().cpu().numpy()


def fit_kernel(features: Features, scaling: Scaling, bandwidth: float) -> Kernel:
    """Compare all rows with centres drawn from the training rows, and turn and scale the result.

    :param features: scaled features of width D; they are read twice, block by block.
    :param scaling: what made them from raw ones.
    :param bandwidth: b, above 0.
    """
    train_rows = features.train_rows
    order = torch.randperm(train_rows, generator=torch.Generator().manual_seed(0))
    U = min(MAX_CENTERS, max(_MIN_CENTERS, _MAX_COMPARISONS // features.rows))
    chosen = order[:U].sort().values
    mean, variance, center_rows = _survey(features, chosen)
    # The squared distance between two training rows is twice the variance on average; it is 0 if
    # all rows are the same.
    distance = float(2 * variance.sum()) ** 0.5 or 1.0
    factor = 1 / (bandwidth * distance)
    middle = mean.float()

    def locate(rows: torch.Tensor) -> torch.Tensor:
        # The coordinates of rows are rounded to the precision that those of the centres are saved
        # in, so that each centre is at distance 0 of its own row.
        z = (rows - middle).mul_(factor).clamp_(-MAX_COORDINATE, MAX_COORDINATE)
        return z.half().float()

    positions = locate(center_rows)
    made = torch.empty(features.rows, len(positions), device=positions.device)
    for rows, block in _split(features):
        made[rows] = _compare(locate(block), positions)
    turn = _factorize(made[chosen.to(made.device)].double())
    # Up to a bandwidth of 1, float32 rounds features by a ten-thousandth of their size. The matrix
    # of a wider kernel is too near a singular one for that.
    exact = turn.float() if bandwidth <= 1 else turn
    for block in torch.split(made, _CHUNK_ROWS):
        block.copy_(torch.linalg.solve_triangular(exact, block.to(exact), upper=True, left=False))
    new_mean = made[:train_rows].mean(dim=0)
    made -= new_mean
    # If all rows are the same, nothing but rounding errors is left here.
    size = made[:train_rows].square().mean().sqrt().clamp_min(1e-6)
    scale = factor / scaling.deviation
    shift = -scaling.mean * scale - mean.cpu().numpy() * factor
    centers = Centers(
        positions.half().cpu().numpy(), scale.astype(np.float32), shift.astype(np.float32)
    )
    return Kernel(MemoryFeatures(made.div_(size), train_rows), centers, turn, new_mean, size)


def _factorize(kernel: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factor of the centres' kernel matrix, [U, U], which it changes."""
    kernel.diagonal().add_(_RIDGE)
    lower: torch.Tensor = torch.linalg.cholesky(kernel)
    return lower.mT


def _split(features: Features) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """All rows, at most ``_CHUNK_ROWS`` at a time: row numbers, [B], and features, [B, D]."""
    for rows, block in features.blocks():
        numbers = torch.arange(features.rows)[rows] if isinstance(rows, slice) else rows
        yield from zip(
            torch.split(numbers.to(block.device), _CHUNK_ROWS),
            torch.split(block, _CHUNK_ROWS),
            strict=True,
        )


def _survey(
    features: Features, chosen: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean and variance of the training rows, float64 [D], and some of these rows, [U, D].

    :param chosen: the numbers of those rows, int64, [U], ascending.
    """
    total = squares = torch.zeros(())
    taken = torch.empty(0)
    for rows, block in _split(features):
        if not len(taken):
            taken = torch.empty(len(chosen), features.width, device=block.device)
            chosen = chosen.to(block.device)
        position = torch.searchsorted(chosen, rows).clamp_max(len(chosen) - 1)
        is_chosen = chosen[position] == rows
        taken[position[is_chosen]] = block[is_chosen]
        wide = block[rows < features.train_rows].double()
        total = total.to(wide) + wide.sum(dim=0)
        squares = squares.to(wide) + wide.square().sum(dim=0)
    mean = total / features.train_rows
    return mean, (squares / features.train_rows - mean.square()).clamp_min(0), taken


def _compare(rows: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
    """exp(-|x - c|²) of each row x, [B, D], and centre c, [U, D]: [B, U]."""
    squares = rows.square().sum(dim=1)[:, None] + centers.square().sum(dim=1)
    return multiply(rows, centers).mul_(2).sub_(squares).clamp_max_(0).exp_()
