"""Linear layers with what follows them: bias, GELU, or the residual and LayerNorm."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch.nn import functional

from pipeline.embed.gpu import find_kernels

GeluKind = Literal["none", "tanh"]


@dataclass(frozen=True)
class Norm:
    """LayerNorm, its statistics in float32 whatever the type of its input.

    :param weight: factors: [D].
    :param bias: addends, [D], or ``None`` for none.
    :param epsilon: the number added to the variance.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    epsilon: float

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize each row of [T, D]."""
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


class Linear(Protocol):
    """A linear layer x W^T + b over rows x, from [T, D_in] to [T, D_out], in five forms."""

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """The product and the bias alone."""

    def apply_gelu(self, x: torch.Tensor, kind: GeluKind) -> torch.Tensor:
        """The product and the bias, and GELU of them: exact (``none``) or its ``tanh`` form."""

    def apply_add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """The product, the bias and a residual, [T, D_out], added up."""

    def apply_multiply(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """The product and the bias, times a gate, [T, D_out], number by number."""

    def apply_add_norm(self, x: torch.Tensor, residual: torch.Tensor, norm: Norm) -> torch.Tensor:
        """The product, the bias and a residual, [T, D_out], added up, and LayerNorm of the sum."""


class PlainLinear:
    """A linear layer by torch's own operators, on any device and in any precision.

    :param weight: matrix W: [D_out, D_in].
    :param bias: vector b, [D_out], or ``None`` for none.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight = weight
        self.bias = bias

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """The product and the bias, as ``Linear`` has it."""
        return functional.linear(x, self.weight, self.bias)

    def apply_gelu(self, x: torch.Tensor, kind: GeluKind) -> torch.Tensor:
        """The product, the bias and GELU, as ``Linear`` has it."""
        return functional.gelu(self.apply(x), approximate=kind)

    def apply_add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """The product, the bias and a residual, as ``Linear`` has it."""
        return self.apply(x) + residual

    def apply_multiply(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """The product and the bias, times a gate, as ``Linear`` has it."""
        return self.apply(x) * gate

    def apply_add_norm(self, x: torch.Tensor, residual: torch.Tensor, norm: Norm) -> torch.Tensor:
        """The product, the bias, a residual and LayerNorm, as ``Linear`` has it."""
        return norm.apply(self.apply(x) + residual)


class FusedLinear(PlainLinear):
    """A linear layer on a GPU, whose residual and LayerNorm are one kernel of this project's.

    GELU stays torch's: reading and writing its tensor is all the time that it takes.
    """

    def apply_add_norm(self, x: torch.Tensor, residual: torch.Tensor, norm: Norm) -> torch.Tensor:
        """The product, the bias, a residual and LayerNorm, as ``Linear`` has it."""
        kernels = find_kernels(x.device)
        assert kernels is not None  # or this class would not have been chosen
        out: torch.Tensor = kernels.add_norm(
            self.apply(x), residual, norm.weight, norm.bias, norm.epsilon
        )
        return out


class OneDnnLinear:
    """A linear layer by oneDNN on a CPU.

    The weights are laid out for the processor once, and GELU, the residual or the gate is fused
    into the product.

    :param weight: matrix W, float32 or bfloat16: [D_out, D_in].
    :param bias: vector b, [D_out], or ``None`` for none.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        # oneDNN generates machine code for every number of rows that it meets. It keeps the code
        # for the last 1,024 numbers by default, and so does torch in each thread: hundreds of
        # megabytes for a corpus whose batches all differ a little. The layers of one batch need
        # code for four shapes only, and generating it takes hardly any time.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
        os.environ.setdefault("LRU_CACHE_CAPACITY", "16")
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        self.bias = bias

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """The product and the bias, as ``Linear`` has it."""
        return self._run(x, "none", "")

    def apply_gelu(self, x: torch.Tensor, kind: GeluKind) -> torch.Tensor:
        """The product, the bias and GELU, as ``Linear`` has it."""
        return self._run(x, "gelu", kind)

    def apply_add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """The product, the bias and a residual, as ``Linear`` has it."""
        return self._run_with(x, residual, "add")

    def apply_multiply(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """The product and the bias, times a gate, as ``Linear`` has it."""
        return self._run_with(x, gate, "mul")

    def apply_add_norm(self, x: torch.Tensor, residual: torch.Tensor, norm: Norm) -> torch.Tensor:
        """The product, the bias, a residual and LayerNorm, as ``Linear`` has it."""
        return norm.apply(self._run_with(x, residual, "add"))

    def _run(self, x: torch.Tensor, then: str, algorithm: str) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, then, [], algorithm
        )
        return out

    def _run_with(self, x: torch.Tensor, other: torch.Tensor, operation: str) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, other, self.weight, self.bias, operation
        )
        return out
