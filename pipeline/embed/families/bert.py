"""BERT with absolute positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from pipeline.embed.attention import Attention
from pipeline.embed.linears import GeluKind, Linear, Norm
from pipeline.embed.packed import PackedEncoder

# The names that configurations have for GELU's two forms.
_GELU: dict[str, GeluKind] = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}


@dataclass(frozen=True)
class _Layer:
    qkv: Linear
    output: Linear
    output_norm: Norm
    up: Linear
    down: Linear
    down_norm: Norm


class PackedBert(PackedEncoder):
    """BERT: post-norm transformer layers over word, position and segment embeddings.

    Source: Devlin et al. (2019), BERT.
    """

    @staticmethod
    def is_supported(config: Any) -> bool:
        """Whether a BERT is an encoder with absolute positions and GELU."""
        return (
            config.hidden_act in _GELU
            and getattr(config, "position_embedding_type", "absolute") == "absolute"
            and not getattr(config, "is_decoder", False)
        )

    def take_weights(self, model: Any) -> None:
        """Take the weights of transformers' ``BertModel``."""
        embeddings = model.embeddings
        self._gelu = _GELU[model.config.hidden_act]
        self._word_embeddings: torch.Tensor = embeddings.word_embeddings.weight
        # All tokens are of the first segment, so its embedding is part of every position's.
        self._position_embeddings: torch.Tensor = (
            embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
        )
        norm = embeddings.LayerNorm
        self._embedding_norm = Norm(norm.weight, norm.bias, norm.eps)
        self._layers = [self._pack_layer(layer) for layer in model.encoder.layer]

    def _pack_layer(self, layer: Any) -> _Layer:
        attention = layer.attention
        own = attention.self
        return _Layer(
            qkv=self.pack_linear(own.query, own.key, own.value),
            output=self.pack_linear(attention.output.dense),
            output_norm=self.pack_norm(attention.output.LayerNorm),
            up=self.pack_linear(layer.intermediate.dense),
            down=self.pack_linear(layer.output.dense),
            down_norm=self.pack_norm(layer.output.LayerNorm),
        )

    def embed_tokens(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The embedding layer, in float32."""
        words = functional.embedding(ids, self._word_embeddings)
        return self._embedding_norm.apply(
            words.add_(functional.embedding(positions, self._position_embeddings))
        )

    def run_layer(self, number: int, x: torch.Tensor, attend: Attention) -> torch.Tensor:
        """One transformer layer: attention and an MLP, each with a residual and LayerNorm."""
        layer = self._layers[number - 1]
        context = attend(layer.qkv.apply(x))
        x = layer.output.apply_add_norm(context, x, layer.output_norm)
        inner = layer.up.apply_gelu(x, self._gelu)
        return layer.down.apply_add_norm(inner, x, layer.down_norm)
