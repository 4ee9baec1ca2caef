"""Which texts go through the backbone together: by length, under a budget of padded tokens."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.embed.tokens import Tokens


def plan_batches(lengths: npt.NDArray[np.int64], token_budget: int) -> list[npt.NDArray[np.int64]]:
    """Group texts of like length so that little is padded.

    Longest first: if a batch does not fit into memory, the first one shows it.

    :param lengths: tokens of each text, [B].
    :param token_budget: a batch of b texts, the longest of t tokens, has b * t at most this; a text
        longer than the budget is a batch of its own.
    :returns: batches of indices into ``lengths``; every text stands in exactly one.
    """
    order = np.argsort(-lengths, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        size = max(token_budget // longest, 1)
        batches.append(order[start : start + size])
        start += size
    return batches


def pad_batch(
    tokens: Tokens, batch: npt.NDArray[np.int64], pad_id: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Token ids and mask of one batch.

    :param batch: indices of b texts.
    :returns: ids, int64, [b, t], padded on the right with ``pad_id``; mask, bool, [b, t], true on
        real tokens.
    """
    lengths = tokens.lengths[batch]
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(mask.shape, pad_id, np.int64)
    ids[mask] = np.concatenate(
        [tokens.ids[tokens.offsets[b] : tokens.offsets[b + 1]] for b in batch]
    )
    return ids, mask
