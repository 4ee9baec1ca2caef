"""The BERT family without padding: all tokens of a batch as one matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from pipeline.embed.attention import Packing, make_attention
from pipeline.embed.backbone import Backbone, Precision
from pipeline.embed.linears import (
    CompiledLinear,
    GeluKind,
    Linear,
    Norm,
    OneDnnLinear,
    PlainLinear,
)
from pipeline.embed.pooling import make_pooling
from pipeline.onednn import has_onednn

# What configurations call GELU.
_GELU: dict[str, GeluKind] = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}


def can_pack(config: Any) -> bool:
    """Whether a backbone is of the family: BERT's architecture with absolute positions.

    :param config: transformers' configuration of it.
    """
    return (
        config.model_type == "bert"
        and config.hidden_act in _GELU
        and getattr(config, "position_embedding_type", "absolute") == "absolute"
        and not getattr(config, "is_decoder", False)
    )


@dataclass(frozen=True)
class _Layer:
    qkv: Linear
    output: Linear
    output_norm: Norm
    up: Linear
    down: Linear
    down_norm: Norm


class PackedBert:
    """BERT's forward pass over packed texts: no linear layer sees a padding token.

    :param reference: the backbone in float32, whose weights it takes.
    :param precision: of the linear layers and attention; embeddings, the statistics of LayerNorm
        and pooling are in float32.
    :param compiled: whether torch compiles what lies between the products, where oneDNN does not
        fuse it into them.

    Source: Devlin et al. (2019), BERT; packing as in Zeng et al. (2022), Boosting distributed
    training performance of the unpadded BERT model.
    """

    is_packed = True

    def __init__(
        self, reference: Backbone, precision: Precision, *, compiled: bool = False
    ) -> None:
        model, config = reference.model, reference.model.config
        self.architecture = reference.architecture
        self.device = reference.device
        self._dtype: torch.dtype = getattr(torch, precision)
        self._linear: type[OneDnnLinear] | type[PlainLinear] = PlainLinear
        if self.device.type == "cpu" and has_onednn(self._dtype):
            self._linear = OneDnnLinear
        elif compiled and CompiledLinear.can_run(self._dtype, self.device, config.hidden_size):
            self._linear = CompiledLinear
        self._heads: int = config.num_attention_heads
        self._gelu = _GELU[config.hidden_act]
        embeddings = model.embeddings
        self._words: torch.Tensor = embeddings.word_embeddings.weight
        # All tokens are of the first segment.
        self._places: torch.Tensor = (
            embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
        )
        self._norm = Norm(
            embeddings.LayerNorm.weight, embeddings.LayerNorm.bias, config.layer_norm_eps
        )
        self._layers = [self._pack_layer(layer) for layer in model.encoder.layer]

    @staticmethod
    def describe() -> str:
        """For the log."""
        return "packed forward pass, no padding"

    def _pack_layer(self, layer: Any) -> _Layer:
        own = layer.attention.self
        return _Layer(
            qkv=self._pack(own.query, own.key, own.value),
            output=self._pack(layer.attention.output.dense),
            output_norm=self._take_norm(layer.attention.output.LayerNorm),
            up=self._pack(layer.intermediate.dense),
            down=self._pack(layer.output.dense),
            down_norm=self._take_norm(layer.output.LayerNorm),
        )

    def _pack(self, *layers: Any) -> Linear:
        """Linear layers of one input as one product."""
        weight = torch.cat([layer.weight for layer in layers]).to(self._dtype)
        bias = torch.cat([layer.bias for layer in layers]).to(self._dtype)
        return self._linear(weight, bias)

    def _take_norm(self, norm: Any) -> Norm:
        return Norm(norm.weight.to(self._dtype), norm.bias.to(self._dtype), norm.eps)

    @torch.inference_mode()
    def encode(
        self, ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64], layers: tuple[int, ...]
    ) -> torch.Tensor:
        """Mean-pooled outputs of some layers.

        :param ids: [T]: tokens of B texts, one after another.
        :param lengths: [B]: tokens of each text, at least 1; fastest if equal ones are neighbours.
        :param layers: numbers of L layers, ascending.
        :returns: float32, [B, L, D], on the device.
        """
        packing = Packing(lengths)
        pooled = torch.empty(
            (len(lengths), len(layers), self.architecture.width), device=self.device
        )
        attend = make_attention(packing, self._heads, self.device)
        pool = make_pooling(packing, self.device)
        x = self._embed(ids, packing)
        for number in range(layers[-1] + 1):
            if number > 0:
                x = self._run_layer(self._layers[number - 1], x, attend)
            if number in layers:
                pooled[:, layers.index(number)] = pool(x)
        return pooled

    def _embed(self, ids: npt.NDArray[np.int32], packing: Packing) -> torch.Tensor:
        words = functional.embedding(self._send(ids), self._words)
        places = functional.embedding(self._send(packing.positions), self._places)
        return self._norm.apply(words.add_(places)).to(self._dtype)

    def _run_layer(self, layer: _Layer, x: torch.Tensor, attend: Any) -> torch.Tensor:
        context = attend(layer.qkv.apply(x))
        x = layer.output.apply_add_norm(context, x, layer.output_norm)
        inner = layer.up.apply_gelu(x, self._gelu)
        return layer.down.apply_add_norm(inner, x, layer.down_norm)

    def _send(self, array: npt.NDArray[Any]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":  # from pinned memory the copy does not wait for the device
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)
