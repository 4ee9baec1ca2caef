"""Pooling: from the vectors of a text's tokens to one vector of the text.

A pooling is one class with an entry in ``POOLINGS``. The class has three forms of it: one for
padded batches, one for packed batches, and its definition on one text, by which the fidelity gauge
judges the other two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from pipeline.embed.attention import Packing
from pipeline.errors import SettingsError

# From the T token vectors of a packed batch, [T, D], of any float type, to float32, [B, D].
PackedPooling = Callable[[torch.Tensor], torch.Tensor]


class Pooling(Protocol):
    """One way to make a text's vector of its tokens' vectors, special tokens included."""

    def pool_text(self, states: torch.Tensor) -> torch.Tensor:
        """The definition, on one text by itself.

        :param states: token vectors: float32, [T, D].
        :returns: float32, [D].
        """

    def pool_padded(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The vectors of padded texts.

        :param states: token vectors, of any float type: [B, T, D].
        :param mask: true on real tokens: bool, [B, T].
        :returns: float32, [B, D].
        """

    def make_packed(self, packing: Packing, device: torch.device) -> PackedPooling:
        """The pooling of one packed batch, the same for every layer.

        :param packing: bounds of B texts among the T tokens.
        :param device: device that holds the batch.
        :returns: a function from [T, D], of any float type, to float32, [B, D].
        """


class MeanPooling:
    """The mean over a text's tokens, in float32 and without normalization.

    Source: Reimers, Gurevych (2019), Sentence-BERT.
    """

    def pool_text(self, states: torch.Tensor) -> torch.Tensor:
        """The mean over one text's tokens, as ``Pooling`` has it."""
        return states.mean(dim=0)

    def pool_padded(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The mean over the real tokens of each padded text, as ``Pooling`` has it."""
        weights = mask.to(torch.float32)
        # A product of [1, T] and [T, D] passes over the states once and makes no masked copy.
        total = torch.bmm(weights.unsqueeze(1), states.to(torch.float32)).squeeze(1)
        return total / weights.sum(dim=1, keepdim=True).clamp_min(1.0)

    def make_packed(self, packing: Packing, device: torch.device) -> PackedPooling:
        """The mean over each text of a packed batch, as ``Pooling`` has it."""
        if device.type == "cuda":  # one kernel, where the loop below launches one for each run
            lengths = torch.from_numpy(packing.lengths).pin_memory().to(device, non_blocking=True)
            # The unsafe form does not check the lengths, for which it would wait for the device
            # once a layer.
            return lambda states: torch.segment_reduce(
                states.float(), "mean", lengths=lengths, unsafe=True
            )
        runs = packing.runs
        sizes = [texts * tokens for texts, tokens in runs]
        return lambda states: torch.cat(
            [
                part.view(texts, tokens, -1).mean(dim=1, dtype=torch.float32)
                for part, (texts, tokens) in zip(torch.split(states, sizes), runs, strict=True)
            ]
        )


POOLINGS: dict[str, Pooling] = {"mean": MeanPooling()}


def find_pooling(name: str) -> Pooling:
    """The pooling of a name.

    :param name: a key of ``POOLINGS``.
    :raises SettingsError: if no pooling has that name.
    """
    if name not in POOLINGS:
        raise SettingsError(f"embed.pooling: must be one of {', '.join(POOLINGS)}, got {name!r}")
    return POOLINGS[name]
