"""Token vectors → one vector a text."""

from __future__ import annotations

import torch


def mean_pool(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the real tokens, special tokens included, in float32, without normalization.

    :param states: [B, T, D], of any float type.
    :param mask: bool, [B, T], true on real tokens.
    :returns: float32, [B, D].
    """
    weights = mask.to(torch.float32)
    # As a product of [1, T] and [T, D]: one pass over the states, no masked copy of them.
    total = torch.bmm(weights.unsqueeze(1), states.to(torch.float32)).squeeze(1)
    return total / weights.sum(dim=1, keepdim=True).clamp_min(1.0)
