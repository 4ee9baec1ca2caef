"""Findings as CSV that a spreadsheet opens, and in which no text of the corpus is a formula."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

Cell = str | float | int | None
# What a spreadsheet takes for the start of a formula.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_FIRST = frozenset({" ", *_FORMULA_STARTS})
_DECIMALS = 4


def format_csv(names: Sequence[str], rows: Iterable[Sequence[Cell]]) -> bytes:
    """A table as CSV in UTF-8, with a header, its lines ended as RFC 4180 has it.

    Text that a spreadsheet would compute gets an apostrophe before it; numbers stay numbers.

    Source: OWASP, CSV injection.

    :param names: the names of the columns.
    :param rows: the cells of each row; ``None`` is an empty cell.
    """
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\r\n")
    writer.writerow(names)
    for cells in rows:
        writer.writerow([_format_cell(cell) for cell in cells])
    return file.getvalue().encode("utf-8", "replace")


def _format_cell(cell: Cell) -> Cell:
    if isinstance(cell, str):
        # Most texts are told by their first character.
        is_formula = cell[:1] in _FIRST and cell.lstrip(" ").startswith(_FORMULA_STARTS)
        return f"'{cell}" if is_formula else cell
    return round(cell, _DECIMALS) if isinstance(cell, float) else cell
