"""Splits against scikit-learn used by hand, keys against hashlib, files against the design."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.model_selection import train_test_split

from pipeline.arrays import wrap_rows
from pipeline.config import DrawnSplit, load_settings, parse_settings
from pipeline.corpus.classes import check_class_order
from pipeline.corpus.keys import code_keys, count_distinct, hash_texts, number_keys, pack_keys
from pipeline.corpus.tables import PARTS, read_labelled_rows
from pipeline.corpus.texts import fold_text
from pipeline.errors import DataError, SettingsError, StageError, WriteError
from pipeline.files import hash_file
from pipeline.prepare import run as prepare
from pipeline.prepare.labelers.base import Labels
from pipeline.prepare.run import run_prepare, split_rows
from pipeline.project import Project
from tests.conftest import edit_params


def make_keys(rows: int) -> npt.NDArray[np.int64]:
    """A number of each row, as of texts that all differ."""
    return np.arange(rows)


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
    settings = DrawnSplit(
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
    settings = DrawnSplit(stratify_by=("spam", "mood"))
    split = split_rows(
        make_keys(4000), {"spam": make_labels(spam), "mood": make_labels(mood)}, settings
    )
    for part, share in enumerate((0.7, 0.15, 0.15)):
        counts = Counter(zip(spam[split == part], mood[split == part], strict=True))
        for stratum, number in Counter(zip(spam, mood, strict=True)).items():
            assert abs(counts[stratum] - share * number) <= 1


def test_another_seed_gives_another_split_of_the_same_sizes() -> None:
    first, second = (split_rows(make_keys(100), {}, DrawnSplit(seed=seed)) for seed in (0, 1))
    assert np.bincount(first).tolist() == np.bincount(second).tolist() == [70, 15, 15]
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("stratify_by", [(), ("t",)])
def test_identical_texts_stay_together_when_asked(stratify_by: tuple[str, ...]) -> None:
    numbers = np.random.default_rng(1).integers(0, 60, 300)
    keys = make_keys(60)[numbers]
    labels = {"t": make_labels(numbers % 2)}
    settings = DrawnSplit(keep_duplicates_together=True, stratify_by=stratify_by)
    together = split_rows(keys, labels, settings)
    assert all(len({*together[numbers == number]}) <= 1 for number in range(60))
    apart = split_rows(keys, labels, DrawnSplit(stratify_by=stratify_by))
    assert any(len({*apart[numbers == number]}) > 1 for number in range(60))


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_too_few_rows(rows: int) -> None:
    with pytest.raises(DataError, match=rf"too few rows to split: {rows} rows? cannot give") as e:
        split_rows(make_keys(rows), {}, DrawnSplit())
    assert "prepare.split" in (e.value.hint or "")
    with pytest.raises(DataError, match=r"1 distinct text cannot give every part"):
        split_rows(np.zeros(50, np.int64), {}, DrawnSplit(keep_duplicates_together=True))


@pytest.mark.parametrize("few", [1, 2])
@pytest.mark.parametrize("together", [False, True])
def test_a_stratum_too_small_is_named(few: int, together: bool) -> None:
    labels = {"a": make_labels([0, 1] * 50), "b": make_labels([0] * (100 - few) + [1] * few)}
    settings = DrawnSplit(stratify_by=("a", "b"), keep_duplicates_together=together)
    with pytest.raises(DataError, match=r"a = c\d, b = c1 has only 1 of 100 ") as caught:
        split_rows(make_keys(100), labels, settings)
    assert "stratify_by" in (caught.value.hint or "")


def test_a_stratum_that_only_copies_have_is_left_out() -> None:
    """Of identical texts the first one's labels count; the stratum of the second has none left."""
    keys = np.array([0, 1, 2, 3, 0])
    labels = {"t": Labels(("x", "y", "z"), np.array([0, 1, 1, 1, 2], np.int32))}
    with pytest.raises(DataError, match=r"t = x has only 1 of 4 distinct texts"):
        split_rows(keys, labels, DrawnSplit(stratify_by=("t",), keep_duplicates_together=True))


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


def read_outputs() -> list[bytes]:
    project = Project()
    files = (project.texts_file, project.labels_file, project.segments_file)
    return [file.read_bytes() for file in files]


