"""The command line: options in, one call out. Stages are imported inside their commands."""

from __future__ import annotations

import io
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline import __version__, paths
from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from pipeline.config import Settings

_STARTED = time.perf_counter()
_PRESETS = ("default", "notebook")
_INTERRUPTED = 130  # what a shell reports of a process that Ctrl-C ended
_TERMINATED = 143  # and of one that SIGTERM ended


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


_params_option = click.option(
    "--params",
    "params",
    type=click.Path(path_type=Path),
    default=paths.PARAMS,
    show_default=True,
    help="The settings file.",
)


@cli.command()
@_params_option
@click.option("--refresh", is_flag=True, help="Fetch again what is already on this machine.")
def fetch(params: Path, refresh: bool) -> None:
    """Get the dataset, the lexicon and the backbone."""

    def stage(settings: Settings) -> dict[str, object]:
        from pipeline.fetch import run_fetch

        return run_fetch(settings, refresh=refresh)

    _run_stage("fetch", params, stage)


@cli.command()
@_params_option
def prepare(params: Path) -> None:
    """Read, check, label and split the texts."""

    def stage(settings: Settings) -> dict[str, object]:
        from pipeline.prepare import run_prepare

        return run_prepare(settings)

    _run_stage("prepare", params, stage)


@cli.command()
@_params_option
def embed(params: Path) -> None:
    """Run the frozen backbone over each new text."""

    def stage(settings: Settings) -> dict[str, object] | None:
        from pipeline.embed.run import run_embed

        return run_embed(settings)

    _run_stage("embed", params, stage)


@cli.command()
@_params_option
def train_heads(params: Path) -> None:
    """Train a head for each task on the cached vectors."""

    def stage(settings: Settings) -> dict[str, object]:
        from pipeline.heads.run import run_train_heads

        return run_train_heads(settings)

    _run_stage("train-heads", params, stage)


@cli.command()
@_params_option
@click.option("--show", is_flag=True, help="Print the summary of the last report; compute nothing.")
def report(params: Path, show: bool) -> None:
    """Measure the saved heads; write metrics, plots and a page."""
    if show:
        from pipeline.report.run import show_report

        show_report()
        return

    def stage(settings: Settings) -> dict[str, object]:
        from pipeline.report.run import run_report

        return run_report(settings)

    _run_stage("report", params, stage)


@cli.group(cls=_Commands)
def cache() -> None:
    """Look after the store of vectors."""


@cache.command()
def info() -> None:
    """Print what the store holds."""
    from pipeline.upkeep import show_info

    show_info()


@cache.command()
@click.option("--repair", is_flag=True, help="Drop what is damaged; `pipeline embed` redoes it.")
def verify(repair: bool) -> None:
    """Check every byte of the store."""
    from pipeline import upkeep

    with _locked():
        upkeep.verify(repair=repair)


@cache.command()
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--layers", default="all", show_default=True, help="all, last, or numbers: 0,5,6.")
def export(target: Path, layers: str) -> None:
    """Write all rows' vectors to TARGET: .npy, .parquet (with texts and labels) or .safetensors."""
    from pipeline import upkeep

    upkeep.export(target, layers)


@cache.command()
def prune() -> None:
    """Drop vectors of texts that the corpus no longer has."""
    from pipeline import upkeep

    with _locked():
        upkeep.prune()


@cli.command()
@click.argument("preset", type=click.Choice(_PRESETS))
def params(preset: str) -> None:
    """Print the settings of a preset, to write to params.yaml."""
    from pipeline.config import read_preset

    click.echo(read_preset(preset), nl=False)


def _run_stage(
    name: str, params: Path, stage: Callable[[Settings], dict[str, object] | None]
) -> None:
    """Run one stage under the lock of ``cache/``, time it from Enter, and say so.

    A stage that returns ``None`` found nothing to do, and the timing of its last real run stays.
    """
    from datetime import UTC, datetime

    from pipeline.config import load_settings
    from pipeline.console import say
    from pipeline.files import write_json

    settings = load_settings(params)
    with _locked():
        details = stage(settings)
        seconds = time.perf_counter() - _STARTED
        if details is not None:
            timing: dict[str, Any] = {
                "stage": name,
                "wall_seconds": round(seconds, 2),
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "details": details,
            }
            write_json(paths.TIMINGS / f"{name}.json", timing)
    say(f"{name}: {'done' if details is not None else 'nothing to do'} in {seconds:.1f} s")


def _locked() -> AbstractContextManager[None]:
    """The lock of ``cache/``: one run at a time may write there."""
    from pipeline.files import hold_lock

    return hold_lock(paths.LOCK, what=f"{paths.CACHE}/")


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
        error.show()
        status = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted; nothing is half-written, run the command again to go on")
        status = _TERMINATED if terminated else _INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        sys.stderr.close()
        status = 1
    except OSError as error:
        from pipeline.files import describe_os_error

        described = describe_os_error(error)
        _complain(described.message, described.hint)
        status = 1
    # All is done and said; Ctrl-C while the interpreter winds up would only change the status.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(status or 0)


def _complain(message: str, hint: str | None = None) -> None:
    click.echo(f"Error: {message}", err=True)
    if hint:
        click.echo(f"  next: {hint}", err=True)
