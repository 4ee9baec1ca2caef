"""Source → ``texts.parquet`` and ``labels.parquet``: read, check, label, split."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.arrays import take_values, wrap_numbers, wrap_rows, wrap_texts
from pipeline.assets import ONE_TEXT, SIZES, Asset, check_files, read_assets
from pipeline.config import (
    GivenSplit,
    LabelSettings,
    PrepareSettings,
    Settings,
    normalize_value,
)
from pipeline.console import count, say, show_table, warn
from pipeline.corpus.cells import Cells, ChosenTexts, Spool, Table, choose_cells
from pipeline.corpus.classes import check_class_order
from pipeline.corpus.columns import ColumnChoice
from pipeline.corpus.draw import Parts
from pipeline.corpus.file_sets import list_local_files
from pipeline.corpus.identity import CorpusIdentity, LabelIdentity, hash_labels
from pipeline.corpus.keys import count_distinct, number_keys, pack_keys
from pipeline.corpus.reading import Reading
from pipeline.corpus.sources import RowOrigins, SourceFiles, describe_row, read_table
from pipeline.corpus.tables import (
    PARTS,
    describe_label,
    describe_rows,
    describe_texts,
    encode_labels,
    iterate_segments,
    write_parts,
)
from pipeline.corpus.texts import find_fault, fold_text
from pipeline.errors import DataError, StageError
from pipeline.files import write_aside
from pipeline.prepare.labelers.base import NO_VALUE, LabelingContext, Labels, make_labeler
from pipeline.prepare.labelers.class_checks import show_name
from pipeline.prepare.split import LEFT_OUT, read_parts, split_rows
from pipeline.project import Project

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

# What tells a row by its number, for messages.
Describe = Callable[[int], str]
_NAMED_ROWS = 5  # that an error or a warning names, of those that cannot be used
_GROUP_ROWS = 16_384  # in a row group of texts.parquet: a reader holds one group at a time
_LABELS_GROUP_ROWS = 1_048_576  # in a row group of labels.parquet
_COUNTED_CLASSES = 30  # of a label, in the summary
_NAMED_CLASSES = 10  # that an error lists, of those that a label knows
_UNTRAINED_CLASSES = 5  # that a warning names, of those without a training row


@dataclass(frozen=True)
class LabelledTexts:
    """The rows of the source that can be used.

    :param rows: int32, [B]: the position of each row in the source, from 0, ascending.
    :param texts: [B]; of many rows they may stand on the disk.
    :param labels: task → its labels, [B] each.
    """

    rows: npt.NDArray[np.int32]
    texts: Sequence[str]
    labels: Mapping[str, Labels]


@dataclass(frozen=True)
class BadRows:
    """What the source holds that cannot be used, where settings say to go on without it.

    :param dropped: row that was left out → why.
    :param unlabelled: task → row that was kept without its label for it → what stands there.
    :param left_out: the number of rows that settings leave out by the column of the parts.
    """

    dropped: Mapping[int, str]
    unlabelled: Mapping[str, Mapping[int, str]]
    left_out: int = 0


def run_prepare(project: Project, settings: Settings) -> dict[str, object]:
    """Write the project's ``texts.parquet`` and ``labels.parquet``.

    :param project: the project to prepare.
    :param settings: all settings.
    :returns: details for the timing file.
    :raises DataError: if a column is missing, a row cannot be used, or there are too few rows.
    """
    assets = read_assets(project.assets)
    dataset, own = assets["dataset"], settings.prepare
    _check_dataset(project, dataset)
    files = find_label_assets(project, settings, assets)
    wanted, may_be_any = own.list_columns()
    kept = settings.report.list_columns()
    sources = list_source_files(project, dataset, own)
    with Spool(project.cache) as spool:
        choice = ColumnChoice((*wanted, *kept), all_others=may_be_any)
        table, origins = read_table(sources, choice, spool)
        try:
            given = read_given_parts(table, own)
            left_out = set(np.flatnonzero(given == LEFT_OUT).tolist()) if given is not None else ()
            context = LabelingContext(project, settings.runtime)
            corpus, bad = select_rows(table, own, files, left_out, origins.describe, context)
        except DataError as error:
            name = origins.files[0][0] if len(origins.files) == 1 else dataset.id
            raise DataError(f"{name}: {error.message}", hint=error.hint) from error
        total = len(table)
        segments = {want.name: choose_cells(table[want.name], corpus.rows, total) for want in kept}
        del table  # what is left of it are the texts, on the disk, and columns for the report
        check_class_order(settings, {task: made.classes for task, made in corpus.labels.items()})
        alike = number_keys(pack_keys(map(fold_text, corpus.texts), len(corpus.texts)))
        given = take_values(given, corpus.rows) if given is not None else None
        split = split_rows(alike, corpus.labels, own.split, given)
        leaks = find_leaks(alike, split)
        del alike  # before the keys, which take more
        keys = pack_keys(corpus.texts, len(corpus.texts))
        _write_corpus(project, corpus, keys, split, own.labels, segments)
        distinct = count_distinct(keys)
        _show_summary(dataset.id, total, bad, corpus, distinct, leaks, split, origins)
        _hint_at_dvc(project, corpus.labels.values())
    return {"rows": len(corpus.texts), "distinct_texts": distinct, "dropped": len(bad.dropped)}


def read_given_parts(frame: Table | pd.DataFrame, settings: PrepareSettings) -> Parts | None:
    """The part of each row of the source, [B]; ``None`` if parts are drawn.

    :param frame: the source's columns.
    :param settings: the settings that say how parts are made.
    :raises DataError: if a row's value stands for no part.
    """
    if not isinstance(settings.split, GivenSplit):
        return None
    return read_parts(Table.of(frame)[settings.split.column], settings.split)


def _check_asset(project: Project, key: str, asset: Asset) -> Path:
    """The one file of an asset, which must be as it was fetched."""
    folder = asset.locate(project)
    check_files(asset, key, folder)
    return folder / next(iter(asset.files), "")


def _check_dataset(project: Project, dataset: Asset) -> None:
    """Make sure that the dataset's files are those that were fetched, and that none was added.

    :raises StageError: naming the first file that is not.
    """
    for member in dataset.list_members():
        check_files(member, "dataset", member.locate(project))
        if member.path is None or SIZES not in member.extra:
            continue
        found = list_local_files(project, member.id)
        added = sorted(set(found[1].names if found else ()) - set(member.files))
        if added:
            more = f" and {len(added) - 1:,} more" if added[1:] else ""
            raise StageError(
                f"dataset {member.id}: {added[0]}{more} came since it was fetched",
                hint="run `pipeline fetch` again",
            )


def list_source_files(
    project: Project, dataset: Asset, settings: PrepareSettings
) -> list[SourceFiles]:
    """The dataset's files as they are to be read.

    :param project: the project that a relative path belongs to.
    :param dataset: the dataset as ``fetch`` got it.
    :param settings: the settings that say how.
    """
    return [
        SourceFiles(
            member.locate(project),
            sorted(member.files),
            choose_reading(settings, member),
            are_texts=ONE_TEXT in member.extra and settings.format == "auto",
        )
        for member in dataset.list_members()
    ]


def choose_reading(settings: PrepareSettings, dataset: Asset) -> Reading:
    """How the dataset's file is to be read: as the settings say, else as is known of the dataset.

    What ``fetch`` wrote before it told the quoting was read with quotes enclosing cells.

    :param settings: the settings that say how.
    :param dataset: the dataset as ``fetch`` got it.
    """
    known: Mapping[str, Any] = {
        "format": "auto", "header": None, "quoting": "double", **dataset.extra
    }  # fmt: skip
    return Reading(
        format=settings.format if settings.format != "auto" else known["format"],
        header=settings.header or known["header"],
        delimiter=settings.delimiter,
        quoting=settings.quoting if settings.quoting != "auto" else known["quoting"],
        escape=settings.escape,
        encoding=settings.encoding,
    )


def find_label_assets(
    project: Project, settings: Settings, assets: Mapping[str, Asset]
) -> dict[str, Path]:
    """What the labelers want: key in ``assets.json`` → file, or folder of a model.

    :param project: the project that they were fetched for.
    :param settings: all settings, with the labels.
    :param assets: what was fetched.
    :raises StageError: if one was not fetched, or is of other settings than these.
    """
    files = {}
    for key, wanted in settings.list_assets().items():
        asset = assets.get(key)
        if asset is None or asset.id != wanted.name:
            what = f"has no {key}" if asset is None else f"has the {key} {asset.id}"
            raise StageError(
                f"{project.assets}: {what}, but {wanted.key} is {wanted.name}",
                hint="run `pipeline fetch` again",
            )
        file = _check_asset(project, key, asset)
        files[key] = file.parent if wanted.is_model else file
    return files


def select_rows(
    frame: Table | pd.DataFrame,
    settings: PrepareSettings,
    assets: Mapping[str, Path],
    left_out: Collection[int] = (),
    describe: Describe = describe_row,
    context: LabelingContext | None = None,
) -> tuple[LabelledTexts, BadRows]:
    """Label all rows and keep those that can be used.

    :param frame: the source's columns.
    :param settings: the text column, the labels, and what to do with rows that cannot be used.
    :param assets: key of each asset that a labeler wants → its file.
    :param left_out: rows that are not to be used, whatever they hold.
    :param describe: a function that tells a row by its number, for messages.
    :param context: the project, for labelers that read or keep files there.
    :returns: the usable rows, and what was left out.
    :raises DataError: naming the first bad rows, unless they are to be dropped; if no row has a
        label for some task.
    """
    table = Table.of(frame)
    texts, faults = _read_texts(table, settings.text_column, left_out)
    labelled = _clear_missing(table, settings, left_out)
    labels = {
        task: _forget_rows(
            make_labeler(task, label, context).label(labelled, texts, assets), left_out
        )
        for task, label in settings.labels.items()
    }
    reasons = dict(faults)
    for task, made in labels.items():
        for row, value in made.unusable.items():
            reasons.setdefault(row, f"unknown label for {task}: {value}")
    if reasons and settings.on_bad_rows == "stop":
        raise _refuse_rows(reasons, labels, describe)
    # A row without a text serves no task, and one whose labels are all missing or unusable, too; a
    # row whose labels are all missing, as settings allow, is kept for the text's sake.
    serves = np.zeros(len(texts), bool)
    for made in labels.values():
        serves |= made.present
    dropped = {row: why for row, why in reasons.items() if row in faults or not serves[row]}
    is_used = np.ones(len(texts), bool)
    is_used[[*dropped, *left_out]] = False
    usable = np.flatnonzero(is_used).astype(np.int32)
    if not len(usable):
        listed = _list_rows(reasons, describe)
        raise DataError(f"none of the {len(texts):,} rows can be used; {listed}")
    _refuse_empty_labels(labels, describe)
    unlabelled = {
        task: {row: what for row, what in made.unusable.items() if row not in dropped}
        for task, made in labels.items()
    }
    return (
        LabelledTexts(
            rows=usable,
            texts=texts.choose(usable),
            labels={task: _take_rows(made, usable) for task, made in labels.items()},
        ),
        BadRows(dropped, unlabelled, len(left_out)),
    )


def _clear_missing(table: Table, settings: PrepareSettings, left_out: Collection[int]) -> Table:
    """The columns that labels may come from, with ``None`` for each word for a missing label.

    All cells of rows that are left out are ``None``: what stands there must be no class.
    """
    words = {normalize_value(word).strip() for word in settings.missing}
    if not words and not left_out:
        return table
    cleared: dict[str, Sequence[Any]] = {}
    for name in table.columns:
        cleared[name] = table[name]
        if name != settings.text_column:
            cleared[name] = cells = Cells()
            for row, cell in enumerate(table[name]):
                is_word = isinstance(cell, str | int | float) and (
                    normalize_value(cell).strip() in words
                )
                cells.append(None if is_word or row in left_out else cell)
    return Table(cleared)


def _forget_rows(labels: Labels, rows: Collection[int]) -> Labels:
    """Labels without what is wrong with some rows, which are not used."""
    unusable = {row: what for row, what in labels.unusable.items() if row not in rows}
    return replace(labels, unusable=unusable)


def _refuse_empty_labels(labels: Mapping[str, Labels], describe: Describe) -> None:
    """Refuse a label of classes or tags that no row has, as there is nothing to learn.

    :raises DataError: naming the first such task.
    """
    for task, made in labels.items():
        if made.kind != "number" and not made.classes:
            what = "tag" if made.kind == "tags" else "class"
            raise DataError(
                f"no row has a {what} for {task}" + _list_rows(made.unusable, describe),
                hint=f"correct prepare.labels.{task}, or take it out",
            )


def _read_texts(
    table: Table, column: str, left_out: Collection[int]
) -> tuple[ChosenTexts, dict[int, str]]:
    """The texts, [B], empty where there is no usable one, and why there is none: row → reason."""
    values = table[column]
    reasons = {
        row: why
        for row, value in enumerate(values)
        if row not in left_out and (why := find_fault(value))
    }
    return ChosenTexts(values, frozenset([*reasons, *left_out])), reasons


def _take_rows(labels: Labels, rows: npt.NDArray[np.int32]) -> Labels:
    """The labels of some rows, ascending, all of which can be used."""
    if len(rows) == len(labels.values):
        return replace(labels, unusable={})
    scores = {column: take_values(values, rows) for column, values in labels.scores.items()}
    return replace(labels, values=take_values(labels.values, rows), unusable={}, scores=scores)


def _refuse_rows(
    reasons: Mapping[int, str], labels: Mapping[str, Labels], describe: Describe
) -> DataError:
    """The error that names the first rows that cannot be used, and what is known of their labels.

    :param reasons: row → why.
    """
    lines = [
        f"\n  {task} knows {_list_classes(made.classes)}"
        for task, made in labels.items()
        if made.unusable and made.classes
    ]
    lines += [f"\n  {task}: {note}" for task, made in labels.items() for note in made.notes]
    lacking = [task for task, made in labels.items() if NO_VALUE in made.unusable.values()]
    hint = "correct them, or set prepare.on_bad_rows to drop"
    if lacking:
        hint += f"; if rows may lack {lacking[0]}, set prepare.labels.{lacking[0]}.optional to true"
    listed = _list_rows(reasons, describe) + "".join(lines)
    return DataError(f"{count(len(reasons), 'row')} cannot be used: {listed}", hint=hint)


def _list_classes(classes: Sequence[str]) -> str:
    """The first names of classes, and how many more there are."""
    more = len(classes) - _NAMED_CLASSES
    listed = ", ".join(map(show_name, classes[:_NAMED_CLASSES]))
    return listed + (f" and {more:,} more" if more > 0 else "")


def _list_rows(reasons: Mapping[int, str], describe: Describe) -> str:
    """The first rows that cannot be used, a line each, and how many more there are."""
    first = sorted(reasons)[:_NAMED_ROWS]
    lines = [f"\n  {describe(row)}: {reasons[row]}" for row in first]
    more = len(reasons) - len(first)
    return "".join(lines) + (f"\n  and {more:,} more" if more else "")


def _write_corpus(
    project: Project,
    corpus: LabelledTexts,
    keys: npt.NDArray[np.uint8],
    split: npt.NDArray[np.int8],
    settings: Mapping[str, LabelSettings],
    segments: Mapping[str, Iterable[Any]],
) -> None:
    """Write all files, or none: one of them alone would not fit the others.

    :param keys: the key of each row's text: uint8, [B, 16].
    :param settings: task → the settings of its label.
    :param segments: column of the source → the values of the rows, to be kept for the report.
    """
    exact = wrap_rows(keys)
    with write_aside(project.texts_file) as file:
        write_parts(_iterate_texts(corpus, exact), file, _GROUP_ROWS)
        # A full disk shows here, while neither has its name yet.
        file.flush()
        os.fsync(file.fileno())
        with (
            write_aside(project.segments_file) as segments_file,
            write_aside(project.labels_file) as labels_file,
        ):
            kept = iterate_segments(exact, segments, _LABELS_GROUP_ROWS)
            write_parts(kept, segments_file, _LABELS_GROUP_ROWS)
            parts = _iterate_labels(corpus, exact, split, settings)
            write_parts(parts, labels_file, _LABELS_GROUP_ROWS)


def _iterate_texts(corpus: LabelledTexts, keys: pa.Array) -> Iterator[pa.Table]:
    """The table of texts, a row group at a time."""
    import pyarrow as pa

    metadata = describe_texts(keys)
    texts = iter(corpus.texts)
    for start in range(0, len(corpus.rows), _GROUP_ROWS):
        held = wrap_texts(list(itertools.islice(texts, _GROUP_ROWS)))
        part = {
            "row": wrap_numbers(corpus.rows[start : start + _GROUP_ROWS].astype(np.int64)),
            # A string array has offsets of four bytes; Arrow itself divides what is too long.
            "text": held.cast(pa.string())
            if held.nbytes < 2**31
            else pa.array(held.to_pylist(), pa.string()),
            "key": keys.slice(start, _GROUP_ROWS),
        }
        yield pa.table(part).replace_schema_metadata(metadata)


def _iterate_labels(
    corpus: LabelledTexts,
    keys: pa.Array,
    split: npt.NDArray[np.int8],
    settings: Mapping[str, LabelSettings],
) -> Iterator[pa.Table]:
    """The table of labels, a row group at a time."""
    import pyarrow as pa

    identities = {}
    for name, task in corpus.labels.items():
        told = settings[name].model_dump(mode="json")
        if task.sources:
            told["sources"] = dict(sorted(task.sources.items()))
        identities[name] = LabelIdentity(hash_labels(task.kind, task.classes, task.values), told)
    metadata = describe_rows(CorpusIdentity.measure(keys, split, identities))
    names = wrap_texts(PARTS).cast(pa.string())
    for start in range(0, len(corpus.rows), _LABELS_GROUP_ROWS):
        part = slice(start, start + _LABELS_GROUP_ROWS)
        fields = [pa.field("row", pa.int64()), pa.field("split", pa.string())]
        columns = [
            wrap_numbers(corpus.rows[part].astype(np.int64)),
            names.take(wrap_numbers(split[part])),
        ]
        for name, task in corpus.labels.items():
            columns.append(encode_labels(task.values[part], task.kind))
            about = describe_label(task.classes, task.kind)
            fields.append(pa.field(name, columns[-1].type, metadata=about))
            for score, numbers in task.scores.items():
                fields.append(pa.field(score, pa.float64()))
                columns.append(wrap_numbers(numbers[part]))
        yield pa.table(columns, schema=pa.schema(fields, metadata=metadata))


@dataclass(frozen=True)
class Leaks:
    """Texts that hardly differ to the eye.

    :param distinct: the number of texts that differ more.
    :param rows: whether a row outside the training part has a text that is also in it: bool, [B].
    """

    distinct: int
    rows: npt.NDArray[np.bool_]


def find_leaks(alike: npt.NDArray[np.int32], split: npt.NDArray[np.int8]) -> Leaks:
    """Find the rows outside the training part whose texts it has, too.

    :param alike: a number that is the same for texts which hardly differ to the eye, [B].
    :param split: the part of each row, [B].
    """
    distinct = int(alike.max()) + 1
    in_training = np.zeros(distinct, bool)
    in_training[alike[split == PARTS.index("train")]] = True
    return Leaks(distinct, take_values(in_training, alike) & (split > PARTS.index("train")))


def _show_summary(
    dataset: str,
    total: int,
    bad: BadRows,
    corpus: LabelledTexts,
    distinct: int,
    leaks: Leaks,
    split: npt.NDArray[np.int8],
    origins: RowOrigins,
) -> None:
    """Say what was written.

    :param total: number of rows of the source.
    :param distinct: number of distinct texts.
    :param leaks: texts that hardly differ to the eye.
    :param origins: the files that rows come from.
    """
    say(
        f"{dataset}: {count(total, 'row')}, {len(corpus.texts):,} used, {distinct:,} distinct "
        f"texts, {len(corpus.texts) - distinct:,} duplicates"
    )
    if leaks.distinct < distinct:
        number = count(leaks.distinct, "distinct text")
        say(f"without regard to case, blanks and Unicode form: {number}")
    if bad.left_out:
        say(f"{count(bad.left_out, 'row')} left out, as prepare.split.leave_out says")
    _warn_of_bad_rows(bad, origins.describe)
    if not (split == PARTS.index("test")).any():
        say("no test part: the report will show the validation rows")
    rows: list[tuple[object, ...]] = [
        ("rows", *_count_parts(np.ones(len(split), bool), split)),
        ("text also in train", None, *_count_parts(leaks.rows, split)[1:]),
    ]
    for name, task in corpus.labels.items():
        rows += [(what, *_count_parts(chosen, split)) for what, chosen in _list_counts(name, task)]
    show_table(("", *PARTS), rows)
    for name, task in corpus.labels.items():
        for note in task.notes:
            warn(f"{name}: {note}")
        untrained = _list_untrained(task, split)
        for class_name in untrained[:_UNTRAINED_CLASSES]:
            warn(f"{name}: no training row is {class_name!r}")
        if len(untrained) > _UNTRAINED_CLASSES:
            more = len(untrained) - _UNTRAINED_CLASSES
            warn(f"{name}: nor is any of {more:,} other classes")


def _warn_of_bad_rows(bad: BadRows, describe: Describe) -> None:
    """Say how many rows were dropped, and how many lack a label, for each reason."""
    by_reason: dict[str, dict[int, str]] = {}
    for row, why in bad.dropped.items():
        by_reason.setdefault(why.partition(":")[0], {})[row] = why
    for why, rows in by_reason.items():
        warn(f"{count(len(rows), 'row')} dropped: {why}{_list_rows(rows, describe)}")
    for task, rows_of_task in bad.unlabelled.items():
        if rows_of_task:
            warn(
                f"{count(len(rows_of_task), 'row')} without a usable label for {task}, which "
                f"serve the other tasks:{_list_rows(rows_of_task, describe)}"
            )


def _hint_at_dvc(project: Project, labels: Iterable[Labels]) -> None:
    """Tell which of a user's own files that labels depend on DVC does not watch."""
    try:
        stages = (project.root / "dvc.yaml").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return
    for name in sorted({name for made in labels for name in made.sources}):
        if (project.root / name).is_file() and name not in stages:
            say(
                f"tip: to let DVC notice changes of {name}, add it to the `deps` of the stage "
                "`prepare` in dvc.yaml"
            )


