"""The command line: options in, one call out. Stages are imported inside their commands."""

from __future__ import annotations

import atexit
import functools
import gc
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from click.core import ParameterSource

from pipeline import __version__
from pipeline.errors import PipelineError, ReadError, SettingsError
from pipeline.presets import list_presets

if TYPE_CHECKING:
    from pipeline.config import Settings
    from pipeline.project import Project

_OBJECTS_BEFORE_COLLECTION = 100_000
_STARTED = time.perf_counter()
_INTERRUPTED = 130  # what a shell reports of a process that Ctrl-C ended
_TERMINATED = 143  # and of one that SIGTERM ended
_AWAY = "prepare: {text_column: text}"  # the settings away from any project


class _Commands(click.Group):
    """Lists the commands in the order of the flow, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pipeline")
def cli() -> None:
    """Embed a corpus once, cache the vectors, train any number of heads in seconds.

    The stages meet in files under cache/ and run in this order: fetch, prepare, embed, train-heads,
    report. `dvc repro` runs those whose inputs have changed.
    """


def _in_project(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say which project it is for.

    The command is called with ``project`` and, where it takes it, ``params``, the settings file.
    """

    @click.option(
        "--params",
        type=click.Path(path_type=Path),
        help="The settings file.  [default: the nearest params.yaml at or above this folder]",
    )
    @click.option(
        "--project",
        "root",
        type=click.Path(path_type=Path, file_okay=False),
        help="The project's folder.  [default: the nearest one with a dvc.yaml at or above the "
        "settings file, else the file's own]",
    )
    @functools.wraps(command)
    def run(root: Path | None, params: Path | None, **options: Any) -> None:
        from pipeline.project import Project, find_project, find_settings_file

        try:
            Path.cwd()
        except FileNotFoundError as error:
            raise ReadError(
                "the working directory is not there any more", hint="change to another folder"
            ) from error
        if params is None:
            nearest = Project(root).settings if root else find_settings_file(Path())
            params = Path(os.path.relpath(nearest))
        project = Project(root, params) if root else find_project(params)
        command(project=project, params=params, **options)

    return run


@cli.command()
@click.argument(
    "folder", metavar="[DIR]", default=".", type=click.Path(path_type=Path, file_okay=False)
)
@click.option(
    "--data",
    multiple=True,
    metavar="FILE",
    help="The file of texts; or a folder of files, or a pattern such as 'data/*.csv'; several in "
    "their order.",
)
@click.option("--text", "text_column", metavar="COLUMN", help="The column of the texts.")
@click.option(
    "--task",
    "tasks",
    multiple=True,
    metavar="NAME=COLUMN",
    help="A task to learn and the column of its labels; NAME=COLUMN:KIND names the kind: binary, "
    "multiclass, ordinal, tags or number.  [default: by the column; never ordinal]",
)
@click.option("--no-tasks", is_flag=True, help="Texts and vectors only.")
@click.option(
    "--classes",
    multiple=True,
    metavar="NAME=A,B",
    help="A task's classes in their order: of two, the second is what to find; of an ordinal task, "
    "from the lowest.",
)
@click.option(
    "--split",
    metavar="COLUMN",
    help="The column that names each row's part, in words such as train, dev and test; - draws "
    "parts at random.  [default: the column that seems to]",
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Another setting, such as embed.max_tokens=256.",
)
@click.option("--force", is_flag=True, help="Replace params.yaml and dvc.yaml.")
def init(folder: Path, **options: Any) -> None:
    """Make a project of your own data, or add a task to one.

    It writes params.yaml and dvc.yaml into DIR, by default this folder. On a terminal it asks for
    what the options leave open, and shows the columns of the file. Where params.yaml is there and
    --data is not given, --task adds to it.
    """
    from pipeline.init.run import InitOptions, run_init

    run_init(folder, InitOptions(**options))


