"""How heads of each type of task learn from its labels: targets, start, loss of each row.

A new type is a class here and an entry in ``TARGET_TYPES``, beside its entry in
``pipeline.model.tasks.TASK_TYPES``, which has what a head of that type puts out. This module
imports torch only where tensors come in, so that settings are checked before torch is loaded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import numpy.typing as npt

from pipeline.config import PLAIN_VALUES, ClassWeights, TaskSettings
from pipeline.console import warn
from pipeline.corpus.tables import TaskLabels
from pipeline.errors import DataError, SettingsError
from pipeline.heads.class_weights import Weights, compute_class_weights, compute_tag_weights
from pipeline.heads.losses import LossOptions, StackedOptions, map_fields
from pipeline.losses import ClassLoss, Loss, NumberLoss, OutputLoss
from pipeline.model.tasks import TASK_TYPES, TaskType

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.float32]
_SHOWN_CLASSES = 5
# The largest number that a regression learns: the squares of larger ones, summed over many rows,
# leave float64, in which figures are computed.
_LARGEST_NUMBER = 1e150
# The largest number of deviations that a label may be off: the squares of larger ones, summed over
# many rows, leave float32, in which losses are computed.
_FURTHEST = 1e15


@dataclass(frozen=True)
class LabelSummary:
    """The labels of the training rows in numbers.

    :param counts: training rows of each class or tag, C numbers; none of a regression.
    :param rows: training rows that have a label.
    :param center: the mean of a regression's training labels; 0 of other types.
    :param spread: their standard deviation; 1 of other types. The head of a regression learns
        (y - center) / spread, and both numbers are saved beside it: float32, in which heads learn,
        cannot tell numbers apart that are close to each other and far from 0.
    """

    counts: tuple[int, ...] = ()
    rows: int = 0
    center: float = 0.0
    spread: float = 1.0

    def restore(self, outputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Outputs of a regression in the unit of its labels, float64; other logits as they are.

        :param outputs: what heads put out, or labels as they are encoded: any shape.
        """
        if (self.center, self.spread) == (0.0, 1.0):
            return outputs
        restored: npt.NDArray[np.float64] = outputs.astype(np.float64) * self.spread + self.center
        return restored


@dataclass(frozen=True)
class Start:
    """Where a full-batch head starts from.

    :param bias: the biases at which a head without weights gives the shares of the classes among
        the training rows: float32, [O].
    :param curvature: the second derivative of cross-entropy there, the mean of p (1 - p), or of a
        squared error's half: by how much the loss bends when a logit changes.
    :param output_share: the share of a row's loss that one output has where each is judged by
        itself.
    """

    bias: Floats
    curvature: float
    output_share: float = 1.0


