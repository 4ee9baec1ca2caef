"""Fit every configuration, judge it on rows that it has not seen, keep the best of each task."""

from __future__ import annotations

import contextlib
import gc
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from pipeline.config import HeadsSettings
from pipeline.console import Advance
from pipeline.errors import DataError
from pipeline.heads.choosing import Calibration, Score, calibrate_head, choose_configuration
from pipeline.heads.configurations import Configuration, group_by_shape
from pipeline.heads.features import FeatureMap, Features, Floats, Scaling
from pipeline.heads.kernel import MAX_CENTERS, fit_kernel
from pipeline.heads.module import (
    TOLERANCE,
    AllRows,
    FullBatchHeads,
    GradientHeads,
    ShuffledBatches,
    StackedHead,
    load_batches,
)
from pipeline.heads.path import Found, PathSearch, Step
from pipeline.heads.sample import draw_sample
from pipeline.heads.targets import Targets
from pipeline.heads.tasks import Task
from pipeline.heads.trainer import FollowSteps, KeepBest, make_trainer, run_trainer
from pipeline.model.weights import HeadWeights

# A stack of configurations is as large as its largest tensor allows: 24 million float32 numbers,
# just below 100 MB. Some ten tensors of that size are alive at once.
_MAX_STACK_NUMBERS = 24_000_000
# Tensors of the size of the weights outnumber those of the size of the logits by this factor: the
# optimizers keep moments, or steps and gradients, beside the weights.
_WEIGHT_COPIES = 4

# The tolerance of the head that a path leads to, whose loss then is its optimum's within 1e-4.
_PATH_TOLERANCE = 1e-6
_DEAR_TOLERANCE = 3e-4

# A function that gives the features of some layers, scaled by the training rows, and the scaling.
FeaturesOf = Callable[[tuple[int, ...]], tuple[Features, Scaling]]


@dataclass
class Candidate:
    """The head of one task under one configuration, trained on all training rows.

    :param head: its weights.
    :param held_out: what heads of its configuration that have not trained on a row say about it:
        logits of the judged rows, float32, [B, O].
    :param epoch: the epoch that it is taken from, from 1; under L-BFGS, the steps that it took.
    :param validation_loss: its loss on the validation rows.
    :param curve: training and validation loss after each epoch, [epochs, 2].
    :param layer_mix: the share of each layer in a mix.
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

    :param task: the task.
    :param configuration: the configuration that was chosen.
    :param candidate: the head of that configuration.
    :param calibration: how it decides, its temperature and its thresholds.
    :param scores: those of every configuration, best first.
    :param tried: the configurations that ``Score.numbers`` are indices of, as they are for the
        task.
    :param bound: ``strongest`` or ``weakest`` if the weight decay is a bound of its path.
    :param folded: whether the configurations were judged in all folds.
    :param seeds: heads of the same configuration from other seeds, by seed.
    """

    task: Task
    configuration: Configuration
    candidate: Candidate
    calibration: Calibration
    scores: tuple[Score, ...]
    tried: tuple[Configuration, ...]
    bound: str | None = None
    folded: bool = True
    seeds: Mapping[int, HeadWeights] = field(default_factory=dict)


