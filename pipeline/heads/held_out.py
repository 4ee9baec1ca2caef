"""``cache/heads/held_out.parquet``: what heads say about the rows that chose them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

if TYPE_CHECKING:
    from pipeline.heads.training import TrainedHead


def encode_held_out(
    heads: Sequence[TrainedHead],
    rows: npt.NDArray[np.int64],
    train_rows: int,
    folds: npt.NDArray[np.int64] | None,
) -> bytes:
    """The content of the file: one line for each task and row that the task's head was judged by.

    The columns are ``row``, the number of the row in ``labels.parquet``; ``task``; ``logits``, of a
    head that has not trained on the row, without temperature, of a regression the number in the
    unit of its labels; and ``fold``, the fold that left the row out, null of a validation row.

    :param heads: the heads that were chosen.
    :param rows: the numbers of the training rows and then of the validation rows, [B].
    :param train_rows: the number of training rows.
    :param folds: the fold of each training row, [train_rows]; ``None`` for no folds.
    """
    from pyarrow import parquet

    tables = []
    for head in heads:
        logits = head.task.labels.restore(head.candidate.held_out)
        first = len(rows) - len(logits)  # 0, or the first validation row
        of_row = np.full(len(rows), -1, np.int64)
        if folds is not None:
            of_row[:train_rows] = folds
        fold = of_row[first:]
        flat = pa.array(logits.astype(np.float64).ravel(), pa.float64())
        offsets = pa.array(np.arange(len(logits) + 1) * logits.shape[1], pa.int32())
        tables.append(
            pa.table(
                {
                    "row": pa.array(rows[first:]),
                    "task": pa.array([head.task.name] * len(logits), pa.string()),
                    "logits": pa.ListArray.from_arrays(offsets, flat),
                    "fold": pa.array(fold, pa.int64(), mask=fold < 0),
                }
            )
        )
    content = io.BytesIO()
    parquet.write_table(pa.concat_tables(tables), content, compression="zstd")
    return content.getvalue()
