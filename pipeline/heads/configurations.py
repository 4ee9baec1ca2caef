"""What to train: the configuration that the settings give, and every other of their search."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from pipeline.config import (
    PLAIN_VALUES,
    Head,
    HeadsSettings,
    Optimizer,
    SearchSettings,
    Section,
    TaskSettings,
)
from pipeline.console import say
from pipeline.errors import SettingsError
from pipeline.layers import resolve_layers

# Kernel heads are trained so whatever the settings say of other heads.
_KERNEL = {"optimizer": "lbfgs", "combine": "join", "dropout": 0.0}
# Kernel heads compare every row with up to 4,096 training rows. Above this many training rows fewer
# than a fifth of them can be centres, while the time that the comparisons take grows with all.
_MAX_KERNEL_ROWS = 20_000
# Settings of training batch by batch.
_BATCHED = {"learning_rate", "batch_size", "patience", "keep"}
# Setting that does not concern every head → what a head is that it concerns.
_SERVED = {
    "hidden_size": "has a hidden layer",
    "bandwidth": "is a kernel head",
    **dict.fromkeys(_BATCHED, "is trained by adamw or sgd"),
}


class FrozenDict(dict[Any, Any]):
    """A mapping that is never changed once it is made, and so can be hashed if its values can."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


@dataclass(frozen=True)
class Configuration:
    """One way to train a head.

    :param weight_decay: the strength of the penalty; ``None`` in a configuration that stands for
        all those of a path, on which the strength is found.
    :param loss_changes: what it changes in a task's own settings, by their names; for what is not
        there, the task's settings hold.
    """

    layers: tuple[int, ...]
    combine: Literal["join", "mix"]
    head: Head
    bandwidth: float
    hidden_size: int
    dropout: float
    optimizer: Optimizer
    learning_rate: float
    weight_decay: float | None
    seed: int
    loss_changes: FrozenDict = field(default_factory=FrozenDict)

    @property
    def shape(self) -> Hashable:
        """A value that is equal for configurations that can be trained as one stack."""
        size = {"hidden": self.hidden_size, "kernel": self.bandwidth}.get(self.head)
        return (
            self.layers,
            self.combine,
            self.head,
            size,
            self.dropout,
            self.optimizer,
            self.seed,
            self.loss_changes.get("loss"),
        )

    def describe(self) -> dict[str, Any]:
        """Its settings as they may stand in JSON; those that do not concern it are left out."""
        idle = _list_idle(self.head, self.optimizer) | {"loss_changes"}
        if self.optimizer == "lbfgs":
            idle |= {"dropout", "seed"}
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in idle}
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in (own | self.loss_changes).items()
        }


def list_configurations(settings: HeadsSettings, available: tuple[int, ...]) -> list[Configuration]:
    """All configurations of the search, each once; the one of the settings if there is none.

    Those that differ in what does not concern them, such as the seed of L-BFGS, which draws nothing
    at random, are one.

    :param settings: the settings of the heads.
    :param available: the numbers of the cached layers.
    :raises SettingsError: if a layer is not cached, or ``lbfgs`` is asked for what it cannot train.
    """
    grids = settings.grids or (SearchSettings(),)
    is_own = settings.search != "auto" and settings.search
    keys = [f"heads.search.{n}" if is_own else "heads" for n in range(len(grids))]
    configurations = (
        _configure(settings, values, available, key)
        for key, grid in zip(keys, grids, strict=True)
        for values in _expand(grid)
    )
    return list(dict.fromkeys(configurations))


def _expand(grid: SearchSettings) -> list[dict[str, Any]]:
    lists = {key: value for key, value in dict(grid).items() if value is not None}
    return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]


def _configure(
    settings: HeadsSettings, values: dict[str, Any], available: tuple[int, ...], key: str
) -> Configuration:
    def pick(name: str) -> Any:
        value = values.get(name, getattr(settings, name))
        if name == "weight_decay" and value == "auto" and settings.search == "auto":
            return None if pick("optimizer") == "lbfgs" else PLAIN_VALUES[name]
        return PLAIN_VALUES[name] if value == "auto" else value

    if pick("head") == "kernel":
        values = values | _KERNEL
    idle = _list_idle(pick("head"), pick("optimizer"))
    values = {k: v for k, v in values.items() if k not in idle}
    configuration = Configuration(
        layers=resolve_layers(pick("layers"), available, f"{key}.layers"),
        combine=pick("combine"),
        head=pick("head"),
        bandwidth=pick("bandwidth"),
        hidden_size=pick("hidden_size"),
        dropout=pick("dropout"),
        optimizer=pick("optimizer"),
        learning_rate=pick("learning_rate"),
        weight_decay=pick("weight_decay"),
        seed=values.get("seeds", settings.seed),
        loss_changes=FrozenDict(
            {
                name: FrozenDict(value) if isinstance(value, dict) else value
                for name, value in values.items()
                if name in TaskSettings.model_fields
            }
        ),
    )
    _check_optimizer(configuration, key)
    return configuration


