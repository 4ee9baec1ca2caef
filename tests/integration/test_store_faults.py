"""`pipeline embed` killed at random moments over the real corpus: nothing lost, nothing wrong.

The number of kills is small here; with `KILLS=50` in the environment it is 50.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import paths
from tests.conftest import Cli, edit_params, run_stages

KILLS = int(os.environ.get("KILLS", "5"))
# Progress is kept every 15 s; a tiny backbone is through by then, so keep it more often.
EMBED = (
    "import pipeline.embed.run as r; r._KEEP_SECONDS = 0.2; from pipeline.cli import main; main()"
)


@pytest.fixture
def corpus(project: Path, real_assets: Path, tiny_backbone: Path, cli: Cli) -> Path:
    edit_params({"fetch.backbones": [str(tiny_backbone)], "embed.max_tokens": 512})
    run_stages(cli, "fetch", "prepare")
    return project


def embed(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", EMBED, "embed"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def read_store(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / paths.EMBEDDINGS).iterdir()}


def test_killed_runs_end_in_the_store_of_an_uninterrupted_one(corpus: Path, cli: Cli) -> None:
    started = time.monotonic()
    assert embed(corpus).returncode == 0
    whole_run = time.monotonic() - started
    expected = read_store(corpus)
    total = json.loads(paths.LAST_EMBED.read_text())["embedded"]
    assert total == 5169

    generator = random.Random(0)
    kept_before = kills = 0
    while kills < KILLS:
        for file in paths.EMBEDDINGS.iterdir():
            file.unlink()
        command = [sys.executable, "-c", EMBED, "embed"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(generator.uniform(0.5, 1.0) * whole_run)
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            assert read_store(corpus) == expected
            continue
        kills += 1
        resumed = embed(corpus)
        assert resumed.returncode == 0, resumed.stderr
        found = re.search(r"resuming an interrupted run: ([\d,]+) texts", resumed.stdout)
        if found:
            kept_before += 1
            again = json.loads(paths.LAST_EMBED.read_text())["embedded"]
            assert again == total - int(found[1].replace(",", ""))
        assert read_store(corpus) == expected
        assert not paths.EMBEDDINGS.with_name("embeddings.next").exists()
        assert not list(corpus.rglob(".tmp-*"))
    assert kept_before > 0, "no kill fell into the embedding itself"
    verified = cli("cache", "verify")
    assert verified.returncode == 0, verified.stderr
    assert "every byte is right" in verified.stdout


def test_commands_of_the_cache(corpus: Path, cli: Cli) -> None:
    import numpy as np
    import pyarrow.parquet as pq
    from safetensors.numpy import load_file

    from pipeline.store import read_vectors

    assert embed(corpus).returncode == 0
    keys = pq.read_table(paths.TEXTS, columns=["key"])["key"].combine_chunks()
    expected = read_vectors(paths.EMBEDDINGS, keys, (0, 2), np.float16)
    info = cli("cache", "info").stdout
    for word in ("5,169", "float16", "0, 1, 2 of width 32", "0 of 5,169 texts (0.0%)", "cosine ≥"):
        assert word in info
    for name in ("out.npy", "out.safetensors", "out.parquet"):
        result = cli("cache", "export", name, "--layers", "0,-1")
        assert result.returncode == 0, result.stderr
        assert "5,572 rows × 2 layers × 32" in result.stdout
    np.testing.assert_array_equal(np.load("out.npy"), expected.reshape(len(keys), -1))
    np.testing.assert_array_equal(load_file("out.safetensors")["layer_02"], expected[:, 1])
    table = pq.read_table("out.parquet")
    assert table.schema.names == ["text", "split", "spam", "sentiment", "layer_00", "layer_02"]
    stored = table["layer_02"].combine_chunks().flatten().to_numpy().reshape(len(keys), -1)
    np.testing.assert_array_equal(stored, expected[:, 1])
    assert cli("cache", "export", "out.txt").returncode == 1
    assert cli("cache", "export", "out.npy", "--layers", "9").returncode == 1

    # Damage is named, stops whoever reads it, and is mended by what the message says.
    before = read_store(corpus)
    part = paths.EMBEDDINGS / "part-00001.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    verified = cli("cache", "verify")
    assert verified.returncode == 1
    assert "part-00001.parquet: has bytes" in verified.stdout
    reader = cli("train-heads")
    assert reader.returncode == 1
    assert "part-00001.parquet: damaged" in reader.stderr
    assert "pipeline cache verify --repair" in reader.stderr
    assert cli("cache", "verify", "--repair").returncode == 0
    assert embed(corpus).returncode == 0
    last = json.loads(paths.LAST_EMBED.read_text())
    assert (last["kept"], last["embedded"]) == (4096, 1073)
    assert read_store(corpus) == before
    (paths.EMBEDDINGS / "manifest.json").write_text("{}")
    assert cli("cache", "verify").returncode == 1
    assert cli("cache", "verify", "--repair").returncode == 0
    assert read_store(corpus) == before

    # A smaller corpus: prune drops the rest without a backbone.
    only_ham = {"spam": {"column": "label", "classes": ["ham", "none"]}}
    edit_params({"prepare.on_bad_rows": "drop", "prepare.labels": only_ham})
    edit_params({"heads.tasks": {"spam": {}}})
    run_stages(cli, "prepare")
    pruned = cli("cache", "prune")
    assert pruned.returncode == 0, pruned.stderr
    kept = len(set(pq.read_table(paths.TEXTS)["key"].to_pylist()))
    assert f"dropped {5169 - kept:,} texts; holds {kept:,} texts" in pruned.stdout
    assert "nothing to do" in cli("embed").stdout
