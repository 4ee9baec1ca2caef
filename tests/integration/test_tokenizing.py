"""Tokenizers in processes of their own, and stores written by several threads at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from pipeline.config import load_settings
from pipeline.embed import run
from pipeline.embed.embedder import Embedder
from pipeline.embed.tokenizing import TokenizerGroup, TokenizerPlan
from pipeline.errors import DeviceError
from pipeline.project import Project
from pipeline.store import manifest
from tests.conftest import Cli, edit_params, run_stages

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


def test_a_plan_for_gpus_leaves_cores_and_short_runs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [torch.device("cuda", number) for number in range(4)]
    recipe: Any = None

    def plan(cores: int, shards: int, devices: Sequence[torch.device]) -> tuple[int, int]:
        monkeypatch.setattr(run, "count_cores", lambda: cores)
        made = run.plan_run(recipe, [(0, 1)] * shards, devices)
        return made.tokenizer_processes, made.writers

    assert plan(16, 100, gpus[:1]) == (3, 3)
    assert plan(16, 100, gpus) == (11, 12)
    assert plan(16, 100, [torch.device("cpu")]) == (0, 1)
    assert plan(2, 100, gpus[:1]) == (0, 3)
    assert plan(1, 100, gpus[:1]) == (0, 3)
    assert plan(16, 3, gpus[:1]) == (0, 3)


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
