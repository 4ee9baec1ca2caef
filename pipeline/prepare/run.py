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
from pipeline.config import PrepareSettings, Settings, VaderLabel
from pipeline.console import count, say, show_table, warn
from pipeline.corpus.keys import hash_keys, hash_texts
from pipeline.corpus.sources import read_source
from pipeline.corpus.tables import PARTS, TEXTS_HASH, encode_labels
from pipeline.errors import DataError
from pipeline.files import write_aside
from pipeline.prepare.labelers import Labels, label_rows
from pipeline.prepare.split import split_rows
from pipeline.project import Project

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


_NAMED = 5  # how many bad rows an error names
_GROUP_ROWS = 16_384  # so that a reader need not hold all texts at once
_COUNTED = 30  # how many classes of a label the summary counts


@dataclass(frozen=True)
class Corpus:
    """Usable rows.

    :param rows: int64, [B]: the place of each row in the source, from 0.
    :param texts: [B].
    :param labels: task → its labels, [B] each.
    """

    rows: npt.NDArray[np.int64]
    texts: list[str]
    labels: Mapping[str, Labels]


def run_prepare(project: Project, settings: Settings) -> dict[str, object]:
    """Write the project's ``texts.parquet`` and ``labels.parquet``.

    :param project: the project to prepare.
    :returns: details for the timing file.
    :raises DataError: if a column is missing, a row cannot be used, or there are too few rows.
    """
    assets = read_assets(project.assets)
    folder = assets["dataset"].locate(project)
    check_files(assets["dataset"], "dataset", folder)
    lexicon = _locate_lexicon(project, assets["lexicon"], settings.prepare)
    (file,) = assets["dataset"].files
    extra = assets["dataset"].extra
    own = settings.prepare
    frame = read_source(
        folder / file,
        own.format if own.format != "auto" else extra.get("format", "auto"),
        own.header or extra.get("header"),
    )
    try:
        corpus, dropped = select_rows(frame, own, lexicon)
    except DataError as error:
        raise DataError(f"{folder / file}: {error.message}", hint=error.hint) from error
    keys = hash_texts(corpus.texts)
    split = split_rows(keys, corpus.labels, own.split)
    _write_corpus(project, corpus, keys, split)
    _show_summary(assets["dataset"].id, len(frame), dropped, corpus, keys, split)
    return {
        "rows": len(corpus.texts),
        "distinct_texts": len(set(keys)),
        "dropped": sum(dropped.values()),
    }


def _locate_lexicon(project: Project, asset: Asset, settings: PrepareSettings) -> Path:
    """The lexicon's file, looked at only where a label needs it."""
    if any(isinstance(label, VaderLabel) for label in settings.labels.values()):
        check_files(asset, "lexicon", asset.locate(project))
    return asset.locate(project) / next(iter(asset.files), "")


def select_rows(
    frame: pd.DataFrame, settings: PrepareSettings, lexicon: Path
) -> tuple[Corpus, Counter[str]]:
    """Label all rows and keep those that can be used.

    :returns: the usable rows, and how many were dropped for each reason.
    :raises DataError: naming the first bad rows, unless they are to be dropped.
    """
    if settings.text_column not in frame.columns:
        raise DataError(
            f"no column {settings.text_column!r}; the source has "
            f"{', '.join(map(repr, frame.columns))}",
            hint="set prepare.text_column to the one that holds the texts",
        )
    values = frame[settings.text_column].tolist()
    reasons = {row: why for row, value in enumerate(values) if (why := find_fault(value))}
    texts = ["" if row in reasons else value for row, value in enumerate(values)]
    labels = {
        name: label_rows(name, label, frame, texts, lexicon)
        for name, label in settings.labels.items()
    }
    for name, task in labels.items():
        for row, value in task.found.items():
            reasons.setdefault(row, f"unknown label for {name}: {value}")
    if reasons and settings.on_bad_rows == "stop":
        raise _refuse_rows(reasons, labels)
    usable = np.array([row for row in range(len(values)) if row not in reasons], np.int64)
    if not len(usable):
        raise DataError(f"none of the {len(values):,} rows can be used; {_list_rows(reasons)}")
    dropped = Counter(why.partition(":")[0] for why in reasons.values())
    kept = {
        name: replace(
            task,
            values=task.values[usable],
            found={},
            scores={key: scores[usable] for key, scores in task.scores.items()},
        )
        for name, task in labels.items()
    }
    return Corpus(rows=usable, texts=[texts[row] for row in usable], labels=kept), dropped


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
        if task.found
    )
    return DataError(
        f"{count(len(reasons), 'row')} cannot be used: {_list_rows(reasons)}"
        + (f"\n  {known}" if known else ""),
        hint="correct them, or set prepare.on_bad_rows to drop",
    )


def _list_rows(reasons: Mapping[int, str]) -> str:
    first = sorted(reasons)[:_NAMED]
    lines = [f"\n  row {row} (the first is 0): {reasons[row]}" for row in first]
    more = len(reasons) - len(first)
    return "".join(lines) + (f"\n  and {more:,} more" if more else "")


def _write_corpus(
    project: Project, corpus: Corpus, keys: Sequence[bytes], split: npt.NDArray[np.int8]
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


def _make_texts_table(corpus: Corpus, keys: Sequence[bytes]) -> pa.Table:
    import pyarrow as pa

    return pa.table(
        {
            "row": pa.array(corpus.rows),
            "text": pa.array(corpus.texts, pa.string()),
            "key": pa.array(keys, pa.binary(16)),
        }
    )


def _make_labels_table(
    corpus: Corpus, keys: Sequence[bytes], split: npt.NDArray[np.int8]
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
    # Ties the two files together: a kill between their renames must not pair old with new.
    tie = {TEXTS_HASH: hash_keys(pa.array(keys, pa.binary(16)))}
    return pa.table(columns, schema=pa.schema(fields, metadata=tie))


def _show_summary(
    dataset: str,
    total: int,
    dropped: Counter[str],
    corpus: Corpus,
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
    rows: list[tuple[object, ...]] = [("rows", *_count_parts(np.ones(len(split), bool), split))]
    seen = np.array([key in in_training for key in keys]) & (split > 0)
    rows.append(("text also in train", None, *_count_parts(seen, split)[1:]))
    for name, task in corpus.labels.items():
        rows += [(what, *_count_parts(chosen, split)) for what, chosen in _list_counts(name, task)]
    show_table(("", *PARTS), rows)
    for name, task in corpus.labels.items():
        if task.kind == "number":
            continue
        train = task.values[split == 0]
        present = train if task.kind == "class" else np.nonzero(train == 1)[1]
        for index in sorted(set(range(len(task.classes))) - set(present.tolist())):
            warn(f"{name}: no training row is {task.classes[index]!r}")


def _list_counts(name: str, task: Labels) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """What is worth counting of a label: the rows of each of its first classes, those without."""
    if task.kind == "number":
        absent = np.isnan(task.values)
        yield f"{name} given", ~absent
    else:
        held = task.values if task.kind == "tags" else task.values[:, None]
        absent = held[:, 0] < 0
        for index, class_name in list(enumerate(task.classes))[:_COUNTED]:
            of_class = held[:, index] == 1 if task.kind == "tags" else task.values == index
            yield f"{name} = {class_name}", of_class
    if absent.any():
        yield f"{name} not given", absent


def _count_parts(chosen: npt.NDArray[np.bool_], split: npt.NDArray[np.int8]) -> list[int]:
    return [int(number) for number in np.bincount(split[chosen], minlength=len(PARTS))]
