"""From texts to token ids: flat arrays with offsets, and no Python object for each text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.arrays import wrap_numbers
from pipeline.embed.words import WordTable, can_look_up
from pipeline.errors import AssetError, SettingsError
from pipeline.store import Rows

if TYPE_CHECKING:
    from tokenizers import Tokenizer


_NO_END = 2**31 - 1  # tokens that no text has


@dataclass(frozen=True)
class Windows:
    """Of which texts W windows are, and which of their tokens count.

    :param owners: index of each window's text, ascending: int64, [W].
    :param spans: bounds of the tokens of each window that count: int64, [W, 2].
    """

    owners: npt.NDArray[np.int64]
    spans: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tokens:
    """Token ids of B texts, or of the windows of longer texts, one after another.

    :param ids: token ids, special tokens included: int32, [T].
    :param offsets: bounds of the texts: text ``b`` has ``ids[offsets[b]:offsets[b + 1]]``: int64,
        [B + 1].
    :param whole_lengths: tokens of each text before it was cut, special tokens counted in: int64,
        [B]; ``None`` where texts do not come from a tokenizer.
    :param windows: what the windows are of; ``None`` for whole texts.
    """

    ids: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    whole_lengths: npt.NDArray[np.int64] | None = None
    windows: Windows | None = None

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each text: int64, [B]."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True)
class DistinctTokens:
    """Token ids of B texts, of which those that are the same tokens stand once.

    Texts that differ only in what the tokenizer drops, such as letter case or the end of a long
    text, are the same tokens and have the same vectors.

    :param tokens: token ids of the distinct texts, in order of first appearance.
    :param first: index of the first text with the tokens of each distinct text: int64.
    :param indices: index of each text's distinct text: int64, [B].
    :param whole_lengths: tokens of each text before it was cut: int64, [B].
    """

    tokens: Tokens
    first: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int64]
    whole_lengths: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def expand(self, rows: Rows) -> Rows:
        """Rows of the B texts.

        :param rows: rows of the distinct texts.
        """
        if len(self.first) == len(self.indices):  # all differ, so the distinct texts are the texts
            return rows
        return Rows(rows.n_tokens[self.indices], rows.vectors[self.indices])


class TextTokenizer:
    """A backbone's tokenizer: the Rust library's, and if it is BERT's, a table of words before it.

    :param tokenizer: the backbone's tokenizer.
    :param max_tokens: length to cut longer texts to, special tokens and the prompt counted in.
    :param prompt: text to put before each text; empty for none.
    :param is_whole: whether texts are not cut, so that the length is one of windows.
    :ivar framing: the numbers of tokens before a text, those of the prompt counted in, and behind.
    :raises SettingsError: if that leaves no token beside the special ones and the prompt's.
    """

    def __init__(
        self, tokenizer: Tokenizer, max_tokens: int, prompt: str = "", *, is_whole: bool = False
    ) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._before, self._after = _find_special_tokens(tokenizer)
        n_special = len(self._before) + len(self._after)
        of_prompt = tokenizer.encode(prompt, add_special_tokens=False).ids if prompt else []
        least = n_special + len(of_prompt) + 1
        if max_tokens < least:
            to_what = "this backbone and prompt" if prompt else "this backbone"
            raise SettingsError(
                f"embed.max_tokens: must be >= {least} for {to_what}, got {max_tokens}"
            )
        self.framing = (len(self._before) + len(of_prompt), len(self._after))
        self._room = _NO_END if is_whole else max_tokens - n_special
        self._prompt = prompt
        self._tokenizer = tokenizer
        about = json.loads(tokenizer.to_str())
        self._hollow_ids = _list_hollow_ids(
            tokenizer, about["model"], [*self._before, *self._after]
        )
        self._solid_of_prompt = int((~np.isin(of_prompt, self._hollow_ids)).sum())
        self._words = WordTable(tokenizer, about) if can_look_up(about) else None

    def find_highest_id(self) -> int:
        """The highest token id that the tokenizer can make; -1 if it has none."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    def tokenize(self, texts: pa.Array) -> Tokens:
        """Token ids of texts, special tokens included.

        :param texts: strings without nulls: [B].
        """
        if self._prompt:
            texts = _put_before(texts, self._prompt)
        if self._words is None:
            return self._frame(*self._tokenize_each(texts))
        data, bounds = view_bytes(texts)
        is_plain = ~self._words.find_foreign(data, bounds)
        if not is_plain.all():
            sizes = np.diff(bounds)
            data, bounds = data[np.repeat(is_plain, sizes)], add_up(sizes[is_plain])
        pieces, counts, is_left = self._words.encode(data, bounds)
        plain = self._frame(self._cut(pieces, counts[~is_left]), counts[~is_left])
        is_plain[np.flatnonzero(is_plain)[is_left]] = False
        if is_plain.all():
            return plain
        others = self._frame(*self._tokenize_each(texts.filter(wrap_numbers(~is_plain))))
        order = np.argsort(np.argsort(~is_plain, kind="stable"), kind="stable")
        return select_tokens(_join(plain, others), order)

    def find_hollow(self, tokens: Tokens) -> npt.NDArray[np.bool_]:
        """The texts of which nothing is left but special tokens and pieces that are unknown.

        :param tokens: token ids of B texts, behind the prompt.
        :returns: bool, [B].
        """
        solid = add_up((~np.isin(tokens.ids, self._hollow_ids)).astype(np.int64))
        counts = solid[tokens.offsets[1:]] - solid[tokens.offsets[:-1]]
        return np.asarray(counts <= self._solid_of_prompt)

    def _tokenize_each(
        self, texts: pa.Array
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Pieces of texts by the tokenizer itself, which works on single texts, on all cores.

        :returns: as ``_frame`` takes them.
        """
        encodings = self._tokenizer.encode_batch_fast(texts.to_pylist(), add_special_tokens=False)
        kept, counts = [], np.empty(len(encodings), np.int64)
        for number, encoding in enumerate(encodings):
            ids = encoding.ids
            counts[number] = len(ids)
            kept.append(ids[: self._room])
        total = int(np.minimum(counts, self._room).sum())
        return np.fromiter(chain.from_iterable(kept), np.int32, total), counts

    def _cut(
        self, pieces: npt.NDArray[np.int32], counts: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int32]:
        """The pieces of b texts that fit between the special tokens.

        :param pieces: token ids of the texts, one text after another: [T].
        :param counts: pieces of each text: [b].
        """
        kept = np.minimum(counts, self._room)
        if not (counts > kept).any():
            return pieces
        position = np.arange(len(pieces)) - np.repeat(add_up(counts)[:-1], counts)
        return pieces[position < np.repeat(kept, counts)]

    def _frame(self, pieces: npt.NDArray[np.int32], counts: npt.NDArray[np.int64]) -> Tokens:
        """Put texts between special tokens.

        :param pieces: token ids of b texts, each cut to the longest length, one after another: [T].
        :param counts: pieces of each text before it was cut: [b].
        """
        kept = np.minimum(counts, self._room)
        before, after = len(self._before), len(self._after)
        offsets = add_up(kept + before + after)
        ids = np.empty(offsets[-1], np.int32)
        own = np.arange(len(kept)) * (before + after) + before
        ids[np.arange(len(pieces)) + np.repeat(own, kept)] = pieces
        ids[offsets[:-1, None] + np.arange(before)] = self._before
        ids[offsets[1:, None] - after + np.arange(after)] = self._after
        return Tokens(ids, offsets, counts + (before + after))


def _put_before(texts: pa.Array, prompt: str) -> pa.Array:
    """Texts behind a prompt, as one array of strings.

    :param texts: strings without nulls: [B].
    """
    import pyarrow.compute as pc

    # The bytes of all texts and as many prompts may need offsets of 64 bits.
    large = texts.cast(pa.large_string())
    prompts = pa.scalar(prompt, pa.large_string())
    return pc.binary_join_element_wise(prompts, large, pa.scalar("", pa.large_string()))


def _find_special_tokens(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids of the special tokens that the tokenizer puts before and behind a text."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    framed = tokenizer.encode("a").ids
    start = framed.index(bare[0]) if bare else len(framed)
    return framed[:start], framed[start + len(bare) :]


def _list_hollow_ids(
    tokenizer: Tokenizer, model: Mapping[str, Any], framing: list[int]
) -> npt.NDArray[np.int32]:
    """The ids that say nothing of a text: special tokens, and those of what is unknown.

    :param model: what ``tokenizer.json`` says of the model.
    :param framing: special tokens that stand around each text.
    """
    added = tokenizer.get_added_tokens_decoder().items()
    hollow = {*framing, *(number for number, token in added if token.special)}
    unknown: int | None = model.get("unk_id")
    if model.get("unk_token") is not None:
        unknown = tokenizer.token_to_id(model["unk_token"])
    if unknown is not None:
        hollow.add(unknown)
    return np.array(sorted(hollow), np.int32)


def view_bytes(texts: pa.Array) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The UTF-8 bytes of texts, one text after another.

    :param texts: strings without nulls: [B].
    :returns: the bytes, and their bounds: text ``b`` has ``bytes[bounds[b]:bounds[b + 1]]``.
    """
    if texts.type != pa.large_string():  # whose offsets are int64
        texts = texts.cast(pa.large_string())
    _, offsets, data = texts.buffers()
    bounds = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    if data is None:
        return np.empty(0, np.uint8), bounds
    return np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]], bounds - bounds[0]


