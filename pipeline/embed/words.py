"""BERT's WordPiece by looking up whole words, a shard of texts at a time.

Its normalizer looks at characters alone and its pre-tokenizer parts words at every space and
punctuation character, so the ids of a text are those of what stands between these in ASCII, one
after another. Such words are found with array operations. Those met before are in a table, and the
tokenizer itself sees each other one once.
"""

from __future__ import annotations

import json
import string
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Ids = npt.NDArray[np.int32]
Places = npt.NDArray[np.int64]

WORD_BYTES = 16  # and pieces; texts with longer words, which are rare, go to the tokenizer
_SLOT_BITS = 18
_SLOTS = 1 << _SLOT_BITS
_SPACE, _PUNCTUATION, _LETTER, _FOREIGN = range(4)


class WordTable:
    """Token ids of words of up to 16 bytes, each in the slot that its hash gives.

    A word that meets another in its slot takes its place: nothing grows, and since whole words are
    compared, nothing is mistaken.

    :param tokenizer: one that ``can_look_up``; it must cut no word.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._kinds = _sort_bytes(tokenizer)
        self._lower = np.arange(256, dtype=np.uint8)
        if json.loads(tokenizer.to_str())["normalizer"]["lowercase"]:
            self._lower[ord("A") : ord("Z") + 1] += 32
        self._words = np.zeros((_SLOTS, 2), np.uint64)
        # Rows behind the slots hold the words that a call meets for the first time.
        self._pieces = np.zeros((_SLOTS, WORD_BYTES), np.int32)
        self._counts = np.zeros(_SLOTS, np.int64)

    def find_foreign(self, data: npt.NDArray[np.uint8], bounds: Places) -> npt.NDArray[np.bool_]:
        """Which texts hold a byte that is not plain: [B].

        :param data: the bytes of B texts, one after another.
        :param bounds: [B + 1]: text ``b`` has ``data[bounds[b]:bounds[b + 1]]``.
        """
        places = np.flatnonzero(self._kinds[data] == _FOREIGN)
        foreign = np.zeros(len(bounds) - 1, bool)
        foreign[np.searchsorted(bounds, places, side="right") - 1] = True
        return foreign

    def encode(
        self, data: npt.NDArray[np.uint8], bounds: Places
    ) -> tuple[Ids, Places, npt.NDArray[np.bool_]]:
        """Ids of texts without foreign bytes, special tokens not included.

        :returns: ids, [T]; how many each text has, [B]; which texts have a word that does not fit
            into the table, [B]: these have none.
        """
        starts, sizes, word_bounds = self._find_words(data, bounds)
        fits = sizes <= WORD_BYTES
        words = self._take_words(data, starts, np.minimum(sizes, WORD_BYTES))
        rows = _hash(words)
        there = self._words[rows]
        is_known = (there[:, 0] == words[:, 0]) & (there[:, 1] == words[:, 1])
        missing = np.flatnonzero(~is_known & fits)
        new, which = np.unique(words[missing].view(_TEXT)[:, 0], return_inverse=True)
        self._tokenize(new)
        rows[missing] = _SLOTS + which
        counts = self._counts[rows]
        is_left = np.zeros(len(bounds) - 1, bool)
        spoilt = np.flatnonzero(~fits | (counts > WORD_BYTES))
        if len(spoilt):
            is_left[np.searchsorted(word_bounds, spoilt, side="right") - 1] = True
            counts[np.repeat(is_left, np.diff(word_bounds))] = 0
        ends = np.concatenate([[0], np.cumsum(counts)])
        places = np.repeat(rows * WORD_BYTES - ends[:-1], counts) + np.arange(ends[-1])
        ids = self._pieces.reshape(-1)[places]
        self._keep(new)  # only now, since a slot may hold another word of these texts
        return ids, np.diff(ends[word_bounds]), is_left

    def _find_words(
        self, data: npt.NDArray[np.uint8], bounds: Places
    ) -> tuple[Places, Places, Places]:
        """Where words start and how long they are, [W], and each text's first among them, [B + 1].

        A punctuation character is a word of its own.
        """
        kinds = self._kinds[data]
        letter = kinds == _LETTER
        is_start = letter.copy()
        is_start[1:] &= ~letter[:-1]
        is_end = letter.copy()
        is_end[:-1] &= ~letter[1:]
        # Texts stand side by side: what touches there are still two words.
        holding = bounds[:-1] < bounds[1:]
        first, last = bounds[:-1][holding], bounds[1:][holding] - 1
        is_start[first] = letter[first]
        is_end[last] = letter[last]
        alone = kinds == _PUNCTUATION
        starts = np.flatnonzero(is_start | alone)
        sizes = np.flatnonzero(is_end | alone) + 1 - starts
        return starts, sizes, np.searchsorted(starts, bounds)

    def _take_words(
        self, data: npt.NDArray[np.uint8], starts: Places, sizes: Places
    ) -> npt.NDArray[np.uint64]:
        """The bytes of words in lower case, filled up with zeros: [W, 2]."""
        padded = np.zeros(len(data) + WORD_BYTES, np.uint8)
        padded[: len(data)] = self._lower[data]
        windows = np.lib.stride_tricks.sliding_window_view(padded, WORD_BYTES)
        taken: npt.NDArray[np.uint64] = windows[starts].view(np.uint64)
        taken &= _MASKS[sizes]
        return taken

    def _tokenize(self, new: npt.NDArray[np.bytes_]) -> None:
        """Put the pieces of words, each there once, into the rows behind the slots."""
        if _SLOTS + len(new) > len(self._counts):
            more = _SLOTS + 2 * len(new) - len(self._counts)
            self._counts = np.concatenate([self._counts, np.zeros(more, np.int64)])
            self._pieces = np.concatenate([self._pieces, np.zeros((more, WORD_BYTES), np.int32)])
        texts = [word.decode("utf-8") for word in new.tolist()]
        found = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        for row, encoding in enumerate(found, start=_SLOTS):
            ids = encoding.ids
            self._counts[row] = len(ids)
            self._pieces[row, : len(ids)] = ids[:WORD_BYTES]

    def _keep(self, new: npt.NDArray[np.bytes_]) -> None:
        """Move words from behind the slots into them."""
        words = new.view(np.uint64).reshape(-1, 2)
        slots, chosen = np.unique(_hash(words), return_index=True)
        self._words[slots] = words[chosen]
        self._counts[slots] = self._counts[_SLOTS + chosen]
        self._pieces[slots] = self._pieces[_SLOTS + chosen]


def can_look_up(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer is BERT's: WordPiece behind BERT's normalizer and pre-tokenizer."""
    about = json.loads(tokenizer.to_str())
    parts = ((about[part] or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model"))
    return tuple(parts) == ("BertNormalizer", "BertPreTokenizer", "WordPiece")


def _sort_bytes(tokenizer: Tokenizer) -> npt.NDArray[np.uint8]:
    """What each byte is to the pre-tokenizer: [256].

    All beyond ASCII belongs to the words around it. Foreign are control characters, and whatever an
    added token may begin with: these are found before the text is taken apart.
    """
    kinds = np.full(256, _LETTER, np.uint8)
    kinds[:32] = kinds[127] = _FOREIGN
    for characters, kind in ((string.punctuation, _PUNCTUATION), (" \t\n\r", _SPACE)):
        kinds[np.frombuffer(characters.encode(), np.uint8)] = kind
    for token in tokenizer.get_added_tokens_decoder().values():
        for first in (token.content[:1].lower(), token.content[:1].upper()):
            kinds[np.frombuffer(first.encode(), np.uint8)] = _FOREIGN
    return kinds


def _make_masks() -> npt.NDArray[np.uint64]:
    """Ones over the first bytes of a word, for each size: [17, 2]."""
    within = np.arange(WORD_BYTES) < np.arange(WORD_BYTES + 1)[:, None]
    return np.where(within, 255, 0).astype(np.uint8).view(np.uint64)


_TEXT = f"S{WORD_BYTES}"
_MASKS = _make_masks()


def _hash(words: npt.NDArray[np.uint64]) -> Places:
    """A slot for each word, [W]: any that spreads them well."""
    mixed = words[:, 0] * np.uint64(0x9E3779B97F4A7C15) ^ words[:, 1] * np.uint64(
        0xC2B2AE3D27D4EB4F
    )
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return (mixed >> np.uint64(64 - _SLOT_BITS)).astype(np.int64)
