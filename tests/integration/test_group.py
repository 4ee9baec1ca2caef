"""The stage `group`: near-duplicates in one part, from a file to the report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.groups import read_groups
from pipeline.corpus.tables import read_labelled_rows, read_prepared_rows
from pipeline.errors import StageError
from pipeline.project import Project
from pipeline.store import read_manifest, read_vectors
from tests.conftest import Cli, edit_params, run_cli, run_stages

SETTINGS = """
fetch: {{dataset: notes.csv, backbones: [{backbone}]}}
prepare:
  text_column: note
  labels: {{mood: {{column: mood}}}}
  split: {split}
group: {{split: true, threshold: 0.9993}}
heads: {{search: []}}
"""
# Of the tiny backbone; all its cosines are above 0.97, and those of the copies above 0.9996.
THRESHOLD = 0.9993
WORDS = ["amber", "basil", "cedar", "dune", "ember", "frost", "grove", "haze", "iris", "kelp"]


def write_notes(folder: Path, backbone: Path, split: str) -> None:
    """240 notes: each third is one before it with a sign more, so that bytes differ."""
    generator = np.random.default_rng(0)
    notes: list[str] = []
    for number in range(240):
        if number % 3 == 2:
            notes.append(f"{notes[int(generator.integers(len(notes)))]}!")
        else:
            notes.append(f"{' '.join(generator.choice(WORDS, 9))} {number}")
    lines = [
        f"{note},{('good', 'bad')[number // 2 % 2]},{('tr', 'te', 'tr')[number // 5 % 3]}"
        for number, note in enumerate(notes)
    ]
    (folder / "notes.csv").write_text("\n".join(["note,mood,part", *lines]) + "\n")
    (folder / "params.yaml").write_text(SETTINGS.format(backbone=backbone, split=split))


def list_near_pairs(project: Project) -> list[tuple[int, int]]:
    """The pairs of rows whose vectors are near, by all cosines."""
    rows, _ = read_prepared_rows(project)
    layer = max(read_manifest(project.store).layers)
    vectors = read_vectors(project.store, rows.keys, [layer])[:, 0].astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.argwhere(np.triu(vectors @ vectors.T > THRESHOLD, 1)).tolist()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Path:
    """A project in which all stages up to `group` have run."""
    folder = tmp_path_factory.mktemp("grouped")
    write_notes(folder, tiny_backbone, "{train: 0.6, validation: 0.2, test: 0.2, seed: 3}")
    for stage in ("fetch", "prepare", "embed", "group"):
        result = run_cli(folder, stage)
        assert result.returncode == 0, result.stderr
    assert "near-duplicates: " in result.stdout
    return folder


@pytest.fixture
def grouped(whole: Path, project: Path) -> Project:
    shutil.copytree(whole, project, dirs_exist_ok=True)
    return Project(project)


def test_no_row_of_one_part_is_nearly_one_of_another(grouped: Project) -> None:
    pairs = list_near_pairs(grouped)
    before, _ = read_prepared_rows(grouped)
    after = read_labelled_rows(grouped)
    assert len(pairs) > 50
    assert sum(before.split[a] != before.split[b] for a, b in pairs) > 10
    assert all(after.split[a] == after.split[b] for a, b in pairs)
    assert after.is_grouped
    shares = [len(after.select(part)) / 240 for part in ("train", "validation", "test")]
    assert shares == pytest.approx([0.6, 0.2, 0.2], abs=0.08)
    # The file itself says the same of rows and groups.
    table = pq.read_table(grouped.groups_file).to_pydict()
    assert all(table["group"][a] == table["group"][b] for a, b in pairs)
    assert table["row"] == list(range(240))


def test_heads_learn_and_are_judged_by_these_parts(grouped: Project, cli: Cli) -> None:
    run_stages(cli, "train-heads", "report")
    metrics = json.loads((grouped.report / "metrics.json").read_text())
    rows = read_labelled_rows(grouped)
    assert {part: of["mood"]["rows"] for part, of in metrics.items()} == {
        part.removesuffix("_unseen"): len(rows.select(part.removesuffix("_unseen")))
        for part in metrics
    } | {"test_unseen": len(rows.select("test"))}
    # Without the groups, these heads are of another split.
    edit_params({"group.split": False})
    run_stages(cli, "group")
    result = cli("report")
    assert result.returncode == 1
    assert "another split" in result.stderr


def test_settings_that_ask_for_no_groups_read_no_vectors(grouped: Project, cli: Cli) -> None:
    edit_params({"group.split": False})
    result = cli("train-heads")
    assert result.returncode == 1
    assert "run `pipeline group`" in result.stderr
    shutil.rmtree(grouped.store)
    assert (grouped.timings / "group.json").exists()
    assert "nothing to do" in cli("group").stdout
    assert not (grouped.timings / "group.json").exists()
    assert pq.read_table(grouped.groups_file).num_rows == 0
    rows = read_labelled_rows(grouped)
    assert not rows.is_grouped
    assert (rows.split == read_prepared_rows(grouped)[0].split).all()


def test_an_emptied_file_is_no_word_of_the_settings(grouped: Project, cli: Cli) -> None:
    """A file that lost all its bytes is damaged; it does not say that there are no groups."""
    grouped.groups_file.write_bytes(b"")
    result = cli("train-heads")
    assert result.returncode == 1
    assert str(grouped.groups_file.name) in result.stderr
    assert "run `pipeline group`" in result.stderr


def test_a_project_without_the_stage_is_as_before(grouped: Project, cli: Cli) -> None:
    edit_params({"group.split": False})
    grouped.groups_file.unlink()
    run_stages(cli, "train-heads")
    edit_params({"group.split": True})
    result = cli("train-heads")
    assert result.returncode == 1
    assert "run `pipeline group`" in result.stderr


@pytest.mark.parametrize("key", ["prepare.split.seed", "prepare.text_column"])
def test_groups_of_another_run_are_refused(key: str, grouped: Project, cli: Cli) -> None:
    edit_params({key: {"prepare.split.seed": 4, "prepare.text_column": "part"}[key]})
    run_stages(cli, "prepare")
    result = cli("train-heads")
    assert result.returncode == 1
    assert "other texts or parts" in result.stderr
    if key == "prepare.split.seed":
        run_stages(cli, "group", "train-heads")


def test_a_damaged_file_is_noticed(grouped: Project) -> None:
    content = grouped.groups_file.read_bytes()
    rows, numbers = read_prepared_rows(grouped)
    generator = np.random.default_rng(0)
    whole = read_groups(grouped.groups_file, numbers, rows.identity)
    assert whole is not None
    refused: list[str] = []
    for _ in range(60):
        damaged = bytearray(content)
        damaged[generator.integers(len(content))] ^= 1 << generator.integers(8)
        grouped.groups_file.write_bytes(damaged)
        try:
            found = read_groups(grouped.groups_file, numbers, rows.identity)
        except StageError as error:
            refused.append(error.message)
            continue
        assert found is not None
        assert (found.groups == whole.groups).all()
        assert (found.parts == whole.parts).all()
    assert refused
    assert all("groups.parquet" in message for message in refused)
    grouped.groups_file.write_bytes(content[:100])
    with pytest.raises(StageError, match="damaged"):
        read_labelled_rows(grouped)


def test_rows_stay_where_a_column_puts_them(project: Path, tiny_backbone: Path, cli: Cli) -> None:
    write_notes(project, tiny_backbone, "{column: part, train: [tr], test: [te]}")
    run_stages(cli, "fetch", "prepare", "embed", "group")
    before, _ = read_prepared_rows(Project())
    after = read_labelled_rows(Project())
    assert (after.select("test") == before.select("test")).all()
    inside = [(a, b) for a, b in list_near_pairs(Project()) if "test" not in (before.split[[a, b]])]
    assert any(before.split[a] != before.split[b] for a, b in inside)
    assert all(after.split[a] == after.split[b] for a, b in inside)
    assert len(after.select("validation")) > 0

    write_notes(project, tiny_backbone, "{column: part, train: [tr], validation: [te], test: []}")
    run_stages(cli, "prepare")
    result = cli("group")
    assert result.returncode == 1
    assert "group.split: prepare.split.column gives every part" in result.stderr


def test_one_large_group_is_told_of(project: Path, tiny_backbone: Path, cli: Cli) -> None:
    write_notes(project, tiny_backbone, "{train: 0.6, validation: 0.2, test: 0.2}")
    run_stages(cli, "fetch", "prepare", "embed")
    edit_params({"group.threshold": 0.01})
    result = cli("group")
    assert result.returncode == 1
    assert "too few rows to split: 1 group of near-duplicates" in result.stderr
    edit_params({"group.threshold": 0.998})
    said = " ".join(cli("group").stdout.split())
    assert "a higher group.threshold makes smaller groups" in said
