"""`dvc repro` on the real corpus with a real backbone: figures, files, what runs again when."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT, edit_params

STAGES = ["fetch", "prepare", "embed", "group", "train-heads", "report"]
BIN = Path(sys.executable).parent


def dvc(folder: Path, *arguments: str) -> str:
    """Run DVC with this environment's `pipeline` first on the path; returns what it printed."""
    result = subprocess.run(
        [str(BIN / "dvc"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def repro(folder: Path) -> list[str]:
    """`dvc repro`; returns the stages that it ran."""
    return re.findall(r"^Running stage '(.+)':", dvc(folder, "repro"), re.MULTILINE)


def clone(folder: Path) -> Path:
    """A clone's files, without git."""
    folder.mkdir(exist_ok=True)
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    (folder / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc" / "config")
    shutil.copytree(ROOT / ".dvc" / "plots", folder / ".dvc" / "plots")
    dvc(folder, "config", "--local", "core.no_scm", "true")
    return folder


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, real_assets: Path) -> Path:
    """A project in which `dvc repro` has run, with MiniLM named so that the figures are known."""
    folder = clone(tmp_path_factory.mktemp("clone"))
    minilm = ["sentence-transformers/all-MiniLM-L6-v2"]
    edit_params({"fetch.backbones": minilm}, folder / "params.yaml")
    assert repro(folder) == STAGES
    return folder


def read_metrics(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    return json.loads((folder / "cache/report/metrics.json").read_text())


def test_labels_are_the_notebooks(workspace: Path) -> None:
    table = pq.read_table(workspace / "cache/labels.parquet").to_pandas()
    supports = {
        part: {
            task: rows[task].value_counts().sort_index().tolist() for task in ("spam", "sentiment")
        }
        for part, rows in table.groupby("split")
    }
    assert supports["test"] == {"spam": [726, 110], "sentiment": [153, 286, 397]}
    assert supports["train"]["sentiment"] == [708, 1325, 1867]


def test_heads_are_as_good_as_the_features_allow(workspace: Path) -> None:
    test = read_metrics(workspace)["test"]
    assert test["spam"]["accuracy"] >= 0.985
    assert test["spam"]["f1"] >= 0.945
    assert test["sentiment"]["accuracy"] >= 0.74
    assert test["sentiment"]["f1_macro"] >= 0.71


def test_every_file_of_the_design_is_there(workspace: Path) -> None:
    cache = workspace / "cache"
    for name in (
        "assets.json",
        "texts.parquet",
        "labels.parquet",
        "segments.parquet",
        "embeddings/manifest.json",
        "embeddings/part-00000.parquet",
        "heads/heads.safetensors",
        "heads/heads.json",
        "heads/curves.csv",
        "report/metrics.json",
        "report/summary.json",
        "report/SHA256SUMS",
        "report/report.html",
    ):
        assert (cache / name).is_file(), name
    assert not list(cache.rglob(".tmp-*"))
    assert not (cache / "embeddings.next").exists()
    assert str(Path.home()) not in (cache / "assets.json").read_text()


def test_dvc_reads_metrics_and_plots(workspace: Path) -> None:
    shown = json.loads(dvc(workspace, "metrics", "show", "--json"))
    (file,) = next(iter(shown.values()))["data"].items()
    test = read_metrics(workspace)["test"]
    headline = {"sentiment": ("accuracy", "f1_macro"), "spam": ("accuracy", "f1")}
    figures = {task: {name: test[task][name] for name in headline[task]} for task in headline}
    assert file == ("cache/report/summary.json", {"data": {"test": figures}})
    header, row = dvc(workspace, "metrics", "show").splitlines()
    names = [f"test.{task}.{name}" for task, of_task in headline.items() for name in of_task]
    assert header.split() == ["Path", *names]
    values = [float(value) for value in row.split()[1:]]
    exact = [value for of_task in figures.values() for value in of_task.values()]
    assert values == pytest.approx(exact, abs=1e-5)
    plots = dvc(workspace, "plots", "show", "-o", "plots-page")
    page = (workspace / "plots-page" / "index.html").read_text("utf-8")
    assert "index.html" in plots
    for word in ("validation_loss", "predicted", "spam", "sentiment"):
        assert word in page


def test_nothing_to_do(workspace: Path) -> None:
    printed = dvc(workspace, "repro")
    assert "Running stage" not in printed
    assert "up to date" in printed


def test_a_change_runs_only_what_depends_on_it(workspace: Path) -> None:
    store = workspace / "cache/embeddings"
    written = {f.name: f.stat().st_mtime_ns for f in store.iterdir()}
    for setting, value, expected in (
        ("runtime.token_budget", 4096, []),
        ("report.title", "Another title", ["report"]),
        ("report.segments", ["label"], ["prepare", "report"]),
        # Of no head that is trained: the same heads, so there is nothing to report anew.
        ("heads.learning_rate", 0.004, ["train-heads"]),
        ("heads.max_epochs", 99, ["train-heads", "report"]),
        (
            "prepare.labels.sentiment.positive_at_least",
            0.3,
            ["fetch", "prepare", "group", "train-heads", "report"],
        ),
    ):
        edit_params({setting: value}, workspace / "params.yaml")
        assert repro(workspace) == expected, setting
    assert {f.name: f.stat().st_mtime_ns for f in store.iterdir()} == written


def test_a_stage_that_fails_loses_nothing(workspace: Path) -> None:
    before = (workspace / "params.yaml").read_text()
    kept = {f: f.read_bytes() for f in (workspace / "cache").rglob("*.parquet")}
    edit_params({"prepare.text_column": "massage"}, workspace / "params.yaml")
    result = subprocess.run(
        [str(BIN / "dvc"), "repro"],
        cwd=workspace,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"},
    )
    assert result.returncode != 0
    assert "no column 'massage'; the source has 'label', 'message'" in result.stderr
    assert {f: f.read_bytes() for f in (workspace / "cache").rglob("*.parquet")} == kept
    (workspace / "params.yaml").write_text(before)
    assert repro(workspace) == []
