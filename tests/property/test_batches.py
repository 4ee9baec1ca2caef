"""The batching plan by its invariants."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.embed.batches import pad_batch, plan_batches
from pipeline.embed.tokens import Tokens

lengths_of_texts = st.lists(st.integers(1, 300), min_size=0, max_size=200)


@given(lengths=lengths_of_texts, budget=st.integers(16, 4096))
def test_every_text_once_within_budget_longest_first(lengths: list[int], budget: int) -> None:
    array = np.array(lengths, np.int64)
    batches = plan_batches(array, budget)
    assert sorted(np.concatenate(batches).tolist() if batches else []) == list(range(len(lengths)))
    padded = [len(batch) * int(array[batch].max()) for batch in batches]
    assert all(p <= budget or len(b) == 1 for p, b in zip(padded, batches, strict=True))
    longest = [int(array[batch].max()) for batch in batches]
    assert longest == sorted(longest, reverse=True)


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=30), data=st.data())
def test_padding_keeps_every_token(lengths: list[int], data: st.DataObject) -> None:
    texts = [data.draw(st.lists(st.integers(1, 99), min_size=n, max_size=n)) for n in lengths]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = Tokens(np.concatenate(texts).astype(np.int32), offsets)
    batch = np.array(data.draw(st.permutations(range(len(texts)))))[: len(texts) // 2 + 1]
    ids, mask = pad_batch(tokens, batch, pad_id=0)
    assert ids.shape == mask.shape == (len(batch), max(lengths[b] for b in batch))
    for row, text in enumerate(batch):
        assert ids[row][mask[row]].tolist() == texts[text]
        assert not ids[row][~mask[row]].any()
        assert mask[row].sum() == lengths[text]
        assert mask[row][: lengths[text]].all()
