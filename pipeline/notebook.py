"""A project as a notebook or a program uses it: vectors and labels as arrays and tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError, SettingsError
from pipeline.project import Project as ProjectFiles

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from pipeline.config import TaskSettings
    from pipeline.corpus.tables import LabelledRows, TaskLabels
    from pipeline.model.saved import Heads

_OTHER_COLUMNS = ("row", "split")  # of a table of labels, beside those of the tasks


class Project(ProjectFiles):
    """A project's files, and what they hold.

    ::

        project = pipeline.Project(".")
        vectors, keys = project.embeddings(layers="last")  # [B, 1, D] and [B], a row each
        labels = project.labels()  # a DataFrame of the same rows

    The attributes are those of ``pipeline.project.Project``: the files and folders of the project.

    :param root: the project's folder, absolute or relative to the working directory of this moment.
    """

    def embeddings(
        self, layers: Literal["all", "last"] | Sequence[int] = "all", split: str | None = None
    ) -> tuple[npt.NDArray[np.float32], pa.Array]:
        """The vectors of the rows of the corpus, in the order of ``labels``.

        :param layers: ``all`` that are stored, ``last``, or numbers of L layers: 0 is the output of
            the embedding layer, -1 the last one stored.
        :param split: name of a part, ``train``, ``validation`` or ``test``; ``None`` for all rows.
        :returns: float32, [B, L, D], the layers ascending, and the keys of the rows' texts,
            fixed-size binary of 16, [B]; rows with the same text have the same key and vector.
        :raises StageError: if ``prepare`` or ``embed`` were not run, or a file is damaged.
        :raises StoreError: if the store lacks a text, as after ``prepare`` without ``embed``.
        :raises SettingsError: if a layer is not stored, or there is no such part.
        """
        from pipeline.corpus.tables import read_labelled_rows
        from pipeline.layers import resolve_layers
        from pipeline.store import read_manifest, read_vectors

        rows = read_labelled_rows(self)
        keys = rows.keys if split is None else rows.keys.take(_select_part(rows, split))
        manifest = read_manifest(self.store)
        numbers = resolve_layers(layers, manifest.layers, "layers")
        vectors = read_vectors(self.store, keys, numbers, fingerprint=manifest.fingerprint)
        return vectors, keys

    def labels(self, split: str | None = None) -> pd.DataFrame:
        """The parts and labels of the rows of the corpus, in the order of ``texts.parquet``.

        :param split: name of a part, ``train``, ``validation`` or ``test``; ``None`` for all rows.
        :returns: B rows: ``row``, its number in the dataset from 0; ``split``, the name of its
            part; and each label by its name: a categorical of class names, whose categories are in
            the order of their index, lists of tags, or numbers. A missing label is NaN, or ``None``
            instead of a list. Raw scores, such as ``sentiment_compound``, follow.
        :raises StageError: if ``prepare`` was not run, or a file is damaged.
        :raises SettingsError: if there is no such part.
        """
        import pandas as pd

        from pipeline.corpus.tables import read_labelled_table

        rows, table = read_labelled_table(self)
        columns: dict[str, Any] = {"row": table["row"].to_numpy(), "split": rows.split}
        columns |= {name: _name_labels(labels) for name, labels in rows.tasks.items()}
        columns |= {
            name: table[name].to_numpy() for name in table.column_names if name not in columns
        }
        frame = pd.DataFrame(columns)
        if split is None:
            return frame
        return frame.iloc[_select_part(rows, split)].reset_index(drop=True)

    def train_heads(
        self,
        labels: pd.DataFrame,
        folder: str | Path,
        *,
        tasks: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Heads:
        """Train heads on the project's vectors for labels that were made in a notebook.

        Labels are read as ``prepare`` reads those of a column: text, categoricals, booleans and
        whole numbers are classes, other numbers are numbers, and lists are tags. What is missing
        leaves the row out of that task. The ``heads`` of the settings hold, but for ``tasks``.

        :param labels: a column for each task; raw scores, as ``Project.labels`` has them beside the
            labels, are left alone. With a column ``row``, the numbers of the rows as
            ``Project.labels`` has them; without, one row for each row of the corpus, in their
            order. A column ``split`` holds each row's part instead of that of the corpus.
        :param folder: the folder to write the heads to; relative ones are of the project. That of
            the stage ``train-heads`` is refused, as its labels are those of ``prepare``.
        :param tasks: task → settings of its head, as in ``heads.tasks``; those that are left out
            are not trained. ``None`` trains a head for each column, with the settings that
            ``heads.tasks`` has for that name.
        :returns: the heads that were saved, see ``pipeline.model.saved``.
        :raises DataError: if the table does not fit the corpus, or nothing can be learned of it.
        :raises SettingsError: if ``folder`` or ``tasks`` cannot be.
        :raises StageError: as ``train-heads`` does.
        """
        from pipeline.config import load_settings
        from pipeline.corpus.tables import read_labelled_table
        from pipeline.heads.run import train_rows
        from pipeline.model.saved import Heads

        target = self.resolve(str(folder)).resolve()
        if target.is_relative_to(self.heads):
            raise SettingsError(
                f"folder: {target} is where `pipeline train-heads` writes",
                hint="give another folder",
            )
        corpus, table = read_labelled_table(self)
        scores = set(table.column_names) - set(corpus.tasks) - set(_OTHER_COLUMNS)
        own = [column for column in labels.columns if column not in scores]
        rows = replace_labels(corpus, table["row"].to_numpy(), labels[own])
        settings = load_settings(self.settings)
        chosen = _choose_tasks(rows, settings.heads.tasks or {}, tasks)
        heads = settings.heads.model_copy(update={"tasks": chosen})
        train_rows(self, settings.model_copy(update={"heads": heads}), rows, target)
        return Heads.load(target)


def _choose_tasks(
    rows: LabelledRows,
    known: Mapping[str, TaskSettings],
    given: Mapping[str, Mapping[str, Any]] | None,
) -> dict[str, TaskSettings]:
    """The tasks to train, and the settings of their heads.

    :param known: task → what the project's settings say.
    :param given: task → what is given for it; ``None`` for all tasks, by the project's settings.
    :raises DataError: if a task has no labels.
    :raises SettingsError: if something given cannot be.
    """
    from pydantic import ValidationError

    from pipeline.config import TaskSettings

    if given is None:
        return {name: known.get(name, TaskSettings()) for name in rows.tasks}
    absent = sorted(set(given) - set(rows.tasks))
    if absent:
        raise DataError(f"labels: the table has no column {absent[0]!r}, which tasks names")
    chosen = {}
    for name, settings in given.items():
        try:
            chosen[name] = TaskSettings.model_validate(settings)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise SettingsError(f"tasks: {name}.{key}: {first['msg']}") from error
    return chosen


def _select_part(rows: LabelledRows, split: str) -> npt.NDArray[np.int64]:
    """The positions of the rows of a part, ascending.

    :raises SettingsError: if there is no such part.
    """
    from pipeline.corpus.tables import PARTS

    if split not in PARTS:
        raise SettingsError(f"split: there is no part {split!r}; there are {', '.join(PARTS)}")
    return rows.select(split)


def _name_labels(labels: TaskLabels) -> Any:
    """The labels of one task as a column for a person."""
    import pandas as pd

    if labels.kind == "number":
        return labels.values
    if labels.kind == "class":
        named = np.array([*labels.classes, None], object)[labels.values]  # -1 is the last: none
        return pd.Categorical(named, categories=list(labels.classes))
    tags = [
        [labels.classes[index] for index in np.flatnonzero(row > 0).tolist()] if given else None
        for row, given in zip(labels.values, labels.present.tolist(), strict=True)
    ]
    return pd.Series(tags, dtype=object)


def replace_labels(
    rows: LabelledRows, numbers: npt.NDArray[np.int64], frame: pd.DataFrame
) -> LabelledRows:
    """The rows of a corpus with the labels of a table.

    :param rows: the corpus, B rows.
    :param numbers: the numbers of its rows in the dataset, ascending: [B].
    :param frame: the labels, as ``Project.train_heads`` takes them.
    :raises DataError: if the table does not fit the corpus.
    """
    from pipeline.corpus.tables import PARTS, LabelledRows, encode_parts

    odd = [name for name in frame.columns if not isinstance(name, str)]
    if odd:
        raise DataError(f"labels: the name of a column is {odd[0]!r}, which is no text")
    positions = _locate_rows(frame, numbers)
    parts = rows.parts
    if "split" in frame.columns:
        parts = parts.copy()
        given = frame["split"].astype(str).to_numpy()
        wrong = sorted(set(given.tolist()) - set(PARTS))
        if wrong:
            raise DataError(
                f"labels: the column 'split' holds {wrong[0]!r}; parts are {', '.join(PARTS)}"
            )
        parts[positions] = encode_parts(given)
    names = [name for name in frame.columns if name not in _OTHER_COLUMNS]
    if not names:
        raise DataError("labels: the table has no column with labels", hint="add one for each task")
    tasks = {name: _read_column(name, frame[name], positions, len(numbers)) for name in names}
    return LabelledRows(rows.keys, parts, tasks)


def _locate_rows(frame: pd.DataFrame, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The position in the corpus of each row of a table.

    :raises DataError: if the table names rows that there are not, or one twice, or is not as long.
    """
    if "row" not in frame.columns:
        if len(frame) != len(numbers):
            raise DataError(
                f"labels: {len(frame):,} rows for a corpus of {len(numbers):,}",
                hint="add the column 'row' of `Project.labels`, which tells them apart",
            )
        return np.arange(len(numbers))
    wanted = frame["row"].to_numpy()
    positions = np.searchsorted(numbers, wanted).clip(max=len(numbers) - 1)
    missing = wanted[numbers[positions] != wanted]
    if len(missing):
        raise DataError(f"labels: the corpus has no row {missing[0]!s}")
    if len(np.unique(wanted)) < len(wanted):
        twice = frame["row"][frame["row"].duplicated()].iloc[0]
        raise DataError(f"labels: row {twice!s} stands there twice")
    return np.asarray(positions, np.int64)


