"""What the report reads, each file checked against the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.assets import Asset
from pipeline.corpus.keys import code_keys
from pipeline.corpus.tables import PARTS, LabelledRows, TaskLabels, read_labelled_rows
from pipeline.errors import StageError
from pipeline.files import check_hash, read_json, reading
from pipeline.model.decision import Ints
from pipeline.model.saved import Heads, SavedHead
from pipeline.project import Project
from pipeline.report.layers import read_layer_worth, read_path_bound
from pipeline.store import find_alike

TIMED_STAGES = ("fetch", "prepare", "embed", "group", "train-heads")
_RELABEL = "run `pipeline prepare`, then `pipeline train-heads`"


@dataclass(frozen=True)
class ScoredRows:
    """The rows of the corpus as the heads are scored on them: B rows with N distinct texts.

    :param keys: the keys of the distinct texts: pyarrow fixed-size binary of 16, [N].
    :param codes: the index in ``keys`` of each row's text: int64, [B].
    :param parts: reported part → indices of its rows, int64. Beside the parts of the split that
        have rows there is one that has those of ``judged`` whose text, or one with the same vector,
        stands in no training row.
    :param labels: task → the label of each row, as in ``TaskLabels``.
    :param present: task → whether each row has a label, [B].
    """

    keys: Any
    codes: Ints
    parts: Mapping[str, Ints]
    labels: Mapping[str, npt.NDArray[Any]]
    present: Mapping[str, npt.NDArray[np.bool_]]

    @property
    def judged(self) -> str:
        """The part whose figures tell how good heads are: the test part, if there is one.

        Without a test part it is the validation part, by which heads were chosen.
        """
        return "test" if "test" in self.parts else "validation"

    @property
    def unseen(self) -> str:
        """The part of the rows of ``judged`` that are unlike all training rows."""
        return f"{self.judged}_unseen"

    def take_rows(self, part: str, task: str) -> Ints:
        """The indices of the rows of a part that have a label of a task.

        :param part: the name of a reported part.
        :param task: the name of a task.
        """
        rows = self.parts[part]
        return rows[self.present[task][rows]]

    def count_texts(self, part: str) -> int:
        """How many distinct texts a part holds.

        :param part: the name of a reported part.
        """
        return len(self.list_texts(part))

    def list_texts(self, part: str) -> Ints:
        """The codes of the distinct texts of a part, ascending: int64.

        :param part: the name of a reported part.
        """
        return np.flatnonzero(np.bincount(self.codes[self.parts[part]]))

    def find_first_rows(self, part: str) -> Ints:
        """The first row of a part that has each of the texts of ``list_texts``: int64.

        :param part: the name of a reported part.
        """
        return self._find_first(self.parts[part])

    @cached_property
    def first_rows(self) -> Ints:
        """The first row of each distinct text: int64, [N]."""
        return self._find_first(np.arange(len(self.codes)))

    def _find_first(self, rows: Ints) -> Ints:
        first = np.full(self.codes.max(initial=-1) + 1, -1)
        first[self.codes[rows[::-1]]] = rows[::-1]  # the last to be written is the first row
        return first[first >= 0]


def read_scored_rows(project: Project, heads: Heads) -> ScoredRows:
    """Read the keys of the texts and the labels of the heads' tasks.

    :param project: the project whose stage ``prepare`` wrote them.
    :param heads: the heads to be scored.
    :raises StageError: if a file is missing or damaged, or texts, split or a task's labels are not
        those that its head was trained on.
    """
    rows = read_labelled_rows(project)
    labels = {head.name: _take_labels(project, rows, head) for head in heads.heads}
    heads.check_corpus(rows.identity, project.labels_file)
    keys, codes = code_keys(rows.keys)
    parts = {part: rows.select(part) for part in PARTS}
    scored = ScoredRows(
        keys=keys,
        codes=codes,
        parts={part: of_part for part, of_part in parts.items() if part != "test" or len(of_part)},
        labels={task: of_task.values for task, of_task in labels.items()},
        present={task: of_task.present for task, of_task in labels.items()},
    )
    alike = find_alike(project.store, keys, heads.fingerprint)[codes]
    judged = parts[scored.judged]
    unseen = judged[~np.isin(alike[judged], alike[parts["train"]])]
    return replace(scored, parts={**scored.parts, scored.unseen: unseen})


def _take_labels(project: Project, rows: LabelledRows, head: SavedHead) -> TaskLabels:
    """One task's labels, if they are of the kind and the classes that its head was trained on."""
    if head.name not in rows.tasks:
        raise StageError(
            f"{project.labels_file}: no labels {head.name!r}, but {project.heads} holds a head "
            "of that name",
            hint=_RELABEL,
        )
    labels = rows.tasks[head.name]
    if labels.kind != head.type.label_kind:
        raise StageError(
            f"{project.labels_file}: {head.name} is a label of the kind {labels.kind}; its head in "
            f"{project.heads} is {head.type.name}, of the kind {head.type.label_kind}",
            hint=_RELABEL,
        )
    if labels.classes != head.classes:
        raise StageError(
            f"{project.labels_file}: {head.name} has the classes {', '.join(labels.classes)}; its "
            f"head in {project.heads} was trained on {', '.join(head.classes)}",
            hint=_RELABEL,
        )
    return labels


