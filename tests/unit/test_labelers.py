"""Labels from columns, and from VADER against NLTK used by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.assets import read_assets
from pipeline.config import ColumnLabel, RuntimeSettings, VaderLabel
from pipeline.corpus.sources import read_source
from pipeline.errors import AssetError, DataError, ReadError
from pipeline.prepare.labelers.base import UNKNOWN, LabelingContext, make_labeler
from pipeline.prepare.labelers.class_checks import make_twin_key, show_name
from pipeline.prepare.labelers.column import label_by_column
from pipeline.prepare.labelers.list_text import parse_list
from pipeline.prepare.labelers.vader import classify_compound, score_by_vader
from pipeline.project import Project

SENTENCES = [
    "VADER is smart, handsome, and funny!",
    "The book was good, but the ending was TERRIBLE :(",
    "Ok lar... Joking wif u oni...",
    "I don't hate it.",
    "",
    "free",
    "\x00 \uffff",
    "😍 not bad at all 👩\u200d👩\u200d👧",
    "The book was good, but the ending was TERRIBLE :(",
]


@pytest.fixture(scope="module")
def lexicon(real_assets: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(real_assets)
        asset = read_assets(Project().assets)["lexicon"]
        return asset.locate(Project()) / next(iter(asset.files))


@pytest.fixture
def context(tmp_path: Path) -> LabelingContext:
    return LabelingContext(Project(tmp_path / "project"), RuntimeSettings())


def test_vader_is_nltks(
    lexicon: Path, context: LabelingContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nltk.data
    from nltk.sentiment.vader import SentimentIntensityAnalyzer

    # By hand: NLTK's own layout in a folder of the test's own.
    target = tmp_path / "sentiment" / "vader_lexicon" / "vader_lexicon.txt"
    target.parent.mkdir(parents=True)
    target.write_bytes(lexicon.read_bytes())
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    analyzer = SentimentIntensityAnalyzer("sentiment/vader_lexicon/vader_lexicon.txt")
    expected = [analyzer.polarity_scores(text)["compound"] for text in SENTENCES]
    assert min(expected) < -0.05
    assert max(expected) > 0.05
    np.testing.assert_array_equal(score_by_vader(SENTENCES, lexicon, context), expected)
    assert nltk.data.path == [str(tmp_path)]  # left as it was


def test_vader_keeps_the_raw_score_beside_the_label(
    lexicon: Path, context: LabelingContext
) -> None:
    labels = make_labeler("mood", VaderLabel(labeler="vader"), context).label(
        pd.DataFrame(), SENTENCES, {"lexicon": lexicon}
    )
    assert labels.classes == ("negative", "neutral", "positive")
    scores = labels.scores["mood_compound"]
    expected = [2 if s >= 0.05 else 0 if s <= -0.05 else 1 for s in scores.tolist()]
    assert labels.values.tolist() == expected
    assert not labels.unusable


def test_thresholds_belong_to_the_outer_classes() -> None:
    below, above = np.nextafter(0.05, 0), np.nextafter(0.05, 1)
    compound = np.array([-1, -above, -0.05, -below, 0, below, 0.05, above, 1])
    assert classify_compound(compound, -0.05, 0.05).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert classify_compound(np.array([-0.5, 0.1, 0.3]), -0.2, 0.3).tolist() == [0, 1, 2]


def test_a_lexicon_of_ones_own_may_lie_anywhere(
    lexicon: Path, context: LabelingContext, tmp_path: Path
) -> None:
    own = tmp_path / "mine.txt"
    own.write_text("meh\t-3.0\t0.5\t[-3]\n")
    assert score_by_vader(["meh", "good"], own, context)[0] < -0.05
    assert score_by_vader(["meh", "good"], own, context)[1] == 0
    # Nothing of the other lexicon is kept.
    assert score_by_vader(["meh", "good"], lexicon, context)[1] > 0.05


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"caf\xe9\t1\n", ": not UTF-8"),
        (b"good\t1.9\n\nno tabs here\n", ": line 3: not a word, a tab and its valence: 'no tabs"),
        (b"good\t1.9\nbad\t-inf\n", r": line 2: not a word, a tab and its valence: 'bad\t-inf'"),
        (b"good\tnan\n", r": line 1: not a word, a tab and its valence: 'good\tnan'"),
        (b"good\tvery\n", r": line 1: not a word, a tab and its valence: 'good\tvery'"),
    ],
)
def test_a_damaged_lexicon_is_named(
    context: LabelingContext, tmp_path: Path, content: bytes, what: str
) -> None:
    path = tmp_path / "lexicon.txt"
    path.write_bytes(content)
    with pytest.raises(AssetError) as caught:
        score_by_vader(["good"], path, context)
    assert caught.value.message.startswith(f"the lexicon {path}{what}")
    assert "pipeline fetch --refresh" in (caught.value.hint or "")


def test_a_lexicon_that_cannot_be_read_is_named(context: LabelingContext, tmp_path: Path) -> None:
    with pytest.raises(ReadError) as caught:
        score_by_vader(["good"], tmp_path / "none.txt", context)
    assert caught.value.message == f"cannot read {tmp_path}/none.txt: No such file or directory"
    assert "pipeline fetch --refresh" in (caught.value.hint or "")


def write_column(folder: Path, name: str, values: list[Any]) -> Path:
    """A column ``c`` of values in the format that the file's name tells."""
    path = folder / name
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"c": values}), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"c": value}) + "\n" for value in values))
    else:
        with path.open("w", newline="") as file:
            writer = csv.writer(file, delimiter="," if path.suffix == ".csv" else "\t")
            writer.writerows([["c", "n"], *([value, n] for n, value in enumerate(values))])
    return path


