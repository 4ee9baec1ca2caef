"""What runs on a GPU alone, as far as a CPU can tell: with tensors that have no numbers.

Torch's fake tensors have a shape, a type and a device, and every operation of theirs is checked as
on that device. So a wrong shape or type, a tensor left on the CPU or an argument that an operator
does not take shows here, where there is no GPU. What an operator computes, it does not show; those
that only a GPU takes are computed here on the CPU.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention import varlen
from torch.nn.attention.varlen import varlen_attn

from pipeline.architecture import Architecture
from pipeline.embed import attention
from pipeline.embed.attention import Packing, make_attention
from pipeline.embed.engine import Engine
from pipeline.embed.families import FAMILIES, find_family
from pipeline.embed.gpu import find_kernels
from pipeline.embed.packed import PackedEncoder
from pipeline.embed.pooling import POOLINGS, average_spans, find_pooling
from pipeline.embed.tokens import Tokens, Windows
from pipeline.embed.weights import Weights, read_config
from tests.benchmarks import gpu as gpu_command
from tests.unit.test_families import draw_ids, make_config, make_model

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")

GPU = torch.device("cuda", 0)
LENGTHS = np.array([90, 90, 41, 5, 5, 5, 1])
PRECISIONS = ("float32", "float16", "bfloat16")
# Torch asks for a guard of the device before it takes a slice. A build for CPUs has none for GPUs.
GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
C10_REGISTER_GUARD_IMPL(CUDA, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>)
"""


@pytest.fixture(scope="module")
def _guard(tmp_path_factory: pytest.TempPathFactory) -> None:
    if torch.version.cuda is not None:  # which has a guard, of no use without a GPU
        torch._C._ensureCUDADeviceGuardSet()
        return
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("guard")
    (folder / "guard.cpp").write_text(GUARD)
    home = Path(torch.__file__).parent
    subprocess.run(
        ["g++", "-std=c++20", "-shared", "-fPIC", f"-I{home / 'include'}", "guard.cpp", "-o",
         "guard.so", f"-L{home / 'lib'}", "-lc10"],
        check=True, cwd=folder,
    )  # fmt: skip
    ctypes.CDLL(str(folder / "guard.so"))


@pytest.fixture(params=[(9, 0), (7, 5)], ids=["hopper", "turing"])
def gpu(_guard: None, request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """Fake tensors, and a GPU of a generation; the calls of CUDA itself have their signatures."""
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        mock.patch.object(torch.cuda, "get_device_capability", return_value=request.param),
        mock.patch.object(torch.cuda, "Event", mock.create_autospec(torch.cuda.Event)),
        mock.patch.object(
            torch.cuda, "current_stream", mock.create_autospec(torch.cuda.current_stream)
        ),
        mock.patch.object(torch.Tensor, "pin_memory", lambda tensor: tensor),
    ):
        yield request.param


class Watched:
    """A function of torch that notes what it is called with."""

    def __init__(self, function: Any) -> None:
        self.__signature__ = signature(function)
        self._function = function
        self.calls: list[dict[str, Any]] = []

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.calls.append(self.__signature__.bind(*arguments, **named).arguments)
        return self._function(*arguments, **named)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    watched = Watched(varlen_attn)
    monkeypatch.setattr(varlen, "varlen_attn", watched)
    return watched


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Weights]:
    """The weights of a small backbone of each family, with numbers."""
    weights = {}
    for kind in FAMILIES:
        folder = tmp_path_factory.mktemp(kind)
        model = make_model(make_config(kind))
        model.config.save_pretrained(folder)
        about = read_config(folder)
        weights[kind] = Weights(Architecture.read(folder), about, model.state_dict())
    return weights


def load(weights: Weights, precision: Any) -> PackedEncoder:
    family = find_family(weights.config)
    assert family is not None
    return family(weights, GPU, precision, find_pooling("mean"))


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_family_runs_on_a_gpu(
    kind: str,
    precision: str,
    weights: dict[str, Weights],
    gpu: tuple[int, int],
    watched: Watched,
) -> None:
    encoder = load(weights[kind], precision)
    vectors = encoder.encode(draw_ids(LENGTHS).astype(np.int32), LENGTHS, (0, 1, 3))
    assert isinstance(vectors, FakeTensor)
    assert vectors.shape == (len(LENGTHS), 3, 32)
    assert (vectors.dtype, vectors.device) == (torch.float32, GPU)
    # One kernel takes texts of any lengths, where the GPU has it and the family can use it.
    by_kernel = gpu >= (8, 0) and precision != "float32" and kind != "mpnet"
    assert len(watched.calls) == (3 if by_kernel else 0)
    for number, call in enumerate(watched.calls):
        assert call["query"].dtype == getattr(torch, precision)
        assert call["query"].shape == (LENGTHS.sum(), 4, 8)
        assert (call["cu_seq_q"].dtype, call["cu_seq_q"].device) == (torch.int32, GPU)
        assert call["max_q"] == LENGTHS.max()
        # ModernBERT's first layer is global, and the local window is 32 tokens wide.
        is_local = kind == "modernbert" and number % 3 > 0
        assert call.get("window_size", (-1, -1)) == ((16, 16) if is_local else (-1, -1))


