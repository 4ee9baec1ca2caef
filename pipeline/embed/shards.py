"""Shards under way: read and tokenized, computed, written, each while the others are."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.arrays import wrap_numbers
from pipeline.console import Advance, say
from pipeline.corpus.tables import TextReader
from pipeline.embed.embedder import Embedder
from pipeline.embed.engine import Job
from pipeline.embed.fidelity import Fidelity
from pipeline.embed.gauge import Gauge, repays_gauge
from pipeline.embed.tokens import DistinctTokens
from pipeline.errors import StoreError
from pipeline.store import Recipe, Rows, Update, count_lengths

# Finished rows go to the disk this often, so that a kill costs at most this much work and what one
# batch takes.
_KEEP_SECONDS = 15.0


@dataclass(frozen=True)
class ShardPlan:
    """One shard to be written; it holds no open file, so that any process could take it.

    :param start: the number of its first text among the distinct texts of the corpus.
    :param stop: the number behind that of its last text.
    :param recipe: recipe of the vectors.
    """

    start: int
    stop: int
    recipe: Recipe


@dataclass(frozen=True)
class ShardTexts:
    """The texts of one shard, those with vectors and those without.

    :param start: the number of its first text among the distinct texts of the corpus.
    :param known: true for texts that have vectors already: bool, [B].
    :param kept: rows of the texts that have.
    :param tokens: token ids of the texts that have not; ``None`` if all have.
    :param lengths: how many of all these texts were cut, as ``count_lengths`` says it.
    :param hollow: numbers, among the distinct texts of the corpus, of the texts without vectors of
        which nothing is left but special tokens and unknown pieces: int64.
    """

    start: int
    known: npt.NDArray[np.bool_]
    kept: Rows
    tokens: DistinctTokens | None
    lengths: Mapping[str, int]
    hollow: npt.NDArray[np.int64]

    def join(self, fresh: Rows) -> Rows:
        """Rows of all texts of the shard, in their order.

        :param fresh: rows of the distinct texts of ``tokens``.
        """
        assert self.tokens is not None
        if not self.known.any():
            return self.tokens.expand(fresh)
        B, indices = len(self.known), self.tokens.indices
        n_tokens = np.empty(B, np.int32)
        vectors = np.empty((B, *fresh.vectors.shape[1:]), fresh.vectors.dtype)
        n_tokens[self.known], vectors[self.known] = self.kept.n_tokens, self.kept.vectors
        n_tokens[~self.known] = fresh.n_tokens[indices]
        vectors[~self.known] = fresh.vectors[indices]
        return Rows(n_tokens, vectors)

    def locate_distinct(self) -> npt.NDArray[np.int64]:
        """For each distinct text of ``tokens`` its number among the texts of the corpus."""
        assert self.tokens is not None
        return np.flatnonzero(~self.known)[self.tokens.first] + self.start


@dataclass(frozen=True)
class _Taken:
    """What of a shard comes from the store and from the texts of the corpus.

    :param plan: the shard.
    :param known: true for texts that have vectors already: bool, [B].
    :param kept: rows of the texts that have.
    :param is_full: true for those of them that were cut, or just fit: bool, [B].
    :param texts: the texts to tokenize: those without vectors, and those that are full.
    """

    plan: ShardPlan
    known: npt.NDArray[np.bool_]
    kept: Rows
    is_full: npt.NDArray[np.bool_]
    texts: pa.Array


class ShardReader:
    """Takes the known vectors of a shard from the store, and tokenizes the other texts.

    :param update: the change of the store, or the slice.
    :param texts: the texts of the corpus.
    :param first_rows: the row of the corpus in which each distinct text stands first: int64.
    :param embedder: the embedder that tokenizes.
    """

    def __init__(
        self,
        update: Update,
        texts: TextReader,
        first_rows: npt.NDArray[np.int64],
        embedder: Embedder,
    ) -> None:
        self._update = update
        self._texts = texts
        self._first_rows = first_rows
        self._embedder = embedder

    def read(self, plan: ShardPlan) -> ShardTexts:
        """The texts of one shard.

        :param plan: the shard; shards are read in their order.
        :raises ValueError: if the shard is not of the recipe of the store.
        """
        return self._tokenize(self._take(plan))

    def _take(self, plan: ShardPlan) -> _Taken:
        if plan.recipe.fingerprint != self._update.recipe.fingerprint:
            raise ValueError(f"shard from text {plan.start} is of another recipe than the store")
        known, kept = self._update.find_known(plan.start, plan.stop)
        # A text of the longest length was cut, or just fits: its tokens tell which.
        is_full = known.copy()
        is_full[known] = kept.n_tokens >= plan.recipe.contents["max_tokens"]
        wanted = ~known | is_full
        texts = self._texts.take(self._first_rows[np.flatnonzero(wanted) + plan.start])
        return _Taken(plan, known, kept, is_full, texts)

    def _tokenize(self, taken: _Taken) -> ShardTexts:
        plan, known, is_full, texts = taken.plan, taken.known, taken.is_full, taken.texts
        wanted = ~known | is_full
        whole_lengths = np.empty(len(known), np.int64)
        whole_lengths[known] = taken.kept.n_tokens
        if is_full.any():
            full = self._embedder.tokenize(texts.filter(wrap_numbers(is_full[wanted])))
            whole_lengths[is_full] = full.whole_lengths
        tokens, hollow = None, np.empty(0, np.int64)
        if not known.all():
            tokens = self._embedder.tokenize(texts.filter(wrap_numbers(~known[wanted])))
            whole_lengths[~known] = tokens.whole_lengths
            is_hollow = self._embedder.find_hollow(tokens)
            hollow = np.flatnonzero(~known)[is_hollow] + plan.start
        lengths = count_lengths(whole_lengths, plan.recipe.contents["max_tokens"])
        return ShardTexts(plan.start, known, taken.kept, tokens, lengths, hollow)

    def read_ahead(self, plans: Sequence[ShardPlan], at_once: int) -> Generator[ShardTexts]:
        """The texts of shards in order, of which the next are read while one is in use.

        :param plans: the shards.
        :param at_once: number of shards to tokenize at once.
        """
        under_way: deque[Future[ShardTexts]] = deque()
        with (
            ThreadPoolExecutor(1, "read") as reading,
            ThreadPoolExecutor(at_once, "tokenize") as tokenizing,
        ):

            def tokenize(taken: Future[_Taken]) -> ShardTexts:
                return self._tokenize(taken.result())

            try:
                for plan in plans:
                    # Texts are taken in their order, whichever thread then tokenizes them.
                    under_way.append(tokenizing.submit(tokenize, reading.submit(self._take, plan)))
                    if len(under_way) > at_once:
                        yield under_way.popleft().result()
                while under_way:
                    yield under_way.popleft().result()
            finally:
                reading.shutdown(wait=False, cancel_futures=True)
                tokenizing.shutdown(wait=False, cancel_futures=True)


class ShardRunner:
    """Embeds and writes shards, reading one and writing another while the device computes.

    The weights are loaded for the first text to embed: a store whose texts only have to be put into
    another order needs none.

    :param update: the change of the store, or the slice.
    :param reader: reader of the shards' texts.
    :param embedder: embedder of the texts that have no vectors yet.
    :param advance: a function to call with the number of texts just finished.
    :ivar embedded: number of texts that were embedded.
    :ivar n_tokens: number of tokens that the backbone saw.
    :ivar fidelity: distance of a sample from Hugging Face in float32, once there are vectors.
    :ivar is_gauged: whether the sample is of this run, rather than of an earlier one by the same
        backbone, settings, code and processor.
    :ivar hollow: numbers of the embedded texts that are hollow, as ``ShardTexts`` has them.
    """

    def __init__(
        self, update: Update, reader: ShardReader, embedder: Embedder, advance: Advance
    ) -> None:
        self.embedded = self.n_tokens = 0
        self.fidelity: Fidelity | None = None
        self.is_gauged = False
        self.hollow: list[npt.NDArray[np.int64]] = []
        self._update = update
        self._reader = reader
        self._embedder = embedder
        self._advance = advance
        self._gauge: Gauge | None = None
        self._shards = 0
        self._under_way: deque[tuple[ShardTexts, Job | None]] = deque()
        self._written: deque[Future[None]] = deque()

    @property
    def fidelity_record(self) -> dict[str, Any] | None:
        """The distance, as a manifest has it; ``None`` if nothing was embedded."""
        return self.fidelity.to_record() if self.fidelity is not None else None

    def run(
        self, plans: Sequence[ShardPlan], at_once: int, *, readers: int = 1, writers: int = 1
    ) -> None:
        """Embed and write shards.

        :param plans: the shards, in their order.
        :param at_once: number of shards for the engine to have before the first is waited for.
        :param readers: number of shards to tokenize at once.
        :param writers: number of shards to write at once.
        :raises StoreError: if the vectors are not those of the backbone, before any is written.
        """
        self._shards = len(plans)
        with (
            contextlib.closing(self._reader.read_ahead(plans, readers)) as shards,
            ThreadPoolExecutor(writers, "write") as writing,
        ):
            for shard in shards:
                self._advance(len(shard.kept.n_tokens))
                self._under_way.append((shard, self._start(shard)))
                if len(self._under_way) >= at_once:
                    self._finish(writing, writers)
            while self._under_way:
                self._finish(writing, writers)
            while self._written:
                self._written.popleft().result()

    def _start(self, shard: ShardTexts) -> Job | None:
        if shard.tokens is None:
            return None
        if not self._embedder.is_loaded:
            say(f"backbone  {self._update.recipe.backbone}: loading")
            self._embedder.load()
            say(f"engine    {self._embedder.describe()}")
            self._gauge = Gauge(self._embedder, self._update.recipe)
            tokens = len(shard.tokens.tokens.ids) * self._shards
            self.is_gauged = self._gauge.remembered is None or repays_gauge(
                self._embedder.architecture, tokens, self._embedder.devices[0].type
            )
            if self.is_gauged:
                self._gauge.load_ahead()
        keeper = _ProgressKeeper(self._update, shard.locate_distinct())
        return self._embedder.start(shard.tokens, self._advance, keeper)

    def _finish(self, writing: ThreadPoolExecutor, writers: int) -> None:
        shard, job = self._under_way.popleft()
        rows = shard.kept
        if job is not None:
            assert shard.tokens is not None
            fresh = job.finish()
            if self._gauge is not None:
                self._measure(self._gauge, shard.tokens, fresh)
                self._gauge = None
            rows = shard.join(fresh)
            self.n_tokens += len(shard.tokens.tokens.ids)
            self.embedded += len(shard.tokens)
        while len(self._written) >= writers:
            self._written.popleft().result()
        self.hollow.append(shard.hollow)
        write = self._update.write_shard
        self._written.append(writing.submit(write, shard.start, rows, shard.lengths))

    def _measure(self, gauge: Gauge, texts: DistinctTokens, rows: Rows) -> None:
        """Make sure that vectors are those of the backbone before anything of this run is written.

        :param texts: the first texts of the run.
        :param rows: their rows.
        :raises StoreError: if they are further off than the precision explains.
        """
        self.fidelity = gauge.remembered
        if self.is_gauged:
            try:
                self.fidelity = gauge.measure(texts.tokens, rows)
            except StoreError:  # what was kept of this run meanwhile is as wrong
                self._update.discard()
                raise
        assert self.fidelity is not None
        say(
            f"fidelity  lowest cosine {self.fidelity.lowest_cosine:.8f}, largest error "
            f"{self.fidelity.largest_error:.1e} to Hugging Face in float32, over "
            f"{self.fidelity.texts} texts{'' if self.is_gauged else ' of an earlier run'}"
        )


class _ProgressKeeper:
    """Puts finished rows on the disk every so often, so that a kill costs no more than that.

    :param update: the change of the store that keeps the rows.
    :param numbers: the number of each text being embedded among the texts of the corpus: int64.
    """

    def __init__(self, update: Update, numbers: npt.NDArray[np.int64]) -> None:
        self._update = update
        self._numbers = numbers
        self._waiting: list[npt.NDArray[np.int64]] = []
        self._saved_at = time.perf_counter()

    def __call__(self, batch: npt.NDArray[np.int64], rows: Rows) -> None:
        """Note that some texts are finished, as ``Keep`` has it.

        :param batch: indices of the texts just finished.
        :param rows: rows of all texts, of which those of the unfinished are not filled in yet.
        """
        self._waiting.append(batch)
        if time.perf_counter() - self._saved_at >= _KEEP_SECONDS:
            done = np.concatenate(self._waiting)
            finished = Rows(rows.n_tokens[done], rows.vectors[done])
            self._update.save_progress(self._numbers[done], finished)
            self._waiting = []
            self._saved_at = time.perf_counter()
