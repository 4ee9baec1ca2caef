"""How the file of a source is to be read, and what a reader gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["csv", "tsv", "json", "jsonl", "parquet"]
# Name of a column → its values, one a row, in the order of the file: a list, or ``Cells``.
Columns = dict[str, Any]
# The same of some rows; a column of a Parquet file may stay as Arrow has it.
Block = Mapping[str, Any]
BLOCK_CHARACTERS = 2**22  # of the texts of a block, of which some are in memory at a time


@dataclass(frozen=True)
class Reading:
    """How a file is to be read; the settings of the same names in ``prepare`` say what each means.

    :param format: the file's format; ``auto`` goes by the ending of its name.
    :param header: names of the columns of a CSV or TSV file that has no header line.
    :param delimiter: the name of what stands between the cells of a CSV or TSV file.
    :param quoting: whether double quotes enclose the cells of a CSV or TSV file.
    :param escape: whether a backslash escapes quotes in a CSV or TSV file.
    :param encoding: the codec of a file that holds text.
    """

    format: Literal["auto"] | Format = "auto"
    header: Sequence[str] | None = None
    delimiter: Literal["auto", "comma", "tab", "semicolon", "pipe"] = "auto"
    quoting: Literal["auto", "double", "none"] = "auto"
    escape: Literal["none", "backslash"] = "none"
    encoding: str = "auto"


@dataclass(frozen=True)
class Stream:
    """A file that is read a part at a time.

    :param types: the Arrow type of each column, in the order of the file.
    :param rows: the number of its rows; ``None`` if that is known only at its end.
    :param iterate_blocks: a function that reads the file in blocks of at most as many rows as it is
        called with: name → values, lists or Arrow arrays.
    """

    types: Mapping[str, pa.DataType]
    rows: int | None
    iterate_blocks: Callable[[int], Iterator[Block]]


def gather_rows(
    names: Sequence[str], rows: Iterable[Sequence[Any]], block_rows: int
) -> Iterator[Columns]:
    """Rows as blocks of columns; of long texts there are fewer in a block.

    :param names: names of the columns.
    :param rows: rows, each with a value for each column.
    :param block_rows: the most rows of a block.
    :yields: name → values.
    """
    held: list[Sequence[Any]] = []
    characters = 0
    for row in rows:
        held.append(row)
        characters += sum(len(value) for value in row if isinstance(value, str))
        if len(held) == block_rows or characters >= BLOCK_CHARACTERS:
            yield _turn_rows(names, held)
            held, characters = [], 0
    if held:
        yield _turn_rows(names, held)


def _turn_rows(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Columns:
    return {name: list(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}
