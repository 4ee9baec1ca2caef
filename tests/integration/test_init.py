"""`pipeline init`: from a file to a project, and tasks added later; answers by options or by hand.

What it writes is held to what the stages make of it: `prepare` reads the labels that are meant.
"""

from __future__ import annotations

import csv
import errno
import json
import os
import pty
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from pipeline.config import load_settings
from pipeline.init import files as init_files
from pipeline.presets import read_preset
from pipeline.project import Project
from tests.conftest import ROOT, edit_params, run_cli
from tests.disk import Disk

TEMPLATES = ROOT / "pipeline" / "init" / "templates"
FULL = ("--text", "body", "--task", "urgent=priority", "--task", "team", "--task", "hours")


def make_rows(rows: int = 60) -> list[dict[str, object]]:
    return [
        {
            "body": f"ticket {n}: the server is {'down' if n % 3 else 'slow'} since {n} o'clock",
            "priority": "high" if n % 3 else "low",
            "team": ("sales", "help desk", "billing")[n % 5 % 3],
            "hours": ("", "n/a", 1.5, 2, n)[n % 5],
            "topics": ("login", "login;invoice", "", "invoice")[n % 4],
            "grade": n % 4 + 1,
            "fold": "test" if n % 7 > 4 else "train",
        }
        for n in range(rows)
    ]


