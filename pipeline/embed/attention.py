"""Attention within each text of a packed batch, never between texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from inspect import signature
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from pipeline.embed.gpu import find_kernels, is_modern, send

# Texts of up to this many tokens take two batched matrix products and a softmax in float32, which
# beat torch's fused attention: the fused one has a fixed cost for each text and head that a short
# text does not repay. Longer texts take the fused one, because the products hold a score for every
# pair of tokens, so that their memory grows with the square of the length.
_SHORT_TEXT_TOKENS = 96
# Queries that meet the keys of their windows together, where attention is local.
_BLOCK_TOKENS = 128
# What the width of a head must be a multiple of, and the most it may be, for flash attention.
_FLASH_STEP, _FLASH_MOST = 8, 256


@dataclass(frozen=True)
class Packing:
    """Where B texts stand among the T tokens of a batch, one text after another.

    :param lengths: tokens of each text: int64, [B].
    """

    lengths: npt.NDArray[np.int64]

    @cached_property
    def offsets(self) -> npt.NDArray[np.int64]:
        """The index of each text's first token, and T at the end: int64, [B + 1]."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    @cached_property
    def positions(self) -> npt.NDArray[np.int64]:
        """The position of each token in its text, from 0: int64, [T]."""
        starts = np.repeat(self.offsets[:-1], self.lengths)
        return np.arange(len(starts)) - starts

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """Runs of neighbouring texts of equal length: how many texts, and the tokens of each."""
        starts = np.flatnonzero(np.diff(self.lengths, prepend=-1))
        counts = np.diff(starts, append=len(self.lengths))
        return list(zip(counts.tolist(), self.lengths[starts].tolist(), strict=True))


# From queries, keys and values side by side, [T, 3 D], to contexts, [T, D].
Attention = Callable[[torch.Tensor], torch.Tensor]


# From the tokens T of texts of one length to what is added to the scores of each head, before they
# become shares: in the type of the queries, [H, T, T]. That of fewer tokens is the corner of it.
MakeBias = Callable[[int], torch.Tensor]


def make_attention(
    packing: Packing,
    heads: int,
    device: torch.device,
    *,
    window: int | None = None,
    make_bias: MakeBias | None = None,
) -> Attention:
    """Multi-head attention over one batch.

    :param packing: the texts of the batch.
    :param heads: number of attention heads H; each has D / H of the width.
    :param device: device that holds the batch.
    :param window: the distance in tokens up to which tokens attend to each other; ``None`` for any.
    :param make_bias: a function that makes what is added to the scores of texts of one length; not
        together with a window.
    :returns: a function from queries, keys and values side by side, [T, 3 D], to [T, D].

    Source: Vaswani et al. (2017), Attention is all you need.
    """
    longest = int(packing.lengths.max())
    if window is not None and longest <= window + 1:
        window = None  # no two tokens of a text are further apart
    by_runs = partial(_attend_by_runs, packing, heads, window, make_bias)
    varlen_attn = find_flash(device, window)
    if varlen_attn is None or make_bias is not None:  # flash attention adds nothing to scores
        long = by_runs
    else:
        long = partial(_attend_by_offsets, packing, heads, device, varlen_attn, by_runs)
    kernels = find_kernels(device)
    if kernels is None or longest > kernels.MOST_TOKENS:
        return long()
    offsets = send(packing.offsets.astype(np.int32), device)
    bias = make_bias(longest).contiguous() if make_bias is not None else None

    def attend(qkv: torch.Tensor) -> torch.Tensor:
        if qkv.dtype == torch.float32 or qkv.shape[1] > 3 * heads * kernels.MOST_WIDTH:
            return long()(qkv)
        context: torch.Tensor = kernels.attend_short(
            qkv, offsets, heads, longest, window=window, bias=bias
        )
        return context

    return attend


def find_flash(device: torch.device, window: int | None) -> Callable[..., Any] | None:
    """Torch's flash attention over texts of any lengths; ``None`` where there is none.

    :param device: the device.
    :param window: the distance in tokens up to which tokens attend to each other; ``None`` for any.
    """
    if not is_modern(device):
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # torch before 2.10 does not have it
        return None
    if window is None:
        return varlen_attn
    if "window_size" not in signature(varlen_attn).parameters:  # nor does each later one
        return None
    return partial(varlen_attn, window_size=(window, window))


