"""Train the chosen heads again on more rows than they were chosen by, for the model that goes out.

Nothing is chosen here: configurations, temperatures and thresholds are those of the held-out rows,
of which none is left.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.config import HeadsSettings
from pipeline.console import Advance
from pipeline.errors import DataError
from pipeline.heads.targets import Targets
from pipeline.heads.tasks import Task
from pipeline.heads.training import Candidate, FeaturesOf, TrainedHead, make_stacks


@dataclass(frozen=True)
class Refit:
    """The chosen heads, trained again.

    :param candidates: a head for each task, in the order of the tasks.
    :param tasks: the tasks, with the labels of all rows in numbers.
    :param parts: the parts of the corpus that the heads were trained on.
    :param rows: the number of rows that they were trained on.
    :param seconds: the time that it took, without reading.
    """

    candidates: tuple[Candidate, ...]
    tasks: tuple[Task, ...]
    parts: tuple[str, ...]
    rows: int
    seconds: float


def refit_heads(
    features_of: FeaturesOf,
    targets: Targets,
    tasks: Sequence[Task],
    chosen: Sequence[TrainedHead],
    settings: HeadsSettings,
    *,
    device: str = "cpu",
    advance: Advance = lambda amount: None,
) -> tuple[Candidate, ...]:
    """Train the chosen configuration of each task on all rows.

    Heads that learn batch by batch train for as many epochs as the kept one had taken, as no row is
    left to tell when to stop.

    :param features_of: a function that gives the features of some layers.
    :param targets: the labels of the same rows, all of them for training, without folds.
    :param tasks: the tasks, with the labels of these rows in numbers.
    :param chosen: the head that was chosen for each task, in the same order.
    :param settings: the settings that all configurations share.
    :param device: ``cpu``, ``cuda`` or ``cuda:N``.
    :param advance: called after each epoch.
    :returns: a head for each task, in the same order.
    :raises DataError: if a loss is not a number.
    """
    made: dict[str, Candidate] = {}
    for numbers in group_alike(chosen):
        members = [chosen[number] for number in numbers]
        own = settings
        if members[0].configuration.optimizer != "lbfgs":
            epochs = members[0].candidate.epoch
            own = settings.model_copy(
                update={"max_epochs": epochs, "patience": None, "keep": "last"}
            )
        # Tasks of one configuration share its features, which may be those of one kernel.
        configurations = list(dict.fromkeys(member.configuration for member in members))
        trained: dict[int, dict[str, Candidate]] = {}
        for of_stack, stack in make_stacks(
            list(enumerate(configurations)),
            features_of,
            targets,
            [tasks[number] for number in numbers],
            own,
            device,
            advance,
        ):
            trained |= dict(zip(of_stack, stack.fit()[0], strict=True))
        for member in members:
            name = member.task.name
            made[name] = trained[configurations.index(member.configuration)][name]
            if not np.isfinite(made[name].curve[:, 0]).all():
                raise DataError(
                    f"task {name}: the loss is not a number when it is trained again",
                    hint="set heads.refit to train, or lower heads.learning_rate",
                )
    return tuple(made[task.name] for task in tasks)


def group_alike(chosen: Sequence[TrainedHead]) -> list[list[int]]:
    """The numbers of heads that can be trained together: of one shape, for as many epochs."""
    groups: dict[Hashable, list[int]] = {}
    for number, head in enumerate(chosen):
        is_batched = head.configuration.optimizer != "lbfgs"
        epochs = head.candidate.epoch if is_batched else None
        groups.setdefault((head.configuration.shape, epochs), []).append(number)
    return list(groups.values())
