"""CSV and TSV files: cells stay text, whatever they look like, and none is a missing value."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from pipeline.console import count, say, warn
from pipeline.corpus.columns import ColumnChoice
from pipeline.corpus.opening import LONGEST_LINE_CHARACTERS, iterate_lines, open_text
from pipeline.corpus.quoting import (
    Dialect,
    Evidence,
    Join,
    QuoteObserver,
    Quoting,
    choose_quoting,
    find_joined_rows,
    list_lines,
)
from pipeline.corpus.reading import Columns, Reading, Stream, gather_rows
from pipeline.errors import DataError

_DELIMITERS = {"comma": ",", "tab": "\t", "semicolon": ";", "pipe": "|"}
_DELIMITER_NAMES = {sign: name for name, sign in _DELIMITERS.items()}
_SAMPLED_ROWS = 20_000  # to compare lines with that a quote joins
_QUOTING = "a cell that holds the delimiter or a line break must stand in double quotes"
_DOUBLE_IT = 'write a quote that belongs to the text twice, in a quoted cell: "say ""hi"""'
_PLAIN = "where prepare.quoting is none, no cell may hold the delimiter or a line break"
_EMPTY = "give a file with a header and rows"


def read_delimited(path: Path, reading: Reading, choice: ColumnChoice) -> Columns:
    """Read a CSV or TSV file with the standard library's reader.

    pandas is not used because it fills up short lines in silence and does not always say which line
    is too long.

    :param path: the file.
    :param reading: how it is to be read; what is ``auto`` is decided here, and said.
    :param choice: the columns to take.
    :returns: name → cells.
    :raises DataError: if it is not well-formed, or if it cannot be told what its quotes mean.
    """
    table = _read_as_meant(_DelimitedFile(path, reading, choice))
    choice.mention_renamed(path, table.names)
    return table.columns


def stream_delimited(path: Path, reading: Reading, choice: ColumnChoice) -> Stream:
    """Read a CSV or TSV file a part at a time, as ``read_delimited`` reads it.

    The file is read twice: what its quotes mean is known only at its end.

    :param path: the file.
    :param reading: how it is to be read; what is ``auto`` is decided here, and said.
    :param choice: the columns to take.
    :returns: its columns, all strings, and its rows.
    :raises DataError: if it is not well-formed, or if it cannot be told what its quotes mean.
    """
    import pyarrow as pa

    table = _read_as_meant(_DelimitedFile(path, reading, ColumnChoice(all_others=False)))
    picked = choice.pick(path, table.names, table.names_from)
    choice.mention_renamed(path, table.names)

    def iterate() -> Iterator[list[str]]:
        rows = _DelimitedFile(path, reading, choice).iterate_rows(table)
        return ([cells[position] for position in picked.values()] for cells in rows)

    return Stream(
        types=dict.fromkeys(picked, pa.string()),
        rows=table.rows,
        iterate_blocks=lambda rows: gather_rows(list(picked), iterate(), rows),
    )


def _read_as_meant(file: _DelimitedFile) -> _Table:
    """Read a file, in the dialect that it is found to have if that is not given.

    :raises DataError: if it is not well-formed, or if it cannot be told what its quotes mean.
    """
    reading = file.reading
    quoting: Quoting = "none" if reading.quoting == "none" else "double"
    table = file.read(Dialect(file.choose_delimiter(), quoting, reading.escape))
    suspects = file.find_suspects(table)
    if reading.quoting == "auto":
        chosen = choose_quoting(table.evidence, suspects, table.dialect)
        if chosen == "none":
            file.mention_plain_reading(table, suspects)
            table, suspects = file.read(replace(table.dialect, quoting="none")), []
        elif chosen is None:
            file.refuse_faults(table)
            raise file.describe_doubt(table, suspects)
    file.refuse_faults(table)
    file.mention_joins(table, suspects)
    if reading.quoting == "auto":
        file.mention_oddities(table)
    return table


