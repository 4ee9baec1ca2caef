"""Cached layers → one feature vector a row, and the scaling that is folded into the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch

from pipeline.heads.basis import Basis, choose_rows, find_basis
from pipeline.model.weights import Centers
from pipeline.store import read_ahead

Floats = npt.NDArray[np.float32]
Vectors = npt.NDArray[np.float16] | npt.NDArray[np.float32]
Batch = tuple[torch.Tensor, torch.Tensor]
# Which rows a block of features is of: all of them in order, or row numbers, int64, [B].
RowIndex = slice | torch.Tensor
Reader = Callable[[int, int, int | None], Iterable[tuple[npt.NDArray[np.int64], Any]]]
BLOCK_ROWS = 8192
# Features that vary by less than this part of the typical one are scaled as if they varied so much.
# What they hold is mostly rounding; scaled up, it would get weights that are thousands of times as
# large as all others.
_LEAST_DEVIATION = 0.01
# Features that vary by no more than this part of their mean, the step between two numbers of
# float16, hold nothing but rounding, and are left out. Where a few rows or a label happen to go
# with it, weights of any size would be learned, which would judge a text that differs there.
_ROUNDING = 2.0**-10
# Rows that are widened to float64 at a time: 256 of them stay in a core's cache.
_FIT_ROWS = 256
# Rows that are widened to float32 and scaled at a time: 1,024 of them, 768 wide, are 3 MB.
_SCALED_ROWS = 1024


class FeatureMap(Protocol):
    """What made the features that heads train on from raw ones."""

    @property
    def centers(self) -> Centers | None:
        """The rows that raw rows are compared with before a head is applied, if they are."""

    def fold(self, weight: Floats, bias: Floats) -> tuple[Floats, Floats]:
        """The head that gives for raw rows what a given one gives for their features.

        :param weight: float32, [R, D]; R is O, or 1 for a weight that all outputs share.
        :param bias: float32, [O].
        :returns: weight and bias, of the same shapes.
        """


@dataclass(frozen=True)
class Scaling:
    """A feature x becomes (x - mean) / deviation.

    :param mean: float64, [D].
    :param deviation: float64, [D]; at least a part of the typical one, and infinite for a feature
        that is constant over the training rows but for rounding, so that it becomes 0.
    """

    mean: npt.NDArray[np.float64]
    deviation: npt.NDArray[np.float64]
    centers: ClassVar[None] = None

    @classmethod
    def identity(cls, width: int) -> Scaling:
        """The scaling that changes nothing."""
        return cls(np.zeros(width), np.ones(width))

    @classmethod
    def fit(cls, features: Floats) -> Scaling:
        """Mean and population deviation of the training rows, the latter with a floor.

        :param features: float32, [B, D].
        """
        return cls.fit_blocks([features])

    @classmethod
    def fit_blocks(cls, blocks: Iterable[Vectors]) -> Scaling:
        """Mean and population deviation of training rows that come in blocks, in one pass.

        :param blocks: float16 or float32, [B, D] each.
        """
        rows = 0
        total = squares = shift = np.zeros(0)
        for block in _split_rows(blocks):
            wide = block.astype(np.float64)
            if not rows:
                # Squares are summed of differences from a point near the mean: those of large
                # numbers would cancel in the variance.
                shift = wide.mean(axis=0)
                total = squares = np.zeros(len(shift))
            wide -= shift
            total = total + wide.sum(axis=0)
            squares = squares + np.einsum("bd,bd->d", wide, wide)
            rows += len(block)
        offset = total / rows
        mean = shift + offset
        deviation = np.sqrt(np.maximum(squares / rows - offset**2, 0))
        constant = deviation <= np.maximum(_ROUNDING * np.abs(mean), 1e-19)
        if not constant.all():
            floor = _LEAST_DEVIATION * float(np.median(deviation[~constant]))
            deviation = np.maximum(deviation, floor)
        return cls(mean, np.where(constant, np.inf, deviation))

    def apply(self, features: Floats) -> Floats:
        """Scaled features: float32, [B, D]."""
        scaled: Floats = features - self.mean.astype(np.float32)
        scaled *= (1 / self.deviation).astype(np.float32)
        return scaled

    def fold(self, weight: Floats, bias: Floats) -> tuple[Floats, Floats]:
        """The head that gives for raw rows what a given one gives for scaled ones.

        :param weight: float32, [R, D]; R is O, or 1 for a weight that all outputs share.
        :param bias: float32, [O].
        """
        folded = weight.astype(np.float64) / self.deviation
        shifted = bias.astype(np.float64) - folded @ self.mean
        return folded.astype(np.float32), shifted.astype(np.float32)


def _split_rows(blocks: Iterable[Vectors]) -> Iterator[Vectors]:
    for block in blocks:
        for start in range(0, len(block), _FIT_ROWS):
            yield block[start : start + _FIT_ROWS]


class MemoryFeatures:
    """Features that lie in memory, scaled: training rows first, then validation rows.

    :param features: float32, [B, D].
    :param train_rows: the number of rows that are for training.
    """

    def __init__(self, features: torch.Tensor, train_rows: int) -> None:
        self.features = features
        self.train_rows = train_rows
        self.rows, self.width = features.shape

    def blocks(self) -> Iterator[tuple[RowIndex, torch.Tensor]]:
        """All rows, in one block."""
        yield slice(None), self.features

    def batches(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Training rows in an order drawn anew: row numbers, int64 [B], and features, [B, D]."""
        order = torch.randperm(self.train_rows, generator=generator)
        for rows in torch.split(order, size):
            yield rows, self.features[rows.to(self.features.device)]

    def take(self, rows: torch.Tensor, train_rows: int) -> MemoryFeatures:
        """Some of the rows.

        :param rows: their numbers, int64, [B].
        :param train_rows: the number of them, from the first, that are for training.
        """
        return MemoryFeatures(self.features[rows.to(self.features.device)], train_rows)

    @cached_property
    def basis(self) -> Basis:
        """The directions in which the training rows vary most."""
        return find_basis(self.features[: self.train_rows])


