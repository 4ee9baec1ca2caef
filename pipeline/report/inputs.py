"""What the report reads: the corpus, the heads and their past, each checked against the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.corpus.tables import PARTS as SPLITS
from pipeline.corpus.tables import LabelledRows, TaskLabels, read_labelled_rows
from pipeline.errors import StageError
from pipeline.files import read_json, reading
from pipeline.model.saved import Heads, SavedHead
from pipeline.project import Project

PARTS = (*SPLITS, "test_unseen")
STAGES = ("fetch", "prepare", "embed", "train-heads")


Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Corpus:
    """Rows, as places in a list of distinct texts.

    :param keys: of the distinct texts: pyarrow fixed-size binary, [U].
    :param codes: int64, [B]: which of the distinct texts each row has.
    :param parts: part → its rows, int64 each. ``test_unseen``: rows of the test part whose text
        stands in no training row.
    :param labels: task → label of each row, as in ``TaskLabels``.
    :param present: task → which rows have one, [B].
    """

    keys: Any
    codes: Ints
    parts: Mapping[str, Ints]
    labels: Mapping[str, npt.NDArray[Any]]
    present: Mapping[str, npt.NDArray[np.bool_]]

    def take_rows(self, part: str, task: str) -> Ints:
        """The rows of a part that have a label of a task."""
        rows = self.parts[part]
        return rows[self.present[task][rows]]

    def count_texts(self, part: str) -> int:
        """How many distinct texts a part holds."""
        return len(np.unique(self.codes[self.parts[part]]))


def read_assets(path: Path) -> dict[str, Any]:
    """Read the project's ``assets.json``."""
    assets = read_json(path, stage="fetch")
    with reading(path, "fetch"):
        for kind in ("dataset", "backbone"):
            str(assets[kind]["id"])
    return dict(assets)


def read_corpus(project: Project, heads: Heads) -> Corpus:
    """Read the keys of the texts and the labels of the heads' tasks.

    :raises StageError: if a file is missing or damaged, or a task's labels are not those that its
        head was trained on.
    """
    rows = read_labelled_rows(project)
    coded = rows.keys.dictionary_encode()
    codes = coded.indices.to_numpy().astype(np.int64)
    parts = {part: rows.select(part) for part in SPLITS}
    in_training = np.zeros(len(coded.dictionary), bool)
    in_training[codes[parts["train"]]] = True
    parts["test_unseen"] = parts["test"][~in_training[codes[parts["test"]]]]
    labels = {head.name: _take_labels(project, rows, head) for head in heads.heads}
    return Corpus(
        keys=coded.dictionary,
        codes=codes,
        parts=parts,
        labels={name: found.values for name, found in labels.items()},
        present={name: found.present for name, found in labels.items()},
    )


def _take_labels(project: Project, rows: LabelledRows, head: SavedHead) -> TaskLabels:
    """One task's labels, if they are of the classes that its head was trained on."""
    hint = "run `pipeline prepare`, then `pipeline train-heads`"
    if head.name not in rows.tasks:
        raise StageError(
            f"{project.labels}: no labels {head.name!r}, but {project.heads} holds a head of that "
            "name",
            hint=hint,
        )
    labels = rows.tasks[head.name]
    if labels.classes != head.classes:
        raise StageError(
            f"{project.labels}: {head.name} has the classes {', '.join(labels.classes)}; its "
            f"head in {project.heads} was trained on {', '.join(head.classes)}",
            hint=hint,
        )
    if labels.kind == "class":
        bad = np.flatnonzero((labels.values < -1) | (labels.values >= len(head.classes)))
        if len(bad):
            raise StageError(
                f"{project.labels}: {head.name} is {labels.values[bad[0]]} in row {bad[0]:,}, "
                f"not a class index from 0 to {len(head.classes) - 1}",
                hint="run `pipeline prepare` again",
            )
    return labels


def check_backbone(
    project: Project, assets: Mapping[str, Any], heads: Heads, fingerprint: str
) -> None:
    """Make sure that heads, vectors and assets are of the same backbone.

    :param fingerprint: of the embedding store.
    :raises StageError: if they are not, naming the stage to run.
    """
    if heads.fingerprint != fingerprint:
        raise StageError(
            f"{project.heads} was trained on other vectors than those in {project.embeddings} "
            f"(fingerprint {heads.fingerprint[:12]}, now {fingerprint[:12]})",
            hint="run `pipeline train-heads`",
        )
    fetched = assets["backbone"]
    files = fetched.get("files") or {}
    if any(files.get(name) != sha256 for name, sha256 in heads.recipe["files"].items()):
        raise StageError(
            f"{project.heads} was trained on the backbone {heads.backbone.get('id')}; "
            f"{project.assets} now holds {fetched['id']} with other files",
            hint="run `pipeline embed`, then `pipeline train-heads`",
        )


def read_timings(project: Project) -> list[dict[str, Any]]:
    """Read what the earlier stages took, in their order; those without a record are left out."""
    timings = []
    for stage in STAGES:
        path = project.timings / f"{stage}.json"
        if path.exists():
            record = read_json(path, stage=stage)
            with reading(path, stage):
                float(record["wall_seconds"])
                dict(record.get("details") or {})
            timings.append(record)
    return timings
