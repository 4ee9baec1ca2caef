"""A new loss, which is one file and one entry, from the settings to the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy.optimize import minimize
from scipy.special import softmax
from sklearn.preprocessing import StandardScaler

from pipeline.corpus.tables import read_labelled_rows
from pipeline.project import Project
from pipeline.store import read_vectors
from tests.conftest import ROOT, Cli, edit_params, run_stages

DECAY = 0.05


def run_with_loss(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process that knows the loss before it reads the settings."""
    return subprocess.run(
        [sys.executable, "-m", "tests.integration.poly_loss", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def embedded(project: Path, tiny_backbone: Path, cli: Cli) -> Path:
    """A project with vectors of short and long texts of three kinds."""
    words = ("alpha beta", "gamma delta epsilon", "x y z")
    (project / "rows.csv").write_text(
        "text,kind,odd\n"
        + "".join(f"{words[n % 3]} {n * 7919},{'abc'[n % 3]},{n * 7919 % 2}\n" for n in range(120))
    )
    edit_params(
        {
            "fetch.dataset": "rows.csv",
            "fetch.backbones": [str(tiny_backbone)],
            "prepare.text_column": "text",
            "prepare.labels": {"kind": {"column": "kind"}, "odd": {"column": "odd"}},
            "heads.tasks": {"kind": {}, "odd": {}},
            "heads.folds": None,
            "heads.optimizer": "lbfgs",
            "heads.weight_decay": DECAY,
            "heads.search": [],
        }
    )
    run_stages(cli, "fetch", "prepare", "embed")
    return project


def minimize_by_hand(features: np.ndarray, labels: np.ndarray, epsilon: float) -> float:
    """The lowest value of PolyLoss and the penalty that SciPy finds, written from the paper."""
    C, D = int(labels.max()) + 1, features.shape[1]

    def measure(flat: np.ndarray) -> float:
        weight, bias = flat[: C * D].reshape(C, D), flat[C * D :]
        return measure_loss(features @ weight.T + bias, labels, epsilon) + penalize(weight)

    return float(minimize(measure, np.zeros(C * D + C), options={"maxiter": 300}).fun)


def measure_loss(logits: np.ndarray, labels: np.ndarray, epsilon: float) -> float:
    p = softmax(logits, axis=1)[np.arange(len(labels)), labels]
    return float((-np.log(p) + epsilon * (1 - p)).mean())


def penalize(weight: np.ndarray) -> float:
    return DECAY / 2 * float(np.square(weight).sum())


def test_a_loss_of_ones_own_trains_from_settings_to_report(embedded: Path) -> None:
    edit_params(
        {
            "heads.layers": "last",
            "heads.tasks": {"kind": {"loss": "poly", "poly_epsilon": 0.5}, "odd": {}},
            "heads.search": [{"poly_epsilon": [1.0, 2.0]}],
        }
    )
    for stage in ("train-heads", "report"):
        result = run_with_loss(stage)
        assert result.returncode == 0, result.stdout + result.stderr
    record = json.loads((Project().heads / "heads.json").read_text())
    assert {row["poly_epsilon"] for row in record["search"]["kind"]} == {1.0, 2.0}
    assert "poly epsilon" in (Project().report / "report.html").read_text().replace("_", " ")

    rows = read_labelled_rows(Project())
    train = rows.select("train")
    last = max(record["features"]["layers"])
    flat = read_vectors(Project().store, rows.keys.take(train), (last,))[:, 0]
    scaler = StandardScaler().fit(flat.astype(np.float64))
    labels = rows.tasks["kind"].values[train]
    epsilon = record["search"]["kind"][0]["poly_epsilon"]
    expected = minimize_by_hand(scaler.transform(flat.astype(np.float64)), labels, epsilon)
    tensors = load_file(Project().heads / "heads.safetensors")
    weight, bias = tensors["kind.weight"], tensors["kind.bias"]
    total = measure_loss(flat @ weight.T + bias, labels, epsilon) + penalize(weight * scaler.scale_)
    assert total == pytest.approx(expected, rel=1e-3)


def test_options_of_a_loss_of_ones_own_are_held_to_their_bounds(embedded: Path) -> None:
    edit_params({"heads.tasks": {"kind": {"loss": "poly", "poly_epsilon": -1}, "odd": {}}})
    result = run_with_loss("train-heads")
    assert result.returncode == 1
    assert "heads.tasks.kind.poly_epsilon: must be >= 0, got -1" in result.stderr
    edit_params({"heads.tasks": {"kind": {"loss": "pole"}, "odd": {}}})
    result = run_with_loss("train-heads")
    assert (
        "must be one of cross_entropy, focal, least_squares, mse, huber, poly (did you mean"
        in result.stderr
    )


def test_without_its_entry_a_loss_is_unknown(embedded: Path, cli: Cli) -> None:
    edit_params({"heads.tasks": {"kind": {"loss": "poly"}, "odd": {}}})
    result = cli("train-heads")
    assert result.returncode == 1
    assert "loss: must be one of cross_entropy, focal, least_squares, mse, huber" in result.stderr
