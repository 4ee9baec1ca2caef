"""From a fetched backbone to engines that run it, one for each device."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from pipeline.assets import Asset
from pipeline.console import Advance, say
from pipeline.embed.backbone import Backbone, Encoder, Precision
from pipeline.embed.engine import Engine, Job, Keep
from pipeline.embed.packed import PackedBert, can_pack
from pipeline.embed.tokens import Tokens
from pipeline.errors import DeviceError
from pipeline.store import Rows

# Tokens in one batch. On a CPU the activations of a batch should stay in its caches.
TOKEN_BUDGET = {"cpu": 2048, "cuda": 32768, "mps": 8192}


@dataclass(frozen=True)
class EnginePlan:
    """All that it takes to make an engine, in this process or another.

    :param token_budget: ``None`` for what suits the device.
    :param threads: of the CPU, ``None`` for all cores.
    :param compiled: whether a GPU's pointwise operations are compiled.
    """

    asset: Asset
    folder: Path
    precision: Precision
    layers: tuple[int, ...]
    dtype: str
    token_budget: int | None = None
    threads: int | None = None
    compiled: bool = False

    def load_reference(self, device: torch.device) -> Backbone:
        """The backbone by Hugging Face in float32, to take the weights from and to gauge by."""
        return Backbone(self.asset, self.folder, device, "float32")

    def make_engine(self, reference: Backbone) -> Engine:
        """An engine on the reference's device."""
        device = reference.device
        encoder: Encoder = reference
        if can_pack(reference.model.config):
            encoder = PackedBert(reference, self.precision, compiled=self.compiled)
        elif self.precision != "float32":
            encoder = Backbone(self.asset, self.folder, device, self.precision)
        budget = self.token_budget or TOKEN_BUDGET[device.type]
        return Engine(encoder, self.layers, np.dtype(self.dtype), budget)


class EngineGroup:
    """Engines on several devices, each in a process of its own; texts go to each in turn.

    :param devices: two or more.
    """

    def __init__(self, plan: EnginePlan, devices: Sequence[torch.device]) -> None:
        self._engines = [_RemoteEngine(plan, str(device), len(devices)) for device in devices]
        self._started = 0

    def __enter__(self) -> EngineGroup:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with ExitStack() as stack:  # closes all, whatever becomes of one
            for engine in self._engines:
                stack.callback(engine.close)

    def start(self, tokens: Tokens, advance: Advance, keep: Keep) -> Job:
        """As ``Engine`` has it, but a GPU is so quick that nothing is kept of a part."""
        engine = self._engines[self._started % len(self._engines)]
        self._started += 1
        return engine.start(tokens, advance)


class _RemoteEngine:
    """An engine in another process.

    A call hands it the next texts and brings back the vectors of those before, which the device
    has computed meanwhile; so it always has work.
    """

    def __init__(self, plan: EnginePlan, device: str, processes: int) -> None:
        self._device = device
        self._pool = ProcessPoolExecutor(
            1, get_context("spawn"), _start_process, (plan, device, processes)
        )
        self._last: _RemoteJob | None = None

    def start(self, tokens: Tokens, advance: Advance) -> _RemoteJob:
        self._exchange(tokens)
        self._last = _RemoteJob(self, int(tokens.offsets[-1]), advance)
        return self._last

    def _exchange(self, tokens: Tokens | None) -> None:
        try:
            call = self._pool.submit(_exchange_in_process, tokens)
        except BrokenProcessPool as error:
            raise self.describe_end() from error
        if self._last is not None:
            self._last.call = call
            self._last = None

    def bring_last(self) -> None:
        """Ask for the vectors of the last texts; there are no more behind them yet."""
        self._exchange(None)

    def describe_end(self) -> DeviceError:
        return DeviceError(
            f"the process that embeds on {self._device} ended before its work was done",
            hint="run the command again; it goes on from what is finished",
        )

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


class _RemoteJob:
    def __init__(self, engine: _RemoteEngine, tokens: int, advance: Advance) -> None:
        self.call: Future[Rows | None] | None = None
        self._engine = engine
        self._tokens = tokens
        self._advance = advance

    def finish(self) -> Rows:
        if self.call is None:
            self._engine.bring_last()
        assert self.call is not None
        try:
            rows = self.call.result()
        except BrokenProcessPool as error:
            raise self._engine.describe_end() from error
        assert rows is not None
        self._advance(self._tokens)
        return rows


# In an engine's own process: what to make, the engine, and the texts that it was handed last.
_order: tuple[EnginePlan, str] | None = None
_engine: Engine | None = None
_job: Job | None = None


def _start_process(plan: EnginePlan, device: str, processes: int) -> None:
    global _order
    # Ctrl-C is for the process that a person started, which ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(plan.threads or max(1, torch.get_num_threads() // processes))
    _order = plan, device


def _end_with_parent() -> None:
    """A process that was killed can no longer end its own."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _exchange_in_process(tokens: Tokens | None) -> Rows | None:
    global _engine, _job
    if _engine is None:  # not when the process starts, where an error would have no way back
        assert _order is not None
        plan, device = _order
        _engine = plan.make_engine(plan.load_reference(torch.device(device)))
    before = _job
    _job = _engine.start(tokens) if tokens is not None else None
    return before.finish() if before is not None else None


def choose_engine(
    plan: EnginePlan, devices: Sequence[torch.device]
) -> tuple[Engine | EngineGroup, Backbone]:
    """Engines for all devices, and the reference on the first of them to gauge them by."""
    say(f"backbone  {plan.asset.id}: loading")
    group = EngineGroup(plan, devices) if len(devices) > 1 else None
    reference = plan.load_reference(devices[0])
    packed = can_pack(reference.model.config)
    kind = PackedBert.describe() if packed else reference.describe()
    say(f"engine    {kind}" + (f", {len(devices)} devices" if group else ""))
    return group or plan.make_engine(reference), reference
