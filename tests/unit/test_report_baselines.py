"""Baselines: scikit-learn's vectorizer, ridge regression and dummies are the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, r2_score, roc_auc_score

from pipeline.corpus.identity import CorpusIdentity
from pipeline.model.decision import Decision
from pipeline.model.evaluation import PartScores
from pipeline.model.saved import Heads, SavedHead
from pipeline.model.tasks import TASK_TYPES
from pipeline.report import baselines
from pipeline.report.baselines import (
    MOST_FREQUENT,
    WORDS,
    WordFit,
    list_training_texts,
    score_baselines,
    solve_by_gradients,
    weigh_words,
)
from pipeline.report.inputs import ScoredRows
from pipeline.report.words import count_words

VOCABULARY = ["free", "call", "now", "love", "you", "home", "late", "win", "prize", "ok"]


def make_texts(N: int, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return [
        " ".join(VOCABULARY[index] for index in generator.integers(0, 10, generator.integers(1, 9)))
        for _ in range(N)
    ]


def make_rows(labels: dict[str, np.ndarray], kinds: dict[str, np.ndarray], N: int) -> ScoredRows:
    """Two of three rows are for training, each with a text of its own."""
    order = np.arange(N)
    return ScoredRows(
        keys=None,
        codes=order,
        parts={"train": order[order % 3 > 0], "test": order[order % 3 == 0]},
        labels=labels,
        present=kinds,
    )


def make_heads(*heads: SavedHead) -> Heads:
    empty: dict[str, Any] = {}
    corpus = CorpusIdentity(0, "", "", {})
    return Heads(heads, (0,), 1, empty, "", empty, corpus, empty, empty)


def make_head(kind: str, C: int) -> SavedHead:
    names = tuple(f"class {index}" for index in range(C))
    return SavedHead("task", TASK_TYPES[kind], names, (0,), Decision(3.0, None), ())


def score(
    kind: str, C: int, labels: np.ndarray, texts: list[str]
) -> tuple[dict[str, PartScores], np.ndarray, np.ndarray]:
    """The scores of the baselines, and the numbers of training and of test rows."""
    present = {"task": np.ones(len(texts), bool)}
    rows = make_rows({"task": labels}, present, len(texts))
    scores = score_baselines(make_heads(make_head(kind, C)), rows, count_words(texts))
    return scores["task"], rows.parts["train"], rows.parts["test"]


def fit_reference(texts: list[str], train: np.ndarray, test: np.ndarray) -> tuple[Any, Any]:
    vectorizer = TfidfVectorizer(token_pattern=r"[^\W_]+", sublinear_tf=True)
    return (
        vectorizer.fit_transform([texts[row] for row in train]),
        vectorizer.transform([texts[row] for row in test]),
    )


def test_words_are_counted_as_scikit_learn_does() -> None:
    texts = ["Free FREE call, now!", "", "...!", "über-Größe 24/7", "don't_stop", "a a a b"]
    counts = count_words(texts)
    vectorizer = CountVectorizer(token_pattern=r"[^\W_]+")
    expected = vectorizer.fit_transform(texts).toarray()
    assert counts.vocabulary.tolist() == vectorizer.get_feature_names_out().tolist()
    found = np.zeros_like(expected)
    owners, pairs = counts.find_pairs(np.arange(len(texts)))
    found[owners, counts.words[pairs]] = counts.times[pairs]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(counts.count_times(np.arange(6)), expected.sum(axis=0))
    twice = 2 * (expected[5] > 0) + (expected[0] > 0)
    np.testing.assert_array_equal(counts.count_texts(np.array([5, 5, 0])), twice)


def test_scripts_without_blanks_have_a_word_a_character() -> None:
    counts = count_words(["今天天气很好 ok", "नमस्ते दुनिया", "😀 🎉"])
    assert sorted(counts.vocabulary) == sorted({*"今天气很好", "ok", "नमस्ते", "दुनिया"})
    _, pairs = counts.find_pairs(np.array([0]))
    times = {counts.vocabulary[counts.words[p]]: int(counts.times[p]) for p in pairs}
    assert times["天"] == 2


def test_no_texts_and_texts_without_words_have_none() -> None:
    for texts in ([], ["", "!"]):
        counts = count_words(texts)
        assert len(counts.vocabulary) == 0
        assert counts.starts.tolist() == [0] * (len(texts) + 1)


def test_words_of_some_texts_are_as_if_the_others_were_empty() -> None:
    texts = make_texts(40)
    some = np.array([0, 3, 4, 17, 39])
    spread = count_words([texts[at] for at in some]).spread(some, len(texts))
    whole = count_words([text if at in some else "" for at, text in enumerate(texts)])
    for name in ("starts", "words", "times", "vocabulary"):
        assert getattr(spread, name).tolist() == getattr(whole, name).tolist()


@pytest.mark.parametrize(("kind", "C"), [("binary", 2), ("multiclass", 3)])
def test_baselines_need_no_other_texts_than_they_say(
    kind: str, C: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more training rows than are learned from, the scores are those of all texts' words."""
    monkeypatch.setattr(baselines, "_MAX_TRAIN_ROWS", 25)
    labels = np.arange(120) // 3 % C
    texts = [f"{text} class{label}" for text, label in zip(make_texts(120), labels, strict=True)]
    rows = make_rows({"task": labels}, {"task": np.ones(120, bool)}, 120)
    heads = make_heads(make_head(kind, C))
    some = list_training_texts(heads.heads[0], rows)
    assert len(some) == 25
    some = np.union1d(some, rows.codes[rows.parts["test"]])
    assert len(some) < 120
    words = count_words([texts[at] for at in some]).spread(some, 120)
    found = score_baselines(heads, rows, words)["task"][WORDS].overall
    assert found == score_baselines(heads, rows, count_words(texts))["task"][WORDS].overall
    assert found["accuracy"] == 1


