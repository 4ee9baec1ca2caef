"""The commands of `pipeline cache`: what the store holds, whether it is whole, getting it out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.console import count, format_bytes, say, show_table, warn
from pipeline.corpus.tables import (
    encode_labels,
    read_distinct_keys,
    read_labelled_rows,
    read_text_column,
)
from pipeline.errors import StoreError
from pipeline.layers import resolve_layers
from pipeline.project import Project
from pipeline.store import read_manifest, staging_folder
from pipeline.store.upkeep import (
    export_vectors,
    prune_store,
    rebuild_manifest,
    repair_store,
    verify_store,
)


def show_info(project: Project) -> None:
    """Print what the store holds, and how much of the last run it served."""
    manifest = read_manifest(project.embeddings)
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
    hits = _read_hits(project)
    if hits is not None:
        total = max(hits["kept"] + hits["embedded"], 1)
        share = f"{hits['kept']:,} of {total:,} texts ({hits['kept'] / total:.1%})"
        rows.append(("served in the last run", share))
    if manifest.fidelity is not None:
        cosine, error = (manifest.fidelity[k] for k in ("lowest_cosine", "largest_error"))
        found = f"cosine {cosine:.8f}, error {error:.1e}, {manifest.fidelity['texts']} texts"
        rows.append(("worst fidelity to float32", found))
    show_table(("store", str(project.embeddings)), rows)
    if staging_folder(project.embeddings).exists():
        say("an interrupted run has left work to take up: run `pipeline embed`")


def _read_hits(project: Project) -> dict[str, Any] | None:
    try:
        hits: dict[str, Any] = json.loads(project.last_embed.read_bytes())
    except (OSError, ValueError):
        return None
    return hits


def verify(project: Project, *, repair: bool) -> None:
    """Check every byte of the store; with ``repair``, drop what is damaged.

    :raises StoreError: if something is damaged and not repaired.
    """
    try:
        manifest = read_manifest(project.embeddings)
    except StoreError:
        if not repair or rebuild_manifest(project.embeddings) is None:
            raise
        warn(f"{project.embeddings}/manifest.json made anew from the shards that are whole")
        manifest = read_manifest(project.embeddings)
    damages = verify_store(project.embeddings)
    for damage in damages:
        warn(f"{damage.file}: {damage.what}")
    if not damages:
        say(
            f"{project.embeddings}: {count(len(manifest.shards), 'shard')}, "
            f"{count(manifest.rows, 'text')}, {format_bytes(manifest.bytes)}: every byte is right"
        )
        return
    if not repair:
        raise StoreError(
            f"{project.embeddings}: {count(len(damages), 'file')} damaged",
            hint="run `pipeline cache verify --repair`, then `pipeline embed`",
        )
    repair_store(project.embeddings, damages)
    lost = manifest.rows - read_manifest(project.embeddings).rows
    say(
        f"dropped {count(len(damages), 'file')}; "
        f"`pipeline embed` embeds {count(lost, 'text')} again"
    )


def export(project: Project, target: Path, layers: str) -> None:
    """Write the vectors of all rows of the corpus, in their order, to one file."""
    manifest = read_manifest(project.embeddings)
    wanted: Any = layers
    if layers not in ("all", "last"):
        try:
            wanted = tuple(int(number) for number in layers.split(","))
        except ValueError:
            raise StoreError(f"--layers {layers}: must be all, last, or numbers as 0,5,6") from None
    chosen = resolve_layers(wanted, manifest.layers, "--layers")
    rows = read_labelled_rows(project)
    extra: dict[str, Any] = {}
    if target.suffix == ".parquet":
        import pyarrow as pa

        extra = {"text": read_text_column(project.texts), "split": pa.array(rows.split)}
        extra |= {name: encode_labels(task.values, task.kind) for name, task in rows.tasks.items()}
    shape = export_vectors(project.embeddings, rows.keys, chosen, target, extra)
    size = format_bytes(target.stat().st_size)
    say(f"{target}: {shape[0]:,} rows × {shape[1]} layers × {shape[2]}, {manifest.dtype}, {size}")


def prune(project: Project) -> None:
    """Drop what the corpus no longer has, and leftovers of interrupted runs."""
    keys, _ = read_distinct_keys(project.texts)
    dropped = prune_store(project.embeddings, keys)
    manifest = read_manifest(project.embeddings)
    say(
        f"{project.embeddings}: dropped {count(dropped, 'text')}; "
        f"holds {count(manifest.rows, 'text')}, {format_bytes(manifest.bytes)}"
    )
