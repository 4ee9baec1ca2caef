"""What a trained head is, for training to save and for anyone to use: numpy alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
FORMAT = 3  # of heads.json and the tensors beside it
FARTHEST = 60_000.0  # that float16 can tell


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
        z = np.clip(features * self.scale + self.shift, -FARTHEST, FARTHEST)
        z = z.astype(np.float16).astype(np.float32)
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
            return self.weigh(self.centers.compare(features))
        logits: Floats = features @ self.weight.T + self.bias
        return logits

    def weigh(self, likeness: Floats) -> Floats:
        """Logits of a kernel head from what ``centers.compare`` gave, [B, H]: [B, K]."""
        # Of a wide kernel, large weights of both signs nearly cancel.
        logits = likeness.astype(np.float64) @ self.weight.T + self.bias
        return logits.astype(np.float32)


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
    centers: Centers | None = None,
) -> HeadWeights:
    """One head of those that ``name_tensors`` named.

    :param rows: R.
    :param outputs: K.
    :param features: D.
    :param centers: of a kernel head.
    :raises ValueError: naming a tensor that is missing or of another shape.
    """
    wanted: dict[str, tuple[int, ...]] = {}
    inside = features
    if centers is not None:
        inside = len(centers.places)
    elif f"{prefix}.input_bias" in tensors:
        inside = tensors[f"{prefix}.input_bias"].size
        wanted = {"input_weight": (inside, features), "input_bias": (inside,)}
    wanted |= {"weight": (rows, inside), "bias": (outputs,)}
    found = {name: tensor.astype(np.float32) for name, tensor in _take(prefix, tensors, wanted)}
    return HeadWeights(**found, centers=centers)


def read_centers(prefix: str, tensors: Mapping[str, Any], features: int) -> Centers:
    """Centers that ``name_tensors`` named.

    :param features: D.
    :raises ValueError: naming a tensor that is missing or of another shape.
    """
    number = tensors[f"{prefix}.places"].shape[:1] if f"{prefix}.places" in tensors else ()
    shapes = {"places": (*number, features), "scale": (features,), "shift": (features,)}
    found = dict(_take(prefix, tensors, shapes))
    return Centers(
        found["places"].astype(np.float16),
        found["scale"].astype(np.float32),
        found["shift"].astype(np.float32),
    )


def _take(
    prefix: str, tensors: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, Any]]:
    for name, shape in wanted.items():
        full = f"{prefix}.{name}"
        if full not in tensors:
            raise ValueError(f"{full}: no such tensor")
        if tensors[full].shape != shape:
            raise ValueError(f"{full}: {tensors[full].shape}, heads.json tells of shape {shape}")
        yield name, tensors[full]