FORMATS = ["a.csv", "a.tsv", "a.jsonl", "a.parquet"]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (["ham", "spam", None], ("ham", "spam")),
        ([0, 1, None], (0, 1)),
        ([0, 1, None], ("0", "1")),
        ([False, True, None], (False, True)),
        ([False, True, None], ("False", "True")),
    ],
)
def test_a_column_gives_the_same_labels_from_every_format(
    tmp_path: Path, name: str, values: list[Any], classes: tuple[Any, ...]
) -> None:
    frame = read_source(write_column(tmp_path, name, values))
    label = ColumnLabel(column="c", classes=classes)
    labels = make_labeler("t", label).label(frame, [], {})
    assert labels.values.tolist() == [0, 1, UNKNOWN]
    assert labels.unusable == {2: "no value"}


@pytest.mark.parametrize("name", FORMATS)
def test_a_mapping_leads_values_to_classes(tmp_path: Path, name: str) -> None:
    frame = read_source(write_column(tmp_path, name, [1, 5, 3, 4]))
    label = ColumnLabel(
        column="c", classes=("bad", "good"), mapping={1: "bad", 4: "good", "5": "good"}
    )
    labels = label_by_column(label, frame["c"].tolist())
    assert labels.values.tolist() == [0, 1, UNKNOWN, 1]
    assert list(labels.unusable) == [2]
    assert "3" in labels.unusable[2]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_floats_that_are_whole_are_whole_numbers(tmp_path: Path, name: str) -> None:
    frame = read_source(write_column(tmp_path, name, [1.0, 0.0, 0.5, None, float("nan")]))
    labels = label_by_column(ColumnLabel(column="c", classes=(0, 1)), frame["c"].tolist())
    assert labels.values.tolist() == [1, 0, UNKNOWN, UNKNOWN, UNKNOWN]
    assert labels.unusable == {2: "0.5", 3: "no value", 4: "no value"}


def test_classes_are_found_where_not_given() -> None:
    labels = label_by_column(ColumnLabel(column="c"), ["b", None, "a", "c", "b", ""])
    assert labels.classes == ("a", "b", "c")
    assert labels.values.tolist() == [1, UNKNOWN, 0, 2, 1, UNKNOWN]
    mapped = label_by_column(ColumnLabel(column="c", mapping={"b": "z", "a": "z"}), ["b", "a", "c"])
    assert mapped.classes == ("c", "z")
    assert mapped.values.tolist() == [1, 1, 0]


