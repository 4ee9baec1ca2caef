"""The features of any of the cached layers: in memory, or from the store as they are wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.console import format_bytes, say
from pipeline.heads.features import (
    BLOCK_ROWS,
    Features,
    Floats,
    MemoryFeatures,
    Reader,
    Scaling,
    StreamedFeatures,
    Vectors,
)
from pipeline.store import VectorStream, read_ahead, read_manifest, read_vectors

Piece = tuple[npt.NDArray[np.int64], Vectors]  # row numbers, [B], and vectors, [B, D]

# The number of rows that are shuffled together, at least; fewer would hardly be shuffled.
_MIN_WINDOW_ROWS = 1024


class StoredFeatures:
    """Scaled features of the rows that heads train on and are validated by.

    :param folder: the embedding store.
    :param keys: the keys of the texts of the training rows, then of the validation rows:
        fixed-size binary of 16 bytes.
    :param train_rows: the number of training rows.
    :param layers: the numbers of all layers that will be asked for.
    :param width: the width of one layer's vector.
    :param standardize: whether to scale vectors by the training rows.
    :param memory_bytes: the memory that the vectors may take; larger ones are streamed.
    :param device: where the features go.
    """

    def __init__(
        self,
        folder: Path,
        keys: Any,
        train_rows: int,
        layers: Sequence[int],
        width: int,
        *,
        standardize: bool,
        memory_bytes: float,
        device: str,
    ) -> None:
        self._folder = folder
        self._keys = keys
        self._train_rows = train_rows
        self._layers = tuple(layers)
        self._width = width
        self._standardize = standardize
        self._memory_bytes = memory_bytes
        self._device = device
        self._held: dict[tuple[int, ...], tuple[Features, Scaling]] = {}
        self._vectors: Floats | None = None
        self._itemsize = np.dtype(read_manifest(folder).dtype).itemsize
        self._is_held = False
        numbers = len(keys) * len(layers) * width
        # Twice in float32: as they are read, and scaled.
        if 2 * 4 * numbers <= memory_bytes:
            self._vectors = read_vectors(self._folder, keys, self._layers)
            return
        self._is_held = 2 * self._itemsize * numbers <= memory_bytes
        say(
            f"the vectors would take {format_bytes(2 * 4 * numbers)} of the "
            f"{format_bytes(int(memory_bytes))} that they may: "
            + (
                "keeping them as the store has them, and widening some rows at a time"
                if self._is_held
                else "reading them from the store as they are wanted"
            )
        )

    def __call__(self, layers: tuple[int, ...]) -> tuple[Features, Scaling]:
        """The features of some layers, joined, and the scaling that made them."""
        if layers not in self._held:
            self._held.clear()  # one set of features at a time
            self._held[layers] = (
                self._stream(layers) if self._vectors is None else self._hold(self._vectors, layers)
            )
        return self._held[layers]

    def _hold(self, vectors: Floats, layers: tuple[int, ...]) -> tuple[Features, Scaling]:
        chosen = [self._layers.index(layer) for layer in layers]
        whole = layers == self._layers
        flat = (vectors if whole else vectors[:, chosen]).reshape(len(vectors), -1)
        scaling = Scaling.identity(flat.shape[1])
        if self._standardize:
            scaling = Scaling.fit(flat[: self._train_rows])
        scaled = torch.from_numpy(scaling.apply(flat)).to(self._device)
        return MemoryFeatures(scaled, self._train_rows), scaling

    def _stream(self, layers: tuple[int, ...]) -> tuple[Features, Scaling]:
        width = len(layers) * self._width
        # In memory at once are a window, the next one, which is being read, and a shuffled copy.
        window = max(_MIN_WINDOW_ROWS, int(self._memory_bytes / (4 * self._itemsize * width)))
        block = min(window, BLOCK_ROWS)
        if self._is_held:
            read = _read_held(
                read_vectors(self._folder, self._keys, layers, dtype=None).reshape(-1, width)
            )
        else:
            stream = VectorStream(self._folder, self._keys, layers, dtype=None)

            def read(rows: int, batch: int, seed: int | None) -> Iterator[Piece]:
                rows_at_once = window if seed is not None else block
                for numbers, vectors in stream.read(
                    batch, rows=rows, window_rows=rows_at_once, seed=seed
                ):
                    yield numbers, vectors.reshape(len(vectors), width)

        scaling = Scaling.identity(width)
        if self._standardize:
            pieces = read_ahead(read(self._train_rows, block, None))
            scaling = Scaling.fit_blocks(vectors for _, vectors in pieces)
        features = StreamedFeatures(
            read, len(self._keys), self._train_rows, scaling, self._device, block
        )
        return features, scaling


def _read_held(vectors: Vectors) -> Reader:
    """A function that gives vectors in memory, [B, D], as one that reads them from the store."""

    def read(rows: int, batch: int, seed: int | None) -> Iterator[Piece]:
        order = None if seed is None else np.random.default_rng(seed).permutation(rows)
        for start in range(0, rows, batch):
            stop = min(start + batch, rows)
            numbers = np.arange(start, stop) if order is None else order[start:stop]
            yield numbers, vectors[start:stop] if order is None else vectors[numbers]

    return read
