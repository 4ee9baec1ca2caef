"""Reading what ``prepare`` wrote: rows, keys, splits and labels, in one order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from pipeline.config import LabelKind
from pipeline.corpus.keys import hash_keys, view_keys
from pipeline.errors import StageError
from pipeline.files import reading
from pipeline.project import Project

if TYPE_CHECKING:
    import pyarrow as pa

PARTS = ("train", "validation", "test")
# The key, in the metadata of labels.parquet, of the hash of the texts that its rows are of.
TEXTS_HASH = "texts_sha256"
_STAGE = "prepare"  # the stage that writes what is read here


@dataclass(frozen=True)
class TaskLabels:
    """One task's column of ``labels.parquet``.

    :param classes: class or tag names in the order of their index; none of a number.
    :param values: ``class``: int64, [B]; ``tags``: int8, [B, C], 0 or 1; both are -1 where a row
        has no label. ``number``: float64, [B], NaN where a row has none.
    :param kind: what a value is.
    """

    classes: tuple[str, ...]
    values: npt.NDArray[Any]
    kind: LabelKind = "class"

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Which rows have a label: [B]."""
        given = np.isfinite(self.values) if self.kind == "number" else np.greater(self.values, -1)
        return np.asarray(np.reshape(given, (len(self.values), -1)).all(axis=1), np.bool_)


def encode_labels(values: npt.NDArray[Any], kind: LabelKind) -> pa.Array:
    """Labels as a column that any Parquet reader understands, null where a row has none.

    :param values: labels as ``TaskLabels`` holds them.
    :param kind: what a value is.
    :returns: int32 class indices, lists of booleans, or float64 numbers.
    """
    import pyarrow as pa

    if kind == "number":
        return pa.array(values, pa.float64(), mask=np.isnan(values))
    if kind == "class":
        return pa.array(values.astype(np.int32), mask=values < 0)
    absent = values[:, 0] < 0
    rows = [None if gone else row for row, gone in zip(values > 0, absent, strict=True)]
    return pa.array(rows, pa.list_(pa.bool_()))


def decode_labels(column: pa.Array, kind: LabelKind, classes: int) -> npt.NDArray[Any]:
    """The reverse of ``encode_labels``.

    :param column: a column that ``encode_labels`` made.
    :param kind: what a value is.
    :param classes: the number of tags, C.
    """
    if kind == "number":
        numbers: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False).astype(np.float64)
        return numbers
    if kind == "class":
        indices: npt.NDArray[Any] = column.fill_null(-1).to_numpy(zero_copy_only=False)
        return indices.astype(np.int64)
    held = np.full((len(column), classes), -1, np.int8)
    present = column.is_valid().to_numpy(zero_copy_only=False)
    flat = column.flatten().to_numpy(zero_copy_only=False)
    held[present] = flat.reshape(-1, classes)
    return held


@dataclass(frozen=True)
class LabelledRows:
    """All rows of the corpus, without their texts.

    :param keys: fixed-size binary of 16, [B]: keys of the texts, duplicates among them.
    :param split: [B]: the name of each row's part.
    :param tasks: task → labels.
    """

    keys: pa.Array
    split: npt.NDArray[np.str_]
    tasks: Mapping[str, TaskLabels]

    def select(self, part: str) -> npt.NDArray[np.int64]:
        """Indices of the rows of a part, in their order."""
        return np.flatnonzero(self.split == part)


def read_labelled_rows(project: Project) -> LabelledRows:
    """Read the labels of all rows and the keys of their texts.

    :param project: the project whose stage ``prepare`` wrote them.
    :raises StageError: if one is missing or damaged, or they are not of the same run.
    """
    labels = _read_table(project.labels, None)
    texts = _read_table(project.texts, ["row", "key"])
    keys = texts["key"].combine_chunks()
    about = labels.schema.metadata or {}
    is_pair = about.get(TEXTS_HASH.encode(), b"").decode() == hash_keys(keys)
    if not is_pair or {"row", "split"} - set(labels.column_names):
        raise StageError(
            f"{project.labels} and {project.texts} are not of one run",
            hint="run `pipeline prepare` again",
        )
    tasks = {
        field.name: TaskLabels(
            classes=tuple(classes),
            values=decode_labels(labels[field.name].combine_chunks(), kind, len(classes)),
            kind=kind,
        )
        for field in labels.schema
        if field.metadata and b"classes" in field.metadata
        for classes in [json.loads(field.metadata[b"classes"])]
        for kind in [cast(LabelKind, field.metadata.get(b"kind", b"class").decode())]
    }
    return LabelledRows(
        keys=keys,
        split=np.array(labels["split"].to_pylist()),
        tasks=tasks,
    )


def read_distinct_keys(path: Path) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """The keys of the distinct texts of the corpus, in order of first appearance.

    :param path: the project's ``texts.parquet``.
    :returns: fixed-size binary of 16, [N], and the row in which each stands first, int64, [N].
    :raises StageError: if the file is missing or damaged.
    """
    import pyarrow as pa

    keys = _read_table(path, ["key"])["key"].combine_chunks()
    # The keys are sorted, which takes a third of the memory of Arrow's hash table.
    halves = view_keys(keys).view(np.uint64)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: equal keys by row
    is_new = (np.diff(halves[order], axis=0, prepend=~halves[order[:1]]) != 0).any(axis=1)
    first_rows = np.sort(order[is_new])
    if len(first_rows) < len(keys):
        keys = keys.take(pa.array(first_rows))
    return keys, first_rows


def read_text_column(path: Path) -> pa.Array:
    """The texts of all rows.

    :param path: the project's ``texts.parquet``.
    :raises StageError: if the file is missing or damaged.
    """
    return _read_table(path, ["text"])["text"].combine_chunks()


class TextReader:
    """Reads the texts of ``texts.parquet`` in ascending order of rows, one row group in memory.

    :param path: the project's ``texts.parquet``.
    :ivar rows: the number of rows.
    :raises StageError: if the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _open_table(path, ["text"])
        about = self._file.metadata
        sizes = [about.row_group(group).num_rows for group in range(about.num_row_groups)]
        self._ends = np.cumsum(sizes)
        self.rows: int = about.num_rows
        self._held = -1
        self._texts: pa.Array = None

    def take(self, rows: npt.NDArray[np.int64]) -> pa.Array:
        """Texts of some rows, in their order: strings, [B].

        :param rows: ascending, [B], and none before those of the last call.
        """
        import pyarrow as pa

        texts = [pa.array([], pa.string())]
        groups = np.searchsorted(self._ends, rows, side="right")
        for group in np.unique(groups).tolist():
            self._hold(group)
            start = self._ends[group] - len(self._texts)
            texts.append(self._texts.take(pa.array(rows[groups == group] - start)))
        return pa.concat_arrays(texts)

    def _hold(self, group: int) -> None:
        if group != self._held:
            with reading(self._path, _STAGE):
                table = self._file.read_row_group(group, ["text"])
            self._texts = table["text"].combine_chunks()
            self._held = group


def _read_table(path: Path, columns: list[str] | None) -> Any:
    with reading(path, _STAGE), _open_table(path, columns or []) as file:
        return file.read(columns)


def _open_table(path: Path, columns: list[str]) -> Any:
    """An open Parquet file that has some columns.

    :raises StageError: if it is missing or damaged, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with reading(path, _STAGE):
        file = pq.ParquetFile(path)  # pyarrow's `read_table` would import pandas
        for column in columns:
            if column not in file.schema_arrow.names:  # pyarrow leaves it out without a word
                raise pa.ArrowInvalid(f"no column {column}")
        return file
