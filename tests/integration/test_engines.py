"""Engines in processes of their own, against the one in this process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.embed.loading import EngineGroup, EnginePlan
from pipeline.embed.tokens import Tokens, load_tokenizer
from pipeline.errors import AssetError, DeviceError
from pipeline.project import Project
from tests.conftest import ROOT, Cli, edit_params, run_stages

CPUS = [torch.device("cpu")] * 2


def make_plan(folder: Path) -> EnginePlan:
    return EnginePlan(folder, "float32", (0, 1, 2), "float32")


def make_shards(folder: Path, count: int) -> list[Tokens]:
    tokenizer = load_tokenizer(folder, 64)
    return [
        tokenizer.tokenize(pa.array([f"shard {n} text {i} " + "x" * i for i in range(50)]))
        for n in range(count)
    ]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_two_processes_give_the_vectors_of_one(tiny_backbone: Path, count: int) -> None:
    plan = make_plan(tiny_backbone)
    shards = make_shards(tiny_backbone, count)
    done: list[float] = []
    with EngineGroup(plan, CPUS) as group:
        jobs = [group.start(shard, done.append) for shard in shards]
        found = [job.finish() for job in jobs]
    with plan.make_engine(CPUS[0]) as engine:
        for shard, rows in zip(shards, found, strict=True):
            np.testing.assert_allclose(rows.vectors, engine.embed(shard).vectors, atol=1e-6)
            assert rows.n_tokens.tolist() == shard.lengths.tolist()
    assert sum(done) == sum(int(shard.offsets[-1]) for shard in shards)


def test_an_error_in_a_process_reaches_the_user(tiny_backbone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_backbone, folder)
    (folder / "model.safetensors").write_bytes(b"junk")
    (shard,) = make_shards(tiny_backbone, 1)
    with EngineGroup(make_plan(folder), CPUS) as group, pytest.raises(AssetError, match="loaded"):
        group.start(shard).finish()


def test_a_process_that_is_killed_is_said(tiny_backbone: Path) -> None:
    (shard,) = make_shards(tiny_backbone, 1)
    with EngineGroup(make_plan(tiny_backbone), CPUS) as group:
        group.start(shard).finish()
        pid = group._engines[1]._pool.submit(os.getpid).result()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(DeviceError, match="the process that embeds on cpu ended"):
            group.start(shard).finish()


def test_processes_end_with_a_parent_that_is_killed(tiny_backbone: Path) -> None:
    code = (
        "import os, sys, time, torch\n"
        "from pathlib import Path\n"
        "from tests.integration.test_engines import CPUS, make_plan\n"
        "from pipeline.embed.loading import EngineGroup\n"
        "group = EngineGroup(make_plan(Path(sys.argv[1])), CPUS)\n"
        "print(*(e._pool.submit(os.getpid).result() for e in group._engines), flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tiny_backbone)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    waited_until = time.monotonic() + 20
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < waited_until, "a process outlived its parent"
        time.sleep(0.1)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # One that ended and that nobody has asked for yet is dead all the same.
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")


def test_embed_on_several_devices_writes_the_same_store(
    cli: Cli, few_messages: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.embed import run
    from pipeline.store import manifest

    monkeypatch.setattr(manifest, "SHARD_ROWS", 100)
    monkeypatch.setattr(run, "_SHARDS_A_DEVICE", 1)
    edit_params({"fetch.backbones": [str(tiny_backbone)], "embed.dtype": "float32"})
    run_stages(cli, "fetch", "prepare", "embed")
    one = {file.name: file.read_bytes() for file in Project().store.glob("*.parquet")}
    shutil.rmtree(Project().store)
    edit_params({"runtime.devices": ["cpu", "cpu"]})
    result = cli("embed")
    assert result.returncode == 0, result.stderr
    assert "2 devices" in result.stdout
    assert {file.name: file.read_bytes() for file in Project().store.glob("*.parquet")} == one