class TargetType(ABC):
    """One type of task, as something to learn.

    :cvar name: its name in ``TASK_TYPES``.
    :cvar ignored: the settings of a task that mean nothing for this type.
    """

    name: ClassVar[str]
    ignored: ClassVar[frozenset[str]] = frozenset()

    @property
    def kind(self) -> TaskType:
        """What heads of this type put out."""
        return TASK_TYPES[self.name]

    @abstractmethod
    def suits(self, labels: TaskLabels) -> bool:
        """Whether labels whose type the settings leave open are of this type."""

    def check_classes(self, task: str, classes: tuple[str, ...]) -> None:
        """Refuse classes that are too few, or too many, for this type.

        :param task: the task's name, for messages.
        :param classes: the C class names in the order of their index.
        :raises SettingsError: naming the task's ``type``.
        """
        fewest = self.kind.fewest_classes
        if len(classes) < fewest:
            raise SettingsError(
                f"heads.tasks.{task}.type: {self.name} needs {fewest} classes or more, the label "
                f"has {len(classes)}: {', '.join(classes)}",
                hint="give the label more classes, or take the task out of heads.tasks",
            )

    @abstractmethod
    def summarize(self, values: npt.NDArray[Any], C: int) -> LabelSummary:
        """The labels of the training rows in numbers.

        :param values: the labels of the n training rows that have one, [n] or [n, C].
        :param C: the number of classes or tags.
        """

    @abstractmethod
    def check_labels(
        self,
        task: str,
        classes: tuple[str, ...],
        labels: LabelSummary,
        values: npt.NDArray[Any],
    ) -> None:
        """Refuse what no head can learn, and warn of classes that none can.

        :param task: the task's name, for messages.
        :param classes: the C class names in the order of their index.
        :param labels: the training rows' labels in numbers.
        :param values: the labels of all rows that have one, those of the other parts too: [n] or
            [n, C].
        :raises DataError: if the training rows do not differ, or a number is so large that no
            figure could be computed of it.
        """

    @abstractmethod
    def compute_class_weights(
        self,
        setting: ClassWeights,
        task: str,
        classes: tuple[str, ...],
        labels: LabelSummary,
        beta: float = 0.999,
    ) -> Weights | None:
        """What ``class_weights`` comes to for this type: C weights, or ``None`` for all alike.

        :param setting: the task's ``class_weights``.
        :param task: the task's name, for messages.
        :param classes: the C class names in the order of their index.
        :param labels: the training rows' labels in numbers.
        :param beta: β of ``effective_number``.
        :raises SettingsError: if the setting does not fit the classes.
        """

    def resolve_options(
        self,
        formula: Loss,
        settings: TaskSettings,
        task: str,
        classes: tuple[str, ...],
        labels: LabelSummary,
    ) -> LossOptions:
        """The options of a task's loss that mean something for this type.

        :param formula: the loss.
        :param settings: the task's settings, with what a configuration changes in them.
        :param task: the task's name, for messages.
        :param classes: the C class names in the order of their index.
        :param labels: the training rows' labels in numbers.
        :raises SettingsError: if its class weights do not fit its classes.
        """
        weights = self.compute_class_weights(
            settings.class_weights, task, classes, labels, settings.effective_number_beta
        )
        factor: Any = settings.logit_adjustment
        if factor == "auto":
            factor = PLAIN_VALUES["logit_adjustment"]
        return LossOptions(formula, weights, settings.label_smoothing, factor)

    @abstractmethod
    def encode(self, values: npt.NDArray[Any], labels: LabelSummary) -> npt.NDArray[Any]:
        """Labels as ``compute_losses`` takes them.

        :param values: labels as ``TaskLabels`` holds them, [B] or [B, C].
        :param labels: the training rows' labels in numbers.
        """

    @abstractmethod
    def start(self, labels: LabelSummary) -> Start:
        """Where full-batch heads start from."""

    def weighs_outputs_alike(self, options: LossOptions) -> bool:
        """Whether the outputs of a row weigh alike in a loss that judges each by itself.

        :param options: the loss, and what classes weigh in it.
        """
        return True

    def measure_curvature(self, formula: Loss, labels: LabelSummary) -> float:
        """By how much a loss bends when a logit of a head without weights changes.

        :param formula: the loss.
        :param labels: the training rows' labels in numbers.
        """
        start = self.start(labels)
        if isinstance(formula, OutputLoss):
            return formula.curvature * start.output_share
        return formula.curvature * start.curvature

    def compute_log_shares(self, labels: LabelSummary) -> Floats | None:
        """What the factor τ of logit adjustment multiplies: float32, [O].

        Source: Menon et al. (2021), Long-tail learning via logit adjustment.

        :param labels: the training rows' labels in numbers.
        :returns: ``None`` for a type without logit adjustment.
        """
        return None

    @abstractmethod
    def compute_losses(
        self, logits: Tensor, labels: Tensor, options: StackedOptions
    ) -> tuple[Tensor, Tensor]:
        """The loss and the weight of each row under each of M models.

        :param logits: [B, M, O].
        :param labels: what ``encode`` makes of them, as a tensor.
        :param options: the options of the losses of M models.
        :returns: both [B, M]; a row without a label weighs 0.
        """


