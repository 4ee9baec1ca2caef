"""The operations on files by which a folder of this machine and an object store differ.

All else that the store does with its files is that of ``pathlib``, which ``ObjectPath`` follows.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline import files
from pipeline.errors import StoreError
from pipeline.store.leases import hold_lease
from pipeline.store.objects import ObjectPath, create_object, replace_object

Piece = bytes | memoryview  # of a file

T = TypeVar("T")
R = TypeVar("R")

SizeOf = Callable[[str], int | None]  # name of a file in a folder → its size, if it is there

_REQUESTS_AT_ONCE = 16  # of an object store, whose answers take some hundredths of a second each
_FOOTER_BYTES = 1 << 16  # of the end of a shard, read to have its footer in one request


class Ranges(Protocol):
    """A file whose parts are read."""

    def read_into(self, values: npt.NDArray[np.uint8], offset: int, check: str) -> int:
        """Read bytes until an array is full or the file ends.

        :param values: the array.
        :param offset: the first byte, from 0.
        :param check: XXH3-64 of the bytes, by which those that were read before are known.
        :returns: how many bytes were read.
        """

    def close(self) -> None:
        """Give the file back."""


class Place(Protocol):
    """What keeps the files of a store."""

    is_atomic: bool  # whether a rename is one step, which a kill cannot part
    is_shared: bool  # whether runs of other projects may write to the same store
    threads: int | None  # that read at once; the machine's cores if ``None``

    def check(self, folder: Path) -> None:
        """Make sure that what reaches a store is installed, before anything else is done.

        :param folder: the store.
        :raises ObjectStoreError: if it is not.
        """

    def find_real(self, path: Path) -> Path:
        """The path with all symbolic links resolved."""

    def find_disk(self, path: Path) -> object:
        """What is equal for paths between which files can be renamed."""

    def find_use(self, folder: Path) -> int:
        """When something in a folder was last changed, in nanoseconds."""

    def exists(self, path: Path) -> bool:
        """Whether something has this name, be it a link that leads nowhere."""

    def measure(self, folder: Path) -> SizeOf:
        """The sizes of the files in a folder, as they are now or are when they are asked for."""

    def write(self, path: Path, content: bytes) -> None:
        """Write a whole file; its name holds nothing, what was there before, or all of it."""

    def create(self, path: Path, content: bytes) -> None:
        """Write a file that decides something.

        :param path: the file.
        :param content: its bytes.
        :raises StoreError: if another machine has decided meanwhile.
        """

    def write_over(self, path: Path, content: bytes, expected: Callable[[bytes], bool]) -> None:
        """Write a whole file over one that is as expected, or over none.

        :param path: the file.
        :param content: its bytes.
        :param expected: a function that tells whether bytes are such as may be written over.
        :raises StoreError: if another machine has written it meanwhile.
        """

    def write_named(
        self, folder: Path, stem: str, pieces: Sequence[Piece], name: Callable[[str], str]
    ) -> tuple[Path, str]:
        """Write a file whose name follows from the hash of its bytes.

        :param folder: its folder.
        :param stem: the beginning of its name.
        :param pieces: its bytes.
        :param name: a function that makes its name of their SHA-256.
        :returns: its path and the SHA-256.
        """

    def move(self, moves: Iterable[tuple[Path, Path]]) -> None:
        """Rename files, in their order where it is done one by one."""

    def remove(self, paths: Iterable[Path]) -> None:
        """Remove files, of which some need not be there."""

    def remove_folder(self, folder: Path) -> None:
        """Remove a folder and all that is in it, as far as that can be done."""

    def sync(self, folder: Path) -> None:
        """See to it that what was renamed in a folder is still so after a power cut."""

    def open_ranges(self, path: Path) -> Ranges:
        """Open a file to read parts of it."""

    def open_footer(self, path: Path, sha256: str, size: int) -> Any:
        """What pyarrow reads the footer of a shard from.

        :param path: the shard.
        :param sha256: SHA-256 of its bytes; empty if it is not known.
        :param size: its size; 0 if it is not known.
        """

    def forget_footer(self, path: Path, sha256: str, size: int) -> None:
        """Read the footer of a shard anew from now on, as what it says has turned out to be wrong.

        :param path: the shard.
        :param sha256: SHA-256 that its bytes should have.
        :param size: the size that it should have.
        """

    def call_each(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Call a function on each item, several at a time where each waits for the network."""

    def hold_lock(self, path: Path, what: str) -> AbstractContextManager[None]:
        """Hold a lock, which other runs respect.

        :param path: its file.
        :param what: what it guards, for the message of who does not get it.
        """


