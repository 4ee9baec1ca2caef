"""The pages of ``docs/`` that are made from the code: all settings, and the help of all commands.

    python -m tests.docs.generate

writes ``docs/settings.md`` and ``docs/commands.md``; a test holds both to the code.
"""

from __future__ import annotations

import inspect
import io
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import click
from click.testing import CliRunner
from pydantic import BaseModel, Strict, StringConstraints
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pipeline.cli import cli
from pipeline.config import LABELERS, LabelSettings, Settings

DOCS = Path(__file__).parents[2] / "docs"
_HELP_COLUMNS = 80
_NOTICE = (
    "<!-- Made from the code by `make docs`; a change here is lost. -->\n\n"
    "[Back to the index](README.md)"
)
_SETTINGS_INTRO = f"""# Settings

Every key of `params.yaml`: its type, its default and what it does.

{_NOTICE}

`params.yaml` has one section per stage, and `runtime` for what changes the speed, which DVC does
not track. A section or key that is left out has its default, but DVC wants every section
that a stage tracks to stand in the file, be it empty (`embed: {{}}`). `pipeline params default`
prints a file with the settings that the project ships with, and `pipeline params notebook` the
settings of the notebook that it replaces. An unknown key, a wrong type or a value out of its
range stops the command before any work is done; all mistakes are listed at once.

In the headings `NAME` stands for a name that you choose (letters, digits and underscores, a letter
first), and `[]` for each entry of a list.
"""
_COMMANDS_INTRO = f"""# Commands

The help of every command, its exit statuses, and how it finds its project.

{_NOTICE}

Each stage is a command, and `dvc repro` calls those whose inputs have changed. By hand they run in
the order of this page.

A command takes its settings from the nearest `params.yaml` at or above the working directory, or
from the file that `--params` names. Its project, whose `cache/` it reads and writes, is the
nearest folder with a `dvc.yaml` at or above the settings file, else the settings file's own
folder; `--project` names another. So commands work from a subfolder, and `--params
experiments/a.yaml` starts no second `cache/`.

A project may have a file or package called `pipeline` of its own. The command `pipeline` then works
as ever, unless `PYTHONPATH` puts the project's folder first: it says so, and stops. `python -m
pipeline` in that folder always runs the project's file, which this package cannot know of; use
the command.

On a terminal, warnings are coloured and long work shows a bar. `NO_COLOR`, set to anything, or
`TERM=dumb` switches off both. Control characters in names and texts are shown as `\\x1b`, and
tables are as wide as their figures need, on a narrow terminal too.

Other settings than the project's own, for a trial of the heads:

```console
$ mkdir -p experiments
$ sed 's/folds: 5/folds: 3/' params.yaml > experiments/three-folds.yaml
$ pipeline train-heads --params experiments/three-folds.yaml
$ pipeline report --params experiments/three-folds.yaml
```

| exit status | meaning |
| --- | --- |
| 0 | done |
| 1 | a mistake or a mishap: one message, no traceback, and what was on disk before is still there |
| 2 | wrong usage |
| 3 | `predict` kept rows without labels, as their texts cannot be used |
| 130 | interrupted by Ctrl-C |
| 143 | interrupted by SIGTERM |
"""


@dataclass
class _Section:
    """One table of the settings page.

    :param path: the key that the table's keys stand below; empty at the top of the file.
    :param model: the model of the values there.
    :param title: the heading.
    """

    path: str
    model: type[BaseModel]
    title: str = field(init=False)

    def __post_init__(self) -> None:
        self.title = self.path


def make_settings_page() -> str:
    """The reference of all settings, as Markdown."""
    sections = _list_sections()
    links = {
        section.model: f"[{section.title}](#{make_anchor(section.title)})" for section in sections
    }
    parts = [_SETTINGS_INTRO]
    for section in sections:
        parts.append(f"## {section.title}\n\n{_describe_model(section.model)}\n")
        parts.append(
            "\n".join(
                [
                    "| key | type | default | meaning |",
                    "| --- | --- | --- | --- |",
                    *(
                        _format_row(key, info, links)
                        for key, info in section.model.model_fields.items()
                    ),
                ]
            )
            + "\n"
        )
    return "\n".join(parts)


def make_commands_page() -> str:
    """The help of all commands, as Markdown."""
    parts = [_COMMANDS_INTRO]
    for path in _list_commands(cli, []):
        result = CliRunner().invoke(
            cli, [*path, "--help"], prog_name="pipeline", terminal_width=_HELP_COLUMNS
        )
        parts.append(f"## {' '.join(['pipeline', *path])}\n\n```\n{result.output}```\n")
    return "\n".join(parts)


def make_anchor(heading: str) -> str:
    """The anchor that GitHub gives to a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.lower())
    return kept.replace(" ", "-")


def _list_commands(command: click.Command, path: list[str]) -> Iterator[list[str]]:
    yield path
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            yield from _list_commands(command.commands[name], [*path, name])


def _list_sections() -> list[_Section]:
    """A section for each model that ``Settings`` holds, in the order of its keys."""
    sections = list(_walk(Settings, ""))
    paths = [section.path for section in sections]
    for section in sections:
        if paths.count(section.path) > 1 and (key := _tell_apart(section.model)):
            section.title = f"{section.path} with {key}"
    return sections


def _walk(model: type[BaseModel], path: str) -> Iterator[_Section]:
    for key, info in model.model_fields.items():
        below = f"{path}.{key}" if path else key
        for inner, where in _find_models(info.annotation, below):
            yield _Section(where, inner)
            yield from _walk(inner, where)


def _find_models(annotation: Any, path: str) -> Iterator[tuple[type[BaseModel], str]]:
    """The models in a type, each with the key that it stands at."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for model in _list_kinds(annotation):
            yield model, path
        return
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        arguments = arguments[:1]
    elif origin is dict:
        arguments, path = arguments[1:], f"{path}.NAME"
    elif origin is tuple:
        path = f"{path}[]"
    for argument in arguments:
        yield from _find_models(argument, path)


