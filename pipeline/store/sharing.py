"""What keeps projects apart that were given one and the same object store.

A store holds the texts of one corpus, so a run drops those that its corpus does not have. In a
folder of the project that is meant. An object store has the same URL for everybody, by mistake or
by a copied settings file, and what goes there may be the only copy of another project's work. A
corpus of which a project has changed less than half is still known as its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.console import count, say
from pipeline.errors import StoreError
from pipeline.store.commit import Snapshot, read_steadily
from pipeline.store.folders import is_waiting, kept_folder, list_staging
from pipeline.store.manifest import is_shard_file, plan_shards
from pipeline.store.places import find_place
from pipeline.store.reader import read_keys, read_keys_of_shard

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Overlap:
    """What a corpus has of the texts that a folder holds.

    :param held: number of texts in the folder.
    :param strange: number of those that the corpus does not have.
    """

    held: int = 0
    strange: int = 0

    @property
    def is_of_another(self) -> bool:
        """Whether most of them are not of the corpus, so that they are of another one."""
        return 2 * self.strange > self.held


def measure_overlap(folder: Path, keys: pa.Array) -> Overlap:
    """Find out what a corpus has of the texts of a folder that other projects share.

    :param folder: a store, or a folder beside it with shards or parts of shards; it need not exist.
    :param keys: keys of the corpus: fixed-size binary of 16, distinct, in order of first
        appearance.
    :returns: nothing held, if the folder is one of this machine.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if not find_place(folder).is_shared:
        return Overlap()
    known, others = _read_keys(folder, {shard.keys for shard in plan_shards(keys)})
    if not any(map(len, others)):
        return Overlap(known)
    held = pc.unique(pa.concat_arrays(others))  # a text may stand in a shard and in a part of it
    shared = int(pc.sum(pc.is_in(keys, value_set=held)).as_py() or 0)
    return Overlap(known + len(held), len(held) - shared)


def refuse_another_corpus(
    store: Path, keys: pa.Array, slices: Iterable[Path], fingerprints: Iterable[str]
) -> int:
    """Stop a run that would drop what may be another project's, on a store that others share.

    The store, what interrupted runs have left of it, stores of earlier settings and slices are
    looked at one by one.

    :param store: the store.
    :param keys: keys of the corpus, as ``measure_overlap`` has them.
    :param slices: folders of the slices that the run takes up or drops.
    :param fingerprints: fingerprints of the stores of earlier settings that it takes up or drops.
    :returns: how many texts of the store the corpus does not have; 0 for a folder of this machine.
    :raises StoreError: if the corpus has less than half of the texts that one of them holds.
    """
    kept = [kept_folder(store) / fingerprint for fingerprint in fingerprints]
    found = {
        folder: measure_overlap(folder, keys)
        for folder in [store, *list_staging(store), *kept, *slices]
    }
    for folder, overlap in found.items():
        if overlap.is_of_another:
            raise StoreError(
                f"{folder}: holds {count(overlap.held, 'text')}, of which the corpus of this "
                f"project has {overlap.held - overlap.strange:,}; they may be another project's, "
                "and nothing of them was changed",
                hint="give each project a store.url of its own; if the corpus of this one was "
                "changed so much, run `pipeline cache prune --most`, which drops what it does not "
                "have",
            )
    return found[store].strange


def say_dropped(store: Path, strange: int) -> None:
    """Say how many texts a run drops from a store that others share.

    :param store: the store.
    :param strange: number of its texts that the corpus does not have.
    """
    if strange:
        say(f"{store}: {count(strange, 'text')} that the corpus does not have will be dropped")


def _read_keys(folder: Path, planned: set[str]) -> tuple[int, list[pa.Array]]:
    """The texts that a folder holds.

    :param planned: hashes of the keys of the shards of the corpus.
    :returns: the number of its texts in shards of the corpus, and the keys of its other shards.
    """

    def read(snapshot: Snapshot) -> tuple[int, list[pa.Array]]:
        manifest = snapshot.manifest
        others = tuple(shard for shard in manifest.shards if shard.keys not in planned)
        alone = replace(snapshot, manifest=replace(manifest, shards=others))
        return manifest.rows - alone.manifest.rows, [read_keys(alone)]

    try:
        return read_steadily(folder, read)
    except StoreError:  # it is no store, or damaged, and the shards tell themselves
        return 0, _read_files(folder)


def _read_files(folder: Path) -> list[pa.Array]:
    """The keys of each shard, or part of one, in a folder that need not exist."""
    paths = list(folder.iterdir()) if folder.is_dir() else []
    shards = [path for path in paths if is_shard_file(path.name) or is_waiting(path.name)]
    found = find_place(folder).call_each(read_keys_of_shard, shards)
    return [keys for keys in found if keys is not None]
