"""Kernels for GPUs in Triton, which comes with torch's builds for GPUs.

Each does in one pass over its tensors what torch's operators do in several. Only
``pipeline.embed.gpu`` imports this module, and only where a GPU can run it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
import triton
import triton.language as tl

# Texts of up to this many tokens have all their scores of one head in one program.
MOST_TOKENS = 128
MOST_WIDTH = 64  # of a head; the tiles of a wider one outgrow the shared memory of smaller GPUs
_FEWEST_TOKENS = 16  # the least that a product of tiles takes
# Warps, a power of two, by the tokens of a tile: the fastest of 1 to 8 on an H200.
_ATTENTION_WARPS = {16: 1, 32: 1, 64: 4, 128: 8}
_NUMBERS_A_WARP, _MOST_WARPS = 256, 8  # of a row that is normalized
_AVERAGED_COLUMNS, _AVERAGED_ROWS = 128, 16
# Triton's decorator has no types, and the arguments of a kernel are tensors to its caller and
# pointers within, so that mypy is told to let both be.


def _switch_device(tensor: torch.Tensor) -> AbstractContextManager[None]:
    """Make a tensor's device the current one, on which Triton launches kernels, for a while.

    With several GPUs, the current one of a new process or thread is the first.
    """
    # Untyped in torch itself.
    device: AbstractContextManager[None] = torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]
    return device


@triton.jit  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    qkv, out, offsets, bias, side, scale,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, LANES: tl.constexpr, TOKENS: tl.constexpr,
    WINDOW: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    text = tl.program_id(0)
    head = tl.program_id(1)
    first = tl.load(offsets + text)
    length = tl.load(offsets + text + 1) - first
    row = tl.arange(0, TOKENS)
    lane = tl.arange(0, LANES)
    is_held = (row < length)[:, None] & (lane < WIDTH)[None, :]
    token = (first + row).to(tl.int64)[:, None]
    at = qkv + token * (3 * HEADS * WIDTH) + head * WIDTH + lane[None, :]
    query = tl.load(at, mask=is_held, other=0.0)
    key = tl.load(at + HEADS * WIDTH, mask=is_held, other=0.0)
    value = tl.load(at + 2 * HEADS * WIDTH, mask=is_held, other=0.0)
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
    is_met = (row < length)[None, :]
    if HAS_BIAS:
        cell = (head * side + row[:, None]) * side + row[None, :]
        is_inside = (row < length)[:, None] & is_met
        scores += tl.load(bias + cell, mask=is_inside, other=0.0).to(tl.float32)
    if WINDOW >= 0:
        is_met = is_met & (tl.abs(row[:, None] - row[None, :]) <= WINDOW)
    scores = tl.where(is_met, scores, float("-inf"))
    # A row behind the text meets nothing in its window: the bound keeps it from being no number.
    top = tl.maximum(tl.max(scores, 1), -1e30)
    shares = tl.exp(scores - top[:, None])
    total = tl.sum(shares, 1)
    context = tl.dot(shares.to(value.dtype), value, input_precision="ieee")
    context = context / tl.maximum(total, 1e-30)[:, None]
    target = out + token * (HEADS * WIDTH) + head * WIDTH + lane[None, :]
    tl.store(target, context.to(value.dtype), mask=is_held)


def attend_short(
    qkv: torch.Tensor,
    offsets: torch.Tensor,
    heads: int,
    longest: int,
    *,
    window: int | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention within each of many short texts, a program for each text and head.

    Torch's flash attention takes tiles of 128 queries, of which short texts leave most empty.

    :param qkv: queries, keys and values of T packed tokens, in a 16-bit type: [T, 3 D].
    :param offsets: the first token of each text, and T: int32, [B + 1].
    :param heads: number of attention heads H, each at most ``MOST_WIDTH`` wide.
    :param longest: tokens of the longest text, at most ``MOST_TOKENS``.
    :param window: the distance in tokens up to which tokens attend to each other.
    :param bias: what is added to the scores: [H, longest, longest], of which a shorter text takes
        the corner.
    :returns: [T, D].
    """
    T, D = qkv.shape[0], qkv.shape[1] // 3
    width = D // heads
    out = qkv.new_empty((T, D))
    tokens = max(_FEWEST_TOKENS, triton.next_power_of_2(longest))
    with _switch_device(qkv):
        _attend[(len(offsets) - 1, heads)](
            qkv, out, offsets, qkv if bias is None else bias, longest, width**-0.5,
            HEADS=heads, WIDTH=width, LANES=max(16, triton.next_power_of_2(width)), TOKENS=tokens,
            WINDOW=-1 if window is None else window, HAS_BIAS=bias is not None,
            num_warps=_ATTENTION_WARPS[tokens],
        )  # fmt: skip
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _add_norm(  # type: ignore[no-untyped-def]
    x, residual, weight, bias, out, epsilon,
    WIDTH: tl.constexpr, LANES: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    is_held = lane < WIDTH
    at = row * WIDTH + lane
    total = tl.load(x + at, mask=is_held, other=0.0).to(tl.float32)
    total += tl.load(residual + at, mask=is_held, other=0.0).to(tl.float32)
    mean = tl.sum(total, 0) / WIDTH
    apart = tl.where(is_held, total - mean, 0.0)
    variance = tl.sum(apart * apart, 0) / WIDTH
    normed = apart * tl.rsqrt(variance + epsilon)
    normed *= tl.load(weight + lane, mask=is_held, other=0.0).to(tl.float32)
    if HAS_BIAS:
        normed += tl.load(bias + lane, mask=is_held, other=0.0).to(tl.float32)
    tl.store(out + at, normed.to(out.dtype.element_ty), mask=is_held)


def add_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    epsilon: float,
) -> torch.Tensor:
    """LayerNorm of a sum, the sum and the statistics in float32.

    :param x: [T, D], contiguous as all tensors here.
    :param residual: what is added to it: [T, D].
    :param weight: factors: [D].
    :param bias: addends, [D], or ``None`` for none.
    :param epsilon: the number added to the variance.
    :returns: [T, D], in the type of ``x``.
    """
    T, D = x.shape
    out = torch.empty_like(x)
    lanes = triton.next_power_of_2(D)
    with _switch_device(x):
        _add_norm[(T,)](
            x, residual, weight, weight if bias is None else bias, out, epsilon,
            WIDTH=D, LANES=lanes, HAS_BIAS=bias is not None,
            num_warps=min(max(lanes // _NUMBERS_A_WARP, 1), _MOST_WARPS),
        )  # fmt: skip
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _average(  # type: ignore[no-untyped-def]
    states, out, offsets, WIDTH, COLUMNS: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    text = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    first = tl.load(offsets + text)
    last = tl.load(offsets + text + 1)
    total = tl.zeros((COLUMNS,), tl.float32)
    for start in range(first, last, ROWS):
        row = start + tl.arange(0, ROWS)
        is_held = (row < last)[:, None] & (column < WIDTH)[None, :]
        at = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
        total += tl.sum(tl.load(states + at, mask=is_held, other=0.0).to(tl.float32), 0)
    target = out + text.to(tl.int64) * WIDTH + column
    tl.store(target, total / (last - first), mask=column < WIDTH)


def average_texts(states: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """The mean over the tokens of each text, summed in float32.

    :param states: token vectors of any float type: [T, D].
    :param offsets: the first token of each text, and T: int32, [B + 1].
    :returns: float32, [B, D].
    """
    B, D = len(offsets) - 1, states.shape[1]
    out = states.new_empty((B, D), dtype=torch.float32)
    with _switch_device(states):
        _average[(B, triton.cdiv(D, _AVERAGED_COLUMNS))](
            states, out, offsets, D, COLUMNS=_AVERAGED_COLUMNS, ROWS=_AVERAGED_ROWS
        )
    return out
