"""Files on disk: written aside and renamed, so that a name never holds half a file."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from pipeline.errors import LockedError, ReadError, StageError, WriteError

# What the product keeps as JSON or YAML is read whole, and parsed it takes some ten times as much
# memory. The largest such file that a stage writes, the manifest of a store of millions of texts,
# has some megabytes.
JSON_BYTES = 64_000_000
SCRATCH_PREFIX = ".tmp-"  # of what is not finished, or was left by a kill
_HASH = "sha256"  # the key of a record's own hash
# The system's numbers of errors that mean a damaged file: none, where a library found it damaged,
# or that of an offset that was taken from the file.
_OF_DAMAGE = (None, 0, errno.EINVAL)
_MOST_LEVELS = 32  # of lists and mappings within each other; a stage writes fewer than ten
_SHOWN_CHARACTERS = 60  # of a number in a message
_REASON_CHARACTERS = 300  # of what a library says of a damaged file
_READ_REMEDIES = {
    errno.EACCES: "you may not read it; change the permissions of the file or of its folder",
    errno.EPERM: "you may not read it; change the permissions of the file or of its folder",
    errno.EISDIR: "there must be a file, not a folder; move the folder away",
    errno.ENOTDIR: "a file stands where a folder should; move it away",
    errno.EIO: "check the disk that holds it",
}
_WRITE_REMEDIES = {
    errno.ENOSPC: "free some space on that disk and run the command again",
    errno.EDQUOT: "your disk quota is used up; free some space and run the command again",
    errno.EFBIG: "the file is larger than this system lets you write",
    errno.EROFS: "that disk is read-only; choose a folder that you can write to",
    errno.EACCES: "you may not write there; change the folder's permissions",
    errno.EPERM: "you may not write there; change the folder's permissions",
}


def describe_write_error(error: OSError, path: Path | str | None = None) -> WriteError:
    """The error to raise where a file cannot be written, with its remedy.

    :param error: what the system raised.
    :param path: the file that was being written; the error's own file name otherwise.
    """
    where = path or error.filename or "a file"
    return WriteError(
        f"cannot write {where}: {give_reason(error)}; nothing that was there before has changed",
        hint=_WRITE_REMEDIES.get(error.errno or 0),
    )


def describe_read_error(error: OSError, path: Path | str, *, hint: str | None = None) -> ReadError:
    """The error to raise where a file cannot be read, with its remedy.

    :param error: what the system raised.
    :param path: the file that was being read.
    :param hint: what to do next; by the error if left out.
    """
    return ReadError(
        f"cannot read {path}: {give_reason(error)}",
        hint=hint or _READ_REMEDIES.get(error.errno or 0),
    )


def give_reason(error: OSError) -> str:
    """What the system says of an error, without number and file name."""
    return os.strerror(error.errno) if error.errno else str(error)


def create_file(path: Path) -> IO[bytes]:
    """A new file, open for writing; what stands under its name already is an error."""
    return path.open("xb")


@contextlib.contextmanager
def write_aside(path: Path) -> Iterator[IO[bytes]]:
    """Open a file beside ``path`` for writing; give it that name only when it is whole.

    The bytes are flushed to the disk before the rename, and the folder after it, so that neither a
    kill nor a power cut leaves a name with half a file behind it.

    :param path: the final name; its folder is made if need be.
    :raises WriteError: if the disk is full, read-only or closed to this user. What stood under the
        name before is untouched.
    """
    aside: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The name is known before the file is there, so that Ctrl-C at no moment leaves the file.
        aside = path.with_name(f"{SCRATCH_PREFIX}{secrets.token_hex(8)}{path.suffix}")
        with create_file(aside) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        aside = None
        sync_folder(path.parent)
    except OSError as error:
        raise describe_write_error(error, path) from error
    finally:
        if aside is not None:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, where the system allows it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file at once, aside and renamed."""
    with write_aside(path) as file:
        file.write(content)


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Write several whole files, or none.

    They get their names, in this order, when all are on the disk.
    """
    with contextlib.ExitStack() as stack:
        for path, content in reversed(list(contents.items())):
            file = stack.enter_context(write_aside(path))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def is_scratch(path: Path) -> bool:
    """Whether a file was left half-written by a run that was killed, or is being written."""
    return path.name.startswith(SCRATCH_PREFIX) and path.is_file() and not path.is_symlink()


def clear_scratch(*folders: Path) -> None:
    """Remove what killed runs left half-written in folders to which nothing else writes now.

    :param *folders: folders, which need not exist.
    """
    for folder in folders:
        with contextlib.suppress(OSError):  # not there, or read-only, which the stage will say
            for path in filter(is_scratch, list(folder.iterdir())):
                path.unlink(missing_ok=True)


def format_json(value: Any) -> bytes:
    """``value`` as indented JSON with a final newline."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON with a final newline, aside and renamed."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_bytes(path, text.encode("utf-8"))


