"""Lightning, imported without what these heads never use.

``import lightning`` and the making of the first optimizer of torch spend most of their time on two
imports: torchmetrics, which Lightning wants for ``isinstance`` alone and which imports
transformers, scipy and matplotlib, and torch's compiler, from which optimizers exempt their
methods. While Lightning is imported and an optimizer is made, empty modules stand in for both;
afterwards they are gone, and whoever imports the real ones gets them. Where that fails, as with
another version of Lightning, or where the real ones are loaded already, Lightning is imported as
usual.

Measured with Lightning 2.6.6 and torch 2.13.0 on two cores, torch loaded already, seven times in
turns: importing Lightning and making an optimizer takes 0.18 s (0.17 to 0.20) with the modules that
stand in, 2.60 s (2.56 to 2.70) without.
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
    """Stand in for ``torch._dynamo.disable``: what is never compiled needs no exemption."""
    return function if callable(function) else lambda inner: inner


def _stand_in(name: str, **contents: Any) -> ModuleType:
    """A module of that name with nothing but these contents."""
    module = ModuleType(name)
    module.__dict__.update(contents, __path__=[])
    return module


def _import_lightly() -> None:
    """Import Lightning while modules stand in for what it takes long to import."""
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
        _exempt_optimizers()
    except Exception:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in ("lightning", "lightning_fabric"):
                del sys.modules[name]
    finally:
        for name in names:
            sys.modules.pop(name, None)


def _exempt_optimizers() -> None:
    """Call the methods that optimizers of torch exempt from its compiler when first called."""
    import torch

    torch.optim.Optimizer([torch.zeros(1)], {}).zero_grad()


_import_lightly()

# Below the code that makes this import light, on purpose.
from lightning.pytorch import Callback, LightningModule, Trainer  # noqa: E402
