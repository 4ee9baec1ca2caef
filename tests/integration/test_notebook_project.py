"""`pipeline.Project`: vectors and labels for a notebook, and heads for labels made in one.

References: the Parquet files as pyarrow reads them, and scikit-learn.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression

import pipeline
from pipeline.errors import DataError, SettingsError, StoreError
from pipeline.model.saved import Heads
from tests.conftest import ROOT, edit_params
from tests.integration.test_predict import run_all
from tests.integration.test_task_types import SETTINGS, write_tickets

ROWS = 240


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Path:
    """A project with labels of each kind, some of them missing, embedded but without heads."""
    folder = tmp_path_factory.mktemp("notebook")
    write_tickets(folder / "tickets.csv", ROWS)
    (folder / "params.yaml").write_text(SETTINGS.replace("BACKBONE", str(tiny_backbone)))
    run_all(folder, "fetch", "prepare", "embed")
    return folder


def test_vectors_are_those_of_the_files_in_the_order_of_the_rows(folder: Path) -> None:
    project = pipeline.Project(folder)
    vectors, keys = project.embeddings()
    texts = pq.read_table(folder / "cache/texts.parquet").to_pandas()
    shards = sorted((folder / "cache/embeddings").glob("part-*.parquet"))
    stored = pd.concat([pq.read_table(shard).to_pandas() for shard in shards]).set_index("key")
    assert vectors.shape == (ROWS, 3, 32)
    assert vectors.dtype == np.float32
    assert keys.to_pylist() == texts["key"].tolist()
    for row in (0, 7, ROWS - 1):
        for layer in range(3):
            expected = stored.loc[texts["key"][row]][f"layer_{layer:02}"]
            np.testing.assert_array_equal(vectors[row, layer], expected.astype(np.float32))
    last, _ = project.embeddings(layers="last")
    np.testing.assert_array_equal(last, vectors[:, 2:])
    chosen, _ = project.embeddings(layers=[-1, 0])
    np.testing.assert_array_equal(chosen, vectors[:, [0, 2]])
    with pytest.raises(SettingsError, match="no layer 9"):
        project.embeddings(layers=[9])
    for odd in ("first", 1, [], ["1"], [0.5]):
        with pytest.raises(SettingsError, match="is not all, last or a list of layer numbers"):
            project.embeddings(layers=odd)  # type: ignore[arg-type]


def test_the_rows_of_one_part(folder: Path) -> None:
    project = pipeline.Project(folder)
    vectors, keys = project.embeddings("last")
    split = pq.read_table(folder / "cache/labels.parquet", columns=["split"])["split"].to_pylist()
    whole = project.labels()
    for part in ("train", "validation", "test"):
        rows = [row for row, name in enumerate(split) if name == part]
        of_part, keys_of_part = project.embeddings("last", split=part)
        np.testing.assert_array_equal(of_part, vectors[rows])
        assert keys_of_part.to_pylist() == [keys[row].as_py() for row in rows]
        labels = project.labels(part)
        assert labels.index.tolist() == list(range(len(rows)))
        pd.testing.assert_frame_equal(labels, whole.iloc[rows].reset_index(drop=True))
    for read in (project.labels, lambda split: project.embeddings("last", split)):
        with pytest.raises(SettingsError, match="no part 'dev'; there are train, validation, test"):
            read("dev")


def test_labels_are_those_of_the_source(folder: Path) -> None:
    labels = pipeline.Project(folder).labels()
    source = pd.read_csv(folder / "tickets.csv")
    assert labels["row"].tolist() == list(range(ROWS))
    assert set(labels["split"]) == {"train", "validation", "test"}
    for name, column in (("urgent", "priority"), ("level", "level")):
        assert isinstance(labels[name].dtype, pd.CategoricalDtype)
        pd.testing.assert_series_equal(
            labels[name].astype(object), source[column].astype(object), check_names=False
        )
    pd.testing.assert_series_equal(
        labels["hours"], source["hours"].astype(float), check_names=False
    )
    tags = source["topics"].fillna("").map(lambda cell: sorted(filter(None, cell.split(";"))))
    assert labels["topics"].map(sorted).tolist() == tags.tolist()


def test_heads_of_labels_made_in_a_notebook(folder: Path) -> None:
    edit_params(
        {"heads.search": [], "heads.weight_decay": 0.01, "heads.standardize": False},
        folder / "params.yaml",
    )
    project = pipeline.Project(folder)
    frame = project.labels()[["row", "split"]]
    source = pd.read_csv(folder / "tickets.csv")
    frame["long"] = source["body"].str.len() > source["body"].str.len().median()
    frame["size"] = source["body"].str.len().astype(float)
    frame["first"] = pd.Categorical(
        source["body"].str[0].where(source["body"].str[0].isin(list("abcdefghijklmnop")))
    )
    shuffled = frame.sample(frac=0.9, random_state=0)  # rows may lack, and stand in any order
    heads = project.train_heads(shuffled, "notebook-heads", tasks={"long": {}, "size": {}})
    assert [head.name for head in heads.heads] == ["long", "size"]
    assert [head.type.name for head in heads.heads] == ["binary", "regression"]
    assert heads.heads[0].classes == ("false", "true")
    vectors, _ = project.embeddings()
    logits = heads.compute_logits(vectors)
    train = shuffled[shuffled["split"] == "train"]
    flat = vectors.reshape(ROWS, -1)
    reference = LogisticRegression(C=1 / (0.01 * len(train)), max_iter=5000, tol=1e-8)
    reference.fit(flat[train["row"]], train["long"])
    expected = reference.decision_function(flat)
    np.testing.assert_allclose(logits["long"][0][:, 0], expected, atol=0.02)
    assert not (folder / "cache/heads").exists()
    again = Heads.load(folder / "notebook-heads")
    np.testing.assert_array_equal(again.compute_logits(vectors)["long"], logits["long"])
    every = project.train_heads(frame, folder / "notebook-heads")
    assert [head.name for head in every.heads] == ["long", "size", "first"]


def test_raw_scores_are_no_labels(folder: Path) -> None:
    from pipeline.corpus.tables import read_labelled_table

    project = pipeline.Project(folder)
    rows, table = read_labelled_table(project)
    assert not set(table.column_names) - set(rows.tasks) - {"row", "split"}, "a corpus without any"
    path = folder / "cache/labels.parquet"
    whole = path.read_bytes()
    scored = table.append_column("urgent_raw", pa.array(np.linspace(0, 1, ROWS)))
    pq.write_table(scored.replace_schema_metadata(table.schema.metadata), path)
    try:
        frame = project.labels()
        assert "urgent_raw" in frame.columns
        heads = project.train_heads(frame[["row", "urgent", "urgent_raw"]], "scored-heads")
    finally:
        path.write_bytes(whole)
    assert [head.name for head in heads.heads] == ["urgent"]


def test_tables_that_do_not_fit(folder: Path) -> None:
    project = pipeline.Project(folder)
    good = project.labels()[["row", "urgent"]]
    wrong: list[tuple[pd.DataFrame, str]] = [
        (good.drop(columns="row").head(10), "10 rows for a corpus of 240"),
        (good.assign(row=good["row"] + 1000), "no row 1000"),
        (good.assign(row=0), "row 0 stands there twice"),
        (good[["row"]], "no column with labels"),
        (good.assign(split="dev"), "holds 'dev'"),
        (good.rename(columns={"urgent": "a b"}), "'a b' is no name of a task"),
        (good.assign(urgent=None), "urgent: no row has one"),
    ]
    for frame, message in wrong:
        with pytest.raises(DataError, match=message):
            project.train_heads(frame, "elsewhere")
    with pytest.raises(SettingsError, match="where `pipeline train-heads` writes"):
        project.train_heads(good, "cache/heads")
    with pytest.raises(SettingsError, match=r"tasks: urgent\.typo"):
        project.train_heads(good, "elsewhere", tasks={"urgent": {"typo": 1}})
    with pytest.raises(DataError, match="mood"):
        project.train_heads(good, "elsewhere", tasks={"mood": {}})
    assert not (folder / "elsewhere").exists()


def test_a_store_of_other_texts_is_refused(folder: Path, tmp_path: Path) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(folder, other)
    write_tickets(other / "tickets.csv", ROWS + 5)
    run_all(other, "fetch", "prepare")
    with pytest.raises(StoreError, match="embed"):
        pipeline.Project(other).embeddings()


def test_the_import_is_instant() -> None:
    code = (
        "import sys, pipeline; pipeline.Project('.'); "
        "print(sorted({'torch', 'numpy', 'pandas', 'pyarrow', 'pydantic'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert {"Embedder", "Project", "load"} <= set(dir(pipeline))
    assert result.stdout.strip() in ("['numpy']", "[]")
