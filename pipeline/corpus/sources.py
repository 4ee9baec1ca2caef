"""A file in any common format → a table of its columns, unchanged.

CSV and TSV cells stay text, whatever they look like, and none is taken for a missing value.
Parquet and JSON keep their types and their nulls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.corpus.columns import ColumnChoice
from pipeline.corpus.delimited import read_delimited, stream_delimited
from pipeline.corpus.json_records import read_json, stream_json
from pipeline.corpus.opening import COMPRESSED_ENDINGS, open_text
from pipeline.corpus.parquet import read_parquet, stream_parquet
from pipeline.corpus.reading import Columns, Format, Reading, Stream
from pipeline.errors import DataError
from pipeline.files import describe_read_error

if TYPE_CHECKING:
    import pandas as pd

# The ending of a file's name → its format.
FORMATS: Mapping[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
# The reader of each format.
READERS: Mapping[Format, Callable[[Path, Reading, ColumnChoice], Columns]] = {
    "csv": read_delimited,
    "tsv": read_delimited,
    "json": read_json,
    "jsonl": read_json,
    "parquet": read_parquet,
}
# What reads a file of each format a part at a time.
STREAMERS: Mapping[Format, Callable[[Path, Reading, ColumnChoice], Stream]] = {
    "csv": stream_delimited,
    "tsv": stream_delimited,
    "json": stream_json,
    "jsonl": stream_json,
    "parquet": stream_parquet,
}


def read_source(
    path: Path, reading: Reading | None = None, choice: ColumnChoice | None = None
) -> pd.DataFrame:
    """Read a whole dataset.

    :param path: the file.
    :param reading: how it is to be read; by its name and its content if left out.
    :param choice: the columns to take; all of them if left out.
    :returns: one row a record, in the order of the file.
    :raises DataError: if it is empty, not of its format or encoding, or lacks a wanted column.
    :raises ReadError: if it cannot be read.
    """
    import pandas as pd

    try:
        columns = _read_columns(path, reading or Reading(), choice or ColumnChoice())
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file", hint="run `pipeline fetch` again") from error
    except OSError as error:
        raise describe_read_error(error, path) from error
    if not any(columns.values()):
        what = "has a header but no rows" if columns else "has no rows"
        raise DataError(f"{path}: {what}", hint="give a file with rows")
    # Columns hold Python objects, as pandas would turn whole numbers beside a missing value into
    # floats.
    return pd.DataFrame(
        {name: pd.Series(values, dtype=object) for name, values in columns.items()},
        columns=list(columns),
    )


def _read_columns(path: Path, reading: Reading, choice: ColumnChoice) -> Columns:
    """The columns of a file, read by the reader of its format."""
    file_format = reading.format if reading.format != "auto" else name_format(path)
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty", hint="give a file with a header and rows")
    if file_format is None:
        with open_text(path):  # tells what it is, if that is known
            pass
        raise DataError(
            f"{path}: cannot tell its format from its name",
            hint=f"set prepare.format to {', '.join(list(READERS)[:-1])} or {list(READERS)[-1]}",
        )
    return READERS[file_format](path, replace(reading, format=file_format), choice)


def name_format(path: Path) -> Format | None:
    """The format of a file by the ending of its name; ``None`` if that does not tell."""
    endings = [ending.lower() for ending in path.suffixes]
    while endings and endings[-1] in COMPRESSED_ENDINGS:
        endings.pop()
    return FORMATS.get(endings[-1]) if endings else None