def test_files_have_the_columns_that_other_tools_rely_on(project: Path) -> None:
    set_up(project, ROWS)
    details = run()
    assert details == {"rows": 60, "distinct_texts": 37, "dropped": 0}
    texts = pq.read_table(Project().texts_file)
    assert texts.schema.equals(
        pa.schema([("row", pa.int64()), ("text", pa.string()), ("key", pa.binary(16))])
    )
    assert texts["text"].to_pylist() == [text for _, text in ROWS]
    assert texts["key"].to_pylist() == hash_texts([str(text) for _, text in ROWS])
    labels = pq.read_table(Project().labels_file)
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
    labels = pq.read_table(Project().labels_file)
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
        "  spam: near twins: 'ham' 43, 'Ham' 1; if they mean the same, correct the column, or lead "
        "them to one class by `mapping`",
    ]
    assert caught.value.hint == (
        "correct them, or set prepare.on_bad_rows to drop; if rows may lack spam, set "
        "prepare.labels.spam.optional to true"
    )
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
    texts = pq.read_table(Project().texts_file)
    assert texts["row"].to_pylist() == kept
    assert texts["text"].to_pylist() == [mixed[n][1] for n in kept]
    labels = pq.read_table(Project().labels_file)
    assert labels["row"].to_pylist() == kept
    assert labels["spam"].to_pylist() == [int(mixed[n][0] == "spam") for n in kept]


def set_up_two_labels(project: Path, rows: Sequence[Sequence[object]], **changes: object) -> None:
    """A project with the labels ``spam`` and ``level``, of a table with a header."""
    set_up(project, ROWS)
    file = project / "data.csv"
    with file.open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([["label", "level", "message"], *rows])
    assets = json.loads(Project().assets.read_text())
    assets["dataset"]["files"] = {"data.csv": hash_file(file)}
    Project().assets.write_text(json.dumps(assets))
    labels = {
        "spam": {"column": "label", "classes": ["ham", "spam"]},
        "level": {"column": "level", "kind": "number"},
    }
    edit_params({"prepare.labels": labels, "heads.tasks": {"spam": {}}, **changes})


TWO = [[label, n, text] for n, (label, text) in enumerate(ROWS)]


