"""Matrix products by oneDNN, which torch carries but does not use for float32 on CPUs.

On AMD's Zen 5, products by oneDNN take less than half the time of those that torch itself computes;
on Zen 4 both take the same time; no other processor was measured. The operators are those that
torch's compiler emits for CPUs. They are called here without it.
"""

from __future__ import annotations

from functools import cache

import torch


@cache
def has_onednn(dtype: torch.dtype) -> bool:
    """Whether this build of torch, on this processor, has oneDNN's products.

    :param dtype: the type of the tensors.
    """
    # The annotation silences mypy: torch gives this function no types.
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    ops = torch.ops.mkldnn
    if dtype == torch.bfloat16 and not ops._is_mkldnn_bf16_supported():
        return False
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    return hasattr(ops, "_reorder_linear_weight") and hasattr(ops, "_linear_pointwise")


@cache
def multiplies_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 itself, by AVX512-BF16 or AMX, and oneDNN uses it.

    Others widen the numbers to float32 first, which takes longer than float32 does.
    """
    if not has_onednn(torch.bfloat16):
        return False
    if hasattr(torch.cpu, "get_capabilities"):
        able = torch.cpu.get_capabilities()  # of an Arm processor it has other keys
        return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def multiply(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The product a bᵀ, by oneDNN where it can, else by torch. No gradient passes through it.

    :param a: [B, D], on any device.
    :param b: [N, D], on the same device.
    :returns: [B, N].
    """
    is_empty = not a.numel() or not b.numel()  # of which oneDNN makes no product
    if is_empty or a.device.type != "cpu" or a.dtype != b.dtype or not has_onednn(a.dtype):
        return a @ b.T
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
        _lay_out(a), _lay_out(b), None, "none", [], ""
    )
    return product


def _lay_out(x: torch.Tensor) -> torch.Tensor:
    """A tensor in a layout that oneDNN is quick with.

    Its products take hundreds of times as long if there are gaps in memory between the rows of a
    tensor, as in a slice of its columns.
    """
    return x if x.is_contiguous() or x.T.is_contiguous() else x.contiguous()
