"""The words that moved an answer, for a terminal: shaded by their weight, or listed."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.console import escape_controls, format_number

LEGEND = "green words speak for the answer, red ones against it"
# For a third, two thirds and all of the largest weight of a text, in colours of any terminal.
_FOR = ("green", "bold green", "black on green")
_AGAINST = ("red", "bold red", "black on red")
_LISTED_WORDS = 5
_WORD_CHARACTERS = 30  # of a listed word that are shown

Weighed = Sequence[Mapping[str, Any]]


def shade_words(
    text: str, spans: Weighed, columns: int, indent: str, least: float = 0.0
) -> list[str]:
    """A text as lines with escape sequences for colours.

    :param text: the text.
    :param spans: its words with their weights, as ``Occlusion.weigh`` gives them.
    :param columns: the width of the terminal in characters.
    :param indent: what stands before the first line; blanks of that length stand before the others.
    :param least: the weight that has the full colour where no word has a larger one, so that words
        that moved nothing are not shaded.
    """
    from rich.console import Console
    from rich.text import Text

    shown = Text("".join(sign if sign.isprintable() else " " for sign in text))
    largest = max([least, *(abs(span["weight"]) for span in spans)])
    for span in spans:
        level = round(len(_FOR) * abs(span["weight"]) / largest) if largest else 0
        if level:
            styles = _FOR if span["weight"] > 0 else _AGAINST
            shown.stylize(styles[level - 1], span["start"], span["end"])
    file = io.StringIO()
    width = max(20, columns - len(indent))
    Console(file=file, width=width, force_terminal=True, highlight=False).print(shown)
    lines = file.getvalue().splitlines()
    return [(" " * len(indent) if number else indent) + line for number, line in enumerate(lines)]


def list_words(text: str, spans: Weighed) -> str:
    """The words of the largest weights, for a terminal without colours.

    :param text: the text.
    :param spans: its words with their weights, as ``Occlusion.weigh`` gives them.
    """
    top = sorted(spans, key=lambda span: -abs(span["weight"]))[:_LISTED_WORDS]
    named = (
        f"{_shorten(text[span['start'] : span['end']])} "
        f"{'-' if span['weight'] < 0 else '+'}{format_number(abs(span['weight']), 3)}"
        for span in top
    )
    return ", ".join(named) or "no words"


def _shorten(word: str) -> str:
    word = escape_controls(" ".join(word.split()))
    return word if len(word) <= _WORD_CHARACTERS else f"{word[: _WORD_CHARACTERS - 1]}…"
