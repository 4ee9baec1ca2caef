"""Which part each row is in: training, validation, test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.arrays import find_first, take_values
from pipeline.config import GivenSplit, SplitSettings, normalize_value
from pipeline.console import count, warn
from pipeline.corpus.draw import TRAIN, Parts, draw_parts
from pipeline.corpus.tables import PARTS
from pipeline.errors import DataError
from pipeline.prepare.labelers.base import Labels, is_missing, shorten

LEFT_OUT = -1  # the part of a row that is not to be used
_NAMED_VALUES = 10  # of the column of the parts, in a message


def read_parts(cells: Sequence[Any], settings: GivenSplit) -> Parts:
    """Read the part of each row from a column of the source.

    :param cells: the values of the column, [B].
    :param settings: the values that stand for each part.
    :returns: the part of each row; ``LEFT_OUT`` where a row is not to be used.
    :raises DataError: if a value stands for nothing, naming those and how many rows have each.
    """
    part_of_value = {
        _simplify(value): index
        for index, name in [*enumerate(PARTS), (LEFT_OUT, "leave_out")]
        for value in getattr(settings, name)
    }
    rows_of_value = Counter(map(_simplify, cells))
    unlisted = Counter({v: n for v, n in rows_of_value.items() if v not in part_of_value})
    if unlisted:
        raise DataError(
            f"column {settings.column!r}: {count(unlisted.total(), 'row')} with a value that no "
            f"list of prepare.split has: {_list_counts(unlisted)}",
            hint="add each value to train, validation, test or leave_out in prepare.split",
        )
    for value in part_of_value:
        if value not in rows_of_value:
            warn(f"prepare.split: no row has {value!r} in the column {settings.column!r}")
    found = (part_of_value[_simplify(cell)] for cell in cells)
    return np.fromiter(found, np.int8, len(cells))


def split_rows(
    alike: npt.NDArray[np.integer],
    labels: Mapping[str, Labels],
    settings: SplitSettings,
    given: Parts | None = None,
) -> Parts:
    """Assign each row to a part: by a random draw, or as it is given.

    With shares of 0.7, 0.15, 0.15 and seed 0 the draw is exactly the notebook's pair of calls to
    scikit-learn's ``train_test_split``.

    :param alike: a number of each row, from 0 to B - 1, [B], the same for texts that count as one;
        with ``keep_duplicates_together`` the distinct ones are split.
    :param labels: the tasks that ``stratify_by`` names.
    :param settings: the shares of the parts, or how they are given, and how rows are drawn.
    :param given: the part of each row, none left out, if the settings are a ``GivenSplit``; out of
        its training rows validation rows are drawn if no value stands for those.
    :returns: the part of each row.
    :raises DataError: if there are too few rows for the parts, or too few of a stratum.
    """
    if given is None:
        given = np.full(len(alike), TRAIN, np.int8)
    elif isinstance(settings, GivenSplit):
        _refuse_empty_parts(given, settings)
    split = given.copy()
    if settings.drawn_shares:
        train = np.flatnonzero(given == TRAIN).astype(np.int32)
        units = take_values(alike, train) if settings.keep_duplicates_together else None
        split[train] = _draw_parts(units, train, labels, settings)
    return split


def _refuse_empty_parts(given: Parts, settings: GivenSplit) -> None:
    """Refuse a part that values stand for and no usable row is in.

    :raises DataError: naming the first such part.
    """
    for index, name in enumerate(PARTS):
        values = getattr(settings, name)
        if values and not (given == index).any():
            listed = " or ".join(repr(_simplify(value)) for value in values)
            raise DataError(
                f"no {name} rows: no usable row has {listed} in the column {settings.column!r}",
                hint=f"correct prepare.split.{name}"
                + ("" if name == "train" else ", or set it to [] to do without"),
            )


def _draw_parts(
    alike: npt.NDArray[np.integer] | None,
    rows: npt.NDArray[np.int32],
    labels: Mapping[str, Labels],
    settings: SplitSettings,
) -> Parts:
    """Draw the part of some rows: [b].

    :param alike: what is the same for rows that count as one, [b]; ``None`` if none do.
    :param rows: the numbers of these rows, [b].
    """
    if alike is None:
        return draw_parts(rows, None, labels, settings, "row")
    first = take_values(find_first(alike), alike)  # of the rows that count as one with each
    # Units are drawn by their numbers, which are those of the order of their first rows.
    numbers = np.cumsum(first == np.arange(len(first), dtype=np.int32), dtype=np.int32)
    numbers -= 1
    units = take_values(numbers, first, into=first)
    return draw_parts(rows, units, labels, settings, "distinct text")


def _simplify(cell: Any) -> str:
    """A value of the column of the parts as text, without blanks around it; empty for none."""
    return "" if is_missing(cell) else normalize_value(cell).strip()


def _list_counts(rows_of_value: Counter[str]) -> str:
    """The most frequent of some values with their numbers of rows, and how many more there are."""
    listed = ", ".join(
        f"{shorten(repr(value)) if value else 'no value'} ({rows:,})"
        for value, rows in rows_of_value.most_common(_NAMED_VALUES)
    )
    more = len(rows_of_value) - _NAMED_VALUES
    return listed + (f" and {more:,} more" if more > 0 else "")
