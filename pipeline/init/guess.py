"""What a column of a source seems to hold: texts, classes, tags, numbers or something else."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from pipeline.config import normalize_value
from pipeline.corpus.classes import parse_number, sort_classes
from pipeline.corpus.texts import fold_text
from pipeline.prepare.labelers.base import is_missing
from pipeline.prepare.labelers.class_checks import MISSING_WORDS
from pipeline.prepare.labelers.list_text import parse_list

TaskKind = Literal["binary", "multiclass", "ordinal", "tags", "number"]
ColumnKind = TaskKind | Literal["text", "split", "id", "time", "constant", "empty", "other"]

SEPARATORS = (";", "|", ",")  # that may stand between two tags, the surest sign first
# Of the words for a missing value, those that may well name a class, too: they are taken for
# missing only beside numbers.
_MAY_BE_CLASSES = {"none", "nil", "undefined", "."}
_SPLIT_WORDS = {
    "train": {"train", "training", "trn", "learn"},
    "validation": {"validation", "valid", "val", "dev", "development"},
    "test": {"test", "testing", "tst", "eval", "evaluation", "holdout", "heldout"},
}
# What is said of a text that is not, so that of two classes it is the one to have the index 0.
_NEGATIVE_WORDS = {
    "0", "no", "n", "f", "false", "off", "neg", "negative", "ham", "none", "normal", "legit",
    "legitimate", "low", "bad", "fail", "failed", "closed", "inactive", "absent", "other",
}  # fmt: skip
_POSITIVE_WORDS = {
    "1", "yes", "y", "t", "true", "on", "pos", "positive", "spam", "high", "good", "pass",
    "passed", "open", "active", "present",
}  # fmt: skip
_NEGATION = re.compile(r"(not?|non|un|in|ir|im)[ _-]?")
_TIME = re.compile(r"\d{4}-\d\d?-\d\d?([T ].*)?|\d{1,2}[./-]\d{1,2}[./-](\d\d|\d{4})([ ].*)?")
_DECIMAL_COMMA = re.compile(r"[+-]?(\d+|\d{1,3}(\.\d{3})+),\d+")
_ROWS_A_CLASS = 2  # that a class has on average; where there are fewer, the values are no classes
_RATINGS = 11  # whole numbers that may be grades of one scale, such as those from 0 to 10
_REUSED_SHARE = 0.7  # of the parts of cells, those that stand in other cells too, if parts are tags
_TAG_CHARACTERS = 40  # of a tag, on average
_TEXT_WORDS = 4  # of a text, on average
_CLASS_WORDS = 10  # of the name of a class, on average; what has more is a text that often recurs
_TIME_SHARE = 0.9  # of the cells that are dates, if a column is one of dates


@dataclass(frozen=True)
class Guess:
    """What a column seems to hold.

    :param kind: what it is.
    :param classes: the classes of a binary or ordinal task, in the order of their index; none
        where the order of ``prepare`` is right.
    :param separator: what stands between two tags; ``None`` if each cell is a list.
    :param missing: the words of the column that mean that a value is missing.
    :param optional: whether rows lack the value.
    :param empty_tags: whether there are empty cells among those that hold tags as text, which then
        mean that a row has none.
    :param remark: what a person should know of the guess; empty if there is nothing.
    """

    kind: ColumnKind
    classes: tuple[str, ...] = ()
    separator: str | None = None
    missing: tuple[str, ...] = ()
    optional: bool = False
    empty_tags: bool = False
    remark: str = ""

    @property
    def task_kind(self) -> TaskKind | None:
        """What labels it holds; ``None`` if it holds nothing that heads can learn."""
        return next((kind for kind in READERS if kind == self.kind), None)


def guess_column(values: Sequence[Any]) -> Guess:
    """What a column seems to hold.

    :param values: the values of its rows, as a reader of sources gives them, [B].
    """
    present = [value for value in values if not is_missing(value)]
    if not present:
        return Guess("empty", optional=True)
    if all(isinstance(value, list | tuple | np.ndarray) for value in present):
        items = [item for value in present for item in value]
        is_tags = all(isinstance(item, str | bool) or item is None for item in items)
        return _finish(values, "tags" if is_tags else "other", ())
    if any(not isinstance(value, str | int | float) for value in present):
        kind: ColumnKind = "time" if all(hasattr(v, "year") for v in present) else "other"
        return _finish(values, kind, ())
    counts = Counter(normalize_value(value) for value in present)
    words = _list_missing_words(counts)
    for name in words:
        del counts[name]
    if not counts:
        return Guess("empty", missing=tuple(words), optional=True)
    return _guess_values(values, counts, words)


def read_task(values: Sequence[Any], kind: TaskKind) -> Guess:
    """How a column is to be read as labels of a kind that a person has named.

    :param values: the values of its rows, [B].
    :param kind: what each row's label is to be.
    """
    guess = guess_column(values)
    counts = Counter(normalize_value(value) for value in values if _is_plain(value))
    words = guess.missing
    if kind == "number":
        words = tuple(name for name in counts if name.strip().lower() in MISSING_WORDS)
    for name in words:
        counts.pop(name, None)
    return READERS[kind](values, counts, words)


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float) and not is_missing(value)


def _list_missing_words(counts: Mapping[str, int]) -> list[str]:
    """The values of a column that mean that one is missing."""
    words = [name for name in counts if name.strip().lower() in MISSING_WORDS]
    others = [name for name in counts if name not in words]
    if others and all(parse_number(name.strip()) is not None for name in others):
        return words
    return [name for name in words if name.strip().lower() not in _MAY_BE_CLASSES]


def _guess_values(values: Sequence[Any], counts: Counter[str], words: Sequence[str]) -> Guess:
    """The guess for a column of texts, numbers and truth values.

    :param counts: the values that are not missing, as names of classes → rows.
    """
    C, rows = len(counts), sum(counts.values())
    for kind, applies in _SIGNS:
        if applies(counts):
            return _finish(values, kind, words, remark=_REMARKS.get(kind, ""))
    numbers = [number for name in counts if (number := parse_number(name.strip())) is not None]
    if len(numbers) == C and C > 2:
        return _guess_numbers(values, counts, words)
    if all(parse_list(name) is not None for name in counts):
        return READERS["tags"](values, counts, words)
    if C == 2:
        return READERS["binary"](values, counts, words)
    if find_separator(counts) is not None:
        return READERS["tags"](values, counts, words)
    mean_words = sum(len(name.split()) * times for name, times in counts.items()) / rows
    if rows / C >= _ROWS_A_CLASS and mean_words < _CLASS_WORDS:
        return READERS["multiclass"](values, counts, words)
    return _finish(values, "text" if mean_words >= _TEXT_WORDS else "id", words)


def _guess_numbers(values: Sequence[Any], counts: Counter[str], words: Sequence[str]) -> Guess:
    """The guess for a column of more than two different numbers."""
    numbers = [number for name in counts if (number := parse_number(name.strip())) is not None]
    are_whole = all(number == number.to_integral_value() for number in numbers)
    low, high = min(numbers), max(numbers)
    if are_whole and len(numbers) == sum(counts.values()) == high - low + 1:
        return _finish(values, "id", words)
    if are_whole and high - low < _RATINGS:
        grades = f"{len(numbers)} whole numbers from {low} to {high}"
        remark = f"{grades}: `ordinal` if they are grades, `number` if they are amounts"
        return _finish(values, "multiclass", words, remark=remark)
    return READERS["number"](values, counts, words)


def find_separator(counts: Mapping[str, int]) -> str | None:
    """What stands between the tags of a column; ``None`` if its cells seem to hold no tags.

    Tags are short, and those that stand with others stand in other company, or alone, too. The
    commas of sentences, and of names such as ``Paris, France``, part nothing of the kind.

    :param counts: value of a cell → rows.
    """
    for separator in SEPARATORS:
        cells = [[part.strip() for part in name.split(separator)] for name in counts]
        cells_of_part = Counter(part for parts in cells for part in set(parts) if part)
        joined = [part for parts in cells if len(parts) > 1 for part in parts if part]
        if not joined or sum(map(len, joined)) / len(joined) > _TAG_CHARACTERS:
            continue
        reused = sum(cells_of_part[part] > 1 for part in joined) / len(joined)
        if reused >= _REUSED_SHARE and len(cells_of_part) < len(counts) + 2:
            return separator
    return None


def name_part(value: str) -> str | None:
    """The part of the corpus that a word means: train, validation, test; ``None`` if none."""
    folded = fold_text(value)
    return next((part for part, words in _SPLIT_WORDS.items() if folded in words), None)


def order_pair(counts: Mapping[str, int]) -> tuple[str, ...]:
    """Two classes in the order of their index: what a head looks for is class 1.

    A word such as ``no`` is class 0, and so is the one of two that denies the other; where words do
    not tell, the class of more rows is.

    :param counts: name of a class → rows.
    """
    first, second = sort_classes(counts)
    if parse_number(first) is not None and parse_number(second) is not None:
        return (first, second)
    scores = [_is_negative(name, other) for name, other in ((first, second), (second, first))]
    if scores[0] != scores[1]:
        return (first, second) if scores[0] > scores[1] else (second, first)
    return (first, second) if counts[first] >= counts[second] else (second, first)


def _is_negative(name: str, other: str) -> int:
    """1 for a class of index 0 by its name, -1 for one of index 1, 0 where that does not tell."""
    name, other = fold_text(name), fold_text(other)
    denied = _NEGATION.match(name)
    if name in _NEGATIVE_WORDS or (denied and name[denied.end() :] == other):
        return 1
    return -1 if name in _POSITIVE_WORDS else 0


def _is_split(counts: Mapping[str, int]) -> bool:
    parts = {name_part(name) for name in counts}
    return None not in parts and "train" in parts and len(parts) > 1


def _are_times(counts: Mapping[str, int]) -> bool:
    times = sum(_TIME.fullmatch(name.strip()) is not None for name in counts)
    return times >= _TIME_SHARE * len(counts)


# What tells the kind of a column whatever else it looks like, in this order.
_SIGNS: Sequence[tuple[ColumnKind, Callable[[Mapping[str, int]], bool]]] = (
    ("split", _is_split),
    ("constant", lambda counts: len(counts) == 1),
    ("time", _are_times),
    ("other", lambda counts: all(_DECIMAL_COMMA.fullmatch(name.strip()) for name in counts)),
)
_REMARKS: Mapping[ColumnKind, str] = {
    "other": "numbers with a decimal comma: write them with a point",
}


def _read_binary(values: Sequence[Any], counts: Mapping[str, int], words: Iterable[str]) -> Guess:
    classes = order_pair(counts) if len(counts) == 2 else ()
    return _finish(values, "binary", words, classes=classes)


def _read_ordinal(values: Sequence[Any], counts: Mapping[str, int], words: Iterable[str]) -> Guess:
    are_numbers = all(parse_number(name) is not None for name in counts)
    return _finish(values, "ordinal", words, classes=sort_classes(counts) if are_numbers else ())


def _read_tags(values: Sequence[Any], counts: Mapping[str, int], words: Iterable[str]) -> Guess:
    are_lists = all(parse_list(name) is not None for name in counts)
    separator = None
    if not are_lists:  # a person may know better than any sign: then what most cells hold
        by_cells = max(SEPARATORS, key=lambda sign: sum(sign in name for name in counts))
        separator = find_separator(counts) or by_cells
    guess = _finish(values, "tags", words, separator=separator)
    are_empty = [isinstance(value, str) and is_missing(value) for value in values]
    if not any(are_empty):
        return guess
    # An empty cell is a row without tags; one that lacks them holds a word for that, or null.
    given = [value for value, is_empty in zip(values, are_empty, strict=True) if not is_empty]
    remark = f"{sum(are_empty):,} empty cells are rows without any tag"
    return replace(
        guess, empty_tags=True, optional=_lacks_values(given, guess.missing), remark=remark
    )


# How the values of a column become labels of each kind: values, the counts of those that are not
# missing, and the words for a missing one.
READERS: Mapping[TaskKind, Callable[[Sequence[Any], Counter[str], Iterable[str]], Guess]] = {
    "binary": _read_binary,
    "multiclass": lambda values, counts, words: _finish(values, "multiclass", words),
    "ordinal": _read_ordinal,
    "tags": _read_tags,
    "number": lambda values, counts, words: _finish(values, "number", words),
}


def _finish(values: Sequence[Any], kind: ColumnKind, words: Iterable[str], **details: Any) -> Guess:
    """A guess that tells whether rows lack a value, and by which words."""
    missing = tuple(dict.fromkeys(word.strip() for word in sorted(words)))
    return Guess(kind, missing=missing, optional=_lacks_values(values, missing), **details)


def _lacks_values(values: Sequence[Any], words: Sequence[str]) -> bool:
    """Whether some rows hold nothing, or a word that means so."""
    return any(
        is_missing(value) or (_is_plain(value) and normalize_value(value).strip() in words)
        for value in values
    )


def list_examples(values: Iterable[Any], most: int) -> Iterator[str]:
    """The first different values of a column, as text.

    :param values: the values of its rows.
    :param most: the number of examples at most.
    """
    seen: dict[str, None] = {}
    for value in values:
        if is_missing(value):
            continue
        items = list(value) if isinstance(value, tuple | np.ndarray) else value
        text = normalize_value(items)
        if text not in seen:
            seen[text] = None
            yield text
        if len(seen) == most:
            return
