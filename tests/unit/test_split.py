"""Parts that a column of the source gives, against parts by hand and scikit-learn's draw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.model_selection import train_test_split

from pipeline.config import DrawnSplit, GivenSplit
from pipeline.errors import DataError
from pipeline.prepare.labelers.base import Labels
from pipeline.prepare.split import LEFT_OUT, read_parts, split_rows

TRAIN, VALIDATION, TEST = range(3)


def make_keys(numbers: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """A number of each row, the same for texts that count as one."""
    return np.array(numbers, np.int64)


def give(cells: Sequence[Any], **settings: object) -> npt.NDArray[np.int8]:
    """The parts of rows whose texts all differ, none of which is left out."""
    split = GivenSplit.model_validate({"column": "part", **settings})
    return split_rows(make_keys(range(len(cells))), {}, split, read_parts(cells, split))


def test_each_row_is_in_the_part_that_its_value_stands_for() -> None:
    cells = ["train", "dev", "test", "extra", " test ", "train"]
    split = give(cells, train=["train", "extra"], validation=["dev"], test=["test"])
    assert split.tolist() == [TRAIN, VALIDATION, TEST, TRAIN, TEST, TRAIN]


def test_values_are_the_same_from_every_format() -> None:
    """Folds are numbers in Parquet, text in CSV, with a decimal point where pandas wrote them."""
    for cells in ([0, 1, 2, 3], ["0", "1", "2", "3"], ["0.0", "1.0", "2.0", "3.0"], [0.0, 1, 2, 3]):
        split = give(cells, train=[0, 1], validation=[2], test=[3])
        assert split.tolist() == [TRAIN, TRAIN, VALIDATION, TEST]
    cells = [True, False, "true", "False"]
    assert give(cells, train=[False], test=[True], validation_share=0.5).tolist().count(TEST) == 2


@pytest.mark.parametrize("missing", ["", "  ", None, float("nan")])
def test_a_row_without_a_value_is_no_accident(missing: object) -> None:
    cells = ["train", "train", "test", missing]
    with pytest.raises(DataError, match=r"1 row with a value that no list .* has: no value \(1\)"):
        give(cells)
    assert read_parts(cells, GivenSplit(column="p", leave_out=("",))).tolist() == [
        0,
        0,
        2,
        LEFT_OUT,
    ]


def test_values_in_no_list_are_named_with_their_rows() -> None:
    cells = ["train"] * 5 + ["tset"] * 3 + ["dev"] * 4 + ["test"]
    with pytest.raises(DataError) as caught:
        give(cells)
    assert caught.value.message == (
        "column 'part': 7 rows with a value that no list of prepare.split has: 'dev' (4), "
        "'tset' (3)"
    )
    assert "leave_out" in (caught.value.hint or "")


def test_a_value_that_no_row_has_is_mentioned(capsys: pytest.CaptureFixture[str]) -> None:
    give(["train", "train", "train", "test"], train=["train", "trian"])
    assert "no row has 'trian' in the column 'part'" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({}, "no test rows: no usable row has 'test'", "prepare.split.test, or set it to [] to"),
        ({"test": [], "validation": ["dev"]}, "no validation rows: .* has 'dev'", "validation, or"),
        ({"test": ["train"], "train": ["a", 2]}, "no train rows: .* 'a' or '2'", "split.train"),
    ],
)
def test_a_part_without_rows_is_refused(
    settings: dict[str, object], message: str, hint: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        give(["train"] * 10, **settings)
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize("stratified", [False, True])
def test_missing_validation_rows_are_scikit_learns_draw_from_training(stratified: bool) -> None:
    cells = ["train", "test", "train", "train"] * 50
    kind = np.arange(200) % 3 % 2
    split = GivenSplit(
        column="part", validation_share=0.2, seed=5, stratify_by=("kind",) if stratified else ()
    )
    labels = {"kind": Labels(("a", "b"), kind.astype(np.int32))}
    found = split_rows(make_keys(range(200)), labels, split, read_parts(cells, split))
    train = np.flatnonzero(np.array(cells) == "train")
    _, drawn = train_test_split(
        train, test_size=0.2, random_state=5, stratify=kind[train] if stratified else None
    )
    assert np.flatnonzero(found == VALIDATION).tolist() == sorted(drawn.tolist())
    assert np.flatnonzero(found == TEST).tolist() == list(range(1, 200, 4))


def test_training_texts_stay_together_when_validation_rows_are_drawn() -> None:
    texts = np.random.default_rng(0).integers(0, 40, 300)
    cells = np.where(np.arange(300) % 3 == 0, "test", "train").tolist()
    split = GivenSplit(column="part", keep_duplicates_together=True, validation_share=0.3)
    found = split_rows(make_keys(texts), {}, split, read_parts(cells, split))
    assert (found == TEST).tolist() == [cell == "test" for cell in cells]
    drawn = {text: {*found[(texts == text) & (found != TEST)].tolist()} for text in set(texts)}
    assert all(len(parts) <= 1 for parts in drawn.values())
    assert Counter(part for parts in drawn.values() for part in parts)[VALIDATION] == 12  # of 40
    apart = GivenSplit(column="part", validation_share=0.3)
    assert (
        found.tolist() != split_rows(make_keys(texts), {}, apart, read_parts(cells, apart)).tolist()
    )


def test_too_few_training_rows_for_a_draw_are_counted() -> None:
    with pytest.raises(
        DataError, match=r"1 training row cannot .* \(train 0.85, validation 0.15\)"
    ):
        give(["train", "test", "test"])
    labels = {"kind": Labels(("a", "b"), np.array([0, 0, 0, 1, 1, 1], np.int32))}
    split = GivenSplit(column="part", stratify_by=("kind",), validation_share=0.5)
    parts = read_parts(["train", "train", "train", "train", "test", "test"], split)
    with pytest.raises(DataError, match="kind = b has only 1 of 4 training rows"):
        split_rows(make_keys(range(6)), labels, split, parts)


def test_without_a_test_share_there_is_one_draw() -> None:
    settings = DrawnSplit(train=0.8, validation=0.2, test=0, seed=3)
    split = split_rows(make_keys(range(90)), {}, settings)
    _, drawn = train_test_split(np.arange(90), test_size=0.2, random_state=3)
    assert np.flatnonzero(split == VALIDATION).tolist() == sorted(drawn.tolist())
    assert (split == TRAIN).sum() == 72
    with pytest.raises(DataError, match=r"\(train 0.8, validation 0.2\)"):
        split_rows(make_keys([1]), {}, settings)
