"""A store of more shards than a process may have files open."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

from pipeline.project import Project
from tests.conftest import ROOT

MANY_SHARDS = """
import os, resource, sys
from pathlib import Path
import numpy as np
os.fsync = lambda handle: None  # thousands of files, none of which has to outlive this machine
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from pipeline.store import manifest as layout
layout.SHARD_ROWS, layout.GROUP_ROWS = 2, 2
from pipeline.store import StoreUpdate, read_manifest, read_vectors, stream_vectors
from pipeline.store.upkeep import prune_store, rebuild_manifest, verify_store
from tests.unit import test_store as t

folder, recipe, texts = Path(sys.argv[1]) / "s", t.make_recipe(layers=(0,)), range(3000)
assert t.update(folder, recipe, texts, stop_after=1499) == 2998
change = StoreUpdate(folder, recipe, t.make_keys(texts))
assert change.resumed_rows == 2998
assert t.update(folder, recipe, texts) == 2
assert len(read_manifest(folder).shards) == 1500
expected = t.make_rows(texts, recipe).vectors
wanted = np.random.default_rng(0).permutation(3000)
found = read_vectors(folder, t.make_keys(wanted.tolist()), (0,), "float16")
np.testing.assert_array_equal(found, expected[wanted])
for rows, vectors in stream_vectors(folder, t.make_keys(texts), (0,), 500, "float16", seed=1):
    np.testing.assert_array_equal(vectors, expected[rows])
assert verify_store(folder) == []
(folder / "manifest.json").unlink()
assert rebuild_manifest(folder).rows == 3000
# A text less at the start: every shard is another, and every row comes from those before.
assert prune_store(folder, t.make_keys(texts[1:])).texts == 1
found = read_vectors(folder, t.make_keys(texts[1:]), (0,), "float16")
np.testing.assert_array_equal(found, expected[1:])
assert t.update(folder, t.make_recipe(layers=(0,), max_tokens=9), texts) == 3000
assert t.update(folder, recipe, texts[1:]) == 0
assert verify_store(folder) == []
print("done")
"""


def test_more_shards_than_files_may_be_open(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", MANY_SHARDS, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.stdout == "done\n", result.stderr


MADE_UP = """
import sys
from pathlib import Path
from pipeline.store.manifest import Recipe, Shard, name_layer, write_manifest
folder, layers = Path(sys.argv[1]), tuple(range(7))
recipe = Recipe("made up", {"max_tokens": 128, "layers": list(layers)}, layers, 384, "float16")
columns = ["key", "n_tokens", *map(name_layer, layers)]
shards = [
    Shard(f"part-{n:05}.parquet", 4096, f"{n:064}", 22_000_000, f"{n:064}",
          {column: [f"{n:016}"] * 4 for column in columns}, {"cut": 1, "lost": 2, "long": 90})
    for n in range(2442)
]
folder.mkdir(parents=True)
write_manifest(folder / "manifest.json", recipe.describe(shards))
"""


def test_ten_million_texts_are_told_of_in_two_seconds(project: Path) -> None:
    make = [sys.executable, "-c", MADE_UP, str(Project(project).store)]
    subprocess.run(make, cwd=ROOT, check=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    info = subprocess.run(
        [sys.executable, "-m", "pipeline", "cache", "info"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert info.returncode == 0, info.stderr
    assert "10,002,432" in info.stdout
    # Not the time on the clock, as other programs run beside.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
