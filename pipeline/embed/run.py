"""Embed every distinct text of the corpus that the store does not hold yet."""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline import paths
from pipeline.assets import Asset, check_files, read_assets
from pipeline.config import EmbedSettings, Settings
from pipeline.console import Advance, count, format_bytes, say, show_progress
from pipeline.corpus import TextReader, read_distinct_keys
from pipeline.embed.backbone import Architecture
from pipeline.embed.fidelity import Fidelity, check_fidelity, measure_fidelity
from pipeline.embed.tokens import (
    TextTokenizer,
    Tokens,
    find_distinct,
    load_tokenizer,
    select_tokens,
)
from pipeline.errors import StoreError
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
    from pipeline.embed.engine import Engine, Job
    from pipeline.embed.loading import EngineGroup

# A change of what the code computes, if ever, makes every store of an older version stale.
_ALGORITHM = 1
_LARGE_STORE_BYTES = 2_000_000_000
# A kill costs at most this much work, and what one batch takes.
_KEEP_SECONDS = 15.0
# A further GPU takes some seconds to start, which this many shards repay.
_SHARDS_A_DEVICE = 8
# Compiling for a GPU takes some seconds too.
_TEXTS_TO_COMPILE = 1_000_000


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
            _record_run(len(keys), 0)
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
    if settings.runtime.devices == "cpu":
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
    devices, precision = _choose_devices(settings)
    recipe = make_recipe(asset, architecture, settings.embed, precision)
    update = StoreUpdate(paths.EMBEDDINGS, recipe, keys, first_rows)
    if update.resumed_rows:
        say(f"resuming an interrupted run: {count(update.resumed_rows, 'text')} already embedded")
    _say_size(recipe, len(keys))
    texts = TextReader()
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
    _record_run(manifest.rows - run.embedded, run.embedded)
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


class _Run:
    """Shards on their way: read and tokenized, computed, written, each while the others are.

    :param load: makes the engine, and the backbone to gauge it by; called when there is a text to
        embed, since a store that only has to be re-arranged needs neither.
    :param advance: called with texts done.
    :ivar embedded: texts that were embedded.
    :ivar n_tokens: that the backbone saw.
    """

    def __init__(
        self,
        update: StoreUpdate,
        precision: Precision,
        load: Callable[[], tuple[Engine | EngineGroup, Backbone]],
        advance: Advance,
    ) -> None:
        self.embedded = self.n_tokens = 0
        self.fidelity: Fidelity | None = None
        self._update = update
        self._precision = precision
        self._load = load
        self._advance = advance
        self._engine: Engine | EngineGroup | None = None
        self._reference: Backbone | None = None
        self._under_way: deque[tuple[_Shard, Job | None]] = deque()
        self._written: Future[None] | None = None

    def embed(self, source: _Source, ranges: list[tuple[int, int]], at_once: int) -> None:
        """Embed and write the shards of some ranges of keys.

        :param at_once: shards for the engine to have before the first of them is waited for.
        """
        with (
            ExitStack() as stack,
            ThreadPoolExecutor(1, "read") as reading,
            ThreadPoolExecutor(1, "write") as writing,
        ):
            for shard in _run_ahead(reading, source.take, ranges):
                self._advance(len(shard.kept.n_tokens))
                self._under_way.append((shard, self._start(shard, stack)))
                if len(self._under_way) >= at_once:
                    self._finish(writing)
            while self._under_way:
                self._finish(writing)
            if self._written is not None:
                self._written.result()

    def _start(self, shard: _Shard, stack: ExitStack) -> Job | None:
        if shard.tokens is None:
            return None
        if self._engine is None:
            self._engine, self._reference = self._load()
            stack.push(self._engine)
        # The bar counts texts but moves with their tokens, which is what takes the time.
        texts_per_token = len(shard.new) / int(shard.tokens.offsets[-1])
        return self._engine.start(
            shard.tokens,
            lambda tokens: self._advance(tokens * texts_per_token),
            _ProgressKeeper(self._update, shard.new[shard.first]),
        )

    def _finish(self, writing: ThreadPoolExecutor) -> None:
        shard, job = self._under_way.popleft()
        rows = shard.kept
        if job is not None:
            assert shard.tokens is not None
            fresh = job.finish()
            if self._reference is not None:
                self._gauge(self._reference, shard.tokens, fresh)
                self._reference = None
            rows = shard.join(fresh)
            self.n_tokens += int(shard.tokens.offsets[-1])
            self.embedded += len(shard.new)
        if self._written is not None:
            self._written.result()
        self._written = writing.submit(self._update.write_shard, shard.start, rows)

    def _gauge(self, reference: Backbone, tokens: Tokens, rows: Rows) -> None:
        """Compare a sample with Hugging Face in float32 before anything of this run is written.

        :raises StoreError: if it is further off than the precision explains.
        """
        fidelity = measure_fidelity(reference, tokens, rows, self._update.recipe.layers)
        try:
            check_fidelity(fidelity, self._precision)
        except StoreError:  # what was put aside meanwhile is as wrong
            shutil.rmtree(staging_folder(paths.EMBEDDINGS), ignore_errors=True)
            raise
        say(
            f"fidelity  lowest cosine {fidelity.lowest_cosine:.8f}, largest error "
            f"{fidelity.largest_error:.1e} to Hugging Face in float32, over {fidelity.texts} texts"
        )
        self.fidelity = fidelity


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


