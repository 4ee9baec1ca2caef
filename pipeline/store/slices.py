"""Slices: shards that several machines embed side by side, for one store that takes them up later.

Slice I of N is a share of the shards that the store lacks. Each slice is a folder of its own below
``cache/slices``, to which one run at a time writes: shards under names that carry the hash of their
bytes, and a manifest that says what made them and whether they are all there. No run that embeds a
slice writes to the store, so any number of them may run at once, wherever the folder is shared.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.console import warn
from pipeline.errors import SettingsError, StoreError
from pipeline.files import describe_write_error, is_scratch
from pipeline.store.commit import Snapshot, read_snapshot
from pipeline.store.folders import (
    clear_folder,
    is_waiting,
    kept_folder,
    list_staging,
    name_staged,
)
from pipeline.store.known import KnownRows, find_store, find_waiting, split_store
from pipeline.store.manifest import (
    MANIFEST,
    Manifest,
    Recipe,
    format_manifest,
    has_size,
    parse_manifest,
)
from pipeline.store.places import find_place
from pipeline.store.update import Update, join_fidelity

if TYPE_CHECKING:
    import pyarrow as pa

_MOST_SLICES = 9_999
_RUN_SHARDS = 16  # the most neighbouring shards of one slice, whose texts are read together
_RUNS = 4  # of each slice at least, so that no slice has all the long texts of a sorted corpus
_ABOUT = "slice"  # the key, in a slice's manifest, of what a store's manifest does not say
_NAME = re.compile(r"slice-(\d{4})-of-(\d{4})")
_GIVEN = re.compile(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*")

T = TypeVar("T")


@dataclass(frozen=True, order=True)
class Slice:
    """One of N shares of the work.

    :param of: N.
    :param number: the number of this one, from 1 to N.
    """

    of: int
    number: int

    @classmethod
    def parse(cls, given: str) -> Slice:
        """The slice that ``I/N`` names.

        :param given: as a person wrote it.
        :raises SettingsError: if it is none.
        """
        match = _GIVEN.fullmatch(given)
        number, of = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= number <= of <= _MOST_SLICES:
            raise SettingsError(
                f"--slice {given}: must be I/N, the I-th of N slices: 1/8, 2/8, … 8/8",
                hint=f"slices are counted from 1, and there may be {_MOST_SLICES:,}",
                source="command line",
            )
        return cls(of, number)

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"slice-{self.number:04}-of-{self.of:04}"

    def choose(self, work: Sequence[T]) -> list[T]:
        """The share of this slice: every N-th run of some neighbours.

        :param work: all that is to be done, in its order.
        """
        run = max(1, min(_RUN_SHARDS, len(work) // (_RUNS * self.of)))
        return [
            item for index, item in enumerate(work) if index // run % self.of == self.number - 1
        ]


@dataclass(frozen=True)
class SliceState:
    """What a slice's folder says of itself.

    :param folder: the folder.
    :param part: the slice that it is of.
    :param manifest: the recipe, the shards and the fidelity; ``None`` if the manifest is lost.
    :param is_finished: whether a run has embedded all of it.
    :param is_measured: whether its fidelity was measured by the run that embedded it.
    :param run: details of that run, for the timing file.
    """

    folder: Path
    part: Slice
    manifest: Manifest | None = None
    is_finished: bool = False
    is_measured: bool = False
    run: Mapping[str, Any] | None = None

    def is_of(self, fingerprint: str) -> bool:
        """Whether its vectors are of a recipe, as far as it knows; its files tell themselves."""
        return self.manifest is None or self.manifest.fingerprint == fingerprint

    def holds_all(self) -> bool:
        """Whether it is finished and every shard is still there, in its size."""
        if not self.is_finished or self.manifest is None:
            return False
        size_of = find_place(self.folder).measure(self.folder)
        return all(size_of(name_staged(shard)) == shard.bytes for shard in self.manifest.shards)

    def to_snapshot(self) -> Snapshot | None:
        """Its shards as a store of their own, as far as they are there."""
        if self.manifest is None:
            return None
        paths = {shard.file: self.folder / name_staged(shard) for shard in self.manifest.shards}
        size_of = find_place(self.folder).measure(self.folder)
        there = (s for s in self.manifest.shards if size_of(name_staged(s)) == s.bytes)
        return Snapshot(self.folder, replace(self.manifest, shards=tuple(there)), paths)


def read_slice(folder: Path, part: Slice) -> SliceState:
    """Read what a slice says of itself; a manifest that is lost or damaged says nothing.

    :param folder: the folder of the slice.
    :param part: the slice.
    """
    try:
        raw = (folder / MANIFEST).read_bytes()
        manifest = parse_manifest(raw, _ABOUT)
        about = json.loads(raw)[_ABOUT]
        return SliceState(
            folder,
            part,
            manifest,
            is_finished=about["finished"] is True,
            is_measured=about["measured"] is True,
            run=dict(about["run"]),
        )
    except (OSError, StoreError, KeyError, TypeError, ValueError):
        return SliceState(folder, part)


def list_slices(root: Path) -> list[SliceState]:
    """What all slices say of themselves, in their order.

    :param root: the folder of the slices, which need not exist.
    """
    try:
        names = [_NAME.fullmatch(path.name) for path in root.iterdir() if path.is_dir()]
    except OSError:
        return []
    parts = sorted(Slice(int(name[2]), int(name[1])) for name in names if name is not None)
    return list(find_place(root).call_each(lambda part: read_slice(root / part.name, part), parts))


def describe_difference(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What is different between two recipes, in words.

    :param held: the contents of the recipe that vectors were made by.
    :param wanted: those of the recipe that is asked for.
    """
    differs = [key for key in {**wanted, **held} if held.get(key) != wanted.get(key)]
    words = [f"{key} {held.get(key)}, not {wanted.get(key)}" for key in differs if key != "files"]
    return ", ".join((["another backbone"] if "files" in differs else []) + words)


