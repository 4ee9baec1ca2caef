"""Which part rows are drawn into, at random: rows by themselves, or groups of them together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.arrays import find_first, take_values
from pipeline.config import GivenSplit, SplitSettings
from pipeline.console import count
from pipeline.corpus.tables import PARTS
from pipeline.errors import DataError

Parts = npt.NDArray[np.int8]  # the index in ``PARTS`` of each row's part: [B]
TRAIN = PARTS.index("train")


class ClassLabels(Protocol):
    """Labels of one task: the names of its classes, and the index of the class of each row."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names in the order of their index."""
        ...

    @property
    def values(self) -> npt.NDArray[Any]:
        """An index for each row, negative for none: [B]."""
        ...


def draw_parts(
    rows: npt.NDArray[np.integer],
    unit_of_row: npt.NDArray[np.integer] | None,
    labels: Mapping[str, ClassLabels],
    settings: SplitSettings,
    noun: str,
) -> Parts:
    """Draw the part of some rows; those of one unit are drawn together.

    :param rows: the numbers of these rows, [b].
    :param unit_of_row: the number of the unit that each of them is of, [b]: from 0, and few
        numbers are left out; ``None`` if each is one by itself.
    :param labels: the tasks that ``stratify_by`` names, of all rows.
    :param settings: the shares of the parts and how they are drawn.
    :param noun: what a unit is called in a message.
    :returns: the part of each of the rows: [b].
    :raises DataError: if there are too few units for the parts, or too few of a stratum.
    """
    first_row, unit = rows, None
    if unit_of_row is not None:
        first = find_first(unit_of_row)
        is_used = first >= 0
        unit = unit_of_row
        if not is_used.all():
            unit = take_values(np.cumsum(is_used) - 1, unit_of_row)
            first = first[is_used]
        first_row = take_values(rows, first)
    units = np.arange(len(first_row), dtype=np.int32)
    strata = _join_labels(labels, settings.stratify_by)[first_row] if settings.stratify_by else None
    part_of_unit = np.full(len(units), TRAIN, np.int8)
    try:
        for part, drawn in _draw_units(units, strata, settings).items():
            part_of_unit[drawn] = PARTS.index(part)
    except ValueError as error:
        raise _describe_small_corpus(labels, first_row, strata, settings, noun) from error
    return part_of_unit if unit is None else take_values(part_of_unit, unit)


def _draw_units(
    units: npt.NDArray[np.int32], strata: npt.NDArray[np.int64] | None, settings: SplitSettings
) -> dict[str, npt.NDArray[np.int32]]:
    """Draw the units that are not for training and, among these, those that are for testing.

    :param units: numbers of what is drawn, from 0, [N].
    :param strata: the stratum of each unit, [N]; ``None`` draws without strata.
    :returns: part → its units; later parts take theirs from those of earlier ones.
    :raises ValueError: if there are too few units, or too few of a stratum.
    """
    shares = settings.drawn_shares
    rest_share = round(sum(shares.values()), 12)
    rest = _draw_share(units, rest_share, settings.seed, strata)
    if "test" not in shares:
        return {"validation": rest}
    test_share = round(shares["test"] / rest_share, 12)
    of_rest = strata[rest] if strata is not None else None
    return {"validation": rest, "test": _draw_share(rest, test_share, settings.seed, of_rest)}


def _draw_share(
    units: npt.NDArray[np.int32],
    share: float,
    seed: int,
    strata: npt.NDArray[np.int64] | None,
) -> npt.NDArray[np.int32]:
    """Draw a share of units, as the test part of scikit-learn's ``train_test_split``.

    Without strata that is the start of ``RandomState.permutation``, in half its memory, which needs
    neither the memory of the library nor the time of its import.

    :param share: what is drawn, above 0 and below 1.
    :param strata: the stratum of each unit, [N].
    :raises ValueError: if there are too few units, or too few of a stratum.
    """
    if strata is not None:
        from sklearn.model_selection import train_test_split

        drawn: npt.NDArray[np.int32] = train_test_split(
            units, test_size=share, random_state=seed, stratify=strata
        )[1]
        return drawn
    number = math.ceil(share * len(units))
    if number == len(units):
        raise ValueError("nothing is left")
    order = np.arange(len(units), dtype=np.int32)
    np.random.RandomState(seed).shuffle(order)
    return take_values(units, order[:number])


def _describe_small_corpus(
    labels: Mapping[str, ClassLabels],
    first_row: npt.NDArray[np.integer],
    strata: npt.NDArray[np.int64] | None,
    settings: SplitSettings,
    noun: str,
) -> DataError:
    """What there is too little of: units altogether, or units of the rarest stratum.

    :param first_row: the first row of each unit, [N].
    :param strata: the stratum of each unit, [N].
    """
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


def _join_labels(labels: Mapping[str, ClassLabels], names: Sequence[str]) -> npt.NDArray[np.int64]:
    """The stratum of each row: one number for each combination of the named labels, [B]."""
    stacked = np.stack([labels[name].values for name in names])
    return np.unique(stacked, axis=1, return_inverse=True)[1].reshape(-1)