def write_csv(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with nothing but a file of tickets, and DVC's, so that DVC need not start."""
    folder = tmp_path / "own"
    (folder / ".dvc").mkdir(parents=True)
    write_csv(folder / "tickets.csv", make_rows())
    monkeypatch.chdir(folder)
    return folder


def init(folder: Path, *arguments: str, status: int = 0) -> str:
    """Run `pipeline init`; what it printed, to either stream."""
    result = run_cli(folder, "init", *arguments)
    assert result.returncode == status, result.stdout + result.stderr
    return result.stdout + result.stderr


def prepare(folder: Path, backbone: Path) -> pd.DataFrame:
    edit_params({"fetch.backbones": [str(backbone)]}, folder / "params.yaml")
    for stage in ("fetch", "prepare"):
        result = run_cli(folder, stage)
        assert result.returncode == 0, result.stdout + result.stderr
    return pq.read_table(folder / "cache/labels.parquet").to_pandas()


def list_files(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_a_project_of_own_data_is_one_command(folder: Path, tiny_backbone: Path) -> None:
    said = init(folder, "--data", "tickets.csv", *FULL, "--task", "topics", "--task", "grade")
    assert set(list_files(folder)) == {
        "params.yaml", "dvc.yaml", ".gitignore", ".dvcignore", ".dvc/plots/curves.json",
        ".dvc/.gitignore", "tickets.csv",
    }  # fmt: skip
    settings = load_settings(folder / "params.yaml")
    labels = {name: label.model_dump() for name, label in settings.prepare.labels.items()}
    assert labels["urgent"]["classes"] == ("low", "high")
    assert {name: (of["kind"], of["optional"]) for name, of in labels.items()} == {
        "urgent": ("class", False),
        "team": ("class", False),
        "hours": ("number", True),
        "topics": ("tags", False),
        "grade": ("class", False),
    }
    assert settings.prepare.missing == ("n/a",)
    types = {name: task.type for name, task in (settings.heads.tasks or {}).items()}
    assert types == {
        "urgent": "binary", "team": "multiclass", "hours": "regression", "topics": "multilabel",
        "grade": "multiclass",
    }  # fmt: skip
    assert "grade: 4 whole numbers from 1 to 4: `ordinal` if they are grades" in said
    assert "parts by the column 'fold': train (train), test (test)" in said
    assert "next: dvc repro" in said or "next: pipeline fetch &&" in said
    assert "deps: [tickets.csv]\n" in (folder / "dvc.yaml").read_text()

    rows, made = make_rows(), prepare(folder, tiny_backbone)
    assert made["urgent"].tolist() == [int(row["priority"] == "high") for row in rows]
    teams = ["billing", "help desk", "sales"]
    assert made["team"].tolist() == [teams.index(str(row["team"])) for row in rows]
    assert made["hours"].isna().tolist() == [row["hours"] in ("", "n/a") for row in rows]
    assert made["grade"].tolist() == [int(str(row["grade"])) - 1 for row in rows]
    topics = [list(flags) for flags in made["topics"]]
    assert topics == [
        ["invoice" in str(row["topics"]), "login" in str(row["topics"])] for row in rows
    ]


def test_the_settings_are_the_commented_preset_with_the_users_own(folder: Path) -> None:
    init(folder, "--data", "tickets.csv", "--text", "body", "--task", "spam=priority")
    text = (folder / "params.yaml").read_text()
    yaml = YAML(typ="safe", pure=True)
    own, preset = yaml.load(text), yaml.load(read_preset("default"))
    assert own["fetch"].pop("dataset") == "tickets.csv"
    assert own["prepare"].pop("text_column") == "body"
    own["prepare"].pop("labels")
    parts = own["prepare"].pop("split")
    preset["prepare"].pop("split")
    own["heads"].pop("tasks")
    del preset["fetch"]["dataset"], preset["prepare"]["text_column"], preset["prepare"]["labels"]
    del preset["heads"]["tasks"]
    assert own == preset
    assert parts == {
        "column": "fold", "train": ["train"], "validation": [], "test": ["test"], "leave_out": [],
        "validation_share": 0.15, "seed": 0, "stratify_by": [], "keep_duplicates_together": False,
    }  # fmt: skip
    lost = [line for line in read_preset("default").splitlines() if line not in text.splitlines()]
    assert len(lost) <= 26, lost  # of two labels, two heads and shares, dataset and text column
    assert "class_weights: none # or balanced" in text
    assert "ham" not in text


def test_what_the_wheel_holds_is_what_this_project_has() -> None:
    assert (TEMPLATES / "dvc.yaml").read_bytes() == (ROOT / "dvc.yaml").read_bytes()
    assert (TEMPLATES / "dvcignore").read_bytes() == (ROOT / ".dvcignore").read_bytes()
    curves = ROOT / ".dvc" / "plots" / "curves.json"
    assert (TEMPLATES / "curves.json").read_bytes() == curves.read_bytes()
    assert (TEMPLATES / "dvc-gitignore").read_bytes() == (ROOT / ".dvc/.gitignore").read_bytes()
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    for line in (TEMPLATES / "gitignore").read_text().splitlines():
        assert line in {*ignored, "/cache/", "/dvc_plots/"}


def test_the_flow_is_this_projects_with_the_data_as_a_dependency(folder: Path) -> None:
    init(folder, "--data", "tickets.csv", *FULL)
    yaml = YAML(typ="safe", pure=True)
    flow, shipped = (
        yaml.load((folder / "dvc.yaml").read_text()),
        yaml.load((ROOT / "dvc.yaml").read_text()),
    )
    assert flow["stages"]["fetch"].pop("deps") == ["tickets.csv"]
    assert flow == shipped


def test_without_tasks_the_flow_ends_with_the_vectors(folder: Path, tiny_backbone: Path) -> None:
    said = init(folder, "--data", "tickets.csv", "--text", "body", "--no-tasks")
    assert "no tasks: texts and vectors only" in said
    flow = YAML(typ="safe", pure=True).load((folder / "dvc.yaml").read_text())
    assert list(flow["stages"]) == ["fetch", "prepare", "embed"]
    assert "plots" not in flow
    assert load_settings(folder / "params.yaml").prepare.labels == {}
    made = prepare(folder, tiny_backbone)
    assert list(made.columns) == ["row", "split"]

    init(folder, "--task", "grade=grade:ordinal")
    settings = load_settings(folder / "params.yaml")
    assert settings.heads.tasks is not None
    assert settings.heads.tasks["grade"].type == "ordinal"
    flow = YAML(typ="safe", pure=True).load((folder / "dvc.yaml").read_text())
    shipped = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text())
    assert flow["stages"]["fetch"].pop("deps") == ["tickets.csv"]
    assert flow == shipped
    assert prepare(folder, tiny_backbone)["grade"].nunique() == 4


def test_a_task_is_added_and_all_else_stays(folder: Path) -> None:
    init(folder, "--data", "tickets.csv", "--text", "body", "--task", "team")
    params = folder / "params.yaml"
    edited = params.read_text().replace("  dropout: 0.0", "  dropout: 0.0 # mine\n\n  # and mine")
    edited = edited.replace("    team:\n      column", "    team: # mine too\n      column")
    params.write_text(edited)
    old = load_settings(params)
    said = init(folder, "--task", "urgent=priority", "--task", "hours")
    assert "hours: 'n/a' means that the label is missing" in said
    before, after = edited.splitlines(), params.read_text().splitlines()
    kept = [line for line in before if "missing:" not in line]
    assert [line for line in after if line in kept] != []
    position = -1
    for line in kept:  # all lines are there, in their order
        position = after.index(line, position + 1)
    new = load_settings(params)
    assert list(new.prepare.labels) == ["team", "urgent", "hours"]
    assert new.prepare.labels["team"] == old.prepare.labels["team"]
    assert list(new.heads.tasks or ()) == ["team", "urgent", "hours"]
    assert new.prepare.missing == ("n/a",)
    assert "is there already" in init(folder, "--task", "urgent=priority", status=1)


def test_a_task_is_added_where_heads_are_left_to_the_labels(folder: Path) -> None:
    text = (
        "fetch: {dataset: tickets.csv}\n"
        "prepare:\n  text_column: body\n  labels:\n    team: {column: team}  # one\n"
        "# the rest\nembed: {}\nheads: {}\nreport: {}\n"
    )
    (folder / "params.yaml").write_text(text)
    init(folder, "--task", "hours")
    settings = load_settings(folder / "params.yaml")
    assert list(settings.prepare.labels) == ["team", "hours"]
    assert settings.heads.tasks is None
    init(folder, "--task", "grade=grade:ordinal")
    tasks = load_settings(folder / "params.yaml").heads.tasks
    assert tasks is not None
    assert {name: task.type for name, task in tasks.items()} == {
        "team": None, "hours": None, "grade": "ordinal"
    }  # fmt: skip
    written = (folder / "params.yaml").read_text()
    assert "team: {column: team}  # one\n" in written
    assert "\n# the rest\nembed: {}\n" in written


def test_settings_in_braces_are_left_as_they_are(folder: Path) -> None:
    text = (
        "fetch: {dataset: tickets.csv}\nprepare: {text_column: body, labels: {t: {column: team}}}\n"
    )
    (folder / "params.yaml").write_text(text)
    said = init(folder, "--task", "hours", status=1)
    assert "prepare.labels: is written in braces" in said
    assert "hours:" in said
    assert (folder / "params.yaml").read_text() == text


@pytest.mark.parametrize("name", ["bom", "crlf", "no end"])
def test_a_task_is_added_to_a_file_of_any_form(folder: Path, name: str) -> None:
    text = "fetch: {dataset: tickets.csv}\nprepare:\n  text_column: body\n  labels:\n    t:\n"
    text += "      column: team # x\nheads: {}"
    form = {"bom": "\ufeff" + text, "crlf": text.replace("\n", "\r\n"), "no end": text}[name]
    (folder / "params.yaml").write_bytes(form.encode())
    init(folder, "--task", "hours")
    settings = load_settings(folder / "params.yaml")
    assert list(settings.prepare.labels) == ["t", "hours"]


def test_what_is_there_is_not_replaced_unless_forced(folder: Path) -> None:
    init(folder, "--data", "tickets.csv", *FULL)
    before = list_files(folder)
    said = init(folder, "--data", "tickets.csv", "--text", "body", "--task", "team", status=1)
    assert "params.yaml is there; nothing was written" in said
    assert "--force" in said
    assert list_files(folder) == before
    init(folder, "--data", "tickets.csv", "--text", "body", "--task", "team", "--force")
    assert list(load_settings(folder / "params.yaml").prepare.labels) == ["team"]


def test_ignore_files_keep_their_lines(folder: Path) -> None:
    (folder / ".gitignore").write_text("secret.txt\n__pycache__/")
    init(folder, "--data", "tickets.csv", *FULL)
    lines = (folder / ".gitignore").read_text().splitlines()
    assert lines == ["secret.txt", "__pycache__/", "/cache/", "/dvc_plots/", "/.venv/"]
    before = list_files(folder)
    init(folder)
    assert list_files(folder) == before


def test_what_lacks_is_told_with_a_whole_command(folder: Path) -> None:
    for given in ((), ("--data", "tickets.csv"), ("--data", "tickets.csv", "--text", "body")):
        said = init(folder, *given, status=1)
        assert "no terminal to ask on" in said
        for column in make_rows()[0]:
            assert f"\n  {column} " in said
        (command,) = [line for line in said.splitlines() if line.startswith("  next: ")]
        words = shlex.split(command.removeprefix("  next: "))
        assert words[:6] == ["pipeline", "init", "--data", "tickets.csv", "--text", "body"]
        assert words[6::2] == ["--task"] * 5
        assert words[7::2] == ["priority", "team", "hours", "topics", "grade"]
    init(folder, *words[2:])
    write_csv(folder / "other.csv", make_rows())
    assert "files of data here: other.csv, tickets.csv" in init(folder, "sub", status=1)


def test_a_kind_that_is_named_and_classes_in_their_order(folder: Path) -> None:
    arguments = ("--data", "tickets.csv", "--text", "body")
    said = init(folder, *arguments, "--task", "p=priority:ordinal", status=1)
    assert "tell no order: high, low" in said
    assert "--classes p=high,low" in said
    init(
        folder, *arguments, "--task", "p=priority:ordinal", "--classes", "p=low,high",
        "--task", "grade:number", "--task", "b=priority", "--classes", "b=high,low",
    )  # fmt: skip
    settings = load_settings(folder / "params.yaml")
    assert settings.prepare.labels["p"].get_classes() == ("low", "high")
    assert settings.prepare.labels["b"].get_classes() == ("high", "low")
    assert settings.prepare.labels["grade"].get_kind() == "number"
    assert settings.heads.tasks is not None
    assert settings.heads.tasks["p"].type == "ordinal"


@pytest.mark.parametrize(
    ("arguments", "status", "what"),
    [
        (["--task", "teem"], 1, "has no column 'teem'; did you mean `team`?"),
        (["--task", "team:ordnal"], 1, "no kind 'ordnal' of tasks; did you mean `ordinal`?"),
        (["--task", "body"], 1, "'body' is the column of the texts"),
        (["--task", "fold"], 1, "does not look like labels but like the names of parts"),
        (["--task", "team:binary"], 1, "holds 3 classes, not two: billing, help desk, sales"),
        (["--task", "team:number"], 1, "60 rows cannot be used:"),
        (["--task", "a b=team"], 1, "prepare.labels.a b: "),
        (["--task", "split=team"], 1, "prepare.labels.split: is the name of another column"),
        (["--task", "team", "--task", "team=grade"], 2, "two tasks are called 'team'"),
        (["--task", "team", "--classes", "teem=a,b"], 2, "no --task is called 'teem'"),
        (["--task", "team", "--classes", "team"], 2, "is not NAME=A,B,C"),
        (["--task", "team", "--no-tasks"], 2, "either --task or --no-tasks"),
        (["--task", "team", "--set", "embed.max_tokens"], 2, "is not KEY=VALUE"),
        (["--task", "team", "--set", "embed.max_token=9"], 1, "did you mean `max_tokens`?"),
        (["--task", "team", "--set", "embed.max_tokens=[9"], 1, "is not valid YAML"),
        (["--task", "team", "--set", "embed.max_tokens.x=9"], 1, "embed.max_tokens: is no mapping"),
        (["--text", "boddy", "--task", "team"], 1, "no column 'boddy'; did you mean `body`?"),
        (["--data", "nowhere.csv", "--task", "team"], 1, "nowhere.csv: no such file"),
        (["--data", ".", "--task", "team"], 1, "is a folder"),
        (["--data", "notes.xyz", "--task", "team"], 1, "cannot tell its format from its name"),
        (["--data", "empty.csv", "--task", "team"], 1, "empty.csv: the file is empty"),
        (["--data", "head.csv", "--task", "team"], 1, "head.csv: has no rows"),
        (["--data", "book.csv", "--task", "team"], 1, "Excel"),
    ],
)
def test_mistakes_are_one_message_and_write_nothing(
    folder: Path, arguments: list[str], status: int, what: str
) -> None:
    (folder / "notes.xyz").write_text("x\n")
    (folder / "empty.csv").write_text("")
    (folder / "head.csv").write_text("body,team\n")
    (folder / "book.csv").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))
    before = list_files(folder)
    given = [] if "--data" in arguments else ["--data", "tickets.csv"]
    said = init(folder, *given, "--text", "body", *arguments, status=status)
    assert what in said
    assert "Traceback" not in said
    assert list_files(folder) == before


