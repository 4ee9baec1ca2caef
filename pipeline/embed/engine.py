"""From tokens to vectors on one device: batches through the forward pass, several at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from pipeline.console import Advance, say
from pipeline.embed.backbone import Encoder
from pipeline.embed.batches import fill_up, plan_batches
from pipeline.embed.pooling import scale_to_unit
from pipeline.embed.tokens import Tokens, Windows, select_tokens
from pipeline.errors import DeviceError
from pipeline.store import Rows

# Batches computed at once on a CPU. The threads of more would wait for each other at the lock of
# the Python interpreter.
_MOST_LANES = 8
# Batches on a GPU are filled up to a multiple of this many tokens, so that they come in few shapes:
# the GPU's libraries choose a kernel anew for each shape.
_GPU_STEP_TOKENS = 4096
_FILLER_TOKENS = 128  # the longest text that only fills up a batch

# Indices of some of a job's texts: int64, [b].
Batch = npt.NDArray[np.int64]
# Called with the texts just finished, and the rows of all texts of the job, of which those of the
# unfinished texts are not filled in yet.
Keep = Callable[[Batch, Rows], None]


def ignore_progress(amount: float) -> None:
    """Take no notice of work that was done."""


def keep_nothing(batch: Batch, rows: Rows) -> None:
    """Take no notice of texts that were finished."""


class Job(Protocol):
    """Texts that are being embedded."""

    def finish(self) -> Rows:
        """Wait for the vectors of all texts of the job.

        :returns: rows of the texts in their order.
        :raises DeviceError: if the device has not the memory for a single text.
        """


class AnyEngine(Protocol):
    """What embeds tokens until it is closed: one device in this process, or several devices."""

    def start(
        self, tokens: Tokens, advance: Advance = ignore_progress, keep: Keep = keep_nothing
    ) -> Job:
        """Queue texts behind those started before, so that no device is idle between the two.

        :param tokens: token ids of B texts.
        :param advance: a function to call with the number of tokens just finished.
        :param keep: a function to call with the texts just finished, and the rows of all.
        """

    def close(self) -> None:
        """Give up what has not been computed yet, and free the threads or processes."""

    def __enter__(self) -> AnyEngine: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


@dataclass
class Engine:
    """One device in this process; batches run in threads of the engine's own until it is closed.

    :param encoder: the forward pass.
    :param layers: numbers of the L layers wanted, ascending.
    :param dtype: type of the vectors: float16 or float32.
    :param token_budget: tokens in one batch; halved for good when the device has not the memory
        for it.
    :param normalize: whether vectors are scaled to length 1.
    :ivar lanes: number of batches computed at once.
    """

    encoder: Encoder
    layers: tuple[int, ...]
    dtype: np.dtype[Any]
    token_budget: int
    normalize: bool = False

    def __post_init__(self) -> None:
        self._threads = torch.get_num_threads()
        self.lanes = self._count_lanes()
        self._pool = ThreadPoolExecutor(
            self.lanes,
            "lane",
            initializer=torch.set_num_threads,
            initargs=(self._threads // self.lanes,),
        )

    def _count_lanes(self) -> int:
        """How many batches to compute at once.

        On a CPU each batch has its share of the threads, because threads that work on one product
        wait at its end for the slowest of them, which on a busy machine can take long. A GPU takes
        one batch after another. So does Hugging Face's forward pass, which collects hidden states
        by hooks in the model that two batches would share.
        """
        if self.encoder.is_packed and self.encoder.device.type == "cpu":
            return min(self._threads, _MOST_LANES)
        return 1

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the threads; texts that have not been computed yet are given up."""
        self._pool.shutdown(cancel_futures=True)
        # The number of threads that a lane has set for itself is also the one that threads started
        # later begin with.
        torch.set_num_threads(self._threads)

    def embed(self, tokens: Tokens) -> Rows:
        """Pooled vectors of B texts, in their order.

        :param tokens: token ids of the texts.
        :returns: token counts, int32, [B], and vectors, [B, L, D], in the engine's dtype.
        :raises DeviceError: if the device has not the memory for a single text.
        """
        return self.start(tokens).finish()

    def start(
        self, tokens: Tokens, advance: Advance = ignore_progress, keep: Keep = keep_nothing
    ) -> Job:
        """Queue texts behind those started before, as ``AnyEngine`` has it."""
        return _EngineJob(self, tokens, advance, keep)

    def plan(self, texts: Batch, lengths: npt.NDArray[np.int64]) -> list[Batch]:
        """Divide texts into batches.

        :param texts: indices of the texts, [b].
        :param lengths: tokens of all texts of the job, [B].
        """
        budget = self.token_budget
        if self.lanes > 1 and len(texts):
            # Every lane gets the same number of batches. Otherwise some lanes would stand idle at
            # the end, which in a small run is a large part of the whole.
            total = int(lengths[texts].sum())
            rounds = -(-total // (self.lanes * budget))
            budget = min(
                budget, -(-total // (self.lanes * rounds)) + int(lengths[texts].max()) // 2
            )
        plan = plan_batches(lengths[texts], budget, packed=self.encoder.is_packed)
        return [texts[batch] for batch in plan]

    def submit(self, tokens: Tokens, batch: Batch) -> Future[_Result]:
        """Have some of the texts computed; the future raises ``MemoryError`` if they do not fit.

        :param tokens: token ids of all texts of the job.
        :param batch: indices of the texts to compute.
        """
        return self._pool.submit(self._run, tokens, batch)

    def _run(self, tokens: Tokens, batch: Batch) -> _Result:
        chosen = select_tokens(tokens, batch)
        if self.encoder.is_packed and self.encoder.device.type == "cuda":
            # No longer than the batch's own texts, whose longest one attention goes by.
            longest = min(_FILLER_TOKENS, int(chosen.lengths.max()))
            chosen = fill_up(chosen, _GPU_STEP_TOKENS, longest)
        try:
            spans = chosen.windows.spans if chosen.windows is not None else None
            pooled = self.encoder.encode(chosen.ids, chosen.lengths, self.layers, spans)
            pooled = pooled[: len(batch)]
            # Windows are joined first, from numbers that were not rounded.
            return _Result(pooled if spans is not None else self.round(pooled))
        except RuntimeError as error:  # a CPU's lack of memory has no class of its own
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
            elif "can't allocate memory" not in str(error):
                raise
            raise MemoryError from error

    def round(self, pooled: torch.Tensor) -> torch.Tensor:
        """Vectors as they are handed out: scaled, if they are to be, and in the engine's type.

        :param pooled: float32, [B, L, D].
        """
        scaled = scale_to_unit(pooled) if self.normalize else pooled
        return scaled.to(getattr(torch, self.dtype.name))

    def lower_budget(self, lengths: npt.NDArray[np.int64], error: MemoryError) -> None:
        """Halve the budget after a batch that did not fit.

        :param lengths: tokens of the batch's texts.
        :param error: error that the batch raised.
        :raises DeviceError: if the batch was a single text.
        """
        if len(lengths) == 1:
            raise DeviceError(
                f"not enough memory on {self.encoder.device} for one text of {lengths[0]} tokens",
                hint="lower embed.max_tokens, or run on the CPU",
            ) from error
        tokens = int(lengths.sum())
        if tokens <= self.token_budget:  # otherwise another batch has lowered the budget already
            self.token_budget = tokens // 2
            say(f"not enough memory: token budget halved to {self.token_budget:,}")


class _EngineJob:
    """Texts in the lanes of an engine."""

    def __init__(self, engine: Engine, tokens: Tokens, advance: Advance, keep: Keep) -> None:
        self._engine = engine
        self._tokens = tokens
        self._lengths = tokens.lengths
        self._advance = advance
        self._keep = keep
        self._join = None if tokens.windows is None else _Join(tokens.windows, engine)
        n_tokens = self._lengths if self._join is None else self._join.totals
        shape = (len(n_tokens), len(engine.layers), engine.encoder.width)
        self._rows = Rows(n_tokens.astype(np.int32), np.empty(shape, engine.dtype))
        self._under_way: deque[tuple[Batch, Future[_Result]]] = deque()
        self._submit(np.arange(len(self._lengths)))

    def _submit(self, texts: Batch) -> None:
        for batch in self._engine.plan(texts, self._lengths):
            self._under_way.append((batch, self._engine.submit(self._tokens, batch)))

    def finish(self) -> Rows:
        while self._under_way:
            batch, result = self._under_way.popleft()
            try:
                vectors = result.result().wait()
            except MemoryError as error:
                self._engine.lower_budget(self._lengths[batch], error)
                self._submit(batch)
                continue
            if self._join is None:
                texts = batch
            else:
                texts, vectors = self._join.add(batch, vectors)
            self._rows.vectors[texts] = vectors
            self._advance(int(self._lengths[batch].sum()))
            self._keep(texts, self._rows)
        return self._rows


class _Join:
    """Adds up the vectors of windows until those of their texts are whole.

    :param windows: what the windows are of.
    :param engine: the engine that computes them.
    :ivar totals: tokens of each text, of which each counts in one window: int64, [B].
    """

    def __init__(self, windows: Windows, engine: Engine) -> None:
        self._owners = windows.owners
        self._engine = engine
        sizes = windows.spans[:, 1] - windows.spans[:, 0]
        self._left = np.bincount(windows.owners)
        self.totals = np.bincount(windows.owners, weights=sizes).astype(np.int64)
        self._shares = torch.from_numpy((sizes / self.totals[windows.owners]).astype(np.float32))
        shape = (len(self.totals), len(engine.layers), engine.encoder.width)
        self._sums = torch.zeros(shape)

    def add(self, batch: Batch, vectors: npt.NDArray[Any]) -> tuple[Batch, npt.NDArray[Any]]:
        """Add windows to their texts.

        :param batch: indices of the windows: [b].
        :param vectors: the means over what counts of them: float32, [b, L, D].
        :returns: indices of the texts that are whole now, and their vectors as the engine hands
            them out.
        """
        owners = self._owners[batch]
        shares = self._shares[torch.from_numpy(batch)][:, None, None]
        self._sums.index_add_(0, torch.from_numpy(owners), torch.from_numpy(vectors) * shares)
        texts, counts = np.unique(owners, return_counts=True)
        self._left[texts] -= counts
        texts = texts[self._left[texts] == 0]
        return texts, self._engine.round(self._sums[torch.from_numpy(texts)]).numpy()


class _Result:
    """Vectors on their way from the device.

    :param vectors: a tensor of [b, L, D]; the work that fills it may still be going on.
    """

    def __init__(self, vectors: torch.Tensor) -> None:
        self._vectors = vectors
        self._arrived: torch.cuda.Event | None = None
        if vectors.is_cuda:
            # The copy is queued now, before the next batch, so that it does not wait for that one.
            self._vectors = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
            self._vectors.copy_(vectors, non_blocking=True)
            # Untyped in torch itself.
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(vectors.device))

    def wait(self) -> npt.NDArray[Any]:
        if self._arrived is not None:
            self._arrived.synchronize()
        arrived: npt.NDArray[Any] = self._vectors.numpy()
        return arrived
