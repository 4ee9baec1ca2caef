"""Tokenizers in processes of their own, and stores written by several threads at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from pipeline.config import load_settings
from pipeline.embed import run, tokenizing
from pipeline.embed.embedder import Embedder
from pipeline.embed.tokenizing import TokenizerGroup, TokenizerPlan
from pipeline.embed.tokens import TextTokenizer
from pipeline.errors import AssetError, DeviceError
from pipeline.project import Project
from pipeline.store import manifest
from tests.conftest import ROOT, Cli, edit_params, run_stages
from tests.unit.test_vader import is_gone, wait_until

TEXTS = pa.array(["Hello", "bye", "hello", "日本 is unknown", "", "a longer text, and so on" * 9])


@pytest.mark.parametrize("is_whole", [False, True])
def test_processes_give_the_tokens_of_this_one(tiny_backbone: Path, is_whole: bool) -> None:
    plan = TokenizerPlan(tiny_backbone, 16, "a prompt: ", is_whole)
    alone = TokenizerGroup(plan, plan.load(), 0)
    expected = alone.tokenize(TEXTS)
    group = TokenizerGroup(plan, plan.load(), 2)
    try:
        before = group.tokenize(TEXTS)  # here, unless the processes were very quick
        group.wait_until_started()
        for found in (before, group.tokenize(TEXTS), group.tokenize(TEXTS)):
            assert found.tokens.ids.tolist() == expected.tokens.ids.tolist()
            assert found.tokens.offsets.tolist() == expected.tokens.offsets.tolist()
            assert found.first.tolist() == expected.first.tolist()
            assert found.indices.tolist() == expected.indices.tolist()
            assert found.whole_lengths.tolist() == expected.whole_lengths.tolist()
    finally:
        group.close()


def test_a_process_that_is_killed_is_told(tiny_backbone: Path) -> None:
    with Embedder(tiny_backbone, tokenizer_processes=1) as embedder:
        group = embedder._tokenizers
        group.wait_until_started()
        assert group._pool is not None
        (process,) = group._pool._processes.values()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with pytest.raises(DeviceError, match="tokenizes ended before its work was done"):
            embedder.tokenize(TEXTS)


def test_an_embedder_that_was_closed_embeds_again(tiny_backbone: Path) -> None:
    with Embedder(tiny_backbone, tokenizer_processes=1) as embedder:
        embedder._tokenizers.wait_until_started()
        expected = embedder.embed(TEXTS)
    again = embedder.embed(TEXTS)
    assert embedder.is_loaded
    assert not multiprocessing.active_children()
    assert again.n_tokens.tolist() == expected.n_tokens.tolist()
    assert (again.vectors == expected.vectors).all()
    embedder.close()
    embedder.close()


def test_an_embedder_that_cannot_be_made_starts_no_process(
    tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizing, "ProcessPoolExecutor", None)
    monkeypatch.setattr(TextTokenizer, "find_highest_id", lambda tokenizer: 10**6)
    with pytest.raises(AssetError):
        Embedder(tiny_backbone, tokenizer_processes=1)


SCRIPT = """
import sys
import time

import torch

from pipeline.embed.embedder import Embedder
from pipeline.embed.loading import EngineGroup, EnginePlan


def main(folder, what):
    print("begun", flush=True)
    try:
        with Embedder(folder, tokenizer_processes=2 if what == "tokenizers" else 0) as embedder:
            if what == "engines":
                group = EngineGroup(embedder._plan, [torch.device("cpu")] * 2)
                tokens = embedder.tokenize(["a text"]).tokens
                jobs = [group.start(tokens), group.start(tokens)]
            embedder._tokenizers.wait_until_started()
            print("started", flush=True)
            time.sleep(600)
    except KeyboardInterrupt:
        print("interrupted")
        sys.exit(130)


if __name__ == "__main__":
    main(*sys.argv[1:])
"""


def count_importing(process: int) -> int:
    """The children of a process that have begun to import torch."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return sum("libtorch" in Path(f"/proc/{child}/maps").read_text() for child in children)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(
    ("what", "signal_"),
    [("tokenizers", signal.SIGINT), ("engines", signal.SIGINT), ("tokenizers", signal.SIGKILL)],
)
def test_processes_that_just_start_leave_ctrl_c_to_this_one_and_end_with_it(
    what: str, signal_: signal.Signals, tiny_backbone: Path, tmp_path: Path
) -> None:
    script = tmp_path / "start.py"
    script.write_text(SCRIPT)
    run = subprocess.Popen(
        [sys.executable, str(script), str(tiny_backbone.absolute()), what],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "begun\n"
    wait_until(lambda: count_importing(run.pid) == 2)
    if signal_ == signal.SIGINT:
        os.killpg(run.pid, signal_)  # as a terminal does
    else:
        run.kill()
    out, err = run.communicate(timeout=60)
    wait_until(lambda: is_gone(run.pid))
    if signal_ == signal.SIGINT:
        assert "Traceback" not in err
        assert run.returncode == 130
        assert out.endswith("interrupted\n")


def test_a_plan_for_gpus_leaves_cores_and_short_runs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [torch.device("cuda", number) for number in range(4)]
    recipe: Any = None

    def plan(
        cores: int, shards: int, devices: Sequence[torch.device], threads: int | None = None
    ) -> tuple[int, int]:
        monkeypatch.setattr(run, "count_cores", lambda: cores)
        made = run.plan_run(recipe, [(0, 1)] * shards, devices, threads)
        return made.tokenizer_processes, made.writers

    assert plan(16, 100, gpus[:1]) == (3, 3)
    assert plan(16, 100, gpus) == (11, 12)
    assert plan(16, 100, [torch.device("cpu")]) == (0, 1)
    assert plan(2, 100, gpus[:1]) == (0, 3)
    assert plan(1, 100, gpus[:1]) == (0, 3)
    assert plan(16, 3, gpus[:1]) == (0, 3)
    # The settings' threads are cores, as they are to the scores of VADER.
    assert plan(16, 100, gpus[:1], threads=2) == (0, 3)
    assert plan(16, 100, gpus[:1], threads=4) == (2, 3)
    assert plan(16, 100, gpus[:1], threads=64) == (3, 3)


def test_a_store_does_not_depend_on_how_many_tokenize_and_write(
    cli: Cli, few_messages: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "SHARD_ROWS", 16)
    edit_params({"fetch.backbones": [str(tiny_backbone)]})
    run_stages(cli, "fetch", "prepare")
    project = Project()
    settings = load_settings(project.settings)
    run.run_embed(project, settings)
    files = {file.name: file.read_bytes() for file in project.store.iterdir()}
    assert len(files) > 20
    project.store.rename(project.store.with_name("one"))
    make_plan = run.plan_run

    def plan_more(*arguments: Any) -> run.EmbedPlan:
        return replace(make_plan(*arguments), tokenizer_processes=2, writers=3)

    monkeypatch.setattr(run, "plan_run", plan_more)
    run.run_embed(project, settings)
    again = {file.name: file.read_bytes() for file in project.store.iterdir()}
    assert sorted(again) == sorted(files)
    parts = [name for name in files if name.endswith(".parquet")]
    assert {name: again[name] for name in parts} == {name: files[name] for name in parts}
