"""Parquet files: only the columns that are wanted are read; types and nulls stay."""

from __future__ import annotations

import contextlib
import decimal
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.console import warn
from pipeline.corpus.columns import ColumnChoice
from pipeline.corpus.opening import name_compression
from pipeline.corpus.reading import BLOCK_CHARACTERS, Block, Columns, Reading, Stream
from pipeline.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCK_ROWS = 16_384  # of a file, in memory at a time
_DECIMAL_DIGITS = 76  # of Arrow's widest decimal
_NOUNS = {"tags": "list of tags"}  # for a kind, where it is not the kind's own name
_AGAIN = "write the column again as text, numbers or truth values"


def read_parquet(path: Path, reading: Reading, choice: ColumnChoice) -> Columns:
    """Read the chosen columns of a Parquet file.

    :param path: the file.
    :param reading: not needed, as the file tells all.
    :param choice: the columns to take. One that is not wanted and cannot be read is left out.
    :returns: name → values, as Python objects; ``None`` where there is a null.
    :raises DataError: if it is no Parquet file, is damaged, or a wanted column cannot be read.
    """
    with _open_parquet(path) as file:
        names = file.schema_arrow.names
        picked = choice.pick(path, names, "the schema")
        chosen = None if choice.all_others else [names[n] for n in picked.values()]
        columns: Columns = {name: choice.start_column(name) for name in picked}
        row = 0
        for batch in _iterate_batches(file, chosen, _BLOCK_ROWS):
            for name in list(columns):
                column = batch.column(batch.schema.names.index(names[picked[name]]))
                try:
                    values = _list_values(path, name, column, choice.get_kind(name), row)
                except DataError as error:
                    if choice.get_kind(name) is not None:
                        raise
                    warn(f"{error.message}; it is left out")
                    del columns[name]
                else:
                    columns[name].extend(values)
            row += len(batch)
    choice.mention_renamed(path, names)
    return columns


def _iterate_batches(file: Any, columns: Sequence[str] | None, most: int) -> Iterator[Any]:
    """The rows of a file in parts that do not take much memory.

    :param file: a ``pyarrow.parquet.ParquetFile``.
    :param columns: names of the columns; all of them if ``None``.
    :param most: the most rows of a part.
    """
    for group in range(file.num_row_groups):
        size = _count_block_rows(file.metadata.row_group(group), most)
        yield from file.iter_batches(size, row_groups=[group], columns=columns)


