"""Labels as numbers that least squares can learn, and what it learned as a head's logits.

A least squares fit takes one solution of linear equations for all tasks, so that it is there at
once; its answers are near those of a head, its probabilities mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.model.decision import Floats, Logits
from pipeline.model.tasks import TaskType

_SURE = 30.0  # a logit that no threshold lies beyond


def encode_targets(kind: TaskType, labels: npt.NDArray[Any], C: int) -> Floats:
    """What is regressed: 1 or -1 for each class or tag, or the number itself.

    :param kind: the type of the task.
    :param labels: the labels of B rows, as in ``TaskLabels``, none missing.
    :param C: the number of classes or tags; 0 of a regression.
    :returns: float64, [B, C] or [B, 1].
    """
    if kind.label_kind == "number":
        return labels.astype(np.float64)[:, None]
    if kind.label_kind == "tags":
        return np.where(labels > 0, 1.0, -1.0)
    return np.where(labels[:, None] == np.arange(C), 1.0, -1.0)


def decode_targets(kind: TaskType, answers: Floats) -> Logits:
    """Regressed targets as the outputs of a head of the type, which answers at thresholds of 0.5.

    :param kind: the type of the task.
    :param answers: what was regressed, [B, C] or [B, 1].
    :returns: [B, O].
    """
    return _DECODERS.get(kind.name, _keep)(answers)


def _keep(answers: Floats) -> Logits:
    return answers


def _compare_two(answers: Floats) -> Logits:
    """The logit of class 1 of 2."""
    return answers[:, 1:] - answers[:, :1]


def _place_between(answers: Floats) -> Logits:
    """Logits of being above each class but the last, of rows that are surely of the best class."""
    above = answers.argmax(axis=1)[:, None] > np.arange(answers.shape[1] - 1)
    return np.where(above, _SURE, -_SURE)


# Type of task → what makes logits of its regressed targets; those of other types are logits.
_DECODERS: Mapping[str, Callable[[Floats], Logits]] = {
    "binary": _compare_two,
    "ordinal": _place_between,
}
