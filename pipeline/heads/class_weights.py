"""The weight of each class in the loss, from the settings and the classes' training rows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from pipeline.config import ClassWeights, normalize_value
from pipeline.errors import SettingsError

Weights = tuple[float, ...]


def compute_class_weights(
    setting: ClassWeights,
    classes: tuple[str, ...],
    counts: npt.NDArray[np.int64],
    task: str,
    *,
    beta: float = 0.999,
) -> Weights | None:
    """The weight of each of C classes that exclude each other, in the order of the class index.

    ``balanced`` is n / (C n_c), as scikit-learn's ``compute_class_weight`` has it.
    ``effective_number`` is (1 - β) / (1 - β**n_c), scaled to add up to the number of classes.
    ``pos_weight`` of two classes is 1 and n_0 / n_1. A class without training rows weighs 0.

    Sources: King, Zeng (2001), Logistic regression in rare events data; Cui et al. (2019),
    Class-balanced loss based on effective number of samples.

    :param setting: the task's ``class_weights``.
    :param classes: the C class names in the order of their index.
    :param counts: the training rows of each class, [C].
    :param task: the task's name, for messages.
    :param beta: β of ``effective_number``, between 0 and 1.
    :returns: C weights, or ``None`` for all alike.
    :raises SettingsError: if given weights do not name just these classes, or the setting does not
        fit the task.
    """
    if setting == "none":
        return None
    if isinstance(setting, dict):
        return _read_weights(setting, classes, task)
    if setting == "balanced":
        present = counts > 0
        weights = np.zeros(len(counts))
        weights[present] = counts.sum() / (np.count_nonzero(present) * counts[present])
        return tuple(weights.tolist())
    if setting == "effective_number":
        return _compute_effective_weights(counts, beta)
    if len(counts) != 2:
        raise SettingsError(
            f"heads.tasks.{task}.class_weights: pos_weight needs two classes or tags, "
            f"the label has {len(counts)} classes",
            hint="set it to balanced",
        )
    return 1.0, float(counts[0] / max(counts[1], 1))


def compute_tag_weights(
    setting: ClassWeights,
    tags: tuple[str, ...],
    counts: npt.NDArray[np.int64],
    rows: int,
    task: str,
    *,
    beta: float = 0.999,
) -> Weights | None:
    """The weight of a row that has a tag against one without it, for each of C tags.

    ``balanced`` and ``pos_weight`` are both (n - n_c) / n_c, and 1 for a tag that no row has;
    ``effective_number`` is as for classes.

    :param setting: the task's ``class_weights``.
    :param tags: the C tags in the order of their index.
    :param counts: the training rows of each tag, [C].
    :param rows: n, the training rows that have a label.
    :param task: the task's name, for messages.
    :param beta: β of ``effective_number``, between 0 and 1.
    :returns: C weights, or ``None`` for all alike.
    :raises SettingsError: if given weights do not name just these tags.
    """
    if setting == "none":
        return None
    if isinstance(setting, dict):
        return _read_weights(setting, tags, task)
    if setting == "effective_number":
        return _compute_effective_weights(counts, beta)
    weights = np.where(counts > 0, (rows - counts) / np.maximum(counts, 1), 1.0)
    return tuple(weights.tolist())


def _read_weights(
    given: Mapping[str | int | float | bool, float], names: tuple[str, ...], task: str
) -> Weights:
    by_name = {normalize_value(name): weight for name, weight in given.items()}
    if set(by_name) != set(names):
        raise SettingsError(
            f"heads.tasks.{task}.class_weights: must give a weight for each of "
            f"{', '.join(names)}, got {', '.join(sorted(by_name))}"
        )
    return tuple(by_name[name] for name in names)


def _compute_effective_weights(counts: npt.NDArray[np.int64], beta: float) -> Weights:
    present = counts > 0
    weights = np.zeros(len(counts))
    weights[present] = (1 - beta) / (1 - beta ** counts[present].astype(np.float64))
    weights *= np.count_nonzero(present) / weights.sum()
    return tuple(weights.tolist())
