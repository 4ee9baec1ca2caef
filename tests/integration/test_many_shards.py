"""A store of more shards than a process may have files open."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
