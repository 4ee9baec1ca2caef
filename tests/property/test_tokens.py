"""A table of words gives the ids that the tokenizers library gives, whatever the text."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from pipeline.embed import words
from pipeline.embed.tokens import TextTokenizer
from pipeline.embed.words import WORD_BYTES, can_look_up

# Few of each kind, so that they meet: letters, spaces, controls, punctuation, marks that combine,
# letters that change their number or bytes in lower case, signs without a width, wide characters.
ALPHABET = (
    "abzABZ019 \t\n\r\x00\x0b\x1f\x7f.,!'[]#£’…éÉßıİſKΣσςΐﬁ"
    "\u0301\u0345\u200b\u00a0\u00ad\ufffd中한글☃🎉𝒳"
)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SPELLINGS = ["[SEP]", "[sep]", "[MASK]", "tok<1>", "TOK<1>", "a" * 15, "b" * 16, "c" * 17, "é" * 9]

texts = st.lists(
    st.one_of(
        st.text(ALPHABET, max_size=40),
        st.text(max_size=40),
        st.lists(
            st.one_of(st.text(ALPHABET, max_size=6), st.sampled_from(SPELLINGS)), max_size=8
        ).map(" ".join),
        st.lists(st.sampled_from(SPELLINGS), max_size=4).map("".join),
    ),
    max_size=12,
)


def make_tokenizer(*, lowercase: bool, strip_accents: bool | None, added: bool) -> Tokenizer:
    pieces = [*"abzABZ019.,!'[]#£’éßıſσΣ中한ᄒ", "ab", "ba", "zz", "bbbb"]
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *pieces,
        *(f"##{p}" for p in pieces),
    ]
    tokenizer = Tokenizer(
        models.WordPiece(
            {word: number for number, word in enumerate(vocabulary)}, unk_token="[UNK]"
        )
    )
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=strip_accents
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(SPECIAL)
    if added:
        tokenizer.add_tokens([AddedToken("tok<1>", normalized=True), AddedToken("中b")])
    return tokenizer


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    first=texts,
    second=texts,
    max_tokens=st.sampled_from([3, 4, 9, 64]),
    lowercase=st.booleans(),
    strip_accents=st.sampled_from([None, True, False]),
    added=st.booleans(),
)
def test_ids_are_those_of_the_tokenizer(
    first: list[str],
    second: list[str],
    max_tokens: int,
    lowercase: bool,
    strip_accents: bool | None,
    added: bool,
) -> None:
    reference = make_tokenizer(lowercase=lowercase, strip_accents=strip_accents, added=added)
    assert can_look_up(json.loads(reference.to_str()))
    ours = TextTokenizer(Tokenizer.from_str(reference.to_str()), max_tokens)
    cut = Tokenizer.from_str(reference.to_str())
    cut.enable_truncation(max_tokens)
    hollow = {reference.token_to_id(token) for token in SPECIAL}
    for batch in (first, second, first):  # new words, some known, all known
        tokens = ours.tokenize(pa.array(batch, pa.string()))
        found = [tokens.ids[a:b].tolist() for a, b in pairwise(tokens.offsets)]
        assert found == [cut.encode(text).ids for text in batch]
        assert tokens.whole_lengths is not None
        assert tokens.whole_lengths.tolist() == [len(reference.encode(text).ids) for text in batch]
        assert ours.find_hollow(tokens).tolist() == [set(ids) <= hollow for ids in found]


def test_words_that_meet_in_a_slot_are_not_mistaken(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two slots in all, nearly every word finds another in its slot."""
    monkeypatch.setattr(words, "_SLOT_BITS", 1)
    monkeypatch.setattr(words, "_SLOTS", 2)
    reference = make_tokenizer(lowercase=True, strip_accents=None, added=False)
    ours = TextTokenizer(Tokenizer.from_str(reference.to_str()), 64)
    batch = ["ab ba zz a b z 0 1 9", "zz 9 ba bbbb ab", "a b " * 8]
    for _ in range(3):
        tokens = ours.tokenize(pa.array(batch))
        found = [tokens.ids[a:b].tolist() for a, b in pairwise(tokens.offsets)]
        assert found == [reference.encode(text).ids for text in batch]


def test_slices_of_a_larger_array_are_read_from_their_offset(tiny_backbone: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_backbone / "tokenizer.json"))
    batch = pa.array(["never", "read", "hello, world", "", "x" * (WORD_BYTES + 1), "two words"])
    ours = TextTokenizer(Tokenizer.from_str(tokenizer.to_str()), 16)
    tokenizer.enable_truncation(16)
    for kind in (pa.string(), pa.large_string()):
        tokens = ours.tokenize(batch.cast(kind)[2:])
        found = [tokens.ids[a:b].tolist() for a, b in pairwise(tokens.offsets)]
        assert found == [tokenizer.encode(text).ids for text in batch[2:].to_pylist()]


def test_tokenizers_of_other_families_take_each_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    assert not can_look_up(json.loads(tokenizer.to_str()))
    tokens = TextTokenizer(tokenizer, 3).tokenize(pa.array(["a b", "b", "", "b b a a"]))
    assert tokens.ids.tolist() == [0, 1, 1, 1, 1, 0]
    assert tokens.offsets.tolist() == [0, 2, 3, 3, 6]
    assert tokens.whole_lengths is not None
    assert tokens.whole_lengths.tolist() == [2, 1, 0, 4]
    ours = TextTokenizer(tokenizer, 3)
    tokens = ours.tokenize(pa.array(["c", "a c", "", "c d e a"]))
    # The known word of the last text was cut off.
    assert ours.find_hollow(tokens).tolist() == [True, False, True, True]
