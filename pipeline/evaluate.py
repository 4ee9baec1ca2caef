"""Labelled rows that were not in training → the metrics of the report, and how unlike they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.assets import read_assets
from pipeline.config import ColumnLabel, PrepareSettings, Settings
from pipeline.console import count, say, show_progress, show_table, warn
from pipeline.corpus.keys import hash_texts
from pipeline.errors import DataError, SettingsError, WriteError
from pipeline.files import format_json, write_bytes
from pipeline.model.decision import Logits
from pipeline.model.evaluation import PartScores, bootstrap_intervals, score_head
from pipeline.model.reference import FAR_PERCENT, Reference
from pipeline.model.saved import SavedHead
from pipeline.predict.inputs import InputFormat, open_inputs
from pipeline.predict.model import Model
from pipeline.prepare.labelers.base import LabelingContext, Labels
from pipeline.prepare.run import BadRows, LabelledTexts, find_label_assets, select_rows
from pipeline.project import Project

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = ("accuracy", "f1", "f1_macro", "f1_micro", "roc_auc", "mean_absolute_error", "r2")
_SHOWN_CLASSES = 20
_NAMED_ROWS = 5
_BLOCK_ROWS = 4096  # of an input that are read at a time
_VALUE_TYPES = {"class": np.int64, "tags": np.int8, "number": np.float64}


@dataclass(frozen=True)
class EvaluateOptions:
    """What the command line gives.

    :param inputs: names of files and folders; ``-`` is standard input.
    :param out: the JSON file to write; ``None`` for none.
    :param input_format: the format of the inputs, instead of what their names tell.
    :param text_column: the column of the texts; ``None`` for that of the settings.
    :param tasks: the tasks to score; ``None`` for all whose labels the inputs have.
    :param on_bad_rows: what happens with rows whose text or label cannot be used.
    :param allow_training_rows: whether texts that the heads were trained on may be among them.
    :param remember: whether new vectors are kept in ``cache/predictions`` for the next time.
    :param force: whether an output that exists is replaced.
    """

    inputs: tuple[str, ...]
    out: Path | None = None
    input_format: InputFormat | None = None
    text_column: str | None = None
    tasks: tuple[str, ...] | None = None
    on_bad_rows: Literal["stop", "drop"] = "stop"
    allow_training_rows: bool = False
    remember: bool = False
    force: bool = False


@dataclass(frozen=True)
class Drift:
    """How unlike the training texts some texts are.

    :param far_share: the share of the texts that are farther from all training texts than 99 % of
        those are from each other.
    :param classes: task → class or tag → its share of the training labels, and of the answers.
    """

    far_share: float
    classes: Mapping[str, Mapping[str, tuple[float, float]]]

    def to_record(self) -> dict[str, Any]:
        """All figures as JSON."""
        return {
            "far_share": self.far_share,
            "expected_far_share": 1 - FAR_PERCENT / 100,
            "classes": {
                task: {name: {"trained": t, "predicted": p} for name, (t, p) in shares.items()}
                for task, shares in self.classes.items()
            },
        }


def run_evaluate(project: Project, settings: Settings, options: EvaluateOptions) -> None:
    """Score the heads that label new texts on labelled rows, print the figures and write them.

    :param project: the project whose heads are scored.
    :param settings: all settings; ``prepare`` says how labels are read.
    :param options: what to score.
    :raises DataError: if an input cannot be read, has no label of any task, or holds texts that the
        heads were trained on.
    :raises StageError: if heads or backbone are missing, or do not belong together.
    :raises WriteError: if there is a file of the name of the output already.
    """
    if options.out is not None and options.out.exists() and not options.force:
        raise WriteError(
            f"{options.out}: exists already", hint="give another name, or --force to replace it"
        )
    runtime = settings.runtime
    with Model(
        project,
        devices=runtime.devices,
        threads=runtime.threads,
        token_budget=runtime.token_budget,
        remember=options.remember,
    ) as model:
        own = _choose_labels(settings.prepare, model.heads.heads, options)
        frame, origins = _read_rows(own, options)
        own = _leave_out_absent(own, frame)
        corpus, bad = _label_rows(project, settings, own, frame, origins)
        reference = model.heads.load_reference()
        trained = _check_unseen(reference, corpus, origins, options)
        logits, far = _answer(model, corpus.texts, reference)
    scored = [head for head in model.heads.heads if head.name in own.labels]
    scores = {
        head.name: _score(head, corpus.labels[head.name], logits[head.name]) for head in scored
    }
    drift = _measure_drift(scored, logits, far, reference)
    if bad.dropped:
        warn(f"{count(len(bad.dropped), 'row')} left out, as they cannot be used")
    _show(scores, drift, len(corpus.texts), trained)
    if options.out is not None:
        record = {
            "inputs": list(options.inputs),
            "rows": len(corpus.texts),
            "trained_texts": trained,
            "model": dict(model.identity),
            "metrics": {name: of_task.to_record() for name, of_task in scores.items()},
            "drift": drift.to_record() if drift is not None else None,
        }
        write_bytes(options.out, format_json(record))
        say(f"figures: {options.out}")


def _label_rows(
    project: Project,
    settings: Settings,
    own: PrepareSettings,
    frame: pd.DataFrame,
    origins: Sequence[tuple[str, int]],
) -> tuple[LabelledTexts, BadRows]:
    """The rows that can be used and their labels, as ``prepare`` would read them.

    :param own: the settings that read them.
    :param origins: the input of each row and its number there.
    :raises DataError: naming the first rows that cannot be used, unless they are to be dropped.
    """
    try:
        return select_rows(
            frame,
            own,
            _find_assets(project, settings, own),
            describe=lambda row: "{} row {:,} (the first is 0)".format(*origins[row]),
            context=LabelingContext(project, settings.runtime, is_corpus=False),
        )
    except DataError as error:
        hint = error.hint and error.hint.replace(
            "set prepare.on_bad_rows to drop", "give --on-bad-rows drop"
        )
        raise DataError(error.message, hint=hint) from error


def _measure_drift(
    heads: Sequence[SavedHead],
    logits: Mapping[str, Logits],
    far: npt.NDArray[np.bool_] | None,
    reference: Reference | None,
) -> Drift | None:
    """How unlike the training texts the texts are; ``None`` if that is not known.

    :param far: which texts are far from those of training, [B].
    """
    if reference is None or far is None:
        return None
    shares = {
        head.name: _compare_shares(head, logits[head.name], reference)
        for head in heads
        if head.classes
    }
    return Drift(float(far.mean()), shares)


def _find_assets(project: Project, settings: Settings, own: PrepareSettings) -> dict[str, Path]:
    """The files that the labelers want; those of columns want none, nor that ``fetch`` was run."""
    if all(isinstance(label, ColumnLabel) for label in own.labels.values()):
        return {}
    return find_label_assets(
        project, settings.model_copy(update={"prepare": own}), read_assets(project.assets)
    )


def _choose_labels(
    settings: PrepareSettings, heads: Sequence[SavedHead], options: EvaluateOptions
) -> PrepareSettings:
    """Settings that read the labels of the heads, with their classes, where any may be missing.

    :raises SettingsError: if a task has no head, or a head no label in the settings.
    """
    named = {head.name: head for head in heads}
    wanted = options.tasks if options.tasks is not None else tuple(named)
    labels = {}
    for name in wanted:
        if name not in named:
            raise SettingsError(f"--tasks: {name}: no such task; there are {', '.join(named)}")
        if name not in settings.labels:
            raise SettingsError(
                f"prepare.labels: no label {name!r}, but there is a head of that name",
                hint="evaluate with the settings that it was trained with",
            )
        label = settings.labels[name]
        if isinstance(label, ColumnLabel):
            classes = named[name].classes or None
            # What an empty cell of tags means depends on whether the label is optional.
            empty = label.empty
            if label.kind == "tags" and empty is None:
                empty = "missing" if label.optional else "none"
            label = label.model_copy(update={"optional": True, "classes": classes, "empty": empty})
        labels[name] = label
    return settings.model_copy(
        update={
            "labels": labels,
            "text_column": options.text_column or settings.text_column,
            "on_bad_rows": options.on_bad_rows,
        }
    )


def _read_rows(
    settings: PrepareSettings, options: EvaluateOptions
) -> tuple[pd.DataFrame, list[tuple[str, int]]]:
    """All rows of the inputs, and for each its input's name and its number in it, from 0."""
    import pandas as pd

    column = settings.text_column
    columns: dict[str, list[Any]] = {}
    origins: list[tuple[str, int]] = []
    wanted = {
        column,
        *(label.column for label in settings.labels.values() if isinstance(label, ColumnLabel)),
    }
    with open_inputs(
        options.inputs, (), settings, column, options.input_format, options.input_format or "csv"
    ) as inputs:
        columns = {name: [] for name in inputs.types if name in wanted}
        for name, first, block in inputs.iterate_blocks(_BLOCK_ROWS):
            for key, held in columns.items():
                values = block[key]
                held.extend(values if isinstance(values, list) else values.to_pylist())
            rows = len(block[column])
            origins.extend((name, first + row) for row in range(rows))
    if not origins:
        raise DataError(f"{', '.join(options.inputs)}: no rows")
    series = {name: pd.Series(held, dtype=object) for name, held in columns.items()}
    return pd.DataFrame(series), origins


