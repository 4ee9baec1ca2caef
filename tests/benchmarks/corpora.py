"""The default search beside scikit-learn's heads, tuned by cross-validation, on any corpus.

``python -m tests.benchmarks.corpora FOLDER...``, each a project whose vectors are made. Both sides
have the same vectors, the same splits and the same test rows; scikit-learn tunes its strength by
cross-validation on the training rows, ours on the held-out rows that its settings say.
"""

from __future__ import annotations

import resource
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from pipeline.config import HeadsSettings, TaskSettings, load_settings
from pipeline.corpus.tables import PARTS, read_labelled_rows
from pipeline.heads.choosing import find_present
from pipeline.heads.configurations import leave_out_kernels, list_configurations
from pipeline.heads.features import MemoryFeatures, Scaling
from pipeline.heads.targets import draw_folds, make_targets
from pipeline.heads.tasks import Task, make_tasks
from pipeline.heads.training import fit_heads
from pipeline.model.metrics import METRICS
from pipeline.model.tasks import TASK_TYPES
from pipeline.project import Project
from pipeline.store import read_manifest, read_vectors
from tests.benchmarks.table import describe_machine, present

FIGURES = {
    "binary": ("f1", "accuracy"),
    "multiclass": ("accuracy", "f1_macro"),
    "ordinal": ("accuracy", "mean_absolute_error"),
    "multilabel": ("f1_micro", "f1_macro"),
    "regression": ("r2",),
}
STRENGTHS = np.logspace(-5, 1, 7)  # C of scikit-learn on standardized features


@dataclass(frozen=True)
class Split:
    """Raw vectors and labels of one split: training rows, validation rows, test rows."""

    vectors: np.ndarray
    labels: Mapping[str, np.ndarray]
    keys: np.ndarray
    train: int
    judged: int
    tasks: tuple[Task, ...]


def draw_split(folder: Path, seed: int | None, wanted: Sequence[str]) -> Split:
    """A random split of a project's rows, or its own.

    :param folder: the project's folder.
    :param seed: the seed of the split; ``None`` for that of the project.
    :param wanted: names of tasks; all for none.
    """
    project = Project(folder)
    rows = read_labelled_rows(project)
    layers = read_manifest(project.store).layers
    vectors = read_vectors(project.store, rows.keys, layers).reshape(len(rows.keys), -1)
    if seed is not None:
        rows = replace(rows, parts=_draw_parts(len(rows.keys), seed))
    order = np.concatenate([rows.select(part) for part in ("train", "validation", "test")])
    train, validation = len(rows.select("train")), len(rows.select("validation"))
    codes = rows.keys.dictionary_encode().indices.to_numpy().astype(np.int64)
    given = load_settings(folder / "params.yaml").heads.tasks or {}
    names = [name for name in rows.tasks if not wanted or name in wanted]
    tasks = make_tasks({name: given.get(name, TaskSettings()) for name in names}, rows)
    return Split(
        vectors[order],
        {name: labels.values[order] for name, labels in rows.tasks.items()},
        codes[order],
        train,
        train + validation,
        tuple(tasks),
    )


def _draw_parts(rows: int, seed: int) -> np.ndarray:
    parts = np.full(rows, PARTS.index("test"), np.int8)
    order = np.random.default_rng(seed).permutation(rows)
    first, second = int(0.7 * rows), int(0.85 * rows)
    parts[order[:first]] = PARTS.index("train")
    parts[order[first:second]] = PARTS.index("validation")
    return parts


def fit_ours(split: Split, task: Task) -> dict[str, float]:
    """Test figures of the default search."""
    train, judged = split.train, split.judged
    scaling = Scaling.fit(split.vectors[:train])
    features = MemoryFeatures(torch.from_numpy(scaling.apply(split.vectors[:judged])), train)
    settings = HeadsSettings()
    folds = draw_folds(split.keys[:train], 5, settings.seed)
    fit = fit_heads(
        lambda _: (features, scaling),
        make_targets([task], {task.name: split.labels[task.name][:judged]}, train, folds, "cpu"),
        [task],
        leave_out_kernels(list_configurations(settings, (0,)), settings, train),
        settings,
    )
    (head,) = fit.heads
    kind = TASK_TYPES[task.type]
    logits = task.labels.restore(head.candidate.head.compute_logits(split.vectors[judged:]))
    labels = split.labels[task.name][judged:]
    present = find_present(labels)
    answers = kind.answer(
        labels[present], logits[present], len(task.classes), head.calibration.decision
    )
    return {name: float(METRICS[name].measure(answers)[0]) for name in FIGURES[task.type]}


