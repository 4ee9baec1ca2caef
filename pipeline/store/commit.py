"""Commits, and what a store holds at a moment: one that was decided counts, carried out or not.

``commit.json`` in the staging folder is the decision. It names the manifest that it replaces and
every shard of the store's next state. Each of those is on the disk by then: it waits in the staging
folder or is in the store already. Whoever reads the store in between finds all shards by it, and
whoever holds the lock carries it out. A kill between any two of its steps leaves a state from which
doing all of them again ends in the same store.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import sleep
from typing import TypeVar

from pipeline.console import say, warn
from pipeline.errors import StoreError
from pipeline.files import (
    SCRATCH_PREFIX,
    describe_write_error,
    is_scratch,
)
from pipeline.store.folders import (
    COMMIT,
    clear_folder,
    kept_folder,
    list_kept,
    list_staging,
    move_aside,
    name_staged,
    staging_folder,
)
from pipeline.store.manifest import (
    MANIFEST,
    REPAIR,
    Manifest,
    Shard,
    format_manifest,
    has_size,
    is_shard_file,
    parse_manifest,
    read_manifest_file,
    write_manifest,
)
from pipeline.store.places import describe_change, find_place

KEPT_STORES = 2  # of earlier settings
_READS = 12  # of a store that another run rewrites meanwhile
_PAUSE_SECONDS = 0.02  # before the second read, and that much longer before each further one

T = TypeVar("T")


@dataclass(frozen=True)
class Snapshot:
    """A store as it stands at one moment.

    :param folder: the store, or a folder beside it that holds shards.
    :param manifest: the contents.
    :param staged: file name → path of the shards that a commit has still to move into the folder.
    """

    folder: Path
    manifest: Manifest
    staged: Mapping[str, Path]

    def locate(self, shard: Shard) -> Path:
        """Where a shard stands."""
        return self.staged.get(shard.file, self.folder / shard.file)


@dataclass(frozen=True)
class Commit:
    """A change of a store that was decided.

    :param folder: the store.
    :param manifest: the contents that the store shall have.
    :param replaces: SHA-256 of the manifest file that it was decided against; ``None`` if there was
        none.
    :param knows_replaced: whether it says so; one of an older version of this program does not.
    """

    folder: Path
    manifest: Manifest
    replaces: str | None
    knows_replaced: bool

    def find_staged(self) -> dict[str, Path]:
        """Where shards wait that were not moved yet: file name → path."""
        staged = staging_folder(self.folder)
        size_of = find_place(staged).measure(staged)
        found = {}
        for shard in self.manifest.shards:
            for name in (name_staged(shard), shard.file):  # older versions took the hash off before
                if shard.file not in found and size_of(name) == shard.bytes:
                    found[shard.file] = staged / name
        return found

    def is_due(self) -> bool:
        """Whether it belongs to the store as it is now, and can be carried out.

        A store that was put back meanwhile, as ``dvc checkout`` does, has another manifest, or
        lacks what was moved into it before.
        """
        if self.knows_replaced:
            now = hash_manifest(self.folder)
            done = hashlib.sha256(format_manifest(self.manifest)).hexdigest()
            if now not in {self.replaces, done} and _read_readable(self.folder) is not None:
                return False
        staged = self.find_staged()
        moved = [shard for shard in self.manifest.shards if shard.file not in staged]
        held = find_place(self.folder).call_each(
            lambda shard: _holds(self.folder / shard.file, shard), moved
        )
        return all(held)


def _holds(path: Path, shard: Shard) -> bool:
    """Whether a file is a certain shard, as far as its size and the hashes in its footer tell."""
    if not has_size(path, shard.bytes):
        return False
    try:
        return bool(json.loads(_read_about(path)[b"checks"]) == shard.checks)
    except (ValueError, KeyError):
        return False


def _read_about(path: Path) -> Mapping[bytes, bytes]:
    """What a shard says of itself in its footer; nothing if it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return dict(pq.read_metadata(find_place(path).open_footer(path, "", 0)).metadata or {})
    except (pa.ArrowException, OSError):
        return {}


def hash_manifest(folder: Path) -> str | None:
    """SHA-256 of the bytes of a store's manifest, whatever they are; ``None`` if there is none."""
    try:
        return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    except OSError:
        return None


def _read_readable(folder: Path) -> Manifest | None:
    """The manifest of a store, if there is one that can be read."""
    try:
        return read_manifest_file(folder / MANIFEST)
    except StoreError:
        return None


def write_commit(folder: Path, manifest: Manifest, replaces: str | None) -> None:
    """Decide that a store shall hold what a manifest says; its shards are on the disk."""
    path = staging_folder(folder) / COMMIT
    find_place(path).create(path, format_manifest(manifest, replaces=replaces))


