"""What a person sees in the terminal: lines, tables, progress bars, seconds.

Everything goes to standard output, bars to standard error and only to a terminal, so that a log
file stays readable. Names and texts come from files that others wrote, so nothing is printed as it
is: control characters are shown escaped, and what a URL keeps secret is left out.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Advance = Callable[[float], None]


# What a terminal obeys instead of showing it: the control characters of ASCII and Latin-1 but for
# the line break, and the marks that turn the direction of what follows, so that a name reads as
# another one.
_CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_URL = re.compile(r"\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s\"'<>`]+")
# A wider text in a table goes on in the next line. No figure is as wide.
_CELL_COLUMNS = 60
# The time between two lines that tell of progress in a log.
_LINE_SECONDS = 15.0
# A table is as wide as what it holds; where the terminal is narrower, its lines go on in the next.
_TABLE_COLUMNS = 10_000


def _console() -> Console:
    from rich.console import Console

    return Console(
        highlight=False,
        soft_wrap=True,
        width=_TABLE_COLUMNS,
        markup=False,
        emoji=False,
        force_terminal=allows_escapes(sys.stdout),
    )


def allows_escapes(stream: IO[str]) -> bool:
    """Whether a stream is a terminal that may get escape sequences: colours, moving bars.

    Source: https://no-color.org; ``TERM=dumb`` is what terminals without escape sequences say.

    :param stream: standard output or standard error.
    """
    is_dumb = os.environ.get("TERM", "").lower() in {"dumb", "unknown"}
    return stream.isatty() and not is_dumb and not os.environ.get("NO_COLOR")


def escape_controls(text: str) -> str:
    r"""A text with its control characters as Python writes them: ``\x1b`` for Escape.

    Line breaks stay.

    :param text: what may hold names and texts of others.
    """
    return _CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text)


def hide_secrets(text: str) -> str:
    """A text in which no URL shows its query, its fragment or whom it is asked as.

    :param text: anything that may hold URLs, such as an error's message.
    :returns: the text with each URL as ``hide_in_url`` shows it.
    """
    return _URL.sub(_hide_in_match, text)


def _hide_in_match(match: re.Match[str]) -> str:
    url = match[0].rstrip(".,:;)]}…")  # what ends a clause is not of the URL
    return hide_in_url(url) + match[0][len(url) :]


def hide_in_url(url: str) -> str:
    """A URL as it may be shown and kept: without its query, its fragment, a user and a password.

    :param url: a whole URL, as a person wrote it.
    :returns: the URL with ``?…``, ``#…`` and ``…@`` in the place of what it keeps secret.
    """
    scheme, _, rest = url.partition("://")
    rest, _, fragment = rest.partition("#")
    rest, _, query = rest.partition("?")
    host, slash, path = rest.partition("/")
    user, _, name = host.rpartition("@")
    shown = f"{scheme}://{'…@' if user else ''}{name}{slash}{path}"
    return shown + ("?…" if query else "") + ("#…" if fragment else "")


def make_printable(text: str) -> str:
    """A text as a person gets to see it: short paths, no secrets, no control characters.

    :param text: a message, of one or more lines.
    """
    return escape_controls(hide_secrets(shorten_paths(text)))


def say(message: str = "") -> None:
    """Print one line; paths below the working directory are shortened."""
    sys.stdout.write(make_printable(message) + "\n")
    sys.stdout.flush()


def shorten_paths(text: str) -> str:
    """A text whose paths below the working directory are relative to it, as a person has them."""
    try:
        prefix = f"{Path.cwd()}{os.sep}"
    except FileNotFoundError:  # the working directory was removed while this runs
        return text
    return text if prefix == 2 * os.sep else text.replace(prefix, "")


def warn(message: str) -> None:
    """Print something that must not be missed, in yellow on a terminal."""
    text = make_printable(f"warning: {message}")
    if allows_escapes(sys.stdout):
        text = f"\033[33m{text}\033[0m"
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def show_table(
    headers: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None
) -> None:
    """Print a table: the first column left-aligned, the others right-aligned.

    The table is as wide as it must be, whatever the terminal's width, so that no cell is cut. Long
    names are folded.

    :param headers: the name of each column.
    :param rows: cells; integers get thousands separators, floats four decimals, ``None`` a dash.
    :param title: a line to stand above the table; ``None`` for none.
    """
    from rich import box
    from rich.table import Table

    table = Table(
        title=_format_cell(title) if title else None,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        pad_edge=False,
    )
    for number, header in enumerate(headers):
        table.add_column(
            _format_cell(header),
            justify="left" if number == 0 else "right",
            overflow="fold",
            max_width=_CELL_COLUMNS,
        )
    for row in rows:
        table.add_row(*(_format_cell(cell) for cell in row))
    _console().print(table)


def _format_cell(cell: object) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, int) and not isinstance(cell, bool):
        return f"{cell:,}"
    if isinstance(cell, float):
        return format_number(cell, 4)
    return make_printable(str(cell)).replace("\n", "\\n")


def format_number(number: float, decimals: int) -> str:
    """A number with some decimals; with as many digits as that if it is too large or too small.

    A number is too small if fewer than two of its own digits would be seen: 0.00012 and 0.00014
    must not both be 0.0001.

    :param number: the number.
    :param decimals: how many, 2 or more.
    """
    if number and not 0.95 * 10 ** (1 - decimals) <= abs(number) < 1e9:
        return f"{number:.{decimals}g}"
    return f"{number:.{decimals}f}"


class _LineProgress:
    """What is done and the time left, in a line of a log, whenever some time has passed.

    :param label: what is being done.
    :param total: amount of work in ``unit``.
    :param unit: the word for what is counted.
    """

    def __init__(self, label: str, total: float, unit: str) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._done = 0.0
        self._started = self._told = time.monotonic()

    def advance(self, amount: float) -> None:
        """Count work, and tell of it if it is time.

        :param amount: the amount of work just done.
        """
        self._done += amount
        now = time.monotonic()
        if now - self._told < _LINE_SECONDS or not 0 < self._done < self._total:
            return
        self._told = now
        left = (now - self._started) * (self._total / self._done - 1)
        line = (
            f"{self._label}: {self._done:,.0f} of {self._total:,.0f} {self._unit}, about "
            f"{left:,.0f} s left"
        )
        sys.stderr.write(make_printable(line) + "\n")
        sys.stderr.flush()


@contextlib.contextmanager
def show_progress(label: str, total: int, unit: str) -> Iterator[Advance]:
    """A progress bar with the time left, on a terminal that can move it; else a line now and then.

    :param label: what is being done.
    :param total: amount of work in ``unit``.
    :param unit: the word for what is counted.
    :yields: a function to call with the amount of work just done.
    """
    if not allows_escapes(sys.stderr):
        yield _LineProgress(label, total, unit).advance
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} " + unit, markup=False),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with progress:
        task = progress.add_task(make_printable(label), total=total)
        yield lambda amount: progress.advance(task, amount)


def format_bytes(count: int) -> str:
    """A number of bytes for people: ``28.1 MB``."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def count(number: int, noun: str) -> str:
    """``1 row``, ``5,572 rows``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
