"""A map of the corpus: texts as points in two dimensions, and the clusters that they form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.model.decision import Floats, Ints
from pipeline.projection import (
    Vectors,
    center,
    find_clusters,
    find_directions,
    run_umap,
    scale_places,
)
from pipeline.report.inputs import ScoredRows
from pipeline.report.words import WordCounts

MAX_POINTS = 20_000
CLUSTERS = 12
_CLUSTER_DIMENSIONS = 16
_FEWEST_TEXTS = 50  # in a cluster, on the average
_NAMED_WORDS = 3
_FLOOR = 0.01  # added to shares of texts, so that no word is told by one text or two
_LEAST_SHARE = 0.1  # of a cluster's texts that hold a word by which it is named


@dataclass(frozen=True, eq=False)
class MapPoints:
    """Points of a map, one for each of n distinct texts.

    :param rows: the row of the corpus that each point stands for: int64, [n].
    :param x: the first coordinates, from -1 to 1, with 3 decimals: float64, [n].
    :param y: the second coordinates, in the unit of the first: float64, [n].
    :param cluster: the cluster of each point: int64, [n].
    :param method: ``pca`` or ``umap``.
    :param explained: the share of the vectors' variance that the two directions of PCA hold;
        ``None`` of other methods.
    """

    rows: Ints
    x: Floats
    y: Floats
    cluster: Ints
    method: str
    explained: float | None


def sample_rows(rows: ScoredRows, limit: int = MAX_POINTS, seed: int = 0) -> Ints:
    """Rows to draw, one for each distinct text: the judged part first, then the others by chance.

    :param rows: the rows of the corpus.
    :param limit: the largest number of rows. Judged rows take half of it at most, if not all fit.
    :param seed: the seed of the draw.
    :returns: indices of rows, int64, ascending.
    """
    generator = np.random.default_rng(seed)
    judged, first = rows.find_first_rows(rows.judged), rows.first_rows
    others = first[~np.isin(rows.codes[first], rows.codes[judged])]
    room = max(limit // 2, limit - len(others))
    judged = generator.permutation(judged)[:room]
    others = generator.permutation(others)[: limit - len(judged)]
    return np.sort(np.concatenate([judged, others])).astype(np.int64)


def draw_map(vectors: Vectors, rows: Ints, method: str = "pca", seed: int = 0) -> MapPoints:
    """Place texts in two dimensions.

    :param vectors: the vectors of n texts of one layer, or of several joined: floats, [n, D].
    :param rows: the row of the corpus that each is of, [n].
    :param method: ``pca`` or ``umap``.
    :param seed: the seed of all that is drawn.
    :raises StageError: if UMAP is asked for and not installed.
    """
    directions, variances, total = find_directions(vectors, _CLUSTER_DIMENSIONS)
    reduced = (center(vectors) @ directions).astype(np.float64)
    clusters = find_clusters(reduced, max(1, min(CLUSTERS, len(rows) // _FEWEST_TEXTS)), seed)
    places = np.zeros((len(rows), 2))
    if method == "umap":
        places = run_umap(vectors, seed)
    else:
        places[:, : reduced.shape[1]] = reduced[:, :2]
    places = scale_places(places, decimals=3)
    explained = float(variances[:2].sum() / total) if method == "pca" and total > 0 else None
    return MapPoints(rows, places[:, 0], places[:, 1], clusters, method, explained)


def name_clusters(words: WordCounts, texts: Ints, clusters: Ints) -> tuple[str, ...]:
    """Names of clusters: the words that their texts hold more often than the others.

    :param words: the words of the N distinct texts of the corpus.
    :param texts: the text of each point, by its index among them: int64, [n].
    :param clusters: the cluster of each point, [n].
    :returns: such as ``1: call, free, claim``, with the cluster's number from 1; the number alone
        where no word tells it.
    """
    whole = words.count_texts(texts)
    # A letter alone is most often what an apostrophe cut off.
    is_long = np.array([len(word) > 1 or not word.isascii() for word in words.vocabulary], bool)
    names = []
    for cluster in range(int(clusters.max(initial=-1)) + 1):
        inside = texts[clusters == cluster]
        held = words.count_texts(inside)
        share = held / max(len(inside), 1)
        others = (whole - held) / max(len(texts) - len(inside), 1)
        # Words that many of its texts hold, and few of the others: neither alone would do, as
        # articles are everywhere, and most words are in a text or two.
        gain = share * np.log((share + _FLOOR) / (others + _FLOOR))
        gain = np.where((share >= _LEAST_SHARE) & is_long, gain, 0.0)
        best = np.argsort(-gain, kind="stable")[:_NAMED_WORDS]
        found = [str(words.vocabulary[word]) for word in best if gain[word] > 0]
        names.append(f"{cluster + 1}: {', '.join(found)}" if found else str(cluster + 1))
    return tuple(names)
