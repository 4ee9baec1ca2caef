"""DistilBERT, a smaller BERT without segments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pipeline.embed.families.post_norm import LayerNames, PostNormEncoder

# The keys that a configuration of a DistilBERT has for what other configurations name as BERT's.
_KEYS = {
    "dim": "hidden_size",
    "hidden_dim": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "activation": "hidden_act",
}


class PackedDistilBert(PostNormEncoder):
    """DistilBERT: BERT without segments, under other names.

    Source: Sanh et al. (2019), DistilBERT, a distilled version of BERT.
    """

    prefix = "distilbert"
    defaults: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 30522,
        "n_heads": 12,
        "hidden_dim": 3072,
        "activation": "gelu",
    }
    names = LayerNames(
        layer="transformer.layer.{}",
        qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        output="attention.out_lin",
        output_norm="sa_layer_norm",
        up="ffn.lin1",
        down="ffn.lin2",
        down_norm="output_layer_norm",
    )

    @classmethod
    def complete_config(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration with BERT's keys, and the epsilon that every DistilBERT has."""
        own = {**cls.defaults, **config}
        renamed = {key: own[name] for name, key in _KEYS.items() if name in own}
        return own | renamed | {"layer_norm_eps": 1e-12}