def read_commit(folder: Path) -> Commit | None:
    """What was decided and not carried out; a damaged decision decides nothing."""
    try:
        raw = (staging_folder(folder) / COMMIT).read_bytes()
        manifest = parse_manifest(raw, "replaces")
    except (OSError, StoreError):
        return None
    content = json.loads(raw)
    return Commit(folder, manifest, content.get("replaces"), "replaces" in content)


def read_snapshot(folder: Path) -> Snapshot:
    """What a store holds now, a commit that was decided included.

    :param folder: the store.
    :raises StoreError: if there is no store, or its manifest is damaged or of another version.
    """
    commit = read_commit(folder)
    if commit is not None and commit.is_due():
        return Snapshot(folder, commit.manifest, commit.find_staged())
    path = folder / MANIFEST
    manifest = read_manifest_file(path)
    if manifest is None:
        lost = any(folder.glob("part-*.parquet"))
        hint = REPAIR if lost else "run `pipeline embed` first"
        raise StoreError(f"{path}: no such file", hint=hint)
    return Snapshot(folder, manifest, {})


def read_manifest(folder: Path) -> Manifest:
    """Read what a store holds.

    :param folder: the store.
    :raises StoreError: if there is no store, or its manifest is damaged or of another version.
    """
    return read_snapshot(folder).manifest


def read_steadily(
    folder: Path,
    read: Callable[[Snapshot], T],
    *,
    start: Snapshot | None = None,
    fingerprint: str | None = None,
) -> T:
    """Read a store that another run may be changing: again, if it has changed on the way.

    :param folder: the store.
    :param read: a function that reads and checks all that it reads against the manifest.
    :param start: the state to try first; that of now if left out.
    :param fingerprint: fingerprint of the vectors wanted; any if ``None``.
    :returns: what ``read`` returned.
    :raises StoreError: if what does not change is damaged, or the changes do not end.
    """
    snapshot = start or read_snapshot(folder)
    has_failed = False  # with the state that the store has now
    for number in range(1, _READS + 1):
        if fingerprint is not None and snapshot.manifest.fingerprint != fingerprint:
            raise StoreError(
                f"{folder}: rewritten with other settings while it was being read",
                hint="run the command again",
            )
        try:
            return read(snapshot)
        except StoreError:
            now = read_snapshot(folder)
            # Once may be a chance: a store can be back in a state after others in between.
            if now == snapshot and has_failed:
                raise
            has_failed = now == snapshot
            snapshot = now
        sleep(number * _PAUSE_SECONDS)
    raise StoreError(
        f"{folder}: another run rewrites it faster than it can be read",
        hint="wait until that run ends, then run the command again",
    )


def finish_commit(folder: Path) -> None:
    """Carry out a commit that was decided on; doing so again after a kill does no harm.

    One that belongs to another state of the store is dropped; its shards stay where they wait, and
    the next run takes up their vectors.
    """
    commit = read_commit(folder)
    staged = staging_folder(folder)
    if commit is None:
        with contextlib.suppress(OSError):
            staged.rmdir()  # all but this was done before a kill; what is not empty stays
        return
    try:
        if commit.is_due():
            _carry_out(commit)
        else:
            (staged / COMMIT).unlink()
            say(
                f"{staged}: a run that was cut short meant to change another state of {folder}; "
                "its vectors stay for `pipeline embed` to take up"
            )
    except OSError as error:
        raise describe_write_error(error, folder) from error


def _carry_out(commit: Commit) -> None:
    folder, new = commit.folder, commit.manifest
    place = find_place(folder)
    place.find_real(folder).mkdir(parents=True, exist_ok=True)
    old = _read_readable(folder)
    staged = commit.find_staged()
    if old is not None and old.fingerprint != new.fingerprint:
        _retire(commit, old, staged)
    held = _list_own(folder, old, new)
    _confirm(commit)
    place.move(_plan_moves(folder, new, staged, held))
    _confirm(commit)
    _clear_shards(folder, new, held)
    place.sync(folder)
    hashes = {commit.replaces, hashlib.sha256(format_manifest(new)).hexdigest()}
    place.write_over(
        folder / MANIFEST,
        format_manifest(new),
        lambda before: (
            not commit.knows_replaced
            or hashlib.sha256(before).hexdigest() in hashes
            or not _is_readable(before)
        ),
    )
    clear_folder(kept_folder(folder) / new.fingerprint)  # its rows are in the store again
    drop_kept(folder, KEPT_STORES)
    for beside in list_staging(folder):
        clear_folder(beside)


def _confirm(commit: Commit) -> None:
    """Make sure that a commit still stands, where runs on other machines may have taken over.

    :raises StoreError: if another run has carried it out, as this one was suspended; what stands
        in the store may then be of a later commit.
    """
    if find_place(commit.folder).is_shared and read_commit(commit.folder) != commit:
        raise describe_change(commit.folder)


