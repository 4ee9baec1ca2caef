"""What makes a vector what it is, from the settings and the backbone."""

from __future__ import annotations

from typing import Any, Literal

from pipeline.assets import Asset
from pipeline.config import EmbedSettings, Settings
from pipeline.embed.backbone import Architecture, Precision
from pipeline.layers import resolve_layers
from pipeline.store import Recipe

# The version of what the code computes. A new one makes every store of an older version stale.
_ALGORITHM = 1
# How the stage `embed` makes a text's vector of its tokens': a key of `POOLINGS`.
_POOLING = "mean"


def make_recipe(
    asset: Asset, architecture: Architecture, settings: EmbedSettings, precision: str
) -> Recipe:
    """All that changes a vector; what only changes the speed stays out of it.

    :param asset: the fetched backbone.
    :param architecture: facts that the backbone's folder states.
    :param settings: the settings of the stage.
    :param precision: the type that vectors are computed in, never ``auto``.
    :raises SettingsError: if the backbone lacks a layer that the settings name.
    """
    available = tuple(range(architecture.layers + 1))
    layers = resolve_layers(settings.layers, available, "embed.layers")
    decisive = {
        name: sha256
        for name, sha256 in sorted(asset.files.items())
        if name in {"config.json", "tokenizer.json"} or name.endswith(".safetensors")
    }
    contents: dict[str, Any] = {
        "algorithm": _ALGORITHM,
        "files": decisive,
        "max_tokens": settings.max_tokens,
        "pooling": _POOLING,
        "layers": list(layers),
        "precision": precision,
        "dtype": settings.dtype,
    }
    return Recipe(asset.id, contents, layers, architecture.width, settings.dtype)


def resolve_precision(precision: Precision | Literal["auto"], device: str) -> Precision:
    """The precision that a setting means on a device.

    :param precision: the setting.
    :param device: type of the device: ``cpu``, ``cuda`` or ``mps``.
    """
    if precision != "auto":
        return precision
    return "float16" if device == "cuda" else "float32"


def list_possible_precisions(settings: Settings) -> tuple[Precision, ...]:
    """The precisions that the settings may mean, without asking torch for the machine's devices.

    :param settings: all settings.
    """
    if settings.embed.precision != "auto":
        return (settings.embed.precision,)
    if settings.runtime.devices == "cpu":
        return ("float32",)
    return ("float32", "float16")
