"""Linear layers with what follows them: bias, GELU, the residual."""

from __future__ import annotations

import os
from typing import Literal, Protocol

import torch
from torch.nn import functional

GeluKind = Literal["none", "tanh"]


class Linear(Protocol):
    """x W^T + b for rows x, in three forms. *Shape:* [T, D_in] to [T, D_out]."""

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """The product and the bias alone."""

    def apply_gelu(self, x: torch.Tensor, kind: GeluKind) -> torch.Tensor:
        """Then GELU: exact (``none``) or by its ``tanh`` form."""

    def apply_add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Then a residual, [T, D_out], is added."""


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
        return functional.gelu(self.apply(x), approximate=kind)

    def apply_add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.apply(x).add_(residual)


class OneDnnLinear:
    """By oneDNN: weights laid out for the processor once, what follows fused into the product.

    The operators are those that torch's own compiler emits for CPUs; calling them needs none.

    :param weight: [D_out, D_in], float32 or bfloat16, on the CPU.
    :param bias: [D_out].
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        # oneDNN keeps the code made for each number of rows, by default for 1,024 of them: hundreds
        # of megabytes for a corpus whose batches all differ a little. It is made in no time.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        self.bias = bias

    @staticmethod
    def can_run(dtype: torch.dtype) -> bool:
        """Whether this build of torch and this processor have it."""
        # Untyped in torch itself.
        if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            return False
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        if dtype not in (torch.float32, torch.bfloat16):
            return False
        ops = torch.ops.mkldnn
        return hasattr(ops, "_reorder_linear_weight") and hasattr(ops, "_linear_pointwise")

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        return self._run(x, "none", "")

    def apply_gelu(self, x: torch.Tensor, kind: GeluKind) -> torch.Tensor:
        return self._run(x, "gelu", kind)

    def apply_add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, residual, self.weight, self.bias, "add"
        )
        return out

    def _run(self, x: torch.Tensor, then: str, algorithm: str) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, then, [], algorithm
        )
        return out
