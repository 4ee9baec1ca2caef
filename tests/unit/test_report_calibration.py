"""Reliability diagrams: scikit-learn's calibration curve and counts by hand are the reference."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from pipeline.model.decision import Decision, compute_sigmoid, compute_softmax
from pipeline.model.saved import SavedHead
from pipeline.model.tasks import TASK_TYPES
from pipeline.report.calibration import (
    list_confidences,
    measure_calibration_error,
    measure_reliability,
    sort_into_bins,
)


def make_head(kind: str, C: int, temperature: float = 1.0) -> SavedHead:
    names = tuple(f"class {index}" for index in range(C))
    return SavedHead("task", TASK_TYPES[kind], names, (0,), Decision(temperature), ())


@pytest.mark.parametrize("bins", [5, 15])
def test_a_binary_head_has_the_curve_of_scikit_learn(bins: int) -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 3, (2000, 1))
    actual = (generator.random(2000) < compute_sigmoid(logits[:, 0] / 2)).astype(int)
    measured = measure_reliability(make_head("binary", 2, 2.0), actual, logits, bins)
    assert measured is not None
    assert measured.confidence_of == "class"
    for found, temperature in ((measured.before, 1), (measured.after, 2)):
        probabilities = compute_sigmoid(logits[:, 0] / temperature)
        share, confidence = calibration_curve(actual, probabilities, n_bins=bins)
        filled = [one for one in found if one.n]
        np.testing.assert_allclose([one.share_right for one in filled], share)
        np.testing.assert_allclose([one.confidence for one in filled], confidence)
        weights = np.array([one.n for one in filled]) / 2000
        error = measured.ece_before if temperature == 1 else measured.ece_after
        assert error == pytest.approx((weights * np.abs(share - confidence)).sum())
    # The labels were drawn at temperature 2, so that is the one that is right.
    assert measured.ece_after < 0.03 < measured.ece_before


def test_bins_by_hand() -> None:
    confidences = np.array([0.0, 0.1, 0.5, 0.5000001, 0.9, 1.0])
    is_right = np.array([False, True, True, False, True, True])
    first, second = sort_into_bins(confidences, is_right, 2)
    assert (first.low, first.high, first.n) == (0, 0.5, 3)  # an upper end belongs to its bin
    assert first.confidence == pytest.approx(0.2)
    assert first.share_right == pytest.approx(2 / 3)
    assert (second.n, second.share_right) == (3, pytest.approx(2 / 3))
    expected = (3 * abs(0.2 - 2 / 3) + 3 * abs(2.4000001 / 3 - 2 / 3)) / 6
    assert measure_calibration_error(confidences, is_right, 2) == pytest.approx(expected)


def test_an_empty_bin_says_nothing() -> None:
    bins = sort_into_bins(np.array([0.95, 0.97]), np.array([True, False]), 10)
    assert [one.n for one in bins] == [0] * 9 + [2]
    assert bins[0].confidence is None
    assert bins[0].share_right is None


def test_many_classes_are_judged_by_the_most_likely_one() -> None:
    logits = np.log([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4]])
    of, confidences, is_right = list_confidences(
        make_head("multiclass", 3), np.array([0, 2, 2]), logits, 1.0
    )
    assert of == "answer"
    np.testing.assert_allclose(confidences, [0.7, 0.6, 0.4])
    assert is_right.tolist() == [True, False, True]
    of, confidences, _ = list_confidences(
        make_head("multiclass", 3), np.array([0, 2, 2]), logits, 2.0
    )
    np.testing.assert_allclose(confidences, compute_softmax(logits / 2).max(axis=1))


def test_an_ordinal_head_is_judged_by_the_most_likely_class() -> None:
    # P(above class 0), P(above class 1): 0.9, 0.2 makes the classes 0.1, 0.7, 0.2.
    logits = np.log([[0.9 / 0.1, 0.2 / 0.8]])
    of, confidences, is_right = list_confidences(
        make_head("ordinal", 3), np.array([1]), logits, 1.0
    )
    assert (of, is_right.tolist()) == ("answer", [True])
    np.testing.assert_allclose(confidences, [0.7])


def test_tags_are_judged_by_all_tags_of_all_rows() -> None:
    logits = np.log([[0.9 / 0.1, 0.2 / 0.8], [0.4 / 0.6, 0.6 / 0.4]])
    of, confidences, is_right = list_confidences(
        make_head("multilabel", 2), np.array([[1, 0], [1, 1]], np.int8), logits, 1.0
    )
    assert of == "tags"
    np.testing.assert_allclose(confidences, [0.9, 0.2, 0.4, 0.6])
    assert is_right.tolist() == [True, False, True, True]


def test_there_is_nothing_to_say_of_numbers_or_of_no_rows() -> None:
    numbers = measure_reliability(make_head("regression", 0), np.ones(3), np.ones((3, 1)))
    assert numbers is None
    assert measure_reliability(make_head("binary", 2), np.empty(0, int), np.empty((0, 1))) is None
