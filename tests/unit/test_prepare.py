"""Splits against scikit-learn used by hand, keys against hashlib, files against the design."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.model_selection import train_test_split

from pipeline.config import SplitSettings, load_settings
from pipeline.corpus.tables import PARTS, read_labelled_rows
from pipeline.errors import DataError, StageError, WriteError
from pipeline.files import hash_file
from pipeline.prepare import run as prepare
from pipeline.prepare.labelers.base import Labels
from pipeline.prepare.run import hash_texts, run_prepare, split_rows
from pipeline.project import Project
from tests.conftest import edit_params


def make_keys(rows: int) -> list[bytes]:
    return [number.to_bytes(16, "big") for number in range(rows)]


def make_labels(indices: Sequence[int] | npt.NDArray[np.int64]) -> Labels:
    classes = tuple(f"c{number}" for number in range(max(indices) + 1))
    return Labels(classes, np.asarray(indices, np.int32))


def list_parts(split: npt.NDArray[np.int8]) -> list[list[int]]:
    return [np.flatnonzero(split == part).tolist() for part in range(len(PARTS))]


@pytest.mark.parametrize("rows", [24, 101, 5572])
@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize(
    ("shares", "rest_share", "test_share"),
    [((0.7, 0.15, 0.15), 0.3, 0.5), ((0.8, 0.1, 0.1), 0.2, 0.5), ((0.5, 0.3, 0.2), 0.5, 0.4)],
)
@pytest.mark.parametrize("stratified", [False, True])
def test_split_is_two_calls_to_scikit_learn(
    rows: int,
    seed: int,
    shares: tuple[float, float, float],
    rest_share: float,
    test_share: float,
    stratified: bool,
) -> None:
    labels = np.arange(rows) % 2 if stratified else None
    numbers = np.arange(rows)
    train, rest = train_test_split(
        numbers, test_size=rest_share, random_state=seed, stratify=labels
    )
    validation, test = train_test_split(
        rest,
        test_size=test_share,
        random_state=seed,
        stratify=None if labels is None else labels[rest],
    )
    settings = SplitSettings(
        train=shares[0],
        validation=shares[1],
        test=shares[2],
        seed=seed,
        stratify_by=("t",) if stratified else (),
    )
    split = split_rows(make_keys(rows), {"t": make_labels(np.arange(rows) % 2)}, settings)
    assert list_parts(split) == [sorted(part.tolist()) for part in (train, validation, test)]


def test_every_part_keeps_the_joint_shares_of_the_labels() -> None:
    rng = np.random.default_rng(0)
    spam, mood = (rng.random(4000) < 0.13).astype(int), rng.choice(3, 4000, p=[0.2, 0.3, 0.5])
    settings = SplitSettings(stratify_by=("spam", "mood"))
    split = split_rows(
        make_keys(4000), {"spam": make_labels(spam), "mood": make_labels(mood)}, settings
    )
    for part, share in enumerate((0.7, 0.15, 0.15)):
        counts = Counter(zip(spam[split == part], mood[split == part], strict=True))
        for stratum, number in Counter(zip(spam, mood, strict=True)).items():
            assert abs(counts[stratum] - share * number) <= 1


def test_another_seed_gives_another_split_of_the_same_sizes() -> None:
    first, second = (split_rows(make_keys(100), {}, SplitSettings(seed=seed)) for seed in (0, 1))
    assert np.bincount(first).tolist() == np.bincount(second).tolist() == [70, 15, 15]
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("stratify_by", [(), ("t",)])
def test_identical_texts_stay_together_when_asked(stratify_by: tuple[str, ...]) -> None:
    numbers = np.random.default_rng(1).integers(0, 60, 300)
    keys = [make_keys(60)[number] for number in numbers]
    labels = {"t": make_labels(numbers % 2)}
    settings = SplitSettings(keep_duplicates_together=True, stratify_by=stratify_by)
    together = split_rows(keys, labels, settings)
    assert all(len({*together[numbers == number]}) <= 1 for number in range(60))
    apart = split_rows(keys, labels, SplitSettings(stratify_by=stratify_by))
    assert any(len({*apart[numbers == number]}) > 1 for number in range(60))


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_too_few_rows(rows: int) -> None:
    with pytest.raises(DataError, match=rf"too few rows to split: {rows} rows? cannot give") as e:
        split_rows(make_keys(rows), {}, SplitSettings())
    assert "prepare.split" in (e.value.hint or "")
    with pytest.raises(DataError, match=r"1 distinct text cannot give every part"):
        split_rows([b"k" * 16] * 50, {}, SplitSettings(keep_duplicates_together=True))


@pytest.mark.parametrize("few", [1, 2])
@pytest.mark.parametrize("together", [False, True])
def test_a_stratum_too_small_is_named(few: int, together: bool) -> None:
    labels = {"a": make_labels([0, 1] * 50), "b": make_labels([0] * (100 - few) + [1] * few)}
    settings = SplitSettings(stratify_by=("a", "b"), keep_duplicates_together=together)
    with pytest.raises(DataError, match=r"a = c\d, b = c1 has only 1 of 100 ") as caught:
        split_rows(make_keys(100), labels, settings)
    assert "stratify_by" in (caught.value.hint or "")


def test_a_stratum_that_only_copies_have_is_left_out() -> None:
    """Of identical texts the first one's labels count; the stratum of the second has none left."""
    keys = [*make_keys(4), make_keys(1)[0]]
    labels = {"t": Labels(("x", "y", "z"), np.array([0, 1, 1, 1, 2], np.int32))}
    with pytest.raises(DataError, match=r"t = x has only 1 of 4 distinct texts"):
        split_rows(keys, labels, SplitSettings(stratify_by=("t",), keep_duplicates_together=True))


