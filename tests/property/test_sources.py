"""Any table of texts is read back exactly or refused: no text altered, no row lost or won."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.corpus.reading import Reading
from pipeline.corpus.sources import read_source
from pipeline.errors import DataError

# Characters that mean something to some reader, and pieces of rows.
PIECES = st.sampled_from(
    [
        '"', '""', ",", ";", "|", "\t", "\n", "\r", "\r\n", "\\", '\\"', '"\n', '\t"', ',"', '",',
        " ", "", "ham", "spam", "ham\t", "\nspam\t", "\nham,", "1", "a", "\x00", "\ufeff",
        "\u2028", "\x1e", "é", "e\u0301", "👩\u200d👧", "NA", "null", "'", "[", "{", "#",
    ]
)  # fmt: skip
TEXT = st.lists(PIECES | st.text(max_size=3), max_size=6).map("".join)
UNICODE = TEXT.filter(
    lambda text: text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)
)
LABEL = st.sampled_from(["ham", "spam"])
TABLES = st.one_of(
    st.lists(st.tuples(LABEL, UNICODE), min_size=1, max_size=8),
    st.lists(st.tuples(UNICODE, LABEL), min_size=1, max_size=8),
    st.lists(st.tuples(LABEL, UNICODE, UNICODE), min_size=1, max_size=6),
    # Of one column, a row of nothing but a carriage return would be an empty line, which is none.
    st.lists(st.tuples(UNICODE.filter(lambda text: text != "\r")), min_size=1, max_size=8),
)
CHECKED = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def assert_read_back(path: Path, rows: list[tuple[str, ...]], reading: Reading) -> None:
    """The same rows, or a refusal with a message of one line and what to do."""
    try:
        frame = read_source(path, reading)
    except DataError as error:
        assert "\n" not in error.message  # noqa: PT017
        assert error.hint  # noqa: PT017
        return
    found = [tuple(row) for row in frame.to_numpy().tolist()]
    if found != rows:
        # The csv module leaves a carriage return bare, and before a line feed it ends the line.
        assert b"\r\n" in path.read_bytes()
        assert [(*row[:-1], row[-1].removesuffix("\r")) for row in found] == [
            (*row[:-1], row[-1].removesuffix("\r")) for row in rows
        ]


def name_columns(rows: list[tuple[str, ...]]) -> list[str]:
    return [f"c{number}" for number in range(len(rows[0]))]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@CHECKED
@given(rows=TABLES, line_end=st.sampled_from(["\n", "\r\n"]), read_quoting=st.booleans())
def test_what_the_csv_module_writes(
    tmp_path: Path,
    name: str,
    quoting: int,
    rows: list[tuple[str, ...]],
    line_end: str,
    read_quoting: bool,
) -> None:
    buffer = io.StringIO()
    csv.writer(
        buffer,
        delimiter="," if name == "a.csv" else "\t",
        quoting=quoting,  # type: ignore[arg-type]
        lineterminator=line_end,
    ).writerows([name_columns(rows), *rows])
    path = tmp_path / name
    path.write_text(buffer.getvalue(), encoding="utf-8", newline="")
    assert_read_back(path, rows, Reading(quoting="double" if read_quoting else "auto"))


@pytest.mark.parametrize("sep", [",", "\t", ";"])
@CHECKED
@given(rows=TABLES)
def test_what_pandas_writes(tmp_path: Path, sep: str, rows: list[tuple[str, ...]]) -> None:
    path = tmp_path / ("a.tsv" if sep == "\t" else "a.csv")
    pd.DataFrame(rows, columns=name_columns(rows)).to_csv(path, index=False, sep=sep)
    # A table of one column has no delimiter to be recognised by, nor does it need one.
    assert_read_back(path, rows, Reading())


@CHECKED
@given(rows=TABLES)
def test_what_pandas_writes_with_backslashes(tmp_path: Path, rows: list[tuple[str, ...]]) -> None:
    path = tmp_path / "a.csv"
    pd.DataFrame(rows, columns=name_columns(rows)).to_csv(
        path, index=False, doublequote=False, escapechar="\\", quoting=csv.QUOTE_ALL
    )
    assert_read_back(path, rows, Reading(quoting="double", escape="backslash"))


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
@CHECKED
@given(rows=TABLES)
def test_rows_written_without_quoting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, rows: list[tuple[str, ...]]
) -> None:
    """Read as quotes that are parts of texts they come back whole wherever no text breaks a row.

    By ``auto`` quotes around a whole cell may go, as pandas takes them, and where other rows show
    that quotes enclose cells, rows may be joined with a warning that names their lines.
    """
    sep = "\t" if name == "a.tsv" else ","
    plain = [tuple(c.translate({ord(s): None for s in f"{sep}\r\n"}) for c in row) for row in rows]
    plain = [row for row in plain if any(row)] or [("x",) * len(rows[0])]
    lines = [name_columns(plain), *plain]
    path = tmp_path / name
    path.write_text("".join(sep.join(row) + "\n" for row in lines), encoding="utf-8", newline="")
    frame = read_source(path, Reading(quoting="none", delimiter="tab" if sep == "\t" else "comma"))
    assert [tuple(row) for row in frame.to_numpy().tolist()] == plain
    capsys.readouterr()
    try:
        frame = read_source(path)
    except DataError:
        return
    if len(plain[0]) == 1:
        return  # without a second column nothing tells a row from a line of a text
    if re.search("joined to the one before|rows of several lines", capsys.readouterr().out):
        return
    assert len(frame) == len(plain)
    for found, written in zip(frame.to_numpy().ravel(), sum(plain, ()), strict=True):
        assert found in (written, *next(csv.reader([written], delimiter=sep), [])[:1])


@pytest.mark.parametrize("form", ["lines", "array", "indented array"])
@CHECKED
@given(rows=TABLES, ascii_only=st.booleans())
def test_what_the_json_module_writes(
    tmp_path: Path, form: str, rows: list[tuple[str, ...]], ascii_only: bool
) -> None:
    records = [dict(zip(name_columns(rows), row, strict=True)) for row in rows]
    if form == "lines":
        lines = [json.dumps(record, ensure_ascii=ascii_only) for record in records]
        content = "\n".join(lines) + "\n"
    else:
        content = json.dumps(records, ensure_ascii=ascii_only, indent=1 if "ind" in form else None)
    path = tmp_path / "a.json"
    path.write_text(content, encoding="utf-8", newline="")
    assert read_source(path).to_dict("records") == records


@CHECKED
@given(rows=TABLES, binary=st.booleans())
def test_what_pyarrow_writes(tmp_path: Path, rows: list[tuple[str, ...]], binary: bool) -> None:
    columns = dict(zip(name_columns(rows), map(list, zip(*rows, strict=True)), strict=True))
    table = pa.table(columns)
    if binary:
        table = table.cast(pa.schema([(name, pa.binary()) for name in columns]))
    pq.write_table(table, tmp_path / "a.parquet")
    assert read_source(tmp_path / "a.parquet").to_dict("list") == columns
