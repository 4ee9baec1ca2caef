"""Labels from a column of the source: classes, tags or numbers."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.arrays import take_values
from pipeline.config import ColumnLabel, LabelKind, ValueLabel, normalize_value
from pipeline.corpus.cells import Cells, Table
from pipeline.corpus.classes import sort_classes
from pipeline.errors import DataError
from pipeline.prepare.labelers.base import (
    NO_VALUE,
    UNKNOWN,
    Labels,
    choose_index_type,
    is_missing,
    is_unicode,
    shorten,
)
from pipeline.prepare.labelers.class_checks import (
    note_many_classes,
    note_missing_words,
    note_oddities,
)
from pipeline.prepare.labelers.distinct import RowValues
from pipeline.prepare.labelers.list_text import parse_list, read_listed_cells, resembles_list

_MARKED_ROWS = 65_536  # whose tags are marked at a time


class ColumnLabeler:
    """What a column of the source says.

    :param task: the task that the labels are for.
    :param settings: the column, and how it is to be read.
    """

    def __init__(self, task: str, settings: ColumnLabel) -> None:
        self._task = task
        self._settings = settings

    def label(self, frame: Table, texts: Sequence[str], assets: Mapping[str, Path]) -> Labels:
        """Label every row. See ``Labeler.label``."""
        column = self._settings.column
        if column not in frame.columns:
            raise DataError(
                f"no column {column!r}; the source has {', '.join(map(repr, frame.columns))}",
                hint=f"correct prepare.labels.{self._task}.column",
            )
        return label_by_column(self._settings, Table.of(frame)[column])


def label_by_column(settings: ColumnLabel, values: Sequence[Any]) -> Labels:
    """Labels from the values of a column, of the kind that the settings tell.

    :param settings: the label's settings.
    :param values: what the column holds, [B].
    :raises DataError: if its values are not of a form that has labels of this kind.
    """
    return label_by_values(settings, values, f"column {settings.column!r}")


def label_by_values(settings: ValueLabel, values: Sequence[Any], source: str) -> Labels:
    """Labels from a value for each row, of the kind that the settings tell.

    :param settings: the label's settings.
    :param values: what was found for each row, [B].
    :param source: what the messages call the origin of the values.
    :raises DataError: if they are not of a form that has labels of this kind.
    """
    return _READERS[settings.kind](settings, values, source)


def _read_classes(settings: ValueLabel, values: Sequence[Any], source: str) -> Labels:
    """Class indices, through the label's mapping if it has one."""
    mapping = {normalize_value(k): normalize_value(v) for k, v in (settings.mapping or {}).items()}
    cells, numbers = _number_cells(values)
    rows_of_cell = np.bincount(numbers, minlength=len(cells)).tolist()
    written = {
        number: normalize_value(value)
        for number, (_, value) in enumerate(cells)
        if rows_of_cell[number] and not is_missing(value)
    }
    name_of_cell = {number: mapping.get(name, name) for number, name in written.items()}
    counts: Counter[str] = Counter()
    forms: dict[str, dict[str, int]] = {}
    for number, name in name_of_cell.items():
        counts[name] += rows_of_cell[number]
        forms.setdefault(written[number], {})[repr(cells[number][1])] = rows_of_cell[number]
    given = settings.get_classes()
    if given is None:
        _refuse_lists(source, forms)
    classes = given or sort_classes(counts)
    index = {name: number for number, name in enumerate(classes)}
    index_of_cell = np.full(len(cells), UNKNOWN, choose_index_type(len(classes)))
    for number, name in name_of_cell.items():
        index_of_cell[number] = index.get(name, UNKNOWN)
    indices = take_values(index_of_cell, numbers)
    notes = note_oddities(counts, given, forms)
    return Labels(
        classes=classes,
        values=indices,
        unusable={
            row: _describe_value(values[row])
            for row in np.flatnonzero(indices == UNKNOWN).tolist()
            if not (settings.optional and is_missing(values[row]))
        },
        notes=notes if given or mapping else (*notes, *note_many_classes(counts)),
    )


def _number_cells(
    values: Sequence[Any],
) -> tuple[list[tuple[type, Any]], npt.NDArray[np.int32]]:
    """The distinct values with their types, in order of appearance, and the number of each row's.

    Values of different types may be equal, such as 1 and True. Lists and the like are all one.

    :returns: type and value, ``None`` for what cannot be a name; and int32, [B].
    """
    number_of_cell: dict[tuple[type, Any], int] = {}
    numbers = np.empty(len(values), np.int32)
    start = 0
    chunks: Iterable[tuple[Sequence[Any], npt.NDArray[Any] | None]] = [(values, None)]
    if isinstance(values, Cells | RowValues):
        chunks = values.iterate_numbered()
    for cells, of_rows in chunks:
        keys = ((type(cell), cell if _is_name(cell) else None) for cell in cells)
        found = (number_of_cell.setdefault(key, len(number_of_cell)) for key in keys)
        of_cells = np.fromiter(found, np.int32, len(cells))
        of_chunk = of_cells if of_rows is None else of_cells[of_rows]
        numbers[start : start + len(of_chunk)] = of_chunk
        start += len(of_chunk)
    return list(number_of_cell), numbers


def _refuse_lists(source: str, names: Collection[str]) -> None:
    """Refuse classes all of whose values are lists or objects written as text.

    :raises DataError: naming their origin and one of them.
    """
    if names and all(parse_list(name) is not None or resembles_list(name) for name in names):
        raise DataError(
            f"{source}: holds lists or objects as text, such as "
            f"{shorten(repr(next(iter(names))))}; a class is one value",
            hint="set `kind: tags` if each is a list of tags",
        )


