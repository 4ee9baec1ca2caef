"""Heads are judged only by the corpus that they were trained on, and trained only on vectors of the
settings that hold now."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.project import Project
from tests.conftest import Cli, edit_params, run_cli, run_stages

ROWS = 80
WORDS = ["good", "bad", "fine", "awful", "parcel", "lamp", "late", "garden", "station"]


def make_lines(rows: int) -> str:
    generator = random.Random(0)
    table = [
        {
            "text": " ".join([*generator.choices(WORDS, k=5), str(row)]),
            "kind": generator.choice(["low", "high"]),
            "other": generator.choice(["x", "y"]),
            "size": generator.gauss(5, 2),
            "tags": [tag for tag in "abc" if generator.random() < 0.5],
        }
        for row in range(rows)
    ]
    return "\n".join(map(json.dumps, table))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Path:
    folder = tmp_path_factory.mktemp("identity")
    settings = {
        "fetch": {
            "dataset": "rows.jsonl",
            "backbones": [str(tiny_backbone)],
            "lexicon": "lexicon.txt",
        },
        "prepare": {
            "text_column": "text",
            "split": {"seed": 0, "keep_duplicates_together": False},
            "labels": {
                "kind": {"column": "kind", "classes": ["low", "high"]},
                "other": {"column": "other"},
                "size": {"column": "size", "kind": "number"},
                "tags": {"column": "tags", "kind": "tags"},
                "mood": {"labeler": "vader", "positive_at_least": 0.05},
            },
        },
        "embed": {"max_tokens": 64, "layers": "all", "dtype": "float16", "precision": "auto"},
        "heads": {
            "optimizer": "lbfgs",
            "max_epochs": 5,
            "tasks": {"kind": {}, "size": {}, "tags": {}, "mood": {}},
        },
    }
    (folder / "params.yaml").write_text(json.dumps(settings))
    (folder / "rows.jsonl").write_text(make_lines(ROWS))
    (folder / "lexicon.txt").write_text("good\t1.9\nbad\t-2.5\nfine\t0.8\nawful\t-2.0\n")
    for stage in ("fetch", "prepare", "embed", "train-heads", "report"):
        result = run_cli(folder, stage)
        assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def own(project: Path, whole: Path) -> Path:
    """A project of the test's own in which all stages have run."""
    shutil.copytree(whole, project, dirs_exist_ok=True)
    return project


def _set(**settings: object) -> Callable[[Path], None]:
    return lambda folder: edit_params({k.replace("__", "."): v for k, v in settings.items()})


def _grow(folder: Path) -> None:
    (folder / "rows.jsonl").write_text(make_lines(ROWS + 10))


def _relabel(folder: Path) -> None:
    """Another label in one row."""
    first, *rest = (folder / "rows.jsonl").read_text().splitlines()
    row = json.loads(first)
    row["kind"] = {"low": "high", "high": "low"}[row["kind"]]
    (folder / "rows.jsonl").write_text("\n".join([json.dumps(row), *rest]))


def _retag(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    rows[7]["tags"] = [tag for tag in "abc" if tag not in rows[7]["tags"]]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))


def _resize(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    rows[7]["size"] += 1e-9
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))


