"""The store when something went wrong around it: commits cut short, files that are not its own,
lost manifests, other runs at work, links, settings that changed and changed back."""

from __future__ import annotations

import errno
import itertools
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import cache_commands
from pipeline.errors import LockedError, StoreError, WriteError
from pipeline.files import hash_json
from pipeline.project import Project
from pipeline.store import (
    Recipe,
    StoreUpdate,
    find_keys,
    finish_commit,
    read_kept,
    read_manifest,
    reader,
    staging_folder,
    stream_vectors,
    upkeep,
    write_manifest,
)
from pipeline.store import manifest as layout
from pipeline.store.commit import Snapshot, read_steadily
from pipeline.store.folders import aside_folder, kept_folder
from pipeline.store.manifest import Shard, format_manifest
from pipeline.store.upkeep import export_vectors, prune_store, rebuild_manifest, verify_store
from tests.conftest import Cli
from tests.disk import Disk
from tests.unit.test_store import make_keys, make_recipe, make_rows, read, update

SMALL = {"SHARD_ROWS": 8, "GROUP_ROWS": 3}


@pytest.fixture(autouse=True)
def _small_shards() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, rows in SMALL.items():
            patch.setattr(layout, name, rows)
        yield


def check(folder: Path, texts: Sequence[int], recipe: Recipe | None = None) -> None:
    """The store is whole and holds the vectors of some texts."""
    assert verify_store(folder) == []
    expected = make_rows(texts, recipe or make_recipe()).vectors
    np.testing.assert_array_equal(read(folder, texts), expected)


def list_files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def cut_commit(
    monkeypatch: pytest.MonkeyPatch, folder: Path, recipe: Recipe, texts: Sequence[int], moved: int
) -> None:
    """Update a store, and stop when a commit was decided and so many of its shards were moved."""
    staged = staging_folder(folder)
    rename = Path.replace
    done = []

    def cut(self: Path, target: Path) -> Path:
        if self.parent == staged and target.parent == folder:
            if len(done) == moved:
                raise KeyboardInterrupt
            done.append(target)
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", cut)
        with pytest.raises(KeyboardInterrupt):
            update(folder, recipe, texts)


# --- files that are not the store's own --------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../../victim.parquet", "{outside}", "inner/part-00000.parquet", "note.txt", "inner", ".", "",
     "part-00000.parquet/../../../victim.parquet", "part-1.parquet"],
)  # fmt: skip
def test_a_manifest_that_names_other_files_is_damaged_and_never_followed(
    tmp_path: Path, name: str
) -> None:
    project = Project(tmp_path / "project")
    folder = project.store
    update(folder, make_recipe(), range(20))
    outside = tmp_path / "outside"
    outside.mkdir()
    victims = [tmp_path / "project/victim.parquet", outside / "file", folder / "note.txt"]
    (folder / "inner").mkdir()
    for victim in [*victims, folder / "inner/part-00000.parquet"]:
        victim.write_text("precious")
    manifest = read_manifest(folder)
    first = replace(manifest.shards[0], file=name.format(outside=outside))
    write_manifest(folder / "manifest.json", replace(manifest, shards=(first,)))
    for attempt in (
        lambda: read(folder, range(20)),
        lambda: cache_commands.verify(project, tmp_path / "params.yaml", repair=False),
    ):
        with pytest.raises(StoreError, match=r"manifest\.json: damaged") as caught:
            attempt()
        assert "cache verify --repair" in str(caught.value.hint)
    cache_commands.verify(project, tmp_path / "params.yaml", repair=True)
    check(folder, range(20))
    aside = aside_folder(folder)
    for victim in [*victims[:2], aside / "note.txt", aside / "inner/part-00000.parquet"]:
        assert victim.read_text() == "precious"


