"""What quotes mean in CSV and TSV files: no row is joined and no text altered without a word."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pandas as pd
import pytest

from pipeline.assets import read_assets
from pipeline.corpus.reading import Reading
from pipeline.corpus.sources import read_source
from pipeline.errors import DataError
from pipeline.project import Project

Rows = list[list[str]]
HEADER = ["label", "text"]
PLAIN = [["ham" if n % 3 else "spam", f"message number {n}"] for n in range(12)]


def join_lines(rows: Rows, delimiter: str = "\t") -> str:
    """Rows as whoever knows nothing of quotes writes them."""
    return "".join(delimiter.join(row) + "\n" for row in [HEADER, *rows])


def read(folder: Path, content: str, name: str = "a.tsv", **options: object) -> Rows:
    path = folder / name
    path.write_text(content, encoding="utf-8", newline="")
    frame = read_source(path, Reading(**options))  # type: ignore[arg-type]
    assert list(frame.columns) == HEADER
    return frame.to_numpy().tolist()  # type: ignore[no-any-return]


def refuse(folder: Path, content: str, name: str = "a.tsv", **options: object) -> DataError:
    with pytest.raises(DataError) as caught:
        read(folder, content, name, **options)
    return caught.value


BARE: dict[str, Rows] = {
    "closed by the start of a later text": [
        *PLAIN[:3], ["ham", '"so they said'], *PLAIN[3:9], ["spam", '"and we too'], *PLAIN[9:],
    ],
    "closed in the middle of a later text": [
        *PLAIN[:3], ["ham", '"so they said'], *PLAIN[3:9], ["spam", 'and "we" too'], *PLAIN[9:],
    ],
    "never closed": [*PLAIN[:5], ["ham", '"so they said'], *PLAIN[5:]],
    "in the last line": [*PLAIN, ["ham", '"so they said']],
    "followed by text on its own line": [*PLAIN[:5], ["ham", '"So" they said'], *PLAIN[5:]],
    "closed at the end of a later text, beside others": [
        *PLAIN[:3], ["ham", '"so they'], *PLAIN[3:9], ["ham", 'said"'], ["ham", '5" wide'],
    ],
    "a quote and nothing else": [*PLAIN[:3], ["ham", '"'], *PLAIN[3:]],
}  # fmt: skip


@pytest.mark.parametrize("rows", BARE.values(), ids=BARE)
def test_a_text_of_tsv_that_begins_with_a_quote_is_a_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: Rows
) -> None:
    content = join_lines(rows)
    assert read(tmp_path, content) == rows
    said = capsys.readouterr().out
    assert "quotes are read as parts of the texts, as every line then has 2 cells" in said
    assert "prepare.quoting decides it" in said
    assert read(tmp_path, content, quoting="none") == rows
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("rows", BARE.values(), ids=BARE)
@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("b.csv", ";")])
def test_in_csv_such_a_text_is_refused_with_a_setting_that_reads_it(
    tmp_path: Path, rows: Rows, name: str, delimiter: str
) -> None:
    content = join_lines(rows, delimiter)
    error = refuse(tmp_path, content, name)
    first = next(n for n, (_, text) in enumerate(rows, start=2) if text.startswith('"'))
    assert f"line {first}" in error.message or f"lines {first}–" in error.message
    assert error.hint is not None
    assert "set prepare.quoting to none" in error.hint
    assert read(tmp_path, content, name, quoting="none") == rows


def test_a_join_that_could_be_either_is_refused_and_each_setting_reads_it(tmp_path: Path) -> None:
    """These bytes are what the csv module writes for a text of two lines, and also two rows."""
    rows = [*PLAIN[:4], ["ham", "one\nspam\ttwo"], *PLAIN[4:]]
    buffer = io.StringIO()
    csv.writer(buffer, delimiter="\t", lineterminator="\n").writerows([HEADER, *rows])
    error = refuse(tmp_path, buffer.getvalue())
    assert "lines 6–7: a double quote joins what look like rows of their own" in error.message
    assert error.hint is not None
    for quoting, expected in (
        ("double", rows),
        ("none", [*PLAIN[:4], ["ham", '"one'], ["spam", 'two"'], *PLAIN[4:]]),
    ):
        assert f"prepare.quoting to {quoting}" in error.hint
        assert read(tmp_path, buffer.getvalue(), quoting=quoting) == expected


def test_rows_that_are_joined_with_a_broken_one_among_them(tmp_path: Path) -> None:
    """No reading is whole but that which joins three lines, so none is taken without a word."""
    broken = 'ham\t"one\nspam\ttwo\tthree\nham\tfour"\n'
    error = refuse(tmp_path, join_lines(PLAIN) + broken)
    assert "lines 14–16: a double quote joins what look like rows" in error.message
    assert "prepare.quoting to none" not in (error.hint or "")
    found = read(tmp_path, join_lines(PLAIN) + broken, quoting="double")
    assert found == [*PLAIN, ["ham", "one\nspam\ttwo\tthree\nham\tfour"]]


def test_labels_tell_rows_from_lines_of_a_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both cells hold one comma a line; only in the first would both lines have a known label."""
    path = tmp_path / "a.csv"
    rows = [[str(n), "ham" if n % 2 else "spam", f"text {n}"] for n in range(12)]
    lines = ["id,label,text", *map(",".join, rows)]
    path.write_text("\n".join([*lines, '12,ham,"one', '13,spam,two"']) + "\n")
    with pytest.raises(DataError, match="lines 14–15: a double quote joins what look like rows"):
        read_source(path)
    path.write_text("\n".join([*lines, '5,ham,"one', 'well, yes, two"']) + "\n")
    assert read_source(path)["text"].tolist()[-1] == "one\nwell, yes, two"
    assert "rows of several lines" in capsys.readouterr().out
    # Once another cell shows that quotes enclose cells, there is no doubt.
    path.write_text("\n".join([*lines, '5,ham,"one', 'well, yes, two"', '6,ham,"a, b"']) + "\n")
    assert read_source(path)["text"].tolist()[-2:] == ["one\nwell, yes, two", "a, b"]
    assert capsys.readouterr().out == ""


