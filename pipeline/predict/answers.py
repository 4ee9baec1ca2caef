"""Logits of a head → the columns that a person reads: labels, scores, probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config_errors import suggest
from pipeline.errors import SettingsError
from pipeline.model.decision import Logits
from pipeline.model.saved import Heads, SavedHead

if TYPE_CHECKING:
    import pyarrow as pa

Answers = dict[str, list[Any]]


def list_columns(
    heads: Heads, *, probabilities: bool, explanations: bool = False
) -> dict[str, pa.DataType]:
    """The columns that the answers of heads take, and their Arrow types.

    :param heads: the heads.
    :param probabilities: whether there is a column for each class or tag.
    :param explanations: whether there is a column for the words that moved the answer.
    :returns: ``TASK``, ``TASK_score`` but of a regression, ``TASK:CLASS`` and
        ``TASK_explanation``, in this order. No name of a task holds a colon.
    :raises SettingsError: if two columns would have one name, as of tasks ``a`` and ``a_score``.
    """
    import pyarrow as pa

    label_types = {"class": pa.string(), "tags": pa.list_(pa.string()), "number": pa.float64()}
    score_types = {"class": pa.float64(), "tags": pa.list_(pa.float64())}
    columns: dict[str, pa.DataType] = {}
    for head in heads.heads:
        kind = head.type.label_kind
        of_head = {head.name: label_types[kind]}
        if kind in score_types:
            of_head[f"{head.name}_score"] = score_types[kind]
        if probabilities:
            of_head |= {f"{head.name}:{name}": pa.float64() for name in head.classes}
        if explanations:
            bounds = [("start", pa.int64()), ("end", pa.int64()), ("weight", pa.float64())]
            of_head[name_explanation(head.name)] = pa.list_(pa.struct(bounds))
        for name in of_head.keys() & columns.keys():
            raise SettingsError(
                f"--tasks: two tasks would have the column {name}, one of them {head.name}",
                hint="answer them in two runs",
            )
        columns |= of_head
    return columns


def name_explanation(task: str) -> str:
    """The column of the words that moved a task's answers.

    :param task: the task.
    """
    return f"{task}_explanation"


def make_answers(head: SavedHead, logits: Logits, *, probabilities: bool) -> Answers:
    """What a head answers to B texts, as columns of ``list_columns``.

    :param head: the head.
    :param logits: its outputs, [B, O].
    :param probabilities: whether there is a column for each class or tag.
    :returns: column → B values.
    """
    made = _MAKERS[head.type.label_kind](head, logits)
    if probabilities:
        table = head.type.compute_probabilities(logits, head.decision)
        made |= {
            f"{head.name}:{name}": table[:, number].tolist()
            for number, name in enumerate(head.classes)
        }
    return made


def _answer_class(head: SavedHead, logits: Logits) -> Answers:
    """The class of each text, and its probability."""
    indices = head.type.predict(logits, head.decision)
    table = head.type.compute_probabilities(logits, head.decision)
    return {
        head.name: [head.classes[index] for index in indices.tolist()],
        f"{head.name}_score": table[np.arange(len(indices)), indices].tolist(),
    }


def _answer_tags(head: SavedHead, logits: Logits) -> Answers:
    """The tags of each text, and their probabilities in the same order."""
    given = head.type.predict(logits, head.decision).astype(bool)
    table = head.type.compute_probabilities(logits, head.decision)
    return {
        head.name: [[head.classes[c] for c in np.flatnonzero(row).tolist()] for row in given],
        f"{head.name}_score": [
            scores[row].tolist() for scores, row in zip(table, given, strict=True)
        ],
    }


def _answer_number(head: SavedHead, logits: Logits) -> Answers:
    return {head.name: head.type.predict(logits, head.decision).tolist()}


# The kind of label that a head learns → what makes columns of its outputs.
_MAKERS: Mapping[str, Callable[[SavedHead, Logits], Answers]] = {
    "class": _answer_class,
    "tags": _answer_tags,
    "number": _answer_number,
}


def choose_heads(
    heads: Heads, tasks: Sequence[str] | None, thresholds: Mapping[str, float]
) -> Heads:
    """The heads of some tasks, with other thresholds than their own where some are given.

    :param heads: the saved heads.
    :param tasks: the tasks to answer, in the order wanted; all of them if ``None``.
    :param thresholds: task → the probability above which class 1, or a tag, is answered.
    :raises SettingsError: if there is no head of a name, or a threshold cannot be.
    """
    named = {head.name: head for head in heads.heads}
    wanted = list(named) if tasks is None else list(dict.fromkeys(tasks))
    for option, names in (("--tasks", wanted), ("--threshold", thresholds)):
        for name in names:
            if name not in named or name not in wanted:
                raise SettingsError(
                    f"{option}: {name}: no such task{suggest(name, wanted and named)}"
                )
    for name, threshold in thresholds.items():
        head = named[name]
        if not head.type.has_thresholds:
            raise SettingsError(
                f"--threshold: {name}: a {head.type.name} head has no threshold; "
                "it answers what is likeliest"
            )
        if not (math.isfinite(threshold) and 0 <= threshold <= 1):
            raise SettingsError(f"--threshold: {name}: must be from 0 to 1, got {threshold:g}")
        own = head.decision.thresholds or ()
        # A tag whose own threshold is 1 was never learned.
        is_of_tags = head.type.positive_class is None
        given = tuple(1.0 if is_of_tags and one == 1 else threshold for one in own)
        named[name] = replace(head, decision=replace(head.decision, thresholds=given))
    chosen = tuple(named[name] for name in wanted)
    layers = tuple(sorted({layer for head in chosen for layer in head.layers}))
    return replace(heads, heads=chosen, layers=layers)