class _ClassTarget(TargetType):
    """What the types have in common whose rows are each of one class.

    The loss of M models is the mean over rows weighted by the rows' classes, sum(w l) / sum(w), as
    torch's ``CrossEntropyLoss`` has it.
    """

    def summarize(self, values: npt.NDArray[Any], C: int) -> LabelSummary:
        return LabelSummary(tuple(np.bincount(values, minlength=C).tolist()), len(values))

    def check_labels(
        self,
        task: str,
        classes: tuple[str, ...],
        labels: LabelSummary,
        values: npt.NDArray[Any],
    ) -> None:
        counts = np.array(labels.counts)
        if np.count_nonzero(counts) < 2:
            raise DataError(
                f"task {task}: all {labels.rows:,} training rows are "
                f"{classes[int(counts.argmax())]!r}; a head needs two classes",
                hint="give rows of the other classes, or use prepare.split.stratify_by",
            )
        _warn_of_absent_classes(task, classes, counts)

    def compute_class_weights(
        self,
        setting: ClassWeights,
        task: str,
        classes: tuple[str, ...],
        labels: LabelSummary,
        beta: float = 0.999,
    ) -> Weights | None:
        return compute_class_weights(setting, classes, np.array(labels.counts), task, beta=beta)

    def encode(self, values: npt.NDArray[Any], labels: LabelSummary) -> npt.NDArray[Any]:
        """The class index, -1 for none: int64, [B]."""
        return values.astype(np.int64)

    def compute_losses(
        self, logits: Tensor, labels: Tensor, options: StackedOptions
    ) -> tuple[Tensor, Tensor]:
        present = labels >= 0
        index = labels.clamp_min(0)
        is_of_outputs = isinstance(options.formula, OutputLoss)
        judge = self._judge_outputs if is_of_outputs else self._judge
        losses = judge(logits, index, options)
        if options.class_weights is None:
            return losses, present.to(logits.dtype)[:, None].expand(-1, logits.shape[1])
        weights = options.class_weights.T[index] * present[:, None]
        if options.smooths and not is_of_outputs:
            # With label smoothing each term has its own class's weight in it already, and only the
            # mean is over the rows' weights.
            losses = losses / weights.clamp_min(1e-12)
        return losses, weights

    @abstractmethod
    def _judge(self, logits: Tensor, index: Tensor, options: StackedOptions) -> Tensor:
        """The loss of each row: [B, M].

        :param index: the class of each row, int64, [B].
        """

    def _judge_outputs(self, logits: Tensor, index: Tensor, options: StackedOptions) -> Tensor:
        """The loss of each row where each output is judged by itself: [B, M]."""
        from torch.nn.functional import one_hot

        outputs = logits.shape[-1]
        hot = one_hot(index, outputs) if outputs > 1 else index[:, None]
        smoothing = options.label_smoothing[:, None]
        target = hot[:, None].to(logits.dtype) * (1 - smoothing) + smoothing / max(outputs, 2)
        formula = cast(OutputLoss, map_fields(options.formula, lambda value: value[:, None]))
        losses: Tensor = formula.compute(logits, target).sum(dim=-1)
        return losses


class BinaryTarget(_ClassTarget):
    """One of two classes. The loss is that of two classes with the logits 0 and z."""

    name = "binary"

    def suits(self, labels: TaskLabels) -> bool:
        return labels.kind == self.kind.label_kind and len(labels.classes) == 2

    def check_classes(self, task: str, classes: tuple[str, ...]) -> None:
        if len(classes) != 2:
            raise SettingsError(
                f"heads.tasks.{task}.type: binary needs two classes, the label has "
                f"{len(classes)}: {', '.join(classes[:20])}",
                hint="set it to multiclass",
            )

    def start(self, labels: LabelSummary) -> Start:
        counts = _floor_counts(labels)
        above = counts[1:] / counts.sum()
        return Start(_to_logits(above), float((above * (1 - above)).mean()))

    def compute_log_shares(self, labels: LabelSummary) -> Floats:
        """The logarithm of the odds of class 1."""
        counts = _floor_counts(labels)
        return np.log(counts[1:] / counts[:1]).astype(np.float32)

    def _judge(self, logits: Tensor, index: Tensor, options: StackedOptions) -> Tensor:
        from torch.nn.functional import softplus

        z, target = logits[..., 0], index[:, None].to(logits.dtype)
        soft = target
        if options.smooths:
            soft = target * (1 - options.label_smoothing) + options.label_smoothing / 2
        if options.smooths and options.class_weights is not None:
            absent, present = options.class_weights[:, 0], options.class_weights[:, 1]
            losses = softplus(-z) * soft * present + softplus(z) * (1 - soft) * absent
        else:
            losses = softplus(z) - soft * z
        formula = cast(ClassLoss, options.formula)
        result: Tensor = formula.compute(losses, lambda: ((1 - 2 * target) * z).sigmoid())
        return result


