"""A run that is killed at each step of its commit, and then every command in turn.

By the time of the commit every text is embedded, so whatever command comes next, nothing may be
embedded again, no command may end in a traceback, and no vector may be another than that of a run
that was left alone.

A step is one call that changes the disk. The short test runs one command after each kill, in turn;
the long one runs each of them.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.project import Project
from pipeline.store import manifest as layout
from pipeline.store import read_manifest, read_vectors
from tests.conftest import Cli, edit_params, name_spam, run_stages
from tests.disk import Disk

SHARD_ROWS = 16
COMMANDS = [
    ("cache", "info"),
    ("cache", "verify"),
    ("cache", "verify", "--repair"),
    ("cache", "export", "vectors.npy"),
    ("cache", "prune"),
    ("embed",),
    ("train-heads",),
    ("report",),
]


def write_texts(path: Path, numbers: list[int]) -> None:
    lines = [f"{('ham', 'spam')[n % 3 == 0]}\tmessage {n} of a corpus" for n in numbers]
    path.write_text("label\tmessage\n" + "\n".join(lines) + "\n")


@pytest.fixture
def base(project: Path, tiny_backbone: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of 60 texts in four shards, with all stages run."""
    monkeypatch.setattr(layout, "SHARD_ROWS", SHARD_ROWS)
    write_texts(project / "texts.tsv", list(range(60)))
    edit_params(name_spam(tiny_backbone) | {"heads.max_epochs": 2, "heads.search": []})
    run_stages(cli, "fetch", "prepare", "embed", "train-heads", "report")
    return project


def change_corpus(project: Path, cli: Cli) -> None:
    """Twenty texts more and two less, so that every shard but the first is another."""
    numbers = [number for number in range(80) if number not in {20, 41}]
    write_texts(project / "texts.tsv", numbers)
    run_stages(cli, "fetch", "prepare")


def change_settings(project: Path, cli: Cli) -> None:
    """Another recipe: no vector of the store is right for it."""
    edit_params({"embed.max_tokens": 12})


def change_settings_and_back(project: Path, cli: Cli) -> None:
    """The store of these settings is kept beside the present one."""
    edit_params({"embed.max_tokens": 12})
    run_stages(cli, "embed")
    edit_params({"embed.max_tokens": 32})


def lose_manifest(project: Path, cli: Cli) -> None:
    """Whole shards without a manifest, and more texts."""
    change_corpus(project, cli)
    (Project(project).store / "manifest.json").unlink()


CHANGES = [change_corpus, change_settings, change_settings_and_back, lose_manifest]


