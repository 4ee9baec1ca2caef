"""What a classification model said of texts, kept on disk so that it need not say it again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.arrays import wrap_keys, wrap_numbers
from pipeline.console import warn
from pipeline.corpus.keys import view_keys
from pipeline.files import hash_json, write_aside

Scores = npt.NDArray[np.float32]

_ALGORITHM = 1  # the version of what is computed; a new one makes what is kept of an older useless


class ScoreFile:
    """A Parquet file with the outputs of one model for texts, by their keys.

    The columns are ``key``, 16 bytes, and ``scores``, C numbers. A text that has left the corpus
    stays in the file. A file that is damaged counts as empty, and a warning says so.

    :param folder: the folder of such files.
    :param contents: all that changes a score: hashes of the model's files, the maximum length.
    :param classes: the names of the model's C outputs, for people.
    """

    def __init__(self, folder: Path, contents: Mapping[str, Any], classes: Sequence[str]) -> None:
        self._contents = {"algorithm": _ALGORITHM, **contents}
        self._classes = tuple(classes)
        self.path = folder / f"{hash_json(self._contents)[:32]}.parquet"
        self._keys: list[bytes] = []
        self._scores: Scores = np.empty((0, len(classes)), np.float32)
        self._read()

    def find(self, keys: Sequence[bytes]) -> tuple[npt.NDArray[np.bool_], Scores]:
        """The scores of texts, as far as they are known.

        :param keys: the keys of texts, [B].
        :returns: which of them are known, [B], and scores, [B, C], which are 0 for the others.
        """
        index = {key: number for number, key in enumerate(self._keys)}
        at = np.array([index.get(key, -1) for key in keys], np.int64)
        scores = np.zeros((len(keys), len(self._classes)), np.float32)
        scores[at >= 0] = self._scores[at[at >= 0]]
        return at >= 0, scores

    def add(self, keys: Sequence[bytes], scores: Scores) -> None:
        """Keep the scores of more texts; the file is written aside, and whole when it has its name.

        :param keys: keys that the file does not have, [B].
        :param scores: their scores, [B, C].
        :raises WriteError: if the disk does not take it.
        """
        self._keys += keys
        self._scores = np.concatenate([self._scores, scores])
        self._write()

    def _read(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(self.path)
            about = json.loads(table.schema.metadata[b"about"])
            keys = table["key"].combine_chunks()
            flat = table["scores"].combine_chunks().flatten()
            scores = flat.to_numpy().reshape(len(keys), len(self._classes)).astype(np.float32)
            if about["contents"] != self._contents or about["sha256"] != _hash(keys, scores):
                raise ValueError("its contents do not have the hash that it states")
        except FileNotFoundError:
            return
        except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
            reason = str(error).partition("\n")[0]
            warn(f"{self.path}: cannot be read ({reason}); its texts are scored again")
            return
        self._keys, self._scores = keys.to_pylist(), scores

    def _write(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        C = len(self._classes)
        keys = wrap_keys(self._keys)
        numbers = pa.field("element", pa.float32(), nullable=False)
        flat = wrap_numbers(np.ascontiguousarray(self._scores).reshape(-1))
        scores = pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(numbers, C))
        about = {
            "contents": self._contents,
            "classes": self._classes,
            "sha256": _hash(keys, self._scores),
        }
        table = pa.table({"key": keys, "scores": scores})
        table = table.replace_schema_metadata({"about": json.dumps(about)})
        with write_aside(self.path) as file:
            pq.write_table(table, file)


def _hash(keys: Any, scores: Scores) -> str:
    content = view_keys(keys).tobytes() + np.ascontiguousarray(scores, "<f4").tobytes()
    return hashlib.sha256(content).hexdigest()
