"""Embed every distinct text of the corpus that the store does not hold yet."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.assets import Asset, check_files, read_assets
from pipeline.config import Settings
from pipeline.console import count, format_bytes, say, show_progress
from pipeline.corpus.tables import TextReader, read_distinct_keys
from pipeline.embed.backbone import Architecture
from pipeline.embed.recipe import _possible_precisions, make_recipe
from pipeline.embed.shards import _Run, _Source
from pipeline.embed.tokens import (
    load_tokenizer,
)
from pipeline.errors import StoreError
from pipeline.files import write_json
from pipeline.project import Project
from pipeline.store import (
    Recipe,
    StoreUpdate,
    finish_commit,
    holds_exactly,
    read_manifest,
)

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from pipeline.embed.backbone import Backbone, Precision
    from pipeline.embed.engine import Engine
    from pipeline.embed.loading import EngineGroup

_LARGE_STORE_BYTES = 2_000_000_000
# A further GPU takes some seconds to start, which this many shards repay.
_SHARDS_A_DEVICE = 8
# Compiling for a GPU takes some seconds too.
_TEXTS_TO_COMPILE = 1_000_000


def run_embed(project: Project, settings: Settings) -> dict[str, object] | None:
    """Bring the project's store up to date with its texts.

    :param project: the project to embed.
    :returns: details for the timing file, or ``None`` if there was nothing to do.
    """
    asset = read_assets(project.assets)["backbone"]
    architecture = Architecture.read(asset.locate(project))
    architecture.check_max_tokens(settings.embed.max_tokens)
    keys, first_rows = read_distinct_keys(project.texts)
    finish_commit(project.embeddings)
    for precision in _possible_precisions(settings):
        recipe = make_recipe(asset, architecture, settings.embed, precision)
        if _is_complete(project.embeddings, recipe, keys):
            say(f"{project.embeddings}: holds all {len(keys):,} distinct texts of {asset.id}")
            _record_run(project, len(keys), 0)
            return None
    return _embed_missing(project, settings, asset, architecture, keys, first_rows)


def _is_complete(folder: Path, recipe: Recipe, keys: pa.Array) -> bool:
    try:
        manifest = read_manifest(folder)
    except StoreError:
        return False  # none there, or damaged; then it is made anew
    return manifest.fingerprint == recipe.fingerprint and holds_exactly(folder, manifest, keys)


def _embed_missing(
    project: Project,
    settings: Settings,
    asset: Asset,
    architecture: Architecture,
    keys: pa.Array,
    first_rows: npt.NDArray[np.int64],
) -> dict[str, object]:
    folder = asset.locate(project)
    check_files(asset, "backbone", folder)
    devices, precision = _choose_devices(settings)
    recipe = make_recipe(asset, architecture, settings.embed, precision)
    update = StoreUpdate(project.embeddings, recipe, keys, first_rows)
    if update.resumed_rows:
        say(f"resuming an interrupted run: {count(update.resumed_rows, 'text')} already embedded")
    _say_size(recipe, len(keys))
    texts = TextReader(project.texts)
    tokenizer = load_tokenizer(folder, settings.embed.max_tokens)
    source = _Source(update, texts, tokenizer, first_rows)
    missing = update.list_missing()
    devices = devices[: max(1, len(missing) // _SHARDS_A_DEVICE)]

    def load() -> tuple[Engine | EngineGroup, Backbone]:
        from pipeline.embed.loading import EnginePlan, choose_engine

        plan = EnginePlan(
            asset,
            folder,
            precision,
            recipe.layers,
            recipe.dtype,
            settings.runtime.token_budget,
            settings.runtime.threads,
            compiled=sum(stop - start for start, stop in missing) >= _TEXTS_TO_COMPILE,
        )
        return choose_engine(plan, devices)

    started = time.perf_counter()
    with show_progress("embedding", len(keys), "texts") as advance:
        run = _Run(update, precision, load, advance)
        run.embed(source, missing, at_once=2 * len(devices))
    manifest = update.commit(run.fidelity.to_record() if run.fidelity else None)
    seconds = time.perf_counter() - started
    _record_run(project, manifest.rows - run.embedded, run.embedded)
    details: dict[str, Any] = {
        "device": _describe_devices(devices),
        "precision": precision,
        "texts": run.embedded,
        "kept": manifest.rows - run.embedded,
        "tokens": run.n_tokens,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(run.n_tokens / seconds, 1),
        **(
            {"fidelity_" + k: v for k, v in run.fidelity.to_record().items()}
            if run.fidelity
            else {}
        ),
    }
    _say_summary(details, texts.rows)
    return details


def _say_summary(details: dict[str, Any], texts: int) -> None:
    """One line for people of what goes into the timing file.

    :param texts: of the corpus, duplicates counted.
    """
    cosine = details.get("fidelity_lowest_cosine")
    say(
        f"{count(texts, 'text')}, {details['texts'] + details['kept']:,} distinct: "
        f"{details['texts']:,} embedded, {details['kept']:,} kept; {details['tokens']:,} tokens in "
        f"{details['seconds']:.1f} s, {details['tokens_per_second']:,.0f} tokens/s on "
        f"{details['device']}, {details['precision']}"
        + (f", cosine to float32 {cosine:.8f}" if cosine is not None else "")
    )


def _choose_devices(settings: Settings) -> tuple[list[torch.device], Precision]:
    import torch

    from pipeline.device import choose_devices

    if settings.runtime.threads:
        torch.set_num_threads(settings.runtime.threads)
    devices = choose_devices(settings.runtime.devices)
    precision = settings.embed.precision
    if precision == "auto":
        precision = "float16" if devices[0].type == "cuda" else "float32"
    return devices, precision


def _record_run(project: Project, kept: int, embedded: int) -> None:
    """Note what the run found in the store, for `pipeline cache info`."""
    write_json(project.last_embed, {"kept": kept, "embedded": embedded})


def _say_size(recipe: Recipe, texts: int) -> None:
    layers = count(len(recipe.layers), "layer")
    total = recipe.text_bytes * texts
    say(
        f"store     {layers} × {recipe.width} × {recipe.dtype} = {recipe.text_bytes:,} bytes "
        f"a text, {format_bytes(total)} in all"
    )
    if total > _LARGE_STORE_BYTES and len(recipe.layers) > 1:
        one = recipe.text_bytes // len(recipe.layers)
        say(
            f"          `embed.layers: last` would take {one:,} bytes a text and save "
            f"{format_bytes((recipe.text_bytes - one) * texts)}"
        )


def _describe_devices(devices: list[torch.device]) -> str:
    import torch

    first = devices[0]
    if first.type == "cuda":
        name = torch.cuda.get_device_name(first)
        return name if len(devices) == 1 else f"{len(devices)} × {name}"
    return f"{first.type} ({count(torch.get_num_threads(), 'thread')})"
