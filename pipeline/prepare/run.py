"""Source → ``texts.parquet`` and ``labels.parquet``: read, check, label, split."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.assets import Asset, check_files, read_assets
from pipeline.config import PrepareSettings, Settings
from pipeline.console import count, say, show_table, warn
from pipeline.corpus.columns import ColumnChoice
from pipeline.corpus.keys import hash_keys, hash_texts
from pipeline.corpus.reading import Reading
from pipeline.corpus.sources import read_source
from pipeline.corpus.tables import PARTS, TEXTS_HASH, encode_labels
from pipeline.errors import DataError, StageError
from pipeline.files import write_aside
from pipeline.prepare.labelers.base import Labels, make_labeler
from pipeline.prepare.split import split_rows
from pipeline.project import Project

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


_NAMED_ROWS = 5  # that an error names, of those that cannot be used
_GROUP_ROWS = 16_384  # in a row group of texts.parquet: a reader holds one group at a time
_COUNTED_CLASSES = 30  # of a label, in the summary


@dataclass(frozen=True)
class LabelledTexts:
    """The rows of the source that can be used.

    :param rows: int64, [B]: the position of each row in the source, from 0.
    :param texts: [B].
    :param labels: task → its labels, [B] each.
    """

    rows: npt.NDArray[np.int64]
    texts: list[str]
    labels: Mapping[str, Labels]


def run_prepare(project: Project, settings: Settings) -> dict[str, object]:
    """Write the project's ``texts.parquet`` and ``labels.parquet``.

    :param project: the project to prepare.
    :param settings: all settings.
    :returns: details for the timing file.
    :raises DataError: if a column is missing, a row cannot be used, or there are too few rows.
    """
    assets = read_assets(project.assets)
    dataset, own = assets["dataset"], settings.prepare
    source = _check_asset(project, "dataset", dataset)
    files = _find_label_assets(project, settings, assets)
    wanted, may_be_any = own.list_columns()
    frame = read_source(
        source, _choose_reading(own, dataset), ColumnChoice(wanted, all_others=may_be_any)
    )
    try:
        corpus, dropped = select_rows(frame, own, files)
    except DataError as error:
        raise DataError(f"{source}: {error.message}", hint=error.hint) from error
    keys = hash_texts(corpus.texts)
    split = split_rows(keys, corpus.labels, own.split)
    _write_corpus(project, corpus, keys, split)
    _show_summary(dataset.id, len(frame), dropped, corpus, keys, split)
    return {
        "rows": len(corpus.texts),
        "distinct_texts": len(set(keys)),
        "dropped": sum(dropped.values()),
    }


def _check_asset(project: Project, key: str, asset: Asset) -> Path:
    """The one file of an asset, which must be as it was fetched."""
    folder = asset.locate(project)
    check_files(asset, key, folder)
    return folder / next(iter(asset.files), "")


def _choose_reading(settings: PrepareSettings, dataset: Asset) -> Reading:
    """How the dataset's file is to be read: as the settings say, else as is known of the dataset.

    What ``fetch`` wrote before it told the quoting was read with quotes enclosing cells.
    """
    known: Mapping[str, Any] = {
        "format": "auto", "header": None, "quoting": "double", **dataset.extra
    }  # fmt: skip
    return Reading(
        format=settings.format if settings.format != "auto" else known["format"],
        header=settings.header or known["header"],
        delimiter=settings.delimiter,
        quoting=settings.quoting if settings.quoting != "auto" else known["quoting"],
        escape=settings.escape,
        encoding=settings.encoding,
    )


def _find_label_assets(
    project: Project, settings: Settings, assets: Mapping[str, Asset]
) -> dict[str, Path]:
    """The files that the labelers want: key in ``assets.json`` → file.

    :raises StageError: if one was not fetched, or is of other settings than these.
    """
    files = {}
    for key, wanted in settings.list_assets().items():
        asset = assets.get(key)
        if asset is None or asset.id != wanted.name:
            what = f"has no {key}" if asset is None else f"has the {key} {asset.id}"
            raise StageError(
                f"{project.assets}: {what}, but {wanted.key} is {wanted.name}",
                hint="run `pipeline fetch` again",
            )
        files[key] = _check_asset(project, key, asset)
    return files


def select_rows(
    frame: pd.DataFrame, settings: PrepareSettings, assets: Mapping[str, Path]
) -> tuple[LabelledTexts, Counter[str]]:
    """Label all rows and keep those that can be used.

    :param frame: the source's columns.
    :param settings: the text column, the labels, and what to do with rows that cannot be used.
    :param assets: key of each asset that a labeler wants → its file.
    :returns: the usable rows, and how many were dropped for each reason.
    :raises DataError: naming the first bad rows, unless they are to be dropped.
    """
    texts, reasons = _read_texts(frame, settings.text_column)
    labels = {
        task: make_labeler(task, label).label(frame, texts, assets)
        for task, label in settings.labels.items()
    }
    for task, made in labels.items():
        for row, value in made.unusable.items():
            reasons.setdefault(row, f"unknown label for {task}: {value}")
    if reasons and settings.on_bad_rows == "stop":
        raise _refuse_rows(reasons, labels)
    usable = np.array([row for row in range(len(texts)) if row not in reasons], np.int64)
    if not len(usable):
        raise DataError(f"none of the {len(texts):,} rows can be used; {_list_rows(reasons)}")
    dropped = Counter(why.partition(":")[0] for why in reasons.values())
    return (
        LabelledTexts(
            rows=usable,
            texts=[texts[row] for row in usable],
            labels={task: _take_rows(made, usable) for task, made in labels.items()},
        ),
        dropped,
    )


def _read_texts(frame: pd.DataFrame, column: str) -> tuple[list[str], dict[int, str]]:
    """The texts, [B], empty where there is no usable one, and why there is none: row → reason."""
    values = frame[column].tolist()
    reasons = {row: why for row, value in enumerate(values) if (why := find_fault(value))}
    return ["" if row in reasons else value for row, value in enumerate(values)], reasons


def _take_rows(labels: Labels, rows: npt.NDArray[np.int64]) -> Labels:
    """The labels of some rows, all of which can be used."""
    scores = {column: values[rows] for column, values in labels.scores.items()}
    return replace(labels, values=labels.values[rows], unusable={}, scores=scores)


def find_fault(value: Any) -> str | None:
    """Why a value cannot serve as a text, or ``None`` if it can."""
    if value is None or (isinstance(value, float) and value != value):
        return "no text"
    if not isinstance(value, str):
        return f"text is not a string: {value!r:.40}"
    if not value.strip():
        return "blank text"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return "text is not valid Unicode: a lone surrogate"
    return None


def _refuse_rows(reasons: Mapping[int, str], labels: Mapping[str, Labels]) -> DataError:
    known = "; ".join(
        f"{name} knows {', '.join(task.classes[:10])}"
        for name, task in labels.items()
        if task.unusable
    )
    return DataError(
        f"{count(len(reasons), 'row')} cannot be used: {_list_rows(reasons)}"
        + (f"\n  {known}" if known else ""),
        hint="correct them, or set prepare.on_bad_rows to drop",
    )


def _list_rows(reasons: Mapping[int, str]) -> str:
    first = sorted(reasons)[:_NAMED_ROWS]
    lines = [f"\n  row {row} (the first is 0): {reasons[row]}" for row in first]
    more = len(reasons) - len(first)
    return "".join(lines) + (f"\n  and {more:,} more" if more else "")


def _write_corpus(
    project: Project, corpus: LabelledTexts, keys: Sequence[bytes], split: npt.NDArray[np.int8]
) -> None:
    """Write both files, or neither: one of them alone would not fit the other."""
    import pyarrow.parquet as pq

    with write_aside(project.texts) as file:
        pq.write_table(
            _make_texts_table(corpus, keys), file, compression="zstd", row_group_size=_GROUP_ROWS
        )
        # A full disk shows here, while neither has its name yet.
        file.flush()
        os.fsync(file.fileno())
        with write_aside(project.labels) as labels_file:
            pq.write_table(_make_labels_table(corpus, keys, split), labels_file, compression="zstd")


def _make_texts_table(corpus: LabelledTexts, keys: Sequence[bytes]) -> pa.Table:
    import pyarrow as pa

    return pa.table(
        {
            "row": pa.array(corpus.rows),
            "text": pa.array(corpus.texts, pa.string()),
            "key": pa.array(keys, pa.binary(16)),
        }
    )


def _make_labels_table(
    corpus: LabelledTexts, keys: Sequence[bytes], split: npt.NDArray[np.int8]
) -> pa.Table:
    import pyarrow as pa

    fields = [pa.field("row", pa.int64()), pa.field("split", pa.string())]
    columns = [pa.array(corpus.rows), pa.array([PARTS[part] for part in split])]
    for name, task in corpus.labels.items():
        classes = json.dumps(task.classes, ensure_ascii=False)
        about = {"classes": classes} | ({"kind": task.kind} if task.kind != "class" else {})
        columns.append(encode_labels(task.values, task.kind))
        fields.append(pa.field(name, columns[-1].type, metadata=about))
        for score, values in task.scores.items():
            fields.append(pa.field(score, pa.float64()))
            columns.append(pa.array(values))
    # This hash ties the two files together: if a kill comes between their renames, the new texts
    # must not be read with the old labels.
    tie = {TEXTS_HASH: hash_keys(pa.array(keys, pa.binary(16)))}
    return pa.table(columns, schema=pa.schema(fields, metadata=tie))


def _show_summary(
    dataset: str,
    total: int,
    dropped: Counter[str],
    corpus: LabelledTexts,
    keys: Sequence[bytes],
    split: npt.NDArray[np.int8],
) -> None:
    distinct = len(set(keys))
    say(
        f"{dataset}: {count(total, 'row')}, {len(corpus.texts):,} used, {distinct:,} distinct "
        f"texts, {len(keys) - distinct:,} duplicates"
    )
    for why, number in dropped.items():
        warn(f"{count(number, 'row')} dropped: {why}")
    in_training = {key for key, part in zip(keys, split, strict=True) if part == 0}
    leaks = np.array([key in in_training for key in keys]) & (split > 0)
    rows: list[tuple[object, ...]] = [
        ("rows", *_count_parts(np.ones(len(split), bool), split)),
        ("text also in train", None, *_count_parts(leaks, split)[1:]),
    ]
    for name, task in corpus.labels.items():
        rows += [(what, *_count_parts(chosen, split)) for what, chosen in _list_counts(name, task)]
    show_table(("", *PARTS), rows)
    for name, task in corpus.labels.items():
        for class_name in _list_untrained(task, split):
            warn(f"{name}: no training row is {class_name!r}")


def _list_untrained(task: Labels, split: npt.NDArray[np.int8]) -> list[str]:
    """The classes or tags that no training row has."""
    train = task.values[split == 0]
    if task.kind == "number":
        return []
    present = set((train if task.kind == "class" else np.nonzero(train == 1)[1]).tolist())
    return [name for index, name in enumerate(task.classes) if index not in present]


def _list_counts(name: str, task: Labels) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """What the summary counts of a label: rows of each of its first classes, rows without a label.

    :returns: pairs of the name of a count and which rows it is of, [B].
    """
    if task.kind == "number":
        absent = np.isnan(task.values)
        yield f"{name} given", ~absent
    else:
        held = task.values if task.kind == "tags" else task.values[:, None]
        absent = held[:, 0] < 0
        for index, class_name in list(enumerate(task.classes))[:_COUNTED_CLASSES]:
            of_class = held[:, index] == 1 if task.kind == "tags" else task.values == index
            yield f"{name} = {class_name}", of_class
    if absent.any():
        yield f"{name} not given", absent


def _count_parts(chosen: npt.NDArray[np.bool_], split: npt.NDArray[np.int8]) -> list[int]:
    """How many of the chosen rows each part has."""
    return [int(number) for number in np.bincount(split[chosen], minlength=len(PARTS))]
