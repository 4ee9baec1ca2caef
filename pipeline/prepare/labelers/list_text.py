"""Lists that stand in a cell as text: as Python or pandas, NumPy or JSON write them."""

from __future__ import annotations

import ast
import itertools
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import DataError
from pipeline.prepare.labelers.base import is_missing, shorten

_NAMED_ROWS = 3  # of each form, in an error about a column with several
_STRING = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_WORD = r"[+-]?[\d.][\w.+-]*|None|True|False|null|true|false|NaN|nan"
# A comma, a blank or the end comes after an item: Python would join 'a''b' to one string.
_ITEM = re.compile(rf"\s*({_STRING}|{_WORD})(?=[\s,]|$)\s*", re.DOTALL)
_WORDS = {"None": None, "null": None, "NaN": None, "nan": None, "True": True, "true": True}
_WORDS |= {"False": False, "false": False}
_PAIRS = {"[": "]", "(": ")", "{": "}"}


def parse_list(text: str) -> list[Any] | None:
    """The items of a list of strings and numbers that stands in a text.

    ``['a', 'b']`` and ``('a',)`` are as pandas writes lists and tuples to CSV, ``["a", "b"]`` is
    JSON, and ``['a' 'b']`` is an array of NumPy.

    :param text: what a cell holds.
    :returns: strings, numbers, truth values and nulls; ``None`` if the text is not such a list.
    """
    text = text.strip()
    closing = {"[": "]", "(": ")"}.get(text[:1])
    if closing is None or len(text) < 2 or text[-1] != closing:
        return None
    inside = text[1:-1].strip()
    items: list[Any] = []
    separators: set[str] = set()
    position = 0
    while position < len(inside):
        found = _ITEM.match(inside, position)
        if found is None:
            return None
        try:
            items.append(_parse_item(found[1]))
        except ValueError:
            return None
        position = found.end()
        if position < len(inside):
            separators.add("," if inside[position] == "," else " ")
            position += inside[position] == ","
    # Python takes ('a' 'b') for one string, and (1) is more likely a remark than a tuple.
    alone = len(items) == 1 and not separators and not isinstance(items[0], str)
    if len(separators) > 1 or (closing == ")" and (alone or separators == {" "})):
        return None
    return items


def _parse_item(item: str) -> Any:
    """One item of a list.

    :raises ValueError: if it only looks like one.
    """
    if item in _WORDS:
        return _WORDS[item]
    if item[0] == '"':
        try:
            return json.loads(item, strict=False)
        except ValueError:  # Python's escapes, such as \x41, which JSON has not
            pass
    if item[0] in "\"'":
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", SyntaxWarning)  # an escape that means nothing
                return ast.literal_eval(item.replace("\n", "\\n").replace("\r", "\\r"))
        except (SyntaxError, SyntaxWarning) as error:
            raise ValueError(item) from error
    return float(item) if re.search("[.eEn]", item) else int(item)


def resembles_list(text: str, separator: str = ",") -> bool:
    """Whether a text that ``parse_list`` does not read looks like a list, a set or an object."""
    text = text.strip()
    opening, closing = text[:1], _PAIRS.get(text[:1])
    if closing is None:
        return False
    if text[1:].lstrip()[:1] in {"'", '"'}:
        return True
    depths = list(itertools.accumulate((c == opening) - (c == closing) for c in text))
    if depths[-1] != 0 or 0 in depths[:-1]:  # such as [a], [b]
        return False
    marks = {",", "'", '"', separator}
    return opening == "{" or (opening == "[" and any(mark in text for mark in marks))


def read_listed_cells(source: str, values: Sequence[Any], separator: str) -> Sequence[Any]:
    """The cells of a column of tags, those that hold a list as text as lists.

    :param source: what the messages call the origin of the values, such as ``column 'topics'``.
    :param values: what the column holds, [B].
    :param separator: what stands between two tags of a text that is no list.
    :returns: the cells, [B].
    :raises DataError: if some cells are lists as text and others are not, or look like lists that
        cannot be read.
    """
    lists, torn, others = _Found(), _Found(), _Found()
    list_of_text: dict[str, list[Any]] = {}
    for row, value in enumerate(values):
        if not isinstance(value, str) or is_missing(value):
            continue
        parsed = parse_list(value) if value.lstrip()[:1] in {"[", "("} else None
        if parsed is not None:
            list_of_text.setdefault(value, parsed)
            lists.add(row, value)
        elif resembles_list(value, separator):
            torn.add(row, value)
        else:
            others.add(row, value)
    total = lists.rows + torn.rows + others.rows
    if torn.rows and not lists.rows:
        raise DataError(
            f"{source}: {torn.rows:,} of {total:,} cells look like lists, sets or objects "
            f"that cannot be read: {torn}",
            hint="write each as a list with every tag in quotes, such as ['a', 'b'], or as tags "
            "with a separator between them",
        )
    if torn.rows or (lists.rows and others.rows):
        row, text = next(iter(lists.first.items()))
        raise DataError(
            f"{source}: {lists.rows:,} of {total:,} cells hold a list, such as "
            f"row {row} (the first is 0) {shorten(repr(text))}, and the "
            f"others do not: {torn.join(others)}",
            hint="write all of them as lists, or all as tags with a separator between them",
        )
    if not lists.rows:
        return values
    return [list_of_text.get(cell, cell) if isinstance(cell, str) else cell for cell in values]


@dataclass
class _Found:
    """The cells of one form: how many there are, and the first of them.

    :param rows: how many there are.
    :param first: row → cell, of the first ones.
    """

    rows: int = 0
    first: dict[int, str] = field(default_factory=dict)

    def add(self, row: int, cell: str) -> None:
        """Count a cell."""
        self.rows += 1
        if len(self.first) < _NAMED_ROWS:
            self.first[row] = cell

    def join(self, other: _Found) -> _Found:
        """Both together, the first ones of the other behind these."""
        return _Found(self.rows + other.rows, self.first | other.first)

    def __str__(self) -> str:
        shown = sorted(self.first)[:_NAMED_ROWS]
        named = ", ".join(f"row {row} {shorten(repr(self.first[row]))}" for row in shown)
        return named + (f" and {self.rows - len(shown):,} more" if self.rows > len(shown) else "")
