"""Seconds that VADER's labels take: by NLTK, by the pipeline, and once scores are remembered.

    python -m tests.benchmarks.vader [--json FILE] [--texts N]

All ways score the same distinct synthetic messages, by the lexicon that the project has fetched;
NLTK scores the first 20,000 of them at most, and its figures are for all of them at that rate.
`cpu_seconds` is the time of all cores, of this process and those that it starts; it tells more than
`seconds` where other programs are busy.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

NLTK_TEXTS = 20_000


def measure(name: str, texts: int, score: Callable[[], object], scored: int) -> dict[str, Any]:
    """Time one way; its figures are for ``texts`` of which it scores ``scored``."""
    before, start = os.times(), time.perf_counter()
    score()
    seconds, after = time.perf_counter() - start, os.times()
    cpu = sum(after[:4]) - sum(before[:4])
    factor = texts / scored
    return {
        "way": name,
        "texts": texts,
        "cpu_seconds": round(cpu * factor, 2),
        "seconds": seconds * factor,
        "microseconds_of_cpu_a_text": round(cpu / scored * 1e6, 1),
    }


@click.command()
@click.option("--json", "path", type=click.Path(path_type=Path), help="File for the figures.")
@click.option("--texts", default=200_000, help="Number of synthetic messages.")
def main(path: Path | None, texts: int) -> None:
    """Measure each way in turn."""
    # Imported here, since the processes that score import this file as well.
    from pipeline.assets import read_assets
    from pipeline.config import RuntimeSettings
    from pipeline.prepare.labelers.base import LabelingContext
    from pipeline.prepare.labelers.vader import score_by_vader
    from pipeline.project import Project
    from tests.benchmarks.embed import make_messages, read_messages
    from tests.benchmarks.table import describe_machine, present
    from tests.nltk_vader import make_reference

    asset = read_assets(Project().assets)["lexicon"]
    lexicon = asset.locate(Project()) / next(iter(asset.files))
    messages = make_messages(read_messages(), texts)
    few = messages[:NLTK_TEXTS]
    with tempfile.TemporaryDirectory() as scratch:
        content = "\n".join(filter(str.strip, lexicon.read_text("utf-8").split("\n")))
        reference = make_reference(content, Path(scratch, "nltk"))
        one = LabelingContext(Project(Path(scratch, "one")), RuntimeSettings(threads=1))
        all_cores = LabelingContext(Project(Path(scratch, "all")), RuntimeSettings())
        ways: list[tuple[str, Callable[[], object], int]] = [
            ("NLTK", lambda: list(map(reference, few)), len(few)),
            ("one process", lambda: score_by_vader(messages, lexicon, one), texts),
            ("all cores", lambda: score_by_vader(messages, lexicon, all_cores), texts),
            ("remembered", lambda: score_by_vader(messages, lexicon, all_cores), texts),
        ]
        rows = [measure(name, texts, score, scored) for name, score, scored in ways]
        assert score_by_vader(few, lexicon, one).tolist() == list(map(reference, few))
    present(rows, path, describe_machine("nltk", "numpy", "pyarrow"))


if __name__ == "__main__":
    main()
