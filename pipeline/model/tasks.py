"""What the head of each type of task puts out, and what its logits say.

A new type is a class here and an entry in ``TASK_TYPES``; ``heads/`` has what it
learns from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
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


class TaskType(ABC):
    """One type of task.

    :cvar name: the word for it in ``params.yaml`` and ``heads.json``.
    :cvar fewest_classes: how many classes its label must have.
    :cvar has_thresholds: whether its answers depend on thresholds.
    """

    name: ClassVar[str]
    fewest_classes: ClassVar[int] = 2
    has_thresholds: ClassVar[bool] = False

    def count_outputs(self, C: int) -> int:
        """O, the number of logits of a head for C classes."""
        return C

    def count_weight_rows(self, C: int) -> int:
        """How many rows the weight of a head for C classes has: O, or 1 that all logits share."""
        return self.count_outputs(C)

    @abstractmethod
    def compute_probabilities(self, logits: Logits, decision: Decision) -> Floats:
        """The probability of each class or tag.

        :param logits: [B, O].
        :returns: [B, C]; empty, [B, 0], of a regression.
        """

    @abstractmethod
    def predict(self, logits: Logits, decision: Decision) -> npt.NDArray[Any]:
        """The answer to each row.

        :param logits: [B, O].
        :returns: class index, int64, [B]; 0 or 1 for each tag, int64, [B, C]; a number, float64,
            [B].
        """


class Binary(TaskType):
    """One of two classes. The one logit is that of class 1."""

    name = "binary"
    has_thresholds = True

    def count_outputs(self, C: int) -> int:
        return 1

    def compute_probabilities(self, logits: Logits, decision: Decision) -> Floats:
        scaled = logits / decision.temperature
        return compute_softmax(np.hstack([np.zeros_like(scaled), scaled]))

    def predict(self, logits: Logits, decision: Decision) -> Ints:
        (threshold,) = decision.thresholds or (0.5,)
        above: Ints = (self.compute_probabilities(logits, decision)[:, 1] > threshold).astype(
            np.int64
        )
        return above


class Multiclass(TaskType):
    """One of C classes. Each has a logit."""

    name = "multiclass"

    def compute_probabilities(self, logits: Logits, decision: Decision) -> Floats:
        return compute_softmax(logits / decision.temperature)

    def predict(self, logits: Logits, decision: Decision) -> Ints:
        best: Ints = self.compute_probabilities(logits, decision).argmax(axis=1)
        return best


class Ordinal(TaskType):
    """One of C classes in order. Logit c says: above class c; one weight serves all."""

    name = "ordinal"

    def count_outputs(self, C: int) -> int:
        return C - 1

    def count_weight_rows(self, C: int) -> int:
        return 1

    def compute_probabilities(self, logits: Logits, decision: Decision) -> Floats:
        above = compute_sigmoid(logits / decision.temperature)
        ends = np.ones((len(logits), 1)), np.zeros((len(logits), 1))
        # Logits of a trained head fall from class to class; those of any other may cross.
        between: Floats = -np.diff(np.hstack([ends[0], above, ends[1]]), axis=1)
        return np.maximum(between, 0)

    def predict(self, logits: Logits, decision: Decision) -> Ints:
        above: Ints = (logits > 0).sum(axis=1)
        return above


class Multilabel(TaskType):
    """Any of C tags. Each has a logit."""

    name = "multilabel"
    fewest_classes = 1
    has_thresholds = True

    def compute_probabilities(self, logits: Logits, decision: Decision) -> Floats:
        return compute_sigmoid(logits / decision.temperature)

    def predict(self, logits: Logits, decision: Decision) -> Ints:
        thresholds = np.array(decision.thresholds or 0.5)
        tags: Ints = (self.compute_probabilities(logits, decision) > thresholds).astype(np.int64)
        return tags


class Regression(TaskType):
    """A number. The one output is the number itself."""

    name = "regression"
    fewest_classes = 0

    def count_outputs(self, C: int) -> int:
        return 1

    def compute_probabilities(self, logits: Logits, decision: Decision) -> Floats:
        return np.empty((len(logits), 0))

    def predict(self, logits: Logits, decision: Decision) -> Floats:
        numbers: Floats = logits[:, 0].astype(np.float64)
        return numbers


TASK_TYPES: Mapping[str, TaskType] = {
    kind.name: kind for kind in (Binary(), Multiclass(), Ordinal(), Multilabel(), Regression())
}
