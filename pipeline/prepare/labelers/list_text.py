"""Lists that stand in a cell as text: as Python or pandas, NumPy or JSON write them."""

from __future__ import annotations

import ast
import itertools
import json
import re
import warnings
from collections.abc import Sequence
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
    lists: dict[int, list[Any]] = {}
    others: dict[int, str] = {}
    torn: dict[int, str] = {}
    for row, value in enumerate(values):
        if not isinstance(value, str) or is_missing(value):
            continue
        parsed = parse_list(value) if value.lstrip()[:1] in {"[", "("} else None
        if parsed is not None:
            lists[row] = parsed
        elif resembles_list(value, separator):
            torn[row] = value
        else:
            others[row] = value
    total = len(lists) + len(torn) + len(others)
    if torn and not lists:
        raise DataError(
            f"{source}: {len(torn):,} of {total:,} cells look like lists, sets or objects "
            f"that cannot be read: {_name_rows(torn)}",
            hint="write each as a list with every tag in quotes, such as ['a', 'b'], or as tags "
            "with a separator between them",
        )
    if lists and (torn or others):
        raise DataError(
            f"{source}: {len(lists):,} of {total:,} cells hold a list, such as "
            f"row {min(lists)} (the first is 0) {shorten(repr(values[min(lists)]))}, and the "
            f"others do not: {_name_rows(torn | others)}",
            hint="write all of them as lists, or all as tags with a separator between them",
        )
    return [lists.get(row, value) for row, value in enumerate(values)] if lists else values


def _name_rows(cells: dict[int, str]) -> str:
    first = sorted(cells)[:_NAMED_ROWS]
    named = ", ".join(f"row {row} {shorten(repr(cells[row]))}" for row in first)
    return named + (f" and {len(cells) - len(first):,} more" if len(cells) > len(first) else "")