class StreamedFeatures:
    """Features that are made anew of stored vectors whenever they are wanted, some rows at a time.

    What is read next is read while the block before it is computed with. Vectors are widened and
    scaled a few rows at a time, which the processor's caches hold, so that each pass over the rows
    goes through memory once, in the type that they are stored in.

    :param read: a function of a number of rows, a batch size, and a seed or ``None`` for the order
        of the store, that gives unscaled vectors of the rows below that number in batches: row
        numbers, [B], and vectors, [B, D].
    :param rows: the number of rows; the training rows come first.
    :param train_rows: the number of rows that are for training.
    :param scaling: what the vectors are scaled by.
    :param device: where the features go.
    :param block_rows: the number of rows that may be in memory at once.
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
        self._device = device
        self._mean = torch.from_numpy(scaling.mean.astype(np.float32)).to(device)
        self._factor = torch.from_numpy((1 / scaling.deviation).astype(np.float32)).to(device)

    def blocks(self) -> Iterator[tuple[RowIndex, torch.Tensor]]:
        """All rows, in the order of the store."""
        for rows, vectors in read_ahead(self._read(self.rows, self._block_rows, None)):
            numbers = torch.from_numpy(rows).to(self._device)
            for start in range(0, len(rows), _SCALED_ROWS):
                some = slice(start, start + _SCALED_ROWS)
                yield numbers[some], self._scale(vectors[some])

    def batches(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Training rows, windows and the rows in them shuffled anew.

        :param size: the number of rows in a batch.
        :param generator: draws the order of the rows.
        :yields: row numbers, int64, [B], and their features, [B, D].
        """
        seed = int(torch.randint(2**31, (1,), generator=generator))
        for rows, vectors in self._read(self.train_rows, size, seed):
            yield torch.from_numpy(rows), self._scale(vectors)

    def take(self, rows: torch.Tensor, train_rows: int) -> MemoryFeatures:
        """Some of the rows, which are read once and then lie in memory.

        :param rows: their numbers, int64, [B].
        :param train_rows: the number of them, from the first, that are for training.
        """
        position = torch.full((self.rows,), -1)
        position[rows] = torch.arange(len(rows))
        taken = torch.empty(len(rows), self.width, device=self._device)
        for numbers, vectors in read_ahead(self._read(self.rows, self._block_rows, None)):
            at = position[torch.from_numpy(numbers)]
            wanted = (at >= 0).numpy()
            if wanted.any():
                taken[at[wanted].to(self._device)] = self._scale(vectors[wanted])
        return MemoryFeatures(taken, train_rows)

    @cached_property
    def basis(self) -> Basis:
        """The directions in which the training rows vary most."""
        return find_basis(self.take(choose_rows(self.train_rows), self.train_rows).features)

    def _scale(self, vectors: Vectors) -> torch.Tensor:
        """Scaled features of vectors, [B, D], in float32."""
        stored = torch.from_numpy(np.ascontiguousarray(vectors))
        features = stored.to(self._device, torch.float32, copy=True)
        return features.sub_(self._mean).mul_(self._factor)


Features = MemoryFeatures | StreamedFeatures
