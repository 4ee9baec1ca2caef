"""Texts that are the same to the backbone are found by their vectors: against their token ids."""

from __future__ import annotations

import json
import random
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from pipeline.config import load_settings
from pipeline.corpus.tables import read_distinct_keys, read_labelled_rows
from pipeline.errors import StoreError
from pipeline.heads import targets
from pipeline.heads.run import run_train_heads
from pipeline.heads.targets import draw_folds
from pipeline.project import Project
from pipeline.store import alike, find_alike, manifest, read_manifest
from pipeline.store.alike import group_sketches
from tests.conftest import Cli, edit_params, run_stages

MAX_TOKENS = 16


def name_groups(labels: np.ndarray) -> list[int]:
    """A grouping as the index of the first of each one's group."""
    first: dict[object, int] = {}
    return [first.setdefault(label, number) for number, label in enumerate(labels.tolist())]


# --- grouping ----------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(0, 80),
    kinds=st.integers(1, 30),
    noise=st.sampled_from([0.0, 1e-7, 4e-4]),
)
def test_groups_are_those_of_all_pairs(seed: int, rows: int, kinds: int, noise: float) -> None:
    """Against SciPy: all pairs within the tolerance, and what they connect."""
    generator = np.random.default_rng(seed)
    kind = generator.integers(0, kinds, rows)
    n_tokens = generator.integers(2, 6, kinds)[kind].astype(np.int32)
    centers = generator.standard_normal((kinds, 8))
    sketches = (centers[kind] + noise * generator.standard_normal((rows, 8))).astype(np.float32)
    found = group_sketches(n_tokens, sketches)
    points = np.hstack([sketches, 1e3 * n_tokens[:, None]])
    pairs = cKDTree(points).query_pairs(4e-3, p=np.inf, output_type="ndarray") if rows else []
    first, second = np.reshape(pairs, (-1, 2)).T
    graph = coo_matrix((np.ones(len(first)), (first, second)), shape=(rows, rows))
    _, labels = connected_components(graph, directed=False)
    assert found.tolist() == name_groups(labels[:rows])


def test_sketches_on_all_sides_of_the_corner_of_a_cell_are_compared() -> None:
    """Cells meet at 0 along each direction."""
    generator = np.random.default_rng(1)
    sketches = generator.uniform(-4e-3, 4e-3, (60, 5)).astype(np.float32)
    first, second = alike._find_pairs(np.full(60, 7, np.int32), sketches, np.arange(60))
    found = {frozenset(pair) for pair in zip(first.tolist(), second.tolist(), strict=True)}
    expected = cKDTree(sketches).query_pairs(4e-3, p=np.inf)
    assert found == set(map(frozenset, expected))
    crossing = np.array([sorted(pair) for pair in expected])
    signs = np.sign(sketches[crossing[:, 0], 1:4]) - np.sign(sketches[crossing[:, 1], 1:4])
    assert {tuple(of) for of in (signs != 0).tolist()} == set(product([False, True], repeat=3))


def test_of_many_texts_few_are_compared() -> None:
    """Of as many tokens all of them, so that the vectors alone tell them apart."""
    rows = 200_000
    sketches = np.random.default_rng(2).standard_normal((rows, 16), np.float32)
    index, keys = alike._key_cells(np.full(rows, 25, np.int32), sketches, np.arange(rows))
    assert len(index) < 1.5 * rows
    order = np.lexsort((sketches[index, 0], keys))
    gaps = np.diff(sketches[index[order], 0])
    assert ((gaps <= 4e-3) & (np.diff(keys[order]) == 0)).sum() < rows / 100


def test_a_hundred_thousand_equal_texts_take_no_longer_than_others() -> None:
    sketches = np.repeat(np.random.default_rng(0).standard_normal((2, 8)), 50_000, axis=0)
    found = group_sketches(np.full(100_000, 128, np.int32), sketches.astype(np.float32))
    assert np.unique(found).tolist() == [0, 50_000]


def test_folds_never_part_rows_of_one_vector() -> None:
    generator = np.random.default_rng(0)
    texts = generator.integers(0, 60, 300)
    alike = texts % 50  # the texts 50 to 59 have the vectors of 0 to 9
    folds = draw_folds(texts, 5, 0, alike)
    assert set(folds) == set(range(5))
    assert all(len(set(folds[alike == vector])) == 1 for vector in alike)
    # Texts that are like no other are in the folds that they are in without such texts.
    alone = (alike >= 10) & (texts < 50)
    assert (folds == draw_folds(texts, 5, 0))[alone].all()


# --- the store ---------------------------------------------------------------------------------


def make_spellings(notes: int) -> list[str]:
    """Notes as they are, in capitals, with wider blanks, and some that differ behind the cut."""
    generator = random.Random(0)
    texts = []
    for _ in range(notes):
        words = generator.choices("abcdefgh", k=generator.randint(2, 20))
        text = " ".join(words)
        spellings = [text, text.upper(), text.replace(" ", "  "), " ".join([*words[:14], "x"])]
        texts += generator.sample(spellings, generator.randint(1, 4))
    generator.shuffle(texts)
    return list(dict.fromkeys(texts))


