"""Labels from a column of the source: classes, tags or numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config import ColumnLabel, LabelKind, normalize_value
from pipeline.errors import DataError
from pipeline.prepare.labelers.base import UNKNOWN, Labels, shorten

if TYPE_CHECKING:
    import pandas as pd


class ColumnLabeler:
    """What a column of the source says.

    :param task: the task that the labels are for.
    :param settings: the column, and how it is to be read.
    """

    def __init__(self, task: str, settings: ColumnLabel) -> None:
        self._task = task
        self._settings = settings

    def label(
        self, frame: pd.DataFrame, texts: Sequence[str], assets: Mapping[str, Path]
    ) -> Labels:
        """Label every row. See ``Labeler.label``."""
        column = self._settings.column
        if column not in frame.columns:
            raise DataError(
                f"no column {column!r}; the source has {', '.join(map(repr, frame.columns))}",
                hint=f"correct prepare.labels.{self._task}.column",
            )
        return label_by_column(self._settings, frame[column].tolist())


def label_by_column(settings: ColumnLabel, values: Sequence[Any]) -> Labels:
    """Labels from the values of a column, of the kind that the settings tell.

    :param settings: the label's settings.
    :param values: what the column holds, [B].
    """
    labels = _READERS[settings.kind](settings, values)
    if not settings.optional:
        return labels
    unusable = {row: what for row, what in labels.unusable.items() if not _is_missing(values[row])}
    return replace(labels, unusable=unusable)


def _read_classes(settings: ColumnLabel, values: Sequence[Any]) -> Labels:
    """Class indices, through the label's mapping if it has one."""
    mapping = {normalize_value(k): normalize_value(v) for k, v in (settings.mapping or {}).items()}
    named = [normalize_value(v) if _is_usable(v) else None for v in values]
    named = [mapping.get(v, v) if v is not None else None for v in named]
    classes = settings.get_classes() or tuple(sorted({v for v in named if v is not None}))
    index = {name: number for number, name in enumerate(classes)}
    indices = np.array(
        [index.get(v, UNKNOWN) if v is not None else UNKNOWN for v in named], np.int32
    )
    unusable = {
        row: "no value" if _is_missing(values[row]) else shorten(repr(values[row]))
        for row in np.flatnonzero(indices == UNKNOWN).tolist()
    }
    return Labels(classes=classes, values=indices, unusable=unusable)


def _read_tags(settings: ColumnLabel, values: Sequence[Any]) -> Labels:
    """Which of the tags each row has: from a list, or from text with a separator.

    An empty list or text is a row that has none of them; a null is a row without a label.
    """
    named: list[list[str] | None] = []
    unusable: dict[int, str] = {}
    for row, value in enumerate(values):
        if isinstance(value, str):
            parts: list[Any] = [part.strip() for part in value.split(settings.separator)]
        elif _is_missing(value):
            unusable[row] = "no value"
            named.append(None)
            continue
        else:
            parts = list(value) if isinstance(value, list | tuple | np.ndarray) else [value]
        named.append([normalize_value(part) for part in parts if not _is_missing(part)])
    tags = {tag for row in named for tag in row or ()}
    classes = settings.get_classes() or tuple(sorted(tags))
    index = {name: number for number, name in enumerate(classes)}
    held = np.zeros((len(values), len(classes)), np.int8)
    for row, parts_of_row in enumerate(named):
        unknown = [tag for tag in parts_of_row or () if tag not in index]
        if unknown:
            unusable[row] = shorten(repr(unknown[0]))
        if parts_of_row is None or unknown:
            held[row] = UNKNOWN
        else:
            held[row, [index[tag] for tag in parts_of_row]] = 1
    return Labels(classes=classes, values=held, unusable=unusable, kind="tags")


def _read_numbers(settings: ColumnLabel, values: Sequence[Any]) -> Labels:
    numbers = np.full(len(values), np.nan)
    unusable: dict[int, str] = {}
    for row, value in enumerate(values):
        try:
            numbers[row] = float("nan" if _is_missing(value) else value)
        except (TypeError, ValueError):
            unusable[row] = f"not a number: {shorten(repr(value))}"
            continue
        if not np.isfinite(numbers[row]):
            numbers[row] = np.nan
            unusable[row] = "no value" if _is_missing(value) else f"not finite: {value!r}"
    return Labels(classes=(), values=numbers, unusable=unusable, kind="number")


_READERS: Mapping[LabelKind, Callable[[ColumnLabel, Sequence[Any]], Labels]] = {
    "class": _read_classes,
    "tags": _read_tags,
    "number": _read_numbers,
}


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and value != value)


def _is_usable(value: Any) -> bool:
    """JSON can hold half a surrogate pair, which no class name may be: no file can store it."""
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return False
    return not _is_missing(value)
