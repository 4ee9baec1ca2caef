"""Precomputed-embedding pipeline: embed once, cache, train any number of heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.version import __version__ as __version__

if TYPE_CHECKING:
    from pipeline.bundle import load as load
    from pipeline.embed.embedder import Embedder as Embedder
    from pipeline.encoder import FrozenTextEncoder as FrozenTextEncoder
    from pipeline.notebook import Project as Project

# What a program imports from here → the module that has it, which is imported on first use.
_LAZY = {
    "Embedder": "pipeline.embed.embedder",
    "FrozenTextEncoder": "pipeline.encoder",
    "Project": "pipeline.notebook",
    "load": "pipeline.bundle",
}


def __getattr__(name: str) -> Any:
    """Import what a program asks for when it does."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    """Name also what is not imported yet, so that a notebook can complete it."""
    return sorted({*globals(), *_LAZY})
