"""What makes a vector what it is, from the settings and the backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.assets import Asset
from pipeline.config import EmbedSettings, Settings
from pipeline.embed.backbone import Architecture
from pipeline.layers import resolve_layers
from pipeline.store import (
    Recipe,
)

if TYPE_CHECKING:
    pass


# A change of what the code computes, if ever, makes every store of an older version stale.
_ALGORITHM = 1


def make_recipe(
    asset: Asset, architecture: Architecture, settings: EmbedSettings, precision: str
) -> Recipe:
    """All that changes a vector. What only changes the speed stays out of it."""
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
        "pooling": "mean",
        "layers": list(layers),
        "precision": precision,
        "dtype": settings.dtype,
    }
    return Recipe(asset.id, contents, layers, architecture.width, settings.dtype)


def _possible_precisions(settings: Settings) -> tuple[str, ...]:
    """What ``auto`` may have meant when the store was made: to know it now would take torch."""
    if settings.embed.precision != "auto":
        return (settings.embed.precision,)
    if settings.runtime.devices == "cpu":
        return ("float32",)
    return ("float32", "float16")
