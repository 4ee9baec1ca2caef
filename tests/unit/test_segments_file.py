"""Columns of the source that ``prepare`` keeps for the report: as they stand in the source."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipeline.config import load_settings
from pipeline.corpus.tables import read_segments
from pipeline.errors import DataError, StageError
from pipeline.files import hash_file
from pipeline.prepare import run as prepare
from pipeline.prepare.run import run_prepare
from pipeline.project import Project
from tests.conftest import edit_params

SOURCES = ["mail", "chat", " mail ", None, ""] * 12
YEARS = [2019.0, 2020.0, float("nan"), 2020.5, 2021.0] * 12


def set_up(folder: Path, segments: list[str]) -> Project:
    """A project whose dataset is a Parquet file of 60 rows, one of which has no text."""
    file = folder / "data.parquet"
    texts = [None if row == 7 else f"message {row}" for row in range(60)]
    labels = [("ham", "spam")[row % 3 == 0] for row in range(60)]
    frame = {"message": texts, "label": labels, "source": SOURCES, "year": YEARS}
    pd.DataFrame(frame).to_parquet(file)
    record = {"id": "data.parquet", "source": "local file", "path": "data.parquet"}
    dataset = {**record, "format": "auto", "files": {"data.parquet": hash_file(file)}}
    none = {"id": "none", "source": "none", "folder": "none", "files": {}}
    project = Project(folder)
    project.cache.mkdir(exist_ok=True)
    project.assets.write_text(json.dumps({"dataset": dataset, "backbone": none}))
    edit_params(
        {
            "prepare.labels": {"spam": {"column": "label", "classes": ["ham", "spam"]}},
            "prepare.on_bad_rows": "drop",
            "heads.tasks": {"spam": {}},
            "report.segments": segments,
        }
    )
    return project


def run(project: Project) -> None:
    run_prepare(project, load_settings(project.settings))


def test_columns_are_kept_beside_the_rows_that_are_used(project: Path) -> None:
    made = set_up(project, ["source", "year"])
    run(made)
    kept = read_segments(made, ["year", "source"])
    used = [row for row in range(60) if row != 7]
    assert pq.read_table(made.labels_file)["row"].to_pylist() == used
    assert kept["source"] == [(SOURCES[row] or "").strip() or None for row in used]
    names = {2019.0: "2019", 2020.0: "2020", 2020.5: "2020.5", 2021.0: "2021"}
    assert kept["year"] == [names.get(YEARS[row]) for row in used]


def test_labels_are_the_same_whatever_columns_are_kept(project: Path) -> None:
    made = set_up(project, [])
    run(made)
    before = made.texts_file.read_bytes(), made.labels_file.read_bytes()
    assert read_segments(made, []) == {}
    assert made.segments_file.is_file()  # DVC wants the file, whatever it holds
    set_up(project, ["source", "label"])
    run(made)
    assert (made.texts_file.read_bytes(), made.labels_file.read_bytes()) == before
    assert read_segments(made, ["label"])["label"][:4] == ["spam", "ham", "ham", "spam"]


def test_a_column_that_the_source_lacks_is_named(project: Path) -> None:
    made = set_up(project, ["sauce"])
    with pytest.raises(DataError, match="no column 'sauce'") as caught:
        run(made)
    assert "report.segments" in str(caught.value.hint)
    assert "did you mean" in caught.value.message


def test_a_file_of_other_settings_another_run_or_none_is_refused(project: Path) -> None:
    made = set_up(project, ["source"])
    run(made)
    with pytest.raises(StageError, match="no column 'year'") as caught:
        read_segments(made, ["source", "year"])
    assert "pipeline prepare" in str(caught.value.hint)
    kept = made.segments_file.read_bytes()
    made.segments_file.write_bytes(kept[:30] + bytes([kept[30] ^ 255]) + kept[31:])
    with pytest.raises(StageError, match=r"segments\.parquet"):
        read_segments(made, ["source"])
    frame = pd.read_parquet(project / "data.parquet")
    frame["message"] = frame["message"] + "!"
    made.segments_file.unlink()
    with pytest.raises(StageError, match=r"segments\.parquet"):
        read_segments(made, ["source"])
    frame.to_parquet(project / "data.parquet")
    assets = json.loads(made.assets.read_text())
    assets["dataset"]["files"]["data.parquet"] = hash_file(project / "data.parquet")
    made.assets.write_text(json.dumps(assets))
    run(made)
    made.segments_file.write_bytes(kept)
    with pytest.raises(StageError, match="not of one run"):
        read_segments(made, ["source"])


def test_columns_are_written_part_by_part(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = set_up(project, ["source", "year"])
    run(made)
    whole = pq.read_table(made.segments_file)
    monkeypatch.setattr(prepare, "_LABELS_GROUP_ROWS", 7)
    run(made)
    assert pq.ParquetFile(made.segments_file).num_row_groups == -(-59 // 7)
    assert pq.read_table(made.segments_file).equals(whole)
    assert whole.num_rows == 59
    set_up(project, [])
    run(made)
    assert pq.read_table(made.segments_file).num_columns == 0