def test_weights_are_those_of_scikit_learn() -> None:
    texts = [*make_texts(60), "", "unseen unseen free"]
    train = np.arange(60)
    counts = count_words(texts)
    fit = WordFit.prepare(counts, train)
    vectors, others = fit_reference(texts, train, np.array([60, 61]))
    np.testing.assert_allclose(fit.features, vectors.toarray(), rtol=1e-6)
    made = weigh_words(counts, np.array([60, 61]), fit.chosen, fit.idf)
    np.testing.assert_allclose(made, others.toarray(), rtol=1e-6)


def test_equations_are_solved_as_by_a_factorization() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(300, 40)).astype(np.float32)
    matrix = features.T @ features + np.eye(40, dtype=np.float32)
    right = generator.normal(size=(40, 3)).astype(np.float32)
    right[:, 1] = 0
    expected = np.linalg.solve(matrix.astype(np.float64), right)
    np.testing.assert_allclose(solve_by_gradients(matrix, right), expected, rtol=1e-3, atol=1e-7)


def test_only_the_most_frequent_words_count() -> None:
    counts = count_words(["a a a b b c", "b c d"])
    fit = WordFit.prepare(counts, np.array([0, 1]), max_words=2)
    assert counts.vocabulary[fit.chosen >= 0].tolist() == ["a", "b"]


@pytest.mark.parametrize(("kind", "C"), [("binary", 2), ("multiclass", 4), ("ordinal", 4)])
def test_classes_are_those_of_scikit_learn(kind: str, C: int) -> None:
    texts = make_texts(300)
    generator = np.random.default_rng(1)
    labels = np.array([("free" in text) + ("win" in text) for text in texts]) % C
    labels = np.where(generator.random(300) < 0.2, generator.integers(0, C, 300), labels)
    scores, train, test = score(kind, C, labels, texts)
    vectors, others = fit_reference(texts, train, test)
    reference = RidgeClassifier(alpha=1.0).fit(vectors, labels[train])
    predicted = reference.predict(others)
    assert scores[WORDS].rows == 100
    assert scores[WORDS].overall["accuracy"] == pytest.approx(
        accuracy_score(labels[test], predicted)
    )
    assert scores[WORDS].overall["f1_macro"] == pytest.approx(
        f1_score(labels[test], predicted, average="macro")
    )
    if kind == "binary":
        assert scores[WORDS].overall["roc_auc"] == pytest.approx(
            roc_auc_score(labels[test], reference.decision_function(others))
        )
    if kind == "ordinal":
        assert scores[WORDS].overall["mean_absolute_error"] == pytest.approx(
            mean_absolute_error(labels[test], predicted)
        )
    dummy = DummyClassifier(strategy="most_frequent").fit(vectors, labels[train])
    assert scores[MOST_FREQUENT].overall["accuracy"] == pytest.approx(
        dummy.score(others, labels[test])
    )


def test_tags_are_those_of_scikit_learn() -> None:
    texts = make_texts(300)
    labels = np.array([["free" in text, "you" in text, True] for text in texts], np.int8)
    labels[np.random.default_rng(2).random((300, 3)) < 0.1] = 0
    scores, train, test = score("multilabel", 3, labels, texts)
    vectors, others = fit_reference(texts, train, test)
    predicted = RidgeClassifier(alpha=1.0).fit(vectors, labels[train]).predict(others)
    assert scores[WORDS].overall["f1_micro"] == pytest.approx(
        f1_score(labels[test], predicted, average="micro")
    )
    constant = np.repeat((labels[train].mean(axis=0) > 0.5)[None], len(test), axis=0)
    assert scores[MOST_FREQUENT].overall["accuracy"] == pytest.approx(
        accuracy_score(labels[test], constant)
    )


def test_numbers_are_those_of_scikit_learn() -> None:
    texts = make_texts(300)
    labels = np.array([1000 + 3.0 * len(text) for text in texts])
    scores, train, test = score("regression", 0, labels, texts)
    vectors, others = fit_reference(texts, train, test)
    predicted = Ridge(alpha=1.0).fit(vectors, labels[train]).predict(others)
    assert scores[WORDS].overall["r2"] == pytest.approx(r2_score(labels[test], predicted), abs=1e-4)
    mean = DummyRegressor().fit(vectors, labels[train]).predict(others)
    assert scores[MOST_FREQUENT].overall["mean_absolute_error"] == pytest.approx(
        mean_absolute_error(labels[test], mean)
    )


def test_rows_without_a_label_and_texts_without_words_are_no_stop() -> None:
    texts = ["!", "?", *make_texts(58)]
    present = np.arange(60) % 4 > 0
    labels = np.where(present, np.arange(60) % 2, -1)
    rows = make_rows({"task": labels}, {"task": present}, 60)
    heads = make_heads(make_head("binary", 2))
    scores = score_baselines(heads, rows, count_words(texts))["task"]
    assert scores[WORDS].rows == int(present[::3].sum())
    nothing = make_rows({"task": labels}, {"task": np.zeros(60, bool)}, 60)
    assert score_baselines(heads, nothing, count_words(texts)) == {}
    silent = score_baselines(heads, rows, count_words(["!"] * 60))["task"]
    assert silent[WORDS].overall == silent[MOST_FREQUENT].overall
