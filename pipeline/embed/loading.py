"""From a backbone's folder to the engines that run it, one for each device."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from pipeline.architecture import Architecture
from pipeline.console import Advance
from pipeline.embed.backbone import Backbone, Encoder, describe_padded
from pipeline.embed.engine import AnyEngine, Engine, Job, Keep, ignore_progress, keep_nothing
from pipeline.embed.families import find_family
from pipeline.embed.packed import PackedEncoder
from pipeline.embed.pooling import find_pooling
from pipeline.embed.tokens import Tokens
from pipeline.embed.weights import Weights, is_adapter, read_config
from pipeline.errors import DeviceError
from pipeline.processes import hold_interrupts, stay_with_parent
from pipeline.recipe import Precision
from pipeline.store import Rows

# Tokens in one batch, by the type of device. On a CPU they are few, so that the activations of a
# batch stay in the processor's caches.
TOKEN_BUDGET = {"cpu": 2048, "cuda": 65536, "mps": 8192}


@dataclass(frozen=True)
class EnginePlan:
    """All that it takes to make an engine, in this process or another.

    :param folder: the backbone's Hugging Face folder.
    :param precision: the type of weights and activations.
    :param layers: numbers of the L layers wanted, ascending.
    :param dtype: type of the vectors: ``float16`` or ``float32``.
    :param pooling: ways to make a text's vector of its tokens', keys of ``POOLINGS``.
    :param normalize: whether vectors are scaled to length 1.
    :param token_budget: tokens in one batch; ``None`` for what suits the device.
    :param threads: threads of the CPU; ``None`` for all cores.
    """

    folder: Path
    precision: Precision
    layers: tuple[int, ...]
    dtype: str
    pooling: tuple[str, ...] = ("mean",)
    normalize: bool = False
    token_budget: int | None = None
    threads: int | None = None

    @cached_property
    def family(self) -> type[PackedEncoder] | None:
        """The family that the backbone is of, or ``None`` if it has to be padded."""
        if is_adapter(self.folder):  # whose weights are spread over two folders
            return None
        return find_family(read_config(self.folder))

    def describe(self, devices: Sequence[torch.device]) -> str:
        """The kind of forward pass and the number of devices, for the log.

        :param devices: the devices that the engine runs on.
        """
        kind = (
            describe_padded(Architecture.read(self.folder))
            if self.family is None
            else self.family.describe()
        )
        return kind if len(devices) == 1 else f"{kind}, {len(devices)} devices"

    def load_reference(self, device: torch.device) -> Backbone:
        """The backbone by Hugging Face in float32, to gauge by.

        :param device: device to run on.
        :raises AssetError: if the weights cannot be loaded.
        """
        return Backbone(self.folder, device, "float32", self.pooling)

    def load_encoder(self, device: torch.device) -> Encoder:
        """The forward pass, which for a packed family needs no transformers.

        :param device: device to run on.
        :raises AssetError: if the weights cannot be loaded.
        """
        family = self.family
        if family is None:
            return Backbone(self.folder, device, self.precision, self.pooling)
        config = family.complete_config(read_config(self.folder))
        weights = Weights.read(self.folder, config, family.list_shapes(config), family.prefix)
        if weights is None:
            weights = Weights.of_backbone(self.load_reference(device))
        pooling = find_pooling(self.pooling)
        return family(weights, device, self.precision, pooling)

    def make_engine(self, device: torch.device) -> Engine:
        """An engine on one device.

        :param device: device to run on.
        :raises AssetError: if the weights cannot be loaded.
        """
        budget = self.token_budget or TOKEN_BUDGET[device.type]
        encoder = self.load_encoder(device)
        return Engine(encoder, self.layers, np.dtype(self.dtype), budget, self.normalize)

    def open_engine(self, devices: Sequence[torch.device]) -> AnyEngine:
        """An engine on one device, or a group of engines on several.

        :param devices: one or more devices.
        :raises AssetError: if the weights cannot be loaded.
        """
        return EngineGroup(self, devices) if len(devices) > 1 else self.make_engine(devices[0])


class EngineGroup:
    """Engines on several devices, each in a process of its own; jobs go to each in turn.

    :param plan: plan of each engine.
    :param devices: two or more devices.
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
        self.close()

    def close(self) -> None:
        """End the processes; texts that have not been computed yet are given up."""
        with ExitStack() as stack:  # so that all are closed even if closing one fails
            for engine in self._engines:
                stack.callback(engine.close)

    def start(
        self, tokens: Tokens, advance: Advance = ignore_progress, keep: Keep = keep_nothing
    ) -> Job:
        """Queue texts on the device whose turn it is, as ``AnyEngine`` has it.

        Parts of a job are never handed to ``keep``: the vectors come from the other process when
        the job is finished, which takes a GPU a few seconds.
        """
        engine = self._engines[self._started % len(self._engines)]
        self._started += 1
        return engine.start(tokens, advance)


class _RemoteEngine:
    """An engine in another process.

    One call hands the process the next texts and brings back the vectors of those before, which
    the device has computed meanwhile; so the device always has work.
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
            with hold_interrupts():  # as the first call starts the process
                call = self._pool.submit(_exchange_in_process, tokens)
        except BrokenProcessPool as error:
            raise self.describe_end() from error
        if self._last is not None:
            self._last.call = call
            self._last = None

    def bring_last(self) -> None:
        """Ask for the vectors of the last texts without handing over more."""
        self._exchange(None)

    def describe_end(self) -> DeviceError:
        """The error of a process that ended too early."""
        return DeviceError(
            f"the process that embeds on {self._device} ended before its work was done",
            hint="run the command again; it goes on from what is finished",
        )

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


class _RemoteJob:
    """Texts in the hands of an engine in another process."""

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


# These three are set only in an engine's own process: the plan and the device to make it by, the
# engine, and the job of the texts that it was handed last.
_order: tuple[EnginePlan, str] | None = None
_engine: Engine | None = None
_job: Job | None = None


def _start_process(plan: EnginePlan, device: str, processes: int) -> None:
    global _order
    stay_with_parent()
    torch.set_num_threads(plan.threads or max(1, torch.get_num_threads() // processes))
    _order = plan, device


def _exchange_in_process(tokens: Tokens | None) -> Rows | None:
    global _engine, _job
    # The engine is made at the first call and not in `_start_process`: what is raised here travels
    # back to the caller, whereas an error at the start of a process only breaks the pool.
    if _engine is None:
        assert _order is not None
        plan, device = _order
        _engine = plan.make_engine(torch.device(device))
    before = _job
    _job = _engine.start(tokens) if tokens is not None else None
    return before.finish() if before is not None else None
