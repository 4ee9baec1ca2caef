"""The stage's plan of its work, and shards taken by another process."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.corpus.tables import TextReader, read_distinct_keys
from pipeline.embed.embedder import Embedder
from pipeline.embed.run import plan_run
from pipeline.embed.shards import ShardPlan, ShardReader, ShardRunner
from pipeline.project import Project
from pipeline.store import Recipe, StoreUpdate, manifest, read_manifest, staging_folder
from tests.conftest import ROOT, Cli, edit_params, run_stages

SHARD_ROWS = 200
CPU = torch.device("cpu")


def write_shard(root: Path, backbone: Path) -> None:
    """Embed the one shard whose plan comes on standard input, all files opened anew."""
    manifest.SHARD_ROWS = SHARD_ROWS
    plan: ShardPlan = pickle.load(sys.stdin.buffer)
    project = Project(root)
    keys, first_rows = read_distinct_keys(project.texts_file)
    update = StoreUpdate(project.store, plan.recipe, keys, first_rows)
    with Embedder.from_recipe(plan.recipe, backbone) as embedder:
        reader = ShardReader(update, TextReader(project.texts_file), first_rows, embedder)
        ShardRunner(update, reader, embedder, lambda amount: None).run([plan], at_once=2)


def test_a_shard_can_be_taken_by_another_process(
    cli: Cli, few_messages: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "SHARD_ROWS", SHARD_ROWS)
    edit_params({"fetch.backbones": [str(tiny_backbone)]})
    run_stages(cli, "fetch", "prepare", "embed")
    store = Project().store
    recipe = read_manifest(store).to_recipe()
    expected = (store / "part-00001.parquet").read_bytes()
    store.rename(store.with_name("whole"))

    plan = plan_run(recipe, [(0, SHARD_ROWS), (SHARD_ROWS, 2 * SHARD_ROWS)], [CPU]).shards[1]
    code = "from tests.integration.test_shards import *; write_shard(*map(Path, sys.argv[1:]))"
    subprocess.run(
        [sys.executable, "-c", code, str(Project().root), str(tiny_backbone)],
        input=pickle.dumps(plan),
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (part,) = staging_folder(store).glob("part-*.parquet")
    assert part.name.startswith("part-00001-")
    assert part.read_bytes() == expected


def test_a_shard_of_another_recipe_is_refused(tiny_backbone: Path, tmp_path: Path) -> None:
    def make_recipe(max_tokens: int) -> Recipe:
        contents = {
            "max_tokens": max_tokens, "pooling": "mean", "precision": "float32", "layers": [2],
        }  # fmt: skip
        return Recipe("tiny", contents | {"dtype": "float32"}, (2,), 32, "float32")

    keys = pa.array([bytes(16)], pa.binary(16))
    update = StoreUpdate(tmp_path / "store", make_recipe(64), keys)
    embedder = Embedder.from_recipe(make_recipe(64), tiny_backbone)
    reader = ShardReader(update, None, np.zeros(1, np.int64), embedder)
    with pytest.raises(ValueError, match="another recipe"):
        reader.read(ShardPlan(0, 1, make_recipe(32)))


def test_the_plan_shares_devices_where_it_pays() -> None:
    recipe = Recipe("any", {}, (1,), 8, "float16")
    gpus = [torch.device("cuda", number) for number in range(4)]
    for shards, devices in ((0, 1), (7, 1), (16, 2), (90, 4)):
        ranges = [(start, start + 16_384) for start in range(0, shards * 16_384, 16_384)]
        plan = plan_run(recipe, ranges, gpus)
        assert [(shard.start, shard.stop) for shard in plan.shards] == ranges
        assert all(shard.recipe is recipe for shard in plan.shards)
        assert plan.devices == tuple(gpus[:devices])


def test_nothing_to_do_imports_neither_torch_nor_tokenizers(
    cli: Cli, few_messages: Path, tiny_backbone: Path
) -> None:
    edit_params({"fetch.backbones": [str(tiny_backbone)]})
    run_stages(cli, "fetch", "prepare", "embed")
    code = (
        "import sys\n"
        "from pipeline.cli import cli\n"
        "cli.main(['embed'], standalone_mode=False)\n"
        "print('loaded:', *sorted({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=few_messages
    )
    assert result.returncode == 0, result.stderr
    assert "holds all" in result.stdout
    assert result.stdout.splitlines()[-1] == "loaded:"
