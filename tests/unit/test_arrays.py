"""Large arrays part by part, and Arrow's without pandas: as NumPy and Arrow do it at once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import arrays
from pipeline.arrays import find_first, take_values, unwrap_numbers, wrap_numbers
from pipeline.corpus.keys import KeyIndex, find_first_keys, keep_keys


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "_PART", 7)


@pytest.mark.parametrize("number", [0, 1, 7, 50])
def test_values_are_taken_part_by_part(number: int) -> None:
    generator = np.random.default_rng(number)
    values = generator.standard_normal((9, 2))
    indices = generator.integers(0, 9, number).astype(np.int32)
    np.testing.assert_array_equal(take_values(values, indices), values[indices])
    numbers = generator.integers(0, 100, 9).astype(np.int32)
    expected = numbers[indices]
    assert take_values(numbers, indices, into=indices) is indices
    np.testing.assert_array_equal(indices, expected)


def test_the_first_of_equal_numbers_is_found() -> None:
    numbers = np.random.default_rng(0).integers(0, 40, 60).astype(np.int32)
    held = numbers.tolist()
    expected = [held.index(number) if number in held else -1 for number in range(max(held) + 1)]
    assert -1 in expected
    assert find_first(numbers).tolist() == expected
    assert find_first(numbers[:0]).tolist() == []


@pytest.mark.parametrize("kind", [pa.int8(), pa.int16(), pa.int32(), pa.float32(), pa.float64()])
def test_numbers_of_arrow_go_there_and_back(kind: pa.DataType) -> None:
    values: list[Any] = [None, 3, None, 0, 7, *range(20), None]
    made = pa.array(values, kind)
    numbers = unwrap_numbers(made, -1)
    assert numbers.dtype == kind.to_pandas_dtype()
    assert numbers.tolist() == [-1 if value is None else value for value in values]
    assert unwrap_numbers(made.slice(2, 9), -1).tolist() == numbers[2:11].tolist()
    assert wrap_numbers(numbers, numbers == -1).equals(made)
    whole = pa.array(range(5), kind)
    assert unwrap_numbers(whole).tolist() == [0, 1, 2, 3, 4]
    assert wrap_numbers(unwrap_numbers(whole), np.zeros(5, bool)).null_count == 0
    assert unwrap_numbers(pa.array([], kind)).tolist() == []


def test_nulls_are_where_nan_is() -> None:
    values = np.array([1.5, math.nan, -2.0])
    assert wrap_numbers(values, np.isnan(values)).to_pylist() == [1.5, None, -2.0]


def draw_keys(number: int) -> np.ndarray:
    """Keys of which many are equal, and many share a half with others."""
    generator = np.random.default_rng(number)
    keys = generator.integers(0, 256, (number, 16)).astype(np.uint8)
    keys[::3, :8] = keys[0, :8]
    keys[::4] = keys[generator.integers(0, number, len(keys[::4]))]
    return keys


def test_first_keys_are_kept_in_their_order() -> None:
    keys = draw_keys(40_000)
    raw = [key.tobytes() for key in keys]
    distinct = list(dict.fromkeys(raw))
    is_first = find_first_keys(keys)
    assert np.flatnonzero(is_first).tolist() == list(map(raw.index, distinct[:500])) + (
        np.flatnonzero(is_first)[500:].tolist()
    )
    kept = keep_keys(keys, is_first)
    assert [key.tobytes() for key in kept] == distinct
    assert np.shares_memory(kept, keys)


def test_a_guess_only_saves_the_search() -> None:
    keys = np.random.default_rng(0).integers(0, 256, (1000, 16)).astype(np.uint8)
    for start, stop in ((0, 1000), (300, 420), (999, 1000)):
        part, expected = keys[start:stop], list(range(start, stop))
        for guess in (start, 0, 5, 990, 1000):
            assert KeyIndex(keys).find(part, guess).tolist() == expected
    turned = keys[::-1].copy()
    assert KeyIndex(keys).find(turned).tolist() == list(range(1000))[::-1]
    odd = keys[300:420].copy()
    odd[60] += 1
    expected = [*range(300, 360), -1, *range(361, 420)]
    assert KeyIndex(keys).find(odd, 300).tolist() == expected


def test_keys_that_share_their_first_half_are_all_found() -> None:
    """Chance does not make such keys of texts, which makes them the rows that nobody tries."""
    generator = np.random.default_rng(0)
    halves = generator.integers(0, 5, (400, 2)).astype(np.uint64)
    halves = generator.permutation(np.unique(halves, axis=0))
    held, looked_for = halves[:15], generator.permutation(np.concatenate([halves, halves]))
    numbers = {tuple(half): number for number, half in enumerate(held.tolist())}
    expected = [numbers.get(tuple(half), -1) for half in looked_for.tolist()]
    assert len(set(expected)) == 16
    index = KeyIndex(held.view(np.uint8))
    assert index.find(looked_for.view(np.uint8)).tolist() == expected
