"""The layout of the package: who may import whom, and that nothing imports itself in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

STAGES = {"fetch", "prepare", "embed", "group", "heads", "report"}
# Rooms that stages stand on; they know of no stage.
FOUNDATIONS = {"corpus", "store", "model"}
# What may import torch, which takes seconds; the command line imports all of these lazily.
TORCH = {"embed", "heads", "export", "device", "onednn"}
FRAMEWORKS = {"torch", "lightning", "transformers"}


def list_modules(package: Path) -> dict[str, Path]:
    """Module name → file, of a package."""
    return {
        ".".join(file.relative_to(package.parent).with_suffix("").parts).removesuffix(
            ".__init__"
        ): file
        for file in sorted(package.rglob("*.py"))
    }


def list_imports(file: Path) -> Iterator[str]:
    """What a file imports, anywhere in it and for whatever reason: modules, or names in modules."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def resolve_import(name: str, modules: dict[str, Path]) -> str:
    """The module that an import of a module or of a name in one comes from."""
    return name if name in modules else name.rpartition(".")[0]


def build_graph(package: Path) -> dict[str, set[str]]:
    """Module → the modules of the same package that it imports."""
    modules = list_modules(package)
    return {
        module: {
            target
            for name in list_imports(file)
            if (target := resolve_import(name, modules)) in modules and target != module
        }
        for module, file in modules.items()
    }


def name_room(module: str) -> str:
    """The part of the package that a module stands in: ``pipeline.heads.run`` → ``heads``."""
    return ([*module.split("."), ""])[1]


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return build_graph(ROOT / "pipeline")


def test_no_stage_imports_another(graph: dict[str, set[str]]) -> None:
    wrong = {
        (module, target)
        for module, targets in graph.items()
        for target in targets
        if name_room(module) in STAGES and name_room(target) in STAGES - {name_room(module)}
    }
    assert not wrong


def test_foundations_import_no_stage(graph: dict[str, set[str]]) -> None:
    wrong = {
        (module, target)
        for module, targets in graph.items()
        for target in targets
        if name_room(module) in FOUNDATIONS and name_room(target) in STAGES
    }
    assert not wrong


def test_users_of_a_model_import_the_engine_but_no_stage(graph: dict[str, set[str]]) -> None:
    """What ``embed`` does as a stage begins at its ``run``; its engine serves others too."""
    wrong = {
        (module, target)
        for module, targets in graph.items()
        for target in targets
        if name_room(module) in {"predict", "export"}
        and (name_room(target) in STAGES - {"embed"} or target == "pipeline.embed.run")
    }
    assert not wrong


def test_no_circles(graph: dict[str, set[str]]) -> None:
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError, which names one
    assert len(order) == len(graph)


def test_frameworks_only_where_they_are_used(graph: dict[str, set[str]]) -> None:
    modules = list_modules(ROOT / "pipeline")
    users = {
        module
        for module, file in modules.items()
        if FRAMEWORKS & {name.partition(".")[0] for name in list_imports(file)}
    }
    # One labeler runs a model of its own; nothing else of its stage does.
    users.discard("pipeline.prepare.labelers.model")
    assert {name_room(module) for module in users} <= TORCH
    assert users, "the rule looks at something"


def test_every_room_is_there(graph: dict[str, set[str]]) -> None:
    """A room that is renamed must not slip through the rules above."""
    assert {name_room(module) for module in graph} >= STAGES | FOUNDATIONS


def test_a_circle_and_a_forbidden_import_are_seen(tmp_path: Path) -> None:
    package = tmp_path / "toy"
    (package / "heads").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "heads" / "__init__.py").write_text("")
    (package / "heads" / "run.py").write_text("def f():\n    from toy.report import x\n")
    (package / "report.py").write_text("from toy.heads import run\nx = 1\n")
    graph = build_graph(package)
    assert graph["toy.heads.run"] == {"toy.report"}
    assert graph["toy.report"] == {"toy.heads.run"}
