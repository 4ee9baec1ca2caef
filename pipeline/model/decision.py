"""Logits → probabilities, classes and tags: pure functions on arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Logits = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Decision:
    """How a head's logits become an answer.

    :param temperature: the number that logits are divided by, above 0.
    :param thresholds: the probability above which class 1 of a binary head, or each tag, is
        answered; ``None`` for types without thresholds.
    """

    temperature: float = 1.0
    thresholds: tuple[float, ...] | None = None


def compute_softmax(logits: Logits) -> Floats:
    """The probability of each of C classes that exclude each other.

    :param logits: a head's outputs, [B, C].
    :returns: [B, C], each row adding up to 1.
    """
    wide = logits.astype(np.float64)
    wide = np.exp(wide - wide.max(axis=1, keepdims=True, initial=-np.inf))
    probabilities: Floats = wide / wide.sum(axis=1, keepdims=True)
    return probabilities


def compute_sigmoid(logits: Logits) -> Floats:
    """The probability of yes for each logit, each on its own.

    :param logits: a head's outputs, [B, O].
    :returns: [B, O].
    """
    wide = logits.astype(np.float64)
    small = np.exp(-np.abs(wide))  # at most 1, so that no logit overflows
    probabilities: Floats = np.where(wide < 0, small, 1.0) / (1 + small)
    return probabilities
