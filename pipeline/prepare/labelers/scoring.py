"""VADER's scores by several processes, where there are enough texts to repay their start.

Each process imports this file, so nothing is imported here that scoring does not need.
"""

from __future__ import annotations

import itertools
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Protocol

from pipeline.errors import DeviceError
from pipeline.prepare.labelers.sentiment import VaderScorer
from pipeline.processes import count_cores, hold_interrupts, stay_with_parent

# A process takes about 0.2 s of a core to start, in which a core scores some 20,000 messages.
TEXTS_A_PROCESS = 50_000
_CHUNK_TEXTS = 2_000  # that go to a process at a time; short enough for Ctrl-C to be answered
_WAITING_CHUNKS = 4  # a process: enough to keep it busy, and few enough to hardly take memory


class Texts(Protocol):
    """Texts that are as many as they say, and need not all be in memory."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[str]: ...


def score_texts(
    texts: Texts,
    lexicon: Mapping[str, float],
    *,
    threads: int | None = None,
    advance: Callable[[float], None] = lambda _: None,
) -> array[float]:
    """The compound score of each text, of which some thousands are in memory at once.

    :param texts: texts, [B], distinct for the sake of speed.
    :param lexicon: word in lower case → valence.
    :param threads: number of cores to keep busy; ``None`` for all that this process may use.
    :param advance: called with the number of texts that were scored since the last call.
    :returns: scores from -1 to 1, float64, [B].
    :raises DeviceError: if one of the processes was ended from outside.
    """
    processes = min(threads or count_cores(), len(texts) // TEXTS_A_PROCESS)
    following = iter(texts)
    chunks = iter(lambda: list(itertools.islice(following, _CHUNK_TEXTS)), [])
    scores = array("d")
    for of_chunk in _score_chunks(chunks, lexicon, processes):
        scores.extend(of_chunk)
        advance(len(of_chunk))
    return scores


def _score_chunks(
    chunks: Iterator[Sequence[str]], lexicon: Mapping[str, float], processes: int
) -> Iterator[list[float]]:
    """The scores of each chunk in turn, by this process if there are to be fewer than two."""
    if processes < 2:
        yield from map(VaderScorer(lexicon).score, chunks)
        return
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _start_process, (lexicon,))
    waiting: deque[Future[list[float]]] = deque()
    try:
        with hold_interrupts():  # as the first chunks start the processes
            for chunk in itertools.islice(chunks, _WAITING_CHUNKS * processes):
                waiting.append(pool.submit(_score_in_process, chunk))
        while waiting:
            yield waiting.popleft().result()
            for chunk in itertools.islice(chunks, 1):
                waiting.append(pool.submit(_score_in_process, chunk))
    except BrokenProcessPool as error:
        raise DeviceError(
            "a process that scored texts by VADER ended before its work was done",
            hint="run the command again; if memory is short, set runtime.threads to 1",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_scorer: VaderScorer | None = None  # set only in a process of the pool


def _start_process(lexicon: Mapping[str, float]) -> None:
    global _scorer
    stay_with_parent()
    _scorer = VaderScorer(lexicon)


def _score_in_process(texts: Sequence[str]) -> list[float]:
    assert _scorer is not None
    return _scorer.score(texts)
