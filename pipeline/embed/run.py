"""Embed every distinct text of the corpus that the store does not hold yet."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline import paths
from pipeline.assets import Asset, check_files, read_assets
from pipeline.config import EmbedSettings, Settings
from pipeline.console import Advance, count, format_bytes, say, show_progress
from pipeline.corpus import read_distinct_keys, read_text_column
from pipeline.embed.backbone import Architecture
from pipeline.embed.batches import pad_batch, plan_batches
from pipeline.embed.fidelity import Fidelity, check_fidelity, measure_fidelity
from pipeline.embed.tokens import Tokens, load_tokenizer, tokenize
from pipeline.errors import DeviceError, StoreError
from pipeline.files import write_json
from pipeline.layers import resolve_layers
from pipeline.store import (
    Recipe,
    Rows,
    StoreUpdate,
    finish_commit,
    holds_exactly,
    read_manifest,
    staging_folder,
)

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from pipeline.embed.backbone import Backbone, Precision

# A change of what the code computes, if ever, makes every store of an older version stale.
_ALGORITHM = 1
# Padded tokens in one batch. On a CPU the activations of a batch should stay in its caches.
_TOKEN_BUDGET = {"cpu": 2048, "cuda": 65536, "mps": 8192}
_LARGE_STORE_BYTES = 2_000_000_000
# A kill costs at most this much work, and what one batch takes.
_KEEP_SECONDS = 15.0


def run_embed(settings: Settings) -> dict[str, object] | None:
    """Bring ``cache/embeddings/`` up to date with ``cache/texts.parquet``.

    :returns: details for the timing file, or ``None`` if there was nothing to do.
    """
    asset = read_assets()["backbone"]
    architecture = Architecture.read(asset.locate())
    architecture.check_max_tokens(settings.embed.max_tokens)
    keys, first_rows = read_distinct_keys()
    finish_commit(paths.EMBEDDINGS)
    for precision in _possible_precisions(settings):
        if _is_complete(make_recipe(asset, architecture, settings.embed, precision), keys):
            say(f"{paths.EMBEDDINGS}: holds all {len(keys):,} distinct texts of {asset.id}")
            _record_run(len(keys), 0, None)
            return None
    return _embed_missing(settings, asset, architecture, keys, first_rows)


def make_recipe(
    asset: Asset, architecture: Architecture, settings: EmbedSettings, precision: str
) -> Recipe:
    """All that changes a vector. What only changes the speed stays out of it."""
    available = tuple(range(architecture.layers + 1))
    layers = resolve_layers(settings.layers, available, "embed.layers")
    decisive = {
        name: sha256
        for name, sha256 in sorted(asset.files.items())
        if name in {"config.json", "tokenizer.json"} or name.endswith(".safetensors")
    }
    contents: dict[str, Any] = {
        "algorithm": _ALGORITHM,
        "files": decisive,
        "max_tokens": settings.max_tokens,
        "pooling": "mean",
        "layers": list(layers),
        "precision": precision,
        "dtype": settings.dtype,
    }
    return Recipe(asset.id, contents, layers, architecture.width, settings.dtype)


def _possible_precisions(settings: Settings) -> tuple[str, ...]:
    """What ``auto`` may have meant when the store was made: to know it now would take torch."""
    if settings.embed.precision != "auto":
        return (settings.embed.precision,)
    if settings.runtime.device == "cpu":
        return ("float32",)
    return ("float32", "float16")


def _is_complete(recipe: Recipe, keys: pa.Array) -> bool:
    try:
        manifest = read_manifest(paths.EMBEDDINGS)
    except StoreError:
        return False  # none there, or damaged; then it is made anew
    return manifest.fingerprint == recipe.fingerprint and holds_exactly(
        paths.EMBEDDINGS, manifest, keys
    )


def _embed_missing(
    settings: Settings,
    asset: Asset,
    architecture: Architecture,
    keys: pa.Array,
    first_rows: npt.NDArray[np.int64],
) -> dict[str, object]:
    folder = check_files(asset, "backbone")
    device, precision = _choose_device(settings)
    recipe = make_recipe(asset, architecture, settings.embed, precision)
    update = StoreUpdate(paths.EMBEDDINGS, recipe, keys)
    if update.resumed_rows:
        say(f"resuming an interrupted run: {count(update.resumed_rows, 'text')} already embedded")
    _say_size(recipe, len(keys))
    texts = read_text_column()
    tokenizer = load_tokenizer(folder, settings.embed.max_tokens)
    engine: Engine | None = None
    fidelity: Fidelity | None = None
    started = time.perf_counter()
    embedded = n_tokens = 0
    with show_progress("embedding", len(keys), "texts") as advance:
        for start, stop in update.list_missing():
            known, rows = update.find_known(start, stop)
            advance(len(rows.n_tokens))
            new = np.flatnonzero(~known)
            if len(new):
                if engine is None:  # a store that only has to be re-arranged needs no backbone
                    engine = _load_engine(settings, asset, folder, device, precision, recipe)
                tokens = tokenize(tokenizer, texts.take(first_rows[new + start]).to_pylist())
                keep = _ProgressKeeper(update, new + start)
                fresh = engine.embed(tokens, advance, keep)
                if fidelity is None:
                    fidelity = _gauge_fidelity(engine, asset, folder, precision, tokens, fresh)
                rows = _interleave(known, rows, fresh)
                n_tokens += int(tokens.offsets[-1])
            update.write_shard(start, rows)
            embedded += len(new)
    manifest = update.commit()
    seconds = time.perf_counter() - started
    _record_run(manifest.rows - embedded, embedded, fidelity)
    say(
        f"{count(manifest.rows, 'distinct text')} in {paths.EMBEDDINGS}: {embedded:,} embedded, "
        f"{manifest.rows - embedded:,} kept; {n_tokens:,} tokens in {seconds:.1f} s, "
        f"{n_tokens / seconds:,.0f} tokens/s on {_describe_device(device)}, {precision}"
    )
    return {
        "device": _describe_device(device),
        "precision": precision,
        "texts": embedded,
        "kept": manifest.rows - embedded,
        "tokens": n_tokens,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(n_tokens / seconds, 1),
    }


def _choose_device(settings: Settings) -> tuple[torch.device, Precision]:
    import torch

    from pipeline.device import choose_device

    if settings.runtime.threads:
        torch.set_num_threads(settings.runtime.threads)
    device = choose_device(settings.runtime.device)
    precision = settings.embed.precision
    if precision == "auto":
        precision = "float16" if device.type == "cuda" else "float32"
    return device, precision


def _load_engine(
    settings: Settings,
    asset: Asset,
    folder: Path,
    device: torch.device,
    precision: Precision,
    recipe: Recipe,
) -> Engine:
    from pipeline.embed.backbone import Backbone

    say(f"backbone  {asset.id}: loading")
    return Engine(
        backbone=Backbone(asset, folder, device, precision),
        layers=recipe.layers,
        dtype=np.dtype(recipe.dtype),
        token_budget=settings.runtime.token_budget or _TOKEN_BUDGET[device.type],
    )


class _ProgressKeeper:
    """Puts finished rows on the disk every so often, so that a kill costs no more than that.

    :param places: int64: where the texts being embedded stand among the keys.
    """

    def __init__(self, update: StoreUpdate, places: npt.NDArray[np.int64]) -> None:
        self._update = update
        self._places = places
        self._waiting: list[npt.NDArray[np.int64]] = []
        self._saved_at = time.perf_counter()

    def __call__(self, batch: npt.NDArray[np.int64], rows: Rows) -> None:
        """:param batch: which of the texts were just finished.
        :param rows: of all texts, those of the unfinished ones not yet filled in.
        """
        self._waiting.append(batch)
        if time.perf_counter() - self._saved_at >= _KEEP_SECONDS:
            done = np.concatenate(self._waiting)
            finished = Rows(rows.n_tokens[done], rows.vectors[done])
            self._update.save_progress(self._places[done], finished)
            self._waiting = []
            self._saved_at = time.perf_counter()


def _gauge_fidelity(
    engine: Engine, asset: Asset, folder: Path, precision: Precision, tokens: Tokens, rows: Rows
) -> Fidelity:
    """Compare a sample with Hugging Face in float32 before anything of this run is written.

    :raises StoreError: if it is further off than the precision explains.
    """
    from pipeline.embed.backbone import Backbone

    reference = engine.backbone
    if precision != "float32":
        reference = Backbone(asset, folder, engine.backbone.device, "float32")
    fidelity = measure_fidelity(reference, tokens, rows, engine.layers)
    try:
        check_fidelity(fidelity, precision)
    except StoreError:  # what was put aside meanwhile is as wrong
        shutil.rmtree(staging_folder(paths.EMBEDDINGS), ignore_errors=True)
        raise
    say(
        f"fidelity  lowest cosine {fidelity.lowest_cosine:.8f}, largest error "
        f"{fidelity.largest_error:.1e} to Hugging Face in float32, over {fidelity.texts} texts"
    )
    return fidelity


def _record_run(kept: int, embedded: int, fidelity: Fidelity | None) -> None:
    """Note what the run found in the store, for `pipeline cache info`; a run that embeds nothing
    leaves the last fidelity as it is."""
    last: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        last = json.loads(paths.LAST_EMBED.read_bytes())
    record = fidelity.to_record() if fidelity is not None else last.get("fidelity")
    write_json(paths.LAST_EMBED, {"kept": kept, "embedded": embedded, "fidelity": record})


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


def _describe_device(device: torch.device) -> str:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({count(torch.get_num_threads(), 'thread')})"


def _interleave(known: npt.NDArray[np.bool_], old: Rows, new: Rows) -> Rows:
    """Put rows that were known and rows just embedded into their order."""
    if not known.any():
        return new
    n_tokens = np.empty(len(known), np.int32)
    vectors = np.empty((len(known), *new.vectors.shape[1:]), new.vectors.dtype)
    for chosen, rows in ((known, old), (~known, new)):
        n_tokens[chosen], vectors[chosen] = rows.n_tokens, rows.vectors
    return Rows(n_tokens=n_tokens, vectors=vectors)


@dataclass
class Engine:
    """Runs batches through the backbone.

    :param token_budget: padded tokens in one batch; halved for good when the device has not the
        memory for it.
    """

    backbone: Backbone
    layers: tuple[int, ...]
    dtype: np.dtype[Any]
    token_budget: int

    def embed(
        self,
        tokens: Tokens,
        advance: Advance = lambda amount: None,
        keep: Callable[[npt.NDArray[np.int64], Rows], None] = lambda batch, rows: None,
    ) -> Rows:
        """Pooled vectors of B texts, in their order.

        :param advance: called with the number of texts just finished.
        :param keep: called with the indices of the texts just finished, and all rows.
        :returns: int32, [B], and [B, L, D] in the store's dtype.
        """
        lengths = tokens.lengths
        width = self.backbone.architecture.width
        vectors = np.empty((len(lengths), len(self.layers), width), self.dtype)
        rows = Rows(lengths.astype(np.int32), vectors)
        waiting = plan_batches(lengths, self.token_budget)[::-1]
        while waiting:
            batch = waiting.pop()
            try:
                vectors[batch] = self._run_batch(tokens, batch)
            except MemoryError as error:
                if len(batch) == 1:
                    raise DeviceError(
                        f"not enough memory on {self.backbone.device} for one text of "
                        f"{lengths[batch[0]]} tokens",
                        hint="lower params.yaml: embed.max_tokens, or run on the CPU",
                    ) from error
                self.token_budget //= 2
                say(f"not enough memory: token budget halved to {self.token_budget:,}")
                rest = np.concatenate([batch, *waiting[::-1]])
                waiting = [rest[b] for b in plan_batches(lengths[rest], self.token_budget)][::-1]
                continue
            advance(len(batch))
            keep(batch, rows)
        return rows

    def _run_batch(self, tokens: Tokens, batch: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        import torch

        ids, mask = pad_batch(tokens, batch, self.backbone.architecture.pad_id)
        device = self.backbone.device
        try:
            pooled = self.backbone.encode(
                torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device), self.layers
            )
            return pooled.cpu().numpy()
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise MemoryError from error