def test_odd_names_of_columns_classes_and_files(folder: Path, tiny_backbone: Path) -> None:
    columns = ["a=b:c", 'tëxt "x" # y', "null", "1", "row"]
    rows = [
        [("yes: no", "#1")[n % 2], f"text {n} of some words here", ("[x]", "{y}", "'z'")[n % 3],
         ("007", "08", "9")[n % 3], ("on", "off")[n % 2]]
        for n in range(60)
    ]  # fmt: skip
    name = "my \u201cdata\u201d, v1: [x].csv"
    write_csv(folder / name, [dict(zip(columns, row, strict=True)) for row in rows])
    tasks = ["t1=a=b:c", "null", "nums=1:multiclass", "row"]
    init(folder, "--data", name, "--text", columns[1], *(w for t in tasks for w in ("--task", t)))
    settings = load_settings(folder / "params.yaml")
    assert settings.fetch.dataset == name
    assert settings.prepare.text_column == columns[1]
    assert list(settings.prepare.labels) == ["t1", "null", "nums", "row_label"]
    made = prepare(folder, tiny_backbone)
    about = pq.read_schema(folder / "cache/labels.parquet")
    names = json.loads((about.field("nums").metadata or {})[b"classes"])
    assert [names[n] for n in made["nums"]] == [row[3] for row in rows]
    flow = YAML(typ="safe", pure=True).load((folder / "dvc.yaml").read_text())
    assert flow["stages"]["fetch"]["deps"] == [name]


