"""The gauge by Hugging Face runs once for what is computed the same way, and no failure is kept."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pipeline
from pipeline.embed import gauge
from pipeline.embed.embedder import Embedder
from pipeline.embed.families.bert import PackedBert
from pipeline.errors import StoreError
from pipeline.files import add_hash
from pipeline.project import Project
from pipeline.store import read_manifest
from tests.conftest import Cli, edit_params, run_stages

SENTENCE = "to Hugging Face in float32, over"


@pytest.fixture
def prepared(project: Path, private_cache: Path, tiny_backbone: Path, cli: Cli) -> Path:
    """A project with 40 texts, a tiny backbone, and a user cache that remembers nothing."""
    lines = [
        f"{'spam' if n % 3 else 'ham'}\tmessage number {n}, {'now' * (n % 7)}" for n in range(40)
    ]
    (project / "messages.tsv").write_text("\n".join(lines) + "\n")
    edit_params(
        {
            "fetch.dataset": "messages.tsv",
            "fetch.backbones": [str(tiny_backbone)],
            "prepare.header": ["label", "message"],
            "prepare.labels": {"spam": {"column": "label", "classes": ["ham", "spam"]}},
            "heads.tasks": {"spam": {"type": "binary"}},
            "heads.search": [],
        }
    )
    run_stages(cli, "fetch", "prepare")
    return project


@pytest.fixture
def gauged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of texts of each sample that Hugging Face computes from now on."""
    calls: list[int] = []
    measure = gauge.measure_fidelity

    def count(*arguments: Any, **options: Any) -> Any:
        fidelity = measure(*arguments, **options)
        calls.append(fidelity.texts)
        return fidelity

    monkeypatch.setattr(gauge, "measure_fidelity", count)
    return calls


def embed_anew(cli: Cli) -> str:
    shutil.rmtree(Project().store, ignore_errors=True)
    shutil.rmtree(Project().store.with_suffix(".old"), ignore_errors=True)
    result = cli("embed")
    assert result.returncode == 0, result.stderr
    return result.stdout


def list_gauges(cache: Path) -> list[Path]:
    return sorted((cache / "gauges").glob("*"))


def test_a_gauge_is_remembered_with_what_it_found(
    prepared: Path, cli: Cli, private_cache: Path, gauged: list[int]
) -> None:
    first = embed_anew(cli)
    assert f"{SENTENCE} 8 texts\n" in first
    fidelity = read_manifest(Project().store).fidelity
    assert fidelity is not None
    assert fidelity["lowest_cosine"] >= 0.999999
    (kept,) = list_gauges(private_cache)
    assert json.loads(kept.read_text())["fidelity"] == fidelity
    shard = (Project().store / "part-00000.parquet").read_bytes()

    second = embed_anew(cli)
    assert f"{SENTENCE} 8 texts of an earlier run\n" in second
    assert gauged == [8]
    assert read_manifest(Project().store).fidelity == fidelity
    assert (Project().store / "part-00000.parquet").read_bytes() == shard


def test_a_remembered_gauge_adds_nothing_to_a_store_that_knows_its_own(
    prepared: Path, cli: Cli, gauged: list[int]
) -> None:
    embed_anew(cli)
    before = read_manifest(Project().store).fidelity
    with (prepared / "messages.tsv").open("a") as file:
        file.write("ham\tone more\nspam\tand another one\n")
    run_stages(cli, "fetch", "prepare", "embed")
    assert gauged == [8]
    assert read_manifest(Project().store).fidelity == before


