"""The words of texts: how often each stands in which text, by array operations alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.arrays import wrap_texts
from pipeline.model.decision import Ints

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

# What separates words: all but letters, the marks on them, and digits.
_SEPARATORS = r"[^\p{L}\p{M}\p{N}]+"
# Scripts that are written without blanks, in which each character counts as a word.
_UNSPACED = r"([\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Khmer}\p{Lao}\p{Myanmar}])"


@dataclass(frozen=True, eq=False)
class WordCounts:
    """How often each of V words stands in each of N texts; E pairs of a text and a word.

    :param starts: the first pair of each text, and E behind them: int64, [N + 1].
    :param words: the word of each pair, by its index in ``vocabulary``: int64, [E]; those of a text
        ascend.
    :param times: how often the text holds the word: int64, [E].
    :param vocabulary: the words in lower case, [V].
    """

    starts: Ints
    words: Ints
    times: Ints
    vocabulary: npt.NDArray[Any]

    def spread(self, texts: Ints, N: int) -> WordCounts:
        """The words of the same texts among others, of which no word is known.

        :param texts: the index of each of these texts among all, ascending: int64.
        :param N: the number of all texts.
        """
        return replace(self, starts=self.starts[np.searchsorted(texts, np.arange(N + 1))])

    def find_pairs(self, texts: Ints) -> tuple[Ints, Ints]:
        """The pairs of some texts.

        :param texts: the indices of n texts, any number of times each.
        :returns: for each pair the index in ``texts``, and the index of the pair.
        """
        lengths = self.starts[texts + 1] - self.starts[texts]
        owners = np.repeat(np.arange(len(texts)), lengths)
        before = np.cumsum(lengths) - lengths
        pairs = np.arange(len(owners)) - before[owners] + self.starts[texts][owners]
        return owners, pairs

    def count_texts(self, texts: Ints) -> Ints:
        """In how many of some texts each word stands: [V].

        :param texts: the indices of the texts.
        """
        _, pairs = self.find_pairs(texts)
        return np.bincount(self.words[pairs], minlength=len(self.vocabulary))

    def count_times(self, texts: Ints) -> Ints:
        """How often each word stands in some texts together: [V].

        :param texts: the indices of the texts.
        """
        _, pairs = self.find_pairs(texts)
        V = len(self.vocabulary)
        times = np.bincount(self.words[pairs], weights=self.times[pairs], minlength=V)
        return times.astype(np.int64)


def count_words(texts: pa.Array | Sequence[str]) -> WordCounts:
    """Find the words of texts: runs of letters, marks and digits, in lower case.

    A character of a script that is written without blanks is a word of its own.

    :param texts: N strings.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    given = texts if isinstance(texts, pa.Array | pa.ChunkedArray) else wrap_texts(list(texts))
    lower = pc.utf8_lower(given)
    if not pc.all(pc.string_is_ascii(lower)).as_py():
        lower = pc.replace_substring_regex(lower, _UNSPACED, r" \1 ")
    spaced = pc.replace_substring_regex(lower, _SEPARATORS, " ")
    lists = pc.split_pattern(pc.ascii_trim(spaced, " "), " ")
    if isinstance(lists, pa.ChunkedArray):
        lists = lists.combine_chunks()
    owners = pc.list_parent_indices(lists).to_numpy().astype(np.int64)
    coded = lists.flatten().dictionary_encode()
    names = np.array(coded.dictionary.to_pylist(), object)
    order = np.argsort(names, kind="stable")  # so that nothing depends on the order of the texts
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    codes = rank[coded.indices.to_numpy()] if len(order) else np.empty(0, np.int64)
    return _count_pairs(owners, codes, len(given), names[order])


def _count_pairs(owners: Ints, codes: Ints, N: int, names: npt.NDArray[Any]) -> WordCounts:
    """Count words that stand several times in a text; the empty word is none."""
    if "" in names[:1]:  # the word of a text without words
        names, kept = names[1:], codes > 0
        owners, codes = owners[kept], codes[kept] - 1
    V = max(len(names), 1)
    pairs, times = np.unique(owners * V + codes, return_counts=True)
    texts, words = np.divmod(pairs, V)
    starts = np.searchsorted(texts, np.arange(N + 1))
    return WordCounts(starts.astype(np.int64), words, times.astype(np.int64), names)
