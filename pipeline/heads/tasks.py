"""What each head learns: its type, its classes, its loss and the weights in it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from pipeline.config import HeadsSettings, Metric, TaskSettings, Threshold
from pipeline.config_errors import suggest
from pipeline.console import warn
from pipeline.corpus.tables import LabelledRows, TaskLabels
from pipeline.errors import DataError, SettingsError
from pipeline.heads.configurations import Configuration, FrozenDict
from pipeline.heads.losses import LossOptions
from pipeline.heads.task_types import TARGET_TYPES, LabelSummary, TargetType
from pipeline.losses import list_losses, make_loss
from pipeline.model.tasks import TASK_TYPES


@dataclass(frozen=True)
class Task:
    """What one head learns.

    :param name: the name of its label.
    :param type: its type, a key of ``TASK_TYPES`` and of ``TARGET_TYPES``.
    :param classes: C names in the order of their index; none of a regression.
    :param labels: the labels of its training rows in numbers.
    :param loss_weight: the factor of its loss in the sum over all tasks.
    :param metric: what its configurations are chosen by.
    :param threshold: the setting of a type with thresholds.
    :param settings: its settings, which a configuration changes in part.
    :param kept: those of them that no configuration changes: name → value.
    """

    name: str
    type: str
    classes: tuple[str, ...] = ()
    labels: LabelSummary = field(default_factory=LabelSummary)
    loss_weight: float = 1.0
    metric: Metric = "loss"
    threshold: Threshold = 0.5
    settings: TaskSettings = field(default=TaskSettings(), compare=False)
    kept: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def target(self) -> TargetType:
        """How heads of its type learn."""
        return TARGET_TYPES[self.type]

    @property
    def outputs(self) -> int:
        """O, the number of logits of its head."""
        return TASK_TYPES[self.type].count_outputs(len(self.classes))

    @property
    def weight_rows(self) -> int:
        """R, the number of rows of its head's weight: O, or 1 that all logits share."""
        return TASK_TYPES[self.type].count_weight_rows(len(self.classes))

    @property
    def thresholds_are_chosen(self) -> bool:
        """Whether configurations are judged by tags above thresholds of their own."""
        return self.has_tags and isinstance(self.threshold, str)

    @property
    def has_tags(self) -> bool:
        """Whether a row has any number of its classes."""
        kind = TASK_TYPES[self.type]
        return kind.has_thresholds and kind.positive_class is None

    def adapt(self, configuration: Configuration) -> Configuration:
        """A configuration as it is for this task, whose own settings it may have to leave alone.

        :param configuration: a configuration for all tasks.
        """
        if not self.kept:
            return configuration
        changes = FrozenDict({**configuration.loss_changes, **self.kept})
        return replace(configuration, loss_changes=changes)


def make_tasks(
    settings: Mapping[str, TaskSettings] | None,
    rows: LabelledRows,
    kept: Collection[str] = (),
) -> list[Task]:
    """The tasks that the settings ask for, checked against the labels.

    :param settings: the settings of each task by its name; ``None`` makes a task of every label.
    :param rows: the corpus; class weights and checks look at its training rows only.
    :param kept: the settings that no configuration changes where a task gives them.
    :raises SettingsError: if there is no task, a task has no label, or its type or weights do not
        fit its classes.
    :raises DataError: if its training rows have no label, fewer than two classes, or one number.
    """
    chosen = settings if settings is not None else {name: TaskSettings() for name in rows.tasks}
    if not chosen:
        raise SettingsError(
            "prepare.labels: the corpus has no labels, so there is no head to train",
            hint="add a task by `pipeline init --task NAME=COLUMN` or in prepare.labels, then run "
            "`pipeline prepare`",
        )
    return [_make_task(name, task, rows, kept) for name, task in chosen.items()]