def _reorder(folder: Path) -> None:
    lines = (folder / "rows.jsonl").read_text().splitlines()
    (folder / "rows.jsonl").write_text("\n".join(reversed(lines)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_set(prepare__split__seed=1), "another split"),
        (_set(prepare__split__test=0.2, prepare__split__validation=0.1), "another split"),
        (
            _set(prepare__labels__mood__positive_at_least=0.6),
            "other labels mood (positive_at_least 0.05, now 0.6)",
        ),
        (_grow, "other texts (80 rows, now 90)"),
        (_reorder, "other texts"),
        (_relabel, "other labels kind"),
        (_retag, "other labels tags"),
        (_resize, "other labels size"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_heads_of_another_corpus_are_not_scored(
    own: Path, cli: Cli, change: Callable[[Path], None], says: str
) -> None:
    before = (Project(own).report / "metrics.json").read_bytes()
    change(own)
    run_stages(cli, "fetch", "prepare", "embed")
    result = cli("report")
    assert result.returncode == 1
    assert result.stderr == (
        "Error: cache/heads was trained on another corpus than cache/labels.parquet holds: "
        f"{says}\n"
        "  next: run `pipeline train-heads`\n"
    )
    assert (Project(own).report / "metrics.json").read_bytes() == before
    run_stages(cli, "train-heads", "report")


def test_what_changes_no_row_of_a_head_changes_nothing(own: Path, cli: Cli) -> None:
    before = (Project(own).report / "metrics.json").read_bytes()
    run_stages(cli, "fetch", "prepare", "embed", "report")
    labels = {"column": "other", "classes": ["y", "x"]}
    more = {"column": "kind", "classes": ["high", "low"]}
    edit_params({"prepare.labels.other": labels, "prepare.labels.more": more})
    # A setting that leaves every label as it was: the figures are as right as before.
    edit_params({"prepare.labels.mood.positive_at_least": 0.0500001})
    run_stages(cli, "prepare", "report")
    assert (Project(own).report / "metrics.json").read_bytes() == before


def test_heads_of_an_earlier_version_are_made_anew(own: Path, cli: Cli) -> None:
    """They do not say what they were trained on, and nothing else does."""
    path = Project(own).heads / "heads.json"
    content = json.loads(path.read_text())
    for key in ("corpus", "sha256", "curves_sha256"):
        del content[key]
    path.write_text(json.dumps(content | {"format": 3}))
    result = cli("report")
    assert result.returncode == 1
    assert result.stderr == (
        "Error: cache/heads/heads.json: format 3, this version reads 4\n"
        "  next: run `pipeline train-heads` again\n"
    )
    run_stages(cli, "train-heads", "report")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"embed.max_tokens": 8}, "embed.max_tokens 64, which is 8 now"),
        ({"embed.layers": "last"}, "embed.layers 0, 1, 2, which is 2 now"),
        ({"embed.layers": [0, -1]}, "embed.layers 0, 1, 2, which is 0, 2 now"),
        ({"embed.dtype": "float32"}, "embed.dtype float16, which is float32 now"),
        ({"embed.precision": "bfloat16"}, "embed.precision float32, which is bfloat16 now"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_vectors_of_other_settings_are_not_used(
    own: Path, cli: Cli, change: dict[str, object], says: str
) -> None:
    heads = (Project(own).heads / "heads.json").read_bytes()
    edit_params(change)
    for stage in ("train-heads", "report"):
        result = cli(stage)
        assert result.returncode == 1
        assert result.stderr == (
            f"Error: cache/embeddings holds vectors made with {says}\n"
            "  next: run `pipeline embed` first\n"
        )
    assert (Project(own).heads / "heads.json").read_bytes() == heads
    run_stages(cli, "embed", "train-heads", "report")


def test_the_same_settings_in_other_words_are_the_same(own: Path, cli: Cli) -> None:
    tensors = (Project(own).heads / "heads.safetensors").read_bytes()
    for change in (
        {"embed.layers": [0, 1, 2]},
        {"embed.layers": [-1, 0, 1]},
        {"embed.precision": "float32"},
    ):
        edit_params(change)
        run_stages(cli, "train-heads", "report")
        assert (Project(own).heads / "heads.safetensors").read_bytes() == tensors


def test_vectors_can_be_used_where_the_backbone_is_not(
    own: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where somebody else embedded, and the vectors came by DVC."""
    assets = json.loads(Project(own).assets.read_text())
    away = tmp_path / "away"
    shutil.copytree(assets["backbone"]["path"], away)
    edit_params({"fetch.backbones": [str(away)]})
    run_stages(cli, "fetch")
    shutil.rmtree(away)
    run_stages(cli, "train-heads", "report")
    edit_params({"embed.max_tokens": 8})
    result = cli("train-heads")
    assert "embed.max_tokens 64, which is 8 now" in result.stderr