def test_rows_without_a_text_are_dropped_and_said(folder: Path, tiny_backbone: Path) -> None:
    rows = make_rows()
    rows[3]["body"] = rows[5]["body"] = "  "
    write_csv(folder / "tickets.csv", rows)
    said = init(folder, "--data", "tickets.csv", *FULL)
    assert "2 rows without a usable text: prepare.on_bad_rows is drop" in said
    assert len(prepare(folder, tiny_backbone)) == 58


@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".tsv", ".csv.gz"])
def test_files_of_other_formats(folder: Path, ending: str, tiny_backbone: Path) -> None:
    frame = pd.DataFrame(make_rows())
    frame["hours"] = pd.to_numeric(frame["hours"], errors="coerce")
    frame["tags"] = [["a", "b"][: n % 3] for n in range(len(frame))]
    frame["vector"] = [[0.5, 1.0]] * len(frame)
    name = f"data{ending}"
    if ending == ".jsonl":
        frame.to_json(name, orient="records", lines=True)
    elif ending == ".parquet":
        frame.to_parquet(name)
    else:
        frame.to_csv(name, index=False, sep="\t" if ending == ".tsv" else ",")
    said = init(folder, "--data", name, status=1)
    line = next(line for line in said.splitlines() if line.startswith("  vector "))
    assert "other" in line or ending in (".tsv", ".csv.gz")
    init(folder, "--data", name, "--text", "body", "--task", "tags", "--task", "hours")
    settings = load_settings(folder / "params.yaml")
    assert settings.prepare.labels["tags"].get_kind() == "tags"
    made = prepare(folder, tiny_backbone)
    assert [sum(flags) for flags in made["tags"]] == [min(2, n % 3) for n in range(60)]
    assert made["hours"].isna().sum() == frame["hours"].isna().sum()