class MulticlassTarget(_ClassTarget):
    """One of C classes.

    With label smoothing ε the target is 1 - ε + ε / C for the true class and ε / C for the others.
    Source: Szegedy et al. (2016), Rethinking the Inception architecture.
    """

    name = "multiclass"
    ignored = frozenset({"threshold"})

    def suits(self, labels: TaskLabels) -> bool:
        return labels.kind == self.kind.label_kind and len(labels.classes) != 2

    def start(self, labels: LabelSummary) -> Start:
        counts = _floor_counts(labels)
        shares = counts / counts.sum()
        return Start(np.log(shares).astype(np.float32), float((shares * (1 - shares)).mean()))

    def compute_log_shares(self, labels: LabelSummary) -> Floats:
        counts = _floor_counts(labels)
        logs: Floats = np.log(counts / counts.sum()).astype(np.float32)
        return logs

    def _judge(self, logits: Tensor, index: Tensor, options: StackedOptions) -> Tensor:
        logs = logits.log_softmax(-1)
        true = logs.gather(2, index[:, None, None].expand(-1, logs.shape[1], 1))[..., 0]
        losses = -true
        if options.smooths:
            C, weights = logits.shape[-1], options.class_weights
            weights = logits.new_ones(1, C) if weights is None else weights
            smoothing = options.label_smoothing
            spread = -(logs * weights).sum(dim=-1) / C
            losses = (1 - smoothing) * (-true * weights.T[index]) + smoothing * spread
        formula = cast(ClassLoss, options.formula)
        result: Tensor = formula.compute(losses, lambda: 1 - true.exp())
        return result


class OrdinalTarget(_ClassTarget):
    """One of C classes in order.

    The loss is the sum, over all classes but the last, of the binary loss of being above it.

    Source: Frank, Hall (2001), A simple approach to ordinal classification: a head for each
    threshold, whose probabilities are subtracted.
    """

    name = "ordinal"
    ignored = frozenset({"label_smoothing", "logit_adjustment", "threshold"})

    def suits(self, labels: TaskLabels) -> bool:
        return False  # that the order of classes means something, only the settings can say

    def resolve_options(
        self,
        formula: Loss,
        settings: TaskSettings,
        task: str,
        classes: tuple[str, ...],
        labels: LabelSummary,
    ) -> LossOptions:
        options = super().resolve_options(formula, settings, task, classes, labels)
        return LossOptions(formula, options.class_weights)

    def start(self, labels: LabelSummary) -> Start:
        counts = _floor_counts(labels)
        above = (np.cumsum(counts[::-1])[::-1] / counts.sum())[1:]
        return Start(_to_logits(above), float((above * (1 - above)).mean()))

    def _judge(self, logits: Tensor, index: Tensor, options: StackedOptions) -> Tensor:
        import torch
        from torch.nn.functional import softplus

        steps = torch.arange(logits.shape[-1], device=logits.device)
        above = (index[:, None] > steps).to(logits.dtype)[:, None]
        formula = cast(ClassLoss, map_fields(options.formula, lambda value: value[:, None]))
        losses = softplus(logits) - above * logits
        by_step: Tensor = formula.compute(losses, lambda: ((1 - 2 * above) * logits).sigmoid())
        return by_step.sum(dim=-1)


