"""The text of ``params.yaml`` for a source and the tasks that a person wants to learn from it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.config import Metric, TaskType
from pipeline.corpus.classes import format_yaml_class, quote_yaml
from pipeline.corpus.tables import PARTS
from pipeline.init.edit import add_lines, set_value
from pipeline.init.guess import Guess, TaskKind
from pipeline.losses import LOSSES
from pipeline.presets import read_preset

_PRESET = "default"


@dataclass(frozen=True)
class TaskForm:
    """What the settings say of the head of a kind of task.

    :param type: its type.
    :param metric: what its configuration is chosen by.
    :param keys: further keys that mean something for it, with their defaults.
    """

    type: TaskType
    metric: Metric
    keys: Mapping[str, str]


_OF_CLASSES = {"class_weights": "none", "logit_adjustment": "auto"}
# The kinds of tasks, by the word of the command line for each.
TASK_FORMS: Mapping[TaskKind, TaskForm] = {
    "binary": TaskForm("binary", "f1", {**_OF_CLASSES, "threshold": "auto"}),
    "multiclass": TaskForm("multiclass", "f1_macro", _OF_CLASSES),
    "ordinal": TaskForm("ordinal", "mean_absolute_error", {"class_weights": "none"}),
    "tags": TaskForm("multilabel", "f1_micro", {**_OF_CLASSES, "threshold": "auto"}),
    "number": TaskForm("regression", "root_mean_squared_error", {}),
}
# Comments on keys of labels, which the preset has no room for; those on keys of heads are its own.
_LABEL_COMMENTS = {
    "kind": "or tags, number",
    "separator": "between two tags",
    "empty": "what an empty cell means: none of the tags, or missing",
    "optional": "true: rows may lack it, and serve the other tasks",
    "classes": "null: those that the column holds; a list gives their order",
}


_SPLIT_COMMENTS = {
    "validation": "none: the share below of the training rows is drawn",
    "leave_out": 'values of rows that are not used; "" is a row without one',
    "stratify_by": "names of labels, for that draw",
    "keep_duplicates_together": "in that draw",
}


@dataclass(frozen=True)
class NewSplit:
    """A column that names the part of each row.

    :param column: its name.
    :param values: part of the corpus → the values of the column that mean it.
    :param lacks_values: whether some rows name no part.
    """

    column: str
    values: Mapping[str, Sequence[str]]
    lacks_values: bool

    def list_lines(self) -> list[str]:
        """The entries of ``prepare.split``."""
        lists = {
            part: f"[{', '.join(map(format_yaml_class, self.values.get(part, ())))}]"
            for part in PARTS
        }
        values = {
            "column": quote_yaml(self.column),
            **lists,
            "leave_out": '[""]' if self.lacks_values else "[]",
            "validation_share": "0.15",
            "seed": "0",
            "stratify_by": "[]",
            "keep_duplicates_together": "false",
        }
        return [line[2:] for line in _list_lines(values, _SPLIT_COMMENTS, set())]


@dataclass(frozen=True)
class NewTask:
    """A task that the settings are to have.

    :param name: its name.
    :param column: the column that holds its labels.
    :param kind: what its labels are.
    :param guess: how the column is to be read.
    """

    name: str
    column: str
    kind: TaskKind
    guess: Guess

    @property
    def form(self) -> TaskForm:
        """What the settings say of its head."""
        return TASK_FORMS[self.kind]

    def list_label_lines(self, said: set[str]) -> list[str]:
        """Its entry of ``prepare.labels``.

        :param said: keys whose comments stand in the file already; those of this entry are added.
        """
        guess = self.guess
        kind = {"tags": "tags", "number": "number"}.get(self.kind, "class")
        values = {"column": quote_yaml(self.column), "kind": kind}
        if self.kind == "tags" and guess.separator is not None:
            values["separator"] = quote_yaml(guess.separator)
            values["empty"] = "none" if guess.empty_tags else "null"
        if self.kind != "number":
            classes = ", ".join(map(format_yaml_class, guess.classes))
            values["classes"] = f"[{classes}]" if classes else "null"
        values["optional"] = "true" if guess.optional else "false"
        return [f"{quote_yaml(self.name)}:", *_list_lines(values, _LABEL_COMMENTS, said)]

    def list_head_lines(self, said: set[str]) -> list[str]:
        """Its entry of ``heads.tasks``.

        :param said: keys whose comments stand in the file already; those of this entry are added.
        """
        losses = [name for name, loss in LOSSES.items() if self.form.type in loss.task_types]
        values = {
            "type": self.form.type,
            "metric": self.form.metric,
            "loss": "null",
            "loss_weight": "1.0",
            **self.form.keys,
        }
        comments = _read_head_comments() | {"type": "or ordinal, if their order means something"}
        if self.kind != "multiclass":
            comments.pop("type")
        if losses[1:]:
            comments["loss"] = f"{losses[0]}; or {', '.join(losses[1:])}"
        return [f"{quote_yaml(self.name)}:", *_list_lines(values, comments, said)]


def _list_lines(
    values: Mapping[str, str], comments: Mapping[str, str], said: set[str]
) -> list[str]:
    lines = []
    for key, value in values.items():
        comment = comments.get(key) if key not in said else None
        lines.append(f"  {key}: {value}" + (f" # {comment}" if comment else ""))
        said.add(key)
    return lines


def _read_head_comments() -> dict[str, str]:
    """Key of a head's settings → the comment that the preset has on it.

    The preset names classes of its own, which another project has not.
    """
    heads = read_preset(_PRESET).partition("\nheads:\n")[2].partition("\n  layers:")[0]
    comments = dict(re.findall(r"^      (\w+): .*? # (.+)$", heads, re.MULTILINE))
    comments["class_weights"] = re.sub(
        r"\{.+\}", "a weight for each class", comments["class_weights"]
    )
    return comments


def write_settings(
    datasets: Sequence[str],
    text_column: str,
    tasks: Sequence[NewTask],
    split: NewSplit | None,
    *,
    drop_bad_rows: bool,
) -> str:
    """The settings of a new project: those of the preset, with what is this project's own.

    :param datasets: the dataset's names, as ``fetch.dataset`` names it.
    :param text_column: the column of the texts.
    :param tasks: the tasks; none for a corpus without labels.
    :param split: the column that names the parts; ``None`` draws them at random.
    :param drop_bad_rows: whether rows without a usable text are left out.
    """
    quoted = ", ".join(map(quote_yaml, datasets))
    dataset = quoted if len(datasets) == 1 else f"[{quoted}]"
    text = set_value(read_preset(_PRESET), ("fetch", "dataset"), dataset)
    text = set_value(text, ("prepare", "text_column"), quote_yaml(text_column))
    if drop_bad_rows:
        text = set_value(text, ("prepare", "on_bad_rows"), "drop")
        text = text.replace("on_bad_rows: drop # or drop", "on_bad_rows: drop # or stop")
    text = set_missing_words(text, list_missing_words(tasks))
    if split is not None:
        text = add_lines(text, ("prepare", "split"), split.list_lines(), replace=True)
    if not tasks:
        text = set_value(text, ("prepare", "labels"), "{}")
        return set_value(text, ("heads", "tasks"), "null")
    labels, heads = _list_entries(tasks)
    text = add_lines(text, ("prepare", "labels"), labels, replace=True)
    return add_lines(text, ("heads", "tasks"), heads, replace=True)


def add_task(text: str, task: NewTask, *, has_heads: bool, labels: Sequence[str]) -> str:
    """Settings with one more task.

    :param text: the text of the settings file.
    :param task: the task.
    :param has_heads: whether ``heads.tasks`` names heads; where it does not, there is one of every
        label, and a new one needs no entry unless its type does not follow from its label.
    :param labels: the names of the labels that are there.
    :raises EditError: if the file is not written in a form that can be changed.
    """
    label, head = (lines for lines in _list_entries([task]))
    text = add_lines(text, ("prepare", "labels"), label)
    if has_heads or not labels:
        return add_lines(text, ("heads", "tasks"), head)
    if task.kind == "ordinal":
        others = [f"{quote_yaml(name)}: {{}}" for name in labels]
        return add_lines(text, ("heads", "tasks"), [*others, *head])
    return text


def _list_entries(tasks: Sequence[NewTask]) -> tuple[list[str], list[str]]:
    """The lines of ``prepare.labels``, and those of ``heads.tasks``."""
    said_of_labels: set[str] = set()
    said_of_heads: set[str] = set()
    labels = [line for task in tasks for line in task.list_label_lines(said_of_labels)]
    heads = [line for task in tasks for line in task.list_head_lines(said_of_heads)]
    return labels, heads


def list_missing_words(tasks: Sequence[NewTask]) -> list[str]:
    """The words for a missing label that the columns of tasks hold, each once."""
    return list(dict.fromkeys(word for task in tasks for word in task.guess.missing))


def set_missing_words(text: str, words: Sequence[str]) -> str:
    """Settings with other words for a missing label; unchanged if there are none."""
    if not words:
        return text
    value = f"[{', '.join(map(quote_yaml, words))}]"
    return set_value(text, ("prepare", "missing"), value)
