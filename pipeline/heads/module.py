"""The heads of M = K·F models as LightningModules, trained by batches or on all rows at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, IterableDataset

from pipeline.heads.configurations import Configuration
from pipeline.heads.features import Batch, Features
from pipeline.heads.lightning import LightningModule
from pipeline.heads.optimizers import OPTIMIZERS
from pipeline.heads.solver import StackedLbfgs
from pipeline.heads.targets import Targets, make_losses
from pipeline.heads.tasks import Task, resolve_loss

# Heads are done when a further step promises less than this share of their loss.
TOLERANCE = 3e-6


class StackedHead(nn.Module):
    """The heads of one task in M models, stacked along the first axis.

    :param start: name → parameter of one head, from which all start: ``weight``, [R, D] or [R, U],
        and ``bias``, [O]; of heads with a hidden layer also ``input_weight``, [U, D], and
        ``input_bias``, [U].
    :param models: M.
    :param mixed_layers: the number of layers that the heads mix, each by M shares of its own; 0 if
        the features are all layers, side by side.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    input_weight: nn.Parameter
    input_bias: nn.Parameter
    mix: nn.Parameter

    def __init__(
        self, start: Mapping[str, torch.Tensor], models: int, mixed_layers: int = 0
    ) -> None:
        super().__init__()
        for name, value in start.items():
            repeated = value.repeat(models, *([1] * value.dim()))
            self.register_parameter(name, nn.Parameter(repeated))
        self.is_mixed = mixed_layers > 0
        if self.is_mixed:
            self.mix = nn.Parameter(torch.zeros(models, mixed_layers))
        self.is_hidden = "input_weight" in start

    def first_layer(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What the features are multiplied by and what is added then.

        A mix of layers is a weight on all of them: each layer's share times the one weight.

        :returns: [M, R, D] and [M, O], or [M, U, D] and [M, U] of a hidden layer.
        """
        weight: torch.Tensor = self.input_weight if self.is_hidden else self.weight
        bias: torch.Tensor = self.input_bias if self.is_hidden else self.bias
        if self.is_mixed:
            weight = (self.shares()[:, None, :, None] * weight[:, :, None, :]).flatten(2)
        return weight, bias

    def shares(self) -> torch.Tensor:
        """The share of each layer in a mix: [M, L]."""
        return torch.softmax(self.mix, dim=1)


def draw_start(width: int, task: Task, configuration: Configuration) -> dict[str, torch.Tensor]:
    """Weights and biases as torch's ``Linear`` draws them.

    :param width: D, the width of a feature vector: of all layers, side by side.
    :param task: the task that the head is for.
    :param configuration: the configuration that says what its layers are.
    """
    hidden = configuration.hidden_size if configuration.head == "hidden" else 0
    inputs = width // count_mixed_layers(configuration) if configuration.combine == "mix" else width
    start = {}
    if hidden:
        first = nn.Linear(inputs, hidden)
        start = {"input_weight": first.weight.detach(), "input_bias": first.bias.detach()}
    last = nn.Linear(hidden or inputs, task.weight_rows)
    bias = last.bias.detach()
    if task.weight_rows < task.outputs:
        # The logits of an ordinal head differ by their biases alone, so those start apart.
        bias = torch.linspace(1, -1, task.outputs)
    return start | {"weight": last.weight.detach(), "bias": bias}


def count_mixed_layers(configuration: Configuration) -> int:
    """The number of layers that heads of a configuration mix; 0 if it joins them."""
    return len(configuration.layers) if configuration.combine == "mix" else 0


class GradientHeads(LightningModule):
    """Heads that learn batch by batch, by SGD or AdamW.

    :param width: D.
    :param tasks: what the heads learn; each task has heads of its own.
    :param configurations: K of one shape, each with F fits, that start from the same weights.
    :param targets: labels and masks.
    """

    def __init__(
        self,
        width: int,
        tasks: Sequence[Task],
        configurations: Sequence[Configuration],
        targets: Targets,
    ) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.targets = targets
        self.configurations = tuple(configurations)
        self.models = len(configurations) * targets.fits
        first = configurations[0]
        layers = count_mixed_layers(first)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(first.seed)
            starts = {task.name: draw_start(width, task, first) for task in tasks}
        self.heads = nn.ModuleDict(
            {name: StackedHead(start, self.models, layers) for name, start in starts.items()}
        )
        self.losses = make_losses(tasks, configurations, targets)
        self.loss_weights = targets.masks.new_tensor([task.loss_weight for task in tasks])
        self._drops = torch.Generator().manual_seed(first.seed)
        self._batch_losses: list[tuple[torch.Tensor, int]] = []  # [tasks, M], and rows of the batch

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits of each task: [B, M, O].

        :param features: float32, [B, D].
        """
        features = self._drop(features)
        heads = {name: cast(StackedHead, head) for name, head in self.heads.items()}
        first_layers = [head.first_layer() for head in heads.values()]
        # As one product over all heads, so that the features, which are far larger, are read once.
        weights = torch.cat([weight.flatten(0, 1) for weight, _ in first_layers])
        products = torch.split(
            functional.linear(features, weights),
            [len(weight.flatten(0, 1)) for weight, _ in first_layers],
            dim=1,
        )
        logits = {}
        for (name, head), (weight, bias), product in zip(
            heads.items(), first_layers, products, strict=True
        ):
            values = product.view(len(product), *weight.shape[:2]) + bias
            if head.is_hidden:
                values = self._drop(torch.relu(values))
                values = torch.einsum("bmu,mou->bmo", values, head.weight) + head.bias
            logits[name] = values
        return logits

    def compute_losses(
        self, logits: Mapping[str, torch.Tensor], rows: torch.Tensor | slice, *, training: bool
    ) -> torch.Tensor:
        """The loss of each task and model: [tasks, M].

        :param logits: task → [B, M, O].
        :param rows: which rows the logits are of.
        :param training: whether each model counts the rows of its mask alone, and logits are
            adjusted.
        """
        mask = self.targets.masks[rows].repeat(1, len(self.configurations)) if training else None
        return torch.stack(
            [
                self.losses[task.name].average(
                    logits[task.name], self.targets.labels[task.name][rows], mask, training=training
                )
                for task in self.tasks
            ]
        )

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        rows, features = batch
        losses = self.compute_losses(self(features), rows, training=True)
        self._batch_losses.append((losses.detach(), len(rows)))
        # Models share no weights, so the gradient of the sum of their losses is each one's own.
        return (self.loss_weights @ losses).sum()

    def configure_optimizers(self) -> Optimizer:
        models = [c for c in self.configurations for _ in range(self.targets.fits)]
        return OPTIMIZERS[models[0].optimizer](
            self.parameters(),
            [c.learning_rate for c in models],
            [c.weight_decay or 0.0 for c in models],
        )

    def average_losses(self) -> torch.Tensor:
        """Loss of each task and model over the batches since the last call: [tasks, M]."""
        losses = torch.stack([losses for losses, _ in self._batch_losses])
        rows = torch.tensor([float(rows) for _, rows in self._batch_losses]).to(losses)
        self._batch_losses.clear()
        return torch.einsum("s,stm->tm", rows / rows.sum(), losses)

    @torch.no_grad()
    def compute_logits(self, features: Features, first_row: int = 0) -> dict[str, torch.Tensor]:
        """Logits without dropout of the rows from a number on: task → [B, M, O]."""
        device = self.targets.masks.device
        logits = {
            task.name: torch.empty(
                features.rows - first_row, self.models, task.outputs, device=device
            )
            for task in self.tasks
        }
        self.eval()
        for rows, block in features.blocks() if first_row < features.rows else ():
            if isinstance(rows, slice):
                for name, values in self(block[first_row:]).items():
                    logits[name][:] = values
            else:
                inside = rows >= first_row
                for name, values in self(block[inside]).items():
                    logits[name][rows[inside] - first_row] = values
        self.train()
        return logits

    def _drop(self, values: torch.Tensor) -> torch.Tensor:
        """Dropout with one mask for all models, so that a model alone is dealt the same.

        Source: Srivastava et al. (2014), Dropout.

        :param values: [B, D], or [B, M, U].
        """
        dropout = self.configurations[0].dropout
        if not self.training or not dropout:
            return values
        drawn = torch.rand(values.shape[0], values.shape[-1], generator=self._drops)
        kept = (drawn >= dropout).to(values) / (1 - dropout)
        return values * (kept if values.dim() == 2 else kept[:, None])


class FullBatchHeads(LightningModule):
    """Linear or kernel heads that learn from all rows at once, by L-BFGS.

    An epoch is one step on all rows. Each task has an optimizer of its own, and an optimizer takes
    its own gradients, so optimization is what Lightning calls manual.

    :param features: the features of all rows.
    :param tasks: what the heads learn; each task has heads of its own.
    :param configurations: K of one shape, each with F fits.
    :param targets: labels and masks.
    :param start: the weight, [R, D], and the bias, [O], that the heads of one task start from;
        ``None`` for heads that are constant.
    :param tolerance: heads are done when a further step promises less than this share of their
        loss.
    """

    def __init__(
        self,
        features: Features,
        tasks: Sequence[Task],
        configurations: Sequence[Configuration],
        targets: Targets,
        start: tuple[torch.Tensor, torch.Tensor] | None = None,
        tolerance: float = TOLERANCE,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self._start, self._tolerance = start, tolerance
        self.tasks = tuple(tasks)
        self.targets = targets
        self.configurations = tuple(configurations)
        self.losses = make_losses(tasks, configurations, targets)
        self.heads = nn.ModuleDict(
            {task.name: self._make_head(task, features.width) for task in tasks}
        )
        self.solvers = {task.name: self._make_solver(task, features) for task in tasks}

    def _make_head(self, task: Task, width: int) -> StackedHead:
        weight, bias = self._start or (
            torch.zeros(task.weight_rows, width),
            torch.from_numpy(task.target.start(task.labels).bias),
        )
        start = {"weight": weight, "bias": bias}
        models = len(self.configurations) * self.targets.fits
        return StackedHead(start, models).to(self.targets.masks.device)

    def _make_solver(self, task: Task, features: Features) -> StackedLbfgs:
        loss, labels = self.losses[task.name], self.targets.labels[task.name]
        masks, F = self.targets.masks, self.targets.fits

        def objective(logits: torch.Tensor, models: torch.Tensor) -> torch.Tensor:
            mask = masks[:, models % F]  # the last axis of M = K·F is that of fits
            return task.loss_weight * loss.select(models).average(logits, labels, mask)

        head = cast(StackedHead, self.heads[task.name])
        # The curvature of the task's own loss serves for others that a search tries, too: the
        # solver only starts from it.
        own_loss = resolve_loss(task, {}).formula
        curvature = task.target.measure_curvature(own_loss, task.labels)
        decays = [c.weight_decay or 0.0 for c in self.configurations for _ in range(F)]
        return StackedLbfgs(
            head.weight,
            head.bias,
            features.blocks,
            objective,
            masks.new_tensor(decays),
            features.basis,
            rows=features.rows,
            curvature=max(task.loss_weight * curvature, 1e-6),
            tolerance=self._tolerance,
        )

    def configure_optimizers(self) -> list[Optimizer]:
        return list(self.solvers.values())

    def training_step(self, batch: Features, batch_idx: int) -> None:
        optimizers = self.optimizers()
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            optimizer.step()

    @property
    def done(self) -> bool:
        """Whether all heads have reached their optimum."""
        return all(solver.done for solver in self.solvers.values())

    @torch.no_grad()
    def measure_losses(self) -> torch.Tensor:
        """Training and validation loss of each configuration's full fit, without the penalty.

        :returns: [2, tasks, K].
        """
        cut, masks = self.targets.train_rows, self.targets.masks
        models = len(self.configurations) * self.targets.fits
        full_fits = self.targets.split_fits(torch.arange(models, device=masks.device))[:, -1]
        losses = []
        for task in self.tasks:
            loss = self.losses[task.name].select(full_fits)
            logits = self.targets.split_fits(self.solvers[task.name].read_logits(), dim=1)[:, :, -1]
            labels = self.targets.labels[task.name]
            trained = loss.average(logits[:cut], labels[:cut])
            judged = loss.average(logits[cut:], labels[cut:], training=False)
            losses.append(torch.stack([trained, judged]))
        return torch.stack(losses, dim=1)


class ShuffledBatches(IterableDataset[Batch]):
    """Training rows in batches; each pass over it shuffles them anew.

    :param features: the features of the rows.
    :param batch_size: the number of rows in a batch.
    :param seed: the seed of the order of the rows.
    """

    def __init__(self, features: Features, batch_size: int, seed: int) -> None:
        self._features = features
        self._batch_size = batch_size
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-self._features.train_rows // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self._features.batches(self._batch_size, self._generator)


class AllRows(Dataset[Features]):
    """One batch, which is the features of all rows, wherever they are."""

    def __init__(self, features: Features) -> None:
        self._features = features

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Features:
        return self._features


def load_batches(dataset: Dataset[Batch] | Dataset[Features]) -> DataLoader[Batch | Features]:
    """A loader of batches that the dataset has made itself."""
    return DataLoader(dataset, batch_size=None)