def test_keys_are_blake2b_of_the_utf_8_bytes() -> None:
    texts = ["", "a", "a\x00", "é", "e\u0301", "\uffff👩\u200d👧"]
    keys = hash_texts(texts)
    assert keys == [hashlib.blake2b(t.encode(), digest_size=16).digest() for t in texts]
    assert len(set(keys)) == len(texts)


# --- the whole stage, in this process ---------------------------------------------------------

ROWS = [[("ham", "spam")[n % 3 == 0], f"message {n % 37}"] for n in range(60)]


def set_up(project: Path, rows: Sequence[Sequence[object]], **changes: object) -> None:
    """A project whose dataset is a CSV file of ``rows``, as ``fetch`` leaves it."""
    file = project / "data.csv"
    with file.open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([["label", "message"], *rows])
    record = {"id": "data.csv", "source": "local file", "path": "data.csv"}
    none = {"id": "none", "source": "none", "folder": "none", "files": {}}
    assets = {
        "dataset": {**record, "format": "auto", "files": {"data.csv": hash_file(file)}},
        "backbone": none,
    }
    Project().cache.mkdir(exist_ok=True)
    Project().assets.write_text(json.dumps(assets))
    edit_params(
        {
            "prepare.labels": {"spam": {"column": "label", "classes": ["ham", "spam"]}},
            "heads.tasks": {"spam": {}},
            **changes,
        }
    )


def run() -> dict[str, object]:
    return run_prepare(Project(), load_settings(Project().settings))


def read_outputs() -> tuple[bytes, bytes]:
    return Project().texts.read_bytes(), Project().labels.read_bytes()


def test_files_have_the_columns_that_other_tools_rely_on(project: Path) -> None:
    set_up(project, ROWS)
    details = run()
    assert details == {"rows": 60, "distinct_texts": 37, "dropped": 0}
    texts = pq.read_table(Project().texts)
    assert texts.schema.equals(
        pa.schema([("row", pa.int64()), ("text", pa.string()), ("key", pa.binary(16))])
    )
    assert texts["text"].to_pylist() == [text for _, text in ROWS]
    assert texts["key"].to_pylist() == hash_texts([str(text) for _, text in ROWS])
    labels = pq.read_table(Project().labels)
    assert labels.schema.names == ["row", "split", "spam"]
    assert labels.schema.types == [pa.int64(), pa.string(), pa.int32()]
    assert json.loads(labels.schema.field("spam").metadata[b"classes"]) == ["ham", "spam"]
    assert labels["spam"].to_pylist() == [int(label == "spam") for label, _ in ROWS]
    assert labels["row"].to_pylist() == texts["row"].to_pylist() == list(range(60))
    assert set(labels["split"].to_pylist()) == set(PARTS)
    rows = read_labelled_rows(Project())
    assert rows.tasks["spam"].classes == ("ham", "spam")


