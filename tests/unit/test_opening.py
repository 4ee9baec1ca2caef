"""Compressed files, encodings, JSON arrays, and files that hold no table in text."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.columns import ColumnChoice
from pipeline.corpus.reading import Reading
from pipeline.corpus.sources import read_source
from pipeline.errors import DataError
from tests.unit.test_sources import TRICKY, want

ROWS = [
    {"label": f"l{n}", "text": text} for n, text in enumerate(["größer", "日本語", "👩‍👧", "x"])
]
CSV = pd.DataFrame(ROWS).to_csv(index=False)
CONTENTS = {
    "a.csv": CSV,
    "a.tsv": pd.DataFrame(ROWS).to_csv(index=False, sep="\t"),
    "a.jsonl": "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS),
    "a.json": json.dumps(ROWS, ensure_ascii=False),
}


def read(path: Path, content: bytes, **options: object) -> list[dict[str, object]]:
    path.write_bytes(content)
    frame = read_source(path, Reading(**options))  # type: ignore[arg-type]
    return frame.to_dict("records")


def compress_zstd(content: bytes) -> bytes:
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, "zstd") as stream:
        stream.write(content)
    return bytes(packed.getvalue())


def refuse(path: Path, content: bytes, choice: ColumnChoice | None = None) -> DataError:
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_source(path, choice=choice)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize(
    ("ending", "compress"),
    [
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        (".zst", compress_zstd),
        (".zstd", compress_zstd),
    ],
)
def test_compressed_files_by_their_ending_and_by_their_bytes(
    tmp_path: Path, name: str, ending: str, compress: Callable[[bytes], bytes]
) -> None:
    content = CONTENTS[name].encode()
    packed = compress(content)
    assert read(tmp_path / f"{name}{ending}", packed) == ROWS
    assert read(tmp_path / f"{name.upper()}{ending.upper()}", packed) == ROWS
    assert read(tmp_path / name, packed) == ROWS
    # What a server has unpacked on the way keeps its name.
    assert read(tmp_path / f"{name}{ending}", content) == ROWS
    assert read(tmp_path / "noname", packed, format=name.partition(".")[2]) == ROWS


@pytest.mark.parametrize("compress", [gzip.compress, compress_zstd])
def test_a_compressed_file_in_several_parts(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    content = CSV.encode()
    packed = compress(content[:20]) + compress(content[20:])
    assert read(tmp_path / "a.csv.gz", packed) == ROWS


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, compress_zstd])
def test_damaged_compressed_files(
    tmp_path: Path, name: str, compress: Callable[[bytes], bytes]
) -> None:
    rows = json.dumps([{"text": f"row {n}", "label": str(n * n)} for n in range(5000)])
    packed = compress(rows.encode())
    middle = len(packed) // 2
    for damaged in (packed[:middle], packed[:middle] + b"\xff" * 9 + packed[middle + 9 :]):
        assert ": a damaged " in refuse(tmp_path / f"{name}.gz", damaged).message


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_tells_the_encoding(tmp_path: Path, name: str, encoding: str) -> None:
    assert read(tmp_path / name, CONTENTS[name].encode(encoding)) == ROWS
    packed = gzip.compress(CONTENTS[name].encode(encoding))
    assert read(tmp_path / f"{name}.gz", packed) == ROWS


def test_big_endian_utf_16(tmp_path: Path) -> None:
    content = "\ufefflabel,text\r\nl,größer\r\n".encode("utf-16-be")
    assert read(tmp_path / "a.csv", content) == [{"label": "l", "text": "größer"}]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_its_mark_is_named_and_the_hint_reads_it(
    tmp_path: Path, encoding: str
) -> None:
    content = "label,text\nl,größer\n".encode(encoding)
    error = refuse(tmp_path / "a.csv", content)
    assert "looks like UTF-16 without a byte order mark" in error.message
    assert f"set prepare.encoding to {encoding}" in (error.hint or "")
    expected = [{"label": "l", "text": "größer"}]
    assert read(tmp_path / "a.csv", content, encoding=encoding) == expected


def test_a_hint_at_an_encoding_is_given_only_where_it_reads_the_file(tmp_path: Path) -> None:
    rows = "label,text\nl,caf\u00e9\n"
    error = refuse(tmp_path / "a.csv", rows.encode("cp1252"))
    assert "line 2: byte 0xe9 at column 6 is not UTF-8" in error.message
    assert "set prepare.encoding to cp1252" in (error.hint or "")
    expected = [{"label": "l", "text": "café"}]
    assert read(tmp_path / "a.csv", rows.encode("cp1252"), encoding="cp1252") == expected
    assert read(tmp_path / "a.csv", rows.encode("latin1"), encoding="latin-1") == expected
    for content in (b"label,text\nl,\x81\xe9\n", b"label,text\nl,\xe9\x00\x01\n"):
        assert "cp1252" not in (refuse(tmp_path / "a.csv", content).hint or "")


def test_an_encoding_that_the_file_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for content, encoding in ((CSV.encode(), "ascii"), (CSV.encode("utf-16")[:-1], "utf-16")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"is not of the encoding {encoding}"):
            read_source(path, Reading(encoding=encoding))
    assert read(path, CSV.encode("utf-8-sig"), encoding="utf-8") == ROWS


def make_zip(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "text\na\n")
    return buffer.getvalue()


def make_arrow() -> bytes:
    buffer = io.BytesIO()
    feather.write_feather(pa.table({"t": ["a"]}), buffer, compression="uncompressed")
    return buffer.getvalue()


OTHERS = {
    "Excel": (make_zip("[Content_Types].xml", "xl/workbook.xml"), "an Excel workbook", "as CSV"),
    "OpenDocument": (make_zip("mimetype", "content.xml"), "an OpenDocument file", "as CSV"),
    "zip": (
        make_zip("d/", "d/a.csv", "b.csv"),
        "a zip archive of 2 files ('d/a.csv', 'b.csv')",
        "un",
    ),
    "old Excel": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), "an old Excel workbook", "CSV"),
    "LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
        "a Git LFS po",
        "git lfs",
    ),
    "page": (b"\n<!DOCTYPE HTML>\n<html><body>Sign in", "a web page (HTML)", "download the data"),
    "SQLite": (b"SQLite format 3\x00" + bytes(99), "an SQLite database", "Parquet"),
    "Arrow": (make_arrow(), "an Arrow or Feather file", "Parquet"),
    "pickle": (b"\x80\x04\x95" + bytes(99), "a Python pickle, which is never loaded", "Parquet"),
    "PDF": (b"%PDF-1.7\n%\xb5", "a PDF document", "Parquet"),
}


@pytest.mark.parametrize(("content", "what", "hint"), OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.xlsx", "noname"])
def test_what_holds_no_text_is_told_what_it_is(
    tmp_path: Path, content: bytes, what: str, hint: str, name: str
) -> None:
    error = refuse(tmp_path / name, content)
    assert f": is {what}" in error.message
    assert hint in (error.hint or "")


def test_parquet_under_another_name(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    pq.write_table(pa.table({"t": ["a"]}), path)
    error = refuse(path, path.read_bytes())
    assert "is a Parquet file" in error.message
    assert error.hint == "set prepare.format to parquet"
    assert read_source(path, Reading(format="parquet"))["t"].tolist() == ["a"]
    error = refuse(tmp_path / "a.parquet.gz", gzip.compress(path.read_bytes()))
    assert "must not be compressed as a whole, this one is with gzip" in error.message


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("indent", [None, 0, 2])
def test_a_json_array_holds_the_same_as_json_lines(
    tmp_path: Path, name: str, indent: int | None
) -> None:
    records = [{"text": text, "n": n, "deep": [{"a": [n]}]} for n, text in enumerate(TRICKY)]
    records += [{"text": None, "n": True}, {"n": 2.5}, {"text": "last", "new": {}}]  # type: ignore[list-item]
    content = "  \n" + json.dumps(records, indent=indent) + "\n\n"
    (tmp_path / name).write_text(content)
    frame = read_source(tmp_path / name)
    for column in ("text", "n", "deep", "new"):
        assert frame[column].tolist() == [record.get(column) for record in records]


def test_a_long_array_is_read_in_parts_that_cut_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [{"text": f'[{n}, {{}}] "{"é" * (n % 50)}" \\', "n": n} for n in range(400)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(records, indent=1))
    for size in (1, 7, 100, 1000):
        monkeypatch.setattr("pipeline.corpus.json_records._CHUNK_CHARACTERS", size)
        assert read_source(path).to_dict("records") == records


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"t": 1},\n{"t": }\n]', "line 2: not valid JSON (Expecting value)"),
        ('[{"t": 1},\n\n{"t": 2}\n', "line 4: not valid JSON (the file ends where a comma or ]"),
        (
            '[{"t": 1}\n{"t": 2}]',
            "line 2: not valid JSON ('{' stands where a comma or ] should be)",
        ),
        ('[{"t": 1},\n]', "line 2: not valid JSON (Expecting value)"),
        ('[{"t": 1}]\n[{"t": 2}]', "line 2: not valid JSON (text after the end of the array)"),
        ('[{"t": 1}, [2]]', "line 1: not a JSON object but list"),
        ("[1, 2]", "line 1: not a JSON object but int"),
        ('[{"t": 1},\n{"t": "open', "line 2: not valid JSON (Unterminated string"),
        ('[{"t": ' + "[" * 100_000, "line 1: not valid JSON ("),
        ('[\n{"t": ' + "9" * 5000 + "}]", "line 2: not valid JSON ("),
        ('[{"t": 1},\n{"t": 2, "t": 3}]', "line 2: the key 't' stands twice in one object"),
        ("[", "line 1: not valid JSON (Expecting value)"),
        ("[]", "has no rows"),
        ('{\n "t": 1\n}', "line 1: not valid JSON (Expecting property name"),
    ],
)
def test_json_that_is_no_array_of_objects(tmp_path: Path, content: str, message: str) -> None:
    error = refuse(tmp_path / "a.json", content.encode(), want("t"))
    assert f"a.json: {message}" in error.message


LINE = 2**24 + 10


@pytest.mark.parametrize(
    ("name", "start", "unit", "message"),
    [
        ("a.csv", "text\n", "x", "line 2: is longer than 16,777,216 characters"),
        ("a.tsv", "", "\t", "line 1: is longer than 16,777,216 characters"),
        ("a.jsonl", '{"t": 1}\n{"t": "', "x", "line 2: is longer than 16,777,216 characters"),
        ("a.json", '[{"t": 1},\n{"t": "', "x", "line 2: not valid JSON (Unterminated string"),
    ],
)
def test_a_line_without_an_end_is_bounded(
    tmp_path: Path, name: str, start: str, unit: str, message: str
) -> None:
    content = gzip.compress((start + unit * 3 * LINE).encode(), compresslevel=1)
    assert message in refuse(tmp_path / f"{name}.gz", content).message
