"""Shards on their way: read and tokenized, computed, written, each while the others are."""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.console import Advance, say
from pipeline.corpus.tables import TextReader
from pipeline.embed.fidelity import Fidelity, check_fidelity, measure_fidelity
from pipeline.embed.tokens import (
    TextTokenizer,
    Tokens,
    find_distinct,
    select_tokens,
)
from pipeline.errors import StoreError
from pipeline.store import (
    Rows,
    StoreUpdate,
)

if TYPE_CHECKING:
    from pipeline.embed.backbone import Backbone, Precision
    from pipeline.embed.engine import Engine, Job
    from pipeline.embed.loading import EngineGroup


# A kill costs at most this much work, and what one batch takes.
_KEEP_SECONDS = 15.0


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
            shutil.rmtree(self._update.staged, ignore_errors=True)
            raise
        say(
            f"fidelity  lowest cosine {fidelity.lowest_cosine:.8f}, largest error "
            f"{fidelity.largest_error:.1e} to Hugging Face in float32, over {fidelity.texts} texts"
        )
        self.fidelity = fidelity


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
