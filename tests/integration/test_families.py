"""A new family of encoders is one file and one entry: DistilBERT, in this file."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from torch.nn import functional

from pipeline.embed.attention import Attention
from pipeline.embed.families import FAMILIES
from pipeline.embed.linears import Norm
from pipeline.embed.packed import PackedEncoder
from pipeline.embed.weights import Shapes
from pipeline.project import Project
from pipeline.store import read_manifest, read_vectors
from tests.conftest import Cli, edit_params, run_stages


class PackedDistilBert(PackedEncoder):
    """DistilBERT: BERT without segments, under other names.

    Source: Sanh et al. (2019), DistilBERT.
    """

    prefix = "distilbert"
    defaults: ClassVar[Mapping[str, Any]] = {"activation": "gelu"}

    @staticmethod
    def is_supported(config: Mapping[str, Any]) -> bool:
        return bool(config["activation"] == "gelu")

    @staticmethod
    def count_heads(config: Mapping[str, Any]) -> int:
        return int(config["n_heads"])

    @staticmethod
    def list_shapes(config: Mapping[str, Any]) -> Shapes:
        D, inner = config["dim"], config["hidden_dim"]
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (config["vocab_size"], D),
            "embeddings.position_embeddings.weight": (config["max_position_embeddings"], D),
        }
        linears = {f"attention.{name}_lin": (D, D) for name in ("q", "k", "v", "out")}
        linears |= {"ffn.lin1": (inner, D), "ffn.lin2": (D, inner)}
        norms = ["embeddings.LayerNorm"]
        for number in range(config["n_layers"]):
            layer = f"transformer.layer.{number}"
            for name, shape in linears.items():
                shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
            norms += [f"{layer}.sa_layer_norm", f"{layer}.output_layer_norm"]
        return shapes | {f"{name}.{part}": (D,) for name in norms for part in ("weight", "bias")}

    def take_weights(self, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> None:
        self._words = tensors["embeddings.word_embeddings.weight"]
        self._positions = tensors["embeddings.position_embeddings.weight"]
        norm = "embeddings.LayerNorm"
        self._norm = Norm(tensors[f"{norm}.weight"], tensors[f"{norm}.bias"], 1e-12)
        layers = [f"transformer.layer.{number}" for number in range(config["n_layers"])]
        self._layers = [
            (
                self.pack_linear(tensors, *(f"{layer}.attention.{name}_lin" for name in "qkv")),
                self.pack_linear(tensors, f"{layer}.attention.out_lin"),
                self.pack_norm(tensors, f"{layer}.sa_layer_norm", 1e-12),
                self.pack_linear(tensors, f"{layer}.ffn.lin1"),
                self.pack_linear(tensors, f"{layer}.ffn.lin2"),
                self.pack_norm(tensors, f"{layer}.output_layer_norm", 1e-12),
            )
            for layer in layers
        ]

    def embed_tokens(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        words = functional.embedding(ids, self._words)
        return self._norm.apply(words + functional.embedding(positions, self._positions))

    def run_layer(self, number: int, x: torch.Tensor, attend: Attention) -> torch.Tensor:
        qkv, out, first_norm, up, down, second_norm = self._layers[number - 1]
        x = out.apply_add_norm(attend(qkv.apply(x)), x, first_norm)
        return down.apply_add_norm(up.apply_gelu(x, "none"), x, second_norm)


@pytest.fixture
def distilbert(tiny_backbone: Path, tmp_path: Path) -> Path:
    """A folder with a DistilBERT of 3 layers and width 32 with random weights."""
    folder = tmp_path / "distilbert"
    folder.mkdir()
    shutil.copy(tiny_backbone / "tokenizer.json", folder)
    config = transformers.DistilBertConfig(
        vocab_size=100, dim=32, n_layers=3, n_heads=4, hidden_dim=64, max_position_embeddings=128
    )
    torch.manual_seed(0)
    model = transformers.DistilBertModel(config).eval()
    with torch.no_grad():  # random biases and norms, of which none could be left out unnoticed
        for tensor in model.parameters():
            tensor.add_(0.1 * torch.randn_like(tensor))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("packed", [True, False])
def test_a_family_is_added_by_one_entry_and_runs_from_settings(
    few_messages: Path,
    distilbert: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    packed: bool,
) -> None:
    if packed:
        monkeypatch.setitem(FAMILIES, "distilbert", PackedDistilBert)
    edit_params({"fetch.backbones": [str(distilbert)], "embed.dtype": "float32"})
    run_stages(cli, "fetch", "prepare")
    result = cli("embed")
    assert result.returncode == 0, result.stderr
    kind = "packed forward pass, no padding" if packed else "forward pass for distilbert, padded"
    assert kind in result.stdout
    store = Project().store
    fidelity = read_manifest(store).fidelity
    assert fidelity is not None
    assert fidelity["lowest_cosine"] >= 0.999999

    table = pq.read_table(Project().texts_file)
    vectors = read_vectors(store, table["key"].combine_chunks(), range(4))
    expected = embed_by_hugging_face(distilbert, table["text"].to_pylist())
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def embed_by_hugging_face(folder: Path, texts: list[str]) -> np.ndarray:
    """Every layer of each text by itself, without padding."""
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    model = transformers.AutoModel.from_pretrained(folder).eval()
    vectors = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=128, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            states = model(input_ids=ids, output_hidden_states=True).hidden_states
        vectors.append(np.stack([state[0].mean(dim=0).numpy() for state in states]))
    return np.stack(vectors)


def test_a_configuration_that_a_family_lacks_is_padded(
    distilbert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.embed.families import find_family

    config = transformers.AutoConfig.from_pretrained(distilbert).to_dict()
    assert find_family(config) is None
    monkeypatch.setitem(FAMILIES, "distilbert", PackedDistilBert)
    assert find_family(config) is PackedDistilBert
    assert find_family({**config, "activation": "relu"}) is None
