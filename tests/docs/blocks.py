"""Fenced blocks of Markdown pages, with what a page says about each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "cache").glob("*.md")])
_FENCE = re.compile(r"^```(\w*)$")
_MARKER = re.compile(r"^<!-- (not run|not settings): (.+) -->$")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    :param page: the file that it stands in.
    :param line: the number of its first fence, from 1.
    :param language: the word behind the fence; empty for output and pictures.
    :param text: what stands between the fences.
    :param left_out: the reason that a marker before the block gives for not trying it.
    """

    page: Path
    line: int
    language: str
    text: str
    left_out: str | None = None

    @property
    def name(self) -> str:
        """Where the block stands, for the names of tests."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def list_commands(self) -> list[str]:
        """The commands of a console block: what stands behind ``$``."""
        return [line[2:] for line in self.text.splitlines() if line.startswith("$ ")]


def read_blocks(page: Path) -> Iterator[Block]:
    """All blocks of a page.

    :param page: a Markdown file.
    :raises ValueError: if a fence is not closed.
    """
    lines = page.read_text("utf-8").splitlines()
    number = 0
    while number < len(lines):
        opened = _FENCE.match(lines[number])
        if not opened:
            number += 1
            continue
        try:
            end = lines.index("```", number + 1)
        except ValueError:
            raise ValueError(f"{page}:{number + 1}: a fence that is not closed") from None
        above = next((line for line in reversed(lines[:number]) if line), "")
        marker = _MARKER.match(above)
        yield Block(
            page,
            number + 1,
            opened[1],
            "\n".join(lines[number + 1 : end]) + "\n",
            marker[2] if marker else None,
        )
        number = end + 1


def list_blocks(language: str) -> list[Block]:
    """All blocks of one language in all pages."""
    return [block for page in PAGES for block in read_blocks(page) if block.language == language]
