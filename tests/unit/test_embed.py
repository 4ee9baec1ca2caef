"""Tokens, pooling, layers and the engine, against Hugging Face on a tiny random BERT."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from torch.nn import functional

from pipeline.architecture import Architecture
from pipeline.device import choose_devices
from pipeline.embed.attention import Packing
from pipeline.embed.backbone import Backbone
from pipeline.embed.engine import Engine
from pipeline.embed.families import find_family
from pipeline.embed.families.bert import PackedBert
from pipeline.embed.fidelity import check_fidelity, measure_fidelity
from pipeline.embed.linears import Norm, OneDnnLinear, PlainLinear
from pipeline.embed.pooling import POOLINGS, find_pooling
from pipeline.embed.tokens import find_distinct, load_tokenizer, select_tokens
from pipeline.errors import AssetError, DeviceError, SettingsError, StoreError
from pipeline.layers import resolve_layers
from pipeline.onednn import has_onednn
from tests.conftest import pack_bert

TEXTS = [
    "a",
    "hello, world!",
    "free entry in 2 a wkly comp to win fa cup final tkts 21st may 2005",
    "ünïcödé ☃ 🎉 \x00 \uffff",
    "",
    "x" * 5000,
    " ".join(["spam"] * 600),
    "a",
]
LAYERS = (0, 1, 2)


def load_backbone(folder: Path) -> Backbone:
    return Backbone(folder, torch.device("cpu"), "float32")


def make_engine(folder: Path, budget: int = 512, dtype: str = "float32") -> Engine:
    encoder = pack_bert(load_backbone(folder), "float32")
    return Engine(encoder, LAYERS, np.dtype(dtype), budget)


def embed_by_hugging_face(folder: Path, texts: list[str], max_tokens: int) -> np.ndarray:
    """One text at a time, no padding, plain mean: the reference."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]"
    )
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    vectors = []
    for text in texts:
        inputs = tokenizer(text, truncation=True, max_length=max_tokens, return_tensors="pt")
        with torch.no_grad():
            states = model(input_ids=inputs["input_ids"], output_hidden_states=True).hidden_states
        vectors.append(np.stack([state[0].mean(dim=0).numpy() for state in states]))
    return np.stack(vectors)


def test_tokens_are_those_of_transformers(tiny_backbone: Path) -> None:
    reference = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tiny_backbone / "tokenizer.json")
    )
    tokens = load_tokenizer(tiny_backbone, 64).tokenize(pa.array(TEXTS))
    expected = reference(TEXTS, truncation=True, max_length=64)["input_ids"]
    found = [tokens.ids[a:b].tolist() for a, b in pairwise(tokens.offsets)]
    assert found == expected
    assert tokens.lengths.tolist() == [len(ids) for ids in expected]


def test_a_tokenizer_saved_with_padding_and_truncation_is_reset(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tiny_backbone / "tokenizer.json"))
    tokenizer.enable_padding(length=32)
    tokenizer.enable_truncation(max_length=8)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokens = load_tokenizer(tmp_path, 64).tokenize(pa.array(["a b", "a b c d e f g h i j k l"]))
    assert tokens.lengths.tolist() == [4, 14]


@pytest.mark.parametrize("max_tokens", [3, 16, 128, 512])
@pytest.mark.parametrize("budget", [16, 512, 100_000])
def test_every_layer_equals_hugging_face(tiny_backbone: Path, max_tokens: int, budget: int) -> None:
    tokens = load_tokenizer(tiny_backbone, max_tokens).tokenize(pa.array(TEXTS))
    expected = embed_by_hugging_face(tiny_backbone, TEXTS, max_tokens)
    packed = make_engine(tiny_backbone, budget)
    padded = Engine(load_backbone(tiny_backbone), LAYERS, np.dtype("float32"), budget)
    for engine in (packed, padded):
        rows = engine.embed(tokens)
        assert rows.vectors.shape == (len(TEXTS), 3, 32)
        np.testing.assert_allclose(rows.vectors, expected, atol=1e-5)
        assert rows.n_tokens.tolist() == tokens.lengths.tolist()


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 96, 97, 127, 128, 129, 511, 512])
def test_every_length_equals_hugging_face(tiny_backbone: Path, length: int) -> None:
    """From one token, which no tokenizer gives, to both sides of where attention changes."""
    backbone = load_backbone(tiny_backbone)
    ids = np.random.default_rng(length).integers(0, 80, 3 * length).astype(np.int32)
    lengths = np.full(3, length)
    found = pack_bert(backbone, "float32").encode(ids, lengths, LAYERS).numpy()
    states = backbone.model(
        input_ids=torch.from_numpy(ids.reshape(3, length).astype(np.int64)),
        output_hidden_states=True,
    ).hidden_states
    expected = np.stack([state.mean(dim=1).numpy() for state in states], axis=1)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    cosine = (found * expected).sum(-1)
    cosine /= np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    assert cosine.min() >= 0.999999


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_within_its_tolerance(tiny_backbone: Path, precision: str) -> None:
    tokens = load_tokenizer(tiny_backbone, 128).tokenize(pa.array(TEXTS))
    backbone = load_backbone(tiny_backbone)
    engine = Engine(pack_bert(backbone, precision), LAYERS, np.dtype("float32"), 512)
    fidelity = measure_fidelity(backbone, tokens, engine.embed(tokens), LAYERS)
    assert fidelity.lowest_cosine < 0.9999999  # it did compute in fewer bits
    check_fidelity(fidelity, precision)


