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


# How columns are shown; what is not here is shown as it is.
_SHOWN = {
    "end_to_end_seconds": ("end to end", "{:.2f} s"),
    "forward_seconds": ("forward", "{:.2f} s"),
    "end_to_end_cpu_seconds": ("end to end, CPU", "{:.2f} s"),
    "forward_cpu_seconds": ("forward, CPU", "{:.2f} s"),
    "fit_seconds": ("fit", "{:.2f} s"),
    "seconds": ("seconds", "{:.2f}"),
    "cpu_seconds": ("seconds of CPU", "{:.1f}"),
    "wall_seconds": ("seconds", "{:.1f}"),
    "tokens_per_second": ("tokens/s", "{:,.0f}"),
    "tflops": ("TFLOP/s", "{:.3f}"),
    "share_of_matmul": ("of matmul", "{:.0%}"),
    "share": ("share", "{:.1%}"),
    "peak_mb": ("peak MB", "{:,.0f}"),
    "cosine_min": ("cosine", "{:.7f}"),
    "microseconds_a_further_text": ("µs a further text", "{:.1f}"),
    "neighbours": ("neighbours", "{:.0e}"),
}


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


def read_memory(what: str) -> float:
    """Of what Linux says of this process, ``VmRSS`` or ``VmHWM``, in MB.

    Unlike the peak that ``getrusage`` tells, the latter is not that of the process that started it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith(what)) * 1024 / 1e6


class PeakMemory:
    """The most memory that its block takes: of the GPU if there is one, else of the process, over
    what is in use when it starts.

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
                Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
                self._before = read_memory("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        import torch

        if self._device.type == "cuda":
            self.megabytes = torch.cuda.max_memory_allocated(self._device) / 1e6
            return
        with contextlib.suppress(OSError):
            self.megabytes = read_memory("VmHWM") - self._before


def present(rows: Sequence[dict[str, Any]], path: Path | None, machine: dict[str, Any]) -> None:
    """Print the rows, a table for each ``case``, and write them to ``path`` with the machine in
    each."""
    for case in dict.fromkeys(row.get("case") for row in rows):
        some = [row for row in rows if row.get("case") == case]
        keys = dict.fromkeys(key for row in some for key in row if row[key] is not None)
        shown = {key: _SHOWN.get(key, (key.replace("_", " "), "{}")) for key in keys}
        shown.pop("case", None)
        title = str(case)
        for key in ("texts", "tokens"):  # the same for all engines but where a case is of growth
            if key in shown and len({row.get(key) for row in some}) == 1:
                shown.pop(key)
                title += f", {some[0][key]:,} {key}"
        cells = [[_format(row.get(key), form) for key, (_, form) in shown.items()] for row in some]
        show_table([header for header, _ in shown.values()], cells, title=title if case else None)
    if path is not None:
        path.write_text(json.dumps([row | {"machine": machine} for row in rows], indent=2) + "\n")


def to_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as one table, to be pasted into an issue or a page."""
    keys = dict.fromkeys(key for row in rows for key in row if row[key] is not None)
    shown = {key: _SHOWN.get(key, (key.replace("_", " "), "{:,}")) for key in keys}
    lines = [[header for header, _ in shown.values()], ["---"] * len(shown)]
    for row in rows:
        values = ((row.get(key), form) for key, (_, form) in shown.items())
        lines.append(
            [
                "" if value is None else value if isinstance(value, str) else form.format(value)
                for value, form in values
            ]
        )
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _format(value: Any, form: str) -> Any:
    return value if value is None or form == "{}" else form.format(value)
