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
from collections.abc import Iterable, Iterator, Mapping
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
from pipeline.store import Recipe, Rows, StoreUpdate

ROOT = Path(__file__).parents[2]
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
WIDTH = 768
LATENT = 64  # directions in which features are correlated
_CHUNK_ROWS = 16_384
_OUTPUT_ROWS = 5_000  # of the projects with very many classes or tags


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


def write_project(folder: Path, rows: int, width: int = WIDTH) -> None:
    """A project whose texts, labels and vectors are there, if the folder holds none yet.

    :param folder: where it is to be.
    :param rows: the number of its rows, each with a text of its own.
    :param width: the width of its vectors.
    """
    if (folder / "cache" / "embeddings" / "manifest.json").exists():
        return
    labels = [of for _, of in draw_rows(rows, width)]
    columns = {name: np.concatenate([of[name] for of in labels]).astype(str) for name in labels[0]}
    recipe = _write_inputs(
        folder,
        columns,
        {
            "yes": {"column": "yes", "classes": ["0", "1"]},
            "three": {"column": "three", "classes": ["0", "1", "2"]},
        },
        {"yes": {"metric": "f1_macro"}, "three": {"type": "multiclass"}},
        "last",
    )
    vectors = (features[:, None] for features, _ in draw_rows(rows, width))
    write_vectors(Project(folder), replace(recipe, width=width), vectors)


def write_outputs_project(folder: Path, kind: str, outputs: int) -> None:
    """A project with one task of very many classes or tags, if the folder holds none yet.

    It has 5,000 rows with every layer of MiniLM's shape. A row's class is the one that a linear
    head with noise finds, its three tags likewise.

    :param folder: where the project is to be.
    :param kind: ``class`` or ``tags``.
    :param outputs: the number of classes or of tags.
    """
    if (folder / "cache" / "embeddings" / "manifest.json").exists():
        return
    rng = np.random.default_rng(0)
    layers, width = 7, 384
    features = rng.standard_normal((_OUTPUT_ROWS, LATENT), np.float32) @ rng.standard_normal(
        (LATENT, layers * width), np.float32
    )
    features += 2 * rng.standard_normal(features.shape, np.float32)
    logits = features @ rng.standard_normal((layers * width, outputs), np.float32) / 200
    logits += rng.gumbel(size=logits.shape)
    logits[np.arange(_OUTPUT_ROWS // 2), np.arange(_OUTPUT_ROWS // 2) % outputs] += 100  # all occur
    best = np.argsort(-logits, axis=1)[:, : 1 if kind == "class" else 3]
    cells = np.array([";".join(f"c{number}" for number in row) for row in best.tolist()])
    label: dict[str, Any] = {"column": "many", "kind": kind}
    if kind == "tags":
        label["separator"] = ";"
    recipe = _write_inputs(folder, {"many": cells}, {"many": label}, {"many": {}}, "all")
    write_vectors(Project(folder), recipe, [features.reshape(_OUTPUT_ROWS, layers, width)])


def _write_inputs(
    folder: Path,
    columns: Mapping[str, np.ndarray],
    labels: Mapping[str, Any],
    tasks: Mapping[str, Any],
    layers: str,
) -> Recipe:
    """The source, the settings and the stages before ``embed``; what vectors are to be made by.

    :param columns: the columns of the source beside the text.
    :param labels: the settings of the labels.
    :param tasks: the settings of the tasks.
    :param layers: the layers of the backbone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings, rows = folder / "params.yaml", len(next(iter(columns.values())))
    rng = np.random.default_rng(1)
    words = np.array(["".join(chr(97 + c) for c in rng.integers(0, 26, 6)) for _ in range(5000)])
    texts = [f"{' '.join(of)} {n}" for n, of in enumerate(words[rng.integers(0, 5000, (rows, 8))])]
    pq.write_table(pa.table({"text": texts, **columns}), folder / "source.parquet")
    settings.write_text(
        yaml.safe_dump(
            {
                "fetch": {"dataset": "source.parquet", "backbones": [MINILM]},
                "prepare": {"text_column": "text", "labels": dict(labels)},
                "embed": {"layers": layers},
                "heads": {"tasks": dict(tasks)},
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
    text_recipe = resolve_text_recipe(embed, architecture, where)
    return make_recipe(backbone, architecture, embed, text_recipe, "float32")


def write_vectors(project: Project, recipe: Recipe, chunks: Iterable[np.ndarray]) -> None:
    """Vectors as the store of a project.

    :param project: the project, whose texts are prepared.
    :param recipe: what they are said to be made by.
    :param chunks: the vectors of its texts, [B, L, D] each.
    """
    keys, first_rows = read_distinct_keys(project.texts_file)
    update = StoreUpdate(project.store, recipe, keys, first_rows)
    drawn = iter(chunks)
    held = np.empty((0, len(recipe.layers), recipe.width), np.float16)
    for start, stop in update.list_missing():
        while len(held) < stop - start:
            held = np.concatenate([held, next(drawn).astype(np.float16)])
        part, held = held[: stop - start], held[stop - start :]
        update.write_shard(start, Rows(np.full(stop - start, 25, np.int32), part))
    update.commit()


def measure_outputs(folder: Path, outputs: int) -> list[dict[str, Any]]:
    """What training takes with so many classes, and with so many tags.

    :param folder: where the projects are, or are to be written.
    :param outputs: the number of classes and of tags.
    """
    measured = []
    for kind in ("class", "tags"):
        project = folder / kind
        write_outputs_project(project, kind, outputs)
        figures = run_stage(project, "train-heads")
        heads = json.loads((project / "cache" / "heads" / "heads.json").read_text())
        measured.append({
            "case": f"{_OUTPUT_ROWS:,} × 2,688, {outputs:,} {kind}", "stage": "train-heads",
            **figures, "score": heads["tasks"]["many"]["held_out_score"],
        })  # fmt: skip
    return measured


def measure_stages(
    folder: Path, rows: int, max_memory: float | None, width: int = WIDTH
) -> list[dict[str, Any]]:
    """What training and the report take on so many rows, with each score of the test part.

    :param folder: where the project is, or is to be written.
    :param rows: the number of its rows.
    :param max_memory: gigabytes that vectors may take; ``None`` for half of the machine's.
    :param width: the width of its vectors.
    """
    write_project(folder, rows, width)
    settings = folder / "params.yaml"
    changed = yaml.safe_load(settings.read_text()) | {"runtime": {"max_memory": max_memory}}
    settings.write_text(yaml.safe_dump(changed, sort_keys=False))
    case = f"{rows:,} × {width} synthetic rows, two tasks"
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
