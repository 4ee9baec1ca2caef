"""Near-duplicates that were planted are found, others are not, and scores are scikit-learn's."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

import numpy as np
import pytest
from sklearn.metrics import f1_score, mean_absolute_error

from pipeline import neighbours
from pipeline.model.evaluation import score_head
from pipeline.model.saved import Heads
from pipeline.neighbours import find_threshold
from pipeline.report.leaks import Leaks, find_leaks, format_near_duplicates
from pipeline.report.nearest import ReadVectors, TrainingNeighbours, find_training_neighbours
from tests.unit.findings import make_head, make_rows, to_logits

TRAINING, TEST = 1200, 300
PLANTED = 40
WIDTH = 24


def make_reader(vectors: np.ndarray) -> ReadVectors:
    def read(codes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(codes), 500):
            yield codes[start : start + 500], vectors[codes[start : start + 500]]

    return read


def make_heads(*heads: object) -> Heads:
    return Heads(heads, (0,), 2, {}, "", {}, None, {}, {})  # type: ignore[arg-type]


def make_vectors(planted: int, within: int, *, shift: float = 0.0) -> np.ndarray:
    """Training vectors, then test vectors; the first ``planted`` test vectors are nearly the first
    of training, and ``within`` training vectors are nearly others of training."""
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((TRAINING + TEST, WIDTH)).astype(np.float32)
    noise = 0.1 * generator.standard_normal(vectors.shape).astype(np.float32)
    vectors[TRAINING : TRAINING + planted] = vectors[:planted] + noise[:planted]
    vectors[600 : 600 + within] = vectors[:within] + noise[-within or TRAINING + TEST :]
    return vectors + np.float32(shift)


def look_for_neighbours(vectors: np.ndarray) -> TrainingNeighbours:
    parts = {"train": range(TRAINING), "test": range(TRAINING, TRAINING + TEST)}
    return find_training_neighbours(make_rows([0] * (TRAINING + TEST), parts), make_reader(vectors))


@pytest.mark.parametrize("exact_pairs", [10**9, 0], ids=["every pair", "in cells"])
def test_in_little_memory_the_same_neighbours_are_found(
    exact_pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training texts are read once for each share of the others."""
    monkeypatch.setattr(neighbours, "EXACT_PAIRS", exact_pairs)
    parts = {"train": range(TRAINING), "test": range(TRAINING, TRAINING + TEST)}
    vectors = make_vectors(PLANTED, 150)
    rows, read = make_rows([0] * (TRAINING + TEST), parts), make_reader(vectors)
    passes = []

    def watch(codes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        passes.append(len(codes))
        yield from read(codes)

    whole = find_training_neighbours(rows, read)
    share = 400 * WIDTH * 4  # of the vectors of 1,500 texts, all of which are looked for
    found = find_training_neighbours(rows, watch, 2 * share)
    assert passes.count(TRAINING) == 4
    assert passes.count(400) == 3
    assert (found.rows == whole.rows).all()
    assert (found.same_rows == whole.same_rows).all()
    assert found.cosines == pytest.approx(whole.cosines, abs=1e-6)
    assert found.sample_cosines == pytest.approx(whole.sample_cosines, abs=1e-6)
    assert found.exact == whole.exact == (exact_pairs > 0)


@pytest.mark.parametrize("shift", [0.0, 1.5], ids=["spread out", "in a cone"])
def test_planted_near_duplicates_are_found_wherever_the_vectors_lie(shift: float) -> None:
    """In a cone all cosines are high, as in the middle layers of many backbones; in both corpora an
    eighth of the training texts have near-duplicates there, too."""
    vectors = make_vectors(PLANTED, 150, shift=shift)
    rows = make_rows(
        [0, 1] * ((TRAINING + TEST) // 2),
        {"train": range(TRAINING), "test": range(TRAINING, TRAINING + TEST)},
    )
    head = make_head("binary", ("a", "b"))
    logits = {"task": [to_logits([0.5] * len(vectors))]}
    leaks = find_leaks(make_heads(head), rows, logits, look_for_neighbours(vectors))
    assert {(p.row - TRAINING, p.train_row) for p in leaks.pairs} == {
        (number, number) for number in range(PLANTED)
    }
    assert all(a.cosine >= b.cosine for a, b in zip(leaks.pairs, leaks.pairs[1:], strict=False))
    assert leaks.scores_without["task"].rows == TEST - PLANTED
    assert (leaks.n_rows, leaks.n_same, leaks.judged, leaks.exact) == (TEST, 0, "test", True)


def test_a_corpus_without_near_duplicates_has_none() -> None:
    neighbours = look_for_neighbours(make_vectors(0, 0))
    threshold = find_threshold(neighbours.sample_cosines, neighbours.training_texts)
    assert (neighbours.cosines <= threshold).all()


def test_a_corpus_of_near_duplicates_alone_or_of_nothing_has_a_threshold() -> None:
    assert find_threshold(np.ones(500, np.float32), 500) > 0.999
    assert find_threshold(np.zeros(0, np.float32), 0) == 1.0
    assert find_threshold(np.full(300, 0.1, np.float32), 300) == 0.8


def find_few(threshold: float | None = 0.9) -> Leaks:
    """Texts 0 to 3 in training; of the test rows 4 is near text 1 and 5 near text 2, 6 has the very
    text 3, 7 to 9 are far from all."""
    angles = np.radians([0, 90, 180, 270, 100, 170, 0, 45, 135, 225])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    codes = [0, 1, 2, 3, 4, 5, 3, 7, 8, 9]
    labels = [0, 1, 0, 1, 1, 1, 1, 0, 1, None]
    rows = make_rows(labels, {"train": [0, 1, 2, 3], "test": [4, 5, 6, 7, 8, 9]}, codes)
    neighbours = find_training_neighbours(rows, make_reader(vectors))
    logits = {"task": [to_logits([0.5, 0.5, 0.5, 0.9, 0.9, 0.9, 0.5, 0.9, 0.9, 0.5])]}
    head = make_head("binary", ("ham", "spam"))
    return find_leaks(make_heads(head), rows, logits, neighbours, threshold)


def test_the_very_text_and_near_ones_are_told_apart_and_left_out() -> None:
    leaks = find_few()
    assert [(p.row, p.train_row, p.same_label) for p in leaks.pairs] == [
        (4, 1, True), (5, 2, False)
    ]  # fmt: skip
    assert [p.cosine for p in leaks.pairs] == pytest.approx([np.cos(np.radians(10))] * 2)
    assert (leaks.n_rows, leaks.n_same, leaks.threshold) == (6, 1, 0.9)
    # Rows 7 and 8 are left, of which the head calls both spam.
    without = leaks.scores_without["task"]
    assert without.rows == 2
    assert without.overall["f1"] == pytest.approx(f1_score([0, 1], [1, 1]))
    assert "f1" in without.intervals


def test_a_given_threshold_holds() -> None:
    assert len(find_few(0.99).pairs) == 0
    assert len(find_few(-1.0).pairs) == 5  # every row but the one with the very text


def test_a_row_that_shares_no_label_with_its_neighbour_says_so() -> None:
    (last,) = [p for p in find_few(-1.0).pairs if p.row == 9]
    assert last.same_label is None


@pytest.mark.parametrize("kind", ["binary", "regression"])
def test_scores_that_leaks_made_better_are_named(kind: str) -> None:
    """The head is right on all leaks, and by chance on the other rows."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, TRAINING + TEST)
    labels[TRAINING : TRAINING + 200] = labels[:200]
    says = np.where(np.arange(TRAINING + TEST) < TRAINING + 200, labels, 1 - labels)
    says[-20:] = labels[-20:]
    head = make_head(kind, ("a", "b") if kind == "binary" else ())
    given = labels.tolist() if kind == "binary" else labels.astype(float).tolist()
    rows = make_rows(given, {"train": range(TRAINING), "test": range(TRAINING, TRAINING + TEST)})
    logits = to_logits(np.where(says > 0, 0.9, 0.1)) if kind == "binary" else says[:, None] * 1.0
    vectors = make_vectors(200, 100)
    heads = make_heads(head)
    leaks = find_leaks(heads, rows, {"task": [logits]}, look_for_neighbours(vectors))
    assert len(leaks.pairs) == 200
    scores = {"task": score_head(head, rows.labels["task"][TRAINING:], logits[TRAINING:])}
    (found,) = leaks.find_inflated(heads, scores)
    rest = slice(TRAINING + 200, None)
    if kind == "binary":
        assert found.metric == "f1"
        assert found.score_without == pytest.approx(f1_score(labels[rest], says[rest]))
    else:
        assert found.metric == "root_mean_squared_error"
        assert found.score_without == pytest.approx(
            mean_absolute_error(labels[rest], says[rest]) ** 0.5  # each error is 0 or 1
        )
    same = {"task": leaks.scores_without["task"]}
    assert leaks.find_inflated(heads, same) == []


def test_near_duplicates_are_a_table_for_spreadsheets() -> None:
    leaks = find_few(-1.0)
    texts = {row: f"text {row}" for row in range(9)} | {9: "=9", 1: "-1"}
    content = format_near_duplicates(leaks, np.arange(10) * 10, texts)
    (
        header,
        first,
        *_,
    ) = csv.reader(io.StringIO(content.decode()))
    assert header == ["row", "train_row", "cosine", "same_label", "text", "train_text"]
    assert first == ["40", "10", "0.9848", "yes", "text 4", "'-1"]
    last = {cells[0]: cells for cells in csv.reader(io.StringIO(content.decode()))}["90"]
    assert (last[3], last[4]) == ("", "'=9")
    header = format_near_duplicates(leaks, np.arange(10), None).decode().splitlines()[0]
    assert header == "row,train_row,cosine,same_label"
