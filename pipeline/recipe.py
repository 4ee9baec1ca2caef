"""What makes a vector what it is, from the settings and the backbone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.architecture import Architecture
from pipeline.assets import Asset
from pipeline.config import EmbedSettings, Settings
from pipeline.declaration import Declaration, find_prompt, read_max_tokens
from pipeline.errors import SettingsError, StageError
from pipeline.layers import resolve_layers
from pipeline.project import Project
from pipeline.store import Manifest, Recipe

Precision = Literal["float32", "float16", "bfloat16"]

# The version of what the code computes. A new one makes every store of an older version stale.
_ALGORITHM = 1
# What settings that came later mean to a store that was made before them. They stand in a recipe
# where they are something else, so that its fingerprint is as it was.
_UNSAID: Mapping[str, Any] = {"normalize": False, "prompt": "", "long_texts": "cut"}
# What `auto` may mean, by the device and what it can do.
_AUTOMATIC: tuple[Precision, ...] = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class TextRecipe:
    """What makes one vector of a text in each layer, beside the backbone: settings, none ``auto``.

    :param max_tokens: length to cut longer texts to, special tokens counted in.
    :param pooling: names of the poolings whose vectors are joined, keys of ``POOLINGS``.
    :param normalize: whether the vector is scaled to length 1.
    :param prompt: text to put before each text; empty for none.
    :param long_texts: whether what is too long is cut off, or embedded in windows of that length.
    """

    max_tokens: int
    pooling: tuple[str, ...] = ("mean",)
    normalize: bool = False
    prompt: str = ""
    long_texts: Literal["cut", "windows"] = "cut"

    @classmethod
    def resolve(
        cls,
        folder: Path,
        architecture: Architecture,
        *,
        max_tokens: int | Literal["auto"],
        pooling: str | Sequence[str],
        normalize: bool | Literal["auto"],
        prompt: str,
        long_texts: Literal["cut", "windows"] = "cut",
    ) -> TextRecipe:
        """Put what a backbone declares in the place of ``auto``.

        :param folder: the backbone's folder.
        :param architecture: facts that it states.
        :param max_tokens: length to cut longer texts to, or ``auto``.
        :param pooling: name of a pooling, or several, or ``auto``.
        :param normalize: whether the vector is scaled to length 1, or ``auto``.
        :param prompt: text to put before each text; empty for none.
        :param long_texts: ``cut`` or ``windows``.
        :raises AssetError: if what the backbone declares is odd, or of no known kind.
        :raises SettingsError: if the backbone cannot do what is asked for.
        """
        if max_tokens == "auto":
            max_tokens = read_max_tokens(folder, architecture.max_tokens)
        architecture.check_max_tokens(max_tokens)
        names = (pooling,) if isinstance(pooling, str) else tuple(pooling)
        if "auto" in (*names, normalize):
            declared = Declaration.read(folder)
            if names == ("auto",):
                names = declared.pooling
                if prompt and not declared.include_prompt:
                    raise SettingsError(
                        "embed.prompt: the backbone declares that a prompt's tokens are left out "
                        "of the pooling, which this program cannot do",
                        hint="set embed.prompt to none, or name a pooling in embed.pooling, which "
                        "then is over the prompt, too",
                    )
            if normalize == "auto":
                normalize = declared.normalize
        if long_texts == "windows" and names != ("mean",):
            raise SettingsError(
                f"embed.long_texts: windows are joined where texts are pooled by mean, and this "
                f"backbone is by {' + '.join(names)}",
                hint="set embed.long_texts to cut, or embed.pooling to mean",
            )
        return cls(max_tokens, names, bool(normalize), prompt, long_texts)

    @classmethod
    def from_contents(cls, contents: Mapping[str, Any]) -> TextRecipe:
        """The part of a recipe's contents that ``to_contents`` made.

        :param contents: contents of a recipe, of this version or an earlier one.
        """
        said = {**_UNSAID, **contents}
        pooling = said["pooling"]
        return cls(
            max_tokens=said["max_tokens"],
            pooling=(pooling,) if isinstance(pooling, str) else tuple(pooling),
            normalize=said["normalize"],
            prompt=said["prompt"],
            long_texts=said["long_texts"],
        )

    def to_contents(self) -> dict[str, Any]:
        """What a recipe's contents say of it."""
        said: dict[str, Any] = {
            "max_tokens": self.max_tokens,
            "pooling": self.pooling[0] if len(self.pooling) == 1 else list(self.pooling),
        }
        later = {name: getattr(self, name) for name in _UNSAID}
        return said | {key: value for key, value in later.items() if value != _UNSAID[key]}

    def describe(self) -> str:
        """One phrase for people."""
        parts = [f"{' + '.join(self.pooling)} over {self.max_tokens:,} tokens at most"]
        parts += ["longer texts in windows"] if self.long_texts == "windows" else []
        parts += ["scaled to length 1"] if self.normalize else []
        parts += [f"each text after {self.prompt!r}"] if self.prompt else []
        return ", ".join(parts)


def resolve_text_recipe(
    settings: EmbedSettings, architecture: Architecture, folder: Path
) -> TextRecipe:
    """What the settings mean for a backbone, which knows what ``auto`` and names stand for.

    :param settings: the settings of the stage.
    :param architecture: facts that the backbone's folder states.
    :param folder: the backbone's folder.
    :raises AssetError: if what the backbone declares is odd, or of no known kind.
    :raises SettingsError: if the backbone cannot do what the settings ask for.
    """
    return TextRecipe.resolve(
        folder,
        architecture,
        max_tokens=settings.max_tokens,
        pooling=settings.pooling,
        normalize=settings.normalize,
        prompt=find_prompt(folder, settings.prompt),
        long_texts=settings.long_texts,
    )


