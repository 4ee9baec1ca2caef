"""What makes a vector what it is, from the settings and the backbone."""

from __future__ import annotations

from typing import Any, Literal

from pipeline.architecture import Architecture
from pipeline.assets import Asset
from pipeline.config import EmbedSettings, Settings
from pipeline.errors import AssetError, StageError
from pipeline.layers import resolve_layers
from pipeline.project import Project
from pipeline.store import Manifest, Recipe

Precision = Literal["float32", "float16", "bfloat16"]

# The version of what the code computes. A new one makes every store of an older version stale.
_ALGORITHM = 1
# How the stage `embed` makes a text's vector of its tokens': a key of `POOLINGS`.
_POOLING = "mean"
# What `auto` may mean, by the device.
_AUTOMATIC: tuple[Precision, ...] = ("float32", "float16")


def make_recipe(
    asset: Asset,
    architecture: Architecture,
    settings: EmbedSettings,
    precision: str,
    pooling: str = _POOLING,
) -> Recipe:
    """All that changes a vector; what only changes the speed stays out of it.

    :param asset: the fetched backbone.
    :param architecture: facts that the backbone's folder states.
    :param settings: the settings of the stage.
    :param precision: the type that vectors are computed in, never ``auto``.
    :param pooling: way to make a text's vector of its tokens', a key of ``POOLINGS``.
    :raises SettingsError: if the backbone lacks a layer that the settings name.
    """
    available = tuple(range(architecture.layers + 1))
    layers = resolve_layers(settings.layers, available, "embed.layers")
    contents = _describe_contents(asset, settings, layers, precision) | {"pooling": pooling}
    return Recipe(asset.id, contents, layers, architecture.width, settings.dtype)


def _describe_contents(
    asset: Asset, settings: EmbedSettings, layers: tuple[int, ...], precision: str
) -> dict[str, Any]:
    decisive = {
        name: sha256
        for name, sha256 in sorted(asset.files.items())
        if name in {"config.json", "tokenizer.json"} or name.endswith(".safetensors")
    }
    return {
        "algorithm": _ALGORITHM,
        "files": decisive,
        "max_tokens": settings.max_tokens,
        "pooling": _POOLING,
        "layers": list(layers),
        "precision": precision,
        "dtype": settings.dtype,
    }


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
    return _AUTOMATIC


def check_store(project: Project, settings: EmbedSettings, manifest: Manifest) -> None:
    """Make sure that a project's vectors are those of its backbone and its settings.

    The store may have been made on another machine, so a precision of ``auto`` stands for any that
    it means somewhere. The backbone itself need not be on this machine; without it, nobody knows
    which layers ``all`` or ``last`` are, and layers are not compared.

    :param project: the project that holds the store.
    :param settings: the settings of the stage ``embed``.
    :param manifest: the manifest of the store.
    :raises StageError: if they are not, saying what is different.
    """
    from pipeline.assets import read_assets

    asset = read_assets(project.assets)["backbone"]
    held = manifest.recipe
    precision = str(held.get("precision"))
    if settings.precision != "auto" or precision not in _AUTOMATIC:
        precision = settings.precision
    layers = manifest.layers
    try:
        available = tuple(range(Architecture.read(asset.locate(project)).layers + 1))
        layers = resolve_layers(settings.layers, available, "embed.layers")
    except AssetError:
        pass
    wanted = _describe_contents(asset, settings, layers, precision)
    if held.get("files") != wanted["files"]:
        raise StageError(
            f"{project.store} holds vectors of {manifest.backbone}, but {project.assets} now "
            f"names {asset.id}" + (" with other files" if asset.id == manifest.backbone else ""),
            hint="run `pipeline embed` first",
        )
    changes = [
        f"embed.{key} {_format(held.get(key))}, which is {_format(value)} now"
        if key in EmbedSettings.model_fields
        else f"{key} {_format(held.get(key))}; this version has {_format(value)}"
        for key, value in wanted.items()
        if held.get(key) != value
    ]
    if changes:
        raise StageError(
            f"{project.store} holds vectors made with {', and with '.join(changes)}",
            hint="run `pipeline embed` first",
        )


def _format(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
