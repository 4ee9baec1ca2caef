"""BERT's WordPiece by looking up whole words, a shard of texts at a time.

BERT's normalizer changes each character by itself, and its pre-tokenizer divides a text at every
space and punctuation character. So the ids of a text are the ids of its words, one word after
another, where a word is what stands between two ASCII spaces or punctuation characters. Array
operations find the words of all texts at once. A table holds the ids of words met before; the
tokenizer itself sees every other word once.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Ids = npt.NDArray[np.int32]
Indices = npt.NDArray[np.int64]

# The table holds words of at most this many UTF-8 bytes and at most as many token ids. A text with
# a longer word, which is rare, is tokenized by the tokenizer itself.
WORD_BYTES = 16
_SLOT_BITS = 18
_SLOTS = 1 << _SLOT_BITS
_SPACE, _PUNCTUATION, _LETTER, _FOREIGN = range(4)


class WordTable:
    """Token ids of words of up to 16 bytes, each in the slot that its hash gives.

    A word whose slot holds another word replaces it, so the table does not grow. A look-up compares
    the whole word, so words of one slot are never mistaken for each other.

    :param tokenizer: a tokenizer for which ``can_look_up`` holds.
    :param about: what ``tokenizer.json`` says of it.
    """

    def __init__(self, tokenizer: Tokenizer, about: Mapping[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._kinds = _sort_bytes(tokenizer)
        self._lower = np.arange(256, dtype=np.uint8)
        if about["normalizer"]["lowercase"]:
            self._lower[ord("A") : ord("Z") + 1] += 32
        self._words = np.zeros((_SLOTS, 2), np.uint64)
        # Rows behind those of the slots hold the words that a call of `encode` meets for the first
        # time.
        self._pieces = np.zeros((_SLOTS, WORD_BYTES), np.int32)
        self._counts = np.zeros(_SLOTS, np.int64)

    def find_foreign(self, data: npt.NDArray[np.uint8], bounds: Indices) -> npt.NDArray[np.bool_]:
        """The texts that hold a byte of the kind foreign, which the table cannot take: bool, [B].

        :param data: UTF-8 bytes of B texts, one text after another.
        :param bounds: bounds of the texts: text ``b`` has ``data[bounds[b]:bounds[b + 1]]``:
            [B + 1].
        """
        at = np.flatnonzero(self._kinds[data] == _FOREIGN)
        is_foreign = np.zeros(len(bounds) - 1, bool)
        is_foreign[np.searchsorted(bounds, at, side="right") - 1] = True
        return is_foreign

    def encode(
        self, data: npt.NDArray[np.uint8], bounds: Indices
    ) -> tuple[Ids, Indices, npt.NDArray[np.bool_]]:
        """Token ids of texts without foreign bytes, special tokens not included.

        :param data: UTF-8 bytes of B texts, one text after another.
        :param bounds: bounds of the texts, [B + 1].
        :returns: ids, [T]; how many each text has, [B]; and which texts are left out because a word
            of theirs does not fit into the table, bool, [B].
        """
        starts, sizes, word_bounds = self._find_words(data, bounds)
        fits = sizes <= WORD_BYTES
        words = self._take_words(data, starts, np.minimum(sizes, WORD_BYTES))
        rows = _hash(words)
        held = self._words[rows]
        is_known = (held[:, 0] == words[:, 0]) & (held[:, 1] == words[:, 1])
        missing = np.flatnonzero(~is_known & fits)
        new, which = np.unique(words[missing].view(_TEXT)[:, 0], return_inverse=True)
        self._tokenize(new)
        rows[missing] = _SLOTS + which
        counts = self._counts[rows]
        is_left = np.zeros(len(bounds) - 1, bool)
        too_long = np.flatnonzero(~fits | (counts > WORD_BYTES))
        if len(too_long):
            is_left[np.searchsorted(word_bounds, too_long, side="right") - 1] = True
            counts[np.repeat(is_left, np.diff(word_bounds))] = 0
        ends = np.concatenate([[0], np.cumsum(counts)])
        sources = np.repeat(rows * WORD_BYTES - ends[:-1], counts) + np.arange(ends[-1])
        ids = self._pieces.reshape(-1)[sources]
        # The new words move into their slots only after the ids have been read: until then a slot
        # may hold another word of these same texts.
        self._keep(new)
        return ids, np.diff(ends[word_bounds]), is_left

    def _find_words(
        self, data: npt.NDArray[np.uint8], bounds: Indices
    ) -> tuple[Indices, Indices, Indices]:
        """The words of texts; a punctuation character is a word of its own.

        :returns: the first byte and the bytes of each word, and the bounds of the texts among the
            words, [B + 1].
        """
        kinds = self._kinds[data]
        letter = kinds == _LETTER
        is_start = letter.copy()
        is_start[1:] &= ~letter[:-1]
        is_end = letter.copy()
        is_end[:-1] &= ~letter[1:]
        # Where two texts touch, the last word of one and the first of the next are two words.
        holding = bounds[:-1] < bounds[1:]
        first, last = bounds[:-1][holding], bounds[1:][holding] - 1
        is_start[first] = letter[first]
        is_end[last] = letter[last]
        alone = kinds == _PUNCTUATION
        starts = np.flatnonzero(is_start | alone)
        sizes = np.flatnonzero(is_end | alone) + 1 - starts
        return starts, sizes, np.searchsorted(starts, bounds)

    def _take_words(
        self, data: npt.NDArray[np.uint8], starts: Indices, sizes: Indices
    ) -> npt.NDArray[np.uint64]:
        """The bytes of words in lower case, filled up with zeros to 16, as two numbers a word."""
        padded = np.zeros(len(data) + WORD_BYTES, np.uint8)
        padded[: len(data)] = self._lower[data]
        windows = np.lib.stride_tricks.sliding_window_view(padded, WORD_BYTES)
        taken: npt.NDArray[np.uint64] = windows[starts].view(np.uint64)
        taken &= _MASKS[sizes]
        return taken

    def _tokenize(self, new: npt.NDArray[np.bytes_]) -> None:
        """Put the ids of distinct new words into the rows behind the slots."""
        if _SLOTS + len(new) > len(self._counts):
            more = _SLOTS + 2 * len(new) - len(self._counts)
            self._counts = np.concatenate([self._counts, np.zeros(more, np.int64)])
            self._pieces = np.concatenate([self._pieces, np.zeros((more, WORD_BYTES), np.int32)])
        texts = [word.decode("utf-8") for word in new.tolist()]
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        for row, encoding in enumerate(encodings, start=_SLOTS):
            ids = encoding.ids
            self._counts[row] = len(ids)
            self._pieces[row, : len(ids)] = ids[:WORD_BYTES]

    def _keep(self, new: npt.NDArray[np.bytes_]) -> None:
        """Move new words from the rows behind the slots into their slots."""
        words = new.view(np.uint64).reshape(-1, 2)
        slots, chosen = np.unique(_hash(words), return_index=True)
        self._words[slots] = words[chosen]
        self._counts[slots] = self._counts[_SLOTS + chosen]
        self._pieces[slots] = self._pieces[_SLOTS + chosen]


def can_look_up(about: Mapping[str, Any]) -> bool:
    """Whether a tokenizer is BERT's: WordPiece behind BERT's normalizer and pre-tokenizer.

    :param about: what ``tokenizer.json`` says of it.
    """
    parts = ((about[part] or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model"))
    return tuple(parts) == ("BertNormalizer", "BertPreTokenizer", "WordPiece")


def _sort_bytes(tokenizer: Tokenizer) -> npt.NDArray[np.uint8]:
    """The kind of each byte to the pre-tokenizer: [256].

    Bytes beyond ASCII belong to the words around them. Foreign are control characters, and every
    byte that an added token may begin with, because the tokenizer looks for added tokens before it
    divides a text into words.
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
    """For each size of a word, a mask of its first bytes, as two numbers: [17, 2]."""
    within = np.arange(WORD_BYTES) < np.arange(WORD_BYTES + 1)[:, None]
    return np.where(within, 255, 0).astype(np.uint8).view(np.uint64)


_TEXT = f"S{WORD_BYTES}"
_MASKS = _make_masks()


def _hash(words: npt.NDArray[np.uint64]) -> Indices:
    """The slot of each word, by multiplications that spread words evenly over the slots."""
    mixed = words[:, 0] * np.uint64(0x9E3779B97F4A7C15) ^ words[:, 1] * np.uint64(
        0xC2B2AE3D27D4EB4F
    )
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return (mixed >> np.uint64(64 - _SLOT_BITS)).astype(np.int64)
