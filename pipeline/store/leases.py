"""Locks that runs on different machines hold in an object store.

A lock is an object that its holder writes again every few seconds, on the condition that it is
still the one that it wrote. One that was not written for a minute is of a run that was killed or
lost its network, and the next run takes it over. Where the store refuses a write whose condition
does not hold, two runs never hold a lock that is not taken over. A run that was only slow finds its
lock taken: it stops before its next file, and what it has decided meanwhile changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import LockedError, ObjectStoreError
from pipeline.store.objects import Facts, ObjectPath, create_object, replace_object

LEASE_SECONDS = 60.0  # without a sign of life, after which a lock may be taken over
RENEW_SECONDS = 10.0  # between two signs of life


class _Lease:
    """One run's lock.

    :param path: the object.
    :param what: what the lock guards, for messages.
    """

    def __init__(self, path: ObjectPath, what: str) -> None:
        self._path = path
        self._what = what
        self._mark = secrets.token_hex(16)
        self._writes = 0
        self._content = self._describe()
        self._etag = ""
        self._ended = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="lease", daemon=True)

    def _describe(self) -> bytes:
        self._writes += 1
        about = {
            "mark": self._mark,
            "process": os.getpid(),
            "host": socket.gethostname(),
            "system": _identify_system(),
            "writes": self._writes,
        }
        return json.dumps(about).encode()

    def acquire(self) -> None:
        """Take the lock.

        :raises LockedError: if another run holds it.
        """
        etag = create_object(self._path, self._content)
        if etag is None:
            etag = self._take_over()
        if etag is None:
            raise self._refuse()
        self._etag = etag
        self._renewing.start()

    def _take_over(self) -> str | None:
        """Take the lock of a run that has ended without giving it back."""
        try:
            facts, held = self._read_held()
        except FileNotFoundError:  # it was given back in this moment
            return create_object(self._path, self._content)
        if not _has_ended(held):
            if -RENEW_SECONDS < time.time() - facts.modified < LEASE_SECONDS:
                return None
            # The clocks of machines differ, so that a sign of life is waited for.
            self._ended.wait(2 * RENEW_SECONDS)
        return replace_object(self._path, self._content, held, facts.etag)

    def _refuse(self) -> LockedError:
        about = {}
        with contextlib.suppress(FileNotFoundError):
            about = _parse(self._path.read_bytes())
        host, process = about.get("host", "another machine"), about.get("process", "unknown")
        where = "" if host == socket.gethostname() else f" on {host}"
        return LockedError(
            f"another run (process {process}{where}) is writing {self._what}",
            hint="wait until it ends, or stop it, then run the command again; the lock of a run "
            f"that was lost counts for {LEASE_SECONDS:.0f} seconds",
        )

    def _read_held(self) -> tuple[Facts, bytes]:
        """What the store says of the lock, and its content, which may be younger but not older.

        So a write on the condition of this etag replaces nothing but that content.
        """
        facts = self._path.read_facts()
        return facts, self._path.read_bytes()

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            try:
                is_held = self._give_sign()
            except ObjectStoreError:  # the next try may get through before the lock has run out
                continue
            if not is_held:  # another run has it now, which the claim on the folder tells
                return

    def _give_sign(self) -> bool:
        """Write the lock again, if it is still this run's.

        :returns: whether it is.
        """
        content = self._describe()
        etag = replace_object(self._path, content, self._content, self._etag)
        if etag is None:
            try:
                facts, content = self._read_held()
            except FileNotFoundError:
                return False
            if _parse(content).get("mark") != self._mark:
                return False
            etag = facts.etag  # of an earlier sign, whose answer has not arrived
        self._content, self._etag = content, etag
        return True

    def release(self) -> None:
        """Give the lock back, if it is still this run's and the store answers."""
        self._ended.set()
        if self._path.client.is_silent:  # which a further minute of waiting would not change
            return
        self._renewing.join()
        with contextlib.suppress(ObjectStoreError, OSError):
            if _parse(self._path.read_bytes()).get("mark") == self._mark:
                self._path.unlink(missing_ok=True)


def _parse(content: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        about = json.loads(content)
        if isinstance(about, dict):
            return about
    return {}


def _identify_system() -> str:
    """What processes have in common that see each other under the same numbers.

    Machines and containers may share the name of a host. Each start of Linux has a number of its
    own, and so has each container's table of processes.

    :returns: empty where the system does not tell.
    """
    with contextlib.suppress(OSError):
        start = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{start} {Path('/proc/self/ns/pid').readlink()}"
    return ""


def _has_ended(held: bytes) -> bool:
    """Whether the run that holds a lock was one of this machine, and is not there any more."""
    about, system = _parse(held), _identify_system()
    if not system or about.get("system") != system or not isinstance(about.get("process"), int):
        return False
    try:
        os.kill(about["process"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


@contextlib.contextmanager
def hold_lease(path: ObjectPath, *, what: str) -> Iterator[None]:
    """Hold a lock in an object store.

    :param path: the object.
    :param what: what the lock guards, for the message.
    :raises LockedError: if another run holds it.
    """
    lease = _Lease(path, what)
    lease.acquire()
    try:
        yield
    finally:
        lease.release()
