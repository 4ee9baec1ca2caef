"""Reading texts and labels: only those of one run go together."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.arrays import wrap_rows
from pipeline.config import ColumnLabel, LabelSettings, VaderLabel
from pipeline.corpus.keys import hash_texts, pack_keys
from pipeline.corpus.tables import (
    LabelledRows,
    TextReader,
    encode_parts,
    read_distinct_keys,
    read_labelled_rows,
    read_text_column,
)
from pipeline.errors import StageError
from pipeline.prepare import run as prepare
from pipeline.prepare.labelers.base import Labels
from pipeline.prepare.run import LabelledTexts
from pipeline.project import Project


def write(texts: list[str]) -> None:
    labels = Labels(("no", "yes"), np.arange(len(texts), dtype=np.int32) % 2)
    corpus = LabelledTexts(np.arange(len(texts)), texts, {"t": labels})
    split = np.arange(len(texts)).astype(np.int8) % 3
    settings = {"t": ColumnLabel(column="t")}
    keys = pack_keys(texts, len(texts))
    prepare._write_corpus(Project(), corpus, keys, split, settings, {})


def test_labels_of_other_texts_are_refused(project: Path) -> None:
    write(["a", "b", "c", "a"])
    rows = read_labelled_rows(Project())
    assert rows.split.tolist() == ["train", "validation", "test", "train"]
    assert rows.tasks["t"].values.tolist() == [0, 1, 0, 1]
    old = Project().labels_file.read_bytes()
    write(["a", "b", "d", "a"])
    read_labelled_rows(Project())
    Project().labels_file.write_bytes(old)  # as a kill between the two renames would leave them
    with pytest.raises(StageError, match="are not of one run"):
        read_labelled_rows(Project())


def test_distinct_keys_in_order_of_first_appearance(project: Path) -> None:
    texts = ["b", "a", "b", "c", "a", "d", "c"]
    write(texts)
    keys, first_rows = read_distinct_keys(Project().texts_file)
    assert keys.to_pylist() == hash_texts(["b", "a", "c", "d"])
    assert first_rows.tolist() == [0, 1, 3, 5]
    assert keys.type == pa.binary(16)


def test_keys_take_little_more_than_their_bytes(project: Path) -> None:
    """As many as there are rows must be known at once; what is made on the way must not add up."""
    peaks = []
    for rows in (20_000, 120_000):
        write([f"text {number % (rows - 50)}" for number in range(rows)])
        tracemalloc.start()
        keys, first_rows = read_distinct_keys(Project().texts_file)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(keys) == len(first_rows) == rows - 50
    assert (peaks[1] - peaks[0]) / 100_000 < 16 + 8 + 6


def test_texts_are_read_by_row_group(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "_GROUP_ROWS", 3)
    texts = [f"text {n} ☃" for n in range(10)]
    write(texts)
    reader = TextReader(Project().texts_file)
    for rows in ([0], [1, 2, 3, 7], [], [7, 8], [9]):
        assert reader.take(np.array(rows, np.int64)).to_pylist() == [texts[row] for row in rows]
    assert TextReader(Project().texts_file).take(np.arange(10)).to_pylist() == texts


def test_a_damaged_row_group_is_said(project: Path) -> None:
    write([f"a long text of words {n * 7919}" for n in range(2000)])
    content = bytearray(Project().texts_file.read_bytes())
    column = pq.ParquetFile(Project().texts_file).metadata.row_group(0).column(1)
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + 3000] = bytes(3000)
    Project().texts_file.write_bytes(content)
    with pytest.raises(StageError, match=r"cache/texts\.parquet: damaged .*") as error:
        TextReader(Project().texts_file).take(np.arange(2000))
    assert "pipeline prepare" in str(error.value.hint)


def test_what_is_written_is_what_is_read(project: Path) -> None:
    corpus = write_all_kinds()
    rows = read_labelled_rows(Project())
    for name, labels in corpus.labels.items():
        read = rows.tasks[name]
        assert (read.classes, read.kind) == (labels.classes, labels.kind)
        np.testing.assert_array_equal(read.values, labels.values)
        assert read.settings == SETTINGS[name].model_dump(mode="json")
    for column in range(2):
        page = pq.ParquetFile(Project().labels_file, page_checksum_verification=True)
        assert page.read_row_group(0, [page.schema_arrow.names[column]]).num_rows == ROWS


def test_a_notebook_sees_names_for_what_was_written_and_nothing_where_nothing_was(
    project: Path,
) -> None:
    corpus = write_all_kinds()
    frame = pipeline.Project(project).labels()
    assert frame.columns.tolist() == ["row", "split", *SETTINGS, "mood_compound"]
    assert frame["row"].tolist() == list(range(ROWS))
    one, many, size, mood = (corpus.labels[name] for name in SETTINGS)
    assert frame["one"].cat.categories.tolist() == ["a", "b"]
    assert frame["mood"].cat.codes.tolist() == mood.values.tolist()
    for row in range(ROWS):
        assert frame["one"].isna()[row] == (one.values[row] == -1)
        assert frame["one"].isna()[row] or frame["one"][row] == "ab"[one.values[row]]
        tags = [name for name, held in zip("xyz", many.values[row], strict=True) if held]
        assert frame["many"][row] == (None if row == 4 else tags)
    assert frame["one"].isna().any()
    np.testing.assert_array_equal(frame["size"], size.values)
    np.testing.assert_array_equal(frame["mood_compound"], mood.scores["mood_compound"])


ROWS = 60
SETTINGS: dict[str, LabelSettings] = {
    "one": ColumnLabel(column="one"),
    "many": ColumnLabel(column="many", kind="tags"),
    "size": ColumnLabel(column="size", kind="number"),
    "mood": VaderLabel(labeler="vader"),
}


def write_all_kinds() -> LabelledTexts:
    """Labels of every kind, in some rows none."""
    generator = np.random.default_rng(0)
    numbers = generator.normal(size=ROWS)
    numbers[3] = np.nan
    tags = generator.integers(0, 2, (ROWS, 3)).astype(np.int8)
    tags[4] = -1
    classes = generator.integers(-1, 2, ROWS).astype(np.int32)
    classes[5] = 1
    labels = {
        "one": Labels(("a", "b"), classes),
        "many": Labels(("x", "y", "z"), tags, kind="tags"),
        "size": Labels((), numbers, kind="number"),
        "mood": Labels(
            ("negative", "neutral", "positive"),
            generator.integers(0, 3, ROWS).astype(np.int32),
            scores={"mood_compound": generator.normal(size=ROWS)},
        ),
    }
    texts = [f"some text {n % 50}" for n in range(ROWS)]
    corpus = LabelledTexts(np.arange(ROWS), texts, labels)
    split = generator.integers(0, 3, ROWS).astype(np.int8)
    keys = pack_keys(texts, len(texts))
    prepare._write_corpus(Project(), corpus, keys, split, SETTINGS, {})
    return corpus


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table], *, old: bool = False) -> None:
    """Write another table in the place of one, with checksums that are right.

    :param old: whether it states no more of itself than version 0.1.0 did.
    """
    table = pq.read_table(path)
    if old:
        tie = {b"texts_sha256": table.schema.metadata[b"texts_sha256"]}
        table = table.replace_schema_metadata(tie if path == Project().labels_file else None)
    pq.write_table(change(table), path, write_page_checksum=True)


def set_column(name: str, change: Callable[[list[Any]], object]) -> Callable[[pa.Table], pa.Table]:
    def apply(table: pa.Table) -> pa.Table:
        values = table[name].to_pylist()
        change(values)
        index = table.column_names.index(name)
        field = table.schema.field(index)
        return table.set_column(index, field, pa.array(values, field.type))

    return apply


def set_metadata(name: str, key: bytes, value: bytes) -> Callable[[pa.Table], pa.Table]:
    def apply(table: pa.Table) -> pa.Table:
        index = table.column_names.index(name)
        field = table.schema.field(index)
        field = field.with_metadata({**field.metadata, key: value})
        return table.set_column(index, field, table[name])

    return apply


def rename(old: str, new: str) -> Callable[[pa.Table], pa.Table]:
    def apply(table: pa.Table) -> pa.Table:
        fields = [field.with_name(new) if field.name == old else field for field in table.schema]
        return pa.table(table.columns, schema=pa.schema(fields, metadata=table.schema.metadata))

    return apply


def restate(**metadata: str) -> Callable[[pa.Table], pa.Table]:
    """Other metadata of the whole file."""
    stated = {key.encode(): value.encode() for key, value in metadata.items()}
    return lambda table: table.replace_schema_metadata({**table.schema.metadata, **stated})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_column("one", lambda v: v.__setitem__(5, 1 - v[5])), "hashes that it states"),
        (set_column("one", lambda v: v.__setitem__(5, None)), "hashes that it states"),
        (set_column("many", lambda v: v[5].__setitem__(0, not v[5][0])), "hashes that it states"),
        (set_column("size", lambda v: v.__setitem__(0, v[0] + 1e-12)), "hashes that it states"),
        (set_column("size", lambda v: v.__setitem__(3, 0.0)), "hashes that it states"),
        (set_column("split", lambda v: v.reverse()), "hashes that it states"),
        (set_column("split", lambda v: v.__setitem__(0, "tesu")), "there is no part 'tesu'"),
        (set_column("row", lambda v: v.reverse()), "not those of the texts"),
        (set_metadata("one", b"classes", b'["b", "a"]'), "hashes that it states"),
        (set_metadata("one", b"classes", b'["a"]'), "not a class index from 0 to 0"),
        (set_metadata("one", b"classes", b"[1, 2]"), "has the classes"),
        (set_metadata("one", b"classes", b"[" * 99_999), "nested too deeply"),
        (set_metadata("one", b"kind", b"tags"), "damaged"),
        (set_metadata("one", b"kind", b"klass"), "of the kind 'klass'"),
        (set_metadata("many", b"classes", b'["x", "y"]'), "damaged"),
        (rename("one", "eno"), "damaged .*eno"),
        (lambda table: table.drop_columns(["one"]), "hashes that it states"),
        (lambda table: table.slice(1), "not those of the texts"),
        (restate(identity="{}"), "damaged"),
        (restate(identitx="{}"), "it holds 'identitx', which no run writes"),
        (restate(texts_sha256="0" * 64), "are not of one run"),
    ],
)
def test_labels_that_were_not_written_are_refused(
    project: Path, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    """Each of these files is right as a Parquet file."""
    write_all_kinds()
    read_labelled_rows(Project())
    rewrite(Project().labels_file, change)
    with pytest.raises(StageError, match=message) as caught:
        read_labelled_rows(Project())
    assert str(Project().labels_file) in caught.value.message
    assert caught.value.hint == "run `pipeline prepare` again"


def test_parts_are_numbers_of_one_byte_and_have_their_names() -> None:
    names = ["test", "train", "validation", "train"]
    rows = LabelledRows(wrap_rows(np.zeros((4, 16), np.uint8)), encode_parts(names), {})
    assert rows.parts.dtype == np.int8
    assert rows.split.tolist() == names
    assert rows.select("train").tolist() == [1, 3]
    assert rows.select("test", "validation").tolist() == [0, 2]
    with pytest.raises(ValueError, match="there is no part 'dev'"):
        encode_parts(["train", "dev"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_column("split", lambda v: v.__setitem__(0, "tesu")), "there is no part 'tesu'"),
        (set_column("one", lambda v: v.__setitem__(9, 2)), "one is 2 in row 9, not a class index"),
        (set_column("row", lambda v: v.reverse()), "not those of the texts"),
        (restate(texts_sha256="0" * 64), "are not of one run"),
    ],
)
def test_labels_of_an_earlier_version_are_read_and_checked(
    project: Path, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    write_all_kinds()
    now = read_labelled_rows(Project())
    rewrite(Project().labels_file, lambda table: table, old=True)
    then = read_labelled_rows(Project())
    assert not now.identity.list_changes(then.identity)
    assert {name: task.settings for name, task in then.tasks.items()} == dict.fromkeys(SETTINGS)
    rewrite(Project().labels_file, change, old=True)
    with pytest.raises(StageError, match=message):
        read_labelled_rows(Project())


@pytest.mark.parametrize("old", [False, True])
def test_a_text_is_checked_against_its_key(project: Path, old: bool) -> None:
    write_all_kinds()
    damaged = set_column("text", lambda values: values.__setitem__(7, "some text 8"))
    rewrite(Project().texts_file, damaged, old=old)
    keys, _ = read_distinct_keys(Project().texts_file)
    assert len(keys) == 50
    reader = TextReader(Project().texts_file)
    assert reader.take(np.arange(7)).to_pylist() == [f"some text {n}" for n in range(7)]
    with pytest.raises(StageError, match="the text of row 7 is not the one of its key") as caught:
        reader.take(np.arange(50))
    assert str(Project().texts_file) in caught.value.message
    assert caught.value.hint == "run `pipeline prepare` again"
    with pytest.raises(StageError, match="the text of row 7 is not the one of its key"):
        read_text_column(Project().texts_file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.slice(0, 50), "keys do not have the hash"),
        (set_column("key", lambda keys: keys.__setitem__(0, bytes(16))), "do not have the hash"),
        (set_column("key", lambda keys: keys.__setitem__(0, None)), "keys are of the type"),
        (restate(texts_sha257="0"), "it holds 'texts_sha257', which no run writes"),
        (rename("key", "kez"), "no column key"),
    ],
)
def test_keys_that_were_not_written_are_refused(
    project: Path, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    """A corpus that lost rows would lose its vectors, too."""
    write_all_kinds()
    rewrite(Project().texts_file, change)
    for read in (
        lambda: read_distinct_keys(Project().texts_file),
        lambda: read_labelled_rows(Project()),
    ):
        with pytest.raises(StageError, match=message) as caught:
            read()
        assert str(Project().texts_file) in caught.value.message


def test_a_flipped_bit_in_a_page_is_seen(project: Path) -> None:
    """Of raw scores, too, which have no hash beside the checksum of their page."""
    write_all_kinds()
    for path, column, read in (
        (Project().texts_file, "text", lambda path: TextReader(path).take(np.arange(ROWS))),
        (Project().labels_file, "mood_compound", lambda path: read_labelled_rows(Project())),
    ):
        content = bytearray(path.read_bytes())
        group = pq.ParquetFile(path).metadata.row_group(0)
        names = [group.column(index).path_in_schema for index in range(group.num_columns)]
        chunk = group.column(names.index(column))
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        # Within the numbers or texts of the first page, behind its header of some forty bytes.
        content[start + 100] ^= 4
        path.write_bytes(content)
        with pytest.raises(StageError, match=f"{path.name}: damaged .*(?i:crc|checksum)"):
            read(path)
