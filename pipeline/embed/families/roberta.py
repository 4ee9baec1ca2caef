"""RoBERTa and its multilingual form, XLM-RoBERTa."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from pipeline.embed.attention import Packing
from pipeline.embed.families.bert import PackedBert


def count_from_padding(
    ids: npt.NDArray[np.int32], packing: Packing, padding_id: int
) -> npt.NDArray[np.int64]:
    """Positions that begin behind the id of the padding token.

    A padding token within a text, which a tokenizer makes of its name, has the position of its id,
    and the tokens behind it go on as if it were not there.

    :param ids: token ids: [T].
    :param packing: the texts of the batch.
    :param padding_id: id of the padding token.
    :returns: int64, [T].

    Source: Ott et al. (2019), fairseq: A fast, extensible toolkit for sequence modeling, whose
    ``make_positions`` this is.
    """
    is_padding = ids == padding_id
    positions = packing.positions + (padding_id + 1)
    if not is_padding.any():
        return positions
    before = np.concatenate([[0], np.cumsum(is_padding)])
    skipped = before[1:] - np.repeat(before[packing.offsets[:-1]], packing.lengths)
    return np.where(is_padding, padding_id, positions - skipped)


class PackedRoberta(PackedBert):
    """RoBERTa: BERT whose positions begin behind the id of the padding token.

    Source: Liu et al. (2019), RoBERTa.
    """

    prefix = "roberta"
    defaults: ClassVar[Mapping[str, Any]] = {
        **PackedBert.defaults, "vocab_size": 50265, "pad_token_id": 1,
    }  # fmt: skip

    @classmethod
    def is_supported(cls, config: Mapping[str, Any]) -> bool:
        """Whether an encoder has a padding token, and all that BERT has to have."""
        padding_id = config["pad_token_id"]
        return (
            super().is_supported(config)
            and type(padding_id) is int
            and 0 <= padding_id < config["max_position_embeddings"]
        )

    def take_weights(self, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> None:
        """Take the weights of transformers' model."""
        super().take_weights(tensors, config)
        self._padding_id = int(config["pad_token_id"])

    def count_positions(
        self, ids: npt.NDArray[np.int32], packing: Packing
    ) -> npt.NDArray[np.int64]:
        """The position of each token, from the id of the padding token + 1."""
        return count_from_padding(ids, packing, self._padding_id)


class PackedXlmRoberta(PackedRoberta):
    """XLM-RoBERTa: RoBERTa over the vocabulary of a hundred languages.

    Source: Conneau et al. (2020), Unsupervised cross-lingual representation learning at scale.
    """

    defaults: ClassVar[Mapping[str, Any]] = {**PackedRoberta.defaults, "vocab_size": 30522}
