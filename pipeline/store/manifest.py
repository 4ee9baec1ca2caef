"""What a store holds and what it should hold: recipe, shards, manifest."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.corpus.keys import hash_keys
from pipeline.errors import StoreError
from pipeline.files import add_hash, check_hash, format_json, hash_json, parse_json
from pipeline.store.places import find_place

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
SHARD_ROWS = 4096
# A block, one column of one row group, should fit the caches: 1,024 × 768 float16 is 1.5 MB.
GROUP_ROWS = 1024
MANIFEST = "manifest.json"
REPAIR = "run `pipeline cache verify --repair`, then `pipeline embed`"

# A manifest is believed about no other file, so it never leads out of the store's folder.
_SHARD_FILE = re.compile(r"part-\d{5,12}\.parquet")
# What a manifest says of the lengths of a shard's texts; ``store.lengths`` tells what it means.
LENGTHS = ("cut", "lost", "long")
_FIDELITY = ("texts", "lowest_cosine", "largest_error")

Vectors = npt.NDArray[np.float16] | npt.NDArray[np.float32]


@dataclass(frozen=True)
class Shard:
    """One Parquet file of the store.

    :param file: its name.
    :param rows: number of its texts.
    :param keys: SHA-256 over the keys of its rows, in order: what it holds.
    :param bytes: its size.
    :param sha256: SHA-256 of its bytes.
    :param checks: column → XXH3-64 over the values of each row group.
    :param lengths: how many of its texts were cut, and how much of them; ``None`` if no run has
        counted that.
    """

    file: str
    rows: int
    keys: str
    bytes: int = 0
    sha256: str = ""
    checks: Mapping[str, Sequence[str]] | None = None
    lengths: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Recipe:
    """What makes a vector what it is.

    :param backbone: its name, for people; its files' hashes are what counts.
    :param contents: all that changes a vector, readable: hashes of the backbone's files, maximum
        length, pooling, layers, precision, dtype, algorithm version.
    :param layers: numbers of the cached layers, ascending.
    :param width: D, of one layer: the vectors of all its poolings side by side.
    :param dtype: ``float16`` or ``float32``.
    """

    backbone: str
    contents: Mapping[str, Any]
    layers: tuple[int, ...]
    width: int
    dtype: str

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the contents in canonical JSON."""
        return hash_json(self.contents)

    @property
    def poolings(self) -> tuple[str, ...]:
        """The names of the poolings, each of which has a column of each layer."""
        return _list_poolings(self.contents)

    @property
    def text_bytes(self) -> int:
        """Bytes that the vectors of one text take."""
        return len(self.layers) * self.width * np.dtype(self.dtype).itemsize

    def describe(self, shards: Sequence[Shard]) -> Manifest:
        """The manifest of a store of this recipe."""
        return Manifest(
            backbone=self.backbone,
            fingerprint=self.fingerprint,
            recipe=self.contents,
            layers=self.layers,
            width=self.width,
            dtype=self.dtype,
            shards=tuple(shards),
        )


@dataclass(frozen=True)
class Manifest:
    """What a store holds.

    :param fingerprint: fingerprint of the recipe that all its vectors share.
    :param recipe: readable contents of that recipe.
    :param fidelity: distance of its vectors from the backbone's in float32, the worst of all runs
        that added to it: ``texts`` compared, ``lowest_cosine``, ``largest_error``.
    """

    backbone: str
    fingerprint: str
    recipe: Mapping[str, Any]
    layers: tuple[int, ...]
    width: int
    dtype: str
    shards: tuple[Shard, ...]
    fidelity: Mapping[str, Any] | None = None
    format: int = FORMAT

    @property
    def poolings(self) -> tuple[str, ...]:
        """The names of the poolings, each of which has a column of each layer."""
        return _list_poolings(self.recipe)

    @property
    def rows(self) -> int:
        """How many distinct texts it holds."""
        return sum(shard.rows for shard in self.shards)

    def to_recipe(self) -> Recipe:
        """The recipe of its vectors."""
        return Recipe(self.backbone, self.recipe, self.layers, self.width, self.dtype)

    @property
    def bytes(self) -> int:
        """The size of its shards."""
        return sum(shard.bytes for shard in self.shards)


