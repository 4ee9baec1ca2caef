"""The heads of K configurations as LightningModules over features in memory or from the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from pipeline.heads.configurations import Configuration
from pipeline.heads.features import Batch, MemoryFeatures, StreamedFeatures
from pipeline.heads.lightning import LightningModule
from pipeline.heads.losses import StackedLoss
from pipeline.heads.solver import StackedLbfgs
from pipeline.heads.tasks import Task, resolve_loss

Features = MemoryFeatures | StreamedFeatures
TOLERANCE = 3e-6


@dataclass(frozen=True)
class Targets:
    """Labels of all rows, and which rows each model of a configuration trains on.

    A configuration has F models: one for each fold, which leaves out that fold's training rows, and
    last the one that trains on all of them.

    :param labels: by task, as ``StackedLoss`` takes them, [N, …].
    :param masks: float32, [N, F]; 0 for rows that a model does not train on.
    :param train_rows: the first rows of N; the others are for validation.
    """

    labels: Mapping[str, torch.Tensor]
    masks: torch.Tensor
    train_rows: int

    @property
    def models(self) -> int:
        """F."""
        return self.masks.shape[1]


class StackedHead(nn.Module):
    """The heads of one task: K of them, stacked along the first axis.

    :param width: D, of a feature vector; of all layers, side by side.
    :param configurations: K of one shape, which start from the same weights.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    input_weight: nn.Parameter
    input_bias: nn.Parameter
    mix: nn.Parameter

    def __init__(self, width: int, task: Task, configurations: Sequence[Configuration]) -> None:
        super().__init__()
        first = configurations[0]
        self.task = task
        self.mixed = len(first.layers) if first.combine == "mix" else 0
        inputs = width // self.mixed if self.mixed else width
        hidden = first.hidden_size if first.head == "hidden" else 0
        for name, value in _draw(inputs, hidden, task).items():
            repeated = value.repeat(len(configurations), *([1] * value.dim()))
            self.register_parameter(name, nn.Parameter(repeated))
        if self.mixed:
            self.mix = nn.Parameter(torch.zeros(len(configurations), self.mixed))
        self.hidden = hidden

    def first_layer(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What is multiplied with the features: [K, R, D], and added: [K, R or outputs].

        A mix of layers is a weight on all of them: each layer's share times the one weight.
        """
        weight: torch.Tensor = self.input_weight if self.hidden else self.weight
        bias: torch.Tensor = self.input_bias if self.hidden else self.bias
        if self.mixed:
            shares = torch.softmax(self.mix, dim=1)
            weight = (shares[:, None, :, None] * weight[:, :, None, :]).flatten(2)
        return weight, bias


def _draw(inputs: int, hidden: int, task: Task) -> dict[str, torch.Tensor]:
    """Weights and biases as torch's ``Linear`` starts with."""
    drawn = {}
    if hidden:
        first = nn.Linear(inputs, hidden)
        drawn = {"input_weight": first.weight.detach(), "input_bias": first.bias.detach()}
    last = nn.Linear(hidden or inputs, task.weight_rows)
    bias = last.bias.detach()
    if task.weight_rows < task.outputs:
        # The logits of an ordinal head share their weight; equal biases would stay equal at first.
        bias = torch.linspace(1, -1, task.outputs)
    return drawn | {"weight": last.weight.detach(), "bias": bias}


class GradientHeads(LightningModule):
    """Heads that learn batch by batch, by SGD or AdamW.

    :param width: D.
    :param tasks: what the heads learn; each task has heads of its own.
    :param configurations: K of one shape, each with F models, that start from the same weights.
    """

    def __init__(
        self,
        width: int,
        tasks: Sequence[Task],
        configurations: Sequence[Configuration],
        targets: Targets,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.tasks = tuple(tasks)
        self.targets = targets
        self.configurations = [c for c in configurations for _ in range(targets.models)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(configurations[0].seed)
            heads = {task.name: StackedHead(width, task, self.configurations) for task in tasks}
        self.heads = nn.ModuleDict(heads)
        device = str(targets.masks.device)
        self.losses = {
            task.name: StackedLoss(
                task, [resolve_loss(task, c.loss_changes) for c in self.configurations], device
            )
            for task in tasks
        }
        self.dropout = configurations[0].dropout
        self._drops = torch.Generator().manual_seed(configurations[0].seed)
        self._moments: dict[str, torch.Tensor] = {}
        self._steps = 0
        self._seen: list[tuple[torch.Tensor, int]] = []

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits of each task: [B, K, outputs].

        :param features: float32, [B, D].
        """
        K = len(self.configurations)
        features = self._drop(features)
        firsts = [cast(StackedHead, head).first_layer() for head in self.heads.values()]
        # As one product over all heads: the features, which are far larger, are read once.
        weights = torch.cat([weight.flatten(0, 1) for weight, _ in firsts])
        products = torch.split(
            functional.linear(features, weights), [w.shape[0] * w.shape[1] for w, _ in firsts], 1
        )
        logits = {}
        for (name, module), (weight, bias), product in zip(
            self.heads.items(), firsts, products, strict=True
        ):
            head = cast(StackedHead, module)
            values = product.view(len(product), K, weight.shape[1]) + bias
            if head.hidden:
                values = self._drop(torch.relu(values))
                values = torch.einsum("bkh,koh->bko", values, head.weight) + head.bias
            logits[name] = values
        return logits

    def compute_losses(
        self, logits: Mapping[str, torch.Tensor], rows: torch.Tensor | slice, *, training: bool
    ) -> torch.Tensor:
        """The loss of each task and model: [tasks, K].

        :param rows: which rows the logits are of. In training, each model counts those of its mask.
        """
        mask = self.targets.masks[rows].repeat(1, len(self.configurations) // self.targets.models)
        return torch.stack(
            [
                self.losses[task.name].average(
                    logits[task.name],
                    self.targets.labels[task.name][rows],
                    mask if training else None,
                    training=training,
                )
                for task in self.tasks
            ]
        )

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        rows, features = batch
        losses = self.compute_losses(self(features), rows, training=True)
        weights = losses.new_tensor([task.loss_weight for task in self.tasks])
        # Models share no weights, so the gradient of the sum is each one's own.
        total = weights @ losses
        self.zero_grad()
        self.manual_backward(total.sum())
        self._update()
        self._seen.append((losses.detach(), len(rows)))
        return total.detach()

    def average_losses(self) -> torch.Tensor:
        """Loss of each task and model over the batches since the last call: [tasks, K]."""
        rows = torch.tensor([float(number) for _, number in self._seen])
        losses = torch.stack([losses for losses, _ in self._seen])
        self._seen.clear()
        return torch.einsum("s,stk->tk", rows.to(losses) / rows.sum(), losses)

    def configure_optimizers(self) -> None:
        """None of torch's: each model has its own learning rate and decay."""

    @torch.no_grad()
    def _update(self) -> None:
        """One step of SGD with Nesterov momentum of 0.9, or of AdamW, as torch has them.

        Sources: Sutskever et al. (2013), On the importance of initialization and momentum in deep
        learning; Loshchilov, Hutter (2019), Decoupled weight decay regularization.
        """
        self._steps += 1
        adamw = self.configurations[0].optimizer == "adamw"
        for name, parameter in self.named_parameters():
            shape = (-1, *([1] * (parameter.dim() - 1)))
            rate = parameter.new_tensor([c.learning_rate for c in self.configurations]).view(shape)
            decay = parameter.new_tensor([c.weight_decay for c in self.configurations]).view(shape)
            slope = cast(torch.Tensor, parameter.grad)
            if adamw:
                mean = self._moments.setdefault(f"{name} mean", torch.zeros_like(slope))
                square = self._moments.setdefault(f"{name} square", torch.zeros_like(slope))
                parameter.mul_(1 - rate * decay)
                mean.lerp_(slope, 0.1)
                square.mul_(0.999).addcmul_(slope, slope, value=0.001)
                spread = square.sqrt().div_((1 - 0.999**self._steps) ** 0.5).add_(1e-8)
                parameter.sub_(rate / (1 - 0.9**self._steps) * mean / spread)
            else:
                slope = slope + decay * parameter
                momentum = self._moments.get(name)
                momentum = slope.clone() if momentum is None else momentum.mul_(0.9).add_(slope)
                self._moments[name] = momentum
                parameter.sub_(rate * (slope + 0.9 * momentum))

    def _drop(self, values: torch.Tensor) -> torch.Tensor:
        """Dropout with one mask for all K models, so that a model alone is dealt the same.

        Source: Srivastava et al. (2014), Dropout.
        """
        if not self.training or not self.dropout:
            return values
        drawn = torch.rand(values.shape[0], values.shape[-1], generator=self._drops)
        kept = (drawn >= self.dropout).to(values) / (1 - self.dropout)
        return values * (kept if values.dim() == 2 else kept[:, None])


class FullBatchHeads(LightningModule):
    """Linear or kernel heads that learn from all rows at once, by L-BFGS; one solver a task.

    :param configurations: K of one shape, each with F models.
    """

    def __init__(
        self,
        features: Features,
        tasks: Sequence[Task],
        configurations: Sequence[Configuration],
        targets: Targets,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.tasks = tuple(tasks)
        self.targets = targets
        self.configurations = [c for c in configurations for _ in range(targets.models)]
        self.losses = {
            task.name: StackedLoss(
                task,
                [resolve_loss(task, c.loss_changes) for c in self.configurations],
                str(targets.masks.device),
            )
            for task in tasks
        }
        self.solvers = {task.name: self._make_solver(task, features) for task in tasks}
        # The loss of each model, without the penalty, after each step: [K].
        self.curves: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {
            t.name: [] for t in tasks
        }

    def _make_solver(self, task: Task, features: Features) -> StackedLbfgs:
        loss, labels = self.losses[task.name], self.targets.labels[task.name]
        masks, F = self.targets.masks, self.targets.models

        def objective(logits: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
            chosen = loss.select(which)
            return task.loss_weight * chosen.average(logits, labels, masks[:, which % F])

        bias, curvature = start_from_shares(task)
        return StackedLbfgs(
            features.blocks,
            objective,
            masks.new_tensor([c.weight_decay for c in self.configurations]),
            features.basis,
            rows=features.rows,
            weight_rows=task.weight_rows,
            bias=bias.to(masks),
            curvature=max(task.loss_weight * curvature, 1e-6),
            tolerance=TOLERANCE,
        )

    def on_train_batch_start(self, batch: object, batch_idx: int) -> int | None:
        # Lightning takes -1 for the end of the epoch.
        return -1 if all(solver.done for solver in self.solvers.values()) else None

    def training_step(self, batch: object, batch_idx: int) -> None:
        for task in self.tasks:
            solver = self.solvers[task.name]
            if not solver.done:
                solver.step()
            self.curves[task.name].append(self._measure(task, solver))

    @torch.no_grad()
    def _measure(self, task: Task, solver: StackedLbfgs) -> tuple[torch.Tensor, torch.Tensor]:
        """Training and validation loss of the last model of each configuration."""
        logits = solver.peek()[:, self.targets.models - 1 :: self.targets.models]
        loss = self.losses[task.name].select(
            slice(self.targets.models - 1, None, self.targets.models)
        )
        labels, cut = self.targets.labels[task.name], self.targets.train_rows
        return (
            loss.average(logits[:cut], labels[:cut]),
            loss.average(logits[cut:], labels[cut:], training=False),
        )

    def configure_optimizers(self) -> None:
        """None of torch's."""


def start_from_shares(task: Task) -> tuple[torch.Tensor, float]:
    """Biases at which a head without weights gives the classes' shares of the training rows, and
    the mean of p (1 - p) there, by which the loss bends."""
    if task.type == "regression":
        return torch.zeros(1), 2.0 if task.loss.kind == "mse" else 1.0
    counts = torch.tensor(task.counts, dtype=torch.float64).clamp_min(0.5)
    if task.type == "multiclass":
        shares = counts / counts.sum()
        return shares.log().float(), float((shares * (1 - shares)).mean())
    if task.type == "binary":
        above = counts[1:] / counts.sum()
    elif task.type == "ordinal":
        above = (counts.flip(0).cumsum(0).flip(0) / counts.sum())[1:]
    else:
        above = (counts / max(task.rows, 1)).clamp(1e-4, 1 - 1e-4)
    bend = (above * (1 - above)).sum() if task.type == "ordinal" else (above * (1 - above)).mean()
    # The tags of a row are averaged, the steps of an ordinal row added up.
    if task.type == "multilabel":
        bend = bend / len(above)
    return torch.logit(above).float(), float(bend)


class Epochs:
    """What a Trainer iterates over in each epoch: batches of training rows, drawn anew.

    :param seed: of the order of the rows.
    """

    def __init__(self, features: Features, batch_size: int, seed: int) -> None:
        self._features = features
        self._batch_size = batch_size
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-self._features.train_rows // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        yield from self._features.batches(self._batch_size, self._generator)
