"""What the page's script works on, as JSON: tables, the map, and thresholds.

The page stays under 3 MB whatever the corpus: rows, points and names are bounded, and texts are cut
to what is left.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from pipeline.model.decision import Ints, Logits
from pipeline.model.saved import Heads, SavedHead
from pipeline.report.errors import ErrorRow, name_label
from pipeline.report.findings import Findings
from pipeline.report.inputs import ScoredRows
from pipeline.report.thresholds import ThresholdCurve

PAGE_BYTES = 2_900_000  # of the whole page
ROWS_A_TASK = 1000  # in each table; the CSV files have the others
TEXT_CHARACTERS = 200  # of a text at most
_ROWS_A_TABLE = 4000
_REST_BYTES = 400_000  # of style, script, drawings and tables
_LEAST_TEXT_BYTES = 300_000
_TABLES_SHARE = 0.55  # of the bytes for texts; the map has the others
_MOST_NAMES = 2000  # of labels on the map; rarer combinations of tags are one
_OTHER = "(rarer)"
_STEPS = 65_534  # of a number on the map, which leaves one value for "none"


@dataclass
class TextPool:
    """Texts that tables show, each once.

    :param texts: row → its text; ``None`` where texts are not to be shown.
    """

    texts: Mapping[int, str] | None
    _numbers: dict[str, int] = field(default_factory=dict)

    def number(self, row: int | None) -> int:
        """The index of a row's text among ``list_texts``; -1 for none.

        :param row: the row.
        """
        if row is None or self.texts is None:
            return -1
        return self._numbers.setdefault(self.texts[row], len(self._numbers))

    def list_texts(self) -> list[str]:
        """The texts, in the order of their indices."""
        return list(self._numbers)


def build_data(
    heads: Heads,
    rows: ScoredRows,
    findings: Findings,
    logits: Mapping[str, Sequence[Logits]],
    texts: Mapping[int, str] | None,
) -> dict[str, Any]:
    """All that the script works on.

    :param heads: the heads.
    :param rows: the rows of the corpus.
    :param findings: what was found.
    :param logits: task → logits of the N distinct texts, [N, O], for each seed.
    :param texts: row → its text, of the rows of the tables and of the map; ``None`` where texts are
        not to be shown.
    """
    pool = TextPool(texts)
    points = _locate_points(rows, findings)
    classes = {head.name: head.classes for head in heads.heads}
    of_map = describe_map(heads, rows, findings, logits)
    data: dict[str, Any] = {
        "tasks": [
            {"name": head.name, "type": head.type.name, "classes": head.classes}
            for head in heads.heads
        ],
        "errors": list_error_rows(findings, classes, pool, points),
        "suspects": list_suspect_rows(findings, pool, points),
        "leaks": list_leak_rows(findings, pool, points),
        "thresholds": {
            index: [_pack_curve(curve) for curve in findings.thresholds[head.name]]
            for index, head in enumerate(heads.heads)
            if head.name in findings.thresholds
        },
        "map": of_map,
    }
    left = PAGE_BYTES - _REST_BYTES - len(encode_json(data).encode("utf-8"))
    left = max(left, _LEAST_TEXT_BYTES)
    in_tables = cut_texts(pool.list_texts(), int(left * _TABLES_SHARE))
    data["texts"] = in_tables
    if texts is not None:
        left -= sum(len(text.encode("utf-8")) for text in in_tables)
        of_map["text"] = cut_texts([texts[row] for row in findings.points.rows.tolist()], left)
    return data


def encode_json(data: object) -> str:
    """JSON that may stand in a ``script`` element: no text in it ends the element or opens another.

    :param data: a value of JSON.
    """
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def mark_json(data: object) -> Markup:
    """JSON as ``encode_json`` makes it, which the templates do not escape again.

    :param data: a value of JSON.
    """
    return Markup(encode_json(data))


def cut_texts(texts: Sequence[str], most_bytes: int) -> list[str]:
    """Texts of at most 200 characters; of fewer, the same for all, if they are too many.

    :param texts: the texts.
    :param most_bytes: how many bytes they may have together, in UTF-8.
    """
    for characters in (TEXT_CHARACTERS, 160, 120, 90, 70, 50, 35, 20):
        cut = [shorten(text, characters) for text in texts]
        if sum(len(text.encode("utf-8")) + 3 for text in cut) <= most_bytes:
            return cut
    return [""] * len(texts)


def shorten(text: str, characters: int = TEXT_CHARACTERS) -> str:
    """The start of a text; an ellipsis tells that it goes on.

    :param text: any text.
    :param characters: how many characters it may have.
    """
    return text if len(text) <= characters else text[: characters - 1].rstrip() + "…"


def count_shown(tasks: int) -> int:
    """How many rows of each task a table has.

    :param tasks: the number of tasks.
    """
    return min(ROWS_A_TASK, _ROWS_A_TABLE // max(tasks, 1))


def list_error_rows(
    findings: Findings, classes: Mapping[str, Sequence[str]], pool: TextPool, points: Ints
) -> list[list[Any]]:
    """The rows of the table of errors and doubts, the worst of each task.

    :param findings: what was found.
    :param classes: task → the names of its classes.
    :param pool: the texts of the tables; added to.
    :param points: the number of each row's point on the map, -1 for none, [B].
    :returns: task, row in the source, text, actual, predicted, probability, kind, loss, text of the
        neighbour, its label, cosine, classes that it is about, point.
    """
    most = count_shown(len(findings.errors))
    numbers = {task: {name: n for n, name in enumerate(of)} for task, of in classes.items()}
    return [
        [
            index,
            int(findings.numbers[error.row]),
            pool.number(error.row),
            shorten(error.actual),
            shorten(error.predicted),
            _round(error.probability),
            shorten(error.kind),
            _round(error.loss),
            pool.number(error.neighbour_row),
            None if error.neighbour_label is None else shorten(error.neighbour_label),
            _round(error.cosine),
            list_classes(error, numbers[task]),
            int(points[error.row]),
        ]
        for index, (task, errors) in enumerate(findings.errors.items())
        for error in errors[:most]
    ]


def list_classes(error: ErrorRow, numbers: Mapping[str, int]) -> list[int]:
    """The classes that an error is about: the actual and the predicted one, or the tag.

    :param error: the error.
    :param numbers: class → its index.
    """
    tag = error.kind.partition(": ")[2]
    if error.kind.startswith(("missing: ", "extra: ")) and tag in numbers:
        return [numbers[tag]]
    names: list[str] = []
    for label in (error.actual, error.predicted):
        names += [label] if label in numbers else label.split("; ")
    return sorted({numbers[name] for name in names if name in numbers})


def list_suspect_rows(findings: Findings, pool: TextPool, points: Ints) -> list[list[Any]]:
    """The rows of the table of probable label errors, the most certain of each task.

    :param findings: what was found.
    :param pool: the texts of the tables; added to.
    :param points: the number of each row's point on the map, -1 for none, [B].
    :returns: task, row in the source, text, part, given, suggested, confidence, reason, point.
    """
    return [
        [
            index,
            int(findings.numbers[found.row]),
            pool.number(found.row),
            found.part,
            shorten(found.given),
            shorten(found.suggested),
            _round(found.confidence),
            found.reason,
            int(points[found.row]),
        ]
        for index, of_task in enumerate(findings.suspects.values())
        for found in of_task[: count_shown(len(findings.suspects))]
    ]


def list_leak_rows(findings: Findings, pool: TextPool, points: Ints) -> list[list[Any]]:
    """The rows of the table of near-duplicates, the nearest first.

    :param findings: what was found.
    :param pool: the texts of the tables; added to.
    :param points: the number of each row's point on the map, -1 for none, [B].
    :returns: row in the source, text, training row, its text, cosine, whether labels are the same,
        point.
    """
    return [
        [
            int(findings.numbers[pair.row]),
            pool.number(pair.row),
            int(findings.numbers[pair.train_row]),
            pool.number(pair.train_row),
            _round(pair.cosine),
            {True: "same", False: "different", None: ""}[pair.same_label],
            int(points[pair.row]),
        ]
        for pair in findings.leaks.pairs[:ROWS_A_TASK]
    ]


def _locate_points(rows: ScoredRows, findings: Findings) -> Ints:
    """The number of the point that has each row's text, -1 for none: int64, [B]."""
    of_text = np.full(int(rows.codes.max(initial=-1)) + 1, -1, np.int64)
    of_text[rows.codes[findings.points.rows]] = np.arange(len(findings.points.rows))
    return of_text[rows.codes]


