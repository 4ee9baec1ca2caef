"""The cells of a source's columns, packed: a few bytes a row in memory, texts on the disk.

A Python object takes some 50 to 100 bytes beside its content, which at ten million rows is more
than many machines have. So cells are packed in chunks of Arrow arrays as they are read, and become
Python objects again, equal and of the same types, when someone looks at them.
"""

from __future__ import annotations

import bisect
import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload

import numpy as np
import numpy.typing as npt

from pipeline.arrays import unwrap_numbers, wrap_texts
from pipeline.corpus.reading import BLOCK_CHARACTERS
from pipeline.files import SCRATCH_PREFIX, describe_write_error

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_CHUNK_ROWS = 16_384
_FEW_VALUES = 2**15  # of a chunk, which are numbered by two bytes

T = TypeVar("T")

# Where a chunk stands in the spool: its first byte and its size.
_Place = tuple[int, int]
# Some cells: as Arrow has them, in the spool, or as they are where Arrow would change them.
_Chunk: TypeAlias = "pa.Array | _Place | list[Any]"


class Spool:
    """A file for what need not be in memory, which has no name and is gone with its process.

    :param folder: the folder on whose disk it is to be.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._size = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Not in a `with`: the file lives as long as the object does.
            self._file = tempfile.TemporaryFile(prefix=SCRATCH_PREFIX, dir=folder)  # noqa: SIM115
        except OSError as error:
            raise describe_write_error(error, folder) from error

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, array: pa.Array) -> _Place:
        """Put an array on the disk.

        :param array: any array.
        :returns: where it stands.
        :raises WriteError: if the disk does not take it.
        """
        import pyarrow as pa

        batch = pa.record_batch([array], ["cells"])
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.ipc.new_stream(sink, batch.schema, options=options) as stream:
            stream.write_batch(batch)
        content = sink.getvalue()
        place = (self._size, len(content))
        try:
            self._file.write(content)
            self._file.flush()
        except OSError as error:
            raise describe_write_error(error, self._folder) from error
        self._size += len(content)
        return place

    def read(self, place: _Place) -> pa.Array:
        """Get an array back.

        :param place: where it stands.
        """
        import pyarrow as pa

        content = os.pread(self._file.fileno(), place[1], place[0])
        return pa.ipc.open_stream(content).read_next_batch().column(0)


class Cells(Sequence[Any]):
    """The cells of a column, in order.

    :param spool: the file to put them in; ``None`` for the memory.
    """

    def __init__(self, spool: Spool | None = None) -> None:
        self._spool = spool
        self._chunks: list[_Chunk] = []
        self._ends: list[int] = []  # the number of rows up to the end of each chunk
        self._waiting: list[Any] = []
        self._characters = 0  # of those that wait
        self._loaded: tuple[int, Sequence[Any]] = (-1, [])

    def append(self, cell: Any) -> None:
        """Add a cell.

        :param cell: any object.
        """
        self._waiting.append(cell)
        if type(cell) is str:
            self._characters += len(cell)
        if len(self._waiting) >= _CHUNK_ROWS or self._characters >= BLOCK_CHARACTERS:
            self._pack()

    def extend(self, cells: Sequence[Any]) -> None:
        """Add cells.

        :param cells: any objects; those of another column stay as they are packed.
        """
        if isinstance(cells, Cells) and cells._spool in {None, self._spool}:
            self._pack()
            cells._pack()
            rows = len(self)
            self._chunks += cells._chunks
            self._ends += [rows + end for end in cells._ends]
        else:
            for cell in cells:
                self.append(cell)

    def _pack(self) -> None:
        if not self._waiting:
            return
        chunk = _pack_cells(self._waiting)
        if self._spool is not None and not isinstance(chunk, list):
            chunk = self._spool.write(chunk)
        self._ends.append(len(self))
        self._chunks.append(chunk)
        self._waiting, self._characters = [], 0

    def __len__(self) -> int:
        return (self._ends[-1] if self._ends else 0) + len(self._waiting)

    def __iter__(self) -> Iterator[Any]:
        for chunk in [*self._chunks]:
            yield from self._unpack(chunk)
        yield from self._waiting

    @overload
    def __getitem__(self, row: int) -> Any: ...
    @overload
    def __getitem__(self, row: slice) -> list[Any]: ...
    def __getitem__(self, row: int | slice) -> Any:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        row = range(len(self))[row]
        number = bisect.bisect_right(self._ends, row)
        start = self._ends[number - 1] if number else 0
        if number == len(self._chunks):
            return self._waiting[row - start]
        if self._loaded[0] != number:
            self._loaded = number, self._unpack(self._chunks[number])
        return self._loaded[1][row - start]

    def _unpack(self, chunk: _Chunk) -> list[Any]:
        if isinstance(chunk, list):
            return chunk
        array = self._read(chunk)
        cells: list[Any] = array.to_pylist()
        return cells

    def _read(self, chunk: pa.Array | _Place) -> pa.Array:
        if isinstance(chunk, tuple):
            assert self._spool is not None
            return self._spool.read(chunk)
        return chunk

    def iterate_numbered(self) -> Iterator[tuple[list[Any], npt.NDArray[np.integer]]]:
        """The cells of each chunk: some, each once if they are few, and for each row which it has.

        :yields: cells, and numbers of them, [b].
        """
        import pyarrow as pa

        self._pack()
        for chunk in self._chunks:
            array = self._read(chunk) if not isinstance(chunk, list) else None
            if array is not None and pa.types.is_dictionary(array.type):
                values = array.dictionary.to_pylist()
                yield [*values, None], unwrap_numbers(array.indices, len(values))
            else:
                cells = self._unpack(chunk)
                yield cells, np.arange(len(cells))

    def tolist(self) -> list[Any]:
        """All cells as a list."""
        return list(self)


def _pack_cells(cells: list[Any]) -> pa.Array | list[Any]:
    """Cells as Arrow has them, if it gives the very same ones back."""
    import pyarrow as pa

    kinds = set(map(type, cells)) - {type(None)}
    try:
        if kinds == {str}:
            return _number_few(wrap_texts(cells))
        for kind, of_arrow in ((int, pa.int64()), (float, pa.float64()), (bool, pa.bool_())):
            if kinds == {kind}:
                return pa.array(cells, of_arrow)
        return cells if kinds else pa.nulls(len(cells))
    except (pa.ArrowException, UnicodeError, OverflowError):  # half a surrogate pair, 2 to the 70
        return cells


def _number_few(texts: pa.Array) -> pa.Array:
    """Texts, each distinct one once if they are few."""
    import pyarrow as pa

    numbered = texts.dictionary_encode()
    few = len(numbered.dictionary)
    if 8 * few > len(texts) or few >= _FEW_VALUES:
        return texts
    width = pa.int8() if few < 2**7 else pa.int16()
    return pa.DictionaryArray.from_arrays(numbered.indices.cast(width), numbered.dictionary)


def choose_cells(
    cells: Iterable[T], rows: npt.NDArray[np.integer], number: int
) -> itertools.compress[T]:
    """Some of many things that are gone through once, a byte in memory for each of all.

    :param cells: the things, [N].
    :param rows: the numbers of those that are wanted, ascending.
    :param number: N.
    """
    is_chosen = np.zeros(number, bool)
    is_chosen[rows] = True
    return itertools.compress(cells, is_chosen.tobytes())


class ChosenTexts(Sequence[str]):
    """Some rows of a column of texts; a row that has no usable text holds an empty one.

    :param cells: the column.
    :param blank: the rows without a usable text.
    :param rows: the rows that are chosen: int32, ascending; all of them if left out.
    """

    def __init__(
        self, cells: Sequence[Any], blank: frozenset[int], rows: npt.NDArray[np.int32] | None = None
    ) -> None:
        self._cells = cells
        self._blank = blank
        self._rows = None if rows is None or len(rows) == len(cells) else rows

    def choose(self, rows: npt.NDArray[np.int32]) -> ChosenTexts:
        """The texts of some rows of the column.

        :param rows: int32, ascending.
        """
        return ChosenTexts(self._cells, self._blank, rows)

    def __len__(self) -> int:
        return len(self._cells) if self._rows is None else len(self._rows)

    def __iter__(self) -> Iterator[str]:
        if self._rows is None and not self._blank:
            yield from self._cells
            return
        chosen: Iterator[tuple[int, Any]] = enumerate(self._cells)
        if self._rows is not None:
            chosen = choose_cells(chosen, self._rows, len(self._cells))
        for row, cell in chosen:
            yield "" if row in self._blank else cell

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        row = range(len(self))[row]
        at = row if self._rows is None else int(self._rows[row])
        return "" if at in self._blank else str(self._cells[at])


class Table:
    """The columns of a source.

    :param cells: name → cells, as many of each.
    """

    def __init__(self, cells: dict[str, Sequence[Any]]) -> None:
        self._cells = cells

    @classmethod
    def of(cls, frame: Table | pd.DataFrame) -> Table:
        """The table of a frame of pandas, or the table itself."""
        if isinstance(frame, Table):
            return frame
        return cls({str(name): frame[name].tolist() for name in frame.columns})

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return list(self._cells)

    def __len__(self) -> int:
        return len(next(iter(self._cells.values()), ()))

    def __getitem__(self, name: str) -> Sequence[Any]:
        return self._cells[name]
