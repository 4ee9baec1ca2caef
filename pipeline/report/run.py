"""Saved heads on cached vectors → ``cache/report/``: metrics, plots and one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import paths
from pipeline.config import Settings
from pipeline.console import say, show_progress, show_table, warn
from pipeline.errors import StageError
from pipeline.files import describe_os_error, format_json, read_json, write_together
from pipeline.report import inputs
from pipeline.report.inputs import PARTS, Corpus, Heads, Task
from pipeline.report.intervals import bootstrap_intervals
from pipeline.report.metrics import PartScores, compute_probabilities, score_task
from pipeline.report.page import PageContent, render_page
from pipeline.report.plots import TaskCurves, list_files, trace_precision_recall, trace_roc
from pipeline.store import read_manifest, read_vectors

_CHUNK_TEXTS = 16_384
_METRICS = paths.REPORT / "metrics.json"
_PLOTS = paths.REPORT / "plots"
_PAGE = paths.REPORT / "report.html"
_SHOWN = ("accuracy", "f1", "f1_macro", "roc_auc", "mean_absolute_error", "r2")

Logits = npt.NDArray[np.float32]


def run_report(settings: Settings) -> dict[str, object]:
    """Write ``cache/report/``; nothing in it changes before all of it is computed.

    :returns: details for the timing file.
    :raises StageError: if a file is missing or damaged, or files are of different runs.
    """
    assets = inputs.read_assets()
    heads = inputs.read_heads()
    manifest = read_manifest(paths.EMBEDDINGS)
    inputs.check_backbone(assets, heads, manifest.fingerprint)
    corpus = inputs.read_corpus(heads)
    history = inputs.read_history(heads)
    timings = inputs.read_timings()
    logits = compute_logits(heads, corpus.keys)
    scores = score_parts(heads, corpus, logits)
    curves = trace_curves(heads, corpus, logits)
    files = list_files(heads, scores["test"], curves, history)
    page = render_page(
        PageContent(
            title=settings.report.title,
            assets=assets,
            heads=heads,
            corpus=corpus,
            scores=scores,
            curves=curves,
            history=history,
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
            **{_PLOTS / name: content for name, content in files.items()},
            _METRICS: format_json(metrics),
            _PAGE: page.encode("utf-8"),
        }
    )
    _remove_other_plots(files)
    _show_summary(assets, metrics)
    return {"rows": len(corpus.codes), "distinct_texts": len(corpus.keys), "heads": len(logits)}


def show_report() -> None:
    """Print the summary of the report that stands in ``cache/report/``.

    :raises StageError: if there is none.
    """
    _show_summary(inputs.read_assets(), read_json(_METRICS, stage="report"))


def compute_logits(heads: Heads, keys: Any) -> dict[str, list[Logits]]:
    """Run all heads over the vectors of some texts, a bounded number of them at a time.

    :param keys: pyarrow fixed-size binary, [U].
    :returns: task → logits [U, K] of its head, and of the same head from each other seed.
    :raises StageError: if the vectors do not have the width that the heads were trained on, or a
        logit is not finite.
    """
    logits = {
        task.name: [np.empty((len(keys), len(head.bias)), np.float32) for head in task.weights]
        for task in heads.tasks
    }
    shape = (len(heads.layers), heads.width)
    with show_progress("scoring", len(keys), "texts") as advance:
        for start in range(0, len(keys), _CHUNK_TEXTS):
            chunk = keys.slice(start, _CHUNK_TEXTS)
            vectors = read_vectors(paths.EMBEDDINGS, chunk, heads.layers)
            if vectors.shape[1:] != shape:
                raise StageError(
                    f"{paths.EMBEDDINGS}: vectors of layers × width {vectors.shape[1:]}; "
                    f"{paths.HEADS} was trained on {shape}",
                    hint="run `pipeline train-heads`",
                )
            likeness: dict[int, npt.NDArray[np.float32]] = {}  # heads may share their centers
            for task in heads.tasks:
                chosen = [heads.layers.index(layer) for layer in task.layers]
                features = vectors[:, chosen].reshape(len(chunk), -1)
                for head, found in zip(task.weights, logits[task.name], strict=True):
                    if head.centers is None:
                        part = head.compute_logits(features)
                    else:
                        shared = id(head.centers)
                        if shared not in likeness:
                            likeness[shared] = head.centers.compare(features)
                        part = head.weigh(likeness[shared])
                    if not np.isfinite(part).all():
                        raise StageError(
                            f"{paths.HEADS}: the head {task.name} gives values that are not finite",
                            hint="run `pipeline train-heads` again; if by sgd or adamw, with a "
                            "lower learning rate",
                        )
                    found[start : start + len(chunk)] = part
            advance(len(chunk))
    return logits


def score_parts(
    heads: Heads, corpus: Corpus, logits: Mapping[str, Sequence[Logits]]
) -> dict[str, dict[str, PartScores]]:
    """Score every head on every part; with intervals on the test rows.

    :param logits: task → [U, K] for each seed.
    :returns: part → task → scores.
    """
    return {
        part: {task.name: _score(task, part, corpus, logits[task.name]) for task in heads.tasks}
        for part in PARTS
    }


def _score(task: Task, part: str, corpus: Corpus, logits: Sequence[Logits]) -> PartScores:
    rows = corpus.take_rows(part, task.name)
    actual = corpus.labels[task.name][rows]
    of_seeds = [score_task(task, actual, found[corpus.codes[rows]]) for found in logits]
    scores = of_seeds[0]
    if part.startswith("test"):
        own = logits[0][corpus.codes[rows]]
        scores = replace(scores, intervals=bootstrap_intervals(task, actual, own))
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
    heads: Heads, corpus: Corpus, logits: Mapping[str, Sequence[Logits]]
) -> dict[str, TaskCurves]:
    """ROC and precision-recall curves on the test part, of every head that ranks rows by class.

    :param logits: task → [U, K] for each seed.
    """
    traced = {}
    for task in heads.tasks:
        rows = corpus.take_rows("test", task.name)
        actual = corpus.labels[task.name][rows]
        scores: npt.NDArray[Any] = logits[task.name][0][corpus.codes[rows]]
        if task.type in ("regression", "ordinal"):
            traced[task.name] = TaskCurves(roc=[], precision_recall=[])
            continue
        if task.type == "multilabel":
            tags = [
                (c, trace_roc(actual[:, c], scores[:, [c]]),
                 trace_precision_recall(actual[:, c], scores[:, [c]]))
                for c in range(len(task.classes))
            ]  # fmt: skip
            traced[task.name] = TaskCurves(
                roc=[replace(curve, index=c) for c, curves, _ in tags for curve in curves],
                precision_recall=[
                    replace(curve, index=c) for c, _, curves in tags for curve in curves
                ],
            )
            continue
        if task.type == "multiclass":
            # One class against the rest: its probability, since logits of rows do not compare.
            scores = compute_probabilities(scores)
        traced[task.name] = TaskCurves(
            roc=trace_roc(actual, scores),
            precision_recall=trace_precision_recall(actual, scores),
        )
    return traced


def _remove_other_plots(files: Mapping[str, bytes]) -> None:
    """Remove the data of plots of tasks that are no more."""
    wanted = {_PLOTS / name for name in files}
    try:
        for path in sorted(_PLOTS.rglob("*"), reverse=True):  # a folder after what is in it
            if path.is_dir():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path not in wanted:
                path.unlink()
    except OSError as error:
        raise describe_os_error(error, _PLOTS) from error


def _show_summary(assets: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
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
    say(f"page: {_PAGE}")
