"""Cached vectors and labels → ``cache/heads/``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.assets import Asset, read_assets
from pipeline.config import Settings
from pipeline.console import count, say, show_progress, show_table
from pipeline.corpus.tables import LabelledRows, read_labelled_rows
from pipeline.device import choose_devices
from pipeline.errors import DataError, SettingsError, StageError
from pipeline.heads.configurations import Configuration, list_configurations
from pipeline.heads.tasks import Task, check_search, make_tasks
from pipeline.model.saved import Heads, History, SavedHead
from pipeline.model.tasks import TASK_TYPES
from pipeline.project import Project
from pipeline.store import Manifest, read_manifest

if TYPE_CHECKING:
    from pipeline.heads.training import Fit, TrainedHead

_SMALL_STEP = 50_000_000  # multiplications in one forward pass
_SMALL_SOLVE = 2_000_000_000  # the same, of all rows at once
_SHOWN_SCORES = 5
# Beyond, less than a fifth of the rows can be centers, while the memory grows with all of them.
_MOST_KERNEL_ROWS = 20_000
_SPINS = "1000"
_OF_ALL = {
    "standardize", "batch_size", "max_epochs", "patience", "keep", "folds", "calibrate", "seed",
}  # fmt: skip


def run_train_heads(project: Project, settings: Settings) -> dict[str, object]:
    """Train heads for each task, choose among them, and save all that inference needs.

    :param project: the project whose vectors and labels they train on.
    :returns: details for the timing file.
    """
    rows = read_labelled_rows(project)
    tasks = make_tasks(settings.heads.tasks, rows)
    check_search(tasks, settings.heads)
    manifest = read_manifest(project.embeddings)
    backbone = read_assets(project.assets)["backbone"]
    _check_backbone(project, backbone, manifest)
    configurations = list_configurations(settings.heads, manifest.layers)
    _tell_idle_seeds(settings, configurations)
    parts = [_select_part(rows, part) for part in ("train", "validation")]
    configurations = _leave_out_kernels(configurations, len(parts[0]))
    logger = _make_logger(project, settings)
    fit = _fit(project, settings, rows, parts, tasks, configurations, manifest)
    describe_fit(settings, fit, backbone, manifest, configurations).save(project.heads)
    _show_summary(project, fit, configurations)
    if logger is not None:
        _log_curves(logger, fit.heads)
    return {
        "tasks": len(tasks),
        "configurations": len(configurations),
        "rows": len(parts[0]),
        "features": max(len(c.layers) for c in configurations) * manifest.width,
        "epochs": fit.epochs,
        "fit_seconds": round(fit.fit_seconds, 2),
    }


def _check_backbone(project: Project, backbone: Asset, manifest: Manifest) -> None:
    files = manifest.recipe["files"]
    if any(backbone.files.get(name) != sha256 for name, sha256 in files.items()):
        raise StageError(
            f"{project.embeddings} holds vectors of {manifest.backbone}, but {project.assets} now "
            f"names {backbone.id}",
            hint="run `pipeline embed` first",
        )


def _tell_idle_seeds(settings: Settings, configurations: Sequence[Configuration]) -> None:
    several = any(grid.seeds and len(grid.seeds) > 1 for grid in settings.heads.grids)
    if several and any(c.optimizer == "lbfgs" for c in configurations):
        say("lbfgs draws nothing at random: one head stands for all seeds of its grid")


def _select_part(rows: LabelledRows, part: str) -> npt.NDArray[np.int64]:
    chosen = rows.select(part)
    if not len(chosen):
        raise DataError(f"no {part} rows", hint="change prepare.split")
    return chosen


def _leave_out_kernels(configurations: list[Configuration], train_rows: int) -> list[Configuration]:
    """The configurations without kernel heads, if there are too many rows for those.

    :raises SettingsError: if none is left.
    """
    left = [c for c in configurations if c.head != "kernel"]
    if train_rows <= _MOST_KERNEL_ROWS or len(left) == len(configurations):
        return configurations
    reason = f"kernel heads are for up to {_MOST_KERNEL_ROWS:,} training rows, not {train_rows:,}"
    if not left:
        raise SettingsError(
            f"heads.head: {reason}", hint="set head to linear, or add a grid of them"
        )
    say(f"{reason}: {len(configurations) - len(left)} of the search left out")
    return left


def _fit(
    project: Project,
    settings: Settings,
    rows: LabelledRows,
    parts: Sequence[npt.NDArray[np.int64]],
    tasks: Sequence[Task],
    configurations: Sequence[Configuration],
    manifest: Manifest,
) -> Fit:
    # How often a thread of libgomp looks whether the others are done before it sleeps. By default
    # it does for some ten milliseconds: where another program has the core of one of them, each
    # operation takes that long. Read when torch loads the library.
    os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    import torch

    from pipeline.heads.stored import StoredFeatures
    from pipeline.heads.targets import draw_folds, make_targets
    from pipeline.heads.training import fit_heads

    threads = settings.runtime.threads or _choose_threads(
        settings, configurations, tasks, manifest, sum(map(len, parts))
    )
    if threads is not None:
        torch.set_num_threads(threads)
    device = str(choose_devices(settings.runtime.devices)[0])
    chosen = np.concatenate(parts)
    keys = rows.keys.take(chosen)
    folds = None
    # Folds are for choosing; and a row in each fold and each part is the least that they need.
    if settings.heads.folds is not None and len(parts[0]) >= 2 * settings.heads.folds:
        texts = keys.dictionary_encode().indices.to_numpy()[: len(parts[0])].astype(np.int64)
        folds = draw_folds(texts, settings.heads.folds, settings.heads.seed)
    labels = {task.name: rows.tasks[task.name].values[chosen] for task in tasks}
    targets = make_targets(tasks, labels, len(parts[0]), folds, device)
    features_of = StoredFeatures(
        project.embeddings,
        keys,
        len(parts[0]),
        sorted({layer for c in configurations for layer in c.layers}),
        manifest.width,
        standardize=settings.heads.standardize,
        memory_bytes=_limit_memory(settings),
        device=device,
    )
    total = settings.heads.max_epochs * len({c.shape for c in configurations})
    with show_progress("training", total, "epochs") as advance:
        return fit_heads(
            features_of,
            targets,
            tasks,
            configurations,
            settings.heads,
            device=device,
            advance=advance,
        )


def _limit_memory(settings: Settings) -> float:
    """Bytes that the vectors may take."""
    if settings.runtime.max_memory is not None:
        return settings.runtime.max_memory * 1e9
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    except (ValueError, OSError, AttributeError):  # a system that does not tell
        return 8e9


def _make_logger(project: Project, settings: Settings) -> Any:
    """Lightning's logger of the user's choice; ``None`` for ``curves.csv`` alone."""
    if settings.runtime.logger == "csv":
        return None
    import pipeline.heads.lightning  # noqa: F401, which makes the import of Lightning light

    try:
        if settings.runtime.logger == "tensorboard":
            from lightning.pytorch.loggers import TensorBoardLogger

            return TensorBoardLogger(project.logs, name="heads")
        # The user's own choice to install, so neither here nor in the tests.
        from dvclive.lightning import DVCLiveLogger  # type: ignore[import-not-found]

        # Neither a commit of the user's work nor a line in the user's dvc.yaml.
        return DVCLiveLogger(dir=str(project.logs / "dvclive"), save_dvc_exp=False, dvcyaml=None)
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"runtime.logger: {settings.runtime.logger} is not installed"
            + (f" (no module {error.name})" if error.name else ""),
            hint=f"pip install {settings.runtime.logger}, or set it to csv",
        ) from error


def _log_curves(logger: Any, heads: Sequence[TrainedHead]) -> None:
    """Log the losses of the heads that were chosen, of the others none: there may be thousands."""
    for epoch in range(max(len(head.candidate.curve) for head in heads)):
        record = {}
        for head in heads:
            if epoch < len(head.candidate.curve):
                train, validation = head.candidate.curve[epoch].tolist()
                record[f"{head.task.name}/train/loss"] = train
                record[f"{head.task.name}/validation/loss"] = validation
        logger.log_metrics(record, step=epoch + 1)
    logger.finalize("success")


def _choose_threads(
    settings: Settings,
    configurations: Sequence[Configuration],
    tasks: Sequence[Task],
    manifest: Manifest,
    rows: int,
) -> int | None:
    """One thread for steps so small that threads would mostly wait for each other.

    On a busy machine the waiting takes many times as long as the work.

    :returns: ``None`` for all cores.
    """
    outputs = max(
        c.hidden_size * len(tasks) if c.head == "hidden" else sum(task.outputs for task in tasks)
        for c in configurations
    )
    width = max(len(c.layers) for c in configurations) * manifest.width
    if any(c.head == "kernel" for c in configurations):
        width = max(width, rows)
    models = len(configurations) * ((settings.heads.folds or 0) + 1)
    if any(c.optimizer == "lbfgs" for c in configurations):
        return 1 if rows * width * outputs * models < _SMALL_SOLVE else None
    return 1 if settings.heads.batch_size * width * outputs * models < _SMALL_STEP else None


def describe_fit(
    settings: Settings,
    fit: Fit,
    backbone: Asset,
    manifest: Manifest,
    configurations: Sequence[Configuration],
) -> Heads:
    """A finished training run as heads that can be saved and used."""
    return Heads(
        heads=tuple(_describe_head(head, configurations) for head in fit.heads),
        layers=tuple(sorted({layer for head in fit.heads for layer in head.configuration.layers})),
        width=manifest.width,
        backbone=backbone.to_record(),
        fingerprint=manifest.fingerprint,
        recipe=manifest.recipe,
        features={
            "layers": sorted({layer for head in fit.heads for layer in head.configuration.layers}),
            "width": manifest.width,
            "standardized": settings.heads.standardize,
        },
        training={
            # The rest is told of each head, as its configuration.
            **settings.heads.model_dump(mode="json", include=_OF_ALL),
            "configurations": fit.configurations,
            "judged_rows": fit.judged_rows,
            "epochs_run": fit.epochs,
        },
    )


def _describe_head(head: TrainedHead, configurations: Sequence[Configuration]) -> SavedHead:
    from pipeline.heads.choosing import list_scores

    task, calibration, found = head.task, head.calibration, head.candidate
    losses = found.curve.tolist()
    return SavedHead(
        name=task.name,
        type=TASK_TYPES[task.type],
        classes=task.classes,
        layers=head.configuration.layers,
        decision=calibration.decision,
        weights=(found.head, *head.seeds.values()),
        seeds=(head.configuration.seed, *head.seeds),
        about={
            "loss_weight": task.loss_weight,
            "class_weights": _name_weights(head),
            "best_epoch": found.epoch,
            "validation_loss": found.validation_loss,
            "metric": task.metric,
            "held_out_score": head.scores[0].value,
            "held_out_loss": {
                "before": calibration.loss_before,
                "after": calibration.loss_after,
            },
            "configuration": head.configuration.describe(),
            "layer_mix": found.layer_mix,
        },
        search=tuple(list_scores(head.scores, configurations)),
        history=History(
            tuple(range(1, len(losses) + 1)),
            tuple(train for train, _ in losses),
            tuple(validation for _, validation in losses),
        ),
    )


def _name_weights(head: TrainedHead) -> dict[str, float] | None:
    from pipeline.heads.tasks import resolve_loss

    weights = resolve_loss(head.task, head.configuration.loss_changes).class_weights
    return dict(zip(head.task.classes, weights, strict=True)) if weights else None


def _show_summary(project: Project, fit: Fit, configurations: Sequence[Configuration]) -> None:
    from pipeline.heads.choosing import list_scores

    if len(configurations) > 1:
        for head in fit.heads:
            _show_scores(head, list_scores(head.scores, configurations)[:_SHOWN_SCORES])
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
        f"{count(len(fit.heads), 'head')} of {count(len(configurations), 'configuration')}, judged "
        f"on {fit.judged_rows:,} held-out rows: {count(fit.epochs, 'epoch')} in "
        f"{fit.fit_seconds:.2f} s → {project.heads}"
    )


def _show_scores(head: TrainedHead, rows: Sequence[Mapping[str, Any]]) -> None:
    """The first lines of the search table."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    show_table(
        [key.replace("_", " ") for key in keys],
        [
            [str(v) if isinstance(v := row.get(key), list | dict) else v for key in keys]
            for row in rows
        ],
        title=f"{head.task.name}: the first of {len(head.scores):,} by {head.task.metric}",
    )