def _leave_out_absent(settings: PrepareSettings, frame: pd.DataFrame) -> PrepareSettings:
    """Settings without the labels whose columns the inputs lack, which is said.

    :raises DataError: if none is left.
    """
    absent = {
        name: label.column
        for name, label in settings.labels.items()
        if isinstance(label, ColumnLabel) and label.column not in frame.columns
    }
    if len(absent) == len(settings.labels):
        columns = ", ".join(map(repr, dict.fromkeys(absent.values())))
        raise DataError(
            f"no column with labels: there is none of {columns}",
            hint="give a file with the columns that prepare.labels names",
        )
    for name, column in absent.items():
        say(f"{name}: not scored, as there is no column {column!r}")
    labels = {name: label for name, label in settings.labels.items() if name not in absent}
    return settings.model_copy(update={"labels": labels})


def _check_unseen(
    reference: Reference | None,
    corpus: LabelledTexts,
    origins: Sequence[tuple[str, int]],
    options: EvaluateOptions,
) -> int | None:
    """The number of texts that the heads were trained on; ``None`` if that is not known.

    :raises DataError: if there are any, unless they are allowed.
    """
    if reference is None:
        warn(
            "these heads do not tell which texts they were trained on, so that some of those may "
            "be among these; `pipeline train-heads` makes heads that do"
        )
        return None
    seen = np.flatnonzero(reference.find_trained(hash_texts(corpus.texts)))
    if not len(seen):
        return 0
    named = []
    for position in seen[:_NAMED_ROWS].tolist():
        name, row = origins[int(corpus.rows[position])]
        named.append(f"{name} row {row:,}")
    more = ", …" if len(seen) > len(named) else ""
    message = (
        f"{len(seen):,} of {count(len(corpus.texts), 'text')} were trained on: "
        f"{', '.join(named)}{more} (the first is 0)"
    )
    if not options.allow_training_rows:
        raise DataError(
            message,
            hint="figures of such rows say nothing of new texts: leave them out, or give "
            "--allow-training-rows",
        )
    warn(message)
    return len(seen)


