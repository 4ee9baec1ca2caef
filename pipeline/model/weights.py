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
Doubles = npt.NDArray[np.float64]
# The version of the format of heads.json and of the tensors beside it.
FORMAT = 4
# Coordinates are clipped to ±60,000 before they are rounded to float16, whose largest number is
# 65,504: a larger one would become infinite.
MAX_COORDINATE = 60_000.0
_BLOCK_ROWS = 1024  # that are compared with centres at a time, which bounds memory
_WIDENED_ROWS = 64  # of positions that are made float64 at once
_EXACT_SUM = 2.0**5  # sums of products of float16 numbers are exact in float64 up to this
_COARSE_STEPS = 2.0**12  # of 1, for coordinates whose sums are exact up to 2^17


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
        :returns: [B, U]; a row's numbers do not depend on the rows beside it.
        """
        positions, squares = self._wide_positions
        longest = float(np.sqrt(squares.max(initial=0)))
        likeness = np.empty((len(features), len(positions)), np.float32)
        for start in range(0, len(features), _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            z = np.clip(features[block] * self.scale + self.shift, -MAX_COORDINATE, MAX_COORDINATE)
            z = z.astype(np.float16).astype(np.float64)
            distances = multiply_exactly(z, positions, longest)
            distances *= -2
            distances += np.square(z).sum(axis=1)[:, None]
            distances += squares
            of_block = likeness[block]
            of_block[:] = distances
            np.maximum(of_block, 0, out=of_block)
            np.exp(np.negative(of_block, out=of_block), out=of_block)
        return likeness

    @cached_property
    def _wide_positions(self) -> tuple[Doubles, Doubles]:
        """The positions in float64, [U, D], and the squared length of each, [U].

        Making them takes longer than comparing one text with them, so they are kept.
        """
        positions = np.empty(self.positions.shape, np.float64)
        squares = np.empty(len(positions), np.float64)
        for start in range(0, len(positions), _WIDENED_ROWS):  # which the processor's caches hold
            rows = slice(start, start + _WIDENED_ROWS)
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
            features = np.maximum(multiply_rows(features, self.input_weight) + self.input_bias, 0)
        if self.centers is not None:
            return self.weigh(self.centers.compare(features))
        logits: Floats = multiply_rows(features, self.weight) + self.bias
        return logits

    def weigh(self, likeness: Floats) -> Floats:
        """Logits of a kernel head from what ``Centers.compare`` gave.

        :param likeness: [B, U].
        :returns: [B, O].
        """
        # The sum is in float64, since a wide kernel has large weights of both signs that nearly
        # cancel each other.
        logits = multiply_rows(likeness.astype(np.float64), self.weight) + self.bias
        return logits.astype(np.float32)


def multiply_rows(rows: npt.NDArray[Any], weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """``rows @ weight.T``, each row by a product of its own.

    In one product of all rows the order in which a row's terms are added, and with it the last
    digits of their sum, depends on how many rows there are and which of them it is.

    :param rows: [B, D].
    :param weight: [R, D].
    :returns: [B, R], in the type of ``rows``.
    """
    products: npt.NDArray[Any] = (rows[:, None] @ weight.astype(rows.dtype, copy=False).T)[:, 0]
    return products


def multiply_exactly(rows: Doubles, positions: Doubles, longest: float) -> Doubles:
    """``rows @ positions.T`` of numbers that float16 has, in one product and yet in no order.

    Every number of float16 is a multiple of 2^-24, so that sums of products are multiples of 2^-48.
    Float64 has all of them up to 2^5, and no sum is rounded, whichever terms are added first. A row
    that may come to larger sums is multiplied by the multiples of 2^-12 in the positions, whose
    sums are exact up to 2^17, and by what is left of them.

    :param rows: [B, D].
    :param positions: [U, D].
    :param longest: the greatest length of a position.
    :returns: [B, U].
    """
    products: Doubles = rows @ positions.T
    is_large = np.sqrt(np.square(rows).sum(axis=1)) * longest >= _EXACT_SUM
    if is_large.any():
        coarse = np.rint(positions * _COARSE_STEPS) / _COARSE_STEPS
        large = rows[is_large]
        products[is_large] = large @ coarse.T + large @ (positions - coarse).T
    return products


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
