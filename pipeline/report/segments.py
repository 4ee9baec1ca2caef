"""Where a head is weak: groups of rows on which it errs more than chance would have it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.model.decision import Floats, Ints, Logits
from pipeline.model.saved import Heads, SavedHead
from pipeline.report.inputs import ScoredRows
from pipeline.report.map import MapPoints

MIN_ROWS = 20  # with fewer distinct texts a group can hardly be told from chance
SIGNIFICANCE = 0.05  # the probability that chance puts any segment on a task's list
_LENGTH_GROUPS = 5
_MAX_VALUES = 50  # of a column, the most frequent
_MANY_NUMBERS = 10  # different numbers in a column, beyond which they are grouped by size
_Z = 1.959964  # 95 % of a normal distribution lie within as many deviations


@dataclass(frozen=True)
class Segment:
    """The score of one head on one group of rows.

    :param task: the name of the task.
    :param kind: what the rows have in common: ``length``, ``class``, ``cluster``, or ``column: x``.
    :param name: which length, class, cluster or value.
    :param n_rows: the number of rows.
    :param metric: ``accuracy``, or ``mean_absolute_error`` of classes in order and of numbers.
    :param score: the metric on these rows.
    :param interval: the ends of its 95 % interval.
    :param overall: the metric on all rows of the part.
    :param p_value: the probability that so many errors fall on a group by chance, corrected for all
        groups of the task.
    """

    task: str
    kind: str
    name: str
    n_rows: int
    metric: str
    score: float
    interval: tuple[float, float]
    overall: float
    p_value: float


@dataclass(frozen=True, eq=False)
class Grouping:
    """Groups of the rows of the corpus; no row is in two of one grouping.

    :param kind: what the rows of a group have in common, as in ``Segment``.
    :param names: the names of the groups.
    :param codes: the group of each row, -1 for none: int64, [B].
    """

    kind: str
    names: tuple[str, ...]
    codes: Ints


def find_weak_segments(
    heads: Heads,
    rows: ScoredRows,
    logits: Mapping[str, Sequence[Logits]],
    groupings: Sequence[Grouping],
) -> list[Segment]:
    """The groups of judged rows on which heads err more often, or further, than chance explains.

    :param heads: the heads.
    :param rows: the rows of the corpus.
    :param logits: task → logits of the N distinct texts, [N, O], for each seed, as of
        ``score_texts``.
    :param groupings: groups of rows; those of classes are added.
    :returns: the worst first: that whose errors are surely the most times those of all rows.
    """
    found = [
        segment
        for head in heads.heads
        for segment in score_segments(head, rows, logits[head.name][0], groupings)
        if segment.p_value <= SIGNIFICANCE
    ]
    return sorted(found, key=_rank_segment)


def _rank_segment(segment: Segment) -> float:
    """Lower for segments whose errors are surely more times those of all rows."""
    if segment.metric == "accuracy":
        return -(1 - segment.interval[1]) / max(1 - segment.overall, 1e-12)
    return -segment.interval[0] / max(segment.overall, 1e-12)


def score_segments(
    head: SavedHead, rows: ScoredRows, logits: Logits, groupings: Sequence[Grouping]
) -> list[Segment]:
    """The scores of one head on all groups of judged rows that have enough of them.

    Whether a group is worse than the other rows is tested on distinct texts, since a text that
    stands many times would else count as so many finds. P-values are corrected for all groups, so
    that chance puts one on the list of a task at most once in twenty times.

    Source: Holm (1979), A simple sequentially rejective multiple test procedure.

    :param head: the head.
    :param rows: the rows of the corpus.
    :param logits: logits of the N distinct texts, [N, O].
    :param groupings: groups of rows; those of classes are added.
    """
    judged = rows.take_rows(rows.judged, head.name)
    labels = rows.labels[head.name][judged]
    if not len(judged):
        return []
    answers = head.type.answer(labels, logits[rows.codes[judged]], len(head.classes), head.decision)
    is_count = "mean_absolute_error" not in head.type.metrics
    errors = (
        1.0 - answers.is_right if is_count else np.abs(answers.predicted - answers.actual)
    ).astype(np.float64)
    metric, overall = ("accuracy", 1 - errors.mean()) if is_count else (
        "mean_absolute_error", errors.mean()
    )  # fmt: skip
    found: list[tuple[float, Segment]] = []
    for grouping in (*groupings, *group_classes(head, rows)):
        codes = grouping.codes[judged]
        texts = _take_distinct(rows.codes[judged], codes)
        for group in np.unique(codes[codes >= 0]).tolist():
            inside = codes == group
            p_value = judge_errors(errors[texts], inside[texts], is_count=is_count)
            if p_value is None:
                continue
            score, interval = _measure_group(errors[inside], is_count=is_count)
            found.append(
                (p_value, Segment(
                    head.name, grouping.kind, grouping.names[group], int(inside.sum()), metric,
                    score, interval, float(overall), p_value,
                ))
            )  # fmt: skip
    corrected = correct_for_many(np.array([p_value for p_value, _ in found]))
    return [
        Segment(**{**vars(segment), "p_value": float(p_value)})
        for p_value, (_, segment) in zip(corrected, found, strict=True)
    ]


def _take_distinct(texts: Ints, codes: Ints) -> Ints:
    """The first row of each text in each group."""
    # One number a text and group, since codes begin at -1, is sorted sooner than pairs.
    _, first = np.unique(texts * (codes.max(initial=-1) + 2) + codes + 1, return_index=True)
    return np.sort(first)


def _measure_group(errors: Floats, *, is_count: bool) -> tuple[float, tuple[float, float]]:
    """A group's score and the ends of its 95 % interval.

    Source: Wilson (1927), Probable inference, the law of succession, and statistical inference.
    """
    n, mean = len(errors), float(errors.mean())
    if is_count:
        score = 1 - mean
        center = (score + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z * math.sqrt(score * mean / n + _Z**2 / (4 * n * n)) / (1 + _Z**2 / n)
        return score, (max(center - half, 0.0), min(center + half, 1.0))
    half = _Z * float(errors.std(ddof=1)) / math.sqrt(n)
    return mean, (max(mean - half, 0.0), mean + half)


def judge_errors(errors: Floats, inside: npt.NDArray[np.bool_], *, is_count: bool) -> float | None:
    """How likely so many, or so large, errors fall on a group by chance.

    :param errors: the error of each of B rows: 0 or 1, or a distance.
    :param inside: whether each row is in the group, [B].
    :param is_count: whether errors are 0 or 1.
    :returns: the one-sided p-value; ``None`` of a group with few rows, or with all but few.
    """
    n = int(inside.sum())
    if n < MIN_ROWS or len(errors) - n < MIN_ROWS:
        return None
    if is_count:
        return judge_counts(len(errors), int(errors.sum()), n, int(errors[inside].sum()))
    return judge_ranks(errors, inside)


def judge_counts(B: int, wrong: int, n: int, found: int) -> float:
    """The probability of at least so many wrong rows among some that are drawn at random.

    Source: Fisher (1922), On the interpretation of χ² from contingency tables (the exact test).

    :param B: the number of rows.
    :param wrong: the number of those that are wrong.
    :param n: the number of rows that are drawn.
    :param found: the number of wrong ones among them.
    """
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, B + 1)))])  # of factorials
    k = np.arange(max(found, n - (B - wrong), 0), min(n, wrong) + 1)
    ways = logs[wrong] - logs[k] - logs[wrong - k]
    ways = ways + logs[B - wrong] - logs[n - k] - logs[B - wrong - n + k]
    return float(min(np.exp(ways - (logs[B] - logs[n] - logs[B - n])).sum(), 1.0))


def judge_ranks(errors: Floats, inside: npt.NDArray[np.bool_]) -> float:
    """The probability that a group's errors rank so high by chance, by the normal approximation.

    Source: Mann, Whitney (1947), On a test of whether one of two random variables is stochastically
    larger than the other.

    :param errors: the error of each of B rows.
    :param inside: whether each row is in the group, [B], which holds some rows and lacks some.
    """
    _, codes, counts = np.unique(errors, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[codes]  # equal errors share their mean rank
    B, n = len(errors), int(inside.sum())
    above = ranks[inside].sum() - n * (n + 1) / 2
    ties = (counts.astype(np.float64) ** 3 - counts).sum() / (B * (B - 1))
    variance = n * (B - n) / 12 * (B + 1 - ties)
    if variance <= 0:
        return 1.0
    deviations = (above - n * (B - n) / 2 - 0.5) / math.sqrt(variance)
    return math.erfc(deviations / math.sqrt(2)) / 2


def correct_for_many(p_values: Floats) -> Floats:
    """P-values after Holm's correction, so that any below α is a chance find with probability α.

    :param p_values: [n].
    :returns: [n], in their order, at most 1.
    """
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    raised = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1.0)
    corrected = np.empty(len(p_values))
    corrected[order] = raised
    return corrected


def group_classes(head: SavedHead, rows: ScoredRows) -> list[Grouping]:
    """Rows by their class; by each tag that they have; numbers have no groups.

    :param head: the head whose classes they are.
    :param rows: the rows of the corpus.
    """
    labels = rows.labels[head.name]
    if head.type.label_kind == "number":
        return []
    if head.type.label_kind == "class":
        return [Grouping("class", head.classes, labels.astype(np.int64))]
    return [
        Grouping("class", (name,), np.where(labels[:, index] > 0, 0, -1))
        for index, name in enumerate(head.classes)
    ]


def group_lengths(lengths: Ints, chosen: Ints, unit: str = "characters") -> Grouping:
    """Rows by the length of their text, in five groups that are about equally large.

    :param lengths: the length of each row's text, [B].
    :param chosen: the rows by which the bounds are chosen, such as the judged ones.
    :param unit: what lengths count, for the names.
    """
    return _group_sizes("length", lengths.astype(np.float64), chosen, f" {unit}")


def group_values(column: str, values: Iterable[Any], chosen: Ints) -> Grouping:
    """Rows by the value of a column: its most frequent values, or five ranges of many numbers.

    :param column: the name of the column.
    :param values: the value of each row as text, ``None`` or blank where there is none, [B].
    :param chosen: the rows by which ranges and values are chosen, such as the judged ones.
    """
    kind = f"column: {column}"
    texts = np.array([str(value).strip() if value is not None else "" for value in values], object)
    numbers = _read_numbers(texts)
    if numbers is not None and len(np.unique(numbers[np.isfinite(numbers)])) > _MANY_NUMBERS:
        return _group_sizes(kind, numbers, chosen, "")
    names, counts = np.unique(texts[chosen].astype(str), return_counts=True)
    kept = names[np.argsort(-counts, kind="stable")[:_MAX_VALUES]].tolist()
    index = {name: number for number, name in enumerate(kept)}
    codes = np.array([index.get(text, -1) for text in texts], np.int64)
    return Grouping(kind, tuple(name or "(empty)" for name in kept), codes)


def group_points(points: MapPoints, names: Sequence[str], rows: ScoredRows) -> Grouping:
    """Rows by the cluster of the map that their text is in; rows whose text is not on it by none.

    :param points: the map.
    :param names: the names of its clusters.
    :param rows: the rows of the corpus.
    """
    of_text = np.full(int(rows.codes.max(initial=-1)) + 1, -1, np.int64)
    of_text[rows.codes[points.rows]] = points.cluster
    return Grouping("cluster", tuple(names), of_text[rows.codes])


def _read_numbers(texts: npt.NDArray[Any]) -> Floats | None:
    """Texts as numbers, NaN where one is empty; ``None`` if one is no number."""
    try:
        return np.array([float(text) if text else np.nan for text in texts])
    except ValueError:
        return None


def _group_sizes(kind: str, sizes: Floats, chosen: Ints, unit: str) -> Grouping:
    """Rows by the size of a number, in about equal groups; rows without one are in none."""
    known = sizes[chosen][np.isfinite(sizes[chosen])]
    if not len(known):
        return Grouping(kind, (), np.full(len(sizes), -1, np.int64))
    shares = np.arange(1, _LENGTH_GROUPS) / _LENGTH_GROUPS
    bounds = np.unique(np.quantile(known, shares, method="lower"))
    bounds = bounds[bounds < known.max()]  # the upper ends of all groups but the last
    codes = np.searchsorted(bounds, sizes, side="left").astype(np.int64)
    codes[~np.isfinite(sizes)] = -1
    of_known = codes[chosen][np.isfinite(sizes[chosen])]
    names = []
    for group in range(len(bounds) + 1):
        held = known[of_known == group]
        low, high = (f"{end:,.10g}" for end in (held.min(), held.max()))
        names.append(f"{low} to {high}{unit}" if low != high else f"{low}{unit}")
    return Grouping(kind, tuple(names), codes)
