"""Which part each row is in: training, validation, test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config import GivenSplit, SplitSettings, normalize_value
from pipeline.console import count, warn
from pipeline.corpus.tables import PARTS
from pipeline.errors import DataError
from pipeline.prepare.labelers.base import Labels, is_missing, shorten

Parts = npt.NDArray[np.int8]  # the index in ``PARTS`` of each row's part, or ``LEFT_OUT``: [B]
LEFT_OUT = -1
_TRAIN = PARTS.index("train")
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
    return np.array([part_of_value[_simplify(cell)] for cell in cells], np.int8)


def split_rows(
    keys: Sequence[bytes],
    labels: Mapping[str, Labels],
    settings: SplitSettings,
    given: Parts | None = None,
) -> Parts:
    """Assign each row to a part: by a random draw, or as it is given.

    With shares of 0.7, 0.15, 0.15 and seed 0 the draw is exactly the notebook's pair of calls to
    scikit-learn's ``train_test_split``.

    :param keys: the key of each row, [B], the same for texts that count as one; with
        ``keep_duplicates_together`` the distinct ones are split.
    :param labels: the tasks that ``stratify_by`` names.
    :param settings: the shares of the parts, or how they are given, and how rows are drawn.
    :param given: the part of each row, none left out, if the settings are a ``GivenSplit``; out of
        its training rows validation rows are drawn if no value stands for those.
    :returns: the part of each row.
    :raises DataError: if there are too few rows for the parts, or too few of a stratum.
    """
    if given is None:
        given = np.full(len(keys), _TRAIN, np.int8)
    elif isinstance(settings, GivenSplit):
        _refuse_empty_parts(given, settings)
    split = given.copy()
    if settings.drawn_shares:
        train = np.flatnonzero(given == _TRAIN)
        split[train] = _draw_parts([keys[row] for row in train.tolist()], train, labels, settings)
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
    keys: Sequence[bytes],
    rows: npt.NDArray[np.int64],
    labels: Mapping[str, Labels],
    settings: SplitSettings,
) -> Parts:
    """Draw the part of some rows: [b].

    :param keys: the keys of these rows, [b].
    :param rows: the numbers of these rows, [b].
    """
    unit_of_row: npt.NDArray[np.int64] = np.arange(len(keys))
    if settings.keep_duplicates_together:
        numbers: dict[bytes, int] = {}
        unit_of_row = np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)
    units, first = np.unique(unit_of_row, return_index=True)
    first_row = rows[first]
    strata = _join_labels(labels, settings.stratify_by)[first_row] if settings.stratify_by else None
    part_of_unit = np.full(len(units), _TRAIN, np.int8)
    try:
        for part, drawn in _draw_units(units, strata, settings).items():
            part_of_unit[drawn] = PARTS.index(part)
    except ValueError as error:
        raise _describe_small_corpus(labels, first_row, strata, settings) from error
    return part_of_unit[unit_of_row]


def _draw_units(
    units: npt.NDArray[np.int64], strata: npt.NDArray[np.int64] | None, settings: SplitSettings
) -> dict[str, npt.NDArray[np.int64]]:
    """Draw the units that are not for training and, among these, those that are for testing.

    :param units: numbers of what is drawn: rows, or distinct texts, [N].
    :param strata: the stratum of each unit, [N]; ``None`` draws without strata.
    :returns: part → its units; later parts take theirs from those of earlier ones.
    :raises ValueError: if there are too few units, or too few of a stratum.
    """
    from sklearn.model_selection import train_test_split

    shares = settings.drawn_shares
    rest_share = round(sum(shares.values()), 12)
    _, rest = train_test_split(
        units, test_size=rest_share, random_state=settings.seed, stratify=strata
    )
    if "test" not in shares:
        return {"validation": rest}
    _, test = train_test_split(
        rest,
        test_size=round(shares["test"] / rest_share, 12),
        random_state=settings.seed,
        stratify=strata[rest] if strata is not None else None,
    )
    return {"validation": rest, "test": test}


def _describe_small_corpus(
    labels: Mapping[str, Labels],
    first_row: npt.NDArray[np.int64],
    strata: npt.NDArray[np.int64] | None,
    settings: SplitSettings,
) -> DataError:
    """What there is too little of: units altogether, or units of the rarest stratum.

    :param first_row: the first row of each unit, [N].
    :param strata: the stratum of each unit, [N].
    """
    noun = "distinct text" if settings.keep_duplicates_together else "row"
    drawn = settings.drawn_shares
    wanted = {"train": round(1 - sum(drawn.values()), 12), **drawn}
    shares = ", ".join(f"{part} {share:g}" for part, share in wanted.items())
    number = count(len(first_row), f"training {noun}" if isinstance(settings, GivenSplit) else noun)
    if strata is None:
        return DataError(
            f"too few rows to split: {number} cannot give every part at least one ({shares})",
            hint="give more rows, or change the shares in prepare.split",
        )
    _, first_unit, sizes = np.unique(strata, return_index=True, return_counts=True)
    row = first_row[first_unit[sizes.argmin()]]
    rarest = ", ".join(
        f"{name} = {labels[name].classes[value] if value >= 0 else 'none'}"
        for name in settings.stratify_by
        for value in [labels[name].values[row]]
    )
    return DataError(
        f"too few rows to split by {', '.join(settings.stratify_by)}: {rarest} has only "
        f"{sizes.min()} of {number}, and every part must have some ({shares})",
        hint="give more such rows, or take a label out of prepare.split.stratify_by",
    )


def _join_labels(labels: Mapping[str, Labels], names: Sequence[str]) -> npt.NDArray[np.int64]:
    """The stratum of each row: one number for each combination of the named labels, [B]."""
    stacked = np.stack([labels[name].values for name in names])
    return np.unique(stacked, axis=1, return_inverse=True)[1].reshape(-1)


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