def check_alike(states: Sequence[SliceState], recipe: Recipe) -> None:
    """Make sure that slices have vectors of one recipe.

    :param states: the slices.
    :param recipe: the recipe.
    :raises StoreError: naming the first slice that has others.
    """
    for state in states:
        if state.manifest is not None and not state.is_of(recipe.fingerprint):
            difference = describe_difference(state.manifest.recipe, recipe.contents)
            raise StoreError(
                f"{state.folder}: holds vectors of other settings ({difference}); nothing was "
                "embedded or merged",
                hint="run all slices with the same settings, backbone and embed.precision; "
                "`pipeline cache prune` drops slices of other settings",
            )


@contextlib.contextmanager
def hold_slice(root: Path, part: Slice) -> Iterator[Path]:
    """Hold the lock of a slice: one run at a time may write to it.

    :param root: the folder of the slices.
    :param part: the slice.
    :yields: the folder of the slice, which need not exist.
    :raises LockedError: if another run holds the lock.
    """
    folder = root / part.name
    with find_place(root).hold_lock(root / f".{part.name}.lock", f"{folder}/"):
        yield folder


@contextlib.contextmanager
def hold_slices(root: Path) -> Iterator[list[SliceState]]:
    """Hold the locks of all slices that there are.

    :param root: the folder of the slices, which need not exist.
    :yields: what the slices say of themselves.
    :raises LockedError: if one is being embedded.
    """
    place = find_place(root)
    held: list[AbstractContextManager[Path]] = []

    def hold(state: SliceState) -> SliceState:
        lock = hold_slice(root, state.part)
        folder = lock.__enter__()
        held.append(lock)
        return read_slice(folder, state.part)

    try:
        yield list(place.call_each(hold, list_slices(root)))
    finally:
        for _ in place.call_each(lambda lock: lock.__exit__(None, None, None), held):
            pass


def verify_slices(states: Sequence[SliceState], fingerprint: str) -> list[Snapshot]:
    """The shards and parts of shards of slices that are whole to the last byte.

    Damaged files are removed, so that the slice knows what it lacks.

    :param states: the slices, whose locks are held.
    :param fingerprint: fingerprint of the vectors wanted.
    :returns: a store of one shard for each file; those of other recipes are left out.
    """
    found = find_waiting([state.folder for state in states])
    whole = {snapshot.folder / snapshot.manifest.shards[0].file for snapshot in found}
    for state in states:
        for path in sorted(state.folder.iterdir()) if state.folder.is_dir() else ():
            if is_waiting(path.name) and path not in whole:
                warn(f"{path}: damaged; the slice embeds it again")
                _remove(path)
    return [snapshot for snapshot in found if snapshot.manifest.fingerprint == fingerprint]


