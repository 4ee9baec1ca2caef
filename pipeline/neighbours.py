"""Which vectors are nearest to each other by cosine, by NumPy alone: exact, or by cells of many.

The products of two blocks are too small for several threads to share one well: blocks are compared
on all cores at once, each by a thread of its own. See ``open_threads``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.processes import open_threads

Ints = npt.NDArray[np.int64]
Indices = npt.NDArray[np.integer[Any]]
Vectors = npt.NDArray[np.float32]
# Vectors by their numbers, in chunks: numbers, [b], and vectors of any length, [b, D].
Chunks = Iterable[tuple[Ints, Vectors]]
# The most pairs of which each is looked at: those of 50,000 vectors and 50,000 others, some 20
# seconds of a core at 384 numbers a vector.
EXACT_PAIRS = 2_500_000_000
# The cosines of one block, 8 MB, stay in the processor's cache until their largest are found.
_BLOCK_QUERIES = 512
_BLOCK_OTHERS = 4096
# The number of cells, as a multiple of the root of the number of vectors in them, and those whose
# vectors a query is compared with. Of the nearest among 93,000 vectors of texts in 1,150 cells, 96
# in 100 are found in so many, and 996 in 1,000 of those at a cosine above 0.8.
_CELLS_PER_ROOT = 4
_PROBED_CELLS = 36
# Directions in which the centres of cells vary most. The nearest centres are found by them, with
# the loss of 2 in 1,000 of the nearest vectors.
_DIRECTIONS = 192
# Regions in which the cell of a vector is looked for, with the loss of 3 in 1,000.
_PROBED_REGIONS = 3
_QUERIES_PER_CELL = 20  # by which the centre of a cell is found
_SORTED_VECTORS = 262_144  # by their cells at once
_MOST_LINKS = 5_000_000  # between vectors, that are held before groups are joined: 80 MB
_ROUNDS = 3  # of finding the centres
# The numbers in the vectors whose cells are filled at once, at most: 1.1 GB. The queries of each
# are copied for each filling, which with the few vectors of one chunk would take longer than
# comparing.
_FILLED_NUMBERS = 270_000_000
# No texts at a lower cosine are called near-duplicates, whatever the others are.
_LEAST_COSINE = 0.8
_FEWEST_TEXTS = 1000  # among which fewer than one may exceed the threshold by chance
_NORMAL_QUARTILE = 0.6745  # the distance of the quartiles of a standard normal from its median


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


def normalize(vectors: Vectors, *, overwrite: bool = False) -> Vectors:
    """Vectors, [B, D], at the length 1.

    :param vectors: vectors of any length.
    :param overwrite: whether they may be scaled where they stand, which needs no more memory.
    """
    scaled = vectors if overwrite else np.empty_like(vectors)

    def scale(some: slice) -> None:
        lengths = np.linalg.norm(vectors[some], axis=1, keepdims=True)
        np.divide(vectors[some], np.maximum(lengths, 1e-12), out=scaled[some])

    _call_each_block(scale, len(vectors))
    return scaled


def _call_each_block(work: Callable[[slice], None], rows: int) -> None:
    """Call a function with each block of some rows, several at once."""
    blocks = [slice(start, start + _BLOCK_OTHERS) for start in range(0, rows, _BLOCK_OTHERS)]
    if len(blocks) < 2:
        for block in blocks:
            work(block)
        return
    with open_threads() as pool:
        for _ in pool.map(work, blocks):
            pass


def fit_cells(queries: int, others: int, take: Callable[[Ints], Vectors]) -> Cells | None:
    """Divide the space of vectors into cells if there are more than ``EXACT_PAIRS`` pairs.

    :param queries: the number of the queries.
    :param others: the number of the other vectors.
    :param take: a function from indices of queries to their vectors, of length 1, float32.
    :returns: the cells; ``None`` where every pair is to be looked at.
    """
    if queries * others <= EXACT_PAIRS:
        return None
    C = max(1, min(_CELLS_PER_ROOT * math.isqrt(others), queries // _QUERIES_PER_CELL))
    order = np.random.default_rng(0).permutation(queries)
    return Cells.fit(take(order[: C * _QUERIES_PER_CELL]), C)


def find_nearest(
    queries: Vectors,
    chunks: Chunks,
    own: Ints | None = None,
    *,
    others: int = 0,
    cells: Cells | None = None,
    memory_bytes: float = math.inf,
    overwrite: bool = False,
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
    :param cells: the cells, where these queries are a part of those that they were fitted to;
        ``None`` for those of the queries.
    :param memory_bytes: the memory that the vectors may take, beside one chunk.
    :param overwrite: whether the queries may be scaled where they stand, which saves a copy.
    """
    B, D = queries.shape
    queries = normalize(queries, overwrite=overwrite)
    if cells is None:
        cells = fit_cells(B, others, queries.__getitem__)
    exact = cells is None
    nearest = Nearest(np.full(B, -1), np.full(B, -np.inf, np.float32), exact)
    owners = _Owners(own)
    chunks = ((numbers, normalize(vectors)) for numbers, vectors in chunks)
    if cells is not None:
        filled = int(min(4 * _FILLED_NUMBERS, memory_bytes - queries.nbytes)) // (4 * D)
        chunks = _join_chunks(chunks, max(_BLOCK_OTHERS, min(filled, others)), D)
        waiting = cells.list_queries(queries)
    for numbers, scaled in chunks:
        pairs = _pair_all(B, len(scaled)) if cells is None else cells.pair(waiting, scaled)
        _update(nearest, queries, numbers, scaled, owners.find(numbers), pairs)
    return nearest