def _plan_moves(
    folder: Path, new: Manifest, staged: Mapping[str, Path], held: set[str]
) -> Iterator[tuple[Path, Path]]:
    """The renames that bring shards into a store; what is in their way is moved aside before.

    :param staged: where shards wait.
    :param held: files of the store that this program wrote.
    """
    is_atomic = find_place(folder).is_atomic
    standing = {path.name: path for path in folder.iterdir()} if folder.is_dir() else {}
    for shard in new.shards:
        if shard.file not in staged:
            continue
        there = standing.get(shard.file)
        # Where a rename is a copy and a removal, a kill may have come between them.
        is_strange = there is not None and (shard.file not in held or there.is_dir())
        if there is not None and is_strange and (is_atomic or not _holds(there, shard)):
            _move_stray(folder, shard.file)
        yield staged[shard.file], folder / shard.file


def _clear_shards(folder: Path, new: Manifest, held: set[str]) -> None:
    """Remove from a store, or move aside, the shards that it shall not have any more.

    :param held: files of the store that this program wrote.
    """
    named = {shard.file for shard in new.shards}
    for path in sorted(folder.iterdir()):
        if is_scratch(path):
            path.unlink()
        elif is_shard_file(path.name) and path.name not in named:
            if path.name in held and not path.is_dir():
                path.unlink()
            else:
                _move_stray(folder, path.name)


def _is_readable(raw: bytes) -> bool:
    """Whether bytes are those of a manifest."""
    try:
        parse_manifest(raw)
    except StoreError:
        return False
    return True


def _list_own(folder: Path, old: Manifest | None, new: Manifest) -> set[str]:
    """Files of a store that this program wrote; where the manifest is lost, they tell themselves.

    :param new: what the store shall hold.
    """
    if old is not None:
        return {shard.file for shard in old.shards}
    fingerprint = new.fingerprint.encode()
    return {
        path.name
        for path in folder.glob("part-*.parquet")
        if _read_about(path).get(b"fingerprint") == fingerprint
    }


def _retire(commit: Commit, old: Manifest, staged: Mapping[str, Path]) -> None:
    """Keep the store of earlier settings, so that going back to them costs nothing.

    :param staged: where shards of the new state wait.
    """
    folder = commit.folder
    kept = kept_folder(folder) / old.fingerprint
    for path in kept.glob(f"{SCRATCH_PREFIX}*"):
        path.unlink()
    if _read_readable(kept) != old:  # of another moment; what an interrupted run left there stays
        for path in kept.glob("part-*.parquet"):
            if is_shard_file(path.name):
                path.unlink()
        write_manifest(kept / MANIFEST, old)
    new = {shard.file: shard for shard in commit.manifest.shards}
    place = find_place(folder)
    size_of = place.measure(folder)

    def is_old(shard: Shard) -> bool:
        if size_of(shard.file) != shard.bytes:
            return False
        successor = new.get(shard.file)
        # Once the new shard of this name has left the staging folder, the file is the new one. It
        # may be so before, where a rename is a copy and a removal.
        return successor is None or (
            shard.file in staged and (place.is_atomic or not _holds(folder / shard.file, successor))
        )

    place.move((folder / s.file, kept / s.file) for s in old.shards if is_old(s))
    place.sync(kept)


def _move_stray(folder: Path, name: str) -> None:
    target = move_aside(folder, name)
    warn(f"{folder / name}: is not a file of this store; moved to {target}")


def drop_kept(folder: Path, most: int, *, spared: frozenset[str] = frozenset()) -> int:
    """Remove the stores of earlier settings that have not been in use for longest.

    :param folder: the store.
    :param most: the number of them that may stay.
    :param spared: fingerprints of those that stay whatever their number.
    :returns: how many bytes were freed.
    """
    others = [path for path in list_kept(folder) if path.name not in spared]
    freed = 0
    for path in others[most:]:
        freed += sum(file.lstat().st_size for file in path.iterdir())
        clear_folder(path)
    clear_folder(kept_folder(folder))
    return freed


@dataclass(frozen=True)
class KeptStore:
    """A store of earlier settings.

    :param folder: its folder.
    :param manifest: the contents, as far as they are still there; ``None`` if only an interrupted
        run's work is.
    :param bytes: the size of its files.
    """

    folder: Path
    manifest: Manifest | None
    bytes: int


def read_kept(folder: Path) -> list[KeptStore]:
    """The stores of earlier settings, the one that was in use last first."""
    found = []
    for path in list_kept(folder):
        manifest = _read_readable(path)
        if manifest is not None:
            size_of = find_place(path).measure(path)
            there = (s for s in manifest.shards if size_of(s.file) == s.bytes)
            manifest = replace(manifest, shards=tuple(there))
        size = sum(file.lstat().st_size for file in path.iterdir())
        found.append(KeptStore(path, manifest, size))
    return found
