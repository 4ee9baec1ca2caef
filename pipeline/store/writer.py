"""Bringing a store to a new state: shards written aside, moved over when all are whole."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.console import count
from pipeline.errors import StoreError
from pipeline.files import describe_write_error, hash_file, sync_folder, write_aside
from pipeline.store import manifest as layout
from pipeline.store.manifest import (
    MANIFEST,
    Manifest,
    Recipe,
    Rows,
    Vectors,
    has_size,
    name_layer,
    plan_shards,
    read_manifest,
    read_manifest_file,
    write_manifest,
)
from pipeline.store.reader import read_keys, read_rows
from pipeline.store.shard import Skeleton, hash_pieces, make_skeleton

if TYPE_CHECKING:
    import pyarrow as pa

_DECISION = "commit.json"
_NAMED = 5  # rows in a message


class StoreUpdate:
    """One run's change of a store, from what it holds to what it should hold.

    Shards that are right already stay untouched. The others are written one by one to a folder
    beside the store, and so is, from time to time, what is finished of a shard; ``commit`` moves
    the shards over. A run that is killed leaves that folder, and the next one takes from it all
    that was embedded, even if the corpus has changed in between. The names of the files there
    carry the hash of their contents, so a damaged one is never taken for a whole one.

    :param folder: the store.
    :param recipe: of the vectors that it should hold.
    :param keys: of the texts that it should hold: fixed-size binary of 16, distinct, in order of
        first appearance.
    :param first_rows: int64: the row of the corpus in which each text stands first, for messages;
        that of its key if left out.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        keys: pa.Array,
        first_rows: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self.folder = folder
        self.recipe = recipe
        self.staged = staging_folder(folder)
        self.keys = keys
        self._first_rows = np.arange(len(keys)) if first_rows is None else first_rows
        finish_commit(folder)
        self._planned = plan_shards(keys)
        self._old = self._find_old()
        self._done = {
            shard.file: shard
            for shard in (self._old.shards if self._old else ())
            if (shard.file, shard.keys) in {(p.file, p.keys) for p in self._planned}
        }
        self._leftovers = self._take_up()
        self._moves: dict[str, Path] = {}
        self._skeleton: Skeleton | None = None
        self._known = _KnownRows(self.folder, self._old, self._leftovers, recipe)

    @property
    def resumed_rows(self) -> int:
        """How many of the texts an interrupted run has left to take up."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if not self._leftovers:
            return 0
        # A row may stand in a whole shard and in what was kept of it before.
        left = pa.concat_arrays([t["key"].combine_chunks() for t in self._leftovers.values()])
        return int(pc.sum(pc.is_in(self.keys, value_set=left)).as_py() or 0)

    def _find_old(self) -> Manifest | None:
        """What the store holds, if its vectors are of the same recipe."""
        try:
            manifest = read_manifest_file(self.folder / MANIFEST)
        except StoreError:
            return None  # damaged: everything is embedded again, and then it is replaced
        if manifest is None or manifest.fingerprint != self.recipe.fingerprint:
            return None
        there = (s for s in manifest.shards if has_size(self.folder / s.file, s.bytes))
        return replace(manifest, shards=tuple(there))

    def _take_up(self) -> dict[Path, Any]:
        """Whole files of an interrupted run with the same recipe; the others are removed."""
        import pyarrow.parquet as pq

        usable = {}
        if not self.staged.exists():
            return {}
        for path in sorted(self.staged.iterdir()):
            if path.stem.rpartition("-")[2] == hash_file(path)[:32]:
                table = pq.ParquetFile(path, memory_map=True)
                about = table.schema_arrow.metadata or {}
                if about.get(b"fingerprint", b"").decode() == self.recipe.fingerprint:
                    usable[path] = table.read(["key"])
                    continue
            path.unlink()
        return usable

    def list_missing(self) -> list[tuple[int, int]]:
        """The shards still to be written, each as the range of its rows among the keys."""
        return [
            (number * layout.SHARD_ROWS, number * layout.SHARD_ROWS + shard.rows)
            for number, shard in enumerate(self._planned)
            if shard.file not in self._done
        ]

    def find_known(self, start: int, stop: int) -> tuple[npt.NDArray[np.bool_], Rows]:
        """Which texts of a range have vectors already, and these.

        :returns: bool, [stop - start], and the rows of those that are known, in order.
        """
        return self._known.find(self.keys.slice(start, stop - start))

    def save_progress(self, places: npt.NDArray[np.int64], rows: Rows) -> None:
        """Keep what is finished of a shard, for a run that takes over after a kill.

        :param places: int64, [B]: where the rows stand among the keys.
        :raises StoreError: as ``write_shard``.
        """
        self._stage(f"rows-{places[0]:09}", places, rows)

    def write_shard(self, start: int, rows: Rows) -> None:
        """Write one shard whole.

        :param start: where its range of keys starts, as ``list_missing`` gave it.
        :raises StoreError: if a vector is zero or not finite, naming the first such text.
        """
        shard = self._planned[start // layout.SHARD_ROWS]
        stem = shard.file.removesuffix(".parquet")
        path, about = self._stage(stem, np.arange(start, start + shard.rows), rows)
        self._moves[shard.file] = path
        self._done[shard.file] = replace(shard, **about)

    def _stage(
        self, stem: str, places: npt.NDArray[np.int64], rows: Rows
    ) -> tuple[Path, dict[str, Any]]:
        """Write rows to a file whose name carries its hash.

        :returns: its path, and what a ``Shard`` says of its bytes.
        """
        import pyarrow as pa

        check_vectors(rows.vectors, self._first_rows[places])
        if self._skeleton is None or self._skeleton.rows != len(places):
            self._skeleton = make_skeleton(self.recipe, len(places))
        pieces, checks = self._skeleton.fill(self.keys.take(pa.array(places)), rows)
        unnamed = self.staged / f"{stem}.parquet"
        with ThreadPoolExecutor(1) as beside:
            hashed = beside.submit(hash_pieces, pieces)
            with write_aside(unnamed) as file:
                file.writelines(pieces)
            sha256 = hashed.result()
        path = unnamed.with_name(f"{stem}-{sha256[:32]}.parquet")
        try:
            unnamed.replace(path)
            sync_folder(self.staged)
        except OSError as error:
            raise describe_write_error(error, path) from error
        size = sum(len(piece) for piece in pieces)
        return path, {"bytes": size, "sha256": sha256, "checks": checks}

    def commit(self, fidelity: Mapping[str, Any] | None = None) -> Manifest:
        """Move the finished shards over the old ones and write the manifest.

        :param fidelity: of the vectors that this run added, as the manifest has it.
        """
        shards = [self._done[shard.file] for shard in self._planned]
        try:
            self.staged.mkdir(parents=True, exist_ok=True)
            for name, path in self._moves.items():
                path.replace(self.staged / name)
            sync_folder(self.staged)
        except OSError as error:
            raise describe_write_error(error, self.staged) from error
        before = self._old.fidelity if self._old is not None else None
        decision = replace(self.recipe.describe(shards), fidelity=_join_fidelity(before, fidelity))
        write_manifest(self.staged / _DECISION, decision)
        finish_commit(self.folder)
        return read_manifest(self.folder)


def _join_fidelity(
    before: Mapping[str, Any] | None, now: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    if before is None or now is None:
        return before or now
    return {
        "texts": before["texts"] + now["texts"],
        "lowest_cosine": min(before["lowest_cosine"], now["lowest_cosine"]),
        "largest_error": max(before["largest_error"], now["largest_error"]),
    }


def staging_folder(folder: Path) -> Path:
    """Where the next state of a store is built: beside it, on the same disk."""
    return folder.with_name(folder.name + ".next")


def finish_commit(folder: Path) -> None:
    """Carry out a commit that was decided on; doing so again after a kill does no harm.

    ``commit.json`` is the decision: once it is on the disk, every shard it names is whole, either
    still in the staging folder or already in the store.
    """
    staged = staging_folder(folder)
    try:
        manifest = read_manifest_file(staged / _DECISION)
    except StoreError:
        return  # damaged, so it decides nothing; what it named is found by its hashes or made anew
    if manifest is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        named = {shard.file for shard in manifest.shards}
        for name in sorted(named):
            if (staged / name).is_file():
                (staged / name).replace(folder / name)
        for file in folder.glob("part-*.parquet"):
            if file.name not in named:
                file.unlink()
        sync_folder(folder)
        write_manifest(folder / MANIFEST, manifest)
        shutil.rmtree(staged)
    except OSError as error:
        raise describe_write_error(error, folder) from error


class _KnownRows:
    """Rows that need not be embedded: of the old store, and of an interrupted run."""

    def __init__(
        self, folder: Path, old: Manifest | None, leftovers: Mapping[Path, Any], recipe: Recipe
    ) -> None:
        self._folder = folder
        self._old = old
        self._leftovers = leftovers
        self._recipe = recipe
        self._index: list[tuple[Path | None, pa.Array]] | None = None

    def find(self, keys: pa.Array) -> tuple[npt.NDArray[np.bool_], Rows]:
        import pyarrow as pa
        import pyarrow.compute as pc

        known = np.zeros(len(keys), bool)
        n_tokens = np.empty(len(keys), np.int32)
        shape = (len(keys), len(self._recipe.layers), self._recipe.width)
        vectors = np.empty(shape, self._recipe.dtype)
        for path, have in self._sources():
            place = pc.index_in(keys, value_set=have)
            found = np.flatnonzero(place.is_valid().to_numpy(zero_copy_only=False) & ~known)
            if not len(found):
                continue
            wanted = place.take(pa.array(found)).to_numpy()
            rows = self._read(path, keys.take(pa.array(found)), wanted)
            known[found] = True
            n_tokens[found], vectors[found] = rows.n_tokens, rows.vectors
        return known, Rows(n_tokens[known], vectors[known])

    def _sources(self) -> list[tuple[Path | None, pa.Array]]:
        if self._index is None:
            self._index = [(p, t["key"].combine_chunks()) for p, t in self._leftovers.items()]
            if self._old is not None and self._old.shards:
                self._index.append((None, read_keys(self._folder, self._old)))
        return self._index

    def _read(self, path: Path | None, keys: pa.Array, places: npt.NDArray[np.int64]) -> Rows:
        if path is None:
            assert self._old is not None
            return read_rows(self._folder, self._old, keys)
        import pyarrow.parquet as pq

        table = pq.read_table(path, memory_map=True)
        vectors = [
            table[name_layer(layer)].combine_chunks().flatten().to_numpy()
            for layer in self._recipe.layers
        ]
        stacked = np.stack(
            [flat.reshape(-1, self._recipe.width)[places] for flat in vectors], axis=1
        )
        return Rows(table["n_tokens"].to_numpy()[places], stacked)


def check_vectors(vectors: Vectors, rows: npt.NDArray[np.int64]) -> None:
    """A vector that is zero or not finite is a fault of the backbone, never data.

    :param vectors: [B, L, D].
    :param rows: int64, [B]: the rows of the corpus with these texts.
    :raises StoreError: naming the first few such rows.
    """
    # On the bits, as NumPy has no fast path for float16: without the sign they order like the
    # numbers, and all from infinity on are not finite.
    infinity, sign = (0x7C00, 0x8000) if vectors.dtype == np.float16 else (0x7F800000, 0x80000000)
    bits = vectors.view(f"u{vectors.itemsize}")
    largest = np.bitwise_and(bits, sign - 1).max(axis=-1)
    bad = rows[((largest >= infinity) | (largest == 0)).any(axis=1)]
    if len(bad):
        named = ", ".join(f"{row:,}" for row in bad[:_NAMED].tolist())
        more = f" and {len(bad) - _NAMED:,} more" if len(bad) > _NAMED else ""
        raise StoreError(
            f"the vectors of {count(len(bad), 'text')} are zero or not finite: rows {named}{more} "
            "of cache/texts.parquet (the first is 0); nothing was written for them",
            hint="try embed.precision float32 and embed.dtype float32",
        )
