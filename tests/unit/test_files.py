"""Files written aside, and the lock: what a full disk, a kill or a second run leave behind."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import files
from pipeline.errors import LockedError, ReadError, StageError, WriteError


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "content.json"
    path.parent.mkdir()
    path.write_bytes(b"old")
    return path


def fail(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, number: int) -> None:
    def raise_error(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(owner, name, raise_error)


@pytest.mark.parametrize("call", ["fsync", "rename"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_old_content_stays(
    call: str, number: int, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if call == "fsync":
        fail(monkeypatch, os, "fsync", number)
    else:
        fail(monkeypatch, Path, "replace", number)
    with pytest.raises(WriteError) as caught:
        files.write_bytes(target, b"new")
    assert str(target) in caught.value.message
    assert os.strerror(number) in caught.value.message
    assert target.read_bytes() == b"old"
    assert list(target.parent.iterdir()) == [target]


def test_old_content_stays_when_the_disk_is_full(target: Path) -> None:
    """A limit on the size of files is a full disk that the superuser meets too."""
    code = """
        import resource, sys
        from pathlib import Path
        from pipeline.errors import WriteError
        from pipeline.files import write_bytes

        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_bytes(Path(sys.argv[1]), bytes(5000))
        except WriteError as error:
            sys.exit(error.message)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(target)], capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stderr.startswith(f"cannot write {target}: {os.strerror(errno.EFBIG)}")
    assert target.read_bytes() == b"old"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_old_content_stays_when_the_writer_stops(target: Path, error: type[BaseException]) -> None:
    def stop_half_way() -> None:
        with files.write_aside(target) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        stop_half_way()
    assert target.read_bytes() == b"old"
    assert list(target.parent.iterdir()) == [target]


def test_new_content_has_the_usual_permissions(target: Path) -> None:
    before = os.umask(0o022)
    try:
        files.write_bytes(target, b"new")
    finally:
        os.umask(before)
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o644


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WriteError, match="cannot write"):
        files.write_bytes(tmp_path / "file" / "content.json", b"new")


def test_scratch_folder_goes_away_whatever_happens(tmp_path: Path) -> None:
    def stop_half_way() -> None:
        with files.stage_folder(tmp_path / "new") as scratch:
            (scratch / "inner").mkdir()
            (scratch / "inner" / "file").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_half_way()
    assert list((tmp_path / "new").iterdir()) == []


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"é": ["😀", None, 1.5], "nested": {"a": True}}
    files.write_json(tmp_path / "value.json", value)
    assert files.read_json(tmp_path / "value.json", stage="fetch") == value
    (tmp_path / "value.json").write_bytes(b'{"half": ')
    with pytest.raises(StageError, match="damaged, not JSON"):
        files.read_json(tmp_path / "value.json", stage="fetch")
    with pytest.raises(StageError, match="no such file") as caught:
        files.read_json(tmp_path / "none.json", stage="fetch")
    assert caught.value.hint == "run `pipeline fetch` first"


