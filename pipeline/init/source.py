"""The source that a project is to be made of: its columns, with a guess of what each holds."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import WantedColumn
from pipeline.console import count
from pipeline.corpus.columns import ColumnChoice
from pipeline.corpus.reading import Reading
from pipeline.corpus.sources import STREAMERS, name_format, read_source
from pipeline.errors import DataError
from pipeline.files import describe_read_error
from pipeline.init.guess import Guess, guess_column, list_examples
from pipeline.prepare.labelers.base import is_missing, shorten

if TYPE_CHECKING:
    import pandas as pd

_SAMPLED_ROWS = 20_000  # by which columns are described
_BLOCK_ROWS = 2_000
_EXAMPLES = 3
_EXAMPLE_CHARACTERS = 38
_MOST_COLUMNS = 40  # that a message describes


@dataclass(frozen=True)
class SourceColumn:
    """A column of a source, as far as its first rows tell.

    :param name: its name.
    :param guess: what it seems to hold.
    :param examples: some of its values, as text.
    :param filled: the share of rows that hold a value, from 0 to 1.
    :param mean_characters: the mean length of its texts; 0 if it holds none.
    """

    name: str
    guess: Guess
    examples: tuple[str, ...]
    filled: float
    mean_characters: float


@dataclass(frozen=True)
class Source:
    """A file of rows.

    :param path: the file.
    :param reading: how it is read.
    :param columns: its columns in their order.
    :param sampled_rows: the number of its first rows that the guesses are by.
    """

    path: Path
    reading: Reading
    columns: Sequence[SourceColumn]
    sampled_rows: int

    @property
    def names(self) -> list[str]:
        """The names of the columns."""
        return [column.name for column in self.columns]

    def guess_text_column(self) -> str | None:
        """The column that most likely holds the texts; ``None`` if none holds any text."""
        longest = max(self.columns, key=lambda column: column.mean_characters, default=None)
        return longest.name if longest is not None and longest.mean_characters else None

    def suggest_tasks(self, text_column: str) -> list[str]:
        """The columns that heads could learn.

        :param text_column: the column of the texts.
        """
        return [c.name for c in self.columns if c.guess.task_kind and c.name != text_column]

    def describe_columns(self) -> str:
        """The columns with guesses and examples, a line each."""
        shown = self.columns[:_MOST_COLUMNS]
        cells = [("column", "filled", "looks like", "such as")]
        for column in shown:
            kind: str = column.guess.kind
            if column.guess.separator is not None:
                kind += f" parted by {column.guess.separator}"
            examples = " | ".join(column.examples)
            cells.append((shorten(column.name), f"{column.filled:.0%}", kind, examples))
        widths = [max(len(row[place]) for row in cells) for place in range(3)]
        lines = [
            "  ".join([*(cell.ljust(n) for cell, n in zip(row, widths, strict=False)), row[3]])
            for row in cells
        ]
        more = len(self.columns) - len(shown)
        if more > 0:
            lines.append(f"and {count(more, 'more column')}")
        return "\n".join(f"  {line.rstrip()}" for line in lines)

    def read_columns(self, wanted: Sequence[WantedColumn]) -> pd.DataFrame:
        """All rows of some columns, as ``prepare`` reads them.

        :param wanted: the columns.
        :raises DataError: if one is missing or cannot be read.
        """
        # What the file's form leaves open was said when it was opened.
        with contextlib.redirect_stdout(io.StringIO()):
            return read_source(
                self.path, self.reading, ColumnChoice(tuple(wanted), all_others=False)
            )


def open_source(path: Path, reading: Reading) -> Source:
    """Look at the first rows of a file.

    :param path: the file.
    :param reading: how it is to be read.
    :raises DataError: if it is missing, of no known format or not of its format.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise DataError(
            f"{path}: {what}", hint="give a file of CSV, TSV, JSON Lines, JSON or Parquet by --data"
        )
    file_format = reading.format if reading.format != "auto" else name_format(path)
    if file_format is None:
        raise DataError(
            f"{path}: cannot tell its format from its name",
            hint=f"give --set prepare.format= one of {', '.join(STREAMERS)}",
        )
    if not path.stat().st_size:
        raise DataError(f"{path}: the file is empty", hint="give a file with a header and rows")
    sample: dict[str, list[Any]] = {}
    try:
        known = replace(reading, format=file_format)
        stream = STREAMERS[file_format](path, known, ColumnChoice())
        for block in stream.iterate_blocks(_BLOCK_ROWS):
            for name, values in block.items():
                sample.setdefault(name, []).extend(_list_values(values))
            if len(next(iter(sample.values()), [])) >= _SAMPLED_ROWS:
                break
    except OSError as error:
        raise describe_read_error(error, path) from error
    rows = len(next(iter(sample.values()), []))
    if not rows:
        raise DataError(f"{path}: has no rows", hint="give a file with rows")
    columns = [_describe_column(name, values) for name, values in sample.items()]
    return Source(path, reading, columns, rows)


def _list_values(values: Any) -> list[Any]:
    """The values of a block's column; of what Python has no values for, that there are some."""
    if isinstance(values, list):
        return values
    import pyarrow as pa

    try:
        listed: list[Any] = values.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError):
        return [b""] * len(values)
    return listed


def _describe_column(name: str, values: Sequence[Any]) -> SourceColumn:
    present = sum(not is_missing(value) for value in values)
    texts = [value for value in values if isinstance(value, str) and not is_missing(value)]
    examples = [
        example if len(example) <= _EXAMPLE_CHARACTERS else example[: _EXAMPLE_CHARACTERS - 1] + "…"
        for example in list_examples(values, _EXAMPLES)
    ]
    if sum(map(len, examples)) > _EXAMPLE_CHARACTERS:  # a line is to fit a terminal
        examples = examples[:1]
    return SourceColumn(
        name,
        guess_column(values),
        tuple(example.replace("\n", "\\n").replace("\r", "\\r") for example in examples),
        present / len(values),
        sum(map(len, texts)) / len(texts) if texts else 0.0,
    )
