"""Choosing on rows that a head has not seen: its configuration, its temperature, its threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config import Metric, ThresholdAim
from pipeline.heads.configurations import Configuration
from pipeline.heads.tasks import Task, resolve_loss
from pipeline.model.decision import Decision, Logits, compute_sigmoid
from pipeline.model.metrics import METRICS
from pipeline.model.tasks import TASK_TYPES

# The aim of the thresholds of tags → for how many held-out rows with a tag the threshold counts
# that is common to all tags, beside the rows that have it.
_COMMON_WEIGHTS = {"auto": 3.0, "f1": 1.0, "f1_micro": np.inf}
# The value of a metric that held-out rows leave undefined; that of any other metric is 0.
_UNDEFINED = {"roc_auc": 0.5}


@dataclass(frozen=True)
class Score:
    """How a configuration did on held-out rows, averaged over its seeds.

    :param numbers: its indices in the list of configurations, one for each seed.
    :param value: the mean of the task's metric.
    :param deviation: the deviation of the metric over the seeds; ``None`` for one seed.
    :param loss: the mean negative log likelihood, or the mean squared error.
    """

    numbers: tuple[int, ...]
    value: float
    deviation: float | None
    loss: float


@dataclass(frozen=True)
class Calibration:
    """How the chosen head decides, and what its temperature does for the held-out loss.

    :param decision: the temperature and the thresholds.
    :param loss_before: the mean negative log likelihood of the held-out rows at temperature 1;
        ``None`` for a type without a temperature.
    :param loss_after: the same at the temperature of the decision.
    """

    decision: Decision
    loss_before: float | None = None
    loss_after: float | None = None


def choose_configuration(
    task: Task,
    held_out: Sequence[Logits],
    labels: npt.NDArray[Any],
    configurations: Sequence[Configuration],
) -> list[Score]:
    """Scores of all configurations, the best first; equal ones by their loss.

    Configurations that differ in the seed alone are one, and the first seed stands for it. So are
    those that differ only in what this task leaves alone.

    :param task: the task, with the metric to choose by.
    :param held_out: the logits of each configuration, [B, O]; of a regression, numbers.
    :param labels: the labels of the same rows, [B] or [B, C]; -1 or NaN where a row has none.
    :param configurations: what each was trained with.
    """
    by_seed: dict[Configuration, dict[int, int]] = {}
    for number, configuration in enumerate(map(task.adapt, configurations)):
        of_seeds = by_seed.setdefault(replace(configuration, seed=0), {})
        of_seeds.setdefault(configuration.seed, number)
    present = find_present(labels)
    scores = []
    for one, of_seeds in by_seed.items():
        numbers = tuple(of_seeds.values())
        logits = [held_out[number][present] for number in numbers]
        values = [score(task, task.metric, of_seed, labels[present]) for of_seed in logits]
        losses = [_measure_likelihood(task, one, of_seed, labels[present]) for of_seed in logits]
        scores.append(
            Score(
                numbers=numbers,
                value=float(np.mean(values)),
                deviation=float(np.std(values, ddof=1)) if len(values) > 1 else None,
                loss=float(np.mean(losses)),
            )
        )
    return sorted(scores, key=partial(_order, task))


def _measure_likelihood(
    task: Task, configuration: Configuration, logits: Logits, labels: npt.NDArray[Any]
) -> float:
    """The loss of held-out rows, at the best temperature where heads learn no probabilities."""
    temperature = 1.0
    formula = resolve_loss(task, configuration.loss_changes).formula
    if not formula.is_likelihood and len(labels):
        temperature = fit_temperature(task, logits, labels, precision=0.05)
    return measure_loss(task, logits, labels, temperature)


def _order(task: Task, of: Score) -> tuple[bool, float, float]:
    """What scores are sorted by, the best first."""
    value = of.value if is_error(task.metric) else -of.value
    return not np.isfinite(of.loss), value, of.loss


def is_ahead(task: Task, one: Score, other: Score, margin: float) -> bool:
    """Whether a score is better than another by more than a margin.

    :param task: the task, with the metric.
    :param one: the score that may be better.
    :param other: the one that it is compared with.
    :param margin: a difference of shares; of errors, a share of the other score.
    """
    if is_error(task.metric):
        return one.value < other.value * (1 - margin)
    return one.value > other.value + margin


def is_error(metric: str) -> bool:
    """Whether lower values of a metric, or of ``loss``, are better."""
    return metric == "loss" or METRICS[metric].lower_is_better


def is_better(task: Task, one: Score, other: Score) -> bool:
    """Whether a score is better than another by the task's metric, whatever their losses."""
    return _order(task, one)[:2] < _order(task, other)[:2]


