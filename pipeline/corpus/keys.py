"""Keys of texts, many at a time."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.arrays import take_values, wrap_numbers

if TYPE_CHECKING:
    import pyarrow as pa

_CHUNK_TEXTS = 16_384


def view_keys(keys: pa.Array) -> npt.NDArray[np.uint8]:
    """The bytes of an array of keys: uint8, [N, 16], without a copy.

    :param keys: fixed-size binary of 16, [N], without nulls.
    """
    buffer = keys.buffers()[1]
    if buffer is None:
        return np.empty((0, 16), np.uint8)
    raw = np.frombuffer(buffer, np.uint8)
    return raw[keys.offset * 16 : (keys.offset + len(keys)) * 16].reshape(-1, 16)


def hash_keys(keys: pa.Array) -> str:
    """SHA-256 over keys, one after another: equal for the same texts in the same order."""
    return hashlib.sha256(np.ascontiguousarray(view_keys(keys)).data).hexdigest()


def hash_texts(texts: Sequence[str]) -> list[bytes]:
    """The key of each text: BLAKE2b over its UTF-8 bytes, cut to 128 bits.

    :param texts: texts that can be encoded as UTF-8, [B].
    :returns: 16 bytes each; equal for equal texts and for nothing else.
    """
    return [_hash_bytes(text.encode("utf-8")) for text in texts]


def pack_keys(texts: Iterable[str], number: int) -> npt.NDArray[np.uint8]:
    """The keys of many texts in one array.

    :param texts: texts that can be encoded as UTF-8, [B].
    :param number: B.
    :returns: uint8, [B, 16].
    """
    keys = np.empty((number, 16), np.uint8)
    start = 0
    following = iter(texts)
    while part := list(itertools.islice(following, _CHUNK_TEXTS)):
        raw = np.frombuffer(b"".join(hash_texts(part)), np.uint8)
        keys[start : start + len(part)] = raw.reshape(-1, 16)
        start += len(part)
    return keys


def number_keys(keys: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """A number for each key, the same for the same key, in the order of first appearance.

    Keys of one range at a time are sorted, which takes far less memory than a table of all.

    :param keys: uint8, [B, 16].
    :returns: int32, [B], from 0.
    """
    first_rows = np.empty(len(keys), np.int32)  # the first row that has the key of each row
    is_first = np.zeros(len(keys), bool)
    for rows, is_new in _sort_keys(keys):
        of_keys = rows[is_new]
        first_rows[rows] = of_keys[np.cumsum(is_new) - 1]
        is_first[of_keys] = True
    numbers = np.cumsum(is_first, dtype=np.int32)
    numbers -= 1
    return take_values(numbers, first_rows, into=first_rows)


def code_keys(keys: pa.Array) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """The distinct keys in the order of first appearance, and which of them each is.

    Arrow's own ``dictionary_encode`` gives the same; its table takes several times the memory.

    :param keys: fixed-size binary of 16, [B], without nulls.
    :returns: fixed-size binary of 16, [N], and int64, [B].
    """
    numbers = number_keys(view_keys(keys))
    is_new = np.ones(len(numbers), bool)
    is_new[1:] = numbers[1:] > np.maximum.accumulate(numbers)[:-1]
    distinct = keys if is_new.all() else keys.take(wrap_numbers(np.flatnonzero(is_new)))
    return distinct, numbers.astype(np.int64)


def count_distinct(keys: npt.NDArray[np.uint8]) -> int:
    """How many distinct keys there are.

    :param keys: uint8, [B, 16].
    """
    return sum(int(is_new.sum()) for _, is_new in _sort_keys(keys))


def find_first_keys(keys: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Whether each key is the first of its kind: bool, [B].

    :param keys: uint8, [B, 16].
    """
    is_first = np.zeros(len(keys), bool)
    for rows, is_new in _sort_keys(keys):
        is_first[rows[is_new]] = True
    return is_first


def keep_keys(
    keys: npt.NDArray[np.uint8], are_kept: npt.NDArray[np.bool_]
) -> npt.NDArray[np.uint8]:
    """Some of many keys, moved to the start of the array that holds all, which is lost.

    :param keys: uint8, [B, 16].
    :param are_kept: whether each key is kept: bool, [B].
    :returns: the kept keys in their order, in the memory of ``keys``.
    """
    end = 0
    for start in range(0, len(keys), _CHUNK_TEXTS):
        part = slice(start, start + _CHUNK_TEXTS)
        kept = keys[part][are_kept[part]]
        keys[end : end + len(kept)] = kept
        end += len(kept)
    return keys[:end]