def test_vader_scores_stand_beside_their_label(project: Path, real_assets: Path) -> None:
    set_up(project, [["ham", f"I love it {n}"] for n in range(10)])
    assets = json.loads(Project().assets.read_text())
    assets["lexicon"] = json.loads(Project(real_assets).assets.read_text())["lexicon"]
    Project().assets.write_text(json.dumps(assets))
    edit_params({"prepare.labels": {"mood": {"labeler": "vader"}}, "heads.tasks": {"mood": {}}})
    run()
    labels = pq.read_table(Project().labels)
    assert labels.schema.names == ["row", "split", "mood", "mood_compound"]
    assert labels.schema.field("mood_compound").type == pa.float64()
    assert labels["mood"].to_pylist() == [2] * 10


@pytest.mark.parametrize(
    ("record", "what"),
    [(None, "has no lexicon"), ({"id": "mine.txt"}, "has the lexicon mine.txt")],
)
def test_a_labelers_file_that_was_not_fetched(
    project: Path, record: dict[str, object] | None, what: str
) -> None:
    set_up(project, ROWS, **{"prepare.labels": {"mood": {"labeler": "vader"}}})
    edit_params({"heads.tasks": {"mood": {}}})
    assets = json.loads(Project().assets.read_text())
    if record is not None:
        assets["lexicon"] = assets["backbone"] | record
    Project().assets.write_text(json.dumps(assets))
    with pytest.raises(StageError) as caught:
        run()
    assert caught.value.message == f"{Project().assets}: {what}, but fetch.lexicon is vader"
    assert caught.value.hint == "run `pipeline fetch` again"


def test_two_runs_give_the_same_bytes(project: Path) -> None:
    set_up(project, ROWS)
    run()
    first = read_outputs()
    run()
    assert read_outputs() == first


BAD = [["ham", ""], ["ham", " \t\n"], ["eggs", "x"], ["", "y"], ["ham", "\u2003"], ["Ham", "z"]]


def test_bad_rows_stop_the_run_and_the_first_are_named(project: Path) -> None:
    set_up(project, ROWS)
    run()
    before = read_outputs()
    set_up(project, [*ROWS, *BAD])
    with pytest.raises(DataError) as caught:
        run()
    assert caught.value.message.splitlines() == [
        f"{project / 'data.csv'}: 6 rows cannot be used: ",
        "  row 60 (the first is 0): blank text",
        "  row 61 (the first is 0): blank text",
        "  row 62 (the first is 0): unknown label for spam: 'eggs'",
        "  row 63 (the first is 0): unknown label for spam: no value",
        "  row 64 (the first is 0): blank text",
        "  and 1 more",
        "  spam knows ham, spam",
    ]
    assert "prepare.on_bad_rows to drop" in (caught.value.hint or "")
    assert read_outputs() == before


def test_dropped_rows_are_counted_and_the_others_keep_their_numbers(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = [
        row
        for pair in zip(ROWS, [*BAD, *ROWS[: len(ROWS) - len(BAD)]], strict=True)
        for row in pair
    ]
    set_up(project, mixed, **{"prepare.on_bad_rows": "drop"})
    assert run()["dropped"] == len(BAD)
    printed = capsys.readouterr().out
    assert "3 rows dropped: blank text" in printed
    assert "3 rows dropped: unknown label for spam" in printed
    kept = [n for n, row in enumerate(mixed) if row not in BAD]
    texts = pq.read_table(Project().texts)
    assert texts["row"].to_pylist() == kept
    assert texts["text"].to_pylist() == [mixed[n][1] for n in kept]
    labels = pq.read_table(Project().labels)
    assert labels["row"].to_pylist() == kept
    assert labels["spam"].to_pylist() == [int(mixed[n][0] == "spam") for n in kept]


def test_nothing_left_after_dropping(project: Path) -> None:
    set_up(project, BAD, **{"prepare.on_bad_rows": "drop"})
    with pytest.raises(DataError, match="none of the 6 rows can be used"):
        run()
    assert not Project().texts.exists()


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "no text"),
        (float("nan"), "no text"),
        (3, "text is not a string: 3"),
        (b"x", "text is not a string: b'x'"),
        ("", "blank text"),
        ("\u00a0\n", "blank text"),
        ("a\udc80", "text is not valid Unicode: a lone surrogate"),
        ("\x00", None),
        ("\uffff\ue000\u202e👩\u200d👧", None),
    ],
)
def test_what_can_serve_as_a_text(value: object, why: str | None) -> None:
    assert prepare.find_fault(value) == why


