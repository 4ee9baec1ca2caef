"""Make a project of a file of texts, or add a task to one that is there."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from pipeline.assets import read_assets
from pipeline.config import (
    ColumnLabel,
    GivenSplit,
    PrepareSettings,
    Settings,
    WantedColumn,
    normalize_value,
    parse_settings,
)
from pipeline.config_errors import suggest
from pipeline.console import count, say, show_table, warn
from pipeline.corpus.reading import Reading
from pipeline.corpus.tables import PARTS
from pipeline.corpus.texts import find_fault
from pipeline.errors import DataError, PipelineError, ReadError, SettingsError, WriteError
from pipeline.files import describe_read_error, read_bounded, write_together
from pipeline.init import files
from pipeline.init.edit import set_value
from pipeline.init.guess import name_part
from pipeline.init.settings import (
    NewSplit,
    NewTask,
    add_task,
    list_missing_words,
    set_missing_words,
    write_settings,
)
from pipeline.init.source import Source, find_files, is_local, list_deps, open_source
from pipeline.init.tasks import GivenTask, make_task, make_task_name, parse_task
from pipeline.prepare.labelers.base import Labels, is_missing
from pipeline.prepare.run import Describe, list_source_files, read_given_parts, select_rows
from pipeline.prepare.split import LEFT_OUT
from pipeline.presets import read_preset
from pipeline.project import Project

STAGES = ("fetch", "prepare", "embed", "train-heads", "report")
_DATA_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".pq")
_SETTINGS_BYTES = 1_000_000
_SHOWN_CLASSES = 6
_NONE = "-"  # the answer for no task


@dataclass(frozen=True)
class InitOptions:
    """What the command line says.

    :param data: the files of texts: names of files and folders, and patterns.
    :param text_column: the column of the texts.
    :param tasks: tasks, as ``parse_task`` takes them.
    :param classes: ``NAME=A,B,C``: the classes of tasks in their order.
    :param changes: ``KEY=VALUE``: other settings, values in YAML.
    :param split: the column that names each row's part; ``-`` draws parts at random.
    :param no_tasks: whether there are to be no tasks.
    :param force: whether files that are there are replaced.
    """

    data: tuple[str, ...] = ()
    text_column: str | None = None
    tasks: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    split: str | None = None
    no_tasks: bool = False
    force: bool = False


def run_init(folder: Path, options: InitOptions) -> None:
    """Make a project, add tasks to one that is there, or complete its files.

    :param folder: the project's folder; it is made if need be.
    :param options: what the command line says; what it leaves open is asked on a terminal.
    :raises DataError: if the source, a column or a task is not there or cannot be used; without a
        terminal, if an answer is missing.
    :raises SettingsError: if what was given makes no valid settings.
    :raises WriteError: if a file is there already and may not be replaced.
    """
    project = Project(folder)
    if not options.data and project.settings.exists():
        if options.text_column or options.no_tasks or options.changes or options.split:
            raise click.UsageError(
                f"{project.settings} is there; --text, --set, --split and --no-tasks are for a new "
                "project, which --data makes"
            )
        _add_tasks(project, options)
    else:
        _make_project(project, folder, options)


def is_terminal() -> bool:
    """Whether a person sits there who can be asked."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _make_project(project: Project, folder: Path, options: InitOptions) -> None:
    changes = dict(map(_parse_change, options.changes))
    preset = _apply_changes(read_preset("default"), changes)
    own = parse_settings(preset, "--set").prepare
    data = options.data or (_choose_data(folder),)
    names = [files.name_data(project.root, Path(name)) for name in data]
    source = open_source(", ".join(data), find_files(project, names, _make_reading(own)))
    options = _complete_options(source, folder, options)
    tasks, frame, describe = _read_tasks(source, options)
    split = _read_split(source, options, frame)
    faults = sum(find_fault(value) is not None for value in frame[options.text_column].tolist())
    text = write_settings(
        names,
        str(options.text_column),
        tasks,
        split,
        drop_bad_rows=bool(faults),
    )
    text = _apply_changes(text, changes)
    settings = _check_settings(text, str(project.settings))
    made = _label(frame, settings.prepare, tasks, source, describe)
    flow = files.make_flow(list_deps(project, names), has_tasks=bool(tasks))
    written = {project.settings: text, project.root / files.FLOW_FILE: flow}
    if not options.force:
        _allow_replacing(written)
    _write(project, written)
    say(f"{source.name}: {count(len(frame), 'row')}, texts in the column {options.text_column!r}")
    if faults:
        warn(f"{count(faults, 'row')} without a usable text: prepare.on_bad_rows is drop")
    _show_tasks(tasks, made)
    if split is not None and isinstance(settings.prepare.split, GivenSplit):
        listed = ", ".join(f"{part} ({', '.join(of)})" for part, of in split.values.items())
        say(f"parts by the column {split.column!r}: {listed}")
    _say_next(project, folder)


