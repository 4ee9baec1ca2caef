"""The terminal's lines: each figure stands where a person would look for it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.corpus.identity import CorpusIdentity
from pipeline.model.decision import Decision
from pipeline.model.evaluation import PartScores
from pipeline.model.saved import Heads, SavedHead
from pipeline.model.tasks import TASK_TYPES
from pipeline.report.leaks import Leaks, NearDuplicate
from pipeline.report.segments import Segment
from pipeline.report.summary import format_summary, list_warnings, make_summary

NONE = np.zeros((0, 0), np.int64)
SPAM = SavedHead("spam", TASK_TYPES["binary"], ("ham", "spam"), (0,), Decision(), ())
HOURS = SavedHead(
    "hours", TASK_TYPES["regression"], (), (0,), Decision(), (), about={"path_bound": "weakest"}
)
EMPTY: dict[str, Any] = {}
CORPUS = CorpusIdentity(0, "", "", {})
HEADS = Heads((SPAM, HOURS), (0,), 1, EMPTY, "", EMPTY, CORPUS, EMPTY, EMPTY)


def make_scores(metric: str, value: float, *ends: float) -> PartScores:
    intervals = {metric: (ends[0], ends[1])} if ends else {}
    return PartScores(836, NONE, {metric: value}, (), intervals)


SCORES = {
    "spam": make_scores("f1", 0.958, 0.927, 0.984),
    "hours": make_scores("root_mean_squared_error", 12.5, 11.0, 14.0),
}
BASELINES = {
    "spam": {"most frequent": make_scores("f1", 0.0), "words": make_scores("f1", 0.942)},
    "hours": {"most frequent": make_scores("root_mean_squared_error", 20.25)},
}
LEAKS = Leaks(
    threshold=0.9512,
    pairs=[NearDuplicate(1, 2, 0.99, True)] * 31,
    n_rows=836,
    n_same=81,
    scores_without={
        "spam": make_scores("f1", 0.93, 0.9, 0.95),
        "hours": make_scores("root_mean_squared_error", 12.75, 11.0, 14.0),
    },
    judged="test",
    exact=True,
)
SEGMENTS = [
    Segment("spam", "class", "spam", 110, "accuracy", 0.927, (0.863, 0.963), 0.989, 1e-9),
    Segment(
        "hours", "length", "200 to 910 characters", 160, "mean_absolute_error", 15.0, (13.0, 17.0),
        9.5, 1e-4,
    ),
    Segment("spam", "column: source", "web", 40, "accuracy", 0.9, (0.77, 0.96), 0.989, 1e-3),
    Segment("spam", "cluster", "3: call, free", 25, "accuracy", 0.9, (0.7, 0.97), 0.989, 0.01),
]  # fmt: skip
SUSPECTS = {"spam": [1] * 1234, "hours": []}


def test_the_lines_of_a_report() -> None:
    summary = make_summary(HEADS, "test", SCORES, BASELINES, LEAKS, SUSPECTS, SEGMENTS)
    kept = json.loads(json.dumps(summary))  # what is printed again later comes from a file
    assert format_summary(kept, Path("cache/report/report.html")) == [
        "spam: F1 of spam 0.958 (0.927 to 0.984) on 836 test rows; the words alone 0.942, the most "
        "frequent answer 0.000",
        "hours: Root mean sq. error 12.500 (11.000 to 14.000) on 836 test rows; always the same "
        "answer 20.250",
        "leaks: of 836 test rows, 81 have the text of a training row, and 31 nearly so (cosine "
        "above 0.951)",
        "without them: spam 0.930 instead of 0.958, hours 12.750 instead of 12.500",
        "labels that are probably wrong: 1,234 of spam; suspects.csv has them",
        "weak: spam, class spam: accuracy 0.927 (0.863 to 0.963) on 110 rows, 0.989 on all",
        "weak: hours, 200 to 910 characters: mean abs. error 15.000 (13.000 to 17.000) on 160 "
        "rows, 9.500 on all",
        "weak: spam, column: source web: accuracy 0.900 (0.770 to 0.960) on 40 rows, 0.989 on all; "
        "1 more on the page",
        "page: cache/report/report.html",
    ]


def test_what_must_not_be_missed_is_warned_of() -> None:
    summary = make_summary(HEADS, "test", SCORES, BASELINES, LEAKS, SUSPECTS, SEGMENTS)
    inflated, bound = list_warnings(summary)
    # 0.958 is above the interval of 0.93; the error of the other task is within its interval.
    assert inflated.startswith("spam: F1 of spam is 0.958 with texts that stand in training too")
    assert "0.930 without them" in inflated
    assert bound.startswith("hours: the weakest weight decay that was tried is the best")
    fine = replace(LEAKS, scores_without={**LEAKS.scores_without, "spam": SCORES["spam"]})
    quiet = replace(HEADS, heads=(SPAM,))
    assert list_warnings(make_summary(quiet, "test", SCORES, BASELINES, fine, {}, [])) == []


def test_nothing_found_is_said_so() -> None:
    none = replace(LEAKS, pairs=[], n_same=0, exact=False)
    bare = {"spam": PartScores(0, NONE, {}, ())}
    heads = replace(HEADS, heads=(SPAM,))
    lines = format_summary(make_summary(heads, "validation", bare, {}, none, {}, []), Path("p"))
    assert lines == [
        "spam: F1 of spam – on 0 validation rows",
        "leaks: of 836 validation rows, 0 have the text of a training row, and 0 nearly so (cosine "
        "above 0.951, of the pairs that were compared)",
        "labels that are probably wrong: none found",
        "weak rows: no group of rows is worse than chance explains",
        "page: p",
    ]
