"""What the tests share: projects in scratch folders, a tiny backbone, the real assets."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.project import Project, user_cache

if TYPE_CHECKING:
    from pipeline.embed.backbone import Backbone
    from pipeline.embed.families.bert import PackedBert

# Tests run side by side, a process for each core, so each has one thread; torch and the tokenizers
# read this when they are imported, which is after this file.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "true"

ROOT = Path(__file__).parent.parent

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def _hear_ctrl_c() -> None:
    """Programs started by a test must hear Ctrl-C as they do from a terminal.

    A runner in the background of a shell ignores SIGINT, as does the command line once it is done,
    and so would every process started from there.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _compute_alike_everywhere() -> Iterator[None]:
    """What ``precision: auto`` means must not depend on the processor that the tests run on.

    This holds for what runs in the process of the tests; projects name the precision.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.recipe.has_native_bfloat16", lambda: False)
        yield


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder with the default settings, as the working directory.

    Vectors are computed in float32, whatever the processor would be quicker in.
    """
    folder = tmp_path / "project"
    folder.mkdir()
    settings = (ROOT / "params.yaml").read_text("utf-8")
    assert "  precision: auto" in settings
    settings = settings.replace("  precision: auto", "  precision: float32")
    (folder / "params.yaml").write_text(settings, "utf-8")
    monkeypatch.chdir(folder)
    return folder


def name_spam(backbone: Path) -> dict[str, object]:
    """Settings of one task on ``texts.tsv``, whose classes are ham and spam, of few tokens a text.

    :param backbone: the folder of the backbone.
    """
    return {
        "fetch.dataset": "texts.tsv",
        "fetch.backbones": [str(backbone)],
        "embed.max_tokens": 32,
        "prepare.labels": {"spam": {"column": "label", "classes": ["ham", "spam"]}},
        "heads.tasks": {"spam": {}},
    }


def read_store(folder: Path) -> dict[str, object]:
    """All that a project's store holds, but not how many texts each of its runs was gauged by.

    :param folder: the project.
    """
    found: dict[str, object] = {
        file.name: file.read_bytes() for file in Project(folder).store.iterdir()
    }
    manifest = json.loads(found["manifest.json"])  # type: ignore[arg-type]  # these are bytes
    del manifest["fidelity"], manifest["sha256"]
    return found | {"manifest.json": manifest}


def edit_params(changes: dict[str, object], path: Path = Path("params.yaml")) -> None:
    """Change settings by their dotted names; comments and order stay."""
    from ruamel.yaml import YAML

    yaml = YAML()
    content = yaml.load(path.read_text("utf-8"))
    for name, value in changes.items():
        *sections, key = name.split(".")
        section = content
        for part in sections:
            section = section[part]
        section[key] = value
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(content, file)


def run_stages(cli: Cli, *stages: str) -> None:
    """Run stages that are expected to succeed."""
    for stage in stages:
        result = cli(stage)
        assert result.returncode == 0, f"{stage}: {result.stdout}{result.stderr}"


@pytest.fixture
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user cache folder of the test's own, empty."""
    folder = tmp_path / "user-cache"
    monkeypatch.setenv("PIPELINE_CACHE_DIR", str(folder))
    return folder


def run_cli(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process, which starts but once.

    :param folder: the working directory.
    """
    from pipeline.cli import main

    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["pipeline", *arguments])
        patch.chdir(folder)
        try:
            main()
        except SystemExit as exit_:
            status = int(exit_.code or 0)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


@pytest.fixture
def cli(project: Path) -> Cli:
    """Run the command line in this process.

    It runs in the folder ``cli.folder``, which is the project's at first.
    """

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run_cli(run.folder, *arguments)

    run.folder = project
    return run


@pytest.fixture
def process(project: Path) -> Cli:
    """The same in a process of its own, for what shows only there: its start, its environment, its
    signals and limits."""

    def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipeline", *arguments],
            cwd=options.pop("cwd", project),
            capture_output=True,
            text=True,
            timeout=300,
            **options,  # type: ignore[call-overload]
        )

    return run


def make_tiny_backbone(folder: Path, layers: int = 2) -> Path:
    """A BERT of width 32 with random weights, and a tokenizer of letters."""
    import string

    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    pieces = [*string.ascii_lowercase, *string.digits, *".,!?'$£"]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *pieces, *(f"##{piece}" for piece in pieces)]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    BertModel(config).eval().save_pretrained(folder)
    return folder


def pack_bert(backbone: Backbone, precision: str) -> PackedBert:
    """The packed forward pass of a BERT that Hugging Face has loaded."""
    from pipeline.embed.families.bert import PackedBert
    from pipeline.embed.weights import Weights

    weights = Weights.of_backbone(backbone)
    return PackedBert(weights, backbone.device, precision, backbone.pooling)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a backbone that embeds a thousand texts in a second."""
    return make_tiny_backbone(tmp_path_factory.mktemp("backbone") / "tiny-bert")


@pytest.fixture(scope="session")
def real_assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder in which ``pipeline fetch`` has run with the default settings.

    The assets lie in the user's own cache folder, where they are fetched once.
    """
    folder = tmp_path_factory.mktemp("fetched")
    shutil.copy(ROOT / "params.yaml", folder / "params.yaml")
    result = subprocess.run(
        [sys.executable, "-m", "pipeline", "fetch"], cwd=folder, capture_output=True, text=True
    )
    if result.returncode != 0:
        pytest.skip(f"the real assets cannot be had here: {result.stderr.strip()}")
    return folder


@pytest.fixture
def few_messages(project: Path, real_assets: Path) -> Path:
    """A project on the first 600 messages of the SMS corpus, MiniLM and the default settings."""
    import json

    record = json.loads(Project(real_assets).assets.read_text())["dataset"]
    (name,) = record["files"]
    source = user_cache() / record["folder"] / name
    lines = source.read_text("utf-8").splitlines(keepends=True)[:600]
    (project / "messages.tsv").write_text("".join(lines), "utf-8")
    edit_params(
        {
            "fetch.dataset": "messages.tsv",
            "fetch.backbones": ["sentence-transformers/all-MiniLM-L6-v2"],
            "prepare.header": ["label", "message"],
        }
    )
    return project
