"""Saved heads on cached vectors → ``cache/report/``: metrics, plots and one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.assets import Asset, read_assets
from pipeline.config import ReportSettings, Settings
from pipeline.console import say, warn
from pipeline.files import describe_write_error, format_json, write_together
from pipeline.model.decision import Logits
from pipeline.model.evaluation import PartScores, rank_classes
from pipeline.model.reported import (
    CHECKSUMS,
    FINDINGS,
    METRICS,
    SCORED_HEADS,
    format_checksums,
    read_metrics,
    read_summary,
)
from pipeline.model.saved import DESCRIPTION, Heads
from pipeline.project import Project
from pipeline.recipe import check_store
from pipeline.report.findings import Findings, collect_findings, read_texts
from pipeline.report.inputs import (
    ScoredRows,
    check_heads,
    read_scored_rows,
    read_timings,
)
from pipeline.report.page import PageContent, render_page
from pipeline.report.plots import TaskCurves, list_files, trace_precision_recall, trace_roc
from pipeline.report.scoring import score_parts, score_texts
from pipeline.report.summary import format_summary, list_warnings, make_summary
from pipeline.store import CutTexts, read_manifest

_SUMMARY = "summary.json"
_SUMMARY_METRICS = 2  # of each task: `dvc metrics show` has a column for each
_PLOTS = "plots"
_PAGE = "report.html"


def run_report(project: Project, settings: Settings) -> dict[str, object]:
    """Write the project's report; nothing in it changes before all of it is computed.

    :param project: the project whose heads are measured.
    :param settings: the settings, with the title of the page.
    :returns: details for the timing file.
    :raises StageError: if a file is missing or damaged, or files are of different runs.
    """
    assets = read_assets(project.assets)
    heads = Heads.load(project.heads)
    manifest = read_manifest(project.store)
    check_store(project, settings.embed, manifest)
    check_heads(project, assets["backbone"], heads, manifest.fingerprint)
    rows = read_scored_rows(project, heads)
    timings = read_timings(project)
    logits = score_texts(project.store, heads, rows.keys)
    scores = score_parts(heads, rows, logits)
    curves = trace_curves(heads, rows, logits)
    files = list_files(heads, scores[rows.judged], curves)
    findings = collect_findings(
        project, settings, heads, rows, logits, scores[rows.judged], manifest, timings
    )
    texts = _read_shown_texts(project, settings.report, findings)
    tables = findings.format_files(texts)
    judged = scores[rows.judged]
    record = make_summary(
        heads, rows.judged, judged, findings.baselines, findings.leaks, findings.suspects,
        findings.segments,
    )  # fmt: skip
    page = render_page(
        PageContent(
            title=settings.report.title,
            assets=assets,
            heads=heads,
            rows=rows,
            logits=logits,
            cut=CutTexts.read(manifest).describe(),
            scores=scores,
            curves=curves,
            findings=findings,
            texts=texts,
            timings=timings,
            files=[*tables, METRICS, _SUMMARY, FINDINGS, *(f"{_PLOTS}/{name}" for name in files)],
        )
    )
    metrics = {
        part: {task: of_task.to_record() for task, of_task in tasks.items()}
        for part, tasks in scores.items()
    }
    contents = {
        **tables,
        METRICS: format_json(metrics),
        FINDINGS: format_json(record),
        _SUMMARY: format_json({rows.judged: summarize(heads, judged)}),
        _PAGE: page.encode("utf-8"),
    }
    _write_files(project, contents, files)
    _show_summary(project, assets["backbone"], record)
    return {"rows": len(rows.codes), "distinct_texts": len(rows.keys), "heads": len(logits)}


def _write_files(
    project: Project, contents: Mapping[str, bytes], plots: Mapping[str, bytes]
) -> None:
    """Write all files of the report together, with their hashes and that of the scored heads.

    :param contents: name → content, of all files but plots.
    :param plots: name → content, of the data of plots.
    """
    written = {**{f"{_PLOTS}/{name}": content for name, content in plots.items()}, **contents}
    scored = (project.heads / DESCRIPTION).read_bytes()
    written[CHECKSUMS] = format_checksums({**written, SCORED_HEADS: scored})
    write_together({project.report / name: content for name, content in written.items()})
    _remove_other_plots(project.report / _PLOTS, plots)


def _read_shown_texts(
    project: Project, settings: ReportSettings, findings: Findings
) -> dict[int, str] | None:
    """Row → its text, of the rows of the tables and of the map; ``None`` if none is to be shown."""
    if settings.texts == "hide":
        return None
    rows = np.union1d(findings.list_rows(), findings.points.rows)
    return dict(zip(rows.tolist(), read_texts(project, rows), strict=True))


def show_report(project: Project) -> None:
    """Print the summary of the project's last report.

    :param project: the project that the report is of.
    :raises StageError: if there is none, or its files are damaged.
    """
    backbone = read_assets(project.assets)["backbone"]
    read_metrics(project)  # whose damage is to be told before figures are
    _show_summary(project, backbone, read_summary(project))


def trace_curves(
    heads: Heads, rows: ScoredRows, logits: Mapping[str, Sequence[Logits]]
) -> dict[str, TaskCurves]:
    """ROC and precision-recall curves on the judged part, of every class that a head ranks.

    :param heads: the heads.
    :param rows: the rows to rank.
    :param logits: task → logits of the N distinct texts, [N, O], for each seed.
    :returns: task → curves; none of a task whose head ranks nothing.
    """
    traced = {}
    for head in heads.heads:
        chosen = rows.take_rows(rows.judged, head.name)
        actual = rows.labels[head.name][chosen]
        rankings = rank_classes(head, actual, logits[head.name][0][rows.codes[chosen]])
        traced[head.name] = TaskCurves(trace_roc(rankings), trace_precision_recall(rankings))
    return traced


def summarize(heads: Heads, scores: Mapping[str, PartScores]) -> dict[str, dict[str, float]]:
    """The few figures that ``dvc metrics show`` prints of the judged part, by task.

    :param heads: the heads.
    :param scores: task → scores on that part.
    :returns: task → metric → value, of the first headline metrics of each type of task.
    """
    return {
        head.name: {
            metric: scores[head.name].overall[metric]
            for metric in head.type.headline[:_SUMMARY_METRICS]
            if metric in scores[head.name].overall
        }
        for head in heads.heads
    }


def _remove_other_plots(folder: Path, files: Mapping[str, bytes]) -> None:
    """Remove the data of plots of tasks that are no more."""
    wanted = {folder / name for name in files}
    try:
        for path in sorted(folder.rglob("*"), reverse=True):  # a folder after what is in it
            if path.is_dir():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path not in wanted:
                path.unlink()
    except OSError as error:
        raise describe_write_error(error, folder) from error


def _show_summary(project: Project, backbone: Asset, record: Mapping[str, Any]) -> None:
    """Print the findings in some ten lines, with the backbone and what must not be missed."""
    *lines, page = format_summary(record, project.report / _PAGE)
    for line in lines:
        say(line)
    for warning in list_warnings(record):
        warn(warning)
    if record["judged"] != "test":
        warn(
            "there is no test part: the figures are of validation rows, by which heads were "
            "chosen, so those of new texts will be lower"
        )
    wanted = backbone.extra.get("wanted")
    say(f"backbone: {backbone.id}")
    if wanted and wanted != backbone.id:
        warn(f"{wanted} was wanted and could not be had; these figures are not of it")
    say(page)
