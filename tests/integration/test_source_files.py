"""Files from the wild, from the settings to what `prepare` writes."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import config
from pipeline.config import LabelSettings
from pipeline.project import Project
from tests.conftest import Cli, run_stages
from tests.integration.test_new_labeler import LengthLabel

Prepare = Callable[..., tuple[str, list[str]]]
LABELS: dict[str, object] = {"good": {"column": "label", "classes": [0, 1]}}
ROWS = [(str(n % 2), f"message number {n} is about nothing") for n in range(40)]


@pytest.fixture
def prepare(project: Path, tiny_backbone: Path, cli: Cli) -> Prepare:
    """Fetch and prepare a dataset with some settings; what the commands said, and the texts."""

    def run(
        dataset: str, *, fails: bool = False, labels: object = None, **settings: object
    ) -> tuple[str, list[str]]:
        content = {
            "fetch": {"dataset": dataset, "backbones": [str(tiny_backbone)]},
            "prepare": {"text_column": "text", "labels": labels or LABELS, **settings},
        }
        Project().settings.write_text(json.dumps(content))
        result = cli("fetch")
        if result.returncode == 0:
            result = cli("prepare")
        assert result.returncode == (1 if fails else 0), result.stdout + result.stderr
        assert "Traceback" not in result.stderr
        if fails:
            assert result.stderr.startswith("Error: ")
            return result.stderr, []
        return result.stdout, pq.read_table(Project().texts_file)["text"].to_pylist()

    return run


def join(rows: list[tuple[str, str]], delimiter: str = "\t") -> str:
    return "".join(delimiter.join(row) + "\n" for row in [("label", "text"), *rows])


def test_bare_quotes_lose_no_row_and_no_label(project: Path, prepare: Prepare) -> None:
    rows = list(ROWS)
    rows[11] = ("1", '"the coffee saved the day')
    rows[15] = ("0", 'this lamp was replaced "so they said')
    (project / "reviews.tsv").write_text(join(rows))
    said, texts = prepare("reviews.tsv")
    assert texts == [text for _, text in rows]
    assert pq.read_table(Project().labels_file)["good"].to_pylist() == [int(row[0]) for row in rows]
    assert "they would join lines 13–17" in said
    (project / "reviews.csv").write_text(join(rows, ","))
    said, _ = prepare("reviews.csv", fails=True)
    assert "reviews.csv: line 13: text follows the double quote that closes a cell" in said
    assert "set prepare.quoting to none" in said
    _, texts = prepare("reviews.csv", quoting="none")
    assert texts == [text for _, text in rows]


def test_excels_unicode_text(project: Path, prepare: Prepare) -> None:
    (project / "export.tsv").write_bytes(join(ROWS).replace("\n", "\r\n").encode("utf-16"))
    _, texts = prepare("export.tsv")
    assert texts == [text for _, text in ROWS]


def test_a_compressed_file_and_an_array(project: Path, prepare: Prepare) -> None:
    (project / "a.csv.gz").write_bytes(gzip.compress(join(ROWS, ";").encode()))
    said, texts = prepare("a.csv.gz")
    assert texts == [text for _, text in ROWS]
    assert "a.csv.gz: read with the delimiter semicolon" in said
    records = [{"text": text, "label": int(label)} for label, text in ROWS]
    (project / "a.json").write_text(json.dumps(records, indent=2))
    _, texts = prepare("a.json")
    assert texts == [text for _, text in ROWS]


def test_parquet_of_old_tools_with_columns_that_nobody_reads(
    project: Path, prepare: Prepare
) -> None:
    labels = [[b"bad", b"good"][n % 2] for n in range(40)]
    table = {
        "text": pa.array([text.encode() for _, text in ROWS], pa.binary()),
        "label": pa.array(labels, pa.binary()),
        "note": pa.array([b"caf\xe9"] * 40).view(pa.string()),
        "when": pa.array([0] * 40, pa.timestamp("us", "Mars/Phobos")),
        "far": pa.array([10**7] * 40, pa.date32()),
    }
    pq.write_table(pa.table(table), project / "d.parquet")
    said, texts = prepare("d.parquet", labels={"mood": {"column": "label"}})
    assert texts == [text for _, text in ROWS]
    column = pq.read_table(Project().labels_file).schema.field("mood")
    assert json.loads(column.metadata[b"classes"]) == ["bad", "good"]
    assert "warning" not in said
    said, _ = prepare("d.parquet", fails=True, labels={"mood": {"column": "when"}})
    assert "column 'when': holds timestamp[us, tz=Mars/Phobos], which cannot be read here" in said


def test_a_labeler_that_may_want_any_column_gets_those_that_can_be_read(
    project: Path,
    prepare: Prepare,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert LabelSettings.get_columns is LengthLabel.get_columns
    monkeypatch.setitem(config.LABELERS, "length", LengthLabel)
    table = {
        "text": [text for _, text in ROWS],
        "note": pa.array([b"caf\xe9"] * 40).view(pa.string()),
    }
    pq.write_table(pa.table(table), project / "d.parquet")
    (project / "fillers.txt").write_text("is")
    labels = {"size": {"labeler": "length", "fillers": "fillers.txt"}}
    said, texts = prepare("d.parquet", labels=labels)
    assert texts == table["text"]
    assert "column 'note': row 0 (the first is 0): holds text that is not UTF-8; it is left" in said


def test_a_name_of_another_unicode_form(project: Path, prepare: Prepare) -> None:
    (project / "nfd.csv").write_text(join(ROWS, ",").replace("text", "te\u0301xt", 1))
    said, texts = prepare("nfd.csv", text_column="t\u00e9xt")
    assert texts == [text for _, text in ROWS]
    assert "only its Unicode form differs" in said


@pytest.mark.parametrize(
    "dataset", [".", "/", "..", "~", "./", "\0", "a\0b", "/dev/null", "a" * 999]
)
def test_a_path_that_is_no_file(project: Path, prepare: Prepare, dataset: str) -> None:
    (project / "a.csv").write_text(join(ROWS, ","))
    said, _ = prepare(dataset, fails=True)
    assert "fetch.dataset: " in said
    assert "\n  next: " in said


def test_what_was_fetched_before_the_quoting_was_recorded_is_read_as_it_was(
    project: Path,
    cli: Cli,
    prepare: Prepare,
) -> None:
    rows = [*ROWS[:5], ("1", '"So" they said'), *ROWS[5:]]
    (project / "a.csv").write_text(join(rows, ","))
    prepare("a.csv", quoting="double")
    prepare("a.csv", fails=True)
    record = json.loads(Project().assets.read_text())
    assert record["dataset"].pop("quoting") == "auto"
    del record["sha256"]  # nor was the hash of the record
    Project().assets.write_text(json.dumps(record))
    run_stages(cli, "prepare")
    assert pq.read_table(Project().texts_file)["text"].to_pylist()[5] == "So they said"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoding": "utf-9"}, "prepare.encoding: must be auto or an encoding of Python's"),
        ({"encoding": "base64"}, "prepare.encoding: must be auto or an encoding of Python's"),
        ({"delimiter": ";"}, "prepare.delimiter: must be"),
        ({"quoting": True}, "prepare.quoting: must be"),
        ({"escape": "\\"}, "prepare.escape: must be"),
    ],
)
def test_settings_of_reading_that_are_none(
    prepare: Prepare,
    settings: dict[str, object],
    message: str,
) -> None:
    said, _ = prepare("a.csv", fails=True, **settings)
    assert message in said
