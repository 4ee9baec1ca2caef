"""Words of a text, what is left out of it, and how weights are shown."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.identity import CorpusIdentity
from pipeline.errors import SettingsError
from pipeline.model.decision import Decision
from pipeline.model.saved import Heads, SavedHead
from pipeline.model.tasks import TASK_TYPES
from pipeline.predict.answers import list_columns
from pipeline.predict.explanations import MOST_SPANS, find_words, occlude
from pipeline.predict.shading import list_words, shade_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" ?! … ", []),
        ("WINNER!! Claim now", ["WINNER", "Claim", "now"]),
        ("don't, can’t", ["don't", "can’t"]),
        ("'quoted' rock'n'roll.", ["quoted", "rock'n'roll"]),
        ("£1,000 at 3.5%, a,b", ["£", "1,000", "at", "3.5", "a", "b"]),
        ("well-known snake_case", ["well", "known", "snake_case"]),
        ("see 😂👍🏽 👩\u200d👩\u200d👧!", ["see", "😂👍🏽", "👩\u200d👩\u200d👧"]),
        ("Cafe\u0301 \u0301x", ["Cafe\u0301", "x"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("안녕하세요 세계", ["안녕하세요", "세계"]),
        ("私はABC", ["私", "は", "ABC"]),
        ("a\nb\tc\u00a0d", ["a", "b", "c", "d"]),
        (".5 5. x.", ["5", "5", "x"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert [text[start:end] for start, end in find_words(text)] == words


@given(st.text())
def test_words_stand_in_order_and_letters_are_all_in_words(text: str) -> None:
    words = find_words(text)
    bounds = [bound for word in words for bound in word]
    assert bounds == sorted(bounds)
    assert all(start < end for start, end in words)
    outside = set(range(len(text))) - {at for start, end in words for at in range(start, end)}
    assert not any(text[at].isalnum() for at in outside)


def test_each_variant_lacks_one_word() -> None:
    assert occlude("Yes, I do!").variants == [", I do!", "Yes,  do!", "Yes, I !"]
    assert occlude("...").variants == []


def test_long_texts_are_divided_into_spans_of_neighbours() -> None:
    words = [f"w{number}" for number in range(2 * MOST_SPANS + 50)]
    text = " ".join(words)
    occlusion = occlude(text)
    assert len(occlusion.spans) == MOST_SPANS
    pieces = [text[start:end].split() for start, end in occlusion.spans]
    assert [word for piece in pieces for word in piece] == words
    assert {len(piece) for piece in pieces} == {2, 3}
    assert len(occlude(" ".join(words[:MOST_SPANS])).spans) == MOST_SPANS


def test_a_weight_is_what_the_score_loses() -> None:
    spans = occlude("a b").weigh(0.75, np.array([0.5, 1.0]))
    assert spans == [
        {"start": 0, "end": 1, "weight": 0.25},
        {"start": 2, "end": 3, "weight": -0.25},
    ]


@pytest.mark.parametrize("other", ["a_score", "a_explanation"])
def test_two_tasks_that_want_one_column_are_refused(other: str) -> None:
    heads = Heads(
        heads=tuple(
            SavedHead(name, TASK_TYPES["binary"], ("no", "yes"), (0,), Decision(1.0, (0.5,)), ())
            for name in ("a", other)
        ),
        layers=(0,), width=1, backbone={}, fingerprint="", recipe={},
        corpus=CorpusIdentity(0, "", "", {}), features={}, training={},
    )  # fmt: skip
    with pytest.raises(SettingsError, match=f"would have the column {other}, one of them {other}"):
        list_columns(heads, probabilities=False, explanations=True)


SPANS = [
    {"start": 0, "end": 3, "weight": 0.3},
    {"start": 4, "end": 7, "weight": -0.2},
    {"start": 8, "end": 13, "weight": 0.1},
    {"start": 14, "end": 17, "weight": 0.01},
]
TEXT = "one two three low"


def test_shades_follow_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    (line,) = shade_words(TEXT, SPANS, 80, "  spam  ")
    # 30;42 is black on green, 1;31 bold red, 32 green.
    reset = "\x1b[0m"
    assert line == (f"  spam  \x1b[30;42mone{reset} \x1b[1;31mtwo{reset} \x1b[32mthree{reset} low")
    (calm,) = shade_words(TEXT, SPANS, 80, "", least=10.0)
    assert calm == TEXT


def test_shaded_lines_fit_and_obey_no_text() -> None:
    lines = shade_words("\x1b[31m" + "word " * 40, [], 50, "  spam  ")
    assert len(lines) > 1
    assert all(len(line) <= 50 for line in lines)
    assert all(line.startswith("  spam  " if n == 0 else " " * 8) for n, line in enumerate(lines))
    assert "\x1b" not in "".join(lines)


def test_without_colours_words_are_listed() -> None:
    assert list_words(TEXT, SPANS) == "one +0.300, two -0.200, three +0.100, low +0.010"
    many = [{"start": n, "end": n + 1, "weight": n / 10} for n in range(8)]
    assert list_words("abcdefgh", many).split(", ")[0] == "h +0.700"
    assert len(list_words("abcdefgh", many).split(", ")) == 5
    assert list_words("...", []) == "no words"
    assert "\x1b" not in list_words("a\x1bb", [{"start": 0, "end": 3, "weight": 1.0}])
