"""What a trained head is, for training to save and for anyone to use: numpy alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Centers:
    """The training rows that a kernel head compares a row x with: exp(-|x * scale + shift - p|²).

    The sum is rounded to float16, as the places are: a row is then just like itself.

    :param places: p of each: float16, [H, D].
    :param scale: float32, [D].
    :param shift: float32, [D].
    """

    places: npt.NDArray[np.float16]
    scale: Floats
    shift: Floats

    def compare(self, features: Floats) -> Floats:
        """How like raw rows, [B, D], are to each center, from 0 to 1: [B, H]."""
        places = self.places.astype(np.float32)
        z = (features * self.scale + self.shift).astype(np.float16).astype(np.float32)
        distances = np.square(z).sum(axis=1)[:, None] + np.square(places).sum(axis=1)
        distances -= 2 * (z @ places.T)
        likeness: Floats = np.exp(-np.maximum(distances, 0))
        return likeness


@dataclass(frozen=True)
class HeadWeights:
    """One head for raw features: scaling, mix of layers and centering are folded in.

    :param weight: float32, [R, D], or [R, H] of a kernel head with H centers or behind a hidden
        layer of H; R is 1 or the number of logits.
    :param bias: float32, [K]: K logits.
    :param input_weight: of the hidden layer: float32, [H, D].
    :param input_bias: of the hidden layer: float32, [H].
    :param centers: of a kernel head; heads may share them.
    """

    weight: Floats
    bias: Floats
    input_weight: Floats | None = None
    input_bias: Floats | None = None
    centers: Centers | None = None

    def compute_logits(self, features: Floats) -> Floats:
        """Logits of raw features [B, D]: [B, K]."""
        if self.input_weight is not None and self.input_bias is not None:
            features = np.maximum(features @ self.input_weight.T + self.input_bias, 0)
        if self.centers is not None:
            features = self.centers.compare(features)
        logits: Floats = features @ self.weight.T + self.bias
        return logits


def name_tensors(prefix: str, made: HeadWeights | Centers) -> dict[str, npt.NDArray[Any]]:
    """Its tensors as they are saved, each under ``prefix.name``; without a head's centers."""
    found = ((name, getattr(made, name)) for name in made.__dataclass_fields__ if name != "centers")
    return {f"{prefix}.{name}": np.ascontiguousarray(x) for name, x in found if x is not None}


def read_weights(
    prefix: str,
    tensors: Mapping[str, Any],
    rows: int,
    outputs: int,
    features: int,
    kernel: str | None = None,
) -> HeadWeights:
    """One head of those that ``name_tensors`` named.

    :param rows: R.
    :param outputs: K.
    :param features: D.
    :param kernel: prefix of its centers.
    :raises ValueError: naming a tensor that is missing or of another shape.
    """
    inside = len(tensors.get(f"{prefix}.input_bias", ()))
    wanted: dict[str, tuple[int, ...]] = {}
    if inside:
        wanted = {"input_weight": (inside, features), "input_bias": (inside,)}
    centers = None
    if kernel is not None:
        inside = len(tensors.get(f"{kernel}.places", ()))
        shapes = {"places": (inside, features), "scale": (features,), "shift": (features,)}
        centers = Centers(**dict(_take(kernel, tensors, shapes)))
    wanted |= {"weight": (rows, inside or features), "bias": (outputs,)}
    return HeadWeights(**dict(_take(prefix, tensors, wanted)), centers=centers)


def _take(
    prefix: str, tensors: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, Any]]:
    for name, shape in wanted.items():
        full = f"{prefix}.{name}"
        found = tensors[full].shape if full in tensors else "no such tensor"
        if found != shape:
            raise ValueError(f"{full}: {found}, heads.json tells of shape {shape}")
        yield name, tensors[full]