def record_states(project: Path, states: Path) -> None:
    """Run `pipeline embed`, and kill a copy of its process at each step of its commit.

    :param states: a folder for what each kill has left of ``cache/``: 1, 2, …
    """
    from pipeline.cli import main
    from pipeline.store import StoreUpdate

    os.chdir(project)
    output = os.open(states / "output", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    layout.SHARD_ROWS = SHARD_ROWS
    commit = StoreUpdate.commit
    cache = Project(project).cache

    def commit_with_kills(self: StoreUpdate, *arguments: object, **options: object) -> object:
        shutil.copytree(cache, states / "0")
        for number in itertools.count(1):
            child = os.fork()
            if not child:
                disk = Disk(pytest.MonkeyPatch(), cache, removals=True)
                disk.kills, disk.fails_at = True, number
                commit(self, *arguments, **options)  # type: ignore[arg-type]
                os._exit(0)
            _, status = os.waitpid(child, 0)
            if status == 0:
                break
            assert os.WIFSIGNALED(status), status
            shutil.copytree(cache, states / str(number))
            shutil.rmtree(cache)
            shutil.copytree(states / "0", cache)
        os._exit(0)

    StoreUpdate.commit = commit_with_kills  # type: ignore[method-assign, assignment]
    sys.argv = ["pipeline", "embed"]
    main()


@dataclass
class Scene:
    """States that kills have left, and what must come of them.

    :param states: what each kill has left of ``cache/``, in the order of the steps.
    :param expected: the vectors of a run that was left alone: [N, L, D], of the rows of the corpus.
    :param before: those of the store before that run, if it held the texts; else ``None``.
    :param has_manifest: whether that store had one.
    """

    project: Project
    states: list[Path]
    expected: np.ndarray
    before: np.ndarray | None
    has_manifest: bool

    def restore(self, state: Path) -> None:
        """Put the project back to what a kill has left."""
        shutil.rmtree(self.project.cache)
        shutil.copytree(state, self.project.cache)

    def read(self) -> np.ndarray:
        """The vectors of the rows of the corpus, by their keys."""
        keys = pq.read_table(self.project.texts_file, columns=["key"])["key"].combine_chunks()
        return read_vectors(self.project.store, keys, (0, 1, 2), np.float16)

    def check(self, command: tuple[str, ...], result: CompletedProcess[str]) -> None:
        """Check what a command said and what it exported."""
        said = result.stdout + result.stderr
        assert "Traceback" not in said, said
        assert result.returncode in (0, 1), said
        if result.returncode == 1:
            # A store that was not changed yet may lack texts, or the manifest that it lacked
            # before; nothing else may be wrong with it.
            lost = "manifest.json: no such file" in said and "cache verify --repair" in said
            assert lost or command[-1] in {"vectors.npy", "train-heads", "report"}, said
            assert not (lost and self.has_manifest), said
            assert "Error: " in said, said
            assert "next: " in said, said
            assert "damaged" not in said, said
        if command[-1] == "vectors.npy" and result.returncode == 0:
            found = np.load("vectors.npy").reshape(self.expected.shape)
            assert any(
                one is not None and np.array_equal(found, one)
                for one in (self.expected, self.before)
            )


def make_scene(base: Path, tmp_path: Path, cli: Cli, change: object) -> Scene:
    project = Project(base)
    change(base, cli)  # type: ignore[operator]
    states = tmp_path / "states"
    states.mkdir()
    process = multiprocessing.get_context("spawn").Process(
        target=record_states, args=(base, states)
    )
    process.start()
    process.join(300)
    assert process.exitcode == 0, (states / "output").read_text()
    numbers = sorted(int(state.name) for state in states.iterdir() if state.name.isdigit())
    assert len(numbers) > 20, "the commit was not as this test thinks"
    scene = Scene(
        project, [states / str(n) for n in numbers], np.empty(0), None, change != lose_manifest
    )
    scene.restore(states / "0")
    if change in (change_settings, change_settings_and_back):
        scene.before = scene.read()
    shutil.rmtree(project.store)
    for name in ("embeddings.next", "embeddings.old"):
        shutil.rmtree(project.cache / name, ignore_errors=True)
    run_stages(cli, "embed")
    scene.expected = scene.read()
    return scene


@pytest.mark.parametrize("change", CHANGES)
def test_every_command_after_a_kill_at_each_step_of_a_commit(
    base: Path, tmp_path: Path, cli: Cli, change: object
) -> None:
    check_commands(make_scene(base, tmp_path, cli, change), cli, every=False)


@pytest.mark.long
@pytest.mark.parametrize("change", CHANGES)
def test_each_command_after_each_kill(base: Path, tmp_path: Path, cli: Cli, change: object) -> None:
    check_commands(make_scene(base, tmp_path, cli, change), cli, every=True)


def check_commands(scene: Scene, cli: Cli, *, every: bool) -> None:
    """Restore each state, run a command, or each of them, and then see that nothing was lost."""
    turns = itertools.product(scene.states, COMMANDS)
    if not every:
        turns = zip(scene.states, itertools.cycle(COMMANDS), strict=False)
    for state, command in turns:
        scene.restore(state)
        where = f"killed at step {state.name}, then {' '.join(command)}"
        scene.check(command, cli(*command))
        run_stages(cli, "embed")
        embedded = json.loads(scene.project.last_embed.read_text())["embedded"]
        assert embedded == 0, where
        np.testing.assert_array_equal(scene.read(), scene.expected, err_msg=where)
        verified = cli("cache", "verify")
        assert verified.returncode == 0, f"{where}: {verified.stdout}{verified.stderr}"
        names = {path.name for path in scene.project.cache.iterdir()}
        assert "embeddings.next" not in names, where
        assert not list(scene.project.store.rglob(".tmp-*")), where
        held = {shard.file for shard in read_manifest(scene.project.store).shards}
        assert {p.name for p in scene.project.store.iterdir()} == held | {"manifest.json"}
        assert "embeddings.aside" not in names, where


def count_embedded(project: Path) -> int:
    return int(json.loads(Project(project).last_embed.read_text())["embedded"])


def test_repair_of_a_lost_manifest_goes_by_the_settings_and_says_what_it_costs(
    base: Path, cli: Cli
) -> None:
    """A shard of other settings comes first, and one shard is missing."""
    folder = Project(base).store
    own = {path.name: path.read_bytes() for path in folder.iterdir()}
    edit_params({"embed.max_tokens": 12})
    run_stages(cli, "embed")
    foreign = (folder / "part-00000.parquet").read_bytes()
    edit_params({"embed.max_tokens": 32})
    run_stages(cli, "embed")
    shutil.rmtree(Project(base).cache / "embeddings.old")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == own
    for name in ("part-00000.parquet", "part-00001.parquet", "part-00002.parquet"):
        (folder / name).write_bytes(foreign)  # three of the four, so no majority would help
    (folder / "manifest.json").write_text("{")
    for command in (("cache", "info"), ("train-heads",), ("cache", "verify")):
        refused = cli(*command)
        assert refused.returncode == 1
        assert "manifest.json: damaged" in refused.stderr
        assert "next: run `pipeline cache verify --repair`" in refused.stderr
    repaired = cli("cache", "verify", "--repair")
    assert repaired.returncode == 0, repaired.stderr
    assert "`pipeline embed` embeds 48 texts again" in repaired.stdout
    aside = Project(base).cache / "embeddings.aside"
    assert {path.read_bytes() for path in aside.iterdir()} == {foreign}
    run_stages(cli, "embed")
    assert count_embedded(base) == 48
    assert {path.name: path.read_bytes() for path in folder.glob("part-*")} == {
        name: content for name, content in own.items() if name != "manifest.json"
    }


def test_info_lists_kept_stores_and_prune_drops_them(base: Path, cli: Cli) -> None:
    for max_tokens in (12, 16):
        edit_params({"embed.max_tokens": max_tokens})
        run_stages(cli, "embed")
        assert count_embedded(base) == 60
    info = cli("cache", "info")
    kept = [line for line in info.stdout.splitlines() if line.startswith("kept from earlier")]
    assert len(kept) == 2, info.stdout
    assert "60 texts" in kept[0]
    assert "max_tokens 12, pooling mean, precision float32" in kept[0]
    assert "max_tokens 32," in kept[1]
    assert "`pipeline cache prune` drops it" in info.stdout
    edit_params({"embed.max_tokens": 32})
    pruned = cli("cache", "prune")  # what the settings ask for stays, though it is not in use yet
    assert pruned.returncode == 0, pruned.stderr
    assert "kept from earlier settings" in pruned.stdout
    run_stages(cli, "embed")
    assert count_embedded(base) == 0
    assert "max_tokens 16," in cli("cache", "info").stdout
    assert cli("cache", "prune").returncode == 0
    assert "kept from" not in cli("cache", "info").stdout
    assert not (Project(base).cache / "embeddings.old").exists()
