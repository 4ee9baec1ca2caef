"""`pipeline predict --remember`: vectors of labelled texts are computed once."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import pipeline
from pipeline.corpus.keys import hash_texts
from pipeline.embed.embedder import Embedder
from pipeline.project import Project
from pipeline.store import read_manifest, read_vectors
from pipeline.store.upkeep import verify_store
from tests.conftest import edit_params, run_cli
from tests.integration.test_predict import run_all
from tests.integration.test_task_types import SETTINGS, write_tickets

NEW = [f"the printer of room {number} is on fire" for number in range(40)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Path:
    folder = tmp_path_factory.mktemp("remember") / "project"
    folder.mkdir()
    write_tickets(folder / "tickets.csv", 200)
    (folder / "params.yaml").write_text(SETTINGS.replace("BACKBONE", str(tiny_backbone)))
    edit_params({"heads.search": []}, folder / "params.yaml")
    run_all(folder, "fetch", "prepare", "embed", "train-heads")
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    shutil.copytree(trained, folder)
    (folder / "new.txt").write_text("\n".join(NEW) + "\n")
    return folder


def predict(folder: Path, *more: str) -> bytes:
    result = run_cli(folder, "predict", "new.txt", "-o", "out.csv", "--force", *more)
    assert result.returncode == 0, result.stdout + result.stderr
    return (folder / "out.csv").read_bytes()


def test_vectors_are_computed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = predict(folder)
    project = Project(folder)
    before = (project.store / "manifest.json").read_bytes()
    assert not project.predictions.exists()
    assert predict(folder, "--remember") == plain
    with pipeline.load(folder) as model:
        expected = model.embed(NEW)
        layers = model.heads.layers
    assert read_manifest(project.predictions).rows == len(NEW)
    assert not verify_store(project.predictions)
    np.testing.assert_array_equal(
        read_vectors(project.predictions, hash_texts(NEW), layers), expected
    )
    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "start", None)  # nothing may be computed
        assert predict(folder, "--remember") == plain
        assert predict(folder) == plain
    assert (project.store / "manifest.json").read_bytes() == before
    with (folder / "new.txt").open("a") as file:
        file.write("one text more\n")
    assert predict(folder, "--remember").startswith(plain)
    assert read_manifest(project.predictions).rows == len(NEW) + 1
    assert run_cli(folder, "cache", "prune").returncode == 0
    info = run_cli(folder, "cache", "info")
    assert f"remembered from predictions: {len(NEW) + 1} texts" in info.stdout


def test_other_settings_and_damage_cost_no_label(folder: Path) -> None:
    plain = predict(folder, "--remember")
    project = Project(folder)
    (shard,) = project.predictions.glob("part-*.parquet")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert predict(folder) == plain
    assert verify_store(project.predictions)
    assert predict(folder, "--remember") == plain
    assert not verify_store(project.predictions)
    assert read_manifest(project.predictions).rows == len(NEW)
    (project.predictions / "manifest.json").write_text("{}")
    assert predict(folder, "--remember") == plain
    assert not verify_store(project.predictions)
    assert read_manifest(project.predictions).rows == len(NEW)
    edit_params({"heads.layers": "last"}, folder / "params.yaml")
    run_all(folder, "train-heads")
    one_layer = predict(folder, "--remember")
    assert read_manifest(project.predictions).layers == (2,)
    assert predict(folder) == one_layer
    earlier = project.predictions.with_name("predictions.old")
    assert list(earlier.iterdir())
    pruned = run_cli(folder, "cache", "prune")
    assert "remembered for earlier heads" in pruned.stdout
    assert not earlier.exists()
    assert read_manifest(project.predictions).rows == len(NEW)


def test_what_is_remembered_is_dropped_if_asked(folder: Path) -> None:
    plain = predict(folder, "--remember")
    project = Project(folder)
    (project.predictions / "mine.txt").write_text("not of this program")
    before = (project.store / "manifest.json").read_bytes()
    pruned = run_cli(folder, "cache", "prune", "--predictions")
    assert pruned.returncode == 0, pruned.stderr
    assert "predictions: dropped" in pruned.stdout
    assert [path.name for path in project.predictions.iterdir()] == ["mine.txt"]
    assert (project.store / "manifest.json").read_bytes() == before
    assert predict(folder, "--remember") == plain
    assert read_manifest(project.predictions).rows == len(NEW)


def test_evaluate_remembers_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"{text},{'high' if number % 3 else 'low'}" for number, text in enumerate(NEW)]
    (folder / "month.csv").write_text("\n".join(["body,priority", *lines]) + "\n")
    figures = []
    for more in ((), ("--remember",)):
        result = run_cli(folder, "evaluate", "month.csv", "-o", "f.json", "--force", *more)
        assert result.returncode == 0, result.stdout + result.stderr
        figures.append((folder / "f.json").read_bytes())
    assert read_manifest(Project(folder).predictions).rows == len(NEW)
    monkeypatch.setattr(Embedder, "start", None)  # nothing may be computed
    result = run_cli(folder, "evaluate", "month.csv", "-o", "f.json", "--force")
    assert result.returncode == 0, result.stdout + result.stderr
    figures.append((folder / "f.json").read_bytes())
    assert len(set(figures)) == 1


def test_a_store_that_cannot_be_written_is_said_once(folder: Path) -> None:
    project = Project(folder)
    project.predictions.write_text("a file stands here")
    result = run_cli(folder, "predict", "new.txt", "-o", "out.csv", "--remember")
    assert result.returncode == 0, result.stderr
    assert (result.stdout + result.stderr).count("vectors are not remembered") == 1
    assert (folder / "out.csv").read_bytes().count(b"\n") == len(NEW) + 1
