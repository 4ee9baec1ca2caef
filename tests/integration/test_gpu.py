"""The engine on a GPU against Hugging Face in float32; skipped where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from pipeline.assets import Asset
from pipeline.embed.backbone import Backbone
from pipeline.embed.engine import Engine
from pipeline.embed.fidelity import check_fidelity, measure_fidelity
from pipeline.embed.packed import PackedBert
from pipeline.embed.tokens import Tokens

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")

LENGTHS = [1, 2, 3, 16, 17, 127, 128, 129, 511, 512, *range(3, 60)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """gte-base's heads and width, two layers, random weights."""
    folder = tmp_path_factory.mktemp("gpu") / "bert"
    torch.manual_seed(0)
    config = transformers.BertConfig(num_hidden_layers=2)
    transformers.BertModel(config).eval().save_pretrained(folder)
    asset = Asset(id="random", source="test", files={}, path=str(folder))
    return Backbone(asset, folder, torch.device("cuda"), "float32")


def make_tokens(lengths: list[int]) -> Tokens:
    ids = np.random.default_rng(0).integers(0, 30522, sum(lengths)).astype(np.int32)
    return Tokens(ids, np.concatenate([[0], np.cumsum(lengths)]))


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("budget", [600, 65536])
def test_every_layer_equals_hugging_face(reference: Backbone, precision: str, budget: int) -> None:
    tokens = make_tokens(LENGTHS)
    engine = Engine(PackedBert(reference, precision), (0, 1, 2), np.dtype("float32"), budget)
    rows = engine.embed(tokens)
    fidelity = measure_fidelity(reference, tokens, rows, engine.layers)
    check_fidelity(fidelity, precision)


def test_a_vector_does_not_depend_on_its_neighbours(reference: Backbone) -> None:
    engine = Engine(PackedBert(reference, "float16"), (1, 2), np.dtype("float32"), 65536)
    together = engine.embed(make_tokens(LENGTHS)).vectors
    engine.token_budget = 64
    apart = engine.embed(make_tokens(LENGTHS)).vectors
    cosine = (together * apart).sum(-1)
    cosine /= np.linalg.norm(together, axis=-1) * np.linalg.norm(apart, axis=-1)
    assert cosine.min() > 0.99999