@cli.command()
@_in_project
@click.option("--refresh", is_flag=True, help="Fetch again what is already on this machine.")
def fetch(project: Project, params: Path, refresh: bool) -> None:
    """Get the dataset, the backbone and what the labels need."""

    def stage(settings: Settings) -> dict[str, object]:
        from pipeline.fetch.run import run_fetch

        return run_fetch(project, settings, refresh=refresh)

    _run_stage("fetch", project, params, stage)


@cli.command()
@_in_project
def prepare(project: Project, params: Path) -> None:
    """Read, check, label and split the texts."""

    def stage(settings: Settings) -> dict[str, object]:
        from pipeline.prepare.run import run_prepare

        return run_prepare(project, settings)

    _run_stage("prepare", project, params, stage)


@cli.command()
@_in_project
@click.option(
    "--slice",
    "part",
    metavar="I/N",
    help="Embed the I-th of N slices into cache/slices, while other machines that share the folder "
    "embed the others; `pipeline cache merge` takes them into the store.",
)
def embed(project: Project, params: Path, part: str | None) -> None:
    """Run the frozen backbone over each new text."""
    if part is not None:
        _embed_slice(project, params, part)
        return

    def stage(settings: Settings) -> dict[str, object] | None:
        from pipeline.embed.run import run_embed

        return run_embed(project, settings)

    _run_stage("embed", project, params, stage, needs_store=True, writes_store=True)


@cli.command()
@_in_project
def group(project: Project, params: Path) -> None:
    """Draw parts anew with near-duplicates together, if group.split asks for it."""

    def stage(settings: Settings) -> dict[str, object] | None:
        from pipeline.group.run import run_group

        return run_group(project, settings)

    _run_stage("group", project, params, stage)


@cli.command()
@_in_project
def train_heads(project: Project, params: Path) -> None:
    """Train a head for each task on the cached vectors."""

    def stage(settings: Settings) -> dict[str, object]:
        from pipeline.heads.run import run_train_heads

        return run_train_heads(project, settings)

    _run_stage("train-heads", project, params, stage, needs_store=True)


@cli.command()
@_in_project
@click.option("--show", is_flag=True, help="Print the summary of the last report; compute nothing.")
def report(project: Project, params: Path, show: bool) -> None:
    """Measure the saved heads; write metrics, plots and a page."""
    if show:
        from pipeline.report.run import show_report

        show_report(project)
        return

    def stage(settings: Settings) -> dict[str, object]:
        from pipeline.report.run import run_report

        return run_report(project, settings)

    _run_stage("report", project, params, stage, needs_store=True)