def _read_tags(settings: ValueLabel, values: Sequence[Any], source: str) -> Labels:
    """Which of the tags each row has: from a list, or from text with a separator.

    An empty list is a row that has none of them, and a null is a row without a label; which of the
    two an empty text is, the settings tell.
    """
    empty = settings.empty or ("missing" if settings.optional else "none")
    cells = read_listed_cells(source, values, settings.separator)
    tags_of_row: list[Sequence[str] | None] = [None] * len(cells)
    tags_of_text: dict[str, Sequence[str]] = {}
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}  # rows of the same tags hold one object
    unusable: dict[int, str] = {}
    for row, cell in enumerate(cells):
        if is_missing(cell) and (empty == "missing" or not isinstance(cell, str)):
            if not settings.optional:
                unusable[row] = _describe_value(cell)
            continue
        if isinstance(cell, str) and cell in tags_of_text:
            tags_of_row[row] = tags_of_text[cell]
            continue
        parts = _list_parts(cell, settings.separator)
        faults = [part for part in parts if not _is_name(part)]
        if faults:
            unusable[row] = _describe_value(faults[0])
            continue
        tags = tuple(dict.fromkeys(map(normalize_value, parts)))
        tags_of_row[row] = tags = shared.setdefault(tags, tags)
        if isinstance(cell, str):
            tags_of_text[cell] = tags
    counts = Counter(itertools.chain.from_iterable(tags or () for tags in tags_of_row))
    given = settings.get_classes()
    classes = given or sort_classes(counts)
    held = _mark_tags(tags_of_row, classes)
    for row in np.flatnonzero((held == UNKNOWN).any(axis=1)).tolist():
        unknown = [tag for tag in tags_of_row[row] or () if tag not in classes]
        if unknown:
            unusable[row] = shorten(repr(unknown[0]))
    notes = note_oddities(counts, given, remedy="correct the column")
    return Labels(classes=classes, values=held, unusable=unusable, kind="tags", notes=notes)


def _mark_tags(
    tags_of_row: Sequence[Sequence[str] | None], classes: Sequence[str]
) -> npt.NDArray[np.int8]:
    """Which tags each row has, as ``Labels`` holds them: [B, C].

    A row without a label, and one with a tag that is none of the classes, is ``UNKNOWN``.
    """
    index = {name: number for number, name in enumerate(classes)}
    held = np.zeros((len(tags_of_row), len(classes)), np.int8)
    for start in range(0, len(tags_of_row), _MARKED_ROWS):
        part, of_rows = (
            held[start : start + _MARKED_ROWS],
            tags_of_row[start : start + _MARKED_ROWS],
        )
        rows = np.repeat(np.arange(len(part)), [len(tags or ()) for tags in of_rows])
        columns = np.array(
            [index.get(tag, UNKNOWN) for tags in of_rows for tag in tags or ()], np.int64
        )
        part[rows[columns >= 0], columns[columns >= 0]] = 1
        part[rows[columns < 0]] = UNKNOWN
        part[[row for row, tags in enumerate(of_rows) if tags is None]] = UNKNOWN
    return held


def _list_parts(cell: Any, separator: str) -> list[Any]:
    """What a cell of tags holds, without what is blank or null."""
    if isinstance(cell, str):
        parts: list[Any] = [part.strip() for part in cell.split(separator)]
    else:
        parts = list(cell) if isinstance(cell, list | tuple | np.ndarray) else [cell]
    return [part for part in parts if not is_missing(part)]


def _read_numbers(settings: ValueLabel, values: Sequence[Any], source: str) -> Labels:
    numbers = np.full(len(values), np.nan)
    unusable: dict[int, str] = {}
    for row, value in enumerate(values):
        if is_missing(value):
            if not settings.optional:
                unusable[row] = _describe_value(value)
            continue
        try:
            numbers[row] = float(value)
        except (TypeError, ValueError, OverflowError):
            unusable[row] = f"not a number: {shorten(repr(value))}"
            continue
        if not np.isfinite(numbers[row]):
            numbers[row] = np.nan
            unusable[row] = f"not finite: {shorten(repr(value))}"
    words = Counter(value for value in map(values.__getitem__, unusable) if isinstance(value, str))
    return Labels(
        classes=(),
        values=numbers,
        unusable=unusable,
        kind="number",
        notes=note_missing_words(words),
    )


_READERS: Mapping[LabelKind, Callable[[ValueLabel, Sequence[Any], str], Labels]] = {
    "class": _read_classes,
    "tags": _read_tags,
    "number": _read_numbers,
}
_SEVERAL = {list: "a list", tuple: "a list", np.ndarray: "a list", dict: "an object"}
_SEVERAL |= {set: "a set", bytes: "bytes"}


def _is_name(value: Any) -> bool:
    """Whether a value that is not missing can name a class or tag, which files store as text."""
    return not isinstance(value, tuple(_SEVERAL)) and is_unicode(value)


def _describe_value(value: Any) -> str:
    """What stands in the place of a label, for a message."""
    if is_missing(value):
        return f"blank: {shorten(repr(value))}" if isinstance(value, str) and value else NO_VALUE
    what = _SEVERAL.get(type(value))
    return f"{what}, not one value: {shorten(repr(value))}" if what else shorten(repr(value))
