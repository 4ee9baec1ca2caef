"""What a person sees in the terminal: lines, tables, progress bars, seconds.

Everything goes to standard output, bars to standard error and only to a terminal, so that a log
file stays readable.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Advance = Callable[[float], None]


def _console() -> Console:
    from rich.console import Console

    # Without a terminal there is no width to ask for, and 80 columns would fold the tables.
    return Console(
        highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160, markup=False
    )


def say(message: str = "") -> None:
    """Print one line; paths below the working directory are shortened."""
    sys.stdout.write(shorten_paths(message) + "\n")
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
    text = f"warning: {message}"
    if sys.stdout.isatty():
        text = f"\033[33m{text}\033[0m"
    say(text)


def show_table(
    headers: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None
) -> None:
    """Print a table: the first column left-aligned, the others right-aligned.

    :param headers: the name of each column.
    :param rows: cells; integers get thousands separators, floats four decimals, ``None`` a dash.
    :param title: a line to stand above the table; ``None`` for none.
    """
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for number, header in enumerate(headers):
        table.add_column(header, justify="left" if number == 0 else "right", no_wrap=True)
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
    return str(cell)


def format_number(number: float, decimals: int) -> str:
    """A number with some decimals; with as many digits as that if it is too large or too small.

    :param number: the number.
    :param decimals: how many, 1 or more.
    """
    if number and not 0.5 * 10**-decimals <= abs(number) < 1e9:
        return f"{number:.{decimals}g}"
    return f"{number:.{decimals}f}"


@contextlib.contextmanager
def show_progress(label: str, total: int, unit: str) -> Iterator[Advance]:
    """A progress bar with the time left, on a terminal; silence elsewhere.

    :param label: what is being done.
    :param total: amount of work in ``unit``.
    :param unit: the word for what is counted.
    :yields: a function to call with the amount of work just done.
    """
    if not sys.stderr.isatty():
        yield lambda amount: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} " + unit),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with progress:
        task = progress.add_task(label, total=total)
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