@dataclass(frozen=True)
class Fit:
    """A finished training run.

    :param heads: one for each task.
    :param configurations: the number of configurations that were judged.
    :param judged_rows: the number of rows that they were judged by.
    :param epochs: the number of epochs in all stacks together.
    :param fit_seconds: the time that training and choosing took, without reading or imports.
    :param folds: the fold that left out each training row; ``None`` without folds.
    :param unfolded: the tasks whose configurations were judged on one split, since heads of all
        folds would have taken long.
    """

    heads: tuple[TrainedHead, ...]
    configurations: int
    judged_rows: int
    epochs: int
    fit_seconds: float
    folds: npt.NDArray[np.int64] | None = None
    unfolded: tuple[str, ...] = ()


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

    :param features_of: a function that gives the features of some layers.
    :param targets: labels and masks of the same rows.
    :param tasks: what heads learn.
    :param configurations: what to try; their settings take precedence over ``settings``.
    :param settings: the settings that all configurations share.
    :param device: ``cpu``, ``cuda`` or ``cuda:N``.
    :param advance: called after each epoch.
    :raises DataError: if a task has no configuration whose loss is a number.
    """
    started = time.perf_counter()
    if any(c.weight_decay is None for c in configurations):
        heads, epochs, judged_rows = _follow_paths(
            features_of, targets, tasks, configurations, settings, device, advance
        )
        seconds = time.perf_counter() - started
        number = max(len(head.tried) for head in heads)
        unfolded = tuple(h.task.name for h in heads if not h.folded) if targets.fits > 1 else ()
        return Fit(heads, number, judged_rows, epochs, seconds, targets.folds, unfolded)
    candidates: dict[int, dict[str, Candidate]] = {}
    epochs = 0
    for group in group_by_shape(configurations):
        for numbers, stack in make_stacks(
            group, features_of, targets, tasks, settings, device, advance
        ):
            trained, ran = stack.fit()
            candidates |= dict(zip(numbers, trained, strict=True))
            epochs += ran
    heads = tuple(
        _choose(
            task,
            [candidates[number][task.name] for number in range(len(configurations))],
            configurations,
            targets,
            settings,
        )
        for task in tasks
    )
    seconds = time.perf_counter() - started
    judged_rows = targets.rows - targets.first_judged
    return Fit(heads, len(configurations), judged_rows, epochs, seconds, targets.folds)


def make_stacks(
    group: Sequence[tuple[int, Configuration]],
    features_of: FeaturesOf,
    targets: Targets,
    tasks: Sequence[Task],
    settings: HeadsSettings,
    device: str,
    advance: Advance,
) -> Iterator[tuple[tuple[int, ...], _Stack]]:
    """Stacks that are small enough, and the numbers of their configurations.

    :param group: numbered configurations of one shape.
    :param features_of: a function that gives the features of some layers.
    :param targets: labels and masks of the same rows.
    :param tasks: what heads learn.
    :param settings: the settings that all configurations share.
    :param device: ``cpu``, ``cuda`` or ``cuda:N``.
    :param advance: called after each epoch.
    :yields: the numbers of the configurations of a stack, and the stack.
    """
    first = group[0][1]
    features, made = make_features(features_of, first)
    kind = _FullBatchStack if first.optimizer == "lbfgs" else _GradientStack
    limit = limit_stack([c for _, c in group], tasks, targets, features.width)
    for start in range(0, len(group), limit):
        numbers, members = zip(*group[start : start + limit], strict=True)
        yield numbers, kind(members, features, made, targets, tasks, settings, device, advance)


def make_features(
    features_of: FeaturesOf, configuration: Configuration
) -> tuple[Features, FeatureMap]:
    """The features that heads of a configuration train on, and what made them of raw ones.

    :param features_of: a function that gives the features of some layers.
    :param configuration: the configuration.
    """
    features, scaling = features_of(configuration.layers)
    if configuration.head != "kernel":
        return features, scaling
    kernel = fit_kernel(features, scaling, configuration.bandwidth)
    return kernel.features, kernel


def _follow_paths(
    features_of: FeaturesOf,
    targets: Targets,
    tasks: Sequence[Task],
    configurations: Sequence[Configuration],
    settings: HeadsSettings,
    device: str,
    advance: Advance,
) -> tuple[tuple[TrainedHead, ...], int, int]:
    """Heads whose weight decay is found along a path.

    :returns: them, the number of steps of the full fits, and the number of rows that judged them.
    """
    held: dict[Hashable, tuple[Features, FeatureMap]] = {}

    def take_features(configuration: Configuration) -> tuple[Features, FeatureMap]:
        if configuration.head != "kernel":
            return make_features(features_of, configuration)  # which are at hand
        key = _identify_features(configuration)
        if key not in held:
            held.clear()  # one kernel's features at a time
            for search in searches:
                search.close()
            if sample is not None:
                sample.close()
            gc.collect()  # solvers and trainers, which hold some, are in cycles
            held[key] = make_features(features_of, configuration)
        return held[key]

    layers = configurations[0].layers
    measure = partial(
        measure_width, features_of(layers)[0].width // len(layers), targets.train_rows
    )
    sample = draw_sample(targets, max(map(measure, configurations)), settings.seed)

    def take_searched(configuration: Configuration) -> Features:
        features, _ = take_features(configuration)
        return features if sample is None else sample.take(features)

    searched = targets if sample is None else sample.targets
    searches = [PathSearch(task, configurations, searched) for task in tasks]
    for search in searches:
        search.leave_out(measure)
    counter = _StepCounter(advance, searches)
    heads: dict[int, TrainedHead] = {}
    judged_rows = 0
    for number, found in _walk_paths(searches, take_searched, counter):
        features, made = take_features(found.best.step.family)
        if sample is not None:
            whole = PathSearch(tasks[number], configurations, sample.split)
            found = sample.judge(whole, found, features)
        is_dear = searches[number].is_long(features.width)
        heads[number] = _fit_best(
            tasks[number], found, features, made, targets, settings, device, is_dear
        )
        del features, made  # so that the next ones have room
        judged_rows = max(judged_rows, found.judged_rows)
        counter.count_head()
    epochs = sum(head.candidate.epoch for head in heads.values())
    return tuple(heads[number] for number in range(len(tasks))), epochs, judged_rows


def _walk_paths(
    searches: Sequence[PathSearch],
    take_features: Callable[[Configuration], Features],
    counter: _StepCounter,
) -> Iterator[tuple[int, Found]]:
    """What the paths of each task end at.

    :param searches: the search of each task.
    :param take_features: a function that gives the features of a family.
    :param counter: what is told of each step.
    :yields: the number of a task and what was found for it, as soon as its last family is walked:
        the features of that family are still at hand then.
    """
    families = _sort_by_features({family for search in searches for family in search.families})
    left = [set(search.families) for search in searches]
    waiting = set(range(len(searches)))
    for _, alike in itertools.groupby(families, _identify_features):
        for family in alike:
            for search, open_families in zip(searches, left, strict=True):
                if family not in open_families:
                    continue
                open_families.remove(family)
                for other in searches:
                    if other is not search:
                        other.close()  # the matrices of one task at a time
                with counter.count_walk() as step:
                    search.walk(family, take_features(family), step)
                if family.head == "kernel":  # others are refined when kernels are known
                    search.refine(family, take_features(family))
        for number, open_families in enumerate(left):
            if not open_families and number in waiting:
                waiting.remove(number)
                yield number, _finish_paths(searches[number], take_features)


def _finish_paths(search: PathSearch, take_features: Callable[[Configuration], Features]) -> Found:
    """What the paths of one task end at, all of whose families were walked."""
    families = _sort_by_features(search.families)
    for family in families:
        if family.head != "kernel":
            search.refine(family, take_features(family))
    finals: list[Step] = []
    finalists = search.list_finalists()
    for family in reversed(families):  # the last one's features are at hand
        steps = [step for step in finalists if step.family == family]
        if steps:
            finals += search.refit(steps, take_features(family))
    search.close()
    return search.finish(finals)


def measure_width(layer_width: int, train_rows: int, configuration: Configuration) -> int:
    """The number of features of a configuration, about, before they are made.

    :param layer_width: the width of one layer's vector.
    :param train_rows: the number of training rows.
    :param configuration: the configuration.
    """
    if configuration.head == "kernel":
        return min(MAX_CENTERS, train_rows)
    return layer_width * len(configuration.layers)


class _StepCounter:
    """Tells of progress along paths whose lengths are not known before, in percent.

    :param advance: called with the percent just done.
    :param searches: the searches, whose paths are most of the work.
    """

    _WALKS, _STEPS = 75.0, 12

    def __init__(self, advance: Advance, searches: Sequence[PathSearch]) -> None:
        self._advance = advance
        self._walk = self._WALKS / max(sum(len(search.families) for search in searches), 1)
        self._head = (100 - self._WALKS) / len(searches)
        self._done = 0.0

    @contextlib.contextmanager
    def count_walk(self) -> Iterator[Callable[[], None]]:
        """One path.

        :yields: a function to call after each of its steps.
        """
        left = self._walk

        def step() -> None:
            nonlocal left
            amount = min(left, self._walk / self._STEPS)
            left -= amount
            self._tell(amount)

        yield step
        self._tell(left)

    def count_head(self) -> None:
        """Count the head of one task as trained."""
        self._tell(self._head)

    def _tell(self, amount: float) -> None:
        self._done += amount
        self._advance(amount)


def _sort_by_features(families: Iterable[Configuration]) -> list[Configuration]:
    """Families in an order in which those of one set of features follow each other."""
    return sorted(families, key=_identify_features)


def _identify_features(family: Configuration) -> tuple[bool, tuple[int, ...], float]:
    """What is equal for families of the same features; that of kernel heads comes last."""
    return family.head == "kernel", family.layers, family.bandwidth


def _fit_best(
    task: Task,
    found: Found,
    features: Features,
    made: FeatureMap,
    targets: Targets,
    settings: HeadsSettings,
    device: str,
    is_dear: bool,
) -> TrainedHead:
    """The full fit of the configuration that won, to its optimum.

    :param is_dear: whether iterations take so long that it need only come near its optimum.
    """
    best, full = found.best, targets.take_full_fit()
    shift = torch.from_numpy(best.shift).to(best.step.bias)
    start = best.step.weight[-1], best.step.bias[-1] - shift
    stack = _FullBatchStack(
        [best.configuration], features, made, full, [task], settings, device, lambda amount: None,
        start, _DEAR_TOLERANCE if is_dear else _PATH_TOLERANCE,
    )  # fmt: skip
    ((of_task,), _) = stack.fit()
    candidate = of_task[task.name]
    if found.folded and targets.fits > 1:
        # Training rows are judged by the folds, validation rows by the head that is kept.
        candidate.held_out = np.concatenate(
            [best.held_out[: targets.train_rows], candidate.held_out]
        )
    judged = targets if found.folded else full
    labels = task.labels.restore(targets.labels[task.name][judged.judged].cpu().numpy())
    _check_losses(task, found.scores[0], candidate, best.configuration)
    held_out = task.labels.restore(candidate.held_out)
    return TrainedHead(
        task=task,
        configuration=best.configuration,
        candidate=candidate,
        calibration=calibrate_head(task, held_out, labels, fit=settings.calibrate),
        scores=found.scores,
        tried=tuple(trial.configuration for trial in found.trials),
        bound=found.bound,
        folded=found.folded and targets.fits > 1,
    )


def limit_stack(
    configurations: Sequence[Configuration], tasks: Sequence[Task], targets: Targets, width: int
) -> int:
    """How many configurations of one shape fit into one stack, 1 at least.

    :param configurations: any number of that shape, one at least.
    :param tasks: the tasks of the heads.
    :param targets: the labels, whose number of rows and fits counts.
    :param width: D, the width of a feature vector.
    """
    first = configurations[0]
    units = first.hidden_size if first.head == "hidden" else 0
    # The hidden units of a batch are far fewer numbers than the logits of all rows would be; an
    # eighth of what all rows would take stands for them.
    logits = targets.rows * max(units * len(tasks) // 8, *(task.outputs for task in tasks))
    weights = max(units or task.weight_rows for task in tasks) * width
    largest = max(logits, _WEIGHT_COPIES * weights)
    return max(1, _MAX_STACK_NUMBERS // (targets.fits * largest))


@dataclass(frozen=True)
class _Stack(ABC):
    """K configurations of one shape, and all that training them takes.

    :param made: what made the features from raw ones.
    """

    configurations: Sequence[Configuration]
    features: Features
    made: FeatureMap
    targets: Targets
    tasks: Sequence[Task]
    settings: HeadsSettings
    device: str
    advance: Advance

    @abstractmethod
    def fit(self) -> tuple[list[dict[str, Candidate]], int]:
        """Train them.

        :returns: the candidates of each configuration by task, and the number of epochs.
        """

    @torch.no_grad()
    def _make_candidates(
        self,
        task: Task,
        head: StackedHead,
        logits: torch.Tensor,
        epochs: torch.Tensor,
        losses: torch.Tensor,
        curves: npt.NDArray[np.float64],
    ) -> list[Candidate]:
        """The heads of one task, one for each configuration.

        :param head: the heads of M models.
        :param logits: what they say about the judged rows, [B, M, O].
        :param epochs: the epoch that each full fit is taken from, [K].
        :param losses: the validation loss of each full fit, [K].
        :param curves: losses after each epoch, [epochs, 2, K].
        """
        held_out = self.targets.take_held_out(logits)
        weights = self._take_weights(task, head)
        shares = self.targets.split_fits(head.shares())[:, -1] if head.is_mixed else None
        return [
            Candidate(
                head=weights[k],
                held_out=held_out[:, k].contiguous().cpu().numpy(),
                epoch=int(epochs[k]),
                validation_loss=float(losses[k]),
                curve=curves[:, :, k],
                layer_mix=None if shares is None else tuple(shares[k].tolist()),
            )
            for k in range(len(self.configurations))
        ]

    def _take_weights(self, task: Task, head: StackedHead) -> list[HeadWeights]:
        """The full fits of one task as heads for raw rows, one for each configuration."""

        def take(stacked: torch.Tensor) -> Floats:
            full: Floats = self.targets.split_fits(stacked)[:, -1].contiguous().cpu().numpy()
            return full

        folded = map(self.made.fold, *map(take, head.first_layer()))
        if not head.is_hidden:
            return [HeadWeights(*one, centers=self.made.centers) for one in folded]
        last = zip(take(head.weight), take(head.bias), strict=True)
        return [HeadWeights(*outer, *inner) for outer, inner in zip(last, folded, strict=True)]


class _GradientStack(_Stack):
    """A stack that is trained batch by batch."""

    def fit(self) -> tuple[list[dict[str, Candidate]], int]:
        targets, settings = self.targets, self.settings
        module = GradientHeads(self.features.width, self.tasks, self.configurations, targets)
        module = module.to(self.device)
        keep = KeepBest(self.features, settings.patience, settings.keep == "last", self.advance)
        seed = self.configurations[0].seed
        batches = load_batches(ShuffledBatches(self.features, settings.batch_size, seed))
        run_trainer(make_trainer(settings.max_epochs, self.device, [keep]), module, batches)
        module.to(self.device)
        module.heads.load_state_dict(keep.state)
        # [epochs, 2, tasks, K], of the full fits.
        curves = targets.split_fits(torch.stack(keep.curves), dim=3)[..., -1].double().numpy()
        epochs = targets.split_fits(keep.epoch, dim=1)[..., -1]
        losses = targets.split_fits(keep.loss, dim=1)[..., -1]
        logits = module.compute_logits(self.features, targets.first_judged)
        by_task = {
            task.name: self._make_candidates(
                task,
                cast(StackedHead, module.heads[task.name]),
                logits[task.name],
                epochs[t],
                losses[t],
                curves[:, :, t],
            )
            for t, task in enumerate(self.tasks)
        }
        return _regroup(by_task), len(keep.curves)


@dataclass(frozen=True)
class _FullBatchStack(_Stack):
    """A stack of linear or kernel heads that is trained to its optimum.

    :param start: the weight, [R, D], and the bias, [O], that all heads of a task start from;
        ``None`` for heads that are constant.
    :param tolerance: heads are done when a further step promises less than this share of their
        loss.
    """

    start: tuple[torch.Tensor, torch.Tensor] | None = None
    tolerance: float = TOLERANCE

    def fit(self) -> tuple[list[dict[str, Candidate]], int]:
        targets = self.targets
        module = FullBatchHeads(
            self.features, self.tasks, self.configurations, targets, self.start, self.tolerance
        )
        follow = FollowSteps(self.advance)
        batches = load_batches(AllRows(self.features))
        run_trainer(make_trainer(self.settings.max_epochs, self.device, [follow]), module, batches)
        curves = torch.stack(follow.curves).double().cpu().numpy()  # [steps, 2, tasks, K]
        by_task = {}
        for t, task in enumerate(self.tasks):
            solver = module.solvers[task.name]
            steps = targets.split_fits(solver.steps)[:, -1].clamp_min(1)
            candidates = self._make_candidates(
                task,
                cast(StackedHead, module.heads[task.name]),
                solver.read_logits()[targets.first_judged :],
                steps,
                torch.from_numpy(curves[-1, 1, t]),
                curves[:, :, t],
            )
            for candidate in candidates:
                candidate.curve = candidate.curve[: candidate.epoch]
            by_task[task.name] = candidates
        return _regroup(by_task), len(follow.curves)


def _regroup(by_task: Mapping[str, Sequence[Candidate]]) -> list[dict[str, Candidate]]:
    """Candidates by configuration and then by task, from those by task and configuration."""
    return [dict(zip(by_task, row, strict=True)) for row in zip(*by_task.values(), strict=True)]


def _choose(
    task: Task,
    candidates: Sequence[Candidate],
    configurations: Sequence[Configuration],
    targets: Targets,
    settings: HeadsSettings,
) -> TrainedHead:
    """The best head of a task, by the rows that configurations are judged by."""
    encoded = targets.labels[task.name][targets.first_judged :].cpu().numpy()
    labels = task.labels.restore(encoded)
    held_out = [task.labels.restore(candidate.held_out) for candidate in candidates]
    scores = choose_configuration(task, held_out, labels, configurations)
    best, *others = scores[0].numbers
    _check_losses(task, scores[0], candidates[best], configurations[best])
    return TrainedHead(
        task=task,
        configuration=task.adapt(configurations[best]),
        candidate=candidates[best],
        calibration=calibrate_head(task, held_out[best], labels, fit=settings.calibrate),
        scores=tuple(scores),
        tried=tuple(map(task.adapt, configurations)),
        seeds={configurations[number].seed: candidates[number].head for number in others},
    )


def _check_losses(
    task: Task, score: Score, candidate: Candidate, configuration: Configuration
) -> None:
    """Refuse the best head of a task if one of its losses is not a number.

    :raises DataError: naming the task and the epoch.
    """
    if np.isfinite([score.loss, candidate.validation_loss]).all():
        return
    bad = np.flatnonzero(~np.isfinite(candidate.curve).all(axis=1))
    epoch = int(bad[0]) + 1 if len(bad) else len(candidate.curve)
    raise DataError(
        f"task {task.name}: the loss is not a number in epoch {epoch}",
        hint=f"look at the labels of {task.name}, or try another loss in heads.tasks.{task.name}"
        if configuration.optimizer == "lbfgs"
        else "lower heads.learning_rate",
    )
