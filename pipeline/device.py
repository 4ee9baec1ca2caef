"""Choosing the devices to compute on, and naming them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.console import count
from pipeline.errors import SettingsError

if TYPE_CHECKING:
    import torch


def choose_devices(wanted: str | Sequence[str | torch.device]) -> list[torch.device]:
    """The devices to compute on, one or more.

    :param wanted: ``auto`` for all GPUs, else the CPU; or ``cpu``, ``cuda``, ``cuda:N``, ``mps``;
        or a list of these.
    :raises SettingsError: if a device is not there, or none is named.
    """
    import torch

    if wanted == "auto":
        gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
        return [torch.device("cuda", number) for number in gpus] or [torch.device("cpu")]
    names = [wanted] if isinstance(wanted, str) else wanted
    if not names:
        raise SettingsError("runtime.devices: must name at least one device")
    return [_find_device(name) for name in names]


def describe_devices(devices: Sequence[torch.device]) -> str:
    """The devices for people: a GPU by its name, a CPU with the threads that torch has now.

    :param devices: one or more devices of one kind.
    """
    import torch

    first = devices[0]
    if first.type == "cuda":
        name = torch.cuda.get_device_name(first)
        return name if len(devices) == 1 else f"{len(devices)} × {name}"
    return f"{first.type} ({count(torch.get_num_threads(), 'thread')})"


def _find_device(name: str | torch.device) -> torch.device:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:  # of a name that torch does not know
        raise SettingsError(
            f"runtime.devices: {name}: not a device; there are auto, cpu, cuda, cuda:N, mps"
        ) from error
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
