"""Batches through the forward pass, several at a time."""

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
from pipeline.embed.tokens import Tokens, select_tokens
from pipeline.errors import DeviceError
from pipeline.store import Rows

# More would wait for each other in the interpreter.
_MOST_LANES = 8
# Batches on a GPU have a multiple of this many tokens, so that they come in a few shapes only, for
# which its libraries choose their kernels once.
_GPU_STEP = 4096
_FILLER = 128  # tokens of a text that only fills up a batch, at most

Batch = npt.NDArray[np.int64]
Keep = Callable[[Batch, Rows], None]


class Job(Protocol):
    """Texts that are being embedded."""

    def finish(self) -> Rows:
        """Wait for their vectors.

        :raises DeviceError: if the device has not the memory for a single text.
        """


@dataclass
class Engine:
    """Runs batches through the backbone, in threads of its own until it is closed.

    :param layers: numbers of the L layers wanted, ascending.
    :param dtype: of the vectors: float16 or float32.
    :param token_budget: tokens in one batch; halved for good when the device has not the memory
        for it.
    """

    encoder: Encoder
    layers: tuple[int, ...]
    dtype: np.dtype[Any]
    token_budget: int

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

        On a CPU each has its share of the threads: threads that work on one product wait for each
        other at its end, and on a busy machine for the slowest. A GPU takes one after another, and
        so does Hugging Face's forward pass, which keeps hidden states by hooks in the model.
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
        self._pool.shutdown(cancel_futures=True)
        # What a lane sets is also what new threads start with.
        torch.set_num_threads(self._threads)

    def embed(self, tokens: Tokens) -> Rows:
        """Pooled vectors of B texts, in their order.

        :returns: int32, [B], and [B, L, D] in the store's dtype.
        :raises DeviceError: if the device has not the memory for a single text.
        """
        return self.start(tokens).finish()

    def start(
        self,
        tokens: Tokens,
        advance: Advance = lambda amount: None,
        keep: Keep = lambda batch, rows: None,
    ) -> Job:
        """Queue B texts behind those started before, so that no lane is idle between the two.

        :param advance: called with the number of tokens just finished.
        :param keep: called with the indices of the texts just finished, and all rows.
        """
        return _EngineJob(self, tokens, advance, keep)

    def plan(self, texts: Batch, lengths: npt.NDArray[np.int64]) -> list[Batch]:
        """Batches of texts.

        :param texts: their indices.
        :param lengths: tokens of all texts.
        """
        budget = self.token_budget
        if self.lanes > 1 and len(texts):
            # As many batches for each lane, or some would stand idle at the end of a small run.
            total = int(lengths[texts].sum())
            rounds = -(-total // (self.lanes * budget))
            budget = min(
                budget, -(-total // (self.lanes * rounds)) + int(lengths[texts].max()) // 2
            )
        plan = plan_batches(lengths[texts], budget, packed=self.encoder.is_packed)
        return [texts[batch] for batch in plan]

    def submit(self, tokens: Tokens, batch: Batch) -> Future[_Result]:
        """Have some of the texts computed; ``MemoryError`` if they do not fit."""
        return self._pool.submit(self._run, tokens, batch)

    def _run(self, tokens: Tokens, batch: Batch) -> _Result:
        chosen = select_tokens(tokens, batch)
        if self.encoder.is_packed and self.encoder.device.type == "cuda":
            longest = min(_FILLER, self.encoder.architecture.max_tokens)
            chosen = fill_up(chosen, _GPU_STEP, longest)
        try:
            pooled = self.encoder.encode(chosen.ids, chosen.lengths, self.layers)[: len(batch)]
            return _Result(pooled.to(getattr(torch, self.dtype.name)))
        except RuntimeError as error:  # on a CPU it has no class of its own
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
            elif "can't allocate memory" not in str(error):
                raise
            raise MemoryError from error

    def lower_budget(self, lengths: npt.NDArray[np.int64], error: MemoryError) -> None:
        """Halve the budget after a batch that did not fit.

        :param lengths: tokens of its texts.
        :raises DeviceError: if it was a single text.
        """
        if len(lengths) == 1:
            raise DeviceError(
                f"not enough memory on {self.encoder.device} for one text of {lengths[0]} tokens",
                hint="lower embed.max_tokens, or run on the CPU",
            ) from error
        tokens = int(lengths.sum())
        if tokens <= self.token_budget:  # else another batch has lowered it already
            self.token_budget = tokens // 2
            say(f"not enough memory: token budget halved to {self.token_budget:,}")


class _EngineJob:
    def __init__(self, engine: Engine, tokens: Tokens, advance: Advance, keep: Keep) -> None:
        self._engine = engine
        self._tokens = tokens
        self._lengths = tokens.lengths
        self._advance = advance
        self._keep = keep
        B, width = len(self._lengths), engine.encoder.architecture.width
        vectors = np.empty((B, len(engine.layers), width), engine.dtype)
        self._rows = Rows(self._lengths.astype(np.int32), vectors)
        self._under_way: deque[tuple[Batch, Future[_Result]]] = deque()
        self._submit(np.arange(B))

    def _submit(self, texts: Batch) -> None:
        for batch in self._engine.plan(texts, self._lengths):
            self._under_way.append((batch, self._engine.submit(self._tokens, batch)))

    def finish(self) -> Rows:
        while self._under_way:
            batch, result = self._under_way.popleft()
            try:
                self._rows.vectors[batch] = result.result().wait()
            except MemoryError as error:
                self._engine.lower_budget(self._lengths[batch], error)
                self._submit(batch)
                continue
            self._advance(int(self._lengths[batch].sum()))
            self._keep(batch, self._rows)
        return self._rows


class _Result:
    """Vectors on their way from the device.

    :param vectors: [b, L, D]; the work that makes them may still be going on.
    """

    def __init__(self, vectors: torch.Tensor) -> None:
        self._vectors = vectors
        self._arrived: torch.cuda.Event | None = None
        if vectors.is_cuda:
            # Asked for now, so that it does not wait for the next batch.
            self._vectors = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
            self._vectors.copy_(vectors, non_blocking=True)
            # Untyped in torch itself.
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(vectors.device))

    def wait(self) -> npt.NDArray[Any]:
        if self._arrived is not None:
            self._arrived.synchronize()
        found: npt.NDArray[Any] = self._vectors.numpy()
        return found
