"""The directions in which features vary most, from which the solver's preconditioner is made."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.onednn import multiply

MAX_DIRECTIONS = 512
_SAMPLE_ROWS = 8192


@dataclass(frozen=True)
class Basis:
    """The V directions in which features of width D vary most, and how much.

    :param directions: orthonormal columns, [D, V].
    :param variances: the mean square of the features along each, [V].
    :param rest: the mean square along any other direction, at most; 0 if there is no other.
    """

    directions: torch.Tensor
    variances: torch.Tensor
    rest: float


def find_basis(features: torch.Tensor, max_directions: int = MAX_DIRECTIONS) -> Basis:
    """The principal directions of a sample of the rows, by randomized subspace iteration.

    Only the preconditioner is made of them. So neither the sample nor the error of the iteration
    changes what the heads converge to.

    Source: Halko, Martinsson, Tropp (2011), Finding structure with randomness.

    :param features: float32, [B, D].
    :param max_directions: the largest V.
    """
    sample = features[choose_rows(len(features))]
    D = features.shape[1]
    V = min(max_directions, D, len(sample))
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(D, V, generator=generator).to(features.device)
    span = torch.linalg.qr(multiply(sample.T, multiply(start.T, sample))).Q
    span = torch.linalg.qr(multiply(sample.T, multiply(span.T, sample))).Q
    projected = multiply(sample, span.T)
    squares, rotation = torch.linalg.eigh(multiply(projected.T, projected.T) / len(sample))
    squares = squares.clamp_min(0)
    return Basis(span @ rotation, squares, 0.0 if V == D else float(squares[0]))


def choose_rows(rows: int) -> torch.Tensor:
    """The numbers of the rows that directions are found by: int64, ascending.

    :param rows: the number of rows to choose among.
    """
    return torch.arange(0, rows, max(1, rows // _SAMPLE_ROWS))
