"""`pipeline.FrozenTextEncoder`: against `Embedder`, and by scikit-learn's own checks."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

import pipeline
from pipeline import encoder as encoder_module
from pipeline.embed.embedder import Embedder
from pipeline.encoder import FrozenTextEncoder
from pipeline.errors import AssetError, DataError, SettingsError, StageError, StoreError
from tests.conftest import make_tiny_backbone

TEXTS = [f"{'win a prize now ' * (n % 2)}message number {n % 45}, {n % 7}" for n in range(120)]
LABELS = [n % 2 for n in range(120)]


@pytest.fixture
def encoder(tiny_backbone: Path, tmp_path: Path) -> FrozenTextEncoder:
    return FrozenTextEncoder(
        tiny_backbone, cache=tmp_path / "stores", devices="cpu", precision="float32"
    )


@pytest.fixture(scope="module")
def expected(tiny_backbone: Path) -> npt.NDArray[np.float32]:
    """The vectors of all layers by the embedder: [B, 3, 32]."""
    with Embedder(tiny_backbone, precision="float32") as embedder:
        return embedder.embed(TEXTS).vectors


def count_embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts each later call has the backbone embed."""
    counts: list[int] = []
    embed = Embedder.embed

    def note(self: Embedder, texts: Any, *more: Any) -> Any:
        counts.append(len(texts))
        return embed(self, texts, *more)

    monkeypatch.setattr(Embedder, "embed", note)
    return counts


def test_vectors_are_those_of_the_embedder(
    encoder: FrozenTextEncoder, expected: npt.NDArray[np.float32]
) -> None:
    found = encoder.fit_transform(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected[:, 2], atol=1e-6)
    both = clone(encoder).set_params(layers=[2, 0]).fit(TEXTS)
    np.testing.assert_allclose(
        both.transform(TEXTS[:5]), expected[:5, [0, 2]].reshape(5, -1), atol=1e-6
    )
    names = both.get_feature_names_out()
    assert (names[0], names[32], len(names)) == ("layer_00_0", "layer_02_0", 64)


def test_settings_that_change_a_vector(tiny_backbone: Path, encoder: FrozenTextEncoder) -> None:
    encoder.fit(TEXTS)
    with Embedder(tiny_backbone, layers="last", max_tokens=8) as embedder:
        other = embedder.embed(TEXTS[:9]).vectors[:, 0]
    made = clone(encoder).set_params(max_tokens=8).fit_transform(TEXTS[:9])
    np.testing.assert_allclose(made, other, atol=1e-6)
    assert np.abs(made - encoder.transform(TEXTS[:9])).max() > 0.01


@pytest.mark.parametrize(
    "shape", ["tuple", "array", "objects", "column", "series", "frame", "arrow", "polars"]
)
def test_inputs(encoder: FrozenTextEncoder, shape: str) -> None:
    import polars as pl
    import pyarrow as pa

    few = TEXTS[:6]
    given = {
        "tuple": tuple(few),
        "array": np.array(few),
        "objects": np.array(few, object),
        "column": np.array(few)[:, None],
        "series": pd.Series(few, index=range(6, 0, -1)),
        "frame": pd.DataFrame({"message": few}),
        "arrow": pa.array(few),
        "polars": pl.DataFrame({"message": few}),
    }[shape]
    expected = encoder.fit(few).transform(few)
    np.testing.assert_array_equal(encoder.fit(given).transform(given), expected)
    named = hasattr(encoder, "feature_names_in_")
    assert named == (shape in {"frame", "polars"})
    assert encoder.n_features_in_ == 1


