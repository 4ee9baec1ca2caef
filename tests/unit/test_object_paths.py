"""Stores in an object store: requests that fail or come too late, locks, paths and messages."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import LockedError, ObjectStoreError, SettingsError, StoreError
from pipeline.store import (
    StoreUpdate,
    finish_commit,
    objects,
    read_kept,
    read_manifest,
    read_snapshot,
)
from pipeline.store import manifest as layout
from pipeline.store.blocks import BlockCache
from pipeline.store.commit import write_commit
from pipeline.store.folders import staging_folder
from pipeline.store.leases import hold_lease
from pipeline.store.objects import (
    ObjectClient,
    ObjectPath,
    create_object,
    open_objects,
    replace_object,
)
from pipeline.store.sharing import Overlap, measure_overlap
from pipeline.store.slices import Slice, hold_slice, hold_slices
from pipeline.store.upkeep import prune_store, repair_store, verify_store
from tests.objects import (
    BUCKET,
    ObjectServer,
    SlowServer,
    serve_objects,
    use_objects,
    use_server,
)
from tests.unit.test_store import make_keys, make_recipe, make_rows, read, update

STEP = int(os.environ.get("STEP", "11"))  # of the requests that are the last of a run, on S3
WRITES = {"pipe_file", "rm_file", "cp_file"}


class KilledError(BaseException):
    """What stands for the end of a process: nothing of it reaches the store any more."""


class Network:
    """Ends a process at one of its writes, before the store has it or after.

    :param kills_at: the number of the write; the first is 1.
    :param is_after: whether the store still does what it is asked there.
    :ivar writes: how many there were.
    """

    def __init__(self, kills_at: int, is_after: bool) -> None:
        self.writes = 0
        self._kills_at = kills_at
        self._is_after = is_after
        self._is_dead = False
        self._one_at_a_time = threading.Lock()
        self._call = ObjectClient.call

    def call(self, client: ObjectClient, path: ObjectPath, name: str, *given: Any, **more: Any):
        with self._one_at_a_time:
            if self._is_dead:
                raise KilledError
            self.writes += name in WRITES
            if name in WRITES and self.writes == self._kills_at:
                self._is_dead = True
                if self._is_after:
                    self._call(client, path, name, *given, **more)
                raise KilledError
        return self._call(client, path, name, *given, **more)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SHARD_ROWS", 8)
    monkeypatch.setattr(layout, "GROUP_ROWS", 3)


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectServer]:
    with serve_objects() as running:
        yield running


@pytest.fixture
def s3(server: ObjectServer) -> Iterator[str]:
    with use_objects(server):
        yield f"s3://{BUCKET}"


@pytest.fixture
def memory() -> Iterator[str]:
    from fsspec.implementations.memory import MemoryFileSystem

    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    yield "memory://bucket"
    MemoryFileSystem.store.clear()


@pytest.fixture(params=["s3", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectPath:
    """An empty prefix of a store that knows conditions, and of one that knows none."""
    url = request.getfixturevalue(request.param)
    return open_objects(f"{url}/team", BlockCache(tmp_path / "blocks", 1_000_000))


def list_contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def remove_all(folder: Path) -> None:
    for path in [*folder.parent.iterdir()]:
        for file in [path] if path.is_file() else [*path.iterdir()]:
            for inner in [file] if file.is_file() else [*file.iterdir()]:
                inner.unlink()


@pytest.mark.parametrize("is_after", [False, True])
@pytest.mark.parametrize("change", ["settings", "texts"])
def test_a_run_that_is_killed_at_any_request_leaves_the_old_store_or_the_new_one(
    place: ObjectPath, monkeypatch: pytest.MonkeyPatch, change: str, is_after: bool
) -> None:
    old = make_recipe(max_tokens=64) if change == "settings" else make_recipe()
    before, after = (range(20), range(3, 30)) if change == "texts" else (range(20), range(30))
    update(place / "old", old, before)
    update(place / "new", make_recipe(), after)
    whole_old, whole_new = list_contents(place / "old"), list_contents(place / "new")
    folder = place / "s"
    network = Network(0, is_after)
    # A request of the S3 server takes a hundred times as long as one of the memory.
    step = STEP if place.client.is_conditional else 1
    for number in range(1 + is_after, 200, step):
        update(folder, old, before)
        network = Network(number, is_after)
        with monkeypatch.context() as patch:
            patch.setattr(ObjectClient, "call", lambda *a, n=network, **k: n.call(*a, **k))
            try:
                update(folder, make_recipe(), after, keep_parts=True)
            except KilledError:
                is_done = False
            else:
                is_done = True
        if is_done:
            break
        assert not [damage for damage in verify_store(folder) if not damage.is_stray], number
        manifest = read_manifest(folder)
        is_new = len(list_shards(manifest)) == len(list_shards(read_manifest(place / "new")))
        texts = after if is_new else before
        np.testing.assert_array_equal(read(folder, texts), make_rows(texts, old).vectors)
        update(folder, make_recipe(), after)
        assert list_contents(folder) == whole_new, number
        if change == "settings":
            (kept,) = read_kept(folder)
            assert list_contents(kept.folder) == whole_old, number
        assert not staging_folder(folder).exists()
        assert not (folder.with_name("s.aside")).exists()
        remove_all(folder)
        update(place / "old", old, before)
        update(place / "new", make_recipe(), after)
    assert network.writes > 15, "the run was not as this test thinks"


def list_shards(manifest: layout.Manifest) -> list[str]:
    return [shard.keys for shard in manifest.shards]


def test_stores_are_pruned_verified_and_repaired(place: ObjectPath, tmp_path: Path) -> None:
    folder = place / "s"
    update(folder, make_recipe(max_tokens=64), range(30))
    update(folder, make_recipe(), range(30))
    assert [kept.folder.parent.name for kept in read_kept(folder)] == ["s.old"]
    pruned = prune_store(folder, make_keys(range(10, 30)))
    assert pruned.texts == 10
    assert pruned.bytes > 0
    assert not read_kept(folder)
    np.testing.assert_array_equal(
        read(folder, range(10, 30)), make_rows(range(10, 30), make_recipe()).vectors
    )
    assert verify_store(folder) == []
    damaged = bytearray((folder / "part-00001.parquet").read_bytes())
    damaged[200] ^= 1
    (folder / "part-00001.parquet").write_bytes(bytes(damaged))
    (folder / "part-00002.parquet").write_bytes(bytes(damaged[:90]))
    (folder / "note.txt").write_bytes(b"not of the store")
    damages = verify_store(folder)
    assert {damage.file: damage.is_stray for damage in damages} == {
        "part-00001.parquet": False, "part-00002.parquet": False, "note.txt": True
    }  # fmt: skip
    # What was read before is still right; whoever reads anew notices it.
    np.testing.assert_array_equal(
        read(folder, range(10, 30)), make_rows(range(10, 30), make_recipe()).vectors
    )
    shutil.rmtree(tmp_path / "blocks")
    with pytest.raises(StoreError, match=r"part-0000[12]\.parquet: damaged"):
        read(folder, range(10, 30))
    assert repair_store(folder, damages) == ["note.txt"]
    assert (folder.with_name("s.aside") / "note.txt").read_bytes() == b"not of the store"
    assert update(folder, make_recipe(), range(10, 30)) == 12
    assert verify_store(folder) == []


def test_an_object_that_is_gone_is_named(place: ObjectPath) -> None:
    folder = place / "s"
    update(folder, make_recipe(), range(20))
    (folder / "part-00001.parquet").unlink()
    with pytest.raises(StoreError, match=r"part-00001\.parquet: no such file"):
        read(folder, range(20))
    (folder / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"manifest\.json: no such file") as caught:
        read(folder, range(20))
    assert "verify --repair" in str(caught.value.hint)


def test_two_runs_at_once_do_not_mix(place: ObjectPath) -> None:
    folder = place / "s"
    update(folder, make_recipe(), range(20))
    keys = make_keys(range(30))
    first, second = (StoreUpdate(folder, make_recipe(), keys) for _ in range(2))
    for start, stop in first.list_missing():
        first.write_shard(start, make_rows(range(start, stop), make_recipe()))
    for start, stop in second.list_missing():
        second.write_shard(start, make_rows(range(start, stop), make_recipe()))
    with pytest.raises(LockedError, match="another run has taken over"):
        first.commit()
    second.commit()
    np.testing.assert_array_equal(
        read(folder, range(30)), make_rows(range(30), make_recipe()).vectors
    )
    assert verify_store(folder) == []


def test_a_late_run_does_not_write_over_what_came_after_it(
    place: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is suspended before its last request, the manifest; another run does all in between."""
    folder = place / "s"
    update(folder, make_recipe(), range(20))
    call = ObjectClient.call
    suspended: list[str] = []

    def suspend(client: ObjectClient, path: ObjectPath, name: str, *given: Any, **more: Any):
        if name in WRITES and path == folder / "manifest.json" and not suspended:
            suspended.append(str(path))
            update(folder, make_recipe(), range(24))
            update(folder, make_recipe(), range(40))
        return call(client, path, name, *given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectClient, "call", suspend)
        if place.client.is_conditional:
            with pytest.raises(StoreError, match="another run has changed the store"):
                update(folder, make_recipe(), range(24))
        else:  # as docs/scale.md says, nothing holds it there
            update(folder, make_recipe(), range(24))
    assert suspended
    if place.client.is_conditional:
        np.testing.assert_array_equal(
            read(folder, range(40)), make_rows(range(40), make_recipe()).vectors
        )
        assert verify_store(folder) == []