def test_what_cannot_be_read_is_not_said_to_be_unwritable_or_damaged(tmp_path: Path) -> None:
    """Neither the system's own errors nor those of a library, which have no number."""
    with pytest.raises(ReadError) as caught:
        files.read_json(tmp_path, stage="fetch")
    assert caught.value.message == f"cannot read {tmp_path}: Is a directory"
    assert caught.value.hint == "there must be a file, not a folder; move the folder away"
    with pytest.raises(ReadError, match="Is a directory"), files.reading(tmp_path, "embed"):
        raise OSError("Cannot open for reading: it is a directory")
    with pytest.raises(ReadError, match="Input/output"), files.reading(tmp_path / "a", "embed"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    with pytest.raises(StageError, match="damaged"), files.reading(tmp_path / "a", "embed"):
        raise OSError("Corrupt snappy compressed data")


@pytest.mark.parametrize("name", ["large", "endless", "deep"])
def test_json_of_a_hostile_size_or_depth_is_damage(name: str, tmp_path: Path) -> None:
    path = tmp_path / "assets.json"
    if name == "large":
        with path.open("wb") as file:
            file.truncate(1 << 40)  # a terabyte that takes no space
    elif name == "endless":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(b"[" * 100_000)
    with pytest.raises(StageError) as caught:
        files.read_json(path, stage="fetch")
    expected = "nested too deeply" if name == "deep" else "bytes, where 64,000,000 are the most"
    assert expected in caught.value.message
    assert caught.value.message.startswith(f"{path}: damaged, not JSON (")
    assert caught.value.hint == "run `pipeline fetch` again"


def test_a_bounded_file_is_read_to_its_last_byte(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert files.read_bounded(path, 5) == b"12345"
    with pytest.raises(ValueError, match=r"^5 bytes, where 4 are the most$"):
        files.read_bounded(path, 4)


def test_numbers_that_json_has_not_are_refused() -> None:
    for name in ("NaN", "Infinity", "-Infinity", "1e999"):
        content = f'{{"a": [{name}]}}'.encode()
        with pytest.raises(ValueError, match=f"^{name} is not a finite number$"):
            files.parse_json(content)


def test_hash_is_that_of_sha256sum(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 5000)
    known = subprocess.run(["sha256sum", tmp_path / "file"], capture_output=True, text=True)
    assert files.hash_file(tmp_path / "file") == known.stdout.split()[0]


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock ``cache/.lock`` until it is told to end."""
    code = """
        import sys
        from pathlib import Path
        from pipeline.files import hold_lock

        with hold_lock(Path(sys.argv[1]), what="cache/"):
            print("held", flush=True)
            sys.stdin.read()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "cache/.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_lock_names_the_process_that_has_it(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    lock = tmp_path / "cache/.lock"
    with pytest.raises(LockedError) as caught, files.hold_lock(lock, what="cache/"):
        pass
    assert caught.value.message == f"another run (process {holder.pid}) is writing cache/"
    assert caught.value.hint
    holder.communicate("")
    assert holder.returncode == 0
    with files.hold_lock(lock, what="cache/"):
        pass


def test_lock_dies_with_its_process(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with files.hold_lock(tmp_path / "cache/.lock", what="cache/"):
        # The dead process left its number; what counts is the one that has the lock now.
        (owner,) = tmp_path.rglob("*.pid")
        assert owner.read_text() == f"{os.getpid()}\n{socket.gethostname()}\n"


def test_lock_names_the_machine_that_has_it_if_it_is_another(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    (tmp_path / "cache/.lock.pid").write_text(f"{holder.pid}\nnode7\n")  # as node7 would have
    lock = tmp_path / "cache/.lock"
    with pytest.raises(LockedError) as caught, files.hold_lock(lock, what="cache/"):
        pass
    assert caught.value.message == f"another run (process {holder.pid} on node7) is writing cache/"


def test_lock_that_is_refused_stays_with_its_owner(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    lock = tmp_path / "cache/.lock"
    for _ in range(2):  # a refused run must not remove the owner's number on its way out
        with pytest.raises(LockedError, match=str(holder.pid)), files.hold_lock(lock, what="x"):
            pass


HOLD_SCRATCH = """
import sys, time
from pathlib import Path
from pipeline.files import stage_folder
with stage_folder(Path(sys.argv[1])) as folder:
    print(folder, flush=True)
    time.sleep(600)
"""


def test_scratch_in_use_is_known_by_its_lock_and_not_by_its_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.fetch.run import _remove_dead_scratch

    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_SCRATCH, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    folder = Path(holder.stdout.readline().strip())
    os.utime(folder, (0, 0))
    assert files.is_in_use(folder)
    _remove_dead_scratch(tmp_path)
    assert folder.is_dir()
    holder.kill()
    holder.wait()
    assert not files.is_in_use(folder)
    young = tmp_path / ".tmp-young"  # by the disk's clock, not by that of a machine two days ahead
    young.mkdir()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 2 * 24 * 3600)
    _remove_dead_scratch(tmp_path)
    assert list(tmp_path.iterdir()) == [young]
    with files.stage_folder(tmp_path) as staged:
        assert files.is_in_use(staged)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"\xff{}", "can't decode"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * 500 + b"]" * 500, "nested too deeply"),
        (b'{"a":' * 33 + b"1" + b"}" * 33, "nested too deeply"),
        (b'{"a": 1e999}', "1e999 is not a finite number"),
        (b'{"a": -Infinity}', "-Infinity is not a finite number"),
        (b"[NaN]", "NaN is not a finite number"),
        (b"[" + b"9" * 5_000 + b"]", "digits"),
        (rb'{"a": "\ud800"}', "surrogates not allowed"),
        (rb'{"\uDFFF": 1}', "surrogates not allowed"),
    ],
)
def test_json_that_no_stage_writes_is_one_message(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        files.parse_json(content)
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(StageError, match=f"^{path}: damaged, not JSON .*{message}") as caught:
        files.read_json(path, stage="fetch")
    assert "\n" not in caught.value.message
    assert caught.value.hint == "run `pipeline fetch` again"


def test_json_is_what_it_says(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True, {"ü": "\U0001f600"}], "b": {"c": [[[]]]}}
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        assert files.parse_json(text.encode()) == value
    assert files.parse_json(b"[" * 32 + b"]" * 32) == json.loads("[" * 32 + "]" * 32)


def test_a_json_file_of_any_size_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        file.truncate(10**12)  # holes, which take no disk
    message = r"large\.json: damaged, not JSON .*1,000,000,000,000 bytes"
    with pytest.raises(StageError, match=message):
        files.read_json(path, stage="fetch")


def test_a_record_states_the_hash_of_its_contents() -> None:
    record = {"b": [1.5, "ü"], "a": {"d": None, "c": 2}, "t": (1, 2)}
    hashed = files.add_hash(record)
    # Sorted keys, no blanks, ASCII: written out here.
    canonical = b'{"a":{"c":2,"d":null},"b":[1.5,"\\u00fc"],"t":[1,2]}'
    assert hashed["sha256"] == hashlib.sha256(canonical).hexdigest()
    assert files.check_hash(hashed) == {**record, "t": [1, 2]}
    assert files.check_hash(json.loads(files.format_json(hashed))) == {**record, "t": [1, 2]}


@pytest.mark.parametrize(
    "change",
    [{"a": 2}, {"a": True}, {"c": 1}, {"sha256": "0" * 64}, {"sha256": None}, {"a": 1.0}],
)
def test_a_changed_record_is_refused(change: dict[str, object]) -> None:
    hashed = files.add_hash({"a": 1, "b": 2})
    with pytest.raises(ValueError, match="do not have the hash that it states"):
        files.check_hash({**hashed, **change})
    with pytest.raises(ValueError, match="do not have the hash that it states"):
        files.check_hash({**hashed, **change}, is_required=False)


def test_a_record_without_a_hash_is_taken_only_where_earlier_versions_wrote_such() -> None:
    assert files.check_hash({"a": 1}, is_required=False) == {"a": 1}
    with pytest.raises(KeyError, match="sha256"):
        files.check_hash({"a": 1})


@pytest.mark.parametrize(
    "error",
    [
        RecursionError("deep"),
        MemoryError("large"),
        OverflowError("far"),
        IndexError("short"),
        OSError(errno.EINVAL, "an offset of the file"),
        OSError("a library's own"),
    ],
)
def test_whatever_a_damaged_file_raises_is_one_message(tmp_path: Path, error: Exception) -> None:
    path = tmp_path / "file"
    path.touch()
    with (
        pytest.raises(StageError, match=f"^{path}: damaged") as caught,
        files.reading(path, "embed"),
    ):
        raise error
    assert caught.value.hint == "run `pipeline embed` again"


def test_a_paragraph_of_a_library_becomes_a_line(tmp_path: Path) -> None:
    with pytest.raises(StageError) as caught, files.reading(tmp_path / "file", "embed"):
        raise ValueError("first\n  second " + "x" * 1000)
    assert caught.value.message.startswith(f"{tmp_path}/file: damaged (first second xxx")
    assert len(caught.value.message) < 400 + len(str(tmp_path))
