"""The heads that label new texts, trained again on more rows, beside those that are scored."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import pipeline
from pipeline.corpus.tables import read_labelled_rows
from pipeline.errors import StageError
from pipeline.model.outgoing import load_outgoing
from pipeline.model.saved import Heads
from pipeline.project import Project
from pipeline.store import read_vectors
from tests.conftest import Cli, edit_params, run_stages

SETTINGS = """
fetch: {{dataset: notes.csv, backbones: [{backbone}]}}
prepare:
  text_column: note
  labels:
    mood: {{column: mood}}
    size: {{column: size, kind: number}}
  split: {{train: 0.6, validation: 0.2, test: 0.2}}
embed: {{precision: float32}}
heads:
  tasks:
    mood: {{threshold: f1}}
    size: {{}}
  refit: train
  folds: 3
  search: []
report: {{}}
"""
FILES = ("heads.safetensors", "heads.json", "curves.csv")


@pytest.fixture
def notes(project: Path, tiny_backbone: Path, cli: Cli) -> Path:
    """A project of 240 rows with vectors."""
    words = ("sun", "rain", "wind", "snow", "fog")
    rows = [(f"{words[n * 7 % 5]} {words[n * n % 5]} on day number {n}", n) for n in range(240)]
    with (project / "notes.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["note", "mood", "size"])
        for note, n in rows:
            mood = "good" if ("sun" in note) ^ (n % 11 == 0) else "bad"
            writer.writerow([note, mood, len(note) + n % 3])
    Project().settings.write_text(SETTINGS.format(backbone=tiny_backbone))
    run_stages(cli, "fetch", "prepare", "embed")
    return project


def train(cli: Cli, **changes: object) -> str:
    edit_params({f"heads.{key}": value for key, value in changes.items()})
    result = cli("train-heads")
    assert result.returncode == 0, result.stderr
    return " ".join(result.stdout.split())


def read_figures(cli: Cli) -> tuple[bytes, bytes, bytes]:
    """What tells how good heads are: figures, and the tensors and losses that they are of."""
    run_stages(cli, "report")
    return (
        (Project().report / "metrics.json").read_bytes(),
        *((Project().heads / name).read_bytes() for name in ("heads.safetensors", "curves.csv")),
    )


@pytest.mark.parametrize(
    ("refit", "parts", "rows"),
    [
        ("train+validation", ("train", "validation"), 192),
        ("all", ("train", "validation", "test"), 240),
    ],
)
def test_figures_are_those_without_it_and_the_decision_stays(
    notes: Path, cli: Cli, refit: str, parts: tuple[str, ...], rows: int
) -> None:
    assert "trained again" not in train(cli)
    before = read_figures(cli)
    assert load_outgoing(Project().heads).trained_parts == ("train",)
    told = train(cli, refit=refit)
    assert f"trained again on the {rows} rows of {', '.join(parts)}, for new texts" in told
    assert " s → cache/heads/outgoing" in told
    assert read_figures(cli) == before
    page = " ".join((Project().report / "report.html").read_text().split())
    assert f"on the {rows} rows of {'+'.join(parts)}." in page

    scored, outgoing = Heads.load(Project().heads), load_outgoing(Project().heads)
    assert (scored.trained_parts, outgoing.trained_parts) == (("train",), parts)
    assert outgoing.corpus == scored.corpus == read_labelled_rows(Project()).identity
    for then, now in zip(scored.heads, outgoing.heads, strict=True):
        assert now.decision == then.decision
        assert now.about["configuration"] == then.about["configuration"]
        assert not np.array_equal(now.weights[0].weight, then.weights[0].weight)
    assert scored.heads[0].threshold != 0.5  # chosen on held-out rows

    train(cli, refit="train")
    assert not (Project().heads / "outgoing").exists()
    assert read_figures(cli) == before


def test_a_linear_head_is_scikit_learns_on_the_rows_of_both_parts(notes: Path, cli: Cli) -> None:
    train(cli, refit="train+validation", weight_decay=0.05, layers="last")
    texts, labels = pq.read_table(Project().texts_file), pq.read_table(Project().labels_file)
    keys, heads = texts["key"].combine_chunks(), load_outgoing(Project().heads)
    chosen = np.array([part != "test" for part in labels["split"].to_pylist()])
    vectors = read_vectors(Project().store, keys, heads.layers).reshape(240, -1)
    mood = labels["mood"].to_numpy()
    scaler = StandardScaler().fit(vectors[chosen].astype(np.float64))
    reference = LogisticRegression(C=1 / (0.05 * chosen.sum()), tol=1e-8, max_iter=5000)
    reference.fit(scaler.transform(vectors[chosen]), mood[chosen])
    tensors = load_file(Project().heads / "outgoing" / "heads.safetensors")
    logits = vectors @ tensors["mood.weight"][0] + tensors["mood.bias"][0]
    expected = reference.predict_proba(scaler.transform(vectors))[:, 1]
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), expected, atol=3e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"search": "auto"},
        {"search": [{"head": ["kernel"]}]},
        {
            "optimizer": "adamw", "max_epochs": 8,
            "search": [{"head": ["hidden"], "hidden_size": [4], "seeds": [0, 1, 2]}],
        },
    ],
    ids=["default", "kernel", "hidden"],
)  # fmt: skip
def test_new_texts_are_labelled_by_the_heads_that_saw_more_rows(
    notes: Path, cli: Cli, changes: dict[str, object]
) -> None:
    train(cli, refit="all", **changes)
    asked = ["rain and fog on day 9", "sun at last"]
    with pipeline.load(".") as model, pipeline.load(".", refit=False) as scored:
        vectors = model.embed(asked)
        found = {task: table.to_numpy() for task, table in model.predict_proba(asked).items()}
        numbers = model.predict(asked)["size"].to_numpy()
        other = scored.predict_proba(asked)["mood"].to_numpy()
        facts, other_facts = model.identity, scored.identity
    for folder, mood in (("heads/outgoing", found["mood"]), ("heads", other)):
        heads = Heads.load(Project().cache / folder)
        logits = heads.compute_logits(vectors)
        (head,) = (head for head in heads.heads if head.name == "mood")
        expected = 1 / (1 + np.exp(-logits["mood"][0][:, 0] / head.decision.temperature))
        np.testing.assert_allclose(mood[:, 1], expected, rtol=1e-5)
    np.testing.assert_allclose(
        numbers, load_outgoing(Project().heads).compute_logits(vectors)["size"][0][:, 0], rtol=1e-6
    )
    assert np.abs(found["mood"] - other).max() > 0
    assert facts["trained_on"] == "train+validation+test"
    assert other_facts["trained_on"] == "train"
    assert facts["heads_sha256"] != other_facts["heads_sha256"]
    result = cli("predict", "--text", asked[0], "-o", "out.parquet")
    assert result.returncode == 0, result.stderr
    assert "of train+validation+test" in " ".join((result.stdout + result.stderr).split())
    stated = json.loads(pq.read_schema("out.parquet").metadata[b"embedding_pipeline"])
    assert stated["trained_on"] == "train+validation+test"


def test_without_a_test_part_all_rows_are_those_of_both_other_parts(notes: Path, cli: Cli) -> None:
    edit_params({"prepare.split": {"train": 0.8, "validation": 0.2, "test": 0}})
    run_stages(cli, "prepare")
    train(cli, refit="all")
    assert load_outgoing(Project().heads).trained_parts == ("train", "validation")


def _swap_scored(folder: Path) -> None:
    """The scored heads of another run: as if a run had been killed between the two."""
    for name in FILES:
        shutil.copy(Project().cache / "before" / name, folder / name)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_swap_scored, "was not trained after the heads"),
        (lambda folder: (folder / "heads.json").unlink(), "was not trained after the heads"),
        (lambda folder: (folder / "outgoing" / "heads.json").unlink(), "no such file"),
        (
            lambda folder: (folder / "outgoing" / "curves.csv").write_text(""),
            "is not the file that",
        ),
    ],
)
def test_files_of_two_runs_are_never_taken_for_one(
    notes: Path, cli: Cli, damage: Callable[[Path], None], message: str
) -> None:
    train(cli, weight_decay=0.3)
    shutil.copytree(Project().heads, Project().cache / "before")
    train(cli, refit="train+validation", weight_decay=0.1)
    damage(Project().heads)
    with pytest.raises(StageError, match=message) as caught:
        load_outgoing(Project().heads)
    assert "train-heads" in (caught.value.hint or "")
    result = cli("predict", "--text", "sun")
    assert result.returncode == 1
    assert "train-heads" in result.stderr
