"""The page: everything about one run in one HTML file that needs nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from markupsafe import Markup

from pipeline.assets import Asset
from pipeline.console import format_number
from pipeline.model.decision import Logits
from pipeline.model.evaluation import PartScores
from pipeline.model.metrics import METRICS
from pipeline.model.saved import Heads
from pipeline.recipe import TextRecipe
from pipeline.report.errors import DOUBT_MARGIN
from pipeline.report.findings import Findings
from pipeline.report.inputs import ScoredRows
from pipeline.report.page_data import build_data, mark_json
from pipeline.report.page_tasks import PART_TITLES, describe_head
from pipeline.report.plots import TaskCurves
from pipeline.report.values import format_cost, format_score, format_value, name_step

_FIRST_ROWS = 25  # of each table that stand in the page itself, as many as its script shows
_SHOWN_FILES = 20  # of the dataset, with their hashes


@dataclass(frozen=True)
class PageContent:
    """All that the page tells.

    :param title: the title of the page.
    :param assets: the dataset, the backbone, and what else was fetched, by key.
    :param heads: the heads.
    :param rows: the rows that they are scored on.
    :param logits: task → logits of the N distinct texts, [N, O], for each seed.
    :param cut: what cutting long texts has cost, in words.
    :param scores: part → task → scores.
    :param curves: task → its curves on the judged part.
    :param findings: what was found.
    :param texts: row → its text, of the rows of the tables and of the map; ``None`` where texts are
        not to be shown.
    :param timings: what the stages took, a record each.
    :param files: the names of the machine-readable files beside the page, relative to it.
    """

    title: str
    assets: Mapping[str, Asset]
    heads: Heads
    rows: ScoredRows
    logits: Mapping[str, Sequence[Logits]]
    cut: str
    scores: Mapping[str, Mapping[str, PartScores]]
    curves: Mapping[str, TaskCurves]
    findings: Findings
    texts: Mapping[int, str] | None
    timings: Sequence[Mapping[str, Any]]
    files: Sequence[str]


@dataclass(frozen=True)
class Column:
    """A column of a table of the data; the templates and the script both make cells by it.

    :param title: its heading.
    :param field: the index in a row of the data that it shows.
    :param format: how: ``text``, ``name``, ``kind``, ``score``, ``plain``, ``task`` or ``near``.
    :param style: classes of its cells.
    """

    title: str
    field: int
    format: str
    style: str = ""


_COLUMNS = {
    "errors": (
        Column("Text", 2, "text", "text wide lead-cell"),
        Column("Actual", 3, "name", "text name"),
        Column("Predicted", 4, "name", "text name"),
        Column("Probability", 5, "score"),
        Column("Kind", 6, "kind", "text kinds"),
        Column("Loss", 7, "score"),
        Column("Nearest training text", 8, "near", "text wide"),
        Column("Row", 1, "plain"),
    ),
    "suspects": (
        Column("Text", 2, "text", "text wide lead-cell"),
        Column("Given", 4, "name", "text name"),
        Column("Suggested", 5, "name", "text name"),
        Column("Confidence", 6, "score"),
        Column("Reason", 7, "kind", "text kinds"),
        Column("Part", 3, "plain", "text"),
        Column("Row", 1, "plain"),
    ),
    "leaks": (
        Column("Text", 1, "text", "text wide lead-cell"),
        Column("Training text", 3, "text", "text wide"),
        Column("Cosine", 4, "score"),
        Column("Labels", 5, "plain", "text kinds"),
        Column("Training row", 2, "plain"),
        Column("Row", 0, "plain"),
    ),
}


def list_columns(*, shows_texts: bool, has_tasks: bool) -> dict[str, list[Column]]:
    """Table → its columns.

    :param shows_texts: whether texts may be shown.
    :param has_tasks: whether there are several tasks, which rows have to name.
    """
    task = [Column("Task", 0, "task", "text of-task")] if has_tasks else []
    return {
        name: [
            column
            for column in (*columns[:-1], *(task if name != "leaks" else []), columns[-1])
            if shows_texts or column.format != "text"
        ]
        for name, columns in _COLUMNS.items()
    }


def render_page(content: PageContent) -> str:
    """The page as HTML; every text in it is escaped but the drawings, which hold none of a user.

    :param content: what it tells.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_read_template),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "score": format_score, "value": format_value, "cost": format_cost, "step": name_step,
        "count": "{:,}".format,
    }  # fmt: skip
    style, script = _read_template("page.css"), _read_template("page.js")
    data = build_data(content.heads, content.rows, content.findings, content.logits, content.texts)
    tasks = [
        describe_head(
            content.rows, content.scores, content.curves, content.findings, content.logits, head
        )
        for head in content.heads.heads
    ]
    return environment.get_template("page.html.j2").render(
        policy=Markup(make_policy(style, script)),
        style=Markup(style),
        script=Markup(script),
        json=mark_json(data),
        data=data,
        first_rows=_FIRST_ROWS,
        columns=list_columns(shows_texts=content.texts is not None, has_tasks=len(tasks) > 1),
        shows_texts=content.texts is not None,
        tasks=tasks,
        sections=_list_sections(content, bool(content.timings)),
        part_titles=PART_TITLES,
        timings=content.timings,
        files=content.files,
        **_describe_run(content),
        **_describe_findings(content),
    )


