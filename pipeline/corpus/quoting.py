"""What double quotes mean in a CSV or TSV file: ends of cells, or parts of the texts.

No standard says it, and a wrong guess joins rows or alters texts without any other sign. A reader
collects evidence while it takes quotes for ends of cells; what the evidence says is decided here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Quoting = Literal["double", "none"]
Escape = Literal["none", "backslash"]
_KEPT_JOINS = 100  # of which the lines are kept for a closer look
_LISTED_LINES = 5  # in a message
# In a longer joined row some lines may hold a delimiter too many and the others still be rows.
_ROWLIKE_SHARE = 0.8
# A column with more distinct values, by their share and by their number, holds texts or the like.
_TELLING_SHARE = 0.5
_TELLING_VALUES = 100


@dataclass(frozen=True)
class Dialect:
    """How a line of a CSV or TSV file is cut into cells.

    :param delimiter: the character between two cells.
    :param quoting: whether double quotes enclose cells.
    :param escape: whether a backslash makes a quote after it a part of the text.
    """

    delimiter: str
    quoting: Quoting = "double"
    escape: Escape = "none"


@dataclass(frozen=True)
class Join:
    """A row that takes several lines, since a quote opens in one of them and closes in another.

    :param line: the number of its first line.
    :param lines: its lines, with their ends.
    """

    line: int
    lines: tuple[str, ...]

    def name_lines(self) -> str:
        """The numbers of its first and last line, for a message."""
        return f"{self.line:,}–{self.line + len(self.lines) - 1:,}"


@dataclass
class Evidence:
    """What was seen of quotes while a file was read.

    Numbers of lines are those of the first line of that kind, from 1, or 0 if there is none.

    :ivar wrong_width: the first row with more or fewer cells than there are columns, as its line
        and its number of cells.
    :ivar unclosed: where a quote opens a cell that never ends.
    :ivar broken: where other text follows the quote that closes a cell.
    :ivar bare: where a quote stands inside a cell that does not begin with one; who encloses cells
        in quotes would have enclosed that one.
    :ivar doubled: where a quote stands twice in a quoted cell of one line, for one of the text.
    :ivar needed: where a quoted cell of one line holds the delimiter.
    :ivar escaped: where a backslash stands before a quote.
    :ivar has_unquoted_rows: whether there are rows without any quote.
    :ivar has_unquoted_words: whether a row with quotes has cells without that are no numbers.
    :ivar plain: whether each line has one cell for each column if quotes mean nothing.
    :ivar joins: rows of several lines, most of which have as many delimiters as a row.
    :ivar several: other rows of several lines.
    :ivar line_feed: the first row that ends in a line feed, or in a carriage return and one.
    :ivar carriage_return: the first row that ends in a carriage return alone.
    :ivar loose: by column, where quotes enclose a cell that does not need them, and how many do.
    :ivar unquoted_columns: columns that have cells without quotes in rows with quotes.
    """

    wrong_width: tuple[int, int] | None = None
    unclosed: int = 0
    broken: int = 0
    bare: int = 0
    doubled: int = 0
    needed: int = 0
    escaped: int = 0
    has_unquoted_rows: bool = False
    has_unquoted_words: bool = False
    plain: bool = True
    joins: list[Join] = field(default_factory=list)
    several: list[Join] = field(default_factory=list)
    line_feed: int = 0
    carriage_return: int = 0
    loose: dict[int, tuple[int, int]] = field(default_factory=dict)
    unquoted_columns: set[int] = field(default_factory=set)

    @property
    def all_quoted(self) -> bool:
        """Whether all cells stand in quotes, but for empty ones and numbers beside quoted ones."""
        return not (self.has_unquoted_rows or self.has_unquoted_words)

    @property
    def shows_quoting(self) -> bool:
        """Whether cells of one line are as only who encloses cells in quotes writes them."""
        return bool(self.doubled or self.needed or self.all_quoted)

    @property
    def is_whole(self) -> bool:
        """Whether every row has its cells, and every quote closes where a cell ends."""
        return not (self.wrong_width or self.unclosed or self.broken)

    def list_loose(self) -> list[tuple[int, int]]:
        """By column, the first of the cells in quotes among others without, and their number."""
        return [
            where
            for column, where in self.loose.items()
            if self.has_unquoted_rows or column in self.unquoted_columns
        ]


class QuoteObserver:
    """Collects evidence from the rows of a file.

    :param dialect: how the rows were cut into cells.
    :param width: the number of columns.
    :param evidence: where the findings go.
    """

    def __init__(self, dialect: Dialect, width: int, evidence: Evidence) -> None:
        self._width = width
        self._takes_quotes = dialect.quoting == "double"
        self._delimiter = dialect.delimiter
        self._evidence = evidence
        self._backslash = dialect.escape == "backslash"
        mark = re.escape(dialect.delimiter)
        quoted = r'"[^"]*(?:""[^"]*)*'
        if self._backslash:
            quoted = r'"[^"\\]*(?:(?:""|\\.)[^"\\]*)*'
        # A cell: what a quote encloses, the closing quote and what follows it; or what has none.
        self._cell = re.compile(
            rf'(?:\A|{mark})(?:({quoted})("?)([^{mark}\r\n]*)|([^{mark}\r\n]*))', re.DOTALL
        )
        # A line that tells little, taken in quickly: every cell in quotes, and none within. In TSV
        # quotes around a cell are rare enough to be looked at one by one.
        self._simple = None
        if dialect.delimiter != "\t" and not self._backslash:
            self._simple = re.compile(rf'"[^"\\]*"(?:{mark}"[^"\\]*")*[\r\n]*')

    def observe(
        self, line: int, cells: Sequence[str], lines: Sequence[str], *, is_header: bool
    ) -> None:
        """Take in one row.

        :param line: the number of its first line.
        :param cells: what it was cut into; none of an empty line.
        :param lines: its lines, with their ends.
        :param is_header: whether it holds the names of the columns.
        """
        found = self._evidence
        end = lines[-1][-1]
        if end == "\n" and cells:
            found.line_feed = found.line_feed or line
        elif end == "\r" and (cells or lines[0] == "\r"):
            found.carriage_return = found.carriage_return or line
        if not cells:
            return
        has_quotes = self._takes_quotes and (len(lines) > 1 or '"' in lines[0])
        if has_quotes:
            self._observe_quotes(line, lines)
        elif not is_header:
            found.has_unquoted_rows = True
        if len(cells) != self._width:
            found.wrong_width = found.wrong_width or (line, len(cells))
        # The names of columns would keep the quotes around them.
        found.plain = found.plain and (not is_header if has_quotes else len(cells) == self._width)

    def _observe_quotes(self, line: int, lines: Sequence[str]) -> None:
        """Take in one row that holds a quote somewhere."""
        found = self._evidence
        raw = lines[0] if len(lines) == 1 else "".join(lines)
        if self._simple is not None and self._simple.fullmatch(raw) and len(lines) == 1:
            if raw.count(self._delimiter) != self._width - 1:
                found.plain = False
                found.needed = found.needed or line
            return
        if not found.escaped and '\\"' in raw:
            found.escaped = line
        self._observe_lines(line, lines)
        for column, (quoted, close, tail, bare) in enumerate(self._cell.findall(raw)):
            if quoted:
                self._observe_quoted(line, column, quoted[1:], close, tail)
            elif bare:
                found.unquoted_columns.add(column)
                if not found.has_unquoted_words and not is_number(bare):
                    found.has_unquoted_words = True
                if not found.bare and '"' in bare:
                    found.bare = 0 if self._is_escaped(bare) else line

    def _observe_quoted(self, line: int, column: int, body: str, close: str, tail: str) -> None:
        """Take in a cell that begins with a quote.

        :param body: what follows the opening quote, up to the closing one.
        :param close: the closing quote, or nothing at the end of the file.
        :param tail: what follows the closing quote.
        """
        found = self._evidence
        if not close:
            found.unclosed = found.unclosed or line
        elif tail:
            found.broken = found.broken or line
        if "\n" in body or "\r" in body:
            return  # what stands here may be several rows, which tell nothing of quoting
        if '"' in body:
            found.doubled = found.doubled or line
        elif self._delimiter in body:
            found.needed = found.needed or line
        else:
            first, number = found.loose.get(column, (line, 0))
            found.loose[column] = (first, number + 1)

    def _observe_lines(self, line: int, lines: Sequence[str]) -> None:
        """Whether the lines would be rows if quotes meant nothing."""
        found = self._evidence
        filled = [text for text in lines if text.strip("\r\n")]
        delimiters = self._width - 1
        rowlike = sum(text.count(self._delimiter) == delimiters for text in filled)
        if rowlike < len(filled):
            found.plain = False
        if len(lines) > 1:
            share = 1.0 if len(filled) < 5 else _ROWLIKE_SHARE
            if self._delimiter == "\t":  # which hardly ever stands in a text
                share = 0.0
            kept = found.joins if rowlike > 1 and rowlike >= share * len(filled) else found.several
            if len(kept) < _KEPT_JOINS:
                kept.append(Join(line, tuple(lines)))

    def _is_escaped(self, bare: str) -> bool:
        """Whether all quotes of a cell that does not begin with one follow a backslash."""
        return self._backslash and '"' not in re.sub(r"\\.", "", bare, flags=re.DOTALL)


def is_number(text: str) -> bool:
    """Whether a cell holds a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def find_joined_rows(
    joins: Sequence[Join], samples: Sequence[Sequence[str]], dialect: Dialect
) -> list[Join]:
    """The joins that look like several rows: their other cells are as those of other rows.

    A line of a text that happens to hold as many delimiters as a row is rarely that: where it has a
    label, it would have to name one of the classes.

    :param joins: rows of several lines.
    :param samples: rows of one line, to compare with.
    :param dialect: how the file was cut into cells.
    """
    columns = list(zip(*samples, strict=True)) if samples else []
    distinct = {n: set(values) for n, values in enumerate(columns)}
    most = min(_TELLING_SHARE * len(samples), _TELLING_VALUES)
    known = {n: values for n, values in distinct.items() if len(values) <= most}
    numeric = {n for n, values in enumerate(columns) if all(map(is_number, values))}

    def fits(cells: Sequence[str], text_column: int) -> bool:
        return all(
            cells[n] in known[n] if n in known else is_number(cells[n])
            for n in known.keys() | numeric
            if n != text_column
        )

    suspects = []
    for join in joins:
        rows = [line.rstrip("\r\n").split(dialect.delimiter) for line in join.lines]
        width = len(columns) or len(rows[0])
        rows = [cells for cells in rows if len(cells) == width]
        opening = next((n for n, cell in enumerate(rows[0]) if cell.startswith('"')), 0)
        telling = (known.keys() | numeric) - {opening}
        if telling:
            fitting = sum(fits(cells, opening) for cells in rows)
            suspicious = fitting >= (1.0 if len(rows) < 5 else _ROWLIKE_SHARE) * len(rows)
        else:  # a tab hardly ever stands in a text
            suspicious = dialect.delimiter == "\t" and width > 1
        if suspicious:
            suspects.append(join)
    return suspects


def choose_quoting(found: Evidence, suspects: Sequence[Join], dialect: Dialect) -> Quoting | None:
    """What quotes mean in a file, where one reading is clearly right.

    :param found: what was seen while quotes were taken for ends of cells.
    :param suspects: joined lines that look like rows of their own.
    :param dialect: how the file was cut into cells.
    :returns: ``double`` if quotes enclose cells, ``none`` if they belong to the texts, ``None`` if
        it cannot be told.
    """
    if found.is_whole and not suspects:
        return "double"
    # Whoever writes quotes for the ends of cells encloses each cell that holds one, and doubles it.
    is_proper = found.is_whole and not found.bare
    if is_proper:
        return "double" if found.shows_quoting else None
    if found.shows_quoting or found.escaped or dialect.escape == "backslash":
        return None
    return "none" if dialect.delimiter == "\t" and found.plain else None


def list_lines(joins: Sequence[Join]) -> str:
    """Where joins stand, for a message."""
    more = f" and {len(joins) - _LISTED_LINES} more" if joins[_LISTED_LINES:] else ""
    return ", ".join(join.name_lines() for join in joins[:_LISTED_LINES]) + more
