"""Looking after a store: what it holds, whether it is whole, getting it out, making it smaller."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.console import show_progress
from pipeline.corpus.keys import hash_keys
from pipeline.errors import StoreError
from pipeline.files import describe_write_error, hash_file, write_aside
from pipeline.store.manifest import (
    MANIFEST,
    Manifest,
    Recipe,
    Shard,
    name_layer,
    read_manifest,
    write_manifest,
)
from pipeline.store.reader import read_keys, read_rows, read_vectors
from pipeline.store.writer import StoreUpdate, finish_commit, staging_folder

if TYPE_CHECKING:
    import pyarrow as pa

_CHUNK_ROWS = 16_384


@dataclass(frozen=True)
class Damage:
    """Something in a store that is not as the manifest says.

    :param file: the shard.
    :param what: is wrong with it.
    """

    file: str
    what: str


def verify_store(folder: Path) -> list[Damage]:
    """Check every byte of a store.

    :returns: what is damaged; empty if all is well.
    :raises StoreError: if there is no store, or its manifest is damaged.
    """
    manifest = read_manifest(folder)
    damages = []
    with show_progress("verifying", len(manifest.shards), "shards") as advance:
        for number, shard in enumerate(manifest.shards):
            what = _find_damage(folder, manifest, number)
            if what is not None:
                damages.append(Damage(shard.file, what))
            advance(1)
    named = {shard.file for shard in manifest.shards}
    strays = sorted({file.name for file in folder.iterdir()} - named - {MANIFEST})
    return damages + [Damage(name, "is not a file of this store") for name in strays]


def _find_damage(folder: Path, manifest: Manifest, number: int) -> str | None:
    """What is wrong with one shard: its bytes, its footer, its row count, its keys, its values."""
    shard = manifest.shards[number]
    path = folder / shard.file
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != shard.bytes:
        return f"has {size:,} bytes instead of {shard.bytes:,}"
    if hash_file(path) != shard.sha256:
        return "has bytes that were not written so (sha256 differs)"
    alone = replace(manifest, shards=(shard,))
    try:
        keys = read_keys(folder, alone)
        vectors = read_rows(folder, alone, keys).vectors
    except StoreError as error:
        return error.message
    flat = vectors.reshape(len(vectors), -1)
    bad = int((~np.isfinite(flat).all(axis=1) | ~flat.any(axis=1)).sum())
    return f"has {bad:,} vectors that are zero or not finite" if bad else None


def repair_store(folder: Path, damages: Sequence[Damage]) -> None:
    """Drop what is damaged, so that the next run embeds just that again.

    The manifest keeps only whole shards. A reader then finds the texts of the others missing, and
    `pipeline embed` computes them.
    """
    manifest = read_manifest(folder)
    damaged = {damage.file for damage in damages}
    kept = tuple(shard for shard in manifest.shards if shard.file not in damaged)
    write_manifest(folder / MANIFEST, replace(manifest, shards=kept))
    try:
        for name in damaged:
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise describe_write_error(error, folder) from error


def rebuild_manifest(folder: Path) -> Manifest | None:
    """Make a damaged or lost manifest anew from shards that are whole.

    Each shard states its recipe and the hashes of its values, so no damage slips in. Shards of
    another recipe than the first whole one's, or that are damaged, are left out.

    :returns: what was written, or ``None`` if no shard is whole.
    """
    shards: list[Shard] = []
    recipe: Recipe | None = None
    for path in sorted(folder.glob("part-*.parquet")):
        found = _read_whole_shard(path)
        if found is not None and (recipe is None or found[0] == recipe):
            recipe, shard = found
            shards.append(shard)
    if recipe is None:
        return None
    manifest = recipe.describe(shards)
    write_manifest(folder / MANIFEST, manifest)
    return manifest


def _read_whole_shard(path: Path) -> tuple[Recipe, Shard] | None:
    """What a shard says of itself, if all its values are as it says."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        footer = pq.read_metadata(path)
        about = footer.metadata
        vector = footer.schema.to_arrow_schema().field(-1).type
        contents = json.loads(about[b"recipe"])
        recipe = Recipe(
            backbone=about[b"backbone"].decode(),
            contents=contents,
            layers=tuple(contents["layers"]),
            width=vector.list_size,
            dtype=str(np.dtype(vector.value_type.to_pandas_dtype())),
        )
        shard = Shard(
            file=path.name,
            rows=footer.num_rows,
            keys="",
            bytes=path.stat().st_size,
            sha256=hash_file(path),
            checks=json.loads(about[b"checks"]),
        )
        alone = recipe.describe([shard])
        keys = read_keys(path.parent, alone)
        read_rows(path.parent, alone, keys)
    except (pa.ArrowException, OSError, StoreError, KeyError, ValueError, TypeError):
        return None
    if recipe.fingerprint != about[b"fingerprint"].decode():
        return None
    return recipe, replace(shard, keys=hash_keys(keys))


