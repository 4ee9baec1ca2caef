"""Nearest neighbours and groups by cosine, held to those of scikit-learn and SciPy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_info

from pipeline import neighbours
from pipeline.neighbours import find_nearest, group_near, list_neighbours
from pipeline.processes import open_threads


def read_chunks(
    vectors: np.ndarray, numbers: np.ndarray, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(vectors), size):
        yield numbers[start : start + size], vectors[start : start + size]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_BLOCK_QUERIES", 7)
    monkeypatch.setattr(neighbours, "_BLOCK_OTHERS", 11)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("size", [1, 20, 1000])
def test_the_nearest_is_that_of_scikit_learn(size: int) -> None:
    generator = np.random.default_rng(0)
    others = generator.standard_normal((150, 5)).astype(np.float32) * 3
    queries = generator.standard_normal((40, 5)).astype(np.float32)
    numbers = generator.permutation(1000)[:150]
    found = find_nearest(queries, read_chunks(others, numbers, size))
    model = NearestNeighbors(n_neighbors=1, metric="cosine").fit(others)
    distances, index = model.kneighbors(queries)
    assert (found.numbers == numbers[index[:, 0]]).all()
    assert found.cosines == pytest.approx(1 - distances[:, 0], abs=1e-6)


@pytest.mark.usefixtures("small_blocks")
def test_no_text_is_its_own_neighbour() -> None:
    generator = np.random.default_rng(1)
    others = generator.standard_normal((90, 4)).astype(np.float32)
    numbers = generator.permutation(90) + 5
    chosen = generator.permutation(90)[:30]
    found = find_nearest(others[chosen], read_chunks(others, numbers, 25), own=numbers[chosen])
    model = NearestNeighbors(n_neighbors=2, metric="cosine").fit(others)
    _, index = model.kneighbors(others[chosen])
    assert (index[:, 0] == chosen).all()
    assert (found.numbers == numbers[index[:, 1]]).all()


def test_a_number_of_no_other_leaves_nothing_out() -> None:
    vectors = np.eye(3, dtype=np.float32)
    own = np.array([-1, 99, 1])
    found = find_nearest(vectors, [(np.arange(3), vectors)], own=own)
    assert found.numbers.tolist() == [0, 1, 2]


def test_without_others_nothing_is_found() -> None:
    found = find_nearest(np.eye(2, dtype=np.float32), [])
    assert found.numbers.tolist() == [-1, -1]
    assert np.isneginf(found.cosines).all()
    alone = np.ones((1, 2), np.float32)
    assert find_nearest(alone, [(np.arange(1), alone)], own=np.array([0])).numbers.tolist() == [-1]


def make_clusters(rows: int, generator: np.random.Generator) -> np.ndarray:
    """Vectors in clumps of all sizes, as those of texts are."""
    centres = generator.standard_normal((60, 16))
    cluster = generator.zipf(1.5, rows) % 60
    return (centres[cluster] + 0.2 * generator.standard_normal((rows, 16))).astype(np.float32)


def test_beyond_what_is_exact_nearly_all_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(2)
    others, queries = make_clusters(6000, generator), make_clusters(1500, generator)
    queries[:300] = others[:300] + 0.05 * generator.standard_normal((300, 16))  # near-duplicates
    numbers = generator.permutation(9000)[:6000]
    own = np.where(np.arange(1500) < 200, numbers[np.arange(1500) % 6000], -1)
    exact = find_nearest(queries, read_chunks(others, numbers, 2500), own, others=6000)
    assert exact.exact
    monkeypatch.setattr(neighbours, "EXACT_PAIRS", 1500 * 6000 - 1)
    found = find_nearest(queries, read_chunks(others, numbers, 2500), own, others=6000)
    assert not found.exact
    assert (found.numbers == exact.numbers).mean() > 0.85
    assert (found.numbers[200:300] == numbers[200:300]).all()
    assert (found.numbers[:200] != own[:200]).all()
    assert (found.cosines <= exact.cosines + 1e-6).all()


@pytest.mark.parametrize("count", [1, 30])
def test_few_queries_are_searched_in_few_cells(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one cell nothing is left out."""
    monkeypatch.setattr(neighbours, "EXACT_PAIRS", 0)
    generator = np.random.default_rng(3)
    others = generator.standard_normal((500, 6)).astype(np.float32)
    queries = generator.standard_normal((count, 6)).astype(np.float32)
    found = find_nearest(queries, read_chunks(others, np.arange(500), 100), others=500)
    model = NearestNeighbors(n_neighbors=1, metric="cosine").fit(others)
    assert found.numbers.tolist() == model.kneighbors(queries)[1][:, 0].tolist()


