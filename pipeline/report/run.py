"""Saved heads on cached vectors → ``cache/report/``: metrics, plots and one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config import Settings
from pipeline.console import say, show_progress, show_table, warn
from pipeline.files import describe_os_error, format_json, read_json, write_together
from pipeline.model.evaluation import PartScores, bootstrap_intervals, rank_classes, score_head
from pipeline.model.saved import Heads, SavedHead
from pipeline.model.weights import Floats
from pipeline.project import Project
from pipeline.report import inputs
from pipeline.report.inputs import PARTS, Corpus
from pipeline.report.page import PageContent, render_page
from pipeline.report.plots import TaskCurves, list_files, trace_precision_recall, trace_roc
from pipeline.store import read_manifest, read_vectors

if TYPE_CHECKING:
    import pyarrow as pa

_CHUNK_TEXTS = 16_384
_METRICS = "metrics.json"
_PLOTS = "plots"
_PAGE = "report.html"
_SHOWN = ("accuracy", "f1", "f1_macro", "roc_auc", "mean_absolute_error", "r2")


def run_report(project: Project, settings: Settings) -> dict[str, object]:
    """Write the project's report; nothing in it changes before all of it is computed.

    :param project: the project whose heads are measured.
    :returns: details for the timing file.
    :raises StageError: if a file is missing or damaged, or files are of different runs.
    """
    assets = inputs.read_assets(project.assets)
    heads = Heads.load(project.heads)
    manifest = read_manifest(project.embeddings)
    inputs.check_backbone(project, assets, heads, manifest.fingerprint)
    corpus = inputs.read_corpus(project, heads)
    timings = inputs.read_timings(project)
    logits = score_texts(project.embeddings, heads, corpus.keys)
    scores = score_parts(heads, corpus, logits)
    curves = trace_curves(heads, corpus, logits)
    files = list_files(heads, scores["test"], curves)
    page = render_page(
        PageContent(
            title=settings.report.title,
            assets=assets,
            heads=heads,
            corpus=corpus,
            scores=scores,
            curves=curves,
            timings=timings,
            files=["metrics.json", *(f"plots/{name}" for name in files)],
        )
    )
    metrics = {
        part: {task: of_task.flatten() for task, of_task in tasks.items()}
        for part, tasks in scores.items()
    }
    write_together(
        {
            **{project.report / _PLOTS / name: content for name, content in files.items()},
            project.report / _METRICS: format_json(metrics),
            project.report / _PAGE: page.encode("utf-8"),
        }
    )
    _remove_other_plots(project.report / _PLOTS, files)
    _show_summary(project, assets, metrics)
    return {"rows": len(corpus.codes), "distinct_texts": len(corpus.keys), "heads": len(logits)}


def show_report(project: Project) -> None:
    """Print the summary of the project's last report.

    :raises StageError: if there is none.
    """
    assets = inputs.read_assets(project.assets)
    _show_summary(project, assets, read_json(project.report / _METRICS, stage="report"))


def score_texts(folder: Path, heads: Heads, keys: pa.Array) -> dict[str, list[Floats]]:
    """Run all heads over the vectors of some texts, a bounded number of them at a time.

    :param folder: the embedding store.
    :param keys: fixed-size binary of 16, [U].
    :returns: task → logits, float32, [U, O], of its head and of its like from the other seeds.
    :raises StageError: if the vectors are of another shape than the heads were trained on, or a
        logit is not finite.
    """
    pieces: dict[str, list[list[Floats]]] = {head.name: [] for head in heads.heads}
    with show_progress("scoring", len(keys), "texts") as advance:
        for start in range(0, len(keys), _CHUNK_TEXTS):
            chunk = keys.slice(start, _CHUNK_TEXTS)
            vectors = read_vectors(folder, chunk, heads.layers)
            for name, logits in heads.compute_logits(vectors).items():
                pieces[name].append(logits)
            advance(len(chunk))
    return {
        name: [np.concatenate(of_seed) for of_seed in zip(*chunks, strict=True)]
        for name, chunks in pieces.items()
    }


def score_parts(
    heads: Heads, corpus: Corpus, logits: Mapping[str, Sequence[Floats]]
) -> dict[str, dict[str, PartScores]]:
    """Score every head on every part; with intervals on the test rows.

    :param logits: task → [U, K] for each seed.
    :returns: part → task → scores.
    """
    return {
        part: {head.name: _score(head, part, corpus, logits[head.name]) for head in heads.heads}
        for part in PARTS
    }


def _score(head: SavedHead, part: str, corpus: Corpus, logits: Sequence[Floats]) -> PartScores:
    rows = corpus.take_rows(part, head.name)
    actual = corpus.labels[head.name][rows]
    of_seeds = [score_head(head, actual, found[corpus.codes[rows]]) for found in logits]
    scores = of_seeds[0]
    if part.startswith("test"):
        own = logits[0][corpus.codes[rows]]
        scores = replace(scores, intervals=bootstrap_intervals(head, actual, own))
    if len(of_seeds) == 1:
        return scores
    values = {
        metric: [one.overall[metric] for one in of_seeds]
        for metric in scores.overall
        if all(metric in one.overall for one in of_seeds)
    }
    spread = {m: (float(np.mean(v)), float(np.std(v, ddof=1))) for m, v in values.items()}
    return replace(scores, seeds=spread)


def trace_curves(
    heads: Heads, corpus: Corpus, logits: Mapping[str, Sequence[Floats]]
) -> dict[str, TaskCurves]:
    """ROC and precision-recall curves on the test part, of every class that a head ranks rows by.

    :param logits: task → [U, O] for each seed.
    """
    traced = {}
    for head in heads.heads:
        rows = corpus.take_rows("test", head.name)
        actual = corpus.labels[head.name][rows]
        rankings = rank_classes(head, actual, logits[head.name][0][corpus.codes[rows]])
        traced[head.name] = TaskCurves(trace_roc(rankings), trace_precision_recall(rankings))
    return traced


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
        raise describe_os_error(error, folder) from error


def _show_summary(project: Project, assets: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    """Print a line for each part and task, the backbone, and where the page is."""
    given = {name for tasks in metrics.values() for values in tasks.values() for name in values}
    shown = [name for name in _SHOWN if name in given]
    show_table(
        ("part", "task", "rows", *(name.replace("_", " ") for name in shown)),
        [
            (part, task, values["rows"], *(values.get(name) for name in shown))
            for part, tasks in metrics.items()
            for task, values in tasks.items()
        ],
    )
    say("test_unseen: rows of the test part whose text stands in no training row")
    backbone = assets["backbone"]
    wanted = backbone.get("wanted")
    say(f"backbone: {backbone['id']}")
    if wanted and wanted != backbone["id"]:
        warn(f"{wanted} was wanted and could not be had; these figures are not of it")
    say(f"page: {project.report / _PAGE}")