def test_data_elsewhere_and_a_folder_that_is_made(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    shutil.copy(folder / "tickets.csv", outside / "t.csv")
    init(folder, "new/er", "--data", "../elsewhere/t.csv", *FULL)
    made = folder / "new" / "er"
    assert load_settings(made / "params.yaml").fetch.dataset == str(outside / "t.csv")
    flow = YAML(typ="safe", pure=True).load((made / "dvc.yaml").read_text())
    assert flow["stages"]["fetch"]["deps"] == [str(outside / "t.csv")]
    init(outside, str(outside), "--data", str(outside / "t.csv"), *FULL)
    assert load_settings(outside / "params.yaml").fetch.dataset == "t.csv"
    (tmp_path / "link").symlink_to(outside)
    init(outside, "../link", "--data", "../link/t.csv", *FULL, "--force")
    assert load_settings(outside / "params.yaml").fetch.dataset == "t.csv"


def test_other_settings_hold_for_reading_and_are_written(folder: Path) -> None:
    text = (folder / "tickets.csv").read_text().partition("\n")[2]
    (folder / "bare.csv").write_bytes(text.replace("ticket", "Störung").encode("cp1252"))
    header = ", ".join(make_rows()[0])
    init(
        folder, "--data", "bare.csv", *FULL, "--set", f"prepare.header=[{header}]",
        "--set", "prepare.encoding=cp1252", "--set", "embed.max_tokens=64",
        "--set", "prepare.split.keep_duplicates_together=true",
    )  # fmt: skip
    settings = load_settings(folder / "params.yaml")
    assert settings.prepare.header == tuple(make_rows()[0])
    assert settings.embed.max_tokens == 64
    assert settings.prepare.split.keep_duplicates_together
    assert "max_tokens: 64 #" in (folder / "params.yaml").read_text()


def test_a_file_without_a_header_goes_by_its_ending(folder: Path) -> None:
    lines = [
        f"{('ham', 'spam')[n % 3 == 0]}\ttext {n}, of two parts, or three\n" for n in range(30)
    ]
    (folder / "messages.tsv").write_text("".join(lines))
    init(
        folder, "--data", "messages.tsv", "--set", "prepare.header=[label, message]",
        "--text", "message", "--task", "spam=label",
    )  # fmt: skip
    settings = load_settings(folder / "params.yaml")
    assert settings.prepare.labels["spam"].get_classes() == ("ham", "spam")


def write_parts(folder: Path, parts: Sequence[str]) -> None:
    rows = make_rows()
    for number, row in enumerate(rows):
        row["fold"] = parts[number % len(parts)]
    write_csv(folder / "tickets.csv", rows)


def test_a_column_of_parts_is_kept(folder: Path, tiny_backbone: Path) -> None:
    parts = ["Train", "dev ", "TEST", "train", "", "validation"]
    write_parts(folder, parts)
    said = init(folder, "--data", "tickets.csv", *FULL)
    assert "by the column 'fold': train (Train, train), validation (dev, validation)" in said
    made = prepare(folder, tiny_backbone)
    of_part = {"Train": "train", "train": "train", "dev ": "validation", "validation": "validation"}
    of_part["TEST"] = "test"
    expected = [(n, of_part[parts[n % 6]]) for n in range(60) if parts[n % 6]]
    assert list(zip(made["row"], made["split"], strict=True)) == expected
    init(folder, "--data", "tickets.csv", *FULL, "--split", "-", "--force")
    assert prepare(folder, tiny_backbone)["split"].value_counts().sum() == 60


def test_a_column_that_may_be_of_parts(folder: Path, tiny_backbone: Path) -> None:
    write_parts(folder, ["0", "1", "2", "3", "4"])
    given = ("--data", "tickets.csv", *FULL)
    init(folder, *given)
    said = init(folder, *given, "--split", "fold", status=1)
    assert "column 'fold' holds 0, 1, 2, 3, 4, which do not say which part they mean" in said
    assert "--split - --set 'prepare.split={column: fold, train:" in said
    lists = "prepare.split={column: fold, train: [0, 1, 2], validation: [3], test: [4]}"
    init(folder, *given, "--split", "-", "--set", lists, "--force")
    made = prepare(folder, tiny_backbone)
    assert made["split"].tolist() == ["train", "train", "train", "validation", "test"] * 12
    assert "no column 'nowhere'" in init(folder, *given, "--split", "nowhere", status=1)
    init(folder, "--task", "grade")
    rows: list[dict[str, object]] = [
        {"body": f"text number {n}", "team": "ab"[n % 2], "fold": ("train", "test")[n % 2]}
        for n in range(21_000)
    ]
    rows[-1]["fold"] = "extra"
    write_csv(folder / "large.csv", rows)
    said = init(folder, "large", "--data", "large.csv", "--text", "body", "--task", "team")
    assert "column 'fold' is no split, as it also holds extra" in said


def test_large_files_are_described_by_their_first_rows_and_read_whole(folder: Path) -> None:
    rows: list[dict[str, object]] = [
        {"body": f"text number {n} of many", "kind": "common"} for n in range(25_000)
    ]
    rows += [{"body": f"rare {n}", "kind": "rare"} for n in range(10)]
    write_csv(folder / "large.csv", rows)
    said = init(folder, "--data", "large.csv", status=1)
    assert "its first 20,000 rows" in said
    init(folder, "--data", "large.csv", "--text", "body", "--task", "kind")
    label = load_settings(folder / "params.yaml").prepare.labels["kind"]
    assert label.get_classes() == ("common", "rare")


def test_nothing_is_half_written_and_the_command_can_be_repeated(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    init(other, "--data", "tickets.csv", *FULL)
    whole = list_files(other)
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, folder)
        disk.errno, disk.lasts = errno.ENOSPC, True
        for number in range(1, 40):
            disk.calls, disk.fails_at = 0, number
            result = run_cli(folder, "init", "--data", "tickets.csv", *FULL)
            if result.returncode == 0:
                break
            assert "No space left on device" in result.stderr
            assert list_files(folder).items() <= whole.items()
    assert number > 10
    assert list_files(folder) == whole


def test_a_folder_that_may_not_be_written_to(folder: Path) -> None:
    if os.getuid() == 0:
        (folder / "file").write_text("")
        said = init(folder, "file", "--data", "tickets.csv", *FULL, status=2)
        assert "is a file" in said
        return
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    said = init(folder, "--data", "tickets.csv", *FULL, status=1)
    folder.chmod(stat.S_IRWXU)
    assert "cannot write" in said


def answer(folder: Path, answers: Sequence[str], *arguments: str) -> tuple[int, str]:
    """Run `pipeline init` on a terminal and type answers; its status and all that it showed."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "init", *arguments],
        cwd=folder,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        close_fds=True,
        env={**os.environ, "NO_COLOR": "1", "PYTHONPATH": str(ROOT)},
    )
    os.close(slave)
    os.write(master, "".join(f"{line}\n" for line in answers).encode())
    shown = b""
    while True:
        try:
            part = os.read(master, 4096)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(master)
    return process.wait(timeout=60), shown.decode("utf-8", "replace").replace("\r\n", "\n")


def test_a_person_is_asked_on_a_terminal(folder: Path) -> None:
    tasks = "urgent=priority grade=grade:ordinal"
    status, shown = answer(folder, ["", "nowhere", "", "team:x", tasks])
    assert status == 0, shown
    assert "The file of your texts [tickets.csv]" in shown
    assert "The column of the texts [body]" in shown
    assert "there is no column 'nowhere'" in shown
    assert "Tasks [priority team hours topics grade]" in shown
    assert "there is no kind 'x' of tasks" in shown
    settings = load_settings(folder / "params.yaml")
    assert list(settings.prepare.labels) == ["urgent", "grade"]
    status, shown = answer(folder, ["", "", "-", "n"])
    assert status == 0, "a bare `init` in a project asks nothing"
    status, shown = answer(folder, ["", "-", "n"], "--data", "tickets.csv")
    assert status == 1
    assert "Replace params.yaml and dvc.yaml? [y/N]" in shown
    assert list(load_settings(folder / "params.yaml").prepare.labels) == ["urgent", "grade"]
    status, shown = answer(folder, ["", "-", "y"], "--data", "tickets.csv")
    assert status == 0, shown
    assert load_settings(folder / "params.yaml").prepare.labels == {}


@pytest.mark.parametrize("place", ["root", "sub", "none"])
def test_dvc_is_started_as_git_is_there_or_not(place: str, tmp_path: Path) -> None:
    pytest.importorskip("dvc")
    root = tmp_path / "repository"
    folder = root / "project" if place == "sub" else root
    folder.mkdir(parents=True)
    write_csv(folder / "tickets.csv", make_rows())
    if place != "none":
        subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    said = init(folder, "--data", "tickets.csv", *FULL)
    command = {"root": "dvc init\n", "sub": "dvc init --subdir\n", "none": "dvc init --no-scm,"}
    assert f"done: {command[place]}" in said
    assert (folder / ".dvc" / "config").is_file()
    assert (folder / ".dvc" / "plots" / "curves.json").is_file()
    listed = subprocess.run(
        [sys.executable, "-m", "dvc", "stage", "list"], cwd=folder, capture_output=True, text=True
    )
    assert listed.returncode == 0, listed.stderr
    assert [line.split()[0] for line in listed.stdout.splitlines()] == [
        "fetch", "prepare", "embed", "group", "train-heads", "report"
    ]  # fmt: skip
    assert "done:" not in init(folder)
    if place == "none":  # git may come later, and must then leave DVC's cache alone
        subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    listed = subprocess.run(
        ["git", "ls-files", "--others", "--exclude-standard", "."],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not [name for name in listed.stdout.split() if ".dvc/tmp" in name]


def test_without_dvc_it_is_said_and_the_stages_are_the_next_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_csv(tmp_path / "tickets.csv", make_rows())
    monkeypatch.setattr(init_files, "find_dvc", lambda: None)
    said = init(tmp_path, "--data", "tickets.csv", *FULL)
    assert "`pip install dvc` and `pipeline init` again" in said
    assert "next: pipeline fetch && pipeline prepare && pipeline embed" in said
    assert not (tmp_path / ".dvc").exists()
    (tmp_path / ".dvc").mkdir()
    assert "curves.json" in init(tmp_path)


def test_a_task_is_added_to_the_default_project(project: Path, real_assets: Path) -> None:
    assert "run `pipeline fetch` first" in init(project, "--task", "kind=label", status=1)
    Project(project).cache.mkdir()
    shutil.copy(Project(real_assets).assets, Project(project).assets)
    init(project, "--task", "kind=label")
    label = load_settings(project / "params.yaml").prepare.labels["kind"]
    assert label.get_classes() == ("ham", "spam")