def _read_column(
    name: str, column: pd.Series[Any], positions: npt.NDArray[np.int64], corpus_rows: int
) -> TaskLabels:
    """The labels of one task, missing where the table has none.

    :param positions: the position in the corpus of each value of the column.
    :raises DataError: if the values cannot be labels, or all are missing.
    """
    import pandas as pd
    from pandas.api import types

    from pipeline.config import TASK_NAME, TASK_NAME_CHARACTERS, ColumnLabel
    from pipeline.corpus.tables import TaskLabels
    from pipeline.prepare.labelers.column import label_by_column

    if not re.fullmatch(TASK_NAME, name) or len(name) > TASK_NAME_CHARACTERS:
        raise DataError(
            f"labels: {name!r:.60} is no name of a task",
            hint="begin with a letter, and use letters, digits and underscores",
        )
    values: list[Any] = [None] * corpus_rows
    present = column.notna().to_numpy()
    held = column.tolist()
    for position, value, given in zip(positions.tolist(), held, present.tolist(), strict=True):
        values[position] = value if given else None
    if not present.any():
        raise DataError(f"labels: {name}: no row has one", hint="take the column out of the table")
    is_number = types.is_float_dtype(column.dtype)
    is_list = any(isinstance(value, list | tuple | np.ndarray) for value in held)
    classes: tuple[Any, ...] | None = None
    if isinstance(column.dtype, pd.CategoricalDtype):
        classes = tuple(column.dtype.categories.tolist())
        if len(classes) < 2:
            raise DataError(
                f"labels: {name}: a categorical of {len(classes)} class; two are needed"
            )
    kind: Literal["class", "tags", "number"] = "class"
    if is_list:
        kind = "tags"
        values = [value.tolist() if isinstance(value, np.ndarray) else value for value in values]
    elif is_number:
        kind = "number"
    settings = ColumnLabel(column=name, kind=kind, optional=True, classes=classes)
    made = label_by_column(settings, values)
    if made.unusable:
        row, value = next(iter(made.unusable.items()))
        raise DataError(f"labels: {name}: row {row:,} of the corpus cannot be used: {value}")
    return TaskLabels(made.classes, made.values, made.kind, settings.model_dump(mode="json"))