def make_recipe(
    asset: Asset,
    architecture: Architecture,
    settings: EmbedSettings,
    text_recipe: TextRecipe,
    precision: str,
) -> Recipe:
    """All that changes a vector; what only changes the speed stays out of it.

    :param asset: the fetched backbone.
    :param architecture: facts that the backbone's folder states.
    :param settings: the settings of the stage.
    :param text_recipe: what makes one vector of a text, as ``resolve_text_recipe`` finds it.
    :param precision: the type that vectors are computed in, never ``auto``.
    :raises SettingsError: if the backbone lacks a layer that the settings name.
    """
    available = tuple(range(architecture.layers + 1))
    layers = resolve_layers(settings.layers, available, "embed.layers")
    contents = _describe_contents(asset, settings, text_recipe, layers, precision)
    width = architecture.width * len(text_recipe.pooling)
    return Recipe(asset.id, contents, layers, width, settings.dtype)


def list_possible_recipes(asset: Asset, folder: Path, settings: Settings) -> Iterator[Recipe]:
    """The recipes that the settings may mean, by the devices that this or another machine has.

    :param asset: the fetched backbone.
    :param folder: the backbone's folder.
    :param settings: all settings.
    :raises AssetError: if the folder lacks what is needed, or what it declares is odd.
    :raises SettingsError: if the backbone cannot do what the settings ask for.
    """
    architecture = Architecture.read(folder)
    text_recipe = resolve_text_recipe(settings.embed, architecture, folder)
    possible = list_possible_precisions(settings.embed.precision, str(settings.runtime.devices))
    for precision in possible:
        yield make_recipe(asset, architecture, settings.embed, text_recipe, precision)


def _describe_contents(
    asset: Asset,
    settings: EmbedSettings,
    text_recipe: TextRecipe,
    layers: tuple[int, ...],
    precision: str,
) -> dict[str, Any]:
    decisive = {
        name: sha256
        for name, sha256 in sorted(asset.files.items())
        if name in {"config.json", "tokenizer.json"} or name.endswith(".safetensors")
    }
    return {
        "algorithm": _ALGORITHM,
        "files": decisive,
        **text_recipe.to_contents(),
        "layers": list(layers),
        "precision": precision,
        "dtype": settings.dtype,
    }


def resolve_precision(precision: Precision | Literal["auto"], device: str) -> Precision:
    """The precision that a setting means on a device of this machine.

    ``auto`` is float16 on a GPU, bfloat16 on a CPU that multiplies it natively, and float32 on
    others: what a device can do decides, never a timing, so that it is the same each time.

    :param precision: the setting.
    :param device: type of the device: ``cpu``, ``cuda`` or ``mps``.
    """
    if precision != "auto":
        return precision
    if device == "cuda":
        return "float16"
    return "bfloat16" if device == "cpu" and has_native_bfloat16() else "float32"


def has_native_bfloat16() -> bool:
    """Whether this machine's processor multiplies bfloat16 itself."""
    from pipeline.onednn import multiplies_bfloat16  # which imports torch

    return multiplies_bfloat16()


def list_possible_precisions(
    precision: Precision | Literal["auto"], devices: str = "auto"
) -> tuple[Precision, ...]:
    """The precisions that a setting may mean, without asking torch for the machine's devices.

    :param precision: the setting.
    :param devices: the setting of the devices.
    """
    if precision != "auto":
        return (precision,)
    return ("float32", "bfloat16") if devices == "cpu" else _AUTOMATIC


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
    folder = asset.locate(project)
    if (folder / "config.json").exists():
        architecture = Architecture.read(folder)
        available = tuple(range(architecture.layers + 1))
        layers = resolve_layers(settings.layers, available, "embed.layers")
        text_recipe = resolve_text_recipe(settings, architecture, folder)
    else:
        layers = manifest.layers
        text_recipe = _guess_text_recipe(settings, held)
    wanted = _describe_contents(asset, settings, text_recipe, layers, precision)
    if held.get("files") != wanted["files"]:
        raise StageError(
            f"{project.store} holds vectors of {manifest.backbone}, but {project.assets} now "
            f"names {asset.id}" + (" with other files" if asset.id == manifest.backbone else ""),
            hint="run `pipeline embed` first",
        )
    held, wanted = {**_UNSAID, **held}, {**_UNSAID, **wanted}
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


def _guess_text_recipe(settings: EmbedSettings, contents: Mapping[str, Any]) -> TextRecipe:
    """What the settings mean where the backbone is not at hand: what only it knows is as it was.

    :param settings: the settings of the stage.
    :param contents: contents of the recipe that the store was made by.
    """
    held = TextRecipe.from_contents({"max_tokens": 0, "pooling": "mean", **contents})
    given: Any = settings.pooling
    pooling = (given,) if isinstance(given, str) else tuple(given)
    return TextRecipe(
        held.max_tokens if settings.max_tokens == "auto" else settings.max_tokens,
        held.pooling if pooling == ("auto",) else pooling,
        held.normalize and settings.normalize == "auto",
        "" if settings.prompt == "none" else held.prompt,
        settings.long_texts,
    )


def _format(value: object) -> str:
    if value == "":
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
