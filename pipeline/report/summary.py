"""The findings of a report in ten lines, and as a record that they can be printed from again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.console import count, format_number
from pipeline.model.evaluation import PartScores
from pipeline.model.metrics import METRICS
from pipeline.model.saved import Heads, SavedHead
from pipeline.report.baselines import MOST_FREQUENT, WORDS
from pipeline.report.layers import read_path_bound
from pipeline.report.leaks import Leaks
from pipeline.report.segments import Segment

SHOWN_SEGMENTS = 3


def make_summary(
    heads: Heads,
    judged: str,
    scores: Mapping[str, PartScores],
    baselines: Mapping[str, Mapping[str, PartScores]],
    leaks: Leaks,
    suspects: Mapping[str, Sequence[object]],
    segments: Sequence[Segment],
) -> dict[str, Any]:
    """What the terminal tells of a report, as JSON.

    :param heads: the heads.
    :param judged: the name of the part that they are judged by.
    :param scores: task → scores on that part.
    :param baselines: task → ``most frequent`` and ``words`` → scores on that part.
    :param leaks: the near-duplicates between that part and training.
    :param suspects: task → labels that are probably wrong.
    :param segments: groups of rows on which heads are weak, worst first.
    """
    inflated = {of.task: of for of in leaks.find_inflated(heads, scores)}
    return {
        "judged": judged,
        "tasks": [
            _summarize_task(head, scores[head.name], baselines.get(head.name, {}), leaks)
            for head in heads.heads
        ],
        "leaks": {
            "rows": leaks.n_rows,
            "same": leaks.n_same,
            "near": len(leaks.pairs),
            "cosine": leaks.threshold,
            "exact": leaks.exact,
            "inflated": sorted(inflated),
        },
        "suspects": {task: len(of_task) for task, of_task in suspects.items()},
        "segments": [
            {
                "task": of.task,
                "kind": of.kind,
                "name": of.name,
                "rows": of.n_rows,
                "metric": of.metric,
                "score": of.score,
                "low": of.interval[0],
                "high": of.interval[1],
                "overall": of.overall,
            }
            for of in segments[:SHOWN_SEGMENTS]
        ],
        "more_segments": max(len(segments) - SHOWN_SEGMENTS, 0),
    }


def _summarize_task(
    head: SavedHead, scores: PartScores, baselines: Mapping[str, PartScores], leaks: Leaks
) -> dict[str, Any]:
    """One task by the metric that its type is chosen by."""
    metric = head.type.default_metric
    title = METRICS[metric].title
    if metric == "f1" and head.type.positive_class is not None:
        title = f"{title} of {head.classes[head.type.positive_class]}"
    floors = {
        name: baselines[name].overall.get(metric)
        for name in (WORDS, MOST_FREQUENT)
        if name in baselines
    }
    without = leaks.scores_without.get(head.name)
    return {
        "task": head.name,
        "metric": metric,
        "title": title,
        "rows": scores.rows,
        "score": scores.overall.get(metric),
        "interval": list(scores.intervals[metric]) if metric in scores.intervals else None,
        "baselines": floors,
        "without_leaks": without.overall.get(metric) if without is not None else None,
        "path_bound": read_path_bound(head),
    }


def format_summary(summary: Mapping[str, Any], page: Path) -> list[str]:
    """The lines that the terminal shows: about ten for two tasks.

    :param summary: what ``make_summary`` made.
    :param page: the report's page.
    :returns: lines, the page's name last.
    """
    judged = summary["judged"]
    lines = [_format_task(of, judged) for of in summary["tasks"]]
    lines += _format_leaks(summary["leaks"], summary["tasks"], judged)
    suspects = {task: number for task, number in summary["suspects"].items() if number}
    if suspects:
        told = ", ".join(f"{number:,} of {task}" for task, number in suspects.items())
        lines.append(f"labels that are probably wrong: {told}; suspects.csv has them")
    else:
        lines.append("labels that are probably wrong: none found")
    lines += [_format_segment(of) for of in summary["segments"]]
    if summary["more_segments"]:
        lines[-1] += f"; {summary['more_segments']:,} more on the page"
    if not summary["segments"]:
        lines.append("weak rows: no group of rows is worse than chance explains")
    lines.append(f"page: {page}")
    return lines


def list_warnings(summary: Mapping[str, Any]) -> list[str]:
    """What must not be missed: scores that leaks made better, and searches that ended at a bound.

    :param summary: what ``make_summary`` made.
    """
    by_task = {of["task"]: of for of in summary["tasks"]}
    inflated = [by_task[task] for task in summary["leaks"]["inflated"]]
    at_bounds = [of for of in summary["tasks"] if of["path_bound"] is not None]
    return [
        f"{of['task']}: {of['title']} is {_show(of['score'])} with texts that stand in training "
        f"too, or nearly so, and {_show(of['without_leaks'])} without them, which is more than "
        "chance explains; new texts are like the latter"
        for of in inflated
    ] + [
        f"{of['task']}: the {of['path_bound']} weight decay that was tried is the best; another "
        "one may be better still"
        for of in at_bounds
    ]


def _format_task(of: Mapping[str, Any], judged: str) -> str:
    """The score of one task, with the floor that it stands on."""
    line = f"{of['task']}: {of['title']} {_show(of['score'])}"
    if of["interval"] is not None:
        low, high = of["interval"]
        line += f" ({_show(low)} to {_show(high)})"
    line += f" on {count(of['rows'], f'{judged} row')}"
    names = {WORDS: "the words alone", MOST_FREQUENT: "the most frequent answer"}
    if METRICS[of["metric"]].lower_is_better or of["metric"] == "r2":
        names[MOST_FREQUENT] = "always the same answer"
    floors = [f"{names[name]} {_show(value)}" for name, value in of["baselines"].items()]
    return line + (f"; {', '.join(floors)}" if floors else "")


def _format_leaks(
    leaks: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]], judged: str
) -> Iterator[str]:
    """How much of the judged part stands in training, too, and the scores without it."""
    how = "" if leaks["exact"] else ", of the pairs that were compared"
    yield (
        f"leaks: of {count(leaks['rows'], f'{judged} row')}, {leaks['same']:,} have the text of a "
        f"training row, and {leaks['near']:,} nearly so (cosine above {leaks['cosine']:.3f}{how})"
    )
    if leaks["same"] or leaks["near"]:
        told = [
            f"{of['task']} {_show(of['without_leaks'])} instead of {_show(of['score'])}"
            for of in tasks
        ]
        yield f"without them: {', '.join(told)}"


def _format_segment(of: Mapping[str, Any]) -> str:
    """One group of rows on which a head is weak."""
    what = of["name"] if of["kind"] == "length" else f"{of['kind']} {of['name']}"
    title = METRICS[of["metric"]].title
    title = title[0].lower() + title[1:]
    return (
        f"weak: {of['task']}, {what}: {title} {_show(of['score'])} ({_show(of['low'])} to "
        f"{_show(of['high'])}) on {count(of['rows'], 'row')}, {_show(of['overall'])} on all"
    )


def _show(value: float | None) -> str:
    return "–" if value is None else format_number(value, 3)