def test_rows_of_several_lines_beside_bare_quotes_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever writes quotes within texts as they are may not mean them to open a cell either."""
    content = 'label,text\nham,5" wide\nspam,"one\ntwo, three, four"\nham,x\n'
    assert [row[1] for row in read(tmp_path, content, "a.csv")] == [
        '5" wide', "one\ntwo, three, four", "x",
    ]  # fmt: skip
    said = capsys.readouterr().out
    assert "rows of several lines, as a double quote opens and closes later: lines 3–4" in said
    assert "first in line 2" in said


def test_a_join_that_nothing_bears_out_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = 'label,text\nham,"one\nspam,two"\n'
    assert read(tmp_path, content, "a.csv") == [["ham", "one\nspam,two"]]
    said = capsys.readouterr().out
    assert "warning: " in said
    assert "lines 2–3; with prepare.quoting: none each line is a row" in said
    assert read(tmp_path, content, "a.csv", quoting="none") == [["ham", '"one'], ["spam", 'two"']]


def test_where_quotes_enclose_cells_a_join_is_named_and_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*PLAIN, ["ham", "one\nspam,two"], ["ham", "a, b"], ["spam", 'say "hi"']]
    path = tmp_path / "b.csv"
    pd.DataFrame(rows, columns=HEADER).to_csv(path, index=False)
    assert read(tmp_path, path.read_text(), "b.csv") == rows
    said = capsys.readouterr().out
    assert "1 line joined to the one before" in said
    assert "lines 14–15" in said


LETTERS = [
    ["Hello Bob,\nthanks for it", "ham"],
    ["Dear all,\n\nplease, come, and bring\nwine, bread", "spam"],
    ['she said "no",\nand left', "ham"],
    ["roses, red,\nviolets, blue", "ham"],
    ["plain", "spam"],
    ["a\nb", "ham"],
]


@pytest.mark.parametrize("turned", [False, True], ids=["text first", "text last"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize(("name", "sep"), [("a.csv", ","), ("a.tsv", "\t"), ("b.csv", ";")])
def test_texts_of_several_lines_are_read_without_a_word(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    turned: bool,
    quoting: int,
    name: str,
    sep: str,
) -> None:
    frame = pd.DataFrame(LETTERS * 20, columns=HEADER[::-1])
    if turned:
        frame = frame[HEADER]
    path = tmp_path / name
    frame.to_csv(path, sep=sep, index=False, quoting=quoting)  # type: ignore[call-overload]
    expected = frame.to_dict("list")
    assert read_source(path).to_dict("list") == expected
    assert "warning" not in capsys.readouterr().out


def test_text_after_a_closing_quote_is_refused_with_both_settings(tmp_path: Path) -> None:
    content = 'label,text\nham,"So" they said\nspam,x\n'
    error = refuse(tmp_path, content, "a.csv")
    assert "line 2: text follows the double quote that closes a cell" in error.message
    assert error.hint is not None
    assert "prepare.quoting to none" in error.hint
    assert "prepare.quoting to double" in error.hint
    by_pandas = pd.read_csv(io.StringIO(content), dtype=str).to_numpy().tolist()
    assert read(tmp_path, content, "a.csv", quoting="double") == by_pandas
    assert read(tmp_path, content, "a.csv", quoting="none")[0] == ["ham", '"So" they said']


def test_no_setting_is_suggested_that_would_fail(tmp_path: Path) -> None:
    """The third line has too many cells whatever quotes mean."""
    error = refuse(tmp_path, 'label,text\nham,"So" they said\nspam,x,y\n', "a.csv")
    assert "line 3: has 3 cells, the header has 2" in error.message
    assert "prepare.quoting" not in (error.hint or "")
    error = refuse(tmp_path, 'label,text\nham,"a, b" c\nspam,x\n', "a.csv")
    assert "prepare.quoting to none" not in (error.hint or "")
    assert "prepare.quoting to double" in (error.hint or "")


ESCAPED = [
    ["ham", 'he said "no" to me'],
    ["spam", "C:\\new\\temp"],
    ["ham", '"all"'],
    ["ham", "a, b"],
]


def write_escaped(rows: Rows) -> str:
    """As Spark and MySQL write quotes: behind a backslash, in quotes where need be."""
    lines = [",".join(HEADER)]
    for label, text in rows:
        escaped = text.replace("\\", "\\\\").replace('"', '\\"')
        lines.append(f'{label},"{escaped}"')
    return "\n".join(lines) + "\n"


def test_quotes_behind_backslashes_are_refused_with_the_setting_that_reads_them(
    tmp_path: Path,
) -> None:
    content = write_escaped(ESCAPED)
    expected = pd.read_csv(io.StringIO(content), dtype=str, escapechar="\\").to_numpy().tolist()
    assert expected == ESCAPED
    error = refuse(tmp_path, content, "a.csv")
    assert "line 2" in error.message
    assert "set prepare.escape to backslash" in (error.hint or "")
    assert read(tmp_path, content, "a.csv", escape="backslash") == ESCAPED
    for name in ("a.csv", "a.tsv"):
        tabbed = content.replace(',"', '\t"').replace("label,", "label\t")
        options = {"delimiter": "tab"} if name == "a.csv" else {}
        assert "set prepare.escape to backslash" in str(
            refuse(tmp_path, tabbed, name, **options).hint
        )
        assert read(tmp_path, tabbed, name, escape="backslash", **options) == ESCAPED


def test_a_backslash_that_escapes_nothing_stays(tmp_path: Path) -> None:
    content = 'label,text\nham,"C:\\new"\nspam,¯\\_(ツ)_/¯\nham,"a \\" b"\n'
    assert read(tmp_path, content, "a.csv", escape="backslash") == [
        ["ham", "C:\\new"],
        ["spam", "¯\\_(ツ)_/¯"],
        ["ham", 'a " b'],
    ]
    content = "label\ttext\nham\ta\\\tb\\\nc\\\\d\\e\n"
    assert read(tmp_path, content, quoting="none", escape="backslash") == [["ham", "a\tb\nc\\d\\e"]]
    assert read(tmp_path, "label,text\nham,end\\", "a.csv", escape="backslash") == [
        ["ham", "end\\"]
    ]


def test_a_backslash_before_a_bare_quote_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """pandas writes this with ``doublequote=False``; nothing else tells that it is an escape."""
    rows = [["ham", 'say "hi"'], ["spam", "x"]]
    path = tmp_path / "b.csv"
    pd.DataFrame(rows, columns=HEADER).to_csv(path, index=False, doublequote=False, escapechar="\\")
    content = path.read_text()
    assert read(tmp_path, content, "a.csv") == [["ham", 'say \\"hi\\"'], ["spam", "x"]]
    assert "line 2: a backslash before a double quote is read as a part" in capsys.readouterr().out
    assert read(tmp_path, content, "a.csv", escape="backslash") == rows


def test_a_path_that_ends_in_a_backslash_is_no_escape(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [["ham", "C:\\dir\\"], ["spam", "D:\\"]]
    path = tmp_path / "b.csv"
    pd.DataFrame(rows, columns=HEADER).to_csv(path, index=False, quoting=csv.QUOTE_ALL)
    assert read(tmp_path, path.read_text(), "a.csv") == rows
    assert capsys.readouterr().out == ""


def test_quotes_that_nothing_needs_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*PLAIN[:2], ["ham", '"quoted"'], *PLAIN[2:]]
    found = read(tmp_path, join_lines(rows))
    assert found == [*PLAIN[:2], ["ham", "quoted"], *PLAIN[2:]]
    assert "1 cell in double quotes, the first in line 4" in capsys.readouterr().out
    assert read(tmp_path, join_lines(rows), quoting="none") == rows
    # Every text in quotes is a way of writing, which needs no word.
    quoted = [[label, f'"{text}"'] for label, text in PLAIN]
    assert read(tmp_path, join_lines(quoted)) == PLAIN
    assert capsys.readouterr().out == ""


def test_the_settings_name_the_delimiter(tmp_path: Path) -> None:
    for name, sign in (("comma", ","), ("tab", "\t"), ("semicolon", ";"), ("pipe", "|")):
        for file in ("a.csv", "a.tsv"):
            content = join_lines(PLAIN, sign)
            assert read(tmp_path, content, file, delimiter=name) == PLAIN


def test_a_delimiter_is_recognised_by_the_first_line_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file, sign, name in (
        ("a.csv", ";", "semicolon"),
        ("a.csv", "\t", "tab"),
        ("a.csv", "|", "pipe"),
        ("a.tsv", ",", "comma"),
        ("a.tsv", ";", "semicolon"),
    ):
        assert read(tmp_path, join_lines(PLAIN, sign), file) == PLAIN
        assert f"read with the delimiter {name}, which makes 2 columns" in capsys.readouterr().out
    # By its own delimiter the first line has several cells, or by two others: nothing is guessed.
    for content, columns in (
        ("a;b,c;d\n1,2\n", ["a;b", "c;d"]),
        ("a;b|c\n1\n", ["a;b|c"]),
        ('"a;b"\n1\n', ["a;b"]),
    ):
        path = tmp_path / "b.csv"
        path.write_text(content)
        assert list(read_source(path).columns) == columns
    assert capsys.readouterr().out == ""
    # Names from the settings tell how many cells there must be.
    path.write_text("ham;well, yes\nspam;no\n")
    with pytest.raises(DataError, match=r"line 1: has 2 cells, prepare.header has 3"):
        read_source(path, Reading(header=["a", "b", "c"]))
    path.write_text("ham;yes\nspam;no, no\n")
    assert read_source(path, Reading(header=HEADER))["text"].tolist() == ["yes", "no, no"]
    path.write_text("one; two\nthree\n")
    assert read_source(path, Reading(header=["text"]))["text"].tolist() == ["one; two", "three"]


def test_a_carriage_return_alone_is_no_end_of_a_row_beside_line_feeds(tmp_path: Path) -> None:
    """In one column nothing else would tell it from the end of a row."""
    path = tmp_path / "a.csv"
    path.write_bytes(b"text\none\rtwo\nthree\n")
    with pytest.raises(DataError, match="line 2: ends in a carriage return alone, and line 1"):
        read_source(path)
    for end in ("\r", "\r\n", "\r\r\n"):
        path.write_bytes(f"text{end}one{end}two{end}".encode())
        assert read_source(path)["text"].tolist() == ["one", "two"]


def test_a_cell_without_an_end_is_bounded(tmp_path: Path) -> None:
    """A quote that nothing closes would take the rest of a large file into memory."""
    path = tmp_path / "a.csv"
    with path.open("w") as file:
        file.write('label,text\nham,"one\n')
        file.writelines(["spam,two words and more\n"] * (2**24 // 24 + 2))
    with pytest.raises(DataError, match=r"line 2: not well-formed: field larger than field limit"):
        read_source(path)


def test_the_sms_corpus_is_read_as_the_notebook_did(
    real_assets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = Project(real_assets)
    dataset = read_assets(project.assets)["dataset"]
    if dataset.extra["format"] != "tsv":
        pytest.skip("the hub's copy, which is not the notebook's file, was fetched")
    assert dataset.extra["quoting"] == "double"
    sms = dataset.locate(project) / next(iter(dataset.files))
    header = ["label", "message"]
    frame = read_source(sms, Reading(format="tsv", header=header, quoting="double"))
    expected = pd.read_csv(sms, sep="\t", names=header, dtype=str, keep_default_na=False)
    assert frame.to_dict("list") == expected.to_dict("list")
    assert len(frame) == 5572
    said = capsys.readouterr().out
    assert "2 lines joined to the one before" in said
    assert "lines 5,082–5,084" in said
    plain = read_source(sms, Reading(format="tsv", header=header))
    expected = pd.read_csv(
        sms, sep="\t", names=header, dtype=str, keep_default_na=False, quoting=csv.QUOTE_NONE
    )
    assert plain.to_dict("list") == expected.to_dict("list")
    assert len(plain) == 5574