@cli.command()
@_in_project
@click.argument("inputs", nargs=-1, metavar="[INPUT | -]...")
@click.option("--text", "texts", multiple=True, help="A text itself; may be given several times.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="The file to write.")
@click.option(
    "--format",
    type=click.Choice(["csv", "tsv", "jsonl", "parquet"]),
    help="The format of standard input, and of the output where OUT does not tell it.  "
    "[default: a text a line, and CSV]",
)
@click.option(
    "--input-format",
    type=click.Choice(["lines", "csv", "tsv", "json", "jsonl", "parquet"]),
    help="The format of the inputs, where their names do not tell it.",
)
@click.option("--text-column", help="The column of the texts.  [default: prepare.text_column]")
@click.option(
    "--model",
    "folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A folder that `pipeline export` wrote, instead of the project.",
)
@click.option("--tasks", help="The tasks to answer, such as spam,mood.  [default: all]")
@click.option(
    "--threshold",
    "thresholds",
    multiple=True,
    metavar="TASK=P",
    help="Answer class 1, or a tag, above this probability.  [default: the head's own]",
)
@click.option("--probabilities", is_flag=True, help="Add a column TASK:CLASS for each class.")
@click.option(
    "--explain", is_flag=True, help="Tell which words moved each answer, in TASK_explanation."
)
@click.option("--model-column", is_flag=True, help="Add a column that tells by which model.")
@click.option(
    "--on-bad-rows",
    type=click.Choice(["keep", "stop", "drop"]),
    default="keep",
    show_default=True,
    help="What to do with rows that have no usable text.",
)
@click.option(
    "--remember", is_flag=True, help="Keep new vectors in cache/predictions for the next time."
)
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@click.option(
    "--slice",
    "part",
    metavar="I/N",
    help="Label every N-th file, from the I-th on, into OUT with the slice in its name.",
)
def predict(
    project: Project,
    params: Path,
    folder: Path | None,
    tasks: str | None,
    thresholds: tuple[str, ...],
    part: str | None,
    **options: Any,
) -> None:
    """Label texts: files, folders, standard input (-) or --text.

    Files are CSV, TSV, JSON Lines, JSON, Parquet, or text with one text a line (.txt). Without OUT,
    a terminal gets a table to read, anything else CSV. Exit status 3 means that rows were kept
    without labels, as their texts cannot be used.

    With --model no project is needed: where there is no params.yaml, the texts are those of the
    column `text` or --text-column.
    """
    if bool(options["inputs"]) == bool(options["texts"]):
        raise click.UsageError("give either files, folders or -, or --text")
    from pipeline.config import load_settings, parse_settings
    from pipeline.predict.run import PredictOptions, run_predict
    from pipeline.store.slices import Slice

    if folder is None:
        settings = load_settings(params)
    else:
        from pipeline.bundle import open_folder

        given = click.get_current_context().get_parameter_source("params")
        is_there = params.exists() or given is not ParameterSource.DEFAULT
        settings = load_settings(params) if is_there else parse_settings(_AWAY, "--model")
        project = open_folder(folder)
    chosen = PredictOptions(
        tasks=tuple(name.strip() for name in tasks.split(",")) if tasks is not None else None,
        thresholds=dict(map(_parse_threshold, thresholds)),
        part=Slice.parse(part) if part is not None else None,
        **options,
    )
    click.get_current_context().exit(run_predict(project, settings, chosen))


@cli.command()
@_in_project
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="The JSON file to write.")
@click.option(
    "--input-format",
    type=click.Choice(["csv", "tsv", "json", "jsonl", "parquet"]),
    help="The format of the inputs, where their names do not tell it.",
)
@click.option("--text-column", help="The column of the texts.  [default: prepare.text_column]")
@click.option("--tasks", help="The tasks to score, such as spam,mood.  [default: all]")
@click.option(
    "--on-bad-rows",
    type=click.Choice(["stop", "drop"]),
    default="stop",
    show_default=True,
    help="What to do with rows whose text or label cannot be used.",
)
@click.option(
    "--allow-training-rows",
    is_flag=True,
    help="Score texts that the heads were trained on, too.",
)
@click.option(
    "--remember", is_flag=True, help="Keep new vectors in cache/predictions for the next time."
)
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
def evaluate(project: Project, params: Path, tasks: str | None, **options: Any) -> None:
    """Score the heads on labelled texts that were not in training.

    Labels are read as `prepare` reads them, from the columns that prepare.labels names; a task
    whose column is not there is left out. The metrics are those of the report, with intervals, for
    the heads that label new texts. Beside them stands how far the texts are from those of training.
    """
    from pipeline.config import load_settings
    from pipeline.evaluate import EvaluateOptions, run_evaluate

    settings = load_settings(params)
    chosen = tuple(name.strip() for name in tasks.split(",")) if tasks is not None else None
    run_evaluate(project, settings, EvaluateOptions(tasks=chosen, **options))


def _parse_threshold(given: str) -> tuple[str, float]:
    """``TASK=P`` as a task and a probability."""
    task, sign, number = given.rpartition("=")
    try:
        return task.strip(), float(number if sign else "")
    except ValueError as error:
        raise click.UsageError(f"--threshold: {given!r} is not TASK=P, such as spam=0.9") from error


