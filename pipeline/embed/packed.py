"""The forward pass without padding: all tokens of a batch as one matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from pipeline.embed.attention import Attention, Packing, make_attention
from pipeline.embed.gpu import find_kernels, send
from pipeline.embed.linears import FusedLinear, Linear, Norm, OneDnnLinear, PlainLinear
from pipeline.embed.pooling import Pooling, average_spans
from pipeline.embed.weights import Shapes, Weights
from pipeline.onednn import has_onednn
from pipeline.recipe import Precision


class PackedEncoder(ABC):
    """A transformer encoder over packed texts, whose linear layers see no padding token.

    The loop over layers, packing, attention and pooling stand here. A family of encoders adds which
    configurations it supports, which weights it takes, its embedding layer and one of its
    transformer layers, and has an entry in ``pipeline.embed.families.FAMILIES``.

    :param weights: the weights in float32, and the configuration.
    :param device: device to run on.
    :param precision: the type of the linear layers and of attention; embeddings, the statistics of
        LayerNorm and pooling are in float32.
    :param pooling: way to make a text's vector of its tokens'.
    :cvar prefix: the word before the names of tensors in checkpoints of a model that has such an
        encoder as a part.
    :cvar defaults: the values of a configuration's keys that the encoder needs, where
        ``config.json`` leaves them out.

    Source: Zeng et al. (2022), Boosting distributed training performance of the unpadded BERT
    model.
    """

    is_packed = True
    prefix: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]]

    def __init__(
        self,
        weights: Weights,
        device: torch.device,
        precision: Precision,
        pooling: Pooling,
    ) -> None:
        self.architecture = weights.architecture
        self.device = device
        self._pooling = pooling
        self.width = self.architecture.width * pooling.parts
        self._dtype: torch.dtype = getattr(torch, precision)
        config = self.complete_config(weights.config)
        self._heads = self.count_heads(config)
        self._linear: type[OneDnnLinear] | type[PlainLinear] = PlainLinear
        if find_kernels(device) is not None:
            self._linear = FusedLinear
        elif device.type == "cpu" and has_onednn(self._dtype):
            self._linear = OneDnnLinear
        tensors = {name: tensor.to(device) for name, tensor in weights.tensors.items()}
        self.take_weights(tensors, config)

    @classmethod
    def complete_config(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration with what it leaves out, in the keys that the family reads.

        Completing it once more changes nothing.

        :param config: the backbone's configuration as ``config.json`` or transformers has it; its
            values may be of any type.
        """
        return {**cls.defaults, **config}

    @classmethod
    @abstractmethod
    def is_supported(cls, config: Mapping[str, Any]) -> bool:
        """Whether a backbone of the family's model types has no option that the family lacks.

        :param config: the backbone's configuration, completed; its values may be of any type.
        """

    @classmethod
    @abstractmethod
    def count_heads(cls, config: Mapping[str, Any]) -> int:
        """The number of attention heads H.

        :param config: a configuration that is supported.
        """

    @classmethod
    @abstractmethod
    def list_shapes(cls, config: Mapping[str, Any]) -> Shapes:
        """The tensors that ``take_weights`` takes: name in transformers' model → shape.

        :param config: a configuration that is supported.
        """

    @abstractmethod
    def take_weights(self, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> None:
        """Take the weights of all layers.

        :param tensors: name in transformers' model → tensor in float32, on the encoder's device.
        :param config: the backbone's configuration, completed.
        """

    def count_positions(
        self, ids: npt.NDArray[np.int32], packing: Packing
    ) -> npt.NDArray[np.int64]:
        """The position of each token of a batch, as ``embed_tokens`` takes it: from 0 in each text.

        :param ids: token ids: [T].
        :param packing: the texts of the batch.
        :returns: int64, [T].
        """
        return packing.positions

    def make_attentions(self, packing: Packing) -> Sequence[Attention]:
        """The attention of each transformer layer over one batch: the same in all of them.

        :param packing: the texts of the batch.
        """
        attend = make_attention(packing, self._heads, self.device)
        return [attend] * self.architecture.layers

    @abstractmethod
    def embed_tokens(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The output of the embedding layer, which is layer 0.

        :param ids: token ids: int32, [T].
        :param positions: positions of the tokens, as ``count_positions`` has them: int64, [T].
        :returns: [T, D], of any float type.
        """

    @abstractmethod
    def run_layer(self, number: int, x: torch.Tensor, attend: Attention) -> torch.Tensor:
        """The output of one transformer layer.

        :param number: the layer's number, from 1; the last is ``architecture.layers``.
        :param x: the output of the layer before it, in the encoder's precision: [T, D].
        :param attend: attention within the texts: from queries, keys and values side by side,
            [T, 3 D], to [T, D].
        :returns: [T, D].
        """

    @staticmethod
    def describe() -> str:
        """The kind of forward pass, for the log."""
        return "packed forward pass, no padding"

    def pack_linear(self, tensors: Mapping[str, torch.Tensor], *names: str) -> Linear:
        """Linear layers of one input as one product, in the encoder's precision.

        :param tensors: the tensors that ``take_weights`` was given.
        :param *names: names of modules with a ``weight``, [D_out, D_in], and all of them or none
            with a ``bias``, [D_out].
        """
        weight = _join([tensors[f"{name}.weight"] for name in names])
        bias = None
        if f"{names[0]}.bias" in tensors:
            bias = _join([tensors[f"{name}.bias"] for name in names]).to(self._dtype)
        return self._linear(weight.to(self._dtype), bias)

    def pack_norm(self, tensors: Mapping[str, torch.Tensor], name: str, epsilon: float) -> Norm:
        """LayerNorm in the encoder's precision.

        :param tensors: the tensors that ``take_weights`` was given.
        :param name: the name of a module with a ``weight``, [D], and maybe a ``bias``, [D].
        :param epsilon: the number added to the variance.
        """
        bias = tensors.get(f"{name}.bias")
        return Norm(
            tensors[f"{name}.weight"].to(self._dtype),
            None if bias is None else bias.to(self._dtype),
            epsilon,
        )

    @torch.inference_mode()
    def encode(
        self,
        ids: npt.NDArray[np.int32],
        lengths: npt.NDArray[np.int64],
        layers: tuple[int, ...],
        spans: npt.NDArray[np.int64] | None = None,
    ) -> torch.Tensor:
        """Pooled outputs of some layers, as ``Encoder`` has it.

        It is fastest if texts of equal length are neighbours.
        """
        packing = Packing(lengths)
        pooled = torch.empty((len(lengths), len(layers), self.width), device=self.device)
        attentions = self.make_attentions(packing)
        if spans is None:
            pool = self._pooling.make_packed(packing, self.device)
        else:
            pool = average_spans(packing, spans, self.device)
        positions = send(self.count_positions(ids, packing), self.device)
        x = self.embed_tokens(send(ids, self.device), positions).to(self._dtype)
        for number in range(layers[-1] + 1):
            if number > 0:
                x = self.run_layer(number, x, attentions[number - 1])
            if number in layers:
                pooled[:, layers.index(number)] = pool(x)
        return pooled


def _join(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors one below the other; one by itself is spared the copy."""
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts))
