"""Losses of K configurations at once, each with options of its own.

A configuration's loss is the weighted mean over the rows that have a label: sum(w * l) / sum(w),
with w the weight of the row's class, as torch's ``CrossEntropyLoss`` has it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from pipeline.heads.tasks import LossOptions, Task


class StackedLoss:
    """The loss of one task under the options of K configurations.

    With z the logits, y the label, C classes, π the classes' shares of the training rows:

    - cross-entropy: -log softmax(z)_y; of a binary head, the same of the logits (0, z).
    - label smoothing ε: the target is 1 - ε + ε / C for y and ε / C for the others. With class
      weights each term is weighted by its own class and the mean is over the rows' weights.
      Source: Szegedy et al. (2016), Rethinking the Inception architecture.
    - focal γ: (1 - p_y)**γ times the cross-entropy. Source: Lin et al. (2017), Focal loss for dense
      object detection.
    - logit adjustment τ: τ log π is added to the logits, in training only. Source: Menon et al.
      (2021), Long-tail learning via logit adjustment.
    - multilabel: the binary loss of each tag, averaged; its weight w multiplies the term of a
      present tag, as ``pos_weight`` of torch's ``BCEWithLogitsLoss``.
    - ordinal: the sum over c of the binary cross-entropy of "above class c". Source: Cao,
      Mirjalili, Raschka (2020), Rank consistent ordinal regression (CORAL).
    - regression: squared error of (y - center) / spread; Huber's: half of it within δ, and
      δ (|e| - δ / 2) beyond. Source: Huber (1964), Robust estimation of a location parameter.

    :param options: of each of K configurations; they share ``kind`` up to focal or not.
    """

    def __init__(self, task: Task, options: Sequence[LossOptions], device: str = "cpu") -> None:
        self.task = task
        self.kind = options[0].kind
        self._smoothing = _stack([o.label_smoothing for o in options], device)
        self._gamma = _stack([o.focal_gamma for o in options], device)
        self._delta = _stack([o.huber_delta for o in options], device)
        self._weights = None
        if any(o.class_weights for o in options):
            ones = (1.0,) * len(task.classes)
            self._weights = _stack([o.class_weights or ones for o in options], device)
        self._shift = None
        if any(o.logit_adjustment for o in options):
            tau = _stack([o.logit_adjustment for o in options], device)
            self._shift = tau[:, None] * _log_shares(task, device)

    def select(self, which: torch.Tensor | slice) -> StackedLoss:
        """The loss of some of the configurations.

        :param which: their numbers, or a mask of them.
        """
        chosen = copy.copy(self)
        for name in ("_smoothing", "_gamma", "_delta", "_weights", "_shift"):
            value = getattr(self, name)
            setattr(chosen, name, None if value is None else value[which])
        return chosen

    def __call__(
        self, logits: torch.Tensor, labels: torch.Tensor, *, training: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and weight of each row under each configuration.

        :param logits: [B, K, outputs].
        :param labels: int64, [B], -1 for none; float32, [B, C], NaN for none, of tags; float32,
            [B], NaN for none, of numbers.
        :param training: logit adjustment is of training alone.
        :returns: both [B, K]; a row without a label weighs 0.
        """
        if self._shift is not None and training:
            logits = logits + self._shift
        if self.task.type == "regression":
            return self._regress(logits[..., 0], labels)
        if self.task.type == "multilabel":
            return self._judge_tags(logits, labels)
        present = labels >= 0
        index = labels.clamp_min(0)
        if self.task.type == "ordinal":
            losses = self._rank(logits, index)
        elif self.task.type == "binary":
            losses = self._judge_one(logits[..., 0], index[:, None].to(logits.dtype), None)
        else:
            losses = self._choose(logits, index)
        if self._weights is None:
            return losses, present.to(logits.dtype)[:, None].expand(-1, logits.shape[1])
        weights = self._weights.T[index] * present[:, None]
        if bool(self._smoothing.any()):
            # Smoothed terms are weighted one by one; only the mean is over the rows' weights.
            losses = losses / weights.clamp_min(1e-12)
        return losses, weights

    def average(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        mask: torch.Tensor | None = None,
        *,
        training: bool = True,
    ) -> torch.Tensor:
        """The loss of each configuration: [K].

        :param mask: which rows count for which configuration, [B, K]; all if ``None``.
        """
        losses, weights = self(logits, labels, training=training)
        if mask is not None:
            weights = weights * mask
        # A batch may hold only rows of weight 0.
        return (weights * losses).sum(dim=0) / weights.sum(dim=0).clamp_min(1e-12)

    def _judge_one(
        self, logits: torch.Tensor, target: torch.Tensor, tag_weights: torch.Tensor | None
    ) -> torch.Tensor:
        """Binary loss of logits [B, K] (or [B, K, C] of tags) against 0 or 1, which broadcasts."""
        smoothing, gamma = self._smoothing, self._gamma
        if logits.dim() == 3:
            smoothing, gamma = smoothing[:, None], gamma[:, None]
        soft = target * (1 - smoothing) + smoothing / 2
        smooth = bool(smoothing.any())
        if tag_weights is not None:
            losses = functional.softplus(-logits) * soft * tag_weights
            losses = losses + functional.softplus(logits) * (1 - soft)
        elif smooth and self._weights is not None and logits.dim() == 2:
            absent, present = self._weights[:, 0], self._weights[:, 1]
            losses = functional.softplus(-logits) * soft * present
            losses = losses + functional.softplus(logits) * (1 - soft) * absent
        else:
            losses = functional.softplus(logits) - soft * logits
        if bool(gamma.any()):
            wrong = torch.sigmoid((1 - 2 * target) * logits)
            losses = losses * _power(wrong, gamma)
        return losses

    def _choose(self, logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        logs = functional.log_softmax(logits, dim=-1)
        chosen = logs.gather(2, index[:, None, None].expand(-1, logs.shape[1], 1))[..., 0]
        losses = -chosen
        if bool(self._smoothing.any()):
            C = logits.shape[-1]
            weights = self._weights if self._weights is not None else logits.new_ones(1, C)
            spread = -(logs * weights).sum(dim=-1) / C
            own = -chosen * weights.T[index]
            losses = (1 - self._smoothing) * own + self._smoothing * spread
        if bool(self._gamma.any()):
            losses = losses * _power(1 - chosen.exp(), self._gamma)
        return losses

    def _rank(self, logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(logits.shape[-1], device=logits.device)
        above = (index[:, None] > steps).to(logits.dtype)[:, None]
        return (functional.softplus(logits) - above * logits).sum(dim=-1)

    def _judge_tags(
        self, logits: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        present = ~labels.isnan()
        target = labels.nan_to_num().to(logits.dtype)[:, None]
        losses = self._judge_one(logits, target, self._weights) * present[:, None]
        number = present.sum(dim=-1).to(logits.dtype)
        weights = (number / logits.shape[-1])[:, None].expand(-1, logits.shape[1])
        return losses.sum(dim=-1) / number.clamp_min(1)[:, None], weights

    def _regress(
        self, values: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        present = ~labels.isnan()
        target = (labels.nan_to_num() - self.task.center) / self.task.spread
        error = values - target.to(values.dtype)[:, None]
        if self.kind == "huber":
            size = error.abs()
            within = 0.5 * error.square()
            losses = torch.where(
                size <= self._delta, within, self._delta * (size - 0.5 * self._delta)
            )
        else:
            losses = error.square()
        return losses, present.to(values.dtype)[:, None].expand(-1, values.shape[1])


def _stack(values: Sequence[float | Sequence[float]], device: str) -> torch.Tensor:
    return torch.tensor(np.array(values, np.float32), device=device)


def _power(base: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    """base ** exponent, whose gradient is finite where the base is 0."""
    return base.clamp_min(1e-12).pow(exponent)


def _log_shares(task: Task, device: str) -> torch.Tensor:
    """What τ multiplies: log π_c of each class; of a yes or no, log of the odds."""
    counts = np.maximum(np.array(task.counts, np.float64), 0.5)
    if task.type == "multiclass":
        logs = np.log(counts / counts.sum())
    elif task.type == "binary":
        logs = np.log(counts[1:] / counts[:1])
    else:
        logs = np.log(counts / np.maximum(task.rows - counts, 0.5))
    return torch.tensor(logs.astype(np.float32), device=device)
