"""The kernels for GPUs against what they compute in plain words, in float64.

On a machine without a GPU, Triton's interpreter runs them on the CPU; where Triton, which comes
with torch's builds for GPUs, is not installed, they are skipped.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, for its own functions too
pytest.importorskip("triton", reason="Triton is not installed")

from pipeline.embed import gpu
from pipeline.embed.attention import Packing, make_attention
from pipeline.embed.families import FAMILIES
from pipeline.embed.fidelity import check_fidelity, measure_fidelity
from pipeline.embed.linears import FusedLinear
from pipeline.embed.loading import EnginePlan
from pipeline.embed.tokens import Tokens
from tests.unit.test_families import draw_ids, make_config, make_model

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TYPES = [torch.float16, torch.bfloat16]
# Some texts of lengths on both sides of the sizes of tiles, most of them short.
CASES = [[1], [3, 1, 16, 9], [40, 5, 64, 17], [128, 1, 90, 33, 2, 2]]


@pytest.fixture(scope="module")
def kernels() -> Iterator[ModuleType]:
    """The kernels, by the interpreter where there is no GPU, and the engine told to take them."""
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE.type == "cpu":
            patch.setattr(gpu, "is_modern", lambda device: True)
        gpu.find_kernels.cache_clear()
        found = gpu.find_kernels(DEVICE)
        assert found is not None
        yield found
    gpu.find_kernels.cache_clear()


def send_offsets(lengths: list[int]) -> torch.Tensor:
    return gpu.send(Packing(np.array(lengths)).offsets.astype(np.int32), DEVICE)


def attend_plainly(
    qkv: torch.Tensor, lengths: list[int], H: int, window: int | None, bias: torch.Tensor | None
) -> torch.Tensor:
    parts = []
    for text in qkv.double().split(lengths):
        q, k, v = text.view(len(text), 3, H, -1).unbind(1)
        scores = torch.einsum("ihd,jhd->hij", q, k) / q.shape[-1] ** 0.5
        if bias is not None:
            scores += bias[:, : len(text), : len(text)].double()
        if window is not None:
            at = torch.arange(len(text), device=qkv.device)
            scores[:, (at[:, None] - at).abs() > window] = -torch.inf
        parts.append(torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).flatten(1))
    return torch.cat(parts)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("H", "width"), [(2, 8), (3, 64), (2, 24), (1, 32)])
@pytest.mark.parametrize("lengths", CASES)
@pytest.mark.parametrize("how", ["plain", "window", "bias"])
def test_attention_of_short_texts(
    dtype: torch.dtype, H: int, width: int, lengths: list[int], how: str, kernels: ModuleType
) -> None:
    if DEVICE.type == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter takes the bits of bfloat16 for whole numbers")
    generator = torch.Generator().manual_seed(0)
    T, longest = sum(lengths), max(lengths)
    qkv = torch.randn(T, 3 * H * width, generator=generator).to(DEVICE, dtype)
    window = 4 if how == "window" else None
    bias = None
    if how == "bias":
        bias = torch.randn(H, longest, longest, generator=generator).to(DEVICE, dtype)
    found = kernels.attend_short(qkv, send_offsets(lengths), H, longest, window=window, bias=bias)
    expected = attend_plainly(qkv, lengths, H, window, bias)
    assert found.dtype == dtype
    # The bits of the type: shares and vectors are rounded to it.
    allowed = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), expected, rtol=allowed, atol=allowed)


@pytest.mark.parametrize(("width", "is_taken"), [(64, True), (72, False)])
def test_heads_that_are_too_wide_attend_without_it(
    width: int, is_taken: bool, kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [5, 3]
    qkv = torch.randn(8, 3 * 2 * width).to(DEVICE, torch.float16)
    calls: list[int] = []
    attend_short = kernels.attend_short

    def watch(*arguments: Any, **named: Any) -> torch.Tensor:
        calls.append(1)
        return attend_short(*arguments, **named)

    monkeypatch.setattr(kernels, "attend_short", watch)
    found = make_attention(Packing(np.array(lengths)), 2, DEVICE)(qkv)
    expected = attend_plainly(qkv, lengths, 2, None, None)
    torch.testing.assert_close(found.double(), expected, rtol=8e-3, atol=8e-3)
    assert bool(calls) == is_taken


@pytest.mark.parametrize("dtype", [*TYPES, torch.float32])
@pytest.mark.parametrize("width", [16, 384, 768, 1000])
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_norm_of_a_sum(
    dtype: torch.dtype, width: int, has_bias: bool, kernels: ModuleType
) -> None:
    generator = torch.Generator().manual_seed(0)
    x, residual = (3 * torch.randn(2, 7, width, generator=generator)).to(DEVICE, dtype)
    weight, bias = torch.randn(2, width, generator=generator).to(DEVICE, dtype)
    found = kernels.add_norm(x, residual, weight, bias if has_bias else None, 1e-5)
    expected = functional.layer_norm(
        x.double() + residual.double(),
        (width,),
        weight.double(),
        bias.double() if has_bias else None,
        1e-5,
    )
    assert found.dtype == dtype
    allowed = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), expected, rtol=allowed, atol=allowed)


@pytest.mark.parametrize("dtype", [*TYPES, torch.float32])
@pytest.mark.parametrize("width", [16, 200, 768])
@pytest.mark.parametrize("lengths", [*CASES, [1, 512, 300]])
def test_the_mean_of_each_text(
    dtype: torch.dtype, width: int, lengths: list[int], kernels: ModuleType
) -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(sum(lengths), width, generator=generator).to(DEVICE, dtype)
    found = kernels.average_texts(states, send_offsets(lengths))
    expected = torch.stack([text.double().mean(0) for text in states.split(lengths)])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["_attend", "_add_norm", "_average"])
def test_kernels_are_launched_on_the_device_of_their_tensors(
    name: str, kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton launches on the current device, which is the first GPU in a new process or thread."""
    current: list[torch.Tensor] = []
    launched: list[bool] = []

    @contextlib.contextmanager
    def device_of(tensor: torch.Tensor) -> Iterator[None]:
        current.append(tensor)
        yield
        current.clear()

    class Launch:
        def __getitem__(self, grid: object) -> Callable[..., None]:
            return lambda *tensors, **_: launched.append(tensors[0] is current[0])

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(kernels, name, Launch())
    x = torch.zeros(4, 48, dtype=torch.float16, device=DEVICE)
    if name == "_attend":
        kernels.attend_short(x, send_offsets([3, 1]), 1, 3)
    elif name == "_add_norm":
        kernels.add_norm(x, x, x[0], None, 1e-5)
    else:
        kernels.average_texts(x, send_offsets([3, 1]))
    assert launched == [True]


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_by_the_kernels_equals_hugging_face(
    kind: str, kernels: ModuleType, tmp_path: Path
) -> None:
    """With texts on both sides of what the kernel takes and of ModernBERT's local window."""
    make_model(make_config(kind)).save_pretrained(tmp_path)
    plan = EnginePlan(tmp_path, "float16", (0, 1, 2, 3), "float32", token_budget=300)
    lengths = np.array([129, 128, 70, 33, 17, 16, 5, 2, 1])
    ids = draw_ids(lengths).astype(np.int32)
    tokens = Tokens(ids, np.append(0, lengths.cumsum()))
    with plan.make_engine(DEVICE) as engine:
        if kind not in ("modernbert",):
            assert isinstance(engine.encoder._layers[0].output, FusedLinear)
        rows = engine.embed(tokens)
    fidelity = measure_fidelity(plan.load_reference(DEVICE), tokens, rows, engine.layers)
    check_fidelity(fidelity, "float16")