def gather_lengths(states: Sequence[SliceState]) -> dict[str, Mapping[str, int] | None]:
    """What slices have counted of the lengths of their shards.

    :param states: the slices.
    :returns: hash of the keys of a shard → what ``count_lengths`` says of it.
    """
    manifests = [state.manifest for state in states if state.manifest is not None]
    return {shard.keys: shard.lengths for manifest in manifests for shard in manifest.shards}


def sum_fidelity(
    measures: Sequence[tuple[Mapping[str, Any] | None, bool]],
) -> tuple[Mapping[str, Any] | None, bool]:
    """The fidelity of vectors that several runs have embedded.

    :param measures: the fidelity of each run, and whether that run has measured it.
    :returns: the fidelity, and whether any run has measured it.
    """
    measured = [fidelity for fidelity, is_measured in measures if is_measured]
    remembered = [fidelity for fidelity, _ in measures if fidelity is not None]
    if any(fidelity is not None for fidelity in measured):
        return functools.reduce(join_fidelity, measured), True
    return (remembered[0] if remembered else None), False


def drop_slices(root: Path, states: Sequence[SliceState]) -> int:
    """Remove slices whose locks are held.

    :param root: the folder of the slices.
    :param states: the slices to remove.
    :returns: how many bytes were freed.
    """
    freed = 0
    try:
        for state in states:
            if state.folder.is_dir():
                freed += sum(p.lstat().st_size for p in state.folder.iterdir() if p.is_file())
                clear_folder(state.folder)
            for ending in ("lock", "pid"):
                (root / f".{state.part.name}.{ending}").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # other slices are in it, or files of others
            root.rmdir()
    except OSError as error:
        raise describe_write_error(error, root) from error
    return freed


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise describe_write_error(error, path) from error


