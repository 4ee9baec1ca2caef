"""Cached vectors and labels → ``cache/heads/``."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import paths
from pipeline.assets import Asset, read_assets
from pipeline.config import Settings
from pipeline.console import count, say, show_progress, show_table
from pipeline.corpus import LabelledRows, read_labelled_rows
from pipeline.device import choose_device
from pipeline.errors import DataError, StageError
from pipeline.files import format_json, write_together
from pipeline.heads.tasks import Task, make_tasks
from pipeline.layers import resolve_layers
from pipeline.store import Manifest, read_manifest, read_vectors

if TYPE_CHECKING:
    from pipeline.heads.training import Fit, Part

FORMAT = 1
_THRESHOLD = 0.5
_SMALL_STEP = 50_000_000  # multiplications in one forward pass


def run_train_heads(settings: Settings) -> dict[str, object]:
    """Train a head for each task and save them with all that inference needs.

    :returns: details for the timing file.
    """
    rows = read_labelled_rows()
    tasks = make_tasks(settings.heads.tasks, rows)
    manifest = read_manifest(paths.EMBEDDINGS)
    backbone = read_assets()["backbone"]
    _check_backbone(backbone, manifest)
    layers = resolve_layers(settings.heads.layers, manifest.layers, "heads.layers")
    train = _read_part(rows, "train", tasks, layers)
    validation = _read_part(rows, "validation", tasks, layers)
    fit = _fit(settings, train, validation, tasks)
    _save(settings, fit, backbone, manifest, layers)
    _show_summary(fit, train)
    return {
        "tasks": len(tasks),
        "rows": len(train.features),
        "features": train.features.shape[1],
        "epochs": fit.epochs,
        "fit_seconds": round(fit.fit_seconds, 2),
    }


def _check_backbone(backbone: Asset, manifest: Manifest) -> None:
    files = manifest.recipe["files"]
    if any(backbone.files.get(name) != sha256 for name, sha256 in files.items()):
        raise StageError(
            f"{paths.EMBEDDINGS} holds vectors of {manifest.backbone}, but {paths.ASSETS} now "
            f"names {backbone.id}",
            hint="run `pipeline embed` first",
        )


def _read_part(
    rows: LabelledRows, part: str, tasks: Sequence[Task], layers: tuple[int, ...]
) -> Part:
    from pipeline.heads.training import Part

    chosen = rows.select(part)
    if not len(chosen):
        raise DataError(f"no {part} rows", hint="change params.yaml: prepare.split")
    vectors = read_vectors(paths.EMBEDDINGS, rows.keys.take(chosen), layers)
    labels = np.stack([rows.tasks[task.name].indices[chosen] for task in tasks], axis=1)
    return Part(features=vectors.reshape(len(chosen), -1), labels=labels)


def _fit(settings: Settings, train: Part, validation: Part, tasks: Sequence[Task]) -> Fit:
    import torch

    from pipeline.heads.training import fit_heads

    threads = settings.runtime.threads or _choose_threads(settings, train, tasks)
    if threads is not None:
        torch.set_num_threads(threads)
    device = choose_device(settings.runtime.device)
    with show_progress("training", settings.heads.max_epochs, "epochs") as advance:
        return fit_heads(
            train, validation, tasks, settings.heads, device=str(device), advance=advance
        )


def _choose_threads(settings: Settings, train: Part, tasks: Sequence[Task]) -> int | None:
    """One thread for steps so small that threads would mostly wait for each other.

    On a busy machine the waiting takes many times as long as the work.

    :returns: ``None`` for all cores.
    """
    outputs = sum(task.outputs for task in tasks)
    products = settings.heads.batch_size * train.features.shape[1] * outputs
    return 1 if products < _SMALL_STEP else None


def _save(
    settings: Settings, fit: Fit, backbone: Asset, manifest: Manifest, layers: tuple[int, ...]
) -> None:
    """Weights, curves, and last the description, whose hash of the weights ties them together."""
    from safetensors.numpy import save

    tensors = {}
    for head in fit.heads:
        tensors[f"{head.task.name}.weight"] = np.ascontiguousarray(head.weight)
        tensors[f"{head.task.name}.bias"] = np.ascontiguousarray(head.bias)
    weights = save(tensors)
    description = {
        "format": FORMAT,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "backbone": backbone.to_record(),
        "fingerprint": manifest.fingerprint,
        "recipe": manifest.recipe,
        "features": {
            "layers": list(layers),
            "width": manifest.width,
            "standardized": settings.heads.standardize,
        },
        "tasks": {head.task.name: _describe_head(head) for head in fit.heads},
        "training": {
            **settings.heads.model_dump(mode="json", exclude={"tasks", "layers"}),
            "epochs_run": fit.epochs,
        },
    }
    write_together(
        {
            paths.HEADS / "heads.safetensors": weights,
            paths.HEADS / "curves.csv": _format_curves(fit.curves),
            paths.HEADS / "heads.json": format_json(description),
        }
    )


def _describe_head(head: Any) -> dict[str, Any]:
    task: Task = head.task
    weights = (
        dict(zip(task.classes, task.class_weights, strict=True)) if task.class_weights else None
    )
    return {
        "type": task.type,
        "classes": list(task.classes),
        **({"threshold": _THRESHOLD} if task.type == "binary" else {}),
        "loss_weight": task.loss_weight,
        "class_weights": weights,
        "best_epoch": head.epoch,
        "validation_loss": head.validation_loss,
    }


def _format_curves(curves: Sequence[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(curves[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(curves)
    return text.getvalue().encode("utf-8")


def _show_summary(fit: Fit, train: Part) -> None:
    rows, width = train.features.shape
    show_table(
        ("head", "classes", "epoch kept", "validation loss"),
        [(h.task.name, len(h.task.classes), h.epoch, h.validation_loss) for h in fit.heads],
    )
    say(
        f"{count(len(fit.heads), 'head')} on {rows:,} × {width:,} features: "
        f"{count(fit.epochs, 'epoch')} in {fit.fit_seconds:.2f} s → {paths.HEADS}"
    )
