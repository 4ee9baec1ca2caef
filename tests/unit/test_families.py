"""Every packed family against Hugging Face's own forward pass, on random weights."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pipeline.architecture import Architecture
from pipeline.embed.backbone import Backbone
from pipeline.embed.engine import Engine
from pipeline.embed.families import FAMILIES, find_family
from pipeline.embed.fidelity import check_fidelity, measure_fidelity
from pipeline.embed.loading import EnginePlan
from pipeline.embed.packed import PackedEncoder
from pipeline.embed.pooling import find_pooling
from pipeline.embed.tokens import Tokens
from pipeline.embed.weights import Weights, read_config
from tests.conftest import ROOT

CPU = torch.device("cpu")
VOCABULARY = 120
LENGTHS = (1, 2, 15, 16, 17, 95, 96, 97, 127, 128, 129, 255, 257, 511, 512)
TABLES = {"vocab_size": VOCABULARY, "max_position_embeddings": 520}


def make_config(kind: str, **changes: Any) -> Any:
    """A small configuration of a family; changes are in BERT's names of the sizes."""
    sizes = {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 48, **TABLES, **changes,
    }  # fmt: skip
    match kind:
        case "roberta":
            return transformers.RobertaConfig(**{"type_vocab_size": 1, **sizes})
        case "xlm-roberta":
            return transformers.XLMRobertaConfig(**{"type_vocab_size": 1, **sizes})
        case "mpnet":
            return transformers.MPNetConfig(**sizes)
        case "distilbert":
            return transformers.DistilBertConfig(hidden_dim=sizes.pop("intermediate_size"), **sizes)
        case "modernbert":
            special = {f"{name}_token_id": 1 for name in ("pad", "bos", "eos", "cls", "sep")}
            return transformers.ModernBertConfig(**{"local_attention": 32, **special, **sizes})
    return transformers.BertConfig(**sizes)


def make_model(config: Any, seed: int = 0) -> Any:
    """A model whose weights are all random, so that none could be left out unnoticed."""
    torch.manual_seed(seed)
    model = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.1 * torch.randn_like(tensor))
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model.requires_grad_(False)


def pack(model: Any, folder: Path, precision: Any = "float32") -> PackedEncoder:
    """The packed forward pass of a model, whose configuration is written to a folder."""
    model.config.save_pretrained(folder)
    family = find_family(read_config(folder))
    assert family is not None
    weights = Weights(Architecture.read(folder), read_config(folder), model.state_dict())
    return family(weights, CPU, precision, find_pooling("mean"))