def test_unknown_labels_are_kept_for_the_message() -> None:
    label = ColumnLabel(column="c", classes=("ham", "spam"))
    labels = label_by_column(label, ["ham", "Ham", "spam ", "s" * 500, "\ud83d"])
    assert labels.values.tolist() == [0, *[UNKNOWN] * 4]
    assert labels.unusable[1] == "'Ham'"
    assert labels.unusable[2] == "'spam '"
    assert len(labels.unusable[3]) == 60
    assert labels.unusable[4] == r"'\ud83d'"


def test_half_a_surrogate_pair_is_never_a_class() -> None:
    labels = label_by_column(ColumnLabel(column="c"), ["a", "\ud83d", "é"])
    assert labels.classes == ("a", "é")
    assert labels.unusable == {1: r"'\ud83d'"}


def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    frame = read_source(write_column(tmp_path, "a.csv", ["x"]))
    with pytest.raises(DataError, match=r"no column 'label'; the source has 'c', 'n'") as caught:
        make_labeler("spam", ColumnLabel(column="label")).label(frame, ["t"], {})
    assert caught.value.hint == "correct prepare.labels.spam.column"


# --- values that look like other values ---------------------------------------------------------


@pytest.mark.parametrize("classes", [(0, 1), (0.0, 1.0), ("0", "1"), ("0.0", "1.0")])
def test_whole_numbers_that_pandas_wrote_with_a_point(
    tmp_path: Path, classes: tuple[Any, ...]
) -> None:
    frame = pd.DataFrame({"c": [1, None, 0, 1], "n": range(4)})
    frame.to_csv(tmp_path / "a.csv", index=False)
    values = read_source(tmp_path / "a.csv")["c"].tolist()
    assert values == ["1.0", "", "0.0", "1.0"]
    labels = label_by_column(ColumnLabel(column="c", classes=classes, optional=True), values)
    assert labels.classes == ("0", "1")
    assert labels.values.tolist() == [1, UNKNOWN, 0, 1]


def test_near_twins_are_named_with_their_counts() -> None:
    values = ["bad"] * 60 + ["bad "] * 3 + ["good"] * 30 + ["GOOD"] * 2 + ["other"]
    labels = label_by_column(ColumnLabel(column="c"), values)
    assert labels.classes == ("GOOD", "bad", "bad ", "good", "other")  # nothing is merged
    assert [note.partition(";")[0] for note in labels.notes] == [
        "near twins: 'bad' 60, 'bad ' 3",
        "near twins: 'good' 30, 'GOOD' 2",
    ]
    assert not label_by_column(ColumnLabel(column="c"), ["bad", "good", "goods"] * 9).notes


def test_twins_that_look_the_same_are_shown_by_their_characters() -> None:
    (note,) = label_by_column(ColumnLabel(column="c"), ["caf\u00e9", "cafe\u0301", "x"]).notes
    assert r"'caf\xe9' 1, 'cafe\u0301' 1" in note


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a b", " A  b\u00a0"),
        ("stra\u00dfe", "STRASSE"),
        ("\ufeffham", "ham"),
        ("ha\u200bm", "ham"),
        ("\uff21", "a"),
        ("1", "01"),
        ("1", "+1.00"),
        ("0.5", ".50"),
        ("100", "1e2"),
        ("1", "true"),
        ("FALSE", "0"),
    ],
)
def test_what_near_twins_are(one: str, other: str) -> None:
    assert make_twin_key(one) == make_twin_key(other)


@pytest.mark.parametrize(
    ("one", "other"), [("a", "b"), ("1", "-1"), ("1.10", "1.1.0"), ("e", "\u00e9"), ("no", "0")]
)
def test_what_near_twins_are_not(one: str, other: str) -> None:
    assert make_twin_key(one) != make_twin_key(other)


