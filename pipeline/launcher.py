"""The console script ``pipeline``: start the command line, unless another ``pipeline`` hides it.

A wheel lays this file beside the package under a name of its own, ``embedding_pipeline_launcher``.
A project may well have a file ``pipeline.py``; where that comes first on Python's path, such as by
``PYTHONPATH=.``, a script that imported ``pipeline.cli`` would run the project's file instead.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path


def main() -> None:
    """Run the command line; say what hides it if something does."""
    found = importlib.util.find_spec("pipeline")  # which runs nothing of what it finds
    if not _is_ours(found):
        what = found.origin if found is not None else None
        sys.stderr.write(
            f"Error: {what or 'a folder'}: hides the package of this command, which is called "
            "`pipeline` too\n"
            "  next: rename it, or take its folder off PYTHONPATH\n"
        )
        sys.exit(1)
    from pipeline.cli import start

    start()


def _is_ours(found: ModuleSpec | None) -> bool:
    """Whether a module is this package, by its files."""
    if found is None or found.origin is None or not found.submodule_search_locations:
        return False
    folder = Path(found.origin).parent
    return (folder / "cli.py").is_file() and (folder / "presets" / "default.yaml").is_file()
