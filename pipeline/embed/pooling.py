"""Token vectors → one vector a text: the mean over its tokens, special tokens included.

In float32 and without normalization. Source: Reimers, Gurevych (2019), Sentence-BERT.
"""

from __future__ import annotations

from collections.abc import Callable

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


Pooling = Callable[[torch.Tensor], torch.Tensor]


def make_pooling(packing: Packing, device: torch.device) -> Pooling:
    """Mean over each text of a packed batch, the same for every layer.

    :param packing: where B texts stand among the T tokens.
    :returns: from [T, D], of any float type, to float32, [B, D].
    """
    if device.type == "cuda":  # one kernel; the loop below would launch one for each run
        lengths = torch.from_numpy(packing.lengths).pin_memory().to(device, non_blocking=True)
        # Unsafe: to check the lengths would wait for the device, once a layer.
        return lambda states: torch.segment_reduce(
            states.float(), "mean", lengths=lengths, unsafe=True
        )
    sizes = [texts * tokens for texts, tokens in packing.runs]
    return lambda states: torch.cat(
        [
            part.view(texts, tokens, -1).mean(dim=1, dtype=torch.float32)
            for part, (texts, tokens) in zip(torch.split(states, sizes), packing.runs, strict=True)
        ]
    )
