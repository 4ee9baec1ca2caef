"""The page: everything about one run in one HTML file that needs nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from markupsafe import Markup

from pipeline.model.decision import Ints
from pipeline.model.evaluation import PartScores
from pipeline.model.saved import Heads, SavedHead
from pipeline.report.inputs import PARTS, Corpus
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
_HEADLINE = {
    "binary": ("accuracy", "f1", "f1_macro", "roc_auc"),
    "multiclass": ("accuracy", "f1_macro", "f1_weighted", "roc_auc"),
    "ordinal": ("accuracy", "mean_absolute_error", "f1_macro"),
    "multilabel": ("f1_macro", "f1_micro", "accuracy", "roc_auc"),
    "regression": ("mean_absolute_error", "root_mean_squared_error", "r2"),
}
_COLUMNS = (
    ("accuracy", "Accuracy"),
    ("precision", "Precision"),
    ("recall", "Recall"),
    ("f1", "F1"),
    ("f1_macro", "Macro F1"),
    ("f1_weighted", "Weighted F1"),
    ("roc_auc", "ROC-AUC"),
    ("f1_micro", "Micro F1"),
    ("average_precision", "Avg. precision"),
    ("mean_absolute_error", "Mean abs. error"),
    ("root_mean_squared_error", "Root mean sq. error"),
    ("r2", "R²"),
)
_LABELS = dict(_COLUMNS)
_PART_TITLES = {
    "train": "Train",
    "validation": "Validation",
    "test": "Test",
    "test_unseen": "Test, unseen texts",
}


@dataclass(frozen=True)
class PageContent:
    """All that the page tells.

    :param scores: part → task → scores.
    :param curves: task → its curves on the test part.
    :param files: the machine-readable files beside the page, relative to it.
    """

    title: str
    assets: Mapping[str, Any]
    heads: Heads
    corpus: Corpus
    scores: Mapping[str, Mapping[str, PartScores]]
    curves: Mapping[str, TaskCurves]
    timings: Sequence[Mapping[str, Any]]
    files: Sequence[str]


def render_page(content: PageContent) -> str:
    """The page as HTML; every text in it is escaped but the drawings, which hold none of a user."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"score": format_score, "value": format_value, "count": "{:,}".format}
    source = resources.files("pipeline.report").joinpath("page.html.j2").read_text("utf-8")
    backbone = content.assets["backbone"]
    wanted = backbone.get("wanted")
    return environment.from_string(source).render(
        title=content.title,
        backbone=backbone,
        wanted=wanted if wanted != backbone["id"] else None,
        assets=content.assets,
        parts=describe_parts(content.corpus),
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
    """A score with three decimals; a dash if it is undefined."""
    return "–" if value is None else f"{value:.3f}"


def format_value(value: object) -> str:
    """A setting or a detail as a person would write it."""
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


def describe_parts(corpus: Corpus) -> list[dict[str, Any]]:
    """Rows and distinct texts of each part."""
    return [
        {
            "part": part,
            "rows": len(corpus.parts[part]),
            "texts": corpus.count_texts(part),
            "share": len(corpus.parts[part]) / max(len(corpus.codes), 1),
        }
        for part in PARTS
    ]


def describe_head(content: PageContent, head: SavedHead) -> dict[str, Any]:
    """What the page shows of one head."""
    scores = {part: content.scores[part][head.name] for part in PARTS}
    history = head.history
    kept = int(head.about["best_epoch"])
    binary = head.threshold is not None
    given = {metric for of_part in scores.values() for metric in of_part.overall}
    columns = [(metric, label) for metric, label in _COLUMNS if metric in given]
    return {
        "name": head.name,
        "about": head.about,
        "type": head.type.name,
        "layers": head.layers,
        "decision": head.decision,
        "binary": binary,
        "classes": head.classes,
        "headline": [
            (
                f"F1 of {head.classes[1]}" if metric == "f1" else _LABELS[metric],
                scores["test"].overall.get(metric),
                scores["test_unseen"].overall.get(metric),
                scores["test"].intervals.get(metric),
                scores["test"].seeds.get(metric),
            )
            for metric in head.type.headline
        ],
        "columns": [label for _, label in columns],
        "parts": [
            (_PART_TITLES[part], of_part.rows, [of_part.overall.get(m) for m, _ in columns])
            for part, of_part in scores.items()
        ],
        "scores": scores,
        "confusion": shade_confusion(scores["test"].confusion, head.classes)
        if 0 < len(scores["test"].confusion) <= _MATRIX_CLASSES
        else None,
        "confusions": list_confusions(scores["test"].confusion, head.classes),
        "has_confusion": bool(len(scores["test"].confusion)),
        "search": describe_search(head),
        "figures": draw_figures(content, head) if scores["test"].rows else [],
        "training": Markup(draw_history(history, kept)) if history.epochs else None,
        "kept_epoch": kept,
        "configuration": ", ".join(
            f"{key.replace('_', ' ')} {format_value(item)}"
            for key, item in (head.about.get("configuration") or {}).items()
            if key != "layers"
        ),
    }


def describe_search(head: SavedHead) -> dict[str, Any] | None:
    """The search table of one task, its first lines; ``None`` without a search."""
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

    :param confusion: [C, C], actual by predicted.
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

    :param confusion: [C, C], actual by predicted.
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
    """ROC and precision-recall curves on the test part, with what their legends say."""
    curves = content.curves[head.name]
    test = content.scores["test"][head.name]
    recall, false_positives, precision = (
        _find_threshold(test) if head.threshold is not None else (0.0, 0.0, 0.0)
    )
    roc_labels = ("false positive rate", "true positive rate")
    kinds: list[tuple[str, list[Curve], tuple[str, str], tuple[float, float], bool]] = [
        ("ROC", curves.roc, roc_labels, (false_positives, recall), True),
        (
            "Precision–recall",
            curves.precision_recall,
            ("recall", "precision"),
            (recall, precision),
            False,
        ),
    ]
    shown = choose_classes(test)
    figures = []
    for title, traced, labels, point, diagonal in kinds:
        chosen = [curve for curve in traced if curve.index in shown]
        if chosen:
            mark = point if head.threshold is not None else None
            figures.append(
                {
                    "title": title,
                    "svg": Markup(draw_curves(chosen, labels, diagonal=diagonal, mark=mark)),
                    "legend": [head.classes[curve.index] for curve in chosen],
                    "left_out": len(traced) - len(chosen),
                }
            )
    return figures


def choose_classes(scores: PartScores) -> set[int]:
    """The classes whose curves are drawn: all, or of too many those with the lowest F1."""
    order = sorted(
        (index for index, s in enumerate(scores.classes) if s.support),
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