def _join_chunks(chunks: Chunks, filled: int, D: int) -> Chunks:
    """The same vectors, in order, ``filled`` at a time, which stand until the next."""
    held_numbers, held = np.empty(filled, np.int64), np.empty((filled, D), np.float32)
    count = 0
    for numbers, vectors in chunks:
        start = 0
        while start < len(numbers):
            some = slice(start, start + filled - count)
            into = slice(count, count + len(numbers[some]))
            held_numbers[into], held[into] = numbers[some], vectors[some]
            start, count = start + len(numbers[some]), into.stop
            if count == filled:
                yield held_numbers, held
                count = 0
    if count:
        yield held_numbers[:count], held[:count]


def _pair_all(queries: int, others: int) -> Iterator[tuple[Indices, Indices]]:
    """The indices of queries and of others in blocks, so that each meets each."""
    for first in range(0, others, _BLOCK_OTHERS):
        for start in range(0, queries, _BLOCK_QUERIES):
            yield (
                np.arange(start, min(start + _BLOCK_QUERIES, queries)),
                np.arange(first, min(first + _BLOCK_OTHERS, others)),
            )


def _pair_within(scaled: Vectors) -> Iterator[tuple[Indices, Indices]]:
    """The indices of the vectors, of length 1, that meet each other: all, or those in cells."""
    cells = fit_cells(len(scaled), len(scaled), scaled.__getitem__)
    if cells is None:
        return _pair_all(len(scaled), len(scaled))
    return cells.pair(cells.list_queries(scaled), scaled)


def _update(
    nearest: Nearest,
    queries: Vectors,
    numbers: Ints,
    others: Vectors,
    owner: Ints,
    pairs: Iterable[tuple[Indices, Indices]],
) -> None:
    """Let others take the place of those found before where they are nearer to queries.

    :param numbers: the numbers of the others, [c].
    :param others: their vectors, of length 1, [c, D].
    :param owner: for each of the others the index of the query that it is itself; -1 for none.
    :param pairs: indices of queries, ascending, and of others, all of which are to meet.
    """
    with open_threads() as pool:
        compare = partial(_compare, queries, others, owner)
        for some, at, cosines in pool.map(compare, pairs):
            is_nearer = cosines > nearest.cosines[some]
            nearest.numbers[some[is_nearer]] = numbers[at[is_nearer]]
            nearest.cosines[some[is_nearer]] = cosines[is_nearer]


