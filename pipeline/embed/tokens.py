"""Texts → token ids as flat arrays with offsets, no Python object per text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

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


def load_tokenizer(folder: Path, max_tokens: int) -> Tokenizer:
    """The backbone's own fast tokenizer, cutting at ``max_tokens`` and padding nothing.

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
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length=max_tokens)
    return tokenizer


def tokenize(tokenizer: Tokenizer, texts: Sequence[str]) -> Tokens:
    """Tokenize in parallel, in Rust."""
    pieces = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts))]
    offsets = np.zeros(len(pieces) + 1, np.int64)
    np.cumsum([len(piece) for piece in pieces], out=offsets[1:])
    ids = np.fromiter(chain.from_iterable(pieces), np.int32, offsets[-1])
    return Tokens(ids=ids, offsets=offsets)


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
