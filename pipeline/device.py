"""Which device to compute on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import DeviceError

if TYPE_CHECKING:
    import torch


def choose_device(wanted: str) -> torch.device:
    """The device to compute on.

    :param wanted: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    :raises DeviceError: if it is not there.
    """
    import torch

    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"params.yaml: runtime.device: {wanted}: this machine has "
            f"{torch.cuda.device_count()} GPUs that torch {torch.__version__} can use",
            hint="set it to auto or cpu, or install a build of torch for your GPU",
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(
            f"params.yaml: runtime.device: {wanted}: torch cannot use it on this machine",
            hint="set it to auto or cpu",
        )
    return device
