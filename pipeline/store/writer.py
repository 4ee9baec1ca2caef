"""Bringing a store to a new state: shards written aside, moved over when all are whole."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import StoreError
from pipeline.files import describe_write_error
from pipeline.store import manifest as layout
from pipeline.store.commit import (
    Snapshot,
    finish_commit,
    hash_manifest,
    read_manifest,
    write_commit,
)
from pipeline.store.folders import kept_folder, name_staged, staging_folder
from pipeline.store.known import (
    KnownRows,
    find_store,
    find_unlisted,
    split_store,
    take_up,
)
from pipeline.store.manifest import Manifest, Recipe, format_manifest
from pipeline.store.places import describe_change, find_place
from pipeline.store.update import Update, join_fidelity

if TYPE_CHECKING:
    import pyarrow as pa


class StoreUpdate(Update):
    """One run's change of a store, from what it holds to what it should hold.

    Shards that are right already stay untouched. The others are written one by one to a folder
    beside the store, and so is, from time to time, what is finished of a shard; ``commit`` moves
    the shards over. A run that is killed leaves that folder, and the next one takes from it all
    that was embedded. What is kept of an earlier store with the same recipe is taken up as well,
    and so are the whole shards of a store whose manifest is lost.

    :param folder: the store.
    :param recipe: recipe of the vectors that it should hold.
    :param keys: keys of the texts that it should hold: fixed-size binary of 16, distinct, in order
        of first appearance.
    :param first_rows: int64: the row of the corpus in which each text stands first, for messages;
        that of its key if left out.
    :param slices: shards and parts of shards that slices have embedded, which are taken up as well.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        keys: pa.Array,
        first_rows: npt.NDArray[np.int64] | None = None,
        slices: Sequence[Snapshot] = (),
    ) -> None:
        super().__init__(folder, staging_folder(folder), recipe, keys, first_rows)
        finish_commit(folder)
        self._replaces = hash_manifest(folder)
        self._old = find_store(folder, recipe.fingerprint)
        held = self._old.manifest.shards if self._old is not None else ()
        planned = {(shard.file, shard.keys) for shard in self._planned}
        self._done = {s.file: s for s in held if (s.file, s.keys) in planned}
        self._leftovers = take_up(folder, recipe.fingerprint)
        self._slices = slices
        self._kept = find_store(kept_folder(folder) / recipe.fingerprint, recipe.fingerprint)
        beside = [*slices, *self._leftovers]
        beside += split_store(self._kept) if self._kept is not None else []
        self._adopt(beside)
        beside += find_unlisted(folder, recipe.fingerprint)
        self._known = KnownRows(self._index, self._old, beside, recipe)

    @property
    def is_first(self) -> bool:
        """Whether the store holds no vectors of the recipe yet."""
        return self._old is None

    @property
    def resumed_rows(self) -> int:
        """How many of the texts an interrupted run has left to take up."""
        return self._count_held(self._leftovers)

    @property
    def sliced_rows(self) -> int:
        """How many of the texts slices have embedded."""
        return self._count_held(self._slices)

    @property
    def kept_rows(self) -> int:
        """How many of the texts stand in a store that was kept when the settings were changed."""
        return self._count_held([self._kept] if self._kept is not None else [])

    def list_absent(self) -> list[int]:
        """The numbers of the shards that the store itself lacks, whatever stands beside it."""
        held = self._old.manifest.shards if self._old is not None else ()
        in_store = {(shard.file, shard.keys) for shard in held}
        return [n for n, s in enumerate(self._planned) if (s.file, s.keys) not in in_store]

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

    def join_known(self) -> dict[int, int]:
        """Write the missing shards whose texts all have vectors beside or in the store.

        :returns: the number of each missing shard that cannot be written → how many of its texts
            have no vectors.
        """
        lacking = {}
        for start, stop in self.list_missing():
            known, rows = self.find_known(start, stop)
            if known.all():
                self.write_shard(start, rows)
            else:
                lacking[start // layout.SHARD_ROWS] = int((~known).sum())
        return lacking

    def note_counted(self, lengths: Mapping[str, Mapping[str, int] | None]) -> None:
        """Say what others have counted of the lengths of finished shards.

        :param lengths: hash of the keys of a shard → what ``count_lengths`` says of it.
        """
        for file, shard in self._done.items():
            self._done[file] = replace(shard, lengths=shard.lengths or lengths.get(shard.keys))

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
        place = find_place(self.staged)
        found = [(self._moves.get(s.file), self.staged / name_staged(s)) for s in shards]
        try:
            place.move((path, to) for path, to in found if path is not None and path != to)
            place.sync(self.staged)
        except OSError as error:
            raise describe_write_error(error, self.staged) from error
        for known in (self._old, self._kept):
            if known is not None:
                before = known.manifest.fidelity
                is_new = is_measured or before is None
                fidelity = join_fidelity(before, fidelity if is_new else None)
        decision = replace(self.recipe.describe(shards), fidelity=fidelity)
        write_commit(self.folder, decision, self._replaces)
        finish_commit(self.folder)
        if hash_manifest(self.folder) != hashlib.sha256(format_manifest(decision)).hexdigest():
            raise describe_change(self.folder)
        return read_manifest(self.folder)


def _find_disk(folder: Path) -> object:
    """The device of a folder, or of that in which it will be made."""
    place = find_place(folder)
    real = place.find_real(folder)
    for candidate in (real, real.parent):
        try:
            return place.find_disk(candidate)
        except OSError:
            continue
    return None
