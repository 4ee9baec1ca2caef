"""Sources in every format, against the standard library, pandas and pyarrow."""

from __future__ import annotations

import csv
import json
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import WantedColumn, normalize_value
from pipeline.corpus.columns import ColumnChoice
from pipeline.corpus.reading import Reading
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
    return read_source(path, Reading(**options))  # type: ignore[arg-type]


def want(*names: str, kind: str = "text") -> ColumnChoice:
    """These columns and no others."""
    columns = tuple(WantedColumn(name, f"key.{name}", kind) for name in names)  # type: ignore[arg-type]
    return ColumnChoice(columns, all_others=False)


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
    frame = read_source(path, Reading(header=["label", "text"]))
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
    frame = read_source(path, Reading(header=["label", "text"], quoting="double"))
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
        ("a.csv", b"l,t\na,b\nc,caf\xe9\n", "line 3: byte 0xe9 at column 6 is not UTF-8", "cp1252"),
        ("a.csv", b"l,t\na,\xed\xa0\x80\n", "line 2: byte 0xed at column 3 is not UTF-8", ""),
        ("a.jsonl", b'{"t": "a"}\n{"t": "\xff"}\n', "line 2: byte 0xff at column 8 is not", ""),
        ("a.csv", b"t,t\na,b\n", "the header names 2 columns 't'", "a name of its own"),
        ("a.jsonl", b'{"t": 1}\n\n{"t": }\n', "line 3: not valid JSON (Expecting value", "object"),
        (
            "a.jsonl",
            b'{"t": 1}\n[{"t": 1}]\n',
            "line 2: not a JSON object but list",
            "object a line",
        ),
        (
            "a.jsonl",
            b'{"t": 1, "t": 2}\n',
            "line 1: the key 't' stands twice in one object",
            "once",
        ),
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


def test_parquet_with_a_name_twice_or_text_that_is_not_utf_8(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["t", "t"]), path)
    with pytest.raises(DataError, match="the schema names 2 columns 't'"):
        read_source(path)
    latin = pa.array([b"caf\xe9"]).view(pa.string())
    pq.write_table(pa.table({"t": pa.chunked_array([["ok"], latin]), "u": ["x", "y"]}), path)
    with pytest.raises(
        DataError, match=r"column 't': row 1 \(the first is 0\): holds text that is"
    ):
        read_source(path, choice=want("t"))
    assert read_source(path).to_dict("list") == {"u": ["x", "y"]}
    assert "column 't': row 1 (the first is 0): holds text that is not UTF-8; it is left out" in (
        capsys.readouterr().out
    )


def test_the_format_in_the_settings_wins_over_the_name(tmp_path: Path) -> None:
    frame = read_text(tmp_path / "a.txt", b"l;t\tu\na\tb\n", format="tsv")
    assert frame.to_dict("list") == {"l;t": ["a"], "u": ["b"]}


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_source(tmp_path / "a.csv")


def write_parquet(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_only_the_wanted_columns_are_read(tmp_path: Path) -> None:
    """In every format, whatever stands in the others."""
    delimited = "x,label,text\nNA,ham,a\n,spam,b\n"
    (tmp_path / "a.csv").write_text(delimited)
    (tmp_path / "a.tsv").write_text(delimited.replace(",", "\t"))
    records = [{"x": [[]], "label": "ham", "text": "a"}, {"text": "b", "label": "spam", "z": {}}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    (tmp_path / "a.json").write_text(json.dumps(records, indent=1))
    write_parquet(
        tmp_path / "a.parquet",
        x=pa.array([b"caf\xe9", None]).view(pa.string()),
        far=pa.array([10**7, 0], pa.date32()),
        zone=pa.array([0, 1], pa.timestamp("us", "Mars/Phobos")),
        vector=pa.array([[1.0], [2.0]]),
        label=["ham", "spam"],
        text=["a", "b"],
    )
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet"):
        frame = read_source(tmp_path / name, choice=want("text", "label"))
        assert frame.to_dict("list") == {"label": ["ham", "spam"], "text": ["a", "b"]}


def test_an_unused_column_of_parquet_is_not_read_from_the_disk(tmp_path: Path) -> None:
    """Its bytes may even be damaged."""
    path = tmp_path / "a.parquet"
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([0.5] * 500 * 64), 64)
    table = pa.table({"vector": vectors, "text": [f"text {n}" for n in range(500)]})
    pq.write_table(table, path, compression="none", use_dictionary=False)
    group = pq.ParquetFile(path).metadata.row_group(0)
    content = bytearray(path.read_bytes())
    start = group.column(0).data_page_offset
    content[start : start + 64] = b"\xff" * 64
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a Parquet file, or damaged"):
        read_source(path)
    assert read_source(path, choice=want("text"))["text"].tolist() == table["text"].to_pylist()


LONG_TEXT = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary()]
LONG_TEXT += [pa.binary_view(), pa.dictionary(pa.int32(), pa.string())]
LONG_TEXT += [pa.dictionary(pa.int8(), pa.binary())]


@pytest.mark.parametrize("of_type", LONG_TEXT, ids=str)
def test_parquet_holds_text_in_many_types(tmp_path: Path, of_type: pa.DataType) -> None:
    values = ["bad", None, "größer", "bad", ""]
    path = write_parquet(tmp_path / "a.parquet", t=pa.array(values).cast(of_type))
    assert read_source(path, choice=want("t", kind="class"))["t"].tolist() == values


