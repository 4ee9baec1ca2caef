"""The recipes of CONTRIBUTING.md name files and tables that are there."""

from __future__ import annotations

import importlib
import re

import pytest

from tests.conftest import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
RECIPES = TEXT.partition("## Recipes")[2].partition("\n## ")[0]
# A table as the recipes write it: `LOSSES` in `pipeline/losses.py`.
TABLE = re.compile(r"`([A-Z][A-Z_]+)`\s+in\s+`(pipeline/[\w/]+\.py)`")


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`((?:pipeline|tests)/[\w/.]+)`", TEXT))))
def test_a_path_is_there(name: str) -> None:
    assert (ROOT / name).exists()


def test_there_are_recipes() -> None:
    assert len(re.findall(r"^### ", RECIPES, re.MULTILINE)) == 6
    assert len(TABLE.findall(RECIPES)) >= 5


@pytest.mark.parametrize(("table", "path"), TABLE.findall(RECIPES))
def test_a_table_is_there(table: str, path: str) -> None:
    name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    entries = getattr(importlib.import_module(name), table)
    assert len(entries) > 0