def _add_tasks(project: Project, options: InitOptions) -> None:
    text = _read_text(project.settings)
    settings = parse_settings(text, str(project.settings))
    if not options.tasks:
        _write(project, {})
        _say_next(project, project.root)
        return
    source = _open_dataset(project, settings)
    tasks, frame, describe = _read_tasks(
        source, replace(options, text_column=settings.prepare.text_column)
    )
    labels = list(settings.prepare.labels)
    for task in tasks:
        if task.name in labels:
            raise SettingsError(
                f"prepare.labels.{task.name}: is there already",
                hint="give the task another name, or change it in the file",
                source=str(project.settings),
            )
        text = add_task(text, task, has_heads=settings.heads.tasks is not None, labels=labels)
        labels.append(task.name)
    known = [str(word) for word in settings.prepare.missing]
    words = [word for word in list_missing_words(tasks) if word not in known]
    text = set_missing_words(text, [*known, *words] if words else [])
    new = _check_settings(text, str(project.settings))
    _check_kept(settings, new, [task.name for task in tasks])
    made = _label(frame, new.prepare, tasks, source, describe)
    changed = {project.settings: text}
    flow = project.root / files.FLOW_FILE
    if not settings.prepare.labels and flow.exists():
        longer = files.add_head_stages(_read_text(flow))
        changed |= {flow: longer} if longer is not None else {}
    _write(project, changed)
    _show_tasks(tasks, made)
    _say_next(project, project.root)


def _check_kept(old: Settings, new: Settings, names: Sequence[str]) -> None:
    """Make sure that nothing but the new tasks is another in the settings.

    :raises SettingsError: if a setting changed that should not.
    """
    labels = {name: of for name, of in new.prepare.labels.items() if name not in names}
    heads = {name: of for name, of in (new.heads.tasks or {}).items() if name not in names}
    is_same = labels == old.prepare.labels and (old.heads.tasks is None or heads == old.heads.tasks)
    if not is_same:
        raise SettingsError(
            "prepare.labels: is written in a form that cannot be added to",
            hint="write the task into the file by hand, as docs/heads.md shows",
        )


def _parse_change(given: str) -> tuple[str, str]:
    """``KEY=VALUE`` as a key and YAML."""
    key, sign, value = given.partition("=")
    if not sign or not key.strip() or "\n" in value:
        raise click.UsageError(f"--set: {given!r} is not KEY=VALUE, such as embed.max_tokens=256")
    return key.strip(), value.strip() or '""'


def _apply_changes(text: str, changes: Mapping[str, str]) -> str:
    for key, value in changes.items():
        text = set_value(text, key.split("."), value)
    return text


def _check_settings(text: str, name: str) -> Settings:
    """The settings that a file is to hold.

    :param name: the file, for messages.
    :raises SettingsError: if they are not valid.
    """
    return parse_settings(text, f"{name} (not written)")


def _make_reading(settings: PrepareSettings) -> Reading:
    return Reading(
        format=settings.format,
        header=settings.header,
        delimiter=settings.delimiter,
        quoting=settings.quoting,
        escape=settings.escape,
        encoding=settings.encoding,
    )


def _choose_data(folder: Path) -> str:
    """The data file, where the command line names none.

    :raises DataError: if nobody can be asked and there is not just one such file.
    """
    here = [Path(), folder] if folder.is_dir() else [Path()]
    found = [
        file
        for place in dict.fromkeys(path.resolve() for path in here)
        for file in sorted(place.iterdir())
        if file.is_file() and set(_DATA_ENDINGS) & set(file.suffixes)
    ]
    found = [Path(os.path.relpath(file)) for file in found]
    if is_terminal():
        default = str(found[0]) if len(found) == 1 else None
        return str(click.prompt("The file of your texts", default=default))
    if len(found) == 1:
        return str(found[0])
    listed = ", ".join(map(str, found)) or "none"
    raise DataError(
        f"no data file is named by --data; files of data here: {listed}",
        hint="pipeline init --data FILE --text COLUMN --task NAME=COLUMN; with --data alone it "
        "shows the columns",
    )


