"""Batches through the forward pass, one ahead of the results."""

from __future__ import annotations

from collections.abc import Callable
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
        under_way: tuple[Batch, _Result] | None = None

        def finish() -> None:
            nonlocal under_way
            if under_way is not None:
                batch, result = under_way
                vectors[batch] = result.wait()
                under_way = None
                advance(int(lengths[batch].sum()))
                keep(batch, rows)

        waiting = self._plan(np.arange(len(lengths)), lengths)
        while waiting:
            batch = waiting.pop(0)
            try:
                result = self._start(tokens, batch)
            except MemoryError as error:
                finish()
                self._halve_budget(lengths[batch], error)
                waiting = self._plan(np.concatenate([batch, *waiting]), lengths)
                continue
            # On a GPU the batch before is fetched while this one is computed.
            finish()
            under_way = batch, result
        finish()
        return rows

    def _plan(self, texts: Batch, lengths: npt.NDArray[np.int64]) -> list[Batch]:
        plan = plan_batches(lengths[texts], self.token_budget, packed=self.encoder.is_packed)
        return [texts[batch] for batch in plan]

    def _halve_budget(self, lengths: npt.NDArray[np.int64], error: MemoryError) -> None:
        if len(lengths) == 1:
            raise DeviceError(
                f"not enough memory on {self.encoder.device} for one text of {lengths[0]} tokens",
                hint="lower params.yaml: embed.max_tokens, or run on the CPU",
            ) from error
        # A batch that did not fill the budget shows that even less is too much.
        self.token_budget = min(self.token_budget, int(lengths.sum())) // 2
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
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def wait(self) -> npt.NDArray[Any]:
        if self._arrived is not None:
            self._arrived.synchronize()
        found: npt.NDArray[Any] = self._vectors.numpy()
        return found
