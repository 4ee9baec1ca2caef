"""Fit every configuration, judge it on rows that it has not seen, keep the best of each task."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.config import HeadsSettings
from pipeline.console import Advance
from pipeline.errors import DataError
from pipeline.heads.choosing import Calibration, Score, calibrate_head, choose_configuration
from pipeline.heads.configurations import Configuration, group_by_shape
from pipeline.heads.features import Floats, Scaling
from pipeline.heads.kernel import Kernel
from pipeline.heads.lightning import Callback, LightningModule, Trainer
from pipeline.heads.module import (
    Epochs,
    Features,
    FullBatchHeads,
    GradientHeads,
    StackedHead,
    Targets,
)
from pipeline.heads.tasks import Task
from pipeline.model.weights import HeadWeights

_STACK_NUMBERS = 24_000_000  # in the largest tensor of a stack: below 100 MB in float32
_COPIES = 4  # of weights a stack has so many more than of logits: moments, or steps and gradients

# The features of some layers, scaled by the training rows, and the scaling.
FeaturesOf = Callable[[tuple[int, ...]], tuple[Features, Scaling]]


@dataclass
class Candidate:
    """What training found for one task under one configuration.

    :param held_out: logits of the judged rows, float32, [judged rows, outputs].
    :param layer_mix: of mixed layers: the share of each.
    :param epoch: the one it is taken from, from 1; of L-BFGS, its steps.
    :param curve: training and validation loss after each epoch, [epochs, 2].
    """

    head: HeadWeights
    held_out: Floats
    epoch: int
    validation_loss: float
    curve: npt.NDArray[np.float64]
    layer_mix: tuple[float, ...] | None = None


@dataclass(frozen=True)
class TrainedHead:
    """The head that was chosen for a task.

    :param seeds: heads of the same configuration from other seeds, by seed.
    :param scores: of every configuration, best first.
    """

    task: Task
    configuration: Configuration
    found: Candidate
    calibration: Calibration
    scores: tuple[Score, ...]
    seeds: Mapping[int, HeadWeights] = field(default_factory=dict)


@dataclass(frozen=True)
class Fit:
    """A finished training run.

    :param judged_rows: rows that configurations were judged by.
    :param fit_seconds: of training and choosing, without reading or imports.
    """

    heads: tuple[TrainedHead, ...]
    configurations: int
    judged_rows: int
    epochs: int
    fit_seconds: float


def make_targets(
    labels: Mapping[str, npt.NDArray[Any]],
    train_rows: int,
    folds: npt.NDArray[np.int64] | None,
    device: str,
) -> Targets:
    """Labels as tensors, and the masks of the folds.

    :param labels: by task, training rows first, then validation rows.
    :param folds: of each training row, [train rows]; ``None`` for no folds.
    """
    rows = len(next(iter(labels.values())))
    F = 1 if folds is None else int(folds.max()) + 2
    masks = torch.zeros(rows, F)
    masks[:train_rows] = 1
    if folds is not None:
        masks[torch.arange(train_rows), torch.from_numpy(folds)] = 0
    return Targets(
        {name: _to_labels(values).to(device) for name, values in labels.items()},
        masks.to(device),
        train_rows,
    )


def _to_labels(values: npt.NDArray[Any]) -> torch.Tensor:
    if values.ndim == 2:
        return torch.from_numpy(np.where(values < 0, np.nan, values).astype(np.float32))
    if values.dtype.kind == "f":
        return torch.from_numpy(values.astype(np.float32))
    return torch.from_numpy(values.astype(np.int64))


def draw_folds(texts: npt.NDArray[np.int64], folds: int, seed: int) -> npt.NDArray[np.int64]:
    """A fold for each row; rows of one text are never in two.

    :param texts: number of each row's text, [B].
    :returns: 0 to folds - 1, [B].
    """
    _, codes = np.unique(texts, return_inverse=True)
    order = np.random.default_rng(seed).permutation(int(codes.max()) + 1)
    drawn: npt.NDArray[np.int64] = (order % folds)[codes]
    return drawn


def fit_heads(
    features_of: FeaturesOf,
    targets: Targets,
    tasks: Sequence[Task],
    configurations: Sequence[Configuration],
    settings: HeadsSettings,
    *,
    device: str = "cpu",
    advance: Advance = lambda amount: None,
) -> Fit:
    """Train all configurations, stack by stack; the same seed gives the same heads.

    :param device: ``cpu``, ``cuda`` or ``cuda:N``.
    :param advance: called after each epoch.
    :raises DataError: if a task has no configuration whose loss is a number.
    """
    started = time.perf_counter()
    judged = _list_judged(targets)
    found: dict[int, dict[str, Candidate]] = {}
    epochs = 0
    for group in group_by_shape(configurations):
        trained, ran = _fit_group(
            group, features_of, targets, tasks, settings, judged, device, advance
        )
        found |= trained
        epochs += ran
    heads = tuple(
        _choose(task, [found[n][task.name] for n in range(len(configurations))], configurations,
                targets, judged, settings)
        for task in tasks
    )  # fmt: skip
    seconds = time.perf_counter() - started
    return Fit(heads, len(configurations), len(judged), epochs, seconds)


def _fit_group(
    group: Sequence[tuple[int, Configuration]],
    features_of: FeaturesOf,
    targets: Targets,
    tasks: Sequence[Task],
    settings: HeadsSettings,
    judged: torch.Tensor,
    device: str,
    advance: Advance,
) -> tuple[dict[int, dict[str, Candidate]], int]:
    """Train numbered configurations of one shape: what was found for each, and epochs in all."""
    first = group[0][1]
    features, made = features_of(first.layers)
    kernel = Kernel(features, made, first.bandwidth) if first.head == "kernel" else None
    if kernel is not None:
        features = kernel.features
    limit = limit_stack([c for _, c in group], tasks, targets, features.width)
    found: dict[int, dict[str, Candidate]] = {}
    epochs = 0
    for start in range(0, len(group), limit):
        numbers, members = zip(*group[start : start + limit], strict=True)
        stack = _Stack(
            members, features, kernel or made, targets, tasks, settings, judged, device, advance
        )
        train = _fit_full_batch if first.optimizer == "lbfgs" else _fit_batches
        candidates, ran = train(stack)
        epochs += ran
        found |= dict(zip(numbers, candidates, strict=True))
    return found, epochs


def _list_judged(targets: Targets) -> torch.Tensor:
    """Rows that some model has not trained on: of validation, and with folds of training too."""
    first = 0 if targets.models > 1 else targets.train_rows
    return torch.arange(first, len(targets.masks), device=targets.masks.device)


def limit_stack(
    configurations: Sequence[Configuration], tasks: Sequence[Task], targets: Targets, width: int
) -> int:
    """How many configurations of one shape fit into one stack.

    :param width: of a feature vector.
    """
    first = configurations[0]
    hidden = first.hidden_size if first.head == "hidden" else 0
    logits = len(targets.masks) * max(hidden * len(tasks) // 8, *(task.outputs for task in tasks))
    weights = max(hidden or task.weight_rows for task in tasks) * width
    return max(1, _STACK_NUMBERS // (targets.models * max(logits, _COPIES * weights)))


@dataclass(frozen=True)
class _Stack:
    """Configurations of one shape, and all that training them takes.

    :param made: what made the features from raw ones.
    :param judged: rows that they are judged by.
    """

    configurations: Sequence[Configuration]
    features: Features
    made: Scaling | Kernel
    targets: Targets
    tasks: Sequence[Task]
    settings: HeadsSettings
    judged: torch.Tensor
    device: str
    advance: Advance


def make_trainer(max_epochs: int, device: str, callbacks: list[Callback]) -> Trainer:
    """A Trainer that keeps its own files, bars and advice to itself."""
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


def _run(trainer: Trainer, module: LightningModule, batches: Any) -> None:
    try:
        trainer.fit(module, batches)
    except SystemExit as error:  # Lightning's answer to Ctrl-C, with status 1 and no word
        raise KeyboardInterrupt from error


class KeepBest(Callback):
    """Measures each epoch on validation rows, and keeps each model's best epoch for each task.

    Heads share no weights, so each may be taken from an epoch of its own. A model whose tasks have
    all not got better for some epochs is done, whatever the others of its stack do.

    :param patience: epochs without a lower validation loss of any task; ``None`` never stops.
    :param last: keep the last epoch instead.
    """

    def __init__(
        self, features: Features, patience: int | None, last: bool, advance: Advance
    ) -> None:
        self.features = features
        self.patience = patience
        self.last = last
        self.advance = advance
        self.curves: list[torch.Tensor] = []  # [2, tasks, K] each
        self.epoch = torch.empty(0)
        self.loss = torch.empty(0)
        self.state: dict[str, torch.Tensor] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, GradientHeads)
        epoch = trainer.current_epoch + 1
        losses = self._measure(pl_module)
        self.curves.append(torch.stack([pl_module.average_losses(), losses]).cpu())
        if epoch == 1:
            self.loss = torch.full_like(losses, float("inf"))
            self.epoch = torch.zeros_like(losses)
        waited = epoch - 1 - self.epoch.amax(dim=0)
        going = torch.ones_like(waited, dtype=torch.bool)
        if self.patience is not None:
            going = waited < self.patience
        better = torch.ones_like(losses, dtype=torch.bool) if self.last else losses < self.loss
        better = (better & going) | (epoch == 1)
        self.loss = torch.where(better, losses, self.loss)
        self.epoch = torch.where(better, float(epoch), self.epoch)
        self._keep(pl_module, better)
        latest = self.epoch.amax(dim=0)
        if self.patience is not None and bool((epoch - latest >= self.patience).all()):
            trainer.should_stop = True
        self.advance(1)

    @torch.no_grad()
    def _measure(self, module: GradientHeads) -> torch.Tensor:
        """Validation loss of each task and model: [tasks, K]."""
        cut = module.targets.train_rows
        logits = compute_stacked_logits(module, self.features, first=cut)
        return module.compute_losses(logits, slice(cut, None), training=False)

    @torch.no_grad()
    def _keep(self, module: GradientHeads, better: torch.Tensor) -> None:
        for number, (name, head) in enumerate(module.heads.items()):
            for key, value in head.named_parameters():
                mask = better[number].view(-1, *([1] * (value.dim() - 1)))
                old = self.state.get(f"{name}.{key}", value)
                self.state[f"{name}.{key}"] = torch.where(mask, value, old)


@torch.no_grad()
def compute_stacked_logits(
    module: GradientHeads, features: Features, *, first: int = 0
) -> dict[str, torch.Tensor]:
    """Logits of the rows from ``first`` on: by task, [rows, K, outputs]."""
    K, rows = len(module.configurations), features.rows
    was, module.training = module.training, False
    device = module.targets.masks.device
    logits = {
        task.name: torch.empty(rows - first, K, task.outputs, device=device)
        for task in module.tasks
    }
    for chosen, block in features.blocks():
        if isinstance(chosen, slice):
            for name, values in module(block[first:]).items():
                logits[name][:] = values
        else:
            inside = chosen >= first
            for name, values in module(block[inside]).items():
                logits[name][chosen[inside] - first] = values
    module.training = was
    return logits


def _fit_batches(stack: _Stack) -> tuple[list[dict[str, Candidate]], int]:
    """Train a stack batch by batch."""
    features, targets, settings = stack.features, stack.targets, stack.settings
    module = GradientHeads(features.width, stack.tasks, stack.configurations, targets)
    module = module.to(stack.device)
    keep = KeepBest(features, settings.patience, settings.keep == "last", stack.advance)
    batches = Epochs(features, settings.batch_size, stack.configurations[0].seed)
    _run(make_trainer(settings.max_epochs, stack.device, [keep]), module, batches)
    module.to(stack.device)
    module.heads.load_state_dict(keep.state)
    curves = torch.stack(keep.curves).double().numpy()  # [epochs, 2, tasks, K]
    logits = compute_stacked_logits(module, features, first=int(stack.judged[0]))
    candidates: list[dict[str, Candidate]] = []
    for number in range(len(stack.configurations)):
        k = (number + 1) * targets.models - 1  # the model that trains on all training rows
        of_tasks = {}
        for t, task in enumerate(stack.tasks):
            head = module.heads[task.name]
            assert isinstance(head, StackedHead)
            mix = torch.softmax(head.mix[k], dim=0).tolist() if head.mixed else None
            of_tasks[task.name] = Candidate(
                head=_take_head(head, k, task, stack.made),
                held_out=_take_held_out(logits[task.name], number, targets, stack.judged),
                epoch=int(keep.epoch[t, k]),
                validation_loss=float(keep.loss[t, k]),
                curve=curves[:, :, t, k],
                layer_mix=tuple(mix) if mix else None,
            )
        candidates.append(of_tasks)
    return candidates, len(keep.curves)


@torch.no_grad()
def _take_head(head: StackedHead, k: int, task: Task, made: Scaling | Kernel) -> HeadWeights:
    first_weight, first_bias = (tensor[k].cpu().numpy() for tensor in head.first_layer())
    if not head.hidden:
        return _fold_linear(first_weight, first_bias, task, made)
    weight, bias = made.fold(first_weight, first_bias)
    last = head.weight[k].cpu().numpy() * task.spread
    return HeadWeights(
        last.astype(np.float32),
        (head.bias[k].cpu().numpy() * task.spread + task.center).astype(np.float32),
        weight,
        bias,
    )


def _fold_linear(weight: Floats, bias: Floats, task: Task, made: Scaling | Kernel) -> HeadWeights:
    """:param made: what made the features from raw ones."""
    spread = np.float32(task.spread)
    folded = made.fold(weight * spread, bias * spread + np.float32(task.center))
    return HeadWeights(*folded, centers=made.centers if isinstance(made, Kernel) else None)


def _take_held_out(
    logits: torch.Tensor, number: int, targets: Targets, judged: torch.Tensor
) -> Floats:
    """Logits of each judged row by the model of one configuration that has not trained on it.

    :param logits: [judged rows, K, outputs].
    """
    F = targets.models
    model = torch.full_like(judged, F - 1)
    if F > 1:
        cut = targets.train_rows
        model[:cut] = targets.masks[:cut, : F - 1].argmin(dim=1)
    rows = torch.arange(len(judged), device=judged.device)
    taken: Floats = logits[rows, number * F + model].cpu().numpy()
    return taken


class _CountSteps(Callback):
    def __init__(self, advance: Advance) -> None:
        self.advance = advance

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.advance(1)


def _fit_full_batch(stack: _Stack) -> tuple[list[dict[str, Candidate]], int]:
    """Train a stack of linear or kernel heads to their optimum."""
    features, targets = stack.features, stack.targets
    module = FullBatchHeads(features, stack.tasks, stack.configurations, targets)
    steps = range(stack.settings.max_epochs)
    _run(make_trainer(1, stack.device, [_CountSteps(stack.advance)]), module, steps)
    candidates: list[dict[str, Candidate]] = [{} for _ in stack.configurations]
    for task in stack.tasks:
        solver = module.solvers[task.name]
        weights, biases = (tensor.cpu().numpy() for tensor in solver.take_heads())
        logits = solver.peek()[int(stack.judged[0]) :]
        curves = torch.stack([torch.stack(pair) for pair in module.curves[task.name]])
        table = curves.double().cpu().numpy()  # [steps, 2, configurations]
        for number in range(len(stack.configurations)):
            k = (number + 1) * targets.models - 1
            ran = max(int(solver.steps[k]), 1)
            candidates[number][task.name] = Candidate(
                head=_fold_linear(weights[k], biases[k], task, stack.made),
                held_out=_take_held_out(logits, number, targets, stack.judged),
                epoch=ran,
                validation_loss=float(table[-1, 1, number]),
                curve=table[:ran, :, number],
            )
    return candidates, len(module.curves[stack.tasks[0].name])


def _choose(
    task: Task,
    candidates: Sequence[Candidate],
    configurations: Sequence[Configuration],
    targets: Targets,
    judged: torch.Tensor,
    settings: HeadsSettings,
) -> TrainedHead:
    labels = targets.labels[task.name][judged].cpu().numpy()
    scaled = [_to_numbers(task, candidate.held_out) for candidate in candidates]
    scores = choose_configuration(task, scaled, labels, configurations)
    if not np.isfinite(scores[0].loss):
        worst = candidates[0].curve
        bad = np.flatnonzero(~np.isfinite(worst).all(axis=1))
        epoch = int(bad[0]) + 1 if len(bad) else len(worst)
        raise DataError(
            f"task {task.name}: the loss is not a number in epoch {epoch}",
            hint="lower heads.learning_rate",
        )
    best = scores[0].numbers[0]
    calibration = calibrate_head(task, scaled[best], labels, fit=settings.calibrate)
    return TrainedHead(
        task=task,
        configuration=configurations[best],
        found=candidates[best],
        calibration=calibration,
        scores=tuple(scores),
        seeds={
            configurations[number].seed: candidates[number].head for number in scores[0].numbers[1:]
        },
    )


def _to_numbers(task: Task, logits: Floats) -> Floats:
    """A regression's outputs in the unit of its labels; other logits as they are."""
    return logits * np.float32(task.spread) + np.float32(task.center)
