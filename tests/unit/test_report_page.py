"""What the page is made of: data that stays small, texts that stay text, charts without a style."""

from __future__ import annotations

import base64
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import Settings
from pipeline.model.evaluation import ClassScores
from pipeline.model.saved import History
from pipeline.project import Project
from pipeline.report.charts import (
    Axis,
    draw_bars,
    draw_curves,
    draw_history,
    draw_strip,
    list_ticks,
)
from pipeline.report.errors import ErrorRow
from pipeline.report.page import make_policy
from pipeline.report.page_data import (
    cut_texts,
    encode_json,
    list_classes,
    pack_numbers,
    shorten,
)
from pipeline.report.page_tasks import draw_training, list_tag_confusions
from pipeline.report.run import run_report
from pipeline.report.values import format_cost, name_step
from tests.unit.test_report import make_project

TASKS = {"spam": ["ham", "spam"], "kind": ["a", "b", "c"]}


def make_error(kind: str, actual: str, predicted: str, row: int = 0) -> ErrorRow:
    return ErrorRow(row, 0, actual, predicted, 0.9, kind, 1.0)


def unpack(packed: dict) -> list[int]:
    content = base64.b64decode(packed["data"])
    return np.frombuffer(content, f"<u{packed['bits'] // 8}").tolist()


def test_json_in_a_script_element_ends_no_element() -> None:
    data = {"texts": ["</script><script>x", "<!--", "a & b", "\u2028\u2029", "שלום 👩‍👩‍👧"]}
    text = encode_json(data)
    assert json.loads(text) == data
    assert not set("<>&\u2028\u2029") & set(text)
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode_json(float("nan"))


@pytest.mark.parametrize("largest", [0, 255, 256, 65_535, 65_536, 2**32 - 1])
def test_numbers_come_back_as_they_were_packed(largest: int) -> None:
    values = np.array([0, largest // 3, largest])
    packed = pack_numbers(values)
    assert unpack(packed) == values.tolist()
    assert packed["bits"] == min(bits for bits in (8, 16, 32) if largest < 2**bits)


def test_texts_are_cut_alike_until_they_fit() -> None:
    texts = ["a" * 500, "é" * 500, "short"]
    assert cut_texts(texts, 10_000) == ["a" * 199 + "…", "é" * 199 + "…", "short"]
    few = cut_texts(texts, 200)
    assert sum(len(text.encode()) for text in few) <= 200
    assert len(few[0]) == len(few[1]) < 200
    assert cut_texts(texts, 3) == ["", "", ""]
    assert shorten("x" * 200) == "x" * 200


def test_an_error_is_about_its_classes_or_its_tag() -> None:
    numbers = {"a": 0, "b": 1, "extra: b": 2}
    assert list_classes(make_error("a → b", "a", "b"), numbers) == [0, 1]
    assert list_classes(make_error("missing: b", "a; b", "a"), numbers) == [1]
    assert list_classes(make_error("doubtful", "a; b", "b"), numbers) == [0, 1]
    assert list_classes(make_error("too high", "1.5", "2"), {}) == []


def test_tags_that_are_taken_for_each_other_are_counted() -> None:
    errors = [
        make_error("missing: ship", "ship", "crude", 1),
        make_error("extra: crude", "ship", "crude", 1),
        make_error("missing: ship", "ship", "crude; gas", 2),
        make_error("extra: crude", "ship", "crude; gas", 2),
        make_error("extra: gas", "ship", "crude; gas", 2),
        make_error("missing: ship", "ship", "", 3),
        make_error("doubtful", "gas", "gas", 4),
    ]
    classes = [ClassScores("ship", 8, 0.5, 0.5, 0.5), ClassScores("crude", 9, 1, 1, 1)]
    assert list_tag_confusions(errors, classes) == [
        ("ship", "crude", 2, 0.25),
        ("ship", "gas", 1, 0.125),
    ]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, (0, 0.2, 0.4, 0.6, 0.8, 1)),
        (0, 0.022, (0, 0.005, 0.01, 0.015, 0.02)),
        (-4.5, 4, (-4, -2, 0, 2, 4)),
        (1, 40, (10, 20, 30, 40)),
        (1e-9, 9e-9, (2e-9, 4e-9, 6e-9, 8e-9)),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, ticks: tuple[float, ...]) -> None:
    assert list_ticks(low, high) == pytest.approx(ticks)


