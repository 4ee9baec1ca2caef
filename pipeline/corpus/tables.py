"""What ``prepare`` writes and others read: rows, keys, splits and labels, in one order.

Reading trusts nothing. The pages of both files have checksums; beyond them, ``texts.parquet``
states the hash of its keys, which are themselves hashes of its texts, and ``labels.parquet`` states
the identity of its rows. Files of version 0.1.0 state only which texts the labels are of.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt

from pipeline.arrays import wrap_numbers, wrap_rows
from pipeline.config import LabelKind, normalize_value
from pipeline.corpus.groups import read_groups
from pipeline.corpus.identity import CorpusIdentity, LabelIdentity, hash_labels
from pipeline.corpus.keys import (
    find_first_keys,
    find_wrong_text,
    hash_keys,
    keep_keys,
    view_keys,
)
from pipeline.errors import StageError
from pipeline.files import add_hash, check_hash, parse_json, reading
from pipeline.project import Project

if TYPE_CHECKING:
    import pyarrow as pa

PARTS = ("train", "validation", "test")
# The key, in the metadata of both files, of the hash of the keys of all rows. In labels.parquet it
# says which texts the labels are of: if a kill comes between the renames of the two files, the new
# texts must not be read with the old labels.
_TEXTS_HASH = "texts_sha256"
_IDENTITY = "identity"  # the key, in the metadata of labels.parquet, of the identity of its rows
_TEXT_COLUMNS = ["text", "key"]
_STAGE = "prepare"  # the stage that writes what is read here


@dataclass(frozen=True)
class TaskLabels:
    """One task's column of ``labels.parquet``.

    :param classes: class or tag names in the order of their index; none of a number.
    :param values: ``class``: int64, [B]; ``tags``: int8, [B, C], 0 or 1; both are -1 where a row
        has no label. ``number``: float64, [B], NaN where a row has none.
    :param kind: what a value is.
    :param settings: the settings that the labels were made by; ``None`` where that is not known.
    """

    classes: tuple[str, ...]
    values: npt.NDArray[Any]
    kind: LabelKind = "class"
    settings: Mapping[str, Any] | None = None

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Which rows have a label: [B]."""
        given = np.isfinite(self.values) if self.kind == "number" else np.greater(self.values, -1)
        return np.asarray(np.reshape(given, (len(self.values), -1)).all(axis=1), np.bool_)

    @property
    def identity(self) -> LabelIdentity:
        """What these labels are, in a hash."""
        return LabelIdentity(hash_labels(self.kind, self.classes, self.values), self.settings)


def encode_labels(values: npt.NDArray[Any], kind: LabelKind) -> pa.Array:
    """Labels as a column that any Parquet reader understands, null where a row has none.

    :param values: labels as ``TaskLabels`` holds them.
    :param kind: what a value is.
    :returns: int32 class indices, lists of booleans, or float64 numbers.
    """
    import pyarrow as pa

    if kind == "number":
        return wrap_numbers(values.astype(np.float64, copy=False), np.isnan(values))
    if kind == "class":
        return wrap_numbers(values.astype(np.int32), values < 0)
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
    :param parts: the index in ``PARTS`` of each row's part, int8, [B].
    :param tasks: task → labels.
    :param is_grouped: whether the parts are those that the stage ``group`` drew.
    """

    keys: pa.Array
    parts: npt.NDArray[np.int8]
    tasks: Mapping[str, TaskLabels]
    is_grouped: bool = False

    @property
    def split(self) -> npt.NDArray[np.str_]:
        """The name of each row's part, [B]."""
        return np.array(PARTS)[self.parts]

    def select(self, *parts: str) -> npt.NDArray[np.int64]:
        """Indices of the rows of some parts, in their order."""
        return np.flatnonzero(np.isin(self.parts, [PARTS.index(part) for part in parts]))

    @property
    def identity(self) -> CorpusIdentity:
        """What these rows are, in a few hashes."""
        labels = {name: of_task.identity for name, of_task in self.tasks.items()}
        return CorpusIdentity.measure(self.keys, self.parts, labels)