class MultilabelTarget(TargetType):
    """Any of C tags.

    The loss of a row is the mean of the binary losses of its tags, in which the weight of a tag
    multiplies the terms of rows that have it, as ``pos_weight`` of torch's ``BCEWithLogitsLoss``.
    """

    name = "multilabel"

    def suits(self, labels: TaskLabels) -> bool:
        return labels.kind == self.kind.label_kind

    def summarize(self, values: npt.NDArray[Any], C: int) -> LabelSummary:
        return LabelSummary(tuple((values == 1).sum(axis=0).tolist()), len(values))

    def check_labels(
        self,
        task: str,
        classes: tuple[str, ...],
        labels: LabelSummary,
        values: npt.NDArray[Any],
    ) -> None:
        _warn_of_absent_classes(task, classes, np.array(labels.counts))

    def compute_class_weights(
        self,
        setting: ClassWeights,
        task: str,
        classes: tuple[str, ...],
        labels: LabelSummary,
        beta: float = 0.999,
    ) -> Weights | None:
        counts = np.array(labels.counts)
        return compute_tag_weights(setting, classes, counts, labels.rows, task, beta=beta)

    def weighs_outputs_alike(self, options: LossOptions) -> bool:
        return options.class_weights is None

    def encode(self, values: npt.NDArray[Any], labels: LabelSummary) -> npt.NDArray[Any]:
        """0 or 1 for each tag, NaN for none: float32, [B, C]."""
        return np.where(values < 0, np.nan, values).astype(np.float32)

    def start(self, labels: LabelSummary) -> Start:
        shares = _floor_counts(labels) / max(labels.rows, 1)
        above = np.clip(shares, 1e-4, 1 - 1e-4)
        # The loss of a row is the mean over its tags, so each logit bends it C times less.
        share = 1 / len(above)
        return Start(_to_logits(above), float((above * (1 - above)).mean()) * share, share)

    def compute_log_shares(self, labels: LabelSummary) -> Floats:
        """The logarithm of the odds of each tag."""
        counts = _floor_counts(labels)
        logs: Floats = np.log(counts / np.maximum(labels.rows - counts, 0.5)).astype(np.float32)
        return logs

    def compute_losses(
        self, logits: Tensor, labels: Tensor, options: StackedOptions
    ) -> tuple[Tensor, Tensor]:
        present = ~labels.isnan()
        target = labels.nan_to_num().to(logits.dtype)[:, None]
        losses = self._judge(logits, target, options) * present[:, None]
        tags = present.sum(dim=-1).to(logits.dtype)
        weights = (tags / logits.shape[-1])[:, None].expand(-1, logits.shape[1])
        return losses.sum(dim=-1) / tags.clamp_min(1)[:, None], weights

    def _judge(self, logits: Tensor, target: Tensor, options: StackedOptions) -> Tensor:
        """The loss of each tag of each row: [B, M, C]."""
        from torch.nn.functional import softplus

        smoothing = options.label_smoothing[:, None]
        soft = target * (1 - smoothing) + smoothing / 2
        if isinstance(options.formula, OutputLoss):
            of_outputs = map_fields(options.formula, lambda value: value[:, None])
            judged: Tensor = of_outputs.compute(logits, soft)
            weights = options.class_weights
            return judged if weights is None else judged * (soft * weights + 1 - soft)
        if options.class_weights is None:
            losses = softplus(logits) - soft * logits
        else:
            losses = softplus(-logits) * soft * options.class_weights
            losses = losses + softplus(logits) * (1 - soft)
        formula = cast(ClassLoss, map_fields(options.formula, lambda value: value[:, None]))
        result: Tensor = formula.compute(losses, lambda: ((1 - 2 * target) * logits).sigmoid())
        return result


