"""The tokenizers of the other packed families, of each kind there is, against the Rust library."""

from __future__ import annotations

import json
from functools import cache
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from pipeline.embed.tokens import TextTokenizer
from pipeline.embed.words import can_look_up

LINES = [
    "The quick brown fox jumps over the lazy dog, and then it sleeps until noon.",
    "I can't come at 7:30 pm; they're 2 hours late, and we've no news!",
    "Größe, naïve café, 東京 and Москва: £1,000 for you.",
] * 4
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
SPELLINGS = ["<mask>", "  <mask>", "<pad>", "</s>", "[CLS]", "it's", "\n\n", "  ", "東京", "🎉"]
KINDS = ("roberta", "modernbert", "xlm-roberta", "mpnet")

texts = st.lists(
    st.one_of(
        st.text("abTh '\u00e9\u0301\u00a0\u6771\ud558 \n\t.,!0129£", max_size=30),
        st.text(max_size=30),
        st.lists(
            st.one_of(st.sampled_from(SPELLINGS), st.sampled_from(LINES[0].split())), max_size=9
        ).map(" ".join),
        st.lists(st.sampled_from(SPELLINGS), max_size=4).map("".join),
    ),
    max_size=8,
)


@cache
def describe_tokenizer(kind: str) -> str:
    """A tokenizer built as that of the family is, over a vocabulary of a few lines."""
    first, last = ("[CLS]", "[SEP]") if kind == "modernbert" else ("<s>", "</s>")
    special = ["[UNK]", "[PAD]", "[CLS]", "[SEP]"] if kind == "modernbert" else SPECIAL
    mask = AddedToken("[MASK]" if kind == "modernbert" else "<mask>", lstrip=True, special=True)
    match kind:
        case "roberta" | "modernbert":
            tokenizer = Tokenizer(models.BPE())
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            if kind == "modernbert":
                tokenizer.normalizer = normalizers.NFC()
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            trainer = trainers.BpeTrainer(
                vocab_size=400, special_tokens=special, initial_alphabet=alphabet,
                show_progress=False,
            )  # fmt: skip
            tokenizer.train_from_iterator(LINES, trainer)
        case "xlm-roberta":
            tokenizer = Tokenizer(models.Unigram())
            spaces = normalizers.Replace(Regex(" {2,}"), " ")
            tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), spaces])
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
            trainer = trainers.UnigramTrainer(
                vocab_size=150, special_tokens=special, unk_token="<unk>", show_progress=False
            )
            tokenizer.train_from_iterator(LINES, trainer)
        case "mpnet":  # BERT's words, but the special tokens of RoBERTa
            tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
            tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
            tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
            trainer = trainers.WordPieceTrainer(
                vocab_size=150, special_tokens=special, show_progress=False
            )
            tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.add_special_tokens([mask])
    ids = {token: tokenizer.token_to_id(token) for token in (first, last)}
    if kind in ("roberta", "mpnet"):
        tokenizer.post_processor = processors.RobertaProcessing(
            (last, ids[last]), (first, ids[first]), True, False
        )
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}", special_tokens=list(ids.items())
        )
    return str(tokenizer.to_str())


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(batch=texts, max_tokens=st.sampled_from([3, 4, 9, 64]))
def test_ids_are_those_of_the_tokenizer(kind: str, batch: list[str], max_tokens: int) -> None:
    about = describe_tokenizer(kind)
    reference = Tokenizer.from_str(about)
    cut = Tokenizer.from_str(about)
    cut.enable_truncation(max_tokens)
    ours = TextTokenizer(Tokenizer.from_str(about), max_tokens)
    tokens = ours.tokenize(pa.array(batch, pa.string()))
    found = [tokens.ids[a:b].tolist() for a, b in pairwise(tokens.offsets)]
    assert found == [cut.encode(text).ids for text in batch]
    assert tokens.whole_lengths is not None
    assert tokens.whole_lengths.tolist() == [len(reference.encode(text).ids) for text in batch]


@pytest.mark.parametrize("kind", KINDS)
def test_only_words_of_bert_are_looked_up(kind: str) -> None:
    assert can_look_up(json.loads(describe_tokenizer(kind))) == (kind == "mpnet")


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_nothing_but_special_tokens_are_hollow(kind: str) -> None:
    ours = TextTokenizer(Tokenizer.from_str(describe_tokenizer(kind)), 16)
    tokens = ours.tokenize(pa.array(["", "the fox", "[CLS]" if kind == "modernbert" else "</s>"]))
    assert ours.find_hollow(tokens).tolist() == [True, False, True]
