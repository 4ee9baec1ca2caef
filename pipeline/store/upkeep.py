"""Looking after a store: what it holds, whether it is whole, getting it out, making it smaller."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.console import show_progress
from pipeline.corpus.keys import hash_keys
from pipeline.errors import StoreError
from pipeline.files import describe_write_error, hash_file, is_scratch, write_aside
from pipeline.store.commit import (
    Snapshot,
    drop_kept,
    finish_commit,
    read_manifest,
    read_snapshot,
)
from pipeline.store.folders import (
    clear_folder,
    list_staging,
    list_strays,
    move_aside,
)
from pipeline.store.known import find_whole_shards, join_shards
from pipeline.store.manifest import (
    MANIFEST,
    Manifest,
    Shard,
    name_columns,
    split_columns,
    write_manifest,
)
from pipeline.store.places import find_place
from pipeline.store.reader import read_keys, read_rows, read_vectors, read_whole_shard
from pipeline.store.writer import StoreUpdate

if TYPE_CHECKING:
    import pyarrow as pa

_CHUNK_ROWS = 16_384
_CHECKS = 3  # of a store that another run rewrites meanwhile


@dataclass(frozen=True)
class Damage:
    """Something in a store that is not as the manifest says.

    :param file: its name.
    :param what: description of what is wrong with it.
    :param is_stray: whether the manifest does not name it at all.
    """

    file: str
    what: str
    is_stray: bool = False


def verify_store(folder: Path) -> list[Damage]:
    """Check every byte of a store; nothing is written, so its disk may be read-only.

    What another run changes on the way looks like damage, so that the store is then checked anew.

    :param folder: the store.
    :returns: what is damaged; empty if all is well.
    :raises StoreError: if there is no store, its manifest is damaged, or the changes do not end.
    """
    snapshot = read_snapshot(folder)
    for _ in range(_CHECKS):
        damages = _list_damages(snapshot)
        now = read_snapshot(folder) if damages else snapshot
        if now == snapshot:
            return damages
        snapshot = now
    raise StoreError(
        f"{folder}: another run rewrites it faster than it can be checked",
        hint="wait until that run ends, then run the command again",
    )


def _list_damages(snapshot: Snapshot) -> list[Damage]:
    """What is damaged in one state of a store."""
    shards = snapshot.manifest.shards
    damages = []
    with show_progress("verifying", len(shards), "shards") as advance:
        for shard in shards:
            what = _find_damage(snapshot, shard)
            if what is not None:
                damages.append(Damage(shard.file, what))
            advance(1)
    if snapshot.staged:  # a commit is under way, so shards of the state before may be there too
        return damages
    strays = list_strays(snapshot.folder, {shard.file for shard in shards})
    return damages + [Damage(name, "is not a file of this store", True) for name in strays]


def _find_damage(snapshot: Snapshot, shard: Shard) -> str | None:
    """What is wrong with one shard: its bytes, its footer, its row count, its keys, its values."""
    path = snapshot.locate(shard)
    try:
        if not path.is_file():
            return "is not a file" if find_place(path).exists(path) else "is missing"
        size = path.stat().st_size
        if size != shard.bytes:
            return f"has {size:,} bytes instead of {shard.bytes:,}"
        if hash_file(path) != shard.sha256:
            return "has bytes that were not written so (sha256 differs)"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    manifest = replace(snapshot.manifest, shards=(shard,))
    alone = replace(snapshot, manifest=manifest)
    try:
        if hash_keys(read_keys(alone)) != shard.keys:
            return "holds other texts than the manifest says"
        vectors = read_rows(alone, np.arange(shard.rows)).vectors
    except StoreError as error:
        return error.message
    flat = vectors.reshape(len(vectors), -1)
    bad = int((~np.isfinite(flat).all(axis=1) | ~flat.any(axis=1)).sum())
    return f"has {bad:,} vectors that are zero or not finite" if bad else None


def repair_store(folder: Path, damages: Sequence[Damage]) -> list[str]:
    """Drop what is damaged, so that the next run embeds just that again.

    The manifest keeps only whole shards. A reader then finds the texts of the others missing, and
    `pipeline embed` computes them. Nothing is removed but damaged shards that this program wrote;
    all else that does not belong into the store is moved beside it.

    :param folder: the store.
    :param damages: findings of ``verify_store``.
    :returns: names of what was moved to ``aside_folder``.
    """
    manifest = read_manifest(folder)
    damaged = {damage.file for damage in damages}
    kept = tuple(shard for shard in manifest.shards if shard.file not in damaged)
    moved = []
    try:
        if len(kept) < len(manifest.shards):
            write_manifest(folder / MANIFEST, replace(manifest, shards=kept))
        for damage in damages:
            path = folder / damage.file
            if not find_place(path).exists(path):
                continue
            if (not damage.is_stray and _is_remains(path)) or is_scratch(path):
                path.unlink()
            else:
                move_aside(folder, damage.file)
                moved.append(damage.file)
    except OSError as error:
        raise describe_write_error(error, folder) from error
    return moved


def _is_remains(path: Path) -> bool:
    """Whether a file is what is left of a shard, and no whole one of another store."""
    if path.is_symlink() or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            begins_as_parquet = file.read(4) in {b"PAR1", b""}
    except OSError:
        return False
    return begins_as_parquet and read_whole_shard(path) is None


def rebuild_manifest(folder: Path, wanted: Sequence[str] = ()) -> Manifest | None:
    """Make a damaged or lost manifest anew from shards that are whole.

    Each shard states its recipe and the hashes of its values, so no damage slips in. Where shards
    of several recipes are found, those of the first wanted one count, else those of the recipe
    with the most rows.

    :param folder: the store.
    :param wanted: fingerprints of the recipes that the settings may mean.
    :returns: what was written, or ``None`` if no shard is whole.
    """
    whole = find_whole_shards(folder)
    rows: dict[str, int] = {}
    for snapshot in whole:
        found = snapshot.manifest
        rows[found.fingerprint] = rows.get(found.fingerprint, 0) + found.rows
    if not rows:
        return None
    chosen = next((f for f in wanted if f in rows), max(rows, key=lambda f: rows[f]))
    manifest = join_shards(whole, chosen)
    assert manifest is not None
    write_manifest(folder / MANIFEST, manifest)
    return manifest


@dataclass(frozen=True)
class Pruned:
    """What ``prune_store`` has dropped.

    :param texts: number of texts of the store that the corpus no longer has.
    :param bytes: size of the stores of earlier settings.
    """

    texts: int
    bytes: int


def prune_store(folder: Path, keys: pa.Array, spared: frozenset[str] = frozenset()) -> Pruned:
    """Drop vectors of texts that the corpus no longer has, and what other recipes left behind.

    What an interrupted run has embedded of the corpus is moved into the store.

    :param folder: the store.
    :param keys: keys of the corpus: fixed-size binary of 16, distinct, in order of first
        appearance.
    :param spared: fingerprints of the recipes that the settings may mean: what is kept of those
        stays.
    :returns: what was dropped.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    finish_commit(folder)
    manifest = read_manifest(folder)
    update = StoreUpdate(folder, manifest.to_recipe(), keys)
    known = keys.filter(pa.array(update.has_vectors()))
    held = read_keys(Snapshot(folder, manifest, {}))
    dropped = len(held) - int(pc.sum(pc.is_in(held, value_set=known)).as_py() or 0)
    if dropped or len(known) > len(held):
        update = StoreUpdate(folder, manifest.to_recipe(), known)
        for start, stop in update.list_missing():
            update.write_shard(start, update.find_known(start, stop)[1])
        update.commit()
    freed = drop_kept(folder, 0, spared=spared)
    for place in list_staging(folder):
        clear_folder(place)
    return Pruned(dropped, freed)