def count_groups(vectors: np.ndarray, threshold: float) -> np.ndarray:
    """The same by SciPy, from all cosines."""
    scaled = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return connected_components(csr_array(scaled @ scaled.T > threshold))[1]


def is_same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    pairs = set(zip(one.tolist(), other.tolist(), strict=True))
    return len(pairs) == len(set(one.tolist())) == len(set(other.tolist()))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("threshold", [0.97, 0.99, 1.1])
@pytest.mark.parametrize("links", [40, 5_000_000])
def test_groups_are_the_connected_components_of_scipy(
    threshold: float, links: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "_MOST_LINKS", links)
    vectors = np.random.default_rng(4).standard_normal((400, 4)).astype(np.float32)
    expected = count_groups(vectors, threshold)
    assert is_same_partition(group_near(vectors, threshold), expected)
    assert threshold > 1 or 1 < len(set(expected.tolist())) < 400


def test_a_chain_of_near_vectors_is_one_group() -> None:
    angles = np.random.default_rng(0).permutation(np.linspace(0, 3, 1000))
    chain = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert set(group_near(chain, float(np.cos(0.0031))).tolist()) == {0}
    assert len(set(group_near(chain, 0.9999999).tolist())) > 900


def test_groups_of_many_vectors_are_found_by_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(5)
    texts = make_clusters(2500, generator)
    copies = texts[:500] + 0.01 * generator.standard_normal((500, 16))
    vectors = np.concatenate([texts, copies.astype(np.float32)])
    expected = count_groups(vectors, 0.999)
    monkeypatch.setattr(neighbours, "EXACT_PAIRS", 0)
    found = group_near(vectors, 0.999)
    assert is_same_partition(found, expected)
    assert (found[2500:] == found[:500]).all()


@pytest.mark.parametrize("kinds", [1, 5, 400])
def test_vectors_that_are_the_same_are_found_by_cells(
    kinds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of long texts are that begin alike, and are cut."""
    monkeypatch.setattr(neighbours, "EXACT_PAIRS", 0)
    monkeypatch.setattr(neighbours, "_BLOCK_OTHERS", 100)
    generator = np.random.default_rng(6)
    same = generator.standard_normal((kinds, 16)).astype(np.float32)
    kind = np.append(np.zeros(2000, int), generator.integers(0, kinds, 1000))
    single = generator.standard_normal((1000, 16)).astype(np.float32)
    vectors = np.concatenate([same[kind], single])[generator.permutation(4000)]
    compare, compared = neighbours._compare, []

    def watch(queries: Any, others: Any, owner: Any, pair: Any) -> Any:
        compared.append(max(map(len, pair)))
        return compare(queries, others, owner, pair)

    monkeypatch.setattr(neighbours, "_compare", watch)
    cosines = cosine_similarity(vectors)
    np.fill_diagonal(cosines, -1)
    has_same = cosines.max(axis=1) > 0.999999
    assert has_same.sum() > 2000
    found = find_nearest(vectors, [(np.arange(4000), vectors)], own=np.arange(4000), others=4000)
    assert found.cosines[has_same] == pytest.approx(1, abs=1e-5)
    assert (found.numbers != np.arange(4000)).all()
    assert max(compared) <= 100
    assert list_neighbours(vectors, 2)[1][has_same, 0] == pytest.approx(1, abs=1e-5)
    assert is_same_partition(group_near(vectors, 0.9999), count_groups(vectors, 0.9999))


def test_products_on_threads_take_one_thread_each() -> None:
    def list_threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    before = list_threads()
    with open_threads() as pool:
        assert pool.submit(list_threads).result() == {1}
        with open_threads() as inner:
            assert inner.submit(list_threads).result() == {1}
    assert list_threads() == before
    with pytest.raises(ZeroDivisionError), open_threads() as pool:
        pool.submit(lambda: 1 / 0).result()
    assert list_threads() == before
