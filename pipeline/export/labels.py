"""What an exported graph's inputs and outputs are called and mean: ``labels.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.model.saved import Heads, SavedHead

LABELS = "labels.json"
DATA_ENDING = ".data"  # behind a graph's name: the file with weights that are too large for it
INPUTS = ("input_ids", "attention_mask")
_FORMAT = 1  # the version of the format of labels.json


def name_outputs(head: SavedHead) -> tuple[str, ...]:
    """The names of a head's outputs in the graph, in their order.

    :param head: the head.
    :returns: ``TASK_probabilities``, but of a regression, and ``TASK_label``.
    """
    names = [f"{head.name}_probabilities"] if head.classes else []
    return (*names, f"{head.name}_label")


def describe_labels(heads: Heads, identity: Mapping[str, str]) -> dict[str, Any]:
    """The content of ``labels.json``, which says how to use a graph and how to read its outputs.

    :param heads: the heads of the graph.
    :param identity: the facts that tell what the answers are made by, as ``Model`` has them.
    """
    return {
        "format": _FORMAT,
        "model": dict(identity),
        "max_tokens": heads.recipe["max_tokens"],
        **({"prompt": heads.recipe["prompt"]} if "prompt" in heads.recipe else {}),
        "tasks": {head.name: _describe_task(head) for head in heads.heads},
    }


def _describe_task(head: SavedHead) -> dict[str, Any]:
    """One task's entry in ``labels.json``."""
    entry: dict[str, Any] = {"type": head.type.name, "outputs": list(name_outputs(head))}
    if head.classes:
        entry["classes"] = list(head.classes)
    if head.decision.thresholds is not None:
        single = head.threshold
        entry["threshold"] = list(head.decision.thresholds) if single is None else single
    return entry
