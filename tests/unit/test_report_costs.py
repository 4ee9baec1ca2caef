"""What a run has cost: sums by hand are the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.report.costs import measure_costs
from pipeline.report.inputs import ScoredRows
from pipeline.store import Hits, Manifest, Shard

TIMINGS: list[dict[str, Any]] = [
    {"stage": "fetch", "wall_seconds": 0.5, "details": {}},
    {
        "stage": "embed",
        "wall_seconds": 30.0,
        "details": {"tokens_per_second": 1000.0, "device": "cpu (2 threads)"},
    },
    {"stage": "train-heads", "wall_seconds": 6.5, "details": {"configurations": 4}},
]
FIDELITY = {"texts": 16, "lowest_cosine": 0.99999, "largest_error": 0.001}
MANIFEST = Manifest(
    backbone="owner/name",
    fingerprint="",
    recipe={"max_tokens": 100},
    layers=(0, 1),
    width=384,
    dtype="float16",
    shards=(Shard("part-00000.parquet", 7, "", 12_000, "", {}),),
    fidelity=FIDELITY,
)
# Ten rows of eight distinct texts: 6 for training, 2 for validation, 2 for testing.
ROWS = ScoredRows(
    keys=None,
    codes=np.array([0, 1, 2, 3, 4, 5, 6, 7, 0, 1]),
    parts={
        "train": np.arange(6),
        "validation": np.arange(6, 8),
        "test": np.arange(8, 10),
        "test_unseen": np.empty(0, np.int64),
    },
    labels={},
    present={},
)
TOKENS = np.array([10, 20, 30, 40, 10, 20, 30, 40])


def test_figures_by_hand() -> None:
    costs = measure_costs(TIMINGS, MANIFEST, ROWS, TOKENS, Hits(6, 2))
    found = {cost.what: (cost.value, cost.unit) for cost in costs.rows}
    assert found["embed"] == (30, "s")
    assert found["all stages"] == (37, "s")
    assert found["embedding"] == (1000, "tokens/s")
    assert found["padding avoided"] == (pytest.approx(1 - 200 / 800), "share")
    assert found["duplicates avoided"] == (pytest.approx(0.2), "share")
    assert found["texts from the cache"] == (0.75, "share")
    assert found["vectors on disk"] == (12_000, "bytes")
    assert found["fidelity, cosine"] == (0.99999, "cosine")
    assert found["fidelity, error"] == (0.001, "relative")
    # 5 epochs of 6 training and 2 validation rows, and 2 test rows, of 100 tokens each.
    assert found["the notebook's way"] == (pytest.approx(42 * 100 / 1000), "s")
    assert found["the notebook's way, with the search"] == (pytest.approx(16.8), "s")
    note = costs.find("the notebook's way")
    assert note is not None
    assert "42 texts" in note.note
    assert costs.find("nothing of the sort") is None


def test_what_is_not_known_is_left_out() -> None:
    bare = replace(MANIFEST, recipe={}, fidelity=None)
    costs = measure_costs([], bare, ROWS, TOKENS)
    assert [cost.what for cost in costs.rows] == ["duplicates avoided", "vectors on disk"]
    kept = [{"stage": "embed", "wall_seconds": 1.0, "details": {"tokens_per_second": 0}}]
    assert measure_costs(kept, MANIFEST, ROWS, TOKENS).find("the notebook's way") is None
    nothing = measure_costs(TIMINGS, MANIFEST, ROWS, TOKENS, Hits(0, 0))
    assert nothing.find("texts from the cache") is None


@pytest.mark.parametrize("odd", [True, "fast", None, -1.0])
def test_a_record_that_was_edited_is_no_stop(odd: object) -> None:
    timings = [{"stage": "embed", "wall_seconds": 1.0, "details": {"tokens_per_second": odd}}]
    assert measure_costs(timings, MANIFEST, ROWS, TOKENS).find("embedding") is None