@pytest.mark.parametrize(
    "change",
    [
        {"layers": ["0"]}, {"layers": 3}, {"width": -1}, {"width": "5"}, {"dtype": "object"},
        {"recipe": []}, {"recipe": {"files": 3}}, {"fingerprint": "0" * 64}, {"shards": {"a": 1}},
        {"shards": [[1]]}, {"fidelity": 3}, {"fidelity": {"texts": "many"}}, {"backbone": 7},
        {"more": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_manifest_of_another_form_is_damaged_though_its_hash_is_right(
    tmp_path: Path, change: dict[str, object]
) -> None:
    folder = tmp_path / "s"
    update(folder, make_recipe(), range(4))
    path = folder / "manifest.json"
    content = json.loads(path.read_bytes()) | change
    del content["sha256"]
    content["sha256"] = hash_json(content)
    path.write_text(json.dumps(content))
    with pytest.raises(StoreError, match=r"manifest\.json: damaged"):
        read_manifest(folder)
    for raw in (b"[]", b"1", b"", b"\xff", b"[" * 100_000):
        path.write_bytes(raw)
        with pytest.raises(StoreError, match=r"manifest\.json: damaged"):
            read_manifest(folder)
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError, match=r"manifest\.json: cannot be read"):
        read_manifest(folder)


def test_repair_removes_damaged_shards_and_moves_all_else_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = Project(tmp_path)
    folder = project.store
    update(folder, make_recipe(), range(40))
    other = tmp_path / "other"
    update(other, make_recipe(max_tokens=7), range(100, 140))
    outside = tmp_path / "outside.txt"
    outside.write_text("mine")
    (folder / "note.txt").write_text("mine")
    (folder / "sub").mkdir()
    (folder / "sub/deep.txt").write_text("mine")
    (folder / "link").symlink_to(outside)
    foreign = (other / "part-00000.parquet").read_bytes()
    (folder / "part-00009.parquet").write_bytes(foreign)  # not in the manifest
    (folder / "part-00001.parquet").write_bytes(foreign)  # over one of ours
    (folder / "part-00002.parquet").unlink()
    (folder / "part-00002.parquet").symlink_to(outside)
    (folder / "part-00003.parquet").write_text("a note")
    part = folder / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-100])
    (folder / ".tmp-left.json").write_text("{")  # by a run of this program that was killed
    aside = aside_folder(folder)
    aside.mkdir()
    (aside / "note.txt").write_text("an earlier one")

    with pytest.raises(StoreError, match="9 files damaged, or not of this store"):
        cache_commands.verify(project, tmp_path / "params.yaml", repair=False)
    cache_commands.verify(project, tmp_path / "params.yaml", repair=True)
    said = capsys.readouterr().out
    assert f"moved to {aside}: part-00001.parquet, part-00002.parquet, part-00003.parquet" in said
    assert "link, note.txt, part-00009.parquet, sub\n" in said
    assert list_files(aside) == {
        "link": b"mine",
        "note.txt": b"an earlier one",
        "note.txt.1": b"mine",
        "part-00001.parquet": foreign,
        "part-00002.parquet": b"mine",
        "part-00003.parquet": b"a note",
        "part-00009.parquet": foreign,
        "sub/deep.txt": b"mine",
    }
    assert outside.read_text() == "mine"
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "part-00004.parquet"]
    assert verify_store(folder) == []
    assert update(folder, make_recipe(), range(40)) == 32
    check(folder, range(40))