def prune_store(folder: Path, keys: pa.Array) -> int:
    """Drop vectors of texts that the corpus no longer has, and what other recipes left behind.

    :param keys: of the corpus: fixed-size binary of 16, distinct, in order of first appearance.
    :returns: how many texts were dropped.
    """
    import pyarrow.compute as pc

    finish_commit(folder)
    manifest = read_manifest(folder)
    held = read_keys(folder, manifest)
    kept = keys.filter(pc.is_in(keys, value_set=held))
    dropped = len(held) - len(kept)
    if dropped:
        update = StoreUpdate(folder, manifest.to_recipe(), kept)
        for start, stop in update.list_missing():
            update.write_shard(start, update.find_known(start, stop)[1])
        update.commit()
    shutil.rmtree(staging_folder(folder), ignore_errors=True)
    return dropped


@dataclass(frozen=True)
class _Export:
    """What to write where; see ``export_vectors``."""

    folder: Path
    manifest: Manifest
    keys: pa.Array
    layers: Sequence[int]
    target: Path
    extra: Mapping[str, pa.Array]

    def read_chunks(self) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Vectors of some rows at a time, with the number of the first."""
        with show_progress("exporting", len(self.keys), "rows") as advance:
            for start in range(0, len(self.keys), _CHUNK_ROWS):
                part = self.keys.slice(start, _CHUNK_ROWS)
                yield start, read_vectors(self.folder, part, self.layers, self.manifest.dtype)
                advance(len(part))


def export_vectors(
    folder: Path,
    keys: pa.Array,
    layers: Sequence[int],
    target: Path,
    extra: Mapping[str, pa.Array],
) -> tuple[int, int, int]:
    """Write the vectors of all rows of a corpus to one file, in their order.

    :param keys: of N rows, duplicates allowed.
    :param layers: numbers of L layers.
    :param target: ``.npy``: [N, L * D]; ``.safetensors``: one tensor ``layer_NN``, [N, D], a layer;
        ``.parquet``: one list column a layer, beside the extra columns.
    :param extra: columns to put first into a Parquet file, N values each.
    :returns: the shape of the vectors: N, L, D.
    :raises StoreError: if the name's ending is none of these, or vectors are missing.
    """
    writers = {
        ".npy": _export_npy,
        ".parquet": _export_parquet,
        ".safetensors": _export_safetensors,
    }
    if target.suffix not in writers:
        raise StoreError(
            f"{target}: cannot tell the format from the name",
            hint=f"end it in {', '.join(writers)}",
        )
    manifest = read_manifest(folder)
    writers[target.suffix](_Export(folder, manifest, keys, layers, target, extra))
    return len(keys), len(layers), manifest.width


def _export_npy(export: _Export) -> None:
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(export.manifest.dtype)),
        "fortran_order": False,
        "shape": (len(export.keys), len(export.layers) * export.manifest.width),
    }
    with write_aside(export.target) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for _, vectors in export.read_chunks():
            file.write(vectors.data)


def _export_safetensors(export: _Export) -> None:
    from safetensors.numpy import save

    manifest = export.manifest
    vectors = read_vectors(export.folder, export.keys, export.layers, manifest.dtype)
    tensors = {
        name_layer(layer): np.ascontiguousarray(vectors[:, number])
        for number, layer in enumerate(export.layers)
    }
    with write_aside(export.target) as file:
        file.write(save(tensors, {"fingerprint": manifest.fingerprint}))


def _export_parquet(export: _Export) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    manifest = export.manifest
    element = pa.field("element", pa.from_numpy_dtype(manifest.dtype), nullable=False)
    vector = pa.list_(element, manifest.width)
    schema = pa.schema(
        [pa.field(name, column.type) for name, column in export.extra.items()]
        + [pa.field(name_layer(layer), vector) for layer in export.layers]
    )
    with (
        write_aside(export.target) as file,
        pq.ParquetWriter(file, schema, compression="none") as writer,
    ):
        for start, vectors in export.read_chunks():
            columns = [column.slice(start, len(vectors)) for column in export.extra.values()]
            for number in range(len(export.layers)):
                flat = np.ascontiguousarray(vectors[:, number]).reshape(-1)
                columns.append(pa.FixedSizeListArray.from_arrays(pa.array(flat), type=vector))
            writer.write_table(pa.table(columns, schema=schema))
