"""What the number of threads changes: rounding, as its description says, and no more."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.project import Project
from pipeline.store import read_manifest, read_vectors
from tests.conftest import Cli, edit_params, run_stages


def list_figures(metrics: object, path: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(metrics, dict):
        for key, value in metrics.items():
            yield from list_figures(value, f"{path}.{key}")
    elif isinstance(metrics, int | float):
        yield path, float(metrics)


def test_threads_change_results_by_rounding_alone(
    process: Cli, few_messages: Path, tiny_backbone: Path
) -> None:
    edit_params({"fetch.backbones": [str(tiny_backbone)]})
    run_stages(process, "fetch", "prepare")
    keys = pq.read_table(Project().texts_file)["key"].combine_chunks()
    vectors, figures = [], []
    for threads in (1, 2):
        edit_params({"runtime.threads": threads})
        shutil.rmtree(Project().store, ignore_errors=True)
        run_stages(process, "embed", "train-heads", "report")
        layers = read_manifest(Project().store).layers
        vectors.append(read_vectors(Project().store, keys, layers))
        metrics = json.loads((Project().report / "metrics.json").read_text())
        figures.append(dict(list_figures(metrics)))
    np.testing.assert_allclose(vectors[0], vectors[1], rtol=1e-3, atol=1e-3)  # as float16 rounds
    assert figures[0] == pytest.approx(figures[1], abs=1e-3)
    assert len(figures[0]) > 50