def encode_parts(names: Sequence[str] | npt.NDArray[Any]) -> npt.NDArray[np.int8]:
    """The index in ``PARTS`` of each of some names of parts: int8, [B].

    :param names: names of parts, [B].
    :raises ValueError: if there is no part of one of these names.
    """
    given = np.asarray(names, np.str_)
    found = np.full(len(given), -1, np.int8)
    for index, part in enumerate(PARTS):
        found[given == part] = index
    if (found < 0).any():
        raise ValueError(f"there is no part {min(given[found < 0].tolist())!r}")
    return found


def describe_texts(keys: pa.Array) -> dict[str, str]:
    """The metadata of ``texts.parquet``.

    :param keys: the keys of all rows: fixed-size binary of 16, [B].
    """
    return {_TEXTS_HASH: hash_keys(keys)}


def describe_rows(identity: CorpusIdentity) -> dict[str, str]:
    """The metadata of ``labels.parquet``.

    :param identity: the identity of its rows.
    """
    record = json.dumps(add_hash(identity.to_record()))
    return {_TEXTS_HASH: identity.keys, _IDENTITY: record}


def describe_label(classes: Sequence[str], kind: LabelKind) -> dict[str, str]:
    """The metadata of a label's column in ``labels.parquet``.

    :param classes: class or tag names in the order of their index.
    :param kind: what a value is.
    """
    about = {"classes": json.dumps(list(classes), ensure_ascii=False)}
    return about | ({"kind": kind} if kind != "class" else {})


def read_labelled_rows(project: Project) -> LabelledRows:
    """Read the labels of all rows and the keys of their texts.

    :param project: the project whose stage ``prepare`` wrote them.
    :raises StageError: if one is missing or damaged, or they are not of the same run.
    """
    return read_labelled_table(project)[0]


def read_prepared_rows(project: Project) -> tuple[LabelledRows, npt.NDArray[np.int64]]:
    """Read the rows in the parts that ``prepare`` gave them, whatever ``group`` drew since.

    :param project: the project whose stage ``prepare`` wrote them.
    :returns: the rows, and the number of each in the dataset.
    :raises StageError: if a file is missing or damaged, or they are not of the same run.
    """
    rows, table = _read_prepared(project)
    return rows, table["row"].to_numpy()


def read_labelled_table(project: Project) -> tuple[LabelledRows, pa.Table]:
    """Read the labels of all rows, and the table that they stand in.

    :param project: the project whose stage ``prepare`` wrote them.
    :returns: the rows, in the parts that ``group`` drew if it did, and what ``labels.parquet``
        holds, in the same order: beside the labels the numbers of the rows in the dataset,
        ``row``, and raw scores.
    :raises StageError: if one is missing or damaged, or they are not of the same run.
    """
    rows, table = _read_prepared(project)
    if project.groups_file.exists():
        groups = read_groups(project.groups_file, table["row"].to_numpy(), rows.identity)
        if groups is not None:
            rows = replace(rows, parts=groups.parts, is_grouped=True)
    return rows, table


def _read_prepared(project: Project) -> tuple[LabelledRows, pa.Table]:
    """The rows as ``prepare`` wrote them, and the table that they stand in."""
    import pyarrow as pa

    labels = _read_table(project.labels_file, None)
    raw, texts = _read_keys(project.texts_file, "row")
    keys = wrap_rows(raw)
    with reading(project.labels_file, _STAGE, pa.ArrowException):
        about = _read_metadata(labels.schema, {_TEXTS_HASH, _IDENTITY})
        is_pair = about.get(_TEXTS_HASH) == hash_keys(keys)
        if not is_pair or {"row", "split"} - set(labels.column_names):
            raise StageError(
                f"{project.labels_file} and {project.texts_file} are not of one run",
                hint="run `pipeline prepare` again",
            )
        if not labels["row"].equals(texts["row"]):
            raise ValueError("its rows are not those of the texts")
        stated = None
        if _IDENTITY in about:
            record = check_hash(parse_json(about[_IDENTITY].encode("utf-8")))
            stated = CorpusIdentity.from_record(record)
        rows = _decode_rows(keys, labels, stated)
        if stated is not None and (rows.identity != stated):
            raise ValueError("its contents do not have the hashes that it states")
    return rows, labels


