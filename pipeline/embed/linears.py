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
    """LayerNorm, its statistics in float32 whatever the input is."""

    weight: torch.Tensor
    bias: torch.Tensor
    epsilon: float

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


class Linear(Protocol):
    """x W^T + b for rows x, in three forms. *Shape:* [T, D_in] to [T, D_out]."""

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """The product and the bias alone."""

    def apply_gelu(self, x: torch.Tensor, kind: GeluKind) -> torch.Tensor:
        """Then GELU: exact (``none``) or by its ``tanh`` form."""

    def apply_add_norm(self, x: torch.Tensor, residual: torch.Tensor, norm: Norm) -> torch.Tensor:
        """Then a residual, [T, D_out], is added, and LayerNorm follows."""


class PlainLinear:
    """By torch's own operators, on any device and in any precision.

    :param weight: [D_out, D_in].
    :param bias: [D_out].
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self.weight = weight
        self.bias = bias

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight, self.bias)

    def apply_gelu(self, x: torch.Tensor, kind: GeluKind) -> torch.Tensor:
        return _gelu(self.apply(x), kind)

    def apply_add_norm(self, x: torch.Tensor, residual: torch.Tensor, norm: Norm) -> torch.Tensor:
        return _add_norm(self.apply(x), residual, norm.weight, norm.bias, norm.epsilon)


class CompiledLinear(PlainLinear):
    """The same, but what follows the product is compiled into one kernel, which reads and writes
    its tensor once."""

    @staticmethod
    def can_run(dtype: torch.dtype, device: torch.device, width: int) -> bool:
        """Compile, and say so where the compiler is missing or fails.

        :param width: of the tensors to come.
        """
        x = torch.ones(64, width, dtype=dtype, device=device)
        try:
            with torch.inference_mode():
                _compile(_gelu)(x, "none")
                _compile(_add_norm)(x, x, x[0], x[0], 1e-5)
        except Exception as error:  # of many kinds, by what is missing
            say(f"engine    not compiled: {str(error).strip().splitlines()[0]:.120}")
            return False
        return True

    def apply_gelu(self, x: torch.Tensor, kind: GeluKind) -> torch.Tensor:
        out: torch.Tensor = _compile(_gelu)(self.apply(x), kind)
        return out

    def apply_add_norm(self, x: torch.Tensor, residual: torch.Tensor, norm: Norm) -> torch.Tensor:
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
    bias: torch.Tensor,
    epsilon: float,
) -> torch.Tensor:
    return functional.layer_norm(x + residual, weight.shape, weight, bias, epsilon)


@cache
def _compile(function: Any) -> Any:
    return torch.compile(function)


class OneDnnLinear:
    """By oneDNN: weights laid out for the processor once, what follows fused into the product.

    :param weight: [D_out, D_in], float32 or bfloat16, on the CPU.
    :param bias: [D_out].
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        # oneDNN, and torch in each thread, keep the code made for each number of rows, by default
        # for 1,024 of them: hundreds of megabytes for a corpus whose batches all differ a little.
        # The layers of one batch need four, and it is made in no time.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
        os.environ.setdefault("LRU_CACHE_CAPACITY", "16")
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        self.bias = bias

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        return self._run(x, "none", "")

    def apply_gelu(self, x: torch.Tensor, kind: GeluKind) -> torch.Tensor:
        return self._run(x, "gelu", kind)

    def apply_add_norm(self, x: torch.Tensor, residual: torch.Tensor, norm: Norm) -> torch.Tensor:
        added: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, residual, self.weight, self.bias, "add"
        )
        return norm.apply(added)

    def _run(self, x: torch.Tensor, then: str, algorithm: str) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, then, [], algorithm
        )
        return out
