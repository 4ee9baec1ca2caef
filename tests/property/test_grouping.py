"""A text's logits are the same to the last digit whatever texts are computed beside it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.model.weights import Centers, HeadWeights, multiply_exactly

ROWS, WIDTH = 70, 48


def draw_head(kind: str, outputs: int, scale: float) -> HeadWeights:
    """A head of a form; with a scale, its rows are that far from the centres."""
    generator = np.random.default_rng(outputs)

    def draw(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32)

    if kind == "linear":
        return HeadWeights(draw(outputs, WIDTH), draw(outputs))
    if kind == "hidden":
        return HeadWeights(draw(outputs, 33), draw(outputs), draw(33, WIDTH), draw(33))
    positions = (draw(150, WIDTH) * 0.05).astype(np.float16)
    centers = Centers(positions, np.full(WIDTH, scale, np.float32), draw(WIDTH) * 0.01)
    return HeadWeights(draw(outputs, 150), draw(outputs), centers=centers)


@pytest.mark.parametrize("outputs", [1, 3, 50])
@pytest.mark.parametrize(
    ("kind", "scale"), [("linear", 1), ("hidden", 1), ("kernel", 0.05), ("kernel", 40)]
)
@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(ROWS)), cuts=st.sets(st.integers(1, ROWS - 1), max_size=12))
def test_logits_do_not_depend_on_the_grouping(
    kind: str, scale: float, outputs: int, order: list[int], cuts: set[int]
) -> None:
    head = draw_head(kind, outputs, scale)
    rows = np.random.default_rng(7).standard_normal((ROWS, WIDTH)).astype(np.float32)
    together = head.compute_logits(rows)
    pieces = np.split(np.array(order), sorted(cuts))
    grouped = np.concatenate([head.compute_logits(rows[piece]) for piece in pieces])
    np.testing.assert_array_equal(grouped, together[order])


@pytest.mark.parametrize("scale", [0.05, 40])
def test_likeness_is_that_of_float64(scale: float) -> None:
    centers = draw_head("kernel", 1, scale).centers
    assert centers is not None
    rows = np.random.default_rng(7).standard_normal((ROWS, WIDTH)).astype(np.float32)
    z = (rows * centers.scale + centers.shift).astype(np.float16).astype(np.float64)
    differences = z[:, None] - centers.positions.astype(np.float64)
    expected = np.exp(-np.square(differences).sum(axis=2))
    np.testing.assert_allclose(centers.compare(rows), expected, rtol=2e-6, atol=1e-37)


@pytest.mark.parametrize("size", [0.05, 30.0])
def test_products_of_float16_numbers_are_exact(size: float) -> None:
    generator = np.random.default_rng(5)
    rows = (size * generator.standard_normal((4, 300))).astype(np.float16).astype(np.float64)
    positions = (size * generator.standard_normal((6, 300))).astype(np.float16).astype(np.float64)
    positions[:, ::7] = 2.0**-24  # the smallest number of float16
    longest = float(np.sqrt(np.square(positions).sum(axis=1).max()))
    found = multiply_exactly(rows, positions, longest)
    for row, of_row in zip(rows.tolist(), found.tolist(), strict=True):
        for position, product in zip(positions.tolist(), of_row, strict=True):
            terms = zip(row, position, strict=True)
            assert product == float(sum(Fraction(a) * Fraction(b) for a, b in terms))