def test_fixed_bytes_of_parquet_are_text(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", t=pa.array([b"ham ", b"spam"], pa.binary(4)))
    assert read_source(path, choice=want("t"))["t"].tolist() == ["ham ", "spam"]


def test_decimals_of_parquet_are_the_numbers_that_they_are(tmp_path: Path) -> None:
    numbers = ["1.00", "4.50", "-0.10", "123456789012345678901234567890.12", "100.00"]
    decimals = [Decimal(number) for number in numbers]
    path = write_parquet(tmp_path / "a.parquet", n=pa.array([*decimals, None]))
    found = read_source(path, choice=want("n", kind="class"))["n"].tolist()
    names = [normalize_value(value) for value in found[:-1]]
    assert names == ["1", "4.5", "-0.1", "123456789012345678901234567890.12", "100"]
    assert found[-1] is None
    assert [float(value) for value in found[:-1]] == [float(number) for number in numbers]


@pytest.mark.parametrize(
    ("column", "kind", "message"),
    [
        (pa.array([{"a": 1}]), "class", r"holds struct<a: int64>, which is no class"),
        (pa.array([{"a": 1}]), "tags", r"holds struct<a: int64>, which is no list of tags"),
        (pa.array([{"a": 1}]), "text", r"holds struct<a: int64>, which is no text"),
        (pa.array([["a"]]), "class", r"holds list<.*: string>, which is no class"),
        (pa.array([["a"]]), "text", r"holds list<.*: string>, which is no text"),
        (
            pa.array([[1.0]], pa.list_(pa.float32(), 1)),
            "number",
            r"holds fixed_size_list<.*, which is no number",
        ),
        (
            pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int8())),
            "class",
            r"holds map<.*, which is no class",
        ),
        (pa.array([0, 10**7], pa.date32()), "class", r"holds date32\[day\], which cannot be read"),
        (
            pa.array([0], pa.timestamp("us", "Mars/Phobos")),
            "class",
            r"holds timestamp\[.*its time zone is not known",
        ),
        (
            pa.array([b"caf\xe9"]),
            "class",
            r"row 0 \(the first is 0\): holds text that is not UTF-8",
        ),
    ],
)
def test_columns_of_parquet_that_cannot_be_labels_or_texts(
    tmp_path: Path, column: pa.Array, kind: str, message: str
) -> None:
    path = write_parquet(tmp_path / "a.parquet", c=column)
    with pytest.raises(DataError, match=rf"column 'c': {message}") as caught:
        read_source(path, choice=want("c", kind=kind))
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_lists_of_parquet_are_tags(tmp_path: Path) -> None:
    tags = [["a", "b"], [], None]
    for of_type in (pa.list_(pa.string()), pa.large_list(pa.string())):
        path = write_parquet(tmp_path / "a.parquet", c=pa.array(tags, of_type))
        assert read_source(path, choice=want("c", kind="tags"))["c"].tolist() == tags


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("te\u0301xt", "t\u00e9xt"),
        ("t\u00e9xt", "te\u0301xt"),
        (" text", "text"),
        ("text\u00a0", "text"),
        ("text", "text "),
        ("\ufefftext", "text"),
        ("\u200btext", "text"),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_names_that_look_the_same_are_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], written: str, wanted: str, name: str
) -> None:
    path = tmp_path / name
    pd.DataFrame({"y": ["a"], written: ["b"]}).pipe(
        lambda frame: {
            "a.csv": lambda: frame.to_csv(path, index=False),
            "a.jsonl": lambda: frame.to_json(path, orient="records", lines=True),
            "a.parquet": lambda: frame.to_parquet(path),
        }[name]()
    )
    assert read_source(path, choice=want(wanted)).to_dict("list") == {wanted: ["b"]}
    assert f"the column {written!a} is taken for {wanted!r}: only " in capsys.readouterr().out


def test_the_name_as_it_is_written_comes_first(tmp_path: Path) -> None:
    frame = read_source_of(tmp_path, b"text ,text, text\na,b,c\n", want("text"))
    assert frame.to_dict("list") == {"text": ["b"]}
    with pytest.raises(DataError, match=r"no column 'text'; the source has 'text ', ' text'"):
        read_source_of(tmp_path, b"text , text\na,b\n", want("text"))


def read_source_of(folder: Path, content: bytes, choice: ColumnChoice) -> pd.DataFrame:
    path = folder / "a.csv"
    path.write_bytes(content)
    return read_source(path, choice=choice)


def test_a_name_may_stand_twice_if_nobody_wants_it(tmp_path: Path) -> None:
    content = b"x,t,x\n1,a,2\n"
    assert read_source_of(tmp_path, content, want("t")).to_dict("list") == {"t": ["a"]}
    with pytest.raises(DataError, match="the header names 2 columns 'x'"):
        read_source_of(tmp_path, content, want("x"))
    (tmp_path / "a.jsonl").write_text('{"x": 1, "t": "a", "x": 2}')
    assert read_source(tmp_path / "a.jsonl", choice=want("t"))["t"].tolist() == ["a"]


def test_a_missing_column_is_told_with_the_nearest_and_not_with_thousands(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'Text'; .*; did you mean `text`\?") as caught:
        read_source_of(tmp_path, b"text,y\na,b\n", want("Text"))
    assert caught.value.hint == "set key.Text to the one that holds the texts"
    wide = ",".join(f"c{n}" for n in range(3000))
    with pytest.raises(DataError, match=r"'c19' and 2,980 more") as caught:
        read_source_of(tmp_path, f"{wide}\n{wide}\n".encode(), want("label", kind="class"))
    assert caught.value.hint == "correct key.label"
    assert len(caught.value.message) < 400