def test_cross_validation_embeds_each_text_once(
    encoder: FrozenTextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = count_embedded(monkeypatch)
    model = make_pipeline(encoder, StandardScaler(), LogisticRegression(max_iter=1000))
    scores = cross_val_score(model, TEXTS, LABELS, cv=4)
    assert scores.min() > 0.9  # two words make the class
    assert sum(counts) == len(set(TEXTS))
    search = GridSearchCV(model, {"logisticregression__C": [0.1, 1]}, cv=3).fit(TEXTS, LABELS)
    assert sum(counts) == len(set(TEXTS))
    restored = pickle.loads(pickle.dumps(search))
    np.testing.assert_array_equal(restored.predict(TEXTS), search.predict(TEXTS))


def test_new_texts_go_behind_the_others(encoder: FrozenTextEncoder, tmp_path: Path) -> None:
    before = encoder.fit(TEXTS).transform(TEXTS[:20])
    encoder.transform(TEXTS)
    (store,) = (path for path in (tmp_path / "stores").iterdir() if path.is_dir())
    rows = pq.read_table(store / "part-00000.parquet").num_rows
    assert rows == len(set(TEXTS))
    np.testing.assert_array_equal(encoder.transform(TEXTS[:20]), before)


def test_more_than_a_shard(
    encoder: FrozenTextEncoder,
    expected: npt.NDArray[np.float32],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pipeline.store import manifest

    monkeypatch.setattr(manifest, "SHARD_ROWS", 16)
    monkeypatch.setattr(encoder_module, "_PIECE_TEXTS", 5)
    monkeypatch.setattr(encoder_module, "_KEEP_SECONDS", 0.0)
    for stop in (10, 40, 120):
        found = encoder.fit(TEXTS).transform(TEXTS[:stop])
    np.testing.assert_allclose(found, expected[:, 2], atol=1e-6)
    shards = list((tmp_path / "stores").glob("*/part-*.parquet"))
    assert len(shards) == -(-len(set(TEXTS)) // 16) > 2


def test_a_killed_run_is_taken_up(
    encoder: FrozenTextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_module, "_PIECE_TEXTS", 10)
    monkeypatch.setattr(encoder_module, "_KEEP_SECONDS", 0.0)
    counts: list[int] = []
    embed = Embedder.embed

    def stop(self: Embedder, texts: Any) -> Any:
        if len(counts) == 3:
            raise KeyboardInterrupt
        counts.append(len(texts))
        return embed(self, texts)

    distinct = list(dict.fromkeys(TEXTS))
    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "embed", stop)
        with pytest.raises(KeyboardInterrupt):
            encoder.fit(TEXTS).transform(distinct)
    later = count_embedded(monkeypatch)
    encoder.transform(distinct)
    assert sum(later) == len(distinct) - 30


def test_threads_and_encoders_side_by_side(
    encoder: FrozenTextEncoder, expected: npt.NDArray[np.float32]
) -> None:
    def embed(number: int) -> Any:
        own = clone(encoder).set_params(layers=[number % 3])
        part = TEXTS[number * 10 : number * 10 + 60]
        return own.fit(part).transform(part)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(embed, range(6)))
    for number, vectors in enumerate(found):
        wanted = expected[number * 10 : number * 10 + 60, number % 3]
        np.testing.assert_allclose(vectors, wanted, atol=1e-6)


def test_processes_share_a_store(
    encoder: FrozenTextEncoder, expected: npt.NDArray[np.float32]
) -> None:
    code = (
        "import pickle, sys\n"
        "encoder, texts = pickle.load(sys.stdin.buffer)\n"
        "sys.stdout.buffer.write(pickle.dumps(encoder.transform(texts)))\n"
    )
    encoder.fit(TEXTS)
    runs = []
    for start in (0, 30, 60):
        run = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert run.stdin is not None
        run.stdin.write(pickle.dumps((encoder, TEXTS[start : start + 60])))
        run.stdin.close()
        run.stdin = None
        runs.append((start, run))
    for start, run in runs:
        out, _ = run.communicate(timeout=120)
        found = pickle.loads(out)
        np.testing.assert_allclose(found, expected[start : start + 60, 2], atol=1e-6)


def test_columns_and_pandas(encoder: FrozenTextEncoder) -> None:
    frame = pd.DataFrame({"message": TEXTS, "length": [float(len(t)) for t in TEXTS]})
    frame.index = pd.Index(range(500, 620))
    columns = ColumnTransformer(
        [("text", encoder, "message"), ("number", "passthrough", ["length"])]
    ).set_output(transform="pandas")
    made = columns.fit_transform(frame)
    assert made.index.equals(frame.index)
    assert made.columns[[0, -1]].tolist() == ["text__layer_02_0", "number__length"]
    assert made.shape == (120, 33)
    alone = encoder.set_output(transform="pandas").fit_transform(frame[["message"]])
    assert alone.columns[0] == "layer_02_0"
    np.testing.assert_array_equal(alone.to_numpy(), made.iloc[:, :32].to_numpy())


def test_known_texts_need_no_torch(encoder: FrozenTextEncoder) -> None:
    """Also where the device is ``auto``, which only torch knows the meaning of."""
    encoder.set_params(precision="auto").fit(TEXTS).transform(TEXTS)
    code = (
        "import sys, pipeline, pickle\n"
        "from sklearn.base import clone\n"
        "encoder, texts = pickle.load(sys.stdin.buffer)\n"
        "for devices in ('cpu', 'auto'):\n"
        "    found = clone(encoder).set_params(devices=devices).fit(texts).transform(texts)\n"
        "    print(found.shape, 'torch' in sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps((encoder, TEXTS)),
        capture_output=True,
        check=True,
        timeout=120,
    )
    assert result.stdout.decode() == "(120, 32) False\n" * 2


def test_the_default_store_is_in_the_users_cache(tiny_backbone: Path, private_cache: Path) -> None:
    encoder = pipeline.FrozenTextEncoder(str(tiny_backbone), devices="cpu").fit(TEXTS)
    encoder.transform(TEXTS[:2])
    (store,) = (private_cache / "encoder").glob("*/manifest.json")
    assert pq.read_table(store.with_name("part-00000.parquet")).num_rows == 2


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("a text", "texts: a single text instead of a list"),
        (["a", None], "texts: number 1 (the first is 0): no text"),
        (["a", " \u200b"], "texts: number 1 (the first is 0): blank text"),
        ([1.5], "texts: number 0 (the first is 0): text is not a string: 1.5"),
        ([], "texts: 0 samples, where one is the least"),
        (7, "texts: a int instead of a list"),
        (np.zeros((2, 3)), "texts: a table of 3 columns, where one is to hold the texts"),
        (csr_array(np.ones((2, 1))), "texts: a sparse matrix instead of a list"),
        (np.zeros((2, 3, 4)), "texts: an array of 3 dimensions instead of one"),
        (pd.Series(["a", np.nan]), "texts: number 1 (the first is 0): no text"),
    ],
)
def test_inputs_that_are_no_texts(encoder: FrozenTextEncoder, texts: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        encoder.fit(texts)
    assert str(caught.value) == message
    assert isinstance(caught.value, ValueError)


def test_what_cannot_be(encoder: FrozenTextEncoder, tmp_path: Path) -> None:
    with pytest.raises(NotFittedError):
        encoder.transform(TEXTS)
    for settings, error, message in (
        ({"backbone": tmp_path / "none"}, AssetError, "no such folder, and not a hub id"),
        ({"layers": [9]}, SettingsError, "embed.layers: no layer 9; there are 0, 1, 2"),
        ({"layers": 2}, SettingsError, "layers: 'int' object is not iterable"),
        ({"max_tokens": 2}, SettingsError, "max_tokens: must be >= 3 or auto, got 2"),
        ({"max_tokens": 1000}, SettingsError, "embed.max_tokens: must be <= 512"),
        ({"precision": "float8"}, SettingsError, "precision: must be one of auto, float32"),
        ({"pooling": "median"}, SettingsError, "pooling: must be auto or one of mean, cls"),
    ):
        with pytest.raises(error, match=message.replace("(", r"\(")):
            clone(encoder).set_params(**settings).fit(TEXTS).transform(TEXTS)


def test_a_backbone_that_has_changed(encoder: FrozenTextEncoder, tmp_path: Path) -> None:
    folder = make_tiny_backbone(tmp_path / "other", layers=1)
    encoder.set_params(backbone=folder).fit(TEXTS).transform(TEXTS[:3])
    shutil.copy(folder / "tokenizer.json", tmp_path / "kept.json")
    (folder / "tokenizer.json").write_text((tmp_path / "kept.json").read_text() + " ")
    encoder.transform(TEXTS[:3])  # which the store has
    with pytest.raises(StageError, match="has changed since it was fetched"):
        encoder.transform(TEXTS)


def test_a_damaged_store_is_refused(encoder: FrozenTextEncoder, tmp_path: Path) -> None:
    encoder.fit(TEXTS).transform(TEXTS)
    (shard,) = (tmp_path / "stores").glob("*/part-00000.parquet")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        encoder.transform(TEXTS)


def test_scikit_learns_checks_of_an_estimator_of_texts(encoder: FrozenTextEncoder) -> None:
    """By its tags, scikit-learn itself has but few checks for what takes texts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)
        check_estimator(encoder)


class RowsAsTexts(FrozenTextEncoder):  # type: ignore[misc]
    """An encoder that scikit-learn's checks can feed: each row of their numbers is a text."""

    def _read_texts(self, X: Any) -> list[str]:
        rows = np.asarray(X)
        if rows.ndim == 2 and rows.dtype.kind in "fiu":
            X = [" ".join(f"{value:.3f}" for value in row) for row in rows]
        return super()._read_texts(X)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.one_d_array = False
        return tags


_ONE_COLUMN = "the checks' table has several columns, which are one text here: one feature"
_OWN_ERRORS = "texts have no such values; what is no text is refused in this package's own words"
NOT_OF_TEXTS = {
    "check_n_features_in": _ONE_COLUMN,
    "check_n_features_in_after_fitting": _ONE_COLUMN,
    "check_transformer_general": _ONE_COLUMN,
    "check_fit2d_predict1d": "one dimension is what texts have: no 'Reshape your data'",
    "check_complex_data": _OWN_ERRORS,
    "check_dtype_object": _OWN_ERRORS,
    "check_estimators_empty_data_messages": _OWN_ERRORS,
    "check_estimators_nan_inf": "not a number is a text like another once it is written out",
}


@parametrize_with_checks(
    [RowsAsTexts("BACKBONE", devices="cpu")],
    expected_failed_checks=lambda estimator: NOT_OF_TEXTS,
    xfail_strict=True,
)
def test_scikit_learns_checks(
    estimator: Any, check: Any, tiny_backbone: Path, private_cache: Path
) -> None:
    check(estimator.set_params(backbone=str(tiny_backbone)))