def test_a_run_moves_strays_aside_too(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    update(folder, make_recipe(), range(20))
    (folder / "part-00003.parquet").write_text("a note")
    (folder / "part-00007.parquet").mkdir()
    update(folder, make_recipe(), range(30))
    check(folder, range(30))
    assert (aside_folder(folder) / "part-00003.parquet").read_text() == "a note"
    assert (aside_folder(folder) / "part-00007.parquet").is_dir()


# --- commits that were cut short ---------------------------------------------------------------


@pytest.mark.parametrize("moved", range(5))
@pytest.mark.parametrize("settings", [{}, {"max_tokens": 64}])
def test_readers_see_a_decided_commit_and_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int, settings: dict[str, int]
) -> None:
    folder = tmp_path / "s"
    update(folder, make_recipe(**settings), range(20))
    texts = range(5, 40)
    cut_commit(monkeypatch, folder, make_recipe(), texts, moved)
    before = list_files(tmp_path)
    check(folder, texts)
    rows, vectors = zip(*stream_vectors(folder, make_keys(texts), (0, 2), 7), strict=True)
    expected = make_rows(texts, make_recipe()).vectors.astype(np.float32)
    np.testing.assert_array_equal(np.concatenate(vectors), expected[np.concatenate(rows)])
    export_vectors(folder, make_keys(texts), (0, 2), tmp_path / "x.npy", {})
    found = np.load(tmp_path / "x.npy").reshape(expected.shape)
    np.testing.assert_array_equal(found.astype(np.float32), expected)
    (tmp_path / "x.npy").unlink()
    assert list_files(tmp_path) == before
    finish_commit(folder)
    assert not staging_folder(folder).exists()
    check(folder, texts)
    assert update(folder, make_recipe(), texts) == 0


@pytest.mark.parametrize("moved", range(4))
def test_a_commit_is_not_applied_to_a_store_that_was_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    """`dvc checkout` brings back an older store, or the one before, while a commit is undone."""
    folder = tmp_path / "s"
    update(folder, make_recipe(), range(10))
    shutil.copytree(folder, tmp_path / "first")
    update(folder, make_recipe(), range(20))
    shutil.copytree(folder, tmp_path / "second")
    wanted = range(3, 35)  # four shards
    cut_commit(monkeypatch, folder, make_recipe(), wanted, moved)
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "first", folder)
    check(folder, range(10))
    finish_commit(folder)
    check(folder, range(10))
    # What had been moved into the store went with it; all else is taken up.
    assert update(folder, make_recipe(), wanted) == len(set(wanted[: 8 * moved]) - set(range(10)))
    check(folder, wanted)

    cut_commit(monkeypatch, folder, make_recipe(), range(5, 37), moved)
    before_it = list_files(folder)
    if moved:  # as DVC does, put back every file that differs from that store's
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "second", folder)
        check(folder, range(20))
        finish_commit(folder)
        check(folder, range(20))
    else:  # nothing of that commit is in the store yet, so it is the one that it was made for
        assert list_files(folder) == before_it
        finish_commit(folder)
        check(folder, range(5, 37))


