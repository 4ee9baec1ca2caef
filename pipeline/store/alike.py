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
_STRIP = 0.1  # along one direction, in which a sketch of length 1 deviates by 1


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
    for start in range(0, len(order), _CHUNK_ROWS):
        chunk = order[start : start + _CHUNK_ROWS]
        counts = np.empty((len(chunk), 1), np.int32)
        vectors = np.empty((len(chunk), manifest.width), np.float32)
        last = split_columns(manifest, [max(manifest.layers)], vectors[:, None])
        gather_rows(snapshot, positions[chunk], {"n_tokens": counts, **last})
        n_tokens[chunk] = counts[:, 0]
        lengths = np.sqrt(np.einsum("bd,bd->b", vectors, vectors))
        sketches[chunk] = vectors @ directions / lengths[:, None]
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
    lengths, near = n_tokens[order], sketches[order]
    # Sketches that are equal to the last bit stand together; one of each run is enough.
    is_new = np.ones(len(order), bool)
    is_new[1:] = (np.diff(lengths) != 0) | (near[1:] != near[:-1]).any(axis=1)
    run_of = np.cumsum(is_new) - 1
    first, second = _find_pairs(lengths[is_new], near[is_new])
    label = np.arange(int(is_new.sum()))
    while (label[first] != label[second]).any():
        lower = np.minimum(label[first], label[second])
        np.minimum.at(label, first, lower)
        np.minimum.at(label, second, lower)
    group = label[run_of]
    earliest = np.full(len(label), len(order), np.int64)
    np.minimum.at(earliest, group, order)
    alike = np.empty(len(order), np.int64)
    alike[order] = earliest[group]
    return alike


def _find_pairs(
    lengths: npt.NDArray[np.int32], sketches: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """All pairs of rows that are the same within the tolerance.

    Rows are sorted by length, by the strip that their sketch along the second direction lies in,
    and by that along the first, so that few stand between two that are near. A row near the end of
    a strip stands in the next one, too.

    :param lengths: number of tokens, [R].
    :param sketches: sketches, [R, S].
    :returns: the indices of the first and of the second row of each pair.
    """
    strips = np.floor(sketches[:, 1] / _STRIP)
    at_end = np.flatnonzero(np.floor((sketches[:, 1] + _TOLERANCE) / _STRIP) > strips)
    index = np.concatenate([np.arange(len(lengths)), at_end])
    strips = np.concatenate([strips, strips[at_end] + 1])
    order = np.lexsort((sketches[index, 0], strips, lengths[index]))
    index, strips = index[order], strips[order]
    lengths, sketches = lengths[index], sketches[index]
    pairs = [(np.empty(0, np.int64), np.empty(0, np.int64))]
    rows = np.arange(len(index))  # rows that may be the same as the one so many steps behind
    for step in count(1):
        rows = rows[rows < len(index) - step]
        is_near = sketches[rows + step, 0] - sketches[rows, 0] <= _TOLERANCE
        is_near &= strips[rows + step] == strips[rows]
        rows = rows[is_near & (lengths[rows + step] == lengths[rows])]
        if not len(rows):
            break
        same = rows
        for direction in range(1, sketches.shape[1]):
            distance = np.abs(sketches[same + step, direction] - sketches[same, direction])
            same = same[distance <= _TOLERANCE]
        pairs.append((index[same], index[same + step]))
    first, second = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return first, second
