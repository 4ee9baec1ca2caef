"""How many threads training takes, and how long they wait for each other."""

from __future__ import annotations

import os
from collections.abc import Sequence

from pipeline.config import HeadsSettings
from pipeline.heads.configurations import Configuration
from pipeline.heads.tasks import Task

# Multiplications in one forward pass of a batch, and in one of all rows, below which one thread is
# quicker than several.
_SMALL_BATCH_PRODUCTS = 50_000_000
_SMALL_FULL_PRODUCTS = 2_000_000_000
_SPIN_COUNT = "1000"


def shorten_spinning() -> None:
    """Let threads that wait for others sleep soon. To be called before torch is imported.

    ``GOMP_SPINCOUNT`` is how often a waiting thread of libgomp, by which torch runs its threads on
    Linux, looks whether the others are done before it sleeps. By default it looks for some ten
    milliseconds, in which it keeps its core busy. Where another program runs on the core that one
    of the threads needs, the others wait so long in every operation. libgomp reads the variable
    once, when torch loads it.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)


def choose_threads(
    settings: HeadsSettings,
    configurations: Sequence[Configuration],
    tasks: Sequence[Task],
    layer_width: int,
    rows: int,
) -> int | None:
    """One thread for steps so small that threads would mostly wait for each other.

    On a busy machine the waiting takes many times as long as the work.

    :param settings: all settings.
    :param configurations: all configurations of the search.
    :param tasks: all tasks.
    :param layer_width: the width of one layer's vector.
    :param rows: the number of training and validation rows.
    :returns: 1, or ``None`` for all cores.
    """
    outputs = max(
        c.hidden_size * len(tasks) if c.head == "hidden" else sum(task.outputs for task in tasks)
        for c in configurations
    )
    width = max(len(c.layers) for c in configurations) * layer_width
    if any(c.head == "kernel" for c in configurations):
        width = max(width, rows)
    # A path of a loss of its own, in the default search, is for tasks of many outputs alone.
    walked = [
        c for c in configurations if c.weight_decay is not None or "loss" not in c.loss_changes
    ]
    models = len(walked) * ((settings.folds or 0) + 1)
    if any(c.optimizer == "lbfgs" for c in configurations):
        return 1 if rows * width * outputs * models < _SMALL_FULL_PRODUCTS else None
    products = settings.batch_size * width * outputs * models
    return 1 if products < _SMALL_BATCH_PRODUCTS else None
