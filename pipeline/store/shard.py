"""A shard as bytes: plain Parquet whose values stand in the file as they stand in memory.

Pages are uncompressed, in plain encoding, without dictionaries and statistics, one for each column
of a row group. So all bytes but the values follow from the shape and the recipe: Arrow writes a
shard of zeros once, and each shard of that shape is this skeleton with its own values. Encoding
every vector through Arrow would give the same bytes at a tenth of the speed.

Source: Apache Parquet format, "Data Pages" and "Plain encoding".
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.arrays import wrap_numbers
from pipeline.corpus.keys import view_keys
from pipeline.store import manifest as layout
from pipeline.store.manifest import Manifest, Recipe, Rows, name_columns, split_columns
from pipeline.store.places import Piece

if TYPE_CHECKING:
    import pyarrow as pa

_NO_HASH = "0" * 16


@dataclass(frozen=True)
class Extent:
    """Where the values of one column of one row group stand in a shard.

    :param column: its name.
    :param group: the number of the row group.
    :param first: the number of its first row in the shard.
    :param rows: number of its rows.
    :param offset: start of its values in the file, in bytes.
    :param size: size of its values in bytes.
    """

    column: str
    group: int
    first: int
    rows: int
    offset: int
    size: int


def list_value_bytes(store: Recipe | Manifest) -> dict[str, int]:
    """Bytes that one row takes in each column, in the order of the columns."""
    vector = store.width // len(store.poolings) * np.dtype(store.dtype).itemsize
    columns = [column for layer in store.layers for column in name_columns(store, layer)]
    return {"key": 16, "n_tokens": 4} | dict.fromkeys(columns, vector)


def locate_values(footer: Any, value_bytes: Mapping[str, int]) -> list[Extent]:
    """Where the values of some columns stand in a shard: they are the last bytes of their chunks.

    :param footer: a ``pyarrow.parquet.FileMetaData``.
    :param value_bytes: column → bytes of one row, for each column asked for.
    :returns: in the order of the file.
    """
    extents = []
    first = 0
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        for chunk in (group.column(c) for c in range(group.num_columns)):
            column = chunk.path_in_schema.split(".")[0]
            if column in value_bytes:
                size = group.num_rows * value_bytes[column]
                end = chunk.data_page_offset + chunk.total_compressed_size
                extents.append(Extent(column, number, first, group.num_rows, end - size, size))
        first += group.num_rows
    return extents


@dataclass(frozen=True)
class Skeleton:
    """All bytes of a shard but its values.

    :param recipe: recipe of the vectors.
    :param rows: number of rows of the shard.
    :param extents: the gaps that the values fill, in the order of the file.
    :param gaps: the bytes before each extent, and those after the last.
    """

    recipe: Recipe
    rows: int
    extents: tuple[Extent, ...]
    gaps: tuple[bytes, ...]

    def fill(self, keys: pa.Array, rows: Rows) -> tuple[list[Piece], dict[str, list[str]]]:
        """The bytes of a shard with these values.

        :param keys: fixed-size binary of 16, [rows].
        :param rows: the other values.
        :returns: the file cut into pieces, and column → XXH3-64 over the values of each row group.
        """
        from xxhash import xxh3_64_hexdigest

        columns: dict[str, npt.NDArray[Any]] = {"key": view_keys(keys), "n_tokens": rows.n_tokens}
        columns |= split_columns(self.recipe, self.recipe.layers, rows.vectors)

        def cut(extent: Extent) -> tuple[memoryview, str]:
            part = columns[extent.column][extent.first : extent.first + extent.rows]
            values = np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
            return values, xxh3_64_hexdigest(values)

        checks: dict[str, list[str]] = {name: [] for name in columns}
        pieces: list[Piece] = []
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            cuts = pool.map(cut, self.extents)
            for gap, extent, (values, check) in zip(self.gaps, self.extents, cuts, strict=False):
                pieces += [gap, values]
                checks[extent.column].append(check)
        unknown = _format_checks(columns, self.rows)
        return [*pieces, self.gaps[-1].replace(unknown, json.dumps(checks).encode())], checks


def make_skeleton(recipe: Recipe, rows: int) -> Skeleton:
    """Let Arrow write a shard of zeros, and take the values out."""
    import pyarrow.parquet as pq

    value_bytes = list_value_bytes(recipe)
    file = io.BytesIO()
    _write_zeros(file, recipe, rows, _format_checks(value_bytes, rows))
    content = file.getbuffer()
    extents = locate_values(pq.read_metadata(file), value_bytes)
    starts = [0, *(extent.offset + extent.size for extent in extents)]
    stops = [*(extent.offset for extent in extents), len(content)]
    gaps = [bytes(content[start:stop]) for start, stop in zip(starts, stops, strict=True)]
    return Skeleton(recipe, rows, tuple(extents), tuple(gaps))


def _format_checks(columns: Iterable[str], rows: int) -> bytes:
    """Hashes that are not known yet, as long as those that will take their place."""
    groups = -(-rows // layout.GROUP_ROWS)
    return json.dumps({column: [_NO_HASH] * groups for column in columns}).encode()


def _write_zeros(file: IO[bytes], recipe: Recipe, rows: int, checks: bytes) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    element = pa.field("element", pa.from_numpy_dtype(recipe.dtype), nullable=False)
    width = recipe.width // len(recipe.poolings)
    vector = pa.list_(element, width)
    names = [column for layer in recipe.layers for column in name_columns(recipe, layer)]
    fields = [
        pa.field("key", pa.binary(16), nullable=False),
        pa.field("n_tokens", pa.int32(), nullable=False),
        *(pa.field(name, vector, nullable=False) for name in names),
    ]
    about = {
        "backbone": recipe.backbone,
        "fingerprint": recipe.fingerprint,
        "recipe": json.dumps(recipe.contents),
    }
    schema = pa.schema(fields, metadata=about)
    zeros = wrap_numbers(np.zeros(rows * width, recipe.dtype))
    keys = pa.py_buffer(bytes(16 * rows))
    columns = [
        pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), rows, [None, keys]),
        wrap_numbers(np.zeros(rows, np.int32)),
        *(pa.FixedSizeListArray.from_arrays(zeros, type=vector) for _ in names),
    ]
    with pq.ParquetWriter(
        file,
        schema,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        data_page_size=1 << 30,
    ) as writer:
        writer.write_table(pa.table(columns, schema=schema), row_group_size=layout.GROUP_ROWS)
        # To the footer alone: the schema has another copy of its own metadata, in base64.
        writer.add_key_value_metadata({"checks": checks})