def _compare(
    queries: Vectors, others: Vectors, owner: Ints, pair: tuple[Indices, Indices]
) -> tuple[Indices, Indices, Vectors]:
    """The indices of some queries, that of the nearest of a few others to each, and its cosine."""
    some, at = pair
    cosines = queries[some] @ others[at].T
    (column,) = np.nonzero(owner[at] >= 0)
    if len(column):  # a query is not to find itself
        own = owner[at[column]]
        row = np.minimum(np.searchsorted(some, own), len(some) - 1)
        is_here = some[row] == own
        cosines[row[is_here], column[is_here]] = -np.inf
    best = cosines.argmax(axis=1)
    return some, at[best], cosines[np.arange(len(best)), best]


class _Owners:
    """Which vectors are queries themselves.

    :param own: for each query its own number among the others, -1 for none; ``None`` where no query
        is among them.
    """

    def __init__(self, own: Ints | None) -> None:
        self._order = np.argsort(own) if own is not None else np.empty(0, np.int64)
        self._own = own[self._order] if own is not None else self._order

    def find(self, numbers: Ints) -> Ints:
        """The index of the query that each of some numbers is; -1 for none: int64, [b]."""
        if not len(self._own):
            return np.full(len(numbers), -1)
        at = np.minimum(np.searchsorted(self._own, numbers), len(self._own) - 1)
        return np.where(self._own[at] == numbers, self._order[at], -1)


def find_threshold(sample_cosines: Vectors, texts: int) -> float:
    """The cosine above which texts of a corpus are nearer to each other than by chance.

    Most texts are near to another one only as texts of one language and subject are. By Fisher's
    transformation, their cosines to the nearest one are about normal; the centre and the deviation
    of this null distribution are found from its lower half, where near-duplicates do not reach. The
    threshold is what fewer than one of all texts would exceed by chance.

    Source: Fisher (1915) for the transformation; Efron (2004), Large-scale simultaneous hypothesis
    testing: the choice of a null hypothesis, for a null distribution found from the data.

    :param sample_cosines: the cosine of each of S texts to the nearest other one, [S].
    :param texts: the number of distinct texts among which it was looked for.
    :returns: a cosine of 0.8 at least; 1, which none exceeds, if there is no sample.
    """
    if not len(sample_cosines):
        return 1.0
    transformed = np.arctanh(np.clip(sample_cosines.astype(np.float64), -0.999999, 0.999999))
    quartile, centre = np.quantile(transformed, [0.25, 0.5])
    deviation = (centre - quartile) / _NORMAL_QUARTILE
    deviations = NormalDist().inv_cdf(1 - 1 / max(texts, _FEWEST_TEXTS))
    return max(_LEAST_COSINE, math.tanh(centre + deviations * deviation))


def group_near(vectors: Vectors, threshold: float) -> Ints:
    """The groups of vectors that are linked by cosines above a threshold.

    Two vectors that are not near each other are in one group if others between them link them. Up
    to ``EXACT_PAIRS`` pairs every pair is looked at, beyond those in the same cells, as
    ``find_nearest`` has it.

    :param vectors: vectors of any length, float32, [N, D].
    :param threshold: the cosine above which two vectors are near.
    :returns: the number of the group of each, from 0, int64, [N].
    """
    scaled = normalize(vectors)
    N = len(scaled)
    pairs = _pair_within(scaled)
    groups = np.arange(N)
    links: list[tuple[Indices, Indices]] = []
    for some, others in pairs:
        row, column = np.nonzero(scaled[some] @ scaled[others].T > threshold)
        is_new = groups[some[row]] != groups[others[column]]
        links.append((some[row[is_new]], others[column[is_new]]))
        if sum(len(first) for first, _ in links) > _MOST_LINKS:
            groups, links = _join_groups(groups, links), []
    return _join_groups(groups, links)


