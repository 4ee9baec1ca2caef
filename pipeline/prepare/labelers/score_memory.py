"""Scores of texts that an earlier run computed, by the key of each text.

Each way of scoring has a file of its own under ``cache/scores/``, since a text's score depends on
nothing but the text and that way. The file is no output of a stage: it saves time and can be
deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.arrays import wrap_keys, wrap_numbers
from pipeline.console import warn
from pipeline.corpus.keys import view_keys
from pipeline.errors import StageError
from pipeline.files import (
    add_hash,
    check_hash,
    describe_read_error,
    parse_json,
    reading,
    write_aside,
)

if TYPE_CHECKING:
    import pyarrow as pa

_RECORD = "scores"  # the key, in the file's metadata, of what the file states of itself
_STAGE = "prepare"  # the only stage that writes and reads it
_KEPT_FILES = 3  # of the ways of scoring that were used last
# How many times as many texts as the corpus has are remembered, so that going back to a larger
# corpus, or to one of other texts, scores little.
_KEPT_CORPORA = 4


class ScoreMemory:
    """The scores of one way of scoring.

    :param folder: the folder of all ways; it need not exist.
    :param way: what scores depend on beside the text, in a few words that can name a file.
    """

    def __init__(self, folder: Path, way: str) -> None:
        self._path = folder / f"{way}.parquet"
        self._way = way
        self._keys, self._scores = self._read()

    def look_up(self, keys: pa.Array) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """The remembered scores of texts.

        :param keys: keys of the texts: fixed-size binary of 16, [B].
        :returns: float64, [B], 0 where no score is known; and whether one is, [B].
        """
        import pyarrow.compute as pc

        if not len(self._keys):
            return np.zeros(len(keys)), np.zeros(len(keys), bool)
        indices = pc.index_in(keys, value_set=self._keys)
        known = indices.is_valid().to_numpy(zero_copy_only=False)
        taken = self._scores[indices.fill_null(0).to_numpy(zero_copy_only=False)]
        return np.where(known, taken, 0.0), known

    def add(
        self, keys: pa.Array, scores: npt.NDArray[np.float64], new: npt.NDArray[np.bool_]
    ) -> None:
        """Remember more scores, on the disk.

        Texts of earlier corpora are forgotten once they are many times as many as these.

        :param keys: distinct keys of all texts of the corpus: fixed-size binary of 16, [B].
        :param scores: their scores, [B].
        :param new: which of them were not known, [B].
        :raises WriteError: if the file cannot be written.
        """
        import pyarrow as pa

        if len(self._keys) + int(new.sum()) > _KEPT_CORPORA * len(keys):
            self._keys, self._scores = keys, scores
        else:
            self._keys = pa.concat_arrays([self._keys, keys.filter(wrap_numbers(new))])
            self._scores = np.concatenate([self._scores, scores[new]])
        self._write()

    def _read(self) -> tuple[pa.Array, npt.NDArray[np.float64]]:
        """What the file holds; nothing, with a word, where it is damaged."""
        try:
            if not self._path.exists():
                return wrap_keys([]), np.zeros(0)
            return _read_scores(self._path, self._way)
        except OSError as error:  # the folder may not be searched
            raise describe_read_error(error, self._path) from error
        except StageError as error:
            warn(f"{error.message}; its texts are scored again")
            return wrap_keys([]), np.zeros(0)

    def _write(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        record = json.dumps(add_hash(_describe(self._way, self._keys, self._scores)))
        table = pa.table(
            {"key": self._keys, "score": wrap_numbers(self._scores)}, metadata={_RECORD: record}
        )
        with write_aside(self._path) as file:
            pq.write_table(table, file, compression="zstd", write_page_checksum=True)
        prefix = self._way.partition("-")[0]
        files = list(self._path.parent.glob(f"{prefix}-*.parquet"))
        for path in sorted(files, key=lambda file: file.stat().st_mtime)[:-_KEPT_FILES]:
            with contextlib.suppress(OSError):
                path.unlink()


def _describe(way: str, keys: pa.Array, scores: npt.NDArray[np.float64]) -> dict[str, Any]:
    """What a file states of itself."""
    digest = hashlib.sha256(view_keys(keys).tobytes())
    digest.update(scores.tobytes())
    return {"way": way, "rows": len(keys), "content": digest.hexdigest()}


def _read_scores(path: Path, way: str) -> tuple[pa.Array, npt.NDArray[np.float64]]:
    """The keys and the scores that a file holds.

    :raises StageError: if it is damaged or of another way of scoring.
    :raises ReadError: if it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with reading(path, _STAGE, pa.ArrowException), path.open("rb") as file:
        table = pq.read_table(file, page_checksum_verification=True)
        stated = check_hash(parse_json(table.schema.metadata[_RECORD.encode()]))
        keys = table["key"].cast(pa.binary(16)).combine_chunks()
        scores = table["score"].cast(pa.float64()).to_numpy()
        if keys.null_count or stated != _describe(way, keys, scores):
            raise ValueError("its content is not what it states")
    return keys, scores