class SliceUpdate(Update):
    """One run's work on a slice. It reads the store and the other slices, and writes its own.

    :param root: the folder of the slices.
    :param store: the store that lacks the texts.
    :param part: the slice, whose lock is held.
    :param recipe: recipe of the vectors.
    :param keys: keys of all texts of the corpus, as ``Update`` has them.
    :param first_rows: the row of the corpus in which each text stands first: int64.
    :raises StoreError: if there are slices of another recipe.
    """

    def __init__(
        self,
        root: Path,
        store: Path,
        part: Slice,
        recipe: Recipe,
        keys: pa.Array,
        first_rows: npt.NDArray[np.int64],
    ) -> None:
        super().__init__(store, root / part.name, recipe, keys, first_rows)
        self.part = part
        states = list_slices(root)
        check_alike(states, recipe)
        planned = {shard.keys: number for number, shard in enumerate(self._planned)}
        held = _read_store(store, recipe.fingerprint)
        in_store = {(s.file, s.keys) for s in held.manifest.shards} if held is not None else set()
        missing = [n for n, s in enumerate(self._planned) if (s.file, s.keys) not in in_store]
        others = [state for state in states if state.part != part and state.holds_all()]
        elsewhere = {
            shard.keys for s in others if s.manifest is not None for shard in s.manifest.shards
        }
        mine = part.choose(missing)
        self._wanted = [number for number in mine if self._planned[number].keys not in elsewhere]
        self._before = read_slice(self.staged, part)
        self._leftovers: list[Snapshot] = []
        if self.is_finished:
            return
        self._leftovers = self._take_up()
        # Shards as planned are of no use to this slice: they are its own, or it need not make them.
        beside = [
            snapshot
            for source in [held, *(state.to_snapshot() for state in others)]
            if source is not None
            for snapshot in split_store(source)
            if snapshot.manifest.shards[0].keys not in planned
        ]
        kept = find_store(kept_folder(store) / recipe.fingerprint, recipe.fingerprint)
        beside += split_store(kept) if kept is not None else []
        beside += [
            snapshot
            for snapshot in find_waiting(list_staging(store))
            if snapshot.manifest.fingerprint == recipe.fingerprint
        ]
        self._known = KnownRows(self._index, None, [*self._leftovers, *beside], recipe)

    @property
    def is_finished(self) -> bool:
        """Whether an earlier run has embedded all of it, or the store lacks none of it."""
        if not self._before.holds_all():
            return not self._wanted
        held = self._before.manifest.shards if self._before.manifest is not None else ()
        return {self._planned[n].keys for n in self._wanted} <= {shard.keys for shard in held}

    def _take_up(self) -> list[Snapshot]:
        """What an earlier run of this slice has left; damaged files are removed."""
        if not self.staged.is_dir():
            return []
        for path in filter(is_scratch, list(self.staged.iterdir())):
            _remove(path)
        found = verify_slices([self._before], self.recipe.fingerprint)
        wanted = {self._planned[number].keys: self._planned[number] for number in self._wanted}
        lengths = gather_lengths([self._before])
        for snapshot in found:
            shard = snapshot.manifest.shards[0]
            plan = wanted.get(shard.keys)
            if plan is not None:
                counted = lengths.get(shard.keys)
                self._done[plan.file] = replace(shard, file=plan.file, lengths=counted)
                self._moves[plan.file] = snapshot.locate(shard)
        return found

    @property
    def resumed_rows(self) -> int:
        """How many of the texts an earlier run of this slice has left to take up."""
        return self._count_held(self._leftovers)

    def begin(self) -> None:
        """Say in the slice's folder what is being made there, before the first vector is."""
        self._claim.hold()
        self._write(is_finished=False, is_measured=False, run={})

    def finish(
        self, fidelity: Mapping[str, Any] | None, run: Mapping[str, Any], *, is_measured: bool
    ) -> Manifest:
        """Say that all of the slice is embedded.

        :param fidelity: fidelity of the vectors, as a store's manifest has it.
        :param run: details of the run, for the timing file.
        :param is_measured: whether the fidelity was measured by this run.
        :returns: what the slice holds.
        :raises LockedError: if another run has taken over.
        """
        self._claim.hold()
        try:
            for number in self._wanted:
                shard = self._done[self._planned[number].file]
                path = self._moves[shard.file]
                if path != self.staged / name_staged(shard):
                    path.replace(self.staged / name_staged(shard))
            # Their rows stand in the shards now.
            find_place(self.staged).remove(self.staged.glob("rows-*"))
        except OSError as error:
            raise describe_write_error(error, self.staged) from error
        return self._write(fidelity, is_finished=True, is_measured=is_measured, run=run)

    def _write(
        self,
        fidelity: Mapping[str, Any] | None = None,
        *,
        is_finished: bool,
        is_measured: bool,
        run: Mapping[str, Any],
    ) -> Manifest:
        shards = [
            self._done[file]
            for number in self._wanted
            if (file := self._planned[number].file) in self._done
        ]
        manifest = replace(self.recipe.describe(shards), fidelity=fidelity)
        about = {
            "number": self.part.number,
            "of": self.part.of,
            "finished": is_finished,
            "measured": is_measured,
            "run": dict(run),
        }
        content = format_manifest(manifest, **{_ABOUT: about})
        find_place(self.staged).write(self.staged / MANIFEST, content)
        return manifest


def _read_store(folder: Path, fingerprint: str) -> Snapshot | None:
    """What a store holds of a recipe, while another run may be changing it; nothing is written."""
    try:
        snapshot = read_snapshot(folder)
    except StoreError:
        return find_store(folder, fingerprint)
    if snapshot.manifest.fingerprint != fingerprint:
        return None
    size_of = find_place(folder).measure(folder)
    there = (
        s
        for s in snapshot.manifest.shards
        if (
            has_size(snapshot.staged[s.file], s.bytes)
            if s.file in snapshot.staged
            else size_of(s.file) == s.bytes
        )
    )
    return replace(snapshot, manifest=replace(snapshot.manifest, shards=tuple(there)))
