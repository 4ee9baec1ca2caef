"""Columns of an exported table for tools that draw maps: coordinates, and nearest neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from pipeline.arrays import wrap_numbers
from pipeline.neighbours import list_neighbours
from pipeline.projection import center, find_directions, run_umap, scale_places
from pipeline.store import read_vectors

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

MapMethod = Literal["pca", "umap"]
_SAMPLE_ROWS = 20_000  # by which the directions of PCA are found


def make_map_columns(
    store: Path, keys: pa.Array, layer: int, method: MapMethod | None, neighbours: int
) -> tuple[Mapping[str, pa.Array], bool]:
    """Coordinates and neighbours of all rows of a corpus, by the vectors of one layer.

    Rows with the same text have the same ones. The neighbours of a row are of other texts, each by
    the first row that holds it.

    :param store: the folder of the embedding store.
    :param keys: the keys of the texts of B rows, duplicates allowed.
    :param layer: the number of the layer.
    :param method: how coordinates are made; ``None`` for none.
    :param neighbours: the number of neighbours of each row; 0 for none.
    :returns: ``x`` and ``y``, float32, and ``neighbours``, a struct of ``ids``, the numbers of rows
        from 0, and ``distances``, 1 less the cosine, the nearest first; and whether the neighbours
        are exact.
    :raises StageError: if UMAP is asked for and not installed.
    :raises StoreError: if a key is not in the store, or what is read is damaged.
    """
    coded = keys.dictionary_encode()
    codes = coded.indices.to_numpy().astype(np.int64)
    vectors = read_vectors(store, coded.dictionary, [layer])[:, 0]
    columns: dict[str, pa.Array] = {}
    if method is not None:
        places = _place(vectors, method)[codes].astype(np.float32)
        columns |= {"x": wrap_numbers(places[:, 0]), "y": wrap_numbers(places[:, 1])}
    exact = True
    if neighbours:
        numbers, cosines, exact = list_neighbours(vectors, neighbours)
        _, first_rows = np.unique(codes, return_index=True)
        columns["neighbours"] = _list_structs(numbers, cosines, first_rows, codes)
    return columns, exact


def _place(vectors: npt.NDArray[np.float32], method: MapMethod) -> npt.NDArray[np.float64]:
    """Coordinates of distinct texts, the larger of their ranges from -1 to 1: [N, 2]."""
    if method == "umap":
        return scale_places(run_umap(vectors))
    step = max(1, -(-len(vectors) // _SAMPLE_ROWS))
    directions, _, _ = find_directions(vectors[::step], 2)
    places = np.zeros((len(vectors), 2))
    places[:, : directions.shape[1]] = center(vectors) @ directions
    return scale_places(places)


def _list_structs(
    numbers: npt.NDArray[np.int64],
    cosines: npt.NDArray[np.float32],
    first_rows: npt.NDArray[np.int64],
    codes: npt.NDArray[np.int64],
) -> pa.Array:
    """The neighbours of each row as Arrow structs, of distinct texts' neighbours: [B].

    :param numbers: the neighbours of each of N texts, [N, n], -1 for none.
    :param first_rows: the first row of each text, [N].
    :param codes: the text of each row, [B].
    """
    import pyarrow as pa

    is_there = numbers >= 0
    offsets = np.concatenate([[0], np.cumsum(is_there.sum(axis=1))]).astype(np.int32)
    ids = pa.ListArray.from_arrays(
        wrap_numbers(offsets), wrap_numbers(first_rows[numbers[is_there]])
    )
    distances = pa.ListArray.from_arrays(
        wrap_numbers(offsets), wrap_numbers(np.maximum(1 - cosines[is_there], 0))
    )
    structs = pa.StructArray.from_arrays([ids, distances], names=["ids", "distances"])
    return structs.take(wrap_numbers(codes))
