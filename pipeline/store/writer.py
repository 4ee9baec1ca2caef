"""Bringing a store to a new state: shards written aside, moved over when all are whole."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.arrays import wrap_numbers
from pipeline.console import count, warn
from pipeline.errors import LockedError, StoreError, WriteError
from pipeline.files import (
    SCRATCH_PREFIX,
    describe_write_error,
    hash_file,
    is_scratch,
    sync_folder,
    write_aside,
    write_bytes,
)
from pipeline.store import manifest as layout
from pipeline.store.commit import (
    Snapshot,
    finish_commit,
    hash_manifest,
    read_manifest,
    write_commit,
)
from pipeline.store.folders import (
    OWNER,
    is_waiting,
    kept_folder,
    list_kept,
    list_staging,
    name_staged,
    name_waiting,
    staging_folder,
)
from pipeline.store.manifest import (
    MANIFEST,
    Manifest,
    Recipe,
    Rows,
    Vectors,
    has_size,
    is_shard_file,
    plan_shards,
    read_manifest_file,
)
from pipeline.store.reader import read_keys, read_n_tokens, read_rows, read_whole_shard
from pipeline.store.shard import Skeleton, hash_pieces, make_skeleton

if TYPE_CHECKING:
    import pyarrow as pa

_NAMED = 5  # rows in a message
_DROP_KEPT = (
    "free some space on that disk, as `pipeline cache prune` does by dropping the vectors of "
    "earlier settings, and run the command again"
)


class StoreUpdate:
    """One run's change of a store, from what it holds to what it should hold.

    Shards that are right already stay untouched. The others are written one by one to a folder
    beside the store, and so is, from time to time, what is finished of a shard; ``commit`` moves
    the shards over. A run that is killed leaves that folder, and the next one takes from it all
    that was embedded, even if the corpus has changed in between. The names of the files there
    carry the hash of their contents, so a damaged one is never taken for a whole one. What is kept
    of an earlier store with the same recipe is taken up as well, and so are the whole shards of a
    store whose manifest is lost.

    :param folder: the store.
    :param recipe: recipe of the vectors that it should hold.
    :param keys: keys of the texts that it should hold: fixed-size binary of 16, distinct, in order
        of first appearance.
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
        self._replaces = hash_manifest(folder)
        self._claim = _Claim(self.staged / OWNER)
        self._planned = plan_shards(keys)
        self._old = find_store(folder, recipe.fingerprint)
        held = self._old.manifest.shards if self._old is not None else ()
        planned = {(shard.file, shard.keys) for shard in self._planned}
        self._done = {s.file: s for s in held if (s.file, s.keys) in planned}
        self._leftovers = take_up(folder, recipe.fingerprint)
        self._kept = find_store(kept_folder(folder) / recipe.fingerprint, recipe.fingerprint)
        beside = [*self._leftovers, *(split_store(self._kept) if self._kept is not None else [])]
        self._moves: dict[str, Path] = {}
        self._adopt(beside)
        self._skeleton: Skeleton | None = None
        beside += find_unlisted(folder, recipe.fingerprint)
        self._known = _KnownRows(keys, self._old, beside, recipe)

    @property
    def resumed_rows(self) -> int:
        """How many of the texts an interrupted run has left to take up."""
        return self._count_held(self._leftovers)

    @property
    def kept_rows(self) -> int:
        """How many of the texts stand in a store that was kept when the settings were changed."""
        return self._count_held([self._kept] if self._kept is not None else [])

    def _count_held(self, snapshots: Sequence[Snapshot]) -> int:
        import pyarrow as pa
        import pyarrow.compute as pc

        if not snapshots:
            return 0
        # A row may stand in a whole shard and in what was kept of it before.
        held = pa.concat_arrays([keys for s in snapshots if (keys := _try_keys(s)) is not None])
        return int(pc.sum(pc.is_in(self.keys, value_set=held)).as_py() or 0)

    def has_vectors(self) -> npt.NDArray[np.bool_]:
        """Which of the texts have vectors already, in the store or beside it: bool, [N]."""
        return self._known.has_rows()

    def _adopt(self, snapshots: Sequence[Snapshot]) -> None:
        """Take shards beside the store that hold just what a planned one should, as they are."""
        wanted = {s.keys: s for s in self._planned if s.file not in self._done}
        disk = _find_disk(self.folder)
        for snapshot in snapshots:
            for shard in snapshot.manifest.shards:
                plan = wanted.get(shard.keys)
                if plan is not None and _find_disk(snapshot.folder) == disk:
                    self._done[plan.file] = replace(shard, file=plan.file)
                    self._moves[plan.file] = snapshot.locate(shard)

    def list_missing(self) -> list[tuple[int, int]]:
        """The shards still to be written, each as the range of its rows among the keys."""
        return [
            (number * layout.SHARD_ROWS, number * layout.SHARD_ROWS + shard.rows)
            for number, shard in enumerate(self._planned)
            if shard.file not in self._done
        ]

    def find_known(self, start: int, stop: int) -> tuple[npt.NDArray[np.bool_], Rows]:
        """Which texts of a range have vectors already, and these.

        :param start: start of the range among the keys.
        :param stop: its end.
        :returns: bool, [stop - start], and the rows of those that are known, in order.
        """
        return self._known.find(start, stop)

    def save_progress(self, places: npt.NDArray[np.int64], rows: Rows) -> None:
        """Keep what is finished of a shard, for a run that takes over after a kill.

        :param places: int64, [B]: indices of the rows among the keys.
        :param rows: the finished rows.
        :raises StoreError: as ``write_shard``.
        """
        self._stage(f"rows-{places[0]:09}", places, rows)

    def list_uncounted(self) -> list[tuple[int, npt.NDArray[np.int32]]]:
        """The shards of which no run has counted how many texts were cut.

        :returns: the start of each one's range among the keys, and the tokens of its texts, [B].
        """
        uncounted = []
        for number, plan in enumerate(self._planned):
            shard = self._done.get(plan.file)
            if shard is not None and shard.lengths is None:
                path = self._moves.get(plan.file, self.folder / plan.file)
                alone = self.recipe.describe([replace(shard, file=path.name)])
                n_tokens = read_n_tokens(Snapshot(path.parent, alone, {}))
                uncounted.append((number * layout.SHARD_ROWS, n_tokens))
        return uncounted

    def note_lengths(self, start: int, lengths: Mapping[str, int]) -> None:
        """Say how many texts of a finished shard were cut.

        :param start: start of its range of keys.
        :param lengths: what ``count_lengths`` says of them.
        """
        file = self._planned[start // layout.SHARD_ROWS].file
        self._done[file] = replace(self._done[file], lengths=lengths)

    def write_shard(self, start: int, rows: Rows, lengths: Mapping[str, int] | None = None) -> None:
        """Write one shard whole.

        :param start: start of its range of keys, as ``list_missing`` gave it.
        :param rows: contents of the shard.
        :param lengths: how many of its texts were cut, as ``count_lengths`` says it.
        :raises StoreError: if a vector is zero or not finite, naming the first such text.
        """
        shard = self._planned[start // layout.SHARD_ROWS]
        stem = shard.file.removesuffix(".parquet")
        path, about = self._stage(stem, np.arange(start, start + shard.rows), rows)
        self._moves[shard.file] = path
        self._done[shard.file] = replace(shard, **about, lengths=lengths)

    def _stage(
        self, stem: str, places: npt.NDArray[np.int64], rows: Rows
    ) -> tuple[Path, dict[str, Any]]:
        """Write rows to a file whose name carries its hash.

        :returns: its path, and what a ``Shard`` says of its bytes.
        """
        check_vectors(rows.vectors, self._first_rows[places])
        self._claim.hold()
        if self._skeleton is None or self._skeleton.rows != len(places):
            self._skeleton = make_skeleton(self.recipe, len(places))
        pieces, checks = self._skeleton.fill(self.keys.take(wrap_numbers(places)), rows)
        # A kill before it has its name leaves a file that says of itself that it is of no use.
        unnamed = self.staged / f"{SCRATCH_PREFIX}{stem}.parquet"
        try:
            with ThreadPoolExecutor(1) as beside:
                hashed = beside.submit(hash_pieces, pieces)
                with write_aside(unnamed) as file:
                    file.writelines(pieces)
                sha256 = hashed.result()
            path = self.staged / name_waiting(stem, sha256)
            unnamed.replace(path)
            sync_folder(self.staged)
        except (OSError, WriteError) as error:
            with contextlib.suppress(OSError):
                unnamed.unlink(missing_ok=True)
            self._claim.hold()  # a run that took over may have removed what was half-written
            cause = error if isinstance(error, OSError) else error.__cause__
            failure = (
                error if isinstance(error, WriteError) else describe_write_error(error, self.staged)
            )
            is_full = isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EDQUOT}
            if is_full and list_kept(self.folder):
                failure.hint = _DROP_KEPT
            raise failure from cause
        size = sum(len(piece) for piece in pieces)
        return path, {"bytes": size, "sha256": sha256, "checks": checks}

    def commit(
        self, fidelity: Mapping[str, Any] | None = None, *, is_measured: bool = True
    ) -> Manifest:
        """Move the finished shards over the old ones and write the manifest.

        :param fidelity: fidelity of the vectors that this run added, as the manifest has it.
        :param is_measured: whether it was measured by this run; if not, it says nothing new of a
            store that knows its fidelity.
        :returns: what the store holds now.
        :raises StoreError: if the store is no longer the one that this run started from.
        :raises LockedError: if another run has taken over.
        """
        self._claim.hold()
        if hash_manifest(self.folder) != self._replaces:
            raise StoreError(
                f"{self.folder}: changed by something else while this run was at work; nothing of "
                "it was written over",
                hint="run `pipeline embed` again, which takes up what this run has embedded",
            )
        shards = [self._done[shard.file] for shard in self._planned]
        try:
            for shard in shards:
                path = self._moves.get(shard.file)
                if path is not None and path != self.staged / name_staged(shard):
                    path.replace(self.staged / name_staged(shard))
            sync_folder(self.staged)
        except OSError as error:
            raise describe_write_error(error, self.staged) from error
        for known in (self._old, self._kept):
            if known is not None:
                before = known.manifest.fidelity
                is_new = is_measured or before is None
                fidelity = _join_fidelity(before, fidelity if is_new else None)
        decision = replace(self.recipe.describe(shards), fidelity=fidelity)
        write_commit(self.folder, decision, self._replaces)
        finish_commit(self.folder)
        return read_manifest(self.folder)


class _Claim:
    """Tells a run whether it is still the only one that writes to a staging folder.

    The lock of ``cache/`` sees to that, but a lock file can be deleted. Each run writes its own
    mark before its first file, and looks for it before every further one.

    :param path: the file with the mark.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mark = secrets.token_hex(16).encode()
        self._is_made = False
        self._one_at_a_time = threading.Lock()

    def hold(self) -> None:
        """Make the mark, or make sure that it is still there.

        :raises LockedError: if it is not.
        """
        with self._one_at_a_time:
            if not self._is_made:
                write_bytes(self._path, self._mark)
                self._is_made = True
                return
            try:
                is_ours = self._path.read_bytes() == self._mark
            except OSError:
                is_ours = False
        if not is_ours:
            raise LockedError(
                f"{self._path.parent}: another run has taken over, or the folder was removed; this "
                "run has stopped and changed nothing in the store",
                hint="let the other run end, then run the command again",
            )


def find_store(folder: Path, fingerprint: str) -> Snapshot | None:
    """What a folder holds, if its vectors are of a certain recipe.

    A manifest that is lost or damaged is made up for by reading every shard.
    """
    try:
        manifest = read_manifest_file(folder / MANIFEST)
    except StoreError:
        manifest = None
    if manifest is None:
        manifest = join_shards(find_whole_shards(folder), fingerprint)
    if manifest is None or manifest.fingerprint != fingerprint:
        return None
    there = (s for s in manifest.shards if has_size(folder / s.file, s.bytes))
    return Snapshot(folder, replace(manifest, shards=tuple(there)), {})


def split_store(snapshot: Snapshot) -> list[Snapshot]:
    """Each shard of a store as a store of its own, so that a damage costs no other shard."""
    manifest = snapshot.manifest
    return [
        replace(snapshot, manifest=replace(manifest, shards=(shard,))) for shard in manifest.shards
    ]


def find_whole_shards(folder: Path, leave_out: frozenset[str] = frozenset()) -> list[Snapshot]:
    """The shards in a folder that are whole, whatever their recipe, each as a store of its own.

    :param folder: the folder.
    :param leave_out: names of files that are not looked at.
    :returns: one store a shard, in the order of their names.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    found = (
        read_whole_shard(folder / name) for name in sorted(names - leave_out) if is_shard_file(name)
    )
    return [snapshot for snapshot in found if snapshot is not None]


def join_shards(whole: Sequence[Snapshot], fingerprint: str) -> Manifest | None:
    """One manifest of all shards of a recipe; ``None`` if there is none of it."""
    of_recipe = [s.manifest for s in whole if s.manifest.fingerprint == fingerprint]
    if not of_recipe:
        return None
    return replace(of_recipe[0], shards=tuple(m.shards[0] for m in of_recipe))


def find_unlisted(folder: Path, fingerprint: str) -> list[Snapshot]:
    """Whole shards of a recipe in a store whose manifest does not name them.

    A commit has moved them there before an earlier manifest was put back.
    """
    try:
        manifest = read_manifest_file(folder / MANIFEST)
    except StoreError:
        return []  # then all shards of that recipe count, see ``find_store``
    if manifest is None:
        return []
    listed = frozenset(s.file for s in manifest.shards if has_size(folder / s.file, s.bytes))
    whole = find_whole_shards(folder, listed)
    return [s for s in whole if s.manifest.fingerprint == fingerprint]


def take_up(folder: Path, fingerprint: str) -> list[Snapshot]:
    """Whole files that interrupted runs with a certain recipe have left beside a store.

    Those of another recipe are kept with the stores of earlier settings; damaged ones are removed.
    """
    kept = kept_folder(folder)
    places = list_staging(folder)
    found = []
    for place in [*places, kept / fingerprint]:
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            if is_scratch(path):
                path.unlink(missing_ok=True)
            elif is_waiting(path.name) or (is_shard_file(path.name) and place in places):
                snapshot = _read_waiting(path)
                if snapshot is None:
                    path.unlink(missing_ok=True)
                elif snapshot.manifest.fingerprint == fingerprint:
                    found.append(snapshot)
                elif place == places[0]:
                    _keep(snapshot, kept / snapshot.manifest.fingerprint)
    return found


def _read_waiting(path: Path) -> Snapshot | None:
    """A file that waits for a commit, if it is whole."""
    if not is_waiting(path.name):
        return read_whole_shard(path)
    if path.stem.rpartition("-")[2] != hash_file(path)[:32]:
        return None
    return read_whole_shard(path, is_hashed=True)


def _keep(snapshot: Snapshot, target: Path) -> None:
    shard = snapshot.manifest.shards[0]
    name = shard.file if is_waiting(shard.file) else name_staged(shard)
    try:
        target.mkdir(parents=True, exist_ok=True)
        (snapshot.folder / shard.file).replace(target / name)
    except OSError as error:
        raise describe_write_error(error, target) from error


def _find_disk(folder: Path) -> int | None:
    """The device of a folder, or of that in which it will be made."""
    real = Path(os.path.realpath(folder))
    for candidate in (real, real.parent):
        try:
            return candidate.stat().st_dev
        except OSError:
            continue
    return None


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


class _KnownRows:
    """Rows that need not be embedded: of the store as it is, and of what lies beside it.

    :param keys: of the texts that the store should hold.
    :param store: the store as it is; a damage there is an error, since there is a command for it.
    :param beside: shards of interrupted runs and earlier stores; a damaged one is passed over.
    :param recipe: what makes the vectors.
    """

    def __init__(
        self, keys: pa.Array, store: Snapshot | None, beside: Sequence[Snapshot], recipe: Recipe
    ) -> None:
        self._keys = keys
        self._store = store
        self._beside = beside
        self._recipe = recipe
        self._sources: list[Snapshot] = []
        self._starts = np.zeros(1, np.int64)  # of the rows of each source among those of all
        self._rows: npt.NDArray[np.int64] | None = None  # of each key among those; -1 for none

    def find(self, start: int, stop: int) -> tuple[npt.NDArray[np.bool_], Rows]:
        """Which texts of a range of keys are known, and their rows."""
        everywhere = self._locate()
        rows = everywhere[start:stop]
        known = rows >= 0
        source_of = np.searchsorted(self._starts, rows, side="right") - 1
        n_tokens = np.empty(len(rows), np.int32)
        shape = (len(rows), len(self._recipe.layers), self._recipe.width)
        vectors = np.empty(shape, self._recipe.dtype)
        for number in np.unique(source_of[known]).tolist():
            source = self._sources[number]
            found = np.flatnonzero(known & (source_of == number))
            try:
                held = read_rows(source, rows[found] - self._starts[number])
            except StoreError as error:
                if source is self._store:
                    raise
                warn(f"{error.message}; the texts of that file are embedded again")
                known[found] = False
                first = self._starts[number]
                lost = (everywhere >= first) & (everywhere < first + source.manifest.rows)
                everywhere[lost] = -1
                continue
            n_tokens[found], vectors[found] = held.n_tokens, held.vectors
        return known, Rows(n_tokens[known], vectors[known])

    def has_rows(self) -> npt.NDArray[np.bool_]:
        """Which of the keys are known: bool, [N]."""
        return self._locate() >= 0

    def _locate(self) -> npt.NDArray[np.int64]:
        """The row of each key among those of all sources: all are looked up at once, once."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if self._rows is not None:
            return self._rows
        held = []
        for source in self._beside:
            keys = _try_keys(source)
            if keys is not None:
                self._sources.append(source)
                held.append(keys)
        if self._store is not None:
            self._sources.append(self._store)
            held.append(read_keys(self._store))
        self._rows = np.full(len(self._keys), -1, np.int64)
        if held:
            self._starts = np.cumsum([0, *map(len, held[:-1])])
            found = pc.index_in(self._keys, value_set=pa.concat_arrays(held))
            self._rows = found.fill_null(-1).to_numpy().astype(np.int64)
        return self._rows


def _try_keys(snapshot: Snapshot) -> pa.Array | None:
    try:
        return read_keys(snapshot)
    except StoreError:
        return None


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