def _read_template(name: str) -> str:
    """A file of the templates' folder."""
    return resources.files("pipeline.report").joinpath("templates", name).read_text("utf-8")


def make_policy(style: str, script: str) -> str:
    """The Content-Security-Policy by which the browser runs this script alone and loads nothing.

    :param style: the content of the page's style element.
    :param script: the content of the page's script element.
    """

    def name(text: str) -> str:
        digest = hashlib.sha256(text.encode("utf-8")).digest()
        return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"

    return (
        f"default-src 'none'; script-src {name(script)}; style-src {name(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _list_sections(content: PageContent, has_costs: bool) -> list[tuple[str, str]]:
    """The sections that the page's bar names: id and name."""
    tasks = [(f"task-{i}", head.name) for i, head in enumerate(content.heads.heads, 1)]
    return [
        ("results", "Results"),
        *([("map", "Map")] if len(content.findings.points.rows) else []),
        ("errors", "Errors"),
        ("suspects", "Label errors"),
        ("leaks", "Leaks"),
        ("segments", "Weak segments"),
        *tasks,
        ("training", "Training"),
        *([("costs", "Costs")] if has_costs else []),
        ("data-files", "Data"),
    ]


def _describe_run(content: PageContent) -> dict[str, Any]:
    """What the templates tell of the backbone, the data and the training."""
    backbone, dataset = content.assets["backbone"], content.assets["dataset"]
    wanted = backbone.extra.get("wanted")
    heads, rows = content.heads, content.rows
    return {
        "title": content.title,
        "backbone": backbone,
        "wanted": wanted if wanted != backbone.id else None,
        "pooling": TextRecipe.from_contents(content.heads.recipe).describe(),
        "dataset": dataset,
        "dataset_files": [pair for of in dataset.list_members() for pair in of.files.items()],
        "shown_files": _SHOWN_FILES,
        "other_assets": {
            key: asset
            for key, asset in content.assets.items()
            if key not in ("backbone", "dataset")
        },
        "parts": describe_parts(rows),
        "all_rows": len(rows.codes),
        "judged": rows.judged,
        "judged_rows": len(rows.parts[rows.judged]),
        "unseen_rows": len(rows.parts[rows.unseen]),
        "cut": content.cut,
        "features": heads.features,
        "width": len(heads.layers) * heads.width,
        "fingerprint": heads.fingerprint,
        "training": heads.training,
    }


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


def _describe_findings(content: PageContent) -> dict[str, Any]:
    """What the templates tell of the findings."""
    findings, points = content.findings, content.findings.points
    counts = {
        "errors": sum(map(len, findings.errors.values())),
        "suspects": sum(map(len, findings.suspects.values())),
        "leaks": len(findings.leaks.pairs),
    }
    # Numbers are hardly ever right to the last digit, so they are not counted as wrong.
    numbers = {head.name for head in content.heads.heads if head.type.label_kind == "number"}
    of_classes = [of for task, of in findings.errors.items() if task not in numbers]
    wrong = sum(error.is_wrong for errors in of_classes for error in errors)
    judged = content.rows.judged
    kinds = [segment.kind for segment in findings.segments if segment.kind.startswith("column: ")]
    return {
        "counts": counts,
        "doubt": DOUBT_MARGIN,
        "has_numbers": bool(numbers),
        "found": [
            *([("errors", wrong, "wrong answers")] if of_classes else []),
            ("suspects", counts["suspects"], "labels that are probably wrong"),
            ("leaks", counts["leaks"], f"near-duplicates of training in {judged}"),
            ("segments", len(findings.segments), "weak segments"),
        ],
        "warnings": [
            f"The {judged} part leaks: {METRICS[found.metric].title} of {found.task} is "
            f"{format_number(found.score, 3)}, and {format_number(found.score_without, 3)} "
            "without the rows that training has, too, or nearly so."
            for found in findings.leaks.find_inflated(content.heads, content.scores[judged])
        ],
        "leaks": describe_leaks(content),
        "segments": findings.segments,
        "segment_columns": list(dict.fromkeys(kind.partition(": ")[2] for kind in kinds)),
        "costs": findings.costs.rows,
        "map_points": len(points.rows),
        "map_texts": len(content.rows.keys),
        "map_method": points.method,
        "map_explained": points.explained,
    }


def describe_leaks(content: PageContent) -> dict[str, Any]:
    """What leaks, and the scores of each task with and without it.

    :param content: what the page tells.
    """
    leaks, judged = content.findings.leaks, content.rows.judged
    inflated = {found.task for found in leaks.find_inflated(content.heads, content.scores[judged])}
    scores = []
    for head in content.heads.heads:
        metric, without = head.type.default_metric, leaks.scores_without[head.name]
        scores.append(
            {
                "task": head.name,
                "metric": METRICS[metric].title,
                "score": content.scores[judged][head.name].overall.get(metric),
                "without": without.overall.get(metric),
                "interval": without.intervals.get(metric),
                "rows": without.rows,
                "inflated": head.name in inflated,
            }
        )
    return {
        "same": leaks.n_same,
        "rows": leaks.n_rows,
        "threshold": leaks.threshold,
        "exact": leaks.exact,
        "scores": scores,
    }
