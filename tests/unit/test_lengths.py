"""Texts that were cut: counted right whatever run embedded them, and said wherever it matters."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import transformers

from pipeline.files import hash_json
from pipeline.project import Project
from pipeline.store import CutTexts, manifest, read_manifest, write_manifest
from pipeline.store.lengths import count_lengths
from tests.conftest import Cli, edit_params, run_stages

MAX_TOKENS = 16


def make_texts(rows: int, longest: int) -> list[str]:
    """Texts of the tiny backbone's letters, each a token; some are longer than the maximum."""
    generator = random.Random(longest)
    return [
        " ".join(generator.choices("abcdefgh", k=generator.randint(1, longest)))
        for _ in range(rows)
    ]


def write_corpus(folder: Path, texts: list[str]) -> None:
    lines = [json.dumps({"text": t, "y": i % 2}) for i, t in enumerate(texts)]
    (folder / "d.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


@pytest.fixture
def corpus(project: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(manifest, "SHARD_ROWS", 32)
    text = (
        f"fetch: {{dataset: d.jsonl, backbones: [{tiny_backbone}]}}\n"
        "prepare: {text_column: text, labels: {y: {column: y}}}\n"
        f"embed: {{max_tokens: {MAX_TOKENS}}}\nheads: {{search: []}}\nreport: {{}}\n"
    )
    (project / "params.yaml").write_text(text, "utf-8")
    return project


def count_by_transformers(folder: Path, texts: list[str]) -> tuple[int, int, int]:
    """Distinct texts, those that are cut, and the tokens that they lose."""
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    lengths = [len(tokenizer(text)["input_ids"]) for text in dict.fromkeys(texts)]
    lost = [length - MAX_TOKENS for length in lengths if length > MAX_TOKENS]
    return len(lengths), len(lost), sum(lost)


def read_counts() -> tuple[int, int, int]:
    cut = CutTexts.read(read_manifest(Project().store))
    assert cut.uncounted == 0
    return cut.texts, cut.cut, cut.lost


def test_what_was_cut_is_what_transformers_cuts_whatever_run_embedded_it(
    corpus: Path, tiny_backbone: Path, cli: Cli
) -> None:
    texts = make_texts(100, 30)
    steps = [texts, [*texts, *make_texts(30, 40)], texts[::-1], texts[50:], texts[:70]]
    for step in steps:
        write_corpus(corpus, step)
        run_stages(cli, "fetch", "prepare", "embed")
        assert read_counts() == count_by_transformers(tiny_backbone, step)
    _, cut, _ = count_by_transformers(tiny_backbone, texts[:70])
    said = cli("embed").stdout  # nothing to do
    assert f"{cut} of 70 texts are longer than max_tokens 16 and were cut; " in said
    assert f"{cut} of 70 texts are longer than max_tokens 16" in cli("cache", "info").stdout


def test_texts_that_just_fit_are_not_cut(corpus: Path, cli: Cli) -> None:
    texts = [" ".join("abcdefghijklmn"[:length]) for length in (1, 5, 12, 13, 14)]
    write_corpus(corpus, [*texts, *make_texts(20, 14)])
    run_stages(cli, "fetch", "prepare")
    said = cli("embed").stdout
    assert read_counts()[1:] == (0, 0)
    assert "cut" not in said
    assert "none of 25 texts is longer than max_tokens 16" in cli("cache", "info").stdout


def test_a_store_of_an_earlier_version_says_that_it_does_not_know(
    corpus: Path, tiny_backbone: Path, cli: Cli
) -> None:
    texts = make_texts(70, 30)
    write_corpus(corpus, texts)
    run_stages(cli, "fetch", "prepare", "embed")
    folder = Project().store
    content = json.loads((folder / "manifest.json").read_text())
    for shard in content["shards"]:
        del shard["lengths"]
    del content["sha256"]
    content["sha256"] = hash_json(content)
    (folder / "manifest.json").write_text(json.dumps(content))
    assert "not known, as an earlier version made the store" in cli("cache", "info").stdout
    shards = {file: file.read_bytes() for file in folder.glob("part-*")}
    assert "nothing to do" in cli("embed").stdout
    assert read_counts() == count_by_transformers(tiny_backbone, texts)
    assert {file: file.read_bytes() for file in folder.glob("part-*")} == shards
    # A manifest that is read and written stays as it was.
    before = json.loads((folder / "manifest.json").read_text())
    write_manifest(folder / "manifest.json", read_manifest(folder))
    assert json.loads((folder / "manifest.json").read_text()) == before

    # A run with work counts what was not counted, too.
    for shard in before["shards"]:
        shard.pop("lengths")
    del before["sha256"]
    before["sha256"] = hash_json(before)
    (folder / "manifest.json").write_text(json.dumps(before))
    grown = [*texts, *make_texts(10, 25)]
    write_corpus(corpus, grown)
    run_stages(cli, "fetch", "prepare", "embed")
    assert read_counts() == count_by_transformers(tiny_backbone, grown)


@pytest.mark.parametrize("lengths", [{}, {"cut": 1, "lost": -1, "long": 3}, {"cut": 1}, [1, 2, 3]])
def test_lengths_that_no_run_writes_are_refused(corpus: Path, cli: Cli, lengths: object) -> None:
    write_corpus(corpus, make_texts(20, 30))
    run_stages(cli, "fetch", "prepare", "embed")
    path = Project().store / "manifest.json"
    content = json.loads(path.read_text())
    content["shards"][0]["lengths"] = lengths
    del content["sha256"]
    content["sha256"] = hash_json(content)
    path.write_text(json.dumps(content))
    result = cli("cache", "info")
    assert result.returncode == 1
    assert "manifest.json: damaged (part-00000.parquet has lengths" in result.stderr


def test_a_length_is_suggested_where_most_texts_are_cut(corpus: Path, cli: Cli) -> None:
    opening = " ".join("abcdefgh" * 3)
    write_corpus(corpus, [f"{opening} {' '.join(str(number))}" for number in range(100, 200)])
    run_stages(cli, "fetch", "prepare")
    said = cli("embed").stdout
    # 24 letters, 3 digits and two special tokens: 29, of which 16 are left.
    assert (
        "warning: 100 of 100 texts are longer than max_tokens 16 and were cut; 45 % of their "
        "tokens are lost\n  `embed.max_tokens: 32` would keep 99 % of them whole" in said
    )
    run_stages(cli, "train-heads", "report")
    page = (Project().report / "report.html").read_text("utf-8")
    assert "100 of 100 texts are longer than max_tokens 16 and were cut; 45 %" in page
    edit_params({"embed.max_tokens": 32})
    assert "cut" not in cli("embed").stdout
    # The backbone takes 512: no more is suggested, and less is said to be the most.
    write_corpus(corpus, [" ".join(["a"] * 600 + [*str(n)]) for n in range(100, 120)])
    run_stages(cli, "fetch", "prepare")
    assert "`embed.max_tokens: 512` is the most that this backbone takes" in cli("embed").stdout
    edit_params({"embed.max_tokens": 512})
    assert (
        "the backbone takes no more than 512; `embed.long_texts: windows` keeps"
        in cli("embed").stdout
    )


def test_the_length_that_is_suggested_is_the_99th_percentile() -> None:
    lengths = np.random.default_rng(0).integers(3, 500, 4096)
    found = count_lengths(lengths, 128)
    assert found["cut"] == (lengths > 128).sum()
    assert found["lost"] == np.clip(lengths - 128, 0, None).sum()
    assert (lengths <= found["long"]).mean() >= 0.99
    assert (lengths <= found["long"] - 1).mean() < 0.99


def test_texts_without_a_known_piece_are_named(corpus: Path, cli: Cli) -> None:
    """The tiny backbone knows Latin letters alone."""
    texts = [*make_texts(40, 10), "текст", "a b", "中文", "это a", "текст"]
    write_corpus(corpus, texts)
    run_stages(cli, "fetch", "prepare")
    said = cli("embed").stdout
    assert (
        "warning: 2 texts without any piece that the backbone knows, so that the vectors tell "
        "nothing of them: rows 40, 42 of cache/texts.parquet (the first is 0)" in said
    )
    assert "without any piece" not in cli("embed").stdout
