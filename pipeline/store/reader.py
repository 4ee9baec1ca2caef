"""Reading vectors at the speed of the disk: blocks planned from the footers, copied by threads."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.arrays import wrap_keys, wrap_rows
from pipeline.corpus.keys import KeyIndex, hash_keys, view_keys
from pipeline.errors import StoreError
from pipeline.files import hash_file
from pipeline.store.commit import Snapshot, read_steadily
from pipeline.store.manifest import MANIFEST, REPAIR, Manifest, Recipe, Rows, Shard, split_columns
from pipeline.store.places import Ranges, find_place
from pipeline.store.shard import list_value_bytes, locate_values

if TYPE_CHECKING:
    import pyarrow as pa

# A process may have 1,024 files open by default, 256 on some systems; a store may have more shards.
_OPEN_FILES = 64
Item = TypeVar("Item")


@dataclass(frozen=True)
class Block:
    """The values of one column of one row group, as they stand in a file.

    :param path: the file.
    :param shard: what the manifest says of it.
    :param column: its name.
    :param first: the number of its first row in the store.
    :param rows: number of its rows.
    :param offset: start of its values in the file, in bytes.
    :param size: size of its values in bytes.
    :param check: XXH3-64 of its values.
    """

    path: Path
    shard: Shard
    column: str
    first: int
    rows: int
    offset: int
    size: int
    check: str


def plan_blocks(
    snapshot: Snapshot, columns: Sequence[str], rows: npt.NDArray[np.int64] | None = None
) -> list[Block]:
    """Where the values of some columns stand in the shards, from the shards' footers.

    :param snapshot: the store.
    :param columns: names of the columns.
    :param rows: int64, ascending: rows of the store; shards without any of them are left out.
        All shards if ``None``.
    :returns: the blocks in the order of shards, row groups and columns.
    :raises StoreError: if a shard is missing or damaged.
    """
    manifest = snapshot.manifest
    value_bytes = {
        name: size for name, size in list_value_bytes(manifest).items() if name in columns
    }
    wanted: list[tuple[Shard, int]] = []
    first = 0
    for shard in manifest.shards:
        if rows is None or np.diff(np.searchsorted(rows, [first, first + shard.rows]))[0]:
            wanted.append((shard, first))
        first += shard.rows
    planned = find_place(snapshot.folder).call_each(
        lambda item: _plan_shard(snapshot.locate(item[0]), *item, value_bytes), wanted
    )
    return [block for blocks in planned for block in blocks]


def _plan_shard(
    path: Path, shard: Shard, first: int, value_bytes: Mapping[str, int]
) -> list[Block]:
    """The blocks of one shard, whose rows must be as many as the manifest says.

    :param first: the number of its first row in the store.
    """
    blocks = []
    held = dict.fromkeys(value_bytes, 0)
    for at in locate_values(_read_footer(path, shard), value_bytes):
        checks = (shard.checks or {}).get(at.column, ())
        if at.group >= len(checks):
            raise _damaged(path, f"no hash of {at.column} in row group {at.group}", shard)
        start, check = first + at.first, checks[at.group]
        blocks.append(Block(path, shard, at.column, start, at.rows, at.offset, at.size, check))
        held[at.column] += at.rows
    for column, rows in held.items():
        if rows != shard.rows:
            raise _damaged(path, f"{rows:,} rows of {column}, should be {shard.rows:,}", shard)
    return blocks


def _select_blocks(planned: Sequence[Block], rows: npt.NDArray[np.int64]) -> Sequence[Block]:
    """The blocks, in the order of their rows, from the first to the last that holds some of them.

    :param rows: rows of the store, int64, ascending.
    """
    if not len(rows):
        return []
    low = bisect_right(planned, rows[0], key=lambda block: block.first + block.rows)
    high = bisect_right(planned, rows[-1], key=lambda block: block.first)
    return planned[low:high]


def _damaged(path: Path, what: object, shard: Shard | None = None) -> StoreError:
    """The error of a damaged shard, whose footer is read anew next time: it may be what is damaged.

    :param path: the file.
    :param what: what is wrong with it.
    :param shard: what the manifest says of it, if there is one.
    """
    if shard is not None:
        find_place(path).forget_footer(path, shard.sha256, shard.bytes)
    return StoreError(f"{path}: damaged ({what})", hint=REPAIR)


def _missing(path: Path) -> StoreError:
    return StoreError(f"{path}: no such file", hint="run `pipeline embed` again")


def _read_footer(path: Path, shard: Shard | None = None) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sha256, size = (shard.sha256, shard.bytes) if shard is not None else ("", 0)
    try:
        return pq.read_metadata(find_place(path).open_footer(path, sha256, size))
    except FileNotFoundError as error:
        raise _missing(path) from error
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error, shard) from error


class _Files:
    """The open files of some blocks, shared by the threads that read them.

    :param blocks: of at most ``_OPEN_FILES`` files.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._paths = sorted({block.path for block in blocks})
        self._open: dict[Path, Ranges] = {}

    def __enter__(self) -> _Files:
        try:
            for path in self._paths:
                self._open[path] = find_place(path).open_ranges(path)
        except OSError as error:
            self.__exit__()
            if isinstance(error, FileNotFoundError):
                raise _missing(path) from error
            raise StoreError(f"{path}: cannot be read ({error.strerror})") from error
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._open.values():
            file.close()

    def read(self, block: Block, into: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Read a block and check it.

        :param block: the block, whose file is open.
        :param into: at least ``block.size`` bytes.
        :raises StoreError: if the values are not those that were written.
        """
        from xxhash import xxh3_64_hexdigest

        values = into[: block.size]
        try:
            got = self._open[block.path].read_into(values, block.offset, block.check)
        except FileNotFoundError as error:
            raise _missing(block.path) from error
        except OSError as error:
            raise _damaged(block.path, error.strerror) from error
        if got != block.size or xxh3_64_hexdigest(values.data) != block.check:
            what = f"{block.column} of rows {block.first:,} and on"
            raise _damaged(block.path, what, block.shard)
        return values


def _group_by_files(blocks: Sequence[Block]) -> Iterator[Sequence[Block]]:
    """Cut blocks in the order of their files into runs of so few files that all may be open."""
    start = 0
    files: set[Path] = set()
    for number, block in enumerate(blocks):
        if block.path not in files and len(files) == _OPEN_FILES:
            yield blocks[start:number]
            start, files = number, set()
        files.add(block.path)
    if start < len(blocks):
        yield blocks[start:]


def read_keys(snapshot: Snapshot) -> pa.Array:
    """The keys of all rows of a store, in order: fixed-size binary of 16, [rows].

    :param snapshot: what the store holds.
    :raises StoreError: if a shard is missing or damaged.
    """
    raw = np.empty((snapshot.manifest.rows, 16), np.uint8)
    start = 0
    for part in iterate_keys(snapshot):
        raw[start : start + len(part)] = part
        start += len(part)
    return wrap_rows(raw)


def iterate_keys(snapshot: Snapshot) -> Iterator[npt.NDArray[np.uint8]]:
    """The keys of all rows of a store, in order, those of some files at a time: uint8, [B, 16].

    :param snapshot: what the store holds.
    :raises StoreError: if a shard is missing or damaged.
    """
    for blocks in _group_by_files(plan_blocks(snapshot, ["key"])):
        first = blocks[0].first
        raw = np.empty((blocks[-1].first + blocks[-1].rows - first, 16), np.uint8)

        def read(block: Block) -> None:
            start = block.first - first  # noqa: B023  # all calls end with this round
            files.read(block, raw[start : start + block.rows].reshape(-1))  # noqa: B023  # the same

        with _Files(blocks) as files:
            for _ in find_place(snapshot.folder).call_each(read, blocks):
                pass
        yield raw


def find_keys(folder: Path, *, fingerprint: str | None = None) -> pa.Array | None:
    """The keys of all rows of a store that there may be, while another run may be changing it.

    :param folder: the store.
    :param fingerprint: fingerprint of the vectors wanted; any if ``None``.
    :returns: fixed-size binary of 16, in the order of the rows; ``None`` if there is no store of
        such vectors.
    :raises StoreError: if what there is cannot be read.
    """

    def read(snapshot: Snapshot) -> pa.Array | None:
        if fingerprint is not None and snapshot.manifest.fingerprint != fingerprint:
            return None
        return read_keys(snapshot)

    try:
        return read_steadily(folder, read)
    except StoreError:
        if not (folder / MANIFEST).exists():
            return None
    return read_steadily(folder, read)  # another run may have made the store just now


def read_n_tokens(snapshot: Snapshot) -> npt.NDArray[np.int32]:
    """The number of tokens of all texts of a store, in order: int32, [rows].

    :param snapshot: what the store holds.
    :raises StoreError: if a shard is missing or damaged.
    """
    n_tokens = np.empty((snapshot.manifest.rows, 1), np.int32)
    gather_rows(snapshot, np.arange(len(n_tokens)), {"n_tokens": n_tokens})
    return n_tokens[:, 0]


def read_token_counts(
    folder: Path, keys: pa.Array | Sequence[bytes], *, fingerprint: str | None = None
) -> npt.NDArray[np.int64]:
    """The number of tokens of texts after the cut, by key, in the order of the keys: int64, [B].

    :param folder: the store.
    :param keys: keys of B texts, duplicates allowed.
    :param fingerprint: fingerprint of the store wanted; any if ``None``.
    :raises StoreError: if a key is not in the store, or what is read is damaged.
    """

    def read(snapshot: Snapshot) -> npt.NDArray[np.int64]:
        counts = np.empty((len(keys), 1), np.int32)
        gather_rows(snapshot, locate(snapshot, keys), {"n_tokens": counts})
        return counts[:, 0].astype(np.int64)

    return read_steadily(folder, read, fingerprint=fingerprint)


def read_vectors(
    folder: Path,
    keys: pa.Array | Sequence[bytes],
    layers: Sequence[int],
    dtype: npt.DTypeLike | None = np.float32,
    *,
    threads: int | None = None,
    fingerprint: str | None = None,
) -> npt.NDArray[Any]:
    """Vectors by key, in the order of the keys.

    :param folder: the store.
    :param keys: keys of B texts, duplicates allowed.
    :param layers: numbers of the L layers to read, in the order wanted.
    :param dtype: type of the result, to which stored numbers are converted if need be; ``None``
        for that of the store.
    :param threads: number of threads that read at once; all cores if ``None``.
    :param fingerprint: fingerprint of the vectors wanted, for who reads several times; any if
        ``None``.
    :returns: [B, L, D].
    :raises StoreError: if a layer or a key is not in the store, or what is read is damaged, or of
        another fingerprint.
    """

    def read(snapshot: Snapshot) -> npt.NDArray[Any]:
        _check_layers(folder, snapshot.manifest, layers)
        positions = locate(snapshot, keys)
        shape = (len(positions), len(layers), snapshot.manifest.width)
        vectors = np.empty(shape, dtype or snapshot.manifest.dtype)
        into = split_columns(snapshot.manifest, layers, vectors)
        gather_rows(snapshot, positions, into, threads)
        return vectors

    return read_steadily(folder, read, fingerprint=fingerprint)


def read_rows(snapshot: Snapshot, positions: npt.NDArray[np.int64]) -> Rows:
    """All that the store holds of some of its rows, bit for bit.

    :param snapshot: the store.
    :param positions: int64, [B]: rows of the store.
    :returns: the rows in that order.
    """
    manifest = snapshot.manifest
    shape = (len(positions), len(manifest.layers), manifest.width)
    vectors = np.empty(shape, manifest.dtype)
    n_tokens = np.empty((len(positions), 1), np.int32)
    into = {"n_tokens": n_tokens} | split_columns(manifest, manifest.layers, vectors)
    gather_rows(snapshot, positions, into)
    return Rows(n_tokens=n_tokens[:, 0], vectors=vectors)


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

    :param folder: the store.
    :param keys: keys of N texts, duplicates allowed.
    :param layers: numbers of the L layers to read, in the order wanted.
    :param batch_rows: number of rows of each batch but the last.
    :param dtype: type of the vectors.
    :param window_rows: number of rows of a window; the more, the better the shuffle.
    :param seed: seed of the order; ``None`` keeps that of the store.
    :yields: which of the keys, int64, [B], and their vectors, [B, L, D].
    :raises StoreError: as ``read_vectors``, and if the store gets another fingerprint meanwhile.
    """
    stream = VectorStream(folder, keys, layers, dtype)
    yield from stream.read(batch_rows, window_rows=window_rows, seed=seed)


def read_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, each of which is made while the one before it is used.

    :param items: what to go through, in a thread of its own.
    """
    from concurrent.futures import ThreadPoolExecutor

    source = iter(items)
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, source, None)
        while (item := following.result()) is not None:
            following = pool.submit(next, source, None)
            yield item


class VectorStream:
    """The vectors of some texts, to be read in batches again and again.

    Windows of neighbouring rows are read one after another, in an order drawn by the seed, and
    the rows of a window are shuffled; at most one window and one batch are in memory. Where the
    texts stand in the store is found once.

    :param folder: the store.
    :param keys: keys of N texts, duplicates allowed.
    :param layers: numbers of the L layers to read, in the order wanted.
    :param dtype: type of the vectors; ``None`` for that of the store.
    :raises StoreError: if a layer or a key is not in the store.
    """

    def __init__(
        self,
        folder: Path,
        keys: pa.Array | Sequence[bytes],
        layers: Sequence[int],
        dtype: npt.DTypeLike | None = np.float32,
    ) -> None:
        self._folder, self._keys, self._layers = folder, _to_array(keys), tuple(layers)
        self._at_start, self._positions = read_steadily(
            folder, lambda now: (now, locate(now, self._keys))
        )
        _check_layers(folder, self._at_start.manifest, layers)
        self._dtype = np.dtype(self._at_start.manifest.dtype if dtype is None else dtype)
        self._orders: dict[int, npt.NDArray[np.int64]] = {}
        self._blocks: list[Block] | None = None

    def read(
        self,
        batch_rows: int,
        *,
        rows: int | None = None,
        window_rows: int = 65_536,
        seed: int | None = None,
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[Any]]]:
        """Read the vectors once.

        :param batch_rows: number of rows of each batch but the last.
        :param rows: number of texts, from the first, that are read; all if ``None``.
        :param window_rows: number of rows of a window; the more, the better the shuffle.
        :param seed: seed of the order; ``None`` keeps that of the store.
        :yields: which of the keys, int64, [B], and their vectors, [B, L, D].
        :raises StoreError: as ``read_vectors``, and if the store has another fingerprint now.
        """
        order = self._sort(len(self._positions) if rows is None else rows)
        starts = range(0, len(order), window_rows)
        windows = [order[start : start + window_rows] for start in starts]
        generator = np.random.default_rng(seed)
        if seed is not None:
            windows = [windows[number] for number in generator.permutation(len(windows))]
        rest, held = np.empty(0, np.int64), self._make(0)
        for number, window in enumerate(windows):
            chosen = generator.permutation(window) if seed is not None else window
            vectors = self.take(chosen)
            if len(rest):
                chosen, vectors = np.concatenate([rest, chosen]), np.concatenate([held, vectors])
            is_last = number == len(windows) - 1
            full = len(chosen) if is_last else len(chosen) // batch_rows * batch_rows
            for start in range(0, full, batch_rows):
                yield chosen[start : start + batch_rows], vectors[start : start + batch_rows]
            rest, held = chosen[full:], vectors[full:]

    def _make(self, rows: int) -> npt.NDArray[Any]:
        shape = (rows, len(self._layers), self._at_start.manifest.width)
        return np.empty(shape, self._dtype)

    def _sort(self, rows: int) -> npt.NDArray[np.int64]:
        """The numbers of the first texts, in the order of the store."""
        if rows not in self._orders:
            self._orders[rows] = np.argsort(self._positions[:rows], kind="stable")
        return self._orders[rows]

    def take(self, chosen: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Read the vectors of some of the texts.

        :param chosen: which of the keys, int64, [B].
        :returns: [B, L, D].
        :raises StoreError: as ``read``.
        """
        vectors = self._make(len(chosen))
        into = split_columns(self._at_start.manifest, self._layers, vectors)

        def fill(now: Snapshot) -> None:
            if now is not self._at_start:
                gather_rows(now, locate(now, self._keys.take(chosen)), into)
                return
            if self._blocks is None:
                rising = self._positions[self._sort(len(self._positions))]
                self._blocks = plan_blocks(now, list(into), rising)
            gather_rows(now, self._positions[chosen], into, planned=self._blocks)

        fingerprint = self._at_start.manifest.fingerprint
        read_steadily(self._folder, fill, start=self._at_start, fingerprint=fingerprint)
        return vectors


def _check_layers(folder: Path, manifest: Manifest, layers: Sequence[int]) -> None:
    for layer in layers:
        if layer not in manifest.layers:
            raise StoreError(
                f"{folder}: has no layer {layer}; it holds {', '.join(map(str, manifest.layers))}",
                hint="choose among them, or change embed.layers and embed again",
            )


def _to_array(keys: pa.Array | Sequence[bytes]) -> Any:
    import pyarrow as pa

    return keys if isinstance(keys, pa.Array | pa.ChunkedArray) else wrap_keys(keys)


def locate(snapshot: Snapshot, keys: pa.Array | Sequence[bytes]) -> npt.NDArray[np.int64]:
    """The row of each key in the store.

    :param snapshot: what the store holds.
    :param keys: the keys to look for, [B].
    :raises StoreError: if one is not there.
    """
    import pyarrow as pa

    wanted = _to_array(keys)
    if isinstance(wanted, pa.ChunkedArray):
        wanted = wanted.combine_chunks()
    held, looked_for = view_keys(read_keys(snapshot)), view_keys(wanted)
    if np.array_equal(held, looked_for):  # as where a corpus was embedded and nothing else
        return np.arange(len(held))
    rows = KeyIndex(held).find(looked_for)
    missing = int((rows < 0).sum())
    if missing:
        raise StoreError(
            f"{snapshot.folder}: {missing:,} of {len(wanted):,} texts have no vectors",
            hint="run `pipeline embed`",
        )
    return rows


def gather_rows(
    snapshot: Snapshot,
    positions: npt.NDArray[np.int64],
    into: Mapping[str, npt.NDArray[Any]],
    threads: int | None = None,
    *,
    planned: Sequence[Block] | None = None,
) -> None:
    """Copy the blocks that hold wanted rows into preallocated arrays, several at a time.

    :param snapshot: what the store holds.
    :param positions: int64, [B]: rows of the store.
    :param into: column → an array to fill: [B, 1] of ``n_tokens``; [B, D] of a layer, or of one of
        its poolings that pooling's part of D.
    :param threads: number of threads that read at once; all cores if ``None``.
    :param planned: all blocks of these columns, if they are known.
    :raises StoreError: if a shard is missing or damaged.
    """
    import os
    import threading
    from concurrent.futures import ThreadPoolExecutor

    dtypes = dict.fromkeys(into, snapshot.manifest.dtype) | {"n_tokens": "int32"}
    in_order = bool((np.diff(positions) > 0).all())
    order = np.arange(len(positions)) if in_order else np.argsort(positions, kind="stable")
    rising = positions[order]
    if planned is None:
        planned = plan_blocks(snapshot, list(into), rising)
    else:
        planned = _select_blocks(planned, rising)
    ends = np.searchsorted(rising, [(b.first, b.first + b.rows) for b in planned]).tolist()
    bounds = {id(block): (low, high) for block, (low, high) in zip(planned, ends, strict=True)}
    wanted = [block for block in planned if bounds[id(block)][0] < bounds[id(block)][1]]
    largest = max((block.size for block in wanted), default=0)
    scratch = threading.local()

    def copy(block: Block) -> None:
        low, high = bounds[id(block)]
        if not hasattr(scratch, "buffer"):
            scratch.buffer = np.empty(largest, np.uint8)
        values = files.read(block, scratch.buffer).view(dtypes[block.column])
        table = values.reshape(block.rows, -1)
        target = slice(low, high) if in_order else order[low:high]
        whole = in_order and high - low == block.rows
        source = table if whole else table[rising[low:high] - block.first]
        into[block.column][target] = source

    at_once = threads or find_place(snapshot.folder).threads or os.cpu_count() or 1
    with ThreadPoolExecutor(at_once) as pool:
        for group in _group_by_files(wanted):
            with _Files(group) as files:
                for _ in pool.map(copy, group):
                    pass


def read_whole_shard(path: Path, *, sha256: str | None = None) -> Snapshot | None:
    """What a file says of itself, if it is a shard whose every value is as it says.

    A shard states its recipe and the hashes of its values, so no damage slips in.

    :param path: the file.
    :param sha256: SHA-256 of its bytes, where those are known to be right, so that only its keys
        are read; ``None`` where all is to be read.
    :returns: a store of this one shard, or ``None``.
    """
    try:
        alone = _read_unhashed(path)
        (unhashed,) = alone.manifest.shards
        shard = replace(unhashed, sha256=sha256 or hash_file(path))
        alone = replace(alone, manifest=replace(alone.manifest, shards=(shard,)))
        shard = replace(shard, keys=hash_keys(read_keys(alone)))
        if sha256 is None:
            read_rows(alone, np.arange(shard.rows))
    except _list_faults():
        return None
    return replace(alone, manifest=replace(alone.manifest, shards=(shard,)))


def read_keys_of_shard(path: Path) -> pa.Array | None:
    """The keys of a file, if it is a shard whose keys are as it says; its vectors are not read.

    :param path: the file.
    :returns: fixed-size binary of 16, in the order of its rows, or ``None``.
    """
    try:
        return read_keys(_read_unhashed(path))
    except _list_faults():
        return None


def _read_unhashed(path: Path) -> Snapshot:
    """What a shard says of itself in its footer, without the hashes of its bytes and its keys.

    :raises Exception: one of ``_list_faults`` if it is none.
    """
    if not path.is_file():
        raise _missing(path)
    footer = _read_footer(path)
    about = footer.metadata
    vector = footer.schema.to_arrow_schema().field(-1).type
    contents = json.loads(about[b"recipe"])
    poolings = contents.get("pooling")
    recipe = Recipe(
        backbone=about[b"backbone"].decode(),
        contents=contents,
        layers=tuple(contents["layers"]),
        width=vector.list_size * (len(poolings) if isinstance(poolings, list) else 1),
        dtype=str(np.dtype(vector.value_type.to_pandas_dtype())),
    )
    if recipe.fingerprint != about[b"fingerprint"].decode():
        raise ValueError("its fingerprint is not that of its recipe")
    shard = Shard(
        file=path.name,
        rows=footer.num_rows,
        keys="",
        bytes=path.stat().st_size,
        checks=json.loads(about[b"checks"]),
    )
    return Snapshot(path.parent, recipe.describe([shard]), {})


def _list_faults() -> tuple[type[Exception], ...]:
    """What reading a file raises that is no shard, or a damaged one."""
    import pyarrow as pa

    return (
        pa.ArrowException, OSError, StoreError, KeyError, ValueError, TypeError, AttributeError
    )  # fmt: skip
