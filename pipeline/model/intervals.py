"""How far a figure of one part may be off: bootstrap intervals of the headline metrics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.model.decision import Floats, compute_softmax
from pipeline.model.saved import SavedHead

REPLICATES = 1000
_LEVEL = (2.5, 97.5)
_MOST_NUMBERS = 8_000_000
_MOST_CLASSES = 20  # whose ROC curves are drawn again in each replicate


def bootstrap_intervals(
    head: SavedHead, actual: npt.NDArray[Any], logits: npt.NDArray[np.floating[Any]]
) -> dict[str, tuple[float, float]]:
    """95 % intervals: rows are drawn again with replacement, a thousand times from a fixed seed.

    Source: Efron (1979), Bootstrap methods: another look at the jackknife (percentile intervals).

    :param actual: labels of the rows, none missing.
    :param logits: of the same rows, [B, K].
    :returns: metric → lower and upper end; a metric that some replicates leave undefined is judged
        by the others.
    """
    if len(actual) < 2:
        return {}
    found: dict[str, list[Floats]] = {}
    for times in _draw_times(len(actual)):
        for metric, values in _measure(head, actual, logits, times).items():
            found.setdefault(metric, []).append(values)
    intervals = {}
    for metric, pieces in found.items():
        values = np.concatenate(pieces)
        if np.isfinite(values).any():
            low, high = np.nanpercentile(values, _LEVEL)
            intervals[metric] = (float(low), float(high))
    return intervals


def _draw_times(rows: int) -> Iterator[Floats]:
    """How often each replicate holds each row: [R, B], R at a time."""
    generator = np.random.default_rng(0)
    at_once = max(1, min(REPLICATES, _MOST_NUMBERS // rows))
    for start in range(0, REPLICATES, at_once):
        R = min(at_once, REPLICATES - start)
        drawn = generator.integers(0, rows, (R, rows)) + rows * np.arange(R)[:, None]
        counted = np.bincount(drawn.reshape(-1), minlength=R * rows)
        yield counted.reshape(R, rows).astype(np.float64)


def _measure(
    head: SavedHead, actual: npt.NDArray[Any], logits: npt.NDArray[np.floating[Any]], times: Floats
) -> dict[str, Floats]:
    """Metrics of each replicate: [R] each."""
    kind = head.type.name
    rows = times.sum(axis=1)
    if kind == "regression":
        error = logits[:, 0].astype(np.float64) - actual
        squares = times @ np.square(error) / rows
        spread = times @ np.square(actual) / rows - np.square(times @ actual / rows)
        return {
            "mean_absolute_error": times @ np.abs(error) / rows,
            "root_mean_squared_error": np.sqrt(squares),
            "r2": 1 - _divide(squares, spread),
        }
    predicted = head.type.predict(logits, head.decision)
    if kind == "multilabel":
        is_actual, is_predicted = actual > 0, predicted > 0
        right = is_actual == is_predicted
        right = right.all(axis=1)
    else:
        C = np.arange(len(head.classes))
        is_actual, is_predicted = actual[:, None] == C, predicted[:, None] == C
        right = actual == predicted
    hits = times @ (is_actual & is_predicted)
    support, chosen = times @ is_actual, times @ is_predicted
    f1 = _divide(2 * hits, support + chosen)
    found = {"accuracy": times @ right / rows, "f1_macro": _mean(f1)}
    if kind == "binary":
        found["f1"] = f1[:, 1]
    if kind == "multilabel":
        found["f1_micro"] = _divide(2 * hits.sum(axis=1), (support + chosen).sum(axis=1))
    else:
        found["f1_weighted"] = np.nansum(f1 * support, axis=1) / rows
    if kind == "ordinal":
        found["mean_absolute_error"] = times @ np.abs(actual - predicted) / rows
    elif len(head.classes) <= _MOST_CLASSES:
        scores = logits if kind != "multiclass" else compute_softmax(logits)
        judged = is_actual[:, 1:] if kind == "binary" else is_actual
        areas = [_areas(scores[:, c], judged[:, c], times) for c in range(judged.shape[1])]
        found["roc_auc"] = np.mean(areas, axis=0)
    return found


def _areas(
    score: npt.NDArray[np.floating[Any]], positive: npt.NDArray[np.bool_], times: Floats
) -> Floats:
    """Area under each replicate's ROC curve: the share of pairs in order, ties counting half."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=np.nan))
    hits = np.add.reduceat((times * positive)[:, order], starts, axis=1)
    others = np.add.reduceat((times * ~positive)[:, order], starts, axis=1)
    below = np.cumsum(others, axis=1) - others / 2
    pairs = hits.sum(axis=1) * others.sum(axis=1)
    return _divide((hits * below).sum(axis=1), pairs)


def _divide(part: Floats, whole: Floats) -> Floats:
    """NaN where the whole is 0."""
    shares: Floats = np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)
    return shares


def _mean(table: Floats) -> Floats:
    """Mean over the columns that are defined; one is, as every row is of a class."""
    defined = np.isfinite(table)
    means: Floats = np.nansum(table, axis=1) / np.maximum(defined.sum(axis=1), 1)
    return means
