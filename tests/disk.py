"""A disk that fails at the n-th write, or a process that is killed there."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


class Disk:
    """Makes one of the calls that write below some folders fail, in this process.

    :param folders: the folders.
    :param removals: whether to count removals as well.
    :ivar calls: how many there were.
    :ivar fails_at: the number of the one that fails; the first is 1.
    :ivar lasts: fail at all further ones too, as a read-only disk does.
    :ivar errno: what it fails with.
    :ivar kills: kill this process there instead, in the midst of the write if it is one to a file.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *folders: Path, removals: bool = False
    ) -> None:
        self.folders = [str(folder.absolute()) for folder in folders]
        self.calls = 0
        self.fails_at = sys.maxsize
        self.lasts = False
        self.errno = 0
        self.kills = False
        self._open = os.open
        names = ["mkdir", "rename", "replace", "chmod", "open", "fsync"]
        for name in [*names, "unlink", "rmdir"] if removals else names:
            monkeypatch.setattr(os, name, self._wrap(getattr(os, name)))
        monkeypatch.setattr(Path, "open", self._wrap_open(Path.open))
        monkeypatch.setattr(os, "fdopen", self._open_handle)

    def _wrap(self, call: Callable[..., object]) -> Callable[..., object]:
        def wrapped(path: object, *arguments: object, **options: object) -> object:
            writes = call.__name__ != "open" or int(str(arguments[0])) & (os.O_WRONLY | os.O_RDWR)
            if writes:
                self.count(path)
            return call(path, *arguments, **options)

        return wrapped

    def _wrap_open(self, call: Callable[..., object]) -> Callable[..., object]:
        def wrapped(path: Path, mode: str = "r", *arguments: object, **options: object) -> object:
            if "w" in mode or "x" in mode:
                self.count(path)
            if mode == "xb":
                handle = self._open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
                return io.BufferedWriter(_File(self, handle))
            return call(path, mode, *arguments, **options)

        return wrapped

    def _open_handle(self, handle: int, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if mode == "wb":
            return io.BufferedWriter(_File(self, handle))
        return io.open(handle, mode, *arguments, **options)  # noqa: UP020

    def count(self, place: object, write_half: Callable[[], object] = lambda: None) -> None:
        """Count a write to a path or an open file, and fail if it is its turn."""
        path = os.readlink(f"/proc/self/fd/{place}") if isinstance(place, int) else str(place)  # noqa: PTH115
        if os.path.abspath(path).startswith(tuple(self.folders)):  # noqa: PTH100
            self.calls += 1
            if self.calls == self.fails_at and self.kills:
                write_half()
                os.kill(os.getpid(), signal.SIGKILL)
            if self.calls == self.fails_at or (self.lasts and self.calls > self.fails_at):
                raise OSError(self.errno, os.strerror(self.errno), path)


class _File(io.FileIO):
    """An open file on that disk."""

    def __init__(self, disk: Disk, handle: int) -> None:
        super().__init__(handle, "wb")
        self._disk = disk

    def write(self, content: Any) -> int:
        half = memoryview(content).cast("B")[: memoryview(content).nbytes // 2]
        self._disk.count(self.fileno(), lambda: super(_File, self).write(half))
        return super().write(content)