class Elements(HTMLParser):
    """Collects the elements of a chart and their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_charts_stay_in_their_frame_and_have_no_style() -> None:
    steps = np.linspace(0, 1, 5)
    history = History((1, 2), (3.0, 1.0), (float("inf"), 2.0))
    charts = [
        draw_curves([(steps, steps**2)], ("<x>", "y"), diagonal=True, mark=(0.5, 0.5)),
        draw_history(history, 2),
        draw_history(History((1,), (0.0,), (0.0,)), 1),
        draw_strip(Axis.share(""), 0.9, (0.8, 0.95), [0.0, 2.0]),
        draw_bars([("layer <1>", 0.5, "s0"), ("all", 0.0, "s7")], Axis.share("")),
    ]
    for chart in charts:
        elements = Elements(chart).found
        (_, box), *_ = elements
        _, _, width, height = map(float, (box["viewbox"] or "").split())
        for tag, attributes in elements:
            assert "style" not in attributes
            assert tag in {"svg", "line", "path", "text", "circle", "rect"}
            for name, limit in {"x1": width, "x2": width, "cx": width, "cy": height}.items():
                assert 0 <= float(attributes.get(name) or 0) <= limit, (tag, attributes)
    assert "<x>" not in charts[0]
    assert "&lt;x&gt;" in charts[0]
    # The curve runs from the lower left to the upper right corner of its frame.
    (path,) = re.findall(r'class="line s0" d="([^"]+)"', charts[0])
    points = [tuple(map(float, point.split())) for point in path[1:].split("L")]
    frame = [attributes for tag, attributes in Elements(charts[0]).found if tag == "line"]
    left, right = float(frame[0]["x1"] or 0), float(frame[4]["x1"] or 0)
    assert (points[0][0], points[-1][0]) == (left, right)
    assert points[0][1] > points[2][1] > points[-1][1]
    middle = (points[0][1] - points[2][1]) / (points[0][1] - points[-1][1])
    assert middle == pytest.approx(0.25, abs=0.01)


def test_one_epoch_makes_no_curve() -> None:
    assert draw_training(History((1,), (0.5,), (0.6,)), 1) is None
    assert draw_training(History(), 1) is None
    drawn = draw_training(History((1, 2), (0.5, 0.4), (0.6, 0.7)), 2)
    assert drawn is not None
    assert drawn.startswith("<svg")


def test_shares_have_a_class_and_costs_a_unit() -> None:
    assert [name_step(share) for share in (None, 0, 0.49, 1, 1.2)] == [
        "k0",
        "k0",
        "k10",
        "k20",
        "k20",
    ]
    assert format_cost(30.51, "s") == "30.5 s"
    assert format_cost(2820, "s") == "47 min"
    assert format_cost(36_000, "s") == "10.0 h"
    assert format_cost(0.806, "share") == "80.6 %"
    assert format_cost(28_100_000, "bytes") == "28.1 MB"
    assert format_cost(4459.9, "tokens/s") == "4,460 tokens/s"


def test_the_policy_names_the_hashes_of_style_and_script() -> None:
    # printf 'a' | openssl dgst -sha256 -binary | base64
    of_a = "ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs="
    policy = make_policy("a", "b")
    assert f"style-src 'sha256-{of_a}'" in policy
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy


def name_text(row: int) -> str:
    return f"unmistakable{row} words of row{row}"


@pytest.mark.parametrize("texts", ["show", "hide"])
def test_texts_leave_the_machine_only_if_they_may(project: Path, texts: str) -> None:
    make_project(TASKS, name_text=name_text)
    settings = Settings.model_validate({"report": {"texts": texts}})
    run_report(Project(), settings)
    holding = {
        path.name
        for path in Project().report.rglob("*")
        if path.is_file() and "unmistakable" in path.read_text("utf-8")
    }
    shown = {"report.html", "errors.csv", "suspects.csv"}  # none of these texts are alike
    assert holding == (shown if texts == "show" else set())
    header = (Project().report / "errors.csv").read_text().splitlines()[0].split(",")
    assert ("text" in header) == (texts == "show")


def test_a_page_of_many_rows_stays_small(project: Path) -> None:
    rows = 30_000
    make_project(TASKS, rows, lambda row: f"{row} " + "длинный текст " * 40)
    run_report(Project(), Settings())
    page = (Project().report / "report.html").read_bytes()
    assert 1_000_000 < len(page) < 3_000_000
    (content,) = re.findall(rb'<script type="application/json" id="data">(.*?)</script>', page)
    data = json.loads(content)
    assert len([error for error in data["errors"] if error[0] == 1]) == 1000
    assert len(data["map"]["text"]) == 20_000
    assert min(map(len, data["map"]["text"])) > 10


def test_costs_of_the_settings_are_drawn_by_threshold(project: Path) -> None:
    make_project(TASKS)
    costs = {"false_positive": 5, "false_negative": 2}
    run_report(
        Project(), Settings.model_validate({"heads": {"tasks": {"spam": {"threshold": costs}}}})
    )
    page = (Project().report / "report.html").read_text("utf-8")
    (content,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    ((curve,),) = json.loads(content)["thresholds"].values()
    # Above the lowest threshold all rows of the other class are false positives.
    negatives = curve["rows"] - curve["support"]
    assert curve["cost"][0] == 5 * negatives
    assert curve["cost"][-1] == 2 * curve["support"]


def test_the_stage_imports_no_matplotlib(project: Path) -> None:
    make_project({"spam": ["ham", "spam"]})
    sys.modules.pop("matplotlib", None)
    run_report(Project(), Settings())
    assert "matplotlib" not in sys.modules
