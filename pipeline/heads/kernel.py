"""Heads that are linear in how like a row is to the training rows, by a Gaussian kernel.

A row x is described by k(x, l) = exp(-|x - l|² / (b² m)) for up to 4,096 training rows l: m is the
mean of |x - l|² over pairs of training rows, and b the bandwidth. These numbers are turned so that
plain weight decay is the norm of the kernel's own space, and scaled to a mean square of 1, as
standardized features have it; then they are features like any other, and L-BFGS finds the optimum
of a head on them.

Sources: Zhu, Hastie (2005), Kernel logistic regression and the import vector machine; Williams,
Seeger (2001), Using the Nyström method to speed up kernel machines.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from pipeline.heads.features import Floats, MemoryFeatures, Scaling
from pipeline.heads.module import Features
from pipeline.model.weights import FARTHEST, Centers
from pipeline.onednn import multiply

MOST_CENTERS = 4096
# Added to the kernel of the centers with itself, whose diagonal is 1: copies of a text are alike.
_RIDGE = 1e-4
_ROWS = 1024  # at a time, in float64 in part


class Kernel:
    """The features that a kernel makes, and the way back from a head on them.

    :param features: scaled; read twice, block by block.
    :param scaling: that made them from raw ones.
    :param bandwidth: b.
    :ivar features: the new ones, width H, for the same rows, in memory.
    :ivar centers: what raw rows are compared with, H of them.
    """

    def __init__(self, features: Features, scaling: Scaling, bandwidth: float) -> None:
        cut = features.train_rows
        order = torch.randperm(cut, generator=torch.Generator().manual_seed(0))
        chosen = order[:MOST_CENTERS].sort().values
        mean, variance, places = _survey(features, chosen)
        # Rows differ by twice the variance, squared and on average; by none if all are the same.
        usual = float(2 * variance.sum()) ** 0.5 or 1.0
        factor = 1 / (bandwidth * usual)
        middle = mean.float()

        def place(rows: torch.Tensor) -> torch.Tensor:
            # In the precision that centers are saved in, so that each is just like its own row.
            z = (rows - middle).mul_(factor).clamp_(-FARTHEST, FARTHEST)
            return z.half().float()

        places = place(places)
        made = torch.empty(features.rows, len(places), device=places.device)
        for rows, block in _split(features):
            made[rows] = _compare(place(block), places)
        inner = made[chosen.to(made.device)].double()
        inner.diagonal().add_(_RIDGE)
        self._turn = torch.linalg.cholesky(inner).mT  # upper, [H, H]
        for block in torch.split(made, _ROWS):
            turned = torch.linalg.solve_triangular(
                self._turn, block.double(), upper=True, left=False
            )
            block.copy_(turned)
        self._mean = made[:cut].mean(dim=0)
        made -= self._mean
        # Of rows that are all the same, nothing but rounding is left.
        self._size = made[:cut].square().mean().sqrt().clamp_min(1e-6)
        self.features = MemoryFeatures(made.div_(self._size), cut)
        scale = factor / scaling.deviation
        shift = -scaling.mean * scale - mean.cpu().numpy() * factor
        self.centers = Centers(
            places.half().cpu().numpy(), scale.astype(np.float32), shift.astype(np.float32)
        )

    def fold(self, weight: Floats, bias: Floats) -> tuple[Floats, Floats]:
        """A head on what ``Centers.compare`` gives, from one on the features.

        :param weight: float32, [C, H], or [1, H] that all outputs share.
        :param bias: float32, [C].
        """
        wide = torch.from_numpy(weight).to(self._turn) / self._size
        shift = wide @ self._mean.double()
        turned = torch.linalg.solve_triangular(self._turn, wide.mT, upper=True).mT
        return turned.float().contiguous().cpu().numpy(), bias - shift.float().cpu().numpy()


def _split(features: Features) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """All rows, at most ``_ROWS`` at a time: which, and their features."""
    for rows, block in features.blocks():
        numbers = torch.arange(features.rows)[rows] if isinstance(rows, slice) else rows
        yield from zip(
            torch.split(numbers.to(block.device), _ROWS),
            torch.split(block, _ROWS),
            strict=True,
        )


def _survey(
    features: Features, chosen: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean and variance of the training rows, float64 [D], and some of these rows.

    :param chosen: which, int64, [H], ascending.
    """
    total = squares = torch.zeros(())
    found = torch.empty(0)
    for rows, block in _split(features):
        if not len(found):
            found = torch.empty(len(chosen), features.width, device=block.device)
            chosen = chosen.to(block.device)
        place = torch.searchsorted(chosen, rows).clamp_max(len(chosen) - 1)
        taken = chosen[place] == rows
        found[place[taken]] = block[taken]
        wide = block[rows < features.train_rows].double()
        total = total.to(wide) + wide.sum(dim=0)
        squares = squares.to(wide) + wide.square().sum(dim=0)
    mean = total / features.train_rows
    return mean, (squares / features.train_rows - mean.square()).clamp_min(0), found


def _compare(rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    squares = rows.square().sum(dim=1)[:, None] + places.square().sum(dim=1)
    return multiply(rows, places).mul_(2).sub_(squares).clamp_max_(0).exp_()