def test_a_row_that_is_bad_for_one_task_serves_the_others(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [
        ["eggs", 1, "no spam"],  # 60
        ["ham", "many", "no level"],  # 61
        ["eggs", "many", "neither"],  # 62: dropped
        ["ham", 1, " "],  # 63: dropped
        *[["", n, f"message {n}"] for n in range(6)],  # 64 to 69
    ]
    set_up_two_labels(project, [*TWO, *bad], **{"prepare.on_bad_rows": "drop"})
    assert run()["dropped"] == 2
    labels = pq.read_table(Project().labels_file)
    assert labels["row"].to_pylist() == [*range(62), *range(64, 70)]
    spam = [int(label == "spam") for label, _ in ROWS]
    assert labels["spam"].to_pylist() == [*spam, None, 0, *[None] * 6]
    assert labels["level"].to_pylist() == [*range(60), 1, None, *range(6)]
    printed = capsys.readouterr().out
    for lines in (
        "1 row dropped: blank text\n  row 63 (the first is 0): blank text\n",
        "1 row dropped: unknown label for spam\n"
        "  row 62 (the first is 0): unknown label for spam: 'eggs'\n",
        "7 rows without a usable label for spam, which serve the other tasks:\n"
        "  row 60 (the first is 0): 'eggs'\n"
        "  row 64 (the first is 0): no value\n",
        "  row 67 (the first is 0): no value\n  and 2 more\n",
        "1 row without a usable label for level, which serve the other tasks:\n"
        "  row 61 (the first is 0): not a number: 'many'\n",
    ):
        assert lines in printed


def test_a_row_that_may_lack_all_its_labels_is_kept(project: Path) -> None:
    set_up_two_labels(project, [*TWO, ["", "", "nothing known"], ["eggs", "", "bad"]])
    edit_params(
        {
            "prepare.on_bad_rows": "drop",
            "prepare.labels.spam.optional": True,
            "prepare.labels.level.optional": True,
        }
    )
    assert run()["dropped"] == 1
    assert pq.read_table(Project().labels_file)["row"].to_pylist() == [*range(61)]


@pytest.mark.parametrize("name", ["data.csv", "data.jsonl", "data.parquet"])
def test_words_for_missing(project: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    words = ["NA", "n/a", "null", "None", " NA ", ""]
    rows = [*TWO, *[["spam", -1, word] for word in words]]  # texts are never missing by a word
    rows = [[words[n % 6] if n % 4 == 0 else row[0], *row[1:]] for n, row in enumerate(rows)]
    rows = [row for row in rows if row[2]]
    set_up_two_labels(project, rows)
    if name != "data.csv":
        frame = pd.DataFrame(rows, columns=["label", "level", "message"])
        frame.to_json(name, orient="records", lines=True) if name == "data.jsonl" else (
            frame.to_parquet(name)
        )
        assets = json.loads(Project().assets.read_text())
        assets["dataset"] |= {"id": name, "path": name, "files": {name: hash_file(project / name)}}
        Project().assets.write_text(json.dumps(assets))
    edit_params(
        {
            "fetch.dataset": name,
            "prepare.missing": ["NA", "n/a", "null", "None", -1],
            "prepare.labels.spam.optional": True,
            "prepare.labels.level.optional": True,
        }
    )
    run()
    labels = pq.read_table(Project().labels_file)
    known = {"ham": 0, "spam": 1}
    assert labels["spam"].to_pylist() == [known.get(row[0]) for row in rows]
    assert labels["level"].to_pylist() == [None if row[1] == -1 else row[1] for row in rows]
    texts = pq.read_table(Project().texts_file)["text"].to_pylist()
    assert texts == [row[2] for row in rows]
    assert {"NA", "n/a", "null", "None", " NA "} <= set(texts)
    assert "warning" not in capsys.readouterr().out


def test_empty_cells_of_optional_tags_are_counted_as_not_given(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [["a;b" if n % 3 else "", text] for n, (_, text) in enumerate(ROWS)]
    label = {"column": "label", "kind": "tags", "separator": ";", "optional": True}
    set_up(project, rows, **{"prepare.labels": {"topics": label}, "heads.tasks": None})
    run()
    assert pq.read_table(Project().labels_file)["topics"].null_count == 20
    parts = Counter(pq.read_table(Project().labels_file)["split"].to_pylist()[::3])
    printed = capsys.readouterr().out
    assert read_line(printed, "topics not given") == [str(parts[part]) for part in PARTS]
    assert "no tag" not in printed
    edit_params({"prepare.labels.topics.empty": "none"})
    run()
    assert pq.read_table(Project().labels_file)["topics"].to_pylist()[:2] == [
        [False] * 2,
        [True] * 2,
    ]
    printed = capsys.readouterr().out
    assert read_line(printed, "topics = no tag") == [str(parts[part]) for part in PARTS]
    assert "not given" not in printed


def read_line(printed: str, start: str) -> list[str]:
    """The counts of a line of the summary."""
    (line,) = (line for line in printed.splitlines() if line.strip().startswith(start + "  "))
    return line.split()[-3:]


def test_the_table_says_how_many_classes_it_leaves_out(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [[f"c{n % 40:02}", f"message {n}"] for n in range(400)]
    set_up(project, rows, **{"prepare.labels": {"t": {"column": "label"}}, "heads.tasks": None})
    run()
    printed = capsys.readouterr().out
    split = pq.read_table(Project().labels_file)["split"].to_pylist()
    rest = Counter(part for n, part in enumerate(split) if n % 40 >= 30)
    assert read_line(printed, "t = 10 more classes") == [str(rest[part]) for part in PARTS]
    assert "t = c29" in printed
    assert "t = c30" not in printed
    tags = [[f"c{n % 40:02},c35", f"message {n}"] for n in range(400)]
    set_up(project, tags, **{"prepare.labels": {"t": {"column": "label", "kind": "tags"}}})
    edit_params({"heads.tasks": None})
    run()
    assert read_line(capsys.readouterr().out, "t = 10 more tags") == ["280", "60", "60"]


def test_stray_blanks_show_in_the_table_and_twins_are_warned_of(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [["bad " if n % 10 == 1 else "bad" if n % 2 else "good", t] for n, (_, t) in
            enumerate(ROWS)]  # fmt: skip
    set_up(project, rows, **{"prepare.labels": {"mood": {"column": "label"}}, "heads.tasks": None})
    run()
    printed = capsys.readouterr().out
    assert "mood = 'bad '  " in printed
    assert "mood = bad  " in printed
    assert "warning: mood: near twins: 'bad ' 6, 'bad' 24; if they mean the same" in printed


def test_untrained_classes_are_named_up_to_five(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label = {"column": "label", "classes": ["ham", "spam", *"abcdefgh"]}
    set_up(project, ROWS, **{"prepare.labels": {"spam": label}})
    run()
    printed = capsys.readouterr().out
    assert printed.count("spam: no training row is ") == 5
    assert "spam: nor is any of 3 other classes" in printed


@pytest.mark.parametrize("kind", ["class", "tags"])
def test_a_label_that_no_row_has(project: Path, kind: str) -> None:
    rows = [["", text] for _, text in ROWS]
    label = {"column": "label", "kind": kind, "optional": True}
    set_up(project, rows, **{"prepare.labels": {"t": label}, "heads.tasks": None})
    what = "tag" if kind == "tags" else "class"
    with pytest.raises(DataError, match=rf"data.csv: no row has a {what} for t$") as caught:
        run()
    assert "prepare.labels.t" in (caught.value.hint or "")


ORDINAL = {"heads.tasks": {"level": {"type": "ordinal"}}}


def test_an_ordinal_task_has_its_numbers_in_the_order_of_their_size(project: Path) -> None:
    rows = [[n % 10 + 1, text] for n, (_, text) in enumerate(ROWS)]
    set_up(project, rows, **{"prepare.labels": {"level": {"column": "label"}}, **ORDINAL})
    run()
    assert read_labelled_rows(Project()).tasks["level"].classes == tuple(map(str, range(1, 11)))
    assert pq.read_table(Project().labels_file)["level"].to_pylist() == [n % 10 for n in range(60)]


def test_an_ordinal_task_asks_for_the_order_of_names(project: Path) -> None:
    names = ["low", "very high", "middle", "1: odd"]
    rows = [[names[n % 4], text] for n, (_, text) in enumerate(ROWS)]
    set_up(project, rows, **{"prepare.labels": {"level": {"column": "label"}}, **ORDINAL})
    with pytest.raises(SettingsError) as caught:
        run()
    assert caught.value.message == (
        "prepare.labels.level.classes: must give the order of the classes, as "
        "heads.tasks.level.type is ordinal and they are not all numbers; the column holds "
        '"1: odd", low, middle, very high'
    )
    assert 'classes: ["1: odd", low, middle, very high]' in (caught.value.hint or "")
    assert not Project().labels_file.exists()
    ordered = ["low", "middle", "very high", "1: odd"]
    edit_params({"prepare.labels.level.classes": ordered})
    run()
    assert read_labelled_rows(Project()).tasks["level"].classes == tuple(ordered)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (("1", "10", "2"), "heads.tasks.t.type: ordinal, but the classes of cache/labels.parquet"),
        (("high", "low"), "prepare.labels.t.classes: must give the order of the classes"),
    ],
)
def test_labels_of_before_are_refused_where_their_order_means_nothing(
    found: tuple[str, ...], message: str
) -> None:
    """``train-heads`` checks, too: the type of a task is no setting of ``prepare``."""
    text = "prepare: {labels: {t: {column: a}}}\nheads: {tasks: {t: {type: ordinal}}}\n"
    with pytest.raises(SettingsError) as caught:
        check_class_order(parse_settings(text, "a"), {"t": found})
    assert caught.value.message.startswith(message)
    check_class_order(parse_settings(text, "a"), {"t": ("1", "2", "10")})
    check_class_order(parse_settings(text.replace("ordinal", "multiclass"), "a"), {"t": found})
    named = text.replace("column: a", f"column: a, classes: {list(found)}")
    check_class_order(parse_settings(named, "a"), {"t": found})


def test_nothing_left_after_dropping(project: Path) -> None:
    set_up(project, BAD, **{"prepare.on_bad_rows": "drop"})
    with pytest.raises(DataError, match="none of the 6 rows can be used"):
        run()
    assert not Project().texts_file.exists()


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
        ("\uffff\ue000\u202e👩\u200d👧", None),
        ("e\u0301", None),
        (".", None),
        ("\u00ad-\u00ad", None),
        # What shows nothing by itself.
        ("\x00", "blank text"),
        ("\x7f\x1b\x85", "blank text"),
        ("\u200b\u200c\u200d\u2060", "blank text"),
        ("\ufeff", "blank text"),
        ("\u00ad \u00ad", "blank text"),
        ("\u202e\u200f\u2066", "blank text"),
        ("\ufe0f\U000e0101", "blank text"),
        ("\u0301\u20dd", "blank text"),
        ("\U000e0001\u180e", "blank text"),
        ("\u3164\uffa0\u2800", "blank text"),
        ("\ufffd\ufffd", "blank text"),
        ("\u2028\u3000", "blank text"),
    ],
)
def test_what_can_serve_as_a_text(value: object, why: str | None) -> None:
    assert prepare.find_fault(value) == why


def test_texts_of_nothing_that_shows_are_blank_rows(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up(project, [*ROWS, ("ham", "\u200b"), ("spam", "\u00ad\u2060")])
    with pytest.raises(DataError, match=r"2 rows cannot be used(.|\n)*row 61 .*: blank text"):
        run()
    edit_params({"prepare.on_bad_rows": "drop"})
    run()
    assert "2 rows dropped: blank text" in capsys.readouterr().out
    assert pq.read_table(Project().texts_file).num_rows == 60


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("Call me", "CALL  me\n", True),
        ("Call me", "call\u00a0me\u200b", True),
        ("caf\u00e9", "CAFE\u0301", True),
        ("\uff26ree \ufb01sh", "free fish", True),  # full-width F, ligature of f and i
        ("stra\u00dfe", "STRASSE", True),
        ("Call me", "Call me!", False),
        ("Call me", "Callme", False),
        ("cafe", "caf\u00e9", False),
        ("1 2", "12", False),
    ],
)
def test_what_counts_as_the_same_text(first: str, second: str, same: bool) -> None:
    assert (fold_text(first) == fold_text(second)) is same


def test_spellings_of_one_text_stay_together_and_are_counted(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of 40 notes stands as it is, in capitals and with wider blanks."""
    notes = [f"the garden of number {number}" for number in range(40)]
    rows = [
        ("spam" if number % 3 else "ham", text)
        for number, note in enumerate(notes)
        for text in (note, note.upper(), note.replace(" ", "  "))
    ]
    set_up(project, rows)
    run()
    printed = capsys.readouterr().out
    texts = pq.read_table(Project().texts_file)["text"].to_pylist()
    assert texts == [text for _, text in rows]
    note_of = [" ".join(text.lower().split()) for text in texts]
    split = pq.read_table(Project().labels_file)["split"].to_pylist()
    trained = {note for note, part in zip(note_of, split, strict=True) if part == "train"}
    leaks = [
        sum(p == part and note in trained for note, p in zip(note_of, split, strict=True))
        for part in ("validation", "test")
    ]
    assert min(leaks) > 0
    lines = {line.split("  ")[0].strip(): line.split()[-3:] for line in printed.splitlines()}
    assert lines["text also in train"] == ["–", *map(str, leaks)]
    assert "120 distinct texts, 0 duplicates" in printed
    assert "without regard to case, blanks and Unicode form: 40 distinct texts\n" in printed

    edit_params({"prepare.split.keep_duplicates_together": True})
    run()
    split = pq.read_table(Project().labels_file)["split"].to_pylist()
    parts_of = {note: set() for note in notes}
    for note, part in zip(note_of, split, strict=True):
        parts_of[note].add(part)
    assert all(len(parts) == 1 for parts in parts_of.values())
    assert set(split) == set(PARTS)


def test_the_table_counts_rows_duplicates_and_leaks(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up(project, ROWS)
    run()
    printed = capsys.readouterr().out
    texts = pq.read_table(Project().texts_file)["text"].to_pylist()
    split = pq.read_table(Project().labels_file)["split"].to_pylist()
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


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_full_disk_changes_no_file(
    project: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Wherever the disk fills up, the files stay those of one run."""
    set_up(project, ROWS)
    run()
    before = read_outputs()
    set_up(project, [*ROWS, ["ham", "one more"]])
    calls = []

    def fail(writer: pq.ParquetWriter, table: pa.Table, *options: Any, **more: Any) -> None:
        calls.append(table)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(writer, table, *options, **more)

    write = pq.ParquetWriter.write_table
    monkeypatch.setattr(pq.ParquetWriter, "write_table", fail)
    with pytest.raises(WriteError, match="No space left on device") as caught:
        run()
    assert "free some space" in (caught.value.hint or "")
    assert len(calls) == failing
    assert read_outputs() == before
    assert sorted(p.name for p in Project().cache.iterdir()) == [
        "assets.json",
        "labels.parquet",
        "segments.parquet",
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


def test_numbers_of_keys_are_those_of_a_dictionary() -> None:
    generator = np.random.default_rng(0)
    # Keys that share a half, or differ in the last bit alone, beside duplicates.
    keys = generator.integers(0, 3, (500, 16)).astype(np.uint8)
    keys[:, :8] = keys[:1, :8]
    keys[250:, 8:15] = keys[:1, 8:15]
    known: dict[bytes, int] = {}
    expected = [known.setdefault(key.tobytes(), len(known)) for key in keys]
    assert len(known) < 500
    assert number_keys(keys).tolist() == expected
    assert count_distinct(keys) == len(known)
    coded = wrap_rows(keys).dictionary_encode()  # the same by Arrow
    distinct, codes = code_keys(wrap_rows(keys))
    assert distinct.equals(coded.dictionary)
    assert codes.tolist() == coded.indices.to_pylist()
    assert pack_keys(["a", "é", "a"], 3).tobytes() == b"".join(hash_texts(["a", "é", "a"]))
