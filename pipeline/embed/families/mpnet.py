"""MPNet, whose attention knows how far apart two tokens are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from pipeline.embed.attention import Attention, Packing, make_attention
from pipeline.embed.families.post_norm import LayerNames, PostNormEncoder
from pipeline.embed.families.roberta import count_from_padding
from pipeline.embed.weights import Shapes

# What transformers' code of MPNet has fixed, whatever the configuration says.
_PADDING_ID = 1
_BUCKETS = 32
_FURTHEST_TOKENS = 128  # All distances from here on are alike.
_BIASES = "encoder.relative_attention_bias.weight"


class PackedMpnet(PostNormEncoder):
    """MPNet: RoBERTa without segments, and with a bias of attention by distance.

    Source: Song et al. (2020), MPNet: Masked and permuted pre-training for language understanding.
    """

    prefix = "mpnet"
    defaults: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 30527,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "relative_attention_num_buckets": _BUCKETS,
    }
    names = LayerNames(
        layer="encoder.layer.{}",
        qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        output="attention.attn.o",
        output_norm="attention.LayerNorm",
        up="intermediate.dense",
        down="output.dense",
        down_norm="output.LayerNorm",
    )

    @classmethod
    def is_supported(cls, config: Mapping[str, Any]) -> bool:
        """Whether an encoder has GELU, and as many buckets of distances as transformers uses."""
        return (
            super().is_supported(config)
            and config["relative_attention_num_buckets"] == _BUCKETS
            and config["max_position_embeddings"] > _PADDING_ID + 1
        )

    @classmethod
    def list_shapes(cls, config: Mapping[str, Any]) -> Shapes:
        """The tensors of ``MPNetModel`` without its pooler."""
        return {**super().list_shapes(config), _BIASES: (_BUCKETS, config["num_attention_heads"])}

    def take_weights(self, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> None:
        """Take the weights of ``MPNetModel``."""
        super().take_weights(tensors, config)
        longest = config["max_position_embeddings"]
        buckets = _sort_into_buckets(torch.arange(1 - longest, longest))
        biases = tensors[_BIASES][buckets.to(self.device)]
        # By the distance from the query to the key, from the furthest before to the furthest after.
        self._biases = biases.T.to(self._dtype).contiguous()

    def count_positions(
        self, ids: npt.NDArray[np.int32], packing: Packing
    ) -> npt.NDArray[np.int64]:
        """The position of each token, from the id of the padding token + 1."""
        return count_from_padding(ids, packing, _PADDING_ID)

    def make_attentions(self, packing: Packing) -> Sequence[Attention]:
        """The attention of each layer over one batch, with the same biases in all of them."""
        attend = make_attention(packing, self._heads, self.device, make_bias=self._make_bias)
        return [attend] * self.architecture.layers

    def _make_bias(self, tokens: int) -> torch.Tensor:
        """The biases of texts of one length: [H, T, T]."""
        middle = self._biases.shape[1] // 2
        within = self._biases[:, middle - tokens + 1 : middle + tokens]
        # A row of windows is the last query's, and the next is that of the query before it.
        return within.unfold(1, tokens, 1).flip(1)


def _sort_into_buckets(distances: torch.Tensor) -> torch.Tensor:
    """The bucket of each distance from a query to a key: one each for short ones, wider for others.

    :param distances: differences of positions, key minus query: int64, [N].
    :returns: int64, [N].

    Source: Raffel et al. (2020), Exploring the limits of transfer learning, section 2.1.
    """
    a_side = _BUCKETS // 2
    exact = a_side // 2
    apart = distances.abs()
    scale = math.log(_FURTHEST_TOKENS / exact)
    wide = exact + (torch.log(apart.float() / exact) / scale * (a_side - exact)).long()
    bucket = torch.where(apart < exact, apart, wide.clamp_max(a_side - 1))
    return bucket + (distances > 0).long() * a_side
