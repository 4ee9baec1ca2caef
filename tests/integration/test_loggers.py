"""Where the curves of the heads go besides ``curves.csv``."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path

import pytest

from pipeline.heads import run
from pipeline.project import Project
from tests.conftest import Cli, edit_params, run_stages


@pytest.fixture
def labelled(project: Path, tiny_backbone: Path, cli: Cli) -> Path:
    """A project with vectors of sixty rows and two tasks."""
    (project / "rows.csv").write_text(
        "text,kind,part\n" + "".join(f"text {n},{'abc'[n % 3]},{n % 2}\n" for n in range(60))
    )
    labels = {"kind": {"column": "kind"}, "part": {"column": "part"}}
    edit_params(
        {
            "fetch.dataset": "rows.csv",
            "fetch.backbones": [str(tiny_backbone)],
            "prepare.text_column": "text",
            "prepare.labels": labels,
            "heads.tasks": None,
            "heads.max_epochs": 7,
        }
    )
    run_stages(cli, "fetch", "prepare", "embed")
    return project


@pytest.mark.parametrize("optimizer", ["lbfgs", "adamw"])
def test_a_logger_gets_the_curves_of_the_chosen_heads(
    labelled: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    """Lightning's own CSV logger stands for all of its kind."""
    from lightning.pytorch.loggers import CSVLogger

    edit_params({"heads.optimizer": optimizer})
    monkeypatch.setattr(run, "make_logger", lambda name, folder: CSVLogger("logs", version=0))
    run_stages(cli, "train-heads")
    with (labelled / "logs/lightning_logs/version_0/metrics.csv").open() as file:
        logged = {
            (int(line["step"]), name.split("/")[0], name.split("/")[1]): float(value)
            for line in csv.DictReader(file)
            for name, value in line.items()
            if name != "step" and value
        }
    with (Project().heads / "curves.csv").open() as file:
        curves = {
            (int(line["epoch"]), line["task"], part): float(line[f"{part}_loss"])
            for line in csv.DictReader(file)
            for part in ("train", "validation")
        }
    assert len(curves) >= 4
    assert logged == pytest.approx(curves)


@pytest.mark.parametrize("name", ["tensorboard", "dvclive"])
def test_the_users_logger_writes_files_or_says_what_to_install(
    labelled: Path, cli: Cli, name: str
) -> None:
    edit_params({"runtime.logger": name})
    result = cli("train-heads")
    if importlib.util.find_spec(name):
        assert result.returncode == 0, result.stderr
        assert any(path.is_file() for path in (Project().cache / "logs").rglob("*"))
        assert not (labelled / "dvc.yaml").exists()
    else:
        assert result.returncode == 1
        assert f"params.yaml: runtime.logger: {name} is not installed" in result.stderr
        assert f"next: pip install {name}, or set it to csv" in result.stderr
        assert not Project().heads.exists()


def test_a_logger_that_is_not_there_stops_before_training(
    labelled: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "dvclive.lightning", None)
    edit_params({"runtime.logger": "dvclive"})
    result = cli("train-heads")
    assert result.returncode == 1
    assert "runtime.logger: dvclive is not installed" in result.stderr
    assert not Project().heads.exists()