def embed_one_by_one(model: Any, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Every layer by Hugging Face, a text at a time, without padding and without a mask."""
    vectors = []
    for text in np.split(ids, np.cumsum(lengths)[:-1]):
        with torch.no_grad():
            batch = torch.from_numpy(text[None].astype(np.int64))
            output = model(input_ids=batch, output_hidden_states=True, return_dict=True)
        states = [*output.hidden_states[:-1], output.last_hidden_state]
        vectors.append(np.stack([state[0].mean(dim=0).numpy() for state in states]))
    return np.stack(vectors)


def check_equal(encoder: PackedEncoder, model: Any, ids: np.ndarray, lengths: np.ndarray) -> None:
    layers = tuple(range(encoder.architecture.layers + 1))
    found = encoder.encode(ids.astype(np.int32), lengths, layers).numpy().astype(np.float64)
    expected = embed_one_by_one(model, ids, lengths)
    assert found.shape == expected.shape
    cosine = (found * expected).sum(-1)
    cosine /= np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    assert cosine.min() >= 0.999999
    apart = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert apart.max() < 1e-5


def draw_ids(lengths: np.ndarray, seed: int = 0) -> np.ndarray:
    """Random tokens without those that a family gives a meaning."""
    return np.random.default_rng(seed).integers(5, VOCABULARY, int(lengths.sum()))


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("length", LENGTHS)
def test_every_layer_at_every_length(kind: str, length: int, tmp_path: Path) -> None:
    model = make_model(make_config(kind))
    lengths = np.full(2, length)
    check_equal(pack(model, tmp_path), model, draw_ids(lengths), lengths)


@pytest.mark.parametrize("kind", FAMILIES)
def test_texts_of_many_lengths_do_not_touch_each_other(kind: str, tmp_path: Path) -> None:
    model = make_model(make_config(kind))
    lengths = np.array([300, 300, 140, 97, 40, 40, 40, 12, 12, 3, 2, 1, 1])
    check_equal(pack(model, tmp_path), model, draw_ids(lengths), lengths)


@pytest.mark.parametrize("window", [0, 1, 2, 7, 64, 127, 128, 129, 600])
@pytest.mark.parametrize("length", [40, 128, 129, 700])
def test_modernbert_past_its_local_window(window: int, length: int, tmp_path: Path) -> None:
    config = make_config(
        "modernbert",
        local_attention=2 * window + 1,
        max_position_embeddings=8192,
        num_hidden_layers=4,
    )
    model = make_model(config)
    lengths = np.array([length, length, 5])
    check_equal(pack(model, tmp_path), model, draw_ids(lengths), lengths)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_random_shapes_and_texts(data: st.DataObject, tmp_path_factory: Any) -> None:
    kind = data.draw(st.sampled_from(sorted(FAMILIES)))
    heads = data.draw(st.sampled_from([1, 2, 3, 5]))
    # A norm of two numbers leaves of their difference the sign alone: where they are nearly equal,
    # Hugging Face in float32 is itself off by a hundredth of what it gives in float64.
    head_width = data.draw(st.sampled_from([2, 8, 14] if heads > 1 else [4, 8, 14]))
    changes = {
        "num_attention_heads": heads,
        "hidden_size": heads * head_width,
        "num_hidden_layers": data.draw(st.integers(1, 5)),
        "intermediate_size": data.draw(st.integers(1, 70)),
        "hidden_act": data.draw(st.sampled_from(["gelu", "gelu_new", "gelu_pytorch_tanh"])),
    }
    if kind == "distilbert":
        changes["activation"] = changes.pop("hidden_act")
    if kind == "modernbert":
        changes["hidden_activation"] = changes.pop("hidden_act")
        flags = ("attention_bias", "mlp_bias", "norm_bias")
        changes |= {flag: data.draw(st.booleans()) for flag in flags}
        changes["local_attention"] = data.draw(st.integers(1, 90))
    if kind in ("roberta", "xlm-roberta"):
        changes["pad_token_id"] = data.draw(st.integers(0, 4))
    config = make_config(kind, **changes)
    if kind == "modernbert":
        every = data.draw(st.integers(1, 4))
        config.layer_types = [
            "sliding_attention" if n % every else "full_attention"
            for n in range(config.num_hidden_layers)
        ]
        for rope in config.rope_parameters.values():
            rope["rope_theta"] = data.draw(st.sampled_from([500.0, 10_000.0, 160_000.0]))
    model = make_model(config, seed=data.draw(st.integers(0, 99)))
    lengths = np.sort(data.draw(st.lists(st.integers(1, 140), min_size=1, max_size=6)))[::-1]
    encoder = pack(model, tmp_path_factory.mktemp("random"))
    check_equal(encoder, model, draw_ids(lengths, data.draw(st.integers(0, 99))), lengths)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_within_its_tolerance(kind: str, precision: Any, tmp_path: Path) -> None:
    model = make_model(make_config(kind))
    encoder = pack(model, tmp_path, precision)
    model.save_pretrained(tmp_path)
    lengths = np.array([200, 130, 60, 60, 9, 2, 1, 1])
    tokens = Tokens(draw_ids(lengths).astype(np.int32), np.append(0, lengths.cumsum()))
    layers = tuple(range(encoder.architecture.layers + 1))
    with Engine(encoder, layers, np.dtype("float32"), 300) as engine:
        rows = engine.embed(tokens)
    fidelity = measure_fidelity(Backbone(tmp_path, CPU, "float32"), tokens, rows, layers)
    assert fidelity.lowest_cosine < 0.9999999  # it did compute in fewer bits
    check_fidelity(fidelity, precision)


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "mpnet"])
def test_a_padding_token_within_a_text_counts_as_none(kind: str, tmp_path: Path) -> None:
    """A text that has the name of the padding token in it is given its id by the tokenizer."""
    config = make_config(kind)
    assert config.pad_token_id == 1
    model = make_model(config)
    lengths = np.array([9, 9, 4, 3, 1])
    ids = draw_ids(lengths)
    ids[[0, 4, 5, 9, 18, 19, 21, 25]] = 1
    check_equal(pack(model, tmp_path), model, ids, lengths)


def rename(prefix: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


# Embeds by every folder that it is given, and tells if transformers was imported.
LOAD_AND_EMBED = """
import sys
from pathlib import Path
import numpy as np, torch
from pipeline.embed.loading import EnginePlan
for folder in map(Path, sys.argv[1:]):
    plan = EnginePlan(folder, "float32", (0, 1, 2, 3), "float32")
    encoder = plan.load_encoder(torch.device("cpu"))
    ids = np.load(folder / "ids.npy").astype(np.int32)
    vectors = encoder.encode(ids, np.load(folder / "lengths.npy"), (0, 1, 2, 3))
    np.save(folder / "vectors.npy", vectors.numpy())
print("transformers" in sys.modules)
"""


def test_weights_come_from_the_file_alone(tmp_path: Path) -> None:
    lengths = np.array([40, 7, 1])
    ids = draw_ids(lengths)
    expected: dict[Path, np.ndarray] = {}
    for kind in FAMILIES:
        model = make_model(make_config(kind))
        for is_part in (False, True):
            folder = tmp_path / f"{kind}-{is_part}"
            model.save_pretrained(folder)
            np.save(folder / "ids.npy", ids)
            np.save(folder / "lengths.npy", lengths)
            path = folder / "model.safetensors"
            if is_part:
                save_file(rename(model.base_model_prefix)(load_file(path)), path, {"format": "pt"})
            expected[folder] = embed_one_by_one(model, ids, lengths)
    run = subprocess.run(
        [sys.executable, "-c", LOAD_AND_EMBED, *map(str, expected)],
        check=True, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert run.stdout.strip() == "False"
    for folder, vectors in expected.items():
        np.testing.assert_allclose(np.load(folder / "vectors.npy"), vectors, atol=2e-6)


@pytest.mark.parametrize("kind", FAMILIES)
def test_defaults_are_those_of_hugging_face(kind: str) -> None:
    defaults = transformers.CONFIG_MAPPING[kind]().to_dict()
    family = FAMILIES[kind]
    assert {key: defaults[key] for key in family.defaults} == dict(family.defaults)
    assert find_family(defaults) is family


@pytest.mark.parametrize("every", [None, 2])
def test_configurations_of_modernbert_before_transformers_5(
    every: int | None, tmp_path: Path
) -> None:
    """These name the bases of the angles and every how many layers attention is global."""
    config = make_config("modernbert", num_hidden_layers=5)
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    old = json.loads(path.read_text())
    del old["layer_types"], old["rope_parameters"]
    old |= {"global_rope_theta": 80_000.0, "local_rope_theta": 900.0}
    old |= {"global_attn_every_n_layers": every} if every else {}
    path.write_text(json.dumps(old))
    model = make_model(transformers.AutoConfig.from_pretrained(tmp_path))
    model.save_pretrained(tmp_path)
    path.write_text(json.dumps(old))
    plan = EnginePlan(tmp_path, "float32", (0,), "float32")
    encoder = plan.load_encoder(CPU)
    assert isinstance(encoder, FAMILIES["modernbert"])
    lengths = np.array([60, 60, 3])
    check_equal(encoder, model, draw_ids(lengths), lengths)


ODD_LAYERS = {"layer_types": ["full_attention", "chunked_attention", "full_attention"]}
ODD_ROPE = {"full_attention": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        *[
            (kind, change)
            for kind in ("bert", "roberta", "xlm-roberta")
            for change in (
                {"position_embedding_type": "relative_key"},
                {"hidden_act": "relu"},
                {"hidden_act": None},
                {"is_decoder": True},
                {"add_cross_attention": True},
                {"pruned_heads": {"0": [1]}},
                {"hidden_size": 30},
                {"intermediate_size": "48"},
                {"layer_norm_eps": None},
            )
        ],
        ("roberta", {"pad_token_id": None}),
        ("xlm-roberta", {"pad_token_id": 600}),
        ("distilbert", {"activation": "relu"}),
        ("distilbert", {"n_heads": 5}),
        ("distilbert", {"pruned_heads": {"0": [1]}}),
        ("mpnet", {"hidden_act": "silu"}),
        ("mpnet", {"relative_attention_num_buckets": 64}),
        ("modernbert", {"hidden_activation": "silu"}),
        ("modernbert", {"layer_types": ["full_attention"]}),
        ("modernbert", {"layer_types": "full_attention"}),
        ("modernbert", ODD_LAYERS),
        ("modernbert", {"rope_parameters": ODD_ROPE}),
        ("modernbert", {"rope_parameters": {"full_attention": "plain"}}),
        ("modernbert", {"rope_parameters": "plain"}),
        ("modernbert", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        ("modernbert", {"head_dim": 4}),
        ("modernbert", {"local_attention": 0}),
        ("modernbert", {"global_attn_every_n_layers": 0, "layer_types": None}),
        ("modernbert", {"norm_bias": None}),
        ("modernbert", {"num_attention_heads": 32}),  # heads of a width of 1
    ],
)
def test_a_variant_that_a_family_lacks_is_padded(kind: str, change: dict[str, Any]) -> None:
    config = make_config(kind).to_dict()
    assert find_family(config) is FAMILIES[kind]
    assert find_family({**config, **change}) is None


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_log_says_of_which_kind_the_forward_pass_is(kind: str, tmp_path: Path) -> None:
    config = make_config(kind)
    config.save_pretrained(tmp_path)
    plan = EnginePlan(tmp_path, "float32", (0,), "float32")
    assert plan.describe([CPU]) == "packed forward pass, no padding"
    (tmp_path / "adapter_config.json").write_text("{}")
    plan = EnginePlan(tmp_path, "float32", (0,), "float32")
    assert plan.describe([CPU]) == f"Hugging Face's forward pass for {kind}, padded"


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "mpnet"])
def test_the_longest_text_is_as_long_as_there_are_positions(kind: str, tmp_path: Path) -> None:
    """A configuration without the id of the padding token has the one of transformers."""
    config = make_config(kind)
    model = make_model(config)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    about = json.loads(path.read_text())
    about.pop("pad_token_id")
    path.write_text(json.dumps(about))
    architecture = Architecture.read(tmp_path)
    assert architecture.max_tokens == TABLES["max_position_embeddings"] - 2
    encoder = EnginePlan(tmp_path, "float32", (0,), "float32").load_encoder(CPU)
    lengths = np.array([architecture.max_tokens])
    check_equal(encoder, model, draw_ids(lengths), lengths)
    with pytest.raises((IndexError, RuntimeError)):  # there is no such position
        embed_one_by_one(model, draw_ids(lengths + 1), lengths + 1)
