"""Projects stand where they are, whatever the working directory: several in one process, and
commands from any folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.config import load_settings
from pipeline.embed.run import run_embed
from pipeline.fetch.run import run_fetch
from pipeline.heads.run import run_train_heads
from pipeline.prepare.run import run_prepare
from pipeline.project import Project, find_project, find_settings_file
from pipeline.report.run import run_report
from pipeline.store import read_manifest
from tests.conftest import Cli

STAGES = ("fetch", "prepare", "embed", "train-heads", "report")
SETTINGS = """
fetch: {{dataset: data.csv, backbones: [{backbone}]}}
prepare:
  text_column: text
  labels: {{long: {{column: long, classes: [no, yes]}}}}
heads: {{search: [], max_epochs: 5}}
runtime: {{devices: cpu}}
"""


def write_project(folder: Path, backbone: Path, rows: int) -> Project:
    """A project with a corpus of its own: texts of letters, long ones and short ones."""
    folder.mkdir(parents=True)
    texts = [chr(97 + row % 26) * (1 + row % 7) + f" {row}" for row in range(rows)]
    lines = [f"{text},{'yes' if len(text) > 5 else 'no'}" for text in texts]
    (folder / "data.csv").write_text("\n".join(["text,long", *lines]) + "\n", "utf-8")
    (folder / "params.yaml").write_text(SETTINGS.format(backbone=backbone), "utf-8")
    return Project(folder)


def list_files(folder: Path) -> set[str]:
    """All files below a folder."""
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_two_projects_in_one_process(
    tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    first = write_project(tmp_path / "one", tiny_backbone, rows=60)
    second = write_project(tmp_path / "two", tiny_backbone, rows=90)
    for stage in (run_fetch, run_prepare, run_embed, run_train_heads, run_report):
        for project in (first, second):
            stage(project, load_settings(project.settings))
    for project, rows in ((first, 60), (second, 90)):
        assert read_manifest(project.store).rows == rows
        parts = json.loads((project.report / "metrics.json").read_text())
        assert sum(parts[p]["long"]["rows"] for p in ("train", "validation", "test")) == rows
    assert not list_files(elsewhere)
    assert list_files(first.root) == list_files(second.root)


@pytest.fixture
def nested(project: Path, tiny_backbone: Path) -> Path:
    """A project below the working directory of ``cli``, with a folder for experiments."""
    folder = write_project(project / "mine", tiny_backbone, rows=60).root
    (folder / "dvc.yaml").write_text("stages: {}\n")
    (folder / "experiments").mkdir()
    settings = (folder / "params.yaml").read_text().replace("max_epochs: 5", "max_epochs: 6")
    (folder / "experiments" / "a.yaml").write_text(settings)
    return folder


def run_everything(cli: Cli, *options: str) -> None:
    """Every stage and every command that looks after the store."""
    for command in (*STAGES, "report --show", "cache info", "cache verify", "cache prune"):
        result = cli(*command.split(), *options)
        assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"


@pytest.mark.parametrize(
    ("below", "options"),
    [
        ("mine/experiments", ["--params", "../params.yaml"]),
        ("mine/experiments", []),
        ("mine/experiments", ["--params", "a.yaml"]),
        ("mine", ["--params", "experiments/a.yaml"]),
        ("", ["--params", "mine/experiments/a.yaml"]),
        ("", ["--project", "mine"]),
        ("mine/experiments", ["--project", "..", "--params", "a.yaml"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value or "above",
)
def test_commands_from_any_folder_write_into_the_project_alone(
    nested: Path, project: Path, cli: Cli, below: str, options: list[str]
) -> None:
    before = list_files(project)
    cli.folder = project / below
    run_everything(cli, *options)
    new = list_files(project) - before
    assert new
    assert all(name.startswith("mine/cache/") for name in new)
    assert (nested / "cache" / "report" / "metrics.json").is_file()
    result = cli("cache", "export", "out.npy", *options)  # a path typed is where it was typed
    assert result.returncode == 0, result.stderr
    assert (project / below / "out.npy").is_file()


def test_a_settings_file_without_a_flow_is_a_project_of_its_own(
    tmp_path: Path, tiny_backbone: Path
) -> None:
    alone = write_project(tmp_path / "alone", tiny_backbone, rows=60)
    assert find_project(alone.settings).root == alone.root
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    assert find_project(alone.settings).root == tmp_path


def test_the_nearest_settings_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "params.yaml").touch()
    assert find_settings_file(tmp_path / "a" / "b") == tmp_path / "params.yaml"
    (tmp_path / "a" / "params.yaml").touch()
    assert find_settings_file(tmp_path / "a" / "b") == tmp_path / "a" / "params.yaml"


def test_messages_name_the_settings_file_that_was_given(nested: Path, cli: Cli) -> None:
    path = nested / "experiments" / "a.yaml"
    path.write_text(
        path.read_text().replace("max_epochs: 5", "").replace("heads: {", "heads: {x: 1, ")
    )
    cli.folder = nested
    result = cli("fetch", "--params", "experiments/a.yaml")
    assert result.returncode == 1
    assert result.stderr.startswith("Error: experiments/a.yaml: heads.x: unknown key")
    result = cli("fetch", "--params", "none.yaml")
    assert result.stderr.startswith("Error: none.yaml: no such file")


def test_a_project_that_is_not_there(project: Path, cli: Cli) -> None:
    result = cli("fetch", "--project", "nowhere")
    assert result.returncode == 1
    assert "nowhere/params.yaml: no such file" in result.stderr
    assert not (project / "nowhere").exists()


def test_a_project_moves_with_all_that_it_holds(
    tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing under ``cache/`` knows where the project stands."""
    project = write_project(tmp_path / "before", tiny_backbone, rows=60)
    settings = load_settings(project.settings)
    for stage in (run_fetch, run_prepare, run_embed, run_train_heads):
        stage(project, settings)
    project.root.rename(tmp_path / "after")
    moved = Project(tmp_path / "after")
    run_report(moved, settings)
    assert run_embed(moved, settings) is None, "nothing is embedded again"
    assert str(tmp_path) not in (moved.heads / "heads.json").read_text().replace(
        str(tiny_backbone), ""
    )
