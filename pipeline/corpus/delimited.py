"""CSV and TSV files: cells stay text, whatever they look like, and none is a missing value."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.console import count, say, warn
from pipeline.corpus.columns import ColumnChoice
from pipeline.corpus.opening import LONGEST_LINE_CHARACTERS, iterate_lines, open_text
from pipeline.corpus.quoting import (
    Dialect,
    Evidence,
    Join,
    QuoteObserver,
    choose_quoting,
    find_joined_rows,
    list_lines,
)
from pipeline.corpus.reading import Columns, Reading
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
    dialect = Dialect(
        delimiter=_choose_delimiter(path, reading),
        quoting="none" if reading.quoting == "none" else "double",
        escape=reading.escape,
    )
    table = _read_table(path, reading, dialect, choice)
    suspects = _find_suspects(path, reading, dialect, table)
    quoting = reading.quoting
    if quoting == "auto":
        chosen = choose_quoting(table.evidence, suspects, dialect)
        if chosen == "none":
            _mention_plain_reading(path, table, suspects)
            table = _read_table(path, reading, replace(dialect, quoting="none"), choice)
        elif chosen is None:
            _refuse_faults(path, reading, dialect, table, choice)
            raise _describe_doubt(path, reading, dialect, table, choice, suspects)
    _refuse_faults(path, reading, dialect, table, choice)
    _mention_joins(path, table, suspects)
    if quoting == "auto":
        _mention_oddities(path, reading, dialect, table, choice)
    choice.mention_renamed(path, table.names)
    return table.columns


@dataclass
class _Table:
    """What one pass over a file gives.

    :ivar columns: name → cells.
    :ivar names: the names of all of the file's columns.
    :ivar names_from: what gives these names.
    :ivar evidence: what was seen of quotes.
    """

    columns: Columns
    names: Sequence[str]
    names_from: str
    evidence: Evidence


def _read_table(path: Path, reading: Reading, dialect: Dialect, choice: ColumnChoice) -> _Table:
    """Read a file in one dialect. Rows of a wrong width are left out and stand in the evidence.

    :raises DataError: if there is no header, or if a wanted column is not there.
    """
    rows = _parse(path, reading, dialect)
    first = next((row for row in rows if row[1]), None)
    if first is None:
        raise DataError(f"{path}: the file is empty", hint=_EMPTY)
    names_from = "prepare.header" if reading.header else "the header"
    names = reading.header or first[1]
    width = len(names)
    picked = choice.pick(path, names, names_from)
    columns: Columns = {name: [] for name in picked}
    kept = [(columns[name].append, position) for name, position in picked.items()]
    evidence = Evidence()
    observer = QuoteObserver(dialect, width, evidence)
    line_feed = carriage_return = 0  # lines of the first rows that end so
    for line, record, lines in itertools.chain((first,), rows):
        if not record:
            if lines[0] == "\r":
                carriage_return = carriage_return or line
            continue
        is_header = not reading.header and line == first[0]
        if dialect.quoting == "double" and (len(lines) > 1 or '"' in lines[0]):
            observer.observe(line, lines)
        elif not is_header:
            evidence.has_unquoted_rows = True
        if lines[-1][-1] == "\n":
            line_feed = line_feed or line
        elif lines[-1][-1] == "\r":
            carriage_return = carriage_return or line
        if len(record) != width:
            evidence.wrong_width = evidence.wrong_width or (line, len(record))
            evidence.plain = evidence.plain and '"' in lines[0]
        elif not is_header:
            for keep, position in kept:
                keep(record[position])
    table = _Table(columns, names, names_from, evidence)
    if line_feed and carriage_return:
        _refuse_faults(path, reading, dialect, table, choice)
        raise DataError(
            f"{path}: line {carriage_return:,}: ends in a carriage return alone, and line "
            f"{line_feed:,} in a line feed: the first may be the end of a row or a part of a text",
            hint="write the file again with one kind of line end, and with texts that hold "
            "another in double quotes",
        )
    return table


def _parse(
    path: Path, reading: Reading, dialect: Dialect
) -> Iterator[tuple[int, list[str], list[str]]]:
    """The rows of a file: the number of the first line, the cells, the lines with their ends."""
    csv.field_size_limit(LONGEST_LINE_CHARACTERS)
    taken: list[str] = []

    def feed(lines: Iterable[str]) -> Iterator[str]:
        for text in lines:
            taken.append(text)
            yield text

    with open_text(path, reading.encoding) as file:
        lines: Iterable[str] = feed(iterate_lines(file, path))
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
            for record in rows:
                yield line, record, taken
                line += len(taken)
                taken = []
        except csv.Error as error:
            raise DataError(
                f"{path}: line {line:,}: not well-formed: {error}",
                hint=f"{_DOUBLE_IT}, or set prepare.quoting to none if no cell stands in quotes",
            ) from error


def _make_escaper(dialect: Dialect) -> Callable[[str], str]:
    """A function that doubles the backslashes of a line that stand for themselves.

    The standard library's reader drops a backslash whatever follows it, and so would spoil a path
    such as ``C:\\new``. It escapes a quote, itself and, where there are no quotes to enclose a
    cell, the delimiter and the end of a line.
    """
    escaped = {'"', "\\"}
    if dialect.quoting == "none":
        escaped |= {dialect.delimiter, "\r", "\n"}

    def double(match: re.Match[str]) -> str:
        return match[0] if match[1] in escaped else "\\" + match[0]

    pattern = re.compile(r"\\(.?)", re.DOTALL)
    return lambda line: pattern.sub(double, line) if "\\" in line else line


def _choose_delimiter(path: Path, reading: Reading) -> str:
    """The delimiter of a file: as the settings say, else by its format and its first line.

    Another than the format's is taken only if the header is one column by the format's and several
    by just one other.
    """
    usual = "\t" if reading.format == "tsv" else ","
    if reading.delimiter != "auto":
        return _DELIMITERS[reading.delimiter]
    with open_text(path, reading.encoding) as file:
        first = next((line for line in iterate_lines(file, path) if line.strip("\r\n")), "")
    widths = {sign: len(next(csv.reader([first], delimiter=sign), [])) for sign in _DELIMITER_NAMES}
    expected = len(reading.header) if reading.header else None
    others = [
        sign
        for sign, width in widths.items()
        if sign != usual and width > 1 and expected in (None, width)
    ]
    if widths[usual] > 1 or expected == widths[usual] or len(others) != 1:
        return usual
    name = _DELIMITER_NAMES[others[0]]
    say(
        f"{path}: read with the delimiter {name}, which makes {widths[others[0]]} columns of the "
        f"first line, and {_DELIMITER_NAMES[usual]} one; prepare.delimiter decides it"
    )
    return others[0]


def _find_suspects(path: Path, reading: Reading, dialect: Dialect, table: _Table) -> list[Join]:
    """The rows of several lines that look like several rows, by the other rows of the file."""
    if not table.evidence.joins:
        return []
    rows = (record for _, record, lines in _parse(path, reading, dialect) if len(lines) == 1)
    if not reading.header:
        next(rows, None)
    sample = itertools.islice((row for row in rows if len(row) == len(table.names)), _SAMPLED_ROWS)
    return find_joined_rows(table.evidence.joins, list(sample), dialect)


def _refuse_faults(
    path: Path, reading: Reading, dialect: Dialect, table: _Table, choice: ColumnChoice
) -> None:
    """Refuse a file in which a row has too many or too few cells, or a cell does not end.

    :raises DataError: naming the first such line.
    """
    found = table.evidence
    if found.wrong_width is None and not found.unclosed:
        return
    remedies = _list_remedies(path, reading, dialect, table, choice)
    line, cells = found.wrong_width or (found.unclosed, 0)
    if found.unclosed and found.unclosed <= line:
        raise DataError(
            f"{path}: line {found.unclosed:,}: a double quote opens a cell that never ends",
            hint=", or ".join([_DOUBLE_IT, *remedies]),
        )
    raise DataError(
        f"{path}: line {line:,}: has {count(cells, 'cell')}, {table.names_from} has "
        f"{len(table.names)}",
        hint=", or ".join([_QUOTING if dialect.quoting == "double" else _PLAIN, *remedies]),
    )


def _describe_doubt(
    path: Path,
    reading: Reading,
    dialect: Dialect,
    table: _Table,
    choice: ColumnChoice,
    suspects: Sequence[Join],
) -> DataError:
    """The error for a file of which it cannot be told what its quotes mean."""
    found = table.evidence
    remedies = _list_remedies(path, reading, dialect, table, choice)
    if found.broken:
        what = f"line {found.broken:,}: text follows the double quote that closes a cell"
    else:
        what = (
            f"lines {list_lines(suspects)}: a double quote joins what look like rows of their own"
        )
    return DataError(f"{path}: {what}", hint=", or ".join([*remedies, _DOUBLE_IT]))


def _list_remedies(
    path: Path, reading: Reading, dialect: Dialect, table: _Table, choice: ColumnChoice
) -> list[str]:
    """The settings with which a file can be read, and what each of them means."""
    found, remedies = table.evidence, []
    if dialect.quoting == "none":
        return []
    if _unescapes(path, reading, dialect, table, choice):
        remedies.append('set prepare.escape to backslash if \\" is a quote of the text')
    if found.plain and dialect.escape == "none":
        remedies.append("set prepare.quoting to none if quotes are parts of the texts")
    if reading.quoting == "auto" and found.wrong_width is None and not found.unclosed:
        remedies.append("set prepare.quoting to double if they enclose cells, as pandas reads them")
    return remedies


def _unescapes(
    path: Path, reading: Reading, dialect: Dialect, table: _Table, choice: ColumnChoice
) -> bool:
    """Whether a file that is read without escapes is well-formed if a backslash escapes a quote."""
    if dialect.escape != "none" or not table.evidence.escaped:
        return False
    try:
        escaped = _read_table(path, reading, replace(dialect, escape="backslash"), choice)
    except DataError:
        return False
    return escaped.evidence.is_whole and not escaped.evidence.bare


def _mention_plain_reading(path: Path, table: _Table, suspects: Sequence[Join]) -> None:
    found = table.evidence
    if suspects:
        loss = f"would join lines {list_lines(suspects)}"
    elif found.unclosed:
        loss = f"would never end the cell that opens in line {found.unclosed:,}"
    elif found.broken:
        loss = f"would end a cell of line {found.broken:,} before its end"
    else:
        loss = f"would give line {found.wrong_width[0] if found.wrong_width else 0:,} other cells"
    say(
        f"{path}: quotes are read as parts of the texts, as every line then has "
        f"{count(len(table.names), 'cell')}; taken for ends of cells they {loss}; "
        "prepare.quoting decides it"
    )


def _mention_joins(path: Path, table: _Table, suspects: Sequence[Join]) -> None:
    if suspects and table.evidence.joins:
        joined = sum(len(join.lines) - 1 for join in suspects)
        plain = "; with prepare.quoting: none each line is a row" if table.evidence.plain else ""
        warn(
            f"{path}: {count(joined, 'line')} joined to the one before, though it looks like a row "
            f"of its own, as a double quote opens and closes later: lines {list_lines(suspects)}"
            f"{plain}"
        )


def _mention_oddities(
    path: Path, reading: Reading, dialect: Dialect, table: _Table, choice: ColumnChoice
) -> None:
    """Name what was read in one of two ways that both make sense and differ in the texts."""
    found = table.evidence
    if _unescapes(path, reading, dialect, table, choice):
        warn(
            f"{path}: line {found.escaped:,}: a backslash before a double quote is read as a part "
            "of the text; set prepare.escape to backslash if it is not"
        )
    loose = [
        where
        for column, where in found.loose.items()
        if found.has_unquoted_rows or column in found.unquoted_columns
    ]
    if dialect.delimiter == "\t" and found.plain and loose:
        number = sum(times for _, times in loose)
        warn(
            f"{path}: {count(number, 'cell')} in double quotes, the first in line "
            f"{min(line for line, _ in loose):,}: read without them; set prepare.quoting to none "
            "if they are parts of the texts"
        )
