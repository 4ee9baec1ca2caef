"""Which vectors are nearest to each other by cosine, by NumPy alone: exact, or by cells of many."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]
# Vectors by their numbers, in chunks: numbers, [b], and vectors of any length, [b, D].
Chunks = Iterable[tuple[Ints, Vectors]]
# The most pairs of which each is looked at: those of 50,000 vectors and 50,000 others, some 20
# seconds of a core at 384 numbers a vector.
EXACT_PAIRS = 2_500_000_000
# The cosines of one block, 8 MB, stay in the processor's cache until their largest are found.
_BLOCK_QUERIES = 512
_BLOCK_OTHERS = 4096
# The cells whose vectors a query is compared with. Of the vectors of 130,000 texts in 361 cells,
# 96 in 100 of the nearest are in one of so many, and 998 in 1,000 of those at a cosine above 0.85.
_PROBED_CELLS = 16
_QUERIES_PER_CELL = 20  # by which the centre of a cell is found
_ROUNDS = 3  # of finding the centres


@dataclass(frozen=True)
class Nearest:
    """The nearest of other vectors to each of B vectors.

    :param numbers: the number of the nearest one, int64, [B]; -1 where there is none.
    :param cosines: the cosine to it, float32, [B]; minus infinity where there is none.
    :param exact: whether every pair was looked at.
    """

    numbers: Ints
    cosines: Vectors
    exact: bool = True


def normalize(vectors: Vectors) -> Vectors:
    """Vectors, [B, D], at the length 1."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Vectors = vectors / np.maximum(lengths, 1e-12)
    return scaled


def find_nearest(
    queries: Vectors, chunks: Chunks, own: Ints | None = None, *, others: int = 0
) -> Nearest:
    """Find the nearest of many vectors to each of some.

    The others pass by in chunks, so that those of a corpus of any size need no memory together. Up
    to ``EXACT_PAIRS`` pairs, every pair is looked at. Beyond, the space is divided into cells, and
    a query is compared with the vectors in the cells whose centres are nearest to it.

    Source: Jégou, Douze, Schmid (2011), Product quantization for nearest neighbor search, section
    IV, for the inverted file of cells.

    :param queries: vectors of any length, float32, [B, D].
    :param chunks: the other vectors; no number stands twice.
    :param own: for each query its own number among the others, which is not to be found, int64,
        [B], no number twice; -1 for none. Nothing is left out if ``None``.
    :param others: the number of the other vectors, by which it is decided whether to use cells.
    """
    queries = normalize(queries)
    exact = len(queries) * others <= EXACT_PAIRS
    cells = None if exact else _Cells.fit(queries, others)
    nearest = Nearest(np.full(len(queries), -1), np.full(len(queries), -np.inf, np.float32), exact)
    for numbers, vectors in chunks:
        scaled = normalize(vectors)
        pairs = _pair_all(len(queries), len(scaled)) if cells is None else cells.pair(scaled)
        for some, at in pairs:
            _update(nearest, queries, some, numbers[at], scaled[at], own)
    return nearest


def _pair_all(queries: int, others: int) -> Iterator[tuple[Ints, Ints]]:
    """The indices of queries and of others in blocks, so that each meets each."""
    for first in range(0, others, _BLOCK_OTHERS):
        for start in range(0, queries, _BLOCK_QUERIES):
            yield (
                np.arange(start, min(start + _BLOCK_QUERIES, queries)),
                np.arange(first, min(first + _BLOCK_OTHERS, others)),
            )


def _update(
    nearest: Nearest, queries: Vectors, some: Ints, numbers: Ints, others: Vectors, own: Ints | None
) -> None:
    """Let a few others take the place of those found before where they are nearer to some queries.

    :param some: the indices of the queries to compare, [b].
    :param numbers: the numbers of the others, [c].
    :param others: their vectors, of length 1, [c, D].
    """
    cosines = queries[some] @ others.T
    if own is not None:
        row, column = _find_own(own[some], numbers)
        cosines[row, column] = -np.inf
    at = cosines.argmax(axis=1)
    best = cosines[np.arange(len(at)), at]
    is_nearer = best > nearest.cosines[some]
    nearest.numbers[some[is_nearer]] = numbers[at[is_nearer]]
    nearest.cosines[some[is_nearer]] = best[is_nearer]


def _find_own(own: Ints, numbers: Ints) -> tuple[Ints, Ints]:
    """The indices of queries and of their own numbers among some numbers."""
    order = np.argsort(own)
    at = np.minimum(np.searchsorted(own[order], numbers), len(own) - 1)
    column = np.flatnonzero(own[order][at] == numbers)
    return order[at[column]], column


@dataclass(frozen=True)
class _Cells:
    """Cells of the space of vectors of length 1: all vectors nearest to one of some centres.

    :param centres: the centres, of length 1, [C, D].
    :param queries: for each cell the indices of the queries that are to be compared with the
        vectors in it.
    """

    centres: Vectors
    queries: list[Ints]

    @classmethod
    def fit(cls, queries: Vectors, others: int) -> _Cells:
        """Find centres among the queries by a few rounds of k-means.

        :param queries: vectors of length 1, [B, D].
        :param others: the number of vectors that are to be in the cells.
        """
        C = max(1, min(math.isqrt(others), len(queries) // _QUERIES_PER_CELL))
        order = np.random.default_rng(0).permutation(len(queries))
        sample = queries[order[: C * _QUERIES_PER_CELL]]
        centres = sample[:C]
        for _ in range(_ROUNDS):
            cell = _find_cells(sample, centres, 1)[:, 0]
            sums = np.zeros_like(centres)
            np.add.at(sums, cell, sample)
            is_held = np.bincount(cell, minlength=C) > 0
            centres = np.where(is_held[:, None], normalize(sums), centres)
        probed = _find_cells(queries, centres, min(_PROBED_CELLS, C))
        by_cell = np.argsort(probed, axis=None, kind="stable")
        ends = np.cumsum(np.bincount(probed.ravel(), minlength=C))
        return cls(centres, np.split(by_cell // probed.shape[1], ends[:-1]))

    def pair(self, vectors: Vectors) -> Iterator[tuple[Ints, Ints]]:
        """The indices of the queries and of the vectors that meet in each cell.

        :param vectors: vectors of length 1, [b, D].
        """
        cell = _find_cells(vectors, self.centres, 1)[:, 0]
        by_cell = np.argsort(cell, kind="stable")
        ends = np.cumsum(np.bincount(cell, minlength=len(self.centres)))
        for members, queries in zip(np.split(by_cell, ends[:-1]), self.queries, strict=True):
            if len(members) and len(queries):
                yield queries, members


def _find_cells(vectors: Vectors, centres: Vectors, count: int) -> Ints:
    """The nearest centres of vectors: indices, [B, count], in no order."""
    found = np.empty((len(vectors), count), np.int64)
    for start in range(0, len(vectors), _BLOCK_OTHERS):
        cosines = vectors[start : start + _BLOCK_OTHERS] @ centres.T
        if count == 1:
            found[start : start + _BLOCK_OTHERS, 0] = cosines.argmax(axis=1)
        else:
            first = np.argpartition(cosines, -count, axis=1)[:, -count:]
            found[start : start + _BLOCK_OTHERS] = first
    return found