def describe_map(
    heads: Heads,
    rows: ScoredRows,
    findings: Findings,
    logits: Mapping[str, Sequence[Logits]],
) -> dict[str, Any]:
    """The points of the map, and what they are coloured by.

    :param heads: the heads.
    :param rows: the rows of the corpus.
    :param findings: what was found.
    :param logits: task → logits of the N distinct texts, [N, O], for each seed.
    """
    points = findings.points
    parts = [part for part in ("train", "validation", "test") if part in rows.parts]
    part_of = np.full(len(rows.codes), len(parts), np.int64)
    for number, part in enumerate(parts):
        part_of[rows.parts[part]] = number
    return {
        "row": pack_numbers(findings.numbers[points.rows]),
        "x": pack_numbers(np.round((points.x + 1) * 1000)),
        "y": pack_numbers(np.round((points.y + 1) * 1000)),
        "parts": parts,
        "part": pack_numbers(part_of[points.rows]),
        "clusters": list(findings.clusters),
        "cluster": pack_numbers(points.cluster),
        "tasks": [
            _describe_points(head, rows, points.rows, logits[head.name][0], findings)
            for head in heads.heads
        ],
    }


def _describe_points(
    head: SavedHead, rows: ScoredRows, shown: Ints, logits: Logits, findings: Findings
) -> dict[str, Any]:
    """Labels and answers of one task at the points of the map."""
    labels, present = rows.labels[head.name][shown], rows.present[head.name][shown]
    answers = head.type.predict(logits[rows.codes[shown]], head.decision)
    suspected = {found.row for found in findings.suspects.get(head.name, ())}
    codes = rows.codes[np.array(sorted(suspected), np.int64)]
    suspects = np.flatnonzero(np.isin(rows.codes[shown], codes)).tolist()
    if head.type.label_kind == "number":
        return {"suspects": suspects, **_pack_values(labels, answers, present)}
    given = [name_label(head, value) for value in labels]
    answered = [name_label(head, value) for value in answers]
    names = list(head.classes)
    if head.type.label_kind == "tags":
        counts = Counter(name for name, known in zip(given, present, strict=True) if known)
        counts.update(answered)
        names = [name for name, _ in counts.most_common(_MOST_NAMES)]
    numbers = {name: number for number, name in enumerate(names)}
    other = len(names)
    label = np.array([numbers.get(name, other) for name in given], np.int64)
    return {
        "suspects": suspects,
        "ordered": head.type.name == "ordinal",
        "names": [*(shorten(name, 80) for name in names), _OTHER],
        "label": pack_numbers(np.where(present, label, other + 1)),
        "predicted": pack_numbers(np.array([numbers.get(name, other) for name in answered])),
    }


