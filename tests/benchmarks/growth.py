"""What each stage takes of a corpus of any size: seconds, seconds of CPU, and the most memory.

    python -m tests.benchmarks.growth [--json FILE] [--rows N]... [--folder FOLDER] [--labels KINDS]
        [--stages NAMES] [--max-memory GB]

The corpus is synthetic: the words of this project's messages, shuffled, in one CSV file, and every
twentieth message twice; the backbone is tiny, of random weights. Sizes are run one after another,
and each stage in a process of its own, on a project that is removed once it is measured, unless
``--folder`` says where it is to stay. `cpu_seconds_a_million` is what a million further rows take,
from the size before; where that grows, something is not linear. `peak_mb` is of the stage's own
process. `prepare again` is the stage once more, with another threshold of VADER's score.
"""

from __future__ import annotations

import contextlib
import csv
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import yaml

from pipeline.project import Project
from tests.benchmarks.embed import read_messages
from tests.benchmarks.scale import run_stage
from tests.benchmarks.table import describe_machine, present
from tests.conftest import make_tiny_backbone

SIZES = (100_000, 1_000_000)
STAGES = ("fetch", "prepare", "embed", "train-heads", "report", "cache info")
MAX_TOKENS = 32
_CHUNK_ROWS = 16_384
_TWICE = 20  # every so many rows, one has the text of the row before
RULES = """\
def find(texts):
    return ["long" if len(text) > 80 else "short" for text in texts]


def count(texts):
    return [len(text) / 10 for text in texts]


def tag(texts):
    return [[name for name in ("a", "b", "c") if f" {name}" in text] for text in texts]
"""
# Kind of labels → task → settings of its label.
LABELS: dict[str, dict[str, dict[str, Any]]] = {
    "column": {"spam": {"column": "label", "classes": ["ham", "spam"]}},
    "vader": {"mood": {"labeler": "vader"}},
    "function": {"length": {"labeler": "function", "function": "rules:find"}},
    "number": {"tens": {"labeler": "function", "function": "rules:count", "kind": "number"}},
    "tags": {"letters": {"labeler": "function", "function": "rules:tag", "kind": "tags"}},
    "model": {"judged": {"labeler": "model", "model": "judge"}},
}


def draw_messages(messages: Sequence[str], rows: int) -> Iterator[list[tuple[str, str]]]:
    """Labels and messages, chunk by chunk: words shuffled, in the lengths of the corpus."""
    rng = np.random.default_rng(0)
    words = [word for message in messages for word in message.split()]
    lengths = np.array([len(message.split()) for message in messages])
    for start in range(0, rows, _CHUNK_ROWS):
        sizes = rng.choice(lengths, min(_CHUNK_ROWS, rows - start))
        drawn = iter(rng.integers(0, len(words), sizes.sum()).tolist())
        is_spam = sizes + rng.normal(0, 10, len(sizes)) > 25
        chunk: list[tuple[str, str]] = []
        for number, size in enumerate(sizes.tolist(), start):
            text = " ".join([*(words[next(drawn)] for _ in range(size - 1)), str(number)])
            is_repeated = number % _TWICE == _TWICE - 1 and chunk
            chunk.append(("spam" if is_spam[number - start] else "ham", text))
            if is_repeated:
                chunk[-1] = chunk[-2]
        yield chunk


def write_project(folder: Path, rows: int, labels: Sequence[str], max_memory: float) -> None:
    """A project with a source of so many rows, its settings, and its backbone."""
    folder.mkdir(parents=True, exist_ok=True)
    make_tiny_backbone(folder / "tiny")
    (folder / "rules.py").write_text(RULES)
    if "model" in labels:
        _make_classifier(folder / "judge", folder / "tiny")
    with (folder / "source.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "message"])
        for chunk in draw_messages(read_messages(), rows):
            writer.writerows(chunk)
    tasks = {task: of for kind in labels for task, of in LABELS[kind].items()}
    write_settings(
        folder,
        {
            "fetch": {"dataset": "source.csv", "backbones": ["tiny"]},
            "prepare": {"text_column": "message", "labels": tasks},
            "embed": {"layers": "last", "max_tokens": MAX_TOKENS},
            "heads": {"tasks": {task: _describe_task(of) for task, of in tasks.items()}},
            "report": {},
            "runtime": {"max_memory": max_memory, "devices": "cpu"},
        },
    )


def _describe_task(label: dict[str, Any]) -> dict[str, Any]:
    kinds = {"number": "regression", "tags": "multilabel"}
    return {"type": kinds.get(label.get("kind", "class"), "multiclass")}


def _make_classifier(folder: Path, backbone: Path) -> None:
    """A classifier of the backbone's shape with random weights."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig.from_pretrained(backbone, id2label={0: "bad", 1: "fair", 2: "good"})
    torch.manual_seed(0)
    BertForSequenceClassification(config).eval().save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((backbone / "tokenizer.json").read_bytes())


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))


def measure_stages(
    folder: Path, rows: int, stages: Sequence[str], labels: Sequence[str], max_memory: float
) -> Iterator[dict[str, Any]]:
    """The figures of each stage on so many rows, in a project that is written for it."""
    write_project(folder, rows, labels, max_memory)
    for stage in stages:
        yield {"stage": stage, "rows": rows, **run_stage(folder, *stage.split())}
        if stage == "prepare" and "vader" in labels:
            path = folder / "params.yaml"
            settings = yaml.safe_load(path.read_text())
            settings["prepare"]["labels"]["mood"]["positive_at_least"] = 0.1
            write_settings(folder, settings)
            yield {"stage": "prepare again", "rows": rows, **run_stage(folder, stage)}
    store = sum(path.stat().st_size for path in Project(folder).store.glob("*"))
    yield {"stage": "disk of the store", "rows": rows, "megabytes": round(store / 1e6, 1)}


def add_growth(measured: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The figures by stage, with what a million further rows take, from the size before."""
    ordered = sorted(measured, key=lambda of: [*map(str, STAGES), of["stage"]].index(of["stage"]))
    before: dict[str, dict[str, Any]] = {}
    for of in ordered:
        earlier = before.get(of["stage"])
        if earlier is not None and "cpu_seconds" in of:
            millions = (of["rows"] - earlier["rows"]) / 1e6
            more = (of["cpu_seconds"] - earlier["cpu_seconds"]) / millions
            of["cpu_seconds_a_million"] = round(more, 2)
        before[of["stage"]] = of
    return ordered


@click.command()
@click.option("--json", "path", type=click.Path(path_type=Path), help="File for the figures.")
@click.option("--rows", "sizes", multiple=True, type=int, default=SIZES, help="Rows; ascending.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where projects stay.")
@click.option("--labels", default="column", help=f"Of {', '.join(LABELS)}; with commas.")
@click.option("--stages", default=",".join(STAGES), help="Stages to run, with commas.")
@click.option("--max-memory", default=1.0, help="Gigabytes that vectors of train-heads may take.")
def main(
    path: Path | None,
    sizes: Sequence[int],
    folder: Path | None,
    labels: str,
    stages: str,
    max_memory: float,
) -> None:
    """Measure each stage at each size in turn."""
    measured: list[dict[str, Any]] = []
    for rows in sizes:
        with contextlib.ExitStack() as stack:
            scratch = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            target = scratch / f"rows-{rows}"
            for of in measure_stages(
                target, rows, stages.split(","), labels.split(","), max_memory
            ):
                measured.append(of)
                print(of, flush=True)
    present(add_growth(measured), path, describe_machine("torch", "numpy", "pyarrow"))


if __name__ == "__main__":
    main()
