"""The heads as a LightningModule over tensors in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import lightning
import torch
from torch.nn import functional

from pipeline.heads.tasks import Task

Batch = tuple[torch.Tensor, torch.Tensor]


class TensorBatches:
    """Batches cut from tensors in memory: a drop-in for a DataLoader, without per-row work.

    :param features: float32, [B, D].
    :param labels: int64, [B, K]: one column a task.
    :param generator: shuffles the rows anew in each epoch; ``None`` keeps their order.
    """

    def __init__(
        self,
        features: torch.Tensor,
        labels: torch.Tensor,
        batch_size: int,
        generator: torch.Generator | None = None,
    ) -> None:
        self.features = features
        self.labels = labels
        self.batch_size = batch_size
        self.generator = generator

    def __len__(self) -> int:
        return -(-len(self.features) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        if self.generator is None:
            yield from zip(
                torch.split(self.features, self.batch_size),
                torch.split(self.labels, self.batch_size),
                strict=True,
            )
            return
        order = torch.randperm(len(self.features), generator=self.generator)
        for rows in torch.split(order, self.batch_size):
            yield self.features[rows], self.labels[rows]


def compute_loss(task: Task, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of one task, the mean over rows weighted by their class.

    For a binary task this is binary cross-entropy on its one logit. With class weights w the loss
    is sum(w[y] * l) / sum(w[y]), as torch's ``CrossEntropyLoss`` has it, for both types.

    :param logits: [B, 1] or [B, C].
    :param labels: int64, [B].
    """
    weights = task.class_weights
    if task.type == "binary":
        losses = functional.binary_cross_entropy_with_logits(
            logits.squeeze(1), labels.to(logits.dtype), reduction="none"
        )
    else:
        losses = functional.cross_entropy(logits, labels, reduction="none")
    if weights is None:
        return losses.mean()
    row_weights = torch.tensor(weights, dtype=logits.dtype, device=logits.device)[labels]
    # A batch may hold only rows of weight 0.
    return (row_weights * losses).sum() / row_weights.sum().clamp_min(1e-12)


class HeadsModule(lightning.LightningModule):
    """One linear head per task; the loss is the weighted sum of theirs.

    :param width: D, of a feature vector.
    :param tasks: what the heads learn; the columns of the labels are in this order.
    :param optimizer: ``sgd`` (with Nesterov momentum of 0.9) or ``adamw``.
    :param learning_rate: of the optimizer.
    :param weight_decay: of the optimizer.

    Sources: Sutskever et al. (2013), On the importance of initialization and momentum in deep
    learning; Loshchilov, Hutter (2019), Decoupled weight decay regularization.
    """

    def __init__(
        self,
        width: int,
        tasks: Sequence[Task],
        *,
        optimizer: Literal["sgd", "adamw"],
        learning_rate: float,
        weight_decay: float,
    ) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.heads = torch.nn.ModuleDict(
            {task.name: torch.nn.Linear(width, task.outputs) for task in tasks}
        )
        self.epoch_losses: dict[str, dict[str, float]] = {"train": {}, "validation": {}}
        self._steps: list[tuple[torch.Tensor, int]] = []

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits of each task: [B, 1] or [B, C].

        :param features: float32, [B, D].
        """
        # As one product over all heads: the features, which are far larger, are read once.
        heads = cast(list[torch.nn.Linear], list(self.heads.values()))
        weight = torch.cat([head.weight for head in heads])
        bias = torch.cat([head.bias for head in heads])
        logits = functional.linear(features, weight, bias)
        outputs = [task.outputs for task in self.tasks]
        return dict(zip(self.heads, torch.split(logits, outputs, dim=1), strict=True))

    def compute_losses(self, batch: Batch) -> torch.Tensor:
        """The loss of each task: [K]."""
        features, labels = batch
        logits = self(features)
        return torch.stack(
            [compute_loss(t, logits[t.name], labels[:, k]) for k, t in enumerate(self.tasks)]
        )

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        losses = self.compute_losses(batch)
        self._steps.append((losses.detach(), len(batch[0])))
        weights = [task.loss_weight for task in self.tasks]
        return (losses * losses.new_tensor(weights)).sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._steps.append((self.compute_losses(batch), len(batch[0])))

    def on_validation_epoch_start(self) -> None:
        # Lightning validates inside the training epoch, after its last step.
        self.epoch_losses["train"] = self._average()

    def on_validation_epoch_end(self) -> None:
        self.epoch_losses["validation"] = self._average()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        rate, decay = self.learning_rate, self.weight_decay
        if self.optimizer == "adamw":
            return torch.optim.AdamW(self.parameters(), lr=rate, weight_decay=decay)
        return torch.optim.SGD(
            self.parameters(), lr=rate, weight_decay=decay, momentum=0.9, nesterov=True
        )

    def _average(self) -> dict[str, float]:
        """Mean loss of each task over the rows since the last call."""
        losses = torch.stack([losses for losses, _ in self._steps])
        rows = losses.new_tensor([rows for _, rows in self._steps])
        self._steps.clear()
        means = (rows @ losses / rows.sum()).tolist()
        return {task.name: mean for task, mean in zip(self.tasks, means, strict=True)}


class KeepBest(lightning.Callback):
    """Records the curves, remembers each task's best epoch, and stops when none gets better.

    The heads share no weights, so each may be taken from an epoch of its own.

    :param patience: epochs without a lower validation loss of any task; ``None`` never stops.
    """

    def __init__(self, patience: int | None) -> None:
        self.patience = patience
        self.curves: list[dict[str, Any]] = []
        self.best_epoch: dict[str, int] = {}
        self.best_loss: dict[str, float] = {}
        self.best_state: dict[str, Mapping[str, torch.Tensor]] = {}

    # Not on_validation_epoch_end: callbacks get that before the module has its means.
    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        assert isinstance(pl_module, HeadsModule)
        epoch = trainer.current_epoch + 1
        losses = pl_module.epoch_losses
        for name, loss in losses["validation"].items():
            self.curves.append(
                {
                    "epoch": epoch,
                    "task": name,
                    "train_loss": losses["train"][name],
                    "validation_loss": loss,
                }
            )
            if loss < self.best_loss.get(name, float("inf")):
                self.best_loss[name] = loss
                self.best_epoch[name] = epoch
                state = pl_module.heads[name].state_dict()
                self.best_state[name] = {key: value.clone() for key, value in state.items()}
        latest = max(self.best_epoch.values(), default=0)
        if self.patience is not None and epoch - latest >= self.patience:
            trainer.should_stop = True
