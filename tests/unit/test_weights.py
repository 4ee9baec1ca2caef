"""Weights straight from safetensors files, against those that Hugging Face loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.embed.backbone import Backbone
from pipeline.embed.embedder import Embedder
from pipeline.embed.families.bert import PackedBert
from pipeline.embed.weights import Weights, read_config
from pipeline.errors import AssetError

CPU = torch.device("cpu")
Tensors = dict[str, torch.Tensor]
NAME = "encoder.layer.1.output.dense.weight"


@pytest.fixture
def folder(tiny_backbone: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "backbone"
    shutil.copytree(tiny_backbone, copy)
    return copy


def change_tensors(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def edit_config(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def divide(folder: Path) -> None:
    """Two files and an index in the place of one file."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = list(tensors)
    files = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(names)}
    for file in set(files.values()):
        part = {name: tensors[name] for name in names if files[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def read(folder: Path) -> Weights | None:
    config = {**PackedBert.defaults, **read_config(folder)}
    return Weights.read(folder, config, PackedBert.list_shapes(config), PackedBert.prefix)


def to(kind: torch.dtype) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor.to(kind) for name, tensor in tensors.items()}


def rename_norms(tensors: Tensors) -> Tensors:
    return {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize(
    "change",
    [
        dict,
        to(torch.float16),
        to(torch.bfloat16),
        to(torch.float64),
        lambda tensors: {f"bert.{name}": tensor for name, tensor in tensors.items()},
        lambda tensors: {n: t for n, t in tensors.items() if not n.startswith("pooler.")},
        lambda tensors: tensors | {"cls.predictions.bias": torch.ones(9), "odd": torch.ones(2, 2)},
        rename_norms,
    ],
    ids=["plain", "float16", "bfloat16", "float64", "prefix", "no-pooler", "extra", "old-names"],
)
def test_tensors_are_those_of_hugging_face(
    folder: Path, change: Callable[[Tensors], Tensors]
) -> None:
    change_tensors(folder, change)
    expected = Backbone(folder, CPU, "float32").model.state_dict()
    found = read(folder)
    assert found is not None
    assert set(found.tensors) == {name for name in expected if not name.startswith("pooler.")}
    for name, tensor in found.tensors.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected[name]), name


def test_files_with_an_index_are_one_model(folder: Path, tiny_backbone: Path) -> None:
    divide(folder)
    expected = Backbone(tiny_backbone, CPU, "float32").model.state_dict()
    found = read(folder)
    assert found is not None
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.tensors.items())


def test_what_a_configuration_leaves_out_has_the_defaults_of_hugging_face(folder: Path) -> None:
    from transformers import BertConfig

    defaults = BertConfig().to_dict()
    assert {key: defaults[key] for key in PackedBert.defaults} == dict(PackedBert.defaults)
    edit_config(folder, lambda config: [config.pop(key) for key in ("hidden_act", "vocab_size")])
    config = read_config(folder)
    assert "hidden_act" not in config
    assert PackedBert.is_supported({**PackedBert.defaults, **config})


def lose_a_tensor(folder: Path) -> None:
    change_tensors(folder, lambda tensors: {n: t for n, t in tensors.items() if n != NAME})


def reshape_a_tensor(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors | {NAME: torch.ones(3, 5)})


def make_no_file(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def make_junk(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"junk")


def cut_the_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def lose_a_file_of_the_index(folder: Path) -> None:
    divide(folder)
    (folder / "model-1.safetensors").unlink()


def make_a_junk_index(folder: Path) -> None:
    divide(folder)
    (folder / "model.safetensors.index.json").write_text("[1]")


@pytest.mark.parametrize(
    "damage",
    [
        lose_a_tensor,
        reshape_a_tensor,
        make_no_file,
        make_junk,
        cut_the_file,
        lose_a_file_of_the_index,
        make_a_junk_index,
    ],
)
def test_odd_weights_are_refused_as_by_hugging_face(
    folder: Path, damage: Callable[[Path], None]
) -> None:
    damage(folder)
    assert read(folder) is None
    with pytest.raises(AssetError) as expected:
        Backbone(folder, CPU, "float32")
    with pytest.raises(AssetError) as found:
        Embedder(folder).load()
    assert (found.value.message, found.value.hint) == (expected.value.message, expected.value.hint)


def name_twice(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors | {f"bert.{NAME}": tensors[NAME] + 1})


def make_an_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def name_another_file(folder: Path) -> None:
    edit_config(folder, lambda config: config.update(transformers_weights="model.safetensors"))


@pytest.mark.parametrize("change", [name_twice, make_an_adapter, name_another_file])
def test_what_only_transformers_understands_is_left_to_it(
    folder: Path, change: Callable[[Path], None]
) -> None:
    assert read(folder) is not None
    change(folder)
    assert read(folder) is None


def test_an_index_leads_nowhere_else(folder: Path) -> None:
    divide(folder)
    other = folder.with_name("model-0.safetensors")
    (folder / "model-0.safetensors").rename(other)
    path = folder / "model.safetensors.index.json"
    path.write_text(path.read_text().replace("model-0", "../model-0"))
    assert read(folder) is None
