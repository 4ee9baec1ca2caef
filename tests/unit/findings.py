"""Heads and rows by hand, for the tests of what the report finds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.model.decision import Decision
from pipeline.model.saved import SavedHead
from pipeline.model.tasks import TASK_TYPES
from pipeline.model.weights import HeadWeights
from pipeline.report.inputs import ScoredRows

PLAIN = Decision()


def make_head(
    kind: str, classes: Sequence[str] = (), decision: Decision = PLAIN, spread: float = 1.0
) -> SavedHead:
    """A head of a type; its weights say nothing, as findings look at logits alone."""
    outputs = TASK_TYPES[kind].count_outputs(len(classes))
    weights = HeadWeights(np.zeros((outputs, 2), np.float32), np.zeros(outputs, np.float32))
    return SavedHead(
        "task", TASK_TYPES[kind], tuple(classes), (0,), decision, (weights,), spread=spread
    )


def make_rows(
    labels: Sequence[Any], parts: Mapping[str, Sequence[int]], codes: Sequence[int] | None = None
) -> ScoredRows:
    """Rows of one task; a label that is missing is ``None``. Each row has a text of its own."""
    present = np.array([label is not None for label in labels])
    given = [label for label in labels if label is not None]
    filled = [label if label is not None else np.full_like(given[0], -1) for label in labels]
    return ScoredRows(
        keys=None,
        codes=np.array(codes if codes is not None else range(len(labels))),
        parts={part: np.array(rows, np.int64) for part, rows in parts.items()},
        labels={"task": np.array(filled)},
        present={"task": present},
    )


def to_logits(probabilities: Iterable[Any]) -> np.ndarray:
    """Logits of a sigmoid head that says these probabilities: [B, O]."""
    p = np.array(list(probabilities), np.float64)
    p = p[:, None] if p.ndim == 1 else p
    return np.log(p / (1 - p))
