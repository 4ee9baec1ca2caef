"""Texts → token ids as flat arrays with offsets, no Python object per text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    encodings = tokenizer.encode_batch_fast(list(texts))
    lengths = np.fromiter((len(e) for e in encodings), np.int64, len(encodings))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.empty(offsets[-1], np.int32)
    for number, encoding in enumerate(encodings):
        ids[offsets[number] : offsets[number + 1]] = encoding.ids
    return Tokens(ids=ids, offsets=offsets)
