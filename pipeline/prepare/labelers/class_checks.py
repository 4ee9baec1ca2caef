"""What looks wrong about the classes of a label, in words; nothing is refused for it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from pipeline.corpus.classes import parse_number
from pipeline.corpus.texts import fold_text
from pipeline.prepare.labelers.base import shorten

_SHOWN_GROUPS = 5
_SHOWN_NAMES = 6
# A label of more classes than this, each of few rows, is taken for something else.
_FEW_CLASSES = 20
_ROWS_OF_A_NUMBER = 20  # that a class whose name is a number has on average
_ROWS_OF_A_NAME = 2  # that any other has
# What programs and people write where a value is missing, in lower case.
MISSING_WORDS = {
    "na", "n/a", "n.a.", "#n/a", "<na>", "nan", "none", "null", "nil", "(null)", "nat",
    "undefined", "-", "--", "–", "—", "?", ".",
}  # fmt: skip
_TRUTH_NUMBERS = {"true": "1", "false": "0"}


def note_oddities(
    counts: Mapping[str, int],
    given: Sequence[str] | None,
    forms: Mapping[str, Mapping[str, int]] | None = None,
    *,
    remedy: str = "correct the column, or lead them to one class by `mapping`",
) -> tuple[str, ...]:
    """What deserves a warning about the values of a column of classes or tags.

    :param counts: name, as ``normalize_value`` has it, of each class, tag and unknown value → rows.
    :param given: the names that the settings give; ``None`` if all that were found are taken.
    :param forms: name → forms in which the source writes it, as Python shows them → rows.
    :param remedy: what to do if names that differ are one class.
    """
    notes = [*_note_twins(counts, given or (), remedy), *_note_missing_words(counts, given or ())]
    if given is None:
        notes += _note_forms(forms or {})
    return tuple(notes)


def note_many_classes(counts: Mapping[str, int]) -> tuple[str, ...]:
    """A warning if the classes that were found look like numbers to predict, or like texts.

    :param counts: name of each class → rows.
    """
    C, rows = len(counts), sum(counts.values())
    numbers = [number for name in counts if (number := parse_number(name)) is not None]
    if C > 2 and len(numbers) == C:
        in_parts = any(number != number.to_integral_value() for number in numbers)
        if in_parts or (C > _FEW_CLASSES and rows / C < _ROWS_OF_A_NUMBER):
            return (
                f"{C:,} numbers in {rows:,} rows became classes; set `kind: number` to predict a "
                "number, or name the classes in `classes`",
            )
    elif C > _FEW_CLASSES and rows / C < _ROWS_OF_A_NAME:
        return (f"{C:,} classes in {rows:,} rows: is this the right column?",)
    return ()


def note_missing_words(counts: Mapping[str, int]) -> tuple[str, ...]:
    """A warning if values that are no numbers look like words for a missing one.

    :param counts: value → rows.
    """
    return tuple(_note_missing_words(counts, ()))


def make_twin_key(name: str) -> object:
    """What two names have in common that are likely to mean the same.

    They differ only in blanks, case, Unicode form, invisible characters, or in how they write the
    same number or truth value.
    """
    folded = fold_text(name)
    number = parse_number(_TRUTH_NUMBERS.get(folded, folded))
    return folded if number is None else number


def show_name(name: str) -> str:
    """A name as it is, or in quotes with escapes if blanks or invisible characters hide in it."""
    is_plain = name.isprintable() and name == " ".join(name.split()) and name
    return name if is_plain else repr(name)


def _note_twins(counts: Mapping[str, int], given: Sequence[str], remedy: str) -> Iterator[str]:
    groups: dict[object, list[str]] = {}
    for name in dict.fromkeys([*given, *counts]):
        groups.setdefault(make_twin_key(name), []).append(name)
    twins = [names for names in groups.values() if len(names) > 1 and set(names) - set(given)]
    for names in twins[:_SHOWN_GROUPS]:
        yield (
            f"near twins: {_list_counts({name: counts.get(name, 0) for name in names})}; if they "
            f"mean the same, {remedy}"
        )
    if len(twins) > _SHOWN_GROUPS:
        yield f"and {len(twins) - _SHOWN_GROUPS:,} more groups of near twins"


def _note_missing_words(counts: Mapping[str, int], given: Sequence[str]) -> Iterator[str]:
    words = {
        word: rows
        for word, rows in counts.items()
        if word.strip().lower() in MISSING_WORDS and word not in given
    }
    if words:
        listed = ", ".join(f'"{word.strip()}"' for word in words)
        yield (
            f"{_list_counts(words)} may stand for a missing value; if so, set "
            f"`prepare.missing: [{listed}]`"
        )


def _note_forms(forms: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    mixed = [(name, of_name) for name, of_name in forms.items() if len(of_name) > 1]
    for name, of_name in mixed[:_SHOWN_GROUPS]:
        listed = ", ".join(f"{form} {rows:,}" for form, rows in of_name.items())
        yield f"{listed} are all read as the class {name!r}"
    if len(mixed) > _SHOWN_GROUPS:
        yield f"and {len(mixed) - _SHOWN_GROUPS:,} more classes are written in several ways"


def _list_counts(counts: Mapping[str, int]) -> str:
    """``'bad' 60, 'bad ' 3``; with escapes where names look the same."""
    names = list(counts)[:_SHOWN_NAMES]
    shown = [repr(name) for name in names]
    if len({unicodedata.normalize("NFC", text) for text in shown}) < len(shown):
        shown = [ascii(name) for name in names]
    listed = ", ".join(
        f"{shorten(text)} {counts[name]:,}" for text, name in zip(shown, names, strict=True)
    )
    more = len(counts) - len(names)
    return listed + (f" and {more:,} more" if more else "")