def _answer(
    model: Model, texts: Sequence[str], reference: Reference | None
) -> tuple[dict[str, Logits], npt.NDArray[np.bool_] | None]:
    """Logits of all heads for all texts, and which of these are far from the training texts."""
    layers = model.heads.layers
    position = layers.index(reference.layer) if reference and reference.layer in layers else None
    pieces: dict[str, list[Logits]] = {head.name: [] for head in model.heads.heads}
    far: list[npt.NDArray[np.bool_]] = []

    def cut() -> Iterator[Sequence[str]]:
        for start in range(0, len(texts), model.chunk_texts):
            yield texts[start : start + model.chunk_texts]

    with show_progress("labelling", len(texts), "texts") as advance:
        for vectors in model.stream_vectors(cut(), advance):
            for name, of_seeds in model.heads.compute_logits(vectors).items():
                pieces[name].append(of_seeds[0])
            if reference is not None and position is not None:
                far.append(reference.find_far(vectors[:, position]))
    logits = {name: np.concatenate(of_task) for name, of_task in pieces.items()}
    return logits, np.concatenate(far) if far else None


def _score(head: SavedHead, labels: Labels, logits: Logits) -> PartScores:
    """The scores of one head on the rows that have a label, with intervals."""
    present = labels.present
    actual = labels.values[present].astype(_VALUE_TYPES[labels.kind])
    scores = score_head(head, actual, logits[present])
    return replace(scores, intervals=bootstrap_intervals(head, actual, logits[present]))


def _compare_shares(
    head: SavedHead, logits: Logits, reference: Reference
) -> dict[str, tuple[float, float]]:
    """Class or tag → its share of the training rows, and of the answers."""
    answers = head.type.predict(logits, head.decision)
    if answers.ndim == 1:
        answers = answers[:, None] == np.arange(len(head.classes))
    predicted = answers.mean(axis=0)
    counts = np.array(reference.counts.get(head.name, ()), np.float64)
    if len(counts) != len(head.classes):
        return {}
    trained = counts / max(1, reference.labelled[head.name])
    return {
        name: (float(before), float(now))
        for name, before, now in zip(head.classes, trained, predicted, strict=True)
    }


def _show(
    scores: Mapping[str, PartScores], drift: Drift | None, texts: int, trained: int | None
) -> None:
    """Print the figures for a person."""
    given = {name for of_task in scores.values() for name in of_task.overall}
    shown = [name for name in _SHOWN if name in given]
    rows = []
    for name, of_task in scores.items():
        cells: list[str | None] = []
        for metric in shown:
            value, ends = of_task.overall.get(metric), of_task.intervals.get(metric)
            if value is None:
                cells.append(None)
            elif ends is None:
                cells.append(f"{value:.4f}")
            else:
                cells.append(f"{value:.4f} ({ends[0]:.3f}–{ends[1]:.3f})")
        rows.append((name, of_task.rows, *cells))
    show_table(("task", "rows", *(name.replace("_", " ") for name in shown)), rows)
    say("in brackets: 95 % intervals")
    if drift is None:
        say("how far these texts are from those of training is not known of these heads")
        return
    expected = 100 - FAR_PERCENT
    say(
        f"{100 * drift.far_share:.1f} % of {count(texts, 'text')} are farther from all training "
        f"texts than {FAR_PERCENT:.0f} % of those are from each other ({expected:.0f} % expected)"
    )
    moved = [
        (task, name, before, now)
        for task, shares in drift.classes.items()
        for name, (before, now) in shares.items()
    ]
    moved.sort(key=lambda row: -abs(row[3] - row[2]))
    show_table(("task", "class", "share in training", "share predicted"), moved[:_SHOWN_CLASSES])
    if trained is None:
        say("whether any of these texts were trained on is not known")
