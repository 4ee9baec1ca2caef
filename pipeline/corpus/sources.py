"""Files in any common format → a table of their columns, unchanged.

CSV and TSV cells stay text, whatever they look like, and none is taken for a missing value.
Parquet and JSON keep their types and their nulls.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.corpus.cells import Cells, Spool, Table
from pipeline.corpus.columns import ColumnChoice
from pipeline.corpus.delimited import read_delimited, stream_delimited
from pipeline.corpus.json_records import read_json, stream_json
from pipeline.corpus.opening import COMPRESSED_ENDINGS, open_text
from pipeline.corpus.parquet import read_parquet, stream_parquet
from pipeline.corpus.reading import Columns, Format, Reading, Stream
from pipeline.corpus.text_files import read_text_files
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


@dataclass(frozen=True)
class SourceFiles:
    """Files of one folder that are read in the same way, one after the other.

    :param folder: the folder.
    :param names: names of the files relative to it, in the order of their rows.
    :param reading: how they are to be read; by their names and their content if left out.
    :param are_texts: whether each file is one text, not a table.
    """

    folder: Path
    names: Sequence[str]
    reading: Reading = field(default_factory=Reading)
    are_texts: bool = False


@dataclass
class RowOrigins:
    """Which file each row of a source comes from.

    :ivar files: the files in order, each with whether it is one text, not a table.
    :ivar first_rows: the number of the first row of each, ascending.
    """

    files: list[tuple[Path, bool]] = field(default_factory=list)
    first_rows: list[int] = field(default_factory=list)

    def add(self, path: Path, first_row: int, *, is_text: bool = False) -> None:
        """Take note of the next file.

        :param path: the file.
        :param first_row: the number of its first row in the source.
        :param is_text: whether it is one text, not a table.
        """
        self.files.append((path, is_text))
        self.first_rows.append(first_row)

    def describe(self, row: int) -> str:
        """A row for a person: its number in its file, and the file if there are several.

        :param row: the number of the row in the source, from 0.
        """
        number = max(0, bisect.bisect_right(self.first_rows, row) - 1)
        path, is_text = self.files[number]
        if is_text:
            return str(path)
        within = describe_row(row - self.first_rows[number])
        return within if len(self.files) == 1 else f"{path}: {within}"


def describe_row(row: int) -> str:
    """A row of a source of one file, for a person.

    :param row: its number, from 0.
    """
    return f"row {row} (the first is 0)"


def read_source(
    path: Path, reading: Reading | None = None, choice: ColumnChoice | None = None
) -> pd.DataFrame:
    """Read a dataset of one file.

    :param path: the file.
    :param reading: how it is to be read; by its name and its content if left out.
    :param choice: the columns to take; all of them if left out.
    :returns: one row a record, in the order of the file.
    :raises DataError: if it is empty, not of its format or encoding, or lacks a wanted column.
    :raises ReadError: if it cannot be read.
    """
    files = SourceFiles(path.parent, [path.name], reading or Reading())
    return read_sources([files], choice or ColumnChoice())[0]


def read_sources(
    sources: Sequence[SourceFiles], choice: ColumnChoice
) -> tuple[pd.DataFrame, RowOrigins]:
    """Read a whole dataset, one file after the other.

    :param sources: its files.
    :param choice: the columns to take from each file.
    :returns: one row a record, in the order of the files, and which file each row is from.
    :raises DataError: if there is no row, if a file is not of its format or encoding, lacks a
        wanted column or has other columns than those before it.
    :raises ReadError: if a file cannot be read.
    """
    import pandas as pd

    joined, origins = _join_files(sources, choice)
    # Columns hold Python objects, as pandas would turn whole numbers beside a missing value into
    # floats.
    frame = pd.DataFrame(
        {name: pd.Series(list(values), dtype=object) for name, values in joined.items()},
        columns=list(joined),
    )
    return frame, origins


def read_table(
    sources: Sequence[SourceFiles], choice: ColumnChoice, spool: Spool
) -> tuple[Table, RowOrigins]:
    """Read a whole dataset as ``read_sources`` does, in little memory.

    :param sources: its files.
    :param choice: the columns to take from each file.
    :param spool: the file that takes the texts.
    :returns: its columns, whose cells are packed, and which file each row is from.
    """

    def hold(kind: str | None) -> Cells:
        return Cells(spool if kind == "text" else None)

    joined, origins = _join_files(sources, replace(choice, hold=hold))
    return Table(joined), origins


def _join_files(sources: Sequence[SourceFiles], choice: ColumnChoice) -> tuple[Columns, RowOrigins]:
    """The columns of all files, one file after the other."""
    joined: Columns = {}
    origins = RowOrigins()
    for source in sources:
        for path, columns in _iterate_files(source, choice):
            first_row = len(next(iter(joined.values()), []))
            if source.are_texts:
                for number, name in enumerate(source.names):
                    origins.add(source.folder / name, first_row + number, is_text=True)
            else:
                origins.add(path, first_row)
            if joined and columns and set(columns) != set(joined):
                raise _describe_other_columns(path, columns, origins.files[0][0], joined)
            for name, values in columns.items():
                if name not in joined:
                    joined[name] = choice.start_column(name)
                joined[name].extend(values)
    if not any(map(len, joined.values())):
        what = "has a header but no rows" if joined else "has no rows"
        raise DataError(f"{origins.files[0][0]}: {what}", hint="give a file with rows")
    return joined, origins


def _iterate_files(source: SourceFiles, choice: ColumnChoice) -> Iterator[tuple[Path, Columns]]:
    """The columns of each file; those of files that are one text each at once, with the folder."""
    paths = [source.folder] if source.are_texts else [source.folder / n for n in source.names]
    for path in paths:
        try:
            if source.are_texts:
                yield path, read_text_files(path, source.names, source.reading, choice)
            else:
                yield path, _read_columns(path, source.reading, choice)
        except OSError as error:
            name = str(error.filename) if source.are_texts and error.filename else path
            if isinstance(error, FileNotFoundError):
                raise DataError(
                    f"{name}: no such file", hint="run `pipeline fetch` again"
                ) from error
            raise describe_read_error(error, name) from error


def _describe_other_columns(
    path: Path, columns: Columns, first: Path, joined: Columns
) -> DataError:
    odd = ", ".join(map(repr, sorted(set(columns) ^ set(joined))))
    return DataError(
        f"{path}: has other columns than {first}: they differ in {odd}",
        hint="give files of the same columns",
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
