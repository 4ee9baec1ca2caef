"""What `precision: auto` means: by what the device can do, and by the vectors that are there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pipeline
from pipeline import FrozenTextEncoder
from pipeline.embed.embedder import Embedder
from pipeline.onednn import has_onednn, multiplies_bfloat16
from pipeline.project import Project
from pipeline.recipe import list_possible_precisions, resolve_precision
from pipeline.store import read_manifest, read_vectors
from tests.conftest import edit_params, run_cli
from tests.integration.test_pooling import TEXTS, read_corpus
from tests.integration.test_task_types import SETTINGS, write_tickets

needs_bfloat16 = pytest.mark.skipif(
    not has_onednn(torch.bfloat16), reason="torch has no products in bfloat16 here"
)


@pytest.fixture
def with_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that multiplies bfloat16 itself."""
    monkeypatch.setattr("pipeline.recipe.has_native_bfloat16", lambda: True)


def set_capabilities(monkeypatch: pytest.MonkeyPatch, **able: bool) -> None:
    """What torch says of the processor from now on."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    multiplies_bfloat16.cache_clear()


@pytest.fixture(autouse=True)
def _forget_capabilities() -> Any:
    yield
    multiplies_bfloat16.cache_clear()


@needs_bfloat16
@pytest.mark.parametrize(
    ("able", "expected"),
    [
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True, "avx512_bf16": False}, True),
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"neon": True}, False),
    ],
)
def test_only_what_the_processor_can_do_decides(
    monkeypatch: pytest.MonkeyPatch, able: dict[str, bool], expected: bool
) -> None:
    set_capabilities(monkeypatch, **able)
    assert multiplies_bfloat16() is expected


@needs_bfloat16
@pytest.mark.skipif(sys.platform != "linux", reason="/proc/cpuinfo is of Linux")
def test_it_is_what_the_system_says_of_the_processor() -> None:
    words = Path("/proc/cpuinfo").read_text("utf-8").split()
    assert multiplies_bfloat16() is bool({"avx512_bf16", "amx_bf16"} & set(words))


def test_a_build_of_torch_without_the_products_computes_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_capabilities(monkeypatch, avx512_bf16=True)
    monkeypatch.setattr("pipeline.onednn.has_onednn", lambda dtype: False)
    assert multiplies_bfloat16() is False


@pytest.mark.parametrize("has", [True, False])
def test_what_auto_means(monkeypatch: pytest.MonkeyPatch, has: bool) -> None:
    monkeypatch.setattr("pipeline.recipe.has_native_bfloat16", lambda: has)
    assert resolve_precision("auto", "cuda") == "float16"
    assert resolve_precision("auto", "cpu") == ("bfloat16" if has else "float32")
    assert resolve_precision("auto", "mps") == "float32"
    assert resolve_precision("float32", "cuda") == "float32"
    assert set(list_possible_precisions("auto")) == {"float32", "float16", "bfloat16"}
    assert set(list_possible_precisions("auto", "cpu")) == {"float32", "bfloat16"}
    assert list_possible_precisions("float16") == ("float16",)


def make_project(folder: Path, backbone: Path, precision: str, rows: int) -> Path:
    folder.mkdir(exist_ok=True)
    write_tickets(folder / "tickets.csv", rows)
    settings = SETTINGS.replace("BACKBONE", str(backbone))
    settings = settings.replace("precision: float32", f"precision: {precision}")
    (folder / "params.yaml").write_text(
        settings.replace("\nheads:\n", "\nheads:\n  search: []\n"), "utf-8"
    )
    for stage in ("fetch", "prepare", "embed"):
        run(folder, stage)
    return folder


def run(folder: Path, *arguments: str) -> str:
    """What a command says, which must succeed."""
    done = run_cli(folder, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return " ".join((done.stdout + done.stderr).split())


def read_precision(folder: Path) -> str:
    return str(read_manifest(Project(folder).store).recipe["precision"])


@needs_bfloat16
def test_a_new_store_is_computed_by_what_the_processor_can_do(
    tmp_path: Path, tiny_backbone: Path, with_bfloat16: None
) -> None:
    folder = make_project(tmp_path / "p", tiny_backbone, "auto", 120)
    manifest = read_manifest(Project(folder).store)
    assert manifest.recipe["precision"] == "bfloat16"
    assert manifest.fidelity is not None
    assert 0.99 <= manifest.fidelity["lowest_cosine"] < 1
    texts, keys = read_corpus(folder)
    stored = read_vectors(Project(folder).store, keys, manifest.layers)
    with Embedder(tiny_backbone, precision="bfloat16", dtype="float16") as embedder:
        np.testing.assert_allclose(
            stored, embedder.embed(texts).vectors.astype(np.float32), rtol=0, atol=0.02
        )
    run(folder, "train-heads")
    with pipeline.load(folder) as model:
        model.embed(TEXTS)
        assert model._embedder is not None
        assert model._embedder.precision == "bfloat16"  # and not float32, which it would be else


def test_the_precision_of_the_store_stays(
    tmp_path: Path, tiny_backbone: Path, with_bfloat16: None
) -> None:
    """Texts are added on a processor, or by a version, that would choose another precision."""
    folder = make_project(tmp_path / "p", tiny_backbone, "float32", 120)
    held = read_manifest(Project(folder).store).rows
    edit_params({"embed.precision": "auto"}, folder / "params.yaml")
    assert "holds all" in run(folder, "embed")
    write_tickets(folder / "tickets.csv", 160)
    run(folder, "fetch")
    run(folder, "prepare")
    said = run(folder, "embed")
    assert "precision float32, as that of the vectors that are here" in said
    assert f"{held:,} kept" in said
    assert read_precision(folder) == "float32"
    run(folder, "train-heads")  # which takes it for what the settings mean


def test_the_precision_of_a_store_stays_that_has_lost_its_manifest(
    tmp_path: Path, tiny_backbone: Path, with_bfloat16: None
) -> None:
    folder = make_project(tmp_path / "p", tiny_backbone, "float32", 120)
    edit_params({"embed.precision": "auto"}, folder / "params.yaml")
    (Project(folder).store / "manifest.json").unlink()
    said = run(folder, "embed")
    assert "precision float32, as that of the vectors that are here" in said
    assert " 0 embedded" in said
    assert read_precision(folder) == "float32"


@needs_bfloat16
def test_a_kept_store_of_the_same_settings_wins_too(
    tmp_path: Path, tiny_backbone: Path, with_bfloat16: None
) -> None:
    folder = make_project(tmp_path / "p", tiny_backbone, "float32", 60)
    edit_params({"embed.precision": "auto", "embed.max_tokens": 16}, folder / "params.yaml")
    run(folder, "embed")
    assert read_precision(folder) == "bfloat16"
    edit_params({"embed.max_tokens": 128}, folder / "params.yaml")
    said = run(folder, "embed")
    assert read_precision(folder) == "float32"
    assert " 0 embedded" in said


@needs_bfloat16
def test_the_encoder_keeps_the_precision_of_its_store(
    tmp_path: Path, tiny_backbone: Path, with_bfloat16: None
) -> None:
    given: dict[str, Any] = {"cache": tmp_path / "old", "devices": "cpu"}
    exact = FrozenTextEncoder(tiny_backbone, precision="float32", **given).fit_transform(TEXTS)
    auto = FrozenTextEncoder(tiny_backbone, **given).fit(TEXTS)
    np.testing.assert_array_equal(auto.transform(TEXTS), exact)
    more = auto.transform([*TEXTS, "one more"])
    with Embedder(tiny_backbone, layers="last", precision="float32") as embedder:
        np.testing.assert_allclose(more[-1:], embedder.embed(["one more"]).vectors[:, 0], atol=1e-6)
    fresh = FrozenTextEncoder(tiny_backbone, cache=tmp_path / "new", devices="cpu")
    fresh.fit_transform(TEXTS)
    (record,) = (tmp_path / "new").glob("*/manifest.json")
    assert json.loads(record.read_text("utf-8"))["recipe"]["precision"] == "bfloat16"