def group_by_transformers(folder: Path, texts: list[str]) -> np.ndarray:
    """The number of each text's token ids, cut as the backbone sees them."""
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    ids = tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]
    return np.array(name_groups(np.array([" ".join(map(str, one)) for one in ids])))


def write_corpus(folder: Path, texts: list[str]) -> None:
    """Texts with labels that are drawn by lot, the same for all spellings of a note."""
    label = {text: random.Random(" ".join(text.lower().split()[:14])).randint(0, 1)
             for text in texts}  # fmt: skip
    lines = [json.dumps({"text": text, "y": label[text]}) for text in texts]
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


@pytest.mark.parametrize(
    "changes", [{}, {"embed.layers": [0]}, {"embed.dtype": "float32", "embed.layers": "last"}]
)
def test_texts_of_one_vector_are_those_of_the_same_tokens(
    corpus: Path, tiny_backbone: Path, cli: Cli, changes: dict[str, object]
) -> None:
    """Wherever they stand: in one shard, in several, embedded by one run or by two."""
    edit_params({"embed.layers": "all", **changes})
    texts = make_spellings(60)
    for step in (texts[: len(texts) // 2], texts):
        write_corpus(corpus, step)
        run_stages(cli, "fetch", "prepare", "embed")
        keys, _ = read_distinct_keys(Project().texts_file)
        expected = group_by_transformers(tiny_backbone, step)
        found = find_alike(Project().store, keys)
        assert found.tolist() == expected.tolist()
        assert len(np.unique(found)) < len(step)
    assert find_alike(Project().store, keys[:0]).tolist() == []
    with pytest.raises(StoreError, match="rewritten with other settings"):
        find_alike(Project().store, keys, "0" * 64)


def test_the_rounding_of_half_precision_parts_no_texts_of_one_vector(
    corpus: Path, tiny_backbone: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU rounds a text otherwise in another batch, by up to 5e-4 of its vector's length."""
    from pipeline.store import alike

    texts = make_spellings(60)
    write_corpus(corpus, texts)
    run_stages(cli, "fetch", "prepare", "embed")
    keys, _ = read_distinct_keys(Project().texts_file)
    gather = alike.gather_rows
    generator = np.random.default_rng(0)

    def shake(snapshot: object, positions: np.ndarray, into: dict[str, np.ndarray]) -> None:
        gather(snapshot, positions, into)  # type: ignore[arg-type]
        for column, values in into.items():
            if column != "n_tokens":
                noise = generator.standard_normal(values.shape)
                noise /= np.linalg.norm(noise, axis=1, keepdims=True)
                values += 5e-4 * noise * np.linalg.norm(values, axis=1, keepdims=True)

    monkeypatch.setattr(alike, "gather_rows", shake)
    expected = group_by_transformers(tiny_backbone, texts)
    assert find_alike(Project().store, keys).tolist() == expected.tolist()


def test_unseen_rows_and_folds_go_by_what_the_backbone_sees(
    corpus: Path, tiny_backbone: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = make_spellings(100)
    write_corpus(corpus, texts)
    run_stages(cli, "fetch", "prepare", "embed")
    group = group_by_transformers(tiny_backbone, texts)
    split = np.array(pq.read_table(Project().labels_file)["split"].to_pylist())
    drawn: list[np.ndarray] = []

    def draw(*arguments: object) -> np.ndarray:
        drawn.append(draw_folds(*arguments))  # type: ignore[arg-type]
        return drawn[-1]

    with monkeypatch.context() as patch:
        patch.setattr(targets, "draw_folds", draw)
        run_train_heads(Project(), load_settings(Project().settings))
    (folds,) = drawn
    trained = group[split == "train"]
    assert len(np.unique(trained)) < len(trained)
    assert all(len(set(folds[trained == one])) == 1 for one in trained)

    run_stages(cli, "report")
    test = group[split == "test"]
    unseen = int((~np.isin(test, trained)).sum())
    assert 0 < unseen < len(test)
    metrics = json.loads((Project().report / "metrics.json").read_text())
    assert metrics["test_unseen"]["y"]["rows"] == unseen
    assert metrics["test"]["y"]["rows"] == len(test)


def test_too_few_texts_that_differ_are_judged_without_folds(corpus: Path, cli: Cli) -> None:
    """Texts that are the same up to the cut: a fold without them would have no row to train on."""
    lines = [json.dumps({"text": f"{'a ' * 20}{n}", "y": n % 2}) for n in range(60)]
    (corpus / "d.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    run_stages(cli, "fetch", "prepare", "embed")
    rows = read_labelled_rows(Project())
    assert len(np.unique(find_alike(Project().store, rows.keys))) == 1
    said = cli("train-heads").stdout
    assert f"judged on {(rows.split == 'validation').sum()} held-out rows" in said
    assert read_manifest(Project().store).rows == 60
