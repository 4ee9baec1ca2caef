"""Every mistake and mishap through the command line: one message, and nothing lost on disk."""

from __future__ import annotations

import contextlib
import csv
import ctypes
import errno
import json
import os
import pty
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.cli import main
from pipeline.project import Project
from tests.conftest import ROOT, Cli, edit_params, run_stages

Contents = dict[str, bytes]
Edit = Callable[[Path], None]

# The lexicon's place and form do not matter here, so that these tests need nothing fetched.
LEXICON = "good\t1.9\t0.9\t[2]\nbad\t-2.5\t0.7\t[-3]\n"
ROWS = [
    (("ham", "spam")[n % 3 == 0], f"message number {n} is {'good' * (n % 2)}") for n in range(90)
]


def write_rows(path: Path, rows: Sequence[Sequence[object]], header: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Path:
    """A project on a CSV file of its own and the tiny backbone, in which every stage has run."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copy(ROOT / "params.yaml", folder)
    write_rows(folder / "data.csv", ROWS, ("label", "message"))
    (folder / "lexicon.txt").write_text(LEXICON)
    edit_params(
        {
            "fetch.dataset": "data.csv",
            "fetch.lexicon": "lexicon.txt",
            "fetch.backbones": [str(tiny_backbone)],
            "heads.max_epochs": 3,
            "runtime.devices": "cpu",
        },
        folder / "params.yaml",
    )
    # One process for all, which loads torch once.
    code = (
        "from pipeline.cli import cli\n"
        "for stage in ('fetch', 'prepare', 'embed', 'train-heads', 'report'):\n"
        "    cli.main([stage], standalone_mode=False)\n"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture
def own(project: Path, finished: Path) -> Path:
    """A copy of the finished project, as the working directory."""
    shutil.copytree(finished, project, dirs_exist_ok=True)
    return project


def read_all(folder: Path) -> Contents:
    """What the stages wrote, without the lock, the timings and remembered scores."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted((folder / "cache").rglob("*"))
        if file.is_file() and file.name[0] != "." and file.parent.name not in {"timings", "scores"}
    }


def assert_refused(result: subprocess.CompletedProcess[str], *parts: str, hint: str = "") -> None:
    """One message on standard error that has all parts, then what to do next; no traceback."""
    assert result.returncode == 1, result.stdout + result.stderr
    message, _, following = result.stderr.partition("\n  next: ")
    assert message.startswith("Error: ")
    for part in parts:
        assert part in message
    assert "Traceback" not in result.stdout + result.stderr
    if hint:
        assert hint in following


def swap_data(content: bytes) -> Edit:
    return lambda folder: (folder / "data.csv").write_bytes(content) and None


def set_params(changes: dict[str, object]) -> Edit:
    return lambda folder: edit_params(changes, folder / "params.yaml")


