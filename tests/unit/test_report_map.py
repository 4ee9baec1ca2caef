"""The map: scikit-learn's PCA and k-means are the reference."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score

from pipeline.errors import StageError
from pipeline.projection import find_clusters, find_directions
from pipeline.report.inputs import ScoredRows
from pipeline.report.map import draw_map, name_clusters, sample_rows
from pipeline.report.words import count_words


def make_vectors(n: int, D: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    scales = 1 / (1 + np.arange(D))
    rotation = np.linalg.qr(generator.normal(size=(D, D))).Q
    vectors = generator.normal(size=(n, D)) * scales @ rotation + generator.normal(size=D)
    return vectors.astype(np.float32)


@pytest.mark.parametrize(("n", "D"), [(400, 60), (30, 200)])
def test_directions_are_those_of_scikit_learn(n: int, D: int) -> None:
    vectors = make_vectors(n, D)
    directions, variances, total = find_directions(vectors, 4)
    reference = PCA(4, svd_solver="full").fit(vectors)
    np.testing.assert_allclose(variances, reference.explained_variance_, rtol=1e-3)
    overlaps = np.abs(np.sum(directions * reference.components_.T, axis=0))
    np.testing.assert_allclose(overlaps, 1, atol=1e-3)
    assert variances.sum() / total == pytest.approx(
        reference.explained_variance_ratio_.sum(), rel=1e-3
    )


def test_the_map_shows_the_first_two_components() -> None:
    vectors = make_vectors(500, 30)
    points = draw_map(vectors, np.arange(500))
    reference = PCA(2).fit(vectors)
    expected = reference.transform(vectors)
    for found, column in ((points.x, 0), (points.y, 1)):
        assert abs(np.corrcoef(found, expected[:, column])[0, 1]) > 0.9999
    # Both coordinates have one unit, so that distances on the map are those of the projection.
    assert np.ptp(points.x) / np.ptp(points.y) == pytest.approx(
        np.ptp(expected[:, 0]) / np.ptp(expected[:, 1]), rel=1e-2
    )
    assert np.abs([points.x, points.y]).max() == 1
    np.testing.assert_array_equal(np.round(points.x, 3), points.x)
    assert points.explained == pytest.approx(reference.explained_variance_ratio_.sum(), rel=1e-3)
    again = draw_map(vectors, np.arange(500))
    np.testing.assert_array_equal(points.x, again.x)
    np.testing.assert_array_equal(points.cluster, again.cluster)


def test_clusters_are_those_of_scikit_learn() -> None:
    points, actual = make_blobs(900, 5, centers=6, random_state=0, cluster_std=0.7)
    found = find_clusters(points, 6)
    reference = KMeans(6, n_init=10, random_state=0).fit(points)
    assert adjusted_rand_score(actual, found) == pytest.approx(
        adjusted_rand_score(actual, reference.labels_), abs=0.02
    )
    spread = sum(
        np.square(points[found == c] - points[found == c].mean(axis=0)).sum() for c in range(6)
    )
    assert spread == pytest.approx(reference.inertia_, rel=0.01)
    counts = np.bincount(found)
    assert (np.diff(counts) <= 0).all()  # the largest is the first


def test_odd_numbers_of_texts_make_a_map() -> None:
    for n in (0, 1, 2, 3):
        points = draw_map(make_vectors(n, 8), np.arange(n))
        assert len(points.x) == len(points.cluster) == n
        assert np.isfinite([points.x, points.y]).all()
    alike = draw_map(np.ones((120, 8), np.float32), np.arange(120))
    assert set(alike.x) == {0.0}
    assert set(alike.cluster) == {0}
    line = draw_map(np.arange(60, dtype=np.float32)[:, None], np.arange(60))
    assert np.ptp(line.x) == 2
    assert set(line.y) == {0.0}


def make_rows(codes: np.ndarray, test: np.ndarray) -> ScoredRows:
    train = np.setdiff1d(np.arange(len(codes)), test)
    return ScoredRows(None, codes, {"train": train, "test": test}, {}, {})


def test_a_sample_has_each_text_once_and_the_judged_ones_first() -> None:
    codes = np.concatenate([np.arange(80), np.arange(20)])  # the last 20 are repeated
    rows = make_rows(codes, np.arange(70, 100))
    assert len(set(codes[sample_rows(rows)])) == len(sample_rows(rows)) == 80
    some = sample_rows(rows, 40)
    assert len(some) == len(set(codes[some])) == 40
    judged = set(codes[70:])
    assert sum(code in judged for code in codes[some]) == 20
    # Where few others are left, judged rows have the room that these leave.
    crowded = sample_rows(make_rows(np.arange(100), np.arange(5, 100)), 40)
    assert (crowded >= 5).sum() == 35
    assert (np.diff(some) > 0).all()


def test_clusters_are_named_by_the_words_that_others_lack() -> None:
    texts = ["call free prize", "free call now", "love you call", "you love me", "!", "?"]
    names = name_clusters(count_words(texts), np.arange(6), np.array([0, 0, 1, 1, 2, 2]))
    assert names[0].startswith("1: free, ")
    assert set(names[1].removeprefix("2: ").split(", ")) >= {"love", "you"}
    assert names[2] == "3"


def test_umap_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(StageError, match="umap-learn is not installed") as caught:
        draw_map(make_vectors(60, 8), np.arange(60), "umap")
    assert "pip install" in str(caught.value.hint)


def test_umap_keeps_clusters_apart() -> None:
    pytest.importorskip("umap", reason="umap-learn, an extra, is not installed")
    points, actual = make_blobs(200, 8, centers=2, random_state=0, cluster_std=0.3)
    made = draw_map(points.astype(np.float32), np.arange(200), "umap")
    places = np.stack([made.x, made.y], axis=1)
    centers = np.stack([places[actual == c].mean(axis=0) for c in (0, 1)])
    nearest = np.square(places[:, None] - centers).sum(axis=2).argmin(axis=1)
    assert (nearest == actual).mean() > 0.95
    assert made.explained is None
