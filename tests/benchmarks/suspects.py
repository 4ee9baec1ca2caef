"""How many labels that were flipped at random the list of suspects finds, on any corpus.

``python -m tests.benchmarks.suspects FOLDER...``, each a project whose vectors are made. A share of
the labels of the rows that heads are judged by is flipped to another class at random, heads are
trained on these labels as ``pipeline train-heads`` trains them, and what the report would list is
held to what was flipped. Nothing in the project changes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from pipeline.config import Settings, load_settings
from pipeline.corpus.tables import LabelledRows, read_labelled_rows, read_row_numbers
from pipeline.heads.run import train_rows
from pipeline.model.saved import Heads
from pipeline.project import Project
from pipeline.report.held_out import read_held_out
from pipeline.report.inputs import ScoredRows
from pipeline.report.suspects import find_suspects
from tests.benchmarks.table import describe_machine, present


def flip_labels(
    rows: LabelledRows, task: str, share: float, generator: np.random.Generator
) -> tuple[LabelledRows, np.ndarray]:
    """Rows with one task alone, and the indices of those of its labels that were flipped.

    :param rows: the rows of the corpus.
    :param task: a task of classes.
    :param share: the share of the labels of training and validation rows to flip, from 0 to 1.
    :param generator: the source of chance.
    """
    labels = rows.tasks[task]
    judged = rows.select("train", "validation")
    judged = judged[labels.present[judged]]
    flipped = generator.choice(judged, round(share * len(judged)), replace=False)
    values = labels.values.copy()
    C = len(labels.classes)
    values[flipped] = (values[flipped] + generator.integers(1, C, len(flipped))) % C
    return replace(rows, tasks={task: replace(labels, values=values)}), flipped


def measure_seed(
    project: Project, settings: Settings, task: str, share: float, seed: int
) -> dict[str, Any]:
    """What the list of suspects of one task finds of the labels flipped by one seed."""
    rows = read_labelled_rows(project)
    rows, flipped = flip_labels(rows, task, share, np.random.default_rng(seed))
    with tempfile.TemporaryDirectory() as folder:
        scratch = Project(folder)
        train_rows(project, settings, rows, scratch.heads)
        heads = Heads.load(scratch.heads)
        held_out = read_held_out(scratch, heads, read_row_numbers(project))
    scored = ScoredRows(
        keys=None,
        codes=rows.keys.dictionary_encode().indices.to_numpy().astype(np.int64),
        parts={part: rows.select(part) for part in ("train", "validation", "test")},
        labels={task: rows.tasks[task].values},
        present={task: rows.tasks[task].present},
    )
    found = [s.row for s in find_suspects(heads.heads[0], held_out[task], scored)]
    is_flip = np.isin(found, flipped)
    first = max(1, round(0.01 * len(held_out[task].rows)))
    return {
        "suspects": len(found),
        "flipped": len(flipped),
        "first": first,
        "true_in_first": float(is_flip[:first].mean()) if found else 0.0,
        "true_in_all": float(is_flip.mean()) if found else 0.0,
        "found_of_flipped": float(is_flip.sum() / len(flipped)),
    }


def measure(
    folder: Path, wanted: Sequence[str], share: float, seeds: int
) -> Iterator[dict[str, Any]]:
    """The figures of each task of classes for each seed."""
    project = Project(folder)
    settings = load_settings(folder / "params.yaml")
    tasks = settings.heads.tasks or {}
    for task, labels in read_labelled_rows(project).tasks.items():
        if labels.kind != "class" or (wanted and task not in wanted):
            continue
        given = {task: tasks[task]} if task in tasks else None
        own = settings.model_copy(
            update={"heads": settings.heads.model_copy(update={"tasks": given})}
        )
        for seed in range(seeds):
            figures = measure_seed(project, own, task, share, seed)
            yield {"corpus": folder.name, "task": task, "seed": seed, **figures}


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--share", type=float, default=0.02, help="Of the labels that are flipped.")
@click.option("--seeds", type=int, default=5, help="So many times.")
@click.option("--task", "wanted", multiple=True, help="This task alone; may stand several times.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the rows here too.")
def main(
    folders: Sequence[Path], share: float, seeds: int, wanted: Sequence[str], path: Path | None
) -> None:
    """Flip labels at random, and measure how many the list of suspects finds."""
    rows = [row for folder in folders for row in measure(folder.absolute(), wanted, share, seeds)]
    present(rows, path, describe_machine("torch"))


if __name__ == "__main__":
    main()