def test_the_same_store_put_back_while_another_recipes_commit_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards of both recipes have the same names and sizes, so only hashes tell them apart."""
    folder = tmp_path / "s"
    update(folder, make_recipe(max_tokens=64), range(32))
    shutil.copytree(folder, tmp_path / "copy")
    cut_commit(monkeypatch, folder, make_recipe(max_tokens=128), range(32), 2)
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "copy", folder)
    check(folder, range(32))
    assert read_manifest(folder).recipe["max_tokens"] == 64
    # Two of the four new shards went with the store that was replaced.
    assert update(folder, make_recipe(max_tokens=128), range(32)) == 16
    check(folder, range(32))


@pytest.mark.parametrize("moved", range(4))
def test_a_commit_of_an_older_version_is_carried_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    """It took the hashes off the names before, and did not say what it replaces."""
    folder = tmp_path / "s"
    update(folder, make_recipe(max_tokens=64), range(20))
    cut_commit(monkeypatch, folder, make_recipe(), range(30), moved)
    staged = staging_folder(folder)
    decided = read_manifest(folder)
    for path in staged.glob("part-*.parquet"):
        path.rename(staged / f"{path.stem[:10]}.parquet")
    (staged / "owner").unlink()
    (staged / "commit.json").write_bytes(format_manifest(decided))
    check(folder, range(30))
    assert update(folder, make_recipe(), range(30)) == 0
    check(folder, range(30))


def test_an_older_version_killed_before_its_decision_lost_nothing(tmp_path: Path) -> None:
    """Its shards wait under their final names, without their hashes."""
    folder = tmp_path / "s"
    update(folder, make_recipe(), range(32), stop_after=3)
    staged = staging_folder(folder)
    names = sorted(staged.glob("part-*.parquet"))
    for path in names[:2]:
        path.rename(staged / f"{path.stem[:10]}.parquet")
    assert update(folder, make_recipe(), range(32)) == 8
    check(folder, range(32))


# --- lost manifests ----------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [None, b"", b"{", b'{"format": 1}'])
def test_a_run_takes_up_whole_shards_without_a_manifest(tmp_path: Path, raw: bytes | None) -> None:
    folder = tmp_path / "s"
    update(folder, make_recipe(), range(32))
    path = folder / "manifest.json"
    path.unlink()
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(StoreError, match=r"manifest\.json") as caught:
        read(folder, [0])
    assert "cache verify --repair" in str(caught.value.hint)
    part = folder / "part-00002.parquet"
    part.write_bytes(part.read_bytes()[:-1])
    assert update(folder, make_recipe(), range(40)) == 8 + 8
    check(folder, range(40))


@pytest.mark.parametrize("manifest", [None, b"{"])
@pytest.mark.parametrize("wanted", [0, 1, None])
def test_a_manifest_is_made_anew_for_the_recipe_of_the_settings_or_of_the_most_rows(
    tmp_path: Path, manifest: bytes | None, wanted: int | None
) -> None:
    recipes = [make_recipe(max_tokens=64), make_recipe(max_tokens=128)]
    folder, other = tmp_path / "s", tmp_path / "other"
    update(folder, recipes[1], range(32))
    update(other, recipes[0], range(50, 58))
    shutil.copy(other / "part-00000.parquet", folder / "part-00000.parquet")
    (folder / "manifest.json").unlink()
    if manifest is not None:
        (folder / "manifest.json").write_bytes(manifest)
    chosen = rebuild_manifest(folder, [] if wanted is None else [recipes[wanted].fingerprint])
    assert chosen is not None
    held = [range(50, 58), range(8, 32)][1 if wanted is None else wanted]
    assert chosen.fingerprint == recipes[1 if wanted is None else wanted].fingerprint
    strays = [damage.file for damage in verify_store(folder)]
    assert len(strays) == 4 - len(held) // 8
    expected = make_rows(held, make_recipe()).vectors
    np.testing.assert_array_equal(read(folder, held), expected)


# --- stores on other disks ---------------------------------------------------------------------


def list_disks(tmp_path: Path) -> list[Path]:
    """Folders to put a store into: one on this disk, one on another if there is one."""
    folders = [tmp_path / "disk"]
    shared = Path("/dev/shm")
    if shared.is_dir() and shared.stat().st_dev != tmp_path.stat().st_dev:
        folders.append(shared / f"store-{os.getpid()}")
    return folders


@pytest.mark.parametrize("number", [0, 1])
def test_a_store_that_is_a_link_to_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    disks = list_disks(tmp_path)
    if number == len(disks):
        pytest.skip("there is one disk only")
    disk = disks[number]
    try:
        disk.mkdir()
        folder = tmp_path / "cache/embeddings"
        folder.parent.mkdir()
        folder.symlink_to(disk / "vectors", target_is_directory=True)  # not there yet
        assert update(folder, make_recipe(), range(20), stop_after=1) == 8
        assert update(folder, make_recipe(), range(20)) == 12
        check(folder, range(20))
        assert update(folder, make_recipe(max_tokens=64), range(20)) == 20
        assert update(folder, make_recipe(), range(20)) == 0
        cut_commit(monkeypatch, folder, make_recipe(), range(5, 25), 1)
        check(folder, range(5, 25))
        assert prune_store(folder, make_keys(range(8, 25))).texts == 3
        check(folder, range(8, 25))
        assert folder.is_symlink()
        assert [path.name for path in folder.parent.iterdir()] == ["embeddings"]
        assert sorted(path.name for path in disk.iterdir()) == ["vectors"]
    finally:
        shutil.rmtree(disk, ignore_errors=True)


def test_what_older_versions_left_beside_a_link_is_taken_up(tmp_path: Path) -> None:
    """They staged beside the link, and then failed to rename to the other disk."""
    disk = list_disks(tmp_path)[-1]
    try:
        disk.mkdir()
        folder = tmp_path / "embeddings"
        update(folder, make_recipe(), range(20), stop_after=2)
        folder.symlink_to(disk, target_is_directory=True)
        assert update(folder, make_recipe(), range(20)) == 4
        check(folder, range(20))
        assert not (tmp_path / "embeddings.next").exists()
    finally:
        shutil.rmtree(disk, ignore_errors=True)


def test_a_disk_that_is_mounted_on_the_store_holds_its_folders_inside() -> None:
    mounted = next((p for p in map(Path, ("/dev/shm", "/proc")) if p.is_mount()), None)
    if mounted is None:
        pytest.skip("nothing is mounted here")
    assert staging_folder(mounted) == mounted / ".next"


# --- other runs at work ------------------------------------------------------------------------


def rewrite_forever(folder: Path, stop: Event, settings: list[dict[str, int]]) -> None:
    for name, rows in SMALL.items():
        setattr(layout, name, rows)
    number = 0
    while not stop.is_set():
        number += 1
        recipe = make_recipe(**settings[number % len(settings)])
        update(folder, recipe, range(number % 7, 40))


@pytest.mark.parametrize("settings", [[{}], [{"max_tokens": 64}, {"max_tokens": 128}]])
def test_readers_while_another_run_commits(
    tmp_path: Path, settings: list[dict[str, int]], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "s"
    update(folder, make_recipe(**settings[0]), range(40))
    expected = make_rows(range(7, 40), make_recipe()).vectors
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    process = context.Process(target=rewrite_forever, args=(folder, stop, settings))
    process.start()
    seen = set()
    try:
        for number in range(100_000):
            try:
                vectors = read(folder, range(7, 40))
                manifest = read_manifest(folder)
            except StoreError as error:  # a writer without a pause may win every time
                if "another run rewrites it faster than it can be read" not in error.message:
                    raise
                continue
            np.testing.assert_array_equal(vectors, expected)
            seen.add((manifest.fingerprint, manifest.rows))
            if number > 300 and len(seen) > 3:
                break
        assert process.is_alive()
    finally:
        stop.set()
        process.join(60)
    assert len(seen) > 3, "the store was not rewritten while it was read"


def test_what_fails_once_is_read_again_though_the_store_is_as_it_was(tmp_path: Path) -> None:
    """It can be back in a state after others in between, of which the reader saw one."""
    folder = tmp_path / "s"
    update(folder, make_recipe(), range(8))
    calls: list[Snapshot] = []

    def fail(times: int) -> Callable[[Snapshot], int]:
        calls.clear()

        def read_once(snapshot: Snapshot) -> int:
            calls.append(snapshot)
            if len(calls) <= times:
                raise StoreError("damaged")
            return len(calls)

        return read_once

    assert read_steadily(folder, fail(1)) == 2
    with pytest.raises(StoreError, match="damaged"):
        read_steadily(folder, fail(2))
    assert len(calls) == 2


def test_keys_of_a_store_that_another_run_rewrites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, recipe = tmp_path / "s", make_recipe()
    read_keys, read_whole = reader.read_keys, reader.read_steadily
    assert find_keys(folder) is None

    def read_too_late(*given: Any, **named: Any) -> Any:
        """Another run makes the store between the look at it and the answer."""
        monkeypatch.undo()
        try:
            return read_whole(*given, **named)
        finally:
            update(folder, recipe, range(8))

    monkeypatch.setattr(reader, "read_steadily", read_too_late)
    assert find_keys(folder) == make_keys(range(8))

    def rewrite_first(snapshot: Snapshot) -> Any:
        monkeypatch.undo()
        update(folder, recipe, range(4, 50))
        return read_keys(snapshot)

    monkeypatch.setattr(reader, "read_keys", rewrite_first)
    assert find_keys(folder) == make_keys(range(4, 50))
    assert find_keys(folder, fingerprint="another") is None
    (folder / read_manifest(folder).shards[0].file).unlink()
    with pytest.raises(StoreError, match="no such file"):
        find_keys(folder)


def test_a_rewrite_meanwhile_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "s"
    update(folder, make_recipe(), range(40))
    find_damage = upkeep._find_damage

    def rewrite_first(snapshot: Snapshot, shard: Shard) -> str | None:
        monkeypatch.undo()
        update(folder, make_recipe(), range(4, 50))
        return find_damage(snapshot, shard)

    monkeypatch.setattr(upkeep, "_find_damage", rewrite_first)
    check(folder, range(4, 50))

    def rewrite_always(snapshot: Snapshot, shard: Shard) -> str | None:
        rows = read_manifest(folder).rows
        update(folder, make_recipe(), range(rows % 7, 40))
        return find_damage(snapshot, shard)

    monkeypatch.setattr(upkeep, "_find_damage", rewrite_always)
    with pytest.raises(StoreError, match="rewrites it faster than it can be checked"):
        verify_store(folder)


def test_vectors_of_two_recipes_are_never_mixed(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    update(folder, make_recipe(max_tokens=64), range(40))
    stream = stream_vectors(folder, make_keys(range(40)), (0, 2), 8, window_rows=8)
    next(stream)
    update(folder, make_recipe(max_tokens=64), range(39, -1, -1))  # other rows, the same recipe
    second, vectors = next(stream)
    expected = make_rows(second.tolist(), make_recipe()).vectors.astype(np.float32)
    np.testing.assert_array_equal(vectors, expected)
    update(folder, make_recipe(max_tokens=128), range(1, 41))
    with pytest.raises(StoreError, match="rewritten with other settings while") as caught:
        list(stream)
    assert caught.value.hint == "run the command again"


def test_a_store_that_does_not_stop_changing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "s"
    update(folder, make_recipe(), range(20))
    number = 0

    def change(*arguments: object) -> object:
        nonlocal number
        number += 1
        update(folder, make_recipe(), range(number, 21 + number))
        raise StoreError("it has changed")

    monkeypatch.setattr("pipeline.store.commit._PAUSE_SECONDS", 0.0)
    monkeypatch.setattr("pipeline.store.reader.gather_rows", change)
    monkeypatch.setattr("tests.unit.test_store.StoreUpdate.find_known", find_none)
    with pytest.raises(StoreError, match="another run rewrites it faster than"):
        read(folder, [])
    assert 2 < number < 100


def find_none(self: StoreUpdate, start: int, stop: int) -> tuple[np.ndarray, object]:
    return np.zeros(stop - start, bool), make_rows([], self.recipe)


def test_two_runs_at_once_do_not_mix(tmp_path: Path) -> None:
    """The lock file was deleted: the one that started later goes on, the other stops."""
    folder = tmp_path / "s"
    recipe, texts = make_recipe(), range(20)
    first = StoreUpdate(folder, recipe, make_keys(texts))
    first.write_shard(0, make_rows(texts[:8], recipe))
    second = StoreUpdate(folder, recipe, make_keys(texts))
    assert second.resumed_rows == 8
    second.write_shard(8, make_rows(texts[8:16], recipe))
    with pytest.raises(LockedError, match="another run has taken over"):
        first.write_shard(8, make_rows(texts[8:16], recipe))
    with pytest.raises(LockedError, match="another run has taken over"):
        first.commit()
    second.write_shard(16, make_rows(texts[16:], recipe))
    second.commit()
    check(folder, texts)
    with pytest.raises(LockedError, match="another run has taken over"):
        first.save_progress(np.array([0]), make_rows([0], recipe))
    check(folder, texts)


def test_a_kill_at_each_step_before_the_commit_leaves_nothing_beside_the_store(
    tmp_path: Path,
) -> None:
    # The steps are those of keeping halves of two shards and of writing the first of these.
    texts = range(12)
    for number in itertools.count(1):
        folder = tmp_path / str(number) / "s"
        child = os.fork()
        if not child:
            disk = Disk(pytest.MonkeyPatch(), tmp_path, removals=True)
            disk.kills, disk.fails_at = True, number
            update(folder, make_recipe(), texts, stop_after=1, keep_parts=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        update(folder, make_recipe(), texts)
        check(folder, texts)
        assert [path.name for path in folder.parent.iterdir()] == ["s"], number
        assert sorted(path.name for path in folder.iterdir())[0] == "manifest.json", number
        if status == 0:
            break
    assert number > 20


def test_a_store_that_another_command_changed_is_not_written_over(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    update(folder, make_recipe(), range(20))
    run = StoreUpdate(folder, make_recipe(), make_keys(range(30)))
    for start, stop in run.list_missing():
        run.write_shard(start, make_rows(range(start, stop), make_recipe()))
    (folder / "part-00001.parquet").unlink()
    project = Project(tmp_path)
    project.cache.mkdir()
    project.store.symlink_to(folder)
    cache_commands.verify(project, tmp_path / "params.yaml", repair=True)
    with pytest.raises((StoreError, LockedError)):
        run.commit()
    assert read_manifest(folder).rows == 12
    assert update(folder, make_recipe(), range(30)) <= 8
    check(folder, range(30))


# --- settings that change and change back ------------------------------------------------------


def test_going_back_to_earlier_settings_embeds_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    long, short = make_recipe(max_tokens=128), make_recipe(max_tokens=64)
    assert update(folder, long, range(30)) == 30
    inodes = {path.stat().st_ino for path in folder.glob("part-*")}
    assert update(folder, short, range(30)) == 30
    assert [(kept.manifest.rows, kept.manifest.recipe["max_tokens"]) for kept in read_kept(folder)
            if kept.manifest] == [(30, 128)]  # fmt: skip
    assert update(folder, long, range(30)) == 0
    assert {path.stat().st_ino for path in folder.glob("part-*")} == inodes  # moved, not copied
    check(folder, range(30))
    assert update(folder, short, range(4, 36)) == 6  # the corpus has changed on the way
    check(folder, range(4, 36))
    assert update(folder, long, range(4, 36)) == 6
    check(folder, range(4, 36))


def test_what_is_kept_is_bounded_and_the_oldest_goes_first(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    for number in range(5):
        update(folder, make_recipe(max_tokens=number), range(20))
        os.sync()
    kept = [kept.manifest.recipe["max_tokens"] for kept in read_kept(folder) if kept.manifest]
    assert kept == [3, 2]
    assert update(folder, make_recipe(max_tokens=3), range(20)) == 0
    assert update(folder, make_recipe(max_tokens=0), range(20)) == 20


def test_an_interrupted_run_is_taken_up_after_another_one_with_other_settings(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "s"
    long, short = make_recipe(max_tokens=128), make_recipe(max_tokens=64)
    assert update(folder, long, range(30), stop_after=2, keep_parts=True) == 20
    assert update(folder, short, range(30)) == 30
    check(folder, range(30))
    assert update(folder, long, range(30)) == 10
    check(folder, range(30))
    assert update(folder, long, range(40), stop_after=1) == 2
    assert update(folder, short, range(30)) == 0
    assert update(folder, long, range(40)) == 8


def test_a_damaged_kept_shard_costs_its_own_texts(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    long, short = make_recipe(max_tokens=128), make_recipe(max_tokens=64)
    update(folder, long, range(30))
    update(folder, short, range(30))
    kept = kept_folder(folder) / long.fingerprint
    part = kept / "part-00001.parquet"
    content = bytearray(part.read_bytes())
    values = make_rows([9], long).vectors[0, 1].tobytes()
    content[content.index(values)] ^= 1
    part.write_bytes(content)
    (kept / "part-00002.parquet").unlink()
    # Other rows than before, so that all shards are made of those that are kept.
    assert update(folder, long, range(1, 30)) == 8 + 8
    check(folder, range(1, 30))


def test_prune_drops_what_is_kept_but_not_what_the_settings_mean(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    recipes = [make_recipe(max_tokens=number) for number in range(3)]
    for recipe in recipes:
        update(folder, recipe, range(20))
    update(folder, recipes[2], range(30), stop_after=1)
    pruned = prune_store(folder, make_keys(range(5, 30)), frozenset([recipes[0].fingerprint]))
    assert pruned.texts == 5
    assert pruned.bytes > 0
    assert [kept.folder.name for kept in read_kept(folder)] == [recipes[0].fingerprint]
    # Four texts of an interrupted run were in the corpus; they are in the store now.
    assert read_manifest(folder).rows == 19
    assert update(folder, recipes[2], range(5, 30)) == 6
    assert update(folder, recipes[0], range(5, 20)) == 0
    assert prune_store(folder, make_keys(range(5, 20))).bytes > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]


def test_a_full_disk_hints_at_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "s"
    update(folder, make_recipe(max_tokens=1), range(20))
    update(folder, make_recipe(max_tokens=2), range(20))
    failures: list[WriteError] = []
    for number in itertools.count(1):
        change = StoreUpdate(folder, make_recipe(max_tokens=2), make_keys(range(40)))
        with monkeypatch.context() as patch:
            disk = Disk(patch, tmp_path)
            disk.errno, disk.fails_at = errno.ENOSPC, number
            try:
                change.write_shard(24, make_rows(range(24, 32), make_recipe()))
            except WriteError as error:
                failures.append(error)
        if disk.calls < number:
            break
    # The mark of the run itself, `owner`, is a few bytes, which no room would be made for.
    of_rows = [error for error in failures if "owner" not in str(error)]
    assert len(of_rows) >= 4  # making the file, writing it, flushing it, and giving it its names
    for error in of_rows:
        assert "No space left" in str(error)
        assert "pipeline cache prune" in str(error.hint)


# --- a read-only disk --------------------------------------------------------------------------


def test_info_and_verify_on_a_read_only_disk(
    project: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(files={}, max_tokens=128)
    update(Project(project).store, recipe, range(20))
    update(Project(project).store, make_recipe(files={}, max_tokens=64), range(20))
    cut_commit(monkeypatch, Project(project).store, recipe, range(5, 30), 1)
    before = list_files(project)
    with monkeypatch.context() as patch:
        disk = Disk(patch, project, removals=True)
        disk.errno, disk.fails_at, disk.lasts = errno.EROFS, 1, True
        verified = cli("cache", "verify")
        info = cli("cache", "info")
        repaired = cli("cache", "verify", "--repair")
    assert verified.returncode == 0, verified.stderr
    assert "Read-only file system; checking without the lock" in verified.stdout
    assert "4 shards, 25 texts" in verified.stdout
    assert "every byte is right" in verified.stdout
    assert info.returncode == 0, info.stderr
    assert "a run was cut short while it moved" in info.stdout
    assert repaired.returncode == 1
    assert "Read-only file system" in repaired.stderr
    assert list_files(project) == before
