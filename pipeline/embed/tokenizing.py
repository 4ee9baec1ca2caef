"""A backbone's tokenizer in this process, or in several processes where a GPU waits for tokens."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa

from pipeline.embed.tokens import DistinctTokens, TextTokenizer, find_distinct, load_tokenizer
from pipeline.errors import DeviceError
from pipeline.processes import hold_interrupts, stay_with_parent


@dataclass(frozen=True)
class TokenizerPlan:
    """All that it takes to load a tokenizer, in this process or another.

    :param folder: the backbone's folder.
    :param max_tokens: length to cut longer texts to, special tokens and the prompt counted in.
    :param prompt: text to put before each text; empty for none.
    :param is_whole: whether texts are not cut, so that the length is one of windows.
    """

    folder: Path
    max_tokens: int
    prompt: str = ""
    is_whole: bool = False

    def load(self) -> TextTokenizer:
        """The tokenizer.

        :raises AssetError: if ``tokenizer.json`` cannot be read.
        :raises SettingsError: if the length leaves no token beside the special ones.
        """
        return load_tokenizer(self.folder, self.max_tokens, self.prompt, is_whole=self.is_whole)


class TokenizerGroup:
    """A tokenizer in this process, and others in processes of their own.

    Python runs one thread at a time, so that threads that tokenize would hold up the one that keeps
    the GPU busy. Until the processes have started, and when they have ended, texts are tokenized
    here.

    :param plan: plan of the tokenizers.
    :param here: the tokenizer of this process.
    :param processes: number of further processes; 0 for none.
    """

    def __init__(self, plan: TokenizerPlan, here: TextTokenizer, processes: int) -> None:
        self.processes = processes
        self._here = here
        self._one_at_a_time = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._starts: list[Future[None]] = []
        if processes:
            self._pool = ProcessPoolExecutor(
                processes, get_context("spawn"), _start_process, (plan,)
            )
            with hold_interrupts():
                self._starts = [self._pool.submit(_start_up) for _ in range(processes)]

    def tokenize(self, texts: pa.Array) -> DistinctTokens:
        """The token ids of texts; several threads may call this at once.

        :param texts: strings without nulls: [B].
        :raises DeviceError: if a process has ended too early.
        """
        pool = self._pool
        if pool is None or not all(start.done() for start in self._starts):
            with self._one_at_a_time:
                return find_distinct(self._here.tokenize(texts))
        try:
            return pool.submit(_tokenize, texts).result()
        except BrokenProcessPool as error:
            raise DeviceError(
                "a process that tokenizes ended before its work was done",
                hint="run the command again; it goes on from what is finished",
            ) from error

    def wait_until_started(self) -> None:
        """Wait until texts are tokenized in the processes."""
        wait(self._starts)

    def close(self) -> None:
        """End the processes; later texts are tokenized in this one."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(cancel_futures=True)


# Set only in a process of a group.
_tokenizer: TextTokenizer | None = None


def _start_process(plan: TokenizerPlan) -> None:
    global _tokenizer
    stay_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process for each core already
    _tokenizer = plan.load()


def _start_up() -> None:
    """Be the first thing that a process does."""


def _tokenize(texts: pa.Array) -> DistinctTokens:
    assert _tokenizer is not None
    return find_distinct(_tokenizer.tokenize(texts))
