"""The embedding store: what is written is read, whatever the order and the interruptions."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import files
from pipeline.errors import StoreError, WriteError
from pipeline.store import (
    Recipe,
    Rows,
    StoreUpdate,
    read_manifest,
    read_token_counts,
    read_vectors,
    stream_vectors,
)
from pipeline.store import manifest as layout
from pipeline.store.upkeep import rebuild_manifest

WIDTH = 5


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SHARD_ROWS", 8)
    monkeypatch.setattr(layout, "GROUP_ROWS", 3)


def make_recipe(dtype: str = "float16", layers: tuple[int, ...] = (0, 2), **more: object) -> Recipe:
    return Recipe("acme/tiny", {"dtype": dtype, "layers": layers, **more}, layers, WIDTH, dtype)


def make_key(text: int) -> bytes:
    return hashlib.blake2b(str(text).encode(), digest_size=16).digest()


def make_keys(texts: Sequence[int]) -> pa.Array:
    return pa.array([make_key(t) for t in texts], pa.binary(16))


def draw_keys(number: int) -> pa.Array:
    raw = np.random.default_rng(0).bytes(16 * number)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), number, [None, pa.py_buffer(raw)])


def make_rows(texts: Sequence[int], recipe: Recipe) -> Rows:
    """Vectors that only depend on the text."""
    values = [np.random.default_rng(t).standard_normal((len(recipe.layers), WIDTH)) for t in texts]
    vectors = np.array(values).reshape(len(texts), len(recipe.layers), WIDTH).astype(recipe.dtype)
    return Rows(np.array(texts, np.int32), vectors)


def update(
    folder: Path,
    recipe: Recipe,
    texts: Sequence[int],
    stop_after: int | None = None,
    keep_parts: bool = False,
) -> int:
    """Do what `pipeline embed` does; returns how many texts had to be embedded.

    :param stop_after: die when so many shards are written.
    :param keep_parts: save the first half of each shard's new rows before the shard.
    """
    change = StoreUpdate(folder, recipe, make_keys(texts))
    embedded = 0
    for number, (start, stop) in enumerate(change.list_missing()):
        known, old = change.find_known(start, stop)
        rows = make_rows(texts[start:stop], recipe)
        np.testing.assert_array_equal(old.vectors, rows.vectors[known])
        np.testing.assert_array_equal(old.n_tokens, rows.n_tokens[known])
        new = np.flatnonzero(~known)
        half = new[: (len(new) + 1) // 2]
        if keep_parts and len(half):
            change.save_progress(half + start, Rows(rows.n_tokens[half], rows.vectors[half]))
        if stop_after is not None and number >= stop_after:
            return embedded + (len(half) if keep_parts else 0)
        embedded += len(new)
        change.write_shard(start, rows)
    change.commit()
    return embedded


def read(
    folder: Path, texts: Sequence[int], layers: Sequence[int] = (0, 2), dtype: str = "float16"
):
    return read_vectors(folder, [make_key(t) for t in texts], layers, dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("count", [1, 3, 8, 9, 24, 50])
def test_reads_back_any_order_duplicates_and_layers(tmp_path: Path, dtype: str, count: int) -> None:
    recipe = make_recipe(dtype)
    update(tmp_path / "s", recipe, range(count))
    wanted = np.random.default_rng(0).integers(0, count, 3 * count).tolist()
    expected = make_rows(wanted, recipe).vectors
    np.testing.assert_array_equal(read(tmp_path / "s", wanted, (0, 2), dtype), expected)
    np.testing.assert_array_equal(read(tmp_path / "s", wanted, (2,), dtype), expected[:, 1:])
    reversed_layers = read(tmp_path / "s", wanted, (2, 0), dtype)
    np.testing.assert_array_equal(reversed_layers, expected[:, ::-1])


def test_counts_of_tokens_are_read_by_key(tmp_path: Path) -> None:
    recipe = make_recipe("float16")
    update(tmp_path / "s", recipe, range(24))
    wanted = [5, 23, 0, 5, 11]
    counts = read_token_counts(tmp_path / "s", [make_key(t) for t in wanted])
    np.testing.assert_array_equal(counts, make_rows(wanted, recipe).n_tokens)
    with pytest.raises(StoreError):
        read_token_counts(tmp_path / "s", [make_key(99)])


def test_widens_float16_to_float32(tmp_path: Path) -> None:
    recipe = make_recipe("float16")
    update(tmp_path / "s", recipe, range(10))
    found = read(tmp_path / "s", range(10), dtype="float32")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, make_rows(range(10), recipe).vectors.astype(np.float32))


def test_files_are_plain_parquet_of_the_documented_form(tmp_path: Path) -> None:
    recipe = make_recipe("float16")
    update(tmp_path / "s", recipe, range(10))
    names = sorted(file.name for file in (tmp_path / "s").iterdir())
    assert names == ["manifest.json", "part-00000.parquet", "part-00001.parquet"]
    table = pq.read_table(tmp_path / "s" / "part-00001.parquet")
    assert table.schema.names == ["key", "n_tokens", "layer_00", "layer_02"]
    assert table.schema.field("key").type == pa.binary(16)
    vector = table.schema.field("layer_02").type
    assert pa.types.is_fixed_size_list(vector)
    assert vector.list_size == WIDTH
    assert vector.value_type == pa.float16()
    assert not vector.value_field.nullable
    assert table.schema.metadata[b"fingerprint"].decode() == recipe.fingerprint
    assert table["key"].to_pylist() == [make_key(8), make_key(9)]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_a_shard_is_byte_for_byte_what_arrow_would_write(
    tmp_path: Path, dtype: str, count: int
) -> None:
    recipe = make_recipe(dtype)
    update(tmp_path / "s", recipe, range(count))
    shard = tmp_path / "s" / "part-00000.parquet"
    rows = make_rows(range(count), recipe)
    schema = pq.read_schema(shard)
    columns = [make_keys(range(count)), pa.array(rows.n_tokens)]
    for number, field in enumerate(list(schema)[2:]):
        flat = pa.array(np.ascontiguousarray(rows.vectors[:, number]).reshape(-1))
        columns.append(pa.FixedSizeListArray.from_arrays(flat, type=field.type))
    with pq.ParquetWriter(
        tmp_path / "arrow.parquet",
        schema,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
    ) as writer:
        writer.write_table(pa.table(columns, schema=schema), row_group_size=layout.GROUP_ROWS)
        writer.add_key_value_metadata({"checks": pq.read_metadata(shard).metadata[b"checks"]})
    assert shard.read_bytes() == (tmp_path / "arrow.parquet").read_bytes()


def test_a_lost_manifest_is_made_anew_from_whole_shards_only(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    update(folder, make_recipe(), range(20))
    manifest = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").unlink()
    rebuild_manifest(folder)
    assert (folder / "manifest.json").read_bytes() == manifest
    part = folder / "part-00001.parquet"
    whole = part.read_bytes()
    values = make_rows([9], make_recipe()).vectors[0, 1].tobytes()
    place = whole.index(values)
    part.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    (folder / "manifest.json").write_text("{")
    rebuild_manifest(folder)
    assert [s.file for s in read_manifest(folder).shards] == [
        "part-00000.parquet", "part-00002.parquet",
    ]  # fmt: skip
    assert update(folder, make_recipe(), range(20)) == 8


def test_pandas_sees_vectors(tmp_path: Path) -> None:
    import pandas as pd

    recipe = make_recipe("float32")
    update(tmp_path / "s", recipe, range(4))
    frame = pd.read_parquet(tmp_path / "s" / "part-00000.parquet")
    expected = make_rows(range(4), recipe).vectors[:, 1]
    np.testing.assert_array_equal(np.stack(frame["layer_02"].tolist()), expected)


def test_added_rows_leave_full_shards_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    update(folder, make_recipe(), range(20))
    before = {f.name: (f.read_bytes(), f.stat().st_ino) for f in folder.glob("part-*")}
    assert update(folder, make_recipe(), range(30)) == 10
    after = {f.name: (f.read_bytes(), f.stat().st_ino) for f in folder.glob("part-*")}
    for name in ("part-00000.parquet", "part-00001.parquet"):
        assert after[name] == before[name]
    assert read_manifest(folder).rows == 30


def test_removed_rows_are_rearranged_without_embedding(tmp_path: Path) -> None:
    update(tmp_path / "a", make_recipe(), range(30))
    remaining = [t for t in range(30) if t not in {2, 11}]
    assert update(tmp_path / "a", make_recipe(), remaining) == 0
    update(tmp_path / "b", make_recipe(), remaining)
    for file in (tmp_path / "b").iterdir():
        assert (tmp_path / "a" / file.name).read_bytes() == file.read_bytes()
    assert len(list((tmp_path / "a").iterdir())) == len(list((tmp_path / "b").iterdir()))


def test_another_recipe_embeds_everything_again(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    update(folder, make_recipe(max_tokens=64), range(10))
    assert update(folder, make_recipe(max_tokens=128), range(10)) == 10
    assert read_manifest(folder).recipe["max_tokens"] == 128


def test_the_old_store_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    update(folder, make_recipe(max_tokens=64), range(20))
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    update(folder, make_recipe(max_tokens=128), range(20), stop_after=2)
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before


def test_an_interrupted_run_is_taken_up(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    update(folder, make_recipe(), range(30), stop_after=2)
    assert not folder.exists()
    for _ in range(2):  # looking at what is left must not lose it
        change = StoreUpdate(folder, make_recipe(), make_keys(range(30)))
        assert change.resumed_rows == 16
    assert update(folder, make_recipe(), range(30)) == 14
    assert not folder.with_name("s.next").exists()
    np.testing.assert_array_equal(
        read(folder, range(30)), make_rows(range(30), make_recipe()).vectors
    )


def test_a_shard_that_was_half_done_is_taken_up(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    assert update(folder, make_recipe(), range(30), stop_after=2, keep_parts=True) == 20
    change = StoreUpdate(folder, make_recipe(), make_keys(range(30)))
    assert change.resumed_rows == 20  # each once, though kept both in a shard and before it
    # The corpus may have changed since: what was embedded still counts.
    others = [*range(100, 105), *range(29, -1, -1)]
    assert update(folder, make_recipe(), others) == 15
    assert not folder.with_name("s.next").exists()


def test_a_damaged_leftover_is_not_taken_up(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    update(folder, make_recipe(), range(30), stop_after=2)
    part = next(folder.with_name("s.next").glob("part-00001*"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    assert StoreUpdate(folder, make_recipe(), make_keys(range(30))).resumed_rows == 8
    assert update(folder, make_recipe(max_tokens=9), range(30)) == 30  # another recipe


@pytest.mark.parametrize("moved", [0, 1, 2, 3])
def test_a_commit_that_was_cut_short_is_carried_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    folder = tmp_path / "s"
    update(folder, make_recipe(max_tokens=64), range(40))
    calls = []
    rename = Path.replace

    def cut(self: Path, target: Path) -> Path:
        if self.parent.name == "s.next" and target.parent == folder:
            if len(calls) == moved:
                raise KeyboardInterrupt
            calls.append(target)
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", cut)
        with pytest.raises(KeyboardInterrupt):
            update(folder, make_recipe(), range(30))
    assert update(folder, make_recipe(), range(30)) == 0
    assert sorted(f.name for f in folder.glob("part-*")) == [
        f"part-0000{n}.parquet" for n in range(4)
    ]
    np.testing.assert_array_equal(
        read(folder, range(30)), make_rows(range(30), make_recipe()).vectors
    )


@pytest.mark.parametrize("operation", ["fsync", "replace", "create_file"])
def test_no_space_at_any_moment_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """The disk is full at the n-th write, for every n: the old store or the new one is there."""
    owner = {"fsync": os, "replace": Path, "create_file": files}[operation]
    real = getattr(owner, operation)
    clean = tmp_path / "clean"
    update(clean, make_recipe(), range(30))
    failures = 0
    while True:
        folder = tmp_path / f"s{failures}"
        update(folder, make_recipe(max_tokens=64), range(20))
        calls = itertools.count()

        def fail(*arguments: Any, **named: Any) -> Any:
            if next(calls) == failures:  # noqa: B023 - called in this turn of the loop only
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **named)

        try:
            with monkeypatch.context() as patch:
                patch.setattr(owner, operation, fail)
                update(folder, make_recipe(), range(30), keep_parts=True)
        except WriteError:
            pass  # whatever it says, below is what it must have left
        else:
            if next(calls) <= failures:
                break  # all writes of a run were tried; none is left to fail
        assert not list(tmp_path.rglob(".tmp-*"))
        update(folder, make_recipe(), range(30))
        assert {f.name: f.read_bytes() for f in folder.iterdir()} == {
            f.name: f.read_bytes() for f in clean.iterdir()
        }
        failures += 1
    assert failures > 8


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_refuses_vectors_that_are_no_vectors(tmp_path: Path, value: float) -> None:
    first_rows = np.arange(10) * 3
    change = StoreUpdate(tmp_path / "s", make_recipe(), make_keys(range(10)), first_rows)
    rows = make_rows(range(8), make_recipe())
    rows.vectors[[2, 5], 1] = value  # in one layer of two
    with pytest.raises(StoreError, match="2 texts are zero or not finite: rows 6, 15 of cache/"):
        change.write_shard(0, rows)
    assert not list(tmp_path.rglob("*.parquet"))


def test_says_what_is_wrong(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    with pytest.raises(StoreError, match="no such file"):
        read(folder, [0])
    update(folder, make_recipe(), range(20))
    with pytest.raises(StoreError, match="has no layer 1; it holds 0, 2"):
        read(folder, [0], layers=[1])
    with pytest.raises(StoreError, match="1 of 2 texts have no vectors"):
        read(folder, [0, 99])
    part = folder / "part-00001.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match=r"part-00001\.parquet: damaged"):
        read(folder, range(20))
    part.unlink()
    with pytest.raises(StoreError, match=r"part-00001\.parquet: no such file"):
        read(folder, range(20))
    # What the message asks for mends it, and embeds only what is lost.
    assert update(folder, make_recipe(), range(20)) == 8
    assert len(read(folder, range(20))) == 20
    (folder / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match=r"manifest\.json: damaged"):
        read(folder, range(20))
    assert update(folder, make_recipe(), range(20)) == 0  # every shard is whole
    assert len(read(folder, range(20))) == 20


def test_a_flipped_byte_never_gives_a_wrong_vector(tmp_path: Path) -> None:
    """Each byte of a shard: what is read is right, or the damage is noticed."""
    folder = tmp_path / "s"
    recipe = make_recipe("float32", (0,))
    update(folder, recipe, range(4))
    expected = make_rows(range(4), recipe).vectors
    part = folder / "part-00000.parquet"
    whole = part.read_bytes()
    noticed = 0
    for place in range(len(whole)):
        part.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        try:
            found = read(folder, range(4), (0,), "float32")
        except StoreError:
            noticed += 1
        else:
            np.testing.assert_array_equal(found, expected)
    values = 4 * (16 + WIDTH * 4)
    assert noticed >= values  # every byte of the keys and vectors, and more


def test_a_flipped_byte_in_the_manifest_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    update(folder, make_recipe(), range(4))
    path = folder / "manifest.json"
    whole = path.read_bytes()
    content = json.loads(whole)
    for place in range(len(whole)):
        changed = whole[:place] + bytes([whole[place] ^ 0x01]) + whole[place + 1 :]
        path.write_bytes(changed)
        try:
            same = json.loads(changed) == content  # only white space differs
        except ValueError:
            same = False
        if same:
            continue
        with pytest.raises(StoreError, match=r"manifest\.json"):
            read(folder, range(4))


@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize(("batch_rows", "window_rows"), [(7, 10), (7, 100), (16, 16), (100, 10)])
def test_streams_every_row_once_in_even_batches(
    tmp_path: Path, seed: int | None, batch_rows: int, window_rows: int
) -> None:
    recipe = make_recipe("float16")
    update(tmp_path / "s", recipe, range(40))
    wanted = np.random.default_rng(5).integers(0, 40, 90).tolist()
    expected = make_rows(wanted, recipe).vectors.astype(np.float32)
    stream = stream_vectors(
        tmp_path / "s",
        make_keys(wanted),
        (0, 2),
        batch_rows,
        window_rows=window_rows,
        seed=seed,
    )
    batches = list(stream)
    assert [len(rows) for rows, _ in batches[:-1]] == [batch_rows] * (len(batches) - 1)
    order = np.concatenate([rows for rows, _ in batches])
    assert sorted(order.tolist()) == list(range(90))
    np.testing.assert_array_equal(np.concatenate([v for _, v in batches]), expected[order])
    if seed is not None:
        again = stream_vectors(
            tmp_path / "s",
            make_keys(wanted),
            (0, 2),
            batch_rows,
            window_rows=window_rows,
            seed=seed,
        )
        np.testing.assert_array_equal(np.concatenate([rows for rows, _ in again]), order)
        assert order.tolist() != np.argsort(wanted, kind="stable").tolist()


def test_polars_and_duckdb_see_vectors(tmp_path: Path) -> None:
    import duckdb
    import polars as pl

    for dtype in ("float16", "float32"):
        folder = tmp_path / dtype
        update(folder, make_recipe(dtype), range(10))
        expected = make_rows(range(10), make_recipe(dtype)).vectors[:, 1].astype(np.float32)
        frame = pl.read_parquet(folder / "part-*.parquet", columns=["key", "layer_02"])
        found = frame["layer_02"].cast(pl.Array(pl.Float32, WIDTH)).to_numpy()
        np.testing.assert_array_equal(found, expected)
        query = (
            f"select layer_02 from read_parquet('{folder}/part-*.parquet', file_row_number=true)"
        )
        rows = duckdb.sql(query).fetchall()
        np.testing.assert_array_equal(np.array([row[0] for row in rows], np.float32), expected)


def test_the_manifest_keeps_the_worst_fidelity(tmp_path: Path) -> None:
    folder = tmp_path / "embeddings"
    found = []
    for count, cosine in ((3, 0.99), (4, 0.98), (5, 0.995), (2, None)):
        change = StoreUpdate(folder, make_recipe(), make_keys(range(count)))
        for start, stop in change.list_missing():
            change.write_shard(start, make_rows(range(start, stop), make_recipe()))
        fidelity = {"texts": 16, "lowest_cosine": cosine, "largest_error": 1 - (cosine or 0)}
        change.commit(fidelity if cosine else None)
        found.append(read_manifest(folder).fidelity)
    assert [(f["texts"], f["lowest_cosine"]) for f in found] == [
        (16, 0.99), (32, 0.98), (48, 0.98), (48, 0.98),
    ]  # fmt: skip
    assert found[-1]["largest_error"] == pytest.approx(0.02)


def measure_update(folder: Path, recipe: Recipe, keys: pa.Array, held: int) -> int:
    """The most bytes that finding out what is known takes, of keys of which some have vectors."""
    tracemalloc.start()
    change = StoreUpdate(folder, recipe, keys, np.empty(0, np.int64))
    known = change.has_vectors()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.flatnonzero(known).tolist() == list(range(held))
    return peak


@pytest.mark.parametrize(("is_first", "most"), [(True, 3), (False, 3 + 4)])
def test_what_is_known_of_a_text_takes_few_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_first: bool, most: int
) -> None:
    """Of a first run none beside the key, and of one that adds to a store a number of four.

    The text's share of what is known of its shard comes to that.
    """
    monkeypatch.setattr(layout, "SHARD_ROWS", 4096)
    monkeypatch.setattr(layout, "GROUP_ROWS", 1024)
    recipe = make_recipe(layers=(0,))
    peaks = []
    for number in (300_000, 600_000):
        keys, folder = draw_keys(number), tmp_path / str(number)
        held = 0 if is_first else number - 10_000
        if held:
            change = StoreUpdate(folder, recipe, keys.slice(0, held))
            for start, stop in change.list_missing():
                vectors = np.ones((stop - start, 1, WIDTH), recipe.dtype)
                change.write_shard(start, Rows(np.ones(stop - start, np.int32), vectors))
            change.commit()
        peaks.append(measure_update(folder, recipe, keys, held))
    assert (peaks[1] - peaks[0]) / 300_000 < most


def test_a_text_is_taken_from_the_first_that_has_it(tmp_path: Path) -> None:
    """Of what stands beside the store, then of the store, each in its own order."""
    recipe, texts = make_recipe(), range(20)
    folder = tmp_path / "s"
    change = StoreUpdate(folder, recipe, make_keys([*texts][::-1]))
    for start, stop in change.list_missing():
        change.write_shard(start, make_rows([*texts][::-1][start:stop], recipe))
    change.commit()
    change = StoreUpdate(folder, recipe, make_keys(texts))
    change.save_progress(np.array([3, 17, 4]), make_rows([3, 17, 4], recipe))
    change = StoreUpdate(folder, recipe, make_keys([5, *texts[10:], 99, 3, 4]))
    assert change.resumed_rows == 3
    known, rows = change.find_known(0, 14)
    wanted = [5, *texts[10:], 3, 4]
    assert np.flatnonzero(~known).tolist() == [11]
    np.testing.assert_array_equal(rows.vectors, make_rows(wanted, recipe).vectors)
    assert rows.n_tokens.tolist() == wanted
