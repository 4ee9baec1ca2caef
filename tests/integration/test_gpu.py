"""The engine on a GPU against Hugging Face in float32; skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from pipeline.device import choose_devices
from pipeline.embed.backbone import Backbone
from pipeline.embed.engine import Engine
from pipeline.embed.families import FAMILIES
from pipeline.embed.fidelity import check_fidelity, measure_fidelity
from pipeline.embed.loading import EngineGroup, EnginePlan
from pipeline.embed.tokens import Tokens
from tests.conftest import pack_bert
from tests.unit.test_families import draw_ids, make_config, make_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")

LENGTHS = [1, 2, 3, 16, 17, 127, 128, 129, 511, 512, *range(3, 60)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """gte-base's heads and width, two layers, random weights."""
    folder = tmp_path_factory.mktemp("gpu") / "bert"
    torch.manual_seed(0)
    config = transformers.BertConfig(num_hidden_layers=2)
    transformers.BertModel(config).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reference(folder: Path) -> Backbone:
    return Backbone(folder, torch.device("cuda"), "float32")


def make_tokens(lengths: list[int]) -> Tokens:
    ids = np.random.default_rng(0).integers(0, 30522, sum(lengths)).astype(np.int32)
    return Tokens(ids, np.concatenate([[0], np.cumsum(lengths)]))


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("budget", [600, 32768])
def test_every_layer_equals_hugging_face(reference: Backbone, precision: str, budget: int) -> None:
    tokens = make_tokens(LENGTHS)
    encoder = pack_bert(reference, precision)
    with Engine(encoder, (0, 1, 2), np.dtype("float32"), budget) as engine:
        rows = engine.embed(tokens)
    fidelity = measure_fidelity(reference, tokens, rows, engine.layers)
    check_fidelity(fidelity, precision)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_every_family_equals_hugging_face(kind: str, precision: str, tmp_path: Path) -> None:
    """Of texts on both sides of ModernBERT's local window, which is 32 tokens wide."""
    make_model(make_config(kind)).save_pretrained(tmp_path)
    plan = EnginePlan(tmp_path, precision, (0, 1, 2, 3), "float32")
    lengths = np.array(LENGTHS)
    tokens = Tokens(draw_ids(lengths).astype(np.int32), np.append(0, lengths.cumsum()))
    with plan.make_engine(torch.device("cuda")) as engine:
        assert engine.encoder.is_packed
        rows = engine.embed(tokens)
    reference = plan.load_reference(torch.device("cuda"))
    check_fidelity(measure_fidelity(reference, tokens, rows, engine.layers), precision)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="this machine has not two GPUs")
def test_all_gpus_share_the_work(reference: Backbone, folder: Path) -> None:
    plan = EnginePlan(folder, "float16", (1, 2), "float32")
    shards = [make_tokens(LENGTHS[start:]) for start in range(6)]
    with EngineGroup(plan, choose_devices("auto")) as group:
        jobs = [group.start(shard) for shard in shards]
        for job, shard in zip(jobs, shards, strict=True):
            check_fidelity(measure_fidelity(reference, shard, job.finish(), (1, 2)), "float16")


def test_a_vector_does_not_depend_on_its_neighbours(reference: Backbone) -> None:
    """How far it moves, the benchmark tells; here, that it is the same text's."""
    tokens = make_tokens(LENGTHS)
    with Engine(pack_bert(reference, "float16"), (1, 2), np.dtype("float32"), 32768) as engine:
        together = engine.embed(tokens).vectors
        engine.token_budget = 64
        apart = engine.embed(tokens).vectors
    cosine = (together * apart).sum(-1)
    cosine /= np.linalg.norm(together, axis=-1) * np.linalg.norm(apart, axis=-1)
    assert cosine.min() > 0.99999