def read_row_numbers(project: Project) -> npt.NDArray[np.int64]:
    """The number of each row of the corpus in its source, in the order of ``labels.parquet``.

    :param project: the project whose corpus it is.
    """
    numbers: npt.NDArray[np.int64] = (
        _read_table(project.labels_file, ["row"])["row"].to_numpy().astype(np.int64)
    )
    return numbers


def _decode_rows(keys: pa.Array, labels: Any, stated: CorpusIdentity | None) -> LabelledRows:
    """Rows of the table that ``labels.parquet`` holds.

    :param stated: what it states of itself; ``None`` if it is of version 0.1.0.
    :raises ValueError: if something cannot be a part or a label; other errors likewise.
    """
    parts = _decode_parts(labels["split"])
    tasks = {}
    for field in labels.schema:
        if field.metadata and b"classes" in field.metadata:
            settings = stated.labels[field.name].settings if stated is not None else None
            tasks[field.name] = _decode_task(field, labels[field.name], settings)
    return LabelledRows(keys, parts, tasks)


def _decode_parts(column: Any) -> npt.NDArray[np.int8]:
    """The index in ``PARTS`` of each row's part, of a column of their names.

    :raises ValueError: if there is no part of one of these names.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    found = pc.index_in(column, value_set=pa.array(PARTS, column.type))
    if found.null_count:
        odd = pc.unique(column.filter(found.is_null())).to_pylist()
        raise ValueError(f"there is no part {min(odd, key=str)!r}")
    return np.concatenate(
        [np.empty(0, np.int8), *(chunk.to_numpy().astype(np.int8) for chunk in found.chunks)]
    )


def _decode_task(field: pa.Field, column: Any, settings: Mapping[str, Any] | None) -> TaskLabels:
    """The labels of one task.

    :raises ValueError: if one cannot be a label of its kind; other errors likewise.
    """
    classes = parse_json(field.metadata[b"classes"])
    kind = field.metadata.get(b"kind", b"class").decode()
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise TypeError(f"{field.name} has the classes {classes!r:.60}")
    if kind not in get_args(LabelKind):
        raise ValueError(f"{field.name} is of the kind {kind!r:.60}")
    values = decode_labels(column.combine_chunks(), kind, len(classes))
    if kind == "class":
        bad = np.flatnonzero((values < -1) | (values >= len(classes)))
        if len(bad):
            raise ValueError(
                f"{field.name} is {values[bad[0]]} in row {bad[0]:,}, not a class index from 0 to "
                f"{len(classes) - 1}"
            )
    return TaskLabels(tuple(classes), values, kind, settings)


def iterate_segments(
    keys: pa.Array, columns: Mapping[str, Iterable[Any]], part_rows: int
) -> Iterator[pa.Table]:
    """Columns of the source as ``segments.parquet`` holds them: as text, null where one is missing.

    :param keys: the keys of the texts of all rows, [B].
    :param columns: name → the value of each row, [B], which are gone through once.
    :param part_rows: the number of rows of a table.
    :yields: tables of so many rows, the last of fewer.
    """
    import pyarrow as pa

    metadata = {_TEXTS_HASH: hash_keys(keys)}
    following = {name: map(_name_value, values) for name, values in columns.items()}
    for _ in range(0, len(keys) if columns else 1, part_rows):
        part = {
            name: pa.array(list(itertools.islice(values, part_rows)), pa.string())
            for name, values in following.items()
        }
        yield pa.table(part).replace_schema_metadata(metadata)


def _name_value(value: Any) -> str | None:
    """A cell as text, as labels have it; ``None`` where nothing stands in it."""
    if value is None or (isinstance(value, float) and value != value):
        return None
    return normalize_value(value).strip() or None


def read_segments(project: Project, columns: Sequence[str]) -> dict[str, list[str | None]]:
    """Columns of the source that ``prepare`` kept, the rows in the order of ``labels.parquet``.

    :param project: the project whose stage ``prepare`` wrote them.
    :param columns: the names of the columns; without any, no file is read.
    :returns: name → the value of each row, ``None`` where it has none.
    :raises StageError: if the file is missing, damaged, or of another run, or lacks a column.
    """
    import pyarrow as pa

    if not columns:
        return {}
    path = project.segments_file
    table = _read_table(path, None)
    keys = wrap_rows(_read_keys(project.texts_file)[0])
    with reading(path, _STAGE, pa.ArrowException):
        if _read_metadata(table.schema, {_TEXTS_HASH}).get(_TEXTS_HASH) != hash_keys(keys):
            raise StageError(
                f"{path} and {project.texts_file} are not of one run",
                hint="run `pipeline prepare` again",
            )
        lacking = next((name for name in columns if name not in table.column_names), None)
        if lacking is not None:
            raise StageError(
                f"{path}: no column {lacking!r}, which report.segments names",
                hint="run `pipeline prepare` again",
            )
        made = {name: table[name].cast(pa.string()).to_pylist() for name in columns}
        if any(len(values) != len(keys) for values in made.values()):
            raise ValueError("its rows are not those of the texts")
    return made


def read_distinct_keys(path: Path) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """The keys of the distinct texts of the corpus, in order of first appearance.

    :param path: the project's ``texts.parquet``.
    :returns: fixed-size binary of 16, [N], and the row in which each stands first, int64, [N].
    :raises StageError: if the file is missing or damaged.
    """
    keys, _ = _read_keys(path)
    is_first = find_first_keys(keys)
    return wrap_rows(keep_keys(keys, is_first)), np.flatnonzero(is_first)


def read_text_column(path: Path) -> pa.Array:
    """The texts of all rows.

    :param path: the project's ``texts.parquet``.
    :raises StageError: if the file is missing or damaged.
    """
    reader = TextReader(path)
    return reader.take(np.arange(reader.rows))


def _read_keys(path: Path, *others: str) -> tuple[npt.NDArray[np.uint8], pa.Table]:
    """The keys of all rows of ``texts.parquet``, read a row group at a time: [B, 16].

    :param *others: the names of other columns to read.
    :returns: the keys, and the other columns.
    :raises StageError: if the file is missing, or they are not those that were written.
    """
    import pyarrow as pa

    with _open_table(path, ["key"]) as file, reading(path, _STAGE, pa.ArrowException):
        keys = np.empty((file.metadata.num_rows, 16), np.uint8)
        start, held = 0, []
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, ["key", *others])
            held.append(table.select(others))
            part = table["key"].combine_chunks()
            if part.type != pa.binary(16) or part.null_count:
                raise TypeError(f"keys are of the type {part.type}")
            keys[start : start + len(part)] = view_keys(part)
            start += len(part)
        if start != len(keys):
            raise ValueError(f"{start:,} of its {len(keys):,} keys are there")
        stated = _read_metadata(file.schema_arrow, {_TEXTS_HASH}).get(_TEXTS_HASH)
        if stated is not None and stated != hash_keys(wrap_rows(keys)):
            raise ValueError("its keys do not have the hash that it states")
        return keys, pa.concat_tables(held)


def _read_metadata(schema: pa.Schema, known: set[str]) -> dict[str, str]:
    """What a table says of itself.

    :param known: the keys that there may be.
    :raises ValueError: if there is another one, such as one of these with another letter.
    """
    about = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
    odd = set(about) - known
    if odd:
        raise ValueError(f"it holds {min(odd)!r:.60}, which no run writes")
    return about


class TextReader:
    """Reads the texts of ``texts.parquet`` in ascending order of rows, one row group in memory.

    Each text is checked against its key, which is its hash: a damaged text must not be embedded
    under the key of the right one.

    :param path: the project's ``texts.parquet``.
    :ivar rows: the number of rows.
    :raises StageError: if the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _open_table(path, _TEXT_COLUMNS)
        about = self._file.metadata
        sizes = [about.row_group(group).num_rows for group in range(about.num_row_groups)]
        self._ends = np.cumsum(sizes)
        self.rows: int = about.num_rows
        self._held = -1
        self._group: Any = None

    def take(self, rows: npt.NDArray[np.int64]) -> pa.Array:
        """Texts of some rows, in their order: strings, [B].

        :param rows: ascending, [B], and none before those of the last call.
        :raises StageError: if a text is not the one that was written, naming its row.
        """
        import pyarrow as pa

        groups = np.searchsorted(self._ends, rows, side="right")
        taken = [self._take(group, rows[groups == group]) for group in np.unique(groups).tolist()]
        return pa.concat_arrays([pa.nulls(0, pa.string()), *taken])

    def _take(self, group: int, rows: npt.NDArray[np.int64]) -> pa.Array:
        """Texts of some rows of one row group."""
        import pyarrow as pa

        with reading(self._path, _STAGE, pa.ArrowException):
            if group != self._held:
                self._group = self._file.read_row_group(group, _TEXT_COLUMNS)
                self._held = group
            start = self._ends[group] - len(self._group)
            taken = self._group.take(wrap_numbers(rows - start)).combine_chunks()
            texts, keys = (taken[name].combine_chunks() for name in _TEXT_COLUMNS)
            if texts.type != pa.string() or texts.null_count or keys.type != pa.binary(16):
                raise TypeError(f"texts and keys are of the types {texts.type}, {keys.type}")
            wrong = find_wrong_text(texts, keys)
            if wrong is not None:
                raise ValueError(f"the text of row {rows[wrong]:,} is not the one of its key")
        return texts


