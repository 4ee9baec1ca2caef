"""Cached vectors and labels → ``cache/heads/``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.assets import Asset, read_assets
from pipeline.config import HeadsSettings, Settings
from pipeline.console import count, format_bytes, say, show_progress, show_table, warn
from pipeline.corpus.classes import check_class_order
from pipeline.corpus.identity import CorpusIdentity
from pipeline.corpus.keys import code_keys
from pipeline.corpus.tables import PARTS, LabelledRows, read_labelled_rows, read_row_numbers
from pipeline.device import choose_devices
from pipeline.errors import DataError, StageError
from pipeline.heads.choosing import list_scores
from pipeline.heads.configurations import (
    Configuration,
    leave_out_kernels,
    list_configurations,
    list_idle_settings,
)
from pipeline.heads.held_out import encode_held_out
from pipeline.heads.loggers import log_curves, make_logger
from pipeline.heads.tasks import Task, check_search, make_tasks, resolve_loss, widen_tasks
from pipeline.heads.threads import choose_threads, shorten_spinning
from pipeline.model.outgoing import FOLDER as OUTGOING
from pipeline.model.outgoing import save_heads
from pipeline.model.saved import Heads, History, SavedHead
from pipeline.model.tasks import TASK_TYPES
from pipeline.project import Project
from pipeline.recipe import check_store
from pipeline.store import Manifest, find_alike, read_manifest, read_vectors

if TYPE_CHECKING:
    from pipeline.heads.refit import Refit
    from pipeline.heads.stored import StoredFeatures
    from pipeline.heads.training import Fit, TrainedHead

_SHOWN_SCORES = 5
_SOLVER_COPIES = 12  # of the logits of one model: steps, gradients, losses and what they are of
# The settings that all heads of a run share. Each head's other settings are told of it, as its
# configuration.
_SHARED = {
    "standardize", "batch_size", "max_epochs", "patience", "keep", "folds", "calibrate", "seed",
}  # fmt: skip


def run_train_heads(project: Project, settings: Settings) -> dict[str, object]:
    """Train heads for each task, choose among them, and save all that inference needs.

    :param project: the project whose vectors and labels they train on.
    :param settings: all settings.
    :returns: details for the timing file.
    """
    rows = read_labelled_rows(project)
    _check_parts(project, settings, rows)
    check_class_order(settings, {name: labels.classes for name, labels in rows.tasks.items()})
    return train_rows(project, settings, rows, project.heads)


def _check_parts(project: Project, settings: Settings, rows: LabelledRows) -> None:
    """Make sure that the parts are those that settings ask for.

    :raises StageError: if ``group`` drew them and should not have, or should have and did not.
    """
    if rows.is_grouped != settings.group.split:
        wanted = "asks for" if settings.group.split else "asks for no"
        raise StageError(
            f"group.split {wanted} parts that keep near-duplicates together, and "
            f"{project.groups_file} has {'none' if settings.group.split else 'such parts'}",
            hint="run `pipeline group`",
        )


def train_rows(
    project: Project, settings: Settings, rows: LabelledRows, folder: Path
) -> dict[str, object]:
    """Train heads on rows whose labels may come from elsewhere, and save them.

    :param project: the project whose vectors they train on.
    :param settings: all settings.
    :param rows: the rows of the project's corpus, with labels.
    :param folder: the folder to save the heads in.
    :returns: details for the timing file.
    :raises DataError: if the labels cannot be learned.
    """
    shorten_spinning()
    tasks = make_tasks(settings.heads.tasks, rows, settings.heads.kept)
    check_search(tasks, settings.heads)
    manifest = read_manifest(project.store)
    backbone = read_assets(project.assets)["backbone"]
    check_store(project, settings.embed, manifest)
    configurations = list_configurations(settings.heads, manifest.layers)
    for idle in list_idle_settings(settings.heads, configurations):
        warn(idle)
    _tell_idle_seeds(settings, configurations)
    parts = [_select_part(rows, part) for part in ("train", "validation")]
    configurations = leave_out_kernels(configurations, settings.heads, len(parts[0]))
    logger = make_logger(settings.runtime.logger, project.logs)
    fit = _fit(project, settings, rows, parts, tasks, configurations, manifest)
    refit = _refit(project, settings, rows, fit, manifest)
    corpus = rows.identity.select_tasks([task.name for task in tasks])
    described = describe_fit(settings, fit, backbone, manifest, corpus)
    if settings.heads.layer_scores:
        described = _add_layer_scores(project, settings, rows, described, tasks, configurations)
    described = _add_reference(project, rows, described)
    numbers = read_row_numbers(project)[np.concatenate(parts)]
    held_out = encode_held_out(fit.heads, numbers, len(parts[0]), fit.folds)
    described = replace(described, held_out=held_out)
    if refit is None:
        save_heads(folder, described, None)
    else:
        training = {**described.training, "refit": "+".join(refit.parts), "refit_rows": refit.rows}
        described = replace(described, training=training)
        outgoing = describe_refit(described, fit, refit)
        save_heads(folder, described, _add_reference(project, rows, outgoing))
    _show_summary(folder, fit, refit)
    if logger is not None:
        log_curves(logger, fit.heads)
    again = {"refit_seconds": round(refit.seconds, 2)} if refit is not None else {}
    return {
        "tasks": len(tasks),
        "configurations": len(configurations),
        "rows": len(parts[0]),
        "features": max(len(c.layers) for c in configurations) * manifest.width,
        "epochs": fit.epochs,
        "fit_seconds": round(fit.fit_seconds, 2),
        **again,
    }


def _add_reference(project: Project, rows: LabelledRows, heads: Heads) -> Heads:
    """Heads with what is kept of the rows that they were trained on."""
    from pipeline.heads.reference import measure_reference

    reference = measure_reference(
        project,
        rows,
        rows.select(*heads.trained_parts),
        [head.name for head in heads.heads],
        max(heads.layers),
    )
    return replace(heads, reference=reference)


def _add_layer_scores(
    project: Project,
    settings: Settings,
    rows: LabelledRows,
    heads: Heads,
    tasks: Sequence[Task],
    configurations: Sequence[Configuration],
) -> Heads:
    """Heads that tell what each of the layers that could be theirs is worth."""
    from pipeline.heads.layer_scores import sample_rows, score_layers

    layers = sorted({layer for c in configurations for layer in c.layers})
    if len(layers) < 2:
        return heads
    parts = [rows.select(part) for part in ("train", "validation")]
    chosen, train_rows = sample_rows(parts, settings.heads.seed)
    vectors = read_vectors(
        project.store, rows.keys.take(chosen), layers, fingerprint=heads.fingerprint
    )
    labels = {task.name: rows.tasks[task.name].values[chosen] for task in tasks}
    found = score_layers(vectors, layers, train_rows, tasks, labels)
    made = [
        replace(head, about={**head.about, "layer_scores": found[head.name].to_record()})
        if head.name in found
        else head
        for head in heads.heads
    ]
    return replace(heads, heads=tuple(made))


def _tell_idle_seeds(settings: Settings, configurations: Sequence[Configuration]) -> None:
    several = any(grid.seeds and len(grid.seeds) > 1 for grid in settings.heads.grids)
    if several and any(c.optimizer == "lbfgs" for c in configurations):
        say("lbfgs draws nothing at random: one head stands for all seeds of its grid")


def _select_part(rows: LabelledRows, part: str) -> npt.NDArray[np.int64]:
    chosen = rows.select(part)
    if not len(chosen):
        raise DataError(f"no {part} rows", hint="change prepare.split")
    return chosen


def _fit(
    project: Project,
    settings: Settings,
    rows: LabelledRows,
    parts: Sequence[npt.NDArray[np.int64]],
    tasks: Sequence[Task],
    configurations: Sequence[Configuration],
    manifest: Manifest,
) -> Fit:
    """Train all configurations on the vectors of the store.

    :param parts: the numbers of the training rows, and of the validation rows.
    """
    import torch

    from pipeline.heads.sample import are_enough, is_sampled
    from pipeline.heads.targets import make_targets
    from pipeline.heads.training import fit_heads, measure_width

    train_rows, all_rows = len(parts[0]), sum(map(len, parts))
    threads = settings.runtime.threads or choose_threads(
        settings.heads, configurations, tasks, manifest.width, all_rows
    )
    if threads is not None:
        torch.set_num_threads(threads)
    device = str(choose_devices(settings.runtime.devices)[0])
    chosen = np.concatenate(parts)
    keys = rows.keys.take(chosen)
    is_path = any(c.weight_decay is None for c in configurations)
    width = max(measure_width(manifest.width, train_rows, c) for c in configurations)
    # A search on a sample, judged by many validation rows, takes no folds.
    is_split = is_path and is_sampled(train_rows, width) and are_enough(all_rows - train_rows)
    folds = None
    if not is_split:
        folds = _draw_folds(project, settings.heads, keys[:train_rows], manifest.fingerprint)
    labels = {task.name: rows.tasks[task.name].values[chosen] for task in tasks}
    features_of = _open_features(
        project, settings, keys, train_rows, configurations, manifest, device,
        _limit_vectors(settings, len(rows.keys), all_rows, tasks, folds),
    )  # fmt: skip
    total = 100 if is_path else settings.heads.max_epochs * len({c.shape for c in configurations})
    with show_progress("training", total, "percent" if is_path else "epochs") as advance:
        fit = fit_heads(
            features_of,
            make_targets(tasks, labels, train_rows, folds, device),
            tasks,
            configurations,
            settings.heads,
            device=device,
            advance=advance,
        )
    if is_split and settings.heads.folds is not None:
        fit = replace(fit, unfolded=tuple(head.task.name for head in fit.heads))
    return fit


def _limit_vectors(
    settings: Settings,
    corpus_rows: int,
    rows: int,
    tasks: Sequence[Task],
    folds: npt.NDArray[np.int64] | None,
) -> float:
    """The bytes that vectors may take, beside what is held of each row.

    :param corpus_rows: the number of rows of the corpus.
    :param rows: the number of those that heads train on or are judged by.
    :param tasks: the tasks.
    :param folds: the fold of each training row; ``None`` for no folds.
    """
    T, F = len(tasks), 1 if folds is None else int(folds.max()) + 2
    outputs = max(task.outputs for task in tasks)
    # A key, the part and a label of each task; then the key, the number and the labels again, as
    # they are and encoded, and the mask of each fit; and what a solver holds of each output.
    of_rows = corpus_rows * (16 + 1 + 8 * T)
    of_rows += rows * (16 + 8 + 16 * T + 4 * F + 4 * _SOLVER_COPIES * outputs)
    limit = settings.runtime.limit_memory()
    if of_rows > limit:
        warn(
            f"what is held of each of {rows:,} rows takes some {format_bytes(of_rows)}, more than "
            f"the {format_bytes(int(limit))} of runtime.max_memory"
        )
    return max(limit - of_rows, 0.0)


def _refit(
    project: Project, settings: Settings, rows: LabelledRows, fit: Fit, manifest: Manifest
) -> Refit | None:
    """Train the chosen heads again on the rows that ``heads.refit`` names.

    :returns: ``None`` if those are the rows that they were trained on.
    """
    from pipeline.heads.refit import Refit, group_alike, refit_heads
    from pipeline.heads.targets import make_targets

    wanted = settings.heads.refit
    parts = PARTS if wanted == "all" else tuple(wanted.split("+"))
    parts = tuple(part for part in parts if len(rows.select(part)))
    if parts == ("train",):
        return None
    chosen = rows.select(*parts)
    device = str(choose_devices(settings.runtime.devices)[0])
    tasks = widen_tasks([head.task for head in fit.heads], rows, parts)
    configurations = [head.configuration for head in fit.heads]
    features_of = _open_features(
        project, settings, rows.keys.take(chosen), len(chosen), configurations, manifest, device,
        _limit_vectors(settings, len(rows.keys), len(chosen), tasks, None),
    )  # fmt: skip
    labels = {task.name: rows.tasks[task.name].values[chosen] for task in tasks}
    started = time.perf_counter()
    total = settings.heads.max_epochs * len(group_alike(fit.heads))
    with show_progress("training again", total, "epochs") as advance:
        candidates = refit_heads(
            features_of,
            make_targets(tasks, labels, len(chosen), None, device),
            tasks,
            fit.heads,
            settings.heads,
            device=device,
            advance=advance,
        )
    seconds = time.perf_counter() - started
    return Refit(candidates, tuple(tasks), parts, len(chosen), seconds)


def _open_features(
    project: Project,
    settings: Settings,
    keys: pa.Array,
    train_rows: int,
    configurations: Sequence[Configuration],
    manifest: Manifest,
    device: str,
    memory_bytes: float,
) -> StoredFeatures:
    """The stored vectors of some rows, of all layers that some configurations want.

    :param keys: the keys of the texts of the rows, training rows first.
    :param memory_bytes: the memory that the vectors may take.
    """
    from pipeline.heads.stored import StoredFeatures

    return StoredFeatures(
        project.store,
        keys,
        train_rows,
        sorted({layer for c in configurations for layer in c.layers}),
        manifest.width,
        standardize=settings.heads.standardize,
        memory_bytes=memory_bytes,
        device=device,
    )


def _draw_folds(
    project: Project, settings: HeadsSettings, keys: pa.Array, fingerprint: str
) -> npt.NDArray[np.int64] | None:
    """The fold of each training row, [B]; ``None`` for no folds.

    :param keys: the keys of the training rows' texts.
    :param fingerprint: the fingerprint of their vectors.
    """
    from pipeline.heads.targets import draw_folds

    if settings.folds is None:
        return None
    distinct, texts = code_keys(keys)
    alike = find_alike(project.store, distinct, fingerprint)[texts]
    # With fewer than two training rows that differ a fold, some folds would be about empty.
    if np.count_nonzero(np.bincount(alike)) < 2 * settings.folds:
        return None
    return draw_folds(texts, settings.folds, settings.seed, alike)


def describe_fit(
    settings: Settings,
    fit: Fit,
    backbone: Asset,
    manifest: Manifest,
    corpus: CorpusIdentity,
) -> Heads:
    """A finished training run as heads that can be saved and used.

    :param settings: all settings.
    :param fit: the training run.
    :param backbone: the backbone that made the vectors.
    :param manifest: the manifest of the store that holds them.
    :param corpus: the rows and labels that the heads were trained on.
    """
    return Heads(
        heads=tuple(_describe_head(head) for head in fit.heads),
        layers=tuple(sorted({layer for head in fit.heads for layer in head.configuration.layers})),
        width=manifest.width,
        backbone=backbone.to_record(),
        fingerprint=manifest.fingerprint,
        recipe=manifest.recipe,
        corpus=corpus,
        features={
            "layers": sorted({layer for head in fit.heads for layer in head.configuration.layers}),
            "width": manifest.width,
            "standardized": settings.heads.standardize,
        },
        training={
            **settings.heads.model_dump(mode="json", include=_SHARED),
            "configurations": fit.configurations,
            "judged_rows": fit.judged_rows,
            "epochs_run": fit.epochs,
        },
    )


def describe_refit(scored: Heads, fit: Fit, refit: Refit) -> Heads:
    """The heads that were trained again, which decide as those that they follow.

    :param scored: the heads that were chosen.
    :param fit: the training run that they are of.
    :param refit: the same heads, trained again.
    """
    made = []
    for head, chosen, candidate, task in zip(
        scored.heads, fit.heads, refit.candidates, refit.tasks, strict=True
    ):
        about = {
            "class_weights": _name_weights(task, chosen.configuration),
            "layer_mix": candidate.layer_mix,
        }
        made.append(
            replace(
                head,
                weights=(candidate.head,),
                seeds=head.seeds[:1],
                center=task.labels.center,
                spread=task.labels.spread,
                about={**head.about, **about},
                search=(),
                history=History(),
            )
        )
    return replace(scored, heads=tuple(made), trained_parts=refit.parts, held_out=None)


def _describe_head(head: TrainedHead) -> SavedHead:
    task, calibration, candidate = head.task, head.calibration, head.candidate
    losses = candidate.curve.tolist()
    return SavedHead(
        name=task.name,
        type=TASK_TYPES[task.type],
        classes=task.classes,
        layers=head.configuration.layers,
        decision=calibration.decision,
        weights=(candidate.head, *head.seeds.values()),
        seeds=(head.configuration.seed, *head.seeds),
        center=task.labels.center,
        spread=task.labels.spread,
        about={
            "loss_weight": task.loss_weight,
            "class_weights": _name_weights(task, head.configuration),
            "best_epoch": candidate.epoch,
            "validation_loss": candidate.validation_loss,
            "metric": task.metric,
            "held_out_score": head.scores[0].value,
            "path_bound": head.bound,
            "held_out_loss": {
                "before": calibration.loss_before,
                "after": calibration.loss_after,
            },
            "configuration": head.configuration.describe(),
            "layer_mix": candidate.layer_mix,
        },
        search=tuple(_list_scores(head)),
        history=History(
            tuple(range(1, len(losses) + 1)),
            tuple(train for train, _ in losses),
            tuple(validation for _, validation in losses),
        ),
    )


def _name_weights(task: Task, configuration: Configuration) -> dict[str, float] | None:
    weights = resolve_loss(task, configuration.loss_changes).class_weights
    return dict(zip(task.classes, weights, strict=True)) if weights else None


def _show_summary(folder: Path, fit: Fit, refit: Refit | None) -> None:
    for head in fit.heads:
        if len(head.tried) > 1:
            _show_scores(head, _list_scores(head)[:_SHOWN_SCORES])
    show_table(
        ("head", "type", "metric", "held out", "epoch kept", "validation loss"),
        [
            (
                h.task.name,
                h.task.type,
                h.task.metric,
                h.scores[0].value,
                h.candidate.epoch,
                h.candidate.validation_loss,
            )
            for h in fit.heads
        ],
    )
    say(
        f"{count(len(fit.heads), 'head')} of {count(fit.configurations, 'configuration')}, judged "
        f"on {fit.judged_rows:,} held-out rows: {count(fit.epochs, 'epoch')} in "
        f"{fit.fit_seconds:.2f} s → {folder}"
    )
    for head in fit.heads:
        if head.bound is not None:
            warn(
                f"task {head.task.name}: the {head.bound} weight decay that is tried is the best; "
                f"give others in heads.search, or look at its labels"
            )
    if fit.unfolded:
        say(
            f"{', '.join(fit.unfolded)}: judged on one split, since heads of all folds would take "
            "long or add nothing"
        )
    if refit is not None:
        say(
            f"trained again on the {refit.rows:,} rows of {', '.join(refit.parts)}, for new texts: "
            f"{refit.seconds:.2f} s → {folder / OUTGOING}"
        )


def _list_scores(head: TrainedHead) -> list[Mapping[str, Any]]:
    return list_scores(head.scores, head.tried)


def _show_scores(head: TrainedHead, rows: Sequence[Mapping[str, Any]]) -> None:
    """The first lines of the search table."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    show_table(
        [key.replace("_", " ") for key in keys],
        [
            [str(v) if isinstance(v := row.get(key), list | dict) else v for key in keys]
            for row in rows
        ],
        title=f"{head.task.name}: the one chosen of {len(head.scores):,}, and the next by "
        f"{head.task.metric}; the loss tells apart what is about equal",
    )
