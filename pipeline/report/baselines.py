"""The floor that every score stands on: the most frequent answer, and the words alone.

The words alone are a least squares classifier on the most frequent words, which needs no backbone
and no search. On messages, questions, reviews and news it was ahead of naive Bayes, and about as
good as a logistic regression on the same words.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.model.decision import Decision, Floats, Ints
from pipeline.model.evaluation import PartScores, score_head
from pipeline.model.least_squares import decode_targets, encode_targets
from pipeline.model.saved import Heads, SavedHead
from pipeline.report.inputs import ScoredRows
from pipeline.report.words import WordCounts

MOST_FREQUENT = "most frequent"
WORDS = "words"
MAX_WORDS = 2048  # more made no baseline better by more than noise
_MAX_TRAIN_ROWS = 20_000
_PENALTY = 1.0
_BLOCK_ROWS = 4096
_TOLERANCE, _MAX_ITERATIONS = 1e-5, 200


def score_baselines(
    heads: Heads, rows: ScoredRows, words: WordCounts, part: str | None = None
) -> dict[str, dict[str, PartScores]]:
    """Score two answers that anyone could give, on the rows that judge the heads.

    Both learn from the rows that the heads were trained on. A regression's most frequent answer is
    the mean.

    :param heads: the heads.
    :param rows: the rows of the corpus.
    :param words: the words of the N distinct texts of ``rows``, at least of those of the part and
        of ``list_training_texts``.
    :param part: the part to score; ``None`` for the one that heads are judged by.
    :returns: task → ``most frequent`` and ``words`` → scores; nothing of a task without rows to
        learn from.
    """
    part = part or rows.judged
    made: dict[str, dict[str, PartScores]] = {}
    fits: dict[bytes, WordFit] = {}
    for head in heads.heads:
        train = rows.take_rows("train", head.name)
        judged = rows.take_rows(part, head.name)
        if not len(train):
            continue
        labels = rows.labels[head.name]
        targets = encode_targets(head.type, labels[train], len(head.classes))
        constant = np.repeat(targets.mean(axis=0)[None], len(judged), axis=0)
        sample = _sample_rows(len(train))
        texts = list_training_texts(head, rows)
        key = texts.tobytes()  # tasks whose training rows are the same share what is dear
        fits[key] = fits.get(key) or WordFit.prepare(words, texts)
        answers = fits[key].predict(targets[sample], words, rows.codes[judged])
        made[head.name] = {
            MOST_FREQUENT: _score(head, labels[judged], constant),
            WORDS: _score(head, labels[judged], answers),
        }
    return made


def list_training_texts(head: SavedHead, rows: ScoredRows) -> Ints:
    """The texts that the words alone learn a head's task from: codes, [b].

    :param head: the head.
    :param rows: the rows of the corpus.
    """
    train = rows.take_rows("train", head.name)
    return rows.codes[train[_sample_rows(len(train))]]


@dataclass(frozen=True, eq=False)
class WordFit:
    """What least squares needs of the training texts: V words of B rows.

    :param chosen: the column of each word of the vocabulary, -1 for words that are left out.
    :param idf: how much rarer words count for more: [V].
    :param features: the training rows, each of length 1: float32, [B, V].
    :param mean: their mean: [V].
    :param gram: the matrix of the normal equations, with the penalty: [V, V].
    """

    chosen: Ints
    idf: Floats
    features: npt.NDArray[np.float32]
    mean: npt.NDArray[np.float32]
    gram: npt.NDArray[np.float32]

    @classmethod
    def prepare(cls, words: WordCounts, texts: Ints, max_words: int = MAX_WORDS) -> WordFit:
        """Weigh the most frequent words of training rows.

        A word weighs 1 + log of how often a text holds it, times 1 + log of the inverse of the
        share of rows that hold it; each row is then scaled to length 1.

        Source: Salton, Buckley (1988), Term-weighting approaches in automatic text retrieval.

        :param words: the words of all texts.
        :param texts: the text of each training row, [B].
        :param max_words: the largest V.
        """
        frequencies = words.count_times(texts)
        kept = np.argsort(-frequencies, kind="stable")[:max_words]
        kept = np.sort(kept[frequencies[kept] > 0])
        chosen = np.full(len(words.vocabulary), -1, np.int64)
        chosen[kept] = np.arange(len(kept))
        holding = words.count_texts(texts)[kept]
        idf = np.log((1 + len(texts)) / (1 + holding)) + 1
        features = weigh_words(words, texts, chosen, idf)
        mean = features.mean(axis=0)
        gram = features.T @ features - len(texts) * np.outer(mean, mean)
        gram[np.diag_indices_from(gram)] += _PENALTY
        return cls(chosen, idf, features, mean, gram)

    def predict(self, targets: Floats, words: WordCounts, texts: Ints) -> Floats:
        """Ridge regression of targets on words.

        Source: Hoerl, Kennard (1970), Ridge regression: biased estimation for nonorthogonal
        problems.

        :param targets: numbers to learn, [B, O].
        :param words: the words of all texts.
        :param texts: the text of each row to predict, [n].
        :returns: [n, O].
        """
        center = targets.mean(axis=0)
        slopes = self.features.T @ (targets - center).astype(np.float32)
        weights = solve_by_gradients(self.gram, slopes)
        pieces = [
            (weigh_words(words, texts[start : start + _BLOCK_ROWS], self.chosen, self.idf)
             - self.mean) @ weights
            for start in range(0, len(texts), _BLOCK_ROWS)
        ]  # fmt: skip
        predicted = np.concatenate([np.empty((0, len(center)), np.float32), *pieces])
        answers: Floats = predicted.astype(np.float64) + center
        return answers


def solve_by_gradients(
    matrix: npt.NDArray[np.float32], right: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Solve linear equations by conjugate gradients, some twenty products with the matrix.

    The penalty keeps the matrix far from singular, so that this takes a third of the time of a
    factorization.

    Source: Hestenes, Stiefel (1952), Methods of conjugate gradients for solving linear systems.

    :param matrix: a symmetric positive definite matrix: [V, V].
    :param right: the right sides, [V, O].
    :returns: [V, O], each column within some 1e-5 of its length.
    """
    solved, rest = np.zeros_like(right), right.copy()
    direction, squares = rest.copy(), np.square(rest).sum(axis=0)
    enough = _TOLERANCE**2 * squares
    for _ in range(_MAX_ITERATIONS):
        if (squares <= enough).all():
            break
        moved = matrix @ direction
        step = _divide(squares, (direction * moved).sum(axis=0))
        solved += step * direction
        rest -= step * moved
        before, squares = squares, np.square(rest).sum(axis=0)
        direction = rest + _divide(squares, before) * direction
    return solved


