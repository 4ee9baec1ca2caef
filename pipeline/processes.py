"""What processes that work for another one have in common."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing import connection, parent_process
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor


@contextmanager
def hold_interrupts() -> Iterator[None]:
    """Let Ctrl-C wait while processes start, which inherit that they do not see it.

    Ctrl-C reaches all processes of a terminal, and one that just starts would show a traceback. The
    process that a person started answers it and ends the others.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def stay_with_parent() -> None:
    """Leave Ctrl-C to the process that started this one, and end when that one ends.

    Ctrl-C reaches all processes of a terminal. The one that a person started answers it and ends
    the others, but cannot do so if it is killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


@contextmanager
def open_threads() -> Iterator[ThreadPoolExecutor]:
    """Threads, one for each core, on each of which NumPy computes products of matrices alone.

    Products of two blocks are too small for several threads to share: they would only wait for each
    other.

    :yields: the threads; until they have ended, products elsewhere take one thread, too.
    """
    from concurrent.futures import ThreadPoolExecutor

    with (
        _find_thread_pools().limit(limits=1, user_api="blas"),
        ThreadPoolExecutor(count_cores()) as pool,
    ):
        yield pool


@lru_cache(1)
def _find_thread_pools() -> Any:
    import numpy  # noqa: F401  # whose library is to be found
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def count_cores() -> int:
    """The cores that this process may use, at least one."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
