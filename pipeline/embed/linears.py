"""Linear layers with what follows them: bias, GELU, or the residual and LayerNorm."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol

import torch
from torch.nn import functional

from pipeline.console import say

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
        return _gelu(self.apply(x), kind)

    def apply_add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """The product, the bias and a residual, as ``Linear`` has it."""
        return self.apply(x) + residual

    def apply_multiply(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """The product and the bias, times a gate, as ``Linear`` has it."""
        return self.apply(x) * gate

    def apply_add_norm(self, x: torch.Tensor, residual: torch.Tensor, norm: Norm) -> torch.Tensor:
        """The product, the bias, a residual and LayerNorm, as ``Linear`` has it."""
        return _add_norm(self.apply(x), residual, norm.weight, norm.bias, norm.epsilon)


class CompiledLinear(PlainLinear):
    """A linear layer whose product is followed by one compiled kernel.

    The kernel reads and writes its tensor once, where torch's own operators do so several times.
    """

    @staticmethod
    def can_run(dtype: torch.dtype, device: torch.device, width: int) -> bool:
        """Whether torch can compile here; it compiles to find out, and says why if it cannot.

        :param dtype: type of the tensors to come.
        :param device: device that will hold the tensors.
        :param width: last dimension of the tensors.
        """
        x = torch.ones(64, width, dtype=dtype, device=device)
        try:
            with torch.inference_mode():
                _compile(_gelu)(x, "none")
                _compile(_add_norm)(x, x, x[0], x[0], 1e-5)
        except Exception as error:  # its kind depends on what is missing
            say(f"engine    not compiled: {str(error).strip().splitlines()[0]:.120}")
            return False
        return True

    def apply_gelu(self, x: torch.Tensor, kind: GeluKind) -> torch.Tensor:
        """The product, the bias and GELU, as ``Linear`` has it."""
        out: torch.Tensor = _compile(_gelu)(self.apply(x), kind)
        return out

    def apply_add_norm(self, x: torch.Tensor, residual: torch.Tensor, norm: Norm) -> torch.Tensor:
        """The product, the bias, a residual and LayerNorm, as ``Linear`` has it."""
        out: torch.Tensor = _compile(_add_norm)(
            self.apply(x), residual, norm.weight, norm.bias, norm.epsilon
        )
        return out


def _gelu(x: torch.Tensor, kind: GeluKind) -> torch.Tensor:
    return functional.gelu(x, approximate=kind)


def _add_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    epsilon: float,
) -> torch.Tensor:
    return functional.layer_norm(x + residual, weight.shape, weight, bias, epsilon)


@cache
def _compile(function: Any) -> Any:
    return torch.compile(function)


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
