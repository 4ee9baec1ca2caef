"""Which part each row is in: training, validation, test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from pipeline.config import SplitSettings
from pipeline.console import count
from pipeline.corpus.tables import PARTS
from pipeline.errors import DataError
from pipeline.prepare.labelers.base import Labels


def split_rows(
    keys: Sequence[bytes], labels: Mapping[str, Labels], settings: SplitSettings
) -> npt.NDArray[np.int8]:
    """Assign each row to a part in two random draws: the training rows, then those for testing.

    With shares of 0.7, 0.15, 0.15 and seed 0 this is exactly the notebook's pair of calls to
    scikit-learn's ``train_test_split``.

    :param keys: the key of each row, [B], the same for texts that count as one; with
        ``keep_duplicates_together`` the distinct ones are split.
    :param labels: the tasks that ``stratify_by`` names.
    :param settings: the shares of the parts, and how rows are drawn.
    :returns: int8, [B]: the index of the part in ``PARTS``.
    :raises DataError: if there are too few rows for three parts, or too few of a stratum.
    """
    unit_of_row: npt.NDArray[np.int64] = np.arange(len(keys))
    if settings.keep_duplicates_together:
        numbers: dict[bytes, int] = {}
        unit_of_row = np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)
    units, first_row = np.unique(unit_of_row, return_index=True)
    strata = _join_labels(labels, settings.stratify_by)[first_row] if settings.stratify_by else None
    try:
        rest, test = _draw_parts(units, strata, settings)
    except ValueError as error:
        raise _describe_small_corpus(labels, first_row, strata, settings) from error
    part_of_unit = np.zeros(len(units), np.int8)
    part_of_unit[rest] = PARTS.index("validation")
    part_of_unit[test] = PARTS.index("test")
    return part_of_unit[unit_of_row]


def _draw_parts(
    units: npt.NDArray[np.int64], strata: npt.NDArray[np.int64] | None, settings: SplitSettings
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Draw the units that are not for training and, among these, those that are for testing.

    :param units: numbers of what is drawn: rows, or distinct texts, [N].
    :param strata: the stratum of each unit, [N]; ``None`` draws without strata.
    :returns: the units that are for validation or testing, and those that are for testing.
    :raises ValueError: if there are too few units, or too few of a stratum.
    """
    from sklearn.model_selection import train_test_split

    rest_share = round(settings.validation + settings.test, 12)
    test_share = round(settings.test / rest_share, 12)
    _, rest = train_test_split(
        units, test_size=rest_share, random_state=settings.seed, stratify=strata
    )
    _, test = train_test_split(
        rest,
        test_size=test_share,
        random_state=settings.seed,
        stratify=strata[rest] if strata is not None else None,
    )
    return rest, test


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
    number = count(len(first_row), "distinct text" if settings.keep_duplicates_together else "row")
    shares = ", ".join(f"{part} {getattr(settings, part):g}" for part in PARTS)
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
