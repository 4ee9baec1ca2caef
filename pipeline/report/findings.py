"""What the report finds in one run beside the scores, each finding by its own module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pipeline.config import HeadsSettings, Settings
from pipeline.corpus.tables import TextReader, read_row_numbers, read_segments
from pipeline.model.decision import Ints, Logits
from pipeline.model.evaluation import PartScores
from pipeline.model.saved import Heads
from pipeline.neighbours import Vectors
from pipeline.project import Project
from pipeline.report.baselines import list_training_texts, score_baselines
from pipeline.report.calibration import Reliability, measure_reliability
from pipeline.report.costs import Costs, measure_costs
from pipeline.report.errors import ErrorRow, format_errors, list_errors
from pipeline.report.held_out import read_held_out
from pipeline.report.inputs import ScoredRows
from pipeline.report.leaks import Leaks, find_leaks, format_near_duplicates
from pipeline.report.map import MapPoints, draw_map, name_clusters, sample_rows
from pipeline.report.nearest import find_training_neighbours
from pipeline.report.segments import (
    Grouping,
    Segment,
    find_weak_segments,
    group_lengths,
    group_points,
    group_values,
)
from pipeline.report.suspects import Suspect, find_suspects, format_suspects
from pipeline.report.thresholds import ThresholdCurve, find_costs, trace_thresholds
from pipeline.report.words import count_words
from pipeline.store import Manifest, VectorStream, read_hits, read_token_counts

_CHUNK_TEXTS = 16_384


@dataclass(frozen=True, eq=False)
class Findings:
    """All findings of one run.

    :param numbers: the number in the source of each row of the corpus, [B].
    :param baselines: task → name of a baseline → its scores on the judged part.
    :param errors: task → wrong and doubtful answers, worst first.
    :param suspects: task → labels that are probably wrong, the most certain first.
    :param leaks: near-duplicates between the judged part and training.
    :param segments: groups of rows on which heads are weak, worst first.
    :param reliability: task → how far probabilities can be believed; not of numbers.
    :param thresholds: task → scores at other thresholds; only of tasks that have some.
    :param points: the map of the corpus.
    :param clusters: the names of the map's clusters; their numbers where texts are not to be shown.
    :param costs: what the run has cost.
    """

    numbers: Ints
    baselines: Mapping[str, Mapping[str, PartScores]]
    errors: Mapping[str, Sequence[ErrorRow]]
    suspects: Mapping[str, Sequence[Suspect]]
    leaks: Leaks
    segments: Sequence[Segment]
    reliability: Mapping[str, Reliability]
    thresholds: Mapping[str, Sequence[ThresholdCurve]]
    points: MapPoints
    clusters: Sequence[str]
    costs: Costs

    def list_rows(self) -> Ints:
        """The rows whose texts the tables show, each once, ascending."""
        rows = [
            number
            for of_task in self.errors.values()
            for error in of_task
            for number in (error.row, error.neighbour_row)
            if number is not None
        ]
        rows += [found.row for of_task in self.suspects.values() for found in of_task]
        rows += [number for pair in self.leaks.pairs for number in (pair.row, pair.train_row)]
        return np.unique(np.array(rows, np.int64))

    def format_files(self, texts: Mapping[int, str] | None) -> dict[str, bytes]:
        """The findings as files for a spreadsheet: name → content.

        :param texts: row → its text, of all rows of ``list_rows``; ``None`` where texts are not to
            be shown.
        """
        return {
            "errors.csv": format_errors(self.errors, self.numbers, texts),
            "suspects.csv": format_suspects(self.suspects, self.numbers, texts),
            "near_duplicates.csv": format_near_duplicates(self.leaks, self.numbers, texts),
        }


def collect_findings(
    project: Project,
    settings: Settings,
    heads: Heads,
    rows: ScoredRows,
    logits: Mapping[str, Sequence[Logits]],
    scores: Mapping[str, PartScores],
    manifest: Manifest,
    timings: Sequence[Mapping[str, Any]],
) -> Findings:
    """Find all that the page tells beside scores and curves.

    :param project: the project that the report is of.
    :param settings: all settings: what the report shows, and what wrong answers cost.
    :param heads: the heads.
    :param rows: the rows of the corpus.
    :param logits: task → logits of the N distinct texts, [N, O], for each seed.
    :param scores: task → scores on the judged part.
    :param manifest: what the embedding store holds.
    :param timings: what the stages took, a record each.
    :raises StageError: if a file is missing or damaged.
    """
    numbers = read_row_numbers(project)
    held_out = read_held_out(project, heads, numbers)
    columns = read_segments(project, settings.report.segments)
    reader = _LayerReader(project, heads, rows)
    neighbours = find_training_neighbours(rows, reader.read, settings.runtime.limit_memory())
    shown = sample_rows(rows)
    points = draw_map(reader.take(rows.codes[shown]), shown, settings.report.map)
    read = _list_read_texts(heads, rows, points)
    texts = read_texts(project, rows.first_rows[read])
    words = count_words(texts).spread(read, len(rows.keys))
    lengths = _spread_lengths(texts, read, len(rows.keys))
    del texts
    clusters = name_clusters(words, rows.codes[points.rows], points.cluster)
    if settings.report.texts == "hide":
        clusters = tuple(str(number) for number in range(1, len(clusters) + 1))
    baselines = score_baselines(heads, rows, words)
    del words  # of very many texts they take more memory than all that follows
    groupings = _group_rows(rows, lengths, columns, points, clusters)
    segments = find_weak_segments(heads, rows, logits, groupings)
    return Findings(
        numbers=numbers,
        baselines=baselines,
        errors={
            head.name: list_errors(head, rows, logits[head.name][0], neighbours)
            for head in heads.heads
        },
        suspects={
            head.name: find_suspects(head, held_out.get(head.name), rows) for head in heads.heads
        },
        leaks=find_leaks(heads, rows, logits, neighbours, scores=scores),
        segments=segments,
        **_judge_probabilities(settings.heads, heads, rows, logits),
        points=points,
        clusters=clusters,
        costs=measure_costs(
            timings, manifest, rows, read_token_counts(project.store, rows.keys),
            read_hits(project.last_embed),
        ),
    )  # fmt: skip


def _spread_lengths(texts: Sequence[str], codes: Ints, count: int) -> Ints:
    """The lengths in characters of some texts, each at its code; else 0: int64, [count]."""
    lengths = np.zeros(count, np.int64)
    lengths[codes] = np.fromiter(map(len, texts), np.int64, len(texts))
    return lengths


def _judge_probabilities(
    settings: HeadsSettings,
    heads: Heads,
    rows: ScoredRows,
    logits: Mapping[str, Sequence[Logits]],
) -> dict[str, dict[str, Any]]:
    """What the judged part says of probabilities and of thresholds: the fields of ``Findings``."""
    reliability: dict[str, Reliability] = {}
    thresholds: dict[str, Sequence[ThresholdCurve]] = {}
    for head in heads.heads:
        chosen = rows.take_rows(rows.judged, head.name)
        actual, outputs = rows.labels[head.name][chosen], logits[head.name][0][rows.codes[chosen]]
        found = measure_reliability(head, actual, outputs)
        if found is not None:
            reliability[head.name] = found
        curves = trace_thresholds(head, actual, outputs, find_costs(settings, head.name))
        if curves:
            thresholds[head.name] = curves
    return {"reliability": reliability, "thresholds": thresholds}


def _list_read_texts(heads: Heads, rows: ScoredRows, points: MapPoints) -> Ints:
    """The texts whose words and lengths matter: codes, ascending.

    They are those of the judged part, of the map, and of the training rows that the words alone
    learn from. Of a large corpus that is a part, and words take more memory than all else.
    """
    judged = rows.codes[rows.parts[rows.judged]]
    learned = (list_training_texts(head, rows) for head in heads.heads)
    found = np.concatenate([judged, rows.codes[points.rows], *learned])
    return np.flatnonzero(np.bincount(found))


def _group_rows(
    rows: ScoredRows,
    lengths: Ints,
    columns: Mapping[str, Sequence[str | None]],
    points: MapPoints,
    clusters: Sequence[str],
) -> list[Grouping]:
    """Groups of rows that heads may be weak on: by length, by cluster of the map, by column.

    :param lengths: the number of characters of each of the N distinct texts; of those that judged
        rows have.
    :param columns: the columns of the source that the settings name.
    """
    judged = rows.parts[rows.judged]
    return [
        group_lengths(lengths[rows.codes], judged),
        group_points(points, clusters, rows),
        *(group_values(name, values, judged) for name, values in columns.items()),
    ]


def read_texts(project: Project, rows: Ints) -> list[str]:
    """The texts of some rows.

    :param project: the project whose texts they are.
    :param rows: indices of rows, ascending.
    :raises StageError: if the file is missing or damaged.
    """
    texts: list[str] = TextReader(project.texts_file).take(rows).to_pylist()
    return texts


class _LayerReader:
    """Reads the vectors of the last layer that heads use, by the codes of texts."""

    def __init__(self, project: Project, heads: Heads, rows: ScoredRows) -> None:
        self._project, self._keys, self._layer = project, rows.keys, heads.layers[-1:]

    @cached_property
    def _stream(self) -> VectorStream:
        return VectorStream(self._project.store, self._keys, self._layer)

    def take(self, codes: Ints) -> Vectors:
        """Vectors of some texts: float32, [b, D]."""
        vectors: Vectors = self._stream.take(codes)[:, 0]
        return vectors

    def read(self, codes: Ints) -> Iterator[tuple[Ints, Vectors]]:
        """Vectors of some texts, a bounded number of them at a time."""
        for start in range(0, len(codes), _CHUNK_TEXTS):
            chunk = codes[start : start + _CHUNK_TEXTS]
            yield chunk, self.take(chunk)
