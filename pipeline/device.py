"""Which devices to compute on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.errors import SettingsError

if TYPE_CHECKING:
    import torch


def choose_devices(wanted: str | Sequence[str]) -> list[torch.device]:
    """The devices to compute on, one or more.

    :param wanted: ``auto`` for all GPUs, else the CPU; or ``cpu``, ``cuda``, ``cuda:N``, ``mps``;
        or a list of these.
    :raises SettingsError: if one is not there.
    """
    import torch

    if wanted == "auto":
        gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
        return [torch.device("cuda", number) for number in gpus] or [torch.device("cpu")]
    names = [wanted] if isinstance(wanted, str) else wanted
    return [_find_device(name) for name in names]


def _find_device(name: str) -> torch.device:
    import torch

    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(
            f"runtime.devices: {name}: this machine has "
            f"{torch.cuda.device_count()} GPUs that torch {torch.__version__} can use",
            hint="set it to auto or cpu, or install a build of torch for your GPU",
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise SettingsError(
            f"runtime.devices: {name}: torch cannot use it on this machine",
            hint="set it to auto or cpu",
        )
    return device
