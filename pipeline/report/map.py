"""A map of the corpus: texts as points in two dimensions, and the clusters that they form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import StageError
from pipeline.model.decision import Floats, Ints
from pipeline.report.inputs import ScoredRows
from pipeline.report.words import WordCounts

Vectors = npt.NDArray[np.floating[Any]]

MAX_POINTS = 20_000
CLUSTERS = 12
_CLUSTER_DIMENSIONS = 16
_FEWEST_TEXTS = 50  # in a cluster, on the average
_STEPS = 30  # of k-means at most; later ones move few points
_ITERATIONS = 40
_NAMED_WORDS = 3
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
    _, first = np.unique(rows.codes[rows.parts[rows.judged]], return_index=True)
    judged = rows.parts[rows.judged][first]
    _, first = np.unique(rows.codes, return_index=True)
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
    reduced = (_center(vectors) @ directions).astype(np.float64)
    clusters = find_clusters(reduced, max(1, min(CLUSTERS, len(rows) // _FEWEST_TEXTS)), seed)
    places = np.zeros((len(rows), 2))
    if method == "umap":
        places = _run_umap(vectors, seed)
    else:
        places[:, : reduced.shape[1]] = reduced[:, :2]
    places = places - (places.max(axis=0, initial=0) + places.min(axis=0, initial=0)) / 2
    places = np.round(places / max(np.abs(places).max(initial=0), 1e-12), 3) + 0.0
    explained = float(variances[:2].sum() / total) if method == "pca" and total > 0 else None
    return MapPoints(rows, places[:, 0], places[:, 1], clusters, method, explained)


def find_directions(vectors: Vectors, count: int) -> tuple[Floats, Floats, float]:
    """The directions in which vectors vary most: principal component analysis.

    They are found by subspace iteration on the covariance, from a fixed start.

    Source: Halko, Martinsson, Tropp (2011), Finding structure with randomness.

    :param vectors: floats, [n, D].
    :param count: the number of directions; fewer where n or D is smaller.
    :returns: orthonormal columns, [D, count], the first that of most variance, the largest number
        of each positive; the variance along each, [count]; and the variance along all D.
    """
    n, D = vectors.shape
    count = min(count, D, max(n - 1, 0))
    centered = _center(vectors)
    covariance = (centered.T @ centered).astype(np.float64) / max(n - 1, 1)
    start = np.random.default_rng(0).normal(size=(D, min(D, 2 * count + 8)))
    span = np.linalg.qr(start).Q
    for _ in range(_ITERATIONS):
        span = np.linalg.qr(covariance @ span).Q
    squares, rotation = np.linalg.eigh(span.T @ covariance @ span)
    directions = (span @ rotation)[:, ::-1][:, :count]
    largest = np.abs(directions).argmax(axis=0)
    directions = directions * np.sign(directions[largest, np.arange(count)])
    variances = np.maximum(squares[::-1][:count], 0)
    return directions.astype(vectors.dtype), variances, float(np.trace(covariance))


def _center(vectors: Vectors) -> Vectors:
    """Vectors whose mean is 0: [n, D]."""
    return vectors - vectors.mean(axis=0, keepdims=True) if len(vectors) else vectors


def find_clusters(points: Floats, k: int, seed: int = 0) -> Ints:
    """Clusters of points by k-means, the largest first.

    Sources: Lloyd (1982), Least squares quantization in PCM; Arthur, Vassilvitskii (2007),
    k-means++: the advantages of careful seeding.

    :param points: [n, D].
    :param k: the number of clusters; fewer come out where points coincide.
    :param seed: the seed of the centres that it starts from.
    :returns: the cluster of each point, [n], from 0.
    """
    if not points.size:
        return np.zeros(len(points), np.int64)
    centers = _draw_centers(points, k, np.random.default_rng(seed))
    nearest = np.full(len(points), -1)
    for _ in range(_STEPS):
        before, nearest = nearest, _measure_squares(points, centers).argmin(axis=1)
        if (before == nearest).all():
            break
        counts = np.bincount(nearest, minlength=len(centers))
        sums = np.stack(
            [np.bincount(nearest, weights=column, minlength=len(centers)) for column in points.T],
            axis=1,
        )
        held = counts > 0  # a centre that no point is near stays where it is
        centers[held] = sums[held] / counts[held, None]
    counts = np.bincount(nearest, minlength=len(centers))
    rank = np.empty(len(centers), np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(centers))
    ranked: Ints = rank[nearest]
    return ranked


def _draw_centers(points: Floats, k: int, generator: np.random.Generator) -> Floats:
    """Centres to start from, each drawn by the square of its distance to those before."""
    chosen = [int(generator.integers(len(points)))]
    squares = _measure_squares(points, points[chosen])[:, 0]
    while len(chosen) < k and squares.sum() > 0:
        chosen.append(int(generator.choice(len(points), p=squares / squares.sum())))
        squares = np.minimum(squares, _measure_squares(points, points[chosen[-1:]])[:, 0])
    return points[chosen].copy()


def _measure_squares(points: Floats, centers: Floats) -> Floats:
    """The squared distance of each point to each centre: [n, k]."""
    lengths = np.square(points).sum(axis=1)[:, None] + np.square(centers).sum(axis=1)
    squares: Floats = np.maximum(lengths - 2 * points @ centers.T, 0)
    return squares


def name_clusters(words: WordCounts, texts: Ints, clusters: Ints) -> tuple[str, ...]:
    """Names of clusters: the words that their texts hold more often than the others.

    :param words: the words of the N distinct texts of the corpus.
    :param texts: the text of each point, by its index among them: int64, [n].
    :param clusters: the cluster of each point, [n].
    :returns: such as ``1: call, free, claim``, with the cluster's number from 1; the number alone
        where no word tells it.
    """
    whole = words.count_texts(texts)
    names = []
    for cluster in range(int(clusters.max(initial=-1)) + 1):
        inside = texts[clusters == cluster]
        held = words.count_texts(inside)
        share = held / max(len(inside), 1)
        others = (whole - held) / max(len(texts) - len(inside), 1)
        gain = np.where(share >= _LEAST_SHARE, share - others, 0.0)
        best = np.argsort(-gain, kind="stable")[:_NAMED_WORDS]
        found = [str(words.vocabulary[word]) for word in best if gain[word] > 0]
        names.append(f"{cluster + 1}: {', '.join(found)}" if found else str(cluster + 1))
    return tuple(names)


def _run_umap(vectors: Vectors, seed: int) -> Floats:
    """Coordinates by UMAP, by cosine distance.

    Source: McInnes, Healy, Melville (2018), UMAP: Uniform manifold approximation and projection.
    """
    try:
        from umap import UMAP
    except ImportError as error:
        raise StageError(
            "report.map is umap, but the package umap-learn is not installed",
            hint="run `pip install umap-learn`, or set report.map to pca",
        ) from error
    neighbours = min(15, len(vectors) - 1)
    if neighbours < 2:
        return np.zeros((len(vectors), 2))
    made: Floats = UMAP(
        n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1
    ).fit_transform(vectors)
    return made.astype(np.float64)
