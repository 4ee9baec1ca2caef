"""Parts of objects that were read before, on this machine's disk, so that the network is paid once.

A part is known by the object, its place in it and the hash of its values, so what is kept never
grows stale. The folder has a limit, beyond which what was not read for longest goes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import threading
from collections.abc import Callable
from pathlib import Path

_HASH_BYTES = 8  # of XXH3-64, before the content of each file
_SHARE_AFTER = 0.8  # of the limit that may be filled after files were removed
_SHARE_UNSEEN = 0.05  # of the limit that a process adds before it looks what others have added


class BlockCache:
    """Bytes by name, on the disk; all processes of a user may share the folder.

    :param folder: the folder, which need not exist.
    :param limit_bytes: the size that its files may have together, about; 0 keeps nothing.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._bytes: int | None = None  # that the files have, as far as this process knows
        self._unseen = 0  # bytes that this process has added since it looked
        self._one_at_a_time = threading.Lock()

    def read(
        self, name: str, fetch: Callable[[], bytes], is_right: Callable[[bytes], bool]
    ) -> bytes:
        """The bytes of a name.

        :param name: a name that stands for these very bytes and no others.
        :param fetch: a function that gets them where they are not kept.
        :param is_right: a function that tells whether what was fetched may be kept.
        """
        if not self._limit_bytes:
            return fetch()
        self._count_at_first()
        path = self._locate(name)
        kept = _read_whole(path)
        if kept is not None:
            with contextlib.suppress(OSError):
                os.utime(path)  # by which it is seen to be in use
            return kept
        content = fetch()
        if is_right(content):
            with contextlib.suppress(OSError):  # a disk that is full or read-only costs speed alone
                self._keep(path, content)
        return content

    def forget(self, name: str) -> None:
        """Keep the bytes of a name no longer: they have turned out not to be what it stands for.

        :param name: the name.
        """
        with contextlib.suppress(OSError):
            self._locate(name).unlink(missing_ok=True)

    def _locate(self, name: str) -> Path:
        digest = hashlib.sha256(name.encode()).hexdigest()
        return self._folder / digest[:2] / digest[2:]

    def _keep(self, path: Path, content: bytes) -> None:
        from xxhash import xxh3_64_digest

        size = _HASH_BYTES + len(content)
        if size > self._limit_bytes:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".tmp-{secrets.token_hex(8)}")
        try:
            with aside.open("xb") as file:
                file.write(xxh3_64_digest(content))
                file.write(content)
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        with self._one_at_a_time:
            self._bytes = (self._bytes or 0) + size
            self._unseen += size
            is_due = self._unseen > _SHARE_UNSEEN * self._limit_bytes
            if is_due or self._bytes > self._limit_bytes:
                self._bytes, self._unseen = self._shrink(), 0

    def _count_at_first(self) -> None:
        """Find out how much is kept from before, of which too much goes if the limit is lower."""
        with self._one_at_a_time:
            if self._bytes is None:
                self._bytes = 0
                with contextlib.suppress(OSError):  # the folder is not there, or not to be read
                    self._bytes = self._shrink()

    def _list_files(self) -> list[tuple[int, int, str]]:
        """When each file was last in use, its size and its path; that in use last comes last."""
        found = []
        for folder in os.scandir(self._folder):
            if folder.is_dir(follow_symlinks=False):
                for file in os.scandir(folder):
                    with contextlib.suppress(OSError):  # another process has just removed it
                        facts = file.stat(follow_symlinks=False)
                        found.append((facts.st_mtime_ns, facts.st_size, file.path))
        return sorted(found)

    def _shrink(self) -> int:
        """Remove what was not in use for longest, if the files of all processes are too many.

        :returns: the bytes that are left.
        """
        files = self._list_files()
        total = sum(size for _, size, _ in files)
        if total <= self._limit_bytes:
            return total
        for _, size, name in files:
            if total <= _SHARE_AFTER * self._limit_bytes:
                break
            with contextlib.suppress(OSError):
                Path(name).unlink(missing_ok=True)
                total -= size
        return total


def _read_whole(path: Path) -> bytes | None:
    """The content of a file that is as it was written; ``None`` if there is none such."""
    from xxhash import xxh3_64_digest

    try:
        raw = path.read_bytes()
    except OSError:
        return None
    content = raw[_HASH_BYTES:]
    return content if xxh3_64_digest(content) == raw[:_HASH_BYTES] else None
