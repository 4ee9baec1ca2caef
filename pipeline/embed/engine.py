"""Batches through the forward pass, several at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.console import Advance, say
from pipeline.embed.backbone import Encoder
from pipeline.embed.batches import plan_batches
from pipeline.embed.tokens import Tokens, select_tokens
from pipeline.errors import DeviceError
from pipeline.store import Rows

# More would wait for each other in the interpreter.
_MOST_LANES = 8

Batch = npt.NDArray[np.int64]


@dataclass
class Engine:
    """Runs batches through the backbone.

    :param layers: numbers of the L layers wanted, ascending.
    :param dtype: of the vectors: float16 or float32.
    :param token_budget: tokens in one batch; halved for good when the device has not the memory
        for it.
    """

    encoder: Encoder
    layers: tuple[int, ...]
    dtype: np.dtype[Any]
    token_budget: int

    def embed(
        self,
        tokens: Tokens,
        advance: Advance = lambda amount: None,
        keep: Callable[[Batch, Rows], None] = lambda batch, rows: None,
    ) -> Rows:
        """Pooled vectors of B texts, in their order.

        :param advance: called with the number of tokens just finished.
        :param keep: called with the indices of the texts just finished, and all rows.
        :returns: int32, [B], and [B, L, D] in the store's dtype.
        :raises DeviceError: if the device has not the memory for a single text.
        """
        lengths = tokens.lengths
        width = self.encoder.architecture.width
        vectors = np.empty((len(lengths), len(self.layers), width), self.dtype)
        rows = Rows(lengths.astype(np.int32), vectors)
        threads = torch.get_num_threads()
        lanes = self._count_lanes(threads)
        waiting = self._plan(np.arange(len(lengths)), lengths, lanes)
        under_way: deque[tuple[Batch, Future[_Result]]] = deque()
        pool = ThreadPoolExecutor(
            lanes, "lane", initializer=torch.set_num_threads, initargs=(threads // lanes,)
        )
        try:
            while waiting or under_way:
                # One more than there are lanes, so that none has to wait for this thread.
                while waiting and len(under_way) <= lanes:
                    batch = waiting.popleft()
                    under_way.append((batch, pool.submit(self._start, tokens, batch)))
                batch, result = under_way.popleft()
                try:
                    vectors[batch] = result.result().wait()
                except MemoryError as error:
                    self._lower_budget(lengths[batch], error)
                    waiting = self._plan(np.concatenate([batch, *waiting]), lengths, lanes)
                    continue
                advance(int(lengths[batch].sum()))
                keep(batch, rows)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)  # what a lane sets is also what new threads start with
        return rows

    def _count_lanes(self, threads: int) -> int:
        """How many batches to compute at once.

        On a CPU each has its share of the threads: threads that work on one product wait for each
        other at its end, and on a busy machine for the slowest. A GPU takes one after another, and
        so does Hugging Face's forward pass, which keeps hidden states by hooks in the model.
        """
        if self.encoder.is_packed and self.encoder.device.type == "cpu":
            return min(threads, _MOST_LANES)
        return 1

    def _plan(self, texts: Batch, lengths: npt.NDArray[np.int64], lanes: int) -> deque[Batch]:
        budget = self.token_budget
        if lanes > 1 and len(texts):
            # As many batches for each lane, or some would stand idle at the end of a small run.
            total = int(lengths[texts].sum())
            rounds = -(-total // (lanes * budget))
            budget = min(budget, -(-total // (lanes * rounds)) + int(lengths[texts].max()) // 2)
        plan = plan_batches(lengths[texts], budget, packed=self.encoder.is_packed)
        return deque(texts[batch] for batch in plan)

    def _lower_budget(self, lengths: npt.NDArray[np.int64], error: MemoryError) -> None:
        if len(lengths) == 1:
            raise DeviceError(
                f"not enough memory on {self.encoder.device} for one text of {lengths[0]} tokens",
                hint="lower params.yaml: embed.max_tokens, or run on the CPU",
            ) from error
        tokens = int(lengths.sum())
        if tokens <= self.token_budget:  # else another batch has lowered it already
            self.token_budget = tokens // 2
            say(f"not enough memory: token budget halved to {self.token_budget:,}")

    def _start(self, tokens: Tokens, batch: Batch) -> _Result:
        chosen = select_tokens(tokens, batch)
        try:
            pooled = self.encoder.encode(chosen.ids, chosen.lengths, self.layers)
            return _Result(pooled.to(getattr(torch, self.dtype.name)))
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise MemoryError from error


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
            self._arrived.record()

    def wait(self) -> npt.NDArray[Any]:
        if self._arrived is not None:
            self._arrived.synchronize()
        found: npt.NDArray[Any] = self._vectors.numpy()
        return found
