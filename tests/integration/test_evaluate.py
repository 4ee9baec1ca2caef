"""`pipeline evaluate`: the report's figures on a labelled file, and how unlike its texts are.

References: the report on the same rows, scikit-learn, and distances by hand.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import accuracy_score, f1_score

import pipeline
from pipeline.model.saved import Heads
from tests.conftest import edit_params, run_cli
from tests.integration.test_predict import run_all
from tests.integration.test_task_types import SETTINGS, write_tickets

ROWS = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Path:
    """A project with heads of all types, and files of its rows by their part."""
    folder = tmp_path_factory.mktemp("evaluate") / "project"
    folder.mkdir()
    write_tickets(folder / "tickets.csv", ROWS)
    (folder / "params.yaml").write_text(SETTINGS.replace("BACKBONE", str(tiny_backbone)))
    edit_params({"heads.search": []}, folder / "params.yaml")
    run_all(folder, "fetch", "prepare", "embed", "train-heads", "report")
    with (folder / "tickets.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    parts = pq.read_table(folder / "cache/labels.parquet")["split"].to_pylist()
    for part in ("train", "test"):
        with (folder / f"{part}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(row for row, of in zip(rows, parts, strict=True) if of == part)
    return folder


@pytest.mark.parametrize("head", ["linear", "kernel"])
def test_figures_are_the_reports_to_the_last_digit(folder: Path, tmp_path: Path, head: str) -> None:
    project = folder
    if head == "kernel":
        project = tmp_path / "kernel"
        shutil.copytree(folder, project)
        edit_params({"heads.head": "kernel"}, project / "params.yaml")
        run_all(project, "train-heads", "report")
    out = tmp_path / "figures.json"
    result = run_cli(project, "evaluate", "test.csv", "-o", str(out))
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(out.read_text())
    reported = json.loads((project / "cache/report/metrics.json").read_text())["test"]
    assert found["metrics"] == reported
    assert set(reported) == {"urgent", "topics", "hours", "level"}
    assert reported["urgent"]["intervals"]
    assert found["trained_texts"] == 0
    assert "95 % intervals" in result.stdout
    # Without the vectors of the store, which are computed anew and rounded as those are.
    shutil.move(project / "cache/embeddings", tmp_path / "away")
    again = run_cli(project, "evaluate", "test.csv", "-o", str(out), "--force")
    shutil.move(tmp_path / "away", project / "cache/embeddings")
    assert again.returncode == 0, again.stdout + again.stderr
    assert json.loads(out.read_text())["metrics"]["urgent"]["rows"] == reported["urgent"]["rows"]


def test_figures_are_scikit_learns(folder: Path, tmp_path: Path) -> None:
    rows = write_tickets(tmp_path / "month.csv", ROWS + 80)[ROWS:]
    new = tmp_path / "new.jsonl"
    new.write_text(
        "".join(json.dumps({"body": r["body"], "priority": r["priority"]}) + "\n" for r in rows)
    )
    out = tmp_path / "figures.json"
    result = run_cli(folder, "evaluate", str(new), "-o", str(out))
    assert result.returncode == 0, result.stdout + result.stderr
    for task in ("topics", "hours", "level"):
        assert f"{task}: not scored" in result.stdout
    found = json.loads(out.read_text())["metrics"]
    assert set(found) == {"urgent"}
    with pipeline.load(folder) as model:
        answers = model.predict([str(r["body"]) for r in rows])["urgent"]
    actual = [r["priority"] for r in rows]
    assert found["urgent"]["accuracy"] == pytest.approx(accuracy_score(actual, answers))
    assert found["urgent"]["f1"] == pytest.approx(f1_score(actual, answers, pos_label="high"))


def test_rows_of_training_are_refused_unless_allowed(folder: Path) -> None:
    result = run_cli(folder, "evaluate", "test.csv", "train.csv")
    assert result.returncode == 1
    assert "210 of 255 texts were trained on: train.csv row 0, train.csv row 1" in result.stderr
    assert "--allow-training-rows" in result.stderr
    allowed = run_cli(folder, "evaluate", "train.csv", "--allow-training-rows")
    assert allowed.returncode == 0, allowed.stderr
    assert "210 of 210 texts were trained on" in allowed.stdout + allowed.stderr


def test_the_outgoing_heads_know_their_own_rows(folder: Path, tmp_path: Path) -> None:
    """Heads that were trained again on all rows refuse the test part, which `report` may score."""
    project = tmp_path / "project"
    shutil.copytree(folder, project)
    edit_params({"heads.refit": "all"}, project / "params.yaml")
    run_all(project, "train-heads", "report")
    result = run_cli(project, "evaluate", "test.csv")
    assert result.returncode == 1
    assert "45 of 45 texts were trained on" in result.stderr


def test_drift_is_seen(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    far_share = {}
    with (folder / "test.csv").open(encoding="utf-8") as file:
        usual = [row["body"] for row in csv.DictReader(file)]
    odd = [f"数 {number} £££ qqq zzz" for number in range(len(usual))]
    for name, texts in (("usual", usual), ("odd", odd)):
        frame = pd.DataFrame({"body": texts, "priority": ["low", "high"] * 22 + ["low"]})
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
        command = ("evaluate", str(tmp_path / f"{name}.csv"), "-o", str(out), "--force")
        result = run_cli(folder, *command)
        assert result.returncode == 0, result.stdout + result.stderr
        drift = json.loads(out.read_text())["drift"]
        far_share[name] = drift["far_share"]
        shares = drift["classes"]["urgent"]
        assert sum(of["predicted"] for of in shares.values()) == pytest.approx(1)
        labels = pipeline.Project(folder).labels("train")["urgent"]
        assert shares["high"]["trained"] == pytest.approx((labels == "high").mean())
    assert far_share["usual"] < 0.2
    assert far_share["odd"] > 0.9
    # The share by hand: the distance of each text to the nearest training text.
    reference = Heads.load(folder / "cache/heads").load_reference()
    assert reference is not None
    project = pipeline.Project(folder)
    labels, (vectors, _) = project.labels(), project.embeddings([reference.layer])
    wide = vectors[:, 0].astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    is_train = (labels["split"] == "train").to_numpy()
    within = 1 - wide[is_train] @ wide[is_train].T
    np.fill_diagonal(within, np.inf)
    limit = np.percentile(within.min(axis=1), 99)
    assert reference.limit == pytest.approx(limit, rel=0.02, abs=1e-4)


def test_mistakes_are_one_message(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text("body,priority\na text,low\nanother,urgent\n")
    (tmp_path / "none.csv").write_text("body,other\na text,1\n")
    (tmp_path / "empty.csv").write_text("body,priority\n")
    (tmp_path / "there.json").write_text("{}")
    for arguments, message in (
        (["classes.csv"], "unknown label for urgent: 'urgent'"),
        (["none.csv"], "no column with labels"),
        (["empty.csv"], "no rows"),
        (["missing.csv"], "no such file"),
        (["classes.csv", "-o", "there.json"], "exists already"),
        (["classes.csv", "--tasks", "mood"], "no such task"),
    ):
        given = [str(tmp_path / a) if "." in a else a for a in arguments]
        result = run_cli(folder, "evaluate", *given)
        assert result.returncode == 1, arguments
        assert message in result.stderr
        assert "Traceback" not in result.stderr
    dropped = run_cli(folder, "evaluate", str(tmp_path / "classes.csv"), "--on-bad-rows", "drop")
    assert dropped.returncode == 0, dropped.stderr
    assert (tmp_path / "there.json").read_text() == "{}"


def test_a_damaged_reference_is_one_message(folder: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(folder, project)
    path = project / "cache/heads/reference.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    result = run_cli(project, "evaluate", "test.csv")
    assert result.returncode == 1
    assert "reference.safetensors is damaged" in result.stderr
