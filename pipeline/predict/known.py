"""The vectors that the project's store holds already, found by the keys of texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.console import warn
from pipeline.corpus.keys import view_keys
from pipeline.errors import ObjectStoreError, PipelineError, StoreError
from pipeline.model.weights import Floats
from pipeline.store import find_keys, read_vectors

_NO_KEYS = np.empty(0, "S16")


class KnownVectors:
    """Looks vectors up in a store. A store that cannot be read, or is of other vectors, has none.

    :param folder: the store.
    :param fingerprint: the fingerprint of the vectors wanted.
    :param layers: the numbers of the L layers wanted.
    :param width: D, the width of one layer's vector.
    :ivar has_given_up: whether the store was found damaged.
    """

    def __init__(self, folder: Path, fingerprint: str, layers: Sequence[int], width: int) -> None:
        self._folder = folder
        self._fingerprint = fingerprint
        self._layers = tuple(layers)
        self._keys = _NO_KEYS
        self._width = width
        self.has_given_up = False
        try:
            keys = find_keys(folder, fingerprint=fingerprint)
        except (StoreError, ObjectStoreError) as error:
            self._give_up(error)
        else:
            if keys is not None:
                # All keys have 16 bytes, so that it does no harm that NumPy takes zeros at their
                # ends for padding.
                self._keys = np.sort(view_keys(keys).view("S16")[:, 0])

    def take(self, keys: Sequence[bytes]) -> tuple[npt.NDArray[np.bool_], Floats]:
        """The vectors of those texts that the store knows.

        :param keys: the keys of texts, [B].
        :returns: which of them it knows, [B], and their vectors: float32, [b, L, D].
        """
        wanted = np.array(keys, "S16")
        at = np.minimum(np.searchsorted(self._keys, wanted), max(0, len(self._keys) - 1))
        is_known = self._keys[at] == wanted if len(self._keys) else np.zeros(len(keys), bool)
        known = [key for key, known in zip(keys, is_known.tolist(), strict=True) if known]
        if known:
            try:
                return is_known, read_vectors(
                    self._folder, known, self._layers, fingerprint=self._fingerprint
                )
            except (StoreError, ObjectStoreError) as error:
                self._give_up(error)
        none = np.zeros(len(keys), bool)
        return none, np.empty((0, len(self._layers), self._width), np.float32)

    def _give_up(self, error: PipelineError) -> None:
        """Take nothing from the store any more, and say why."""
        self._keys = _NO_KEYS
        self.has_given_up = True
        warn(f"{error.message}; all vectors are computed anew")
