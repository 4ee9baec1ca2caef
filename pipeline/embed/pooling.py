"""Pooling: from the vectors of a text's tokens to one vector of the text.

A pooling is one class with an entry in ``POOLINGS``. The class has three forms of it: one for
padded batches, one for packed batches, and its definition on one text, by which the fidelity gauge
judges the other two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from pipeline.embed.attention import Packing
from pipeline.embed.gpu import find_kernels, send
from pipeline.errors import SettingsError

# From the T token vectors of a packed batch, [T, D], of any float type, to float32,
# [B, parts · D].
PackedPooling = Callable[[torch.Tensor], torch.Tensor]


class Pooling(Protocol):
    """One way to make a text's vector of its tokens' vectors, special tokens included.

    :ivar parts: numbers of the vector for each number of a token's vector: 1, or more where the
        vectors of several poolings are joined.
    """

    parts: int

    def pool_text(self, states: torch.Tensor) -> torch.Tensor:
        """The definition, on one text by itself.

        :param states: token vectors: float32, [T, D].
        :returns: float32, [parts · D].
        """

    def pool_padded(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The vectors of padded texts.

        :param states: token vectors, of any float type: [B, T, D].
        :param mask: true on real tokens: bool, [B, T].
        :returns: float32, [B, parts · D].
        """

    def make_packed(self, packing: Packing, device: torch.device) -> PackedPooling:
        """The pooling of one packed batch, the same for every layer.

        :param packing: bounds of B texts among the T tokens.
        :param device: device that holds the batch.
        :returns: a function from [T, D], of any float type, to float32, [B, parts · D].
        """


class MeanPooling:
    """The mean over a text's tokens, in float32 and without normalization.

    Source: Reimers, Gurevych (2019), Sentence-BERT.
    """

    parts = 1

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
        kernels = find_kernels(device)
        if kernels is not None:
            offsets = send(packing.offsets.astype(np.int32), device)
            return partial(kernels.average_texts, offsets=offsets)
        if device.type == "cuda":  # one kernel, where the loop below launches one for each run
            lengths = send(packing.lengths, device)
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


