"""The store under DVC: linked files are never written into, and only new shards are pushed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT, edit_params
from tests.e2e.test_dvc import clone, dvc, repro

ROWS = 9000  # three shards


def write_texts(path: Path, rows: int) -> None:
    lines = [f"{('ham', 'spam')[n % 3 == 0]}\tmessage {n} of many" for n in range(rows)]
    path.write_text("label\tmessage\n" + "\n".join(lines) + "\n")


@pytest.fixture
def workspace(tmp_path: Path, tiny_backbone: Path) -> Path:
    """The stages up to `embed`, on texts of three shards and a tiny backbone."""
    folder = clone(tmp_path / "clone")
    write_texts(folder / "texts.tsv", ROWS)
    stages = (folder / "dvc.yaml").read_text().partition("  group:")[0]
    (folder / "dvc.yaml").write_text(stages.replace("# deps: [data.csv]", "deps: [texts.tsv]"))
    edit_params(
        {
            "fetch.dataset": "texts.tsv",
            "fetch.backbones": [str(tiny_backbone)],
            "prepare.labels": {"spam": {"column": "label", "classes": ["ham", "spam"]}},
            "heads.tasks": {"spam": {}},
        },
        folder / "params.yaml",
    )
    return folder


def list_objects(cache: Path) -> dict[str, Path]:
    """DVC's files by the hash that names them."""
    files = (f for f in cache.rglob("*") if f.is_file() and f.parent.parent.name == "md5")
    return {file.parent.name + file.name: file for file in files}


@pytest.mark.parametrize("link", ["hardlink", "symlink"])
def test_linked_files_are_never_written_into(workspace: Path, link: str) -> None:
    dvc(workspace, "config", "--local", "cache.type", link)
    repro(workspace)
    dvc(workspace, "checkout", "--relink")
    part = workspace / "cache/embeddings/part-00000.parquet"
    assert part.is_symlink() if link == "symlink" else part.stat().st_nlink > 1
    write_texts(workspace / "texts.tsv", ROWS + 10)
    assert repro(workspace) == ["fetch", "prepare", "embed"]
    for name, file in list_objects(workspace / ".dvc/cache/files").items():
        if not name.endswith(".dir"):
            assert hashlib.md5(file.read_bytes()).hexdigest() == name
    keys = pq.read_table(workspace / "cache/texts.parquet")["key"].to_pylist()
    parts = sorted((workspace / "cache/embeddings").glob("part-*"))
    assert [key for part in parts for key in pq.read_table(part)["key"].to_pylist()] == keys


def test_push_moves_only_new_shards_and_pull_brings_the_store_back(workspace: Path) -> None:
    remote = workspace.parent / "remote"
    dvc(workspace, "remote", "add", "--local", "-d", "storage", str(remote))
    repro(workspace)
    dvc(workspace, "push")
    before = list_objects(remote / "files")
    write_texts(workspace / "texts.tsv", ROWS + 10)
    repro(workspace)
    dvc(workspace, "push")
    pushed = [file for name, file in list_objects(remote / "files").items() if name not in before]
    shards = [file for file in pushed if is_shard(file)]
    assert len(shards) == 1  # the last one, with ten more rows
    assert len([file for file in before.values() if is_shard(file)]) == 3

    store = workspace / "cache/embeddings"
    held = {file.name: file.read_bytes() for file in store.iterdir()}
    for file in store.iterdir():
        file.unlink()
    for file in list_objects(workspace / ".dvc/cache/files").values():
        file.unlink()
    dvc(workspace, "pull")
    assert {file.name: file.read_bytes() for file in store.iterdir()} == held
    assert repro(workspace) == []


CUT_COMMIT = """
import os, sys
from pathlib import Path
rename = Path.replace
def cut(self, target):
    moved = rename(self, target)
    if self.parent.name == "embeddings.next" and target.parent.name == "embeddings":
        os._exit(9)
    return moved
Path.replace = cut
from pipeline.cli import main
sys.argv = ["pipeline", "embed"]
main()
"""


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_checkout_of_an_older_store_after_a_kill_in_a_commit(workspace: Path) -> None:
    repro(workspace)
    lock = (workspace / "dvc.lock").read_bytes()
    store = workspace / "cache/embeddings"
    held = {file.name: file.read_bytes() for file in store.iterdir()}
    write_texts(workspace / "texts.tsv", ROWS + 10)
    repro(workspace)
    write_texts(workspace / "texts.tsv", ROWS + 5000)  # the third shard is full, a fourth begins
    for stage in ("fetch", "prepare"):
        assert run(workspace, "-m", "pipeline", stage).returncode == 0
    assert run(workspace, "-c", CUT_COMMIT).returncode == 9

    write_texts(workspace / "texts.tsv", ROWS)
    (workspace / "dvc.lock").write_bytes(lock)
    dvc(workspace, "checkout", "--force")
    for command in (["info"], ["verify"], ["export", "x.npy"], ["verify", "--repair"]):
        result = run(workspace, "-m", "pipeline", "cache", *command)
        assert result.returncode == 0, result.stdout + result.stderr
        assert {file.name: file.read_bytes() for file in store.iterdir()} == held
    assert repro(workspace) == []

    write_texts(workspace / "texts.tsv", ROWS + 5000)
    repro(workspace)
    last = json.loads((workspace / "cache/timings/embed-hits.json").read_text())
    # The third shard had been moved into the store that was replaced; the fourth was not.
    assert last["embedded"] == 3 * 4096 - ROWS


def test_going_back_to_earlier_settings_embeds_nothing(workspace: Path) -> None:
    repro(workspace)
    status = dvc(workspace, "status")
    edit_params({"embed.max_tokens": 16}, workspace / "params.yaml")
    repro(workspace)
    edit_params({"embed.max_tokens": 128}, workspace / "params.yaml")
    assert run(workspace, "-m", "pipeline", "embed").returncode == 0
    last = json.loads((workspace / "cache/timings/embed-hits.json").read_text())
    assert (last["kept"], last["embedded"]) == (ROWS, 0)
    assert (workspace / "cache/embeddings.old").is_dir()
    repro(workspace)
    assert dvc(workspace, "status") == status
    assert "embeddings.old" not in (workspace / "dvc.lock").read_text()


def is_shard(file: Path) -> bool:
    content = file.read_bytes()
    return content[:4] == b"PAR1" and b"layer_02" in content