def find_present(labels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which rows have a label: [B].

    :param labels: [B] or [B, C]; -1, or NaN of floats, where a row has none.
    """
    given = np.isfinite(labels) if labels.dtype.kind == "f" else np.greater(labels, -1)
    return np.asarray(np.reshape(given, (len(labels), -1)).all(axis=1), np.bool_)


def score(task: Task, metric: Metric, logits: Logits, labels: npt.NDArray[Any]) -> float:
    """A metric of a head that takes the more likely answer, or tags above their thresholds.

    :param task: the task of the head.
    :param metric: one of the task's type, or ``loss``.
    :param logits: the head's outputs, [B, O].
    :param labels: the labels of the rows, none missing.
    """
    if not len(labels) or metric == "loss":
        return measure_loss(task, logits, labels)
    kind, decision = TASK_TYPES[task.type], Decision()
    with np.errstate(invalid="ignore"):  # a head with infinite logits will not be chosen
        if task.thresholds_are_chosen:
            decision = Decision(1.0, choose_thresholds(task, logits, labels, decision))
        answers = kind.answer(labels, logits, len(task.classes), decision)
        value = float(METRICS[metric].measure(answers)[0])
    return value if np.isfinite(value) else _UNDEFINED.get(metric, 0.0)


def measure_loss(
    task: Task, logits: Logits, labels: npt.NDArray[Any], temperature: float = 1.0
) -> float:
    """Mean negative log likelihood, or mean squared error of a regression; 0 of no rows.

    :param task: the task of the head.
    :param logits: the head's outputs, [B, O].
    :param labels: the labels of the rows, none missing.
    :param temperature: the number that logits are divided by.
    """
    if not len(labels):
        return 0.0
    with np.errstate(invalid="ignore"):  # a head with infinite logits will not be chosen
        return TASK_TYPES[task.type].measure_loss(logits, labels, temperature)


def calibrate_head(
    task: Task, logits: Logits, labels: npt.NDArray[Any], *, fit: bool
) -> Calibration:
    """Temperature and thresholds of the chosen head, from held-out rows.

    :param task: the task, with the aim of its threshold.
    :param logits: the head's outputs, [B, O].
    :param labels: the labels of the rows; -1 or NaN where a row has none.
    :param fit: whether to fit a temperature; it is 1 otherwise.
    """
    kind = TASK_TYPES[task.type]
    if not kind.has_temperature:
        return Calibration(Decision())
    present = find_present(labels)
    logits, labels = logits[present], labels[present]
    temperature = fit_temperature(task, logits, labels) if fit and len(labels) else 1.0
    decision = Decision(temperature)
    if kind.has_thresholds:
        decision = replace(decision, thresholds=choose_thresholds(task, logits, labels, decision))
    return Calibration(
        decision,
        loss_before=measure_loss(task, logits, labels),
        loss_after=measure_loss(task, logits, labels, temperature),
    )


def fit_temperature(
    task: Task, logits: Logits, labels: npt.NDArray[Any], precision: float = 1e-4
) -> float:
    """The temperature at which held-out rows are most likely, between 0.05 and 20.

    The loss has one minimum in 1 / temperature. A golden-section search over the logarithm of the
    temperature finds it.

    Source: Guo et al. (2017), On calibration of modern neural networks.

    :param task: the task of the head.
    :param logits: the head's outputs, [B, O].
    :param labels: the labels of the rows, none missing.
    :param precision: the width of the interval of the logarithm that the search ends at.
    """

    def measure(log_temperature: float) -> float:
        return measure_loss(task, logits, labels, float(np.exp(log_temperature)))

    low, high = np.log(0.05), np.log(20.0)
    golden = (5**0.5 - 1) / 2
    a, b = high - golden * (high - low), low + golden * (high - low)
    at_a, at_b = measure(a), measure(b)
    while high - low > precision:
        if at_a < at_b:
            high, b, at_b = b, a, at_a
            a = high - golden * (high - low)
            at_a = measure(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + golden * (high - low)
            at_b = measure(b)
    return float(np.exp((low + high) / 2))


def choose_thresholds(
    task: Task, logits: Logits, labels: npt.NDArray[Any], decision: Decision
) -> tuple[float, ...]:
    """The threshold of class 1, or of each tag.

    A tag that no training row has gets 1, above which no probability is.

    :param task: the task, with the aim of its thresholds.
    :param logits: the head's outputs, [B, O].
    :param labels: the labels of the rows, none missing.
    :param decision: the temperature.
    """
    kind = TASK_TYPES[task.type]
    probabilities = kind.compute_probabilities(logits, decision)
    rankings = kind.answer(labels, logits, len(task.classes), decision).rankings
    if kind.positive_class is not None:
        aim: float | str | ThresholdAim = task.threshold
        if isinstance(aim, str):
            aim = 0.5 if aim == "auto" else "f1"
        return tuple(
            choose_threshold(aim, probabilities[:, ranking.index], ranking.is_class)
            for ranking in rankings
        )
    positive = np.stack([ranking.is_class for ranking in rankings], axis=1)
    return tuple(
        found if learned else 1.0
        for found, learned in zip(
            _choose_by_tag(task, probabilities, positive), task.labels.counts, strict=True
        )
    )


def _choose_by_tag(
    task: Task, probabilities: Logits, positive: npt.NDArray[np.bool_]
) -> Sequence[float]:
    """The threshold of each of C tags, whatever training rows have it.

    :param probabilities: [B, C].
    :param positive: whether each row has each tag, [B, C].
    """
    weight = _COMMON_WEIGHTS.get(str(task.threshold))
    if weight is None:
        return [
            choose_threshold(task.threshold, probabilities[:, tag], positive[:, tag])
            for tag in range(positive.shape[1])
        ]
    common = choose_threshold("f1", probabilities.ravel(), positive.ravel())
    if np.isinf(weight):
        return [common] * positive.shape[1]
    shares = positive.sum(axis=0) / (positive.sum(axis=0) + weight)
    own = [
        choose_threshold("f1", probabilities[:, tag], positive[:, tag]) if share else common
        for tag, share in enumerate(shares)
    ]
    logits = _to_logit(np.array(own)) * shares + _to_logit(np.array(common)) * (1 - shares)
    thresholds: list[float] = compute_sigmoid(logits).tolist()
    return thresholds


def _to_logit(probability: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    inside = np.clip(probability, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(inside / (1 - inside)))


def choose_threshold(
    aim: float | str | ThresholdAim, probabilities: Logits, positive: npt.NDArray[np.bool_]
) -> float:
    """A threshold that serves an aim on some rows: an answer is positive above it.

    It lies halfway between two neighbouring probabilities. Where an aim cannot be met, as without
    positive rows, it is 0.5.

    :param aim: a threshold, ``f1``, or a ``ThresholdAim``.
    :param probabilities: the probability of each row, [B].
    :param positive: whether each row is positive, [B].
    """
    if isinstance(aim, float):
        return aim
    if not positive.any() or positive.all():
        return 0.5
    order = np.argsort(-probabilities, kind="stable")
    falling = probabilities[order].astype(np.float64)
    last_of_equal = np.flatnonzero(np.diff(falling, append=-1.0))
    hits = np.cumsum(positive[order], dtype=np.int64)[last_of_equal]
    passed = last_of_equal + 1
    gains = _weigh_aim(aim, hits, passed, int(positive.sum()))
    best = int(gains.argmax())
    if gains[best] == -np.inf:
        return 0.5
    if isinstance(aim, ThresholdAim) and aim.false_negative is not None:
        no_answer = -aim.false_negative * positive.sum()
        if gains[best] < no_answer:
            return float((1 + falling[0]) / 2)
    last = last_of_equal[best]
    below = falling[last + 1] if last + 1 < len(falling) else 0.0
    return float((falling[last] + below) / 2)


def _weigh_aim(
    aim: str | ThresholdAim,
    hits: npt.NDArray[np.int64],
    passed: npt.NDArray[np.int64],
    positives: int,
) -> npt.NDArray[np.float64]:
    """How well each of N thresholds serves an aim: [N], the higher the better.

    :param hits: the positive rows above each threshold, [N].
    :param passed: all rows above each threshold, [N].
    :param positives: the number of positive rows.
    :returns: minus infinity where a threshold does not meet the aim.
    """
    if aim == "f1":
        return np.asarray(2 * hits / (passed + positives))
    if not isinstance(aim, ThresholdAim):
        raise ValueError(f"no such aim: {aim}")
    recall, precision = hits / positives, hits / passed
    if aim.precision is not None:
        return np.where(precision >= aim.precision, recall, -np.inf)
    if aim.recall is not None:
        return np.where(recall >= aim.recall, precision, -np.inf)
    assert aim.false_positive is not None
    assert aim.false_negative is not None
    cost = aim.false_positive * (passed - hits) + aim.false_negative * (positives - hits)
    return np.asarray(-cost)


def list_scores(
    scores: Sequence[Score], configurations: Sequence[Configuration]
) -> list[Mapping[str, Any]]:
    """The search as a table: how each configuration did, and what tells it from the others.

    ``loss`` is the kind of loss that it trained on, a setting; ``held_out_loss`` a number.

    :param scores: the scores, best first.
    :param configurations: the configurations that ``Score.numbers`` are indices of.
    """
    described = [configurations[of.numbers[0]].describe() for of in scores]
    keys = list(dict.fromkeys(key for one in described for key in one if key != "seed"))
    telling = [key for key in keys if len({str(one.get(key)) for one in described}) > 1] or keys
    table: list[Mapping[str, Any]] = []
    for of, one in zip(scores, described, strict=True):
        row: dict[str, Any] = {"score": of.value}
        if of.deviation is not None:
            row |= {"deviation": of.deviation, "seeds": len(of.numbers)}
        row["held_out_loss"] = of.loss
        table.append(row | {key: one[key] for key in telling if key in one})
    return table