class RegressionTarget(TargetType):
    """A number. The head learns it in deviations of the training labels from their mean."""

    name = "regression"
    ignored = frozenset({"class_weights", "label_smoothing", "logit_adjustment", "threshold"})

    def suits(self, labels: TaskLabels) -> bool:
        return labels.kind == self.kind.label_kind

    def summarize(self, values: npt.NDArray[Any], C: int) -> LabelSummary:
        numbers, first = values.astype(np.float64), float(values[0])
        if (numbers == first).all():
            return LabelSummary((), len(values), first, 0.0)
        # Means and squares are of distances, and these in parts of the largest: sums of numbers
        # far from 0 lose digits, and squares of tiny distances are 0.
        with np.errstate(over="ignore", invalid="ignore"):  # `check_labels` refuses such numbers
            center = first + float((numbers - first).mean())
            distances = numbers - center
            largest = float(np.abs(distances).max())
            spread = largest * float(np.sqrt(np.square(distances / largest).mean()))
        return LabelSummary((), len(values), center, spread)

    def check_labels(
        self,
        task: str,
        classes: tuple[str, ...],
        labels: LabelSummary,
        values: npt.NDArray[Any],
    ) -> None:
        if labels.spread == 0:
            raise DataError(
                f"task {task}: all {labels.rows:,} training rows are {labels.center:g}; a head "
                "needs numbers that differ",
                hint="give other rows, or take the task out of heads.tasks",
            )
        largest = float(values[np.abs(values).argmax()])
        if abs(largest) > _LARGEST_NUMBER:
            raise DataError(
                f"task {task}: a label is {largest:g}; squared errors of numbers beyond "
                f"{_LARGEST_NUMBER:g} are not finite",
                hint="give the label in a larger unit, or drop the row",
            )
        if labels.spread < 1 / _LARGEST_NUMBER:
            raise DataError(
                f"task {task}: labels differ by {labels.spread:g}; squared errors of numbers below "
                f"{1 / _LARGEST_NUMBER:g} are 0",
                hint="give the label in a smaller unit",
            )
        distances = np.abs(values - labels.center)
        furthest = float(values[distances.argmax()])
        if distances.max() > _FURTHEST * labels.spread:
            raise DataError(
                f"task {task}: a label is {furthest:g}, which is more than {_FURTHEST:g} "
                f"deviations from those of the training rows (mean {labels.center:g}, deviation "
                f"{labels.spread:g})",
                hint="correct the row, or drop it",
            )

    def compute_class_weights(
        self,
        setting: ClassWeights,
        task: str,
        classes: tuple[str, ...],
        labels: LabelSummary,
        beta: float = 0.999,
    ) -> Weights | None:
        return None

    def resolve_options(
        self,
        formula: Loss,
        settings: TaskSettings,
        task: str,
        classes: tuple[str, ...],
        labels: LabelSummary,
    ) -> LossOptions:
        return LossOptions(formula)

    def encode(self, values: npt.NDArray[Any], labels: LabelSummary) -> npt.NDArray[Any]:
        """The number in deviations from the mean, NaN for none: float32, [B]."""
        return ((values - labels.center) / labels.spread).astype(np.float32)

    def start(self, labels: LabelSummary) -> Start:
        return Start(np.zeros(1, np.float32), 1.0)

    def compute_losses(
        self, logits: Tensor, labels: Tensor, options: StackedOptions
    ) -> tuple[Tensor, Tensor]:
        values, present = logits[..., 0], ~labels.isnan()
        error = values - labels.nan_to_num().to(values.dtype)[:, None]
        losses = cast(NumberLoss, options.formula).compute(error)
        return losses, present.to(values.dtype)[:, None].expand(-1, values.shape[1])


TARGET_TYPES: Mapping[str, TargetType] = {
    kind.name: kind
    for kind in (
        BinaryTarget(),
        MulticlassTarget(),
        OrdinalTarget(),
        MultilabelTarget(),
        RegressionTarget(),
    )
}


def _floor_counts(labels: LabelSummary) -> npt.NDArray[np.float64]:
    """Rows of each class, [C], half a row where there is none, so that logarithms are finite."""
    return np.maximum(np.array(labels.counts, np.float64), 0.5)


def _to_logits(probabilities: npt.NDArray[np.float64]) -> Floats:
    return np.log(probabilities / (1 - probabilities)).astype(np.float32)


def _warn_of_absent_classes(
    task: str, classes: tuple[str, ...], counts: npt.NDArray[np.int64]
) -> None:
    absent = np.flatnonzero(counts == 0)
    for index in absent[:_SHOWN_CLASSES]:
        warn(f"task {task}: no training row is {classes[index]!r}, so its head cannot learn it")
    if len(absent) > _SHOWN_CLASSES:
        more = len(absent) - _SHOWN_CLASSES
        warn(f"task {task}: nor are there any of {more:,} other classes")