def _complete_options(source: Source, folder: Path, options: InitOptions) -> InitOptions:
    """The options with what they leave open: asked on a terminal.

    :raises DataError: if nobody can be asked; the message shows the columns and a whole command.
    """
    needs_tasks = not options.tasks and not options.no_tasks
    if options.tasks and options.no_tasks:
        raise click.UsageError("give either --task or --no-tasks")
    if options.text_column is not None and options.text_column not in source.names:
        near = suggest(options.text_column, source.names, or_list=False)
        raise DataError(
            f"--text: {source.name} has no column {options.text_column!r}{near}\n"
            + source.describe_columns(),
            hint="give --text with one of these columns",
        )
    if options.text_column is not None and not needs_tasks and options.data:
        return options
    text_column = options.text_column or source.guess_text_column() or source.names[0]
    suggested = source.suggest_tasks(text_column)
    described = f"{source.name}: its first {count(source.sampled_rows, 'row')}\n"
    described += source.describe_columns()
    if not is_terminal():
        tasks = options.tasks or tuple(_name_task(column) for column in suggested)
        lacking = [
            option
            for option, lacks in (
                ("--data", not options.data),
                ("--text", options.text_column is None),
                ("--task", needs_tasks),
            )
            if lacks
        ]
        raise DataError(
            f"{', '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not given, and there is "
            f"no terminal to ask on\n{described}",
            hint=_write_command(source, folder, replace(options, text_column=text_column), tasks),
        )
    say(described)
    if options.text_column is None:
        text_column = _ask_column("The column of the texts", text_column, source)
        suggested = source.suggest_tasks(text_column)
    tasks = options.tasks
    if needs_tasks:
        tasks = _ask_tasks(source, suggested)
    return replace(options, text_column=text_column, tasks=tasks, no_tasks=not tasks)


def _ask_column(question: str, default: str, source: Source) -> str:
    while True:
        answer: str = click.prompt(question, default=default)
        if answer in source.names:
            return answer
        say(f"there is no column {answer!r}{suggest(answer, source.names)}")


def _ask_tasks(source: Source, suggested: Sequence[str]) -> tuple[str, ...]:
    """The tasks that a person wants."""
    say("What heads are to learn: COLUMN, NAME=COLUMN or NAME=COLUMN:KIND, with blanks between")
    say(f"them; KIND is binary, multiclass, ordinal, tags or number; {_NONE} is nothing")
    default = shlex.join(_name_task(column) for column in suggested) or _NONE
    while True:
        answer = click.prompt("Tasks", default=default)
        try:
            given = [] if answer == _NONE else shlex.split(answer)
            for task in given:
                parse_task(task, source)
        except (DataError, ValueError) as error:
            say(str(error))
            continue
        return tuple(given)


def _name_task(column: str) -> str:
    """The shortest form that names the task of a column."""
    name = make_task_name(column)
    return column if name == column else f"{name}={column}"


def _write_command(source: Source, folder: Path, options: InitOptions, tasks: Sequence[str]) -> str:
    """A whole command, to copy."""
    words = ["pipeline", "init"]
    words += [str(folder)] if folder != Path() else []
    for name in options.data or (source.name,):
        words += ["--data", name]
    words += ["--text", str(options.text_column)]
    for option, values in (
        ("--task", tasks), ("--classes", options.classes), ("--set", options.changes)
    ):  # fmt: skip
        words += [word for value in values for word in (option, value)]
    words += ["--split", options.split] if options.split else []
    words += [] if tasks else ["--no-tasks"]
    words += ["--force"] if options.force else []
    return shlex.join(words)


def _allow_replacing(written: Mapping[Path, str]) -> None:
    """Make sure that files that are there may be replaced.

    :param written: files and what they are to hold.
    :raises WriteError: if they may not.
    """
    there = [
        os.path.relpath(path)
        for path, text in written.items()
        if path.exists() and _read_text(path) != text
    ]
    what = " and ".join(there)
    if there and not (is_terminal() and click.confirm(f"Replace {what}?")):
        raise WriteError(
            f"{what} {'is' if len(there) == 1 else 'are'} there; nothing was written",
            hint="replace what is there with --force, name another folder by `pipeline init DIR`, "
            "or add a task to a project by `pipeline init --task NAME=COLUMN`",
        )


