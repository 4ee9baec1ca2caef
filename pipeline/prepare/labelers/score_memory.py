"""What labelers computed of texts in earlier runs, by the key of each text.

Each way of scoring has a file of its own under ``cache/scores/``, since a text's scores depend on
nothing but the text and that way. Such a file is no output of a stage: it saves time and can be
deleted.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.arrays import unwrap_numbers, wrap_numbers, wrap_rows
from pipeline.console import warn
from pipeline.corpus.keys import KeyIndex, view_keys
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

Keys = npt.NDArray[np.uint8]  # [B, 16]
Scores = npt.NDArray[Any]  # float32 or float64, [B, C]
# Keys of some texts and their scores, and what gives the same such parts again at each call.
Parts: TypeAlias = Callable[[], Iterable[tuple[Keys, Scores]]]

_RECORD = "scores"  # the key, in the file's metadata, of what the file states of itself
_STAGE = "prepare"  # the stage that writes it
# How many times as many texts as the corpus has are remembered, so that going back to a larger
# corpus, or to one of other texts, scores little.
_KEPT_CORPORA = 4
_PART_ROWS = 131_072  # that are in memory at once, and in a row group of the file


class ScoreMemory:
    """The scores of one way of scoring, C numbers a text, which are read and written part by part.

    :param folder: the folder of all ways; it need not exist.
    :param kind: what scores, in a word that the name of the file begins with.
    :param contents: all that scores depend on beside the text, as JSON has it.
    :param outputs: C.
    :param dtype: the type of the numbers: ``float32`` or ``float64``.
    :param kept_files: files of this kind that stay, those in use last; ``None`` for all.
    :ivar rows: the number of texts that are remembered.
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
        self.rows = self._check()

    def look_up(self, keys: Keys) -> Iterator[tuple[npt.NDArray[np.int64], Scores]]:
        """The remembered scores of texts, part by part.

        :param keys: distinct keys of the texts: uint8, [N, 16].
        :yields: numbers of texts whose scores are known, int64, [B], and their scores, [B, C].
        """
        if not self.rows:
            return
        index, guess = KeyIndex(keys), 0
        for part, scores in self._read():
            # A corpus that has not changed has its texts in the order in which they are remembered.
            numbers = index.find(part, guess)
            guess = int(numbers[-1]) + 1 if len(numbers) else guess
            yield numbers[numbers >= 0], scores[numbers >= 0]

    def add(self, parts: Parts, rows: int, corpus: Keys) -> None:
        """Remember more scores, on the disk.

        Texts of earlier corpora are forgotten once all are many times as many as these.

        :param parts: what gives keys of texts that are not known yet, and their scores.
        :param rows: the number of these texts.
        :param corpus: distinct keys of all texts of the corpus: uint8, [N, 16].
        :raises WriteError: if the file cannot be written.
        """
        rows += self.rows
        of_all = self._join(parts)
        if rows > _KEPT_CORPORA * len(corpus):
            index = KeyIndex(corpus)
            stays = [index.find(keys) >= 0 for keys, _ in of_all()]
            rows = sum(int(of_part.sum()) for of_part in stays)
            of_all = _filter(of_all, stays)
        self._write(of_all, rows)
        self.rows = rows

    def _join(self, parts: Parts) -> Parts:
        """What is remembered, and then more."""
        before = self._read if self.rows else list
        return lambda: itertools.chain(before(), parts())

    def _check(self) -> int:
        """The number of texts that the file holds; 0, with a word, where it is damaged."""
        try:
            return self._check_file() if self._path.exists() else 0
        except OSError as error:  # the folder may not be searched
            raise describe_read_error(error, self._path) from error
        except StageError as error:
            warn(f"{error.message}; its texts are scored again")
            return 0

    def _check_file(self) -> int:
        """The number of texts that the file holds, all of which are read.

        :raises StageError: if it is damaged or of another way of scoring.
        :raises ReadError: if it cannot be read.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        with reading(self._path, _STAGE, pa.ArrowException), self._path.open("rb") as opened:
            file = pq.ParquetFile(opened, page_checksum_verification=True)
            stated = check_hash(parse_json((file.schema_arrow.metadata or {})[_RECORD.encode()]))
            sizes = []
            for _, scores in self._iterate(file):
                sizes.append(len(scores))
            if stated != self._describe(lambda: self._iterate(file), sum(sizes)):
                raise ValueError("its content is not what it states")
        return sum(sizes)

    def _read(self) -> Iterator[tuple[Keys, Scores]]:
        """What the file holds, part by part."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        with reading(self._path, _STAGE, pa.ArrowException), self._path.open("rb") as opened:
            yield from self._iterate(pq.ParquetFile(opened, page_checksum_verification=True))

    def _iterate(self, file: Any) -> Iterator[tuple[Keys, Scores]]:
        """The parts of an open Parquet file.

        :raises ValueError: if a key is missing.
        """
        import pyarrow as pa

        # A reader of several row groups would hold what it has read of all of them.
        groups = ([number] for number in range(file.num_row_groups))
        read = functools.partial(file.iter_batches, _PART_ROWS, columns=["key", "scores"])
        for batch in itertools.chain.from_iterable(read(row_groups=group) for group in groups):
            keys = batch.column("key").cast(pa.binary(16))
            if keys.null_count:
                raise ValueError("a key is missing")
            flat = unwrap_numbers(batch.column("scores").flatten())
            yield view_keys(keys), flat.astype(self._dtype).reshape(len(keys), self._outputs)

    def _write(self, parts: Parts, rows: int) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        number = pa.field("element", pa.from_numpy_dtype(self._dtype), nullable=False)
        lists = pa.list_(number, self._outputs)
        record = json.dumps(add_hash(self._describe(parts, rows)))
        schema = pa.schema([("key", pa.binary(16)), ("scores", lists)], metadata={_RECORD: record})
        with (
            write_aside(self._path) as file,
            pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer,
        ):
            for keys, scores in parts():
                flat = np.ascontiguousarray(scores, self._dtype).reshape(-1)
                held = pa.FixedSizeListArray.from_arrays(wrap_numbers(flat), type=lists)
                writer.write_table(pa.table([wrap_rows(keys), held], schema=schema))
        if self._kept_files is not None:
            kind = self._path.name.partition("-")[0]
            files = list(self._path.parent.glob(f"{kind}-*.parquet"))
            for path in sorted(files, key=lambda file: file.stat().st_mtime)[: -self._kept_files]:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _describe(self, parts: Parts, rows: int) -> dict[str, Any]:
        """What the file states of itself."""
        digest = hashlib.sha256()
        for keys, _ in parts():
            digest.update(np.ascontiguousarray(keys).data)
        for _, scores in parts():
            digest.update(np.ascontiguousarray(scores, self._dtype).data)
        return {"contents": self._contents, "rows": rows, "content": digest.hexdigest()}


def _filter(parts: Parts, stays: list[npt.NDArray[np.bool_]]) -> Parts:
    """Parts without the rows that do not stay: bool, [B], of each part."""
    return lambda: (
        (keys[of_part], scores[of_part])
        for (keys, scores), of_part in zip(parts(), stays, strict=True)
    )
