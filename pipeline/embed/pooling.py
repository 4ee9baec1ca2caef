"""Token vectors → one vector a text: the mean over its tokens, special tokens included.

In float32 and without normalization. Source: Reimers, Gurevych (2019), Sentence-BERT.
"""

from __future__ import annotations

import torch

from pipeline.embed.attention import Packing


def mean_pool(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the real tokens of padded texts.

    :param states: [B, T, D], of any float type.
    :param mask: bool, [B, T], true on real tokens.
    :returns: float32, [B, D].
    """
    weights = mask.to(torch.float32)
    # As a product of [1, T] and [T, D]: one pass over the states, no masked copy of them.
    total = torch.bmm(weights.unsqueeze(1), states.to(torch.float32)).squeeze(1)
    return total / weights.sum(dim=1, keepdim=True).clamp_min(1.0)


def mean_pool_packed(states: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Mean over each text of a packed batch.

    :param states: [T, D], of any float type.
    :param packing: where B texts stand among the tokens.
    :returns: float32, [B, D].
    """
    if states.is_cuda:  # one kernel; the loop below would launch one for each run
        lengths = torch.from_numpy(packing.lengths).to(states.device, non_blocking=True)
        return torch.segment_reduce(states.float(), "mean", lengths=lengths)
    sizes = [texts * tokens for texts, tokens in packing.runs]
    return torch.cat(
        [
            part.view(texts, tokens, -1).mean(dim=1, dtype=torch.float32)
            for part, (texts, tokens) in zip(torch.split(states, sizes), packing.runs, strict=True)
        ]
    )
