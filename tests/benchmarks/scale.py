"""A project of any number of synthetic rows, and what its stages take on it.

``python -m tests.benchmarks.heads --rows N`` is its command. The vectors are drawn, so no backbone
runs; all else is as in any project, so that `pipeline train-heads` and `pipeline report` run on it
as they are. The figures are those of a process of its own: seconds of CPU, of all cores together,
wall seconds, and the most memory that it held.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline.architecture import Architecture
from pipeline.assets import read_assets
from pipeline.config import load_settings
from pipeline.corpus.tables import read_distinct_keys
from pipeline.project import Project
from pipeline.recipe import make_recipe, resolve_text_recipe
from pipeline.store import Rows, StoreUpdate

ROOT = Path(__file__).parents[2]
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
WIDTH = 768
LATENT = 64  # directions in which features are correlated
_CHUNK_ROWS = 16_384


def draw_rows(rows: int, width: int = WIDTH) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Correlated features, float32 [B, D], and the labels of two tasks, chunk by chunk.

    A linear head can learn the labels in part.
    """
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((LATENT, width)).astype(np.float32)
    of_yes = rng.standard_normal(width).astype(np.float32) / 60
    of_three = rng.standard_normal((width, 3)).astype(np.float32) / 60
    for start in range(0, rows, _CHUNK_ROWS):
        B = min(_CHUNK_ROWS, rows - start)
        features = rng.standard_normal((B, LATENT), np.float32) @ mix
        features += 2 * rng.standard_normal((B, width), np.float32)
        yes = features @ of_yes + rng.standard_normal(B, np.float32)
        three = features @ of_three + rng.gumbel(size=(B, 3))
        yield features, {"yes": (yes > 1).astype(np.int64), "three": three.argmax(axis=1)}


def write_project(folder: Path, rows: int) -> None:
    """A project whose texts, labels and vectors are there, if the folder holds none yet."""
    settings = folder / "params.yaml"
    if (folder / "cache" / "embeddings" / "manifest.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    words = np.array(["".join(chr(97 + c) for c in rng.integers(0, 26, 6)) for _ in range(5000)])
    texts = [f"{' '.join(of)} {n}" for n, of in enumerate(words[rng.integers(0, 5000, (rows, 8))])]
    labels = [of for _, of in draw_rows(rows)]
    columns = {name: np.concatenate([of[name] for of in labels]).astype(str) for name in labels[0]}
    source = folder / "source.parquet"
    pq.write_table(pa.table({"text": texts, **columns}), source)
    settings.write_text(
        yaml.safe_dump(
            {
                "fetch": {"dataset": "source.parquet", "backbones": [MINILM]},
                "prepare": {
                    "text_column": "text",
                    "labels": {
                        "yes": {"column": "yes", "classes": ["0", "1"]},
                        "three": {"column": "three", "classes": ["0", "1", "2"]},
                    },
                },
                "embed": {"layers": "last"},
                "heads": {
                    "tasks": {"yes": {"metric": "f1_macro"}, "three": {"type": "multiclass"}}
                },
                "report": {},
            },
            sort_keys=False,
        )
    )
    for stage in ("fetch", "prepare"):
        run_stage(folder, stage)
    project = Project(folder)
    backbone = read_assets(project.assets)["backbone"]
    where, embed = backbone.locate(project), load_settings(settings).embed
    architecture = Architecture.read(where)
    texts = resolve_text_recipe(embed, architecture, where)
    recipe = make_recipe(backbone, architecture, embed, texts, "float32")
    write_vectors(project, replace(recipe, width=WIDTH), rows)


def write_vectors(project: Project, recipe: Any, rows: int) -> None:
    keys, first_rows = read_distinct_keys(project.texts_file)
    update = StoreUpdate(project.store, recipe, keys, first_rows)
    chunks = draw_rows(rows)
    held = np.empty((0, WIDTH), np.float16)
    for start, stop in update.list_missing():
        while len(held) < stop - start:
            held = np.concatenate([held, next(chunks)[0].astype(np.float16)])
        part, held = held[: stop - start], held[stop - start :]
        tokens = np.full(stop - start, 25, np.int32)
        update.write_shard(start, Rows(tokens, part[:, None]))
    update.commit()


def measure_stages(folder: Path, rows: int, max_memory: float | None) -> list[dict[str, Any]]:
    """What training and the report take on so many rows, with each score of the test part.

    :param folder: where the project is, or is to be written.
    :param max_memory: gigabytes that vectors may take; ``None`` for half of the machine's.
    """
    write_project(folder, rows)
    settings = folder / "params.yaml"
    changed = yaml.safe_load(settings.read_text()) | {"runtime": {"max_memory": max_memory}}
    settings.write_text(yaml.safe_dump(changed, sort_keys=False))
    case = f"{rows:,} × {WIDTH} synthetic rows, two tasks"
    measured = [
        {"case": case, "stage": stage, **run_stage(folder, stage)}
        for stage in ("train-heads", "report")
    ]
    test = json.loads((folder / "cache" / "report" / "metrics.json").read_text())["test"]
    scores = [
        {"case": case, "stage": f"macro-F1 of {t}", "score": test[t]["f1_macro"]} for t in test
    ]
    return [*measured, *scores]


_STAGE = """
import json, resource, sys, time
from pathlib import Path
started = time.perf_counter()
from pipeline.cli import cli
from tests.benchmarks.table import read_memory
cli(sys.argv[2:], standalone_mode=False)
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
Path(sys.argv[1]).write_text(json.dumps({
    "cpu_seconds": sum(of.ru_utime + of.ru_stime for of in used),
    "wall_seconds": time.perf_counter() - started,
    "peak_mb": read_memory("VmHWM"),
}))
"""


def run_stage(folder: Path, *stage: str) -> dict[str, Any]:
    """Run one stage in a process of its own.

    :returns: seconds of CPU and of the wall, and the most memory in MB.
    """
    with tempfile.NamedTemporaryFile() as file:
        subprocess.run(
            [sys.executable, "-c", _STAGE, file.name, *stage],
            check=True, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        figures: dict[str, Any] = json.loads(Path(file.name).read_text())
    return figures
