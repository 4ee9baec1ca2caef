"""What BERT and the encoders after its pattern share."""

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
GELU: dict[str, GeluKind] = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
# Keys of a configuration that have a size.
_SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
    "max_position_embeddings",
)  # fmt: skip


def has_sizes(config: Mapping[str, Any], *more: str) -> bool:
    """Whether a configuration has whole numbers for all sizes, and a width that heads can share.

    :param config: a configuration; its values may be of any type.
    :param *more: keys of sizes beyond those that every encoder has.
    """
    sizes = [config.get(key) for key in (*_SIZES, *more)]
    return (
        all(type(size) is int and size > 0 for size in sizes)
        and config["hidden_size"] % config["num_attention_heads"] == 0
    )


@dataclass(frozen=True)
class LayerNames:
    """The names of a transformer layer's modules in checkpoints.

    :param layer: the name of the layer itself, with ``{}`` for its number from 0; the others
        follow it behind a dot.
    :param qkv: the linear layers of queries, keys and values.
    :param output: the linear layer behind attention.
    :param output_norm: LayerNorm behind that.
    :param up: the first linear layer of the MLP.
    :param down: the second linear layer of the MLP.
    :param down_norm: LayerNorm behind that.
    """

    layer: str
    qkv: tuple[str, str, str]
    output: str
    output_norm: str
    up: str
    down: str
    down_norm: str


@dataclass(frozen=True)
class _Layer:
    qkv: Linear
    output: Linear
    output_norm: Norm
    up: Linear
    down: Linear
    down_norm: Norm


class PostNormEncoder(PackedEncoder):
    """An encoder of post-norm transformer layers over embeddings of words and positions.

    A family adds the names of its modules, and what it does differently.

    :cvar names: the names of a layer's modules.
    :cvar tables: the embeddings beside those of words: the name of the module → the key of the
        configuration that has its number of rows.

    Source: Devlin et al. (2019), BERT.
    """

    names: ClassVar[LayerNames]
    tables: ClassVar[Mapping[str, str]] = {"position_embeddings": "max_position_embeddings"}

    @classmethod
    def is_supported(cls, config: Mapping[str, Any]) -> bool:
        """Whether an encoder has absolute positions and GELU, and no decoder's parts."""
        return (
            str(config["hidden_act"]) in GELU
            and config.get("position_embedding_type", "absolute") == "absolute"
            and not config.get("is_decoder")
            and not config.get("add_cross_attention")
            and not config.get("pruned_heads")
            and has_sizes(config, *cls.tables.values())
            and isinstance(config["layer_norm_eps"], float)
        )

    @classmethod
    def count_heads(cls, config: Mapping[str, Any]) -> int:
        """The number of attention heads."""
        return int(config["num_attention_heads"])

    @classmethod
    def list_shapes(cls, config: Mapping[str, Any]) -> Shapes:
        """The tensors of transformers' model without its pooler."""
        D, inner = config["hidden_size"], config["intermediate_size"]
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (config["vocab_size"], D)
        }
        shapes |= {
            f"embeddings.{name}.weight": (config[key], D) for name, key in cls.tables.items()
        }
        linears: dict[str, tuple[int, ...]] = {}
        norms = ["embeddings.LayerNorm"]
        names = cls.names
        for number in range(config["num_hidden_layers"]):
            layer = names.layer.format(number)
            linears |= {f"{layer}.{name}": (D, D) for name in (*names.qkv, names.output)}
            linears[f"{layer}.{names.up}"] = (inner, D)
            linears[f"{layer}.{names.down}"] = (D, inner)
            norms += [f"{layer}.{names.output_norm}", f"{layer}.{names.down_norm}"]
        shapes |= {f"{name}.weight": shape for name, shape in linears.items()}
        shapes |= {f"{name}.bias": shape[:1] for name, shape in linears.items()}
        return shapes | {f"{name}.{part}": (D,) for name in norms for part in ("weight", "bias")}

    def take_weights(self, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> None:
        """Take the weights of transformers' model."""
        self._gelu = GELU[config["hidden_act"]]
        self._word_embeddings = tensors["embeddings.word_embeddings.weight"]
        self._position_embeddings = tensors["embeddings.position_embeddings.weight"]
        if "token_type_embeddings" in self.tables:
            # All tokens are of the first segment, so its embedding is part of every position's.
            segment = tensors["embeddings.token_type_embeddings.weight"][0]
            self._position_embeddings = self._position_embeddings + segment
        epsilon = config["layer_norm_eps"]
        # The embedding layer is computed in float32 whatever the precision.
        self._embedding_norm = Norm(
            tensors["embeddings.LayerNorm.weight"], tensors["embeddings.LayerNorm.bias"], epsilon
        )
        self._layers = [
            self._pack_layer(tensors, self.names.layer.format(number), epsilon)
            for number in range(config["num_hidden_layers"])
        ]

    def _pack_layer(
        self, tensors: Mapping[str, torch.Tensor], layer: str, epsilon: float
    ) -> _Layer:
        names = self.names
        return _Layer(
            qkv=self.pack_linear(tensors, *(f"{layer}.{name}" for name in names.qkv)),
            output=self.pack_linear(tensors, f"{layer}.{names.output}"),
            output_norm=self.pack_norm(tensors, f"{layer}.{names.output_norm}", epsilon),
            up=self.pack_linear(tensors, f"{layer}.{names.up}"),
            down=self.pack_linear(tensors, f"{layer}.{names.down}"),
            down_norm=self.pack_norm(tensors, f"{layer}.{names.down_norm}", epsilon),
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
