"""From a built wheel in an empty folder to labelled texts, by the lines of docs/own-data.md."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.blocks import read_blocks
from tests.integration.test_init import make_rows, write_csv

MOST_LINES = 9


def run(*command: str, folder: Path, path: str = os.environ["PATH"]) -> str:
    """Run a program without the code of this checkout on its path, and without the hub."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
    }
    result = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        env={**environment, "PATH": path, "HF_HUB_OFFLINE": "1"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The search path of an environment with nothing but the wheel of its own.

    Its other packages are those of this environment, so that nothing large is fetched.
    """
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    build = subprocess.run(
        [*pip, "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
    )
    if build.returncode != 0 and "hatchling" in build.stderr:
        pytest.skip(f"what builds a wheel cannot be had here: {build.stderr.strip()}")
    assert build.returncode == 0, build.stderr
    (wheel,) = folder.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", "venv", folder=folder)
    python = folder / "venv" / "bin" / "python"
    run(*pip, "--python", str(python), "install", "-q", "--no-deps", "--no-index", str(wheel),
        folder=folder)  # fmt: skip
    shared = [entry for entry in sys.path if Path(entry).name in {"site-packages", "dist-packages"}]
    (site,) = (folder / "venv" / "lib").glob("python3.*/site-packages")
    (site / "shared.pth").write_text("".join(f"{entry}\n" for entry in shared))
    return os.pathsep.join(
        [str(python.parent), str(Path(sys.executable).parent), os.environ["PATH"]]
    )


def test_the_wheel_is_what_runs(installed: str, tmp_path: Path) -> None:
    code = "import pipeline; print(pipeline.__file__)"
    file = run("python", "-c", code, folder=tmp_path, path=installed)
    assert Path(installed.partition(os.pathsep)[0]).parent in Path(file.strip()).parents
    assert (Path(file.strip()).parent / "presets" / "default.yaml").is_file()


def test_own_data_from_a_wheel_in_an_empty_folder(
    installed: str, tmp_path: Path, real_assets: Path
) -> None:
    pytest.importorskip("dvc", reason="the extra `dvc` is not installed")
    (block, *_) = [
        block for block in read_blocks(ROOT / "docs" / "own-data.md") if "test_wheel" in
        (block.left_out or "")
    ]  # fmt: skip
    lines = block.list_commands()
    assert len(lines) <= MOST_LINES
    rows = make_rows(120)
    write_csv(tmp_path / "tickets.csv", rows)
    new = [{"id": n, "body": row["body"]} for n, row in enumerate(rows[:7])]
    write_csv(tmp_path / "new.csv", [*new, {"id": 7, "body": "the server is down again"}])
    for line in lines:
        run("bash", "-c", line, folder=tmp_path, path=installed)
    with (tmp_path / "labelled.csv").open(encoding="utf-8") as file:
        labelled = list(csv.DictReader(file))
    assert [row["id"] for row in labelled] == [str(n) for n in range(8)]
    assert {row["urgent"] for row in labelled} <= {"low", "high"}
    assert labelled[-1]["urgent"] == "high"
    assert {row["team"] for row in labelled} <= {"sales", "help desk", "billing"}
    assert all(float(row["hours"]) < 200 for row in labelled)
    metrics = json.loads((tmp_path / "cache/report/metrics.json").read_text())
    assert set(metrics["test"]) == {"urgent", "team", "hours"}
    assert metrics["test"]["urgent"]["f1"] > 0.9
    exported = tmp_path / "tickets-model"
    command = ("python", str(exported / "predict.py"), str(new[0]["body"]))
    answers = run(*command, folder=tmp_path, path=installed)
    assert labelled[0]["urgent"] in answers
    assert labelled[0]["team"] in answers
