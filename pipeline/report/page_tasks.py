"""What the page tells of each task: scores, classes, mistakes, curves, and how it was trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from pipeline.model.decision import Floats, Ints, Logits
from pipeline.model.evaluation import ClassScores, PartScores
from pipeline.model.metrics import METRICS
from pipeline.model.saved import History, SavedHead
from pipeline.report.calibration import Reliability
from pipeline.report.charts import (
    BOTTOM,
    LEFT,
    RIGHT,
    SERIES_COLORS,
    TOP,
    Axis,
    Line,
    draw_bars,
    draw_chart,
    draw_curves,
    draw_history,
    draw_strip,
)
from pipeline.report.errors import ErrorRow
from pipeline.report.findings import Findings
from pipeline.report.inputs import ScoredRows
from pipeline.report.layers import read_layer_worth, read_path_bound
from pipeline.report.plots import Curve, TaskCurves
from pipeline.report.thresholds import ThresholdCurve
from pipeline.report.values import format_value, name_step

PART_TITLES = {
    "train": "Train",
    "validation": "Validation",
    "test": "Test",
    "test_unseen": "Test, unseen texts",
    "validation_unseen": "Validation, unseen texts",
}
_MATRIX_CLASSES = 15  # a larger confusion matrix cannot be read
_SORTED_CLASSES = 8  # beyond which the table of classes has the worst first
_TOP_CONFUSIONS = 25
_SHOWN_SEARCH = 20
_MOST_SCATTERED = 1500  # rows in the chart of predicted by actual numbers
_ONLY_IN_FILES = {"precision_macro", "recall_macro"}  # metrics that the page leaves to metrics.json
_BASELINE_TITLES = {"most frequent": "most frequent answer", "words": "words alone"}
_CONFIDENCES = {
    "class": "Sure of the positive class, and how often a row was of it.",
    "answer": "Sure of the answer, and how often it was right.",
    "tags": "Sure of a tag, and how often a row had it.",
}


def describe_head(
    rows: ScoredRows,
    scores_by_part: Mapping[str, Mapping[str, PartScores]],
    curves: Mapping[str, TaskCurves],
    findings: Findings,
    logits: Mapping[str, Sequence[Logits]],
    head: SavedHead,
) -> dict[str, Any]:
    """What the page shows of one head.

    :param rows: the rows that all heads are scored on.
    :param scores_by_part: part → task → scores.
    :param curves: task → its curves on the judged part.
    :param findings: what was found.
    :param logits: task → logits of the N distinct texts, [N, O], for each seed.
    :param head: the head.
    """
    scores = {part: scores_by_part[part][head.name] for part in rows.parts}
    judged, unseen = scores[rows.judged], scores[rows.unseen]
    kept_epoch = int(head.about["best_epoch"])
    given = {metric for of_part in scores.values() for metric in of_part.overall}
    columns = [metric for metric in METRICS if metric in given - _ONLY_IN_FILES]
    floors = findings.baselines.get(head.name, {})
    reliability = findings.reliability.get(head.name)
    return {
        "name": head.name,
        "about": head.about,
        "type": head.type.name,
        "layers": head.layers,
        "decision": head.decision,
        "threshold": head.threshold,
        "positive_class": head.classes[head.type.positive_class or 0] if head.classes else None,
        "classes": head.classes,
        "headline": describe_headline(head, judged, unseen, floors),
        "columns": [METRICS[metric].title for metric in columns],
        "parts": list_part_scores(scores, floors, rows.judged, columns),
        "held_out": head.about.get("held_out_score") if head.about.get("metric") else None,
        "by_class": list_classes(judged, unseen),
        "confusion": shade_confusion(judged.confusion, head.classes)
        if 0 < len(judged.confusion) <= _MATRIX_CLASSES
        else None,
        "confusions": list_confusions(judged.confusion, head.classes)
        if len(judged.confusion)
        else list_tag_confusions(findings.errors.get(head.name, ()), judged.classes),
        "has_confusion": bool(len(judged.confusion)),
        "reliability": describe_reliability(reliability) if reliability else None,
        "thresholds": describe_thresholds(findings.thresholds.get(head.name, ())),
        "scatter": draw_scatter(rows, head, logits[head.name][0]),
        "layers_worth": describe_layers(head),
        "path": describe_path(head),
        "search": describe_search(head),
        "figures": draw_figures(head, curves[head.name], judged) if judged.rows else [],
        "training": draw_training(head.history, kept_epoch),
        "kept_epoch": kept_epoch,
        "configuration": describe_configuration(head),
    }


def draw_training(history: History, kept_epoch: int) -> Markup | None:
    """The losses by epoch; ``None`` of fewer than two epochs, as heads in closed form have.

    :param history: the losses.
    :param kept_epoch: the epoch that was kept.
    """
    return Markup(draw_history(history, kept_epoch)) if len(history.epochs) > 1 else None


def describe_configuration(head: SavedHead) -> str:
    """The settings that a head was trained with, in words.

    :param head: the head.
    """
    configuration = head.about.get("configuration") or {}
    return ", ".join(
        f"{key.replace('_', ' ')} {format_value(item)}"
        for key, item in configuration.items()
        if key != "layers"
    )


def describe_headline(
    head: SavedHead,
    judged: PartScores,
    unseen: PartScores,
    floors: Mapping[str, PartScores],
) -> list[dict[str, Any]]:
    """The large figures of one task; the first is what its configuration was chosen by.

    :param head: the head.
    :param judged: the scores on the judged part.
    :param unseen: those on the rows of this part that are unlike all training rows.
    :param floors: name of a baseline → its scores on the judged part.
    """
    first = head.type.default_metric
    metrics = [first, *(metric for metric in head.type.headline if metric != first)]
    return [_describe_figure(head, metric, judged, unseen, floors) for metric in metrics]


def _describe_figure(
    head: SavedHead,
    metric: str,
    judged: PartScores,
    unseen: PartScores,
    floors: Mapping[str, PartScores],
) -> dict[str, Any]:
    title = METRICS[metric].title
    if metric == "f1" and head.type.positive_class is not None:
        title = f"{title} of {head.classes[head.type.positive_class]}"
    value, interval = judged.overall.get(metric), judged.intervals.get(metric)
    below = [
        (_BASELINE_TITLES[name], of_floor.overall[metric])
        for name, of_floor in floors.items()
        if metric in of_floor.overall
    ]
    axis, strip = None, None
    if value is not None:
        axis = _choose_axis(metric, [value, *(interval or ()), *(floor for _, floor in below)])
        strip = Markup(draw_strip(axis, value, interval, [floor for _, floor in below]))
    return {
        "title": title,
        "value": value,
        "unseen": unseen.overall.get(metric),
        "interval": interval,
        "seeds": judged.seeds.get(metric),
        "lower": METRICS[metric].lower_is_better,
        "floors": below,
        "axis": (axis.low, axis.high) if axis else None,
        "strip": strip,
    }


def _choose_axis(metric: str, values: Sequence[float]) -> Axis:
    """The range of one score: 0 to 1, or as far as the scores go."""
    if METRICS[metric].lower_is_better:
        return Axis("", 0.0, max(*values, 1e-12) * 1.05, ())
    return Axis("", min(*values, 0.0), max(*values, 1.0), ())


def list_part_scores(
    scores: Mapping[str, PartScores],
    floors: Mapping[str, PartScores],
    judged: str,
    columns: Sequence[str],
) -> list[tuple[str, int, list[float | None]]]:
    """The scores of each part, and of the floors on the judged one.

    :param scores: part → scores.
    :param floors: name of a baseline → its scores on the judged part.
    :param judged: the name of the judged part.
    :param columns: the metrics.
    :returns: a title, the number of rows and the scores of each line.
    """
    lines = [(PART_TITLES[part], of_part) for part, of_part in scores.items()]
    title = PART_TITLES[judged]
    lines += [(f"{title}, {_BASELINE_TITLES[name]}", floors[name]) for name in floors]
    return [(name, of.rows, [of.overall.get(metric) for metric in columns]) for name, of in lines]


def list_classes(judged: PartScores, unseen: PartScores) -> list[tuple[ClassScores, ClassScores]]:
    """The scores of each class on all judged rows and on the unseen ones; of many, worst first.

    :param judged: the scores on the judged part.
    :param unseen: those on the rows of this part that are unlike all training rows.
    """
    pairs = list(zip(judged.classes, unseen.classes, strict=True))
    if len(pairs) <= _SORTED_CLASSES:
        return pairs
    # Classes without rows say nothing of the head, so they come last.
    return sorted(pairs, key=lambda pair: (not pair[0].support, pair[0].f1 or 0.0))


def describe_search(head: SavedHead) -> dict[str, Any] | None:
    """The search table of one task, its first lines; ``None`` without a search.

    :param head: the head that was chosen.
    """
    if len(head.search) < 2:
        return None
    shown = head.search[:_SHOWN_SEARCH]
    columns = list(dict.fromkeys(key for row in shown for key in row))
    return {
        "columns": [column.replace("_", " ") for column in columns],
        "rows": [[format_value(row[c]) if c in row else "–" for c in columns] for row in shown],
        "left_out": len(head.search) - len(shown),
        "total": len(head.search),
    }


def describe_layers(head: SavedHead) -> dict[str, Any] | None:
    """What each layer is worth: a bar for each, and one for all joined.

    :param head: the head.
    :returns: ``None`` where ``train-heads`` did not measure it.
    """
    worth = read_layer_worth(head)
    if worth is None:
        return None
    bars = [
        (f"layer {layer}", value, "s0" if layer == worth.best else "s5")
        for layer, value in worth.layers.items()
    ]
    bars.append(("all joined", worth.joined, "s7"))
    values = [value for _, value, _ in bars]
    axis = Axis("", min(*values, 0.0), max(*values, 1e-12), ())
    metric = METRICS.get(worth.metric)
    return {
        "svg": Markup(draw_bars(bars, axis)),
        "title": metric.title if metric else worth.metric,
        "lower": metric.lower_is_better if metric else False,
        "rows": worth.rows,
        "best": worth.best,
    }


def describe_path(head: SavedHead) -> dict[str, Any] | None:
    """Held-out scores by weight decay, those of the winner's other settings joined by a line.

    :param head: the head that was chosen.
    :returns: ``None`` of a search that tried fewer than three weight decays above 0.
    """
    tried = [
        row
        for row in head.search
        if _is_number(row.get("weight_decay")) and _is_number(row.get("score"))
        if row["weight_decay"] > 0
    ]
    if len({row["weight_decay"] for row in tried}) < 3:
        return None
    ignored = {"score", "held_out_loss", "weight_decay"}

    def list_settings(row: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in row.items() if key not in ignored}

    tried.sort(key=lambda row: float(row["weight_decay"]))
    taken = list_settings(head.search[0])
    of_winner = [row for row in tried if list_settings(row) == taken]
    decays, scores = (_take_column(tried, key) for key in ("weight_decay", "score"))
    own = np.log10(_take_column(of_winner, "weight_decay")), _take_column(of_winner, "score")
    x = Axis.fit("weight decay, its power of 10", np.log10(decays).tolist())
    y = Axis.fit("held-out score", scores.tolist())
    points = [Line(np.log10(decays), scores, "s7 small"), Line(*own, "s0")]
    uprights = [
        (float(np.log10(row["weight_decay"])), "kept") for row in tried if row is head.search[0]
    ]
    return {
        "svg": Markup(draw_chart(x, y, [Line(*own, "s0")], points, uprights)),
        "bound": read_path_bound(head),
    }


def _is_number(value: Any) -> bool:
    """Whether a value of JSON is a finite number."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))
    )


