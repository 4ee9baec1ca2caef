"""Cached layers → one feature vector a row, and the scaling that is folded into the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.heads.solver import Basis, find_basis

Floats = npt.NDArray[np.float32]
Rows = slice | torch.Tensor
Batch = tuple[torch.Tensor, torch.Tensor]
Reader = Callable[[int, int, int | None], Iterable[tuple[npt.NDArray[np.int64], Any]]]
BLOCK_ROWS = 8192
_FIT_ROWS = 256  # whose float64 stay in a core's cache


@dataclass(frozen=True)
class Scaling:
    """A feature x becomes (x - mean) / deviation.

    :param mean: float64, [D].
    :param deviation: float64, [D]; 1 for a feature that is constant over the training rows.
    """

    mean: npt.NDArray[np.float64]
    deviation: npt.NDArray[np.float64]

    @classmethod
    def identity(cls, width: int) -> Scaling:
        """The scaling that changes nothing."""
        return cls(np.zeros(width), np.ones(width))

    @classmethod
    def fit(cls, features: Floats) -> Scaling:
        """Mean and population deviation of the training rows.

        :param features: float32, [B, D].
        """
        starts = range(0, len(features), _FIT_ROWS)
        return cls.fit_blocks(features[start : start + _FIT_ROWS] for start in starts)

    @classmethod
    def fit_blocks(cls, blocks: Iterable[Floats]) -> Scaling:
        """The same of rows that come in blocks, in one pass.

        :param blocks: float32, [b, D] each; one row at least.
        """
        rows = 0
        total = squares = shift = np.zeros(0)
        for block in blocks:
            wide = block.astype(np.float64)
            if not rows:
                # Squares of differences from some row near the mean, not of large numbers.
                shift = wide.mean(axis=0)
                total = squares = np.zeros(len(shift))
            wide -= shift
            total = total + wide.sum(axis=0)
            squares = squares + np.einsum("bd,bd->d", wide, wide)
            rows += len(block)
        offset = total / rows
        mean = shift + offset
        deviation = np.sqrt(np.maximum(squares / rows - offset**2, 0))
        # Rounding leaves a constant feature a deviation near, not at, zero.
        constant = deviation <= 1e-7 * np.maximum(np.abs(mean), 1e-12)
        return cls(mean, np.where(constant, 1.0, deviation))

    def apply(self, features: Floats) -> Floats:
        """Scaled features: float32, [B, D]."""
        scaled: Floats = features - self.mean.astype(np.float32)
        scaled *= (1 / self.deviation).astype(np.float32)
        return scaled

    def fold(self, weight: Floats, bias: Floats) -> tuple[Floats, Floats]:
        """The head that gives for raw features what this one gives for scaled ones.

        :param weight: float32, [C, D], or [1, D] that all C outputs share.
        :param bias: float32, [C].
        """
        folded = weight.astype(np.float64) / self.deviation
        shifted = bias.astype(np.float64) - folded @ self.mean
        return folded.astype(np.float32), shifted.astype(np.float32)


class MemoryFeatures:
    """Features that lie in memory, scaled: training rows first, then validation rows.

    :param features: float32, [N, D].
    :param train_rows: how many of them are for training.
    """

    def __init__(self, features: torch.Tensor, train_rows: int) -> None:
        self.features = features
        self.train_rows = train_rows
        self.rows, self.width = features.shape

    def blocks(self) -> Iterator[tuple[Rows, torch.Tensor]]:
        """All rows, in as few pieces as there must be."""
        yield slice(None), self.features

    def batches(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Training rows in an order drawn anew: which, int64 [B], and their features, [B, D]."""
        order = torch.randperm(self.train_rows, generator=generator)
        for rows in torch.split(order, size):
            yield rows, self.features[rows.to(self.features.device)]

    @cached_property
    def basis(self) -> Basis:
        """How the features vary."""
        return find_basis(self.features[: self.train_rows])


class StreamedFeatures:
    """Features that are read from the store whenever they are wanted, a window at a time.

    :param read: gives unscaled vectors of the rows from 0 to a number: (rows wanted, batch size,
        seed or ``None`` for the order of the store) → row numbers and features, in batches.
    :param block_rows: how many rows may be in memory at once.
    """

    def __init__(
        self,
        read: Reader,
        rows: int,
        train_rows: int,
        scaling: Scaling,
        device: str,
        block_rows: int = BLOCK_ROWS,
    ) -> None:
        self._read = read
        self._block_rows = block_rows
        self.rows, self.train_rows, self.width = rows, train_rows, len(scaling.mean)
        self._scaling = scaling
        self._device = device

    def blocks(self) -> Iterator[tuple[Rows, torch.Tensor]]:
        """All rows, in the order of the store."""
        for rows, features in self._read(self.rows, self._block_rows, None):
            yield torch.from_numpy(rows).to(self._device), self._scale(features)

    def batches(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Training rows, windows and the rows in them shuffled anew."""
        seed = int(torch.randint(2**31, (1,), generator=generator))
        for rows, features in self._read(self.train_rows, size, seed):
            yield torch.from_numpy(rows), self._scale(features)

    @cached_property
    def basis(self) -> Basis:
        """How the features of some of the rows vary."""
        _, features = next(iter(self._read(self.train_rows, self._block_rows, 0)))
        return find_basis(self._scale(features))

    def _scale(self, features: Floats) -> torch.Tensor:
        return torch.from_numpy(self._scaling.apply(features)).to(self._device)
