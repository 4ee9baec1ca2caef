"""A corpus without labels: texts and vectors as of any other, and one message where heads begin."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipeline.project import Project
from tests.conftest import Cli, edit_params, run_stages

TEXTS = [f"message number {n % 30}" for n in range(40)]


def set_up(project: Path, backbone: Path, *extra: str) -> None:
    (project / "texts.csv").write_text("\n".join(["body", *TEXTS, *extra]) + "\n")
    edit_params(
        {
            "fetch.dataset": "texts.csv",
            "fetch.backbones": [str(backbone)],
            "prepare.text_column": "body",
            "prepare.labels": {},
            "heads.tasks": None,
        }
    )


def test_a_corpus_without_labels_is_prepared_embedded_and_exported(
    project: Path, tiny_backbone: Path, cli: Cli
) -> None:
    set_up(project, tiny_backbone)
    run_stages(cli, "fetch", "prepare", "embed")
    assert "lexicon" not in json.loads(Project().assets.read_text())
    labels = pq.read_table(Project().labels_file)
    assert labels.schema.names == ["row", "split"]
    assert pq.read_table(Project().texts_file)["text"].to_pylist() == TEXTS
    exported = cli("cache", "export", "vectors.npy", "--layers", "last")
    assert exported.returncode == 0, exported.stderr
    vectors = np.load(project / "vectors.npy").reshape(len(TEXTS), -1)
    np.testing.assert_array_equal(vectors[:10], vectors[30:])
    assert len(np.unique(vectors, axis=0)) == 30


def test_bad_rows_of_a_corpus_without_labels(project: Path, tiny_backbone: Path, cli: Cli) -> None:
    set_up(project, tiny_backbone, '" "', '"\u200b"')
    assert cli("fetch").returncode == 0
    stopped = cli("prepare")
    assert stopped.returncode == 1
    assert "2 rows cannot be used: \n  row 40 (the first is 0): blank text" in stopped.stderr
    edit_params({"prepare.on_bad_rows": "drop"})
    dropped = cli("prepare")
    assert dropped.returncode == 0, dropped.stderr
    assert "2 rows dropped: blank text" in dropped.stdout
    assert pq.read_table(Project().texts_file)["row"].to_pylist() == list(range(40))


def test_heads_of_a_corpus_without_labels_are_one_message(
    project: Path, tiny_backbone: Path, cli: Cli
) -> None:
    set_up(project, tiny_backbone)
    run_stages(cli, "fetch", "prepare", "embed")
    result = cli("train-heads")
    assert result.returncode == 1
    assert result.stderr.splitlines()[0] == (
        "Error: params.yaml: prepare.labels: the corpus has no labels, so there is no head to train"
    )
    assert "pipeline init --task NAME=COLUMN" in result.stderr
    assert not Project().heads.exists()
