"""Probable label errors: by hand, by the paper's definition, and by labels that were flipped."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import make_classification, make_regression
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import cross_val_predict

from pipeline.errors import StageError
from pipeline.files import hash_file
from pipeline.model.decision import Decision
from pipeline.model.saved import Heads
from pipeline.project import Project
from pipeline.report.held_out import HeldOut, read_held_out
from pipeline.report.suspects import find_suspects, format_suspects, learn_confidently
from tests.unit.findings import make_head, make_rows, to_logits

MOODS = ("bad", "fair", "good")


def to_softmax_logits(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probabilities, 1e-9))


def test_the_confident_joint_is_that_of_the_definition() -> None:
    """Row by row as the paper's equations read, with loops, beside arrays."""
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet([0.4, 0.3, 0.6, 0.5], 300)
    given = generator.integers(0, 3, 300)  # the last class has no row
    found = learn_confidently(probabilities, given)
    mean = {
        j: sum(p[j] for p, y in zip(probabilities, given, strict=True) if y == j)
        / sum(given == j)
        for j in range(3)
    }  # fmt: skip
    expected = []
    for p, y in zip(probabilities, given, strict=True):
        confident = [j for j in mean if p[j] >= mean[j]]
        best = max(confident, key=lambda j: p[j], default=y)
        expected.append(best if best != y and p[best] > p[y] else -1)
    assert found.tolist() == expected
    assert len(set(expected)) == 4


def test_suspects_come_with_the_most_certain_first_and_with_the_temperature() -> None:
    labels = [0, 0, 0, 0, 1, 1, 1, 1, 0, None]
    p = [0.02, 0.01, 0.05, 0.97, 0.98, 0.97, 0.99, 0.04, 0.999, 0.5]
    rows = make_rows(labels, {"train": [0, 1, 2, 3, 4, 5, 9], "validation": [6, 7], "test": [8]})
    held_out = HeldOut(np.array([0, 1, 2, 3, 4, 5, 6, 7, 9]), to_logits(p[:8] + p[9:]))
    found = find_suspects(make_head("binary", ("ham", "spam")), held_out, rows)
    assert [(s.row, s.part, s.given, s.suggested, s.reason) for s in found] == [
        (3, "train", "ham", "spam", "confident"), (7, "validation", "spam", "ham", "confident")
    ]  # fmt: skip
    assert [s.confidence for s in found] == pytest.approx([0.97, 0.96])
    hot = make_head("binary", ("ham", "spam"), Decision(1.2, (0.5,)))
    (hotter, *_) = find_suspects(hot, held_out, rows)
    assert hotter.confidence == pytest.approx(1 / (1 + (0.03 / 0.97) ** (1 / 1.2)))
    boiling = make_head("binary", ("ham", "spam"), Decision(9.0, (0.5,)))
    assert find_suspects(boiling, held_out, rows) == []  # nothing is certain any more


def test_rows_that_no_head_judged_are_no_suspects() -> None:
    """Row 8 is of the test part; that its label is wrong, errors.csv says."""
    rows = make_rows([0, 1, 0], {"train": [0, 1], "test": [2]})
    held_out = HeldOut(np.array([0, 1]), to_logits([0.01, 0.99]))
    assert find_suspects(make_head("binary", ("a", "b")), held_out, rows) == []
    assert find_suspects(make_head("binary", ("a", "b")), None, rows) == []


def test_texts_with_two_labels_come_first() -> None:
    labels = [0, 0, 1, 1, 0, 1, 0, None, 1]
    codes = [5, 5, 5, 6, 6, 7, 8, 8, 9]
    parts = {"train": [0, 1, 3, 6], "validation": [5, 7, 8], "test": [2, 4]}
    rows = make_rows(labels, parts, codes)
    head = make_head("binary", ("ham", "spam"))
    found = find_suspects(head, None, rows)
    assert [(s.row, s.part, s.given, s.suggested, s.confidence) for s in found] == [
        (2, "test", "spam", "ham", pytest.approx(2 / 3)),  # outvoted
        (3, "train", "spam", "ham", 0.5), (4, "test", "ham", "spam", 0.5),  # one against one
    ]  # fmt: skip
    assert {s.reason for s in found} == {"contradiction"}
    # A head that judged one of both says which; certain ones stand behind, each row but once.
    held_out = HeldOut(np.array([0, 3, 5, 8]), to_logits([0.02, 0.99, 0.01, 0.98]))
    again = find_suspects(head, held_out, rows)
    assert [(s.row, s.reason) for s in again[:1]] == [(2, "contradiction")]
    judged = HeldOut(np.array([0, 3, 4, 5, 8]), to_logits([0.02, 0.9, 0.9, 0.01, 0.98]))
    settled = [s for s in find_suspects(head, judged, rows) if s.row in (3, 4)]
    assert [(s.row, s.suggested, s.confidence) for s in settled] == [(4, "spam", 0.5)]


