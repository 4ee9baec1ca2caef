"""Long texts as overlapping windows, which are joined so that each token counts once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.embed.tokens import Tokens, Windows, add_up

# The part of a window that it shares with the next one at least. Tokens near the ends of a window
# see few others on one side; the overlap spares each all but an eighth of a window of that.
_LEAST_OVERLAP = 1 / 4


@dataclass(frozen=True)
class WindowCutter:
    """Cuts texts that are longer than the backbone takes into windows of that length.

    The windows of a text are spread evenly over it. Each begins with the tokens before the text,
    the prompt's among them, and ends with those behind it. A token counts in the window in which
    it stands most central, so that the mean over what counts is one over the whole text.

    :param max_tokens: length of a window, special tokens and the prompt counted in.
    :param before: number of tokens before a text that each window repeats.
    :param after: number of tokens behind it that each window repeats.
    """

    max_tokens: int
    before: int
    after: int

    def cut(self, tokens: Tokens) -> Tokens:
        """The windows of texts; texts that are short enough are one window each.

        :param tokens: token ids of B whole texts.
        :returns: token ids of the windows, one text's after another's; ``tokens`` itself if no text
            is longer than a window.
        """
        lengths = tokens.lengths
        if not (lengths > self.max_tokens).any():
            return tokens
        room = self.max_tokens - self.before - self.after
        stride = room - int(room * _LEAST_OVERLAP)
        # How far the start of a text's last window is from that of its first.
        reach = np.maximum(lengths - self.max_tokens, 0)
        counts = 1 + -(-reach // stride)
        owners = np.repeat(np.arange(len(lengths)), counts)
        number = np.arange(len(owners)) - np.repeat(add_up(counts)[:-1], counts)
        gaps = np.maximum(counts - 1, 1)[owners]
        starts = (number * reach[owners] + gaps // 2) // gaps
        sizes = np.minimum(lengths, self.max_tokens)[owners]
        is_first, is_last = number == 0, number == counts[owners] - 1
        # Halfway between the centres of two windows, counted in tokens of the text from its first
        # own one: what lies before it counts in the one, what lies behind it in the other.
        borders = (starts[:-1] + starts[1:] + room) // 2
        low = np.where(is_first, 0, self.before + np.append(0, borders) - starts)
        high = np.where(is_last, sizes, self.before + np.append(borders, 0) - starts)
        offsets = add_up(sizes)
        window = np.repeat(np.arange(len(owners)), sizes)
        place = np.arange(offsets[-1]) - offsets[window]
        shift = np.where(place < self.before, 0, starts[window])
        is_tail = place >= (sizes - self.after)[window]
        shift = np.where(is_tail, (lengths[owners] - sizes)[window], shift)
        source = tokens.offsets[:-1][owners][window] + place + shift
        return Tokens(
            tokens.ids[source], offsets, windows=Windows(owners, np.stack([low, high], axis=1))
        )