def test_unknown_labels_that_are_nearly_a_class_are_named() -> None:
    label = ColumnLabel(column="c", classes=("ham", "spam"))
    labels = label_by_column(label, ["ham", "Ham", "spam", "Ham", "eggs"])
    assert list(labels.unusable) == [1, 3, 4]
    assert [note.partition(";")[0] for note in labels.notes] == ["near twins: 'ham' 1, 'Ham' 2"]
    both = ColumnLabel(column="c", classes=("ham", "Ham"))  # whoever names both means both
    assert not label_by_column(both, ["ham", "Ham"]).notes


def test_one_class_that_is_written_in_several_ways() -> None:
    values = [1, 1.0, "1", "1.0", "1.0", True, 0]
    labels = label_by_column(ColumnLabel(column="c"), values)
    assert labels.classes == ("0", "1", "true")
    assert labels.values.tolist() == [1, 1, 1, 1, 1, 2, 0]
    twins, forms = labels.notes
    assert twins.startswith("near twins: '1' 5, 'true' 1")
    assert forms == "1 1, 1.0 1, '1' 1, '1.0' 2 are all read as the class '1'"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("bad", "bad"),
        ("very bad", "very bad"),
        ("bad ", "'bad '"),
        ("a  b", "'a  b'"),
        ("a\tb", r"'a\tb'"),
        ("a\x1b[31mb", r"'a\x1b[31mb'"),
        ("a\u200bb", r"'a\u200bb'"),
        ("é", "é"),
    ],
)
def test_blanks_and_invisible_characters_of_a_name_show(name: str, shown: str) -> None:
    assert show_name(name) == shown


@pytest.mark.parametrize("word", ["NA", "n/a", "None", "null", "NaN", "nan", "-", "#N/A", "<NA>"])
@pytest.mark.parametrize("kind", ["class", "number"])
def test_words_that_may_mean_missing_are_named_with_the_setting(word: str, kind: Any) -> None:
    labels = label_by_column(ColumnLabel(column="c", kind=kind), ["3", word, "4", word])
    assert any(
        f"'{word}' 2 may stand for a missing value" in note
        and f'`prepare.missing: ["{word}"]`' in note
        for note in labels.notes
    )


@pytest.mark.parametrize("blank", ["", " ", "\t", "\u00a0", None, float("nan")])
@pytest.mark.parametrize("kind", ["class", "number"])
def test_a_blank_cell_is_a_missing_label(blank: Any, kind: Any) -> None:
    label = ColumnLabel(column="c", kind=kind)
    labels = label_by_column(label, ["1", blank, "2"])
    assert labels.present.tolist() == [True, False, True]
    assert list(labels.unusable) == [1]
    optional = label_by_column(label.model_copy(update={"optional": True}), ["1", blank, "2"])
    assert optional.present.tolist() == [True, False, True]
    assert not optional.unusable


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (["a"], "a list, not one value: ['a']"),
        ({"a": 1}, "an object, not one value: {'a': 1}"),
        (b"a", "bytes, not one value: b'a'"),
    ],
)
def test_lists_and_objects_are_no_class(value: Any, what: str) -> None:
    labels = label_by_column(ColumnLabel(column="c"), ["x", value, "y"])
    assert labels.classes == ("x", "y")
    assert labels.unusable == {1: what}


def test_structs_and_lists_of_parquet_are_no_class(tmp_path: Path) -> None:
    for values in ([["a"], ["b"]], [{"x": 1}, {"x": 2}]):
        frame = read_source(write_column(tmp_path, "a.parquet", values))
        labels = label_by_column(ColumnLabel(column="c"), frame["c"].tolist())
        assert list(labels.unusable) == [0, 1]
        assert labels.classes == ()


@pytest.mark.parametrize("cells", [["['a']", "['b', 'c']"], ['{"a": 1}', '{"b": 2}'], ["[]", "[]"]])
def test_lists_as_text_are_no_class(cells: list[str]) -> None:
    with pytest.raises(DataError, match="column 'c': holds lists or objects as text") as caught:
        label_by_column(ColumnLabel(column="c"), cells)
    assert "kind: tags" in (caught.value.hint or "")