def stream_parquet(path: Path, reading: Reading, choice: ColumnChoice) -> Stream:
    """Read the chosen columns of a Parquet file a part at a time.

    :param path: the file.
    :param reading: not needed, as the file tells all.
    :param choice: the columns to take. Those that are wanted become Python objects; the others stay
        as Arrow has them.
    :returns: its columns and its rows.
    :raises DataError: if it is no Parquet file, is damaged, or a wanted column cannot be read.
    """
    import pyarrow as pa

    with _open_parquet(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    picked = choice.pick(path, schema.names, "the schema")
    choice.mention_renamed(path, schema.names)

    chosen = [schema.names[position] for position in picked.values()]

    def iterate(block_rows: int) -> Iterator[Block]:
        with _open_parquet(path) as file:
            row = 0
            for batch in _iterate_batches(file, chosen, block_rows):
                yield take_values(batch, row)
                row += len(batch)

    def take_values(batch: pa.RecordBatch, row: int) -> Block:
        values = {
            name: batch.column(batch.schema.names.index(schema.names[position]))
            for name, position in picked.items()
        }
        return {
            name: _list_values(path, name, column, kind, row) if kind else column
            for name, column in values.items()
            for kind in [choice.get_kind(name)]
        }

    types = {name: schema.field(position).type for name, position in picked.items()}
    texts = {name: pa.string() for name in picked if choice.get_kind(name) == "text"}
    return Stream(types | texts, rows, iterate)


def _count_block_rows(group: Any, most: int) -> int:
    """The rows of a row group that a block holds, fewer of large rows.

    :param group: a ``pyarrow.parquet.RowGroupMetaData``.
    :param most: the most rows of a block.
    """
    row_bytes = group.total_byte_size / max(1, group.num_rows)
    return max(1, min(most, int(BLOCK_CHARACTERS / max(1.0, row_bytes))))


@contextlib.contextmanager
def _open_parquet(path: Path) -> Iterator[Any]:
    """Open a Parquet file.

    :raises DataError: if it is none, or is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)) from error
        raise _describe_damage(path, error) from error


def _describe_damage(path: Path, error: Exception) -> DataError:
    compression = name_compression(path)
    if compression is not None:
        return DataError(
            f"{path}: a Parquet file must not be compressed as a whole, this one is with "
            f"{compression}",
            hint="unpack it, and give that file",
        )
    return DataError(
        f"{path}: not a Parquet file, or damaged ({str(error).splitlines()[0]})",
        hint="write it again, or correct prepare.format",
    )


def _list_values(
    path: Path, name: str, column: pa.Array, kind: str | None, first_row: int
) -> list[Any]:
    """The values of a part of a column as Python objects.

    :param kind: what the column is to hold; ``None`` if it is not wanted.
    :param first_row: the number of its first row in the file.
    :raises DataError: naming the first row whose value has no such object, or the type of the
        column if it cannot be a label.
    """
    import pyarrow as pa

    value_type = column.type
    if pa.types.is_dictionary(value_type):
        value_type = value_type.value_type
    if kind is not None:
        _refuse_nested(path, name, value_type, kind)
    convert = _choose_conversion(value_type)
    try:
        values = column.to_pylist()
        return values if convert is None else [v if v is None else convert(v) for v in values]
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise _describe_bad_value(path, name, column, convert, error, first_row) from error


def _choose_conversion(value_type: pa.DataType) -> Callable[[Any], Any] | None:
    """What is done to each value of a type, beside what Arrow does; ``None`` if nothing is."""
    import pyarrow as pa

    types = pa.types
    if (
        types.is_binary(value_type)
        or types.is_large_binary(value_type)
        or types.is_fixed_size_binary(value_type)
        or types.is_binary_view(value_type)
    ):
        return _decode_text  # old Spark, Hive and Impala do not mark strings as such
    if types.is_decimal(value_type):
        return _shorten_decimal
    return None


def _decode_text(value: bytes) -> str:
    return value.decode("utf-8")


def _shorten_decimal(value: decimal.Decimal) -> int | decimal.Decimal:
    """A decimal without zeros at its end: ``1.00`` is the label 1, as it is in other formats."""
    if value == value.to_integral_value():
        return int(value)
    with decimal.localcontext() as context:
        context.prec = _DECIMAL_DIGITS
        return value.normalize()


def _refuse_nested(path: Path, name: str, value_type: pa.DataType, kind: str) -> None:
    """Refuse a column of which a value is no single value, unless it is a list of tags."""
    import pyarrow as pa

    types = pa.types
    is_list = (
        types.is_list(value_type)
        or types.is_large_list(value_type)
        or types.is_fixed_size_list(value_type)
    )
    if not types.is_nested(value_type) or (is_list and kind == "tags"):
        return
    more = ", or set the label's kind to tags" if is_list and kind == "class" else ""
    raise DataError(
        f"{path}: column {name!r}: holds {value_type}, which is no {_NOUNS.get(kind, kind)}",
        hint=f"write a column that holds one value a row{more}",
    )


def _describe_bad_value(
    path: Path,
    name: str,
    column: pa.Array,
    convert: Callable[[Any], Any] | None,
    error: Exception,
    first_row: int,
) -> DataError:
    """The error that names the first row whose value has no Python object."""
    import pyarrow as pa

    for row, scalar in enumerate(column, start=first_row):
        try:
            value = scalar.as_py()
            if convert is not None and value is not None:
                convert(value)
        except UnicodeDecodeError:
            return DataError(
                f"{path}: column {name!r}: row {row} (the first is 0): holds text that is not "
                "UTF-8",
                hint="write the file again with its texts in UTF-8",
            )
        except (pa.ArrowException, ValueError, OverflowError) as found:
            error = found
            break
    reason = str(error).splitlines()[0]
    if pa.types.is_timestamp(column.type) and column.type.tz is not None:
        reason = "its time zone is not known, or a time is out of range"
    return DataError(
        f"{path}: column {name!r}: holds {column.type}, which cannot be read here ({reason})",
        hint=_AGAIN,
    )
