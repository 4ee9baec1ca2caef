"""Every file under ``cache/`` that a stage reads, damaged at random: the right result or a message.

A stage that reads a damaged file may still succeed, where the damage touches nothing that it uses;
what it writes must then be what it writes from the file as it was.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.project import Project
from tests.conftest import run_cli

ROWS = 90
# Each file with the commands that read it. Where the store is gone, `embed` reads the texts.
FILES = {
    "assets.json": ("prepare", "embed", "train-heads", "report", "report --show"),
    "texts.parquet": ("embed anew", "embed", "train-heads", "report", "cache export v.parquet"),
    "labels.parquet": ("train-heads", "report", "cache export v.parquet"),
    "embeddings/manifest.json": ("embed", "train-heads", "report", "cache export v.parquet"),
    "embeddings/part-00000.parquet": ("train-heads", "report", "cache export v.parquet"),
    "heads/heads.json": ("report",),
    "heads/heads.safetensors": ("report",),
    "heads/curves.csv": ("report",),
    "heads/held_out.parquet": ("report",),
    "timings/fetch.json": ("report",),
    "timings/prepare.json": ("report",),
    "timings/embed.json": ("report",),
    "timings/train-heads.json": ("report",),
    "report/metrics.json": ("report --show",),
    "report/SHA256SUMS": ("report --show",),
}
# What each command writes, below the project's folder.
WRITTEN = {
    "prepare": ("cache/texts.parquet", "cache/labels.parquet"),
    "embed": ("cache/embeddings",),
    "train-heads": ("cache/heads",),
    "report": ("cache/report",),
    "report --show": (),
    "cache export v.parquet": ("v.parquet",),
}


def make_rows() -> list[dict[str, object]]:
    generator = random.Random(0)
    words = ["parcel", "lamp", "late", "broken", "wonderful", "garden", "station", "crash"]
    return [
        {
            "text": " ".join(generator.choices(words, k=generator.randint(2, 12))),
            "kind": generator.choice(["low", "high"]),
            "tags": [tag for tag in ("a", "b", "c") if generator.random() < 0.4],
            "size": None if generator.random() < 0.1 else round(generator.gauss(5, 2), 2),
        }
        for _ in range(ROWS)
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Path:
    """A project in which all stages have run."""
    folder = tmp_path_factory.mktemp("whole")
    settings = {
        "fetch": {
            "dataset": "rows.jsonl",
            "backbones": [str(tiny_backbone)],
            "lexicon": "lexicon.txt",
        },
        "prepare": {
            "text_column": "text",
            "labels": {
                "kind": {"column": "kind", "classes": ["low", "high"]},
                "tags": {"column": "tags", "kind": "tags"},
                "size": {"column": "size", "kind": "number", "optional": True},
                "mood": {"labeler": "vader"},
            },
        },
        "heads": {"optimizer": "adamw", "max_epochs": 2, "batch_size": 32},
    }
    (folder / "params.yaml").write_text(json.dumps(settings))
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, make_rows())))
    (folder / "lexicon.txt").write_text("wonderful\t2.7\nbroken\t-2.1\nlate\t-0.9\n")
    for stage in ("fetch", "prepare", "embed", "train-heads", "report"):
        result = run_cli(folder, stage)
        assert result.returncode == 0, result.stderr
    return folder


def damage(content: bytes, generator: random.Random) -> bytes:
    """One random bit flipped; of ten files one is cut short, one has zeros, one has other bytes."""
    kind = generator.randrange(10)
    start = generator.randrange(len(content))
    stop = min(len(content), start + generator.choice([1, 4, 64, 4096]))
    if kind == 0:
        return content[:start]
    if kind == 1:
        return content[:start] + bytes(stop - start) + content[stop:]
    if kind == 2:
        return content[:start] + generator.randbytes(stop - start) + content[stop:]
    flipped = content[start] ^ 1 << generator.randrange(8)
    return content[:start] + bytes([flipped]) + content[start + 1 :]


def read_written(folder: Path, command: str) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for name in WRITTEN[command]:
        path = folder / name
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file():
                files[str(file.relative_to(folder))] = read_content(file)
    return files


def read_content(file: Path) -> bytes:
    """A file's bytes; of a manifest all but how its vectors were once gauged.

    A manifest that is made anew from whole shards cannot know that.
    """
    if file.name != "manifest.json":
        return file.read_bytes()
    manifest = json.loads(file.read_bytes())
    del manifest["fidelity"], manifest["sha256"]
    return json.dumps(manifest).encode()


def restore(folder: Path, whole: Path, command: str) -> str:
    """Make the folder as it was, ready for a command; returns the command."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    if command.endswith(" anew"):
        shutil.rmtree(Project(folder).store)
    return command.removesuffix(" anew")


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "project"
    shutil.rmtree(tmp_path / "project", ignore_errors=True)


@pytest.mark.parametrize("times", [15, pytest.param(160, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_gives_the_right_result_or_one_message(
    whole: Path, scratch: Path, name: str, times: int
) -> None:
    generator = random.Random(f"{name} {times}")
    expected = {}
    for given in FILES[name]:
        command = restore(scratch, whole, given)
        result = run_cli(scratch, *command.split())
        assert result.returncode == 0, result.stderr
        shown = result.stdout if command == "report --show" else None
        expected[given] = read_written(scratch, command), shown
    content = (whole / "cache" / name).read_bytes()
    refused = 0
    for number in range(times):
        given = FILES[name][number % len(FILES[name])]
        command = restore(scratch, whole, given)
        damaged = damage(content, generator)
        (scratch / "cache" / name).write_bytes(damaged)
        result = run_cli(scratch, *command.split())
        what = f"{given} {number}: {result.stderr}"
        assert "Traceback" not in result.stdout + result.stderr, what
        if result.returncode == 0:
            files, shown = expected[given]
            assert read_written(scratch, command) == files, what
            assert shown in (None, result.stdout), what
        else:
            refused += 1
            assert result.returncode == 1, what
            assert len(re.findall("^Error: ", result.stderr, re.MULTILINE)) == 1, what
            assert f"cache/{name}" in result.stderr, what
            assert "  next: run `pipeline " in result.stderr, what
    print(f"{name}: {refused} of {times} refused")
    assert refused