def _list_kinds(model: type[BaseModel]) -> list[type[BaseModel]]:
    """The models that may stand where a type names one; every labeler has settings of its own."""
    return list(LABELERS.values()) if model is LabelSettings else [model]


def _tell_apart(model: type[BaseModel]) -> str | None:
    """What says which of several models is meant; ``None`` if it is the one that needs no saying.

    It is the key that has a single value of its own, or that must be given.
    """
    for key, info in model.model_fields.items():
        values = get_args(info.annotation) if get_origin(info.annotation) is Literal else ()
        default = info.default if isinstance(info.default, str) else None
        if values:
            return f"{key}: {default or values[0]}"
    return next((key for key, info in model.model_fields.items() if info.is_required()), None)


def _describe_model(model: type[BaseModel]) -> str:
    text = inspect.getdoc(model) or ""
    return text.replace("``", "`")


def _format_row(key: str, info: FieldInfo, links: Mapping[type[BaseModel], str]) -> str:
    meaning = " ".join((info.description or "").replace("``", "`").split())
    kind = _describe_type(info.annotation, info.metadata, links)
    cells = (f"`{key}`", kind, _describe_default(info), meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _describe_default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    default = info.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, BaseModel):
        return "those below"
    return f"`{_format_yaml(default)}`"


def _format_yaml(value: Any) -> str:
    """A value as it may stand in ``params.yaml``, on one line."""
    from ruamel.yaml import YAML

    plain = _make_plain(value)
    if isinstance(plain, float):
        return f"{plain:g}" if plain != int(plain) else f"{plain:.1f}"
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = True
    yaml.width = 10_000
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    out = io.StringIO()
    yaml.dump(plain, out)
    return out.getvalue().removesuffix("\n").removesuffix("\n...").strip()


def _make_plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {key: _make_plain(getattr(value, key)) for key in _list_given(value)}
    if isinstance(value, Mapping):
        return {key: _make_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_make_plain(inner) for inner in value]
    return value


def _list_given(value: BaseModel) -> list[str]:
    return [key for key in type(value).model_fields if key in value.model_fields_set]


def _describe_type(
    annotation: Any, metadata: Sequence[Any], links: Mapping[type[BaseModel], str]
) -> str:
    """A type in words, with its range."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _describe_type(arguments[0], _flatten(arguments[1:]), links)
    if origin in (Union, types.UnionType):
        words = [_describe_type(kind, (), links) for kind in arguments if kind is not type(None)]
        words = list(dict.fromkeys(words))
        return _join(words) + ("; or null" if type(None) in arguments else "")
    if origin is Literal:
        spelt = ["false" if value is False else value for value in arguments]  # as in YAML
        return _join([f"`{value}`" for value in spelt])
    if origin is dict:
        values = _describe_type(arguments[1], (), links)
        return f"mapping of each {_describe_keys(arguments[0])} to: {values}"
    if origin is tuple:
        return f"list of: {_describe_type(arguments[0], (), links)}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "keys of " + _join([links[kind] for kind in _list_kinds(annotation)])
    return _describe_plain(annotation, metadata)


def _describe_keys(annotation: Any) -> str:
    constraints = _flatten(get_args(annotation)[1:])
    is_name = any(isinstance(c, StringConstraints) or hasattr(c, "pattern") for c in constraints)
    return "NAME" if is_name else "class"


def _flatten(metadata: Sequence[Any]) -> list[Any]:
    """The constraints that pydantic keeps within a ``Field``, beside those that stand alone."""
    flat: list[Any] = []
    for entry in metadata:
        flat.extend(entry.metadata if isinstance(entry, FieldInfo) else [entry])
    return flat


def _describe_plain(kind: Any, metadata: Sequence[Any]) -> str:
    constraints = [c for c in metadata if not isinstance(c, Strict)]
    if kind is bool:
        return "`true`/`false`"
    if kind is str:
        pattern = next((c.pattern for c in constraints if getattr(c, "pattern", None)), None)
        return f"text matching `{pattern}`" if pattern else "text"
    word = {int: "whole number", float: "number"}.get(kind)
    if word is None:
        raise TypeError(f"no words for {kind!r}")
    bounds = [words for c in constraints if (words := _describe_bound(c))]
    return " ".join([word, " and ".join(bounds).replace(" and to ", " to ")]).strip()


def _describe_bound(constraint: Any) -> str | None:
    for kind, attribute, words in (
        (annotated_types.Gt, "gt", "above"),
        (annotated_types.Ge, "ge", "from"),
        (annotated_types.Lt, "lt", "below"),
        (annotated_types.Le, "le", "to"),
    ):
        if isinstance(constraint, kind):
            limit = getattr(constraint, attribute)
            shown = f"2^{limit.bit_length() - 1}" if limit == 2**32 else f"{limit:g}"
            return f"{words} {shown}"
    return None


def _join(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def main() -> None:
    """Write both pages."""
    for name, page in (
        ("settings.md", make_settings_page()),
        ("commands.md", make_commands_page()),
    ):
        (DOCS / name).write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