def add_up(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Offsets of parts that stand one after another, from 0: [B + 1].

    :param counts: sizes of the parts: [B].
    """
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


def _join(first: Tokens, second: Tokens) -> Tokens:
    offsets = np.concatenate([first.offsets, second.offsets[1:] + first.offsets[-1]])
    assert first.whole_lengths is not None
    assert second.whole_lengths is not None
    whole_lengths = np.concatenate([first.whole_lengths, second.whole_lengths])
    return Tokens(np.concatenate([first.ids, second.ids]), offsets, whole_lengths)


def load_tokenizer(
    folder: Path, max_tokens: int, prompt: str = "", *, is_whole: bool = False
) -> TextTokenizer:
    """The backbone's own fast tokenizer.

    :param folder: the backbone's folder.
    :param max_tokens: length to cut longer texts to, special tokens and the prompt counted in.
    :param prompt: text to put before each text; empty for none.
    :param is_whole: whether texts are not cut, so that the length is one of windows.
    :raises AssetError: if ``tokenizer.json`` cannot be read.
    :raises SettingsError: if ``max_tokens`` leaves no token beside those.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the Rust library raises plain Exception
        raise AssetError(
            f"{folder / 'tokenizer.json'}: cannot be read ({error})",
            hint="run `pipeline fetch` again",
        ) from error
    return TextTokenizer(tokenizer, max_tokens, prompt, is_whole=is_whole)


def select_tokens(tokens: Tokens, chosen: npt.NDArray[np.int64]) -> Tokens:
    """Tokens of some texts, in the order asked for.

    :param tokens: token ids of B texts.
    :param chosen: indices of b texts: [b].
    """
    lengths = tokens.lengths[chosen]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    # A token is as far from its text's first token in the result as in the source, so that one
    # number for each text leads from the one to the other.
    shift = np.repeat(tokens.offsets[chosen] - offsets[:-1], lengths)
    whole, windows = tokens.whole_lengths, tokens.windows
    return Tokens(
        ids=tokens.ids[np.arange(offsets[-1]) + shift],
        offsets=offsets,
        whole_lengths=None if whole is None else whole[chosen],
        windows=windows and Windows(windows.owners[chosen], windows.spans[chosen]),
    )


def find_distinct(tokens: Tokens) -> DistinctTokens:
    """The texts that differ as tokens, each once.

    :param tokens: token ids of B texts.
    """
    seen: dict[bytes, int] = {}
    raw = tokens.ids.tobytes()
    bounds = (tokens.offsets * tokens.ids.itemsize).tolist()
    indices = np.fromiter(
        (seen.setdefault(raw[a:b], len(seen)) for a, b in pairwise(bounds)),
        np.int64,
        len(bounds) - 1,
    )
    first = np.full(len(seen), len(indices), np.int64)
    np.minimum.at(first, indices, np.arange(len(indices)))
    whole = tokens.lengths if tokens.whole_lengths is None else tokens.whole_lengths
    return DistinctTokens(select_tokens(tokens, first), first, indices, whole)
