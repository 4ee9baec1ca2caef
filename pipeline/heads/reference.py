"""The training rows of heads → what is saved beside these to tell how unlike other texts are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.corpus.keys import view_keys
from pipeline.corpus.tables import LabelledRows
from pipeline.model.reference import FAR_PERCENT, Reference, measure_distances
from pipeline.neighbours import normalize
from pipeline.project import Project
from pipeline.store import read_vectors

SAMPLE_TEXTS = (
    2000  # whose vectors are kept, and as many more at most that the limit is measured by
)
_FEWEST_OTHERS = 500  # texts beside the sample; with fewer, its own texts measure the limit


def measure_reference(
    project: Project,
    rows: LabelledRows,
    chosen: npt.NDArray[np.int64],
    tasks: Sequence[str],
    layer: int,
) -> Reference:
    """Draw a sample of the training texts, and measure how far texts like them are from it.

    :param project: the project that holds their vectors.
    :param rows: all rows of the corpus.
    :param chosen: the numbers of the rows that the heads were trained on.
    :param tasks: the tasks of the heads.
    :param layer: the number of a stored layer that the heads use.
    """
    keys = rows.keys.take(chosen).unique()
    order = np.random.default_rng(0).permutation(len(keys))[: 2 * SAMPLE_TEXTS]
    vectors = normalize(read_vectors(project.store, keys.take(order), [layer])[:, 0])
    sample, others = vectors[:SAMPLE_TEXTS].astype(np.float16), vectors[SAMPLE_TEXTS:]
    wide = sample.astype(np.float32)
    if len(others) >= _FEWEST_OTHERS:
        distances = measure_distances(others, wide)
    elif len(sample) > 1:
        distances = measure_distances(wide, wide, are_same=True)
    else:
        distances = np.zeros(1, np.float32)
    first_bytes = np.ascontiguousarray(view_keys(keys)[:, :8]).view(np.uint64)[:, 0]
    return Reference(
        layer=layer,
        vectors=sample,
        limit=float(np.percentile(distances, FAR_PERCENT)),
        keys=np.sort(first_bytes),
        counts={name: _count_labels(rows, chosen, name) for name in tasks},
        labelled={name: int(rows.tasks[name].present[chosen].sum()) for name in tasks},
    )


def _count_labels(rows: LabelledRows, chosen: npt.NDArray[np.int64], task: str) -> tuple[int, ...]:
    """The number of rows of each class or tag; nothing of a number."""
    labels = rows.tasks[task]
    values = labels.values[chosen]
    if labels.kind == "number":
        return ()
    if labels.kind == "tags":
        return tuple((values == 1).sum(axis=0).tolist())
    return tuple(np.bincount(values[values >= 0], minlength=len(labels.classes)).tolist())
