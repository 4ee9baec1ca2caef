"""Very many rows: streamed features are those in memory, and a sample finds the decay of all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.preprocessing import StandardScaler

from pipeline.config import HeadsSettings
from pipeline.heads import kernel
from pipeline.heads import sample as sampling
from pipeline.heads.configurations import list_configurations
from pipeline.heads.features import Features, MemoryFeatures, Scaling
from pipeline.heads.sample import draw_sample
from pipeline.heads.stored import StoredFeatures
from pipeline.heads.targets import draw_folds, make_targets
from pipeline.heads.task_types import LabelSummary
from pipeline.heads.tasks import Task
from pipeline.heads.training import Fit, fit_heads
from pipeline.model.weights import HeadWeights
from pipeline.store import Recipe, Rows, StoreUpdate, VectorStream, read_ahead

TRAIN, JUDGED, ROWS, WIDTH = 3000, 4000, 6000, 12


def make_rows() -> tuple[np.ndarray, np.ndarray]:
    """Features far from zero, and classes that a linear head can learn in part."""
    rng = np.random.default_rng(4)
    features = rng.standard_normal((ROWS, WIDTH)) * np.geomspace(0.1, 10, WIDTH) + 20
    scaled = (features - 20) / np.geomspace(0.1, 10, WIDTH)
    logits = scaled @ rng.standard_normal((WIDTH, 3)) / 2
    return features.astype(np.float16), (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)


def write_store(folder: Path, vectors: np.ndarray, dtype: str) -> pa.Array:
    """The vectors as the two layers of a store, under the keys that are returned."""
    raw = np.random.default_rng(0).integers(0, 256, (len(vectors), 16), np.uint8)
    keys = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(raw), [None, pa.py_buffer(raw)])
    contents = {"layers": [0, 1], "dtype": dtype, "files": {}}
    update = StoreUpdate(folder, Recipe("b", contents, (0, 1), WIDTH // 2, dtype), keys)
    layers = vectors.reshape(len(vectors), 2, -1).astype(dtype)
    for start, stop in update.list_missing():
        update.write_shard(start, Rows(np.full(stop - start, 5, np.int32), layers[start:stop]))
    update.commit()
    return keys


def read_all(features: Features) -> np.ndarray:
    found = np.full((features.rows, features.width), np.nan, np.float32)
    for rows, block in features.blocks():
        found[rows.numpy() if isinstance(rows, torch.Tensor) else rows] = block.numpy()
    return found


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("bytes_a_number", [8, 4, 1])
def test_features_are_the_same_wherever_they_are(
    tmp_path: Path, dtype: str, bytes_a_number: int
) -> None:
    """In memory, in memory as the store has them where those are half as large, or streamed."""
    vectors, _ = make_rows()
    keys = write_store(tmp_path / "s", vectors, dtype)
    order = np.random.default_rng(1).permutation(ROWS)
    stored = StoredFeatures(
        tmp_path / "s", keys.take(pa.array(order)), TRAIN, (0, 1), WIDTH // 2,
        standardize=True, memory_bytes=bytes_a_number * vectors.size, device="cpu",
    )  # fmt: skip
    features, scaling = stored((0, 1))
    assert isinstance(features, MemoryFeatures) == (bytes_a_number == 8)
    scaler = StandardScaler().fit(vectors[order[:TRAIN]].astype(np.float64))
    expected = scaler.transform(vectors[order].astype(np.float64))
    np.testing.assert_allclose(scaling.mean, scaler.mean_, rtol=1e-6)
    np.testing.assert_allclose(read_all(features), expected, atol=2e-4)
    rows = torch.from_numpy(np.random.default_rng(2).choice(ROWS, 50, replace=False))
    taken = features.take(rows, 20)
    np.testing.assert_allclose(taken.features, expected[rows], atol=2e-4)
    assert (taken.rows, taken.train_rows) == (50, 20)
    seen = [(r, x) for r, x in features.batches(700, torch.Generator().manual_seed(0))]
    drawn = np.concatenate([r for r, _ in seen])
    assert sorted(drawn) == list(range(TRAIN))
    assert drawn.tolist() != sorted(drawn)
    np.testing.assert_allclose(np.concatenate([x for _, x in seen]), expected[drawn], atol=2e-4)
    whole = MemoryFeatures(torch.from_numpy(expected.astype(np.float32)), TRAIN)
    for found, of_memory in zip(
        (features.basis.variances, features.basis.directions.abs()),
        (whole.basis.variances, whole.basis.directions.abs()),
        strict=True,
    ):
        np.testing.assert_allclose(found, of_memory, atol=1e-2)


@pytest.mark.parametrize(
    ("bytes_a_number", "changes"),
    [
        (8, {"head": "linear"}),
        (1, {"head": "linear"}),
        (8, {"head": "kernel", "weight_decay": 0.01}),
        (8, {"head": "linear", "optimizer": "adamw", "search": [], "max_epochs": 3}),
        (8, {"head": "hidden", "optimizer": "adamw", "search": [], "max_epochs": 3}),
    ],
    ids=["linear", "streamed", "kernel", "adamw", "hidden"],
)
def test_features_that_hardly_vary_decide_nothing(
    tmp_path: Path, bytes_a_number: int, changes: dict[str, Any]
) -> None:
    """A few units in the last place of float16, by chance or by label, get no huge weight."""
    vectors, values = make_rows()
    step = 2.0**-10  # of float16 at 1
    flat = {0: np.arange(ROWS) % 97 == 0, 3: values == 1, 7: np.arange(ROWS) == 5, 10: values < 0}
    for column, is_higher in flat.items():
        vectors[:, column] = 1 + step * is_higher
    keys = write_store(tmp_path / "s", vectors, "float16")
    stored = StoredFeatures(
        tmp_path / "s", keys[:JUDGED], TRAIN, (0, 1), WIDTH // 2,
        standardize=True, memory_bytes=bytes_a_number * vectors.size, device="cpu",
    )  # fmt: skip
    counts = tuple(np.bincount(values[:TRAIN]).tolist())
    task = Task("y", "multiclass", ("a", "b", "c"), LabelSummary(counts, TRAIN), metric="loss")
    settings = HeadsSettings(**{"folds": None, **changes})
    targets = make_targets([task], {"y": values[:JUDGED]}, TRAIN, None, "cpu")
    fit = fit_heads(stored, targets, [task], list_configurations(settings, (0, 1)), settings)
    weights = fit.heads[0].candidate.head
    rows = vectors[JUDGED:].astype(np.float32)

    def measure_change(column: int, amount: float) -> float:
        moved = rows.copy()
        moved[:, column] += amount
        return float(np.abs(weights.compute_logits(moved) - weights.compute_logits(rows)).max())

    others = [column for column in range(WIDTH) if column not in flat]
    typical = float(np.median(vectors[:, others].astype(np.float64).std(axis=0)))
    assert max(measure_change(column, typical) for column in flat) == 0
    assert min(measure_change(column, typical) for column in others) > 0.01
    if weights.centers is None:
        folded = weights.weight if weights.input_weight is None else weights.input_weight
        assert np.abs(folded).max() < 10


def test_a_stream_is_read_again_and_again_in_part_or_whole(tmp_path: Path) -> None:
    vectors, _ = make_rows()
    keys = write_store(tmp_path / "s", vectors, "float16")
    order = np.random.default_rng(1).permutation(ROWS)
    stream = VectorStream(tmp_path / "s", keys.take(pa.array(order)), (1,), None)
    for rows in (None, 1000, None):
        seen = list(stream.read(300, rows=rows, window_rows=1000))
        numbers = np.concatenate([of for of, _ in seen])
        assert sorted(numbers) == list(range(rows or ROWS))
        found = np.concatenate([of for _, of in seen])[:, 0]
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found, vectors[order[numbers], WIDTH // 2 :])
    some = np.random.default_rng(3).integers(0, ROWS, 40)
    np.testing.assert_array_equal(stream.take(some)[:, 0], vectors[order[some], WIDTH // 2 :])
    assert len(stream.take(some[:0])) == 0


def test_what_is_read_ahead_is_all_and_in_order_and_so_are_errors() -> None:
    def count() -> Iterator[int]:
        yield from range(5)
        raise OSError("the disk is gone")

    ahead = read_ahead(count())
    assert [next(ahead) for _ in range(5)] == list(range(5))
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)


def find_decay(features: np.ndarray, values: np.ndarray, head: str = "linear") -> Fit:
    counts = tuple(np.bincount(values[:TRAIN]).tolist())
    task = Task("y", "multiclass", ("a", "b", "c"), LabelSummary(counts, TRAIN), metric="loss")
    targets = make_targets(
        [task], {"y": values[:JUDGED]}, TRAIN, draw_folds(np.arange(TRAIN), 5, 0), "cpu"
    )
    scaling = Scaling.identity(WIDTH)
    settings = HeadsSettings(head=head)
    scaled = torch.from_numpy(features[:JUDGED])
    return fit_heads(
        lambda _: (MemoryFeatures(scaled, TRAIN), scaling),
        targets, [task], list_configurations(settings, (0,)), settings,
    )  # fmt: skip


@pytest.mark.parametrize("judged", [100, 5000])
def test_a_sample_finds_heads_as_likely_as_a_tuned_logistic_regression(
    judged: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the validation rows are enough to judge by, or a fold beside them is wanted."""
    monkeypatch.setattr(sampling, "_TRAIN_ROWS", 400)
    monkeypatch.setattr(sampling, "_JUDGED_ROWS", judged)
    raw, values = make_rows()
    features = StandardScaler().fit(raw[:TRAIN].astype(np.float64)).transform(raw)
    features = features.astype(np.float32)
    fit = find_decay(features, values)
    (head,) = fit.heads
    assert fit.unfolded == ("y",)
    assert fit.judged_rows == JUDGED - TRAIN + (0 if judged == 100 else TRAIN // 5)
    assert len(head.candidate.held_out) == JUDGED - TRAIN
    losses = [
        log_loss(
            values[JUDGED:],
            LogisticRegression(C=strength, max_iter=500)
            .fit(features[:TRAIN], values[:TRAIN])
            .predict_proba(features[JUDGED:]),
        )
        for strength in (0.001, 0.01, 0.1, 1.0)
    ]
    logits = head.candidate.head.compute_logits(features[JUDGED:])
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    found = log_loss(values[JUDGED:], shares / shares.sum(axis=1, keepdims=True))
    assert found <= min(losses) + 0.004


@pytest.fixture
def _few_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of very many rows: 100 numbers a row for 400 centres."""
    monkeypatch.setattr(kernel, "MAX_CENTERS", 400)
    monkeypatch.setattr(kernel, "_MIN_DIRECTIONS", 100)
    monkeypatch.setattr(kernel, "_MAX_FEATURES", 100 * JUDGED)


@pytest.mark.usefixtures("_few_directions")
def test_kernel_heads_of_many_rows_are_those_of_a_search_on_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A class that lies within a sphere, which no linear head can tell."""
    rng = np.random.default_rng(6)
    features = rng.standard_normal((ROWS, WIDTH)).astype(np.float32)
    values = np.digitize(np.square(features[:, :3]).sum(axis=1), [1.5, 4.0])
    scores = []
    for rows in (TRAIN, 400):
        monkeypatch.setattr(sampling, "_TRAIN_ROWS", rows)
        (head,) = find_decay(features, values, "kernel").heads
        assert head.candidate.head.weight.shape == (3, 400)
        found = head.candidate.head.compute_logits(features[JUDGED:]).argmax(axis=1)
        scores.append(float((found == values[JUDGED:]).mean()))
    assert scores[0] > 0.65  # the most frequent class has 0.42
    assert scores[1] >= scores[0] - 0.015


@pytest.mark.usefixtures("_few_directions")
def test_a_head_in_directions_of_the_kernel_folds_into_one_on_centres() -> None:
    rng = np.random.default_rng(6)
    features = torch.from_numpy(rng.standard_normal((JUDGED, WIDTH)).astype(np.float32))
    made = kernel.fit_kernel(MemoryFeatures(features, TRAIN), Scaling.identity(WIDTH), 1.0)
    assert made.features.width == 100
    assert made.features.features[:TRAIN].square().mean() == pytest.approx(1, rel=1e-3)
    weight, bias = rng.standard_normal((3, 100)).astype(np.float32), np.ones(3, np.float32)
    expected = made.features.features.numpy() @ weight.T + bias
    folded = HeadWeights(*made.fold(weight, bias), centers=made.centers)
    np.testing.assert_allclose(folded.compute_logits(features.numpy()), expected, atol=2e-3)


@pytest.mark.parametrize("V", [60, 250])
def test_directions_keep_as_much_of_the_centres_kernel_as_its_eigenvectors(V: int) -> None:
    rows = np.random.default_rng(6).standard_normal((500, 6))
    matrix = rbf_kernel(rows, gamma=0.05)
    compared = torch.from_numpy(matrix.astype(np.float32))
    features = kernel.Directions.find(compared, V).apply(compared).double().numpy()
    values, vectors = np.linalg.eigh(matrix)
    best = (vectors[:, -V:] * values[-V:]) @ vectors[:, -V:].T
    lost, least = (np.linalg.norm(made - matrix) for made in (features @ features.T, best))
    assert least < 0.002 * np.linalg.norm(matrix)
    assert lost < 1.1 * least + 1e-5 * np.linalg.norm(matrix)


def test_few_rows_are_searched_whole() -> None:
    task = Task("y", "binary", ("a", "b"), LabelSummary((40_000, 39_999), 79_999))
    targets = make_targets([task], {"y": np.zeros(80_000, np.int64)}, 79_999, None, "cpu")
    assert draw_sample(targets, 768, 0) is None
    assert draw_sample(targets, 20_000, 0) is None  # a sample would hold fewer rows than numbers
