"""Which vectors are nearest to each other by cosine, by NumPy alone: exact, or by cells of many."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

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
_MOST_LINKS = 5_000_000  # between vectors, that are held before groups are joined: 80 MB
_ROUNDS = 3  # of finding the centres
# The numbers in the vectors whose cells are filled at once: 1.1 GB. The queries of each are copied
# for each filling, which with the few vectors of one chunk would take longer than comparing.
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


def normalize(vectors: Vectors) -> Vectors:
    """Vectors, [B, D], at the length 1."""
    scaled = np.empty_like(vectors)
    for start in range(0, len(vectors), _BLOCK_OTHERS):
        some = slice(start, start + _BLOCK_OTHERS)
        lengths = np.linalg.norm(vectors[some], axis=1, keepdims=True)
        np.divide(vectors[some], np.maximum(lengths, 1e-12), out=scaled[some])
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
    scaled_chunks = ((numbers, normalize(vectors)) for numbers, vectors in chunks)
    for numbers, scaled in (
        scaled_chunks if cells is None else _join_chunks(scaled_chunks, queries.shape[1])
    ):
        pairs = _pair_all(len(queries), len(scaled)) if cells is None else cells.pair(scaled)
        for some, at in pairs:
            _update(nearest, queries, some, numbers[at], scaled[at], own)
    return nearest


def _join_chunks(chunks: Chunks, D: int) -> Chunks:
    """The same vectors, in order, as many at a time as cells take, which stand until the next."""
    filled = max(1, _FILLED_NUMBERS // D)
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
    exact = N * N <= EXACT_PAIRS
    pairs = _pair_all(N, N) if exact else _Cells.fit(scaled, N).pair(scaled)
    groups = np.arange(N)
    links: list[tuple[Ints, Ints]] = []
    for some, others in pairs:
        row, column = np.nonzero(scaled[some] @ scaled[others].T > threshold)
        is_new = groups[some[row]] != groups[others[column]]
        links.append((some[row[is_new]], others[column[is_new]]))
        if sum(len(first) for first, _ in links) > _MOST_LINKS:
            groups, links = _join_groups(groups, links), []
    return _join_groups(groups, links)


def _join_groups(groups: Ints, links: Sequence[tuple[Ints, Ints]]) -> Ints:
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
class _Cells:
    """Cells of the space of vectors of length 1: all vectors nearest to one of some centres.

    Cells that are near each other form a region, so that the nearest centre of a vector is looked
    for in a few regions alone.

    Source: Nistér, Stewénius (2006), Scalable recognition with a vocabulary tree, for centres that
    are found, and looked for, level by level.

    :param regions: the centres of the regions, of length 1, [G, D].
    :param centres: the centres of the cells, of length 1, those of a region side by side, [C, D].
    :param starts: the first cell of each region, and C behind them: [G + 1].
    :param queries: for each cell the indices of the queries that are to be compared with the
        vectors in it.
    """

    regions: Vectors
    centres: Vectors
    starts: Ints
    queries: list[Ints]

    @classmethod
    def fit(cls, queries: Vectors, others: int) -> _Cells:
        """Find centres among the queries by a few rounds of k-means.

        :param queries: vectors of length 1, [B, D].
        :param others: the number of vectors that are to be in the cells.
        """
        C = max(1, min(_CELLS_PER_ROOT * math.isqrt(others), len(queries) // _QUERIES_PER_CELL))
        order = np.random.default_rng(0).permutation(len(queries))
        sample = queries[order[: C * _QUERIES_PER_CELL]]
        regions = _find_centres(sample, math.isqrt(C))
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
        probed = _find_cells(
            queries @ directions, joined @ directions, min(_PROBED_CELLS, len(joined))
        )
        return cls(regions, joined, starts, _list_members(probed, len(joined)))

    def pair(self, vectors: Vectors) -> Iterator[tuple[Ints, Ints]]:
        """The indices of the queries and of the vectors that meet in each cell.

        :param vectors: vectors of length 1, [b, D].
        """
        members = _list_members(self._locate(vectors)[:, None], len(self.centres))
        for queries, of_cell in zip(self.queries, members, strict=True):
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
        for some, start, end in zip(members, self.starts, self.starts[1:], strict=False):
            cells, centres = np.arange(start, end), self.centres[start:end]
            for first in range(0, len(some), _BLOCK_OTHERS):
                part = some[first : first + _BLOCK_OTHERS]
                _update(nearest, vectors, part, cells, centres, None)
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


def _list_members(cells: Ints, count: int) -> list[Ints]:
    """The indices of the vectors that are in each cell, ascending.

    :param cells: the cells that each vector is in, [B, n].
    :param count: the number of cells.
    """
    by_cell = np.argsort(cells, axis=None, kind="stable")
    ends = np.cumsum(np.bincount(cells.ravel(), minlength=count))
    return np.split(by_cell // cells.shape[1], ends[:-1])


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
    exact = B * B <= EXACT_PAIRS
    pairs = _pair_all(B, B) if exact else _Cells.fit(scaled, B).pair(scaled)
    for some, members in pairs:
        found = scaled[some] @ scaled[members].T
        found[some[:, None] == members] = -np.inf  # a vector is no neighbour of its own
        best = np.argpartition(-found, min(count, len(members)) - 1, axis=1)[:, :count]
        joined = np.hstack([cosines[some], np.take_along_axis(found, best, axis=1)])
        order = np.argsort(-joined, axis=1, kind="stable")[:, :count]
        cosines[some] = np.take_along_axis(joined, order, axis=1)
        numbers[some] = np.take_along_axis(np.hstack([numbers[some], members[best]]), order, axis=1)
    return np.where(np.isfinite(cosines), numbers, -1), cosines, exact
