"""Which layers: from what the settings say to layer numbers."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Literal

from pipeline.errors import SettingsError


def resolve_layers(
    layers: Literal["all", "last"] | Iterable[int], available: tuple[int, ...], key: str
) -> tuple[int, ...]:
    """Settings → layer numbers, ascending, each once.

    :param layers: ``all``, ``last``, or numbers; negative ones count from the last layer.
    :param available: the numbers to choose from, ascending.
    :param key: the setting, for the message.
    :raises SettingsError: if a number is not among them, or ``layers`` is something else.
    """
    if layers == "all":
        return available
    if layers == "last":
        return available[-1:]
    top = available[-1]
    given = list(layers) if isinstance(layers, Iterable) else []
    if not given or not all(isinstance(layer, Integral) for layer in given):
        raise SettingsError(f"{key}: {layers!r} is not all, last or a list of layer numbers")
    chosen = {int(layer) if layer >= 0 else top + 1 + int(layer) for layer in given}
    wrong = sorted(chosen - set(available))
    if wrong:
        raise SettingsError(
            f"{key}: no layer {wrong[0]}; there are {', '.join(map(str, available))}"
        )
    return tuple(sorted(chosen))
