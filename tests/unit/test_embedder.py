"""The embedder, from a backbone's folder alone, against Hugging Face's own forward pass."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers

from pipeline.embed.embedder import Embedder
from pipeline.embed.families.bert import PackedBert
from pipeline.errors import AssetError, DataError, SettingsError
from pipeline.store import Recipe

TEXTS = ["hello, world!", "", "Hello, World!", "free entry in 2 a wkly comp", "x y " * 300, "a"]


def embed_by_hugging_face(
    folder: Path, texts: list[str], max_tokens: int = 128
) -> tuple[np.ndarray, list[int]]:
    """All texts as one padded batch, and the mean under the mask by hand."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]"
    )
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    inputs = tokenizer(
        texts, truncation=True, max_length=max_tokens, padding=True, return_tensors="pt"
    )
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with torch.no_grad():
        states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    weights = mask.unsqueeze(-1).float()
    pooled = [(state * weights).sum(dim=1) / weights.sum(dim=1) for state in states]
    return torch.stack(pooled, dim=1).numpy(), mask.sum(dim=1).tolist()


def test_a_folder_is_enough(
    tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No project, no store: every layer, 128 tokens, float32 on the CPU."""
    monkeypatch.chdir(tmp_path)
    with Embedder(tiny_backbone) as embedder:
        rows = embedder.embed(TEXTS)
    expected, n_tokens = embed_by_hugging_face(tiny_backbone, TEXTS)
    assert rows.vectors.dtype == np.float32
    np.testing.assert_allclose(rows.vectors, expected, atol=2e-6)
    assert rows.n_tokens.tolist() == n_tokens
    assert max(n_tokens) == 128
    assert (embedder.layers, embedder.precision) == ((0, 1, 2), "float32")
    assert [device.type for device in embedder.devices] == ["cpu"]
    assert not list(tmp_path.iterdir())


def test_settings_are_heeded(tiny_backbone: Path) -> None:
    with Embedder(
        str(tiny_backbone), max_tokens=16, layers=[-1, 0], dtype="float16", token_budget=32
    ) as embedder:
        rows = embedder.embed(TEXTS)
    expected, n_tokens = embed_by_hugging_face(tiny_backbone, TEXTS, max_tokens=16)
    assert embedder.layers == (0, 2)
    assert rows.vectors.dtype == np.float16
    np.testing.assert_allclose(rows.vectors, expected[:, [0, 2]], atol=2e-3)
    assert rows.n_tokens.tolist() == n_tokens
    with Embedder(tiny_backbone, layers="last", precision="bfloat16") as embedder:
        (last,) = embedder.layers
        found = embedder.embed(TEXTS[:1]).vectors
    exact = embed_by_hugging_face(tiny_backbone, TEXTS[:1])[0][:, [last]]
    assert 1e-6 < np.abs(found - exact).max() < 0.05


def test_texts_that_are_the_same_tokens_are_computed_once(
    tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    run = PackedBert.encode

    def encode(self: PackedBert, ids: np.ndarray, lengths: np.ndarray, *rest: object) -> object:
        computed.extend(lengths.tolist())
        return run(self, ids, lengths, *rest)

    monkeypatch.setattr(PackedBert, "encode", encode)
    texts = ["Spam", "spam", "ham", "SPAM", "spam"]
    done: list[float] = []
    with Embedder(tiny_backbone) as embedder:
        rows = embedder.embed(texts, done.append)
    assert sorted(computed) == [5, 6]  # [CLS] h a m [SEP], and spam
    assert sum(done) == pytest.approx(len(texts))
    expected, _ = embed_by_hugging_face(tiny_backbone, texts)
    np.testing.assert_allclose(rows.vectors, expected, atol=2e-6)


@pytest.mark.parametrize(
    "texts",
    [
        pa.array(TEXTS),
        pa.array(["skipped", *TEXTS], pa.large_string())[1:],
        pa.chunked_array([TEXTS[:2], TEXTS[2:]]),
        tuple(TEXTS),
        np.array(TEXTS, object),
    ],
    ids=["string", "slice of large_string", "chunks", "tuple", "numpy"],
)
def test_texts_may_come_in_any_array(tiny_backbone: Path, texts: object) -> None:
    with Embedder(tiny_backbone, layers="last") as embedder:
        found = embedder.embed(texts).vectors
        np.testing.assert_array_equal(found, embedder.embed(TEXTS).vectors)


@pytest.mark.parametrize(
    "texts", [[], pa.array([], pa.string()), pa.chunked_array([], pa.string())]
)
def test_no_texts_have_no_vectors(tiny_backbone: Path, texts: object) -> None:
    with Embedder(tiny_backbone) as embedder:
        rows = embedder.embed(texts)
    assert rows.vectors.shape == (0, 3, 32)
    assert rows.n_tokens.shape == (0,)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("one text", "a single text instead of a list"),
        (["a", None, "b", None], "2 of 4 are missing, the first is number 1"),
        (["a", 1], "not a list of strings"),
        (["a", "\ud800"], "not a list of strings"),
        (pa.array([1, 2]), "an array of int64 instead of strings"),
        (pa.chunked_array([["a"], [None]]), "1 of 2 are missing, the first is number 1"),
        (pa.chunked_array([[1, 2]]), "an array of int64 instead of strings"),
    ],
)
def test_what_is_no_text_is_refused(tiny_backbone: Path, texts: object, message: str) -> None:
    with Embedder(tiny_backbone) as embedder, pytest.raises(DataError, match=message):
        embedder.embed(texts)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 513}, r"embed\.max_tokens: must be <= 512 for this backbone, got 513"),
        ({"max_tokens": 2}, r"embed\.max_tokens: must be >= 3 for this backbone, got 2"),
        ({"layers": [3]}, r"embed\.layers: no layer 3; there are 0, 1, 2"),
        ({"precision": "int8"}, r"embed\.precision: must be one of float32, .* got 'int8'"),
        ({"dtype": "float64"}, r"embed\.dtype: must be one of float16, float32, got 'float64'"),
        ({"pooling": "first"}, r"embed\.pooling: must be one of mean, .* got 'first'"),
        ({"devices": "tpu-v5"}, r"runtime\.devices: tpu-v5: not a device"),
        ({"devices": []}, r"runtime\.devices: must name at least one device"),
    ],
)
def test_what_the_backbone_cannot_do_is_refused(
    tiny_backbone: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        Embedder(tiny_backbone, **settings)


def test_a_folder_without_a_backbone_is_refused(tiny_backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"config\.json: no such file"):
        Embedder(tmp_path)
    shutil.copy(tiny_backbone / "config.json", tmp_path)
    with pytest.raises(AssetError, match=r"tokenizer\.json: cannot be read"):
        Embedder(tmp_path)
    shutil.copy(tiny_backbone / "tokenizer.json", tmp_path)
    with Embedder(tmp_path) as embedder, pytest.raises(AssetError, match="cannot be loaded"):
        embedder.embed(TEXTS)


def test_weights_come_with_the_first_texts_and_go_with_the_embedder(tiny_backbone: Path) -> None:
    threads = torch.get_num_threads()
    with Embedder(tiny_backbone, threads=threads + 1) as embedder:
        assert not embedder.is_loaded
        embedder.load()
        assert embedder.is_loaded
        assert embedder.load_reference().model.dtype == torch.float32
        assert torch.get_num_threads() == threads + 1
        first = embedder.embed(TEXTS).vectors
    assert not embedder.is_loaded
    assert torch.get_num_threads() == threads
    np.testing.assert_allclose(embedder.embed(TEXTS).vectors, first, atol=1e-6)  # loads it again
    embedder.close()


def test_texts_may_be_started_before_others_are_finished(tiny_backbone: Path) -> None:
    with Embedder(tiny_backbone) as embedder:
        parts = [embedder.tokenize(part) for part in (TEXTS[:3], TEXTS[3:])]
        jobs = [embedder.start(part) for part in parts]
        found = [part.expand(job.finish()) for part, job in zip(parts, jobs, strict=True)]
        np.testing.assert_allclose(
            np.concatenate([rows.vectors for rows in found]),
            embedder.embed(TEXTS).vectors,
            atol=1e-6,
        )


def test_a_stores_recipe_makes_its_embedder(tiny_backbone: Path) -> None:
    contents = {"max_tokens": 16, "pooling": "mean", "precision": "float32", "dtype": "float16"}
    recipe = Recipe("tiny", contents, (0, 2), 32, "float16")
    with (
        Embedder.from_recipe(recipe, tiny_backbone) as made,
        Embedder(tiny_backbone, max_tokens=16, layers=(0, 2), dtype="float16") as plain,
    ):
        np.testing.assert_array_equal(made.embed(TEXTS).vectors, plain.embed(TEXTS).vectors)
