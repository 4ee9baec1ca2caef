"""What is wrong with the settings, in words: one line a problem, with its key and the remedy."""

from __future__ import annotations

import difflib
import functools
import operator
import re
from collections.abc import Iterable, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails


class NestedKeyError(ValueError):
    """A problem with a key that stands below the section whose validator finds it.

    :param keys: the path from that section to the key.
    :param what: what is wrong.
    """

    def __init__(self, keys: tuple[str, ...], what: str) -> None:
        super().__init__(what)
        self.keys = keys


class SectionError(ValueError):
    """The errors of sections that the validator of the section above validates by hand.

    :param errors: for each section its key, its model and what pydantic raised; the key is ``None``
        for the section itself, whose validator has chosen among models.
    """

    def __init__(self, errors: Sequence[tuple[Any, type[BaseModel], ValidationError]]) -> None:
        super().__init__(", ".join(str(name) for name, _, _ in errors))
        self.errors = errors


def describe_errors(error: ValidationError, model: type[BaseModel], content: Any) -> list[str]:
    """One line a problem, ``key: what``, in the order of the model's fields.

    :param error: what pydantic raised.
    :param model: the model that was validated against.
    :param content: what was validated.
    """
    problems = _collect(error, model, (), content)
    # If an item of a list or mapping is wrong, pydantic also says that the whole fits no other
    # member of its union; that is left out.
    return [
        f"{'.'.join(path)}: {_join_alternatives(whats)}"
        for path, whats in problems.items()
        if not any(len(other) > len(path) and other[: len(path)] == path for other in problems)
    ]


_KeyPath = tuple[str, ...]


def _collect(
    error: ValidationError, model: type[BaseModel], prefix: _KeyPath, content: Any
) -> dict[_KeyPath, list[str]]:
    """What is wrong with each key: path of the key → problems.

    :param prefix: the path of the section that was validated.
    """
    problems: dict[_KeyPath, list[str]] = {}
    for details in error.errors():
        cause = (details.get("ctx") or {}).get("error")
        keys = _find_keys(details, content)
        path = (*prefix, *(str(key) for key in keys))
        if isinstance(cause, SectionError):
            inside = functools.reduce(operator.getitem, keys, content)
            for name, inner, inner_error in cause.errors:
                at, value = (path, inside) if name is None else ((*path, str(name)), inside[name])
                problems |= _collect(inner_error, inner, at, value)
            continue
        if isinstance(cause, NestedKeyError):
            path, what = (*path, *cause.keys), str(cause)
        else:
            what = _describe(details, path[len(prefix) :], model)
        if details["type"] == "value_error" and path in problems:
            # The value has the form of this member of the union, so this alone is its problem.
            problems[path] = [what]
            continue
        problems.setdefault(path, []).append(what)
    return problems


def _find_keys(details: ErrorDetails, content: Any) -> list[Any]:
    """The path of an error by the content's own keys.

    pydantic's own path also names the member of a union that it tried.
    """
    keys: list[Any] = []
    for part in details["loc"]:
        in_list = isinstance(content, list) and isinstance(part, int)
        if in_list or (isinstance(content, dict) and part in content):
            content = content[part]
            keys.append(part)
        elif details["type"] == "missing":
            keys.append(part)
    return keys


def _join_alternatives(whats: list[str]) -> str:
    """One problem out of those that a value has which fits no member of a union."""
    heads, gots = zip(*(what.rpartition(", got ")[::2] for what in whats), strict=True)
    if len(whats) == 1 or len(set(gots)) > 1 or not all(heads):
        return "; ".join(dict.fromkeys(whats))
    options = dict.fromkeys(head.removeprefix("must be ") for head in heads)
    return f"must be {' or '.join(options)}, got {gots[0]}"


_BOUNDS = {
    "greater_than": (">", "gt"),
    "greater_than_equal": (">=", "ge"),
    "less_than": ("<", "lt"),
    "less_than_equal": ("<=", "le"),
}