def _take_column(rows: Sequence[Mapping[str, Any]], key: str) -> Floats:
    return np.array([row[key] for row in rows], np.float64)


def shade_confusion(confusion: Ints, classes: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a confusion matrix; each cell with its share of the rows of that actual class.

    :param confusion: rows by actual and predicted class, [C, C].
    :param classes: C names.
    """
    return [
        {
            "name": name,
            "support": int(row.sum()),
            "cells": [(int(count), float(count / max(row.sum(), 1))) for count in row],
        }
        for name, row in zip(classes, confusion, strict=True)
    ]


def list_confusions(confusion: Ints, classes: Sequence[str]) -> list[tuple[str, str, int, float]]:
    """The most frequent mistakes: actual class, predicted class, rows, share of the actual class.

    :param confusion: rows by actual and predicted class, [C, C].
    :param classes: C names.
    """
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_TOP_CONFUSIONS]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [
        (classes[a], classes[p], int(wrong[a, p]), float(wrong[a, p] / confusion[a].sum()))
        for a, p in pairs
        if wrong[a, p]
    ]


def list_tag_confusions(
    errors: Sequence[ErrorRow], classes: Sequence[ClassScores]
) -> list[tuple[str, str, int, float]]:
    """The most frequent pairs of a tag that is missing and one that is too many in the same row.

    :param errors: the errors of the task.
    :param classes: the scores of its tags, which say how many rows have each.
    :returns: the missing tag, the other one, rows, and their share of the rows that have the first.
    """
    missing: dict[int, list[str]] = {}
    extra: dict[int, list[str]] = {}
    for error in errors:
        side, _, tag = error.kind.partition(": ")
        if side == "missing":
            missing.setdefault(error.row, []).append(tag)
        elif side == "extra":
            extra.setdefault(error.row, []).append(tag)
    counts = Counter(
        (tag, other)
        for row, tags in missing.items()
        for tag in tags
        for other in extra.get(row, [])
    )
    supports = {of_class.name: of_class.support for of_class in classes}
    return [
        (tag, other, count, count / max(supports.get(tag, 0), 1))
        for (tag, other), count in counts.most_common(_TOP_CONFUSIONS)
    ]


def describe_reliability(found: Reliability) -> dict[str, Any]:
    """The reliability diagram of a head, and what its legend says.

    :param found: how far its probabilities can be believed.
    """
    axis = Axis.share
    ends = np.array([0.0, 1.0])
    lines = [Line(ends, ends, "guess")]
    for bins, style in ((found.before, "s7 thin"), (found.after, "s0")):
        known = [b for b in bins if b.confidence is not None and b.share_right is not None]
        x = np.array([b.confidence for b in known], np.float64)
        lines.append(Line(x, np.array([b.share_right for b in known], np.float64), style))
    most = max((b.n for b in found.after), default=0) or 1
    confidences = axis("confidence")
    bars = []
    for of_bin in found.after:
        left, right = confidences.place(np.array([of_bin.low, of_bin.high]), LEFT, RIGHT)
        height = (BOTTOM - TOP) * 0.22 * of_bin.n / most
        bars.append(
            f'<rect class="bar faint" x="{left + 1:.1f}" y="{BOTTOM - height:.1f}" '
            f'width="{right - left - 2:.1f}" height="{height:.1f}"/>'
        )
    for of_bin in (b for b in found.after if b.confidence is not None):
        at = confidences.place(np.array([of_bin.confidence]), LEFT, RIGHT)[0]
        down = axis("").place(np.array([of_bin.share_right]), BOTTOM, TOP)[0]
        radius = 2.5 + 4.5 * (of_bin.n / most) ** 0.5
        bars.append(f'<circle class="point s0" cx="{at:.1f}" cy="{down:.1f}" r="{radius:.1f}"/>')
    svg = draw_chart(confidences, axis("share right"), lines, below="".join(bars))
    return {
        "svg": Markup(svg),
        "temperature": found.temperature,
        "ece_before": found.ece_before,
        "ece_after": found.ece_after,
        "bins": len(found.after),
        "about": _CONFIDENCES[found.confidence_of],
    }


def describe_thresholds(curves: Sequence[ThresholdCurve]) -> dict[str, Any] | None:
    """What another threshold would give, drawn of the first class or tag that has rows.

    :param curves: a curve for each class or tag.
    :returns: ``None`` of tasks without thresholds.
    """
    if not curves:
        return None
    curve, at = curves[0], curves[0].chosen
    x = np.minimum(curve.thresholds, 1.0)
    named = {"precision": curve.precision, "recall": curve.recall, "f1": curve.f1}
    lines = [Line(x, y, f"s{i} curve-{name}") for i, (name, y) in enumerate(named.items())]
    if curve.cost is not None:
        lines.append(Line(x, curve.cost / max(curve.cost.max(), 1e-12), "s3"))
    svg = draw_chart(
        Axis.share("threshold"), Axis.share("score"), lines,
        uprights=[(float(x[at]), "chosen"), (float(x[at]), "now")],
    )  # fmt: skip
    counts = {name: int(getattr(curve, name)[at]) for name in ("tp", "fp", "fn", "tn")}
    of_class, others = counts["tp"] + counts["fn"], counts["fp"] + counts["tn"]
    totals = {"tp": of_class, "fn": of_class, "fp": others, "tn": others}
    return {
        "name": curve.name,
        "names": [of_tag.name for of_tag in curves],
        "svg": Markup(svg),
        "chosen": at,
        "threshold": float(curve.thresholds[at]),
        "has_cost": curve.cost is not None,
        "cost": float(curve.cost[at]) if curve.cost is not None else None,
        **{name: float(values[at]) for name, values in named.items()},
        **counts,
        "steps": {name: name_step(counts[name] / max(totals[name], 1)) for name in counts},
    }


def draw_scatter(rows: ScoredRows, head: SavedHead, logits: Logits) -> Markup | None:
    """Predicted by actual numbers of the judged part; ``None`` of tasks whose labels are none.

    :param rows: the rows of the corpus.
    :param head: the head.
    :param logits: its outputs for the N distinct texts, [N, O].
    """
    chosen = rows.take_rows(rows.judged, head.name)
    if head.type.label_kind != "number" or not len(chosen):
        return None
    if len(chosen) > _MOST_SCATTERED:
        chosen = np.sort(np.random.default_rng(0).permutation(chosen)[:_MOST_SCATTERED])
    actual = rows.labels[head.name][chosen].astype(np.float64)
    predicted = head.type.predict(logits[rows.codes[chosen]], head.decision)
    both = np.concatenate([actual, predicted]).tolist()
    x, y = Axis.fit("actual", both), Axis.fit("predicted", both)
    ends = np.array([x.low, x.high])
    dots = [Line(actual, predicted, "s0 small")]
    return Markup(draw_chart(x, y, [Line(ends, ends, "guess")], dots))


def draw_figures(head: SavedHead, curves: TaskCurves, judged: PartScores) -> list[dict[str, Any]]:
    """ROC and precision-recall curves on the judged part, with what their legends say.

    :param head: the head that the curves are of.
    :param curves: its curves.
    :param judged: its scores on the judged part.
    """
    marks: tuple[Any, Any] = (None, None)
    if head.threshold is not None:
        recall, false_positive_rate, precision = _find_threshold(judged)
        marks = (false_positive_rate, recall), (recall, precision)
    rates, shares = ("false positive rate", "true positive rate"), ("recall", "precision")
    drawn = [
        _draw_figure("ROC", curves.roc, rates, marks[0], head, judged, diagonal=True),
        _draw_figure("Precision–recall", curves.precision_recall, shares, marks[1], head, judged),
    ]
    return [figure for figure in drawn if figure is not None]


def _draw_figure(
    title: str,
    curves: Sequence[Curve],
    labels: tuple[str, str],
    mark: tuple[float, float] | None,
    head: SavedHead,
    scores: PartScores,
    *,
    diagonal: bool = False,
) -> dict[str, Any] | None:
    """One figure of the curves of some classes; ``None`` if no class has one."""
    shown = choose_classes(scores)
    chosen = [curve for curve in curves if curve.index in shown]
    if not chosen:
        return None
    points = [(curve.x, curve.y) for curve in chosen]
    return {
        "title": title,
        "svg": Markup(draw_curves(points, labels, diagonal=diagonal, mark=mark)),
        "legend": [head.classes[curve.index] for curve in chosen],
        "left_out": len(curves) - len(chosen),
    }


def choose_classes(scores: PartScores) -> set[int]:
    """The classes whose curves are drawn: all, or of too many those with the lowest F1.

    :param scores: the scores of the part that the curves are of.
    """
    order = sorted(
        (index for index, of_class in enumerate(scores.classes) if of_class.support),
        key=lambda index: scores.classes[index].f1 or 0.0,
    )
    return set(order[:SERIES_COLORS])


def _find_threshold(scores: PartScores) -> tuple[float, float, float]:
    """Recall, false positive rate and precision of class 1 at the head's threshold."""
    (true_negatives, false_positives), (misses, hits) = scores.confusion[:2, :2]
    return (
        float(hits / max(hits + misses, 1)),
        float(false_positives / max(false_positives + true_negatives, 1)),
        float(hits / max(hits + false_positives, 1)),
    )