def test_the_table_counts_rows_duplicates_and_leaks(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up(project, ROWS)
    run()
    printed = capsys.readouterr().out
    texts = pq.read_table(Project().texts)["text"].to_pylist()
    split = pq.read_table(Project().labels)["split"].to_pylist()
    in_train = {text for text, part in zip(texts, split, strict=True) if part == "train"}
    leaks = [
        sum(p == part and t in in_train for t, p in zip(texts, split, strict=True))
        for part in ("validation", "test")
    ]
    lines = {line.split("  ")[0].strip(): line.split()[-3:] for line in printed.splitlines()[1:]}
    assert "data.csv: 60 rows, 60 used, 37 distinct texts, 23 duplicates" in printed
    assert lines["rows"] == ["42", "9", "9"]
    assert lines["text also in train"] == ["–", *map(str, leaks)]
    for name, label in (("ham", "spam = ham"), ("spam", "spam = spam")):
        counts = Counter(p for p, (c, _) in zip(split, ROWS, strict=True) if c == name)
        assert lines[label] == [str(counts[part]) for part in PARTS]


def test_a_source_that_changed_since_it_was_fetched_is_refused(project: Path) -> None:
    set_up(project, ROWS)
    with (project / "data.csv").open("a") as file:
        file.write("ham,new\n")
    with pytest.raises(StageError, match="has changed since it was fetched") as caught:
        run()
    assert "pipeline fetch" in (caught.value.hint or "")


@pytest.mark.parametrize("failing", [1, 2])
def test_a_full_disk_changes_neither_file(
    project: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Wherever the disk fills up, the two files stay those of one run."""
    set_up(project, ROWS)
    run()
    before = read_outputs()
    set_up(project, [*ROWS, ["ham", "one more"]])
    calls = []

    def fail(table: pa.Table, file: object, **options: object) -> None:
        calls.append(table)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(table, file, **options)

    write = pq.write_table
    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(WriteError, match="No space left on device") as caught:
        run()
    assert "free some space" in (caught.value.hint or "")
    assert len(calls) == failing
    assert read_outputs() == before
    assert sorted(p.name for p in Project().cache.iterdir()) == [
        "assets.json",
        "labels.parquet",
        "texts.parquet",
    ]


def test_the_sms_corpus_gives_the_notebooks_supports(project: Path, real_assets: Path) -> None:
    """The figures of the notebook's own classification report, and those of its training part."""
    Project().cache.mkdir()
    Project().assets.write_bytes(Project(real_assets).assets.read_bytes())
    run()
    rows = read_labelled_rows(Project())
    assert len(rows.keys) == 5572
    assert len(set(rows.keys.to_pylist())) == 5169
    test, train = rows.select("test"), rows.select("train")
    assert len(test) == 836
    assert np.bincount(rows.tasks["spam"].values[test]).tolist() == [726, 110]
    sentiment = rows.tasks["sentiment"]
    assert sentiment.classes == ("negative", "neutral", "positive")
    assert np.bincount(sentiment.values[test]).tolist() == [153, 286, 397]
    assert np.bincount(sentiment.values[train]).tolist() == [708, 1325, 1867]
    keys = rows.keys.to_pylist()
    trained = {keys[row] for row in train}
    assert sum(keys[row] in trained for row in test) == 81
