"""Saved heads on the vectors of the store: their outputs, and their scores on each part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.console import show_progress
from pipeline.model.decision import Logits
from pipeline.model.evaluation import PartScores, bootstrap_intervals, score_head
from pipeline.model.saved import Heads, SavedHead
from pipeline.processes import open_threads
from pipeline.report.inputs import ScoredRows
from pipeline.store import read_ahead, stream_vectors

if TYPE_CHECKING:
    import pyarrow as pa

_CHUNK_TEXTS = 16_384


def score_texts(folder: Path, heads: Heads, keys: pa.Array) -> dict[str, list[Logits]]:
    """Run all heads over the vectors of some texts, a bounded number of them at a time.

    :param folder: the folder of the embedding store.
    :param heads: the heads to run.
    :param keys: the keys of N texts: fixed-size binary of 16, [N].
    :returns: task → logits, [N, O], of its head and of the same head from each other seed; of a
        regression float64, in the unit of its labels.
    :raises StageError: if the vectors are of another shape than the heads were trained on, or a
        logit is not finite.
    """
    found: dict[str, list[Logits]] = {}
    with show_progress("scoring", len(keys), "texts") as advance:
        for texts, vectors in read_ahead(
            stream_vectors(folder, keys, heads.layers, _CHUNK_TEXTS, window_rows=_CHUNK_TEXTS)
        ):
            for name, logits in heads.compute_logits(vectors).items():
                if name not in found:
                    found[name] = [np.empty((len(keys), *of.shape[1:]), of.dtype) for of in logits]
                for whole, of_seed in zip(found[name], logits, strict=True):
                    whole[texts] = of_seed
            advance(len(texts))
    return found


def score_parts(
    heads: Heads, rows: ScoredRows, logits: Mapping[str, Sequence[Logits]]
) -> dict[str, dict[str, PartScores]]:
    """Score every head on every part; with intervals on the part that heads are judged by.

    :param heads: the heads.
    :param rows: the rows to score them on.
    :param logits: task → logits of the N distinct texts, [N, O], for each seed.
    :returns: part → task → scores.
    """
    # Where all judged rows are unlike those of training, both parts are one.
    is_one = np.array_equal(rows.parts.get(rows.unseen, []), rows.parts[rows.judged])
    pairs = [
        (part, head)
        for part in rows.parts
        for head in heads.heads
        if not (is_one and part == rows.unseen)
    ]

    def score(pair: tuple[str, SavedHead]) -> PartScores:
        part, head = pair
        return _score_part(head, part, rows, logits[head.name])

    scores: dict[str, dict[str, PartScores]] = {part: {} for part in rows.parts}
    with open_threads() as pool:
        for (part, head), found in zip(pairs, pool.map(score, pairs), strict=True):
            scores[part][head.name] = found
    if is_one:
        scores[rows.unseen] = scores[rows.judged]
    return scores


def _score_part(
    head: SavedHead, part: str, rows: ScoredRows, logits: Sequence[Logits]
) -> PartScores:
    """Score one head on one part, with its mean and deviation over the seeds if there are any."""
    chosen = rows.take_rows(part, head.name)
    actual, texts = rows.labels[head.name][chosen], rows.codes[chosen]
    by_seed = [score_head(head, actual, of_seed[texts]) for of_seed in logits]
    scores = by_seed[0]
    if part in (rows.judged, rows.unseen):
        intervals = bootstrap_intervals(head, actual, logits[0][texts])
        scores = replace(scores, intervals=intervals)
    if len(by_seed) == 1:
        return scores
    values = {
        metric: [of_seed.overall[metric] for of_seed in by_seed]
        for metric in scores.overall
        if all(metric in of_seed.overall for of_seed in by_seed)
    }
    spread = {m: (float(np.mean(v)), float(np.std(v, ddof=1))) for m, v in values.items()}
    return replace(scores, seeds=spread)