@dataclass(frozen=True)
class _Table:
    """What one pass over a file gives.

    :param dialect: the dialect that it was read in.
    :param columns: name → cells; rows with too many or too few cells are left out.
    :param names: the names of all of the file's columns.
    :param names_from: what gives these names.
    :param evidence: what was seen of quotes.
    :param rows: the number of rows that have as many cells as there are columns.
    """

    dialect: Dialect
    columns: Columns
    names: Sequence[str]
    names_from: str
    evidence: Evidence
    rows: int


class _Row(NamedTuple):
    """A row of a file: the number of its first line, its cells, its lines with their ends."""

    line: int
    cells: list[str]
    lines: list[str]


@dataclass(frozen=True)
class _DelimitedFile:
    """A CSV or TSV file, which may be read several times until its dialect is known."""

    path: Path
    reading: Reading
    choice: ColumnChoice

    def choose_delimiter(self) -> str:
        """The delimiter: as the settings say, else by the format and the first line.

        Another than the format's is taken only if the first line is one cell by the format's and
        several by just one other.
        """
        if self.reading.delimiter != "auto":
            return _DELIMITERS[self.reading.delimiter]
        usual = "\t" if self.reading.format == "tsv" else ","
        with open_text(self.path, self.reading.encoding) as file:
            lines = iterate_lines(file, self.path)
            first = next((line for line in lines if line.strip("\r\n")), "")
        cells = {sign: next(csv.reader([first], delimiter=sign), []) for sign in _DELIMITER_NAMES}
        expected = len(self.reading.header) if self.reading.header else None
        others = [
            sign
            for sign, found in cells.items()
            if sign != usual and len(found) > 1 and expected in (None, len(found))
        ]
        if len(cells[usual]) > 1 or expected == len(cells[usual]) or len(others) != 1:
            return usual
        say(
            f"{self.path}: read with the delimiter {_DELIMITER_NAMES[others[0]]}, which makes "
            f"{len(cells[others[0]])} columns of the first line, and {_DELIMITER_NAMES[usual]} "
            "one; prepare.delimiter decides it"
        )
        return others[0]

    def read(self, dialect: Dialect) -> _Table:
        """Read the file in one dialect.

        :param dialect: the dialect.
        :returns: its columns, and what was seen of quotes.
        :raises DataError: if there is no header, or if a wanted column is not there.
        """
        rows = self._parse(dialect)
        first = next((row for row in rows if row.cells), None)
        if first is None:
            raise DataError(f"{self.path}: the file is empty", hint=_EMPTY)
        names_from = "prepare.header" if self.reading.header else "the header"
        names = self.reading.header or first.cells
        picked = self.choice.pick(self.path, names, names_from)
        columns: Columns = {name: self.choice.start_column(name) for name in picked}
        kept = [(columns[name].append, position) for name, position in picked.items()]
        evidence = Evidence()
        observer = QuoteObserver(dialect, len(names), evidence)
        header_line = 0 if self.reading.header else first.line
        rows_read = 0
        for line, cells, lines in itertools.chain((first,), rows):
            observer.observe(line, cells, lines, is_header=line == header_line)
            if len(cells) == len(names) and line != header_line:
                rows_read += 1
                for keep, position in kept:
                    keep(cells[position])
        table = _Table(dialect, columns, names, names_from, evidence, rows_read)
        if evidence.line_feed and evidence.carriage_return:
            self.refuse_faults(table)
            raise DataError(
                f"{self.path}: line {evidence.carriage_return:,}: ends in a carriage return alone, "
                f"and line {evidence.line_feed:,} in a line feed: the first may be the end of a "
                "row or a part of a text",
                hint="write the file again with one kind of line end, and with texts that hold "
                "another in double quotes",
            )
        return table

    def iterate_rows(self, table: _Table) -> Iterator[list[str]]:
        """The cells of the rows, one row in memory at a time.

        :param table: what a pass over the file gave, in which no fault was found.
        """
        rows = (row for row in self._parse(table.dialect) if row.cells)
        if not self.reading.header:
            next(rows, None)
        return (row.cells for row in rows)

    def _parse(self, dialect: Dialect) -> Iterator[_Row]:
        """The rows of the file, empty lines among them as rows without cells."""
        csv.field_size_limit(LONGEST_LINE_CHARACTERS)
        taken: list[str] = []

        def feed(lines: Iterable[str]) -> Iterator[str]:
            for text in lines:
                taken.append(text)
                yield text

        with open_text(self.path, self.reading.encoding) as file:
            lines: Iterable[str] = feed(iterate_lines(file, self.path))
            if dialect.escape == "backslash":
                lines = map(_make_escaper(dialect), lines)
            rows = csv.reader(
                lines,
                delimiter=dialect.delimiter,
                quoting=csv.QUOTE_NONE if dialect.quoting == "none" else csv.QUOTE_MINIMAL,
                escapechar="\\" if dialect.escape == "backslash" else None,
            )
            line = 1
            try:
                for cells in rows:
                    yield _Row(line, cells, taken)
                    line += len(taken)
                    taken = []
            except csv.Error as error:
                raise DataError(
                    f"{self.path}: line {line:,}: not well-formed: {error}",
                    hint=f"{_DOUBLE_IT}, or set prepare.quoting to none if none stands in quotes",
                ) from error

    def find_suspects(self, table: _Table) -> list[Join]:
        """The rows of several lines that look like several rows, by the other rows of the file."""
        if not table.evidence.joins:
            return []
        rows = (row.cells for row in self._parse(table.dialect) if len(row.lines) == 1)
        if not self.reading.header:
            next(rows, None)
        width = len(table.names)
        samples = itertools.islice((row for row in rows if len(row) == width), _SAMPLED_ROWS)
        return find_joined_rows(table.evidence.joins, list(samples), table.dialect)

    def refuse_faults(self, table: _Table) -> None:
        """Refuse a file in which a row has too many or too few cells, or a cell does not end.

        :param table: what a pass over the file gave.
        :raises DataError: naming the first such line.
        """
        found = table.evidence
        if found.wrong_width is None and not found.unclosed:
            return
        remedies = self._list_remedies(table)
        line, cells = found.wrong_width or (found.unclosed, 0)
        if found.unclosed and found.unclosed <= line:
            line = found.unclosed
            raise DataError(
                f"{self.path}: line {line:,}: a double quote opens a cell that never ends",
                hint=", or ".join([_DOUBLE_IT, *remedies]),
            )
        remedies.insert(0, _QUOTING if table.dialect.quoting == "double" else _PLAIN)
        raise DataError(
            f"{self.path}: line {line:,}: has {count(cells, 'cell')}, {table.names_from} has "
            f"{len(table.names)}",
            hint=", or ".join(remedies),
        )

    def describe_doubt(self, table: _Table, suspects: Sequence[Join]) -> DataError:
        """The error for a file of which it cannot be told what its quotes mean."""
        line = table.evidence.broken
        what = (
            f"line {line:,}: text follows the double quote that closes a cell"
            if line
            else f"lines {list_lines(suspects)}: a double quote joins what look like rows of their "
            "own"
        )
        hint = ", or ".join([*self._list_remedies(table), _DOUBLE_IT])
        return DataError(f"{self.path}: {what}", hint=hint)

    def _list_remedies(self, table: _Table) -> list[str]:
        """The settings with which the file can be read, and what each of them means."""
        found, remedies = table.evidence, []
        if table.dialect.quoting == "none":
            return []
        if self._unescapes(table):
            remedies.append('set prepare.escape to backslash if \\" is a quote of the text')
        if found.plain and table.dialect.escape == "none":
            remedies.append("set prepare.quoting to none if quotes are parts of the texts")
        if self.reading.quoting == "auto" and found.wrong_width is None and not found.unclosed:
            remedies.append(
                "set prepare.quoting to double if they enclose cells, as pandas reads them"
            )
        return remedies

    def _unescapes(self, table: _Table) -> bool:
        """Whether the file, read without escapes, is well-formed if a backslash escapes a quote."""
        if table.dialect.escape != "none" or not table.evidence.escaped:
            return False
        try:
            escaped = self.read(replace(table.dialect, escape="backslash"))
        except DataError:
            return False
        return escaped.evidence.is_whole and not escaped.evidence.bare

    def mention_plain_reading(self, table: _Table, suspects: Sequence[Join]) -> None:
        """Say that quotes are read as parts of the texts, and why."""
        found = table.evidence
        if suspects:
            loss = f"would join lines {list_lines(suspects)}"
        elif found.unclosed:
            loss = f"would never end the cell that opens in line {found.unclosed:,}"
        elif found.broken:
            loss = f"would end a cell of line {found.broken:,} before its end"
        else:
            line, cells = found.wrong_width or (0, 0)
            loss = f"would give line {line:,} {count(cells, 'cell')}"
        say(
            f"{self.path}: quotes are read as parts of the texts, as every line then has "
            f"{count(len(table.names), 'cell')}; taken for ends of cells they {loss}; "
            "prepare.quoting decides it"
        )

    def mention_joins(self, table: _Table, suspects: Sequence[Join]) -> None:
        """Warn of lines that were joined to the one before, though they may be rows."""
        found = table.evidence
        if suspects:
            joined = sum(len(join.lines) - 1 for join in suspects)
            plain = "; with prepare.quoting: none each line is a row" if found.plain else ""
            warn(
                f"{self.path}: {count(joined, 'line')} joined to the one before, though it looks "
                "like a row of its own, as a double quote opens and closes later: lines "
                f"{list_lines(suspects)}{plain}"
            )
        elif found.bare and found.several:
            warn(
                f"{self.path}: rows of several lines, as a double quote opens and closes later: "
                f"lines {list_lines(found.several)}; quotes also stand within texts, first in line "
                f"{found.bare:,}, so look whether these are rows of their own"
            )
        elif found.plain and found.joins and not found.shows_quoting:
            warn(
                f"{self.path}: rows of several lines, as a double quote opens and closes later: "
                f"lines {list_lines(found.joins)}; with prepare.quoting: none each line is a row"
            )

    def mention_oddities(self, table: _Table) -> None:
        """Name what was read in one of two ways that both make sense and differ in the texts."""
        found = table.evidence
        if self._unescapes(table):
            warn(
                f"{self.path}: line {found.escaped:,}: a backslash before a double quote is read "
                "as a part of the text; set prepare.escape to backslash if it is not"
            )
        loose = found.list_loose()
        if table.dialect.delimiter == "\t" and found.plain and loose:
            number = sum(times for _, times in loose)
            warn(
                f"{self.path}: {count(number, 'cell')} in double quotes, the first in line "
                f"{min(line for line, _ in loose):,}: read without them; set prepare.quoting to "
                "none if they are parts of the texts"
            )


def _make_escaper(dialect: Dialect) -> Callable[[str], str]:
    """A function that doubles the backslashes of a line that stand for themselves.

    The standard library's reader drops a backslash whatever follows it, and so would spoil the path
    of a file. What a backslash escapes is a quote, another backslash and, where no quotes enclose
    cells, the delimiter and the end of a line.
    """
    escaped = {'"', "\\"}
    if dialect.quoting == "none":
        escaped |= {dialect.delimiter, "\r", "\n"}

    def double(match: re.Match[str]) -> str:
        return match[0] if match[1] in escaped else "\\" + match[0]

    pattern = re.compile(r"\\(.?)", re.DOTALL)
    return lambda line: pattern.sub(double, line) if "\\" in line else line
