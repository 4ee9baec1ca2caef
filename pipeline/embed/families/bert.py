"""BERT with absolute positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pipeline.embed.families.post_norm import LayerNames, PostNormEncoder


class PackedBert(PostNormEncoder):
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
    names = LayerNames(
        layer="encoder.layer.{}",
        qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
        output="attention.output.dense",
        output_norm="attention.output.LayerNorm",
        up="intermediate.dense",
        down="output.dense",
        down_norm="output.LayerNorm",
    )
    tables: ClassVar[Mapping[str, str]] = {
        "position_embeddings": "max_position_embeddings",
        "token_type_embeddings": "type_vocab_size",
    }
