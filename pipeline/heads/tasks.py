"""What each head learns: its type, its classes, its loss and the weights in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config import (
    ClassWeights,
    HeadsSettings,
    Loss,
    Metric,
    TaskSettings,
    TaskType,
    Threshold,
    normalize_value,
)
from pipeline.config_errors import suggest
from pipeline.console import warn
from pipeline.corpus.tables import LabelledRows, TaskLabels
from pipeline.errors import DataError, SettingsError

METRICS: dict[TaskType, tuple[Metric, ...]] = {
    "binary": ("f1", "f1_macro", "accuracy", "roc_auc", "loss"),
    "multiclass": ("f1_macro", "accuracy", "loss"),
    "ordinal": ("mean_absolute_error", "accuracy", "f1_macro", "loss"),
    "multilabel": ("f1_macro", "f1_micro", "accuracy", "loss"),
    "regression": ("root_mean_squared_error", "mean_absolute_error", "r2", "loss"),
}
LOSSES: dict[TaskType, tuple[Loss, ...]] = {
    "binary": ("cross_entropy", "focal"),
    "multiclass": ("cross_entropy", "focal"),
    "ordinal": ("cross_entropy",),
    "multilabel": ("cross_entropy", "focal"),
    "regression": ("mse", "huber"),
}


@dataclass(frozen=True)
class LossOptions:
    """How one task's rows count; ``pipeline.heads.losses`` has the formulas.

    :param class_weights: C factors in the order of the class index, or ``None`` for all alike; of
        a multilabel task, the weight of a present tag against an absent one.
    """

    kind: Loss = "cross_entropy"
    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    logit_adjustment: float = 0.0
    huber_delta: float = 1.0


@dataclass(frozen=True)
class Task:
    """One head.

    :param type: ``binary`` has one logit, for class 1; ``multiclass`` one for each of C classes;
        ``multilabel`` one for each of C tags; ``ordinal`` C - 1, of being above each class but the
        last, which share their weights; ``regression`` one, the number itself.
    :param classes: C names; none of a regression.
    :param loss_weight: its factor in the sum of the losses.
    :param loss: how its rows count.
    :param counts: training rows of each class or tag, [C].
    :param rows: training rows that have a label.
    :param center: of a regression: the mean of its training labels.
    :param spread: of a regression: their deviation. The head learns (y - center) / spread.
    :param metric: what configurations are chosen by.
    :param threshold: of a binary or multilabel head: the setting.
    """

    name: str
    type: TaskType
    classes: tuple[str, ...] = ()
    loss_weight: float = 1.0
    loss: LossOptions = LossOptions()
    counts: tuple[int, ...] = ()
    rows: int = 0
    center: float = 0.0
    spread: float = 1.0
    metric: Metric = "loss"
    threshold: Threshold = 0.5
    settings: TaskSettings = field(default=TaskSettings(), compare=False)

    @property
    def outputs(self) -> int:
        """How many logits its head has."""
        C = len(self.classes)
        return {"multiclass": C, "multilabel": C, "ordinal": C - 1}.get(self.type, 1)

    @property
    def weight_rows(self) -> int:
        """How many rows its weight has: the logits of an ordinal head share one."""
        return 1 if self.type == "ordinal" else self.outputs


def make_tasks(settings: Mapping[str, TaskSettings] | None, rows: LabelledRows) -> list[Task]:
    """The tasks that the settings ask for, checked against the labels.

    :param settings: by name; ``None`` makes a task of every label.
    :param rows: the corpus; class weights and checks look at its training rows only.
    :raises SettingsError: if a task has no label, or its type or weights do not fit its classes.
    :raises DataError: if its training rows have no label, fewer than two classes, or one number.
    """
    chosen = settings if settings is not None else {name: TaskSettings() for name in rows.tasks}
    return [_make_task(name, task, rows) for name, task in chosen.items()]


def _make_task(name: str, settings: TaskSettings, rows: LabelledRows) -> Task:
    if name not in rows.tasks:
        raise SettingsError(
            f"heads.tasks.{name}: no such label in cache/labels.parquet{suggest(name, rows.tasks)}",
            hint="correct the name, or run `pipeline prepare` again",
        )
    labels = rows.tasks[name]
    kind = _choose_type(name, settings, labels)
    metric = settings.metric or METRICS[kind][0]
    _check_choice(name, "metric", metric, METRICS[kind], kind)
    _check_choice(name, "loss", settings.loss or LOSSES[kind][0], LOSSES[kind], kind)
    train = rows.select("train")
    present = labels.values[train][labels.present[train]]
    if not len(present):
        raise DataError(
            f"task {name}: none of the {len(train):,} training rows has a label",
            hint="label some, or take the task out of heads.tasks",
        )
    task = Task(
        name,
        kind,
        labels.classes,
        loss_weight=settings.loss_weight,
        counts=_count_classes(labels, present),
        rows=len(present),
        metric=metric,
        threshold=settings.threshold,
        settings=settings,
    )
    if kind == "regression":
        task = replace(task, center=float(present.mean()), spread=float(present.std()))
    _check_labels(task, labels, present)
    return replace(task, loss=resolve_loss(task, {}))


def _choose_type(name: str, settings: TaskSettings, labels: TaskLabels) -> TaskType:
    C = len(labels.classes)
    by_kind: dict[str, TaskType] = {"tags": "multilabel", "number": "regression"}
    kind = settings.type or by_kind.get(labels.kind) or ("binary" if C == 2 else "multiclass")
    if kind == "binary" and C != 2:
        raise SettingsError(
            f"heads.tasks.{name}.type: binary needs two classes, the label has "
            f"{C}: {', '.join(labels.classes[:20])}",
            hint="set it to multiclass",
        )
    return kind


def _check_choice(name: str, key: str, value: str, known: Sequence[str], kind: TaskType) -> None:
    if value not in known:
        raise SettingsError(
            f"heads.tasks.{name}.{key}: must be one of {', '.join(known)} for a "
            f"{kind} task, got {value!r}"
        )


def _count_classes(labels: TaskLabels, present: npt.NDArray[Any]) -> tuple[int, ...]:
    if labels.kind == "number":
        return ()
    if labels.kind == "tags":
        return tuple((present == 1).sum(axis=0).tolist())
    return tuple(np.bincount(present, minlength=len(labels.classes)).tolist())


def _check_labels(task: Task, labels: TaskLabels, present: npt.NDArray[Any]) -> None:
    """Refuse what no head can learn; say which classes it cannot."""
    number = f"all {len(present):,} training rows are"
    if task.type == "regression":
        if task.spread <= 1e-12 * max(1.0, abs(task.center)):
            raise DataError(
                f"task {task.name}: {number} {task.center:g}; a head needs numbers that differ",
                hint="give other rows, or take the task out of heads.tasks",
            )
        return
    counts = np.array(task.counts)
    if task.type != "multilabel" and np.count_nonzero(counts) < 2:
        only = task.classes[int(counts.argmax())]
        raise DataError(
            f"task {task.name}: {number} {only!r}; a head needs two classes",
            hint="give rows of the other classes, or use prepare.split.stratify_by",
        )
    absent = np.flatnonzero(counts == 0)
    for index in absent[:5]:
        warn(
            f"task {task.name}: no training row is {task.classes[index]!r}, so its head cannot "
            "learn it"
        )
    if len(absent) > 5:
        warn(f"task {task.name}: nor are there any of {len(absent) - 5:,} other classes")


def resolve_loss(task: Task, changes: Mapping[str, Any]) -> LossOptions:
    """What a task's rows count, under the changes that a configuration makes to its settings.

    :param changes: ``loss``, ``class_weights``, ``label_smoothing``, ``focal_gamma``,
        ``logit_adjustment``; what does not fit the task's type leaves it as it is.
    """
    settings = task.settings.model_copy(
        update={key: value for key, value in changes.items() if value is not None}
    )
    kind = settings.loss or LOSSES[task.type][0]
    if kind not in LOSSES[task.type]:
        kind = task.settings.loss or LOSSES[task.type][0]
    if task.type == "regression":
        return LossOptions(kind=kind, huber_delta=settings.huber_delta)
    weights = compute_class_weights(
        settings.class_weights,
        task.classes,
        np.array(task.counts),
        task.name,
        beta=settings.effective_number_beta,
        rows=task.rows if task.type == "multilabel" else None,
    )
    ordinal = task.type == "ordinal"
    return LossOptions(
        kind=kind,
        class_weights=weights,
        label_smoothing=0.0 if ordinal else settings.label_smoothing,
        focal_gamma=settings.focal_gamma if kind == "focal" else 0.0,
        logit_adjustment=0.0 if ordinal else settings.logit_adjustment,
    )


def compute_class_weights(
    setting: ClassWeights,
    classes: tuple[str, ...],
    counts: npt.NDArray[np.int64],
    task: str,
    *,
    beta: float = 0.999,
    rows: int | None = None,
) -> tuple[float, ...] | None:
    """The weight of each class, in the order of the class index.

    ``balanced`` is n / (C * n_c), as scikit-learn's ``compute_class_weight`` has it.
    ``effective_number`` is (1 - beta) / (1 - beta**n_c), scaled to add up to the number of classes.
    ``pos_weight`` of two classes is 1 and n_0 / n_1. A class that no training row has gets 0.

    Sources: King, Zeng (2001), Logistic regression in rare events data; Cui et al. (2019),
    Class-balanced loss based on effective number of samples.

    :param counts: training rows of each class, [C].
    :param beta: of ``effective_number``, 0 to 1.
    :param rows: of a multilabel task, whose weights are of a present tag against an absent one:
        how many training rows it has. ``balanced`` and ``pos_weight`` are then (n - n_c) / n_c.
    :raises SettingsError: if given weights do not name just these classes, or the setting does not
        fit the task.
    """
    if setting == "none":
        return None
    present = counts > 0
    weights = np.zeros(len(counts))
    if isinstance(setting, dict):
        given = {normalize_value(name): weight for name, weight in setting.items()}
        if set(given) != set(classes):
            raise SettingsError(
                f"heads.tasks.{task}.class_weights: must give a weight for each of "
                f"{', '.join(classes)}, got {', '.join(sorted(given))}"
            )
        return tuple(given[name] for name in classes)
    if rows is not None and setting != "effective_number":
        weights = np.where(present, (rows - counts) / np.maximum(counts, 1), 1.0)
    elif setting == "balanced":
        weights[present] = counts.sum() / (np.count_nonzero(present) * counts[present])
    elif setting == "effective_number":
        weights[present] = (1 - beta) / (1 - beta ** counts[present].astype(np.float64))
        weights *= np.count_nonzero(present) / weights.sum()
    elif len(counts) == 2:
        weights = np.array([1.0, counts[0] / max(counts[1], 1)])
    else:
        raise SettingsError(
            f"heads.tasks.{task}.class_weights: pos_weight needs two classes or tags, "
            f"the label has {len(counts)} classes",
            hint="set it to balanced",
        )
    return tuple(weights.tolist())


def check_search(tasks: Sequence[Task], settings: HeadsSettings) -> None:
    """Refuse values of the search that no task takes.

    :raises SettingsError: naming the grid and the key.
    """
    for number, grid in enumerate(settings.grids):
        for loss in grid.loss or ():
            if not any(loss in LOSSES[task.type] for task in tasks):
                raise SettingsError(
                    f"heads.search.{number}.loss: no task takes {loss!r}",
                    hint="set it to cross_entropy or focal, or of a regression to mse or huber",
                )
        for weights in grid.class_weights or ():
            for task in tasks:
                if task.type != "regression":
                    compute_class_weights(
                        weights,
                        task.classes,
                        np.array(task.counts),
                        task.name,
                        rows=task.rows if task.type == "multilabel" else None,
                    )