def _read_tasks(source: Source, options: InitOptions) -> tuple[list[NewTask], Any, Describe]:
    """The tasks, with what their columns tell, and the rows of these columns and of the texts.

    :returns: the tasks, the rows, and what tells a row by its number.
    """
    given = [parse_task(task, source) for task in options.tasks]
    _refuse_doubled(given)
    classes = dict(map(_parse_classes, options.classes))
    unknown = set(classes) - {task.name for task in given}
    if unknown:
        raise click.UsageError(f"--classes: no --task is called {min(unknown)!r}")
    text_column = WantedColumn(str(options.text_column), "--text", "text")
    for task in given:
        if task.column == options.text_column:
            raise DataError(
                f"--task {task.name}: {task.column!r} is the column of the texts",
                hint="give a column of labels",
            )
    frame, origins = source.read_columns([text_column, *(task.wanted for task in given)])
    tasks = [make_task(task, frame, classes.get(task.name), source) for task in given]
    return tasks, frame, origins.describe


def _read_split(source: Source, options: InitOptions, frame: Any) -> NewSplit | None:
    """The column that names each row's part, which is added to the frame; ``None`` if none does.

    :raises DataError: if the column that was named is not there, or does not tell parts by words.
    """
    if options.split == _NONE:
        return None
    guessed = [column.name for column in source.columns if column.guess.kind == "split"]
    name = options.split or next(iter(guessed), None)
    if name is None:
        return None
    wanted = WantedColumn(name, "--split", "class")
    cells = source.read_columns([wanted])[0][name].tolist()
    frame[name] = cells
    values = {normalize_value(cell).strip() for cell in cells if not is_missing(cell)}
    part_of_value = {value: name_part(value) for value in sorted(values)}
    unknown = [value for value, part in part_of_value.items() if part is None]
    if options.split is None and unknown:
        say(f"column {name!r} is no split, as it also holds {', '.join(unknown[:_SHOWN_CLASSES])}")
        return None
    if unknown:
        raise DataError(
            f"--split: {source.name}: column {name!r} holds {', '.join(unknown[:_SHOWN_CLASSES])}, "
            "which do not say which part they mean",
            hint="tell it by --split - --set 'prepare.split={column: "
            f"{name}, train: […], validation: […], test: […]}}'",
        )
    lists = {part: [v for v, of in part_of_value.items() if of == part] for part in PARTS}
    return NewSplit(
        name,
        {part: values for part, values in lists.items() if values},
        any(is_missing(cell) for cell in cells),
    )


def _refuse_doubled(tasks: Sequence[GivenTask]) -> None:
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise click.UsageError(f"--task: two tasks are called {name!r}")


def _parse_classes(given: str) -> tuple[str, tuple[str, ...]]:
    """``NAME=A,B,C`` as a task and its classes."""
    name, sign, listed = given.partition("=")
    classes = tuple(normalize_value(part.strip()) for part in listed.split(","))
    if not sign or len(classes) < 2 or "" in classes:
        raise click.UsageError(f"--classes: {given!r} is not NAME=A,B,C, such as level=low,high")
    return name.strip(), classes


def _label(
    frame: Any,
    settings: PrepareSettings,
    tasks: Sequence[NewTask],
    source: Source,
    describe: Describe,
) -> Mapping[str, Labels]:
    """The labels of the new tasks, made as ``prepare`` will make them.

    :param frame: the rows of the columns of the texts and of the tasks.
    :param describe: a function that tells a row by its number.
    :raises DataError: if ``prepare`` would refuse the rows.
    """
    split = settings.split
    if isinstance(split, GivenSplit) and split.column not in frame.columns:
        wanted = WantedColumn(split.column, "prepare.split.column", "class")
        frame[split.column] = source.read_columns([wanted])[0][split.column]
    names = [task.name for task in tasks]
    only = {name: settings.labels[name] for name in names}
    try:
        given = read_given_parts(frame, settings)
        left_out = set(np.flatnonzero(given == LEFT_OUT).tolist()) if given is not None else set()
        own = settings.model_copy(update={"labels": only})
        corpus, bad = select_rows(frame, own, {}, left_out, describe)
    except DataError as error:
        hint = error.hint and error.hint.replace(
            "set prepare.on_bad_rows to drop", "give --set prepare.on_bad_rows=drop"
        )
        raise DataError(f"{source.name}: {error.message}", hint=hint) from error
    for name in names:
        label = only[name]
        if isinstance(label, ColumnLabel) and bad.unlabelled.get(name):
            row, what = next(iter(bad.unlabelled[name].items()))
            warn(
                f"{name}: {count(len(bad.unlabelled[name]), 'row')} of column {label.column!r} "
                f"hold no such label, first {describe(row)}: {what}"
            )
    return corpus.labels


