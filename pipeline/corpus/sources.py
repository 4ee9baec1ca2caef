"""A file in any common format → a table of its columns, unchanged.

CSV and TSV cells stay text, whatever they look like, and none is taken for a missing value.
Parquet and JSON Lines keep their types and their nulls.
"""

from __future__ import annotations

import csv
import errno
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.console import count
from pipeline.errors import DataError
from pipeline.files import describe_read_error

if TYPE_CHECKING:
    import pandas as pd

FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}


def read_source(
    path: Path, file_format: str = "auto", header: Sequence[str] | None = None
) -> pd.DataFrame:
    """Read a whole dataset.

    :param path: the file.
    :param file_format: ``csv``, ``tsv``, ``jsonl``, ``parquet``; ``auto`` goes by the file's name.
    :param header: column names of a CSV or TSV file that has no header line.
    :returns: one row a record, in the order of the file.
    :raises DataError: if it is empty, not of its format, or not UTF-8.
    :raises ReadError: if it cannot be read.
    """
    try:
        frame = _read_frame(path, file_format, header)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file", hint="run `pipeline fetch` again") from error
    except OSError as error:
        raise describe_read_error(error, path) from error
    if frame.empty:
        what = "has a header but no rows" if len(frame.columns) else "has no rows"
        raise DataError(f"{path}: {what}", hint="give a file with rows")
    return frame


def _read_frame(path: Path, file_format: str, header: Sequence[str] | None) -> pd.DataFrame:
    """The table of a file, read by the reader of its format."""
    if file_format == "auto":
        file_format = FORMATS.get(path.suffix.lower(), "")
        if not file_format:
            raise DataError(
                f"{path}: cannot tell its format from its name",
                hint="set prepare.format to csv, tsv, jsonl or parquet",
            )
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty", hint="give a file with a header and rows")
    if file_format == "parquet":
        return _read_parquet(path)
    if file_format == "jsonl":
        return _read_json_lines(path)
    return _read_delimited(path, "," if file_format == "csv" else "\t", header)


def _read_delimited(path: Path, delimiter: str, header: Sequence[str] | None) -> pd.DataFrame:
    """Read a CSV or TSV file with the standard library's reader.

    pandas is not used because it fills up short lines in silence and does not always say which line
    is too long.
    """
    import pandas as pd

    try:
        records = [record for _, record in _parse_records(path, delimiter) if record]
    except UnicodeDecodeError as error:
        raise _describe_bad_bytes(path) from error
    except csv.Error as error:
        raise DataError(f"{path}: not well-formed: {error}", hint=_QUOTING) from error
    if records == [[_END]]:
        raise DataError(f"{path}: the file is empty", hint="give a file with a header and rows")
    names_from = "prepare.header" if header else "the header"
    columns = _name_columns(path, header or records[0], names_from)
    rows = records[0 if header else 1 : -1]
    if records[-1] != [_END] or not {len(row) for row in rows} <= {len(columns)}:
        raise _describe_bad_line(path, delimiter, len(columns), names_from)
    return pd.DataFrame(
        {
            name: pd.Series([row[number] for row in rows], dtype=object)
            for number, name in enumerate(columns)
        }
    )


def _parse_records(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The records of a file, each with the number of its first line, and ``_END`` after them."""
    csv.field_size_limit(_LONGEST_CELL_CHARACTERS)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(itertools.chain(file, (_END,)), delimiter=delimiter)
        line = 1
        for record in reader:
            yield line, record
            line = reader.line_num + 1


# This text is added after the last line. If it turns up inside a cell, a quote was never closed.
_END = "\x1eend of file\x1e"
_QUOTING = "a cell that holds the delimiter or a line break must stand in double quotes"
_LONGEST_CELL_CHARACTERS = 2**31 - 1  # the standard library refuses more than 131,072 by default


def _name_columns(path: Path, names: Sequence[str], names_from: str) -> list[str]:
    """The columns' names; a column without one is called by its number, from 1.

    :param names_from: what gives the names, for the message.
    :raises DataError: if a name stands twice, so that it would not say which column is meant.
    """
    for name, times in Counter(names).items():
        if times > 1 and name:
            raise DataError(
                f"{path}: {names_from} names {times} columns {name!r}",
                hint="give each column a name of its own",
            )
    return [name or f"column {number}" for number, name in enumerate(names, start=1)]


def _describe_bad_line(path: Path, delimiter: str, width: int, names_from: str) -> DataError:
    """The error that names the first line with more or fewer cells than there are columns.

    :param width: the number of columns.
    :param names_from: what gives the columns' names.
    """
    for line, record in _parse_records(path, delimiter):
        if record and record[-1].endswith(_END) and record != [_END]:
            return DataError(
                f"{path}: line {line}: a double quote opens a cell that never ends",
                hint='write a quote that belongs to the text twice, in a quoted cell: "say ""hi"""',
            )
        if record and len(record) != width:
            return DataError(
                f"{path}: line {line}: has {count(len(record), 'cell')}, {names_from} has {width}",
                hint=_QUOTING,
            )
    return DataError(f"{path}: changed while it was read", hint="run the command again")


def _describe_bad_bytes(path: Path) -> DataError:
    """The error that names the line of the first bytes that are not UTF-8."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return DataError(
                    f"{path}: line {number}: byte 0x{line[error.start]:02x} at column "
                    f"{error.start + 1} is not UTF-8",
                    hint="convert the file to UTF-8: `iconv -f latin1 -t utf-8` if it is Latin-1",
                )
    return DataError(f"{path}: is not UTF-8", hint="convert the file to UTF-8")


def _read_json_lines(path: Path) -> pd.DataFrame:
    import pandas as pd

    records = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise _describe_bad_bytes(path) from error
            except (ValueError, RecursionError) as error:
                what = getattr(error, "msg", None) or str(error)
                raise DataError(
                    f"{path}: line {number}: not valid JSON ({what})",
                    hint="JSON Lines holds one JSON object a line",
                ) from error
            if not isinstance(record, dict):
                raise DataError(
                    f"{path}: line {number}: not a JSON object but {type(record).__name__}",
                    hint="JSON Lines holds one JSON object a line",
                )
            records.append(record)
    # Columns hold Python objects, as pandas would turn whole numbers beside a missing value into
    # floats.
    columns = list(dict.fromkeys(key for record in records for key in record))
    return pd.DataFrame(
        {c: pd.Series([r.get(c) for r in records], dtype=object) for c in columns}, columns=columns
    )


def _read_parquet(path: Path) -> pd.DataFrame:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)) from error
        raise DataError(
            f"{path}: not a Parquet file, or damaged ({str(error).splitlines()[0]})",
            hint="write it again, or correct prepare.format",
        ) from error
    names = _name_columns(path, table.column_names, "the schema")
    columns = {}
    for name, column in zip(names, table.columns, strict=True):
        try:
            columns[name] = pd.Series(column.to_pylist(), dtype=object)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}: column {name!r}: holds text that is not UTF-8",
                hint="write the file again with its texts in UTF-8",
            ) from error
    return pd.DataFrame(columns, columns=names)
