"""Packed cells are the same cells, of the same types, in memory and on the disk."""

from __future__ import annotations

import csv
import gzip
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus import cells as packing
from pipeline.corpus.cells import Cells, ChosenTexts, Spool, Table
from pipeline.project import Project
from tests.conftest import Cli, edit_params, run_stages

ANY = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers()),
    st.just("\ud800"),
)  # fmt: skip
OF_ONE_KIND = st.one_of(
    *(st.lists(st.one_of(st.none(), kind), max_size=40)
      for kind in (st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from("ab")))
)  # fmt: skip


def is_same(one: Any, other: Any) -> bool:
    both_nan = isinstance(one, float) and math.isnan(one) and math.isnan(other)
    return type(one) is type(other) and (both_nan or one == other)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_CHUNK_ROWS", 8)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with Spool(tmp_path / "cache") as spool:
        yield spool


@settings(max_examples=200, deadline=None)
@given(values=st.one_of(st.lists(ANY, max_size=40), OF_ONE_KIND), in_file=st.booleans())
def test_cells_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], in_file: bool
) -> None:
    packing._CHUNK_ROWS = 8
    with Spool(tmp_path_factory.mktemp("spool")) as spool:
        cells = Cells(spool if in_file else None)
        for value in values[:20]:
            cells.append(value)
        more = Cells(spool if in_file else None)
        more.extend(values[20:])
        cells.extend(more)
        assert len(cells) == len(values)
        assert all(map(is_same, cells, values))
        assert all(is_same(cells[row], values[row]) for row in reversed(range(len(values))))
        assert all(map(is_same, cells[1:30:2], values[1:30:2]))
        numbered = [
            part[number] for part, numbers in cells.iterate_numbered() for number in numbers
        ]
        assert all(map(is_same, numbered, values))
        assert len(numbered) == len(values)


def test_few_distinct_texts_take_a_byte_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_CHUNK_ROWS", 16_384)
    cells = Cells()
    cells.extend(["ham", "spam", None] * 200_000)
    held = sum(chunk.nbytes for chunk in cells._chunks if isinstance(chunk, pa.Array))
    assert held < 2 * len(cells)


def test_the_spool_leaves_nothing(tmp_path: Path) -> None:
    with Spool(tmp_path / "cache") as spool:
        cells = Cells(spool)
        cells.extend(["a text"] * 100)
        assert list((tmp_path / "cache").iterdir()) == []  # no name, so that a kill leaves none
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("rows", [None, [0, 3, 4, 19], list(range(20)), []])
def test_chosen_texts_are_those_of_a_list(spool: Spool, rows: Sequence[int] | None) -> None:
    texts = [f"text {n}" for n in range(20)]
    cells = Cells(spool)
    cells.extend(texts)
    blank = {3, 5}
    chosen = ChosenTexts(cells, frozenset(blank))
    if rows is not None:
        chosen = chosen.choose(np.array(rows, np.int64))
    expected = ["" if n in blank else texts[n] for n in (range(20) if rows is None else rows)]
    assert list(chosen) == expected
    assert [chosen[n] for n in range(len(chosen))] == expected
    assert chosen[1:3] == expected[1:3]
    assert len(chosen) == len(expected)


def test_a_table_of_a_frame_has_its_objects() -> None:
    frame = pd.DataFrame({"a": pd.Series([1, None, "x"], dtype=object), "b": [0.5, 1.5, 2.5]})
    table = Table.of(frame)
    assert table.columns == ["a", "b"]
    assert len(table) == 3
    assert table["a"] == [1, None, "x"]
    assert Table.of(table) is table


ROWS = [("spam" if n % 3 == 0 else "ham", f"message {n % 50} of many") for n in range(100)]


def write_rows(folder: Path, kind: str) -> str:
    """The rows in a file, or in several; the name for ``fetch.dataset``."""
    frame = pd.DataFrame(ROWS, columns=["label", "text"])
    folder.mkdir()
    if kind == "csv.gz":
        with gzip.open(folder / "a.csv.gz", "wt", newline="") as file:
            csv.writer(file).writerows([("label", "text"), *ROWS])
    elif kind == "jsonl":
        frame.to_json(folder / "a.jsonl", orient="records", lines=True)
    elif kind == "row groups":
        pq.write_table(pa.Table.from_pandas(frame), folder / "a.parquet", row_group_size=7)
    elif kind == "files":
        frame[:33].to_csv(folder / "a.csv", index=False)
        pq.write_table(pa.Table.from_pandas(frame[33:34]), folder / "b.parquet")
        frame[34:].to_json(folder / "c.jsonl", orient="records", lines=True)
    else:
        frame.to_csv(folder / "a.csv", index=False)
    return folder.name


def prepare(cli: Cli, kind: str) -> tuple[bytes, bytes]:
    name = write_rows(Project().root / kind.replace(" ", "-"), kind)
    edit_params({"fetch.dataset": name})
    run_stages(cli, "fetch", "prepare")
    assert not list(Project().cache.glob(".tmp-*"))
    return Project().texts_file.read_bytes(), Project().labels_file.read_bytes()


def test_all_formats_and_parts_give_the_same_files(
    project: Path, tiny_backbone: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_params(
        {
            "fetch.backbones": [str(tiny_backbone)],
            "prepare.text_column": "text",
            "prepare.labels": {"spam": {"column": "label", "classes": ["ham", "spam"]}},
            "heads.tasks": {"spam": {}},
        }
    )
    whole = prepare(cli, "csv")
    for kind in ("csv.gz", "jsonl", "row groups", "files"):
        assert prepare(cli, kind) == whole, kind
    monkeypatch.setattr(packing, "_CHUNK_ROWS", 100_000)
    assert prepare(cli, "one chunk") == whole
    table = pq.read_table(Project().texts_file)
    assert table["text"].to_pylist() == [text for _, text in ROWS]


# The peak that `getrusage` knows would be that of the process that started this one.
MEASURE = """
import re
from pathlib import Path
from pipeline.cli import cli
cli.main(["fetch"], standalone_mode=False)
cli.main(["prepare"], standalone_mode=False)
print("peak", re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def test_memory_hardly_grows_with_the_rows(project: Path, tiny_backbone: Path) -> None:
    """A text and its label as Python objects would take 400 bytes of memory a row."""
    edit_params(
        {
            "fetch.dataset": "rows.parquet",
            "fetch.backbones": [str(tiny_backbone)],
            "prepare.text_column": "text",
            "prepare.labels": {"spam": {"column": "label", "classes": ["ham", "spam"]}},
            "heads.tasks": {"spam": {}},
        }
    )
    peaks = []
    for rows in (50_000, 350_000):
        texts = [f"a message of some words, number {n}, as people write them" for n in range(rows)]
        labels = ["spam" if n % 7 == 0 else "ham" for n in range(rows)]
        pq.write_table(pa.table({"text": texts, "label": labels}), project / "rows.parquet")
        run = subprocess.run(
            [sys.executable, "-c", MEASURE], cwd=project, capture_output=True, text=True, check=True
        )
        peaks.append(int(run.stdout.split()[-1]) * 1024)
    assert (peaks[1] - peaks[0]) / 300_000 < 150