@cli.command("export")
@_in_project
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--quantize",
    type=click.Choice(["int8"]),
    help="Make the backbone's weights smaller; how far answers differ is printed.",
)
@click.option("--with-backbone", is_flag=True, help="Add the backbone's own files.")
@click.option("--license", metavar="ID", help="The license for the model card, such as mit.")
@click.option("--force", is_flag=True, help="Replace TARGET if it is an export.")
def export_model(project: Project, params: Path, **options: Any) -> None:
    """Write the trained model to the folder TARGET, for ONNX Runtime and the model hub.

    The folder holds the graph, the tokenizer, the names of the classes, a small program that labels
    texts, a model card, and what pipeline.load wants. If TARGET ends in .onnx, it is the graph
    alone. The graph must answer as the heads do on texts of the corpus, or nothing is written.
    """
    from pipeline.config import load_settings
    from pipeline.export.run import ExportOptions, run_export

    run_export(project, load_settings(params), ExportOptions(**options))


@cli.group(cls=_Commands)
def cache() -> None:
    """Look after the store of vectors."""


@cache.command()
@_in_project
def info(project: Project, params: Path) -> None:
    """Print what the store holds."""
    from pipeline.cache_commands import show_info

    show_info(project)


@cache.command()
@_in_project
@click.option("--repair", is_flag=True, help="Drop what is damaged; `pipeline embed` redoes it.")
def verify(project: Project, params: Path, repair: bool) -> None:
    """Check every byte of the store."""
    from pipeline import cache_commands
    from pipeline.console import say
    from pipeline.errors import ObjectStoreError, WriteError

    with ExitStack() as stack:
        try:
            stack.enter_context(_locked(project, writes_store=True))
            is_locked = True
        except (WriteError, ObjectStoreError) as error:
            if repair:
                raise
            say(f"{error.message.partition(';')[0]}; checking without the lock of other runs")
            is_locked = False
        cache_commands.verify(project, params, repair=repair, is_locked=is_locked)


@cache.command()
@_in_project
def merge(project: Project, params: Path) -> None:
    """Take what `pipeline embed --slice` has embedded into the store, all of it or nothing."""
    _merge_slices(project, params)


def _merge_slices(project: Project, params: Path) -> None:
    """Take all slices into the store, as its only writer."""
    from pipeline import cache_commands

    with _locked(project, writes_store=True):
        details = cache_commands.merge(project, params)
        if details is not None:
            _write_timing(project, "embed", details["seconds"], details)


@cache.command()
@_in_project
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--layers", default="all", show_default=True, help="all, last, or numbers: 0,5,6.")
@click.option(
    "--map",
    "method",
    type=click.Choice(["pca", "umap"]),
    help="Add columns x and y to a .parquet file, by the last layer.",
)
@click.option(
    "--neighbours",
    type=click.IntRange(0, 1000),
    default=0,
    metavar="N",
    help="Add the N nearest other texts of each row to a .parquet file, by the last layer.",
)
def export(
    project: Project,
    params: Path,
    target: Path,
    layers: str,
    method: Literal["pca", "umap"] | None,
    neighbours: int,
) -> None:
    """Write all rows' vectors to TARGET: .npy, .parquet (with texts and labels) or .safetensors."""
    from pipeline import cache_commands

    cache_commands.export(project, target, layers, method, neighbours)


@cache.command()
@_in_project
@click.option("--predictions", is_flag=True, help="Drop the vectors in cache/predictions, too.")
@click.option(
    "--most",
    is_flag=True,
    help="Drop them even if they are most of what an object store holds, which others may share.",
)
def prune(project: Project, params: Path, predictions: bool, most: bool) -> None:
    """Drop vectors of texts that the corpus no longer has, and of earlier settings."""
    from pipeline import cache_commands

    with _locked(project, writes_store=True):
        cache_commands.prune(project, params, predictions=predictions, is_most=most)