def test_tags_are_judged_one_by_one() -> None:
    tags = [[1, 0], [1, 0], [0, 1], [0, 1], [0, 0], [1, 1]]
    p = [[0.98, 0.01], [0.97, 0.02], [0.02, 0.99], [0.01, 0.01], [0.995, 0.02], [0.96, 0.97]]
    rows = make_rows([np.array(t) for t in tags], {"train": list(range(6))})
    held_out = HeldOut(np.arange(6), to_logits(p))
    found = find_suspects(make_head("multilabel", ("corn", "oil")), held_out, rows)
    assert [(s.row, s.given, s.suggested) for s in found] == [
        (4, "without corn", "corn"), (3, "oil", "without oil")
    ]  # fmt: skip
    assert [s.confidence for s in found] == pytest.approx([0.995, 0.99])
    twice = make_rows(
        [np.array(t) for t in tags], {"train": list(range(6))}, codes=[0, 0, 0, 1, 2, 3]
    )
    found = find_suspects(make_head("multilabel", ("corn", "oil")), None, twice)
    assert [(s.row, s.given, s.suggested) for s in found] == [
        (2, "without corn", "corn"), (2, "oil", "without oil")
    ]  # fmt: skip


def test_an_ordinal_label_is_doubted_by_the_side_that_the_head_is_on() -> None:
    head = make_head("ordinal", MOODS)
    rows = make_rows([0, 0, 1, 2, 1, 0, 2], {"train": list(range(7))})
    above = [[0.01, 0.01], [0.02, 0.01], [0.97, 0.02], [0.99, 0.98], [0.5, 0.5], [0.99, 0.985],
             [0.98, 0.97]]  # fmt: skip
    found = find_suspects(head, HeldOut(np.arange(7), to_logits(above)), rows)
    # Row 4 is fair, which its head gives no probability at all; yet nothing says bad or good.
    assert [(s.row, s.given, s.suggested) for s in found] == [(5, "bad", "good")]
    assert found[0].confidence == pytest.approx(0.99)


def test_numbers_are_doubted_by_their_residuals() -> None:
    features, values = make_regression(400, 10, noise=5.0, random_state=0)
    generator = np.random.default_rng(0)
    wrong = generator.choice(400, 8, replace=False)
    values[wrong] += generator.choice([-1, 1], 8) * 60
    held_out = cross_val_predict(Ridge(), features, values, cv=5)[:, None]
    rows = make_rows(values.tolist(), {"train": list(range(400))})
    head = make_head("regression", spread=float(values.std()))
    found = find_suspects(head, HeldOut(np.arange(400), held_out), rows)
    assert {s.row for s in found} == set(wrong.tolist())
    assert float(found[0].suggested) == pytest.approx(held_out[found[0].row, 0], rel=1e-4)
    assert all(s.confidence > 0.99 for s in found)
    same = make_rows([1.0, 1.5, 9.0, 4.0, 4.2], {"train": list(range(5))}, codes=[0, 0, 0, 1, 1])
    found = find_suspects(make_head("regression", spread=2.0), None, same)
    assert [(s.row, s.given, s.suggested) for s in found] == [(2, "9", "1.5")]


def test_heads_that_fit_their_numbers_exactly_doubt_none() -> None:
    rows = make_rows([1.0, 2.0, 3.0], {"train": [0, 1, 2]})
    exact = HeldOut(np.arange(3), np.array([[1.0], [2.0], [3.0]]))
    assert find_suspects(make_head("regression"), exact, rows) == []