def test_neither_embed_nor_predict_imports_transformers_once_the_gauge_is_remembered(
    prepared: Path, cli: Cli
) -> None:
    run_stages(cli, "embed", "train-heads")
    code = (
        "import sys\n"
        "from pipeline.cli import cli\n"
        "try: cli.main(sys.argv[1:], standalone_mode=False)\n"
        "except SystemExit as end: assert not end.code\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "assert 'torch' in loaded\n"
        "print(sorted(loaded & {'transformers', 'pandas', 'sklearn', 'scipy', 'sympy'}))\n"
    )

    def run(*arguments: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(Path(pipeline.__file__).parent.parent)}
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True, text=True, env=environment, cwd=prepared,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines()[-1]

    assert run("predict", "--text", "a new text", "-o", "new.csv") == "[]"
    shutil.rmtree(Project().store)
    assert run("embed") == "[]"
    shutil.rmtree(Project().store)
    for file in list_gauges(Path(os.environ["PIPELINE_CACHE_DIR"])):
        file.unlink()
    assert "transformers" in run("embed")


@pytest.mark.parametrize(
    "change",
    [
        {"embed.precision": "bfloat16"},
        {"embed.dtype": "float32"},
        {"embed.max_tokens": 16},
        "processor",
        "torch",
        "engine",
    ],
    ids=str,
)
def test_what_may_change_a_vector_is_gauged_again(
    prepared: Path,
    cli: Cli,
    gauged: list[int],
    change: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embed_anew(cli)
    if isinstance(change, dict):
        edit_params(change)
    elif change == "processor":
        monkeypatch.setattr(gauge, "describe_processor", lambda device: "another processor")
    elif change == "torch":
        monkeypatch.setattr(torch, "__version__", "2.99.0")
    else:
        monkeypatch.setattr(gauge, "_hash_engine", lambda embedder: "another engine")
    embed_anew(cli)
    embed_anew(cli)
    assert gauged == [8, 8]


def test_layers_are_gauged_if_no_gauge_saw_them(
    prepared: Path, cli: Cli, gauged: list[int]
) -> None:
    edit_params({"embed.layers": [1]})
    embed_anew(cli)
    edit_params({"embed.layers": "all"})
    embed_anew(cli)
    assert len(gauged) == 2
    edit_params({"embed.layers": [0, 2]})
    assert "of an earlier run" in embed_anew(cli)
    assert len(gauged) == 2


def test_a_long_run_is_gauged_whatever_is_remembered(
    prepared: Path, cli: Cli, gauged: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    embed_anew(cli)
    monkeypatch.setitem(gauge._LONG_RUN_OPERATIONS, "cpu", 1.0)
    assert "of an earlier run" not in embed_anew(cli)
    assert gauged == [8, 8]


def test_a_run_of_minutes_is_long() -> None:
    """MiniLM takes some 5 minutes for 100,000 messages of 25 tokens on the two cores here."""
    from pipeline.architecture import Architecture

    minilm = Architecture("bert", 6, 384, 512, 0)
    assert not gauge.repays_gauge(minilm, 128_057, "cpu")
    assert gauge.repays_gauge(minilm, 25 * 100_000, "cpu")


def damage_encoder(monkeypatch: pytest.MonkeyPatch, amount: float) -> None:
    """A forward pass that is wrong by some share of a vector's length."""
    run = PackedBert.encode

    def encode(self: PackedBert, *rest: Any) -> torch.Tensor:
        out = run(self, *rest).clone()
        out[..., 0] += amount * out.norm(dim=-1)
        return out

    monkeypatch.setattr(PackedBert, "encode", encode)


def test_a_gauge_that_failed_is_not_remembered(
    prepared: Path, cli: Cli, private_cache: Path, gauged: list[int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        damage_encoder(patch, 0.1)
        for _ in range(2):
            result = cli("embed")
            assert result.returncode == 1
            assert "are not those of the backbone" in result.stderr
            assert not (Project().store / "manifest.json").exists()
    assert list_gauges(private_cache) == []
    embed_anew(cli)
    assert len(list_gauges(private_cache)) == 1
    assert len(gauged) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: b"{",
        lambda record: b"[]",
        lambda record: json.dumps(record | {"torch": "1.0"}).encode(),
        lambda record: json.dumps(add_hash({"fidelity": record["fidelity"]})).encode(),
        *(
            lambda record, change=change: json.dumps(
                add_hash(
                    {key: value for key, value in record.items() if key != "sha256"}
                    | {"fidelity": record["fidelity"] | change}
                )
            ).encode()
            for change in (
                {"lowest_cosine": 0.9},
                {"lowest_cosine": "1.0"},
                {"lowest_cosine": True},
                {"lowest_cosine": None},
            )
        ),
    ],
    ids=["cut", "list", "edited", "bare", "wrong", "text", "bool", "null"],
)
def test_a_damaged_memory_is_no_gauge(
    prepared: Path, cli: Cli, private_cache: Path, gauged: list[int], damage: Any
) -> None:
    embed_anew(cli)
    (kept,) = list_gauges(private_cache)
    right = kept.read_bytes()
    kept.write_bytes(damage(json.loads(right)))
    embed_anew(cli)
    assert gauged == [8, 8]
    assert kept.read_bytes() == right


def test_a_memory_that_takes_no_files_does_no_harm(
    prepared: Path, cli: Cli, private_cache: Path, gauged: list[int]
) -> None:
    private_cache.mkdir(exist_ok=True)
    (private_cache / "gauges").write_text("a file where the folder would be")
    embed_anew(cli)
    embed_anew(cli)
    assert gauged == [8, 8]


def test_old_gauges_do_not_pile_up(
    prepared: Path, cli: Cli, private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gauge, "_MOST_KEPT", 2)
    for number in range(4):
        monkeypatch.setattr(gauge, "_hash_engine", lambda embedder, n=number: f"engine {n}")
        embed_anew(cli)
    engines = {json.loads(file.read_text())["engine"] for file in list_gauges(private_cache)}
    assert len(engines) == 2
    assert "engine 3" in engines


def test_predict_gauges_where_nothing_is_remembered(
    prepared: Path, cli: Cli, private_cache: Path, gauged: list[int]
) -> None:
    run_stages(cli, "embed", "train-heads")
    gauged.clear()
    assert cli("predict", "--text", "new", "-o", "out.csv").returncode == 0
    assert gauged == []
    shutil.rmtree(private_cache / "gauges")
    for name in ("again", "more"):
        result = cli("predict", "--text", "new", "-o", f"{name}.csv")
        assert result.returncode == 0, result.stderr
        assert Path(f"{name}.csv").read_text() == Path("out.csv").read_text()
    assert gauged == [8]  # the text and the sentences, once

    shutil.rmtree(private_cache / "gauges")
    with pytest.MonkeyPatch.context() as patch:
        damage_encoder(patch, 0.1)
        result = cli("predict", "--text", "new", "-o", "none.csv")
        assert result.returncode == 1
        assert "are not those of the backbone" in result.stderr
        assert not Path("none.csv").exists()
        with pipeline.load(prepared) as model:
            for _ in range(2):
                with pytest.raises(StoreError):
                    model.predict(["a new text"])
    assert list_gauges(private_cache) == []


def test_the_sentences_pass_the_gauge_of_a_real_backbone(
    real_assets: Path, private_cache: Path, gauged: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16, whose bound the sentences must not come near to by themselves."""
    monkeypatch.delenv("PIPELINE_CACHE_DIR")
    from pipeline.assets import read_assets

    folder = read_assets(Project(real_assets).assets)["backbone"].locate(Project(real_assets))
    for precision, bound in (("float32", 0.9999999), ("bfloat16", 0.999)):
        with Embedder(folder, precision=precision) as embedder:  # type: ignore[arg-type]
            tokens = embedder.tokenize(gauge.SENTENCES)
            rows = embedder.start(tokens).finish()
            found = gauge.measure_fidelity(
                embedder.load_reference(), tokens.tokens, rows, embedder.layers
            )
        assert found.texts == len(gauge.SENTENCES)
        assert found.lowest_cosine > bound
        assert np.isfinite(found.largest_error)