@cli.group(cls=_Commands)
def cluster() -> None:
    """Run slices as tasks of datatrove: here, on Slurm or on Ray."""


@cluster.command("embed")
@_in_project
@click.option(
    "--executor",
    type=click.Choice(["local", "slurm", "ray"]),
    default="local",
    show_default=True,
    help="Where tasks run.",
)
@click.option(
    "--slices", type=click.IntRange(1, 9999), default=8, show_default=True, help="Number of tasks."
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Tasks at once.  [default: all; on this machine one a GPU, else one]",
)
@click.option(
    "--gpus",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="GPUs of a task; on this machine, the GPUs to use, one for each task.",
)
@click.option("--cpus", type=click.IntRange(1), default=1, show_default=True, help="Its cores.")
@click.option(
    "--memory-gb",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Memory of each of its cores, in GB.",
)
@click.option("--partition", help="The partition of Slurm.")
@click.option("--time", default="24:00:00", show_default=True, help="Slurm's limit of a task.")
@click.option("--qos", help="Slurm's quality of service.")
@click.option("--print", "is_shown", is_flag=True, help="Print what would be run; run nothing.")
def cluster_embed(project: Project, params: Path, is_shown: bool, **options: Any) -> None:
    """Embed what the store lacks in slices, then merge them.

    A task that is lost is started again; the command, run again, does what is missing. Slurm's jobs
    go on when this command ends: `pipeline cache merge`, or this command again, takes them into the
    store.
    """
    from pipeline import cache_commands
    from pipeline.cluster import ClusterJob, ClusterOptions, describe_job, run_job
    from pipeline.corpus.tables import read_distinct_keys

    _require_store(project)
    keys, _ = read_distinct_keys(project.texts_file)
    recipes = cache_commands.list_recipes(project, params)
    job = ClusterJob.plan(project, params, ClusterOptions(**options), recipes, keys)
    if is_shown:
        click.echo(describe_job(job), nl=False)
    elif cache_commands.is_complete(project, recipes, keys) or run_job(job):
        _merge_slices(project, params)


@cli.command()
@click.argument("preset", type=click.Choice(list_presets()))
def params(preset: str) -> None:
    """Print the settings of a preset, to write to params.yaml."""
    from pipeline.presets import read_preset

    click.echo(read_preset(preset), nl=False)


def _run_stage(
    name: str,
    project: Project,
    params: Path,
    stage: Callable[[Settings], dict[str, object] | None],
    *,
    needs_store: bool = False,
    writes_store: bool = False,
) -> None:
    """Run one stage under the lock of ``cache/``, time it from Enter, and say so.

    A stage that returns ``None`` found nothing to do, and the timing of its last real run stays.

    :raises SettingsError: naming the settings file that was given.
    """
    from pipeline.config import load_settings
    from pipeline.console import say
    from pipeline.files import clear_scratch

    settings = load_settings(params)
    if needs_store:
        _require_store(project)
    with _locked(project, writes_store=writes_store):
        clear_scratch(project.cache, project.scores, project.timings, project.heads, project.report)
        try:
            details = stage(settings)
        except SettingsError as error:
            raise error.name_source(str(params)) from error
        seconds = time.perf_counter() - _STARTED
        if details is not None:
            _write_timing(project, name, seconds, details)
    say(f"{name}: {'done' if details is not None else 'nothing to do'} in {seconds:.1f} s")


def _require_store(project: Project) -> None:
    """Make sure that the store can be what the settings say, before anything takes time.

    :raises PipelineError: if ``store.url`` is no URL of a store, or its client is not installed.
    """
    from pipeline.store.places import find_place

    find_place(project.store).check(project.store)