def _list_untrained(task: Labels, split: npt.NDArray[np.int8]) -> list[str]:
    """The classes or tags that no training row has."""
    if task.kind == "number":
        return []
    present: set[int] = set()
    for start in range(0, len(split), _LABELS_GROUP_ROWS):
        part = slice(start, start + _LABELS_GROUP_ROWS)
        train = task.values[part][split[part] == PARTS.index("train")]
        present.update(np.unique(train if task.kind == "class" else np.nonzero(train == 1)[1]))
    return [name for index, name in enumerate(task.classes) if index not in present]


def _list_counts(name: str, task: Labels) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """What the summary counts of a label: rows of each of its first classes, rows without a label.

    :returns: pairs of the name of a count and which rows it is of, [B].
    """
    present = task.present
    if task.kind == "number":
        yield f"{name} given", present
    else:
        for index, class_name in enumerate(task.classes[:_COUNTED_CLASSES]):
            of_class = task.values[:, index] == 1 if task.kind == "tags" else task.values == index
            yield f"{name} = {show_name(class_name)}", of_class
        yield from _list_other_counts(name, task)
    if not present.all():
        yield f"{name} not given", ~present


def _list_other_counts(name: str, task: Labels) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """What the summary counts beside single classes: rows of all further ones, rows without a tag.

    :returns: pairs as of ``_list_counts``.
    """
    more = len(task.classes) - _COUNTED_CLASSES
    if task.kind == "class":
        if more > 0:
            noun = "class" if more == 1 else "classes"
            yield f"{name} = {more:,} more {noun}", task.values >= _COUNTED_CLASSES
        return
    if more > 0:
        of_others = (task.values[:, _COUNTED_CLASSES:] == 1).any(axis=1)
        yield f"{name} = {count(more, 'more tag')}", of_others
    without = (task.values == 0).all(axis=1)
    if without.any():
        yield f"{name} = no tag", without


def _count_parts(chosen: npt.NDArray[np.bool_], split: npt.NDArray[np.int8]) -> list[int]:
    """How many of the chosen rows each part has."""
    return [int(np.count_nonzero(chosen & (split == part))) for part in range(len(PARTS))]