def hash_pieces(pieces: Sequence[Piece]) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


class _OpenFile:
    """A file of this machine, read by ``preadv``, so that threads may share it."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_RDONLY)

    def read_into(self, values: npt.NDArray[np.uint8], offset: int, check: str) -> int:
        got = os.preadv(self._handle, [values.data], offset) if offset >= 0 else 0
        while 0 < got < len(values):
            more = os.preadv(self._handle, [values[got:].data], offset + got)
            if more <= 0:
                break
            got += more
        return got

    def close(self) -> None:
        os.close(self._handle)


class _LocalPlace:
    """Folders of this machine, or that it shares with others."""

    is_atomic = True
    is_shared = False
    threads: int | None = None

    def check(self, folder: Path) -> None:
        """Nothing is needed."""

    def find_real(self, path: Path) -> Path:
        return Path(os.path.realpath(path))

    def find_disk(self, path: Path) -> object:
        return path.stat().st_dev

    def find_use(self, folder: Path) -> int:
        return folder.stat().st_mtime_ns

    def exists(self, path: Path) -> bool:
        return os.path.lexists(path)

    def measure(self, folder: Path) -> SizeOf:
        def size_of(name: str) -> int | None:
            try:
                return (folder / name).stat().st_size
            except OSError:
                return None

        return size_of

    def write(self, path: Path, content: bytes) -> None:
        files.write_bytes(path, content)

    def create(self, path: Path, content: bytes) -> None:
        files.write_bytes(path, content)

    def write_over(self, path: Path, content: bytes, expected: Callable[[bytes], bool]) -> None:
        files.write_bytes(path, content)

    def write_named(
        self, folder: Path, stem: str, pieces: Sequence[Piece], name: Callable[[str], str]
    ) -> tuple[Path, str]:
        # A kill before it has its name leaves a file that says of itself that it is of no use.
        unnamed = folder / f"{files.SCRATCH_PREFIX}{stem}.parquet"
        try:
            with ThreadPoolExecutor(1) as beside:
                hashed = beside.submit(hash_pieces, pieces)
                with files.write_aside(unnamed) as file:
                    file.writelines(pieces)
                sha256 = hashed.result()
            path = folder / name(sha256)
            unnamed.replace(path)
            files.sync_folder(folder)
        except BaseException:
            with contextlib.suppress(OSError):
                unnamed.unlink(missing_ok=True)
            raise
        return path, sha256

    def move(self, moves: Iterable[tuple[Path, Path]]) -> None:
        for source, target in moves:
            source.replace(target)

    def remove(self, paths: Iterable[Path]) -> None:
        for path in paths:
            path.unlink(missing_ok=True)

    def remove_folder(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    def sync(self, folder: Path) -> None:
        files.sync_folder(folder)

    def open_ranges(self, path: Path) -> Ranges:
        return _OpenFile(path)

    def open_footer(self, path: Path, sha256: str, size: int) -> Any:
        return path

    def forget_footer(self, path: Path, sha256: str, size: int) -> None:
        """Nothing is kept of it."""

    def call_each(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        return map(function, items)

    def hold_lock(self, path: Path, what: str) -> AbstractContextManager[None]:
        return files.hold_lock(path, what=what)


class _ObjectRanges:
    """An object, of which parts that were read before stand on this machine's disk."""

    def __init__(self, path: ObjectPath) -> None:
        self._path = path

    def read_into(self, values: npt.NDArray[np.uint8], offset: int, check: str) -> int:
        size = len(values)
        # What is kept is what had this hash; anything else that is read now is not kept as such.
        name = f"{self._path}:{offset}:{size}:{check}"
        content = self._path.client.blocks.read(
            name, lambda: self._path.read_range(offset, size), lambda got: _has_check(got, check)
        )
        values[: len(content)] = np.frombuffer(content, np.uint8)
        return len(content)

    def close(self) -> None:
        """There is nothing to give back."""


def _has_check(content: bytes, check: str) -> bool:
    from xxhash import xxh3_64_hexdigest

    return bool(xxh3_64_hexdigest(content) == check)