def parse_json(content: bytes) -> Any:
    """The value that some JSON stands for.

    :param content: JSON in UTF-8.
    :raises ValueError: if it is no JSON; if it holds a number that is not finite, or half a
        surrogate pair, which no file and no terminal can take; or if it is nested too deeply or is
        too large for this machine.
    """
    try:
        value = json.loads(content, parse_float=_parse_float, parse_constant=_parse_float)
        if b"\\ud" in content.lower():
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        is_deep = _is_deeper(value, _MOST_LEVELS)
    except RecursionError:
        is_deep = True
    except MemoryError as error:
        raise ValueError("it is too large for this machine's memory") from error
    if is_deep:
        raise ValueError("it is nested too deeply")
    return value


def _parse_float(text: str) -> float:
    """A number of JSON; Python itself would take ``NaN``, and infinity for ``1e999``."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:_SHOWN_CHARACTERS]} is not a finite number")
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and mappings stand more than some levels within each other."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(levels):
        inner = [v for item in level for v in (item.values() if isinstance(item, dict) else item)]
        level = [item for item in inner if isinstance(item, dict | list)]
        if not level:
            return False
    return True


def read_bounded(path: Path, limit_bytes: int = JSON_BYTES) -> bytes:
    """The content of a file that ought to be small, without reading more of it than that.

    :param path: the file.
    :param limit_bytes: the largest size that such a file may have.
    :raises ValueError: if it is larger.
    :raises OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(limit_bytes + 1)
        if len(content) > limit_bytes:
            size = os.fstat(file.fileno()).st_size
            raise ValueError(
                f"{max(size, len(content)):,} bytes, where {limit_bytes:,} are the most"
            )
    return content


def read_json(path: Path, *, stage: str) -> Any:
    """Read a JSON file that a stage wrote.

    :param path: the file.
    :param stage: the stage that writes it, named in the error's hint.
    :raises StageError: if it is missing or not JSON.
    :raises ReadError: if it cannot be read.
    """
    try:
        return parse_json(read_bounded(path))
    except FileNotFoundError as error:
        raise StageError(f"{path}: no such file", hint=f"run `pipeline {stage}` first") from error
    except OSError as error:
        raise describe_read_error(error, path) from error
    except ValueError as error:
        raise StageError(
            f"{path}: damaged, not JSON ({error})", hint=f"run `pipeline {stage}` again"
        ) from error


def hash_json(value: Any) -> str:
    """SHA-256 of a value in canonical JSON, in hexadecimal.

    :param value: a value of JSON.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def add_hash(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the hash of its contents, by which a reader notices a change of any byte.

    :param record: the record, which becomes JSON.
    :returns: the record as a reader will find it, and last its hash.
    """
    content: dict[str, Any] = json.loads(json.dumps(record))
    return content | {_HASH: hash_json(content)}


def check_hash(record: Mapping[str, Any], *, is_required: bool = True) -> dict[str, Any]:
    """The contents of a record that ``add_hash`` made.

    :param record: the record.
    :param is_required: whether there must be a hash; records of version 0.1.0 have none.
    :returns: the record without its hash.
    :raises ValueError: if the contents do not have the hash that the record states; ``KeyError``
        if it states none, and ``TypeError`` or ``AttributeError`` if it is no record.
    """
    content = {key: value for key, value in record.items() if key != _HASH}
    if (is_required or _HASH in record) and record[_HASH] != hash_json(content):
        raise ValueError("its contents do not have the hash that it states")
    return content


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def stage_folder(parent: Path) -> Iterator[Path]:
    """A scratch folder inside ``parent``, removed at the end whatever happens.

    The folder is on the disk of ``parent``, so what is finished in it gets its final name in one
    step. While the folder is in use it is locked, see ``is_in_use``.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX, dir=parent))
    except OSError as error:
        raise describe_write_error(error, parent) from error
    handle = None
    with contextlib.suppress(OSError):
        handle = _lock_folder(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def replace_folder(content: Path, target: Path, scratch: Path) -> None:
    """Give a folder its name; what had it before comes back if that fails.

    Another run may be doing the same: both succeed, and the content of the last one stays.

    :param content: the folder, on the disk of its final name.
    :param target: the final name.
    :param scratch: a folder on the same disk for what had the name before; the caller removes it.
    :raises OSError: if the disk does not allow it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(10):
        old = scratch / f"old{attempt}"
        with contextlib.suppress(FileNotFoundError):
            target.rename(old)
        try:
            content.rename(target)
        except OSError as error:
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
                continue
            with contextlib.suppress(OSError):
                old.rename(target)
            raise
        sync_folder(target.parent)
        return
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(target))


