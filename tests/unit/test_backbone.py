"""A backbone's folder that lies: its configuration is checked before any memory is asked for."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.architecture import Architecture
from pipeline.embed.backbone import Backbone
from pipeline.embed.embedder import Embedder
from pipeline.errors import AssetError
from tests.conftest import ROOT, make_tiny_backbone

# 43 letters, digits and signs, each as the beginning and as the rest of a word, and 4 special ones.
VOCABULARY = 90


@pytest.fixture
def folder(tiny_backbone: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "backbone"
    shutil.copytree(tiny_backbone, copy)
    return copy


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps(config))


def refuse(folder: Path) -> AssetError:
    with pytest.raises(AssetError) as caught:
        Embedder(folder).load()
    assert "\n" not in caught.value.message
    assert str(folder) in caught.value.message
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 10**9}, "hidden_size must be from 1 to 100,000, not 1000000000"),
        ({"hidden_size": 10**400}, "hidden_size must be from 1 to 100,000"),
        ({"hidden_size": -32}, "hidden_size must be from 1 to 100,000, not -32"),
        ({"hidden_size": 0}, "hidden_size must be from 1"),
        ({"hidden_size": "32"}, "hidden_size must be a whole number, not '32'"),
        ({"hidden_size": 32.5}, "hidden_size must be a whole number, not 32.5"),
        ({"hidden_size": True}, "hidden_size must be a whole number, not True"),
        ({"hidden_size": [32]}, "hidden_size must be a whole number, not [32]"),
        ({"hidden_size": float("nan")}, "NaN is not a finite number"),
        ({"layer_norm_eps": float("inf")}, "Infinity is not a finite number"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers must be from 1 to 1,000, not 1000000"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be from 1"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings must be from 1"),
        ({"max_position_embeddings": -1}, "max_position_embeddings must be from 1"),
        ({"vocab_size": 10**12}, "vocab_size must be from 1 to 10,000,000, not 1000000000000"),
        ({"vocab_size": -1}, "vocab_size must be from 1"),
        (
            {"pad_token_id": 10**9},
            "pad_token_id is 1000000000, which no token",
        ),
        ({"pad_token_id": -1}, "pad_token_id is -1, which no token of the vocabulary has"),
        ({"pad_token_id": [0]}, "pad_token_id must be a whole number, not [0]"),
        ({"model_type": ["bert"]}, "model_type must be text, not ['bert']"),
        ({"model_type": "mpnet", "pad_token_id": 40, "max_position_embeddings": 41}, "no position"),
        # What is within the bounds of any encoder, but not within those of the weights.
        ({"hidden_size": 65536}, "config.json describes a model of"),
        ({"intermediate_size": 10**9}, "config.json describes a model of"),
        ({"vocab_size": 9_999_999}, "config.json describes a model of"),
        ({"max_position_embeddings": 9_999_999}, "config.json describes a model of"),
        ({"num_hidden_layers": 999, "intermediate_size": 4096}, "config.json describes a model"),
        ({"intermediate_size": -1}, "the backbone's weights cannot be loaded: "),
        ({"num_attention_heads": 0}, "the backbone's weights cannot be loaded: "),
        ({"num_attention_heads": 7}, "the backbone's weights cannot be loaded: "),
        ({"hidden_size": 64}, "the backbone's weights cannot be loaded: "),
        ({"hidden_act": "no such"}, "the backbone's weights cannot be loaded: "),
        ({"model_type": "no-such"}, "the backbone's weights cannot be loaded: "),
        (
            {"model_type": "no-such", "auto_map": {"AutoConfig": "a.B", "AutoModel": "a.C"}},
            "needs code of its own, which is never run",
        ),
        ({"quantization_config": {"quant_method": "gptq"}}, "has quantized weights"),
    ],
)
def test_a_hostile_configuration_is_one_message(
    changes: dict[str, object], message: str, folder: Path
) -> None:
    edit_config(folder, **changes)
    assert message in refuse(folder).message


@pytest.mark.parametrize("content", [b"[1]", b"1", b"[" * 100_000, b"{", b"\xff", b"null"])
def test_what_is_no_configuration_at_all(content: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(content)
    assert "config.json: not the configuration of a text encoder" in refuse(folder).message


def test_a_configuration_of_a_terabyte_is_not_read(folder: Path) -> None:
    with (folder / "config.json").open("wb") as file:
        file.truncate(1 << 40)
    assert "bytes, where 64,000,000 are the most" in refuse(folder).message


def test_a_hostile_size_is_refused_before_memory_is_touched(folder: Path) -> None:
    """A third of a gigabyte beyond what the imports take is far from the 18 that it describes."""
    edit_config(folder, vocab_size=9_999_999, hidden_size=512)
    code = (
        "import resource, sys, transformers\n"
        "from transformers.models.bert import modeling_bert\n"
        "from pipeline.embed.embedder import Embedder\n"
        "from pipeline.errors import AssetError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: Embedder(sys.argv[1]).load()\n"
        "except AssetError as error: print(error.message)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    message, grown = result.stdout.splitlines()
    assert "config.json describes a model of" in message
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    assert int(grown) * unit_bytes < 300_000_000


@pytest.mark.parametrize(
    ("token_id", "is_refused"), [(VOCABULARY - 1, False), (VOCABULARY, True), (10**6, True)]
)
def test_token_ids_beyond_the_vocabulary(token_id: int, is_refused: bool, folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["a"] = token_id
    path.write_text(json.dumps(content))
    if is_refused:
        expected = f"tokenizer.json has token ids up to {token_id:,}, but config.json a vocabulary"
        assert expected in refuse(folder).message
    else:
        Embedder(folder).load()


def test_an_added_token_beyond_the_vocabulary(folder: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["<entity>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    assert "tokenizer.json has token ids up to 90, but config.json" in refuse(folder).message


IDS, LENGTHS = np.array([2, 5, 6, 7, 3, 2, 8, 3], np.int32), np.array([5, 3])


@pytest.mark.parametrize(
    "changes",
    [
        {"_attn_implementation": "flash_attention_2"},
        {"attn_implementation": "flash_attention_2"},
        {"attn_implementation": "kernels-community/flash-attn"},
        {"attn_implementation": "no such"},
        {"output_attentions": True},
        {"return_dict": False},
        {"torchscript": True},
        {"dtype": "float16"},
        {"torch_dtype": "bfloat16"},
        {"auto_map": {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_a_configuration_says_of_the_computing_is_not_followed(
    changes: dict[str, object], folder: Path, tiny_backbone: Path
) -> None:
    (folder / "evil.py").write_text("raise SystemExit('remote code was run')")
    cpu = torch.device("cpu")
    expected = Backbone(tiny_backbone, cpu, "float32").encode(IDS, LENGTHS, (0, 1, 2))
    edit_config(folder, **changes)
    backbone = Backbone(folder, cpu, "float32")
    assert torch.equal(backbone.encode(IDS, LENGTHS, (0, 1, 2)), expected)
    assert backbone.model.config._attn_implementation == "sdpa"


def test_attention_is_plain_where_there_is_no_other(tmp_path: Path) -> None:
    from transformers import MPNetConfig, MPNetModel

    config = MPNetConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=130,
    )  # fmt: skip
    MPNetModel(config).save_pretrained(tmp_path)
    backbone = Backbone(tmp_path, torch.device("cpu"), "float32")
    assert backbone.model.config._attn_implementation == "eager"


def test_weights_of_half_precision_are_taken_exactly(tmp_path: Path) -> None:
    folder = make_tiny_backbone(tmp_path / "half")
    from transformers import AutoModel

    half = AutoModel.from_pretrained(folder).to(torch.float16)
    half.save_pretrained(folder)
    stored = half.state_dict()
    loaded = Backbone(folder, torch.device("cpu"), "float32").model.state_dict()
    assert all(loaded[name].dtype == torch.float32 for name in loaded)
    assert all(torch.equal(loaded[name], stored[name].float()) for name in loaded)


def test_the_vocabulary_is_read_where_it_stands(tiny_backbone: Path) -> None:
    assert Architecture.read(tiny_backbone).vocabulary == VOCABULARY
