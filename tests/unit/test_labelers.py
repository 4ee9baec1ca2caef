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
from pipeline.config import ColumnLabel, VaderLabel
from pipeline.corpus.sources import read_source
from pipeline.errors import AssetError, DataError, ReadError
from pipeline.prepare.labelers.base import UNKNOWN, make_labeler
from pipeline.prepare.labelers.column import label_by_column
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


def test_vader_is_nltks(lexicon: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    np.testing.assert_array_equal(score_by_vader(SENTENCES, lexicon), expected)
    assert nltk.data.path == [str(tmp_path)]  # left as it was


def test_vader_keeps_the_raw_score_beside_the_label(lexicon: Path) -> None:
    labels = make_labeler("mood", VaderLabel(labeler="vader")).label(
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


def test_a_lexicon_of_ones_own_may_lie_anywhere(lexicon: Path, tmp_path: Path) -> None:
    own = tmp_path / "mine.txt"
    own.write_text("meh\t-3.0\t0.5\t[-3]\n")
    assert score_by_vader(["meh", "good"], own)[0] < -0.05
    assert score_by_vader(["meh", "good"], own)[1] == 0
    assert score_by_vader(["meh", "good"], lexicon)[1] > 0.05  # nothing of the other is kept


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"caf\xe9\t1\n", ": not UTF-8"),
        (b"good\t1.9\n\nno tabs here\n", ": line 3: not a word, a tab and its valence: 'no tabs"),
        (b"good\tvery\n", r": line 1: not a word, a tab and its valence: 'good\tvery'"),
    ],
)
def test_a_damaged_lexicon_is_named(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "lexicon.txt"
    path.write_bytes(content)
    with pytest.raises(AssetError) as caught:
        score_by_vader(["good"], path)
    assert caught.value.message.startswith(f"the lexicon {path}{what}")
    assert "pipeline fetch --refresh" in (caught.value.hint or "")


def test_a_lexicon_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReadError) as caught:
        score_by_vader(["good"], tmp_path / "none.txt")
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
