"""Which vectors are nearest to each other by cosine: exact, in blocks, by NumPy alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]
# The cosines of one block, 8 MB, stay in the processor's cache until their largest are found.
_BLOCK_QUERIES = 512
_BLOCK_OTHERS = 4096


@dataclass(frozen=True)
class Nearest:
    """The nearest of other vectors to each of B vectors.

    :param numbers: the number of the nearest one, int64, [B]; -1 where there is none.
    :param cosines: the cosine to it, float32, [B]; minus infinity where there is none.
    """

    numbers: Ints
    cosines: Vectors


def normalize(vectors: Vectors) -> Vectors:
    """Vectors, [B, D], at the length 1."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Vectors = vectors / np.maximum(lengths, 1e-12)
    return scaled


def find_nearest(
    queries: Vectors, chunks: Iterable[tuple[Ints, Vectors]], own: Ints | None = None
) -> Nearest:
    """Find the nearest of many vectors to each of some, looking at every pair.

    The others pass by in chunks, so that those of a corpus of any size need no memory together.

    :param queries: vectors of any length, float32, [B, D].
    :param chunks: the other vectors: the numbers of some, [b], and their vectors, float32, [b, D],
        of any length; no number stands twice.
    :param own: for each query its own number among the others, which is not to be found, int64,
        [B], no number twice; -1 for none. Nothing is left out if ``None``.
    """
    queries = normalize(queries)
    nearest = Nearest(np.full(len(queries), -1), np.full(len(queries), -np.inf, np.float32))
    for numbers, vectors in chunks:
        scaled = normalize(vectors)
        pairs = _find_own(own, numbers) if own is not None else np.empty((0, 2), np.int64)
        for start in range(0, len(scaled), _BLOCK_OTHERS):
            block = slice(start, start + _BLOCK_OTHERS)
            is_inside = (pairs[:, 1] >= start) & (pairs[:, 1] < block.stop)
            inside = pairs[is_inside] - np.array([0, start])
            _update(nearest, queries, numbers[block], scaled[block], inside)
    return nearest


def _find_own(own: Ints, numbers: Ints) -> Ints:
    """The pairs of a query and the index of its own number among some numbers: [P, 2]."""
    order = np.argsort(own)
    at = np.minimum(np.searchsorted(own[order], numbers), max(0, len(own) - 1))
    index = np.flatnonzero(own[order][at] == numbers) if len(own) else np.empty(0, np.int64)
    return np.stack([order[at[index]], index], axis=1)


def _update(
    nearest: Nearest, queries: Vectors, numbers: Ints, others: Vectors, left_out: Ints
) -> None:
    """Let one block of others take the place of those found before where it has nearer ones.

    :param left_out: pairs of a query and one of the others that do not count, [P, 2].
    """
    for start in range(0, len(queries), _BLOCK_QUERIES):
        block = slice(start, start + _BLOCK_QUERIES)
        cosines = queries[block] @ others.T
        is_inside = (left_out[:, 0] >= start) & (left_out[:, 0] < block.stop)
        cosines[left_out[is_inside, 0] - start, left_out[is_inside, 1]] = -np.inf
        at = cosines.argmax(axis=1)
        best = cosines[np.arange(len(at)), at]
        is_nearer = best > nearest.cosines[block]
        nearest.numbers[block][is_nearer] = numbers[at[is_nearer]]
        nearest.cosines[block][is_nearer] = best[is_nearer]