class _ObjectPlace:
    """An object store: each file is one object, written and read by single requests."""

    is_atomic = False
    is_shared = True
    threads: int | None = _REQUESTS_AT_ONCE

    def check(self, folder: Path) -> None:
        _as_object(folder).client.check()

    def find_real(self, path: Path) -> Path:
        return path

    def find_disk(self, path: Path) -> object:
        return _as_object(path).client.url

    def find_use(self, folder: Path) -> int:
        changes = [path.stat().st_mtime for path in folder.iterdir()]
        return int(max(changes, default=0) * 1e9)

    def exists(self, path: Path) -> bool:
        return path.exists()

    def measure(self, folder: Path) -> SizeOf:
        try:
            sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
        except FileNotFoundError:
            sizes = {}
        return sizes.get

    def write(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)

    def create(self, path: Path, content: bytes) -> None:
        if create_object(_as_object(path), content) is None:
            raise describe_change(path)

    def write_over(self, path: Path, content: bytes, expected: Callable[[bytes], bool]) -> None:
        target = _as_object(path)
        try:
            facts, before = target.read_facts(), target.read_bytes()
        except FileNotFoundError:
            self.create(path, content)
            return
        if before == content:
            return
        if not expected(before) or replace_object(target, content, before, facts.etag) is None:
            raise describe_change(path)

    def write_named(
        self, folder: Path, stem: str, pieces: Sequence[Piece], name: Callable[[str], str]
    ) -> tuple[Path, str]:
        sha256 = hash_pieces(pieces)
        path = folder / name(sha256)
        path.write_bytes(b"".join(pieces))
        return path, sha256

    def move(self, moves: Iterable[tuple[Path, Path]]) -> None:
        for _ in self.call_each(lambda move: move[0].replace(move[1]), moves):
            pass

    def remove(self, paths: Iterable[Path]) -> None:
        for _ in self.call_each(lambda path: path.unlink(missing_ok=True), paths):
            pass

    def remove_folder(self, folder: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.remove(path for path in folder.iterdir() if path.is_file())

    def sync(self, folder: Path) -> None:
        """An object store answers when what was written lasts."""

    def open_ranges(self, path: Path) -> Ranges:
        return _ObjectRanges(_as_object(path))

    def open_footer(self, path: Path, sha256: str, size: int) -> Any:
        target = _as_object(path)
        if not sha256:
            return io.BytesIO(_read_end(target, target.stat().st_size))
        name = _name_footer(target, sha256, size)
        return io.BytesIO(target.client.blocks.read(name, lambda: _read_end(target, size), _is_end))

    def forget_footer(self, path: Path, sha256: str, size: int) -> None:
        target = _as_object(path)
        target.client.blocks.forget(_name_footer(target, sha256, size))

    def call_each(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
            yield from pool.map(function, items)

    def hold_lock(self, path: Path, what: str) -> AbstractContextManager[None]:
        return hold_lease(_as_object(path), what=what)


def _name_footer(path: ObjectPath, sha256: str, size: int) -> str:
    return f"{path}:footer:{size}:{sha256}"


def _read_end(path: ObjectPath, size: int) -> bytes:
    """The end of a Parquet file, which holds its footer; less of it than that, if it is none."""
    start = max(0, size - _FOOTER_BYTES)
    end = path.read_range(start, size - start)
    footer = int.from_bytes(end[-8:-4], "little") + 8
    if _is_end(end) or not end.endswith(b"PAR1") or footer > size:
        return end
    return path.read_range(size - footer, footer)


def _is_end(end: bytes) -> bool:
    """Whether bytes are the end of a Parquet file, with all of its footer."""
    return end.endswith(b"PAR1") and int.from_bytes(end[-8:-4], "little") + 8 <= len(end)


def _as_object(path: Path) -> ObjectPath:
    assert isinstance(path, ObjectPath)
    return path


def describe_change(path: Path) -> StoreError:
    """The error of a run that finds that another one has taken over.

    :param path: what the other one has changed.
    """
    return StoreError(
        f"{path}: another run has changed the store in this moment; nothing of it was written over",
        hint="run the command again, which takes up what this run has embedded",
    )


def hold_store(folder: Path) -> AbstractContextManager[None]:
    """Hold the lock of a store that other projects may share; of any other, the project's serves.

    :param folder: the store.
    :raises LockedError: if another run holds it.
    """
    place = find_place(folder)
    if not place.is_shared:
        return contextlib.nullcontext()
    return place.hold_lock(folder.with_name(f".{folder.name}.lock"), f"{folder}/")


_LOCAL: Place = _LocalPlace()
_OBJECTS: Place = _ObjectPlace()


def find_place(path: Path) -> Place:
    """What keeps a file or a folder.

    :param path: its path.
    """
    return _OBJECTS if isinstance(path, ObjectPath) else _LOCAL