def _check_optimizer(configuration: Configuration, key: str) -> None:
    head, combine, dropout = configuration.head, configuration.combine, configuration.dropout
    if configuration.optimizer == "lbfgs" and (
        head == "hidden" or (combine, dropout) != ("join", 0.0)
    ):
        raise SettingsError(
            f"{key}.optimizer: lbfgs trains heads without a hidden layer, on joined "
            f"layers, without dropout; got head {head}, combine {combine}, dropout {dropout:g}",
            hint="set optimizer to adamw or sgd there; a search may have a grid for each",
        )


def _list_idle(head: str, optimizer: str) -> set[str]:
    """The settings that a head of such a form, trained so, does not depend on."""
    idle = {"hidden_size", "bandwidth"}
    idle -= {{"hidden": "hidden_size", "kernel": "bandwidth"}.get(head, "")}
    return idle | {"learning_rate", "seeds"} if optimizer == "lbfgs" else idle


def list_idle_settings(
    settings: HeadsSettings, configurations: Sequence[Configuration]
) -> list[str]:
    """What to say of each setting that was given and changes nothing, or not everywhere.

    :param settings: the settings of the heads. Those that have their default are not told of.
    :param configurations: all configurations that they come to.
    :returns: one sentence a setting.
    """
    return [*_list_overridden(settings), *_list_unused(settings, configurations)]


def _list_overridden(settings: HeadsSettings) -> list[str]:
    """Settings in whose place the grids of the same file list values of their own."""
    grids = settings.search if settings.search != "auto" else ()
    said = []
    for key in SearchSettings.model_fields:
        own = [n for n, grid in enumerate(grids) if getattr(grid, key) is not None]
        for name, value in _find_given(settings, key) if own else ():
            where = ", ".join(f"heads.search.{n}" for n in own)
            effect = "does nothing" if len(own) == len(grids) else "holds in the other grids only"
            lists = "lists values of its own" if len(own) == 1 else "list values of their own"
            said.append(f"{name}: {value!r} {effect}, since {where} {lists}")
    return said


def _find_given(settings: HeadsSettings, key: str) -> Iterator[tuple[str, Any]]:
    """The dotted names and values of a setting of that key where it is not its default."""
    sections: dict[str, Section] = {"heads": settings}
    if key in TaskSettings.model_fields:
        sections = {f"heads.tasks.{name}": task for name, task in (settings.tasks or {}).items()}
    for name, section in sections.items():
        about = type(section).model_fields.get(key)
        if about is not None and (value := getattr(section, key)) != about.default:
            yield f"{name}.{key}", value


def _list_unused(settings: HeadsSettings, configurations: Sequence[Configuration]) -> list[str]:
    """Settings that concern none of the configurations."""
    idle = set.intersection(*(_list_idle(c.head, c.optimizer) for c in configurations))
    if all(c.optimizer == "lbfgs" for c in configurations):
        idle |= _BATCHED
    said = [
        f"{name}: {value!r} does nothing, since no head {_SERVED[key]}"
        for key in sorted(idle & set(_SERVED))
        for name, value in _find_given(settings, key)
    ]
    if all(c.head == "kernel" for c in configurations):
        said += [
            f"{name}: {value!r} does nothing, since kernel heads are trained by lbfgs on joined "
            "layers, without dropout"
            for key in _KERNEL
            for name, value in _find_given(settings, key)
        ]
    return said


def group_by_shape(
    configurations: Sequence[Configuration],
) -> list[list[tuple[int, Configuration]]]:
    """Configurations that can be trained as one stack, with their indices in the list."""
    groups: dict[Hashable, list[tuple[int, Configuration]]] = {}
    for number, configuration in enumerate(configurations):
        groups.setdefault(configuration.shape, []).append((number, configuration))
    return list(groups.values())


def leave_out_kernels(
    configurations: list[Configuration], settings: HeadsSettings, train_rows: int
) -> list[Configuration]:
    """The configurations of the default search without kernel heads, if rows are very many.

    :param configurations: all configurations of the search.
    :param settings: the settings of the heads; kernel heads that they ask for stay.
    :param train_rows: the number of training rows.
    """
    is_open = settings.search == "auto" and settings.head == "auto"
    left = [c for c in configurations if c.head != "kernel"]
    if train_rows <= _MAX_KERNEL_ROWS or not is_open or len(left) == len(configurations):
        return configurations
    say(
        f"{train_rows:,} training rows: the search leaves kernel heads out, which take long beyond "
        f"{_MAX_KERNEL_ROWS:,}; head: kernel, or a grid of them, trains them"
    )
    return left
