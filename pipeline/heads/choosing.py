"""Choosing on rows that a head has not seen: its configuration, its temperature, its threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config import Metric, ThresholdAim
from pipeline.heads.configurations import Configuration
from pipeline.heads.tasks import Task

Floats = npt.NDArray[np.floating[Any]]
_LOWER_IS_BETTER = {"loss", "mean_absolute_error", "root_mean_squared_error"}


@dataclass(frozen=True)
class Score:
    """How a configuration did on held-out rows, averaged over its seeds.

    :param numbers: its places in the list of configurations, one for each seed.
    :param value: of the task's metric.
    :param deviation: of the value over the seeds; ``None`` for one seed.
    :param loss: mean negative log likelihood, or mean squared error.
    """

    numbers: tuple[int, ...]
    value: float
    deviation: float | None
    loss: float


@dataclass(frozen=True)
class Decision:
    """How a head's logits become an answer.

    :param temperature: what logits are divided by.
    :param thresholds: of class 1, or of each tag, in probability; ``None`` for other types.
    :param loss_before: mean negative log likelihood of the held-out rows without the temperature.
    :param loss_after: with it.
    """

    temperature: float = 1.0
    thresholds: tuple[float, ...] | None = None
    loss_before: float | None = None
    loss_after: float | None = None


def choose_configuration(
    task: Task,
    held_out: Sequence[Floats],
    labels: npt.NDArray[Any],
    configurations: Sequence[Configuration],
) -> list[Score]:
    """Scores of all configurations, the best first; equal ones by their loss.

    Configurations that differ in the seed alone are one, and the first seed stands for it.

    :param held_out: logits of each, [B, outputs]; of a regression, numbers.
    :param labels: of the same rows, as ``StackedLoss`` takes them.
    """
    seeds: dict[Configuration, list[int]] = {}
    for number, configuration in enumerate(configurations):
        seeds.setdefault(replace(configuration, seed=0), []).append(number)
    present = find_present(labels)
    scores = []
    for numbers in seeds.values():
        found = [(held_out[n][present], labels[present]) for n in numbers]
        values = [score(task, task.metric, logits, wanted) for logits, wanted in found]
        losses = [measure_loss(task, logits, wanted) for logits, wanted in found]
        scores.append(
            Score(
                tuple(numbers),
                float(np.mean(values)),
                float(np.std(values, ddof=1)) if len(values) > 1 else None,
                float(np.mean(losses)),
            )
        )
    sign = 1 if task.metric in _LOWER_IS_BETTER else -1

    def rank(of: Score) -> tuple[bool, float, float]:
        return not np.isfinite(of.loss), sign * of.value, of.loss

    return sorted(scores, key=rank)


def find_present(labels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which rows have a label: [B]."""
    given = np.isfinite(labels) if labels.dtype.kind == "f" else np.greater(labels, -1)
    return np.asarray(np.reshape(given, (len(labels), -1)).all(axis=1), np.bool_)


def score(task: Task, metric: Metric, logits: Floats, labels: npt.NDArray[Any]) -> float:
    """A metric of logits against labels, at the decision that takes the more likely answer.

    :param logits: [B, outputs].
    """
    if not len(labels) or metric == "loss":
        return measure_loss(task, logits, labels)
    if task.type == "regression":
        error = logits[:, 0].astype(np.float64) - labels
        if metric == "mean_absolute_error":
            return float(np.abs(error).mean())
        squares = float(np.square(error).mean())
        if metric == "r2":
            return 1 - squares / max(float(np.var(labels)), 1e-300)
        return float(squares**0.5)
    if task.type == "multilabel":
        return _score_tags(metric, logits > 0, labels > 0.5)
    if metric == "roc_auc":
        return _rank_area(logits[:, 0], labels == 1)
    one_of_all = task.type == "multiclass"
    predicted = logits.argmax(axis=1) if one_of_all else (logits > 0).sum(axis=1)
    if metric == "accuracy":
        return float((predicted == labels).mean())
    if metric == "mean_absolute_error":
        return float(np.abs(predicted - labels).mean())
    C = len(task.classes)
    confusion = np.bincount(labels * C + predicted, minlength=C * C).reshape(C, C)
    scores = score_f1(np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0))
    if metric == "f1":
        return float(np.nan_to_num(scores[1]))
    return float(np.nanmean(scores))


def score_f1(hits: Floats, actual: Floats, predicted: Floats) -> Floats:
    """F1 of each class; NaN where it occurs neither among labels nor among predictions."""
    whole = (actual + predicted).astype(np.float64)
    return np.divide(2 * hits, whole, out=np.full_like(whole, np.nan), where=whole > 0)


def _score_tags(metric: Metric, predicted: npt.NDArray[Any], actual: npt.NDArray[Any]) -> float:
    if metric == "accuracy":
        return float((predicted == actual).all(axis=1).mean())
    hits = (predicted & actual).sum(axis=0)
    if metric == "f1_micro":
        return float(2 * hits.sum() / max(predicted.sum() + actual.sum(), 1))
    scores = score_f1(hits, actual.sum(axis=0), predicted.sum(axis=0))
    return float(np.nanmean(scores)) if np.isfinite(scores).any() else 0.0


def _rank_area(scores: Floats, positive: npt.NDArray[np.bool_]) -> float:
    """Area under the ROC curve, as the share of pairs in the right order; equal scores count half.

    Source: Mann, Whitney (1947), On a test of whether one of two random variables is larger.
    """
    _, codes, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[codes]
    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        return 0.5
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))


