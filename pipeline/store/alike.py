"""Which texts have the same vector, so that a head cannot tell one from the other.

Texts that are the same tokens, such as spellings in other case, or letters that are alike up to
where they are cut, are the same to the backbone. Their vectors are equal bit for bit if they were
computed together, and but for rounding if they were not.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.processes import open_threads
from pipeline.store.commit import Snapshot, read_steadily
from pipeline.store.manifest import split_columns
from pipeline.store.reader import gather_rows, locate

if TYPE_CHECKING:
    import pyarrow as pa

_CHUNK_ROWS = 32_768
_DIRECTIONS = 16  # of a sketch
# The largest difference of sketches that are the same. Where rounding moves a vector by 5e-4 of its
# length, all directions stay within it but once in 1e6 times; on a CPU it moves none at all. The
# nearest vectors of different tokens among 5,169 short messages are 2e-2 apart, and all directions
# take that for the same once in 1e12 times.
_TOLERANCE = 4e-3
# Cells of a sketch along three directions, in each of which those of a corpus deviate by 1. So few
# of 10,000,000 sketches are in the cell of one, and near it along another direction, that one in
# eight is compared with another at all.
_CELL_DIRECTIONS = (1, 2, 3)
_CELL = 0.05
_CELL_BITS = 12  # of a cell's number in a key


def find_alike(
    folder: Path, keys: pa.Array, fingerprint: str | None = None
) -> npt.NDArray[np.int64]:
    """For each text the first one that has the same vector.

    The last layer of the store is what is compared, with the number of tokens.

    :param folder: the store.
    :param keys: keys of N texts: fixed-size binary of 16, distinct.
    :param fingerprint: fingerprint of the vectors wanted; any if ``None``.
    :returns: an index among the keys for each, its own where no earlier text has its vector: int64,
        [N].
    :raises StoreError: if a key is not in the store, or what is read is damaged.
    """
    n_tokens, sketches = read_steadily(
        folder, lambda snapshot: _sketch_texts(snapshot, keys), fingerprint=fingerprint
    )
    return group_sketches(n_tokens, sketches)


def _sketch_texts(
    snapshot: Snapshot, keys: pa.Array
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """The number of tokens, [N], and the sketch of the vector, [N, S], of each text.

    A sketch is the vector of length 1 along random directions. Two sketches differ about as much as
    the vectors do, and 1,000,000 take 64 MB.
    """
    manifest = snapshot.manifest
    directions = np.random.default_rng(0).standard_normal((manifest.width, _DIRECTIONS), np.float32)
    positions = locate(snapshot, keys)
    order = np.argsort(positions, kind="stable")
    n_tokens = np.empty(len(keys), np.int32)
    sketches = np.empty((len(keys), _DIRECTIONS), np.float32)

    def sketch(start: int) -> None:
        chunk = order[start : start + _CHUNK_ROWS]
        counts = np.empty((len(chunk), 1), np.int32)
        vectors = np.empty((len(chunk), manifest.width), np.float32)
        last = split_columns(manifest, [max(manifest.layers)], vectors[:, None])
        gather_rows(snapshot, positions[chunk], {"n_tokens": counts, **last})
        n_tokens[chunk] = counts[:, 0]
        lengths = np.sqrt(np.einsum("bd,bd->b", vectors, vectors))
        sketches[chunk] = vectors @ directions / lengths[:, None]

    with open_threads() as pool:
        for _ in pool.map(sketch, range(0, len(order), _CHUNK_ROWS)):
            pass
    return n_tokens, sketches


def group_sketches(
    n_tokens: npt.NDArray[np.int32], sketches: npt.NDArray[np.float32]
) -> npt.NDArray[np.int64]:
    """For each text the first one of as many tokens whose sketch is the same within a tolerance.

    Texts that are linked by others between them count as the same, too.

    :param n_tokens: number of tokens of each text, [N].
    :param sketches: sketch of each text's vector, [N, S].
    :returns: an index for each text, int64, [N].
    """
    order = np.lexsort((sketches[:, 0], n_tokens))
    # Sketches that are equal to the last bit stand together; one of each run is enough.
    is_new = np.ones(len(order), bool)
    for start in range(1, len(order), _CHUNK_ROWS):
        rows = order[start - 1 : start + _CHUNK_ROWS]
        near, differs = sketches[rows], np.diff(n_tokens[rows]) != 0
        is_new[start : start + _CHUNK_ROWS] = differs | (near[1:] != near[:-1]).any(axis=1)
    first, second = _find_pairs(n_tokens, sketches, order[is_new])
    label = np.arange(int(is_new.sum()))
    while (label[first] != label[second]).any():
        lower = np.minimum(label[first], label[second])
        np.minimum.at(label, first, lower)
        np.minimum.at(label, second, lower)
    group = label[np.cumsum(is_new) - 1]
    earliest = np.full(len(label), len(order), np.int64)
    np.minimum.at(earliest, group, order)
    alike = np.empty(len(order), np.int64)
    alike[order] = earliest[group]
    return alike


def _find_pairs(
    n_tokens: npt.NDArray[np.int32],
    sketches: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """All pairs of rows that are the same within the tolerance.

    Rows are sorted by cell, and within a cell by their sketch along the first direction, so that
    few stand between two that are near.

    :param n_tokens: number of tokens of each text, [N].
    :param sketches: sketches of all texts, [N, S].
    :param rows: the texts to compare, [R].
    :returns: the indices among ``rows`` of the first and of the second of each pair.
    """
    index, keys = _key_cells(n_tokens, sketches, rows)
    order = np.lexsort((sketches[rows[index], 0], keys))
    index, keys = index[order], keys[order]
    along = sketches[rows[index], 0]
    pairs = [(np.empty(0, np.int64), np.empty(0, np.int64))]
    at = np.arange(len(index))  # rows that may be the same as the one so many steps behind
    for step in count(1):
        at = at[at < len(index) - step]
        is_near = along[at + step] - along[at] <= _TOLERANCE
        at = at[is_near & (keys[at + step] == keys[at])]
        if not len(at):
            break
        first, second = index[at], index[at + step]
        # The key of another cell, or of other texts, may be the same.
        same = np.flatnonzero(n_tokens[rows[first]] == n_tokens[rows[second]])
        for direction in range(1, sketches.shape[1]):
            one, other = (sketches[rows[side[same]], direction] for side in (first, second))
            same = same[np.abs(other - one) <= _TOLERANCE]
        pairs.append((first[same], second[same]))
    one_side, other_side = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return one_side, other_side


def _key_cells(
    n_tokens: npt.NDArray[np.int32],
    sketches: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The cells of rows as numbers in which those that are near each other meet.

    A row near the end of a cell is in the next one, too, along each direction.

    :returns: indices among ``rows``, some of them several times, and the key of a cell for each.
    """
    index = np.arange(len(rows))
    keys = n_tokens[rows].astype(np.int64)
    for direction in _CELL_DIRECTIONS:
        keys <<= _CELL_BITS
        along = sketches[rows, direction]
        with np.errstate(invalid="ignore"):  # a vector that is not finite is near no other
            cell = np.floor(along / _CELL).astype(np.int64)
            is_at_end = np.floor((along + 1.01 * _TOLERANCE) / _CELL) > cell  # but for rounding
        keys += cell[index]
        again = np.flatnonzero(is_at_end[index])
        index = np.concatenate([index, index[again]])
        keys = np.concatenate([keys, keys[again] + 1])
    return index, keys
