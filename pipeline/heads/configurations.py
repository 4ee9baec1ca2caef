"""What to train: the configuration that the settings give, and every other of their search."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from pipeline.config import ClassWeights, Head, HeadsSettings, Loss, Optimizer, SearchSettings
from pipeline.errors import SettingsError
from pipeline.layers import resolve_layers

_LOSS_KEYS = ("loss", "class_weights", "label_smoothing", "focal_gamma", "logit_adjustment")
# How kernel heads are trained, whatever the settings say of the others.
_KERNEL = {"optimizer": "lbfgs", "combine": "join", "dropout": 0.0}


@dataclass(frozen=True)
class Configuration:
    """One way to train a head; ``None`` leaves the choice to the task's own settings."""

    layers: tuple[int, ...]
    combine: Literal["join", "mix"]
    head: Head
    bandwidth: float
    hidden_size: int
    dropout: float
    optimizer: Optimizer
    learning_rate: float
    weight_decay: float
    seed: int
    loss: Loss | None = None
    class_weights: ClassWeights | None = None
    label_smoothing: float | None = None
    focal_gamma: float | None = None
    logit_adjustment: float | None = None

    @property
    def shape(self) -> Hashable:
        """Equal for configurations that can be stacked."""
        size = {"hidden": self.hidden_size, "kernel": self.bandwidth}.get(self.head)
        distance = self.loss if self.loss in ("mse", "huber") else None
        return (
            self.layers,
            self.combine,
            self.head,
            size,
            self.dropout,
            self.optimizer,
            self.seed,
            distance,
        )

    @property
    def loss_changes(self) -> dict[str, Any]:
        """What it changes in a task's loss."""
        return {key: getattr(self, key) for key in _LOSS_KEYS}

    def describe(self) -> dict[str, Any]:
        """Its settings as they may stand in JSON; those that do not concern it are left out."""
        idle = _list_idle(self.head, self.optimizer)
        if self.optimizer == "lbfgs":
            idle |= {"dropout", "seed"}
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in idle}
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in found.items()
            if value is not None
        }


def list_configurations(settings: HeadsSettings, available: tuple[int, ...]) -> list[Configuration]:
    """All configurations of the search, each once; the one of the settings if there is none.

    Those that differ in what does not concern them, such as the seed of L-BFGS, which draws nothing
    at random, are one.

    :param available: numbers of the cached layers.
    :raises SettingsError: if a layer is not cached, or ``lbfgs`` is asked for what it cannot train.
    """
    grids = settings.grids or (SearchSettings(),)
    found = [
        _configure(
            settings, values, available, f"heads.search.{number}" if settings.search else "heads"
        )
        for number, grid in enumerate(grids)
        for values in _expand(grid)
    ]
    return sorted(set(found), key=found.index)


def _expand(grid: SearchSettings) -> list[dict[str, Any]]:
    lists = {key: value for key, value in dict(grid).items() if value is not None}
    return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]


def _configure(
    settings: HeadsSettings, values: dict[str, Any], available: tuple[int, ...], key: str
) -> Configuration:
    def pick(name: str) -> Any:
        return values.get(name, getattr(settings, name))

    weights = values.get("class_weights")
    if pick("head") == "kernel":
        values = values | _KERNEL
    idle = _list_idle(pick("head"), pick("optimizer"))
    values = {k: v for k, v in values.items() if k not in idle}
    found = Configuration(
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
        # A mapping cannot be hashed; pairs tell the same.
        **{name: values.get(name) for name in _LOSS_KEYS if name != "class_weights"},
        class_weights=_Weights(weights) if isinstance(weights, dict) else weights,
    )
    if found.optimizer == "lbfgs" and (
        found.head == "hidden" or (found.combine, found.dropout) != ("join", 0.0)
    ):
        raise SettingsError(
            f"{key}.optimizer: lbfgs trains heads without a hidden layer, on joined "
            f"layers, without dropout; got head {found.head}, combine {found.combine}, dropout "
            f"{found.dropout:g}",
            hint="set optimizer to adamw or sgd there; a search may have a grid for each",
        )
    return found


def _list_idle(head: str, optimizer: str) -> set[str]:
    """Settings that do not concern such a head."""
    idle = {"hidden_size", "bandwidth"}
    idle -= {{"hidden": "hidden_size", "kernel": "bandwidth"}.get(head, "")}
    return idle | {"learning_rate", "seeds"} if optimizer == "lbfgs" else idle


class _Weights(dict[Any, float]):
    """Class weights that can be told apart in a set."""

    # A dict declares its hash as None, since it may change; these are never changed.
    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted((str(key), value) for key, value in self.items())))


def group_by_shape(
    configurations: Sequence[Configuration],
) -> list[list[tuple[int, Configuration]]]:
    """Configurations that can train as one stack, with their numbers."""
    groups: dict[Hashable, list[tuple[int, Configuration]]] = {}
    for number, configuration in enumerate(configurations):
        groups.setdefault(configuration.shape, []).append((number, configuration))
    return list(groups.values())