def _run_ahead(
    pool: ThreadPoolExecutor, work: Callable[[int, int], _Shard], ranges: list[tuple[int, int]]
) -> Iterator[_Shard]:
    """Results in order, the next one under way while the caller is busy with this one."""
    under_way: Future[_Shard] | None = None
    for start, stop in ranges:
        following = pool.submit(work, start, stop)
        if under_way is not None:
            yield under_way.result()
        under_way = following
    if under_way is not None:
        yield under_way.result()


@dataclass(frozen=True)
class _Shard:
    """One shard's texts, known and new.

    :param start: of its range among the keys.
    :param known: bool, [S]: which texts have vectors already.
    :param kept: their rows.
    :param tokens: of the D new texts that differ as tokens; ``None`` if there are none.
    :param first: int64, [D]: the first new text with these tokens.
    :param places: int64: for each new text, where it stands among the D.
    """

    start: int
    known: npt.NDArray[np.bool_]
    kept: Rows
    tokens: Tokens | None
    first: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]

    @property
    def new(self) -> npt.NDArray[np.int64]:
        """Where the new texts stand among the keys."""
        return np.flatnonzero(~self.known) + self.start

    def join(self, fresh: Rows) -> Rows:
        """Rows of all its texts, in their order.

        :param fresh: of the texts that differ as tokens.
        """
        size = len(self.known)
        n_tokens = np.empty(size, np.int32)
        vectors = np.empty((size, *fresh.vectors.shape[1:]), fresh.vectors.dtype)
        n_tokens[self.known], vectors[self.known] = self.kept.n_tokens, self.kept.vectors
        n_tokens[~self.known] = fresh.n_tokens[self.places]
        vectors[~self.known] = fresh.vectors[self.places]
        return Rows(n_tokens, vectors)


class _Source:
    """Takes what is known of a shard from the store, and tokenizes the rest.

    :param first_rows: int64, [N]: the row of the corpus in which each key's text stands first.
    """

    def __init__(
        self,
        update: StoreUpdate,
        texts: TextReader,
        tokenizer: TextTokenizer,
        first_rows: npt.NDArray[np.int64],
    ) -> None:
        self._update = update
        self._texts = texts
        self._tokenizer = tokenizer
        self._first_rows = first_rows

    def take(self, start: int, stop: int) -> _Shard:
        known, kept = self._update.find_known(start, stop)
        new = np.flatnonzero(~known) + start
        if not len(new):
            return _Shard(start, known, kept, None, new, new)
        tokens = self._tokenizer.tokenize(self._texts.take(self._first_rows[new]))
        first, places = find_distinct(tokens)
        return _Shard(start, known, kept, select_tokens(tokens, first), first, places)


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


def _record_run(kept: int, embedded: int) -> None:
    """Note what the run found in the store, for `pipeline cache info`."""
    write_json(paths.LAST_EMBED, {"kept": kept, "embedded": embedded})


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
