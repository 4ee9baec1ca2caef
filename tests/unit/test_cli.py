"""The command line itself: quick to start, quiet in a pipe, plain about wrong usage."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import __version__
from pipeline.presets import list_presets, read_preset
from tests.conftest import ROOT, Cli

STAGES = ["fetch", "prepare", "embed", "train-heads", "report"]
HEAVY = {
    "torch", "lightning", "transformers", "pandas", "pyarrow", "numpy", "sklearn", "nltk",
    "matplotlib", "tokenizers", "safetensors", "huggingface_hub", "pydantic", "rich",
}  # fmt: skip


def list_loaded_modules(code: str) -> set[str]:
    """Which modules a program has loaded when it ends."""
    ending = "\nprint('modules:', *sorted(sys.modules))\n"
    result = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}{ending}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(result.stdout.splitlines()[-1].split()[1:])


def test_help_loads_little_more_than_click() -> None:
    """Modules are what start-up time is made of; a busy machine changes the time, not them."""
    own = list_loaded_modules(
        "sys.argv = ['pipeline', '--help']\n"
        "from pipeline.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass"
    )
    packages = {name.partition(".")[0] for name in own - list_loaded_modules("pass")}
    assert packages - sys.stdlib_module_names == {"pipeline", "click"}
    assert len(own - list_loaded_modules("import click")) < 60


@pytest.mark.parametrize("arguments", [["--help"], ["params", "default"], ["embed", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['pipeline', *{arguments!r}]\n"
        "from pipeline.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('modules:', *sorted({name.split('.')[0] for name in sys.modules}))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(result.stdout.splitlines()[-1].split())
    assert "click" in loaded
    allowed = {"pydantic"} if arguments[0] == "params" else set()  # the presets stand in config
    assert not loaded & HEAVY - allowed


def test_help_lists_the_commands_in_the_order_of_the_flow(process: Cli) -> None:
    printed = process("--help").stdout
    places = [printed.index(f"\n  {stage} ") for stage in STAGES]
    assert places == sorted(places)
    assert process("-h").stdout == printed
    assert process("--version").stdout.strip() == f"pipeline, version {__version__}"


@pytest.mark.parametrize("command", [*STAGES, "params"])
def test_each_command_has_its_help(process: Cli, command: str) -> None:
    result = process(command, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith(f"Usage: python -m pipeline {command} ") or (
        result.stdout.startswith(f"Usage: pipeline {command} ")
    )
    if command in STAGES:
        assert "--params PATH" in result.stdout
        assert "the nearest params.yaml" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embedd"], "No such command 'embedd'"),
        (["embed", "--parms", "x"], "No such option"),
        (["embed", "--params"], "requires an argument"),
        (["embed", "extra"], "unexpected extra argument"),
        (["params", "notebok"], "'notebok' is not one of 'default', 'notebook'"),
        (["params"], "Missing argument"),
    ],
)
def test_wrong_usage_exits_with_2(process: Cli, arguments: list[str], message: str) -> None:
    result = process(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not result.stdout


@pytest.mark.parametrize("preset", list_presets())
def test_params_prints_a_preset(process: Cli, project: Path, preset: str) -> None:
    result = process("params", preset)
    assert result.returncode == 0
    assert result.stdout == read_preset(preset)


def test_the_console_script_is_the_same_program(project: Path) -> None:
    script = Path(sys.executable).with_name("pipeline")
    if not script.exists():
        pytest.skip("the package is not installed in this environment")
    result = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == f"pipeline, version {__version__}"


def test_a_reader_that_goes_away_is_no_error(project: Path) -> None:
    """``pipeline params default | head -1``, with a reader that closes before anything is said."""
    run = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "params", "default"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert run.stdout
    assert run.stderr
    run.stdout.close()
    assert run.stderr.read() == b""
    run.stderr.close()
    assert run.wait() in {0, 1}


def test_a_reader_that_takes_one_line(project: Path) -> None:
    command = f"{sys.executable} -m pipeline params default | head -1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert result.stdout == read_preset("default").splitlines(keepends=True)[0]
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "there is not enough memory\n"),
        (MemoryError("Unable to allocate 7 GiB"), "not enough memory: Unable to allocate 7 GiB\n"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "there is not enough memory"),
        (RecursionError("maximum recursion depth exceeded"), "is nested too deeply to be read"),
    ],
)
@pytest.mark.parametrize("stage", STAGES)
def test_what_runs_out_is_one_message(
    stage: str, error: Exception, message: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: object, **__: object) -> None:
        raise error

    room = "heads" if stage == "train-heads" else stage
    function = "run_" + stage.replace("-", "_")
    monkeypatch.setattr(f"pipeline.{room}.run.{function}", run_out)
    result = cli(stage)
    assert result.returncode == 1
    assert result.stderr.count("Error: ") == 1
    assert message in result.stderr
    assert "  next: " in result.stderr


def test_other_errors_of_the_program_keep_their_traceback(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("pipeline.prepare.run.run_prepare", fail)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        cli("prepare")


def test_errors_show_control_characters_and_hide_secrets(cli: Cli, project: Path) -> None:
    for arguments in (["\x1b[31mfetch"], ["fetch", "--params", "\x1b[31m?.yaml"]):
        result = cli(*arguments)
        assert result.returncode in {1, 2}
        assert "\x1b" not in result.stderr
        assert r"\x1b[31m" in result.stderr
    settings = project / "params.yaml"
    settings.write_text("fetch: {dataset: [['https://host/a.csv?token=s3cret']]}")
    result = cli("fetch")
    assert "fetch.dataset.0: must be text, got ['https://host/a.csv?…" in result.stderr
    assert "s3cret" not in result.stderr