@pytest.mark.parametrize("kind", ["none", "tanh"])
def test_fused_linears_equal_plain_ones(kind: str) -> None:
    if not has_onednn(torch.float32):
        pytest.skip("this build of torch has no oneDNN")
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 32, generator=generator)
    bias = torch.randn(48, generator=generator)
    scale = torch.rand(48, generator=generator)
    norm = Norm(scale, bias, 1e-5)
    fused, plain = OneDnnLinear(weight, bias), PlainLinear(weight.double(), bias.double())
    bare = OneDnnLinear(weight, None), PlainLinear(weight.double(), None)
    for rows in (1, 7, 300):
        x = torch.randn(rows, 32, generator=generator)
        residual = torch.randn(rows, 48, generator=generator)
        before = residual.clone()
        sums_and_gates = [
            (getattr(ours, form)(x, residual), getattr(theirs, form)(x.double(), residual))
            for ours, theirs in ((fused, plain), bare)
            for form in ("apply_add", "apply_multiply")
        ]
        for found, expected in (
            *sums_and_gates,
            (bare[0].apply(x), bare[1].apply(x.double())),
            (bare[0].apply_gelu(x, kind), bare[1].apply_gelu(x.double(), kind)),
            (fused.apply(x), plain.apply(x.double())),
            (fused.apply_gelu(x, kind), plain.apply_gelu(x.double(), kind)),
            (
                fused.apply_add_norm(x, residual, norm),
                functional.layer_norm(
                    plain.apply(x.double()) + residual, (48,), scale.double(), bias.double(), 1e-5
                ),
            ),
        ):
            torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
        assert torch.equal(residual, before)


def test_what_is_not_of_the_bert_family_is_not_packed(tiny_backbone: Path) -> None:
    config = load_backbone(tiny_backbone).model.config.to_dict()
    assert find_family(config) is PackedBert
    for name, value in (
        ("model_type", "electra"),
        ("hidden_act", "relu"),
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
    ):
        assert find_family({**config, name: value}) is None, name


def test_texts_that_are_the_same_tokens_are_found(tiny_backbone: Path) -> None:
    texts = ["Hello", "bye", "hello", "HELLO", "bye!", "bye"]
    tokens = load_tokenizer(tiny_backbone, 64).tokenize(pa.array(texts))
    distinct = find_distinct(tokens)
    assert distinct.first.tolist() == [0, 1, 4]
    assert distinct.indices.tolist() == [0, 1, 0, 0, 2, 1]
    assert (len(distinct), len(distinct.tokens)) == (6, 3)
    for text, (start, stop) in zip(distinct.first, pairwise(distinct.tokens.offsets), strict=True):
        same = tokens.ids[tokens.offsets[text] : tokens.offsets[text + 1]]
        assert distinct.tokens.ids[start:stop].tolist() == same.tolist()
    chosen = select_tokens(tokens, np.array([4, 0]))
    assert chosen.ids.tolist() == [
        *tokens.ids[tokens.offsets[4] : tokens.offsets[5]],
        *tokens.ids[tokens.offsets[0] : tokens.offsets[1]],
    ]
    nothing = load_tokenizer(tiny_backbone, 64).tokenize(pa.array([], pa.string()))
    none = find_distinct(nothing)
    assert [none.first.tolist(), none.indices.tolist(), len(none)] == [[], [], 0]


