"""`pipeline predict --explain` and `Model.explain`, against predictions of texts cut by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.predict.model import Model
from tests.conftest import Cli
from tests.integration.test_predict import (  # noqa: F401 - fixtures
    TASKS,
    cli_there,
    read_output,
    run_in_terminal,
    trained,
)

# Each text with its words, and the text without each of them, by hand.
BY_HAND = {
    "server is DOWN, refund!": {
        "server": " is DOWN, refund!",
        "is": "server  DOWN, refund!",
        "DOWN": "server is , refund!",
        "refund": "server is DOWN, !",
    },
    "thanks: invoice 3.5": {
        "thanks": ": invoice 3.5",
        "invoice": "thanks:  3.5",
        "3.5": "thanks: invoice ",
    },
}
# Vectors are rounded to float16, and in another batch to a neighbour now and then.
NEAR = 3e-3


def score_by_hand(model: Model, task: str, text: str, without: str) -> tuple[float, float]:
    """The score of the answer to a text, and of the same answer to another."""
    answer = model.predict([text])[task][0]
    if task == "hours":
        return answer, model.predict([without])[task][0]
    columns = answer if task == "topics" else [answer]
    rows = [model.predict_proba([each])[task].loc[0, columns].sum() for each in (text, without)]
    return rows[0], rows[1]


def test_a_words_weight_is_what_the_answer_loses_without_it(trained: Path) -> None:  # noqa: F811
    texts = list(BY_HAND)
    with pipeline.load(trained) as model:
        table = model.explain(texts)
        plain = model.predict(texts)
        assert set(table) == {*plain, *(f"{task}_explanation" for task in TASKS)}
        for task in set(TASKS) - {"hours"}:
            assert table[task].tolist() == plain[task].tolist()
        largest = dict.fromkeys(TASKS, 0.0)
        for task in TASKS:
            for text, spans in zip(texts, table[f"{task}_explanation"], strict=True):
                words = [text[span["start"] : span["end"]] for span in spans]
                assert words == list(BY_HAND[text])
                for word, span in zip(words, spans, strict=True):
                    whole, without = score_by_hand(model, task, text, BY_HAND[text][word])
                    scale = max(1.0, abs(whole))
                    assert span["weight"] == pytest.approx(whole - without, abs=NEAR * scale)
                    largest[task] = max(largest[task], abs(span["weight"]) / scale)
    assert all(weight > 3 * NEAR for weight in largest.values()), largest


@pytest.mark.parametrize("out", ["out.csv", "out.jsonl", "out.parquet"])
def test_explanations_in_every_format(
    trained: Path,  # noqa: F811
    cli_there: Cli,  # noqa: F811
    tmp_path: Path,
    out: str,
) -> None:
    texts = [*BY_HAND, " ", "!!!"]
    source = tmp_path / "in.csv"
    with source.open("w", newline="") as file:
        csv.writer(file).writerows([["body"], *([text] for text in texts)])
    arguments = ("predict", str(source), "-o", str(tmp_path / out), "--explain")
    done = cli_there(*arguments, "--tasks", "team,topics")
    assert done.returncode == 3, done.stderr
    rows = read_output(tmp_path / out)
    assert rows.pop(2)["team_explanation"] in (None, "")  # the blank one
    with pipeline.load(trained, tasks=["team", "topics"]) as model:
        expected = model.explain([*BY_HAND, "!!!"])
    assert len(rows) == len(expected) == 3
    for number, row in enumerate(rows):
        for task in ("team", "topics"):
            spans = row[f"{task}_explanation"]
            spans = json.loads(spans) if isinstance(spans, str) else spans
            wanted = expected[f"{task}_explanation"][number]
            assert [(s["start"], s["end"]) for s in spans] == [
                (s["start"], s["end"]) for s in wanted
            ]
            np.testing.assert_allclose(
                [s["weight"] for s in spans], [s["weight"] for s in wanted], atol=NEAR
            )
    if out.endswith("parquet"):
        struct = pa.struct([("start", pa.int64()), ("end", pa.int64()), ("weight", pa.float64())])
        assert pq.read_schema(tmp_path / out).field("team_explanation").type == pa.list_(struct)


def test_many_texts_and_long_ones(
    trained: Path,  # noqa: F811
    cli_there: Cli,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Parts of two texts each, whose variants are computed fifty at a time."""
    monkeypatch.setattr("pipeline.predict.model._MOST_CHUNK_TEXTS", 50)
    monkeypatch.setattr("pipeline.predict.model.MOST_SPANS", 25)
    texts = [f"text {n} " + "server down " * (n % 4) for n in range(9)]
    texts[4] = " ".join(f"w{n % 7}" for n in range(230))
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    out = tmp_path / "out.jsonl"
    done = cli_there("predict", str(source), "-o", str(out), "--explain", "--tasks", "urgent")
    assert done.returncode == 0, done.stderr
    assert "1 text of more than 100 words: explained by 100 spans of neighbouring" in done.stdout
    rows = read_output(out)
    assert [row["body"] for row in rows] == texts
    for text, row in zip(texts, rows, strict=True):
        assert len(row["urgent_explanation"]) == min(100, len(text.split()))
    with pipeline.load(trained, tasks=["urgent"]) as model:
        for number in (0, 4, 8):
            (wanted,) = model.explain([texts[number]])["urgent_explanation"]
            np.testing.assert_allclose(
                [span["weight"] for span in rows[number]["urgent_explanation"]],
                [span["weight"] for span in wanted],
                atol=NEAR,
            )


def test_a_terminal_gets_shaded_words_or_a_list(trained: Path) -> None:  # noqa: F811
    arguments = ("predict", "--explain", "--tasks", "team", "--text", "server is down")
    status, shown = run_in_terminal(trained, *arguments, TERM="xterm", NO_COLOR="")
    assert status == 0
    assert "green words speak for the answer" in shown
    lines = [line for line in shown.splitlines() if line.startswith("  team  ")]
    assert len(lines) == 1
    assert "\x1b[" in lines[0]
    _, plain = run_in_terminal(trained, *arguments, TERM="xterm", NO_COLOR="1")
    assert "\x1b[" not in plain
    (line,) = [line for line in plain.splitlines() if line.startswith("  team  ")]
    named = {part.split()[0]: float(part.split()[1]) for part in line[8:].split(", ")}
    with pipeline.load(trained, tasks=["team"]) as model:
        (spans,) = model.explain(["server is down"])["team_explanation"]
    weights = [span["weight"] for span in spans]
    assert list(named) == sorted(
        ("server", "is", "down"),
        key=lambda word: -abs(named[word]),
    )
    assert sorted(named.values()) == pytest.approx(sorted(weights), abs=NEAR)


def test_nothing_to_explain(trained: Path) -> None:  # noqa: F811
    with pipeline.load(trained) as model:
        empty = model.explain([])
        assert len(empty) == 0
        assert "team_explanation" in empty
        assert model.explain(["?!"])["team_explanation"].tolist() == [[]]
        alone = model.explain(["server"])["team_explanation"][0]
    assert [(span["start"], span["end"]) for span in alone] == [(0, 6)]
