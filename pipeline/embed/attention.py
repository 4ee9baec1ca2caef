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

# Below, plain batched products beat torch's fused attention on a CPU: per text and head it has a
# fixed cost that short texts do not repay. Their scores take n**2 numbers a head, so not above.
_LONG_TEXT = 96


@dataclass(frozen=True)
class Packing:
    """Where texts stand among the T tokens of a batch, one text after another.

    :param lengths: int64, [B]: tokens of each text.
    """

    lengths: npt.NDArray[np.int64]

    @cached_property
    def offsets(self) -> npt.NDArray[np.int64]:
        """First token of each text, and T: int64, [B + 1]."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    @cached_property
    def positions(self) -> npt.NDArray[np.int64]:
        """Place of each token in its text, from 0: int64, [T]."""
        starts = np.repeat(self.offsets[:-1], self.lengths)
        return np.arange(len(starts)) - starts

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """Neighbouring texts of equal length: how many, and of how many tokens."""
        starts = np.flatnonzero(np.diff(self.lengths, prepend=-1))
        counts = np.diff(starts, append=len(self.lengths))
        return list(zip(counts.tolist(), self.lengths[starts].tolist(), strict=True))


Attention = Callable[[torch.Tensor], torch.Tensor]


def make_attention(packing: Packing, heads: int, device: torch.device) -> Attention:
    """Multi-head attention over one batch, the same for every layer.

    :param heads: H; each has d = D / H of the width.
    :returns: from queries, keys and values side by side, [T, 3 D], to [T, D].

    Source: Vaswani et al. (2017), Attention is all you need.
    """
    # Flash attention needs Ampere or newer.
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        try:
            from torch.nn.attention.varlen import varlen_attn
        except ImportError:  # torch before 2.10
            return _attend_by_runs(packing, heads)
        return _attend_by_offsets(packing, heads, device, varlen_attn)
    return _attend_by_runs(packing, heads)


def _attend_by_offsets(
    packing: Packing, heads: int, device: torch.device, varlen_attn: Callable[..., Any]
) -> Attention:
    """By flash attention over texts of any lengths: Dao (2023), FlashAttention-2."""
    ends = torch.from_numpy(packing.offsets.astype(np.int32)).pin_memory()
    offsets = ends.to(device, non_blocking=True)
    longest = int(packing.lengths.max())
    by_runs = _attend_by_runs(packing, heads)

    def attend(qkv: torch.Tensor) -> torch.Tensor:
        if qkv.dtype == torch.float32:  # which flash attention does not have
            return by_runs(qkv)
        query, key, value = qkv.view(len(qkv), 3, heads, -1).unbind(1)
        out = varlen_attn(query, key, value, offsets, offsets, longest, longest)
        context: torch.Tensor = out.reshape(len(qkv), -1)
        return context

    return attend


def _attend_by_runs(packing: Packing, heads: int) -> Attention:
    """Texts of equal length together, as one dense batch."""
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
    """:param qkv: [b, n, 3, H, d]: b texts of n tokens.

    :returns: [b * n, D].
    """
    b, n, _, heads, d = qkv.shape
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    if n > _LONG_TEXT or qkv.dtype != torch.float32:
        out = functional.scaled_dot_product_attention(query, key, value)
        return out.transpose(1, 2).reshape(b * n, heads * d)
    query, key, value = (each.reshape(b * heads, n, d) for each in (query, key, value))
    # The empty tensor counts for nothing; with it the product can be scaled as it is made.
    none = qkv.new_empty(1)
    scores = torch.baddbmm(none, query, key.transpose(1, 2), beta=0, alpha=d**-0.5)
    out = torch.bmm(torch.softmax(scores, dim=-1), value)
    return out.view(b, heads, n, d).transpose(1, 2).reshape(b * n, heads * d)
