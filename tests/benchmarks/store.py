"""Write and read speed of the embedding store, beside NumPy's files and plain pyarrow.

    python -m tests.benchmarks.store [--json FILE] [--quick]

Each figure is the best of a few runs in turn, on files in the page cache. GB are 10**9 bytes of the
vectors wanted, whatever else a way has to read for them.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store import Recipe, Rows, StoreUpdate, holds_exactly, read_manifest, read_vectors
from tests.benchmarks.table import describe_machine, present

LAYERS = (0, 4, 8, 12)


def make_keys(count: int, seed: int = 0) -> pa.Array:
    raw = np.random.default_rng(seed).integers(0, 256, (count, 16), np.uint8)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), count, [None, pa.py_buffer(raw)])


def make_vectors(rows: int, layers: int, width: int, dtype: str) -> np.ndarray:
    generator = np.random.default_rng(1)
    return generator.standard_normal((rows, layers, width), np.float32).astype(dtype)


def write_store(folder: Path, keys: pa.Array, vectors: np.ndarray) -> None:
    recipe = make_recipe(vectors)
    update = StoreUpdate(folder, recipe, keys)
    for start, stop in update.list_missing():
        tokens = np.full(stop - start, 25, np.int32)
        update.write_shard(start, Rows(tokens, vectors[start:stop]))
    update.commit()


def make_recipe(vectors: np.ndarray) -> Recipe:
    layers = LAYERS[: vectors.shape[1]]
    contents = {"layers": list(layers), "dtype": str(vectors.dtype), "files": {}}
    return Recipe("benchmark", contents, layers, vectors.shape[2], str(vectors.dtype))


def read_plain(folder: Path, column: str) -> np.ndarray:
    """What one would write without this project: one table, flattened."""
    table = pq.read_table(sorted(folder.glob("*.parquet")), columns=[column])
    width = table.schema.field(column).type.list_size
    return table[column].combine_chunks().flatten().to_numpy().reshape(-1, width)


def race(ways: dict[str, Callable[[], Any]], runs: int) -> dict[str, float]:
    """The best time of each way, run in turn so that a slow moment hits all of them."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(runs):
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - started)
    return best


def measure_dtype(root: Path, rows: int, dtype: str, runs: int) -> list[dict[str, Any]]:
    keys = make_keys(rows)
    vectors = make_vectors(rows, len(LAYERS), 768, dtype)
    folder = root / f"store-{dtype}"
    one = np.ascontiguousarray(vectors[:, 1])
    npy = root / f"{dtype}.npy"

    def rewrite() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        write_store(folder, keys, vectors)

    written = race({"ours": rewrite, "np.save": lambda: np.save(npy, vectors)}, max(runs - 1, 1))
    results = [
        {"case": f"{dtype}: write 4 layers", "engine": name, "write_gb_per_s": gb(vectors, seconds)}
        for name, seconds in written.items()
    ]
    np.save(npy, one)
    tenth = np.sort(np.random.default_rng(2).choice(rows, rows // 10, replace=False))
    some = keys.take(pa.array(tenth))
    for case, wanted, ways in (
        (
            f"{dtype}: read 1 of 4 layers, all rows",
            one,
            {
                "ours": lambda: read_vectors(folder, keys, [4], dtype)[:, 0],
                "pyarrow read_table": lambda: read_plain(folder, "layer_04"),
                "np.load": lambda: np.load(npy),
            },
        ),
        (
            f"{dtype}: read 1 of 4 layers, a random tenth",
            one[tenth],
            {
                "ours": lambda: read_vectors(folder, some, [4], dtype)[:, 0],
                "pyarrow read_table": lambda: read_plain(folder, "layer_04")[tenth],
                "np.load": lambda: np.load(npy, mmap_mode="r")[tenth],
            },
        ),
    ):
        for name, way in ways.items():
            if not np.array_equal(way(), wanted):
                raise AssertionError(f"{case}: {name} reads something else")
        for name, seconds in race(ways, runs).items():
            results.append({"case": case, "engine": name, "read_gb_per_s": gb(wanted, seconds)})
    shutil.rmtree(folder)
    return results


def gb(vectors: np.ndarray, seconds: float) -> float:
    return round(vectors.nbytes / seconds / 1e9, 3)


def measure_decision(root: Path, rows: int) -> list[dict[str, Any]]:
    """Seconds to decide that nothing is to be done, and to add 1 %, on narrow vectors."""
    keys, more = make_keys(rows), make_keys(rows // 100, seed=3)
    vectors = make_vectors(rows, 1, 32, "float16")
    folder = root / "decision"
    started = time.perf_counter()
    write_store(folder, keys, vectors)
    full = time.perf_counter() - started
    started = time.perf_counter()
    assert holds_exactly(folder, read_manifest(folder), keys)
    decided = time.perf_counter() - started
    grown = pa.concat_arrays([keys, more])
    started = time.perf_counter()
    update = StoreUpdate(folder, make_recipe(vectors), grown)
    embedded = 0
    for start, stop in update.list_missing():
        known, old = update.find_known(start, stop)
        rows_of = np.empty((stop - start, 1, 32), np.float16)
        rows_of[known], rows_of[~known] = old.vectors, 1.0
        embedded += int((~known).sum())
        update.write_shard(start, Rows(np.full(stop - start, 25, np.int32), rows_of))
    update.commit()
    added = time.perf_counter() - started
    assert embedded == len(more)
    return [
        {"case": f"{rows:,} texts: write all", "engine": "ours", "seconds": round(full, 3)},
        {"case": f"{rows:,} texts: nothing new", "engine": "ours", "seconds": round(decided, 3)},
        {"case": f"{rows:,} texts: add 1 %", "engine": "ours", "seconds": round(added, 3)},
    ]


@click.command()
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the rows here too.")
@click.option("--quick", is_flag=True, help="Fewer rows and runs: under 50 s on two cores.")
def main(path: Path | None, quick: bool) -> None:
    """Measure the store beside NumPy's files and plain pyarrow."""
    rows, runs = (20_000, 3) if quick else (100_000, 5)
    results = []
    with tempfile.TemporaryDirectory() as name:
        for dtype in ("float16", "float32"):
            results += measure_dtype(Path(name), rows, dtype, runs)
        results += measure_decision(Path(name), 200_000 if quick else 1_000_000)
    figures = ("write_gb_per_s", "read_gb_per_s", "seconds")
    results = [dict.fromkeys(("case", "engine", *figures)) | row for row in results]
    present(results, path, describe_machine("pyarrow", "numpy"))


if __name__ == "__main__":
    main()
