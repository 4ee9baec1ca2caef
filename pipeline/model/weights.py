"""What a trained head is, for training to save and for anyone to apply: numpy alone.

The shape letters are B rows, D features, O outputs, R rows of a weight, U centres or hidden units.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
# The version of the format of heads.json and of the tensors beside it.
FORMAT = 4
# Coordinates are clipped to ±60,000 before they are rounded to float16, whose largest number is
# 65,504: a larger one would become infinite.
MAX_COORDINATE = 60_000.0
_BLOCK_ROWS = 64  # of positions that are made float32 at once


@dataclass(frozen=True)
class Centers:
    """The U training rows that a kernel head compares a row x with: exp(-|x * scale + shift - c|²).

    The sum x * scale + shift is rounded to float16, as the positions of the centres are, so that a
    centre is at distance 0 of its own row.

    :param positions: c of each centre: float16, [U, D].
    :param scale: float32, [D].
    :param shift: float32, [D].
    """

    positions: npt.NDArray[np.float16]
    scale: Floats
    shift: Floats

    def compare(self, features: Floats) -> Floats:
        """How like raw rows are to each centre, from 0 to 1.

        :param features: float32, [B, D].
        :returns: [B, U].
        """
        positions, squares = self._wide_positions
        z = np.clip(features * self.scale + self.shift, -MAX_COORDINATE, MAX_COORDINATE)
        z = z.astype(np.float16).astype(np.float32)
        distances = np.square(z).sum(axis=1)[:, None] + squares
        distances -= 2 * (z @ positions.T)
        likeness: Floats = np.exp(-np.maximum(distances, 0))
        return likeness

    @cached_property
    def _wide_positions(self) -> tuple[Floats, Floats]:
        """The positions in float32, [U, D], and the squared length of each, [U].

        Making them takes longer than comparing one text with them, so they are kept.
        """
        positions = np.empty(self.positions.shape, np.float32)
        squares = np.empty(len(positions), np.float32)
        for start in range(0, len(positions), _BLOCK_ROWS):  # which the processor's caches hold
            rows = slice(start, start + _BLOCK_ROWS)
            positions[rows] = self.positions[rows]
            squares[rows] = np.square(positions[rows]).sum(axis=1)
        return positions, squares

    def prepare(self) -> None:
        """Have at hand what ``compare`` needs, which would else be made at its first call."""
        _ = self._wide_positions


@dataclass(frozen=True)
class HeadWeights:
    """One head for raw features: scaling, mix of layers and centering are folded in.

    :param weight: float32, [R, D], or [R, U] of a head with U centres or hidden units; R is O, or
        1 for a weight that all outputs share.
    :param bias: float32, [O].
    :param input_weight: the weight of the hidden layer: float32, [U, D].
    :param input_bias: the bias of the hidden layer: float32, [U].
    :param centers: what a kernel head compares rows with; heads may share them.
    """

    weight: Floats
    bias: Floats
    input_weight: Floats | None = None
    input_bias: Floats | None = None
    centers: Centers | None = None

    def compute_logits(self, features: Floats) -> Floats:
        """Logits of raw rows.

        :param features: float32, [B, D].
        :returns: [B, O].
        """
        if self.input_weight is not None and self.input_bias is not None:
            features = np.maximum(features @ self.input_weight.T + self.input_bias, 0)
        if self.centers is not None:
            return self.weigh(self.centers.compare(features))
        logits: Floats = features @ self.weight.T + self.bias
        return logits

    def weigh(self, likeness: Floats) -> Floats:
        """Logits of a kernel head from what ``Centers.compare`` gave.

        :param likeness: [B, U].
        :returns: [B, O].
        """
        # The sum is in float64, since a wide kernel has large weights of both signs that nearly
        # cancel each other.
        logits = likeness.astype(np.float64) @ self.weight.T + self.bias
        return logits.astype(np.float32)


# Attribute → name of its tensor in heads.safetensors, in the order in which they are written.
_HEAD_TENSORS = {name: name for name in ("weight", "bias", "input_weight", "input_bias")}
_CENTER_TENSORS = {"positions": "places", "scale": "scale", "shift": "shift"}


def name_tensors(prefix: str, made: HeadWeights | Centers) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a head, without its centres, or of centres, as they are saved.

    :param prefix: what their names begin with, before a dot.
    :param made: the head, or the centers of a kernel head.
    """
    names = _HEAD_TENSORS if isinstance(made, HeadWeights) else _CENTER_TENSORS
    tensors = ((name, getattr(made, attribute)) for attribute, name in names.items())
    return {f"{prefix}.{name}": np.ascontiguousarray(x) for name, x in tensors if x is not None}


def read_weights(
    prefix: str,
    tensors: Mapping[str, Any],
    rows: int,
    outputs: int,
    features: int,
    centers: Centers | None = None,
) -> HeadWeights:
    """One head of those that ``name_tensors`` named.

    :param prefix: what the names of its tensors begin with.
    :param tensors: name → tensor.
    :param rows: R.
    :param outputs: O.
    :param features: D.
    :param centers: what a kernel head compares rows with.
    :raises ValueError: naming a tensor that is missing or of another shape.
    """
    wanted: dict[str, tuple[int, ...]] = {}
    inputs = features
    if centers is not None:
        inputs = len(centers.positions)
    elif f"{prefix}.input_bias" in tensors:
        inputs = tensors[f"{prefix}.input_bias"].size
        wanted = {"input_weight": (inputs, features), "input_bias": (inputs,)}
    wanted |= {"weight": (rows, inputs), "bias": (outputs,)}
    taken = {name: tensor.astype(np.float32) for name, tensor in _take(prefix, tensors, wanted)}
    return HeadWeights(**taken, centers=centers)


def read_centers(prefix: str, tensors: Mapping[str, Any], features: int) -> Centers:
    """Centres that ``name_tensors`` named.

    :param prefix: what the names of their tensors begin with.
    :param tensors: name → tensor.
    :param features: D.
    :raises ValueError: naming a tensor that is missing or of another shape.
    """
    number = tensors[f"{prefix}.places"].shape[:1] if f"{prefix}.places" in tensors else ()
    shapes = {"places": (*number, features), "scale": (features,), "shift": (features,)}
    taken = dict(_take(prefix, tensors, shapes))
    return Centers(
        taken["places"].astype(np.float16, copy=False),
        taken["scale"].astype(np.float32),
        taken["shift"].astype(np.float32),
    )


def _take(
    prefix: str, tensors: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, Any]]:
    """The tensors of some names and shapes, each checked."""
    for name, shape in wanted.items():
        full = f"{prefix}.{name}"
        if full not in tensors:
            raise ValueError(f"{full}: no such tensor")
        if tensors[full].shape != shape:
            raise ValueError(f"{full}: {tensors[full].shape}, heads.json tells of shape {shape}")
        yield name, tensors[full]
