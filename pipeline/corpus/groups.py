"""``groups.parquet``: groups of near-duplicate rows, and the parts that they were drawn into.

The file holds where the labels stand in the same order of rows. Its contents have a hash, and it
names the texts and the parts that ``prepare`` wrote before it: a file of another run is refused.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.arrays import wrap_numbers
from pipeline.corpus.identity import CorpusIdentity
from pipeline.errors import StageError
from pipeline.files import add_hash, check_hash, parse_json, read_bounded, reading, write_bytes

_ABOUT = "groups"  # the key, in the metadata of the file, of all that is no column
_STAGE = "group"
_COLUMNS = ("row", "group", "part")
_MOST_BYTES = 1 << 34


@dataclass(frozen=True)
class Groups:
    """Groups of B rows whose texts are nearly the same, linked by others between them if need be.

    :param groups: the number of each row's group, int64, [B].
    :param parts: the index in ``PARTS`` of the part that each row was drawn into, int8, [B].
    :param threshold: the cosine above which texts are near-duplicates.
    """

    groups: npt.NDArray[np.int64]
    parts: npt.NDArray[np.int8]
    threshold: float

    def save(self, path: Path, rows: npt.NDArray[np.int64], prepared: CorpusIdentity) -> None:
        """Write the file, aside and renamed.

        :param path: the file.
        :param rows: the number in the source of each row, int64, [B].
        :param prepared: the identity of the rows as ``prepare`` wrote them.
        """
        columns: dict[str, npt.NDArray[Any]] = {
            "row": rows,
            "group": self.groups,
            "part": self.parts,
        }
        about = {
            "texts": prepared.keys,
            "split": prepared.split,
            "threshold": self.threshold,
            "contents": _hash_columns(columns),
        }
        write_bytes(path, _encode(columns, {_ABOUT: json.dumps(add_hash(about))}))


def save_no_groups(path: Path) -> None:
    """Write a file without rows, by which the parts are those of ``prepare``, if it is not there.

    :param path: the file.
    """
    numbers = np.empty(0, np.int64)
    content = _encode({"row": numbers, "group": numbers, "part": numbers.astype(np.int8)}, {})
    if not path.exists() or path.read_bytes() != content:
        write_bytes(path, content)


def read_groups(path: Path, rows: npt.NDArray[np.int64], prepared: CorpusIdentity) -> Groups | None:
    """Read the file that ``Groups.save`` wrote.

    :param path: the file.
    :param rows: the number in the source of each row of the corpus, int64, [B].
    :param prepared: the identity of the rows as ``prepare`` wrote them.
    :returns: ``None`` if there is no such file, or it has no rows, as settings ask for no groups.
    :raises StageError: if it is damaged, or of other texts or parts.
    """
    if not path.exists():
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    with reading(path, _STAGE, pa.ArrowException):
        content = read_bounded(path, _MOST_BYTES)
        table = pq.ParquetFile(io.BytesIO(content), page_checksum_verification=True).read()
        if not table.num_rows:
            return None
        record = (table.schema.metadata or {})[_ABOUT.encode()]
        about = check_hash(parse_json(record))
        columns = {name: table[name].to_numpy() for name in _COLUMNS}
        if about["contents"] != _hash_columns(columns):
            raise ValueError("its contents do not have the hash that it states")
        is_same = (about["texts"], about["split"]) == (prepared.keys, prepared.split)
        if not is_same or not np.array_equal(columns["row"], rows):
            raise StageError(
                f"{path} is of other texts or parts than `pipeline prepare` wrote since",
                hint="run `pipeline group`",
            )
        return Groups(columns["group"], columns["part"], float(about["threshold"]))


def _encode(columns: dict[str, npt.NDArray[Any]], about: dict[str, str]) -> bytes:
    """The file as bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({name: wrap_numbers(values) for name, values in columns.items()})
    content = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata(about), content, compression="zstd", write_page_checksum=True
    )
    return content.getvalue()


def _hash_columns(columns: dict[str, npt.NDArray[Any]]) -> str:
    sha256 = hashlib.sha256()
    for name, values in columns.items():
        sha256.update(f"{name} {values.dtype.str} {len(values)} ".encode())
        sha256.update(values.tobytes())
    return sha256.hexdigest()
