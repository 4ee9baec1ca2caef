"""Which words moved an answer: each is left out in turn, and the answer looked at again.

The method is occlusion, which asks nothing of a model but answers.

Source: Zeiler, Fergus (2014), Visualizing and understanding convolutional networks; for words, Li,
Monroe, Jurafsky (2016), Understanding neural networks through representation erasure.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.model.decision import Logits
from pipeline.model.saved import SavedHead

# A text of more words is divided into so many spans of neighbouring words.
MOST_SPANS = 100
# Signs that join what stands on both sides of them into one word, as in "don't" and "3.5"; a comma
# only between digits.
_JOINTS = {"'", "’", ".", "·"}
# Scripts that put no blank between words; each of their characters is taken for a word.
_ALONE = (
    (0x3040, 0x30FF),  # Hiragana and Katakana
    (0x3400, 0x9FFF),  # Han
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
_JOINERS = {"\u200d", "\ufe0e", "\ufe0f"}  # of several symbols into one

Spans = Sequence[tuple[int, int]]
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Occlusion:
    """One text and its variants, each of which lacks one span.

    :param text: the text.
    :param spans: bounds of its W words, or of runs of neighbouring words: characters, from 0.
    """

    text: str
    spans: Spans

    @property
    def variants(self) -> list[str]:
        """The text without each of its spans: [W]."""
        return [self.text[:start] + self.text[end:] for start, end in self.spans]

    def weigh(self, whole: float, scores: Scores) -> list[dict[str, float]]:
        """The spans with their weights.

        :param whole: the score of the text's answer.
        :param scores: the score of the same answer for each variant: [W].
        :returns: ``start``, ``end`` and ``weight``, what the score loses without the span: [W].
        """
        return [
            {"start": start, "end": end, "weight": float(whole - score)}
            for (start, end), score in zip(self.spans, scores.tolist(), strict=True)
        ]


def occlude(text: str) -> Occlusion:
    """A text with the spans that are left out of it in turn.

    :param text: any text.
    """
    return Occlusion(text, _group(find_words(text), MOST_SPANS))


def find_words(text: str) -> list[tuple[int, int]]:
    """The words of a text: runs of letters and digits with their marks, or of symbols.

    Punctuation and blanks are none. A sign such as an apostrophe between two letters is of the
    word, as Unicode has it. Chinese characters and kana are words by themselves.

    Source: Unicode Standard Annex 29, simplified.

    :param text: any text.
    :returns: the first character of each word, and that behind its last.
    """
    kinds = [_sort(character) for character in text]
    for at in range(1, len(text) - 1):
        joins = text[at] in _JOINTS or (
            text[at] == "," and text[at - 1].isdecimal() and text[at + 1].isdecimal()
        )
        if joins and kinds[at - 1] == kinds[at + 1] == "letter":
            kinds[at] = "letter"
    words: list[tuple[int, int]] = []
    before = "none"
    for at, kind in enumerate(kinds):
        if kind == "mark":  # it is of what it stands on
            goes_on = before != "none"
        else:
            goes_on = kind == before and kind in ("letter", "symbol")
            before = kind
        if goes_on:
            words[-1] = (words[-1][0], at + 1)
        elif kind not in ("mark", "none"):
            words.append((at, at + 1))
    return words


def _sort(character: str) -> str:
    """The kind of a character: letter, alone, symbol, mark or none."""
    if character in _JOINERS:
        return "mark"
    category = unicodedata.category(character)
    if category[0] == "M":
        return "mark"
    if category[0] in "LN" or category == "Pc":
        code = ord(character)
        return "alone" if any(low <= code <= high for low, high in _ALONE) else "letter"
    return "symbol" if category[0] == "S" else "none"


def _group(words: Spans, most: int) -> Spans:
    """At most so many spans of neighbouring words, as long as each other."""
    if len(words) <= most:
        return words
    parts = np.array_split(np.arange(len(words)), most)
    return [(words[part[0]][0], words[part[-1]][1]) for part in parts]


def score_answer(head: SavedHead, answered: Logits, logits: Logits) -> Scores:
    """How much some texts say what one text was answered.

    :param head: the head.
    :param answered: its outputs for that text, [1, O].
    :param logits: its outputs for the texts, [B, O].
    :returns: the calibrated probability of the class answered, the sum of those of the tags
        answered, or the number: [B].
    """
    return _SCORERS[head.type.label_kind](head, answered, logits)


def _score_class(head: SavedHead, answered: Logits, logits: Logits) -> Scores:
    index = int(head.type.predict(answered, head.decision)[0])
    return head.type.compute_probabilities(logits, head.decision)[:, index]


def _score_tags(head: SavedHead, answered: Logits, logits: Logits) -> Scores:
    given = head.type.predict(answered, head.decision)[0].astype(bool)
    scores: Scores = head.type.compute_probabilities(logits, head.decision)[:, given].sum(axis=1)
    return scores


def _score_number(head: SavedHead, answered: Logits, logits: Logits) -> Scores:
    return np.asarray(head.type.predict(logits, head.decision), np.float64)


# The kind of label that a head learns → the score of an answer.
_SCORERS: Mapping[str, Callable[[SavedHead, Logits, Logits], Scores]] = {
    "class": _score_class,
    "tags": _score_tags,
    "number": _score_number,
}
