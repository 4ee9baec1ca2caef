"""A labeler of one's own: one file, this one, and one entry in the table of labelers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from pydantic import Field

from pipeline import config
from pipeline.config import FetchSettings, LabelSettings, WantedAsset
from pipeline.errors import SettingsError
from pipeline.prepare.labelers.base import Labels
from pipeline.project import Project
from tests.conftest import Cli, edit_params, run_stages

FILLERS = {"well", "um"}
TEXTS = [
    f"{'well um ' * (n % 2)}{'a long message about nothing ' * (n % 3 // 2)}number {n}"
    for n in range(90)
]


class LengthLabel(LabelSettings):
    """Whether a text is short or long, counted without the words that a file lists."""

    implementation = f"{__name__}:LengthLabeler"

    labeler: Literal["length"]
    fillers: str
    short_at_most: int = Field(default=20, ge=1)

    def get_classes(self) -> tuple[str, ...]:
        return ("short", "long")

    def get_scores(self, task: str) -> tuple[str, ...]:
        return (f"{task}_characters",)

    def get_assets(self, task: str, fetch: FetchSettings) -> dict[str, WantedAsset]:
        return {"fillers": WantedAsset(self.fillers, f"prepare.labels.{task}.fillers")}


class LengthLabeler:
    def __init__(self, task: str, settings: LengthLabel) -> None:
        self._task = task
        self._settings = settings

    def label(
        self, frame: pd.DataFrame, texts: Sequence[str], assets: Mapping[str, Path]
    ) -> Labels:
        fillers = set(assets["fillers"].read_text("utf-8").split())
        lengths = np.array(
            [len(" ".join(w for w in text.split() if w not in fillers)) for text in texts], float
        )
        return Labels(
            classes=self._settings.get_classes(),
            values=(lengths > self._settings.short_at_most).astype(np.int32),
            scores={f"{self._task}_characters": lengths},
        )


@pytest.fixture
def own(project: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose one label is by the new labeler."""
    monkeypatch.setitem(config.LABELERS, "length", LengthLabel)
    (project / "data.csv").write_text("message\n" + "\n".join(TEXTS) + "\n")
    (project / "fillers.txt").write_text("\n".join(FILLERS))
    edit_params(
        {
            "fetch.dataset": "data.csv",
            "fetch.backbones": [str(tiny_backbone)],
            "prepare.labels": {"size": {"labeler": "length", "fillers": "fillers.txt"}},
            "heads.tasks": {"size": {"type": "binary"}},
            "heads.search": [],
            "runtime.devices": "cpu",
        }
    )
    return project


def test_it_runs_from_settings_to_report(own: Path, cli: Cli) -> None:
    run_stages(cli, "fetch", "prepare", "embed", "train-heads", "report")
    assets = json.loads(Project(own).assets.read_text())
    assert list(assets) == ["dataset", "fillers", "backbone", "sha256"]
    assert assets["fillers"]["path"] == "fillers.txt"
    lengths = [
        len(" ".join(word for word in text.split() if word not in FILLERS)) for text in TEXTS
    ]
    labels = pq.read_table(Project(own).labels_file)
    assert labels["size_characters"].to_pylist() == lengths
    assert labels["size"].to_pylist() == [int(length > 20) for length in lengths]
    metrics = json.loads((Project(own).report / "metrics.json").read_text())
    assert metrics["test"]["size"]["accuracy"] > 0.9  # thirty characters more or less


def test_its_file_is_watched_like_any_asset(own: Path, cli: Cli) -> None:
    run_stages(cli, "fetch", "prepare")
    (own / "fillers.txt").write_text("other")
    result = cli("prepare")
    assert result.returncode == 1
    assert result.stderr.startswith(
        "Error: fillers fillers.txt: fillers.txt has changed since it was fetched"
    )
    edit_params({"prepare.labels.size.fillers": "mine.txt"})
    result = cli("prepare")
    assert result.stderr.startswith(
        "Error: cache/assets.json: has the fillers fillers.txt, but prepare.labels.size.fillers "
        "is mine.txt\n  next: run `pipeline fetch` again"
    )
    result = cli("fetch")
    assert result.stderr == (
        "Error: params.yaml: prepare.labels.size.fillers: mine.txt: no such file; did you "
        "mean `fillers.txt`?\n"
        "  next: give a path\n"
    )


def test_its_settings_are_checked_like_any(own: Path) -> None:
    def complain(labels: str) -> str:
        with pytest.raises(SettingsError) as caught:
            config.parse_settings(f"prepare: {{labels: {labels}}}", "params.yaml")
        return caught.value.message.removeprefix("params.yaml: prepare.labels")

    assert complain("{a: {labeler: length, filers: x, fillers: y}}") == (
        ".a.filers: unknown key; did you mean `fillers`?"
    )
    assert complain("{a: {labeler: lenght}}") == (
        ".a.labeler: must be one of column, vader, function, model, length (did you mean "
        "`length`?), got 'lenght'"
    )
    assert complain("{a: {labeler: length, fillers: x}, a_characters: {column: b}}").startswith(
        ".a_characters: is the name of another column"
    )
    assert complain("{a: {labeler: length, fillers: x}, b: {labeler: length, fillers: y}}") == (
        ".b: wants y as its fillers, which is x by prepare.labels.a.fillers"
    )
