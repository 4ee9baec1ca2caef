"""Values in the text of a YAML file, changed in their places: all else stays as it is written.

A file that is loaded and written again loses its line breaks, its quotes and some of its comments;
here the parser only tells where a value begins and ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeline.errors import PipelineError

_INDENT = 2  # columns by which a level is indented


class EditError(PipelineError):
    """A file is not written in a form that can be changed here."""


class _Entry(NamedTuple):
    """A key and its value, as nodes that know their places in the text."""

    key: Any
    value: Any


def set_value(text: str, keys: Sequence[str], value: str) -> str:
    """A file in which the value of a key is another one; the comment behind it stays.

    :param text: a YAML file whose top is a mapping.
    :param keys: the path to the key; those that are not there are added.
    :param value: YAML on one line.
    :returns: the text of the file.
    :raises EditError: if something on the path is no mapping.
    """
    entry = _find(text, keys)
    if entry is None:
        return add_lines(text, keys[:-1], [f"{keys[-1]}: {value}"])
    if _is_block(entry.value):
        lines = text.splitlines(keepends=True)
        first, end = _find_lines(entry.value, lines)
        text = "".join(lines[:first] + lines[end:])
        position = entry.key.end_mark.index + 1  # behind the colon, which no block moved
        return f"{text[:position]} {value}{text[position:]}"
    start, end = _find_span(text, entry)
    if getattr(entry.value, "style", None) in ("|", ">"):  # its lines follow that of the key
        lines = text.splitlines(keepends=True)
        end = sum(map(len, lines[: _find_lines(entry.value, lines)[1]]))
        value += "\n"
    blank = "" if text[start - 1 : start].isspace() else " "
    return text[:start] + blank + value + text[end:]


def add_lines(
    text: str, keys: Sequence[str], added: Sequence[str], *, replace: bool = False
) -> str:
    """A file in which some entries stand at the end of a mapping.

    :param text: a YAML file whose top is a mapping.
    :param keys: the path to the key of the mapping; none for the file itself. A key that is not
        there, or that has the value null or an empty mapping, gets a mapping of these entries.
    :param added: the entries' lines, not indented.
    :param replace: whether they take the place of those that the mapping holds.
    :returns: the text of the file.
    :raises EditError: if it is no mapping, or one that is written in braces.
    """
    if not keys:
        gap = "" if not text or text.endswith("\n") else "\n"
        return text + gap + "".join(f"{line}\n" for line in added)
    entry = _find(text, keys)
    if entry is None:
        below = [f"{keys[-1]}:", *(" " * _INDENT + line for line in added)]
        return add_lines(text, keys[:-1], below)
    if _is_mapping(entry.value) and _is_block(entry.value):
        lines = text.splitlines(keepends=True)
        first, behind = _find_lines(entry.value, lines)
        if behind == len(lines) and not lines[-1].endswith("\n"):
            lines[-1] += "\n"
        new = _indent(added, entry.value.start_mark.column)
        return "".join(lines[: first if replace else behind] + new + lines[behind:])
    if getattr(entry.value, "value", None) not in ("", "null", "~", []):
        raise EditError(
            f"{'.'.join(keys)}: is written in braces or is no mapping",
            hint="write it with one key a line: " + "; ".join(added),
        )
    # The value goes, and what is added starts in the next line, behind a comment on the key.
    start, end = _find_span(text, entry)
    text = text[:start].rstrip(" ") + text[end:]
    lines = text.splitlines(keepends=True)
    line = entry.key.end_mark.line
    if not lines[line].endswith("\n"):
        lines[line] += "\n"
    new = _indent(added, entry.key.start_mark.column + _INDENT)
    return "".join(lines[: line + 1] + new + lines[line + 1 :])


def _find(text: str, keys: Sequence[str]) -> _Entry | None:
    """The entry at the end of a path of keys; ``None`` if it is not there.

    :raises EditError: if something on the path is no mapping.
    """
    from ruamel.yaml import YAML

    node = YAML(typ="safe", pure=True).compose(text)
    entry = None
    for number, key in enumerate(keys):
        if node is None or getattr(node, "value", None) in ("", "null", "~"):
            return None
        if not _is_mapping(node):
            raise EditError(f"{'.'.join(keys[:number])}: is no mapping, so it has no {key}")
        found = [_Entry(*pair) for pair in node.value if pair[0].value == key]
        if not found:
            return None
        entry = found[-1]
        node = entry.value
    return entry


def _find_span(text: str, entry: _Entry) -> tuple[int, int]:
    """Where a value on one line begins and ends in the text."""
    start, end = entry.value.start_mark.index, entry.value.end_mark.index
    if start == end:  # of an empty value the parser tells where the next key begins
        start = end = text.index(":", entry.key.end_mark.index) + 1
    return start, end


def _is_mapping(node: Any) -> bool:
    return type(node).__name__ == "MappingNode"


def _is_block(node: Any) -> bool:
    """Whether a mapping or a list is written with one entry a line."""
    return getattr(node, "flow_style", None) is False


def _find_lines(node: Any, lines: Sequence[str]) -> tuple[int, int]:
    """The lines of a value that is written with one entry a line: the first, and the one behind.

    Comments and blank lines at its end belong to it only where they are indented as it is.
    """
    end = min(node.end_mark.line, len(lines))
    if end == len(lines) - 1 and node.end_mark.column == len(lines[-1]):
        end += 1  # the file ends with it, without a line break
    while end > node.start_mark.line + 1:
        line = lines[end - 1]
        indent = len(line) - len(line.lstrip())
        is_comment = line.lstrip().startswith("#")
        if line.strip() and not (is_comment and indent < node.start_mark.column):
            break
        end -= 1
    return node.start_mark.line, end


def _indent(lines: Sequence[str], columns: int) -> list[str]:
    return [f"{' ' * columns}{line}\n" for line in lines]
