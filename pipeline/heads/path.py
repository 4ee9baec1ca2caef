"""The weight decay of linear and kernel heads by a path, from strong to weak, for each task.

Each step of a path starts from the heads of the step before, so that it takes a few iterations. The
path goes on until held-out score and loss have both turned; finer steps around the best follow if
they could win. Steps are counted in a unit of the
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

from collections.abc import Callable, Iterable, Iterator, Sequence
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
# Finer steps move scores by less than this part of their noise.
_REACH_NOISE_SHARE = 0.5
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
        self._walks: dict[Configuration, _Walk] = {}
        self._screened: Targets | None = None
        self._equations: tuple[Configuration, NormalEquations] | None = None

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
        """Follow the path of one family by whole steps.

        :param family: one of ``families``.
        :param features: the family's features of all rows.
        :param advance: called after each step.
        """
        targets = self.targets
        if self._measure_work(features, targets.fits) > _FOLDED_PATH_WORK and targets.fits > 1:
            self._screened = targets = targets.leave_out(0)
        self._walks[family] = _Walk(self, family, targets, advance)
        self._walks[family].run(features)

    def refine(self, family: Configuration, features: Features) -> None:
        """Try finer steps around the best ones of a path, if they could win.

        :param family: a family whose path was walked.
        :param features: the family's features of all rows.
        """
        walk = self._walks[family]
        if not self.is_dear(family, features.width) and self._is_in_reach(walk):
            walk.refine(features)

    def close(self) -> None:
        """Let go of the matrices that the fits of a family share, and of its features."""
        self._equations = None

    def take_equations(
        self,
        family: Configuration,
        features: Features,
        objective: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> NormalEquations:
        """The equations of a family's fits in all folds, which are those of one split, too.

        :param family: a family that has a closed form.
        :param features: its features of all rows.
        :param objective: the mean loss of each fit from logits.
        """
        if self._equations is None or self._equations[0] != family:
            equations = NormalEquations(features, objective, self.targets.fits, self.task.outputs)
            self._equations = family, equations
        return self._equations[1]

    def leave_out(self, measure_width: Callable[[Configuration], int]) -> None:
        """Leave out families that would take long, where others do about as well.

        Least squares is tried where it has a closed form that is quicker than L-BFGS, as with many
        outputs: by kernel heads, if there are any. What one iteration takes long for is then left
        out.

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
        dear = {f for f in others if self.is_long(widths[f])}
        kernels = {f for f in widths if f.head == "kernel"}
        if closed:
            left_out = (squared - (closed & kernels or closed)) | dear
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

    def is_dear(self, family: Configuration, width: int) -> bool:
        """Whether heads of a family take so long that they only come near their optimum.

        :param family: one of ``families``.
        :param width: the number of features.
        """
        return self.is_long(width) and not self.is_closed(family, width)

    def is_long(self, width: int) -> bool:
        """Whether one iteration of L-BFGS takes so long that one path must do.

        :param width: the number of features.
        """
        return _count_work(self.task, self.targets.rows, width, 1) > _DEAR_WORK

    @property
    def _common(self) -> Targets:
        """The rows that all families were judged by, with the fits that judged them.

        Where some were walked on one split, that is all there is to compare them by with those
        that were walked in all folds.
        """
        return self.targets if self._screened is None else self._screened

    def _list_walked(self, walks: Iterable[_Walk]) -> list[Step]:
        """The steps of some paths, judged by the same rows."""
        judged = self._common.judged.cpu().numpy()
        return [
            step
            if len(step.held_out) == len(judged)
            else replace(step, held_out=step.held_out[judged])
            for walk in walks
            for step in walk.steps
        ]

    def _is_in_reach(self, walk: _Walk) -> bool:
        """Whether the steps of a path are about as good as the best of all others so far."""
        others = [one for one in self._walks.values() if one is not walk]
        if not others:
            return True
        mine, best = (self._list_trials(self._list_walked(some)) for some in ([walk], others))
        return any(
            not is_ahead(
                task,
                self._score(best, self._common, task)[0],
                self._score(mine, self._common, task)[0],
                _REACH_NOISE_SHARE * estimate_noise(task, len(self._common.judged)),
            )
            for task in (self.task, self._steady_task)
        )

    @property
    def _steady_task(self) -> Task:
        """The task by a metric that depends less on a few rows than its own.

        A mean over classes is that of rare ones, too, of which one split may hold a row or two.
        """
        if self.task.metric != "f1_macro":
            return self.task
        return replace(self.task, metric="f1_micro" if self.task.has_tags else "accuracy")

    def list_finalists(self) -> list[Step]:
        """The steps that are to be fitted in all folds, since they could still win.

        They are of the families that are about as good as the best by the steadier metric, and not
        far from it by the task's own: the surest step of each, which has the lowest loss among
        those whose score is about that of the family's best, then the best of all by score.
        """
        if self._screened is None:
            return []
        task, steady, rows = self.task, self._steady_task, len(self._common.judged)
        trials = self._list_trials(self._list_walked(self._walks.values()))
        near = self._select(trials, steady, estimate_noise(steady, rows))
        families = {trials[of.numbers[0]].step.family for of in near}
        trials = [trial for trial in trials if trial.step.family in families]
        noise = _FINALIST_NOISE_SHARE * estimate_noise(task, rows)
        near = self._select(trials, task, noise if steady is task else 2 * noise)
        chosen: list[Step] = []
        for family in dict.fromkeys(trials[of.numbers[0]].step.family for of in near):
            own = [trial for trial in trials if trial.step.family == family]
            likely = [own[of.numbers[0]].step for of in self._select(own, task, noise)]
            losses = [self.judge(step, self._common).loss for step in likely]
            surest = likely[int(np.argmin(np.nan_to_num(losses, nan=np.inf)))]
            if self.is_closed(family, surest.weight.shape[2]):
                # One fit, whose decay need not be of the path, since each is made from nothing.
                chosen.append(replace(surest, decay=(surest.decay * likely[0].decay) ** 0.5))
                continue
            chosen.append(surest)
            if not chosen[1:] and likely[0] is not surest:
                chosen.append(likely[0])
        return self._limit(chosen[:_MAX_FINALISTS])

    def _select(self, trials: Sequence[Trial], task: Task, margin: float) -> list[Score]:
        """The scores that are behind the best by no more than a margin, the best first."""
        scores = self._score(trials, self._common, task)
        return [of for of in scores if not is_ahead(task, scores[0], of, margin)]

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

        Their paths are walked anew, from constant heads: heads that started from those of the split
        would remember rows that they must not have seen.

        :param steps: the steps, one at least.
        :param features: the features of the family.
        :param start: a step of as many fits to start from, whose heads have seen no row that these
            are judged by; ``None`` for constant heads.
        """
        walk = _Walk(self, steps[0].family, self.targets)
        if start is not None:
            walk.steps.append(start)
        return [
            walk.approach(features, step.decay)
            for step in sorted(steps, key=lambda one: -one.decay)
        ]

    def finish(self, finals: Sequence[Step]) -> Found:
        """Judge the finalists, or, without any, all steps.

        :param finals: the finalists, fitted in all folds.
        """
        folded = self._screened is None or bool(finals)
        targets = self.targets if finals else self._common
        trials = self._list_trials(finals or self._list_walked(self._walks.values()))
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

    def _score(
        self, trials: Sequence[Trial], targets: Targets, task: Task | None = None
    ) -> list[Score]:
        """The scores of some trials, the best first, by the task's metric or another's."""
        labels = self.read_labels(targets)
        held_out = [self.task.labels.restore(trial.held_out) for trial in trials]
        return choose_configuration(
            task or self.task, held_out, labels, [trial.configuration for trial in trials]
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


@dataclass(eq=False)
class _Walk:
    """A path of one family on some targets."""

    search: PathSearch
    family: Configuration
    targets: Targets
    advance: Callable[[], None] = lambda: None
    steps: list[Step] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)

    def __post_init__(self) -> None:
        task, F = self.search.task, self.search.targets.fits
        options = resolve_loss(task, self.family.loss_changes)
        options = replace(options, logit_adjustment=0.0)
        self._loss = StackedLoss(task, [options] * F, str(self.targets.masks.device))
        self._start = task.target.start(task.labels)
        bend = task.loss_weight * task.target.measure_curvature(options.formula, task.labels)
        self._unit = max(bend, 1e-12)

    def run(self, features: Features) -> None:
        """Walk from strong to weak, or to stronger if the first step is the best.

        :param features: the family's features of all rows.
        """
        is_dear = self.search.is_dear(self.family, features.width)
        # Each fit in closed form costs the same, however near the one before it.
        wide = is_dear or self.search.is_closed(self.family, features.width)
        factor, patience = (_FACTOR**2, 1) if wide else (_FACTOR, _PATIENCE)
        self._follow(features, _FIRST, 1 / factor, patience)
        if self.search.rank(self.scores)[0] == 0:
            self._follow(features, _FIRST * factor, factor, patience)

    def refine(self, features: Features) -> None:
        """Try a finer step each side of the best by score, and of the best by loss.

        :param features: the family's features of all rows.
        """
        finer = _FACTOR if self.search.is_closed(self.family, features.width) else _FACTOR**0.5
        for best in self.search.rank(self.scores):
            for decay in (self.steps[best].decay * finer, self.steps[best].decay / finer):
                if not any(abs(decay / step.decay - 1) < 1e-3 for step in self.steps):
                    self._add(features, decay)

    def approach(self, features: Features, decay: float) -> Step:
        """The heads under one weight decay, by as many steps from those that are known as it takes.

        :param features: the family's features of all rows.
        :param decay: the weight decay in units of the task.
        """
        if not self.search.is_closed(self.family, features.width):
            following = self.steps[-1].decay / _FACTOR if self.steps else _FIRST
            while following > decay * _FACTOR**0.5:
                self.steps.append(self.fit(features, following))
                following /= _FACTOR
        self.steps.append(self.fit(features, decay))
        return self.steps[-1]

    def _follow(self, features: Features, first: float, factor: float, patience: int) -> None:
        decay, waited = first, 0
        while _WEAKEST * 0.99 <= decay <= _STRONGEST * 1.01 and waited < patience:
            self._add(features, decay)
            scores = self.scores
            is_news = self.search.is_news(scores[-1], scores[:-1], len(self.targets.judged))
            waited = 0 if is_news else waited + 1
            decay *= factor

    def _add(self, features: Features, decay: float) -> None:
        self.steps.append(self.fit(features, decay))
        self.scores.append(self.search.judge(self.steps[-1], self.targets))
        self.advance()

    @torch.no_grad()
    def fit(self, features: Features, decay: float) -> Step:
        """The heads under one weight decay, from where the steps so far say that they are.

        :param features: the family's features of all rows.
        :param decay: the weight decay in units of the task.
        """
        configuration = replace(self.family, weight_decay=_round(decay * self._unit))
        if self.search.is_closed(self.family, features.width):
            equations = self.search.take_equations(self.family, features, self._measure)
            fits = range(self.search.targets.fits)
            is_screen = self.targets.fits < len(fits)
            weight, bias, logits = equations.solve(
                decay * self._unit, fits[: self.targets.fits], is_rough=is_screen
            )
        else:
            weight, bias, logits = self._descend(
                features, decay * self._unit, *self._predict(features.width, decay)
            )
        held_out = self.targets.judge(logits)[:, 0].cpu().numpy()
        return Step(self.family, decay, configuration, weight, bias, held_out)

    def _predict(self, width: int, decay: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights, [F, R, D], and biases, [F, O], near the heads under a weight decay.

        Heads change about as the logarithm of the decay does, so that a line through those of the
        two nearest steps leads to them. That takes about half the iterations that it takes from
        the nearest ones.

        :param width: the number of features.
        :param decay: the weight decay in units of the task.
        """
        known = sorted(self.steps, key=lambda step: abs(np.log(step.decay / decay)))[:2]
        if not known:
            task, F, device = self.search.task, self.targets.fits, self.targets.masks.device
            bias = torch.from_numpy(self._start.bias).to(device).repeat(F, 1)
            return torch.zeros(F, task.weight_rows, width, device=device), bias
        near, far = known[0], known[-1]
        share = 0.0
        if near.decay != far.decay:
            share = float(np.log(decay / near.decay) / np.log(near.decay / far.decay))
        # Further than the two steps are from each other, a line does not hold.
        share = min(share, 1.0)
        return (
            torch.lerp(near.weight, far.weight, -share),
            torch.lerp(near.bias, far.bias, -share),
        )

    def _measure(self, logits: torch.Tensor, models: torch.Tensor) -> torch.Tensor:
        """The mean loss of some of the fits: [M].

        :param logits: [B, M, O].
        :param models: the numbers of the fits, [M].
        """
        task, targets = self.search.task, self.search.targets
        labels, masks = targets.labels[task.name], targets.masks[:, models]
        return task.loss_weight * self._loss.select(models).average(logits, labels, masks)

    def _descend(
        self, features: Features, decay: float, weight: torch.Tensor, bias: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Weights, biases and logits of all fits by L-BFGS.

        :param weight: the weights that it starts from, which it changes.
        :param bias: the biases that it starts from, which it changes.
        """
        F, masks = self.targets.fits, self.targets.masks
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
        is_dear = self.search.is_dear(self.family, features.width)
        for _ in range(_DEAR_ITERATIONS if is_dear else _MAX_ITERATIONS):
            if solver.done:
                break
            solver.step()
        return weight, bias, solver.read_logits()


def _round(number: float) -> float:
    """A number with four digits, as it is shown and can be given again."""
    return float(f"{number:.4g}")