def _open_dataset(project: Project, settings: Settings) -> Source:
    """The dataset of a project that is there.

    :raises DataError: if it is not on this machine.
    """
    names, name = settings.fetch.list_datasets(), settings.fetch.name_dataset()
    if all(is_local(project, one) for one in names):
        return open_source(name, find_files(project, names, _make_reading(settings.prepare)))
    dataset = read_assets(project.assets).get("dataset") if project.assets.exists() else None
    if dataset is None or dataset.id != name:
        raise ReadError(
            f"fetch.dataset: {name} is not on this machine", hint="run `pipeline fetch` first"
        )
    return open_source(name, list_source_files(project, dataset, settings.prepare))


def _read_text(path: Path) -> str:
    """The text of a file of the project."""
    try:
        return read_bounded(path, _SETTINGS_BYTES).decode("utf-8")
    except OSError as error:
        raise describe_read_error(error, path) from error
    except (UnicodeDecodeError, ValueError) as error:
        raise PipelineError(f"{path}: {error}", hint="save the file as UTF-8") from error


def _write(project: Project, changed: Mapping[Path, str]) -> None:
    """Write a project's files, all or none, and make its folder one of DVC."""
    try:
        project.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(
            f"cannot make the folder {project.root}: {error.strerror}",
            hint="name another folder",
        ) from error
    state, reason = files.start_dvc(project.root)
    written = dict(changed) | files.list_ignore_files(project.root)
    flow = project.root / files.FLOW_FILE
    if not flow.exists() and flow not in written:
        settings = parse_settings(_read_text(project.settings), str(project.settings))
        deps = list_deps(project, settings.fetch.list_datasets())
        written[flow] = files.make_flow(deps, has_tasks=bool(settings.prepare.labels))
    written |= files.list_dvc_files(project.root)
    write_together(files.encode_files(written))
    if written:
        say(f"written: {', '.join(os.path.relpath(path) for path in written)}")
    _say_dvc(state, reason, project.root)


def _say_dvc(state: files.DvcState, reason: str, root: Path) -> None:
    command = " ".join(["dvc init", *files.list_dvc_options(root)])
    if state == "made":
        say(f"done: {command}")
    elif state == "made without git":
        say(f"done: {command}, as there is no git repository here; `dvc exp` needs one")
    elif state == "failed":
        warn(f"`{command}` failed: {reason}")
    elif state == "missing":
        say("DVC is not installed: `pip install dvc` and `pipeline init` again, for `dvc repro`")


def _show_tasks(tasks: Sequence[NewTask], made: Mapping[str, Labels]) -> None:
    if not tasks:
        say("no tasks: texts and vectors only; `pipeline init --task NAME=COLUMN` adds one")
        return
    rows = [
        (task.name, task.column, task.kind, _describe_labels(made[task.name]),
         int(made[task.name].present.sum()))
        for task in tasks
    ]  # fmt: skip
    show_table(("task", "column", "kind", "classes", "rows with a label"), rows)
    for task in tasks:
        if task.guess.missing:
            listed = ", ".join(map(repr, task.guess.missing))
            say(f"{task.name}: {listed} means that the label is missing (prepare.missing)")
        if task.guess.remark:
            say(f"{task.name}: {task.guess.remark}")
        for note in made[task.name].notes:
            warn(f"{task.name}: {note}")


def _describe_labels(labels: Labels) -> str:
    """The classes or tags that were found, or the range of the numbers."""
    if labels.kind == "number":
        numbers = labels.values[labels.present]
        return f"{numbers.min():g} to {numbers.max():g}"
    names = ", ".join(labels.classes[:_SHOWN_CLASSES])
    more = len(labels.classes) - _SHOWN_CLASSES
    return names + (f" and {more:,} more" if more > 0 else "")


def _say_next(project: Project, folder: Path) -> None:
    """Tell the next command."""
    change = f"cd {shlex.quote(str(folder))} && " if folder.resolve() != Path.cwd() else ""
    if files.find_dvc() is not None and files.find_dvc_folder(project.root) is not None:
        say(f"next: {change}dvc repro")
        return
    settings = parse_settings(_read_text(project.settings), str(project.settings))
    stages = STAGES if settings.prepare.labels else STAGES[:3]
    say(f"next: {change}{' && '.join(f'pipeline {stage}' for stage in stages)}")
