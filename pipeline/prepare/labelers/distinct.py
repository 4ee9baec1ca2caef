"""Each distinct text once, read from the disk as it is wanted, and what is found of it by row.

A labeler that looks at texts keeps some bytes a text: its key, a number for each row, and what it
says of the text, of which equal values are one object.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from pipeline.arrays import take_values
from pipeline.corpus.keys import hash_texts, keep_keys, number_keys, pack_keys

_CHUNK_ROWS = 16_384


class DistinctTexts:
    """The distinct ones of many texts, in the order of first appearance.

    :param texts: texts, [B], which are gone through whenever some are wanted.
    :ivar keys: the key of each distinct text: uint8, [N, 16].
    :ivar numbers: the number of each row's text among them: int32, [B].
    """

    def __init__(self, texts: Sequence[str]) -> None:
        keys = pack_keys(texts, len(texts))
        self.numbers = number_keys(keys)
        highest = np.maximum.accumulate(self.numbers)
        self._is_first = np.ones(len(texts), bool)
        self._is_first[1:] = highest[1:] > highest[:-1]
        self.keys = keep_keys(keys, self._is_first)
        self._texts = texts

    def __len__(self) -> int:
        return len(self.keys)

    def choose(self, are_wanted: npt.NDArray[np.bool_]) -> TextChoice:
        """Some of the distinct texts.

        :param are_wanted: whether each is one of them: bool, [N].
        """
        return TextChoice(self._texts, self._is_first & take_values(are_wanted, self.numbers))

    def find_filled(self) -> npt.NDArray[np.bool_]:
        """Which of the distinct texts are not empty, as that of a row without a usable text is."""
        (empty,) = hash_texts([""])
        return np.asarray((self.keys != np.frombuffer(empty, np.uint8)).any(axis=1))

    def find_rows(self, numbers: Sequence[int]) -> list[int]:
        """The first row that has each of some texts.

        :param numbers: the numbers of the texts.
        """
        rows: list[int] = np.flatnonzero(self._is_first)[numbers].tolist()
        return rows


class TextChoice:
    """Some rows' texts, which can be gone through again and again.

    :param texts: texts, [B].
    :param are_chosen: whether each row is chosen: bool, [B].
    """

    def __init__(self, texts: Sequence[str], are_chosen: npt.NDArray[np.bool_]) -> None:
        self._texts = texts
        self._are_chosen = are_chosen

    def __len__(self) -> int:
        return int(self._are_chosen.sum())

    def __iter__(self) -> Iterator[str]:
        return itertools.compress(self._texts, self._are_chosen.tobytes())


def split_batches(texts: TextChoice, size: int) -> Iterator[list[str]]:
    """Texts in batches, in their order.

    :param texts: the texts.
    :param size: the number of texts in all batches but the last.
    """
    following = iter(texts)
    while batch := list(itertools.islice(following, size)):
        yield batch


class TextValues:
    """What is found of distinct texts, one after another: four bytes a text and the values.

    Equal values of one type are one object. The first value, number 0, is ``None``.

    :param keeps_numbers: whether floats are kept as such, eight bytes each, rather than as objects:
        for labels that are numbers, of which hardly two are equal.
    """

    def __init__(self, *, keeps_numbers: bool = False) -> None:
        self.values: list[Any] = [None]
        self._number_of: dict[object, int] = {(type(None), None): 0}
        self._floats = array("d") if keeps_numbers else None

    def number(self, value: Any, text: int) -> int:
        """The number of a value, -1 for a float that is kept as such.

        :param value: what was found.
        :param text: the number of its text, no lower than that of the call before.
        """
        if self._floats is not None and type(value) is float:
            self._floats.extend(itertools.repeat(0.0, text - len(self._floats)))
            self._floats.append(value)
            return -1
        key = _make_key(value)
        if key is None:
            self.values.append(value)
            return len(self.values) - 1
        number = self._number_of.setdefault(key, len(self.values))
        if number == len(self.values):
            self.values.append(value)
        return number

    def spread(self, of_text: npt.NDArray[np.int32], numbers: npt.NDArray[np.int32]) -> RowValues:
        """The value of each row.

        :param of_text: the number of the value of each text, [N].
        :param numbers: the number of each row's text, [B].
        """
        if self._floats is None:
            return RowValues(self.values, of_text[numbers])
        self._floats.extend(itertools.repeat(0.0, len(of_text) - len(self._floats)))
        return RowValues(self.values, of_text[numbers], np.frombuffer(self._floats)[numbers])


def _make_key(value: Any) -> object | None:
    """What equal values of one type have in common; ``None`` for what cannot be told.

    Lists are told by their items if all are text.
    """
    if isinstance(value, str | bytes | int | type(None)):
        return type(value), value
    if type(value) is float:
        return float, repr(value)  # by which NaN is NaN, and 0 is not -0
    if type(value) is list and all(type(item) is str for item in value):
        return list, tuple(value)
    return None


class RowValues(Sequence[Any]):
    """The value of each row, of which many are the same object.

    :param values: the values.
    :param of_row: the number of each row's value, int32, [B]; -1 for a number of the next.
    :param floats: numbers of rows, float64, [B]; ``None`` if there are none.
    """

    def __init__(
        self,
        values: Sequence[Any],
        of_row: npt.NDArray[np.int32],
        floats: npt.NDArray[np.float64] | None = None,
    ) -> None:
        self._values = values
        self._of_row = of_row
        self._floats = floats

    def __len__(self) -> int:
        return len(self._of_row)

    @overload
    def __getitem__(self, row: int) -> Any: ...
    @overload
    def __getitem__(self, row: slice) -> list[Any]: ...
    def __getitem__(self, row: int | slice) -> Any:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        if self._floats is not None and self._of_row[row] < 0:
            return float(self._floats[row])
        return self._values[self._of_row[row]]

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), _CHUNK_ROWS):
            chunk = slice(start, start + _CHUNK_ROWS)
            numbers = self._of_row[chunk].tolist()
            if self._floats is None:
                yield from map(self._values.__getitem__, numbers)
                continue
            for number, value in zip(numbers, self._floats[chunk].tolist(), strict=True):
                yield value if number < 0 else self._values[number]

    def iterate_numbered(self) -> Iterator[tuple[Sequence[Any], npt.NDArray[np.int32] | None]]:
        """The values, and for each row which it has; see ``Cells.iterate_numbered``."""
        if self._floats is None:
            yield self._values, self._of_row
        else:
            yield list(self), None