def _divide(
    part: npt.NDArray[np.float32], whole: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Ratios, 0 where the whole is 0, as for a column that is solved."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def weigh_words(
    words: WordCounts, texts: Ints, chosen: Ints, idf: Floats
) -> npt.NDArray[np.float32]:
    """Weighed words of some texts, as ``WordFit.prepare`` says.

    :param words: the words of all texts.
    :param texts: the indices of n texts.
    :param chosen: the column of each word, -1 for words that are left out.
    :param idf: the weight of each of V columns.
    :returns: float32, [n, V], each row of length 1, or 0 where it holds no chosen word.
    """
    owners, pairs = words.find_pairs(texts)
    columns = chosen[words.words[pairs]]
    kept = columns >= 0
    owners, columns, times = owners[kept], columns[kept], words.times[pairs[kept]]
    weights = (1 + np.log(times)) * idf[columns]
    squares = np.bincount(owners, weights=weights**2, minlength=len(texts))
    features = np.zeros((len(texts), len(idf)), np.float32)
    features[owners, columns] = weights / np.sqrt(squares)[owners]
    return features


def _sample_rows(B: int) -> Ints:
    """The numbers of at most 20,000 of B rows, drawn from a fixed seed: int64, ascending."""
    if B <= _MAX_TRAIN_ROWS:
        return np.arange(B)
    return np.sort(np.random.default_rng(0).choice(B, _MAX_TRAIN_ROWS, replace=False))


def _score(head: SavedHead, actual: npt.NDArray[Any], answers: Floats) -> PartScores:
    """The scores of regressed targets, as if a head of the type had put out their logits."""
    thresholds = None
    if head.type.has_thresholds:
        thresholds = (0.5,) * head.type.count_outputs(len(head.classes))
    decided = replace(head, decision=Decision(1.0, thresholds))
    return score_head(decided, actual, decode_targets(head.type, answers))
