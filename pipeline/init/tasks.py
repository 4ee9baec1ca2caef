"""Tasks as a person names them on the command line → tasks as the settings hold them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from pipeline.config import (
    TASK_NAME,
    TASK_NAME_CHARACTERS,
    WantedColumn,
    is_reserved,
    normalize_value,
)
from pipeline.config_errors import suggest
from pipeline.corpus.classes import sort_classes
from pipeline.errors import DataError
from pipeline.init.guess import TaskKind, guess_column, read_task
from pipeline.init.settings import TASK_FORMS, NewTask
from pipeline.init.source import Source
from pipeline.prepare.labelers.base import is_missing
from pipeline.prepare.labelers.class_checks import show_name

if TYPE_CHECKING:
    import pandas as pd

# Other words for kinds of tasks, as the settings have them.
_OTHER_WORDS: Mapping[str, TaskKind] = {"multilabel": "tags", "regression": "number"}
_SHOWN_CLASSES = 20


class GivenTask(NamedTuple):
    """A task as a person names it.

    :param name: its name.
    :param column: the column that holds its labels.
    :param kind: what its labels are; ``None`` to go by what the column holds.
    """

    name: str
    column: str
    kind: TaskKind | None

    @property
    def wanted(self) -> WantedColumn:
        """Its column, as readers of sources take it."""
        kind = {"tags": "tags", "number": "number"}.get(self.kind or "", "class")
        return WantedColumn(self.column, f"--task {self.name}", kind)  # type: ignore[arg-type]


def parse_task(given: str, source: Source) -> GivenTask:
    """``NAME=COLUMN:KIND``, ``NAME=COLUMN`` or ``COLUMN``.

    :param given: what a person wrote.
    :param source: the source, whose columns may have colons and signs of equality in their names.
    :raises DataError: if there is no such column or kind, or the name cannot be that of a task.
    """
    if given in source.names:
        return GivenTask(make_task_name(given), given, _get_kind(given, None, source))
    column, _, word = given.rpartition(":")
    if column in source.names:
        return GivenTask(make_task_name(column), column, _get_kind(column, word, source))
    name, sign, rest = given.partition("=")
    if not sign:
        name, rest = "", given
    column, kind = rest, None
    if rest not in source.names and ":" in rest:
        column, _, kind = rest.rpartition(":")
    if column not in source.names:
        listed = ", ".join(map(repr, source.names[:_SHOWN_CLASSES]))
        raise DataError(
            f"--task {given}: {source.name} has no column {column!r}"
            f"{suggest(column, source.names, or_list=False)}",
            hint=f"give --task NAME=COLUMN with one of the columns {listed}",
        )
    return GivenTask(name or make_task_name(column), column, _get_kind(column, kind, source))


def _get_kind(column: str, word: str | None, source: Source) -> TaskKind | None:
    """The kind that a word names, or that of a list, which readers have to know of.

    :raises DataError: if there is no such kind.
    """
    kinds: dict[str, TaskKind] = {**{kind: kind for kind in TASK_FORMS}, **_OTHER_WORDS}
    if word is None:
        guess = next(c.guess for c in source.columns if c.name == column)
        return "tags" if guess.kind == "tags" else None
    if word not in kinds:
        raise DataError(
            f"--task: there is no kind {word!r} of tasks{suggest(word, kinds, or_list=False)}",
            hint=f"give one of {', '.join(TASK_FORMS)}, or none to go by what the column holds",
        )
    return kinds[word]


def make_task_name(column: str) -> str:
    """A name for the task of a column: the column's own, as far as a task may be called so."""
    name = re.sub(r"[^A-Za-z0-9_]+", "_", column).strip("_")[: TASK_NAME_CHARACTERS - 10]
    if not re.match(TASK_NAME, name):
        name = f"label_{name}".rstrip("_")
    return f"{name}_label" if is_reserved(name) else name


def make_task(
    task: GivenTask, frame: pd.DataFrame, classes: Sequence[str] | None, source: Source
) -> NewTask:
    """A task with all that its column tells.

    :param task: the task as it was named.
    :param frame: all rows of its column.
    :param classes: its classes in their order, if a person gave them.
    :param source: the source.
    :raises DataError: if its column cannot be of its kind, or does not tell what it needs.
    """
    values = frame[task.column].tolist()
    guessed = guess_column(values)
    kind = task.kind or guessed.task_kind
    if kind is None:
        raise DataError(
            f"--task {task.name}: {source.name}: column {task.column!r} does not look like "
            f"labels but like {_describe(guessed.kind)}",
            hint=f"name the kind if it is one of {', '.join(TASK_FORMS)}: --task "
            + shlex.quote(f"{task.name}={task.column}:number"),
        )
    guess = guessed if task.kind is None else read_task(values, kind)
    if classes is not None:
        guess = replace(guess, classes=tuple(classes))
    elif kind in ("binary", "ordinal") and not guess.classes:
        raise _refuse_classes(task, kind, values, guess.missing)
    return NewTask(task.name, task.column, kind, guess)


def _describe(kind: str) -> str:
    return {
        "text": "texts",
        "split": "the names of parts",
        "id": "values that hardly recur",
        "time": "dates",
        "constant": "one value for all rows",
        "empty": "a column without values",
    }.get(kind, "nothing that a head learns")


def _refuse_classes(
    task: GivenTask, kind: TaskKind, values: Sequence[object], missing: Sequence[str]
) -> DataError:
    """The error for classes of which there are not two, or that tell no order."""
    names = {normalize_value(value) for value in values if not is_missing(value)}
    found = sort_classes(name for name in names if name.strip() not in missing)
    shown = ", ".join(map(show_name, found[:_SHOWN_CLASSES]))
    shown += ", …" if len(found) > _SHOWN_CLASSES else ""
    if kind == "binary":
        return DataError(
            f"--task {task.name}: column {task.column!r} holds {len(found):,} classes, not two: "
            f"{shown}",
            hint="name another kind, such as multiclass, or none",
        )
    order = ",".join(found[:_SHOWN_CLASSES])
    return DataError(
        f"--task {task.name}: the classes of column {task.column!r} tell no order: {shown}",
        hint=f"give them from the lowest to the highest: --classes "
        f"{shlex.quote(f'{task.name}={order}')} in the right order",
    )
