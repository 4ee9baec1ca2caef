"""Writing shards aside, whole or in parts, for whatever takes them into the store later."""

from __future__ import annotations

import errno
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.arrays import wrap_numbers
from pipeline.console import count
from pipeline.corpus.keys import KeyIndex, view_keys
from pipeline.errors import LockedError, StoreError, WriteError
from pipeline.files import describe_write_error
from pipeline.store import manifest as layout
from pipeline.store.commit import Snapshot
from pipeline.store.folders import OWNER, list_kept, name_waiting
from pipeline.store.known import KnownRows, find_numbers, try_keys
from pipeline.store.manifest import Recipe, Rows, Shard, Vectors, plan_shards
from pipeline.store.places import find_place
from pipeline.store.reader import read_n_tokens
from pipeline.store.shard import Skeleton, make_skeleton

if TYPE_CHECKING:
    import pyarrow as pa

_NAMED = 5  # rows in a message
_DROP_KEPT = (
    "free some space on that disk, as `pipeline cache prune` does by dropping the vectors of "
    "earlier settings, and run the command again"
)


class Update:
    """Shards of a corpus that one run writes to a folder beside the store.

    The names of the files there carry the hash of their contents, so a damaged one is never taken
    for a whole one. A run that is killed leaves them, and the next one takes up all that was
    embedded, even if the corpus has changed in between.

    :param folder: the store.
    :param staged: the folder to write to.
    :param recipe: recipe of the vectors.
    :param keys: keys of all texts that the store should hold: fixed-size binary of 16, distinct, in
        order of first appearance.
    :param first_rows: int64: the row of the corpus in which each text stands first, for messages;
        that of its key if left out.
    """

    _known: KnownRows

    def __init__(
        self,
        folder: Path,
        staged: Path,
        recipe: Recipe,
        keys: pa.Array,
        first_rows: npt.NDArray[np.int64] | None,
    ) -> None:
        self.folder = folder
        self.recipe = recipe
        self.staged = staged
        self.keys = keys
        self._index = KeyIndex(view_keys(keys))
        self._first_rows = np.arange(len(keys)) if first_rows is None else first_rows
        self._claim = Claim(staged / OWNER)
        self._planned = plan_shards(keys)
        self._wanted = list(range(len(self._planned)))  # the numbers of those that this run serves
        self._done: dict[str, Shard] = {}
        self._moves: dict[str, Path] = {}  # where those of them stand that are not in the store
        self._skeleton: Skeleton | None = None

    def _count_held(self, snapshots: Sequence[Snapshot]) -> int:
        if not snapshots:
            return 0
        # A row may stand in a whole shard and in what was kept of it before.
        is_held = np.zeros(len(self.keys), bool)
        for snapshot in snapshots:
            for numbers in find_numbers(self._index, try_keys(snapshot) or ()):
                is_held[numbers[numbers >= 0]] = True
        return int(is_held.sum())

    @property
    def rows(self) -> int:
        """How many texts there will be, once all shards of this run are written."""
        return sum(self._planned[number].rows for number in self._wanted)

    def list_missing(self) -> list[tuple[int, int]]:
        """The shards still to be written, each as the range of its rows among the keys."""
        return [
            (number * layout.SHARD_ROWS, number * layout.SHARD_ROWS + self._planned[number].rows)
            for number in self._wanted
            if self._planned[number].file not in self._done
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
        for number in self._wanted:
            plan = self._planned[number]
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

    def discard(self) -> None:
        """Remove what was kept of this run, and of those before that it would take up."""
        find_place(self.staged).remove_folder(self.staged)

    def _stage(
        self, stem: str, places: npt.NDArray[np.int64], rows: Rows
    ) -> tuple[Path, dict[str, Any]]:
        """Write rows to a file whose name carries its hash.

        :returns: its path, and what a ``Shard`` says of its bytes.
        """
        check_vectors(rows.vectors, self._first_rows[places])
        self._claim.hold()
        skeleton = self._skeleton  # which another thread may change meanwhile
        if skeleton is None or skeleton.rows != len(places):
            skeleton = self._skeleton = make_skeleton(self.recipe, len(places))
        pieces, checks = skeleton.fill(self.keys.take(wrap_numbers(places)), rows)
        try:
            path, sha256 = find_place(self.staged).write_named(
                self.staged, stem, pieces, lambda sha256: name_waiting(stem, sha256)
            )
        except (OSError, WriteError) as error:
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


class Claim:
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
                find_place(self._path).write(self._path, self._mark)
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


def join_fidelity(
    before: Mapping[str, Any] | None, now: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    """The fidelity of all vectors, from that of some and that of the others.

    :param before: fidelity of some, as a manifest has it; ``None`` if it is not known.
    :param now: that of the others.
    """
    if before is None or now is None:
        return before or now
    return {
        "texts": before["texts"] + now["texts"],
        "lowest_cosine": min(before["lowest_cosine"], now["lowest_cosine"]),
        "largest_error": max(before["largest_error"], now["largest_error"]),
    }
