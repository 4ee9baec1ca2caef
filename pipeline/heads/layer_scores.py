"""What each layer is worth: the held-out score of a quick head on it alone, and on all joined.

The heads are least squares fits. Those of all layers and tasks take one product of the features of
each layer with themselves, so that they cost a fraction of a second. They stand below the heads
that are trained by their losses; what they tell is how layers compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.heads.choosing import find_present, is_error, score
from pipeline.heads.features import Scaling
from pipeline.heads.tasks import Task
from pipeline.model.decision import Floats, Ints
from pipeline.model.least_squares import decode_targets, encode_targets
from pipeline.model.tasks import TASK_TYPES

Vectors = npt.NDArray[np.float32]

MAX_ROWS = 4096  # of training rows, and of validation rows; more would not rank layers better
# Penalties in parts of the mean square of a feature. The best of them counts, for each layer.
_PENALTIES = (1e-2, 1e-1, 1.0)
_MAX_CLASSES = 200  # more would take a minute
_STEPS = 8  # of the joined fit; it need not be nearer to its optimum than chance moves its score


@dataclass(frozen=True)
class LayerScores:
    """How much the layers tell about one task.

    :param metric: the metric that configurations of the task are chosen by.
    :param rows: the number of validation rows that were scored.
    :param layers: the number of each layer → the score of a head on it alone.
    :param joined: the score of a head on all these layers.
    """

    metric: str
    rows: int
    layers: Mapping[int, float]
    joined: float

    def to_record(self) -> dict[str, Any]:
        """The scores as JSON, as in ``heads.json``."""
        layers = {str(layer): value for layer, value in self.layers.items()}
        return {"metric": self.metric, "rows": self.rows, "layers": layers, "joined": self.joined}


def sample_rows(parts: Sequence[Ints], seed: int) -> tuple[Ints, int]:
    """Rows to fit and to score on, at most ``MAX_ROWS`` of each part.

    :param parts: the training rows, and the validation rows.
    :param seed: the seed of the draw.
    :returns: row numbers, training rows first, and how many of them are training rows.
    """
    generator = np.random.default_rng(seed)
    chosen = [
        np.sort(generator.permutation(part)[:MAX_ROWS]) if len(part) > MAX_ROWS else part
        for part in parts
    ]
    return np.concatenate(chosen), len(chosen[0])


def score_layers(
    vectors: Vectors,
    layers: Sequence[int],
    train_rows: int,
    tasks: Sequence[Task],
    labels: Mapping[str, npt.NDArray[Any]],
) -> dict[str, LayerScores]:
    """Fit a head on each layer alone and on all of them, and score it on the validation rows.

    :param vectors: the vectors of some rows, training rows first: float32, [B, L, D].
    :param layers: the numbers of the L layers.
    :param train_rows: the number of training rows.
    :param tasks: the tasks.
    :param labels: task → the labels of the rows, as in ``TaskLabels``.
    :returns: task → scores; a task without labelled rows of both kinds has none.
    """
    features = np.empty((len(layers), len(vectors), vectors.shape[2]), np.float32)
    for number, scaled in enumerate(features):
        layer = vectors[:, number]
        scaled[:] = Scaling.fit(layer[:train_rows]).apply(layer)
    found: dict[str, LayerScores] = {}
    few = [task for task in tasks if len(task.classes) <= _MAX_CLASSES]
    for present, alike in _group_by_rows(few, labels).items():
        is_there = np.frombuffer(present, np.bool_)
        train = np.flatnonzero(is_there[:train_rows])
        held_out = np.flatnonzero(is_there[train_rows:]) + train_rows
        if not len(train) or not len(held_out):
            continue
        whole = len(train) == train_rows
        fit = _LayerFit(features[:, :train_rows] if whole else features[:, train],
                        features[:, held_out])  # fmt: skip
        found |= fit.score(layers, train, held_out, alike, labels)
    return {task.name: found[task.name] for task in tasks if task.name in found}


def _group_by_rows(
    tasks: Sequence[Task], labels: Mapping[str, npt.NDArray[Any]]
) -> dict[bytes, list[Task]]:
    """Tasks by which rows have their label, since those that are alike share a fit."""
    groups: dict[bytes, list[Task]] = {}
    for task in tasks:
        groups.setdefault(find_present(labels[task.name]).tobytes(), []).append(task)
    return groups


@dataclass(frozen=True, eq=False)
class _LayerFit:
    """The features of one set of rows, and what least squares needs of them.

    :param train: float32, [L, n, D].
    :param held_out: float32, [L, m, D].
    """

    train: Vectors
    held_out: Vectors
    _grams: Vectors = field(init=False)

    def __post_init__(self) -> None:
        grams = np.stack([layer.T @ layer for layer in self.train]) / self.train.shape[1]
        object.__setattr__(self, "_grams", grams)

    def score(
        self,
        layers: Sequence[int],
        train: Ints,
        held_out: Ints,
        tasks: Sequence[Task],
        labels: Mapping[str, npt.NDArray[Any]],
    ) -> dict[str, LayerScores]:
        """The scores of some tasks, all of whose rows have a label.

        :param layers: the numbers of the L layers, in the order of the vectors.
        :param train: the numbers of the training rows, [n].
        :param held_out: the numbers of the rows to score on, [m].
        :param tasks: the tasks.
        :param labels: task → labels of all rows.
        """
        targets = [
            encode_targets(TASK_TYPES[task.type], labels[task.name], len(task.classes))
            for task in tasks
        ]
        columns = np.cumsum([0, *(of_task.shape[1] for of_task in targets)])
        wanted = np.concatenate(targets, axis=1)[train]
        center = wanted.mean(axis=0)
        spread = np.maximum(wanted.std(axis=0), 1e-12)  # so that no unit is too large for float32
        scaled = ((wanted - center) / spread).astype(np.float32)
        alone = self._predict_alone(scaled) * spread + center  # [penalties, L, m, O]
        together = self._predict_joined(scaled) * spread + center  # [penalties, m, O]
        scores = {}
        for number, task in enumerate(tasks):
            chosen = slice(columns[number], columns[number + 1])
            values = [
                _score(task, answers[..., chosen], labels[task.name][held_out])
                for answers in (*alone.transpose(1, 0, 2, 3), together)
            ]
            by_layer = dict(zip(layers, values[:-1], strict=True))
            rows, metric = len(held_out), _name_metric(task)
            scores[task.name] = LayerScores(metric, rows, by_layer, values[-1])
        return scores

    def _predict_alone(self, targets: Vectors) -> Floats:
        """What ridge regression on each layer says of the held-out rows: [penalties, L, m, O]."""
        right = self.train.transpose(0, 2, 1) @ targets / len(targets)
        answers = [
            self.held_out @ np.linalg.solve(self._add_penalty(penalty), right)
            for penalty in _PENALTIES
        ]
        return np.stack(answers).astype(np.float64)

    def _predict_joined(self, targets: Vectors) -> Floats:
        """What ridge regression on all layers says of the held-out rows: [penalties, m, O].

        It takes some conjugate gradients, preconditioned by the layers' own equations, instead of
        the product of all features with each other, which is as large as the layers are many.

        Source: Saad (2003), Iterative methods for sparse linear systems (block Jacobi
        preconditioning).
        """
        n, width, P = len(targets), targets.shape[1], len(_PENALTIES)
        inverses = [np.linalg.inv(self._add_penalty(penalty)) for penalty in _PENALTIES]
        penalties = np.repeat(np.array(_PENALTIES, np.float32), width)

        def precondition(vectors: Vectors) -> Vectors:
            columns = np.split(vectors, P, axis=-1)
            pieces = [inverse @ part for inverse, part in zip(inverses, columns, strict=True)]
            return np.concatenate(pieces, axis=-1)

        rest = np.tile(
            self.train.transpose(0, 2, 1) @ targets / np.float32(n), P
        )  # [L, D, P·width]
        solved = np.zeros_like(rest)
        scaled = precondition(rest)
        direction, size = scaled, (rest * scaled).sum(axis=(0, 1))
        for _ in range(_STEPS):
            outputs = (self.train @ direction).sum(axis=0) / np.float32(n)
            moved = self.train.transpose(0, 2, 1) @ outputs + penalties * direction
            bend = (direction * moved).sum(axis=(0, 1))
            step = np.divide(size, bend, out=np.zeros_like(size), where=bend > 0)
            solved = solved + step * direction
            rest = rest - step * moved
            scaled = precondition(rest)
            before, size = size, (rest * scaled).sum(axis=(0, 1))
            turn = np.divide(size, before, out=np.zeros_like(size), where=before > 0)
            direction = scaled + turn * direction
        answers = (self.held_out @ solved).sum(axis=0).reshape(-1, P, width)
        widened: Floats = answers.transpose(1, 0, 2).astype(np.float64)
        return widened

    def _add_penalty(self, penalty: float) -> Vectors:
        """The matrices of the layers' normal equations: [L, D, D]."""
        return self._grams + np.float32(penalty) * np.eye(self._grams.shape[1], dtype=np.float32)


def _score(task: Task, answers: Floats, actual: npt.NDArray[Any]) -> float:
    """The metric of a task on what was regressed, under the best of the penalties.

    :param answers: [penalties, m, C] or [penalties, m, 1].
    :param actual: the labels of the rows, none missing.
    """
    kind = TASK_TYPES[task.type]
    metric = _name_metric(task)
    values = [
        score(task, metric, decode_targets(kind, of_penalty), actual) for of_penalty in answers
    ]
    return min(values) if is_error(metric) else max(values)


def _name_metric(task: Task) -> Any:
    """What layers are compared by: the task's metric, or the first of its type instead of a loss.

    Losses are of probabilities, which least squares has not.
    """
    return TASK_TYPES[task.type].default_metric if task.metric == "loss" else task.metric
