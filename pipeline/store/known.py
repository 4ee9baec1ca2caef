"""Vectors that need not be computed: of the store as it is, and of what stands beside it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.console import warn
from pipeline.corpus.keys import KeyIndex
from pipeline.errors import StoreError
from pipeline.files import describe_write_error, hash_file, is_scratch
from pipeline.store.commit import Snapshot
from pipeline.store.folders import is_waiting, kept_folder, list_staging, name_staged
from pipeline.store.manifest import (
    MANIFEST,
    Manifest,
    Recipe,
    Rows,
    is_shard_file,
    read_manifest_file,
)
from pipeline.store.places import find_place
from pipeline.store.reader import iterate_keys, read_rows, read_whole_shard


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
    size_of = find_place(folder).measure(folder)
    there = (s for s in manifest.shards if size_of(s.file) == s.bytes)
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
    size_of = find_place(folder).measure(folder)
    listed = frozenset(s.file for s in manifest.shards if size_of(s.file) == s.bytes)
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


def find_waiting(places: Sequence[Path]) -> list[Snapshot]:
    """Whole files that wait in some folders, each as a store of its own; nothing is changed.

    :param places: the folders, which need not exist.
    """
    waiting = [
        path
        for place in places
        if place.is_dir()
        for path in sorted(place.iterdir())
        if is_waiting(path.name)
    ]
    # Hashing takes most of the time, and threads do it at once.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(_read_present, waiting))
    return [snapshot for snapshot in found if snapshot is not None]


def _read_present(path: Path) -> Snapshot | None:
    """A file that waits, if it is whole and no other run has moved it meanwhile."""
    try:
        return _read_waiting(path)
    except OSError:
        return None


def _read_waiting(path: Path) -> Snapshot | None:
    """A file that waits for a commit, if it is whole."""
    if not is_waiting(path.name):
        return read_whole_shard(path)
    sha256 = hash_file(path)
    if path.stem.rpartition("-")[2] != sha256[:32]:
        return None
    return read_whole_shard(path, sha256=sha256)


def _keep(snapshot: Snapshot, target: Path) -> None:
    shard = snapshot.manifest.shards[0]
    name = shard.file if is_waiting(shard.file) else name_staged(shard)
    try:
        target.mkdir(parents=True, exist_ok=True)
        (snapshot.folder / shard.file).replace(target / name)
    except OSError as error:
        raise describe_write_error(error, target) from error


class KnownRows:
    """Rows that need not be embedded: of the store as it is, and of what lies beside it.

    :param index: the keys of the texts that the store should hold.
    :param store: the store as it is; a damage there is an error, since there is a command for it.
    :param beside: shards of interrupted runs, slices and earlier stores; a damaged one is passed
        over.
    :param recipe: what makes the vectors.
    """

    def __init__(
        self,
        index: KeyIndex,
        store: Snapshot | None,
        beside: Sequence[Snapshot],
        recipe: Recipe,
    ) -> None:
        self._index = index
        self._store = store
        self._beside = beside
        self._recipe = recipe
        self._sources: list[Snapshot] = []
        self._starts = np.zeros(1, np.int64)  # of the rows of each source among those of all
        self._rows: npt.NDArray[np.integer] | None = None  # of each key among those; -1 for none

    def find(self, start: int, stop: int) -> tuple[npt.NDArray[np.bool_], Rows]:
        """Which texts of a range of keys are known, and their rows.

        :param start: start of the range.
        :param stop: its end.
        :returns: bool, [stop - start], and the rows of those that are known, in order.
        :raises StoreError: if the store is damaged.
        """
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

    def _locate(self) -> npt.NDArray[np.integer]:
        """The row of each key among those of all sources: all are looked up at once, once."""
        if self._rows is not None:
            return self._rows
        sources = [*self._beside, *([self._store] if self._store is not None else [])]
        total = sum(source.manifest.rows for source in sources)
        kind = np.int32 if total < 2**31 else np.int64
        rows: npt.NDArray[np.integer] = np.broadcast_to(kind(-1), len(self._index))
        starts: list[int] = []
        found: list[Snapshot] = []
        end = 0
        for source in sources:
            parts = iterate_keys(source) if source is self._store else try_keys(source)
            if parts is None:
                continue
            if not found:  # a first run, which finds nothing, does without these bytes
                rows = rows.copy()
            starts.append(end)
            found.append(source)
            for numbers in find_numbers(self._index, parts):
                # Of several rows with one key, the first counts.
                fresh = np.flatnonzero(numbers >= 0)
                fresh = fresh[rows[numbers[fresh]] < 0][::-1]
                rows[numbers[fresh]] = end + fresh
                end += len(numbers)
        if found:
            self._starts = np.array(starts)
        self._sources, self._rows = found, rows
        return rows


def find_numbers(
    index: KeyIndex, parts: Iterable[npt.NDArray[np.uint8]]
) -> Iterator[npt.NDArray[np.int64]]:
    """The number of each key of a store among those of an index; -1 for one that is not there.

    :param index: the index.
    :param parts: the keys, some at a time: uint8, [B, 16], B at least 1.
    :yields: int64, [B], of each part.
    """
    guess = 0  # most stores hold the first texts of a corpus, in its order
    for part in parts:
        numbers = index.find(part, guess)
        guess = int(numbers[-1]) + 1
        yield numbers


def try_keys(snapshot: Snapshot) -> list[npt.NDArray[np.uint8]] | None:
    """The keys of a store, in parts: uint8, [B, 16]; ``None`` if it is damaged.

    :param snapshot: the store.
    """
    try:
        return list(iterate_keys(snapshot))
    except StoreError:
        return None