def test_an_architecture_without_sdpa_equals_hugging_face(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    """MPNet: relative positions, and attention of its own."""
    folder = tmp_path / "mpnet"
    folder.mkdir()
    shutil.copy(tiny_backbone / "tokenizer.json", folder)
    torch.manual_seed(0)
    config = transformers.MPNetConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=514,
    )
    transformers.MPNetModel(config).eval().save_pretrained(folder)
    tokens = load_tokenizer(folder, 512).tokenize(pa.array(TEXTS))
    rows = Engine(load_backbone(folder), LAYERS, np.dtype("float32"), 512).embed(tokens)
    expected = embed_by_hugging_face(folder, TEXTS, 512)
    np.testing.assert_allclose(rows.vectors, expected, atol=1e-5)


def test_fidelity_is_measured_and_a_wrong_vector_stops_the_run(tiny_backbone: Path) -> None:
    tokens = load_tokenizer(tiny_backbone, 128).tokenize(pa.array(TEXTS))
    engine = make_engine(tiny_backbone)
    rows = engine.embed(tokens)
    backbone = load_backbone(tiny_backbone)
    fidelity = measure_fidelity(backbone, tokens, rows, LAYERS)
    expected = embed_by_hugging_face(tiny_backbone, TEXTS, 128)
    assert fidelity.texts == len(TEXTS)
    assert fidelity.largest_error == pytest.approx(np.abs(rows.vectors - expected).max(), abs=1e-6)
    assert fidelity.lowest_cosine > 0.999999
    check_fidelity(fidelity, "float32")
    rows.vectors[3, 1] = rows.vectors[4, 1]
    off = measure_fidelity(backbone, tokens, rows, LAYERS)
    with pytest.raises(StoreError, match="not those of the backbone"):
        check_fidelity(off, "bfloat16")


def test_a_vector_does_not_depend_on_its_neighbours(tiny_backbone: Path) -> None:
    tokenizer = load_tokenizer(tiny_backbone, 128)
    engine = make_engine(tiny_backbone)
    together = engine.embed(tokenizer.tokenize(pa.array(TEXTS))).vectors
    for number, text in enumerate(TEXTS):
        alone = engine.embed(tokenizer.tokenize(pa.array([text]))).vectors[0]
        # Relative to the vector: a single number of it may be as near to zero as rounding.
        difference = np.linalg.norm(together[number] - alone, axis=-1)
        assert (difference <= 1e-6 * np.linalg.norm(alone, axis=-1)).all()


def test_only_the_layers_asked_for(tiny_backbone: Path) -> None:
    tokens = load_tokenizer(tiny_backbone, 128).tokenize(pa.array(TEXTS))
    engine = make_engine(tiny_backbone)
    every = engine.embed(tokens).vectors
    engine.layers = (2,)
    np.testing.assert_array_equal(engine.embed(tokens).vectors, every[:, 2:])


def test_mean_pool_ignores_what_is_masked() -> None:
    states = torch.randn(3, 5, 4)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]).bool()
    states[~mask] = 1e30
    mean = POOLINGS["mean"]
    pooled = mean.pool_padded(states.clone(), mask)
    for row, length in enumerate([5, 2, 1]):
        torch.testing.assert_close(pooled[row], states[row, :length].mean(dim=0))
    assert mean.pool_padded(states.half().nan_to_num(posinf=0.0), mask).dtype == torch.float32


@pytest.mark.parametrize("name", sorted(POOLINGS))
def test_every_pooling_gives_padded_and_packed_texts_what_it_gives_each_alone(name: str) -> None:
    pooling = find_pooling(name)
    packing = Packing(np.array([7, 7, 3, 1]))
    states = torch.randn(18, 4)
    texts = torch.split(states, packing.lengths.tolist())
    expected = torch.stack([pooling.pool_text(text) for text in texts])
    packed = pooling.make_packed(packing, torch.device("cpu"))(states)
    torch.testing.assert_close(packed, expected)
    padded = torch.nn.utils.rnn.pad_sequence(list(texts), batch_first=True, padding_value=9.0)
    mask = torch.arange(7) < torch.tensor([[7], [7], [3], [1]])
    torch.testing.assert_close(pooling.pool_padded(padded, mask), expected)


def test_a_pooling_that_there_is_not_is_said() -> None:
    with pytest.raises(
        SettingsError,
        match=r"embed\.pooling: must be one of mean, cls, max, mean_sqrt_len, last, got 'first'",
    ):
        find_pooling("first")


def test_packed_and_padded_means_are_the_same() -> None:
    packing = Packing(np.array([5, 2, 2, 1]))
    assert packing.offsets.tolist() == [0, 5, 7, 9, 10]
    assert packing.positions.tolist() == [0, 1, 2, 3, 4, 0, 1, 0, 1, 0]
    assert packing.runs == [(1, 5), (2, 2), (1, 1)]
    states = torch.randn(10, 4).bfloat16()
    pooled = POOLINGS["mean"].make_packed(packing, torch.device("cpu"))(states)
    assert pooled.dtype == torch.float32
    for row, part in enumerate(torch.split(states, packing.lengths.tolist())):
        torch.testing.assert_close(pooled[row], part.float().mean(dim=0))


