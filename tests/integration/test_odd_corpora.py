"""Corpora at the edge of what heads can learn: each works, or stops with one clear message."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from pipeline.project import Project
from pipeline.store import read_vectors
from tests.conftest import Cli, run_stages

Row = dict[str, object]
HEADS: dict[str, Row] = {
    "lbfgs": {"optimizer": "lbfgs"},
    "adamw": {"optimizer": "adamw"},
    "kernel": {"optimizer": "lbfgs", "head": "kernel"},
}
WIDTH = 32 * 3


@pytest.fixture
def learn(project: Path, tiny_backbone: Path, cli: Cli) -> Callable[..., str]:
    """Write a corpus, run all stages on it, and give what ``train-heads`` said.

    ``make_row`` is told the number of a row and the part that it falls into.
    """

    def run(
        rows: int,
        make_row: Callable[[int, str], Row],
        labels: dict[str, Row],
        *,
        fails: bool = False,
        max_memory: float | None = None,
        **heads: object,
    ) -> str:
        settings = {
            "fetch": {"dataset": "rows.jsonl", "backbones": [str(tiny_backbone)]},
            "prepare": {"text_column": "text", "labels": labels},
            "heads": {"max_epochs": 5, **({"search": []} if "optimizer" in heads else {}), **heads},
            "runtime": {"max_memory": max_memory},
        }
        Project().settings.write_text(json.dumps(settings))
        parts = ["train"] * rows
        for _ in range(2):  # the part of a row depends on how many there are, not on its label
            table = [
                {"text": f"text {number}"} | make_row(number, part)
                for number, part in enumerate(parts)
            ]
            (project / "rows.jsonl").write_text("\n".join(map(json.dumps, table)))
            run_stages(cli, "fetch", "prepare")
            parts = pq.read_table(Project().labels_file)["split"].to_pylist()
        run_stages(cli, "embed")
        result = cli("train-heads")
        if fails:
            assert result.returncode == 1
            assert result.stderr.startswith("Error: ")
            assert "Traceback" not in result.stderr
            return result.stderr
        assert result.returncode == 0, result.stderr
        run_stages(cli, "report")
        return result.stdout

    return run


def read_heads() -> dict[str, np.ndarray]:
    tensors = load_file(Project().heads / "heads.safetensors")
    assert all(np.isfinite(tensor).all() for tensor in tensors.values())
    return tensors


def read_metrics() -> dict[str, dict[str, dict[str, float]]]:
    return json.loads((Project().report / "metrics.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("head", HEADS)
def test_ten_rows(learn: Callable[..., str], head: str) -> None:
    label = {"kind": {"column": "kind", "classes": ["a", "b"]}}
    learn(10, lambda n, part: {"kind": "ab"[n % 2]}, label, **HEADS[head])
    assert read_heads()["kind.weight"].shape == (1, 7 if head == "kernel" else WIDTH)
    assert read_metrics()["train"]["kind"]["rows"] == 7


@pytest.mark.parametrize("head", HEADS)
def test_twelve_tasks_with_partial_labels(learn: Callable[..., str], head: str) -> None:
    """Row n has a label of task t unless t divides n."""
    names = [f"t{number}" for number in range(3, 15)]

    def make_row(number: int, part: str) -> Row:
        return {n: None if number % int(n[1:]) == 0 else "ab"[number % 2] for n in names}

    labels = {n: {"column": n, "classes": ["a", "b"], "optional": True} for n in names}
    learn(80, make_row, labels, **HEADS[head])
    # All tasks compare rows with the same training rows, which are saved once.
    assert len(read_heads()) == 2 * len(names) + (3 if head == "kernel" else 0)
    metrics = read_metrics()
    for name in names:
        given = sum(number % int(name[1:]) != 0 for number in range(80))
        assert sum(metrics[part][name]["rows"] for part in ("train", "validation", "test")) == given


@pytest.mark.parametrize("head", HEADS)
def test_a_thousand_classes(learn: Callable[..., str], head: str) -> None:
    said = learn(
        1500,
        lambda n, part: {"word": f"w{n % 1000}"},
        {"word": {"column": "word"}},
        **HEADS[head],
        max_epochs=2,
    )
    assert read_heads()["word.weight"].shape == (1000, 1050 if head == "kernel" else WIDTH)
    # Six lines at most, not one for each of hundreds of classes.
    assert 0 < said.count("warning") <= 6


@pytest.mark.parametrize("head", HEADS)
def test_a_class_that_only_training_rows_have(learn: Callable[..., str], head: str) -> None:
    learn(
        60,
        lambda n, part: {"kind": "c" if part == "train" and n % 3 == 0 else "ab"[n % 2]},
        {"kind": {"column": "kind", "classes": ["a", "b", "c"]}},
        **HEADS[head],
    )
    assert read_heads()["kind.weight"].shape == (3, 42 if head == "kernel" else WIDTH)
    assert read_metrics()["validation"]["kind"]["classes"]["c"]["support"] == 0


@pytest.mark.parametrize("head", HEADS)
def test_a_class_that_no_training_row_has(learn: Callable[..., str], head: str) -> None:
    said = learn(
        60,
        lambda n, part: {"kind": "ab"[n % 2] if part == "train" else "abc"[n % 3]},
        {"kind": {"column": "kind", "classes": ["a", "b", "c"]}},
        **HEADS[head],
        search=[{"class_weights": ["none", "balanced"], "logit_adjustment": [0, 0.5]}],
    )
    assert "no training row is 'c', so its head cannot learn it" in said
    read_heads()


@pytest.mark.parametrize("head", HEADS)
def test_texts_that_are_all_the_same(learn: Callable[..., str], head: str) -> None:
    """Constant features, and one text, so that no fold can be left out."""
    learn(
        40,
        lambda n, part: {"text": "one and the same", "kind": "ab"[n % 3 == 0]},
        {"kind": {"column": "kind", "classes": ["a", "b"]}},
        **HEADS[head],
    )
    assert read_heads()["kind.weight"].shape == (1, 28 if head == "kernel" else WIDTH)


@pytest.mark.parametrize("head", HEADS)
def test_tags_and_numbers_with_gaps(learn: Callable[..., str], head: str) -> None:
    """A tag that only test rows have, rows without tags, and numbers that are null or absent."""

    def make_row(number: int, part: str) -> Row:
        tags = None if number % 7 == 0 else ["x"] * (number % 2) + ["rare"] * (part == "test")
        return {"tags": tags} | ({"price": number / 7} if number % 5 else {"price": None})

    said = learn(
        80,
        make_row,
        {
            "tags": {"column": "tags", "kind": "tags", "optional": True},
            "price": {"column": "price", "kind": "number", "optional": True},
        },
        **HEADS[head],
    )
    assert "no training row is 'rare'" in said
    assert read_heads()["tags.weight"].shape == (2, 56 if head == "kernel" else WIDTH)
    assert sum(read_metrics()[p]["price"]["rows"] for p in ("train", "validation", "test")) == 64


@pytest.mark.parametrize("head", HEADS)
def test_validation_rows_that_all_lack_a_label(learn: Callable[..., str], head: str) -> None:
    for folds in (None, 3):
        learn(
            60,
            lambda n, part: {"kind": "ab"[n % 2] if part == "train" else None},
            {"kind": {"column": "kind", "classes": ["a", "b"], "optional": True}},
            **HEADS[head],
            folds=folds,
        )
        assert read_heads()["kind.weight"].shape == (1, 42 if head == "kernel" else WIDTH)


def test_what_cannot_be_learned_stops_with_one_message(learn: Callable[..., str]) -> None:
    kind = {"kind": {"column": "kind", "classes": ["a", "b"], "optional": True}}
    said = learn(40, lambda n, part: {"kind": "a"}, kind, fails=True)
    assert "task kind: all 28 training rows are 'a'; a head needs two classes" in said
    said = learn(40, lambda n, part: {"kind": None if part == "train" else "a"}, kind, fails=True)
    assert "task kind: none of the 28 training rows has a label" in said
    price = {"price": {"column": "price", "kind": "number"}}
    said = learn(40, lambda n, part: {"price": 3}, price, fails=True)
    assert "task price: all 28 training rows are 3; a head needs numbers that differ" in said
    assert not (Project().heads / "heads.json").exists()


@pytest.mark.parametrize(
    "heads",
    [
        {"search": [{"weight_decay": [0.01, 0.1], "logit_adjustment": [0, 0.5]}]},
        {"optimizer": "adamw", "head": "hidden", "dropout": 0.5, "search": [{"seeds": [3, 4]}]},
        {"optimizer": "sgd", "combine": "mix"},
        {"head": "kernel", "search": [{"bandwidth": [0.5, 1.0]}]},
    ],
    ids=["lbfgs", "hidden", "mix", "kernel"],
)
def test_the_same_seed_writes_the_same_files(
    learn: Callable[..., str], cli: Cli, heads: dict[str, object]
) -> None:
    learn(
        60,
        lambda n, part: {"kind": "abc"[n % 3]},
        {"kind": {"column": "kind", "classes": ["a", "b", "c"]}},
        **heads,
    )
    first = {path.name: path.read_bytes() for path in Project().heads.iterdir()}
    run_stages(cli, "train-heads")
    assert {path.name: path.read_bytes() for path in Project().heads.iterdir()} == first
    assert set(first) == {
        "heads.safetensors", "heads.json", "curves.csv", "held_out.parquet",
        "reference.safetensors",
    }  # fmt: skip


@pytest.mark.parametrize("head", HEADS)
def test_vectors_that_exceed_the_memory(learn: Callable[..., str], head: str) -> None:
    """Two windows of them: the optimum is the same, and AdamW sees rows in another order."""
    kind = {"kind": {"column": "kind", "classes": ["a", "b"]}}
    found = []
    for max_memory in (None, 1e-4):
        said = learn(
            1600,
            lambda n, part: {"kind": "ab"["7" in str(n)]},
            kind,
            **HEADS[head],
            max_memory=max_memory,
            learning_rate=0.02,
            max_epochs=100,
        )
        assert ("reading them from the store as they are wanted" in said) == bool(max_memory)
        about = json.loads((Project().heads / "heads.json").read_text())["tasks"]["kind"]
        found.append((about, read_heads()["kind.weight"]))
    (whole, weight), (streamed, other) = found
    assert whole["held_out_score"] > 0.9
    assert streamed["held_out_score"] == pytest.approx(whole["held_out_score"], abs=0.02)
    noise = 5e-3 if head == "adamw" else 1e-4
    assert streamed["validation_loss"] == pytest.approx(whole["validation_loss"], abs=noise)
    if head != "adamw":
        np.testing.assert_allclose(other, weight, atol=1e-2 * np.abs(weight).max())


def test_the_report_of_kernel_heads_is_what_the_readme_says_that_they_are(
    learn: Callable[..., str],
) -> None:
    learn(
        300,
        lambda n, part: {"text": f"{n} {'up' if n % 3 else 'down'} {n * n}", "kind": "abc"[n % 3]},
        {"kind": {"column": "kind", "classes": ["a", "b", "c"]}},
        search=[{"head": ["kernel"], "bandwidth": [0.7, 3.0], "layers": [[0, 2]]}],
    )
    about = json.loads((Project().heads / "heads.json").read_text())["tasks"]["kind"]
    tensors = read_heads()
    places, scale, shift = (tensors[f"{about['kernel']}.{n}"] for n in ("places", "scale", "shift"))
    keys = pq.read_table(Project().texts_file)["key"].combine_chunks()
    vectors = read_vectors(Project().store, keys, about["layers"]).reshape(len(keys), -1)
    z = (vectors * scale + shift).astype(np.float16).astype(np.float64)
    likeness = np.exp(-np.square(z[:, None] - places.astype(np.float64)).sum(axis=-1))
    logits = likeness @ tensors["kind.weight"].T.astype(np.float64) + tensors["kind.bias"]
    labels = pq.read_table(Project().labels_file)
    right = logits.argmax(axis=1) == labels["kind"].to_numpy()
    for part in ("train", "validation", "test"):
        of_part = labels["split"].to_numpy(zero_copy_only=False) == part
        assert read_metrics()[part]["kind"]["accuracy"] == pytest.approx(right[of_part].mean())
    assert right.mean() > 0.34
    page = (Project().report / "report.html").read_text()
    assert f"bandwidth {about['configuration']['bandwidth']:g}, optimizer lbfgs" in page


def test_many_rows_have_kernel_heads_only_where_they_are_asked_for(
    learn: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = {"kind": {"column": "kind", "classes": ["a", "b"]}}
    monkeypatch.setattr("pipeline.heads.configurations._MAX_KERNEL_ROWS", 41)

    def make_row(number: int, part: str) -> Row:
        return {"kind": "ab"[number % 2]}

    def list_heads() -> set[str]:
        search = json.loads((Project().heads / "heads.json").read_text())["search"]["kind"]
        return {row.get("head", "one form alone") for row in search}

    said = learn(60, make_row, kind, search="auto")
    assert "42 training rows: the search leaves kernel heads out" in said
    assert "kernel" not in list_heads()
    said = learn(60, make_row, kind, search=[{"head": ["linear", "kernel"]}])
    assert "leaves kernel heads out" not in said
    assert list_heads() == {"linear", "kernel"}


def test_seeds_of_what_draws_nothing_are_one(learn: Callable[..., str]) -> None:
    said = learn(
        60,
        lambda n, part: {"kind": "abc"[n % 3]},
        {"kind": {"column": "kind", "classes": ["a", "b", "c"]}},
        search=[{"seeds": [0, 1, 2], "optimizer": ["lbfgs", "adamw"]}],
    )
    assert "lbfgs draws nothing at random: one head stands for all seeds of its grid" in said
    assert "1 head of 4 configurations" in said
    description = json.loads((Project().heads / "heads.json").read_text())
    by_optimizer = {row["optimizer"]: row for row in description["search"]["kind"]}
    assert by_optimizer["adamw"]["seeds"] == 3
    assert "seeds" not in by_optimizer["lbfgs"]