def measure_loss(
    task: Task, logits: Floats, labels: npt.NDArray[Any], temperature: float = 1.0
) -> float:
    """Mean negative log likelihood, or mean squared error of a regression.

    :param logits: [B, outputs].
    """
    if not len(labels):
        return 0.0
    wide = logits.astype(np.float64)
    if task.type == "regression":
        return float(np.square(wide[:, 0] - labels).mean())
    wide = wide / temperature
    if task.type == "multiclass":
        wide -= wide.max(axis=1, keepdims=True)
        chosen = np.take_along_axis(wide, labels[:, None], axis=1)[:, 0]
        return float((np.log(np.exp(wide).sum(axis=1)) - chosen).mean())
    above = labels[:, None] if task.type == "binary" else labels
    if task.type == "ordinal":
        above = labels[:, None] > np.arange(wide.shape[1])
    with np.errstate(invalid="ignore"):  # of logits without end, whose head will not be chosen
        losses = np.logaddexp(0, wide) - above * wide
    return float(losses.mean() if task.type == "multilabel" else losses.sum(axis=1).mean())


def decide(task: Task, logits: Floats, labels: npt.NDArray[Any], *, calibrate: bool) -> Decision:
    """Temperature and thresholds of the chosen head, from held-out rows.

    :param logits: [B, outputs].
    """
    present = find_present(labels)
    logits, labels = logits[present], labels[present]
    if task.type == "regression":
        return Decision()
    temperature = 1.0
    if calibrate and len(labels):
        temperature = fit_temperature(task, logits, labels)
    thresholds = None
    if task.type in ("binary", "multilabel"):
        probabilities = 1 / (
            1 + np.exp(-np.clip(logits / temperature, -500, 500), dtype=np.float64)
        )
        wanted = labels[:, None] == 1 if task.type == "binary" else labels > 0.5
        thresholds = tuple(
            choose_threshold(task.threshold, probabilities[:, c], wanted[:, c])
            for c in range(probabilities.shape[1])
        )
    return Decision(
        temperature,
        thresholds,
        measure_loss(task, logits, labels),
        measure_loss(task, logits, labels, temperature),
    )


def fit_temperature(task: Task, logits: Floats, labels: npt.NDArray[Any]) -> float:
    """What logits are divided by so that held-out rows are most likely, between 0.05 and 20.

    The loss has one minimum in 1 / temperature; its logarithm is found by golden section.

    Source: Guo et al. (2017), On calibration of modern neural networks.
    """
    low, high = np.log(0.05), np.log(20.0)
    golden = (5**0.5 - 1) / 2
    a, b = high - golden * (high - low), low + golden * (high - low)
    at_a, at_b = (measure_loss(task, logits, labels, float(np.exp(x))) for x in (a, b))
    while high - low > 1e-4:
        if at_a < at_b:
            high, b, at_b = b, a, at_a
            a = high - golden * (high - low)
            at_a = measure_loss(task, logits, labels, float(np.exp(a)))
        else:
            low, a, at_a = a, b, at_b
            b = low + golden * (high - low)
            at_b = measure_loss(task, logits, labels, float(np.exp(b)))
    return float(np.exp((low + high) / 2))


def choose_threshold(
    aim: float | str | ThresholdAim, probabilities: Floats, positive: npt.NDArray[np.bool_]
) -> float:
    """A threshold that serves an aim on some rows: an answer is positive above it.

    It lies halfway between two neighbouring probabilities. Where an aim cannot be met, as without
    positive rows, it is 0.5.

    :param aim: a threshold, ``f1``, or a ``ThresholdAim``.
    :param probabilities: [B].
    :param positive: [B].
    """
    if isinstance(aim, float):
        return aim
    if not positive.any() or positive.all():
        return 0.5
    order = np.argsort(-probabilities, kind="stable")
    sorted_ = probabilities[order].astype(np.float64)
    last = np.flatnonzero(np.diff(sorted_, append=-1.0))  # of equal ones
    hits = np.cumsum(positive[order])[last]
    passed = last + 1
    recall, precision = hits / positive.sum(), hits / passed
    if aim == "f1":
        value = 2 * hits / (passed + positive.sum())
    elif not isinstance(aim, ThresholdAim):
        raise ValueError(f"no such aim: {aim}")
    elif aim.precision is not None:
        value = np.where(precision >= aim.precision, recall, -1.0)
    elif aim.recall is not None:
        value = np.where(recall >= aim.recall, precision, -1.0)
    else:
        assert aim.false_positive is not None
        assert aim.false_negative is not None
        cost = aim.false_positive * (passed - hits) + aim.false_negative * (positive.sum() - hits)
        value = -cost
        if value.max() < -aim.false_negative * positive.sum():
            return float((1 + sorted_[0]) / 2)
    best = int(value.argmax())
    if aim != "f1" and isinstance(aim, ThresholdAim) and not aim.false_positive and value[best] < 0:
        return 0.5
    below = sorted_[last[best] + 1] if last[best] + 1 < len(sorted_) else 0.0
    return float((sorted_[last[best]] + below) / 2)


def list_scores(
    scores: Sequence[Score], configurations: Sequence[Configuration]
) -> list[Mapping[str, Any]]:
    """The search as a table: how each configuration did, and what tells it from the others.

    ``loss`` is the kind of loss that it trained on, a setting; ``held_out_loss`` a number.
    """
    described = [configurations[s.numbers[0]].describe() for s in scores]
    keys = dict.fromkeys(key for one in described for key in one if key != "seed")
    telling = [key for key in keys if len({str(one.get(key)) for one in described}) > 1] or list(
        keys
    )
    return [
        {
            "score": s.value,
            **(
                {"deviation": s.deviation, "seeds": len(s.numbers)}
                if s.deviation is not None
                else {}
            ),
            "held_out_loss": s.loss,
            **{key: one[key] for key in telling if key in one},
        }
        for s, one in zip(scores, described, strict=True)
    ]
