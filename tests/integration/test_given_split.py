"""Parts that a column gives, and corpora without a test part, from a file to the report."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.corpus.tables import read_labelled_rows
from pipeline.project import Project
from tests.conftest import Cli, run_stages

SETTINGS = """
fetch: {{dataset: notes.csv, backbones: [{backbone}]}}
prepare:
  text_column: note
  labels: {{mood: {{column: mood}}, size: {{column: size, kind: number}}}}
  split: {split}
embed: {{precision: float32}}
heads: {{}}
report: {{}}
"""
PARTS = ["train", "train", "dev", "test", "train", "unused"]


def write_notes(folder: Path, backbone: Path, split: str) -> list[dict[str, object]]:
    """A source of 180 rows, some of which cannot be used: all of these are ``unused``."""
    notes = [
        {
            "note": "" if n % 12 == 5 else f"{('good', 'bad')[n % 5 % 2]} day number {n}",
            "mood": f"odd {n}" if n % 6 == 5 else ("good", "bad")[n % 5 % 2],
            "size": "none" if n % 6 == 5 else n % 7,
            "part": PARTS[n % 6],
        }
        for n in range(180)
    ]
    with (folder / "notes.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(notes[0]))
        writer.writeheader()
        writer.writerows(notes)
    Project().settings.write_text(SETTINGS.format(backbone=backbone, split=split))
    return notes


def test_a_given_split_is_kept_from_the_file_to_the_report(
    project: Path, tiny_backbone: Path, cli: Cli
) -> None:
    split = "{column: part, validation: [dev], leave_out: [unused]}"
    notes = write_notes(project, tiny_backbone, split)
    run_stages(cli, "fetch")
    prepared = cli("prepare")
    assert prepared.returncode == 0, prepared.stderr
    assert "notes.csv: 180 rows, 150 used" in prepared.stdout
    assert "30 rows left out, as prepare.split.leave_out says" in prepared.stdout
    labels = pq.read_table(Project().labels_file)
    used = [n for n, note in enumerate(notes) if note["part"] != "unused"]
    assert labels["row"].to_pylist() == used
    names = {"dev": "validation"}
    assert labels["split"].to_pylist() == [
        names.get(str(notes[n]["part"]), notes[n]["part"]) for n in used
    ]
    # What stands in rows that are left out is no class.
    assert read_labelled_rows(Project()).tasks["mood"].classes == ("bad", "good")
    run_stages(cli, "embed", "train-heads", "report")
    metrics = json.loads((Project().report / "metrics.json").read_text())
    assert {part: of["mood"]["rows"] for part, of in metrics.items()} == {
        "train": 90,
        "validation": 30,
        "test": 30,
        "test_unseen": 30,
    }

    # Another assignment of the values is another corpus, by which these heads cannot be judged.
    before = read_labelled_rows(Project()).identity
    write_notes(project, tiny_backbone, split.replace("[dev]", "[test], test: [dev]"))
    run_stages(cli, "prepare")
    assert read_labelled_rows(Project()).identity.split != before.split
    refused = cli("report")
    assert refused.returncode == 1
    assert "another split" in refused.stderr


@pytest.mark.parametrize(
    ("lists", "rows"),
    [
        ("train: [train, test], validation: [dev], leave_out: [unused]", 30),
        ("train: [train, test], leave_out: [unused, dev]", 18),  # 0.15 of 120
    ],
)
def test_a_corpus_without_a_test_part_reports_validation_rows(
    project: Path, tiny_backbone: Path, cli: Cli, lists: str, rows: int
) -> None:
    write_notes(project, tiny_backbone, f"{{column: part, test: [], {lists}}}")
    run_stages(cli, "fetch")
    assert "no test part: the report will show the validation rows" in cli("prepare").stdout
    run_stages(cli, "embed", "train-heads")
    reported = cli("report")
    assert reported.returncode == 0, reported.stderr
    assert "there is no test part" in " ".join(reported.stdout.split())
    assert "there is no test part" in " ".join(cli("report", "--show").stdout.split())
    metrics = json.loads((Project().report / "metrics.json").read_text())
    assert list(metrics) == ["train", "validation", "validation_unseen"]
    assert metrics["validation"]["mood"]["rows"] == rows
    assert set(metrics["validation"]["mood"]["intervals"]) >= {"accuracy", "f1"}
    summary = json.loads((Project().report / "summary.json").read_text())
    assert summary == {
        "validation": {
            "mood": {m: metrics["validation"]["mood"][m] for m in summary["validation"]["mood"]},
            "size": {m: metrics["validation"]["size"][m] for m in summary["validation"]["size"]},
        }
    }
    with (Project().report / "plots" / "confusion" / "mood.csv").open() as file:
        drawn = list(csv.DictReader(file))
    assert len(drawn) == rows
    page = (Project().report / "report.html").read_text()
    assert "There is no test part." in page
    assert "Results on the validation part" in page
    heads = json.loads((Project().heads / "heads.json").read_text())
    judged = heads["training"]["judged_rows"]
    assert f"On all {judged} held-out rows" in " ".join(page.split())


def test_a_value_in_no_list_stops_before_anything_is_written(
    project: Path, tiny_backbone: Path, cli: Cli
) -> None:
    write_notes(project, tiny_backbone, "{column: part}")
    run_stages(cli, "fetch")
    result = cli("prepare")
    assert result.returncode == 1
    assert "notes.csv: column 'part': 60 rows with a value that no list" in result.stderr
    assert "'dev' (30), 'unused' (30)" in result.stderr
    assert not Project().texts_file.exists()


def test_a_column_that_is_not_there_is_named_by_its_setting(
    project: Path, tiny_backbone: Path, cli: Cli
) -> None:
    write_notes(project, tiny_backbone, "{column: parts}")
    run_stages(cli, "fetch")
    result = cli("prepare")
    assert result.returncode == 1
    assert "no column 'parts'" in result.stderr
    assert "correct prepare.split.column" in result.stderr
