"""Fit the heads on features in memory."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning
import numpy as np
import numpy.typing as npt
import torch

from pipeline.config import HeadsSettings
from pipeline.console import Advance
from pipeline.errors import DataError
from pipeline.heads.features import Floats, Scaling
from pipeline.heads.module import HeadsModule, KeepBest, TensorBatches
from pipeline.heads.tasks import Task


@dataclass(frozen=True)
class Part:
    """Rows to train on or to validate with.

    :param features: float32, [B, D].
    :param labels: int64, [B, K]: one column a task, in their order.
    """

    features: Floats
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class TrainedHead:
    """One head, for raw features: the scaling is folded in.

    :param weight: float32, [1, D] for a binary task, [C, D] otherwise.
    :param bias: float32, [1] or [C].
    :param epoch: the one it is taken from, from 1.
    :param validation_loss: at that epoch.
    """

    task: Task
    weight: Floats
    bias: Floats
    epoch: int
    validation_loss: float


@dataclass(frozen=True)
class Fit:
    """A finished training run.

    :param curves: one row per epoch and task: epoch, task, train_loss, validation_loss.
    :param fit_seconds: of the training itself, without reading or imports.
    """

    heads: tuple[TrainedHead, ...]
    curves: tuple[dict[str, Any], ...]
    epochs: int
    fit_seconds: float


class _CountEpochs(lightning.Callback):
    def __init__(self, advance: Advance) -> None:
        self.advance = advance

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self.advance(1)


def fit_heads(
    train: Part,
    validation: Part,
    tasks: Sequence[Task],
    settings: HeadsSettings,
    *,
    device: str = "cpu",
    advance: Advance = lambda amount: None,
) -> Fit:
    """Train all heads at once; the same seed gives the same heads.

    :param tasks: K of them, in the order of the label columns.
    :param device: ``cpu``, ``cuda`` or ``cuda:N``.
    :param advance: called after each epoch.
    :raises DataError: if the loss is not a number, as when the learning rate is too high.
    """
    width = train.features.shape[1]
    scaling = Scaling.fit(train.features) if settings.standardize else Scaling.identity(width)
    torch.manual_seed(settings.seed)
    module = HeadsModule(
        width,
        tasks,
        optimizer=settings.optimizer,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
    )
    shuffle = torch.Generator().manual_seed(settings.seed)
    features, labels = _to_tensors(train, scaling, device)
    held_out, held_out_labels = _to_tensors(validation, scaling, device)
    keep = KeepBest(settings.patience)
    trainer = make_trainer(settings.max_epochs, device, [keep, _CountEpochs(advance)])
    started = time.perf_counter()
    try:
        trainer.fit(
            module,
            TensorBatches(features, labels, settings.batch_size, shuffle),
            TensorBatches(held_out, held_out_labels, max(len(held_out), 1)),
        )
    except SystemExit as error:  # Lightning's answer to Ctrl-C, with status 1 and no word
        raise KeyboardInterrupt from error
    fit_seconds = time.perf_counter() - started
    epochs = keep.curves[-1]["epoch"]
    _refuse_nonsense(keep)
    heads = tuple(_take_head(task, module, keep, scaling, settings.keep, epochs) for task in tasks)
    return Fit(heads, tuple(keep.curves), epochs, fit_seconds)


def make_trainer(
    max_epochs: int, device: str, callbacks: list[lightning.Callback]
) -> lightning.Trainer:
    """A Trainer that keeps its own files, bars and advice to itself."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    kind, _, index = device.partition(":")
    return lightning.Trainer(
        accelerator="gpu" if kind == "cuda" else "cpu",
        devices=[int(index or 0)] if kind == "cuda" else 1,
        max_epochs=max_epochs,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def _to_tensors(part: Part, scaling: Scaling, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    features = torch.from_numpy(scaling.apply(part.features)).to(device)
    return features, torch.from_numpy(part.labels).to(device)


def _refuse_nonsense(keep: KeepBest) -> None:
    for row in keep.curves:
        if not math.isfinite(row["train_loss"] + row["validation_loss"]):
            raise DataError(
                f"task {row['task']}: the loss is not a number in epoch {row['epoch']}",
                hint="lower params.yaml: heads.learning_rate",
            )


def _take_head(
    task: Task, module: HeadsModule, keep: KeepBest, scaling: Scaling, which: str, epochs: int
) -> TrainedHead:
    best = which == "best"
    state = keep.best_state[task.name] if best else module.heads[task.name].state_dict()
    weight, bias = scaling.fold(state["weight"].cpu().numpy(), state["bias"].cpu().numpy())
    last_loss = next(r for r in reversed(keep.curves) if r["task"] == task.name)["validation_loss"]
    return TrainedHead(
        task=task,
        weight=weight,
        bias=bias,
        epoch=keep.best_epoch[task.name] if best else epochs,
        validation_loss=keep.best_loss[task.name] if best else last_loss,
    )
