"""The source that a project is to be made of: its columns, with a guess of what each holds."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import WantedColumn
from pipeline.console import count
from pipeline.corpus.columns import ColumnChoice
from pipeline.corpus.file_sets import has_wildcards, list_local_files
from pipeline.corpus.reading import Reading
from pipeline.corpus.sources import (
    STREAMERS,
    RowOrigins,
    SourceFiles,
    name_format,
    read_sources,
)
from pipeline.errors import DataError
from pipeline.files import describe_read_error
from pipeline.init.guess import Guess, guess_column, list_examples
from pipeline.prepare.labelers.base import is_missing, shorten
from pipeline.project import Project

if TYPE_CHECKING:
    import pandas as pd

_SAMPLED_ROWS = 20_000  # by which columns are described
_SAMPLED_TEXTS = 1_000  # of files that are one text each
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
    """Rows of one file or of several.

    :param name: what messages call it.
    :param files: its files.
    :param columns: its columns in their order.
    :param sampled_rows: the number of its first rows that the guesses are by.
    """

    name: str
    files: Sequence[SourceFiles]
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

    def read_columns(self, wanted: Sequence[WantedColumn]) -> tuple[pd.DataFrame, RowOrigins]:
        """All rows of some columns, as ``prepare`` reads them.

        :param wanted: the columns.
        :returns: the rows, and which file each is from.
        :raises DataError: if one is missing or cannot be read.
        """
        # What the file's form leaves open was said when it was opened.
        with contextlib.redirect_stdout(io.StringIO()):
            return read_sources(self.files, ColumnChoice(tuple(wanted), all_others=False))


def find_files(project: Project, names: Sequence[str], reading: Reading) -> list[SourceFiles]:
    """The files of this machine that a dataset's names stand for.

    :param project: the project that relative names belong to.
    :param names: names of files and folders, and patterns.
    :param reading: how the files are to be read.
    :raises DataError: if one is missing, or a folder holds no file that can be read.
    """
    sources = []
    for name in names:
        path = project.resolve(name)
        try:
            found = list_local_files(project, name)
        except OSError as error:
            raise describe_read_error(error, error.filename or name) from error
        if found is not None:
            folder, chosen = found
            are_texts = chosen.are_texts and reading.format == "auto"
            sources.append(
                SourceFiles(project.resolve(folder), chosen.names, reading, are_texts=are_texts)
            )
        elif path.is_file():
            sources.append(SourceFiles(path.parent, [path.name], reading))
        else:
            raise DataError(
                f"{path}: no such file",
                hint="give a file of CSV, TSV, JSON Lines, JSON or Parquet by --data",
            )
    return sources


def is_local(project: Project, name: str) -> bool:
    """Whether a dataset's name stands for files of this machine.

    :param project: the project that a relative name belongs to.
    :param name: the name.
    """
    return "://" not in name and (project.resolve(name).exists() or has_wildcards(name))


def list_deps(project: Project, names: Sequence[str]) -> list[str]:
    """What DVC is to watch of a dataset: files, or the folders of several files.

    A folder that holds the project or is written by it cannot be watched; then its files are, and
    those of a pattern outside the project, where much else may lie.

    :param project: the project.
    :param names: the dataset's names.
    """
    deps = []
    for name in names:
        if not is_local(project, name):
            continue
        found = list_local_files(project, name)
        if found is None:
            deps.append(name)
            continue
        folder, chosen = found
        path = project.resolve(folder).resolve()
        is_apart = not project.root.is_relative_to(path) and not path.is_relative_to(project.cache)
        if is_apart and (project.resolve(name).is_dir() or path.is_relative_to(project.root)):
            deps.append(folder.rstrip("/"))
        else:
            deps += [f"{folder.removeprefix('./')}{file}" for file in chosen.names]
    return list(dict.fromkeys(deps))


def open_source(name: str, files: Sequence[SourceFiles]) -> Source:
    """Look at the first rows of a source.

    :param name: what messages call it.
    :param files: its files.
    :raises DataError: if a file is of no known format or not of its format.
    """
    sample: dict[str, list[Any]] = {}
    for source in files:
        for block in _iterate_sample(source):
            for column, values in block.items():
                sample.setdefault(column, []).extend(_list_values(values))
            if len(next(iter(sample.values()), [])) >= _SAMPLED_ROWS:
                break
    rows = len(next(iter(sample.values()), []))
    if not rows:
        raise DataError(f"{name}: has no rows", hint="give a file with rows")
    columns = [_describe_column(column, values) for column, values in sample.items()]
    return Source(name, files, columns, rows)


def _iterate_sample(source: SourceFiles) -> Iterator[Mapping[str, Any]]:
    """The first rows of some files, in blocks; of files that are one text each, some of all."""
    if source.are_texts:
        step = -(-len(source.names) // _SAMPLED_TEXTS)
        sampled = replace(source, names=source.names[::step])
        frame, _ = read_sources([sampled], ColumnChoice())
        yield {name: frame[name].tolist() for name in frame.columns}
        return
    for name in source.names:
        yield from _stream_blocks(source.folder / name, source.reading)


def _stream_blocks(path: Path, reading: Reading) -> Iterator[Mapping[str, Any]]:
    file_format = reading.format if reading.format != "auto" else name_format(path)
    if file_format is None:
        raise DataError(
            f"{path}: cannot tell its format from its name",
            hint=f"give --set prepare.format= one of {', '.join(STREAMERS)}",
        )
    if not path.stat().st_size:
        raise DataError(f"{path}: the file is empty", hint="give a file with a header and rows")
    try:
        known = replace(reading, format=file_format)
        stream = STREAMERS[file_format](path, known, ColumnChoice())
        yield from stream.iterate_blocks(_BLOCK_ROWS)
    except OSError as error:
        raise describe_read_error(error, path) from error


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
