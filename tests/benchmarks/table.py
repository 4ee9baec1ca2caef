"""What the benchmarks share: a table for people, JSON for programs, hardware and versions."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.console import show_table


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


def present(rows: Sequence[dict[str, Any]], path: Path | None, machine: dict[str, Any]) -> None:
    """Print the rows, and write them to ``path`` with the machine in each."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    show_table(columns, [[row.get(column) for column in columns] for row in rows])
    if path is not None:
        path.write_text(json.dumps([row | {"machine": machine} for row in rows], indent=2) + "\n")