def test_a_number_too_large_for_a_float_is_not_finite() -> None:
    labels = label_by_column(ColumnLabel(column="c", kind="number"), [10**400, 1, "1e400"])
    assert list(labels.unusable) == [0, 2]


# --- the order of classes that are found --------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (["10", "9", "1", "2"], ("1", "2", "9", "10")),
        (["10.0", "9.0", "1.5"], ("1.5", "9", "10")),
        ([10, 9, -1], ("-1", "9", "10")),
        (["1e2", "20", ".5"], (".5", "20", "1e2")),
        ([2**53 + 1, 2**53, 3], ("3", str(2**53), str(2**53 + 1))),
        (["10", "9", "x"], ("10", "9", "x")),
        (["high", "low", "middle"], ("high", "low", "middle")),
        (["\u0663", "2", "10"], ("10", "2", "\u0663")),  # an Arabic three is spelt, not counted
    ],
)
@pytest.mark.parametrize("kind", ["class", "tags"])
def test_numbers_are_in_the_order_of_their_size(
    values: list[Any], classes: tuple[str, ...], kind: Any
) -> None:
    assert label_by_column(ColumnLabel(column="c", kind=kind), values).classes == classes


def test_numbers_that_became_classes_are_said_to_be() -> None:
    def note(values: list[Any], **settings: Any) -> str:
        return " ".join(label_by_column(ColumnLabel(column="c", **settings), values).notes)

    assert "300 numbers in 300 rows became classes; set `kind: number`" in note([*range(300)])
    assert "became classes" in note(["1.5", "2", "2.5"] * 50)  # in parts, however few
    assert "became classes" not in note([*range(20)] * 2)  # few
    assert "became classes" not in note([*range(30)] * 30)  # many rows of each
    assert not note([*range(300)], classes=tuple(range(300)))  # asked for
    assert not note([*range(300)], kind="number")
    assert not note([0, 1] * 3)
    assert "50 classes in 60 rows" in note([f"id {n % 50}" for n in range(60)])
    assert not note([f"team {n % 25}" for n in range(100)])


# --- tags ----------------------------------------------------------------------------------------

TAGS = [["delivery", "mood"], [], ["it's", 'a "b"'], ["mood"], ["é, x"]]
WRITTEN: dict[str, Any] = {
    "Python": str,
    "JSON": json.dumps,
    "JSON in UTF-8": lambda tags: json.dumps(tags, ensure_ascii=False, indent=1),
    "tuples": lambda tags: str(tuple(tags)),
    "NumPy": lambda tags: str(np.array(tags, object)),
    "lists": list,
}


@pytest.mark.parametrize("form", WRITTEN)
def test_lists_of_tags_as_text_are_lists_of_tags(tmp_path: Path, form: str) -> None:
    cells = [WRITTEN[form](tags) for tags in TAGS]
    if form != "lists":
        write_column(tmp_path, "a.csv", cells)
        cells = read_source(tmp_path / "a.csv")["c"].tolist()
    labels = label_by_column(ColumnLabel(column="c", kind="tags"), cells)
    assert labels.classes == ('a "b"', "delivery", "it's", "mood", "é, x")
    held = [
        [name for name, holds in zip(labels.classes, row, strict=True) if holds == 1]
        for row in labels.values.tolist()
    ]
    assert held == [sorted(tags) for tags in TAGS]


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("[]", []),
        (" [ 'a' ,'b', ] ", ["a", "b"]),
        ("[1, 2.5, -3]", [1, 2.5, -3]),
        ("['a', None, true, null]", ["a", None, True, None]),
        (r"""['it\'s', "\u00e9", "\x41"]""", ["it's", "é", "A"]),
        (r'["\ud83d\ude00"]', ["😀"]),
        ("['a'\n 'b']", ["a", "b"]),
        ("('a',)", ["a"]),
        ("['a' 'b', 'c']", None),  # Python would read 'ab' and 'c'
        ("['a''b']", None),
        ("['a' ... 'z']", None),
        ("['a', 'b'", None),
        ("['a', ['b']]", None),
        ("[a, b]", None),
        ("{'a', 'b'}", None),
        ("[2024-01-01]", None),
        ("[bug], [ui]", None),
        ("(1)", None),
        ("", None),
        ("[", None),
        ("[1" + "0" * 5000 + "]", None),
    ],
)
def test_what_a_list_as_text_is(text: str, items: list[Any] | None) -> None:
    assert parse_list(text) == items


