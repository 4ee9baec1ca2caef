"""Saved heads on cached vectors → ``cache/report/``: metrics, plots and one page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import paths
from pipeline.config import Settings
from pipeline.console import say, show_progress, show_table, warn
from pipeline.errors import StageError
from pipeline.files import describe_os_error, format_json, read_json, write_together
from pipeline.report import inputs
from pipeline.report.inputs import PARTS, Corpus, Heads
from pipeline.report.metrics import PartScores, compute_probabilities, score_part
from pipeline.report.page import PageContent, render_page
from pipeline.report.plots import TaskCurves, list_files, trace_precision_recall, trace_roc
from pipeline.store import read_manifest, read_vectors

_CHUNK_TEXTS = 16_384
_METRICS = paths.REPORT / "metrics.json"
_PLOTS = paths.REPORT / "plots"
_PAGE = paths.REPORT / "report.html"
_SHOWN = ("accuracy", "f1", "f1_macro", "roc_auc")

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


def compute_logits(heads: Heads, keys: Any) -> dict[str, Logits]:
    """Run all heads over the vectors of some texts, a bounded number of them at a time.

    :param keys: pyarrow fixed-size binary, [U].
    :returns: task → [U, K]: K is 1 for a binary head, the number of classes otherwise.
    :raises StageError: if the vectors do not have the width that the heads were trained on, or a
        logit is not finite.
    """
    logits = {task.name: np.empty((len(keys), len(task.bias)), np.float32) for task in heads.tasks}
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
            features = vectors.reshape(len(chunk), -1)
            for task in heads.tasks:
                part = features @ task.weight.T + task.bias
                if not np.isfinite(part).all():
                    raise StageError(
                        f"{paths.HEADS}: the head {task.name} gives values that are not finite",
                        hint="run `pipeline train-heads` again, with a lower learning rate",
                    )
                logits[task.name][start : start + len(chunk)] = part
            advance(len(chunk))
    return logits


def score_parts(
    heads: Heads, corpus: Corpus, logits: Mapping[str, Logits]
) -> dict[str, dict[str, PartScores]]:
    """Score every head on every part.

    :param logits: task → [U, K].
    :returns: part → task → scores.
    """
    return {
        part: {
            task.name: score_part(
                corpus.labels[task.name][corpus.parts[part]],
                logits[task.name][corpus.codes[corpus.parts[part]]],
                task.classes,
                task.threshold,
            )
            for task in heads.tasks
        }
        for part in PARTS
    }


def trace_curves(
    heads: Heads, corpus: Corpus, logits: Mapping[str, Logits]
) -> dict[str, TaskCurves]:
    """ROC and precision-recall curves of every head on the test part.

    :param logits: task → [U, K].
    """
    rows = corpus.parts["test"]
    traced = {}
    for task in heads.tasks:
        actual = corpus.labels[task.name][rows]
        scores: npt.NDArray[Any] = logits[task.name][corpus.codes[rows]]
        if task.threshold is None:
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
    show_table(
        ("part", "task", "rows", *(name.replace("_", " ") for name in _SHOWN)),
        [
            (part, task, values["rows"], *(values.get(name) for name in _SHOWN))
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