def check_heads(project: Project, backbone: Asset, heads: Heads, fingerprint: str) -> None:
    """Make sure that heads, vectors and backbone are of one run, and that the page can tell of it.

    :param project: the project that holds them.
    :param backbone: the backbone that ``assets.json`` names.
    :param heads: the heads to be scored.
    :param fingerprint: the fingerprint of the embedding store.
    :raises StageError: if they are not, naming the stage to run.
    """
    with reading(project.heads, "train-heads"):
        for head in heads.heads:
            _check_about(head.about)
            read_layer_worth(head), read_path_bound(head)
        if not isinstance(heads.training.get("judged_rows", 0), int):
            raise TypeError("judged_rows is no whole number")
        trained_on = dict(heads.recipe["files"]).items()
    if heads.fingerprint != fingerprint:
        raise StageError(
            f"{project.heads} was trained on other vectors than those in {project.store} "
            f"(fingerprint {heads.fingerprint[:12]}, now {fingerprint[:12]})",
            hint="run `pipeline train-heads`",
        )
    if any(backbone.files.get(name) != sha256 for name, sha256 in trained_on):
        raise StageError(
            f"{project.heads} was trained on the backbone {heads.backbone.get('id')}; "
            f"{project.assets} now holds {backbone.id} with other files",
            hint="run `pipeline embed`, then `pipeline train-heads`",
        )


def _check_about(about: Mapping[str, Any]) -> None:
    """Make sure that the page can tell what ``heads.json`` says of a head for people.

    :raises TypeError: if it cannot; ``KeyError`` and ``ValueError`` likewise.
    """
    int(about["best_epoch"]), float(about["validation_loss"])
    float(about.get("held_out_score") or 0)
    if not isinstance(about.get("configuration"), dict | None):
        raise TypeError("configuration is no mapping")
    if not isinstance(about.get("metric", ""), str):
        raise TypeError("metric is no name")


def read_timings(project: Project) -> list[dict[str, Any]]:
    """Read what the earlier stages took, in their order; those without a record are left out.

    :param project: the project whose stages ran.
    :raises StageError: if a record is damaged.
    """
    timings = []
    for stage in TIMED_STAGES:
        path = project.timings / f"{stage}.json"
        if path.exists():
            content = read_json(path, stage=stage)
            with reading(path, stage):
                record = check_hash(content, is_required=False)
                timings.append(
                    {
                        "stage": stage,
                        "wall_seconds": float(record["wall_seconds"]),
                        "details": dict(record.get("details") or {}),
                        "finished": str(record.get("finished") or ""),
                    }
                )
    return timings