def _describe(details: ErrorDetails, path: _KeyPath, model: type[BaseModel]) -> str:
    """What is wrong with one key, in words.

    :param path: the path of the key from the section that was validated.
    :param model: the model of that section.
    """
    kind, context = details["type"], details.get("ctx") or {}
    got = _show(details["input"])
    if kind == "extra_forbidden":
        return f"unknown key{suggest(path[-1], _known_keys(model, path[:-1]))}"
    if kind == "missing":
        return "is missing"
    if kind in _BOUNDS:
        sign, bound = _BOUNDS[kind]
        limit = context[bound]
        return f"must be {sign} {limit if isinstance(limit, int) else f'{limit:g}'}, got {got}"
    if kind == "finite_number":
        return f"must be a finite number, got {got}"
    if kind == "invalid_key":
        return f"a key must be text, got {got}"
    if kind == "literal_error":
        options = context["expected"].replace("'", "").replace(" or ", ", ")
        options = re.sub(r"\bFalse\b", "false", options)  # as in YAML
        return describe_choice(details["input"], options.split(", "))
    if kind.endswith("_type") or kind in {"int_from_float", "bool_parsing"}:
        return f"must be {_TYPES.get(kind, kind.removesuffix('_type'))}, got {got}"
    if kind == "string_pattern_mismatch":
        return f"must match {context['pattern']}, got {got}"
    if kind == "string_too_short":
        return f"must be text that is not empty, got {got}"
    if kind == "string_too_long":
        return f"must have at most {context['max_length']} characters, got {got}"
    if kind == "too_short":
        container = "mapping" if isinstance(details["input"], dict) else "list"
        return f"must be a {container} of {context['min_length']} or more, got {got}"
    if kind == "value_error":
        return str(context["error"])
    return f"{details['msg']}, got {got}"


_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping of names to values",
    "model_type": "a mapping of names to values",
}


def _show(value: object) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def describe_choice(value: object, options: Iterable[str]) -> str:
    """What is wrong with a value that is none of the words that a setting may have."""
    options = list(options)
    if len(options) == 1:
        return f"must be {options[0]}, got {_show(value)}"
    near = difflib.get_close_matches(str(value), options, n=1)
    hint = f" (did you mean `{near[0]}`?)" if near else ""
    return f"must be one of {', '.join(options)}{hint}, got {_show(value)}"


def suggest(name: str, known: Iterable[str], *, or_list: bool = True) -> str:
    """The nearest of the known names, to end a message with.

    :param name: what was given; of a hub id, the owner may be left out.
    :param known: what could have been given.
    :param or_list: whether all known names are listed if none is near.
    """
    names = {other: other for other in known if other != name}
    full = list(names)
    if "/" not in name:
        names = {other.rpartition("/")[2]: other for other in full} | names
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"; did you mean `{names[near[0]]}`?"
    return f"; known: {', '.join(full)}" if or_list and full else ""


def _known_keys(root: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The keys of the model that stands at the end of a path of keys below ``root``."""
    annotation: Any = root
    for part in path:
        annotation = _step_into(annotation, part)
    model = next((a for a in _flatten(annotation) if _is_model(a)), None)
    return list(model.model_fields) if model is not None else []


def _step_into(annotation: Any, key: str) -> Any:
    """The type of what stands under a key of a model or a mapping."""
    for member in _flatten(annotation):
        if _is_model(member) and key in member.model_fields:
            return member.model_fields[key].annotation
        if get_origin(member) is dict:
            return get_args(member)[1]
        if get_origin(member) is tuple and key.isdigit():
            return get_args(member)[0]
    return None


def _flatten(annotation: Any) -> list[Any]:
    """The members of a union, bare of ``Annotated``."""
    if get_origin(annotation) is Annotated:
        return _flatten(get_args(annotation)[0])
    if get_origin(annotation) in {Union, UnionType}:
        return [inner for member in get_args(annotation) for inner in _flatten(member)]
    return [annotation]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
