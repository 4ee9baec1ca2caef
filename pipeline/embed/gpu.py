"""What a GPU can run beyond torch's own operators."""

from __future__ import annotations

from functools import cache
from types import ModuleType

import numpy as np
import numpy.typing as npt
import torch

from pipeline.console import say

_AMPERE = (8, 0)  # the compute capability from which on flash attention and the kernels run


def is_modern(device: torch.device) -> bool:
    """Whether a device is a GPU of the Ampere generation or newer.

    :param device: the device.
    """
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _AMPERE


@cache
def find_kernels(device: torch.device) -> ModuleType | None:
    """The kernels of ``pipeline.embed.kernels``, or ``None`` where they cannot run.

    One of them is run to find out, because Triton needs a C compiler, too; the log says why if it
    cannot.

    :param device: the device that they are to run on.
    """
    if not is_modern(device):
        return None
    try:
        from pipeline.embed import kernels

        row = torch.ones(1, 16, dtype=torch.float16, device=device)
        kernels.add_norm(row, row, row[0], None, 1e-5)
    except Exception as error:  # its kind depends on what is missing
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        say(f"engine    by torch's operators alone, which take longer: {reason:.120}")
        return None
    return kernels


def send(array: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """An array as a tensor on a device; a copy to a GPU is queued, and not waited for.

    :param array: numbers of any type.
    :param device: the device.
    """
    tensor = torch.from_numpy(array)
    if device.type == "cuda":  # a copy from pinned memory does not wait for the device
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
