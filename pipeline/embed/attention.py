"""Attention within each text of a packed batch, never between texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

# Texts of up to this many tokens take two batched matrix products and a softmax in float32, which
# beat torch's fused attention: the fused one has a fixed cost for each text and head that a short
# text does not repay. Longer texts take the fused one, because the products hold a score for every
# pair of tokens, so that their memory grows with the square of the length.
_SHORT_TEXT_TOKENS = 96


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


def make_attention(packing: Packing, heads: int, device: torch.device) -> Attention:
    """Multi-head attention over one batch, the same for every layer.

    :param packing: the texts of the batch.
    :param heads: number of attention heads H; each has D / H of the width.
    :param device: device that holds the batch.
    :returns: a function from queries, keys and values side by side, [T, 3 D], to [T, D].

    Source: Vaswani et al. (2017), Attention is all you need.
    """
    # Flash attention needs a GPU of the Ampere generation or newer.
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        try:
            from torch.nn.attention.varlen import varlen_attn
        except ImportError:  # torch before 2.10 does not have it
            return _attend_by_runs(packing, heads)
        return _attend_by_offsets(packing, heads, device, varlen_attn)
    return _attend_by_runs(packing, heads)


def _attend_by_offsets(
    packing: Packing, heads: int, device: torch.device, varlen_attn: Callable[..., Any]
) -> Attention:
    """Attention by one flash-attention kernel over texts of any lengths.

    Source: Dao (2023), FlashAttention-2.
    """
    ends = torch.from_numpy(packing.offsets.astype(np.int32)).pin_memory()
    offsets = ends.to(device, non_blocking=True)
    longest = int(packing.lengths.max())
    by_runs = _attend_by_runs(packing, heads)

    def attend(qkv: torch.Tensor) -> torch.Tensor:
        if qkv.dtype == torch.float32:  # flash attention takes 16-bit numbers only
            return by_runs(qkv)
        query, key, value = qkv.view(len(qkv), 3, heads, -1).unbind(1)
        out = varlen_attn(query, key, value, offsets, offsets, longest, longest)
        context: torch.Tensor = out.reshape(len(qkv), -1)
        return context

    return attend


def _attend_by_runs(packing: Packing, heads: int) -> Attention:
    """Attention over each run of texts of equal length as one dense batch."""
    runs = packing.runs

    def attend(qkv: torch.Tensor) -> torch.Tensor:
        sizes = [texts * tokens for texts, tokens in runs]
        parts = [
            _attend_equal(part.view(texts, tokens, 3, heads, -1))
            for part, (texts, tokens) in zip(torch.split(qkv, sizes), runs, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return attend


def _attend_equal(qkv: torch.Tensor) -> torch.Tensor:
    """Attention over texts of equal length.

    :param qkv: queries, keys and values of B texts of T tokens each: [B, T, 3, H, D / H].
    :returns: [B * T, D].
    """
    B, T, _, H, width = qkv.shape
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    if T > _SHORT_TEXT_TOKENS or qkv.dtype != torch.float32:
        out = functional.scaled_dot_product_attention(query, key, value)
        return out.transpose(1, 2).reshape(B * T, H * width)
    query, key, value = (each.reshape(B * H, T, width) for each in (query, key, value))
    # `baddbmm` scales the product while it makes it, which `bmm` cannot. The tensor that it would
    # add is left out of the sum by `beta=0`, so an empty one serves.
    unused = qkv.new_empty(1)
    scores = torch.baddbmm(unused, query, key.transpose(1, 2), beta=0, alpha=width**-0.5)
    out = torch.bmm(torch.softmax(scores, dim=-1), value)
    return out.view(B, H, T, width).transpose(1, 2).reshape(B * T, H * width)
