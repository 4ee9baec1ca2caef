"""The order of classes that are found in a source: by size, by spelling, or by the user's word."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal

from pipeline.config import Settings
from pipeline.errors import SettingsError

# An exponent of more than three digits is no rating, and would make a number of millions of digits.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_PLAIN_YAML = re.compile(r"[A-Za-z/][\w ./-]*\w|[A-Za-z]", re.ASCII)
_YAML_WHOLE_NUMBER = re.compile(r"0|-?[1-9]\d{0,15}", re.ASCII)
# Words that are no text in YAML 1.2 or, for the sake of other programs, in YAML 1.1.
_YAML_WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}
_SHOWN_CLASSES = 20


def parse_number(name: str) -> Decimal | None:
    """The number that a name of a class writes, exactly; ``None`` if it is no number."""
    return Decimal(name) if _NUMBER.fullmatch(name) else None


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Names of classes in ascending order: of size if all are numbers, else of spelling.

    :param names: names of classes, each once.
    """
    by_spelling = sorted(names)
    numbers = {name: parse_number(name) for name in by_spelling}
    if any(number is None for number in numbers.values()):
        return tuple(by_spelling)
    return tuple(sorted(by_spelling, key=lambda name: numbers[name] or Decimal(0)))


def check_class_order(settings: Settings, classes: Mapping[str, Sequence[str]]) -> None:
    """Refuse an ordinal task whose classes were found in the data and have no order of their own.

    :param settings: all settings: the types of tasks, and which labels name their classes.
    :param classes: task → names of its classes in the order of their index.
    :raises SettingsError: naming the key and the classes that were found.
    """
    for task, head in (settings.heads.tasks or {}).items():
        label = settings.prepare.labels[task]
        if head.type != "ordinal" or task not in classes or not label.finds_classes():
            continue
        found = list(classes[task])
        numbers = [parse_number(name) for name in found]
        if any(number is None for number in numbers):
            shown = ", ".join(map(format_yaml_class, found[:_SHOWN_CLASSES]))
            shown += ", …" if len(found) > _SHOWN_CLASSES else ""
            raise SettingsError(
                f"prepare.labels.{task}.classes: must give the order of the classes, as "
                f"heads.tasks.{task}.type is ordinal and they are not all numbers; the column "
                f"holds {shown}",
                hint=f"write them from the lowest to the highest: `classes: [{shown}]` in the "
                "right order",
            )
        if tuple(found) != sort_classes(found):
            raise SettingsError(
                f"heads.tasks.{task}.type: ordinal, but the classes of cache/labels.parquet are "
                f"in the order {', '.join(found[:_SHOWN_CLASSES])}",
                hint="run `pipeline prepare` again",
            )


def quote_yaml(text: str) -> str:
    """A text as a scalar in YAML that is read back as this text, on one line, in a list too.

    :param text: any text but half a surrogate pair.
    """
    is_plain = _PLAIN_YAML.fullmatch(text) and text.lower() not in _YAML_WORDS
    if is_plain:
        return text
    characters = [
        f"\\{character}"
        if character in '"\\'
        else character
        if character.isprintable()
        else f"\\U{ord(character):08X}"
        for character in text
    ]
    return f'"{"".join(characters)}"'


def format_yaml_class(name: str) -> str:
    """The name of a class as the settings may hold it: as ``quote_yaml``, but for numbers.

    :param name: a name as ``normalize_value`` has it, which is the same for ``1`` and ``"1"``.
    """
    return name if _YAML_WHOLE_NUMBER.fullmatch(name) else quote_yaml(name)
