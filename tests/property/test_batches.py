"""The engine's plan by its invariants, and its vectors on random texts against Hugging Face."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.embed.backbone import Backbone, pad_texts
from pipeline.embed.batches import fill_up, plan_batches
from pipeline.embed.engine import Engine
from pipeline.embed.tokens import Tokens, select_tokens
from tests.conftest import pack_bert

lengths_of_texts = st.lists(st.integers(1, 300), min_size=0, max_size=200)


@given(lengths=lengths_of_texts, budget=st.integers(16, 4096), packed=st.booleans())
def test_every_text_once_within_budget_longest_first(
    lengths: list[int], budget: int, packed: bool
) -> None:
    array = np.array(lengths, np.int64)
    batches = plan_batches(array, budget, packed=packed)
    assert sorted(np.concatenate(batches).tolist() if batches else []) == list(range(len(lengths)))
    longest = [int(array[batch].max()) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    sizes = [
        int(array[batch].sum()) if packed else len(batch) * top
        for batch, top in zip(batches, longest, strict=True)
    ]
    assert all(size <= budget or len(b) == 1 for size, b in zip(sizes, batches, strict=True))
    # No batch is smaller than it must be: the next text would not have fitted.
    for (batch, following), size, top in zip(pairwise(batches), sizes, longest, strict=False):
        assert size + (int(array[following[0]]) if packed else top) > budget or len(batch) == 1


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=30), data=st.data())
def test_selecting_and_padding_keep_every_token(lengths: list[int], data: st.DataObject) -> None:
    texts = [data.draw(st.lists(st.integers(1, 99), min_size=n, max_size=n)) for n in lengths]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = Tokens(np.concatenate(texts).astype(np.int32), offsets)
    batch = np.array(data.draw(st.permutations(range(len(texts)))))[: len(texts) // 2 + 1]
    chosen = select_tokens(tokens, batch)
    ids, mask = pad_texts(chosen.ids, chosen.lengths, pad_id=0)
    assert ids.shape == mask.shape == (len(batch), max(lengths[b] for b in batch))
    for row, text in enumerate(batch):
        assert ids[row][mask[row]].tolist() == texts[text]
        assert not ids[row][~mask[row]].any()
        assert mask[row].sum() == lengths[text]
        assert mask[row][: lengths[text]].all()


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    step=st.integers(1, 500),
    longest=st.integers(1, 60),
)
def test_filling_up_leaves_a_batchs_own_texts_in_front(
    lengths: list[int], step: int, longest: int
) -> None:
    tokens = Tokens(
        np.arange(1, sum(lengths) + 1, dtype=np.int32), np.append(0, np.cumsum(lengths))
    )
    filled = fill_up(tokens, step, longest)
    added = filled.lengths[len(lengths) :]
    assert len(filled.ids) % step == 0
    assert len(filled.ids) - len(tokens.ids) < step
    assert filled.lengths[: len(lengths)].tolist() == lengths
    assert filled.ids[: len(tokens.ids)].tolist() == tokens.ids.tolist()
    assert added.sum() == len(filled.ids) - len(tokens.ids)
    assert all(1 <= length <= longest for length in added.tolist())


@pytest.fixture(scope="module")
def reference(tiny_backbone: Path) -> Backbone:
    return Backbone(tiny_backbone, torch.device("cpu"), "float32")


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=40),
    budget=st.integers(16, 2000),
    seed=st.integers(0, 2**32 - 1),
    layers=st.sampled_from([(0, 1, 2), (2,), (0,), (1, 2)]),
)
def test_random_texts_in_random_batches_equal_hugging_face(
    reference: Backbone, lengths: list[int], budget: int, seed: int, layers: tuple[int, ...]
) -> None:
    vocabulary = reference.model.config.vocab_size
    ids = np.random.default_rng(seed).integers(0, vocabulary, sum(lengths)).astype(np.int32)
    tokens = Tokens(ids, np.concatenate([[0], np.cumsum(lengths)]))
    engine = Engine(pack_bert(reference, "float32"), layers, np.dtype("float32"), budget)
    found = engine.embed(tokens).vectors
    for number, (start, stop) in enumerate(pairwise(tokens.offsets)):
        with torch.no_grad():
            states = reference.model(
                input_ids=torch.from_numpy(ids[start:stop].astype(np.int64))[None],
                output_hidden_states=True,
            ).hidden_states
        expected = np.stack([states[layer][0].mean(dim=0).numpy() for layer in layers])
        np.testing.assert_allclose(found[number], expected, atol=5e-6)
