"""Cached layers → one feature vector a row, and the scaling that is folded into the weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Scaling:
    """A feature x becomes (x - mean) / deviation.

    :param mean: float64, [D].
    :param deviation: float64, [D]; 1 for a feature that is constant over the training rows.
    """

    mean: npt.NDArray[np.float64]
    deviation: npt.NDArray[np.float64]

    @classmethod
    def identity(cls, width: int) -> Scaling:
        """The scaling that changes nothing."""
        return cls(np.zeros(width), np.ones(width))

    @classmethod
    def fit(cls, features: Floats) -> Scaling:
        """Mean and population deviation of the training rows.

        :param features: float32, [B, D].
        """
        mean = features.mean(axis=0, dtype=np.float64)
        deviation = features.std(axis=0, dtype=np.float64)
        # Rounding leaves a constant feature a deviation near, not at, zero.
        constant = deviation <= 1e-7 * np.maximum(np.abs(mean), 1e-12)
        return cls(mean, np.where(constant, 1.0, deviation))

    def apply(self, features: Floats) -> Floats:
        """Scaled features: float32, [B, D]."""
        scale = (1 / self.deviation).astype(np.float32)
        return (features - self.mean.astype(np.float32)) * scale

    def fold(self, weight: Floats, bias: Floats) -> tuple[Floats, Floats]:
        """The head that gives for raw features what this one gives for scaled ones.

        :param weight: float32, [C, D].
        :param bias: float32, [C].
        """
        folded = weight.astype(np.float64) / self.deviation
        shifted = bias.astype(np.float64) - folded @ self.mean
        return folded.astype(np.float32), shifted.astype(np.float32)
