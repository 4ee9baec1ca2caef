"""What the head of each type of task puts out, what its logits say, and what it is scored by.

A new type is a class here and an entry in ``TASK_TYPES``; ``heads/`` has what it learns from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from pipeline.model.decision import (
    Decision,
    Floats,
    Ints,
    Logits,
    compute_sigmoid,
    compute_softmax,
)
from pipeline.model.metrics import (
    Answers,
    ClassAnswers,
    NumberAnswers,
    TagAnswers,
    measure_sigmoid_loss,
    measure_softmax_loss,
)

_AVERAGES = ("accuracy", "precision_macro", "recall_macro", "f1_macro", "f1_weighted")


class TaskType(ABC):
    """One type of task.

    The names of metrics are those of ``metrics.METRICS``.

    :cvar name: the word for it in the settings and in ``heads.json``.
    :cvar label_kind: the kind of label that it learns: ``class``, ``tags`` or ``number``.
    :cvar fewest_classes: how many classes its label must have.
    :cvar has_thresholds: whether its answers depend on thresholds.
    :cvar has_temperature: whether its logits are those of probabilities, so that a temperature
        can calibrate them.
    :cvar has_unit: whether its outputs are in the unit of its labels, so that these are centred and
        scaled for training, and the outputs of a head restored.
    :cvar positive_class: the index of the class that a single threshold stands for; ``None`` for
        types without one.
    :cvar default_metric: what configurations are chosen by, unless the settings say otherwise.
    :cvar metrics: the metrics of the report, in its order.
    :cvar interval_metrics: those with an interval, in its order.
    :cvar headline: those that the page shows large.
    """

    name: ClassVar[str]
    label_kind: ClassVar[str] = "class"
    fewest_classes: ClassVar[int] = 2
    has_thresholds: ClassVar[bool] = False
    has_temperature: ClassVar[bool] = True
    has_unit: ClassVar[bool] = False
    positive_class: ClassVar[int | None] = None
    default_metric: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]
    interval_metrics: ClassVar[tuple[str, ...]]
    headline: ClassVar[tuple[str, ...]]

    @property
    def choosing_metrics(self) -> tuple[str, ...]:
        """What configurations may be chosen by, the default first.

        They are the metrics of the report and ``loss``, the mean of ``measure_loss``.
        """
        return tuple(dict.fromkeys((self.default_metric, *self.metrics, "loss")))

    def count_outputs(self, C: int) -> int:
        """O, the number of logits of a head for C classes."""
        return C

    def count_weight_rows(self, C: int) -> int:
        """How many rows the weight of a head for C classes has: O, or 1 that all logits share."""
        return self.count_outputs(C)

    @abstractmethod
    def compute_probabilities(self, logits: Logits, decision: Decision) -> Floats:
        """The probability of each class or tag.

        :param logits: a head's outputs, [B, O].
        :param decision: the temperature.
        :returns: [B, C]; empty, [B, 0], of a regression.
        """

    @abstractmethod
    def predict(self, logits: Logits, decision: Decision) -> npt.NDArray[Any]:
        """The answer to each row.

        :param logits: a head's outputs, [B, O].
        :param decision: the temperature and the thresholds.
        :returns: class index, int64, [B]; 0 or 1 for each tag, int64, [B, C]; a number, float64,
            [B].
        """

    @abstractmethod
    def measure_margins(self, logits: Logits, decision: Decision) -> Floats:
        """How far answers are from another answer, in probability.

        :param logits: a head's outputs, [B, O].
        :param decision: the temperature and the thresholds.
        :returns: [B], or [B, C] of tags; infinite of numbers, between which there is no boundary.
        """

    def rank(self, logits: Logits, temperature: float) -> Logits:
        """Scores that rank rows by class: [B, S].

        :param logits: a head's outputs, [B, O].
        :param temperature: the number that logits are divided by.
        :returns: one column for each class or tag, or one alone for class 1; none, S = 0, of a type
            whose rows are not ranked.
        """
        return np.empty((len(logits), 0))

    @abstractmethod
    def answer(
        self,
        actual: npt.NDArray[Any],
        logits: Logits,
        C: int,
        decision: Decision,
        ranking_temperature: float | None = None,
    ) -> Answers:
        """A head's answers beside the labels, as metrics look at them.

        :param actual: the labels of the rows, none missing.
        :param logits: the head's outputs, [B, O].
        :param C: the number of classes or tags; 0 of a regression.
        :param decision: the temperature and the thresholds.
        :param ranking_temperature: the temperature that rows are ranked at; ``None`` for that of
            the decision.
        """

    @abstractmethod
    def measure_loss(
        self, logits: Logits, labels: npt.NDArray[Any], temperature: float = 1.0
    ) -> float:
        """Mean negative log likelihood of some rows, or mean squared error of numbers.

        :param logits: a head's outputs, [B, O], of one row at least.
        :param labels: the labels of the rows, none missing.
        :param temperature: the number that logits are divided by.
        """


class _OneClass(TaskType):
    """A type whose rows are each of one of C classes."""

    def answer(
        self,
        actual: npt.NDArray[Any],
        logits: Logits,
        C: int,
        decision: Decision,
        ranking_temperature: float | None = None,
    ) -> ClassAnswers:
        return ClassAnswers(
            actual=actual,
            predicted=self.predict(logits, decision),
            rank=partial(self.rank, logits, ranking_temperature or decision.temperature),
            classes=C,
        )


class Binary(_OneClass):
    """One of two classes. The one logit is that of class 1."""

    name = "binary"
    has_thresholds = True
    positive_class = 1
    default_metric = "f1"
    metrics = (*_AVERAGES, "precision", "recall", "f1", "roc_auc", "average_precision")
    interval_metrics = ("accuracy", "f1_macro", "f1", "f1_weighted", "roc_auc")
    headline = ("accuracy", "f1", "f1_macro", "roc_auc")

    def count_outputs(self, C: int) -> int:
        return 1

    def compute_probabilities(self, logits: Logits, decision: Decision) -> Floats:
        scaled = logits / decision.temperature
        return np.hstack([compute_sigmoid(-scaled), compute_sigmoid(scaled)])

    def predict(self, logits: Logits, decision: Decision) -> Ints:
        (threshold,) = decision.thresholds or (0.5,)
        probabilities = compute_sigmoid(logits[:, 0] / decision.temperature)
        above: Ints = (probabilities > threshold).astype(np.int64)
        return above

    def measure_margins(self, logits: Logits, decision: Decision) -> Floats:
        (threshold,) = decision.thresholds or (0.5,)
        margins: Floats = np.abs(compute_sigmoid(logits[:, 0] / decision.temperature) - threshold)
        return margins

    def rank(self, logits: Logits, temperature: float) -> Logits:
        return logits

    def measure_loss(
        self, logits: Logits, labels: npt.NDArray[Any], temperature: float = 1.0
    ) -> float:
        scaled = logits.astype(np.float64) / temperature
        return float(measure_sigmoid_loss(scaled, labels[:, None]).mean())


class Multiclass(_OneClass):
    """One of C classes. Each has a logit."""

    name = "multiclass"
    default_metric = "f1_macro"
    metrics = (*_AVERAGES, "roc_auc", "average_precision")
    interval_metrics = ("accuracy", "f1_macro", "f1_weighted", "roc_auc")
    headline = ("accuracy", "f1_macro", "f1_weighted", "roc_auc")

    def compute_probabilities(self, logits: Logits, decision: Decision) -> Floats:
        return compute_softmax(logits / decision.temperature)

    def predict(self, logits: Logits, decision: Decision) -> Ints:
        # The class of the highest probability, whatever the temperature.
        best: Ints = logits.argmax(axis=1)
        return best

    def measure_margins(self, logits: Logits, decision: Decision) -> Floats:
        ranked = np.sort(self.compute_probabilities(logits, decision), axis=1)
        margins: Floats = ranked[:, -1] - ranked[:, -2]
        return margins

    def rank(self, logits: Logits, temperature: float) -> Logits:
        # Logits of different rows do not compare; probabilities of one class do.
        return compute_softmax(logits / temperature)

    def measure_loss(
        self, logits: Logits, labels: npt.NDArray[Any], temperature: float = 1.0
    ) -> float:
        return float(measure_softmax_loss(logits.astype(np.float64) / temperature, labels).mean())


class Ordinal(_OneClass):
    """One of C classes in order. Logit c says: above class c; each has a weight of its own."""

    name = "ordinal"
    default_metric = "mean_absolute_error"
    metrics = (*_AVERAGES, "mean_absolute_error")
    interval_metrics = ("accuracy", "f1_macro", "f1_weighted", "mean_absolute_error")
    headline = ("accuracy", "mean_absolute_error", "f1_macro")

    def count_outputs(self, C: int) -> int:
        return C - 1

    def compute_probabilities(self, logits: Logits, decision: Decision) -> Floats:
        # A row cannot be above a class without being above those before it, whatever its logits.
        above = np.minimum.accumulate(compute_sigmoid(logits / decision.temperature), axis=1)
        surely, never = np.ones((len(logits), 1)), np.zeros((len(logits), 1))
        between: Floats = -np.diff(np.hstack([surely, above, never]), axis=1)
        return between

    def predict(self, logits: Logits, decision: Decision) -> Ints:
        best: Ints = self.compute_probabilities(logits, decision).argmax(axis=1)
        return best

    def measure_margins(self, logits: Logits, decision: Decision) -> Floats:
        ranked = np.sort(self.compute_probabilities(logits, decision), axis=1)
        margins: Floats = ranked[:, -1] - ranked[:, -2]
        return margins

    def measure_loss(
        self, logits: Logits, labels: npt.NDArray[Any], temperature: float = 1.0
    ) -> float:
        scaled = logits.astype(np.float64) / temperature
        is_above = labels[:, None] > np.arange(scaled.shape[1])
        return float(measure_sigmoid_loss(scaled, is_above).sum(axis=1).mean())


class SharedOrdinal(Ordinal):
    """What ordinal tasks were until version 0.2: one weight for all logits.

    The answer is the median of the classes: the last one that the row is more likely than not to
    reach.

    Source: Cao, Mirjalili, Raschka (2020), Rank consistent ordinal regression (CORAL).
    """

    def count_weight_rows(self, C: int) -> int:
        return 1

    def predict(self, logits: Logits, decision: Decision) -> Ints:
        above: Ints = (logits > 0).sum(axis=1)
        return above

    def measure_margins(self, logits: Logits, decision: Decision) -> Floats:
        above = compute_sigmoid(logits / decision.temperature)
        margins: Floats = np.abs(above - 0.5).min(axis=1)
        return margins


class Multilabel(TaskType):
    """Any of C tags. Each has a logit."""

    name = "multilabel"
    label_kind = "tags"
    fewest_classes = 1
    has_thresholds = True
    default_metric = "f1_micro"
    metrics = ("accuracy", "f1_micro", "f1_macro", "roc_auc", "average_precision")
    interval_metrics = ("accuracy", "f1_macro", "f1_micro", "roc_auc")
    headline = ("f1_macro", "f1_micro", "accuracy", "roc_auc")

    def compute_probabilities(self, logits: Logits, decision: Decision) -> Floats:
        return compute_sigmoid(logits / decision.temperature)

    def predict(self, logits: Logits, decision: Decision) -> Ints:
        thresholds = np.array(decision.thresholds or 0.5)
        tags: Ints = (self.compute_probabilities(logits, decision) > thresholds).astype(np.int64)
        return tags

    def measure_margins(self, logits: Logits, decision: Decision) -> Floats:
        thresholds = np.array(decision.thresholds or 0.5)
        margins: Floats = np.abs(self.compute_probabilities(logits, decision) - thresholds)
        return margins

    def rank(self, logits: Logits, temperature: float) -> Logits:
        return logits

    def answer(
        self,
        actual: npt.NDArray[Any],
        logits: Logits,
        C: int,
        decision: Decision,
        ranking_temperature: float | None = None,
    ) -> TagAnswers:
        return TagAnswers(
            actual=actual,
            predicted=self.predict(logits, decision),
            rank=partial(self.rank, logits, ranking_temperature or decision.temperature),
        )

    def measure_loss(
        self, logits: Logits, labels: npt.NDArray[Any], temperature: float = 1.0
    ) -> float:
        scaled = logits.astype(np.float64) / temperature
        return float(measure_sigmoid_loss(scaled, labels).mean())


class Regression(TaskType):
    """A number. The one output is the number itself."""

    name = "regression"
    label_kind = "number"
    fewest_classes = 0
    has_temperature = False
    has_unit = True
    default_metric = "root_mean_squared_error"
    metrics = ("mean_absolute_error", "root_mean_squared_error", "r2")
    interval_metrics = metrics
    headline = metrics

    def count_outputs(self, C: int) -> int:
        return 1

    def compute_probabilities(self, logits: Logits, decision: Decision) -> Floats:
        return np.empty((len(logits), 0))

    def predict(self, logits: Logits, decision: Decision) -> Floats:
        numbers: Floats = logits[:, 0].astype(np.float64)
        return numbers

    def measure_margins(self, logits: Logits, decision: Decision) -> Floats:
        return np.full(len(logits), np.inf)

    def answer(
        self,
        actual: npt.NDArray[Any],
        logits: Logits,
        C: int,
        decision: Decision,
        ranking_temperature: float | None = None,
    ) -> NumberAnswers:
        return NumberAnswers(
            actual=actual.astype(np.float64), predicted=self.predict(logits, decision)
        )

    def measure_loss(
        self, logits: Logits, labels: npt.NDArray[Any], temperature: float = 1.0
    ) -> float:
        return float(np.square(logits[:, 0].astype(np.float64) - labels).mean())


TASK_TYPES: Mapping[str, TaskType] = {
    kind.name: kind for kind in (Binary(), Multiclass(), Ordinal(), Multilabel(), Regression())
}
# Types whose heads had another form: name → what reads them.
OLDER_TYPES: Mapping[str, TaskType] = {"ordinal": SharedOrdinal()}


def find_type(name: str, weight_rows: int, C: int) -> TaskType:
    """The type of a saved head, which may be of an older form.

    :param name: the name of the type.
    :param weight_rows: the number of rows of the head's weight.
    :param C: the number of classes or tags.
    """
    kind, older = TASK_TYPES[name], OLDER_TYPES.get(name)
    if older is None or weight_rows == kind.count_weight_rows(C):
        return kind
    return older if weight_rows == older.count_weight_rows(C) else kind
