"""A backbone's weights, straight from its safetensors files, without transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.architecture import Architecture
from pipeline.embed.backbone import Backbone
from pipeline.errors import PipelineError
from pipeline.files import parse_json, read_bounded

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
# The names that checkpoints of BERT's first years have for the parts of LayerNorm.
_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
# A folder with this file is an adapter to another model.
_ADAPTER = "adapter_config.json"
# Keys of a configuration by which the weights stand in another file, or are not plain numbers.
_ODD_KEYS = ("transformers_weights", "quantization_config")

# What reading a folder may raise that is not as simple as it can be.
_ODDITIES = (OSError, PipelineError, ValueError, LookupError, TypeError, AttributeError)

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Weights:
    """What a packed encoder is made of.

    :param architecture: facts that the backbone's folder states.
    :param config: the backbone's configuration, with what it leaves out at the family's defaults.
    :param tensors: name in transformers' model → tensor, float32.
    """

    architecture: Architecture
    config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]

    @classmethod
    def of_backbone(cls, backbone: Backbone) -> Weights:
        """The weights of a backbone that transformers has loaded.

        :param backbone: the backbone in float32.
        """
        model = backbone.model
        return cls(backbone.architecture, model.config.to_dict(), model.state_dict())

    @classmethod
    def read(
        cls, folder: Path, config: Mapping[str, Any], shapes: Shapes, prefix: str
    ) -> Weights | None:
        """The weights in a backbone's files, mapped into memory rather than read.

        :param folder: the backbone's folder.
        :param config: the backbone's configuration, completed.
        :param shapes: the tensors wanted.
        :param prefix: what their names in the files may begin with, before a dot.
        :returns: ``None`` if anything is not as simple as it can be: a tensor that is missing, of
            another shape than the configuration says, twice there or not of floats; files that
            cannot be read. Transformers knows what to make of such a folder, or says why nothing.
        """
        from safetensors import SafetensorError

        if any(config.get(key) for key in _ODD_KEYS) or is_adapter(folder):
            return None
        try:
            tensors = _read_tensors(_list_files(folder), shapes, prefix)
        except (
            OSError,
            SafetensorError,
            PipelineError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
        ):
            return None
        return cls(Architecture.read(folder), config, tensors)


def is_adapter(folder: Path) -> bool:
    """Whether a folder is an adapter to another model, which only transformers can load.

    :param folder: a backbone's folder.
    """
    return (folder / _ADAPTER).exists()


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a backbone as its folder has it.

    :param folder: a backbone's folder, whose configuration ``Architecture.read`` accepts.
    """
    config: dict[str, Any] = parse_json(read_bounded(folder / "config.json"))
    return config


def _list_files(folder: Path) -> list[Path]:
    """The files of the weights: one, or those that an index names.

    :raises ValueError: if the index names a file outside the folder.
    :raises OSError: if there is no index either; ``KeyError`` and ``TypeError`` if it is none.
    """
    if (folder / _WHOLE).is_file():
        return [folder / _WHOLE]
    names = set(parse_json(read_bounded(folder / _INDEX))["weight_map"].values())
    if any(Path(name).name != name for name in names):
        raise ValueError("an index that names files elsewhere")
    return [folder / name for name in sorted(names)]


def _read_tensors(files: list[Path], shapes: Shapes, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors of some names and shapes, in float32.

    :param prefix: what names may begin with, before a dot.
    :raises ValueError: if one is missing, of another shape, twice there, or not of floats.
    """
    from safetensors import safe_open

    tensors: dict[str, torch.Tensor] = {}
    with ExitStack() as stack:
        for path in files:
            file = stack.enter_context(safe_open(path, framework="pt"))
            for key, name in _iterate_names(file.keys(), prefix):
                if name not in shapes:
                    continue
                if name in tensors or tuple(file.get_slice(key).get_shape()) != shapes[name]:
                    raise ValueError(f"{name}: twice there, or of another shape")
                tensor = file.get_tensor(key)
                if not tensor.is_floating_point() or tensor.element_size() < 2:
                    raise ValueError(f"{name}: of type {tensor.dtype}")
                tensors[name] = tensor.to(torch.float32)
    if len(tensors) < len(shapes):
        raise ValueError("tensors are missing")
    return tensors


def _iterate_names(keys: Iterator[str], prefix: str) -> Iterator[tuple[str, str]]:
    """The keys of a file, and the names that transformers' model has for them."""
    for key in keys:
        name = key.removeprefix(f"{prefix}.")
        for old, new in _OLD_NAMES.items():
            if name.endswith(old):
                name = name.removesuffix(old) + new
        yield key, name
