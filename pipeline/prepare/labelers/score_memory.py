"""What labelers computed of texts in earlier runs, by the key of each text.

Each way of scoring has a file of its own under ``cache/scores/``, since a text's scores depend on
nothing but the text and that way. Such a file is no output of a stage: it saves time and can be
deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
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
    hash_json,
    parse_json,
    reading,
    write_aside,
)

if TYPE_CHECKING:
    import pyarrow as pa

Scores = npt.NDArray[Any]  # float32 or float64, [B, C]

_RECORD = "scores"  # the key, in the file's metadata, of what the file states of itself
_STAGE = "prepare"  # the stage that writes it
# How many times as many texts as the corpus has are remembered, so that going back to a larger
# corpus, or to one of other texts, scores little.
_KEPT_CORPORA = 4


class ScoreMemory:
    """The scores of one way of scoring, C numbers a text.

    :param folder: the folder of all ways; it need not exist.
    :param kind: what scores, in a word that the name of the file begins with.
    :param contents: all that scores depend on beside the text, as JSON has it.
    :param outputs: C.
    :param dtype: the type of the numbers: ``float32`` or ``float64``.
    :param kept_files: files of this kind that stay, those in use last; ``None`` for all.
    """

    def __init__(
        self,
        folder: Path,
        kind: str,
        contents: Mapping[str, Any],
        *,
        outputs: int,
        dtype: npt.DTypeLike,
        kept_files: int | None = None,
    ) -> None:
        self._path = folder / f"{kind}-{hash_json(contents)[:16]}.parquet"
        self._contents = dict(contents)
        self._outputs = outputs
        self._dtype = np.dtype(dtype)
        self._kept_files = kept_files
        self._keys, self._scores = self._read()

    def look_up(self, keys: pa.Array) -> tuple[Scores, npt.NDArray[np.bool_]]:
        """The remembered scores of texts.

        :param keys: keys of the texts: fixed-size binary of 16, [B].
        :returns: [B, C], 0 where no score is known; and whether one is, [B].
        """
        import pyarrow.compute as pc

        if not len(self._keys):
            return np.zeros((len(keys), self._outputs), self._dtype), np.zeros(len(keys), bool)
        indices = pc.index_in(keys, value_set=self._keys)
        known = indices.is_valid().to_numpy(zero_copy_only=False)
        taken = self._scores[indices.fill_null(0).to_numpy(zero_copy_only=False)]
        taken[~known] = 0
        return taken, known

    def add(self, keys: pa.Array, scores: Scores, corpus: pa.Array) -> None:
        """Remember more scores, on the disk.

        Texts of earlier corpora are forgotten once all are many times as many as these.

        :param keys: keys of texts that are not known yet: fixed-size binary of 16, [B].
        :param scores: their scores, [B, C].
        :param corpus: keys of all texts of the corpus.
        :raises WriteError: if the file cannot be written.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        self._keys = pa.concat_arrays([self._keys, keys])
        self._scores = np.concatenate([self._scores, scores.astype(self._dtype, copy=False)])
        if len(self._keys) > _KEPT_CORPORA * len(corpus):
            stays = pc.is_in(self._keys, value_set=corpus)
            self._keys = self._keys.filter(stays)
            self._scores = self._scores[stays.to_numpy(zero_copy_only=False)]
        self._write()

    def _read(self) -> tuple[pa.Array, Scores]:
        """What the file holds; nothing, with a word, where it is damaged."""
        nothing = wrap_keys([]), np.zeros((0, self._outputs), self._dtype)
        try:
            return self._read_file() if self._path.exists() else nothing
        except OSError as error:  # the folder may not be searched
            raise describe_read_error(error, self._path) from error
        except StageError as error:
            warn(f"{error.message}; its texts are scored again")
            return nothing

    def _read_file(self) -> tuple[pa.Array, Scores]:
        """The keys and the scores that the file holds.

        :raises StageError: if it is damaged or of another way of scoring.
        :raises ReadError: if it cannot be read.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        with reading(self._path, _STAGE, pa.ArrowException), self._path.open("rb") as file:
            table = pq.read_table(file, page_checksum_verification=True)
            stated = check_hash(parse_json(table.schema.metadata[_RECORD.encode()]))
            keys = table["key"].cast(pa.binary(16)).combine_chunks()
            flat = table["scores"].combine_chunks().flatten().to_numpy()
            scores = flat.astype(self._dtype).reshape(len(keys), self._outputs)
            if keys.null_count or stated != self._describe(keys, scores):
                raise ValueError("its content is not what it states")
        return keys, scores

    def _write(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        number = pa.field("element", pa.from_numpy_dtype(self._dtype), nullable=False)
        lists = pa.FixedSizeListArray.from_arrays(
            wrap_numbers(np.ascontiguousarray(self._scores).reshape(-1)),
            type=pa.list_(number, self._outputs),
        )
        record = json.dumps(add_hash(self._describe(self._keys, self._scores)))
        table = pa.table({"key": self._keys, "scores": lists}, metadata={_RECORD: record})
        with write_aside(self._path) as file:
            pq.write_table(table, file, compression="zstd", write_page_checksum=True)
        if self._kept_files is not None:
            kind = self._path.name.partition("-")[0]
            files = list(self._path.parent.glob(f"{kind}-*.parquet"))
            for path in sorted(files, key=lambda file: file.stat().st_mtime)[: -self._kept_files]:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _describe(self, keys: pa.Array, scores: Scores) -> dict[str, Any]:
        """What the file states of itself."""
        digest = hashlib.sha256(view_keys(keys).tobytes())
        digest.update(np.ascontiguousarray(scores).tobytes())
        return {"contents": self._contents, "rows": len(keys), "content": digest.hexdigest()}
