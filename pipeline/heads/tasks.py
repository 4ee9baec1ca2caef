"""What each head learns: its classes, its share of the loss, the weights of its classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.config import TaskSettings, normalize_value
from pipeline.config_errors import suggest
from pipeline.console import warn
from pipeline.corpus import LabelledRows
from pipeline.errors import DataError, SettingsError


@dataclass(frozen=True)
class Task:
    """One head.

    :param type: ``binary`` has one logit, for class 1; ``multiclass`` one for each of C classes.
    :param loss_weight: its factor in the sum of the losses.
    :param class_weights: C factors in the order of the class index, or ``None`` for all alike.
    """

    name: str
    type: Literal["binary", "multiclass"]
    classes: tuple[str, ...]
    loss_weight: float = 1.0
    class_weights: tuple[float, ...] | None = None

    @property
    def outputs(self) -> int:
        """How many logits its head has."""
        return 1 if self.type == "binary" else len(self.classes)


def make_tasks(settings: Mapping[str, TaskSettings] | None, rows: LabelledRows) -> list[Task]:
    """The tasks that the settings ask for, checked against the labels.

    :param settings: by name; ``None`` makes a task of every label.
    :param rows: the corpus; class weights and checks look at its training rows only.
    :raises SettingsError: if a task has no label, or its type or weights do not fit its classes.
    :raises DataError: if its training rows have fewer than two classes.
    """
    chosen = settings if settings is not None else {name: TaskSettings() for name in rows.tasks}
    return [_make_task(name, task, rows) for name, task in chosen.items()]


def _make_task(name: str, settings: TaskSettings, rows: LabelledRows) -> Task:
    if name not in rows.tasks:
        raise SettingsError(
            f"params.yaml: heads.tasks.{name}: no such label in cache/labels.parquet"
            f"{suggest(name, rows.tasks)}",
            hint="correct the name, or run `pipeline prepare` again",
        )
    classes = rows.tasks[name].classes
    kind = settings.type or ("binary" if len(classes) == 2 else "multiclass")
    if kind == "binary" and len(classes) != 2:
        raise SettingsError(
            f"params.yaml: heads.tasks.{name}.type: binary needs two classes, the label has "
            f"{len(classes)}: {', '.join(classes)}",
            hint="set it to multiclass",
        )
    labels = rows.tasks[name].indices[rows.select("train")]
    counts = np.bincount(labels, minlength=len(classes))
    if np.count_nonzero(counts) < 2:
        only = classes[int(counts.argmax())]
        raise DataError(
            f"task {name}: all {len(labels):,} training rows are {only!r}; a head needs two "
            "classes",
            hint="give rows of the other classes, or use prepare.split.stratify_by",
        )
    for index in np.flatnonzero(counts == 0):
        warn(f"task {name}: no training row is {classes[index]!r}, so its head cannot learn it")
    weights = compute_class_weights(settings.class_weights, classes, counts, name)
    return Task(name, kind, classes, settings.loss_weight, weights)


def compute_class_weights(
    setting: Literal["none", "balanced"] | Mapping[str | int | bool, float],
    classes: tuple[str, ...],
    counts: npt.NDArray[np.int64],
    task: str,
) -> tuple[float, ...] | None:
    """The weight of each class, in the order of the class index.

    ``balanced`` is n / (C * n_c), as scikit-learn's ``compute_class_weight`` has it; a class that
    no training row has gets 0. Source: King, Zeng (2001), Logistic regression in rare events data.

    :param counts: training rows of each class, [C].
    :raises SettingsError: if given weights do not name just these classes.
    """
    if setting == "none":
        return None
    if setting == "balanced":
        present = counts > 0
        weights = np.zeros(len(counts))
        weights[present] = counts.sum() / (np.count_nonzero(present) * counts[present])
        return tuple(weights.tolist())
    given = {normalize_value(name): weight for name, weight in setting.items()}
    if set(given) != set(classes):
        raise SettingsError(
            f"params.yaml: heads.tasks.{task}.class_weights: must give a weight for each of "
            f"{', '.join(classes)}, got {', '.join(sorted(given))}"
        )
    return tuple(given[name] for name in classes)
