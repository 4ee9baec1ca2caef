"""ModernBERT: rotary positions, gated MLPs, pre-norm layers, local and global attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import functional

from pipeline.embed.attention import Attention, Packing, make_attention
from pipeline.embed.families.post_norm import GELU, has_sizes
from pipeline.embed.gpu import send
from pipeline.embed.linears import Linear, Norm
from pipeline.embed.packed import PackedEncoder
from pipeline.embed.weights import Shapes

_GLOBAL, _LOCAL = "full_attention", "sliding_attention"
_KINDS = (_GLOBAL, _LOCAL)
# The keys by which configurations of transformers before 5 have the base of each kind's angles, and
# the base of a configuration that has none.
_BASES = {_GLOBAL: ("global_rope_theta", 160_000.0), _LOCAL: ("local_rope_theta", 10_000.0)}
_FLAGS = ("attention_bias", "mlp_bias", "norm_bias")


@dataclass(frozen=True)
class _Layer:
    kind: str
    attention_norm: Norm | None
    qkv: Linear
    output: Linear
    mlp_norm: Norm
    up: Linear
    gate: Linear
    down: Linear


class PackedModernBert(PackedEncoder):
    """ModernBERT: pre-norm transformer layers with rotary positions and gated MLPs.

    Source: Warner et al. (2024), Smarter, better, faster, longer: A modern bidirectional encoder.
    """

    prefix = "model"
    defaults: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 50368,
        "num_attention_heads": 12,
        "intermediate_size": 1152,
        "hidden_activation": "gelu",
        "norm_eps": 1e-5,
        "norm_bias": False,
        "attention_bias": False,
        "mlp_bias": False,
        "local_attention": 128,
    }

    @classmethod
    def complete_config(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration with the kind of each layer's attention and the bases of their angles."""
        full = {**cls.defaults, **config}
        every, layers = full.get("global_attn_every_n_layers", 3), full.get("num_hidden_layers")
        if full.get("layer_types") is None and type(every) is type(layers) is int and every > 0:
            full["layer_types"] = [_LOCAL if n % every else _GLOBAL for n in range(layers)]
        ropes = full.get("rope_parameters") or {}
        if isinstance(ropes, Mapping):
            full["rope_parameters"] = {
                kind: _complete_rope(ropes.get(kind), full.get(key, base))
                for kind, (key, base) in _BASES.items()
            }
        return full

    @classmethod
    def is_supported(cls, config: Mapping[str, Any]) -> bool:
        """Whether an encoder has GELU, plain rotary positions and heads of an even width."""
        ropes = config["rope_parameters"]
        kinds = config.get("layer_types")
        width, heads = config.get("hidden_size"), config["num_attention_heads"]
        return (
            str(config["hidden_activation"]) in GELU
            and has_sizes(config, "local_attention")
            and width // heads % 2 == 0
            and config.get("head_dim") in (None, width // heads)
            and not config.get("rope_scaling")
            and isinstance(ropes, dict)
            and all(_is_plain(ropes[kind]) for kind in _KINDS)
            and isinstance(kinds, list)
            and len(kinds) == config["num_hidden_layers"]
            and all(kind in _KINDS for kind in kinds)
            and isinstance(config["norm_eps"], float)
            and all(isinstance(config[flag], bool) for flag in _FLAGS)
        )

    @classmethod
    def count_heads(cls, config: Mapping[str, Any]) -> int:
        """The number of attention heads."""
        return int(config["num_attention_heads"])

    @classmethod
    def list_shapes(cls, config: Mapping[str, Any]) -> Shapes:
        """The tensors of ``ModernBertModel``."""
        D, inner = config["hidden_size"], config["intermediate_size"]
        attention = {"attn.Wqkv": (3 * D, D), "attn.Wo": (D, D)}
        mlp = {"mlp.Wi": (2 * inner, D), "mlp.Wo": (D, inner)}
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.tok_embeddings.weight": (config["vocab_size"], D)
        }
        norms = ["embeddings.norm", "final_norm"]
        for number in range(config["num_hidden_layers"]):
            layer = f"layers.{number}"
            for linears, flag in ((attention, "attention_bias"), (mlp, "mlp_bias")):
                shapes |= {f"{layer}.{name}.weight": shape for name, shape in linears.items()}
                if config[flag]:
                    shapes |= {f"{layer}.{name}.bias": s[:1] for name, s in linears.items()}
            # The first layer's attention comes right behind the norm of the embeddings.
            norms += [f"{layer}.{name}_norm" for name in ("attn", "mlp")[number == 0 :]]
        parts = ("weight", "bias") if config["norm_bias"] else ("weight",)
        return shapes | {f"{name}.{part}": (D,) for name in norms for part in parts}

    def take_weights(self, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> None:
        """Take the weights of ``ModernBertModel``."""
        self._gelu = GELU[config["hidden_activation"]]
        self._window = config["local_attention"] // 2
        self._bases = {kind: config["rope_parameters"][kind]["rope_theta"] for kind in _KINDS}
        epsilon = config["norm_eps"]
        self._word_embeddings = tensors["embeddings.tok_embeddings.weight"]
        # The embedding layer is computed in float32 whatever the precision.
        self._embedding_norm = Norm(
            tensors["embeddings.norm.weight"], tensors.get("embeddings.norm.bias"), epsilon
        )
        self._final_norm = self.pack_norm(tensors, "final_norm", epsilon)
        divided = _divide(tensors, self._heads, self.architecture.width)
        self._layers = [
            self._pack_layer(divided, f"layers.{number}", kind, epsilon)
            for number, kind in enumerate(config["layer_types"])
        ]

    def _pack_layer(
        self, tensors: Mapping[str, torch.Tensor], layer: str, kind: str, epsilon: float
    ) -> _Layer:
        norm = f"{layer}.attn_norm"
        has_norm = f"{norm}.weight" in tensors
        return _Layer(
            kind=kind,
            attention_norm=self.pack_norm(tensors, norm, epsilon) if has_norm else None,
            qkv=self.pack_linear(tensors, f"{layer}.attn.Wqkv"),
            output=self.pack_linear(tensors, f"{layer}.attn.Wo"),
            mlp_norm=self.pack_norm(tensors, f"{layer}.mlp_norm", epsilon),
            up=self.pack_linear(tensors, f"{layer}.mlp.up"),
            gate=self.pack_linear(tensors, f"{layer}.mlp.gate"),
            down=self.pack_linear(tensors, f"{layer}.mlp.Wo"),
        )

    def embed_tokens(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The embedding layer, in float32; positions come in with attention."""
        return self._embedding_norm.apply(functional.embedding(ids, self._word_embeddings))

    def make_attentions(self, packing: Packing) -> Sequence[Attention]:
        """The attention of each layer over one batch, of two kinds."""
        positions = send(packing.positions, self.device)
        kinds = [layer.kind for layer in self._layers]
        attentions = {kind: self._make_attention(packing, positions, kind) for kind in set(kinds)}
        return [attentions[kind] for kind in kinds]

    def _make_attention(self, packing: Packing, positions: torch.Tensor, kind: str) -> Attention:
        window = self._window if kind == _LOCAL else None
        attend = make_attention(packing, self._heads, self.device, window=window)
        D = self.architecture.width
        turns = _make_turns(positions, D // self._heads, self._bases[kind])

        def attend_turned(qkv: torch.Tensor) -> torch.Tensor:
            _turn(qkv[:, : 2 * D].view(len(qkv), 2 * self._heads, -1, 2), turns)
            return attend(qkv)

        return attend_turned

    def run_layer(self, number: int, x: torch.Tensor, attend: Attention) -> torch.Tensor:
        """One transformer layer: a norm, attention and a residual; a norm, an MLP and a residual.

        The output of the last layer is normalized.
        """
        layer = self._layers[number - 1]
        normed = x if layer.attention_norm is None else layer.attention_norm.apply(x)
        x = layer.output.apply_add(attend(layer.qkv.apply(normed)), x)
        normed = layer.mlp_norm.apply(x)
        inner = layer.gate.apply_multiply(normed, layer.up.apply_gelu(normed, self._gelu))
        x = layer.down.apply_add(inner, x)
        return self._final_norm.apply(x) if number == self.architecture.layers else x


def _complete_rope(rope: object, base: object) -> object:
    """What a configuration says of the rotary positions of one kind of attention, completed."""
    plain = {"rope_type": "default", "rope_theta": base}
    if rope is None:
        return plain
    return {**plain, **rope} if isinstance(rope, Mapping) else rope


def _is_plain(rope: object) -> bool:
    """Whether what a configuration says of rotary positions is a base alone."""
    return (
        isinstance(rope, Mapping)
        and set(rope) == {"rope_type", "rope_theta"}
        and rope["rope_type"] == "default"
        and isinstance(rope["rope_theta"], int | float)
        and rope["rope_theta"] > 0
    )


def _divide(tensors: Mapping[str, torch.Tensor], heads: int, width: int) -> dict[str, torch.Tensor]:
    """The weights with each MLP's two factors as modules of their own, and pairs side by side.

    Rotary positions turn pairs of numbers of a query or key. In checkpoints the two numbers of a
    pair are half a head apart. Here they are neighbours, so that a pair is one complex number; this
    leaves the products of queries and keys as they are.

    :param tensors: name → tensor.
    :param heads: number of attention heads H.
    :param width: width D of the encoder.
    """
    own = torch.arange(3 * width)
    pairs = own[: 2 * width].view(2 * heads, 2, -1).transpose(1, 2).reshape(-1)
    order = torch.cat([pairs, own[2 * width :]])
    divided = {}
    for name, tensor in tensors.items():
        if ".attn.Wqkv." in name:
            divided[name] = tensor[order.to(tensor.device)]
        elif ".mlp.Wi." in name:
            up, gate = tensor.chunk(2)
            divided[name.replace(".Wi.", ".up.")] = up
            divided[name.replace(".Wi.", ".gate.")] = gate
        else:
            divided[name] = tensor
    return divided


def _make_turns(positions: torch.Tensor, width: int, base: float) -> torch.Tensor:
    """The turn of each pair of numbers by the position of its token, as complex numbers.

    :param positions: positions of the tokens: [T].
    :param width: width of a head, D / H.
    :param base: base of the angles' geometric series.
    :returns: complex64, [T, 1, D / H / 2].

    Source: Su et al. (2021), RoFormer: Enhanced transformer with rotary position embedding.
    """
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=positions.device) / width
    angles = positions.float()[:, None, None] * (1.0 / base**exponents)
    return torch.polar(torch.ones_like(angles), angles)


def _turn(pairs: torch.Tensor, turns: torch.Tensor) -> None:
    """Turn queries and keys in place.

    :param pairs: pairs of numbers, of any float type: [T, 2 H, D / H / 2, 2].
    :param turns: turns of the pairs: complex64, [T, 1, D / H / 2].
    """
    if pairs.dtype == torch.float32:
        torch.view_as_complex(pairs).mul_(turns)
    else:
        turned = torch.view_as_complex(pairs.float()).mul_(turns)
        pairs.copy_(torch.view_as_real(turned))
