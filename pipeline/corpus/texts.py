"""What can serve as a text, what it shows, and which texts a reader would call the same."""

from __future__ import annotations

import unicodedata
from typing import Any

# Characters that show nothing although they are classed as letters or symbols: the fillers of
# Hangul and the blank of Braille. The replacement character stands for what could not be decoded.
_SHOW_NOTHING = "\u115f\u1160\u3164\uffa0\u2800\ufffd"
# Controls and format characters, separators, and marks, which show something on others alone.
_BLANK_CATEGORIES = {"Cc", "Cf", "Zs", "Zl", "Zp", "Mn", "Me"}


def is_blank(text: str) -> bool:
    """Whether a text has no character that shows anything by itself.

    Blanks, zero-width characters, soft hyphens, controls, byte order marks, variation selectors and
    marks without a letter show nothing, nor do fillers and replacement characters.

    :param text: any text.
    """
    return all(
        unicodedata.category(character) in _BLANK_CATEGORIES or character in _SHOW_NOTHING
        for character in text
    )


class _Visible(dict[int, int | None]):
    """Code of a character → itself, or ``None`` for controls and format characters but blanks."""

    def __missing__(self, code: int) -> int | None:
        character = chr(code)
        is_hidden = unicodedata.category(character) in {"Cc", "Cf"} and not character.isspace()
        self[code] = None if is_hidden else code
        return self[code]


_VISIBLE = _Visible()


def fold_text(text: str) -> str:
    """A text as a reader would compare it: the same for texts that hardly differ to the eye.

    Case is folded, runs of blanks become one and none is at the ends, controls and format
    characters are left out, and the Unicode form is NFKC, in which compatible characters, such as
    full-width letters, are one.

    :param text: any text.
    """
    if not text.isprintable():  # which controls and format characters are not
        text = text.translate(_VISIBLE)
    if not text.isascii():
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(text.casefold().split())


def find_fault(value: Any) -> str | None:
    """Why a value cannot serve as a text, or ``None`` if it can."""
    if value is None or (isinstance(value, float) and value != value):
        return "no text"
    if not isinstance(value, str):
        return f"text is not a string: {value!r:.40}"
    if is_blank(value):
        return "blank text"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return "text is not valid Unicode: a lone surrogate"
    return None