@dataclass(frozen=True)
class Rows:
    """Vectors of some texts.

    :param n_tokens: int32, [B].
    :param vectors: [B, L, D], in the store's dtype.
    """

    n_tokens: npt.NDArray[np.int32]
    vectors: Vectors


def name_layer(layer: int, pooling: str | None = None) -> str:
    """The column of a layer: ``layer_06``, or ``layer_06_cls`` of a further pooling.

    :param layer: number of the layer.
    :param pooling: name of the pooling; ``None`` for the first, or only, one.
    """
    return f"layer_{layer:02}" + (f"_{pooling}" if pooling else "")


def name_columns(store: Recipe | Manifest, layer: int) -> tuple[str, ...]:
    """The columns of a layer, one a pooling, which have equal parts of the layer's width.

    :param store: what the vectors are.
    :param layer: number of the layer.
    """
    further = store.poolings[1:]
    return (name_layer(layer), *(name_layer(layer, pooling) for pooling in further))


def split_columns(
    store: Recipe | Manifest, layers: Sequence[int], vectors: npt.NDArray[Any]
) -> dict[str, npt.NDArray[Any]]:
    """Column → its part of an array, without a copy: [B, D divided by the number of poolings].

    :param store: what the vectors are.
    :param layers: numbers of the L layers of the array.
    :param vectors: [B, L, D].
    """
    part = store.width // len(store.poolings)
    return {
        column: vectors[:, number, place * part : (place + 1) * part]
        for number, layer in enumerate(layers)
        for place, column in enumerate(name_columns(store, layer))
    }


