"""What models train on: labels, folds, and the loss of M = K·F models of one task at once.

K configurations are trained in F fits each: one for each fold, which leaves out that fold's
training rows, and last the full fit on all of them. Along an axis of M models, those of one
configuration lie together, so that it splits into axes of K and F.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.heads.configurations import Configuration
from pipeline.heads.losses import LossOptions, stack_options
from pipeline.heads.tasks import Task, resolve_loss


@dataclass(frozen=True)
class Targets:
    """Labels of all rows, training rows first, and which rows each fit trains on.

    :param labels: task → labels as the task's type encodes them, [B, …].
    :param masks: 1 for rows that a fit trains on, 0 for others: float32, [B, F].
    :param train_rows: the number of rows that are for training; the others are for validation.
    """

    labels: Mapping[str, torch.Tensor]
    masks: torch.Tensor
    train_rows: int

    @property
    def fits(self) -> int:
        """F, the number of folds and the full fit."""
        return self.masks.shape[1]

    @property
    def folds(self) -> npt.NDArray[np.int64] | None:
        """The fold that leaves out each training row, [train_rows]; ``None`` without folds."""
        if self.fits == 1:
            return None
        numbers: npt.NDArray[np.int64] = (
            self.masks[: self.train_rows, : self.fits - 1].argmin(dim=1).cpu().numpy()
        )
        return numbers

    @property
    def rows(self) -> int:
        """B."""
        return len(self.masks)

    @property
    def first_judged(self) -> int:
        """The first of the rows that configurations are judged by, which are all behind it.

        These are rows that some fit has not trained on: the validation rows, and with folds the
        training rows too.
        """
        return 0 if self.fits > 1 else self.train_rows

    @property
    def judged(self) -> torch.Tensor:
        """The numbers of the rows that configurations are judged by: int64, ascending."""
        return (self.masks == 0).any(dim=1).nonzero()[:, 0]

    def judge(self, logits: torch.Tensor) -> torch.Tensor:
        """What fits that have not trained on them say about the judged rows: [B, K, O].

        :param logits: of all rows, [B, M, O].
        """
        return self.take_held_out(logits) if self.fits > 1 else logits[self.judged]

    def leave_out(self, fold: int) -> Targets:
        """The same rows with the fit of one fold alone, judged by its rows and the validation rows.

        :param fold: the number of the fold.
        """
        return replace(self, masks=self.masks[:, [fold]])

    def take_full_fit(self) -> Targets:
        """The same rows with the full fit alone, judged by the validation rows."""
        return replace(self, masks=self.masks[:, -1:])

    def split_fits(self, stacked: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """A tensor with an axis of M models as one with axes of K configurations and F fits.

        :param stacked: a tensor whose axis ``dim`` is of M models.
        :param dim: the axis of models; behind the split, the last fit is the full one.
        """
        before, after = stacked.shape[:dim], stacked.shape[dim + 1 :]
        K = stacked.shape[dim] // self.fits  # -1 would not do for a tensor of no rows
        return stacked.reshape(*before, K, self.fits, *after)

    def take_held_out(self, logits: torch.Tensor) -> torch.Tensor:
        """For each judged row, what the fit that has not trained on it says.

        :param logits: of the judged rows, [B, M, O].
        :returns: [B, K, O].
        """
        F = self.fits
        fit = torch.full((len(logits),), F - 1, device=logits.device)
        if F > 1:
            fit[: self.train_rows] = self.masks[: self.train_rows, : F - 1].argmin(dim=1)
        rows = torch.arange(len(logits), device=logits.device)
        return self.split_fits(logits, dim=1)[rows, :, fit]


def make_targets(
    tasks: Sequence[Task],
    labels: Mapping[str, npt.NDArray[Any]],
    train_rows: int,
    folds: npt.NDArray[np.int64] | None,
    device: str,
) -> Targets:
    """Labels as tensors, and the masks of the folds.

    :param tasks: the tasks that the labels are for.
    :param labels: task → labels as ``TaskLabels`` holds them, training rows first.
    :param train_rows: the number of training rows.
    :param folds: the fold of each training row, from 0, [train_rows]; ``None`` for no folds.
    :param device: where the tensors go.
    """
    rows = len(labels[tasks[0].name])
    F = 1 if folds is None else int(folds.max()) + 2
    masks = torch.zeros(rows, F)
    masks[:train_rows] = 1
    if folds is not None:
        masks[torch.arange(train_rows), torch.from_numpy(folds)] = 0
    encoded = {task.name: task.target.encode(labels[task.name], task.labels) for task in tasks}
    return Targets(
        {name: torch.from_numpy(values).to(device) for name, values in encoded.items()},
        masks.to(device),
        train_rows,
    )


def draw_folds(
    texts: npt.NDArray[np.int64],
    folds: int,
    seed: int,
    alike: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.int64]:
    """A fold for each row; rows of one text are never in two, nor are rows of one vector.

    :param texts: the number of each row's text, [B].
    :param folds: the number of folds.
    :param seed: the seed of the draw.
    :param alike: a number that is the same for rows whose texts have the same vector, [B]; such
        rows are in the fold that the first of them has drawn. ``None`` if all vectors differ.
    :returns: 0 to folds - 1, [B].
    """
    _, codes = np.unique(texts, return_inverse=True)
    order = np.random.default_rng(seed).permutation(int(codes.max()) + 1)
    drawn: npt.NDArray[np.int64] = (order % folds)[codes]
    if alike is None:
        return drawn
    _, first, groups = np.unique(alike, return_index=True, return_inverse=True)
    return drawn[first][groups]


class StackedLoss:
    """The loss of one task for M models, each under options of its own.

    A model's loss is the weighted mean over the rows that have a label, sum(w l) / sum(w). The
    task's type has w and l, ``pipeline.losses`` the formulas.

    :param task: the task.
    :param options: the options of each of M models, which share the kind of loss.
    :param device: where the tensors are.
    """

    def __init__(self, task: Task, options: Sequence[LossOptions], device: str = "cpu") -> None:
        self.task = task
        log_shares = task.target.compute_log_shares(task.labels)
        self._options = stack_options(options, len(task.classes), log_shares, device)

    def select(self, models: torch.Tensor | slice) -> StackedLoss:
        """The loss of some of the models.

        :param models: their numbers, or a mask of them, [M].
        """
        chosen = copy.copy(self)
        chosen._options = self._options.select(models)
        return chosen

    def average(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        mask: torch.Tensor | None = None,
        *,
        training: bool = True,
    ) -> torch.Tensor:
        """The loss of each model: [M].

        :param logits: [B, M, O].
        :param labels: the labels of the rows, as the task's type encodes them.
        :param mask: 1 where a row counts for a model, else 0, [B, M]; ``None`` where all count.
        :param training: whether logits are adjusted, which is for training alone.
        """
        options = self._options
        if options.logit_shift is not None and training:
            logits = logits + options.logit_shift
        losses, weights = self.task.target.compute_losses(logits, labels, options)
        if mask is not None:
            weights = weights * mask
        # A batch may hold only rows of weight 0.
        return (weights * losses).sum(dim=0) / weights.sum(dim=0).clamp_min(1e-12)


def make_losses(
    tasks: Sequence[Task], configurations: Sequence[Configuration], targets: Targets
) -> dict[str, StackedLoss]:
    """The loss of each task for the F fits of each of K configurations.

    :param tasks: the tasks.
    :param configurations: K configurations.
    :param targets: the labels, and which fit trains on which row.
    :returns: task → loss of M = K·F models.
    """
    device = str(targets.masks.device)
    return {
        task.name: StackedLoss(
            task,
            [
                options
                for configuration in configurations
                for options in [resolve_loss(task, configuration.loss_changes)] * targets.fits
            ],
            device,
        )
        for task in tasks
    }