class KeyIndex:
    """Distinct keys, among which others are found.

    Where keys are not asked for in the order of the index, it sorts its own once, by their first
    halves, and from then on takes 12 bytes a key beside the keys themselves.

    :param keys: uint8, [N, 16].
    """

    def __init__(self, keys: npt.NDArray[np.uint8]) -> None:
        self._keys = keys
        self._halves = keys.view(np.uint64)
        # The numbers of the keys in ascending order of their first halves, and these.
        self._sorted: tuple[npt.NDArray[np.int32], npt.NDArray[np.uint64]] | None = None

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, keys: npt.NDArray[np.uint8], guess: int = 0) -> npt.NDArray[np.int64]:
        """The number of each key among those of the index; -1 for one that is not found.

        :param keys: uint8, [B, 16].
        :param guess: the number that the first of them has if all stand in the index one after
            another, in which case nothing is sorted or searched.
        """
        if not len(self._keys) or not len(keys):
            return np.full(len(keys), -1, np.int64)
        halves = np.ascontiguousarray(keys).view(np.uint64)
        if np.array_equal(self._halves[guess : guess + len(keys)], halves):
            return np.arange(guess, guess + len(keys))
        if self._sorted is None:
            self._sorted = self._sort()
        order, first_halves = self._sorted
        by_size = np.argsort(halves[:, 0])  # neighbours are found near each other, in the caches
        at = np.empty(len(keys), np.int64)
        at[by_size] = np.searchsorted(first_halves, halves[by_size, 0])
        numbers = order[np.minimum(at, len(order) - 1)].astype(np.int64)
        is_found = (self._halves[numbers] == halves).all(axis=1)
        # Of several keys with the same first half, the first was looked at.
        (others,) = np.nonzero(~is_found & (self._halves[numbers, 0] == halves[:, 0]))
        while len(others):
            at[others] += 1
            others = others[at[others] < len(order)]
            numbers[others] = order[at[others]]
            is_found[others] = (self._halves[numbers[others]] == halves[others]).all(axis=1)
            is_alike = self._halves[numbers[others], 0] == halves[others, 0]
            others = others[~is_found[others] & is_alike]
        return np.where(is_found, numbers, -1)

    def _sort(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint64]]:
        order = np.empty(len(self._keys), np.int32)
        start = 0
        for rows, _ in _sort_keys(self._keys):
            order[start : start + len(rows)] = rows
            start += len(rows)
        return order, self._halves[order, 0]


def _sort_keys(
    keys: npt.NDArray[np.uint8],
) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]]:
    """The rows of 256 ranges of keys, one range after another.

    :yields: rows in the order of their keys, those of equal ones ascending; and whether each has
        another key than the one before.
    """
    halves = keys.view(np.uint64)
    ranges = np.empty(len(keys), np.uint8)
    np.right_shift(halves[:, 0], np.uint64(56), out=ranges, casting="unsafe")
    for number in range(256):
        rows = np.flatnonzero(ranges == number).astype(np.int32)
        if len(rows):
            order, is_new = _sort_halves(halves[rows])
            yield rows[order], is_new


def _sort_halves(
    halves: npt.NDArray[np.uint64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The order of some keys, equal ones ascending, and whether each differs from the one before.

    Keys with the same first half are put into order by themselves: all others, which are nearly all
    where texts are distinct, are sorted by one number each.

    :param halves: the two halves of each key: uint64, [b, 2].
    """
    order = np.argsort(halves[:, 0])
    is_new = np.ones(len(order), bool)
    first_halves = halves[order, 0]
    is_tied = np.zeros(len(order), bool)  # with a neighbour
    is_tied[1:] = first_halves[1:] == first_halves[:-1]
    is_tied[:-1] |= is_tied[1:]
    if is_tied.any():
        tied = order[is_tied]
        tied = tied[np.lexsort((tied, halves[tied, 1], halves[tied, 0]))]
        order[is_tied] = tied
        differ = np.ones(len(tied), bool)
        differ[1:] = (halves[tied[1:]] != halves[tied[:-1]]).any(axis=1)
        is_new[is_tied] = differ
    return order, is_new


def find_wrong_text(texts: pa.Array, keys: pa.Array) -> int | None:
    """The index of the first text whose key is another than the one beside it, if there is one.

    :param texts: strings, [B].
    :param keys: fixed-size binary of 16, [B].
    """
    import pyarrow as pa

    # Bytes are hashed as they are, since damaged ones need not be UTF-8.
    found = b"".join(map(_hash_bytes, texts.cast(pa.binary()).to_pylist()))
    if found == view_keys(keys).tobytes():
        return None
    differs = np.frombuffer(found, np.uint8).reshape(-1, 16) != view_keys(keys)
    return int(np.flatnonzero(differs.any(axis=1))[0])


def _hash_bytes(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=16).digest()
