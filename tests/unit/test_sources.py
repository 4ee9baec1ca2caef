"""Sources in every format, against the standard library, pandas and pyarrow."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.sources import read_source
from pipeline.errors import DataError

TRICKY = [
    "plain",
    "NA",
    "null",
    "None",
    "nan",
    "-1.50",
    "007",
    "1e5",
    "2020-01-02",
    "TRUE",
    " padded ",
    "a,b\tc;d",
    'she said "hi"',
    '"',
    "two\nlines",
    "two\r\nlines",
    "old\rmac",
    "nul\x00inside",
    "line\u2028separator\u0085next\x0bline\x1cend",
    "\ufeffmark",
    "e\u0301 \u202eright to left\u202c \uffff \ue000 👩\u200d👩\u200d👧 𝔘",
    "x" * 200_000,
    "",
]


def write_delimited(path: Path, rows: list[list[str]], delimiter: str, **options: object) -> None:
    encoding = str(options.pop("encoding", "utf-8"))
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter, **options).writerows(rows)  # type: ignore[call-overload]


def read_text(path: Path, content: bytes, **options: object) -> pd.DataFrame:
    path.write_bytes(content)
    return read_source(path, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t"), ("A.TAB", "\t")])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_delimited_cells_come_back_as_they_are(
    tmp_path: Path, name: str, delimiter: str, line_end: str, encoding: str
) -> None:
    path = tmp_path / name
    rows = [[f"l{n}", text] for n, text in enumerate(TRICKY)]
    write_delimited(
        path,
        [["label", "text"], *rows],
        delimiter,
        quoting=csv.QUOTE_ALL,  # else a carriage return alone stands bare, and ends the line
        lineterminator=line_end,
        encoding=encoding,
    )
    frame = read_source(path)
    assert list(frame.columns) == ["label", "text"]
    assert frame["text"].tolist() == TRICKY
    assert frame["label"].tolist() == [row[0] for row in rows]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_column_names_may_come_from_the_settings(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_delimited(path, [["ham", "x"], ["spam", "y"]], "," if name == "a.csv" else "\t")
    frame = read_source(path, header=["label", "text"])
    assert frame.to_dict("list") == {"label": ["ham", "spam"], "text": ["x", "y"]}


def test_quotes_are_read_as_pandas_reads_them(tmp_path: Path) -> None:
    """The notebook's 5,572 rows come from pandas' default quoting."""
    path = tmp_path / "a.tsv"
    path.write_text(
        'ham\t"quoted"\nham\tsay "hi" now\nham\t"a" b\nspam\t"two\nlines"\n\nham\t""\nham\t\'x\'\n'
    )
    expected = pd.read_csv(
        path, sep="\t", names=["label", "text"], dtype=str, keep_default_na=False
    )
    frame = read_source(path, header=["label", "text"])
    assert frame["text"].tolist() == expected["text"].tolist()
    assert len(frame) == 6


def test_json_lines_keep_types_and_nulls(tmp_path: Path) -> None:
    records = [{"text": text, "n": n} for n, text in enumerate(TRICKY)]
    records += [{"text": None, "n": True}, {"n": 2.5}, {"text": "last", "new": "column"}]
    path = tmp_path / "a.jsonl"
    for ascii_only in (True, False):
        lines = [json.dumps(record, ensure_ascii=ascii_only) for record in records]
        path.write_bytes(b"\xef\xbb\xbf" + "\n\n".join(lines).encode("utf-8") + b"\r\n")
        frame = read_source(path)
        for column in ("text", "n", "new"):
            assert frame[column].tolist() == [record.get(column) for record in records]
        assert [type(value) for value in frame["n"]] == [
            type(record.get("n")) for record in records
        ]


def test_parquet_keeps_types_and_nulls(tmp_path: Path) -> None:
    path = tmp_path / "year=2020" / "a.parquet"  # a folder's name is no column
    path.parent.mkdir()
    table = pa.table(
        {
            "text": pa.array([*TRICKY, None], pa.large_string()),
            "n": pa.array([*range(len(TRICKY)), None], pa.int64()),
            "flag": pa.array([True] * len(TRICKY) + [None]),
            "coded": pa.array(["a"] * len(TRICKY) + [None]).dictionary_encode(),
        }
    )
    pq.write_table(table, path)
    frame = read_source(path)
    assert {name: frame[name].tolist() for name in frame.columns} == table.to_pydict()


def test_a_surrogate_alone_passes_for_the_row_check_to_name(tmp_path: Path) -> None:
    frame = read_text(tmp_path / "a.jsonl", b'{"text": "a\\ud83d"}\n')
    assert frame["text"].tolist() == ["a\ud83d"]


def test_columns_without_a_name_do_no_harm(tmp_path: Path) -> None:
    frame = read_text(tmp_path / "a.csv", b"v1,v2,,\nham,x,,\n")
    assert list(frame.columns) == ["v1", "v2", "column 3", "column 4"]


_QUOTES = "must stand in double quotes"


@pytest.mark.parametrize(
    ("name", "content", "message", "hint"),
    [
        ("a.csv", b"", "the file is empty", "header and rows"),
        ("a.csv", b"\n\n", "the file is empty", "header and rows"),
        ("a.jsonl", b"", "the file is empty", ""),
        ("a.parquet", b"", "the file is empty", ""),
        ("a.csv", b"label,text\r\n", "has a header but no rows", "rows"),
        ("a.jsonl", b"\n \n", "has no rows", "rows"),
        ("a.xls", b"x", "cannot tell its format from its name", "prepare.format"),
        ("noname", b"x", "cannot tell its format from its name", "prepare.format"),
        ("a.csv", b"l,t\na,b\nc,d,e\n", "line 3: has 3 cells, the header has 2", _QUOTES),
        ("a.csv", b"l,t\na,b,c\nd,e,f\n", "line 2: has 3 cells, the header has 2", _QUOTES),
        ("a.csv", b'l,t\na,"b\n\nc"\nd\n', "line 5: has 1 cell, the header has 2", _QUOTES),
        ("a.tsv", b"l\tt\na\tb\n\nc\rd\te\n", "line 4: has 1 cell, the header has 2", _QUOTES),
        (
            "a.csv",
            b'l,t\na,b\nc,"d\ne,f\n',
            "line 3: a double quote opens a cell that never ends",
            "twice",
        ),
        ("a.csv", b'l,"t\na,b\n', "line 1: a double quote opens a cell that never", "twice"),
        ("a.csv", b"l,t\na,b\nc,caf\xe9\n", "line 3: byte 0xe9 at column 6 is not UTF-8", "iconv"),
        ("a.csv", "l,t\na,b\n".encode("utf-16"), "line 1: byte 0xff at column 1 is not", "UTF-8"),
        ("a.csv", b"l,t\na,\xed\xa0\x80\n", "line 2: byte 0xed at column 3 is not UTF-8", ""),
        ("a.jsonl", b'{"t": "a"}\n{"t": "\xff"}\n', "line 2: byte 0xff at column 8 is not", ""),
        ("a.csv", b"t,t\na,b\n", "the header names 2 columns 't'", "a name of its own"),
        ("a.jsonl", b'{"t": 1}\n\n{"t": }\n', "line 3: not valid JSON (Expecting value", "object"),
        ("a.jsonl", b'[{"t": 1}]\n', "line 1: not a JSON object but list", "object a line"),
        ("a.jsonl", b'{"t": ' + b"[" * 100_000, "line 1: not valid JSON (maximum recursion", ""),
        ("a.jsonl", b'{"t": ' + b"9" * 5000 + b"}", "line 1: not valid JSON (", ""),
        ("a.parquet", b"PAR1" * 50, "not a Parquet file, or damaged (", "prepare.format"),
        ("a.parquet", b"l,t\na,b\n", "not a Parquet file, or damaged (", "prepare.format"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(
    tmp_path: Path, name: str, content: bytes, message: str, hint: str
) -> None:
    path = tmp_path / name
    with pytest.raises(DataError) as caught:
        read_text(path, content)
    assert caught.value.message.startswith(f"{path}: {message}")
    assert "\n" not in caught.value.message
    assert hint in (caught.value.hint or "")


def test_too_few_names_in_the_settings(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 1: has 2 cells, prepare.header has 3"):
        read_text(tmp_path / "a.tsv", b"a\tb\n", header=["x", "y", "z"])
    with pytest.raises(DataError, match=r"prepare.header names 2 columns 'x'"):
        read_text(tmp_path / "a.tsv", b"a\tb\n", header=["x", "x"])


def test_damaged_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"t": [f"{n} words" * 20 for n in range(500)]}), path)
    whole = path.read_bytes()
    middle = len(whole) // 3
    for content in (
        whole[:-7],
        whole[:middle],
        whole[:middle] + b"\xff" * 99 + whole[middle + 99 :],
    ):
        with pytest.raises(DataError, match="not a Parquet file, or damaged"):
            read_text(path, content)


def test_parquet_with_a_name_twice_or_text_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["t", "t"]), path)
    with pytest.raises(DataError, match="the schema names 2 columns 't'"):
        read_source(path)
    latin = pa.array([b"caf\xe9"]).view(pa.string())
    pq.write_table(pa.table({"t": latin}), path)
    with pytest.raises(DataError, match="column 't': holds text that is not UTF-8"):
        read_source(path)


def test_the_format_in_the_settings_wins_over_the_name(tmp_path: Path) -> None:
    frame = read_text(tmp_path / "a.txt", b"l;t\tu\na\tb\n", file_format="tsv")
    assert frame.to_dict("list") == {"l;t": ["a"], "u": ["b"]}


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_source(tmp_path / "a.csv")
