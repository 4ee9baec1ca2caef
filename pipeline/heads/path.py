"""The weight decay of linear and kernel heads by a path, from strong to weak, for each task.

Each step of a path starts from the heads of the step before, so that it takes a few iterations. The
path goes on until held-out score and loss have both turned. Steps are counted in a unit of the
task: the curvature of its loss by a logit where the head is constant. So neither the number of
rows nor that of classes or tags moves the range.

Cheap before dear: where all folds would take long, the path is walked on one split of the rows, and
only the steps that could still win are fitted in all folds.

Logit adjustment costs no fit: the biases are not penalized, so the optimum under an adjustment is
the one without it, with the adjustment taken off the biases.

Sources: Friedman, Hastie, Tibshirani (2010), Regularization paths for generalized linear models
via coordinate descent (warm starts along a path); Jamieson, Talwalkar (2016), Non-stochastic best
arm identification (few full fits for those that lead); Menon et al. (2021), Long-tail learning via
logit adjustment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pipeline.heads.choosing import Score, choose_configuration, is_ahead, is_better
from pipeline.heads.closed_form import NormalEquations, count_work, is_quicker
from pipeline.heads.configurations import Configuration, FrozenDict
from pipeline.heads.features import FeatureMap, Features, Floats
from pipeline.heads.solver import StackedLbfgs
from pipeline.heads.targets import StackedLoss, Targets
from pipeline.heads.tasks import Task, resolve_loss
from pipeline.losses import list_losses

# A path goes by steps of half a power of ten, and then by half such a step each side of the best.
_FACTOR = 10**0.5
# Where a path begins, and the bounds that it does not pass, in the unit of the task.
_FIRST, _STRONGEST, _WEAKEST = 10**0.5, 1e3, 1e-6
# The steps without a better score or loss after which a path ends.
_PATIENCE = 2
# A score counts as better only if it is so by more than a part of its noise: on the weak end of a
# path, scores change by noise alone. Among those that are about as good, losses, which are less
# noisy, tell the best. The parts are those that were best on several corpora; docs/heads.md has the
# others.
_NOISE_SHARE = 0.2
_CHOICE_NOISE_SHARE = 0.1
_FINALIST_NOISE_SHARE = 1.0
# Heads of a path are done when a further iteration promises less than this share of their loss.
TOLERANCE = 1e-3
_MAX_ITERATIONS = 60
# Multiplications and additions in one iteration of all fits, up to which a path is walked in all
# folds; and in all iterations together of the fits in all folds that follow a path on one split.
_FOLDED_PATH_WORK = 4e9
_FINAL_WORK = 2e12
# The same for a single one of these fits, without which no fold is fitted.
_FOLDED_WORK = 5e12
_FIRST_ITERATIONS, _NEXT_ITERATIONS = 40, 20
_MAX_FINALISTS = 3
_MANY_JUDGED_ROWS = 20_000
# Where one iteration of one fit takes more work than this, as with a thousand classes, paths that
# have no closed form are shorter, and of linear heads alone.
_DEAR_WORK = 3e10
# Matrices of this many rows and columns take 0.5 GB in float64, and three are held at a time.
_MAX_CLOSED_WIDTH = 8192
# With so many outputs, least squares is tried beside the task's own loss.
_MANY_OUTPUTS = 8
_DEAR_ITERATIONS = 15

FeaturesOf = Callable[[Configuration], tuple[Features, FeatureMap]]


@dataclass(frozen=True)
class Step:
    """The heads of one task and one family under one weight decay.

    :param family: the configuration that stands for all of the path.
    :param decay: the weight decay in units of the task.
    :param configuration: the family's configuration with this weight decay.
    :param weight: the heads' weights, [F, R, D].
    :param bias: the heads' biases without logit adjustment, [F, O].
    :param held_out: what heads that have not seen them say about the judged rows, [B, O].
    """

    family: Configuration
    decay: float
    configuration: Configuration
    weight: torch.Tensor
    bias: torch.Tensor
    held_out: Floats


@dataclass(frozen=True)
class Trial:
    """One configuration that was judged: a step of a path under one logit adjustment.

    :param step: the step.
    :param configuration: the step's configuration with the adjustment.
    :param shift: what the adjustment takes off the biases, [O], or 0.
    """

    step: Step
    configuration: Configuration
    shift: Floats

    @property
    def held_out(self) -> Floats:
        """What its heads say about the judged rows: [B, O]."""
        return self.step.held_out - self.shift


@dataclass(frozen=True)
class Found:
    """What the paths of one task led to.

    :param trials: all configurations that were judged.
    :param scores: their scores, by their numbers in ``trials``: that of the configuration that is
        taken, then the others, the best first.
    :param bound: ``strongest`` or ``weakest`` if the best step stands at a bound of the path.
    :param judged_rows: the number of rows that the best were judged by.
    :param folded: whether the best were judged in all folds.
    """

    trials: tuple[Trial, ...]
    scores: tuple[Score, ...]
    bound: str | None
    judged_rows: int
    folded: bool

    @property
    def best(self) -> Trial:
        """The configuration that won."""
        return self.trials[self.scores[0].numbers[0]]


class PathSearch:
    """Walks the paths of one task: a path for each family of configurations.

    :param task: the task.
    :param configurations: configurations whose weight decay is left open. Those that differ in the
        logit adjustment alone are one family.
    :param targets: labels and masks of all rows.
    """

    def __init__(
        self, task: Task, configurations: Sequence[Configuration], targets: Targets
    ) -> None:
        self.task = task
        self.targets = targets
        self._families: dict[Configuration, dict[float, Configuration]] = {}
        served = list_losses(task.type)
        for configuration in configurations:
            adapted = task.adapt(configuration)
            changes = dict(adapted.loss_changes)
            changes.pop("logit_adjustment", None)
            family = replace(adapted, loss_changes=FrozenDict(changes))
            asked = configuration.loss_changes.get("loss")
            if asked is not None and (asked not in served or asked != adapted.loss_changes["loss"]):
                continue  # the family of the task's own loss stands for it
            factor = resolve_loss(task, adapted.loss_changes).logit_adjustment
            if factor and task.thresholds_are_chosen and "logit_adjustment" not in task.kept:
                continue  # it moves the logits of a tag as a threshold does
            self._families.setdefault(family, {}).setdefault(factor, adapted)
        self._shares = task.target.compute_log_shares(task.labels)
        self._walked: list[Step] = []
        self._screened: Targets | None = None

    @property
    def families(self) -> tuple[Configuration, ...]:
        """The families, each by a configuration without weight decay."""
        return tuple(self._families)

    def walk(
        self,
        family: Configuration,
        features: Features,
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        """Follow the path of one family.

        :param family: one of ``families``.
        :param features: the family's features of all rows.
        :param advance: called after each step.
        """
        targets = self.targets
        if self._measure_work(features, targets.fits) > _FOLDED_PATH_WORK and targets.fits > 1:
            self._screened = targets = targets.leave_out(0)
        self._walked += _Walk(self, family, features, targets, advance).run()

    def leave_out(self, measure_width: Callable[[Configuration], int]) -> None:
        """Leave out families that would take long, where others do as well or better.

        Least squares is tried where it has a closed form that is quicker than L-BFGS, as with many
        outputs. Its kernel heads then take the place of others.

        :param measure_width: a function that gives the number of features of a family.
        """
        widths = {family: measure_width(family) for family in self._families}
        squared = {f for f in widths if f.loss_changes.get("loss") == "least_squares"}
        if self.task.settings.loss == "least_squares":
            squared = set()  # it is asked for, whatever it takes
        closed = {f for f in squared if self.is_closed(f, widths[f])}
        if self.task.outputs < _MANY_OUTPUTS:
            closed = set()
        others = {f for f in widths if f not in squared}
        dear = {f for f in others if self.is_dear(widths[f])}
        kernels = {f for f in widths if f.head == "kernel"}
        if closed & kernels:
            left_out = (squared - (closed & kernels)) | dear | (others & kernels)
        elif closed:
            left_out = (squared - closed) | dear
        else:
            left_out = squared | (dear - (dear - kernels or dear))
        self._families = {f: of for f, of in self._families.items() if f not in left_out}

    def is_closed(self, family: Configuration, width: int) -> bool:
        """Whether heads of a family are made in closed form, as that takes less time.

        :param family: one of ``families``.
        :param width: the number of features.
        """
        task, options = self.task, resolve_loss(self.task, family.loss_changes)
        if not options.formula.is_quadratic or not task.target.weighs_outputs_alike(options):
            return False
        return width <= _MAX_CLOSED_WIDTH and is_quicker(self.targets.rows, width, task.weight_rows)

    def is_dear(self, width: int) -> bool:
        """Whether one iteration takes so long that one path must do.

        :param width: the number of features.
        """
        return _count_work(self.task, self.targets.rows, width, 1) > _DEAR_WORK

    def _list_walked(self) -> list[Step]:
        """The steps of all paths, judged by the same rows.

        Where some families were walked on one split of the rows, that is all there is to compare
        them by with those that were walked in all folds.
        """
        if self._screened is None:
            return self._walked
        judged = self._screened.judged.cpu().numpy()
        return [
            step
            if len(step.held_out) == len(judged)
            else replace(step, held_out=step.held_out[judged])
            for step in self._walked
        ]

    def list_finalists(self) -> list[Step]:
        """The steps that are to be fitted in all folds, since they could still win."""
        if self._screened is None:
            return []
        trials = self._list_trials(self._list_walked())
        scores = self._score(trials, self._screened)
        chosen: list[Step] = []
        by_loss = sorted(scores, key=lambda of: (not np.isfinite(of.loss), of.loss))
        noise = _FINALIST_NOISE_SHARE * estimate_noise(self.task, len(self._screened.judged))
        # The lowest loss of those whose score is about that of the best is the surest bet.
        likely = next(of for of in by_loss if not is_ahead(self.task, scores[0], of, noise))
        for score in (likely, scores[0], by_loss[0], *scores):
            step = trials[score.numbers[0]].step
            if not any(step is one for one in chosen):
                chosen.append(step)
        return self._limit(chosen[:_MAX_FINALISTS])

    def _limit(self, steps: list[Step]) -> list[Step]:
        """As many of the steps, from the first, as can be fitted in all folds in some seconds.

        Where the split alone holds very many rows, those of the other folds would add nothing.
        """
        if self._screened is None or len(self._screened.judged) >= _MANY_JUDGED_ROWS:
            return []
        work, families = 0.0, set[Configuration]()
        for number, step in enumerate(steps):
            rows, fits, width = self.targets.rows, self.targets.fits, step.weight.shape[2]
            if self.is_closed(step.family, width):
                work += count_work(rows, width, self.task.weight_rows, fits)
            else:
                one = _count_work(self.task, rows, width, fits)
                work += one * (_NEXT_ITERATIONS if step.family in families else _FIRST_ITERATIONS)
            families.add(step.family)
            if work > (_FINAL_WORK if number else _FOLDED_WORK):
                return steps[:number]
        return steps

    def refit(
        self, steps: Sequence[Step], features: Features, start: Step | None = None
    ) -> list[Step]:
        """Steps of one family that were fitted on one split, fitted in all folds.

        They are walked anew, from constant heads: heads that started from those of the split would
        remember rows that they must not have seen.

        :param steps: the steps, one at least.
        :param features: the features of the family.
        :param start: a step of as many fits to start from, whose heads have seen no row that these
            are judged by; ``None`` for constant heads.
        """
        made: list[Step] = []
        walk = _Walk(self, steps[0].family, features, self.targets)
        for step in sorted(steps, key=lambda one: -one.decay):
            made.append(walk.fit(step.decay, made[-1] if made else start))
        return made

    def finish(self, finals: Sequence[Step]) -> Found:
        """Judge the finalists, or, without any, all steps.

        :param finals: the finalists, fitted in all folds.
        """
        folded = self._screened is None or bool(finals)
        targets = self._screened if self._screened is not None and not finals else self.targets
        trials = self._list_trials(finals or self._list_walked())
        scores = self._score(trials, targets)
        rows = len(targets.judged)
        noise = _CHOICE_NOISE_SHARE * estimate_noise(self.task, rows)
        near = [of for of in scores if not is_ahead(self.task, scores[0], of, noise)]
        best = min(near, key=lambda of: of.loss)
        scores = [best, *(of for of in scores if of is not best)]
        bound = self._find_bound(trials[best.numbers[0]].step)
        return Found(tuple(trials), tuple(scores), bound, rows, folded)

    def _find_bound(self, best: Step) -> str | None:
        if best.decay >= _STRONGEST / _FACTOR**0.4:
            return "strongest"
        return "weakest" if best.decay <= _WEAKEST * _FACTOR**0.4 else None

    def _measure_work(self, features: Features, fits: int) -> float:
        return _count_work(self.task, features.rows, features.width, fits)

    def _list_trials(self, steps: Sequence[Step]) -> list[Trial]:
        return [trial for step in steps for trial in self.list_trials(step)]

    def list_trials(self, step: Step) -> Iterator[Trial]:
        """A step under each logit adjustment that is tried."""
        for factor, configuration in self._families[step.family].items():
            shift = np.zeros(1, np.float32)
            if self._shares is not None and factor:
                shift = (factor * self._shares).astype(np.float32)
            own = replace(configuration, weight_decay=step.configuration.weight_decay)
            yield Trial(step, own, shift)

    def _score(self, trials: Sequence[Trial], targets: Targets) -> list[Score]:
        labels = self.read_labels(targets)
        held_out = [self.task.labels.restore(trial.held_out) for trial in trials]
        return choose_configuration(
            self.task, held_out, labels, [trial.configuration for trial in trials]
        )

    def judge(self, step: Step, targets: Targets) -> Score:
        """The best score of a step under any logit adjustment, with the lowest of their losses."""
        scores = self._score(list(self.list_trials(step)), targets)
        return replace(scores[0], loss=min(of.loss for of in scores))

    def rank(self, scores: Sequence[Score]) -> list[int]:
        """The number of the best step by score, and of the best by loss, if it is another.

        :param scores: those of some steps, one at least.
        """
        best = 0
        for number, of in enumerate(scores):
            if is_better(self.task, of, scores[best]):
                best = number
        losses = [of.loss if np.isfinite(of.loss) else np.inf for of in scores]
        return list(dict.fromkeys([best, int(np.argmin(losses))]))

    def is_news(
        self, new: Score, before: Sequence[Score], judged_rows: int, least: float = 0.0
    ) -> bool:
        """Whether a step is better than those before it: by score, beyond noise, or by loss.

        :param new: the score of the step.
        :param before: those of the steps before it.
        :param judged_rows: the number of rows that they were judged by.
        :param least: the share of the loss that a lower one has to be lower by.
        """
        if not before:
            return True
        best = [before[number] for number in self.rank(before)]
        noise = _NOISE_SHARE * estimate_noise(self.task, judged_rows)
        return is_ahead(self.task, new, best[0], noise) or new.loss < best[-1].loss * (1 - least)

    def read_labels(self, targets: Targets) -> npt.NDArray[np.generic]:
        """The labels of the judged rows."""
        encoded = targets.labels[self.task.name][targets.judged].cpu().numpy()
        return self.task.labels.restore(encoded)


def estimate_noise(task: Task, rows: int) -> float:
    """About the deviation of a task's score on some rows.

    That of a share of n rows is at most 0.5 / √n. F1 of one class depends on its own rows alone, so
    that n is their number, and a mean over classes has the deviations of all of them.

    :param task: the task.
    :param rows: the number of rows.
    """
    counts = np.array(task.labels.counts, np.float64) * rows / max(task.labels.rows, 1) + 1
    if task.metric.endswith("_macro"):
        return 0.5 * float(np.sqrt((1 / counts).sum())) / len(counts)
    if task.metric in {"f1", "precision", "recall"}:
        return 0.5 / float(np.sqrt(counts[1]))
    return float(0.5 / np.sqrt(max(rows, 1)))


def _count_work(task: Task, rows: int, width: int, fits: int) -> float:
    """Multiplications and additions in one iteration of the solver."""
    return 4.0 * rows * width * task.weight_rows * fits


@dataclass
class _Walk:
    """A path of one family on some targets."""

    search: PathSearch
    family: Configuration
    features: Features
    targets: Targets
    advance: Callable[[], None] = lambda: None
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        task, F = self.search.task, self.targets.fits
        options = resolve_loss(task, self.family.loss_changes)
        options = replace(options, logit_adjustment=0.0)
        self._loss = StackedLoss(task, [options] * F, str(self.targets.masks.device))
        self._start = task.target.start(task.labels)
        bend = task.loss_weight * task.target.measure_curvature(options.formula, task.labels)
        self._unit = max(bend, 1e-12)
        self._is_closed = self.search.is_closed(self.family, self.features.width)
        self._is_dear = not self._is_closed and self.search.is_dear(self.features.width)
        self._equations: NormalEquations | None = None

    def run(self) -> list[Step]:
        """Walk from strong to weak, or to stronger if the first step is the best; then refine."""
        scores: list[Score] = []
        factor = _FACTOR**2 if self._is_dear else _FACTOR
        self._follow(_FIRST, 1 / factor, scores)
        if self.search.rank(scores)[0] == 0:
            self._follow(_FIRST * factor, factor, scores)
        if self._is_dear:
            return self.steps
        for best in self.search.rank(scores):
            for decay in (
                self.steps[best].decay * _FACTOR**0.5,
                self.steps[best].decay / _FACTOR**0.5,
            ):
                if not any(abs(decay / step.decay - 1) < 1e-3 for step in self.steps):
                    self._add(decay, self.steps[best], scores)
        return self.steps

    def _follow(self, first: float, factor: float, scores: list[Score]) -> None:
        decay = first
        waited, last = 0, self.steps[0] if self.steps else None
        patience = 1 if self._is_dear else _PATIENCE
        while _WEAKEST * 0.99 <= decay <= _STRONGEST * 1.01 and waited < patience:
            self._add(decay, last, scores)
            last = self.steps[-1]
            is_news = self.search.is_news(scores[-1], scores[:-1], len(self.targets.judged))
            waited = 0 if is_news else waited + 1
            decay *= factor

    def _add(self, decay: float, start: Step | None, scores: list[Score]) -> None:
        self.steps.append(self.fit(decay, start))
        scores.append(self.search.judge(self.steps[-1], self.targets))
        self.advance()

    @torch.no_grad()
    def fit(self, decay: float, start: Step | None) -> Step:
        """The heads under one weight decay.

        :param decay: the weight decay in units of the task.
        :param start: the step whose heads they start from; ``None`` for constant heads.
        """
        configuration = replace(self.family, weight_decay=_round(decay * self._unit))
        if self._is_closed:
            weight, bias, logits = self._solve(decay * self._unit)
        else:
            weight, bias, logits = self._descend(decay * self._unit, start)
        held_out = self.targets.judge(logits)[:, 0].cpu().numpy()
        return Step(self.family, decay, configuration, weight, bias, held_out)

    def _measure(self, logits: torch.Tensor, models: torch.Tensor) -> torch.Tensor:
        """The mean loss of some of the fits: [M].

        :param logits: [B, M, O].
        :param models: the numbers of the fits, [M].
        """
        task = self.search.task
        labels, masks = self.targets.labels[task.name], self.targets.masks[:, models]
        return task.loss_weight * self._loss.select(models).average(logits, labels, masks)

    def _solve(self, decay: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Weights, biases and logits of all fits in closed form."""
        if self._equations is None:
            self._equations = NormalEquations(
                self.features, self._measure, self.targets.fits, self.search.task.outputs
            )
        return self._equations.solve(decay)

    def _descend(
        self, decay: float, start: Step | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Weights, biases and logits of all fits by L-BFGS."""
        task, features, F = self.search.task, self.features, self.targets.fits
        masks = self.targets.masks
        if start is None:
            weight = torch.zeros(F, task.weight_rows, features.width, device=masks.device)
            bias = torch.from_numpy(self._start.bias).to(masks.device).repeat(F, 1)
        else:
            weight, bias = start.weight.clone(), start.bias.clone()
        solver = StackedLbfgs(
            nn.Parameter(weight),
            nn.Parameter(bias),
            features.blocks,
            self._measure,
            masks.new_full((F,), decay),
            features.basis,
            rows=features.rows,
            curvature=max(self._unit, 1e-6),
            tolerance=TOLERANCE,
        )
        for _ in range(_DEAR_ITERATIONS if self._is_dear else _MAX_ITERATIONS):
            if solver.done:
                break
            solver.step()
        return weight, bias, solver.read_logits()


def _round(number: float) -> float:
    """A number with four digits, as it is shown and can be given again."""
    return float(f"{number:.4g}")