def _list_poolings(contents: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the poolings of a recipe, of which a single one stands there by itself."""
    pooling = contents.get("pooling", "mean")
    return tuple(pooling) if isinstance(pooling, list) else (str(pooling),)


def read_manifest_file(path: Path) -> Manifest | None:
    """Read a manifest, of which nothing is believed before its hash and its form are checked.

    :param path: the file.
    :returns: the manifest; ``None`` if there is no such file.
    :raises StoreError: if it is damaged or of another version.
    """
    try:
        return parse_manifest(path.read_bytes())
    except FileNotFoundError:
        return None
    except StoreError as error:
        raise StoreError(f"{path}: {error.message}", hint=error.hint) from error
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror})", hint=REPAIR) from error


def parse_manifest(raw: bytes, *besides: str) -> Manifest:
    """Read the bytes of a manifest.

    :param raw: as ``format_manifest`` gives them.
    :param *besides: keys that may stand in it beside those of a manifest.
    :returns: the manifest.
    :raises StoreError: if they are not those of a manifest; the message names no file.
    """
    try:
        content = parse_json(raw)
        if content["format"] != FORMAT:
            raise StoreError(
                f"format {content['format']}, this version reads {FORMAT}",
                hint="run `pipeline embed`, which makes the store anew",
            )
        content = check_hash(content)
        for key in besides:
            content.pop(key, None)
        shards = tuple(Shard(**shard) for shard in content.pop("shards"))
        content["layers"] = tuple(content["layers"])
        manifest = Manifest(**content, shards=shards)
        _check_form(manifest)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"damaged ({error})", hint=REPAIR) from error
    return manifest


def _check_form(manifest: Manifest) -> None:
    """Refuse what no run of this program writes, though the hash may be right.

    :raises ValueError: saying what it is.
    """
    for shard in manifest.shards:
        if not (isinstance(shard.file, str) and _SHARD_FILE.fullmatch(shard.file)):
            raise ValueError(f"it names {shard.file!r}, which is not a shard of this folder")
        if not (_is_count(shard.rows) and _is_count(shard.bytes) and shard.rows):
            raise ValueError(f"{shard.file} has {shard.rows} rows in {shard.bytes} bytes")
        if not all(isinstance(text, str) for text in (shard.keys, shard.sha256)):
            raise ValueError(f"{shard.file} has no hashes")
        if not (shard.checks is None or _are_checks(shard.checks)):
            raise ValueError(f"{shard.file} has no hashes of its columns")
        if not (shard.lengths is None or _are_lengths(shard.lengths)):
            raise ValueError(f"{shard.file} has lengths {shard.lengths}")
    if len({shard.file for shard in manifest.shards}) < len(manifest.shards):
        raise ValueError("it names a shard twice")
    if not all(map(_is_count, manifest.layers)) or not _is_count(manifest.width):
        raise ValueError(f"layers {manifest.layers} of width {manifest.width}")
    if manifest.dtype not in {"float16", "float32"}:
        raise ValueError(f"dtype {manifest.dtype}")
    if not isinstance(manifest.backbone, str) or not isinstance(manifest.recipe, dict):
        raise ValueError("it has no recipe")
    poolings = manifest.recipe.get("pooling", "mean")
    if not isinstance(poolings, str) and not (
        isinstance(poolings, list)
        and poolings
        and all(isinstance(name, str) for name in poolings)
        and manifest.width % len(poolings) == 0
    ):
        raise ValueError(f"pooling {poolings!r:.80} of width {manifest.width}")
    if not isinstance(manifest.recipe.get("files", {}), dict):
        raise ValueError("its recipe names no files")
    if manifest.fingerprint != hash_json(manifest.recipe):
        raise ValueError("its fingerprint is not that of its recipe")
    if manifest.fidelity is not None and not all(
        isinstance(manifest.fidelity[key], int | float) for key in _FIDELITY
    ):
        raise ValueError("its fidelity is no number")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_checks(checks: object) -> bool:
    return isinstance(checks, dict) and all(
        isinstance(hashes, list) and all(isinstance(text, str) for text in hashes)
        for hashes in checks.values()
    )


def _are_lengths(lengths: object) -> bool:
    return (
        isinstance(lengths, dict)
        and set(lengths) == set(LENGTHS)
        and all(map(_is_count, lengths.values()))
    )


def format_manifest(manifest: Manifest, **besides: Any) -> bytes:
    """A manifest as it stands in its file, with its own hash.

    :param manifest: the manifest.
    :param **besides: further keys and their values.
    :returns: JSON.
    """
    content = asdict(manifest) | besides
    for shard in content["shards"]:
        if shard["lengths"] is None:  # so that manifests of earlier versions stay as they are
            del shard["lengths"]
    return format_json(add_hash(content))


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest with its own hash."""
    find_place(path).write(path, format_manifest(manifest))


def is_shard_file(name: str) -> bool:
    """Whether a store may have a shard of this name."""
    return _SHARD_FILE.fullmatch(name) is not None


def plan_shards(keys: pa.Array) -> list[Shard]:
    """Cut distinct texts into shards of a fixed number of rows, in their order.

    Texts added at the end leave all shards but the last as they are.

    :param keys: fixed-size binary of 16, [N], distinct.
    :returns: shards that are still to be written, without sizes and hashes.
    """
    shards = []
    for number, start in enumerate(range(0, len(keys), SHARD_ROWS)):
        part = keys.slice(start, SHARD_ROWS)
        name = f"part-{number:05}.parquet"
        shards.append(Shard(file=name, rows=len(part), keys=hash_keys(part)))
    return shards


def holds_exactly(folder: Path, manifest: Manifest, keys: pa.Array) -> bool:
    """Whether a store holds just these texts, in this order, with every shard in place.

    It compares hashes, names and sizes only, so it takes no time however large the vectors are.

    :param folder: the store.
    :param manifest: manifest of the store.
    :param keys: fixed-size binary of 16, distinct, in order of first appearance.
    :returns: whether it does.
    """
    planned = [(shard.file, shard.keys) for shard in plan_shards(keys)]
    if [(shard.file, shard.keys) for shard in manifest.shards] != planned:
        return False
    size_of = find_place(folder).measure(folder)
    return all(size_of(shard.file) == shard.bytes for shard in manifest.shards)


def has_size(path: Path, size: int) -> bool:
    """Whether a file is there and has so many bytes."""
    try:
        return path.stat().st_size == size
    except OSError:
        return False