def _write_timing(
    project: Project, name: str, wall_seconds: float, details: dict[str, Any]
) -> None:
    """Keep how long a stage took, for the report."""
    from datetime import UTC, datetime

    from pipeline.files import add_hash, write_json

    timing: dict[str, Any] = {
        "stage": name,
        "wall_seconds": round(wall_seconds, 2),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "details": details,
    }
    write_json(project.timings / f"{name}.json", add_hash(timing))


def _embed_slice(project: Project, params: Path, given: str) -> None:
    """Embed one slice, under its own lock, since other slices may be embedded meanwhile.

    :param given: which one, as ``I/N``.
    :raises SettingsError: naming the settings file that was given.
    """
    from pipeline.config import load_settings
    from pipeline.console import say
    from pipeline.embed.slices import run_slice
    from pipeline.store.slices import Slice

    settings = load_settings(params)
    _require_store(project)
    try:
        is_done = run_slice(project, settings, Slice.parse(given))
    except SettingsError as error:
        raise error.name_source(str(params)) from error
    seconds = time.perf_counter() - _STARTED
    say(f"embed: {'slice done' if is_done else 'nothing to do'} in {seconds:.1f} s")


@contextmanager
def _locked(project: Project, *, writes_store: bool = False) -> Iterator[None]:
    """Hold the lock of ``cache/``: one run at a time may write there.

    :param writes_store: whether the store is written, which other projects may share.
    """
    from pipeline.files import hold_lock

    with ExitStack() as stack:
        stack.enter_context(hold_lock(project.lock, what=f"{project.cache}/"))
        if writes_store:
            from pipeline.store.places import hold_store

            stack.enter_context(hold_store(project.store))
        yield


def start() -> None:
    """Entry point of a process that does nothing else; ``main`` is for one that goes on after it.

    Libraries make hundreds of thousands of objects when they are imported, all of which stay.
    Looking through them for garbage again and again, and once more at the end, would take as long
    as half of a short command.
    """
    gc.set_threshold(_OBJECTS_BEFORE_COLLECTION)
    atexit.register(gc.freeze)
    main()


def main() -> None:
    """Entry point: a user's mistake gets one message and exit status 1, never a traceback."""
    terminated = False

    def interrupt(*_: object) -> None:
        """SIGTERM, which schedulers send, is Ctrl-C; sent again, it lets the clean-up finish."""
        nonlocal terminated
        if not terminated:
            terminated = True
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console that lacks a sign shows another
            stream.reconfigure(errors="replace")
    try:
        status = cli.main(standalone_mode=False)
    except PipelineError as error:
        _complain(error.message, error.hint)
        status = 1
    except click.ClickException as error:
        said = io.StringIO()
        error.show(said)
        from pipeline.console import make_printable

        click.echo(make_printable(said.getvalue()), err=True, nl=False)
        status = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted; nothing is half-written, run the command again to go on")
        status = _TERMINATED if terminated else _INTERRUPTED
    except RecursionError:
        _complain(
            "a file or a setting is nested too deeply to be read",
            "make sure that the files are those that the stages wrote; run `pipeline fetch` again",
        )
        status = 1
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        sys.stderr.close()
        status = 1
    except OSError as error:  # whether it was reading or writing is not known here
        reason = os.strerror(error.errno) if error.errno else str(error)
        _complain(f"{error.filename}: {reason}" if error.filename else reason)
        status = 1
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        reason = str(error).strip().partition("\n")[0]
        _complain(
            "there is not enough memory" + (f": {reason}" if reason else ""),
            "end other programs, or lower runtime.max_memory or runtime.token_budget",
        )
        status = 1
    # All is done and said; Ctrl-C while the interpreter winds up would only change the status.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(status or 0)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; of torch's errors it is the name or the text that tells."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def _complain(message: str, hint: str | None = None) -> None:
    from pipeline.console import make_printable

    click.echo(f"Error: {make_printable(message)}", err=True)
    if hint:
        click.echo(f"  next: {make_printable(hint)}", err=True)