def test_a_run_whose_decision_comes_too_late_says_so(
    place: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is suspended before it decides; another run does all of its own work."""
    folder = place / "s"
    update(folder, make_recipe(), range(20))
    call = ObjectClient.call
    is_suspended = False

    def suspend(client: ObjectClient, path: ObjectPath, name: str, *given: Any, **more: Any):
        nonlocal is_suspended
        if name == "pipe_file" and path.name == "commit.json" and not is_suspended:
            is_suspended = True
            update(folder, make_recipe(), range(40))
        return call(client, path, name, *given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectClient, "call", suspend)
        with pytest.raises(StoreError, match="another run has changed the store"):
            update(folder, make_recipe(), range(24))
    assert is_suspended
    assert len(read_manifest(folder).shards) == 5
    assert verify_store(folder) == []


def test_a_late_run_does_not_move_away_what_came_after_it(
    place: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is suspended while it moves its shards; another run does that, and all of its own work."""
    folder = place / "s"
    update(folder, make_recipe(), range(20))
    call = ObjectClient.call
    is_suspended = False

    def suspend(client: ObjectClient, path: ObjectPath, name: str, *given: Any, **more: Any):
        nonlocal is_suspended
        if name == "rm_file" and path.name.startswith("part-00002-") and not is_suspended:
            is_suspended = True
            update(folder, make_recipe(), range(24))
            update(folder, make_recipe(), range(40))
        return call(client, path, name, *given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectClient, "call", suspend)
        with pytest.raises(StoreError, match="another run has changed the store"):
            update(folder, make_recipe(), range(24))
    assert is_suspended
    np.testing.assert_array_equal(
        read(folder, range(40)), make_rows(range(40), make_recipe()).vectors
    )
    assert verify_store(folder) == []


def test_a_decision_of_another_run_is_not_written_over(s3: str, tmp_path: Path) -> None:
    folder = open_objects(f"{s3}/team/s", BlockCache(tmp_path, 0))
    update(folder, make_recipe(), range(20))
    manifest = read_manifest(folder)
    write_commit(folder, manifest, None)
    with pytest.raises(StoreError, match="another run has changed the store in this moment"):
        write_commit(folder, manifest, "0" * 64)
    finish_commit(folder)
    assert read_snapshot(folder).staged == {}
    np.testing.assert_array_equal(
        read(folder, range(20)), make_rows(range(20), make_recipe()).vectors
    )


def test_one_run_at_a_time_has_a_lock(place: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.store.leases.RENEW_SECONDS", 0.01)
    path = place / ".s.lock"
    with hold_lease(path, what="the store"):
        first = path.read_bytes()
        while path.read_bytes() == first:  # it gives signs of life
            time.sleep(0.01)
        with pytest.raises(LockedError, match=r"another run \(process \d+\) is writing the store"):
            hold_lease(path, what="the store").__enter__()
    assert not path.exists()
    with hold_lease(path, what="the store"):
        pass


@pytest.mark.parametrize(("host", "process", "age"), [("here", 0, 0), ("elsewhere", 1, 61)])
def test_the_lock_of_a_run_that_was_lost_is_taken_over(
    place: ObjectPath, monkeypatch: pytest.MonkeyPatch, host: str, process: int, age: int
) -> None:
    """A process of this machine that has ended; one elsewhere without a sign of life."""
    monkeypatch.setattr("pipeline.store.leases.RENEW_SECONDS", 0.01)
    monkeypatch.setattr("pipeline.store.leases.socket.gethostname", lambda: "here")
    monkeypatch.setattr("pipeline.store.leases._identify_system", lambda: "here")
    if not process:
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        process = ended.pid
    path = place / ".s.lock"
    about = {"mark": "x", "host": host, "system": host, "process": process}
    path.write_bytes(json.dumps(about).encode())
    now = time.time()
    if age:
        monkeypatch.setattr("pipeline.store.leases.time.time", lambda: now)
        with pytest.raises(LockedError, match=r"\(process 1 on elsewhere\) is writing the store"):
            hold_lease(path, what="the store").__enter__()
    monkeypatch.setattr("pipeline.store.leases.time.time", lambda: now + age + 1)
    with hold_lease(path, what="the store"):
        assert json.loads(path.read_bytes())["mark"] != "x"
    assert not path.exists()


def test_a_run_that_gave_a_sign_of_life_meanwhile_keeps_its_lock(
    place: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clocks of two machines may differ by more than a lock lasts."""
    monkeypatch.setattr("pipeline.store.leases.RENEW_SECONDS", 0.05)
    path = place / ".s.lock"
    with hold_lease(path, what="the store"):
        monkeypatch.setattr("pipeline.store.leases.time.time", lambda: 4e9)
        with pytest.raises(LockedError, match="is writing the store"):
            hold_lease(path, what="the store").__enter__()


def test_the_locks_of_all_slices_are_taken_at_once_and_given_back(
    place: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = place / "slices"
    names = [f"slice-{number:04}-of-0004" for number in range(1, 5)]
    for name in names:
        (root / name / "manifest.json").write_bytes(b"of no use")
    together = threading.Barrier(len(names), timeout=60)
    call = ObjectClient.call

    def wait(client: ObjectClient, path: ObjectPath, name: str, *given: Any, **more: Any):
        if name == "pipe_file" and b'"writes": 1}' in given[1]:
            together.wait()  # for the requests of all the others
        return call(client, path, name, *given, **more)

    with contextlib.ExitStack() as stack:
        with monkeypatch.context() as patch:
            patch.setattr(ObjectClient, "call", wait)
            states = stack.enter_context(hold_slices(root))
        assert [state.folder.name for state in states] == names
        locks = sorted(path.name for path in root.iterdir() if path.is_file())
        assert locks == [f".{name}.lock" for name in names]
        with pytest.raises(LockedError, match="slice-0003-of-0004/"):
            hold_slice(root, Slice(4, 3)).__enter__()
    assert not [path for path in root.iterdir() if path.is_file()]
    with hold_slice(root, Slice(4, 3)):
        with pytest.raises(LockedError, match="slice-0003-of-0004/"):
            hold_slices(root).__enter__()
        assert [p.name for p in root.iterdir() if p.is_file()] == [".slice-0003-of-0004.lock"]


def test_a_clock_that_is_late_does_not_keep_the_lock_of_a_lost_run(
    place: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.store.leases.RENEW_SECONDS", 0.05)
    path = place / ".s.lock"
    path.write_bytes(b'{"mark": "x", "host": "elsewhere", "process": 1}')
    monkeypatch.setattr("pipeline.store.leases.time.time", lambda: 0.0)
    with hold_lease(path, what="the store"):
        assert b'"x"' not in path.read_bytes()


def test_a_process_number_of_another_container_says_nothing(
    place: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers may share the name of their host, where each has a table of its own."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    path = place / ".s.lock"
    path.write_bytes(
        json.dumps(
            {"mark": "x", "host": socket.gethostname(), "system": "another", "process": ended.pid}
        ).encode()
    )
    with pytest.raises(LockedError, match="is writing the store"):
        hold_lease(path, what="the store").__enter__()
    assert json.loads(path.read_bytes())["mark"] == "x"


def test_of_two_runs_that_find_an_ended_one_the_first_has_the_lock(
    place: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run takes the lock over before any one of the requests of this one."""
    monkeypatch.setattr("pipeline.store.leases._identify_system", lambda: "here")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    path = place / ".s.lock"
    about = {"mark": "x", "host": "here", "system": "here", "process": ended.pid}
    call = ObjectClient.call
    # Before the write, or before the look at what it replaces where a store knows no conditions.
    for number in range(1, 7 if place.client.is_conditional else 5):
        path.write_bytes(json.dumps(about).encode())
        with contextlib.ExitStack() as stack:
            names: list[str] = []

            def take_first(
                client: ObjectClient,
                path: ObjectPath,
                name: str,
                *given: Any,
                names: list[str] = names,
                number: int = number,
                stack: contextlib.ExitStack = stack,
                **more: Any,
            ) -> Any:
                names.append(name)
                if len(names) == number:
                    stack.enter_context(hold_lease(path, what="the store"))
                return call(client, path, name, *given, **more)

            with monkeypatch.context() as patch:
                patch.setattr(ObjectClient, "call", take_first)
                with pytest.raises(LockedError):
                    hold_lease(path, what="the store").__enter__()
            assert len(names) > number


def test_a_lock_whose_answer_was_lost_is_kept(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client asks again, and the store refuses what it has written for it before."""
    monkeypatch.setattr("pipeline.store.leases.RENEW_SECONDS", 0.01)
    path = open_objects(f"{s3}/team", BlockCache(tmp_path, 0)) / ".s.lock"
    call = ObjectClient.call
    lost = 0

    def lose(client: ObjectClient, path: ObjectPath, name: str, *given: Any, **more: Any):
        nonlocal lost
        answer = call(client, path, name, *given, **more)
        if name == "pipe_file":
            lost += 1
            if lost % 3 == 2:  # the client gives up before the store answers
                raise ObjectStoreError("the store does not answer")
            raise FileExistsError
        return answer

    monkeypatch.setattr(ObjectClient, "call", lose)
    with hold_lease(path, what="the store"):
        deadline = time.monotonic() + 30
        while lost < 8 and time.monotonic() < deadline:
            time.sleep(0.01)
        writes = json.loads(path.read_bytes())["writes"]
    assert lost >= 8
    assert writes >= 7
    assert not path.exists()


def test_a_large_object_is_written_on_its_condition_too(s3: str, tmp_path: Path) -> None:
    """The client would send it in parts, of which the first request forgets the condition."""
    path = open_objects(f"{s3}/team", BlockCache(tmp_path, 0)) / "manifest.json"
    path.write_bytes(b"of another run")
    large = bytes(101 << 20)
    assert create_object(path, large) is None
    assert replace_object(path, large, b"before", '"0"') is None
    assert path.read_bytes() == b"of another run"


def test_a_damaged_footer_is_not_kept(place: ObjectPath, tmp_path: Path) -> None:
    """A shard that was mended has the bytes, and so the hash, that it was to have before."""
    folder = place / "s"
    update(folder, make_recipe(), range(20))
    path = folder / "part-00001.parquet"
    right = path.read_bytes()
    footer = len(right) - 8 - int.from_bytes(right[-8:-4], "little")
    shutil.rmtree(tmp_path / "blocks", ignore_errors=True)
    path.write_bytes(right[:footer] + b"\xff" + right[footer + 1 :])
    with pytest.raises(StoreError, match=r"part-00001\.parquet: damaged"):
        read(folder, range(20))
    assert repair_store(folder, verify_store(folder)) == []
    assert update(folder, make_recipe(), range(20)) == 8
    assert path.read_bytes() == right
    np.testing.assert_array_equal(
        read(folder, range(20)), make_rows(range(20), make_recipe()).vectors
    )


def test_processes_that_keep_blocks_at_once_keep_to_the_limit(tmp_path: Path) -> None:
    processes = [BlockCache(tmp_path / "blocks", 100_000) for _ in range(4)]
    for number in range(400):
        content = number.to_bytes(4, "little") * 250
        cache = processes[number % 4]
        assert cache.read(f"{number}", lambda c=content: c, lambda _: True) == content
        kept = sum(p.stat().st_size for p in (tmp_path / "blocks").rglob("*") if p.is_file())
        assert kept <= 130_000
    assert kept > 70_000


def test_the_overlap_of_a_store_and_a_corpus_is_what_they_share(
    place: ObjectPath, tmp_path: Path
) -> None:
    folder = place / "s"
    assert measure_overlap(folder, make_keys(range(4))) == Overlap(0, 0)
    update(folder, make_recipe(), range(20))
    cases = {
        (0, 20): 0, (0, 24): 0, (3, 20): 3, (3, 30): 3, (10, 30): 10, (11, 30): 11, (50, 90): 20,
    }  # fmt: skip
    for is_lost in (False, True):
        for (start, stop), strange in cases.items():
            overlap = measure_overlap(folder, make_keys(range(start, stop)))
            assert overlap == Overlap(20, strange)
            assert overlap.is_of_another == (strange > 10)
        if not is_lost:
            (folder / "manifest.json").unlink()
    here = tmp_path / "store"
    update(here, make_recipe(), range(20))
    assert measure_overlap(here, make_keys(range(50, 90))) == Overlap(0, 0)


def test_a_store_that_takes_connections_and_never_answers_ends_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kind of request, among them one that is larger than what a system takes in unread."""
    wait = objects._ROUNDS * objects._ATTEMPTS * objects._ANSWER_SECONDS
    assert 60 <= wait <= 80  # seconds, beside the pauses between attempts
    monkeypatch.setattr(objects, "_ANSWER_SECONDS", 0.2)
    requests: list[Callable[[ObjectPath], object]] = [
        lambda path: path.read_bytes(),
        lambda path: path.write_bytes(b"a shard"),
        lambda path: path.write_bytes(bytes(20 << 20)),
        lambda path: create_object(path, b"a lock"),
        lambda path: list(path.iterdir()),
        lambda path: path.replace(path.with_name("another")),
    ]

    path = open_objects(f"s3://{BUCKET}/team", BlockCache(tmp_path, 0)) / "an object"

    def ask(request: Callable[[ObjectPath], object]) -> str:
        with pytest.raises(ObjectStoreError) as caught:
            request(path)
        assert path.client.is_silent
        return caught.value.message

    silent = SlowServer()
    with silent as server, use_server(server), ThreadPoolExecutor(len(requests)) as pool:
        for message in pool.map(ask, requests):
            assert message.endswith("the store does not answer")
        attempts = objects._ROUNDS * objects._ATTEMPTS
        assert len(silent.connections) == len(requests) * attempts


def test_a_slow_upload_is_not_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes several times as long as an answer may."""
    monkeypatch.setattr(objects, "_ANSWER_SECONDS", 1.0)
    with SlowServer(pause_seconds=0.05) as server, use_server(server):
        path = open_objects(f"s3://{BUCKET}/team", BlockCache(tmp_path, 0)) / "a shard"
        started = time.monotonic()
        assert path.write_bytes(bytes(2 << 20)) == 2 << 20
        assert time.monotonic() - started > 3.0


def test_the_lock_of_a_store_that_fell_silent_is_not_waited_for(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs out by itself; giving it back would take as long as the request that failed."""
    folder = open_objects(f"{s3}/team", BlockCache(tmp_path, 0))
    call = ObjectClient.call
    asked: list[str] = []

    def count(client: ObjectClient, path: ObjectPath, name: str, *given: Any, **more: Any):
        asked.append(name)
        return call(client, path, name, *given, **more)

    monkeypatch.setattr(ObjectClient, "call", count)
    with hold_lease(folder / ".s.lock", what="the store"):
        asked.clear()
        folder.client.is_silent = True
    assert asked == []


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://key:s3cret@bucket/team", "s3://…@bucket/team: must hold no user, password or query"),
        ("s3://bucket/team?sig=s3cret", "s3://bucket/team?…: must hold no user"),
        ("s3://key:s3cret/2@bucket/team", "s3://…@bucket/team: must hold no user"),
        ("s3://key:s3cret?2@bucket/team", "s3://…: must hold no user"),
        ("s3://bucket/team?sig=1@s3cret", "s3://…: must hold no user"),
        ("s3:/key:s3cret@bucket/team", "…@bucket/team: must be the URL of a folder"),
        ("s3:/bucket/team?sig=s3cret", "s3:/bucket/team: must be the URL of a folder"),
        ("https://key:s3cret/2@host/team", "https://…@host/team: must be the URL of a folder"),
        ("s3://bucket", "must name a folder in a bucket, such as s3://bucket/folder"),
        ("s3://bucket/../team", "must name a folder in a bucket"),
        ("s3://bucket//team", "must name a folder in a bucket"),
        ("file:///tmp/team", "must be the URL of a folder in an object store"),
        ("https://host/team", "must be the URL of a folder in an object store"),
        ("simplecache::s3://bucket/team", "must be the URL of a folder in an object store"),
        ("/tmp/team", "must be the URL of a folder in an object store"),
    ],
)
def test_urls_that_cannot_be_are_refused_without_their_secrets(
    url: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError) as caught:
        open_objects(url, BlockCache(tmp_path, 0))
    assert caught.value.message.startswith("store.url: ")
    assert said in caught.value.message
    assert "s3cret" not in caught.value.message + str(caught.value.hint)


def test_an_object_is_no_file_of_this_machine(memory: str, tmp_path: Path) -> None:
    path = open_objects(f"{memory}/team", BlockCache(tmp_path, 0)) / "a.bin"
    with pytest.raises(TypeError, match=r"memory://bucket/team/a\.bin is no file of this machine"):
        open(path)  # noqa: PTH123, SIM115
    assert not path.exists()
    path.write_bytes(b"0123456789")
    assert path.stat().st_size == 10
    assert path.open("rb").read(4) == b"0123"
    assert path.read_range(8, 10) == b"89"
    assert [str(found) for found in path.parent.glob("*.bin")] == [str(path)]
    assert path.replace(path.with_name("b.bin")) == path.parent / "b.bin"
    assert [found.name for found in path.parent.iterdir()] == ["b.bin"]