BAD_SOURCES: dict[str, tuple[Edit, str, list[str], str]] = {
    "no such file": (
        set_params({"fetch.dataset": "mine.csv"}),
        "fetch",
        ["params.yaml: fetch.dataset: mine.csv: no such file"],
        "give a path",
    ),
    "empty file": (swap_data(b""), "prepare", ["data.csv: the file is empty"], "header and rows"),
    "header only": (
        swap_data(b"label,message\n"),
        "prepare",
        ["data.csv: has a header but no rows"],
        "rows",
    ),
    "missing text column": (
        swap_data(b"label,text\nham,a\n"),
        "prepare",
        ["data.csv: no column 'message'; the source has 'label', 'text'"],
        "set prepare.text_column",
    ),
    "missing label column": (
        swap_data(b"class,message\nham,a\n"),
        "prepare",
        ["data.csv: no column 'label'; the source has 'class', 'message'"],
        "correct prepare.labels.spam.column",
    ),
    "blank texts and an unknown label": (
        swap_data(b'label,message\nham,\nspam," "\neggs,a\nham,b\n'),
        "prepare",
        [
            "data.csv: 3 rows cannot be used",
            "row 0 (the first is 0): blank text",
            "row 2 (the first is 0): unknown label for spam: 'eggs'",
            "spam knows ham, spam",
        ],
        "set prepare.on_bad_rows",
    ),
    "a line too long": (
        swap_data(b"label,message\nham,a\nham,a, b\n"),
        "prepare",
        ["data.csv: line 3: has 3 cells, the header has 2"],
        "double quotes",
    ),
    "not UTF-8": (
        swap_data(b"label,message\nham,a\nham,caf\xe9\n"),
        "prepare",
        ["data.csv: line 3: byte 0xe9 at column 8 is not UTF-8"],
        "cp1252",
    ),
    "too few rows": (
        swap_data(b"label,message\nham,a\nspam,b\n"),
        "prepare",
        ["too few rows to split: 2 rows"],
        "prepare.split",
    ),
    "wrong checksum": (
        set_params({"fetch.dataset_sha256": "0" * 64}),
        "fetch",
        ["dataset data.csv: data.csv has sha256 ", "but fetch.dataset_sha256 is 0000"],
        "correct or remove fetch.dataset_sha256",
    ),
    "unknown parameter": (
        set_params({"heads.learning_rat": 1}),
        "prepare",
        ["params.yaml: heads.learning_rat: unknown key; did you mean `learning_rate`?"],
        "",
    ),
    "wrong type": (
        set_params({"embed.max_tokens": "many"}),
        "prepare",
        ["params.yaml: embed.max_tokens: must be a whole number or auto, got 'many'"],
        "",
    ),
    "ratios that do not sum to one": (
        set_params({"prepare.split.train": 0.8}),
        "prepare",
        ["params.yaml: prepare.split: train + validation + test must be 1, got 1.1"],
        "",
    ),
}


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_a_mistake_gets_one_message_and_loses_nothing(own: Path, cli: Cli, name: str) -> None:
    edit, failing, parts, hint = BAD_SOURCES[name]
    before = read_all(own)
    edit(own)
    if failing == "prepare" and name not in {
        "unknown parameter", "wrong type", "ratios that do not sum to one",
    }:  # fmt: skip
        run_stages(cli, "fetch")
        before["cache/assets.json"] = Project(own).assets.read_bytes()
    assert_refused(cli(failing), *parts, hint=hint)
    assert read_all(own) == before


