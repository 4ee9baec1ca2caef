"""Heads that are linear in how like a row is to the training rows, by a Gaussian kernel.

A row x is described by k(x, c) = exp(-|x - c|² / (b² m)) for U centres c, which are up to 4,096 of
the training rows: m is the mean of |x - c|² over pairs of training rows, and b the bandwidth. These
numbers are turned so that plain weight decay is the norm of the kernel's own space, and scaled to a
mean square of 1, as standardized features have it; then they are features like any other, and
L-BFGS finds the optimum of a head on them. Where rows are very many, only the directions in which
the centres vary most are kept of that space, so that fewer numbers describe a row.

Sources: Zhu, Hastie (2005), Kernel logistic regression and the import vector machine; Williams,
Seeger (2001), Using the Nyström method to speed up kernel machines.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch

from pipeline.heads.features import Features, Floats, MemoryFeatures, Scaling
from pipeline.model.weights import MAX_COORDINATE, Centers
from pipeline.onednn import multiply

MAX_CENTERS = 4096
# The number of features that may be in memory, 2 GB of them. Where rows are so many that there is
# no room for one a centre, they are described by as many directions of the kernel's space as there
# is room for, up to a limit: those in which the centres vary most.
_MAX_FEATURES = 500_000_000
_MIN_DIRECTIONS, _MAX_DIRECTIONS = 256, 2048
# What is added to the diagonal of the centres' kernel matrix, which is 1. Without it, two centres
# with the same text would make the matrix singular, and it would have no Cholesky factor.
_RIDGE = 1e-4
_ROUNDS = 3  # of the iteration that finds directions
# The number of rows that are turned at a time, since that takes a copy of them.
_CHUNK_ROWS = 1024


class Turn(Protocol):
    """What makes features, whose product is that of the kernel's own space, of comparisons."""

    def apply(self, compared: torch.Tensor) -> torch.Tensor:
        """The features of rows.

        :param compared: how like they are to each centre, [B, U].
        :returns: [B, V].
        """

    def fold(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight of comparisons that gives what a weight of features gives.

        :param weight: float64, [R, V].
        :returns: [R, U].
        """


@dataclass(frozen=True)
class Factor:
    """All of the kernel's space that the centres span.

    :param upper: the upper Cholesky factor of the centres' kernel matrix, float64, [U, U].
    :param is_rounded: whether float32 rounds features by a ten-thousandth of their size only, as up
        to a bandwidth of 1. The matrix of a wider kernel is too near a singular one for that.
    """

    upper: torch.Tensor
    is_rounded: bool

    @cached_property
    def _applied(self) -> torch.Tensor:
        return self.upper.float() if self.is_rounded else self.upper

    def apply(self, compared: torch.Tensor) -> torch.Tensor:
        wide = compared.to(self._applied)
        turned: torch.Tensor = torch.linalg.solve_triangular(
            self._applied, wide, upper=True, left=False
        )
        return turned

    def fold(self, weight: torch.Tensor) -> torch.Tensor:
        turned: torch.Tensor = torch.linalg.solve_triangular(self.upper, weight.mT, upper=True)
        return turned.mT


@dataclass(frozen=True)
class Directions:
    """The directions of the kernel's space in which the centres vary most.

    :param scaled: eigenvectors of the centres' kernel matrix, each divided by the root of its
        eigenvalue, float32, [U, V].
    """

    scaled: torch.Tensor

    @classmethod
    def find(cls, kernel: torch.Tensor, V: int) -> Directions:
        """The first of these directions, by subspace iteration.

        Source: Halko, Martinsson, Tropp (2011), Finding structure with randomness.

        :param kernel: the centres' kernel matrix, [U, U].
        :param V: the number of directions.
        """
        # In float64: the smallest eigenvalues are less than a millionth of the largest.
        matrix = kernel.double()
        generator = torch.Generator().manual_seed(0)
        span = torch.randn(len(matrix), V, generator=generator, dtype=torch.float64).to(matrix)
        for _ in range(_ROUNDS):
            span = torch.linalg.qr(matrix @ span).Q
        values, rotation = torch.linalg.eigh(span.mT @ matrix @ span)
        scaled = span @ rotation / (values.clamp_min(0) + _RIDGE).sqrt()
        return cls(scaled.float())

    def apply(self, compared: torch.Tensor) -> torch.Tensor:
        return multiply(compared, self.scaled.T)

    def fold(self, weight: torch.Tensor) -> torch.Tensor:
        return weight @ self.scaled.T.double()


@dataclass(frozen=True)
class Kernel:
    """The features that a kernel makes of rows, and the way back from a head on them.

    :param features: the new features, of width V, in memory.
    :param centers: what raw rows are compared with, U of them.
    :param turn: what turns the comparisons into features of the kernel's own space.
    :param mean: what is subtracted then, [V].
    :param size: what the result is divided by, a scalar.
    """

    features: MemoryFeatures
    centers: Centers
    turn: Turn
    mean: torch.Tensor
    size: torch.Tensor

    def fold(self, weight: Floats, bias: Floats) -> tuple[Floats, Floats]:
        """The head on what ``Centers.compare`` gives that equals a given one on the features.

        :param weight: float32, [R, V]; R is O, or 1 for a weight that all outputs share.
        :param bias: float32, [O].
        """
        wide = torch.from_numpy(weight).to(self.mean.device).double() / self.size
        shift = wide @ self.mean.double()
        turned = self.turn.fold(wide)
        return turned.float().contiguous().cpu().numpy(), bias - shift.float().cpu().numpy()


def fit_kernel(features: Features, scaling: Scaling, bandwidth: float) -> Kernel:
    """Compare all rows with centres drawn from the training rows, and turn and scale the result.

    :param features: scaled features of width D; they are read twice, block by block.
    :param scaling: what made them from raw ones.
    :param bandwidth: b, above 0.
    """
    train_rows = features.train_rows
    order = torch.randperm(train_rows, generator=torch.Generator().manual_seed(0))
    U = min(MAX_CENTERS, train_rows)
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
    V = U
    if U * features.rows > _MAX_FEATURES:
        V = max(_MIN_DIRECTIONS, min(_MAX_DIRECTIONS, _MAX_FEATURES // features.rows))
    made = torch.empty(features.rows, min(U, V), device=positions.device)
    turn: Turn
    if V < U:
        turn = Directions.find(_compare(positions, positions), V)
        for rows, block in _split(features):
            made[rows] = turn.apply(_compare(locate(block), positions))
    else:
        for rows, block in _split(features):
            made[rows] = _compare(locate(block), positions)
        turn = Factor(_factorize(made[chosen.to(made.device)].double()), bandwidth <= 1)
        for block in torch.split(made, _CHUNK_ROWS):
            block.copy_(turn.apply(block))
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
    # In place, which it is for a matrix of columns alone; this one is symmetric.
    torch.linalg.cholesky(kernel.mT, out=kernel.mT)
    return kernel


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