class RootMeanPooling:
    """The sum over a text's tokens divided by the square root of their number, in float32.

    Source: Reimers, Gurevych (2019), Sentence-BERT; the library's ``mean_sqrt_len_tokens``.
    """

    parts = 1

    def pool_text(self, states: torch.Tensor) -> torch.Tensor:
        """The sum over one text's tokens by the root of their number, as ``Pooling`` has it."""
        return states.sum(dim=0) / math.sqrt(len(states))

    def pool_padded(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The same of the real tokens of each padded text, as ``Pooling`` has it."""
        roots = mask.to(torch.float32).sum(dim=1, keepdim=True).sqrt()
        return MeanPooling().pool_padded(states, mask) * roots

    def make_packed(self, packing: Packing, device: torch.device) -> PackedPooling:
        """The same of each text of a packed batch, as ``Pooling`` has it."""
        mean = MeanPooling().make_packed(packing, device)
        roots = send(packing.lengths, device).float().sqrt()[:, None]
        return lambda states: mean(states) * roots


class TokenPooling:
    """The vector of one token: the first, which BERT calls [CLS], or the last.

    :param is_first: whether it is the first.

    Source: Devlin et al. (2019), BERT.
    """

    parts = 1

    def __init__(self, *, is_first: bool) -> None:
        self._is_first = is_first

    def pool_text(self, states: torch.Tensor) -> torch.Tensor:
        """The vector of one text's token, as ``Pooling`` has it."""
        return states[0 if self._is_first else -1].clone()

    def pool_padded(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The vector of the token of each padded text, as ``Pooling`` has it."""
        if self._is_first:  # texts are padded on the right
            return states[:, 0].to(torch.float32)
        last = mask.to(torch.int64).sum(dim=1, keepdim=True) - 1
        index = last.clamp_min(0).unsqueeze(-1).expand(-1, -1, states.shape[-1])
        return states.gather(1, index).squeeze(1).to(torch.float32)

    def make_packed(self, packing: Packing, device: torch.device) -> PackedPooling:
        """The vector of the token of each text of a packed batch, as ``Pooling`` has it."""
        offsets = packing.offsets
        places = send(offsets[:-1] if self._is_first else offsets[1:] - 1, device)
        return lambda states: states.index_select(0, places).to(torch.float32)


class MaxPooling:
    """The largest value of each number over a text's tokens.

    Source: Reimers, Gurevych (2019), Sentence-BERT.
    """

    parts = 1

    def pool_text(self, states: torch.Tensor) -> torch.Tensor:
        """The largest values of one text, as ``Pooling`` has it."""
        return states.amax(dim=0)

    def pool_padded(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The largest values over the real tokens of each padded text, as ``Pooling`` has it."""
        return states.masked_fill(~mask.unsqueeze(-1), -torch.inf).amax(dim=1).to(torch.float32)

    def make_packed(self, packing: Packing, device: torch.device) -> PackedPooling:
        """The largest values of each text of a packed batch, as ``Pooling`` has it."""
        if device.type == "cuda":
            lengths = send(packing.lengths, device)
            return lambda states: torch.segment_reduce(
                states.float(), "max", lengths=lengths, unsafe=True
            )
        runs = packing.runs
        sizes = [texts * tokens for texts, tokens in runs]
        return lambda states: torch.cat(
            [
                part.view(texts, tokens, -1).amax(dim=1).to(torch.float32)
                for part, (texts, tokens) in zip(torch.split(states, sizes), runs, strict=True)
            ]
        )


class JoinedPooling:
    """The vectors of several poolings, one behind another.

    :param poolings: the poolings.
    """

    def __init__(self, poolings: Sequence[Pooling]) -> None:
        self._poolings = tuple(poolings)
        self.parts = sum(pooling.parts for pooling in poolings)

    def pool_text(self, states: torch.Tensor) -> torch.Tensor:
        """The joined vectors of one text, as ``Pooling`` has it."""
        return torch.cat([pooling.pool_text(states) for pooling in self._poolings])

    def pool_padded(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The joined vectors of each padded text, as ``Pooling`` has it."""
        pooled = [pooling.pool_padded(states, mask) for pooling in self._poolings]
        return torch.cat(pooled, dim=1)

    def make_packed(self, packing: Packing, device: torch.device) -> PackedPooling:
        """The joined vectors of each text of a packed batch, as ``Pooling`` has it."""
        ways = [pooling.make_packed(packing, device) for pooling in self._poolings]
        return lambda states: torch.cat([way(states) for way in ways], dim=1)


POOLINGS: dict[str, Pooling] = {
    "mean": MeanPooling(),
    "cls": TokenPooling(is_first=True),
    "max": MaxPooling(),
    "mean_sqrt_len": RootMeanPooling(),
    "last": TokenPooling(is_first=False),
}


def find_pooling(names: str | Sequence[str]) -> Pooling:
    """The pooling of a name, or the joined poolings of several.

    :param names: a key of ``POOLINGS``, or several.
    :raises SettingsError: if no pooling has that name.
    """
    wanted = [names] if isinstance(names, str) else list(names)
    for name in wanted:
        if name not in POOLINGS:
            raise SettingsError(
                f"embed.pooling: must be one of {', '.join(POOLINGS)}, got {name!r}"
            )
    if not wanted:
        raise SettingsError("embed.pooling: must name one pooling at least")
    chosen = [POOLINGS[name] for name in wanted]
    return chosen[0] if len(chosen) == 1 else JoinedPooling(chosen)


def average_spans(
    packing: Packing, spans: npt.NDArray[np.int64], device: torch.device
) -> PackedPooling:
    """The mean over a part of each text of a packed batch, which windows of long texts take.

    :param packing: bounds of B windows among the T tokens.
    :param spans: bounds of the tokens of each window that count, at least one: [B, 2].
    :param device: device that holds the batch.
    """
    sizes = (spans[:, 1] - spans[:, 0]).astype(np.float32)
    low, high, share = (
        np.repeat(each, packing.lengths) for each in (spans[:, 0], spans[:, 1], 1 / sizes)
    )
    counts = (packing.positions >= low) & (packing.positions < high)
    weights = send(np.where(counts, share, np.float32(0)), device)[:, None]
    lengths = send(packing.lengths, device)
    return lambda states: torch.segment_reduce(
        states.float() * weights, "sum", lengths=lengths, unsafe=True
    )


def scale_to_unit(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors of length 1 in the directions of others; a vector of zeros stays one.

    :param vectors: [..., D].
    """
    return functional.normalize(vectors, dim=-1)
