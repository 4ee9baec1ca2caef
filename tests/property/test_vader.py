"""VADER's scores are NLTK's to the last bit, whatever the text and the lexicon."""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nltk.sentiment.vader import VaderConstants

from pipeline.assets import read_assets
from pipeline.prepare.labelers.sentiment import VaderScorer
from pipeline.prepare.labelers.vader import _read_lexicon
from pipeline.project import Project
from tests.nltk_vader import make_reference

# The words that the rules know, as NLTK lists them, and words that mean something to the lexicons.
RULE_WORDS = sorted(
    {*VaderConstants.NEGATE, *VaderConstants.BOOSTER_DICT, *VaderConstants.SPECIAL_CASE_IDIOMS}
)
SHORT_RULES = [
    "but", "least", "at least", "very least", "the least", "never so", "never this", "never",
    "so", "this", "kind of", "sort of", "just enough", "kind", "of", "no", "n't", "ain't", "not",
    "very", "the", "bad ass", "the shit", "cut the mustard", "kiss of death", "yeah right",
]  # fmt: skip
FEELINGS = [
    "good", "bad", "great", "terrible", "love", "hate", "fun", "shit", "ass", "death", "kind",
    "right", "bomb", "sad", "lol", "no", "please", "ok",
]  # fmt: skip
EMOTICONS = [":)", ":(", ":D", ":-)", "<3", ";)", "):", ":'(", "=/", "xD", "(-:", "0:)", "😍", "🎉"]
FILLERS = ["a", "I", "table", "walks", "2", "42", "it's", "x-y", "ſo", "İt", "ß", "ǅ", "don’t", "é"]
BLANKS = [" ", "  ", "\n", "\t", "\u00a0", "\u2003", "\x1c", "\u200b", ""]
MARKS = [*VaderConstants.PUNC_LIST, "...", "!?", "*", "#", "(", ")", "_", "’", "¡", "…", "“"]


def change_case(word: str) -> st.SearchStrategy[str]:
    return st.sampled_from([word, word, word, word.upper(), word.title(), word.swapcase()])


words = st.sampled_from(
    [*SHORT_RULES * 3, *FEELINGS * 6, *RULE_WORDS, *EMOTICONS * 2, *FILLERS * 2]
).flatmap(change_case)
marks = st.one_of(
    st.just(""), st.just(""), st.sampled_from(MARKS), st.text(string.punctuation, max_size=4)
)
tokens = st.one_of(
    words,
    st.tuples(marks, words, marks).map("".join),
    st.text(max_size=5),
    st.text("aAßſİ.!?,'-:)(\x1c ", max_size=6),
)
texts = st.one_of(
    st.lists(words, max_size=14).map(" ".join),
    st.lists(tokens, max_size=14).map(" ".join),
    st.lists(st.tuples(tokens, st.sampled_from(BLANKS)).map("".join), max_size=14).map("".join),
    st.text(max_size=60),
)

# A lexicon that has what the rules treat apart: negations, boosters, "least", "but", valences that
# are whole, zero or tiny, marks, and a word in capitals, which no lower case finds.
ODD_LEXICON = "\n".join(
    f"{word}\t{valence}\t0.5\t[1]"
    for word, valence in [
        ("good", 1.9), ("bad", -2.5), ("least", 1), ("not", -0.4), ("very", 2), ("but", 1.3),
        ("never", -1), ("so", 0.5), ("kind", 2.4), ("of", 0.1), ("right", 0), ("shit", -2.6),
        ("death", 0.0), ("ass", -1e-9), ("the", 1e-9), (":)", 2.0), ("!!", 1.5), ("GOOD", 4),
        ("ok.", 1.2), ("a", 3), ("it's", -1.1), ("ss", 1.0), ("so", -0.7), ("fun", 1e200),
    ]
)  # fmt: skip
Scorers = tuple[Callable[[str], float], Callable[[str], float]]


@pytest.fixture(scope="module", params=["fetched", "odd"])
def scorers(
    request: pytest.FixtureRequest, real_assets: Path, tmp_path_factory: pytest.TempPathFactory
) -> Scorers:
    """The pipeline's score of a text and NLTK's, by the lexicon of NLTK and by an odd one."""
    folder = tmp_path_factory.mktemp("lexicon")
    if request.param == "odd":
        content = ODD_LEXICON
    else:
        asset = read_assets(Project(real_assets).assets)["lexicon"]
        (file,) = asset.files
        fetched = (asset.locate(Project(real_assets)) / file).read_text("utf-8")
        content = "\n".join(line for line in fetched.split("\n") if line.strip())
    (folder / "lexicon.txt").write_text(content, "utf-8")
    scorer = VaderScorer(_read_lexicon(folder / "lexicon.txt"))
    return lambda text: scorer.score([text])[0], make_reference(content, folder / "nltk")


def assert_equal(scorers: Scorers, text: str) -> None:
    ours, nltks = (score(text) for score in scorers)
    assert ours.hex() == nltks.hex(), (text, ours, nltks)  # to the last bit, the sign of 0 too


@pytest.mark.parametrize("examples", [400, pytest.param(20_000, marks=pytest.mark.long)])
def test_scores_are_nltks(scorers: Scorers, examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(texts)
    @example("")
    @example("good")
    @example("GOOD but BAD, the least good!!!! never so good?? NOT very kind of good")
    @example("it is never this good and never so bad yeah right the shit, bad ass")
    @example("at the very least good, at least bad, the least fun and least GOOD")
    @example("we all know the kiss of death and they really can cut the mustard")
    def compare(text: str) -> None:
        assert_equal(scorers, text)

    compare()


def test_scores_of_the_corpus_are_nltks(scorers: Scorers, real_assets: Path) -> None:
    asset = read_assets(Project(real_assets).assets)["dataset"]
    (file,) = asset.files
    lines = (asset.locate(Project(real_assets)) / file).read_text("utf-8").splitlines()
    assert len(lines) > 5_000
    for line in lines:
        assert_equal(scorers, line.partition("\t")[2])
        assert_equal(scorers, line)
