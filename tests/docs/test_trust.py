"""Each test that the table of odd files and settings names is there."""

from __future__ import annotations

import re

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "trust.md").read_text("utf-8")


def test_the_tests_that_are_named_are_there() -> None:
    defined: dict[str, set[str]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        names = re.findall(r"def (test_\w+)", path.read_text("utf-8"))
        defined.setdefault(path.name, set()).update(names)
    named = 0
    for row in PAGE.splitlines():
        tests = row.rpartition(" | ")[2]
        file = ""
        for reference in re.findall(r"`((?:[\w/]+\.py(?:::)?)?(?:test_\w+)?)`", tests):
            place, _, test = reference.rpartition("::")
            file = place.rpartition("/")[2] or file
            if not test.startswith("test_") or test.endswith(".py"):
                continue
            named += 1
            assert test in defined[file], f"{file}::{test}"
    assert named > 50