@pytest.mark.parametrize(
    "cells",
    [
        ["['a', 'b']", "c"],
        ["['a']", "['b', 'c'"],
        ["['a', 'b']", "{'c'}"],
        ["[]", "a;b"],
    ],
)
def test_a_column_with_lists_and_other_texts_is_refused(cells: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        label_by_column(ColumnLabel(column="c", kind="tags"), ["", *cells])
    assert caught.value.message.startswith(
        f"column 'c': 1 of 2 cells hold a list, such as row 1 (the first is 0) {cells[0]!r}, and "
        f"the others do not: row 2 {cells[1]!r}"
    )


@pytest.mark.parametrize(
    "cell",
    ["{'a', 'b'}", '{"a": 1}', "{a,b}", "[a, b]", '[{"name": "a"}]', "['a', 'b'", "['a' ... 'z']"],
)
def test_sets_objects_and_broken_lists_are_refused(cell: str) -> None:
    with pytest.raises(DataError, match="1 of 2 cells look like lists, sets or objects") as caught:
        label_by_column(ColumnLabel(column="c", kind="tags"), ["a,b", cell])
    assert f"row 1 {cell!r}" in caught.value.message
    assert "['a', 'b']" in (caught.value.hint or "")


@pytest.mark.parametrize("cell", ["[bug], [ui]", "[URGENT]", "(none)", "it's", "a (b, c) d", "{"])
def test_brackets_of_tags_are_left_alone(cell: str) -> None:
    labels = label_by_column(ColumnLabel(column="c", kind="tags", separator=", "), [cell, "x"])
    assert set(labels.classes) == {"x", *cell.split(", ")}


@pytest.mark.parametrize("value", [{"a": 1}, [["a"]], [{"a": 1}], ["a", "\ud83d"]])
def test_what_no_tag_can_be_is_named(value: Any) -> None:
    labels = label_by_column(ColumnLabel(column="c", kind="tags"), [value, ["x"]])
    assert list(labels.unusable) == [0]
    assert labels.classes == ("x",)
    assert labels.values.tolist() == [[UNKNOWN], [1]]


@pytest.mark.parametrize(
    ("settings", "empty"),
    [
        ({}, "none"),
        ({"optional": True}, "missing"),
        ({"optional": True, "empty": "none"}, "none"),
        ({"optional": True, "empty": "missing"}, "missing"),
        ({"empty": "none"}, "none"),
        ({"empty": "missing"}, "unusable"),
    ],
)
def test_what_an_empty_cell_of_tags_means(settings: dict[str, Any], empty: str) -> None:
    label = ColumnLabel(column="c", kind="tags", separator=";", **settings)
    labels = label_by_column(label, ["a;b", "", " ", "b"])
    absent = 0 if empty == "none" else UNKNOWN
    assert labels.values.tolist() == [[1, 1], [absent] * 2, [absent] * 2, [0, 1]]
    assert list(labels.unusable) == ([1, 2] if empty == "unusable" else [])


@pytest.mark.parametrize("optional", [False, True])
def test_an_empty_list_is_no_tag_and_a_null_is_no_label(optional: bool) -> None:
    label = ColumnLabel(column="c", kind="tags", optional=optional)
    for values in ([["a"], [], None], ["['a']", "[]", None]):
        labels = label_by_column(label, values)
        assert labels.values.tolist() == [[1], [0], [UNKNOWN]]
        assert list(labels.unusable) == ([] if optional else [2])
