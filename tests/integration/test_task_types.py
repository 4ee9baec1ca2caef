"""Tasks of every type on one small corpus, from a file to the report."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.project import Project
from tests.conftest import Cli, run_stages

WORDS = [
    "server",
    "down",
    "invoice",
    "late",
    "thanks",
    "great",
    "broken",
    "login",
    "slow",
    "refund",
    "please",
    "help",
]
SETTINGS = """
fetch: {dataset: tickets.csv, backbones: [BACKBONE]}
prepare:
  text_column: body
  labels:
    urgent: {column: priority, classes: [low, high]}
    topics: {column: topics, kind: tags, separator: ";"}
    hours: {column: hours, kind: number, optional: true}
    level: {column: level, classes: [low, middle, high]}
embed: {precision: float32}
heads:
  tasks:
    urgent: {}
    topics: {type: multilabel, class_weights: pos_weight, threshold: f1}
    hours: {type: regression, loss: huber}
    level: {type: ordinal}
report: {}
"""


def write_tickets(path: Path, rows: int) -> list[dict[str, object]]:
    generator = random.Random(0)
    tickets = []
    for number in range(rows):
        words = generator.choices(WORDS, k=8)
        tickets.append(
            {
                "body": f"{' '.join(words)} {number}",
                "priority": "high" if "down" in words else "low",
                "topics": ";".join(word for word in ("login", "invoice") if word in words),
                "hours": "" if number % 5 == 0 else len(" ".join(words)) / 4,
                "level": ("low", "middle", "high")[min(2, words.count("slow"))],
            }
        )
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(tickets[0]))
        writer.writeheader()
        writer.writerows(tickets)
    return tickets


def test_every_type_of_task_from_file_to_report(
    project: Path, tiny_backbone: Path, cli: Cli
) -> None:
    tickets = write_tickets(project / "tickets.csv", 300)
    Project().settings.write_text(SETTINGS.replace("BACKBONE", str(tiny_backbone)))
    run_stages(cli, "fetch", "prepare", "embed", "train-heads", "report")

    labels = pq.read_table(Project().labels_file)
    assert labels.schema.field("urgent").type == pa.int32()
    assert labels["urgent"].to_pylist() == [int(t["priority"] == "high") for t in tickets]
    assert labels["hours"].to_pylist() == [
        None if t["hours"] == "" else t["hours"] for t in tickets
    ]
    tags = json.loads(labels.schema.field("topics").metadata[b"classes"])
    assert sorted(tags) == ["invoice", "login"]
    found = [
        {tag for tag, given in zip(tags, row, strict=True) if given}
        for row in labels["topics"].to_pylist()
    ]
    assert found == [set(str(t["topics"]).split(";")) - {""} for t in tickets]
    assert set(labels["level"].to_pylist()) == {0, 1, 2}

    test = json.loads((Project().report / "metrics.json").read_text())["test"]
    assert set(test) == {"urgent", "topics", "hours", "level"}
    # The words that decide stand in the text, so heads that learned beat a guess.
    parts = labels["split"].to_pylist()
    lows = [
        t["priority"] == "low" for t, part in zip(tickets, parts, strict=True) if part == "test"
    ]
    assert test["urgent"]["accuracy"] > sum(lows) / len(lows)
    assert test["hours"]["r2"] > 0.2
    page = (Project().report / "report.html").read_text()
    for name in ("urgent", "topics", "hours", "level"):
        assert name in page