def write_parts(parts: Iterable[pa.Table], file: IO[bytes], group_rows: int) -> None:
    """Write one of the two files, with a checksum in each page.

    :param parts: what it is to hold: tables of one schema, all but the last of ``group_rows`` rows.
    :param file: the file, open for writing.
    :param group_rows: the number of rows in a row group.
    """
    import pyarrow.parquet as pq

    with contextlib.ExitStack() as stack:
        writer = None
        for part in parts:
            if writer is None:
                writer = stack.enter_context(
                    pq.ParquetWriter(
                        file, part.schema, compression="zstd", write_page_checksum=True
                    )
                )
            writer.write_table(part, row_group_size=group_rows)


def _read_table(path: Path, columns: list[str] | None) -> Any:
    import pyarrow as pa

    with _open_table(path, columns or []) as file, reading(path, _STAGE, pa.ArrowException):
        return file.read(columns)


def _open_table(path: Path, columns: Sequence[str]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with reading(path, _STAGE, pa.ArrowException):
        # `read_table` would import pandas. Pages without a checksum are taken as they are.
        file = pq.ParquetFile(path, page_checksum_verification=True)
        for column in columns:
            if column not in file.schema_arrow.names:  # pyarrow leaves it out without a word
                raise pa.ArrowInvalid(f"no column {column}")
        about = file.metadata
        held = sum(about.row_group(group).num_rows for group in range(about.num_row_groups))
        if held != about.num_rows:
            raise pa.ArrowInvalid(f"{held:,} rows in its groups, {about.num_rows:,} in all")
        return file
