"""Near-duplicates between the judged part and training that bytes miss, and scores without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.model.decision import Ints, Logits
from pipeline.model.evaluation import PartScores, bootstrap_intervals, score_head
from pipeline.model.metrics import METRICS
from pipeline.model.saved import Heads, SavedHead
from pipeline.neighbours import find_threshold
from pipeline.processes import open_threads
from pipeline.report.inputs import ScoredRows
from pipeline.report.nearest import TrainingNeighbours
from pipeline.report.spreadsheet import format_csv


@dataclass(frozen=True)
class NearDuplicate:
    """A row of the judged part whose text is nearly one of training, but not the same.

    :param row: the index of the row in the corpus.
    :param train_row: the first training row with the nearest text.
    :param cosine: the cosine of both.
    :param same_label: whether the labels of both rows are the same for all tasks for which both
        have one; ``None`` if there is no such task.
    """

    row: int
    train_row: int
    cosine: float
    same_label: bool | None


@dataclass(frozen=True)
class Inflation:
    """A score that is better with the leaks than chance explains.

    :param task: the name of the task.
    :param metric: its headline metric.
    :param score: the score on the judged part.
    :param score_without: the score on the rows that are no leaks.
    """

    task: str
    metric: str
    score: float
    score_without: float


@dataclass(frozen=True)
class Leaks:
    """What of the judged part stands in training too, or nearly so.

    :param threshold: the cosine above which texts are near-duplicates.
    :param pairs: the near-duplicates, the nearest first.
    :param n_rows: the number of rows of the judged part.
    :param n_same: how many of them have the very text of a training row.
    :param scores_without: task → scores on the rows that are neither, with intervals.
    :param judged: the name of the judged part.
    :param exact: whether every pair of texts was compared.
    """

    threshold: float
    pairs: list[NearDuplicate]
    n_rows: int
    n_same: int
    scores_without: Mapping[str, PartScores]
    judged: str
    exact: bool

    def find_inflated(self, heads: Heads, scores: Mapping[str, PartScores]) -> list[Inflation]:
        """The tasks whose headline score is better than the interval of the score without leaks.

        :param heads: the heads.
        :param scores: task → scores on all rows of the judged part.
        """
        found = []
        for head in heads.heads:
            without = self.scores_without[head.name]
            metric = head.type.default_metric
            if metric not in without.intervals or metric not in scores[head.name].overall:
                continue
            score, (low, high) = scores[head.name].overall[metric], without.intervals[metric]
            if score < low if METRICS[metric].lower_is_better else score > high:
                found.append(Inflation(head.name, metric, score, without.overall[metric]))
        return found


def find_leaks(
    heads: Heads,
    rows: ScoredRows,
    logits: Mapping[str, Sequence[Logits]],
    neighbours: TrainingNeighbours,
    threshold: float | None = None,
    scores: Mapping[str, PartScores] | None = None,
) -> Leaks:
    """Find the near-duplicates of the judged part, and score the heads without them.

    :param heads: the heads.
    :param rows: the rows of the corpus.
    :param logits: task → logits of the N distinct texts, [N, O], for each seed.
    :param neighbours: the training texts nearest to those of the judged part.
    :param threshold: the cosine above which texts are near-duplicates; found if ``None``.
    :param scores: task → scores on all rows of the judged part, which are those without near
        duplicates where there are none; computed if ``None``.
    """
    if threshold is None:
        threshold = find_threshold(neighbours.sample_cosines, neighbours.training_texts)
    judged = rows.parts[rows.judged]
    at = np.searchsorted(neighbours.codes, rows.codes[judged])
    is_same = neighbours.same_rows[at] >= 0
    is_near = ~is_same & (neighbours.rows[at] >= 0) & (neighbours.cosines[at] > threshold)
    pairs = [
        NearDuplicate(row, train_row, cosine, _have_same_labels(rows, row, train_row))
        for row, train_row, cosine in zip(
            judged[is_near].tolist(),
            neighbours.rows[at[is_near]].tolist(),
            np.minimum(neighbours.cosines[at[is_near]].astype(np.float64), 1.0).tolist(),
            strict=True,
        )
    ]
    rest = judged[~is_same & ~is_near]
    if scores is None or len(rest) < len(judged):
        with open_threads() as pool:
            found = pool.map(
                lambda head: _score_rows(head, rows, rest, logits[head.name][0]), heads.heads
            )
            scores = dict(zip((head.name for head in heads.heads), found, strict=True))
    return Leaks(
        threshold=threshold,
        pairs=sorted(pairs, key=lambda pair: (-pair.cosine, pair.row)),
        n_rows=len(judged),
        n_same=int(is_same.sum()),
        scores_without=scores,
        judged=rows.judged,
        exact=neighbours.exact,
    )


def _have_same_labels(rows: ScoredRows, first: int, second: int) -> bool | None:
    """Whether two rows agree in all labels that both have; ``None`` if they share none."""
    same = [
        np.array_equal(rows.labels[task][first], rows.labels[task][second])
        for task, present in rows.present.items()
        if present[first] and present[second]
    ]
    return all(same) if same else None


def _score_rows(head: SavedHead, rows: ScoredRows, chosen: Ints, logits: Logits) -> PartScores:
    """The scores of one head, with intervals, on those of some rows that have a label.

    :param chosen: the indices of rows.
    :param logits: its outputs for the N distinct texts, [N, O].
    """
    chosen = chosen[rows.present[head.name][chosen]]
    actual, outputs = rows.labels[head.name][chosen], logits[rows.codes[chosen]]
    scores = score_head(head, actual, outputs)
    return replace(scores, intervals=bootstrap_intervals(head, actual, outputs))


def format_near_duplicates(leaks: Leaks, numbers: Ints, texts: Mapping[int, str] | None) -> bytes:
    """All near-duplicates as CSV, the nearest first.

    :param leaks: what was found.
    :param numbers: the number in the source of each row of the corpus, [B].
    :param texts: row → its text, of all rows named; ``None`` where texts are not to be shown.
    """
    names = ["row", "train_row", "cosine", "same_label"]
    return format_csv(
        [*names, *([] if texts is None else ["text", "train_text"])],
        (
            [
                int(numbers[pair.row]), int(numbers[pair.train_row]), pair.cosine,
                {True: "yes", False: "no", None: None}[pair.same_label],
                *([] if texts is None else [texts[pair.row], texts[pair.train_row]]),
            ]
            for pair in leaks.pairs
        ),
    )  # fmt: skip
