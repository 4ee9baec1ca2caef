"""What the pages show is what happens: their commands and programs run here, offline."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.config import parse_settings
from tests.conftest import ROOT, Cli, edit_params, make_tiny_backbone
from tests.docs.blocks import PAGES, Block, list_blocks, read_blocks

BIN = Path(sys.executable).parent
# What a block may be: a transcript, a program, settings, a picture; or, without a word, output.
LANGUAGES = {"console", "python", "yaml", "mermaid", ""}
FEWEST_RUN = {"console": 4, "python": 9}

# In one process, which imports torch but once.
ALL_STAGES = (
    sys.executable,
    "-c",
    "from pipeline.cli import cli\n"
    "for stage in ('fetch', 'prepare', 'embed', 'train-heads', 'report'):\n"
    "    cli.main([stage], standalone_mode=False)\n",
)


def list_run(language: str) -> list[Block]:
    return [block for block in list_blocks(language) if not block.left_out]


def run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in a folder as a reader would, by the code of this checkout."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "100"},
    )


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project like the shipped one in which all stages have run, with a corpus, a lexicon and a
    backbone that need no network.

    The backbone has as many layers as MiniLM, since the pages name layers.
    """
    folder = tmp_path_factory.mktemp("documented") / "project"
    folder.mkdir()
    for name in ("params.yaml", "dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / ".dvc", folder / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache"))
    make_tiny_backbone(folder / "backbone", layers=6)
    write_corpus(folder / "messages.csv")
    lexicon = {"good": 1.9, "happy": 2.7, "bad": -2.5, "sad": -2.1}
    lines = [f"{word}\t{valence}\t0.5\t[1]\n" for word, valence in lexicon.items()]
    (folder / "lexicon.txt").write_text("".join(lines))
    edit_params(
        {
            "fetch.dataset": "messages.csv",
            "fetch.lexicon": "lexicon.txt",
            "fetch.backbones": ["backbone"],
        },
        folder / "params.yaml",
    )
    for command in (["dvc", "config", "--local", "core.no_scm", "true"], ALL_STAGES):
        result = run(command, folder)
        assert result.returncode == 0, result.stdout + result.stderr
    return folder


def write_corpus(path: Path) -> None:
    """240 messages with the columns of the default settings, some of each mood and class."""
    moods = ["good", "happy", "bad", "sad", "plain", "usual"]
    people = ["mum", "the boss", "a friend", "the neighbour", "my uncle"]
    times = ["today", "at noon", "tonight", "next week"]
    ham = [f"a {m} day with {p} {t}" for m, p, t in itertools.product(moods, people, times)]
    spam = [f"win {n} pounds, {m} prize, call now" for m, n in itertools.product(moods, range(20))]
    rows = itertools.chain.from_iterable(zip(ham, spam, strict=True))
    labels = itertools.cycle(["ham", "spam"])
    lines = [f'{label},"{text}"\n' for label, text in zip(labels, rows, strict=False)]
    path.write_text("label,message\n" + "".join(lines))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_is_of_a_kind_that_is_tried(page: Path) -> None:
    for block in read_blocks(page):
        assert block.language in LANGUAGES, f"{block.name}: ```{block.language}"
        is_transcript = re.search(r"^\$ ", block.text, re.MULTILINE)
        assert block.language == "console" or not is_transcript, f"{block.name}: is a console's"
        assert block.language != "console" or block.list_commands(), f"{block.name}: no command"


@pytest.mark.parametrize(("language", "fewest"), FEWEST_RUN.items())
def test_many_blocks_run(language: str, fewest: int) -> None:
    assert len(list_run(language)) >= fewest


@pytest.mark.parametrize("block", list_run("console"), ids=lambda block: block.name)
def test_commands_run(block: Block, documented: Path, tmp_path: Path) -> None:
    """Each block in a copy of the project, so that none needs what another did."""
    folder = shutil.copytree(documented, tmp_path / "project")
    script = "\n".join(["set -euo pipefail", *block.list_commands()])
    result = run(["bash", "-c", script], folder)
    assert result.returncode == 0, f"{block.name}: {result.stdout}{result.stderr}"


@pytest.mark.parametrize("block", list_run("python"), ids=lambda block: block.name)
def test_programs_run(block: Block, documented: Path) -> None:
    result = run([sys.executable, "-c", block.text], documented)
    assert result.returncode == 0, f"{block.name}: {result.stdout}{result.stderr}"


@pytest.mark.parametrize(
    ("grid", "tensor"),
    [
        ({"head": ["linear"]}, "spam.weight"),
        ({"head": ["kernel"]}, "kernel_0.places"),
        ({"head": ["hidden"], "optimizer": ["adamw"]}, "spam.input_weight"),
    ],
    ids=lambda value: value["head"][0] if isinstance(value, dict) else None,
)
def test_a_head_by_hand_gives_what_the_code_gives(
    grid: dict[str, object], tensor: str, documented: Path, tmp_path: Path
) -> None:
    """The program of docs/files.md, for a head of each kind."""
    (block,) = [b for b in list_run("python") if "def compute_logits" in b.text]
    folder = shutil.copytree(documented, tmp_path / "project")
    edit_params({"heads.search": [grid], "heads.folds": None}, folder / "params.yaml")
    trained = run(["pipeline", "train-heads"], folder)
    assert trained.returncode == 0, trained.stderr
    compare = (
        f"assert {tensor!r} in tensors\n"
        "from pathlib import Path\n"
        "from pipeline.model.saved import Heads\n"
        "heads = Heads.load(Path('cache/heads'))\n"
        "wanted = heads.compute_logits(vectors.reshape(len(vectors), len(heads.layers), -1))\n"
        "np.testing.assert_allclose(logits, wanted['spam'][0], rtol=1e-4, atol=1e-5)\n"
    )
    result = run([sys.executable, "-c", block.text + compare], folder)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("block", list_run("yaml"), ids=lambda block: block.name)
def test_settings_are_valid(block: Block) -> None:
    settings = parse_settings(block.text, block.name)
    written = YAML(typ="safe").load(block.text)
    assert set(written) <= set(settings.model_fields_set)


def test_the_readme_shows_what_a_mistake_prints(project: Path, cli: Cli) -> None:
    (shown,) = [b.text for b in read_blocks(ROOT / "README.md") if b.text.startswith("Error: ")]
    edit_params({"heads.learning_rate": -0.1, "heads.batchsize": 64})
    result = cli("train-heads")
    assert result.returncode == 1
    assert sorted(result.stderr.splitlines()) == sorted(shown.splitlines())