def fit_scikit_learn(split: Split, task: Task) -> dict[str, float]:
    """Test figures of what one would tune by hand."""
    scaled = Scaling.fit(split.vectors[: split.train]).apply(split.vectors)
    labels = split.labels[task.name]
    train = np.flatnonzero(find_present(labels[: split.train]))
    test = split.judged + np.flatnonzero(find_present(labels[split.judged :]))
    model = _TUNED[task.type]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(scaled[train], labels[train])
        found = model.predict(scaled[test])
    return measure(task, labels[test], found)


def _tune_classes() -> Any:
    from sklearn.linear_model import LogisticRegressionCV

    return LogisticRegressionCV(
        Cs=STRENGTHS, cv=3, scoring="accuracy", max_iter=300, tol=1e-3,
        use_legacy_attributes=False, l1_ratios=(0,),
    )  # fmt: skip


def _tune_numbers() -> Any:
    from sklearn.linear_model import RidgeCV

    return RidgeCV(np.logspace(0, 6, 19))


def _tune_tags() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.multiclass import OneVsRestClassifier

    return GridSearchCV(
        OneVsRestClassifier(LogisticRegression(max_iter=200, tol=1e-3)),
        {"estimator__C": (1e-3, 1e-2, 1e-1)},
        scoring="f1_micro",
        cv=3,
    )


_TUNED: Mapping[str, Callable[[], Any]] = {
    "binary": _tune_classes,
    "multiclass": _tune_classes,
    "ordinal": _tune_classes,
    "multilabel": _tune_tags,
    "regression": _tune_numbers,
}


def measure(task: Task, labels: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """The figures of answers, by scikit-learn."""
    from sklearn import metrics

    formulas: Mapping[str, Callable[[], float]] = {
        "accuracy": lambda: metrics.accuracy_score(labels, found),
        "f1": lambda: metrics.f1_score(labels, found),
        "f1_macro": lambda: metrics.f1_score(labels, found, average="macro"),
        "f1_micro": lambda: metrics.f1_score(labels, found, average="micro"),
        "mean_absolute_error": lambda: metrics.mean_absolute_error(labels, found),
        "r2": lambda: metrics.r2_score(labels, found),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: float(formulas[name]()) for name in FIGURES[task.type]}


def compare(
    folder: Path, seeds: Sequence[int | None], wanted: Sequence[str], *, ours_alone: bool
) -> Iterator[dict[str, Any]]:
    """The figures of each side on each split, then their means."""
    engines = {"ours": fit_ours} | ({} if ours_alone else {"scikit-learn": fit_scikit_learn})
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for seed in seeds:
        split = draw_split(folder, seed, wanted)
        for task in split.tasks:
            for engine, fit in engines.items():
                wall, cpu = time.perf_counter(), time.process_time()
                figures = fit(split, task)
                times = {
                    "fit_seconds": time.perf_counter() - wall,
                    "cpu_seconds": time.process_time() - cpu,
                }
                found.setdefault((task.name, engine), []).append(figures | times)
                click.echo(f"{folder.name} {seed} {task.name} {engine}: {figures}", err=True)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    for (task, engine), rows in found.items():
        for name in rows[0]:
            values = np.array([row[name] for row in rows])
            error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else None
            yield {
                "corpus": folder.name,
                "task": task,
                "figure": name,
                "engine": engine,
                "mean": float(values.mean()),
                "standard_error": error,
                "ahead": _count_ahead(found, task, engine, name),
                "splits": len(values),
                "peak_gb": memory,
            }


def _count_ahead(
    found: Mapping[tuple[str, str], Sequence[Mapping[str, float]]],
    task: str,
    engine: str,
    name: str,
) -> float | None:
    """By how many standard errors ours is ahead, over the splits; ``None`` beside the other."""
    others = found.get((task, "scikit-learn"))
    if engine != "ours" or others is None or len(others) < 2 or name not in METRICS:
        return None
    gains = [a[name] - b[name] for a, b in zip(found[task, engine], others, strict=True)]
    sign = -1 if METRICS[name].lower_is_better else 1
    error = float(np.std(gains, ddof=1)) / len(gains) ** 0.5
    return sign * float(np.mean(gains)) / max(error, 1e-12)


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--splits", type=int, default=10, help="So many random splits.")
@click.option("--own-split", is_flag=True, help="The split of the project, once, instead.")
@click.option("--task", "wanted", multiple=True, help="This task alone; may stand several times.")
@click.option("--ours-alone", is_flag=True, help="Without scikit-learn.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the rows here too.")
def main(
    folders: Sequence[Path],
    splits: int,
    own_split: bool,
    wanted: Sequence[str],
    ours_alone: bool,
    path: Path | None,
) -> None:
    """Measure the default search beside tuned heads of scikit-learn."""
    seeds: list[int | None] = [None] if own_split else list(range(splits))
    rows = [
        row
        for folder in folders
        for row in compare(folder.absolute(), seeds, wanted, ours_alone=ours_alone)
    ]
    present(rows, path, describe_machine("torch", "scikit-learn"))


if __name__ == "__main__":
    main()