@pytest.mark.parametrize("name", POOLINGS)
def test_every_pooling_runs_on_a_gpu(name: str, gpu: tuple[int, int]) -> None:
    pool = POOLINGS[name].make_packed(Packing(LENGTHS), GPU)
    for precision in PRECISIONS:
        states = torch.empty(int(LENGTHS.sum()), 32, dtype=getattr(torch, precision), device=GPU)
        pooled = pool(states)
        assert pooled.shape == (len(LENGTHS), 32)
        assert (pooled.dtype, pooled.device) == (torch.float32, GPU)


def test_windows_are_pooled_on_a_gpu(gpu: tuple[int, int]) -> None:
    pool = average_spans(Packing(LENGTHS), np.stack([LENGTHS // 3, LENGTHS], axis=1), GPU)
    for precision in PRECISIONS:
        pooled = pool(
            torch.empty(int(LENGTHS.sum()), 32, dtype=getattr(torch, precision), device=GPU)
        )
        assert pooled.shape == (len(LENGTHS), 32)
        assert (pooled.dtype, pooled.device) == (torch.float32, GPU)


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
@pytest.mark.parametrize("in_windows", [False, True])
def test_an_engine_fills_up_batches_and_copies_behind_them(
    kind: str, in_windows: bool, weights: dict[str, Weights], gpu: tuple[int, int]
) -> None:
    engine = Engine(load(weights[kind], "float16"), (1, 3), np.dtype("float16"), 4096)
    spans = np.stack([LENGTHS // 3, LENGTHS], axis=1)
    windows = Windows(np.arange(len(LENGTHS)), spans) if in_windows else None
    ids = draw_ids(LENGTHS).astype(np.int32)
    tokens = Tokens(ids, np.append(0, LENGTHS.cumsum()), windows=windows)
    seen: list[int] = []
    run = engine.encoder.encode

    def encode(
        ids: np.ndarray, lengths: np.ndarray, layers: tuple[int, ...], spans: np.ndarray | None
    ) -> torch.Tensor:
        seen.append(len(ids))
        assert lengths.sum() == len(ids)
        assert (spans is not None) == in_windows
        return run(ids, lengths, layers, spans)

    with mock.patch.object(engine.encoder, "encode", encode):
        # In this thread: fake tensors are of the thread that they were asked for in.
        result = engine._run(tokens, np.array([0, 3, 6]))
    engine.close()
    assert seen == [4096]
    assert result._vectors.device == torch.device("cpu")
    assert result._vectors.shape == (3, 2, 32)
    # Windows are joined before they are rounded.
    assert result._vectors.dtype == (torch.float32 if in_windows else torch.float16)
    arrived: Any = result._arrived
    arrived.record.assert_called_once_with(torch.cuda.current_stream.return_value)
    torch.cuda.current_stream.assert_called_once_with(GPU)


def test_a_tensor_that_was_left_on_the_cpu_shows(gpu: tuple[int, int]) -> None:
    """What the tests above rest on."""
    with pytest.raises(RuntimeError, match=r"found at least two devices|on the same device"):
        torch.empty(3, device=GPU) + torch.from_numpy(np.arange(3.0))


def test_the_command_for_owners_of_a_gpu_says_that_there_is_none() -> None:
    result = CliRunner().invoke(gpu_command.main, [])
    assert result.exit_code == 1
    assert "finds no GPU here" in result.output


def test_the_command_for_owners_of_a_gpu_prints_a_table_to_paste() -> None:
    machine = {
        "processor": "EPYC", "cores": 2, "python": "3.11.7", "versions": {"torch": "2.13.0"},
        "gpu": "H100",
    }  # fmt: skip
    rows = [
        {
            "case": "sms",
            "engine": "ours",
            "texts": 5157,
            "forward_seconds": 0.5,
            "machine": machine,
        },
        {"case": "sms", "engine": "rival", "texts": 5157, "share_of_matmul": 0.41},
    ]
    page = gpu_command.write_page("9 passed in 3.20s", rows)
    assert page.splitlines() == [
        "- device: H100",
        "- processor: EPYC, 2 cores",
        "- torch: 2.13.0",
        "- python: 3.11.7",
        "- checks: 9 passed in 3.20s",
        "",
        "| case | engine | texts | forward | of matmul |",
        "| --- | --- | --- | --- | --- |",
        "| sms | ours | 5,157 | 0.50 s |  |",
        "| sms | rival | 5,157 |  | 41% |",
    ]


def test_without_triton_the_log_says_so(
    gpu: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    find_kernels.cache_clear()
    with mock.patch.dict(sys.modules, {"triton": None}):
        sys.modules.pop("pipeline.embed.kernels", None)
        assert find_kernels(GPU) is None
    said = capsys.readouterr().out
    # A GPU before Ampere is asked for none.
    assert ("by torch's operators alone" in said) == (gpu >= (8, 0))


def attend_in_plain_words(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """What the documentation of ``varlen_attn`` says that it computes, in float64."""
    assert torch.equal(cu_seq_q, cu_seq_k)
    assert max_q == max_k == int(cu_seq_q.diff().max())
    out = torch.zeros(query.shape, dtype=torch.float64)
    for start, stop in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
        q, k, v = (each[start:stop].double() for each in (query, key, value))
        scores = torch.einsum("ihd,jhd->hij", q, k) / q.shape[-1] ** 0.5
        apart = torch.arange(stop - start)[:, None] - torch.arange(stop - start)
        left, right = window_size
        if left >= 0:
            scores[:, apart > left] = -torch.inf
        if right >= 0:
            scores[:, apart < -right] = -torch.inf
        out[start:stop] = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v)
    return out.to(query.dtype)


@pytest.mark.parametrize("window", [None, 1, 16, 89, 200])
def test_the_kernel_is_asked_for_what_runs_of_equal_length_compute(window: int | None) -> None:
    packing = Packing(LENGTHS)
    qkv = torch.randn(int(LENGTHS.sum()), 3 * 32, generator=torch.Generator().manual_seed(0))
    expected = make_attention(packing, 4, torch.device("cpu"), window=window)(qkv)
    with (
        mock.patch.object(torch.cuda, "get_device_capability", return_value=(9, 0)),
        mock.patch.object(torch.Tensor, "pin_memory", lambda tensor: tensor),
        mock.patch.object(torch.Tensor, "to", lambda tensor, *_, **__: tensor),
        mock.patch.object(varlen, "varlen_attn", attend_in_plain_words),
    ):
        attend = make_attention(packing, 4, GPU, window=window)
        found = attend(qkv.half().bfloat16())
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.03)


@pytest.mark.parametrize(("width", "by_kernel"), [(8, True), (12, False), (264, False)])
def test_heads_of_a_width_that_the_kernel_lacks_attend_by_runs(width: int, by_kernel: bool) -> None:
    packing = Packing(LENGTHS)
    qkv = torch.randn(int(LENGTHS.sum()), 3 * 2 * width).half()
    kernel = mock.Mock(return_value=torch.zeros(len(qkv), 2, width).half())
    with (
        mock.patch.object(torch.cuda, "get_device_capability", return_value=(9, 0)),
        mock.patch.object(torch.Tensor, "pin_memory", lambda tensor: tensor),
        mock.patch.object(torch.Tensor, "to", lambda tensor, *_, **__: tensor),
        mock.patch.object(varlen, "varlen_attn", kernel),
    ):
        found = make_attention(packing, 2, GPU)(qkv)
    assert kernel.called == by_kernel
    if not by_kernel:
        torch.testing.assert_close(found, attention._attend_by_runs(packing, 2, None, None)(qkv))


def test_a_torch_whose_kernel_has_no_window_attends_by_runs() -> None:
    def old(query: Any, key: Any, value: Any, a: Any, b: Any, max_q: int, max_k: int) -> Any:
        raise AssertionError("asked for a window that it does not know")

    packing = Packing(LENGTHS)
    qkv = torch.randn(int(LENGTHS.sum()), 3 * 32).half()
    with (
        mock.patch.object(torch.cuda, "get_device_capability", return_value=(9, 0)),
        mock.patch.object(varlen, "varlen_attn", old),
    ):
        found = make_attention(packing, 4, GPU, window=16)(qkv)
    expected = attention._attend_by_runs(packing, 4, 16, None)(qkv)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", POOLINGS)
def test_a_gpus_poolings_are_those_of_a_cpu(name: str) -> None:
    """The operators by which a GPU pools take tensors of a CPU, too."""
    states = torch.randn(int(LENGTHS.sum()), 32, generator=torch.Generator().manual_seed(0))
    with (
        mock.patch.object(torch.Tensor, "pin_memory", lambda tensor: tensor),
        mock.patch.object(torch.Tensor, "to", lambda tensor, *_, **__: tensor),
    ):
        found = POOLINGS[name].make_packed(Packing(LENGTHS), GPU)(states)
    texts = states.split(LENGTHS.tolist())
    expected = torch.stack([POOLINGS[name].pool_text(text) for text in texts])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
