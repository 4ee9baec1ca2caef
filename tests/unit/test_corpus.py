"""Reading texts and labels: only those of one run go together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.tables import TextReader, read_distinct_keys, read_labelled_rows
from pipeline.errors import StageError
from pipeline.prepare import run as prepare
from pipeline.prepare.labelers.base import Labels
from pipeline.prepare.run import LabelledTexts, hash_texts
from pipeline.project import Project


def write(texts: list[str]) -> None:
    labels = Labels(("no", "yes"), np.arange(len(texts), dtype=np.int32) % 2)
    corpus = LabelledTexts(np.arange(len(texts)), texts, {"t": labels})
    split = np.arange(len(texts)).astype(np.int8) % 3
    prepare._write_corpus(Project(), corpus, hash_texts(texts), split)


def test_labels_of_other_texts_are_refused(project: Path) -> None:
    write(["a", "b", "c", "a"])
    rows = read_labelled_rows(Project())
    assert rows.split.tolist() == ["train", "validation", "test", "train"]
    assert rows.tasks["t"].values.tolist() == [0, 1, 0, 1]
    old = Project().labels.read_bytes()
    write(["a", "b", "d", "a"])
    read_labelled_rows(Project())
    Project().labels.write_bytes(old)  # as a kill between the two renames would leave them
    with pytest.raises(StageError, match="are not of one run"):
        read_labelled_rows(Project())


def test_distinct_keys_in_order_of_first_appearance(project: Path) -> None:
    texts = ["b", "a", "b", "c", "a", "d", "c"]
    write(texts)
    keys, first_rows = read_distinct_keys(Project().texts)
    assert keys.to_pylist() == hash_texts(["b", "a", "c", "d"])
    assert first_rows.tolist() == [0, 1, 3, 5]
    assert keys.type == pa.binary(16)


def test_texts_are_read_by_row_group(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "_GROUP_ROWS", 3)
    texts = [f"text {n} ☃" for n in range(10)]
    write(texts)
    reader = TextReader(Project().texts)
    for rows in ([0], [1, 2, 3, 7], [], [7, 8], [9]):
        assert reader.take(np.array(rows, np.int64)).to_pylist() == [texts[row] for row in rows]
    assert TextReader(Project().texts).take(np.arange(10)).to_pylist() == texts


def test_a_damaged_row_group_is_said(project: Path) -> None:
    write([f"a long text of words {n * 7919}" for n in range(2000)])
    content = bytearray(Project().texts.read_bytes())
    column = pq.ParquetFile(Project().texts).metadata.row_group(0).column(1)
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + 3000] = bytes(3000)
    Project().texts.write_bytes(content)
    with pytest.raises(StageError, match=r"cache/texts\.parquet: damaged .*") as error:
        TextReader(Project().texts).take(np.arange(2000))
    assert "pipeline prepare" in str(error.value.hint)