def _pack_values(
    labels: npt.NDArray[Any], answers: npt.NDArray[Any], present: npt.NDArray[np.bool_]
) -> dict[str, Any]:
    """Numbers between the least and the greatest of them, in steps that no eye tells apart."""
    known = np.concatenate([labels[present], answers])
    low, high = float(known.min(initial=np.inf)), float(known.max(initial=-np.inf))
    if not low < high:
        low, high = (low, low + 1) if np.isfinite(low) else (0.0, 1.0)
    steps = np.where(present, np.round((labels - low) / (high - low) * _STEPS), _STEPS + 1)
    return {
        "low": low,
        "high": high,
        "label": pack_numbers(np.nan_to_num(steps), 16),
        "predicted": pack_numbers(np.round((answers - low) / (high - low) * _STEPS), 16),
    }


def pack_numbers(values: npt.NDArray[Any], bits: int | None = None) -> dict[str, Any]:
    """Whole numbers in as few bytes as they need, as base64.

    :param values: numbers from 0 to below 2³², [N].
    :param bits: 8, 16 or 32; the fewest that hold them if ``None``.
    """
    whole = values.astype(np.int64)
    if bits is None:
        largest = int(whole.max(initial=0))
        bits = 8 if largest < 2**8 else 16 if largest < 2**16 else 32
    packed = whole.astype(f"<u{bits // 8}").tobytes()
    return {"bits": bits, "data": base64.b64encode(packed).decode("ascii")}


def _pack_curve(curve: ThresholdCurve) -> dict[str, Any]:
    """Counts at each threshold; the script computes scores of them."""
    return {
        "name": shorten(curve.name),
        "rows": int(curve.tp[0] + curve.fp[0] + curve.fn[0] + curve.tn[0]),
        "support": int(curve.tp[0] + curve.fn[0]),
        "chosen": curve.chosen,
        "threshold": float(curve.thresholds[curve.chosen]),
        "tp": pack_numbers(curve.tp),
        "fp": pack_numbers(curve.fp),
        "cost": None if curve.cost is None else [_round(cost) for cost in curve.cost.tolist()],
    }


def _round(value: float | None) -> float | None:
    """A number with 4 decimals; ``None`` of one that is not finite, which JSON lacks."""
    if value is None or not np.isfinite(value):
        return None
    return round(float(value), 4)
