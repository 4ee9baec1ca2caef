"""Products by oneDNN, which torch carries but does not use for float32 on CPUs.

On AMD's Zen 5 they take less than half the time of those that torch itself uses; on Zen 4 both were
alike; no other processor was measured. The operators are those that torch's own compiler emits for
CPUs; calling them needs none.
"""

from __future__ import annotations

from functools import cache

import torch


@cache
def has_onednn(dtype: torch.dtype) -> bool:
    """Whether this build of torch and this processor have it for tensors of some type."""
    # Untyped in torch itself.
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    ops = torch.ops.mkldnn
    if dtype == torch.bfloat16 and not ops._is_mkldnn_bf16_supported():
        return False
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    return hasattr(ops, "_reorder_linear_weight") and hasattr(ops, "_linear_pointwise")


def multiply(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a b^T on any device, by oneDNN where it can: [M, D] and [N, D] to [M, N].

    No gradient passes through it.
    """
    if a.device.type != "cpu" or a.dtype != b.dtype or not has_onednn(a.dtype):
        return a @ b.T
    made: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
        _lay_out(a), _lay_out(b), None, "none", [], ""
    )
    return made


def _lay_out(x: torch.Tensor) -> torch.Tensor:
    # With gaps between its rows, it takes oneDNN hundreds of times as long.
    return x if x.is_contiguous() or x.T.is_contiguous() else x.contiguous()
