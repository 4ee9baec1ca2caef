"""The notebook's own table from the notebook's protocol, where its backbone can be had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.presets import read_preset
from tests.conftest import Cli, edit_params, run_stages


def test_notebook_preset_lands_on_the_notebooks_table(project: Path, cli: Cli) -> None:
    (project / "params.yaml").write_text(read_preset("notebook"))
    edit_params({"fetch.backbones": ["thenlper/gte-base"]})
    fetched = cli("fetch")
    if fetched.returncode != 0:
        pytest.skip(f"thenlper/gte-base cannot be had here: {fetched.stderr.strip()}")
    run_stages(cli, "prepare", "embed", "train-heads", "report")
    test = json.loads(Path("cache/report/metrics.json").read_text())["test"]
    assert test["spam"]["accuracy"] == pytest.approx(0.8888, abs=0.01)
    assert test["sentiment"]["accuracy"] == pytest.approx(0.5825, abs=0.03)
