"""The forward pass without padding: all tokens of a batch as one matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.embed.attention import Attention, Packing, make_attention
from pipeline.embed.backbone import Backbone
from pipeline.embed.linears import CompiledLinear, Linear, Norm, OneDnnLinear, PlainLinear
from pipeline.onednn import has_onednn
from pipeline.recipe import Precision


class PackedEncoder(ABC):
    """A transformer encoder over packed texts, whose linear layers see no padding token.

    The loop over layers, packing, attention and pooling stand here. A family of encoders adds which
    configurations it supports, which weights it takes, its embedding layer and one of its
    transformer layers, and has an entry in ``pipeline.embed.families.FAMILIES``.

    :param reference: the backbone in float32, whose weights and pooling it takes.
    :param precision: the type of the linear layers and of attention; embeddings, the statistics of
        LayerNorm and pooling are in float32.
    :param compiled: whether torch compiles what lies between the products, where oneDNN does not
        fuse it into them.

    Source: Zeng et al. (2022), Boosting distributed training performance of the unpadded BERT
    model.
    """

    is_packed = True

    def __init__(
        self, reference: Backbone, precision: Precision, *, compiled: bool = False
    ) -> None:
        config = reference.model.config
        self.architecture = reference.architecture
        self.device = reference.device
        self._pooling = reference.pooling
        self._dtype: torch.dtype = getattr(torch, precision)
        self._heads: int = config.num_attention_heads
        self._linear: type[OneDnnLinear] | type[PlainLinear] = PlainLinear
        if self.device.type == "cpu" and has_onednn(self._dtype):
            self._linear = OneDnnLinear
        elif compiled and CompiledLinear.can_run(self._dtype, self.device, config.hidden_size):
            self._linear = CompiledLinear
        self.take_weights(reference.model)

    @staticmethod
    @abstractmethod
    def is_supported(config: Any) -> bool:
        """Whether a backbone of the family's model types has no option that the family lacks.

        :param config: transformers' configuration of the backbone.
        """

    @abstractmethod
    def take_weights(self, model: Any) -> None:
        """Take the weights of all layers.

        :param model: transformers' model in float32, on the encoder's device.
        """

    @abstractmethod
    def embed_tokens(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The output of the embedding layer, which is layer 0.

        :param ids: token ids: int32, [T].
        :param positions: positions of the tokens in their texts, from 0: int64, [T].
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

    def pack_linear(self, *layers: Any) -> Linear:
        """Linear layers of one input as one product, in the encoder's precision.

        :param *layers: modules with a ``weight``, [D_out, D_in], and a ``bias``, [D_out].
        """
        weight = torch.cat([layer.weight for layer in layers]).to(self._dtype)
        bias = torch.cat([layer.bias for layer in layers]).to(self._dtype)
        return self._linear(weight, bias)

    def pack_norm(self, norm: Any) -> Norm:
        """LayerNorm in the encoder's precision.

        :param norm: a module of torch's ``LayerNorm``.
        """
        return Norm(norm.weight.to(self._dtype), norm.bias.to(self._dtype), norm.eps)

    @torch.inference_mode()
    def encode(
        self, ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64], layers: tuple[int, ...]
    ) -> torch.Tensor:
        """Pooled outputs of some layers, as ``Encoder`` has it.

        It is fastest if texts of equal length are neighbours.
        """
        packing = Packing(lengths)
        pooled = torch.empty(
            (len(lengths), len(layers), self.architecture.width), device=self.device
        )
        attend = make_attention(packing, self._heads, self.device)
        pool = self._pooling.make_packed(packing, self.device)
        x = self.embed_tokens(self._send(ids), self._send(packing.positions)).to(self._dtype)
        for number in range(layers[-1] + 1):
            if number > 0:
                x = self.run_layer(number, x, attend)
            if number in layers:
                pooled[:, layers.index(number)] = pool(x)
        return pooled

    def _send(self, array: npt.NDArray[Any]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":  # a copy from pinned memory does not wait for the device
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)
