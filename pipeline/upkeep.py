"""The commands of `pipeline cache`: what the store holds, whether it is whole, getting it out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline import paths
from pipeline.console import count, format_bytes, say, show_table, warn
from pipeline.corpus import (
    encode_labels,
    read_distinct_keys,
    read_labelled_rows,
    read_text_column,
)
from pipeline.errors import StoreError
from pipeline.layers import resolve_layers
from pipeline.store import read_manifest, staging_folder
from pipeline.store.upkeep import (
    export_vectors,
    prune_store,
    rebuild_manifest,
    repair_store,
    verify_store,
)


def show_info() -> None:
    """Print what the store holds, and how much of the last run it served."""
    manifest = read_manifest(paths.EMBEDDINGS)
    layers = ", ".join(map(str, manifest.layers))
    rows: list[tuple[object, ...]] = [
        ("backbone", manifest.backbone),
        ("distinct texts", manifest.rows),
        ("shards", len(manifest.shards)),
        ("size", format_bytes(manifest.bytes)),
        ("layers", f"{layers} of width {manifest.width}"),
        ("dtype", manifest.dtype),
        ("fingerprint", manifest.fingerprint),
        *((f"sha256 of {name}", sha256) for name, sha256 in manifest.recipe["files"].items()),
        *(
            (name, manifest.recipe[name])
            for name in ("max_tokens", "pooling", "precision", "algorithm")
        ),
    ]
    hits = _read_hits()
    if hits is not None:
        total = max(hits["kept"] + hits["embedded"], 1)
        share = f"{hits['kept']:,} of {total:,} texts ({hits['kept'] / total:.1%})"
        rows.append(("served in the last run", share))
    if manifest.fidelity is not None:
        cosine, error = (manifest.fidelity[k] for k in ("lowest_cosine", "largest_error"))
        found = f"cosine {cosine:.8f}, error {error:.1e}, {manifest.fidelity['texts']} texts"
        rows.append(("worst fidelity to float32", found))
    show_table(("store", str(paths.EMBEDDINGS)), rows)
    if staging_folder(paths.EMBEDDINGS).exists():
        say("an interrupted run has left work to take up: run `pipeline embed`")


def _read_hits() -> dict[str, Any] | None:
    try:
        hits: dict[str, Any] = json.loads(paths.LAST_EMBED.read_bytes())
    except (OSError, ValueError):
        return None
    return hits


def verify(*, repair: bool) -> None:
    """Check every byte of the store; with ``repair``, drop what is damaged.

    :raises StoreError: if something is damaged and not repaired.
    """
    try:
        manifest = read_manifest(paths.EMBEDDINGS)
    except StoreError:
        if not repair or rebuild_manifest(paths.EMBEDDINGS) is None:
            raise
        warn(f"{paths.EMBEDDINGS}/manifest.json made anew from the shards that are whole")
        manifest = read_manifest(paths.EMBEDDINGS)
    damages = verify_store(paths.EMBEDDINGS)
    for damage in damages:
        warn(f"{damage.file}: {damage.what}")
    if not damages:
        say(
            f"{paths.EMBEDDINGS}: {count(len(manifest.shards), 'shard')}, "
            f"{count(manifest.rows, 'text')}, {format_bytes(manifest.bytes)}: every byte is right"
        )
        return
    if not repair:
        raise StoreError(
            f"{paths.EMBEDDINGS}: {count(len(damages), 'file')} damaged",
            hint="run `pipeline cache verify --repair`, then `pipeline embed`",
        )
    repair_store(paths.EMBEDDINGS, damages)
    lost = manifest.rows - read_manifest(paths.EMBEDDINGS).rows
    say(
        f"dropped {count(len(damages), 'file')}; "
        f"`pipeline embed` embeds {count(lost, 'text')} again"
    )


def export(target: Path, layers: str) -> None:
    """Write the vectors of all rows of the corpus, in their order, to one file."""
    manifest = read_manifest(paths.EMBEDDINGS)
    wanted: Any = layers
    if layers not in ("all", "last"):
        try:
            wanted = tuple(int(number) for number in layers.split(","))
        except ValueError:
            raise StoreError(f"--layers {layers}: must be all, last, or numbers as 0,5,6") from None
    chosen = resolve_layers(wanted, manifest.layers, "--layers")
    rows = read_labelled_rows()
    extra: dict[str, Any] = {}
    if target.suffix == ".parquet":
        import pyarrow as pa

        extra = {"text": read_text_column(), "split": pa.array(rows.split)}
        extra |= {name: encode_labels(task.values, task.kind) for name, task in rows.tasks.items()}
    shape = export_vectors(paths.EMBEDDINGS, rows.keys, chosen, target, extra)
    size = format_bytes(target.stat().st_size)
    say(f"{target}: {shape[0]:,} rows × {shape[1]} layers × {shape[2]}, {manifest.dtype}, {size}")


def prune() -> None:
    """Drop what the corpus no longer has, and leftovers of interrupted runs."""
    keys, _ = read_distinct_keys()
    dropped = prune_store(paths.EMBEDDINGS, keys)
    manifest = read_manifest(paths.EMBEDDINGS)
    say(
        f"{paths.EMBEDDINGS}: dropped {count(dropped, 'text')}; "
        f"holds {count(manifest.rows, 'text')}, {format_bytes(manifest.bytes)}"
    )
