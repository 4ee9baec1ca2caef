"""Reading vectors at the speed of the disk: blocks planned from the footers, copied by threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import StoreError
from pipeline.store.manifest import REPAIR, Manifest, Rows, Shard, name_layer, read_manifest
from pipeline.store.shard import list_value_bytes, locate_values

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Block:
    """The values of one column of one row group, as they stand in a file.

    :param path: the shard.
    :param column: its name.
    :param first: the number of its first row in the store.
    :param rows: how many rows.
    :param offset: where in the file its values start.
    :param size: of its values in bytes.
    :param check: XXH3-64 of its values.
    """

    path: Path
    column: str
    first: int
    rows: int
    offset: int
    size: int
    check: str


def plan_blocks(folder: Path, manifest: Manifest, columns: Sequence[str]) -> list[Block]:
    """Where the values of some columns stand in the shards, from the shards' footers.

    :raises StoreError: if a shard is missing or damaged.
    """
    value_bytes = {
        name: size for name, size in list_value_bytes(manifest).items() if name in columns
    }
    blocks = []
    first = 0
    for shard in manifest.shards:
        path = folder / shard.file
        footer = _read_footer(path, shard)
        held = dict.fromkeys(value_bytes, 0)
        for at in locate_values(footer, value_bytes):
            checks = (shard.checks or {}).get(at.column, ())
            if at.group >= len(checks):
                raise _damaged(path, f"no hash of {at.column} in row group {at.group}")
            check = checks[at.group]
            blocks.append(
                Block(path, at.column, first + at.first, at.rows, at.offset, at.size, check)
            )
            held[at.column] += at.rows
        for column, rows in held.items():
            if rows != shard.rows:
                raise _damaged(path, f"{rows:,} rows of {column}, should be {shard.rows:,}")
        first += shard.rows
    return blocks


def _damaged(path: Path, what: object) -> StoreError:
    return StoreError(f"{path}: damaged ({what})", hint=REPAIR)


def _read_footer(path: Path, shard: Shard) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_metadata(path)
    except FileNotFoundError as error:
        raise StoreError(f"{path}: no such file", hint="run `pipeline embed` again") from error
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


class _Files:
    """Open files of a store, shared by the threads that read it."""

    def __init__(self) -> None:
        self._handles: dict[Path, int] = {}

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *exception: object) -> None:
        import os

        for handle in self._handles.values():
            os.close(handle)

    def open(self, blocks: Sequence[Block]) -> None:
        """Open the files of some blocks; the threads only read."""
        import os

        for path in {block.path for block in blocks} - set(self._handles):
            self._handles[path] = os.open(path, os.O_RDONLY)

    def read(self, block: Block, into: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Read a block and check it.

        :param into: at least ``block.size`` bytes.
        :raises StoreError: if the values are not those that were written.
        """
        import os

        from xxhash import xxh3_64_hexdigest

        values = into[: block.size]
        handle = self._handles[block.path]
        got = os.preadv(handle, [values.data], block.offset) if block.offset >= 0 else 0
        while 0 < got < block.size:
            more = os.preadv(handle, [values[got:].data], block.offset + got)
            if more <= 0:
                break
            got += more
        if got != block.size or xxh3_64_hexdigest(values.data) != block.check:
            raise _damaged(block.path, f"{block.column} of rows {block.first:,} and on")
        return values


def read_keys(folder: Path, manifest: Manifest) -> pa.Array:
    """The keys of all rows of a store, in order: fixed-size binary of 16, [rows].

    :raises StoreError: if a shard is missing or damaged.
    """
    import pyarrow as pa

    raw = np.empty((manifest.rows, 16), np.uint8)
    blocks = plan_blocks(folder, manifest, ["key"])
    with _Files() as files:
        files.open(blocks)
        for block in blocks:
            files.read(block, raw[block.first : block.first + block.rows].reshape(-1))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(raw), [None, pa.py_buffer(raw)])


def read_vectors(
    folder: Path,
    keys: pa.Array | Sequence[bytes],
    layers: Sequence[int],
    dtype: npt.DTypeLike = np.float32,
    *,
    threads: int | None = None,
) -> npt.NDArray[Any]:
    """Vectors by key, in the order of the keys.

    :param keys: of B texts, duplicates allowed.
    :param layers: numbers of the L layers to read, in the order wanted.
    :param dtype: of the result; the stored numbers are converted if need be.
    :param threads: that read at once; all cores if ``None``.
    :returns: [B, L, D].
    :raises StoreError: if a layer or a key is not in the store, or what is read is damaged.
    """
    manifest = read_manifest(folder)
    _check_layers(folder, manifest, layers)
    positions = locate(folder, manifest, keys)
    vectors = np.empty((len(positions), len(layers), manifest.width), dtype)
    _gather(folder, manifest, positions, layers, vectors, threads)
    return vectors