def _join_groups(groups: Ints, links: Sequence[tuple[Indices, Indices]]) -> Ints:
    """The groups when those that are linked have become one.

    :param groups: the number of the group of each vector, [N].
    :param links: indices of vectors that are in one group, two by two.
    """
    first, second = (
        np.concatenate([np.empty(0, np.int64), *side])
        for side in (zip(*links, strict=True) if links else ((), ()))
    )
    first, second = groups[first], groups[second]
    # Each group points to a lower one that it is linked with, or to itself.
    root = np.arange(len(groups))
    while (root[first] != root[second]).any():
        one, other = root[first], root[second]
        lower = np.minimum(one, other)
        np.minimum.at(root, one, lower)
        np.minimum.at(root, other, lower)
        while (root != root[root]).any():
            root = root[root]
    return np.unique(root[groups], return_inverse=True)[1].reshape(-1)


@dataclass(frozen=True)
class Cells:
    """Cells of the space of vectors of length 1: all vectors nearest to one of some centres.

    Cells that are near each other form a region, so that the nearest centre of a vector is looked
    for in a few regions alone.

    Source: Nistér, Stewénius (2006), Scalable recognition with a vocabulary tree, for centres that
    are found, and looked for, level by level.

    :param regions: the centres of the regions, of length 1, [G, D].
    :param centres: the centres of the cells, of length 1, those of a region side by side, [C, D].
    :param starts: the first cell of each region, and C behind them: [G + 1].
    :param directions: orthonormal columns along which the centres vary most, [D, d].
    """

    regions: Vectors
    centres: Vectors
    starts: Ints
    directions: Vectors

    @classmethod
    def fit(cls, sample: Vectors, count: int) -> Cells:
        """Find centres among some vectors by a few rounds of k-means.

        :param sample: vectors of length 1 in random order, [B, D].
        :param count: the number of cells.
        """
        regions = _find_centres(sample, math.isqrt(count))
        members = _list_members(_find_cells(sample, regions, 1), len(regions))
        regions = regions[[len(of) > 0 for of in members]]  # in one without cells nothing is found
        centres = [
            _find_centres(sample[of], max(1, len(of) // _QUERIES_PER_CELL))
            for of in members
            if len(of)
        ]
        starts = np.cumsum([0, *map(len, centres)])
        joined = np.concatenate(centres)
        # Centres vary in few directions, by which the nearest ones are found as well.
        directions = np.linalg.eigh(joined.T @ joined)[1][:, -_DIRECTIONS:]
        return cls(regions, joined, starts, directions)

    def list_queries(self, queries: Vectors) -> list[Indices]:
        """For each cell the indices of the queries that are to be compared with its vectors.

        :param queries: vectors of length 1, [B, D].
        """
        C = len(self.centres)
        probed = _find_cells(
            queries @ self.directions, self.centres @ self.directions, min(_PROBED_CELLS, C)
        )
        return _list_members(probed, C)

    def pair(
        self, waiting: Sequence[Indices], vectors: Vectors
    ) -> Iterator[tuple[Indices, Indices]]:
        """The indices of the queries and of the vectors that meet in each cell.

        :param waiting: for each cell the indices of the queries, ascending.
        :param vectors: vectors of length 1, [b, D].
        """
        members = _list_members(self._locate(vectors)[:, None], len(self.centres))
        for queries, of_cell in zip(waiting, members, strict=True):
            # A cell of many vectors that are the same is met a part at a time.
            for first in range(0, len(of_cell), _BLOCK_OTHERS):
                for start in range(0, len(queries), _BLOCK_OTHERS):
                    yield (
                        queries[start : start + _BLOCK_OTHERS],
                        of_cell[first : first + _BLOCK_OTHERS],
                    )

    def _locate(self, vectors: Vectors) -> Ints:
        """The cell of each vector: [b]."""
        G = len(self.regions)
        nearest = Nearest(np.zeros(len(vectors), np.int64), np.full(len(vectors), -np.inf, "f4"))
        members = _list_members(_find_cells(vectors, self.regions, min(_PROBED_REGIONS, G)), G)
        cells = np.arange(len(self.centres))
        pairs = (
            (some[first : first + _BLOCK_OTHERS], cells[start:end])
            for some, start, end in zip(members, self.starts, self.starts[1:], strict=False)
            for first in range(0, len(some), _BLOCK_OTHERS)
        )
        _update(nearest, vectors, cells, self.centres, np.full(len(cells), -1), pairs)
        return nearest.numbers


def _find_centres(vectors: Vectors, count: int) -> Vectors:
    """Centres of vectors by a few rounds of k-means, of length 1: [count, D], or fewer.

    A centre that no vector is nearest to is left out. Those of vectors that are the same would be
    the same, too, and a query would look for them in cells of which all but one are empty.

    :param vectors: vectors of length 1 in random order, at least one, [B, D].
    """
    centres = vectors[:count]
    for _ in range(_ROUNDS):
        members = _list_members(_find_cells(vectors, centres, 1), len(centres))
        centres = normalize(np.stack([vectors[of].sum(axis=0) for of in members if len(of)]))
    return centres


def _list_members(cells: Indices, count: int) -> list[Indices]:
    """The indices of the vectors that are in each cell, ascending, int32.

    They are sorted a part at a time: the order of millions of vectors in dozens of cells each would
    take more memory than the vectors.

    :param cells: the cells that each vector is in, [B, n].
    :param count: the number of cells.
    """
    ends = np.cumsum(np.bincount(cells.ravel(), minlength=count))
    filled = np.concatenate([[0], ends[:-1]])
    members = np.empty(cells.size, np.int32)
    for first in range(0, len(cells), _SORTED_VECTORS):
        part = cells[first : first + _SORTED_VECTORS]
        by_cell = np.argsort(part, axis=None, kind="stable")
        held = np.bincount(part.ravel(), minlength=count)
        shift = filled - (np.cumsum(held) - held)  # from the order of this part to that of all
        members[np.repeat(shift, held) + np.arange(part.size)] = first + by_cell // part.shape[1]
        filled += held
    return np.split(members, ends[:-1])


def _find_cells(vectors: Vectors, centres: Vectors, count: int) -> Indices:
    """The nearest centres of vectors: indices, int32, [B, count], in no order."""
    found = np.empty((len(vectors), count), np.int32)

    def find(some: slice) -> None:
        cosines = vectors[some] @ centres.T
        if count == 1:
            found[some, 0] = cosines.argmax(axis=1)
        else:
            found[some] = np.argpartition(cosines, -count, axis=1)[:, -count:]

    _call_each_block(find, len(vectors))
    return found


def list_neighbours(vectors: Vectors, count: int) -> tuple[Ints, Vectors, bool]:
    """The nearest of the other vectors to each of some, the nearest first.

    Up to ``EXACT_PAIRS`` pairs, every pair is looked at; beyond, those in the nearest cells.

    :param vectors: vectors of any length, float32, [B, D].
    :param count: the number of neighbours, N.
    :returns: the numbers of the neighbours, int64, [B, N], -1 where there are fewer; the cosines to
        them, [B, N], minus infinity there; and whether every pair was looked at.
    """
    B = len(vectors)
    scaled = normalize(vectors)
    numbers = np.full((B, count), -1)
    cosines = np.full((B, count), -np.inf, np.float32)
    for some, members in _pair_within(scaled):
        found = scaled[some] @ scaled[members].T
        found[some[:, None] == members] = -np.inf  # a vector is no neighbour of its own
        best = np.argpartition(-found, min(count, len(members)) - 1, axis=1)[:, :count]
        joined = np.hstack([cosines[some], np.take_along_axis(found, best, axis=1)])
        order = np.argsort(-joined, axis=1, kind="stable")[:, :count]
        cosines[some] = np.take_along_axis(joined, order, axis=1)
        numbers[some] = np.take_along_axis(np.hstack([numbers[some], members[best]]), order, axis=1)
    return np.where(np.isfinite(cosines), numbers, -1), cosines, B * B <= EXACT_PAIRS
