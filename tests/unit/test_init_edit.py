"""Values changed in the text of a YAML file; ruamel.yaml reads back what was meant."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from pipeline.corpus.classes import format_yaml_class, quote_yaml
from pipeline.init.edit import EditError, add_lines, set_value
from pipeline.presets import read_preset

FILE = """\
# the top
a: 1 # one
b:
  # of c
  c: [1, 2] # list
  d: {} # nothing yet

  # of e
  e: "x # y"   # text
  f:
    g: |
      long
      text
    h: # null

# the end
i: null
"""


def load(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def list_comments(text: str) -> list[str]:
    """All comments in their order; the text of one value looks like one, too."""
    lines = [line.replace('"x # y"', "") for line in text.splitlines()]
    return [line.partition("# ")[2] for line in lines if "# " in line]


@pytest.mark.parametrize(
    "keys", [("a",), ("b", "c"), ("b", "d"), ("b", "e"), ("b", "f", "g"), ("b", "f", "h"), ("i",)]
)
def test_a_value_is_changed_and_all_else_stays(keys: tuple[str, ...]) -> None:
    changed = set_value(FILE, keys, "[new]")
    expected = load(FILE)
    inner = expected
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = ["new"]
    assert load(changed) == expected
    assert list_comments(changed) == list_comments(FILE)
    assert len(set(FILE.splitlines()) - set(changed.splitlines())) <= 3


def test_a_block_gives_way_to_a_value() -> None:
    changed = set_value(FILE, ("b", "f"), "null")
    assert load(changed)["b"]["f"] is None
    assert "# the end" in changed
    assert "\n\n# the end" in changed


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (("b",), {"c": [1, 2], "d": {}, "e": "x # y", "f": load(FILE)["b"]["f"], "n": {"m": 1}}),
        (("b", "f"), {"g": "long\ntext\n", "h": None, "n": {"m": 1}}),
        (("b", "d"), {"n": {"m": 1}}),
        (("b", "f", "h"), {"n": {"m": 1}}),
        (("i",), {"n": {"m": 1}}),
        (("j", "k"), {"n": {"m": 1}}),
    ],
)
def test_entries_are_added_where_the_mapping_ends(keys: tuple[str, ...], expected: Any) -> None:
    changed = add_lines(FILE, keys, ["n:", "  m: 1"])
    inner = load(changed)
    for key in keys:
        inner = inner[key]
    assert inner == expected
    assert list_comments(changed) == list_comments(FILE)
    assert len(set(FILE.splitlines()) - set(changed.splitlines())) <= 1


def test_comments_before_the_next_key_stay_there() -> None:
    changed = add_lines("a:\n  b: 1\n  # more of a\n\n# of c\nc: 2", ("a",), ["n: 0"])
    assert changed == "a:\n  b: 1\n  # more of a\n  n: 0\n\n# of c\nc: 2"
    assert add_lines("a:\n  b: 1", ("a",), ["n: 0"]) == "a:\n  b: 1\n  n: 0\n"
    assert add_lines("a: # x", ("a",), ["n: 0"]) == "a: # x\n  n: 0\n"
    assert add_lines("a: {} # x\nb: 1", ("a",), ["n: 0"]) == "a: # x\n  n: 0\nb: 1"


def test_what_is_in_braces_is_refused_with_the_lines_to_write() -> None:
    with pytest.raises(EditError) as caught:
        add_lines("a: {b: 1}", ("a",), ["n: 0"])
    assert "n: 0" in str(caught.value.hint)
    with pytest.raises(EditError, match="a: is no mapping"):
        set_value("a: [1]", ("a", "b"), "2")


def test_the_default_settings_can_be_changed_throughout() -> None:
    text = read_preset("default")
    content = load(text)
    for section, values in content.items():
        for key, value in values.items():
            changed = load(set_value(text, (section, key), '"X Y"'))
            assert changed[section].pop(key) == "X Y"
            expected = {k: v for k, v in content[section].items() if k != key}
            assert changed[section] == expected, (section, key, value)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_quoted_text_is_read_back_alone_and_in_a_list(text: str) -> None:
    quoted = quote_yaml(text)
    assert "\n" not in quoted
    assert load(f"a: {quoted} # comment") == {"a": text}
    assert load(f"a: [{quoted}, {quoted}]") == {"a": [text, text]}


@given(st.from_regex(r"\A-?[0-9.]{1,5}\Z"))
def test_class_names_of_digits_keep_their_spelling(name: str) -> None:
    assert str(load(f"a: {format_yaml_class(name)}")["a"]) == name
