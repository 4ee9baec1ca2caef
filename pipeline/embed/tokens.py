"""Texts → token ids as flat arrays with offsets, no Python object per text."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.embed.words import WordTable, can_look_up
from pipeline.errors import AssetError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Tokens:
    """Token ids of B texts, one after another.

    :param ids: int32, [T], special tokens included.
    :param offsets: int64, [B + 1]: text ``b`` has ``ids[offsets[b]:offsets[b + 1]]``.
    """

    ids: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each text: int64, [B]."""
        return np.diff(self.offsets)


class TextTokenizer:
    """A backbone's tokenizer: Rust's, or where it is BERT's a table of words in front of it.

    :param tokenizer: of the backbone.
    :param max_tokens: longer texts are cut; special tokens are counted in.
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        tokenizer.no_padding()
        # It may cut a word of the table too, but past what is left of the word's text.
        tokenizer.enable_truncation(max_length=max_tokens)
        self._tokenizer = tokenizer
        self._words = WordTable(tokenizer) if can_look_up(tokenizer) else None
        self._before, self._after = _find_special_tokens(tokenizer)
        self._room = max_tokens - len(self._before) - len(self._after)

    def tokenize(self, texts: pa.Array) -> Tokens:
        """Token ids of texts, special tokens included.

        :param texts: strings, [B], without nulls.
        """
        if self._words is None:
            return self._tokenize_each(texts)
        data, bounds = view_bytes(texts)
        is_plain = ~self._words.find_foreign(data, bounds)
        if not is_plain.all():
            sizes = np.diff(bounds)
            data, bounds = data[np.repeat(is_plain, sizes)], add_up(sizes[is_plain])
        pieces, counts, is_left = self._words.encode(data, bounds)
        plain = self._frame(pieces, counts[~is_left])
        is_plain[np.flatnonzero(is_plain)[is_left]] = False
        if is_plain.all():
            return plain
        others = self._tokenize_each(texts.filter(pa.array(~is_plain)))
        order = np.argsort(np.argsort(~is_plain, kind="stable"), kind="stable")
        return select_tokens(_join(plain, others), order)

    def _tokenize_each(self, texts: pa.Array) -> Tokens:
        """By the tokenizer itself, which takes one text after another, on all cores."""
        pieces = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts.to_pylist())]
        offsets = add_up(np.array([len(piece) for piece in pieces], np.int64))
        return Tokens(np.fromiter(chain.from_iterable(pieces), np.int32, offsets[-1]), offsets)

    def _frame(self, pieces: npt.NDArray[np.int32], counts: npt.NDArray[np.int64]) -> Tokens:
        """Cut texts and put them between special tokens.

        :param pieces: ids of b texts, one after another, [T].
        :param counts: of each text, [b].
        """
        kept = np.minimum(counts, self._room)
        if (counts > kept).any():
            place = np.arange(len(pieces)) - np.repeat(add_up(counts)[:-1], counts)
            pieces = pieces[place < np.repeat(kept, counts)]
        before, after = len(self._before), len(self._after)
        offsets = add_up(kept + before + after)
        ids = np.empty(offsets[-1], np.int32)
        own = np.arange(len(kept)) * (before + after) + before
        ids[np.arange(len(pieces)) + np.repeat(own, kept)] = pieces
        ids[offsets[:-1, None] + np.arange(before)] = self._before
        ids[offsets[1:, None] - after + np.arange(after)] = self._after
        return Tokens(ids, offsets)


def _find_special_tokens(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and behind a text."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    framed = tokenizer.encode("a").ids
    start = framed.index(bare[0]) if bare else len(framed)
    return framed[:start], framed[start + len(bare) :]


def view_bytes(texts: pa.Array) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The UTF-8 bytes of texts, one after another, and where each starts: [B + 1].

    :param texts: strings, [B], without nulls.
    """
    texts = texts.cast(pa.large_string())  # whose offsets are int64
    _, offsets, data = texts.buffers()
    bounds = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    if data is None:
        return np.empty(0, np.uint8), bounds
    return np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]], bounds - bounds[0]


def add_up(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Offsets of parts of these sizes: [B + 1], from 0."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


def _join(first: Tokens, second: Tokens) -> Tokens:
    offsets = np.concatenate([first.offsets, second.offsets[1:] + first.offsets[-1]])
    return Tokens(np.concatenate([first.ids, second.ids]), offsets)


def load_tokenizer(folder: Path, max_tokens: int) -> TextTokenizer:
    """The backbone's own fast tokenizer.

    :raises AssetError: if ``tokenizer.json`` cannot be read.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the Rust library raises plain Exception
        raise AssetError(
            f"{folder / 'tokenizer.json'}: cannot be read ({error})",
            hint="run `pipeline fetch` again",
        ) from error
    return TextTokenizer(tokenizer, max_tokens)


def select_tokens(tokens: Tokens, chosen: npt.NDArray[np.int64]) -> Tokens:
    """Tokens of some texts, in the order asked for.

    :param chosen: indices of b texts, [b].
    """
    lengths = tokens.lengths[chosen]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    # Token t of the result stands in the source as far from its text's start as here.
    shift = np.repeat(tokens.offsets[chosen] - offsets[:-1], lengths)
    return Tokens(ids=tokens.ids[np.arange(offsets[-1]) + shift], offsets=offsets)


def find_distinct(tokens: Tokens) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Texts that differ as tokens: those that differ only in case or past the cut do not.

    :returns: indices of the D distinct texts, [D], and for each text its place among these, [B].
    """
    seen: dict[bytes, int] = {}
    raw = tokens.ids.tobytes()
    bounds = (tokens.offsets * tokens.ids.itemsize).tolist()
    places = np.fromiter(
        (seen.setdefault(raw[a:b], len(seen)) for a, b in pairwise(bounds)),
        np.int64,
        len(bounds) - 1,
    )
    first = np.full(len(seen), len(places), np.int64)
    np.minimum.at(first, places, np.arange(len(places)))
    return first, places
