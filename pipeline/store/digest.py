"""What stands in the project's folder for a store that is kept elsewhere.

DVC tracks the folder as it does a store: the digest changes if, and only if, the vectors do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.files import add_hash, format_json, hash_json, write_bytes
from pipeline.store.commit import Snapshot, read_manifest
from pipeline.store.folders import DIGEST
from pipeline.store.known import find_store, split_store


def write_digest(local: Path, store: Path) -> None:
    """Say in the project's folder what its store holds, if the store is another one.

    :param local: the folder of the project that a store may stand in.
    :param store: the store.
    """
    if store == local:
        return
    manifest = read_manifest(store)
    record = {
        "backbone": manifest.backbone,
        "fingerprint": manifest.fingerprint,
        "texts": manifest.rows,
        "bytes": manifest.bytes,
        "shards_sha256": hash_json([shard.sha256 for shard in manifest.shards]),
    }
    content = format_json(add_hash(record))
    path = local / DIGEST
    if not path.is_file() or path.read_bytes() != content:
        write_bytes(path, content)


def find_left_behind(local: Path, store: Path, fingerprint: str) -> Sequence[Snapshot]:
    """The shards of a store in the project's folder, where the settings name another store.

    :param local: the folder of the project that a store may stand in.
    :param store: the store that the settings name.
    :param fingerprint: fingerprint of the vectors wanted.
    :returns: a store of one shard each; none if the store is that of the folder.
    """
    held = find_store(local, fingerprint) if store != local else None
    return split_store(held) if held is not None else []
