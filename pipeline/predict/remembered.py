"""The vectors of labelled texts, kept in a store of their own for the next time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.console import warn
from pipeline.errors import PipelineError, StoreError
from pipeline.files import hold_lock
from pipeline.model.weights import Floats
from pipeline.predict.known import KnownVectors
from pipeline.store import Recipe, Rows, StoreUpdate, find_keys

_HELD_BYTES = 64_000_000  # of vectors that wait in memory to be written together


class RememberedVectors:
    """A second store beside the project's, which no stage reads and DVC does not track.

    It holds the layers that the heads use, so that its recipe is another one than that of the
    project's store.

    :param folder: the store; it need not exist.
    :param recipe: what makes the vectors, for the L layers of width D that the heads use.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        contents = {**recipe.contents, "layers": list(recipe.layers)}
        self._recipe = replace(recipe, contents=contents)
        self._folder = folder
        self._known = KnownVectors(folder, self._recipe.fingerprint, recipe.layers, recipe.width)
        # The key of each text that waits → its number of tokens and its vectors, [L, D].
        self._waiting: dict[bytes, tuple[int, npt.NDArray[np.floating]]] = {}
        self._is_open = True

    def take(self, keys: Sequence[bytes]) -> tuple[npt.NDArray[np.bool_], Floats]:
        """The vectors of those texts that the store knows, as ``KnownVectors.take`` gives them."""
        return self._known.take(keys)

    def add(self, keys: Sequence[bytes], rows: Rows) -> None:
        """Keep vectors that were computed; some wait in memory until ``flush``.

        :param keys: the keys of B texts.
        :param rows: their numbers of tokens, [B], and their vectors, [B, L, D].
        """
        if not self._is_open:
            return
        for key, n_tokens, vectors in zip(keys, rows.n_tokens.tolist(), rows.vectors, strict=True):
            self._waiting.setdefault(key, (n_tokens, vectors))
        if len(self._waiting) * self._recipe.text_bytes >= _HELD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what waits. What cannot be written is said once; labels do not depend on it."""
        if not self._waiting:
            return
        try:
            with lock_remembered(self._folder):
                self._write()
        except PipelineError as error:
            self._is_open = False
            warn(f"vectors are not remembered: {error.message}")
        self._waiting.clear()

    def _write(self) -> None:
        import pyarrow as pa

        if self._known.has_given_up:
            self._mend()
        keys = self._read_keys()
        held = set(keys)
        keys += [key for key in self._waiting if key not in held]
        update = StoreUpdate(self._folder, self._recipe, pa.array(keys, pa.binary(16)))
        for start, stop in update.list_missing():
            is_known, known = update.find_known(start, stop)
            shape = (stop - start, len(self._recipe.layers), self._recipe.width)
            rows = Rows(np.empty(stop - start, np.int32), np.empty(shape, self._recipe.dtype))
            rows.n_tokens[is_known], rows.vectors[is_known] = known.n_tokens, known.vectors
            for position in np.flatnonzero(~is_known).tolist():
                n_tokens, vectors = self._waiting[keys[start + position]]
                rows.n_tokens[position], rows.vectors[position] = n_tokens, vectors
            update.write_shard(start, rows)
        update.commit()

    def _mend(self) -> None:
        """Drop the shards that are damaged, or all of the store where that cannot be told."""
        from pipeline.store.upkeep import drop_store, repair_store, verify_store

        try:
            damages = [damage for damage in verify_store(self._folder) if not damage.is_stray]
            repair_store(self._folder, damages)
        except StoreError:
            drop_store(self._folder)
        self._known.has_given_up = False

    def _read_keys(self) -> list[bytes]:
        """The keys of the store as it is now, which another run may have added to."""
        try:
            keys = find_keys(self._folder, fingerprint=self._recipe.fingerprint)
        except StoreError:
            return []  # it is damaged, and its texts are embedded again when they come
        return [] if keys is None else keys.to_pylist()


def lock_remembered(folder: Path) -> AbstractContextManager[None]:
    """The lock of the store of labelled texts' vectors: one run at a time may write there.

    :param folder: the store.
    """
    return hold_lock(folder.with_name(f".{folder.name}.lock"), what=f"{folder}/")