def _attend_by_offsets(
    packing: Packing,
    heads: int,
    device: torch.device,
    varlen_attn: Callable[..., Any],
    by_runs: Callable[[], Attention],
) -> Attention:
    """Attention by one flash-attention kernel over texts of any lengths.

    Source: Dao (2023), FlashAttention-2.
    """
    offsets = send(packing.offsets.astype(np.int32), device)
    longest = int(packing.lengths.max())

    def attend(qkv: torch.Tensor) -> torch.Tensor:
        width = qkv.shape[1] // (3 * heads)
        # Flash attention takes 16-bit numbers only, and not every width.
        if qkv.dtype == torch.float32 or width % _FLASH_STEP or width > _FLASH_MOST:
            return by_runs()(qkv)
        query, key, value = qkv.view(len(qkv), 3, heads, -1).unbind(1)
        out = varlen_attn(query, key, value, offsets, offsets, longest, longest)
        context: torch.Tensor = out.reshape(len(qkv), -1)
        return context

    return attend


def _attend_by_runs(
    packing: Packing, heads: int, window: int | None, make_bias: MakeBias | None
) -> Attention:
    """Attention over each run of texts of equal length as one dense batch."""
    runs = packing.runs
    sizes = [texts * tokens for texts, tokens in runs]
    biases = [make_bias(tokens) if make_bias else None for _, tokens in runs]

    def attend(qkv: torch.Tensor) -> torch.Tensor:
        parts = [
            _attend_equal(part.view(texts, tokens, 3, heads, -1), window, bias)
            for part, (texts, tokens), bias in zip(
                torch.split(qkv, sizes), runs, biases, strict=True
            )
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return attend


def _attend_equal(
    qkv: torch.Tensor, window: int | None = None, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention over texts of equal length.

    :param qkv: queries, keys and values of B texts of T tokens each: [B, T, 3, H, D / H].
    :param window: the distance in tokens up to which tokens attend to each other.
    :param bias: what is added to the scores: [H, T, T].
    :returns: [B * T, D].
    """
    B, T, _, H, width = qkv.shape
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    if window is not None and window + 1 < T:
        out = _attend_nearby(query, key, value, window)
        return out.transpose(1, 2).reshape(B * T, H * width)
    if T > _SHORT_TEXT_TOKENS or qkv.dtype != torch.float32:
        mask = None if bias is None else bias.unsqueeze(0)
        out = functional.scaled_dot_product_attention(query, key, value, mask)
        return out.transpose(1, 2).reshape(B * T, H * width)
    query, key, value = (each.reshape(B * H, T, width) for each in (query, key, value))
    # `baddbmm` scales the product while it makes it, which `bmm` cannot. The tensor that it would
    # add is left out of the sum by `beta=0`, so an empty one serves.
    unused = qkv.new_empty(1)
    scores = torch.baddbmm(unused, query, key.transpose(1, 2), beta=0, alpha=width**-0.5)
    if bias is not None:
        scores.view(B, H, T, T).add_(bias)
    out = torch.bmm(torch.softmax(scores, dim=-1), value)
    return out.view(B, H, T, width).transpose(1, 2).reshape(B * T, H * width)


def _attend_nearby(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int
) -> torch.Tensor:
    """Attention of each token to those within a window, a block of queries after another.

    A block meets only the keys within its reach, so that time grows with the length of the texts
    and not with its square.

    :param query: queries of B texts of T tokens each: [B, H, T, D / H].
    :param key: keys, as the queries.
    :param value: values, as the queries.
    :param window: the distance in tokens up to which tokens attend to each other.
    :returns: [B, H, T, D / H].
    """
    T = query.shape[2]
    at = torch.arange(T, device=query.device)
    blocks = []
    for start in range(0, T, _BLOCK_TOKENS):
        stop = min(start + _BLOCK_TOKENS, T)
        reach = slice(max(start - window, 0), min(stop + window, T))
        is_near = (at[start:stop, None] - at[reach]).abs() <= window
        blocks.append(
            functional.scaled_dot_product_attention(
                query[:, :, start:stop], key[:, :, reach], value[:, :, reach], is_near
            )
        )
    return torch.cat(blocks, dim=2)
