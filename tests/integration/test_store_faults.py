"""`pipeline embed` over the real corpus, killed at random moments, and on a disk that fails at
every write: nothing lost, nothing wrong.

The number of kills is small here, and only every fourth write fails; with `KILLS=50` in the
environment it is 50, and every write.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import re
import shutil
import sys
import time
from pathlib import Path

import pytest

from pipeline.project import Project
from pipeline.store import staging_folder
from tests.conftest import Cli, edit_params, read_store, run_stages
from tests.disk import Disk

KILLS = int(os.environ.get("KILLS", "3"))
STEP = 4 if KILLS < 50 else 1

# Runs are forked from a process that has loaded the libraries: a second less for each.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["pipeline.embed.run", "pipeline.embed.shards", "transformers.models.auto.modeling_auto",
     "transformers.models.bert.modeling_bert", "pyarrow.parquet", __name__]
)  # fmt: skip


def run_embed(folder: Path, fails_at: int | None, shard_rows: int) -> None:
    """`pipeline embed` in a process of its own, which prints to ``folder/output``.

    :param fails_at: the number of the write below ``cache/`` that finds the disk full.
    """
    from pipeline.cli import main
    from pipeline.embed import shards
    from pipeline.store import manifest

    os.chdir(folder)
    output = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    # Progress is kept every 15 s; a tiny backbone is through by then, so keep every batch.
    shards._KEEP_SECONDS = 0.0
    manifest.SHARD_ROWS = shard_rows
    if fails_at is not None:
        disk = Disk(pytest.MonkeyPatch(), staged(), Project().store)
        disk.errno, disk.fails_at = errno.ENOSPC, fails_at
    sys.argv = ["pipeline", "embed"]
    try:
        main()
    finally:
        if fails_at is not None:
            print(disk.calls, "writes")


def staged() -> Path:
    """Where the next state of the store is built."""
    return staging_folder(Project().store)


def start_embed(
    folder: Path, fails_at: int | None = None, shard_rows: int = 4096
) -> multiprocessing.Process:
    process = PROCESSES.Process(target=run_embed, args=(folder, fails_at, shard_rows))
    process.start()
    return process  # type: ignore[return-value]


def embed(folder: Path, fails_at: int | None = None, shard_rows: int = 4096) -> tuple[int, str]:
    """Run it to its end; returns its exit status and what it printed."""
    process = start_embed(folder, fails_at, shard_rows)
    process.join(300)
    return process.exitcode, (folder / "output").read_text()


@pytest.fixture
def corpus(project: Path, real_assets: Path, tiny_backbone: Path, cli: Cli) -> Path:
    edit_params({"fetch.backbones": [str(tiny_backbone)], "embed.max_tokens": 32})
    run_stages(cli, "fetch", "prepare")
    return project


def count_embedded() -> int:
    return int(json.loads(Project().last_embed.read_text())["embedded"])


def wait_for_progress(process: multiprocessing.Process) -> None:
    while process.is_alive() and not list(staged().glob("rows-*")):
        time.sleep(0.001)


def test_killed_runs_end_in_the_store_of_an_uninterrupted_one(corpus: Path, cli: Cli) -> None:
    for _ in range(2):  # the first also starts the process that the others are forked from
        shutil.rmtree(Project().store, ignore_errors=True)
        started = time.monotonic()
        assert embed(corpus)[0] == 0
        whole_run = time.monotonic() - started
    expected = read_store(corpus)
    total = count_embedded()
    assert total == 5169

    generator = random.Random(0)
    taken_up = kills = runs = 0
    while kills < KILLS or not taken_up:
        runs += 1
        assert runs < 3 * KILLS + 10, f"{kills} kills, {taken_up} in the embedding itself"
        for file in Project().store.iterdir():
            file.unlink()
        process = start_embed(corpus)
        if kills < KILLS:
            time.sleep(generator.uniform(0.0, 1.0) * whole_run)
        else:  # chance never met the embedding itself, which is short on a fast machine
            wait_for_progress(process)
        process.kill()
        process.join()
        if process.exitcode == 0:
            assert read_store(corpus) == expected
            continue
        kills += 1
        status, output = embed(corpus)
        assert status == 0, output
        found = re.search(r"resuming an interrupted run: ([\d,]+) texts", output)
        if found:
            taken_up += 1
            assert count_embedded() == total - int(found[1].replace(",", ""))
        assert read_store(corpus) == expected
        assert not staged().exists()
        assert not list(corpus.rglob(".tmp-*"))
    verified = cli("cache", "verify")
    assert verified.returncode == 0, verified.stderr
    assert "every byte is right" in verified.stdout


def test_no_space_at_any_write_of_a_run_loses_nothing(
    few_messages: Path, tiny_backbone: Path, cli: Cli
) -> None:
    messages = (few_messages / "messages.tsv").read_text().splitlines(keepends=True)
    (few_messages / "messages.tsv").write_text("".join(messages[:60]))
    edit_params({"fetch.backbones": [str(tiny_backbone)], "embed.max_tokens": 32})
    run_stages(cli, "fetch", "prepare")
    assert embed(few_messages, shard_rows=32)[0] == 0
    expected = read_store(few_messages)
    writes = failures = 0
    for number in range(1, 400, STEP):
        shutil.rmtree(Project().store)
        status, output = embed(few_messages, number, 32)
        assert not list(few_messages.rglob(".tmp-*"))
        if status == 0:  # all went well, or the flush of a folder failed, which is not asked of all
            assert read_store(few_messages) == expected
        else:
            failures += 1
            assert status == 1, output
            assert output.count("Error: cannot write cache/embeddings") == 1
            assert "No space left on device; nothing that was there before has changed" in output
            assert "next: free some space" in output
            assert "Traceback" not in output
            resumed, again = embed(few_messages, shard_rows=32)
            assert resumed == 0, again
            assert read_store(few_messages) == expected
            assert not staged().exists()
        writes = int(output.split()[-2])
        if writes < number:
            break
    assert writes < number, "there was no end of writing"
    assert failures > 20 // STEP, "the disk was not asked for what this test thinks"
    assert cli("cache", "verify").returncode == 0


def test_commands_of_the_cache(corpus: Path, cli: Cli) -> None:
    import numpy as np
    import pyarrow.parquet as pq
    from safetensors.numpy import load_file

    from pipeline.store import read_vectors

    assert embed(corpus)[0] == 0
    keys = pq.read_table(Project().texts_file, columns=["key"])["key"].combine_chunks()
    expected = read_vectors(Project().store, keys, (0, 2), np.float16)
    info = cli("cache", "info").stdout
    served = "0 of 5,169 texts (0.0%)"
    for word in ("5,169", "float16", "0, 1, 2 of width 32", served, "cosine 0.99"):
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
    mapped = ("--layers", "last", "--map", "pca", "--neighbours", "3")
    assert cli("cache", "export", "map.parquet", *mapped).returncode == 0
    table = pq.read_table("map.parquet")
    columns = ["text", "split", "spam", "sentiment", "x", "y", "neighbours", "layer_02"]
    assert table.schema.names == columns
    nearest = table["neighbours"][7].as_py()
    assert len(nearest["ids"]) == 3
    assert 7 not in nearest["ids"]
    wrong = cli("cache", "export", "map.npy", *mapped)
    assert wrong.returncode == 1
    assert "which only .parquet can hold" in wrong.stderr
    assert cli("cache", "export", "out.txt").returncode == 1
    assert cli("cache", "export", "out.npy", "--layers", "9").returncode == 1

    # Damage is named, stops whoever reads it, and is mended by what the message says.
    before = read_store(corpus)
    part = Project().store / "part-00001.parquet"
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
    assert embed(corpus)[0] == 0
    last = json.loads(Project().last_embed.read_text())
    assert (last["kept"], last["embedded"]) == (4096, 1073)
    assert read_store(corpus) == before
    (Project().store / "manifest.json").write_text("{}")
    assert cli("cache", "verify").returncode == 1
    assert cli("cache", "verify", "--repair").returncode == 0
    assert "nothing to do" in cli("embed").stdout  # but counts which texts were cut
    assert read_store(corpus) == before

    # A smaller corpus: prune drops the rest without a backbone.
    only_ham = {"spam": {"column": "label", "classes": ["ham", "none"]}}
    edit_params({"prepare.on_bad_rows": "drop", "prepare.labels": only_ham})
    edit_params({"heads.tasks": {"spam": {}}})
    run_stages(cli, "prepare")
    pruned = cli("cache", "prune")
    assert pruned.returncode == 0, pruned.stderr
    kept = len(set(pq.read_table(Project().texts_file)["key"].to_pylist()))
    assert f"dropped {5169 - kept:,} texts; holds {kept:,} texts" in pruned.stdout
    assert "nothing to do" in cli("embed").stdout
