"""What the benchmarks share: a table for people, JSON for programs, hardware and versions."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.console import show_table

if TYPE_CHECKING:
    import torch


def describe_machine(*packages: str) -> dict[str, Any]:
    """Hardware and versions, to stand beside every figure."""
    return {
        "processor": _read_processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {package: metadata.version(package) for package in packages},
    }


def _read_processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


class PeakMemory:
    """The most memory in use while its block runs: of the GPU if there is one, else of the process.

    :ivar megabytes: set when the block ends; ``None`` where the system does not tell.
    """

    megabytes: float | None = None

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __enter__(self) -> PeakMemory:
        import torch

        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
        return self

    def __exit__(self, *_: object) -> None:
        import torch

        if self._device.type == "cuda":
            self.megabytes = torch.cuda.max_memory_allocated(self._device) / 1e6
            return
        with contextlib.suppress(OSError):
            lines = Path("/proc/self/status").read_text().splitlines()
            kilobytes = next(int(x.split()[1]) for x in lines if x.startswith("VmHWM"))
            self.megabytes = kilobytes * 1024 / 1e6


def present(rows: Sequence[dict[str, Any]], path: Path | None, machine: dict[str, Any]) -> None:
    """Print the rows, and write them to ``path`` with the machine in each."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    show_table(columns, [[row.get(column) for column in columns] for row in rows])
    if path is not None:
        path.write_text(json.dumps([row | {"machine": machine} for row in rows], indent=2) + "\n")
