"""Vectors in two dimensions, by principal components or UMAP, and the clusters that they form."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import StageError
from pipeline.model.decision import Floats, Ints

Vectors = npt.NDArray[np.floating[Any]]

_STEPS = 30  # of k-means at most; later ones move few points
_ITERATIONS = 40
_UMAP_NEIGHBOURS = 15  # its own default


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
    centered = center(vectors)
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


def center(vectors: Vectors) -> Vectors:
    """Vectors whose mean is 0.

    :param vectors: floats, [n, D].
    """
    return vectors - vectors.mean(axis=0, keepdims=True) if len(vectors) else vectors


def scale_places(places: Floats, decimals: int | None = None) -> Floats:
    """Coordinates moved and scaled so that the larger of their ranges is that from -1 to 1.

    Both have one factor, so that distances keep their proportions.

    :param places: [n, 2].
    :param decimals: the number of decimals to round to; ``None`` to keep all.
    """
    if not len(places):
        return places
    low, high = places.min(axis=0), places.max(axis=0)
    scaled = (places - (low + high) / 2) / max(float((high - low).max()) / 2, 1e-12)
    rounded: Floats = scaled if decimals is None else np.round(scaled, decimals)
    return rounded + 0.0  # no -0


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


def run_umap(vectors: Vectors, seed: int = 0) -> Floats:
    """Coordinates by UMAP, by cosine distance.

    Source: McInnes, Healy, Melville (2018), UMAP: Uniform manifold approximation and projection.

    :param vectors: floats, [n, D].
    :param seed: the seed of what it draws.
    :returns: [n, 2]; all 0 of fewer than three vectors.
    :raises StageError: if it is not installed.
    """
    try:
        from umap import UMAP
    except ImportError as error:
        raise StageError(
            "a map by UMAP was asked for, but the package umap-learn is not installed",
            hint="run `pip install umap-learn`, or ask for pca",
        ) from error
    neighbours = min(_UMAP_NEIGHBOURS, len(vectors) - 1)
    if neighbours < 2:
        return np.zeros((len(vectors), 2))
    made: Floats = UMAP(
        n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1
    ).fit_transform(vectors)
    return made.astype(np.float64)
