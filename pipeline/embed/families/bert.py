"""BERT with absolute positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import functional

from pipeline.embed.attention import Attention
from pipeline.embed.linears import GeluKind, Linear, Norm
from pipeline.embed.packed import PackedEncoder
from pipeline.embed.weights import Shapes

# The names that configurations have for GELU's two forms.
_GELU: dict[str, GeluKind] = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
_QKV = [f"attention.self.{name}" for name in ("query", "key", "value")]
# The keys of a configuration that have a size.
_SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
    "max_position_embeddings", "type_vocab_size",
)  # fmt: skip


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

    prefix = "bert"
    defaults: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 30522,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
    }

    @staticmethod
    def is_supported(config: Mapping[str, Any]) -> bool:
        """Whether a BERT is an encoder with absolute positions and GELU."""
        sizes = [config[key] for key in _SIZES]
        return (
            str(config["hidden_act"]) in _GELU
            and config.get("position_embedding_type", "absolute") == "absolute"
            and not config.get("is_decoder")
            and not config.get("add_cross_attention")
            and all(type(size) is int and size > 0 for size in sizes)
            and config["hidden_size"] % config["num_attention_heads"] == 0
            and isinstance(config["layer_norm_eps"], float)
        )

    @staticmethod
    def count_heads(config: Mapping[str, Any]) -> int:
        """The number of attention heads."""
        return int(config["num_attention_heads"])

    @staticmethod
    def list_shapes(config: Mapping[str, Any]) -> Shapes:
        """The tensors of ``BertModel`` without its pooler."""
        D, inner = config["hidden_size"], config["intermediate_size"]
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (config["vocab_size"], D),
            "embeddings.position_embeddings.weight": (config["max_position_embeddings"], D),
            "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], D),
        }
        linears: dict[str, tuple[int, ...]] = {}
        norms = ["embeddings.LayerNorm"]
        for number in range(config["num_hidden_layers"]):
            layer = f"encoder.layer.{number}"
            linears |= {f"{layer}.{name}": (D, D) for name in (*_QKV, "attention.output.dense")}
            linears[f"{layer}.intermediate.dense"] = (inner, D)
            linears[f"{layer}.output.dense"] = (D, inner)
            norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
        shapes |= {f"{name}.weight": shape for name, shape in linears.items()}
        shapes |= {f"{name}.bias": shape[:1] for name, shape in linears.items()}
        return shapes | {f"{name}.{part}": (D,) for name in norms for part in ("weight", "bias")}

    def take_weights(self, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> None:
        """Take the weights of transformers' ``BertModel``."""
        self._gelu = _GELU[config["hidden_act"]]
        self._word_embeddings = tensors["embeddings.word_embeddings.weight"]
        # All tokens are of the first segment, so its embedding is part of every position's.
        self._position_embeddings = (
            tensors["embeddings.position_embeddings.weight"]
            + tensors["embeddings.token_type_embeddings.weight"][0]
        )
        epsilon = config["layer_norm_eps"]
        # The embedding layer is computed in float32 whatever the precision.
        self._embedding_norm = Norm(
            tensors["embeddings.LayerNorm.weight"], tensors["embeddings.LayerNorm.bias"], epsilon
        )
        self._layers = [
            self._pack_layer(tensors, f"encoder.layer.{number}", epsilon)
            for number in range(config["num_hidden_layers"])
        ]

    def _pack_layer(
        self, tensors: Mapping[str, torch.Tensor], layer: str, epsilon: float
    ) -> _Layer:
        return _Layer(
            qkv=self.pack_linear(tensors, *(f"{layer}.{name}" for name in _QKV)),
            output=self.pack_linear(tensors, f"{layer}.attention.output.dense"),
            output_norm=self.pack_norm(tensors, f"{layer}.attention.output.LayerNorm", epsilon),
            up=self.pack_linear(tensors, f"{layer}.intermediate.dense"),
            down=self.pack_linear(tensors, f"{layer}.output.dense"),
            down_norm=self.pack_norm(tensors, f"{layer}.output.LayerNorm", epsilon),
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