def _make_task(
    name: str, settings: TaskSettings, rows: LabelledRows, kept: Collection[str]
) -> Task:
    if name not in rows.tasks:
        raise SettingsError(
            f"heads.tasks.{name}: no such label in cache/labels.parquet{suggest(name, rows.tasks)}",
            hint="correct the name, or run `pipeline prepare` again",
        )
    labels = rows.tasks[name]
    target = _choose_type(name, settings, labels)
    metrics = target.kind.choosing_metrics
    metric = settings.metric or metrics[0]
    _check_choice(name, "metric", metric, metrics, target.name)
    if settings.loss is not None:
        _check_choice(name, "loss", settings.loss, list_losses(target.name), target.name)
    train = rows.select("train")
    values = labels.values[train][labels.present[train]]
    if not len(values):
        raise DataError(
            f"task {name}: none of the {len(train):,} training rows has a label",
            hint="label some, or take the task out of heads.tasks",
        )
    task = Task(
        name,
        target.name,
        labels.classes,
        target.summarize(values, len(labels.classes)),
        loss_weight=settings.loss_weight,
        metric=cast(Metric, metric),
        threshold=settings.threshold,
        settings=settings,
        kept={
            key: value for key in kept if (value := getattr(settings, key)) not in ("auto", None)
        },
    )
    target.check_labels(name, task.classes, task.labels, labels.values[labels.present])
    resolve_loss(task, {})  # refuses class weights that do not fit
    for key in sorted(target.ignored):
        value = getattr(settings, key)
        if value != TaskSettings.model_fields[key].default:
            warn(f"heads.tasks.{name}.{key}: {value!r} does nothing for a {target.name} task")
    return task


def widen_tasks(tasks: Sequence[Task], rows: LabelledRows, parts: Sequence[str]) -> list[Task]:
    """The same tasks for heads that train on the rows of several parts.

    :param tasks: the tasks as they are for the training rows.
    :param rows: the corpus.
    :param parts: the names of the parts.
    """
    chosen = rows.select(*parts)
    widened = []
    for task in tasks:
        labels = rows.tasks[task.name]
        values = labels.values[chosen][labels.present[chosen]]
        summary = task.target.summarize(values, len(task.classes))
        widened.append(replace(task, labels=summary))
    return widened


def _choose_type(name: str, settings: TaskSettings, labels: TaskLabels) -> TargetType:
    if settings.type is None:
        return next(target for target in TARGET_TYPES.values() if target.suits(labels))
    target = TARGET_TYPES[settings.type]
    kind = target.kind.label_kind
    if kind != labels.kind:
        raise SettingsError(
            f"heads.tasks.{name}.type: {target.name} is for labels that hold {kind}, the one in "
            f"cache/labels.parquet holds {labels.kind}",
            hint="correct it, or run `pipeline prepare` again",
        )
    target.check_classes(name, labels.classes)
    return target


def _check_choice(name: str, key: str, value: str, known: Sequence[str], kind: str) -> None:
    if value not in known:
        raise SettingsError(
            f"heads.tasks.{name}.{key}: must be one of {', '.join(known)} for a "
            f"{kind} task, got {value!r}"
        )


def resolve_loss(task: Task, changes: Mapping[str, Any]) -> LossOptions:
    """How a task's rows count under the changes that a configuration makes to its settings.

    :param task: the task.
    :param changes: values of ``loss``, ``class_weights`` and other settings of the task, by name;
        a loss that does not serve the task's type leaves the task's own.
    """
    settings = task.settings.model_copy(
        update={key: value for key, value in {**changes, **task.kept}.items() if value is not None}
    )
    served = list_losses(task.type)
    name = next(loss for loss in (settings.loss, task.settings.loss, served[0]) if loss in served)
    formula = make_loss(name, dict(settings))
    return task.target.resolve_options(formula, settings, task.name, task.classes, task.labels)


def check_search(tasks: Sequence[Task], settings: HeadsSettings) -> None:
    """Refuse values of the search that no task takes.

    :param tasks: all tasks.
    :param settings: the settings of the heads.
    :raises SettingsError: naming the grid and the key.
    """
    if settings.search == "auto":
        return
    for number, grid in enumerate(settings.grids):
        for loss in grid.loss or ():
            if not any(loss in list_losses(task.type) for task in tasks):
                types = dict.fromkeys(task.type for task in tasks)
                served = [f"a {kind} task takes {', '.join(list_losses(kind))}" for kind in types]
                raise SettingsError(
                    f"heads.search.{number}.loss: no task takes {loss!r}", hint="; ".join(served)
                )
        for weights in grid.class_weights or ():
            for task in tasks:
                task.target.compute_class_weights(weights, task.name, task.classes, task.labels)