def test_null_texts_and_labels_from_a_format_that_has_nulls(own: Path, cli: Cli) -> None:
    records = [{"label": "ham", "message": None}, {"label": None, "message": "a"}, {"message": 3}]
    (own / "data.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    edit_params({"fetch.dataset": "data.jsonl"})
    run_stages(cli, "fetch")
    before = read_all(own)
    assert_refused(
        cli("prepare"),
        "3 rows cannot be used",
        "row 0 (the first is 0): no text",
        "row 1 (the first is 0): unknown label for spam: no value",
        "row 2 (the first is 0): text is not a string: 3",
        hint="on_bad_rows",
    )
    assert read_all(own) == before


def test_one_class_only_in_training(own: Path, cli: Cli) -> None:
    write_rows(own / "data.csv", [("ham", text) for _, text in ROWS], ("label", "message"))
    run_stages(cli, "fetch", "prepare")
    before = read_all(own)
    assert_refused(
        cli("train-heads"), "task spam: all 63 training rows are 'ham'", hint="give rows of the"
    )
    assert read_all(own) == before


def test_odd_texts_go_through(own: Path, cli: Cli) -> None:
    odd = [
        "a NUL \x00 inside",
        "\x00",
        "word " * 200_000,  # a million characters
        "x" * 1_000_000,
        "\uffff \ufffe \ue000 \U0010ffff",
        "e\u0301\u0301\u0301 \u202eright to left\u202c שלום",
        "👩\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 😀",
        "\u2028\u2029\u0085\x1c",
        "﻿mark",
        'two\r\nlines, and "quotes"',
    ]
    write_rows(own / "data.csv", [*ROWS, *(("ham", t) for t in odd)], ("label", "message"))
    blank = odd[1], odd[7]  # nothing but a control character, nothing but separators
    edit_params({"prepare.on_bad_rows": "drop"})
    run_stages(cli, "fetch", "prepare", "embed")
    texts = pq.read_table(Project(own).texts_file)["text"].to_pylist()
    assert texts == [text for _, text in ROWS] + [text for text in odd if text not in blank]
    manifest = json.loads((Project(own).store / "manifest.json").read_text())
    assert str(len(set(texts))) in json.dumps(manifest)


def test_a_backbone_without_weights(own: Path, cli: Cli, tiny_backbone: Path) -> None:
    before = read_all(own)
    bare = own / "bare"
    shutil.copytree(tiny_backbone, bare)
    (bare / "model.safetensors").rename(bare / "pytorch_model.bin")
    edit_params({"fetch.backbones": ["./bare"]})
    assert_refused(
        cli("fetch"), "backbone ./bare: has no weights as safetensors", hint="save_pretrained"
    )
    assert read_all(own) == before


def test_weights_that_changed_since_they_were_fetched(
    own: Path, cli: Cli, tiny_backbone: Path
) -> None:
    shutil.copytree(tiny_backbone, own / "mine")
    edit_params({"fetch.backbones": ["./mine"]})
    run_stages(cli, "fetch")
    weights = own / "mine" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    grow(own, 1)
    run_stages(cli, "fetch")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x02")
    run_stages(cli, "prepare")
    before = read_all(own)
    assert_refused(cli("embed"), "model.safetensors has changed since it was", hint="fetch")
    assert read_all(own) == before


@pytest.mark.parametrize(
    ("stage", "absent", "missing", "first"),
    [
        ("prepare", "cache", "cache/assets.json: no such file", "fetch"),
        ("embed", "cache", "cache/assets.json: no such file", "fetch"),
        ("embed", "cache/texts.parquet", "cache/texts.parquet: no such file", "prepare"),
        ("train-heads", "cache", "cache/labels.parquet: no such file", "prepare"),
        ("train-heads", "cache/texts.parquet", "cache/texts.parquet: no such file", "prepare"),
        ("train-heads", "cache/embeddings", "cache/embeddings", "embed"),
        ("report", "cache", "cache/assets.json: no such file", "fetch"),
        ("report", "cache/heads", "cache/heads/heads.json: no such file", "train-heads"),
        ("report", "cache/labels.parquet", "cache/labels.parquet: no such file", "prepare"),
    ],
    ids=lambda value: str(value).replace("/", "-"),
)
def test_a_stage_before_its_inputs_names_the_stage_to_run(
    own: Path, cli: Cli, stage: str, absent: str, missing: str, first: str
) -> None:
    if (own / absent).is_dir():
        shutil.rmtree(own / absent)
    else:
        (own / absent).unlink()
    assert_refused(cli(stage), missing, hint=f"run `pipeline {first}` first")


# --- a file that cannot be read -----------------------------------------------------------------

# What each stage reads, and which stage must run first to make the case.
UNREADABLE = [
    ("prepare", "params.yaml"),
    ("fetch", "data.csv"),
    ("prepare", "data.csv"),
    ("prepare", "lexicon.txt"),
    ("prepare", "cache/assets.json"),
    ("embed", "cache/assets.json"),
    ("embed", "cache/texts.parquet"),
    ("train-heads", "cache/texts.parquet"),
    ("train-heads", "cache/labels.parquet"),
    ("report", "cache/labels.parquet"),
]


@contextlib.contextmanager
def bound_by_permissions() -> Iterator[None]:
    """Take from this thread the superuser's right to read what it has no permission for."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the interface, this thread
    held = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; and again, of higher bits
    assert libc.capget(header, held) == 0
    lowered = (ctypes.c_uint32 * 6)(*held)
    lowered[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, lowered) == 0
    try:
        yield
    finally:
        assert libc.capset(header, held) == 0


@pytest.mark.parametrize("reason", ["Permission denied", "Is a directory"])
@pytest.mark.parametrize(("stage", "name"), UNREADABLE)
def test_what_cannot_be_read_is_named_with_the_systems_reason(
    own: Path, cli: Cli, stage: str, name: str, reason: str
) -> None:
    file = own / name
    content = file.read_bytes()
    before = read_all(own)
    if reason == "Is a directory":
        file.unlink()
        file.mkdir()
    else:
        file.chmod(0)
    with bound_by_permissions():
        result = cli(stage)
    if reason == "Is a directory":
        file.rmdir()
        file.write_bytes(content)
    file.chmod(0o644)
    assert read_all(own) == before
    if (stage, reason) == ("fetch", "Is a directory"):
        assert_refused(result, "params.yaml: fetch.dataset: data.csv: no file of a known format in")
        return
    key = "params.yaml: fetch.dataset: " if stage == "fetch" else ""
    assert_refused(result, f"Error: {key}cannot read {name}: {reason}")
    assert "\n  next: " in result.stderr
    assert "write" not in result.stderr


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        ("embed", {"embed.max_tokens": 513}, "embed.max_tokens: must be <= 512 for this backbone"),
        ("embed", {"runtime.devices": "cuda:99"}, "runtime.devices: cuda:99: this machine has "),
        ("embed", {"embed.layers": [7]}, "embed.layers: no layer 7; there are 0, 1, 2"),
        ("embed", {"embed.layer": 7}, "embed.layer: unknown key; did you mean `layers`?"),
        ("train-heads", {"heads.layers": [7]}, "heads.layers: no layer 7; there are 0, 1, 2"),
        ("train-heads", {"heads.head": "hidden"}, "heads.optimizer: lbfgs trains heads without"),
        (
            "train-heads",
            {"heads.tasks.spam.metric": "r2"},
            "heads.tasks.spam.metric: must be one of ",
        ),
    ],
)
def test_wrong_settings_are_said_to_be_in_the_file_that_was_given(
    own: Path, cli: Cli, stage: str, changes: dict[str, object], message: str
) -> None:
    (own / "params.yaml").rename(own / "mine.yaml")
    edit_params({"heads.search": [], **changes}, own / "mine.yaml")
    if stage == "embed":  # so that there is something to embed
        grow(own, 1)
        assert cli("fetch", "--params", "mine.yaml").returncode in {0, 1}
        cli("prepare", "--params", "mine.yaml")
    result = cli(stage, "--params", "mine.yaml")
    assert_refused(result, f"Error: mine.yaml: {message}")
    assert "params.yaml" not in result.stderr


def test_a_wrong_option_is_named_without_a_file(own: Path, cli: Cli) -> None:
    result = cli("cache", "export", "out.npy", "--layers", "99")
    assert_refused(result, "Error: --layers: no layer 99; there are 0, 1, 2")
    assert "yaml" not in result.stderr
    assert not (own / "out.npy").exists()


def test_a_working_directory_that_was_removed(own: Path, process: Cli) -> None:
    gone = own / "gone"
    gone.mkdir()
    result = process(
        "prepare", preexec_fn=gone.rmdir, cwd=gone, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert_refused(result, "the working directory is not there any more", hint="another folder")


# --- a disk that is full or read-only ----------------------------------------------------------


def limit_file_size(limit_bytes: int) -> dict[str, object]:
    """Options that let a process write no file larger than this, as a full disk would."""
    return {
        "preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes)),
        "env": {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    }


def make_work_for(stage: str, own: Path, cli: Cli) -> None:
    """Change what comes before a stage, so that it has something new to write."""
    if stage == "train-heads":
        edit_params({"heads.weight_decay": 0.2, "heads.search": []})
        return
    if stage == "report":
        for plot in (Project(own).report / "plots").rglob("*.csv"):
            plot.write_text(plot.read_text() + "of,another,run\n")
        return
    grow(own, 500)
    run_stages(cli, *{"fetch": [], "prepare": ["fetch"], "embed": ["fetch", "prepare"]}[stage])


@pytest.mark.parametrize(
    ("stage", "limit_bytes"),
    [
        ("fetch", 300),
        ("prepare", 2000),  # neither file has room
        ("prepare", 15_000),  # only the labels have
        ("embed", 20_000),
        ("train-heads", 500),
        ("train-heads", 2000),  # the weights have room, their description has not
        ("report", 300),
    ],
)
def test_no_room_for_a_file(
    own: Path, cli: Cli, process: Cli, stage: str, limit_bytes: int
) -> None:
    make_work_for(stage, own, cli)
    before = read_all(own)
    result = process(stage, **limit_file_size(limit_bytes))
    assert_refused(result, "cannot write", "File too large", hint="the file is larger than")
    after = read_all(own)
    assert {name: after.get(name) for name in before} == before
    assert not [file for file in (own / "cache").rglob(".tmp-*") if file.is_file()]


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_a_cache_folder_that_cannot_be_written(
    own: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
) -> None:
    """Root may write anywhere, so the system's refusal is injected."""
    before = read_all(own)

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("pipeline.files.create_file", refuse)
    monkeypatch.setattr(sys, "argv", ["pipeline", "prepare"])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 1
    error = capsys.readouterr().err
    assert f"cannot write cache/texts.parquet: {os.strerror(number)}" in error
    assert "nothing that was there before has changed" in error
    assert "  next: " in error
    assert read_all(own) == before


def test_a_file_where_the_cache_folder_should_be(own: Path, cli: Cli) -> None:
    shutil.rmtree(own / "cache")
    (own / "cache").write_text("mine")
    assert_refused(cli("prepare"), "cannot write cache", "File exists")
    assert (own / "cache").read_text() == "mine"


# --- Ctrl-C, and two runs at once --------------------------------------------------------------


class Terminal:
    """A run of the command line on a terminal, whose progress bar says how far it is."""

    def __init__(self, *arguments: str) -> None:
        self._terminal, other = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", *arguments],
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
        )
        os.close(other)
        self.output = ""

    def wait_for(self, pattern: str | None, seconds: float = 60) -> None:
        """Read until the pattern shows, or to the end."""
        end = time.monotonic() + seconds
        while not (pattern and re.search(pattern, self.output)):
            assert time.monotonic() < end, f"no {pattern!r} in {self.output[-2000:]!r}"
            if not select.select([self._terminal], [], [], 0.2)[0]:
                continue
            try:
                chunk = os.read(self._terminal, 65536)
            except OSError:  # Linux's way to say that the other end is closed
                chunk = b""
            if not chunk:
                break
            self.output += chunk.decode("utf-8", "replace")
        assert pattern is None or re.search(pattern, self.output), self.output[-2000:]

    def interrupt(self) -> int:
        """Ctrl-C, which reaches the whole process group; returns the exit status."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.finish()

    def finish(self) -> int:
        self.wait_for(None)
        os.close(self._terminal)
        return self.process.wait(timeout=30)


def grow(folder: Path, rows: int, new_words: int = 0) -> None:
    """Add rows of distinct texts, with words that no other has, which take VADER long."""
    more = [
        ("ham", " ".join([f"message {n} is good, {n * 7919} times", *new]))
        for n in range(rows)
        for new in [[f"{n}x{word}" for word in range(new_words)]]
    ]
    write_rows(folder / "data.csv", [*ROWS, *more], ("label", "message"))


def set_up_for(stage: str, own: Path, cli: Cli) -> str:
    """Make a stage take long, its previous outputs in place.

    :returns: a pattern for its progress bar when some of the work is done, but not all.
    """
    if stage == "prepare":
        grow(own, 90_000, new_words=40)
        run_stages(cli, "fetch")
        return r"VADER .*?\b[1-9][\d,]*/90,\d\d\d texts"
    if stage == "embed":
        grow(own, 4500)
        run_stages(cli, "fetch", "prepare")
        return r"embedding .*?\b[1-9][\d,]*/4,\d\d\d texts"
    edit_params(
        {
            "heads.optimizer": "sgd",
            "heads.max_epochs": 1_000_000,
            "heads.patience": None,
            "heads.search": [],
        }
    )
    return r"training .*?\b[1-9][\d,]*/1,000,000 epochs"


@pytest.mark.parametrize("stage", ["prepare", "embed", "train-heads"])
def test_ctrl_c_leaves_what_was_there_and_the_next_run_goes_on(
    own: Path, cli: Cli, stage: str
) -> None:
    pattern = set_up_for(stage, own, cli)
    before = read_all(own)
    run = Terminal(stage)
    run.wait_for(pattern)
    assert run.process.poll() is None
    status = run.interrupt()
    assert status == 130, run.output
    assert "interrupted" in run.output
    assert "Traceback" not in run.output
    after = read_all(own)
    assert {name: after.get(name) for name in before} == before
    assert not [file for file in (own / "cache").rglob(".tmp-*") if file.is_file()]
    if stage == "prepare":
        grow(own, 20)
        run_stages(cli, "fetch")
    elif stage == "train-heads":
        edit_params({"heads.max_epochs": 2})
    run_stages(cli, stage)
    assert read_all(own) != before


def test_a_second_run_is_refused_by_the_first_ones_number(own: Path, cli: Cli) -> None:
    pattern = set_up_for("prepare", own, cli)
    run = Terminal("prepare")
    run.wait_for(pattern)
    for stage in ("prepare", "train-heads"):
        assert_refused(
            cli(stage), f"another run (process {run.process.pid}) is writing cache/", hint="wait"
        )
    assert run.process.poll() is None
    assert run.interrupt() == 130
    # The lock dies with its process, even one that had no time to release it.
    killed = Terminal("prepare")
    killed.wait_for(pattern)
    killed.process.kill()
    killed.finish()
    grow(own, 20)
    run_stages(cli, "fetch", "prepare")
