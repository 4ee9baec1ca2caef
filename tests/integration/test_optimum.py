"""The full-batch solver on real vectors: it ends where scikit-learn's ends, and no lower exists."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from pipeline.corpus.tables import read_labelled_rows
from pipeline.project import Project
from pipeline.store import read_vectors
from tests.conftest import Cli, edit_params, run_stages


def test_both_sms_tasks_reach_scikit_learns_optimum(few_messages: Path, cli: Cli) -> None:
    """Every layer of MiniLM, and more features than rows; the loss within 1e-4 of its own size."""
    run_stages(cli, "fetch", "prepare", "embed")
    rows = read_labelled_rows(Project())
    train = rows.select("train")
    features = read_vectors(Project().store, rows.keys.take(train), range(7))
    flat = features.reshape(len(train), -1).astype(np.float64)
    scaler = StandardScaler().fit(flat)
    for decay in (0.01, 0.1):
        edit_params({"heads.weight_decay": decay, "heads.search": []})
        run_stages(cli, "train-heads")
        tensors = load_file(Project().heads / "heads.safetensors")
        tasks = json.loads((Project().heads / "heads.json").read_text())["tasks"]
        for name in ("spam", "sentiment"):
            labels = rows.tasks[name].values[train]
            weight, bias = (
                tensors[f"{name}.{part}"].astype(np.float64) for part in ("weight", "bias")
            )
            ours = measure(flat @ weight.T + bias, labels, weight * scaler.scale_, decay)
            reference = LogisticRegression(C=1 / (len(train) * decay), tol=1e-7, max_iter=5000)
            scaled = scaler.transform(flat)
            reference.fit(scaled, labels)
            theirs = measure(reference.decision_function(scaled), labels, reference.coef_, decay)
            assert ours == pytest.approx(theirs, rel=1e-4)
            assert tasks[name]["best_epoch"] < 100  # it stopped for being done, not for max_epochs


def measure(logits: np.ndarray, labels: np.ndarray, weight: np.ndarray, decay: float) -> float:
    """Mean cross-entropy and the penalty, in float64."""
    logits = logits.reshape(len(labels), -1)
    if logits.shape[1] == 1:
        logits = np.hstack([np.zeros_like(logits), logits])
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    loss = log_loss(labels, odds / odds.sum(axis=1, keepdims=True))
    return float(loss + decay / 2 * np.square(weight).sum())
