"""Columns for tools that draw maps: scikit-learn's neighbours and PCA are the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from pipeline import neighbours
from pipeline.cache_commands import export
from pipeline.corpus.identity import CorpusIdentity, LabelIdentity, hash_labels
from pipeline.corpus.tables import describe_label, describe_rows, describe_texts, write_parts
from pipeline.errors import StoreError
from pipeline.map_columns import make_map_columns
from pipeline.neighbours import list_neighbours
from pipeline.project import Project
from pipeline.projection import scale_places
from tests.unit.test_store import make_keys, make_recipe, make_rows, update


@pytest.mark.parametrize("B", [1, 5, 60])
def test_neighbours_are_those_of_scikit_learn(B: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_BLOCK_OTHERS", 16)
    monkeypatch.setattr(neighbours, "_BLOCK_QUERIES", 7)
    vectors = np.random.default_rng(0).normal(size=(B, 6)).astype(np.float32) * 9
    numbers, cosines, exact = list_neighbours(vectors, 8)
    assert exact
    there = min(8, B - 1)
    assert (numbers[:, there:] == -1).all()
    assert np.isneginf(cosines[:, there:]).all()
    if there:
        reference = NearestNeighbors(n_neighbors=there + 1, metric="cosine").fit(vectors)
        distances, expected = reference.kneighbors(vectors)
        np.testing.assert_array_equal(numbers[:, :there], expected[:, 1:])
        np.testing.assert_allclose(1 - cosines[:, :there], distances[:, 1:], atol=1e-6)


def test_neighbours_in_the_nearest_cells_are_nearly_all(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(40, 16))
    vectors = centres[generator.integers(0, 40, 3000)] + generator.normal(size=(3000, 16)) / 4
    vectors = vectors.astype(np.float32)
    expected, _, _ = list_neighbours(vectors, 5)
    monkeypatch.setattr(neighbours, "EXACT_PAIRS", 1000)
    found, cosines, exact = list_neighbours(vectors, 5)
    assert not exact
    shared = [
        len(set(a) & set(b)) / 5 for a, b in zip(found.tolist(), expected.tolist(), strict=True)
    ]
    assert np.mean(shared) > 0.95
    assert (np.diff(cosines, axis=1) <= 0).all()
    assert (found != np.arange(3000)[:, None]).all()


def test_columns_of_a_corpus_with_duplicates(tmp_path: Path) -> None:
    recipe = make_recipe("float32")
    update(tmp_path / "s", recipe, range(20))
    texts = [3, 0, 3, 7, 19, 0, 11]
    columns, exact = make_map_columns(tmp_path / "s", make_keys(texts), 2, "pca", 2)
    assert exact
    assert columns["x"].type == columns["y"].type == pa.float32()
    distinct, rows = [3, 0, 7, 19, 11], [0, 1, 3, 4, 6]  # in which each stands first
    vectors = make_rows(distinct, recipe).vectors[:, 1]
    places = PCA(2).fit_transform(vectors)
    x, y = (columns[name].to_numpy() for name in "xy")
    codes = [distinct.index(text) for text in texts]
    expected = scale_places(places)
    for found, column in ((x, 0), (y, 1)):
        sign = np.sign(found[0] * expected[codes[0], column])
        np.testing.assert_allclose(found, sign * expected[codes, column], atol=1e-5)
    reference = NearestNeighbors(n_neighbors=3, metric="cosine").fit(vectors)
    distances, nearest = reference.kneighbors(vectors)
    for row, code in enumerate(codes):
        made = columns["neighbours"][row].as_py()
        assert made["ids"] == [rows[n] for n in nearest[code, 1:]]
        assert made["distances"] == pytest.approx(distances[code, 1:], abs=1e-5)


def test_fewer_texts_than_neighbours(tmp_path: Path) -> None:
    update(tmp_path / "s", make_recipe("float32"), range(4))
    columns, _ = make_map_columns(tmp_path / "s", make_keys([2, 1, 2]), 0, None, 9)
    assert set(columns) == {"neighbours"}
    assert [row["ids"] for row in columns["neighbours"].to_pylist()] == [[1], [0], [1]]
    alone, _ = make_map_columns(tmp_path / "s", make_keys([2, 2]), 0, "pca", 1)
    assert alone["neighbours"].to_pylist() == [{"ids": [], "distances": []}] * 2
    assert alone["x"].to_pylist() == [0, 0]


@pytest.mark.parametrize(
    ("label", "options"), [("x", ("pca", 0)), ("neighbours", (None, 3)), ("y", ("umap", 3))]
)
def test_a_label_that_is_called_like_a_column_is_refused(
    project: Path, label: str, options: tuple[Literal["pca", "umap"] | None, int]
) -> None:
    made = Project(project)
    made.cache.mkdir()
    texts = range(20)
    keys = make_keys(texts)
    update(made.store, make_recipe("float32"), texts)
    about = {"row": pa.array(range(20)), "text": pa.array([str(n) for n in texts]), "key": keys}
    with made.texts_file.open("wb") as file:
        table = pa.table(about).replace_schema_metadata(describe_texts(keys))
        write_parts([table], file, 1000)
    split, values = np.zeros(20, np.int8), np.arange(20) % 2
    identity = LabelIdentity(hash_labels("class", ("a", "b"), values), {})
    corpus = CorpusIdentity.measure(keys, split, {label: identity})
    fields = [
        pa.field("row", pa.int64()),
        pa.field("split", pa.string()),
        pa.field(label, pa.int32(), metadata=describe_label(("a", "b"), "class")),
    ]
    columns = [pa.array(range(20)), pa.array(["train"] * 20), pa.array(values.astype(np.int32))]
    schema = pa.schema(fields, metadata=describe_rows(corpus))
    with made.labels_file.open("wb") as file:
        write_parts([pa.table(columns, schema=schema)], file, 1000)
    target = project / "out.parquet"
    with pytest.raises(StoreError, match=f"the label '{label}' has the name of a column"):
        export(made, target, "last", *options)
    assert not target.exists()
    export(made, target, "last", "pca" if label == "neighbours" else None, 3 if label == "x" else 0)
    assert target.exists()


def test_coordinates_keep_their_proportions() -> None:
    places = np.array([[10.0, 5.0], [14.0, 6.2], [12.0, 5.6]])
    np.testing.assert_allclose(scale_places(places), [[-1, -0.3], [1, 0.3], [0, 0]], atol=1e-12)
    rounded = scale_places(places / 3 + [0, 0.01], 1)
    np.testing.assert_array_equal(rounded, [[-1, -0.3], [1, 0.3], [0, 0]])
    assert scale_places(np.empty((0, 2))).shape == (0, 2)
    assert scale_places(np.ones((3, 2))).tolist() == [[0, 0]] * 3
