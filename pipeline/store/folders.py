"""The folders beside a store, and what this program writes to them.

A store may be a symbolic link to another disk, or a disk of its own. What is renamed into it must
stand on its disk, so these folders stand beside the folder that the link leads to, or inside one
that a disk is mounted on.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from pipeline.files import is_scratch
from pipeline.store.manifest import MANIFEST, Shard, is_shard_file
from pipeline.store.places import find_place

COMMIT = "commit.json"
OWNER = "owner"
DIGEST = "object-store.json"
# The whole shards and the parts of shards that wait for a commit carry the hash of their bytes.
_WAITING = re.compile(r"(part|rows)-\d{5,12}-[0-9a-f]{32}\.parquet")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


def staging_folder(folder: Path) -> Path:
    """Where the next state of a store is built."""
    return _beside(folder, "next")


def list_staging(folder: Path) -> list[Path]:
    """The staging folder, and where older versions had theirs if that is another one."""
    places = [staging_folder(folder)]
    beside_link = folder.with_name(f"{folder.name}.next")
    place = find_place(folder)
    if place.find_real(beside_link) != place.find_real(places[0]):
        places.append(beside_link)
    return places


def kept_folder(folder: Path) -> Path:
    """Where the stores of earlier settings are kept, each in a folder named by its fingerprint."""
    return _beside(folder, "old")


def aside_folder(folder: Path) -> Path:
    """Where files go that stood in a store and were not written by this program."""
    return _beside(folder, "aside")


def _beside(folder: Path, what: str) -> Path:
    place = find_place(folder)
    real = place.find_real(folder)
    with contextlib.suppress(OSError):
        if place.find_disk(real) != place.find_disk(real.parent):
            return real / f".{what}"
    return real.with_name(f"{real.name}.{what}")


def list_kept(folder: Path) -> list[Path]:
    """The stores of earlier settings, the one that was in use last first."""
    with contextlib.suppress(OSError):
        kept = [p for p in kept_folder(folder).iterdir() if _FINGERPRINT.fullmatch(p.name)]
        return sorted(kept, key=find_place(folder).find_use, reverse=True)
    return []


def list_strays(folder: Path, named: set[str]) -> list[str]:
    """What stands in a store and is neither one of some shards nor a manifest.

    :param folder: the store.
    :param named: file names of the shards.
    :returns: names, sorted.
    """
    inside = {place(folder).name for place in (staging_folder, kept_folder, aside_folder)}
    return sorted({entry.name for entry in folder.iterdir()} - named - {MANIFEST, DIGEST} - inside)


def name_waiting(stem: str, sha256: str) -> str:
    """The name of a file that waits for a commit: ``part-00007-<half of its hash>.parquet``."""
    return f"{stem}-{sha256[:32]}.parquet"


def name_staged(shard: Shard) -> str:
    """The name of a shard while it waits for the commit that moves it into the store."""
    return name_waiting(shard.file.removesuffix(".parquet"), shard.sha256)


def is_waiting(name: str) -> bool:
    """Whether a file waits for a commit and carries its hash in its name."""
    return _WAITING.fullmatch(name) is not None


def clear_folder(folder: Path) -> None:
    """Remove what this program wrote to a folder beside a store, and the folder if that was all.

    What decides a commit goes last, so that a kill on the way leaves nothing undecided.
    """
    if not folder.is_dir():
        return
    ours = [path for path in folder.iterdir() if _is_ours(path)]
    place = find_place(folder)
    place.remove(path for path in ours if path.name != COMMIT)
    place.remove(path for path in ours if path.name == COMMIT)
    with contextlib.suppress(OSError):  # another's file is in it, so it stays
        folder.rmdir()


def _is_ours(path: Path) -> bool:
    if is_scratch(path) or is_shard_file(path.name) or is_waiting(path.name):
        return path.is_symlink() or not path.is_dir()
    return path.name in {COMMIT, OWNER, MANIFEST} and not path.is_dir()


def move_aside(folder: Path, name: str) -> Path:
    """Move a file, a link or a folder out of a store, whatever it is.

    :param folder: the store.
    :param name: name of the file, link or folder.
    :returns: where it is now.
    """
    target = aside_folder(folder) / name
    target.parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while find_place(folder).exists(target):
        target = target.with_name(f"{name}.{number}")
        number += 1
    (folder / name).rename(target)
    return target