@contextlib.contextmanager
def write_folder_aside(target: Path) -> Iterator[Path]:
    """Fill a folder beside ``target``; give it that name only when it is whole.

    :param target: the final name; what has it before is removed once the new folder is there.
    :yields: the empty folder to fill.
    :raises WriteError: if the disk is full, read-only or closed to this user. What stood under the
        name before is untouched.
    """
    with stage_folder(target.parent) as scratch, _writing(target):
        content = scratch / "content"
        content.mkdir()
        yield content
        for file in content.rglob("*"):
            if file.is_file():
                _sync_file(file)
        replace_folder(content, target, scratch)


@contextlib.contextmanager
def write_files_aside(target: Path) -> Iterator[Path]:
    """Fill a scratch folder with a file and those that belong to it; name them when all are whole.

    :param target: the final name of the file, which gets it after the others have theirs.
    :yields: the empty folder to fill.
    :raises WriteError: if the disk is full, read-only or closed to this user.
    """
    with stage_folder(target.parent) as scratch, _writing(target):
        yield scratch
        files = sorted(scratch.iterdir(), key=lambda file: file.name == target.name)
        for file in files:
            _sync_file(file)
        for file in files:
            file.replace(target.with_name(file.name))
        sync_folder(target.parent)


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Turn what the system raises into the error of a file that cannot be written."""
    try:
        yield
    except OSError as error:
        raise describe_write_error(error, target) from error


def _sync_file(path: Path) -> None:
    """Flush a file to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def is_in_use(folder: Path) -> bool:
    """Whether a process works in a scratch folder, as far as the folder's lock tells.

    The lock dies with its process. Where folders cannot be locked, none is in use.

    :param folder: a folder of ``stage_folder``.
    """
    try:
        handle = _lock_folder(folder)
    except BlockingIOError:
        return True
    if handle is not None:
        os.close(handle)
    return False


def _lock_folder(folder: Path) -> int | None:
    """Lock a folder, where the system can.

    :returns: a handle to close; ``None`` where this folder cannot be locked.
    :raises BlockingIOError: if another one holds the lock.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return handle


@contextlib.contextmanager
def hold_lock(path: Path, *, what: str) -> Iterator[None]:
    """Hold a lock that dies with its process.

    :param path: the lock file; it holds the number of the process that has it.
    :param what: what the lock guards, for the message.
    :raises LockedError: at once, naming the process, if another one holds it.
    """
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise LockedError(
            f"another run (process {_read_owner(path)}) is writing {what}",
            hint="wait until it ends, or stop it, then run the command again",
        ) from error
    except OSError as error:
        raise describe_write_error(error, path) from error
    owner = path.with_suffix(".pid")
    try:
        with contextlib.suppress(OSError):
            owner.write_text(f"{os.getpid()}\n{socket.gethostname()}\n")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _read_owner(lock: Path) -> str:
    """The number of the process that holds a lock, which it may be about to write or remove.

    A folder may be shared, so the machine is named where it is another one.
    """
    try:
        process, _, host = lock.with_suffix(".pid").read_text().strip().partition("\n")
    except OSError:
        return "unknown"
    is_elsewhere = host not in {"", socket.gethostname()}
    return f"{process or 'unknown'} on {host}" if is_elsewhere else process or "unknown"


@contextlib.contextmanager
def reading(path: Path, stage: str, *damage: type[Exception]) -> Iterator[None]:
    """Turn what goes wrong while a file is read into an error that names the stage to run.

    :param path: the file.
    :param stage: the stage that writes it.
    :param *damage: errors that mean damage, beside those of Python's own conversions.
    :raises StageError: if the file is missing or damaged.
    :raises ReadError: if the system does not let it be read.
    """
    kinds: tuple[type[Exception], ...] = (
        LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError,
        MemoryError, OSError, *damage,
    )  # fmt: skip
    try:
        yield
    except FileNotFoundError as error:
        raise StageError(f"{path}: no such file", hint=f"run `pipeline {stage}` first") from error
    except kinds as error:
        if isinstance(error, OSError) and (error.errno not in _OF_DAMAGE or path.is_dir()):
            if path.is_dir():
                error = IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            raise describe_read_error(error, path) from error
        reason = " ".join(str(error).split())[:_REASON_CHARACTERS]  # some write paragraphs
        if type(error) is not ValueError:  # the message of another kind alone may be but a key
            reason = f"{type(error).__name__}: {reason}"
        raise StageError(
            f"{path}: damaged ({reason})",
            hint=f"run `pipeline {stage}` again",
        ) from error
