"""Lightning's Trainer for heads, and what it calls after each epoch."""

from __future__ import annotations

import logging
import warnings
from typing import Any, cast

import torch
from torch.utils.data import DataLoader

from pipeline.console import Advance
from pipeline.heads.features import Features
from pipeline.heads.lightning import Callback, LightningModule, Trainer
from pipeline.heads.module import FullBatchHeads, GradientHeads


def make_trainer(max_epochs: int, device: str, callbacks: list[Callback]) -> Trainer:
    """A Trainer that writes no files, shows no bars and gives no advice.

    :param max_epochs: the epochs after which it stops.
    :param device: ``cpu``, ``cuda`` or ``cuda:N``.
    :param callbacks: what follows the training.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    kind, _, index = device.partition(":")
    return Trainer(
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


def run_trainer(trainer: Trainer, module: LightningModule, batches: DataLoader[Any]) -> None:
    """Train a module.

    :param trainer: the trainer.
    :param module: what it trains.
    :param batches: what it trains on.
    :raises KeyboardInterrupt: at Ctrl-C, to which Lightning answers by exiting with status 1
        without a word.
    """
    try:
        trainer.fit(module, batches)
    except SystemExit as error:
        raise KeyboardInterrupt from error


class KeepBest(Callback):
    """Measures each epoch on validation rows, and keeps each model's best epoch for each task.

    Heads share no weights, so each may be taken from an epoch of its own. A model is done when none
    of its tasks has got better for some epochs, whatever the others of its stack do.

    :param features: the features of all rows.
    :param patience: the number of epochs without a lower validation loss of any task after which a
        model is done; ``None`` never stops.
    :param last: whether to keep the last epoch instead.
    :param advance: called after each epoch.
    :ivar curves: training and validation loss after each epoch, [2, tasks, M] each.
    :ivar epoch: the epoch that is kept, from 1, [tasks, M].
    :ivar loss: the validation loss in it, [tasks, M].
    :ivar state: the parameters of all heads in the epochs that are kept.
    """

    def __init__(
        self, features: Features, patience: int | None, last: bool, advance: Advance
    ) -> None:
        self.features = features
        self.patience = patience
        self.last = last
        self.advance = advance
        self.curves: list[torch.Tensor] = []
        self.epoch = torch.empty(0)
        self.loss = torch.empty(0)
        self.state: dict[str, torch.Tensor] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = cast(GradientHeads, pl_module)
        epoch = trainer.current_epoch + 1
        losses = self._measure(module)
        self.curves.append(torch.stack([module.average_losses(), losses]).cpu())
        if epoch == 1:
            self.loss = torch.full_like(losses, float("inf"))
            self.epoch = torch.zeros_like(losses)
        waited = epoch - 1 - self.epoch.amax(dim=0)
        running = torch.ones_like(waited, dtype=torch.bool)
        if self.patience is not None:
            running = waited < self.patience
        better = torch.ones_like(losses, dtype=torch.bool) if self.last else losses < self.loss
        better = (better & running) | (epoch == 1)
        self.loss = torch.where(better, losses, self.loss)
        self.epoch = torch.where(better, float(epoch), self.epoch)
        self._keep(module, better)
        waited = epoch - self.epoch.amax(dim=0)
        if self.patience is not None and bool((waited >= self.patience).all()):
            trainer.should_stop = True
        self.advance(1)

    @torch.no_grad()
    def _measure(self, module: GradientHeads) -> torch.Tensor:
        """Validation loss of each task and model: [tasks, M]."""
        cut = module.targets.train_rows
        logits = module.compute_logits(self.features, first_row=cut)
        return module.compute_losses(logits, slice(cut, None), training=False)

    @torch.no_grad()
    def _keep(self, module: GradientHeads, better: torch.Tensor) -> None:
        for number, (name, head) in enumerate(module.heads.items()):
            for key, value in head.named_parameters():
                mask = better[number].view(-1, *([1] * (value.dim() - 1)))
                old = self.state.get(f"{name}.{key}", value)
                self.state[f"{name}.{key}"] = torch.where(mask, value, old)


class FollowSteps(Callback):
    """Measures heads after each step of the solver, and stops when all have reached their optimum.

    :param advance: called after each step.
    :ivar curves: training and validation loss after each step, [2, tasks, K] each.
    """

    def __init__(self, advance: Advance) -> None:
        self.advance = advance
        self.curves: list[torch.Tensor] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = cast(FullBatchHeads, pl_module)
        self.curves.append(module.measure_losses())
        trainer.should_stop = module.done
        self.advance(1)
