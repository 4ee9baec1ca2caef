"""Every public definition says what it is: for methods, what no rule of ruff can tell."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from importlib.util import find_spec
from types import ModuleType
from typing import is_typeddict

import pipeline

# Importing the one runs the command line; the other needs Triton, which few machines have.
LEFT_OUT = {"pipeline.__main__"}
if not find_spec("triton"):
    LEFT_OUT.add("pipeline.embed.kernels")


def list_modules() -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(pipeline.__path__, "pipeline."):
        if found.name not in LEFT_OUT:
            yield importlib.import_module(found.name)


def list_public_classes() -> Iterator[type]:
    for module in list_modules():
        for name, value in vars(module).items():
            own = inspect.isclass(value) and value.__module__ == module.__name__
            if own and not name.startswith("_") and not is_typeddict(value):
                yield value


def is_method(value: object) -> bool:
    return inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod)


def test_every_public_method_has_a_docstring_of_its_own_or_inherits_one() -> None:
    classes = list(list_public_classes())
    # Classes follow a protocol without naming it, so what it says of a method holds for theirs.
    documented = {
        name
        for protocol in classes
        if getattr(protocol, "_is_protocol", False)
        for name, value in vars(protocol).items()
        if is_method(value) and inspect.getdoc(value)
    }
    lacking = [
        f"{owner.__module__}.{owner.__name__}.{name}"
        for owner in classes
        for name, value in vars(owner).items()
        if is_method(value)
        and not name.startswith("_")
        and name not in documented
        and not inspect.getdoc(getattr(owner, name))
    ]
    assert len(classes) > 50
    assert not lacking, "\n".join(lacking)
