"""A new family of encoders is one file and one entry: ELECTRA, in this file."""

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

from pipeline.embed.families import FAMILIES
from pipeline.embed.families.bert import PackedBert
from pipeline.embed.weights import Shapes
from pipeline.project import Project
from pipeline.store import read_manifest, read_vectors
from tests.conftest import Cli, edit_params, run_stages


class PackedElectra(PackedBert):
    """ELECTRA: BERT whose embeddings may be narrower than its layers.

    Source: Clark et al. (2020), ELECTRA.
    """

    prefix = "electra"
    defaults: ClassVar[Mapping[str, Any]] = {
        **PackedBert.defaults, "num_attention_heads": 4, "intermediate_size": 1024,
    }  # fmt: skip

    @classmethod
    def is_supported(cls, config: Mapping[str, Any]) -> bool:
        return super().is_supported(config) and type(config.get("embedding_size")) is int

    @classmethod
    def list_shapes(cls, config: Mapping[str, Any]) -> Shapes:
        E, D = config["embedding_size"], config["hidden_size"]
        shapes = {
            name: (*shape[:-1], E) if name.startswith("embeddings.") else shape
            for name, shape in super().list_shapes(config).items()
        }
        return shapes | {"embeddings_project.weight": (D, E), "embeddings_project.bias": (D,)}

    def take_weights(self, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> None:
        super().take_weights(tensors, config)
        self._widen = tensors["embeddings_project.weight"], tensors["embeddings_project.bias"]

    def embed_tokens(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return functional.linear(super().embed_tokens(ids, positions), *self._widen)


@pytest.fixture
def electra(tiny_backbone: Path, tmp_path: Path) -> Path:
    """A folder with an ELECTRA of 3 layers and width 32 with random weights."""
    folder = tmp_path / "electra"
    folder.mkdir()
    shutil.copy(tiny_backbone / "tokenizer.json", folder)
    config = transformers.ElectraConfig(
        vocab_size=100, embedding_size=24, hidden_size=32, num_hidden_layers=3,
        num_attention_heads=4, intermediate_size=64, max_position_embeddings=128,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.ElectraModel(config).eval()
    with torch.no_grad():  # random biases and norms, of which none could be left out unnoticed
        for tensor in model.parameters():
            tensor.add_(0.1 * torch.randn_like(tensor))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("packed", [True, False])
def test_a_family_is_added_by_one_entry_and_runs_from_settings(
    few_messages: Path,
    electra: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    packed: bool,
) -> None:
    if packed:
        monkeypatch.setitem(FAMILIES, "electra", PackedElectra)
    edit_params({"fetch.backbones": [str(electra)], "embed.dtype": "float32"})
    run_stages(cli, "fetch", "prepare")
    result = cli("embed")
    assert result.returncode == 0, result.stderr
    kind = "packed forward pass, no padding" if packed else "forward pass for electra, padded"
    assert kind in result.stdout
    store = Project().store
    fidelity = read_manifest(store).fidelity
    assert fidelity is not None
    assert fidelity["lowest_cosine"] >= 0.999999

    table = pq.read_table(Project().texts_file)
    vectors = read_vectors(store, table["key"].combine_chunks(), range(4))
    expected = embed_by_hugging_face(electra, table["text"].to_pylist())
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
    electra: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.embed.families import find_family

    config = transformers.AutoConfig.from_pretrained(electra).to_dict()
    assert find_family(config) is None
    monkeypatch.setitem(FAMILIES, "electra", PackedElectra)
    assert find_family(config) is PackedElectra
    assert find_family({**config, "hidden_act": "relu"}) is None