def test_texts_started_together_are_those_of_each_alone(tiny_backbone: Path) -> None:
    tokenizer = load_tokenizer(tiny_backbone, 64)
    parts = [tokenizer.tokenize(pa.array(TEXTS[start::3])) for start in range(3)]
    with make_engine(tiny_backbone, budget=64) as engine:
        jobs = [engine.start(part) for part in parts]
        for job, part in zip(jobs, parts, strict=True):
            found = job.finish()
            np.testing.assert_array_equal(found.vectors, engine.embed(part).vectors)
            assert found.n_tokens.tolist() == part.lengths.tolist()


def test_too_little_memory_halves_the_budget(
    tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = make_engine(tiny_backbone, budget=4096)
    tokens = load_tokenizer(tiny_backbone, 64).tokenize(pa.array(TEXTS * 20))
    expected = make_engine(tiny_backbone).embed(tokens).vectors
    run = PackedBert.encode

    def encode(self: PackedBert, ids: np.ndarray, *rest: object) -> torch.Tensor:
        if len(ids) > 600:
            raise torch.OutOfMemoryError
        return run(self, ids, *rest)

    monkeypatch.setattr(PackedBert, "encode", encode)
    done: list[float] = []
    found = engine.start(tokens, done.append).finish().vectors
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert sum(done) == tokens.offsets[-1]
    assert 300 < engine.token_budget <= 600
    assert f"token budget halved to {engine.token_budget}" in capsys.readouterr().out


def test_one_text_too_large_for_the_device_is_said(
    tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(*anything: object) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(PackedBert, "encode", encode)
    tokens = load_tokenizer(tiny_backbone, 64).tokenize(pa.array(["a"]))
    with pytest.raises(DeviceError, match="one text of 3 tokens"):
        make_engine(tiny_backbone).embed(tokens)


def test_weights_that_lack_a_tensor_are_refused(tiny_backbone: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "lacking"
    shutil.copytree(tiny_backbone, folder)
    tensors = load_file(folder / "model.safetensors")
    name = next(n for n in tensors if n.endswith("layer.1.output.dense.weight"))
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AssetError, match="weights lack 1 tensors"):
        Backbone(folder, torch.device("cpu"), "float32")
    (folder / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(AssetError, match="cannot be loaded"):
        Backbone(folder, torch.device("cpu"), "float32")


def test_architecture_of_common_encoders(tmp_path: Path) -> None:
    def read(**config: object) -> Architecture:
        (tmp_path / "config.json").write_text(json.dumps(config))
        return Architecture.read(tmp_path)

    bert = read(
        model_type="bert", num_hidden_layers=12, hidden_size=768, max_position_embeddings=512,
        pad_token_id=0,
    )  # fmt: skip
    assert bert == Architecture("bert", 12, 768, 512, 0)
    roberta = read(
        model_type="roberta", num_hidden_layers=12, hidden_size=768, max_position_embeddings=514,
        pad_token_id=1,
    )  # fmt: skip
    assert roberta.max_tokens == 512
    distilbert = read(
        model_type="distilbert", n_layers=6, dim=768, max_position_embeddings=512, pad_token_id=0
    )
    assert (distilbert.layers, distilbert.width) == (6, 768)
    with pytest.raises(SettingsError, match=r"max_tokens: must be <= 512 .* got 513"):
        bert.check_max_tokens(513)
    with pytest.raises(AssetError, match="not the configuration of a text encoder"):
        read(model_type="clip")


def test_resolve_layers() -> None:
    available = tuple(range(7))
    assert resolve_layers("all", available, "embed.layers") == available
    assert resolve_layers("last", available, "embed.layers") == (6,)
    assert resolve_layers((-1, 0, 6), available, "embed.layers") == (0, 6)
    with pytest.raises(SettingsError, match=r"embed\.layers: no layer 7; there are 0, 1"):
        resolve_layers((7,), available, "embed.layers")
    with pytest.raises(SettingsError, match=r"heads\.layers: no layer 3; there are 0, 6"):
        resolve_layers((3,), (0, 6), "heads.layers")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_said() -> None:
    with pytest.raises(SettingsError, match="0 GPUs"):
        choose_devices("cuda")
    assert [device.type for device in choose_devices("auto")] == ["cpu"]