def drop_earlier_stores(folder: Path) -> int:
    """Remove the stores of earlier settings that are kept beside a store.

    :param folder: the store.
    :returns: how many bytes were freed.
    """
    return drop_kept(folder, 0)


def drop_store(folder: Path) -> int:
    """Remove a store, what runs have left beside it, and the stores of earlier settings.

    Files that this program did not write stay, and so does the folder if there are any.

    :param folder: the store.
    :returns: how many bytes were freed.
    """
    places = [folder, *list_staging(folder)]
    before = _measure_files(places)
    freed = drop_earlier_stores(folder)
    for place in places:
        clear_folder(place)
    return freed + before - _measure_files(places)


def _measure_files(folders: Sequence[Path]) -> int:
    """The bytes of the files that stand in some folders, of which some need not be there."""
    files = [path for folder in folders if folder.is_dir() for path in folder.iterdir()]
    return sum(path.lstat().st_size for path in files if path.is_file())


@dataclass(frozen=True)
class _Export:
    """What to write where; see ``export_vectors``."""

    folder: Path
    manifest: Manifest
    keys: pa.Array
    layers: Sequence[int]
    target: Path
    extra: Mapping[str, pa.Array]

    def read(self, keys: pa.Array) -> npt.NDArray[Any]:
        """Vectors of some rows, none of another recipe, should the store be changed meanwhile."""
        manifest = self.manifest
        return read_vectors(
            self.folder, keys, self.layers, manifest.dtype, fingerprint=manifest.fingerprint
        )

    def read_chunks(self) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Vectors of some rows at a time, with the number of the first."""
        with show_progress("exporting", len(self.keys), "rows") as advance:
            for start in range(0, len(self.keys), _CHUNK_ROWS):
                part = self.keys.slice(start, _CHUNK_ROWS)
                yield start, self.read(part)
                advance(len(part))


def export_vectors(
    folder: Path,
    keys: pa.Array,
    layers: Sequence[int],
    target: Path,
    extra: Mapping[str, pa.Array],
) -> tuple[int, int, int]:
    """Write the vectors of all rows of a corpus to one file, in their order.

    :param folder: the store.
    :param keys: keys of N rows, duplicates allowed.
    :param layers: numbers of L layers.
    :param target: ``.npy``: [N, L * D]; ``.safetensors``: one tensor ``layer_NN``, [N, D], a layer,
        or one a pooling of it; ``.parquet``: as many list columns, beside the extra columns.
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
    vectors = export.read(export.keys)
    tensors = {
        column: np.ascontiguousarray(part)
        for column, part in split_columns(manifest, export.layers, vectors).items()
    }
    with write_aside(export.target) as file:
        file.write(save(tensors, {"fingerprint": manifest.fingerprint}))


def _export_parquet(export: _Export) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    manifest = export.manifest
    element = pa.field("element", pa.from_numpy_dtype(manifest.dtype), nullable=False)
    vector = pa.list_(element, manifest.width // len(manifest.poolings))
    names = [column for layer in export.layers for column in name_columns(manifest, layer)]
    schema = pa.schema(
        [pa.field(name, column.type) for name, column in export.extra.items()]
        + [pa.field(name, vector) for name in names]
    )
    with (
        write_aside(export.target) as file,
        pq.ParquetWriter(file, schema, compression="none") as writer,
    ):
        for start, vectors in export.read_chunks():
            columns = [column.slice(start, len(vectors)) for column in export.extra.values()]
            for part in split_columns(manifest, export.layers, vectors).values():
                flat = np.ascontiguousarray(part).reshape(-1)
                columns.append(pa.FixedSizeListArray.from_arrays(pa.array(flat), type=vector))
            writer.write_table(pa.table(columns, schema=schema))
