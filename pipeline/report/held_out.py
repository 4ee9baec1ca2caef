"""What heads say about rows that they were judged by and have not trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.files import hash_file, reading
from pipeline.model.decision import Floats, Ints
from pipeline.model.saved import HELD_OUT, Heads
from pipeline.project import Project


@dataclass(frozen=True)
class HeldOut:
    """The outputs of one task's heads for rows that each of them has not trained on.

    :param rows: the indices of the rows in the corpus, ascending, int64, [B].
    :param logits: the outputs, without temperature, float64, [B, O]; of a regression the numbers in
        the unit of its labels.
    """

    rows: Ints
    logits: Floats


def read_held_out(project: Project, heads: Heads, numbers: Ints) -> Mapping[str, HeldOut]:
    """Read the held-out outputs that ``train-heads`` kept.

    :param project: the project of the heads.
    :param heads: the heads of that run.
    :param numbers: the number in the source of each row of the corpus, [B].
    :returns: task → outputs; nothing where heads are of a version that kept none.
    :raises StageError: if the file is damaged, or not of these heads and this corpus.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    path = project.heads / HELD_OUT
    if heads.held_out_sha256 is None and not path.exists():
        return {}
    order = np.argsort(numbers)
    held = {}
    with reading(path, "train-heads", pa.ArrowException):
        if heads.held_out_sha256 not in (None, hash_file(path)):
            raise ValueError("it is not of one run with heads.json")
        # `read_table` would import pandas.
        with pq.ParquetFile(path) as file:
            table = file.read(["row", "task", "logits"])
        for head in heads.heads:
            of_task = table.filter(pc.equal(table["task"], head.name))
            outputs = head.type.count_outputs(len(head.classes))
            lists = of_task["logits"].combine_chunks()
            logits = lists.flatten().to_numpy().astype(np.float64)
            if not np.isfinite(logits).all() or len(logits) != outputs * len(lists):
                raise ValueError(f"{head.name} has not {outputs} finite logits in each row")
            found = of_task["row"].to_numpy()
            at = order[np.minimum(np.searchsorted(numbers[order], found), len(order) - 1)]
            if (numbers[at] != found).any():
                raise ValueError(f"{head.name} has rows that the corpus lacks")
            by_row = np.argsort(at)
            held[head.name] = HeldOut(at[by_row], logits.reshape(-1, outputs)[by_row])
    return held
