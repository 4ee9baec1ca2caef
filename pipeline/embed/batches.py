"""Which texts go through the backbone together: by length, under a budget of tokens."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.embed.tokens import Tokens, Windows


def plan_batches(
    lengths: npt.NDArray[np.int64], token_budget: int, *, packed: bool = True
) -> list[npt.NDArray[np.int64]]:
    """Group texts of like length.

    Of such a batch little is padding, and attention finds many texts of equal length in it. The
    longest texts come first, so that if a batch does not fit into memory, the first one shows it.

    :param lengths: tokens of each text: int64, [B].
    :param token_budget: the most tokens of a batch; a text longer than that is a batch of its own.
    :param packed: whether a batch has just the tokens of its texts, or each text is padded to the
        longest.
    :returns: batches of indices into ``lengths``; every text stands in exactly one.
    """
    order = np.argsort(-lengths, kind="stable")
    batches = []
    ends = np.cumsum(lengths[order])
    start = 0
    while start < len(order):
        if packed:
            before = ends[start] - lengths[order[start]]
            stop = int(np.searchsorted(ends, before + token_budget, side="right"))
        else:
            stop = start + token_budget // max(int(lengths[order[start]]), 1)
        stop = max(stop, start + 1)
        batches.append(order[start:stop])
        start = stop
    return batches


def fill_up(tokens: Tokens, step: int, longest: int) -> Tokens:
    """Add texts behind a batch's own until it has a multiple of ``step`` tokens.

    The added texts hold only the token 0; neither they nor their vectors mean anything.

    :param tokens: token ids of the batch's texts.
    :param step: number of which the batch's tokens shall be a multiple.
    :param longest: tokens of the longest added text.
    """
    missing = -len(tokens.ids) % step
    lengths = [longest] * (missing // longest) + [missing % longest] * (missing % longest > 0)
    ends = tokens.offsets[-1] + np.cumsum(lengths, dtype=np.int64)
    windows = tokens.windows
    if windows is not None:
        whole = np.array([(0, length) for length in lengths], np.int64).reshape(-1, 2)
        owners = np.zeros(len(lengths), np.int64)  # of no account, as their vectors are
        windows = Windows(
            np.concatenate([windows.owners, owners]), np.concatenate([windows.spans, whole])
        )
    return Tokens(
        np.concatenate([tokens.ids, np.zeros(missing, np.int32)]),
        np.concatenate([tokens.offsets, ends]),
        windows=windows,
    )