@pytest.mark.parametrize("classes", [2, 6])
def test_half_of_the_first_hundredth_are_labels_that_were_flipped(classes: int) -> None:
    """2 % of the labels are flipped; scikit-learn's held-out outputs judge them."""
    features, labels = make_classification(
        4000,
        30,
        n_informative=15,
        n_classes=classes,
        n_clusters_per_class=1,
        flip_y=0,
        class_sep=1.5,
        random_state=0,
    )
    generator = np.random.default_rng(0)
    flipped = generator.choice(4000, 80, replace=False)
    labels[flipped] = (labels[flipped] + generator.integers(1, classes, 80)) % classes
    model = LogisticRegression(max_iter=300)
    held_out = cross_val_predict(model, features, labels, cv=5, method="decision_function")
    head = make_head(*(("binary", ("a", "b")) if classes == 2 else ("multiclass", tuple("abcdef"))))
    rows = make_rows(labels.tolist(), {"train": list(range(4000))})
    found = find_suspects(head, HeldOut(np.arange(4000), held_out.reshape(4000, -1)), rows)
    first = [s.row for s in found[:40]]
    assert len(first) == 40
    assert np.isin(first, flipped).mean() >= 0.5


def write_held_out(folder: Path, columns: dict[str, list]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / "held_out.parquet")
    return hash_file(folder / "held_out.parquet")


def make_heads(sha256: str | None) -> Heads:
    head = make_head("multiclass", MOODS)
    return Heads((head,), (0,), 2, {}, "", {}, None, {}, {}, held_out_sha256=sha256)


COLUMNS = {"row": [30, 10], "task": ["task"] * 2, "logits": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]}
NUMBERS = np.array([10, 20, 30])  # of the three rows of the corpus in their source


def test_held_out_outputs_are_found_by_the_numbers_of_rows(tmp_path: Path) -> None:
    project = Project(tmp_path)
    sha256 = write_held_out(project.heads, COLUMNS)
    for stated in (sha256, None):  # heads of an earlier version state no hash
        held = read_held_out(project, make_heads(stated), NUMBERS)["task"]
        assert held.rows.tolist() == [0, 2]
        assert held.logits.tolist() == [[4.0, 5.0, 6.0], [1.0, 2.0, 3.0]]


def test_heads_that_kept_no_outputs_have_none(tmp_path: Path) -> None:
    assert read_held_out(Project(tmp_path), make_heads(None), NUMBERS) == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"row": [30, 11]}, "rows that the corpus lacks"),
        ({"row": [30, 99]}, "rows that the corpus lacks"),
        ({"logits": [[1.0, 2.0], [4.0, 5.0]]}, "3 finite logits"),
        ({"logits": [[1.0, 2.0, float("nan")], [4.0, 5.0, 6.0]]}, "3 finite logits"),
        ({"logits": [["x"], ["y"]]}, "damaged"),
    ],
)
def test_outputs_of_another_run_are_refused(
    tmp_path: Path, change: dict[str, list], words: str
) -> None:
    project = Project(tmp_path)
    write_held_out(project.heads, COLUMNS | change)
    with pytest.raises(StageError, match=words) as error:
        read_held_out(project, make_heads(None), NUMBERS)
    assert "train-heads" in str(error.value.hint)


def test_a_changed_or_missing_file_is_noticed(tmp_path: Path) -> None:
    project = Project(tmp_path)
    with pytest.raises(StageError, match="no such file"):
        read_held_out(project, make_heads("ab" * 32), NUMBERS)
    write_held_out(project.heads, COLUMNS)
    with pytest.raises(StageError, match="not of one run"):
        read_held_out(project, make_heads("ab" * 32), NUMBERS)


def test_suspects_are_a_table_for_spreadsheets() -> None:
    rows = make_rows([0, 1], {"train": [0], "test": [1]}, codes=[0, 0])
    found = {"task": find_suspects(make_head("binary", ("=ham", "spam")), None, rows)}
    content = format_suspects(found, np.array([7, 9]), {0: "+1, please", 1: "+1, please"})
    header, *lines = csv.reader(io.StringIO(content.decode()))
    assert header == [
        "task", "row", "part", "given", "suggested", "confidence", "reason", "text"
    ]  # fmt: skip
    assert lines == [
        ["task", "7", "train", "'=ham", "spam", "0.5", "contradiction", "'+1, please"],
        ["task", "9", "test", "spam", "'=ham", "0.5", "contradiction", "'+1, please"],
    ]
    (header, *_) = csv.reader(io.StringIO(format_suspects(found, np.array([7, 9]), None).decode()))
    assert "text" not in header