def read_rows(folder: Path, manifest: Manifest, keys: pa.Array) -> Rows:
    """All that the store holds of some texts, bit for bit."""
    positions = locate(folder, manifest, keys)
    shape = (len(positions), len(manifest.layers), manifest.width)
    vectors = np.empty(shape, manifest.dtype)
    _gather(folder, manifest, positions, manifest.layers, vectors, None)
    n_tokens = np.empty(manifest.rows, np.int32)
    blocks = plan_blocks(folder, manifest, ["n_tokens"])
    with _Files() as files:
        files.open(blocks)
        for block in blocks:
            part = n_tokens[block.first : block.first + block.rows]
            files.read(block, part.view(np.uint8))
    return Rows(n_tokens=n_tokens[positions], vectors=vectors)


def stream_vectors(
    folder: Path,
    keys: pa.Array | Sequence[bytes],
    layers: Sequence[int],
    batch_rows: int,
    dtype: npt.DTypeLike = np.float32,
    *,
    window_rows: int = 65_536,
    seed: int | None = None,
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[Any]]]:
    """Vectors in batches, for a corpus whose vectors do not fit into memory.

    Windows of neighbouring rows are read one after another, in an order drawn by the seed, and
    the rows of a window are shuffled; at most one window and one batch are in memory.

    :param keys: of N texts, duplicates allowed.
    :param batch_rows: of each batch but the last.
    :param window_rows: the more, the better the shuffle.
    :param seed: ``None`` keeps the order of the store.
    :yields: which of the keys, int64, [B], and their vectors, [B, L, D].
    :raises StoreError: as ``read_vectors``.
    """
    manifest = read_manifest(folder)
    _check_layers(folder, manifest, layers)
    positions = locate(folder, manifest, keys)
    order = np.argsort(positions, kind="stable")
    windows = [order[start : start + window_rows] for start in range(0, len(order), window_rows)]
    generator = np.random.default_rng(seed)
    if seed is not None:
        windows = [windows[number] for number in generator.permutation(len(windows))]
    rest = np.empty(0, np.int64)
    held = np.empty((0, len(layers), manifest.width), dtype)
    for number, window in enumerate(windows):
        rows = generator.permutation(window) if seed is not None else window
        vectors = np.empty((len(rows), len(layers), manifest.width), dtype)
        _gather(folder, manifest, positions[rows], layers, vectors, None)
        rest, held = np.concatenate([rest, rows]), np.concatenate([held, vectors])
        full = len(rest) if number == len(windows) - 1 else len(rest) // batch_rows * batch_rows
        for start in range(0, full, batch_rows):
            yield rest[start : start + batch_rows][:full], held[start : start + batch_rows][:full]
        rest, held = rest[full:], held[full:]


def _check_layers(folder: Path, manifest: Manifest, layers: Sequence[int]) -> None:
    for layer in layers:
        if layer not in manifest.layers:
            raise StoreError(
                f"{folder}: has no layer {layer}; it holds {', '.join(map(str, manifest.layers))}",
                hint="choose among them, or change embed.layers and embed again",
            )


def locate(
    folder: Path, manifest: Manifest, keys: pa.Array | Sequence[bytes]
) -> npt.NDArray[np.int64]:
    """The row of each key in the store.

    :raises StoreError: if one is not there.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = keys if isinstance(keys, pa.Array | pa.ChunkedArray) else pa.array(keys, pa.binary(16))
    found = pc.index_in(wanted, value_set=read_keys(folder, manifest))
    missing = found.null_count
    if missing:
        raise StoreError(
            f"{folder}: {missing:,} of {len(wanted):,} texts have no vectors",
            hint="run `pipeline embed`",
        )
    rows: npt.NDArray[np.int64] = found.to_numpy().astype(np.int64)
    return rows


def _gather(
    folder: Path,
    manifest: Manifest,
    positions: npt.NDArray[np.int64],
    layers: Sequence[int],
    out: npt.NDArray[Any],
    threads: int | None,
) -> None:
    """Copy the blocks that hold wanted rows into one preallocated array, several at a time.

    :param positions: int64, [B]: rows of the store.
    :param out: [B, L, D]; filled.
    """
    import os
    import threading
    from concurrent.futures import ThreadPoolExecutor

    column_of = {name_layer(layer): number for number, layer in enumerate(layers)}
    in_order = bool((np.diff(positions) > 0).all())
    order = np.arange(len(positions)) if in_order else np.argsort(positions, kind="stable")
    rising = positions[order]
    wanted = []
    for block in plan_blocks(folder, manifest, list(column_of)):
        low, high = np.searchsorted(rising, [block.first, block.first + block.rows])
        if low < high:
            wanted.append((block, int(low), int(high)))
    scratch = threading.local()

    def copy(job: tuple[Block, int, int]) -> None:
        block, low, high = job
        if not hasattr(scratch, "buffer"):
            scratch.buffer = np.empty(max(b.size for b, _, _ in wanted), np.uint8)
        values = files.read(block, scratch.buffer).view(manifest.dtype)
        table = values.reshape(block.rows, manifest.width)
        target = slice(low, high) if in_order else order[low:high]
        whole = in_order and high - low == block.rows
        source = table if whole else table[rising[low:high] - block.first]
        out[target, column_of[block.column]] = source

    with _Files() as files:
        files.open([block for block, _, _ in wanted])
        with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
            for _ in pool.map(copy, wanted):
                pass
