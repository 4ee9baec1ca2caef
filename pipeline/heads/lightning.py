"""Lightning, imported without what these heads never use.

``import lightning`` spends most of its seconds on two imports that it needs for ``isinstance``
alone: torchmetrics, which pulls in transformers, scipy and matplotlib, and torch's compiler. While
Lightning is imported, empty modules stand in for both; afterwards they are gone, and whoever
imports the real ones gets them. Where that fails, as with another version of Lightning, or where
the real ones are loaded already, it is imported as usual.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer

__all__ = ["Callback", "LightningModule", "Trainer"]


def _keep(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    """Stands in for ``torch._dynamo.disable``: what is not compiled needs no exemption."""
    return function if callable(function) else lambda inner: inner


def _stand_in(name: str, **contents: Any) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(contents, __path__=[])
    return module


def _import_lightly() -> None:
    names = ("torchmetrics", "torch._dynamo")
    if any(name in sys.modules for name in (*names, "lightning")):
        return
    classes = {name: type(name, (), {}) for name in ("Metric", "MetricCollection")}
    before = set(sys.modules)
    sys.modules["torchmetrics"] = _stand_in("torchmetrics", __version__="1.9.0", **classes)
    sys.modules["torch._dynamo"] = _stand_in(
        "torch._dynamo", OptimizedModule=type("OptimizedModule", (), {}), disable=_keep
    )
    try:
        importlib.import_module("lightning.pytorch")
    except Exception:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in ("lightning", "lightning_fabric"):
                del sys.modules[name]
    finally:
        for name in names:
            sys.modules.pop(name, None)


_import_lightly()

# Below the code that makes this import light, on purpose.
from lightning.pytorch import Callback, LightningModule, Trainer  # noqa: E402
