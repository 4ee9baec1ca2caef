"""The page: everything about one run in one HTML file that needs nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from markupsafe import Markup

from pipeline.assets import Asset
from pipeline.console import format_number
from pipeline.model.decision import Ints
from pipeline.model.evaluation import PartScores
from pipeline.model.metrics import METRICS
from pipeline.model.saved import Heads, SavedHead
from pipeline.report.inputs import ScoredRows
from pipeline.report.plots import (
    SERIES_COLORS,
    Curve,
    TaskCurves,
    draw_curves,
    draw_history,
)

_MATRIX_CLASSES = 15  # a larger confusion matrix cannot be read
_TOP_CONFUSIONS = 25
_SHOWN_SEARCH = 20
_ONLY_IN_FILES = {"precision_macro", "recall_macro"}  # metrics that the page leaves to metrics.json
_PART_TITLES = {
    "train": "Train",
    "validation": "Validation",
    "test": "Test",
    "test_unseen": "Test, unseen texts",
    "validation_unseen": "Validation, unseen texts",
}

_SHOWN_FILES = 20  # of the dataset, with their hashes


@dataclass(frozen=True)
class PageContent:
    """All that the page tells.

    :param title: the title of the page.
    :param assets: the dataset, the backbone, and what else was fetched, by key.
    :param heads: the heads.
    :param rows: the rows that they are scored on.
    :param cut: what cutting long texts has cost, in words.
    :param scores: part → task → scores.
    :param curves: task → its curves on the judged part.
    :param timings: what the stages took, a record each.
    :param files: the names of the machine-readable files beside the page, relative to it.
    """

    title: str
    assets: Mapping[str, Asset]
    heads: Heads
    rows: ScoredRows
    cut: str
    scores: Mapping[str, Mapping[str, PartScores]]
    curves: Mapping[str, TaskCurves]
    timings: Sequence[Mapping[str, Any]]
    files: Sequence[str]


def render_page(content: PageContent) -> str:
    """The page as HTML; every text in it is escaped but the drawings, which hold none of a user.

    :param content: what it tells.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"score": format_score, "value": format_value, "count": "{:,}".format}
    source = resources.files("pipeline.report").joinpath("page.html.j2").read_text("utf-8")
    backbone = content.assets["backbone"]
    wanted = backbone.extra.get("wanted")
    return environment.from_string(source).render(
        title=content.title,
        backbone=backbone,
        wanted=wanted if wanted != backbone.id else None,
        dataset=content.assets["dataset"],
        dataset_files=[
            pair for of in content.assets["dataset"].list_members() for pair in of.files.items()
        ],
        shown_files=_SHOWN_FILES,
        other_assets={
            key: asset
            for key, asset in content.assets.items()
            if key not in ("backbone", "dataset")
        },
        parts=describe_parts(content.rows),
        judged=content.rows.judged,
        judged_rows=len(content.rows.parts[content.rows.judged]),
        unseen_rows=len(content.rows.parts[content.rows.unseen]),
        cut=content.cut,
        tasks=[describe_head(content, head) for head in content.heads.heads],
        features=content.heads.features,
        width=len(content.heads.layers) * content.heads.width,
        fingerprint=content.heads.fingerprint,
        training=content.heads.training,
        timings=content.timings,
        files=content.files,
        part_titles=_PART_TITLES,
    )


def format_score(value: float | None) -> str:
    """A score with three decimals, a huge or tiny one with three digits; a dash for ``None``.

    :param value: the score.
    """
    return "–" if value is None else format_number(value, 3)


def format_value(value: object) -> str:
    """A setting or a detail as a person would write it.

    :param value: a value of JSON.
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {format_value(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(format_value(item) for item in value)
    return str(value)


def describe_parts(rows: ScoredRows) -> list[dict[str, Any]]:
    """Rows and distinct texts of each part.

    :param rows: the rows of the corpus.
    """
    return [
        {
            "part": part,
            "rows": len(rows.parts[part]),
            "texts": rows.count_texts(part),
            "share": len(rows.parts[part]) / max(len(rows.codes), 1),
        }
        for part in rows.parts
    ]


def describe_head(content: PageContent, head: SavedHead) -> dict[str, Any]:
    """What the page shows of one head.

    :param content: what the page tells.
    :param head: the head.
    """
    scores = {part: content.scores[part][head.name] for part in content.rows.parts}
    judged, unseen = scores[content.rows.judged], scores[content.rows.unseen]
    history = head.history
    kept_epoch = int(head.about["best_epoch"])
    given = {metric for of_part in scores.values() for metric in of_part.overall}
    columns = [metric for metric in METRICS if metric in given - _ONLY_IN_FILES]
    configuration = head.about.get("configuration") or {}
    return {
        "name": head.name,
        "about": head.about,
        "type": head.type.name,
        "layers": head.layers,
        "decision": head.decision,
        "threshold": head.threshold,
        "positive_class": head.classes[head.type.positive_class or 0] if head.classes else None,
        "classes": head.classes,
        "headline": [
            _describe_figure(head, metric, judged, unseen) for metric in head.type.headline
        ],
        "columns": [METRICS[metric].title for metric in columns],
        "parts": [
            (_PART_TITLES[part], of_part.rows, [of_part.overall.get(m) for m in columns])
            for part, of_part in scores.items()
        ],
        "held_out": head.about.get("held_out_score") if head.about.get("metric") else None,
        "by_class": list(zip(judged.classes, unseen.classes, strict=True)),
        "confusion": shade_confusion(judged.confusion, head.classes)
        if 0 < len(judged.confusion) <= _MATRIX_CLASSES
        else None,
        "confusions": list_confusions(judged.confusion, head.classes),
        "has_confusion": bool(len(judged.confusion)),
        "search": describe_search(head),
        "figures": draw_figures(content, head) if judged.rows else [],
        "training": Markup(draw_history(history, kept_epoch)) if history.epochs else None,
        "kept_epoch": kept_epoch,
        "configuration": ", ".join(
            f"{key.replace('_', ' ')} {format_value(item)}"
            for key, item in configuration.items()
            if key != "layers"
        ),
    }


def _describe_figure(
    head: SavedHead, metric: str, judged: PartScores, unseen: PartScores
) -> tuple[object, ...]:
    """One large figure of the page.

    :param judged: the scores on the judged part.
    :param unseen: those on the rows of this part that are unlike all training rows.
    :returns: its name, its value on judged rows and on unseen ones, its interval, and its mean and
        deviation over the seeds.
    """
    title = METRICS[metric].title
    if metric == "f1" and head.type.positive_class is not None:
        title = f"{title} of {head.classes[head.type.positive_class]}"
    return (
        title,
        judged.overall.get(metric),
        unseen.overall.get(metric),
        judged.intervals.get(metric),
        judged.seeds.get(metric),
    )


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


def draw_figures(content: PageContent, head: SavedHead) -> list[dict[str, Any]]:
    """ROC and precision-recall curves on the judged part, with what their legends say.

    :param content: what the page tells.
    :param head: the head that the curves are of.
    """
    curves = content.curves[head.name]
    judged = content.scores[content.rows.judged][head.name]
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
    return {
        "title": title,
        "svg": Markup(draw_curves(chosen, labels, diagonal=diagonal, mark=mark)),
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
