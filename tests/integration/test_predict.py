"""`pipeline predict` and `pipeline.load`: rows in any format, labelled as the saved heads would.

References: the store and `Heads` for texts of the corpus, Hugging Face and numpy for others.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import pty
import select
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.errors import DataError, SettingsError, StageError
from pipeline.model.decision import compute_sigmoid, compute_softmax
from pipeline.model.saved import Heads
from pipeline.project import Project
from pipeline.store import read_vectors
from tests.conftest import Cli, edit_params, run_cli
from tests.integration.test_task_types import SETTINGS, write_tickets

ROWS = 300
TASKS = ("urgent", "topics", "hours", "level", "team")
NEW = ["the server is down again", "thanks, a great help", "login broken. refund please!"]


def run_all(folder: Path, *stages: str) -> None:
    """Run stages in one process, which imports torch but once."""
    code = (
        "from pipeline.cli import cli\n"
        f"for stage in {stages or ('fetch', 'prepare', 'embed', 'train-heads')!r}:\n"
        "    cli.main([stage], standalone_mode=False)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Path:
    """A project with a head of each of the five types of tasks, in turn linear and kernel ones."""
    folder = tmp_path_factory.mktemp("predict") / "trained"
    folder.mkdir()
    write_tickets(folder / "tickets.csv", ROWS)
    rows = list(csv.DictReader((folder / "tickets.csv").open(encoding="utf-8")))
    with (folder / "tickets.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "team"])
        writer.writeheader()
        for row in rows:
            team = next((w for w in ("server", "invoice", "login") if w in row["body"]), "other")
            writer.writerow(row | {"team": team})
    settings = SETTINGS.replace("BACKBONE", str(tiny_backbone))
    settings = settings.replace("embed:", "    team: {column: team}\nembed:")
    settings = settings.replace(
        "    level: {type: ordinal}\n", "    level: {type: ordinal}\n    team: {}\n"
    )
    (folder / "params.yaml").write_text(settings.replace("\nheads:\n", "\nheads:\n  search: []\n"))
    run_all(folder)
    return folder


@pytest.fixture(params=["linear", "kernel"])
def either(request: pytest.FixtureRequest, trained: Path, tmp_path_factory: object) -> Path:
    """The same project with heads of one form or the other."""
    if request.param == "linear":
        return trained
    folder = trained.with_name("kernel")
    if not folder.exists():
        shutil.copytree(trained, folder)
        edit_params({"heads.head": "kernel"}, folder / "params.yaml")
        run_all(folder, "train-heads")
    return folder


@pytest.fixture
def cli_there(trained: Path, cli: Cli) -> Cli:
    cli.folder = trained  # type: ignore[attr-defined]
    return cli


def read_texts(folder: Path) -> list[str]:
    return pq.read_table(Project(folder).texts_file)["text"].to_pylist()


def answer_by_hand(heads: Heads, vectors: np.ndarray) -> dict[str, list[object]]:
    """The answers of heads to vectors, each type written out by its definition."""
    logits = {name: of_seeds[0] for name, of_seeds in heads.compute_logits(vectors).items()}
    made: dict[str, list[object]] = {}
    for head in heads.heads:
        z, name, t = logits[head.name], head.name, head.decision.temperature
        if head.type.name == "regression":
            made[name] = [float(value) for value in z[:, 0]]
            continue
        if head.type.name == "multilabel":
            p = compute_sigmoid(z / t)
            given = p > np.array(head.decision.thresholds)
            made[name] = [
                [c for c, yes in zip(head.classes, row, strict=True) if yes] for row in given
            ]
            made[f"{name}_score"] = [list(s[row]) for s, row in zip(p, given, strict=True)]
            continue
        if head.type.name == "binary":
            yes = compute_sigmoid(z / t)[:, 0]
            no = compute_sigmoid(-z / t)[:, 0]
            index = (yes > head.threshold).astype(int)
            score = np.where(index == 1, yes, no)
        elif head.type.name == "ordinal":
            above = np.minimum.accumulate(compute_sigmoid(z / t), axis=1)
            full = np.hstack([np.ones((len(z), 1)), above, np.zeros((len(z), 1))])
            p = full[:, :-1] - full[:, 1:]
            index, score = p.argmax(axis=1), p.max(axis=1)
        else:
            p = compute_softmax(z / t)
            index = z.argmax(axis=1)
            score = p.max(axis=1)
        made[name] = [head.classes[i] for i in index]
        made[f"{name}_score"] = score.tolist()
    return made


def embed_by_hand(folder: Path, texts: list[str]) -> np.ndarray:
    """Mean-pooled hidden states by Hugging Face, a text at a time: float32, [B, L, D]."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModel

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = AutoModel.from_pretrained(folder).eval()
    rows = []
    for text in texts:
        with torch.no_grad():
            ids = torch.tensor([tokenizer.encode(text).ids])
            states = model(ids, output_hidden_states=True).hidden_states
        rows.append(np.stack([state[0].mean(dim=0).numpy() for state in states]))
    return np.stack(rows)


def test_texts_of_the_corpus_are_labelled_as_the_heads_label_their_stored_vectors(
    either: Path,
) -> None:
    texts = read_texts(either)
    heads = Heads.load(Project(either).heads)
    kernels = {head.name for head in heads.heads if head.weights[0].centers is not None}
    assert kernels == (set(TASKS) if either.name == "kernel" else set())
    keys = pq.read_table(Project(either).texts_file)["key"].combine_chunks()
    expected = answer_by_hand(heads, read_vectors(Project(either).store, keys, heads.layers))
    with pipeline.load(either) as model:
        found = model.predict(texts)
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].tolist() == values, name


def test_new_texts_are_labelled_as_by_hugging_face_and_numpy(
    either: Path, tiny_backbone: Path
) -> None:
    heads = Heads.load(Project(either).heads)
    by_hand = embed_by_hand(tiny_backbone, NEW)
    with pipeline.load(Project(either), devices="cpu") as model:
        np.testing.assert_allclose(model.embed(NEW), by_hand[:, heads.layers], atol=2e-3)
        table = model.predict(NEW)
        probabilities = model.predict_proba(NEW)
    rounded = by_hand[:, heads.layers].astype(np.float16).astype(np.float32)
    expected = answer_by_hand(heads, rounded)
    for name, values in expected.items():
        if isinstance(values[0], float):
            np.testing.assert_allclose(table[name], values, rtol=2e-2, atol=1e-2)
    assert set(probabilities) == set(TASKS) - {"hours"}
    for task in ("urgent", "level", "team"):
        np.testing.assert_allclose(probabilities[task].sum(axis=1), 1)
        row = np.arange(len(NEW))
        columns = [list(probabilities[task]).index(label) for label in table[task]]
        np.testing.assert_array_equal(
            probabilities[task].to_numpy()[row, columns], table[f"{task}_score"]
        )


def test_a_text_has_the_same_vector_stored_or_not(trained: Path, tmp_path: Path) -> None:
    texts = read_texts(trained)[:40]
    with pipeline.load(trained) as model:
        stored = model.embed(texts)
    bare = tmp_path / "bare"
    shutil.copytree(trained, bare)
    shutil.rmtree(Project(bare).store)
    with pipeline.load(bare) as model:
        fresh = model.embed(texts)
    assert stored.dtype == fresh.dtype == np.float32
    np.testing.assert_array_equal(fresh, fresh.astype(np.float16))  # rounded as the store is
    # Sums in another order may fall on the other side of a boundary of float16.
    np.testing.assert_allclose(fresh, stored, rtol=2**-10, atol=1e-6)


def test_stored_vectors_are_reused(trained: Path, process: Cli, tmp_path: Path) -> None:
    """Texts of the corpus alone need no torch; a new one does."""
    code = (
        "import sys, pipeline\n"
        f"texts = {read_texts(trained)[:3]!r} + sys.argv[1:]\n"
        f"pipeline.load({str(trained)!r}).predict(texts)\n"
        "print('torch' in sys.modules)"
    )
    for more, imports in (([], "False"), (["quite new"], "True")):
        done = subprocess.run(
            [sys.executable, "-c", code, *more], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == imports


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, pipeline; print({'torch', 'pandas', 'pyarrow', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    assert not hasattr(pipeline, "no_such_thing")


# --- formats

TEXT_ROWS = [
    {"id": 7, "body": 'the "server", is\ndown', "note": None},
    {"id": 8, "body": "thanks — grüße 🎉", "note": "x\ry"},
    {"id": 9, "body": "login broken", "note": ""},
]


def write_csv(path: Path, delimiter: str = ",") -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["id", "body", "note"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(TEXT_ROWS)
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_jsonl(path: Path) -> None:
    content = "".join(json.dumps(row) + "\n" for row in TEXT_ROWS).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


FORMATS: dict[str, Callable[[Path], object]] = {
    "in.csv": write_csv,
    "in.csv.gz": write_csv,
    "in.tsv": lambda path: write_csv(path, "\t"),
    "in.jsonl": write_jsonl,
    "in.jsonl.gz": write_jsonl,
    "in.json": lambda path: path.write_text(json.dumps(TEXT_ROWS)),
    "in.parquet": lambda path: pq.write_table(pa.Table.from_pylist(TEXT_ROWS), path),
}


def read_output(path: Path) -> list[dict[str, object]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    delimiter = "\t" if path.suffix == ".tsv" else ","
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


@pytest.mark.parametrize("out", ["out.csv", "out.tsv", "out.jsonl", "out.parquet"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_in_and_out(
    trained: Path, cli_there: Cli, tmp_path: Path, name: str, out: str
) -> None:
    FORMATS[name](tmp_path / name)
    done = cli_there("predict", str(tmp_path / name), "-o", str(tmp_path / out), "--probabilities")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_output(tmp_path / out)
    with pipeline.load(trained) as model:
        expected = model.predict([row["body"] for row in TEXT_ROWS])
        probabilities = model.predict_proba([row["body"] for row in TEXT_ROWS])
    is_text = out.endswith((".csv", ".tsv"))
    for number, (given, row) in enumerate(zip(TEXT_ROWS, rows, strict=True)):
        assert row["body"] == given["body"]
        assert str(row["id"]) == str(given["id"])
        assert (row["note"] or None) == (given["note"] or None)
        assert (row["error"] or None) is None
        for column in expected:
            value = row[column]
            if is_text and column.startswith("topics"):
                value = json.loads(str(value))
            elif is_text and column.endswith(("_score", "hours")):
                value = float(str(value))
            assert value == expected[column][number], column
        for task, table in probabilities.items():
            for label in table:
                assert float(str(row[f"{task}:{label}"])) == table[label][number]
    if out == "out.parquet" and name == "in.parquet":
        assert pq.read_schema(tmp_path / out).field("id").type == pa.int64()


def test_types_and_nested_values_pass_through(cli_there: Cli, tmp_path: Path) -> None:
    table = pa.table(
        {
            "body": pa.array(NEW, pa.large_string()),
            "when": pa.array([0, None, 2], pa.timestamp("ns", "UTC")),
            "parts": pa.array([[1], [], None], pa.list_(pa.int16())),
            "kind": pa.array(["a", "b", "a"]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=2)
    out = tmp_path / "out.parquet"
    assert cli_there("predict", str(tmp_path / "in.parquet"), "-o", str(out)).returncode == 0
    found = pq.read_table(out)
    for name in ("when", "parts", "kind"):
        assert found[name].to_pylist() == table[name].to_pylist()
        assert found.schema.field(name).type == table.schema.field(name).type
    rows = [
        {"body": NEW[0], "n": 1, "x": {"a": [1, None]}, "m": 1},
        {"body": NEW[1], "n": 2.5, "m": "two"},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("out.jsonl", "out2.parquet"):
        done = cli_there("predict", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / name))
        assert done.returncode == 0, done.stderr
    first, second = read_output(tmp_path / "out.jsonl")
    assert (first["n"], first["x"], first["m"]) == (1, {"a": [1, None]}, 1)
    assert (second["n"], second["x"], second["m"]) == (2.5, None, "two")
    first, second = read_output(tmp_path / "out2.parquet")
    assert (first["n"], first["x"], first["m"]) == (1.0, '{"a": [1, null]}', "1")
    assert (second["n"], second["x"], second["m"]) == (2.5, None, "two")


def test_folders_and_several_files_keep_their_order(cli_there: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, texts in (("b.txt", ["three", "four"]), ("a.txt", ["one", "two"])):
        (folder / name).write_text("\n".join(texts))
    (folder / "notes.md").write_text("not read")
    (tmp_path / "c.csv").write_text("body\nfive\n")
    out = tmp_path / "out.jsonl"
    done = cli_there("predict", str(folder), str(tmp_path / "c.csv"), "-o", str(out))
    assert done.returncode == 0, done.stderr
    assert [row["body"] for row in read_output(out)] == ["one", "two", "three", "four", "five"]
    twice = cli_there("predict", *[str(tmp_path / "c.csv")] * 2, "-o", str(out), "--force")
    assert twice.returncode == 0
    assert [row["body"] for row in read_output(out)] == ["five", "five"]
    (tmp_path / "d.csv").write_text("body,more\nsix,6\n")
    done = cli_there("predict", str(tmp_path / "c.csv"), str(tmp_path / "d.csv"))
    assert done.returncode == 1
    assert "has other columns than" in done.stderr
    assert "'more'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ((), "server down\r\n\nthanks"),
        (("--format", "csv"), 'body,id\n"server down",1\n,2\nthanks,3\n'),
        (("--format", "tsv"), "body\tid\nserver down\t1\n\t2\nthanks\t3\n"),
        (("--format", "jsonl"), '{"body": "server down"}\n{}\n{"body": "thanks"}\n'),
        (
            ("--input-format", "jsonl", "--format", "csv"),
            '[{"body": "server down"}, {}, {"body": "thanks"}]',
        ),
    ],
)
def test_standard_input_in_every_format(
    trained: Path, process: Cli, arguments: tuple[str, ...], given: str
) -> None:
    done = process("predict", "-", *arguments, "--tasks", "team", cwd=trained, input=given)
    assert done.returncode == 3, done.stderr
    if "jsonl" in arguments[-1:]:
        rows = [json.loads(line) for line in done.stdout.splitlines()]
    else:
        delimiter = "\t" if "tsv" in arguments else ","
        rows = list(csv.DictReader(io.StringIO(done.stdout), delimiter=delimiter))
    assert [row["body"] or "" for row in rows] == ["server down", "", "thanks"]
    assert [bool(row["team"]) for row in rows] == [True, False, True]
    assert rows[1]["error"]
    assert "1 row without labels" in done.stderr


# --- rows, options, errors


def test_bad_rows(cli_there: Cli, tmp_path: Path) -> None:
    rows = [
        {"body": "fine"},
        {"body": " \u200b"},
        {"body": 5},
        {"x": 1},
        {"body": "\ud800"},
        {"body": "good"},
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out.jsonl"
    done = cli_there("predict", str(source), "-o", str(out))
    assert done.returncode == 3
    assert "4 rows without labels" in done.stdout
    assert "row 1 (blank text)" in done.stdout
    found = read_output(out)
    assert len(found) == 6
    for number, row in enumerate(found):
        is_bad = number in {1, 2, 3, 4}
        assert bool(row["error"]) == is_bad
        assert all((row[name] is None) == is_bad for name in TASKS)
    for name in ("out.csv", "out.parquet"):
        assert cli_there("predict", str(source), "-o", str(tmp_path / name)).returncode == 3
        assert len(read_output(tmp_path / name)) == 6

    stop = cli_there("predict", str(source), "-o", str(tmp_path / "s.csv"), "--on-bad-rows", "stop")
    assert stop.returncode == 1
    assert "row 1 (blank text)" in stop.stderr
    assert not (tmp_path / "s.csv").exists()
    drop = cli_there(
        "predict", str(source), "-o", str(tmp_path / "d.jsonl"), "--on-bad-rows", "drop"
    )
    assert drop.returncode == 0
    kept = read_output(tmp_path / "d.jsonl")
    assert [row["body"] for row in kept] == ["fine", "good"]
    assert "error" not in kept[0]
    assert not list(tmp_path.glob(".tmp-*"))


def test_only_bad_rows_and_no_rows(cli_there: Cli, tmp_path: Path) -> None:
    out = str(tmp_path / "out.csv")
    assert cli_there("predict", "--text", " ", "-o", out).returncode == 3
    assert len(read_output(Path(out))) == 1
    (tmp_path / "head.csv").write_text("id,body\n")
    assert cli_there("predict", str(tmp_path / "head.csv"), "-o", out, "--force").returncode == 0
    assert Path(out).read_text().startswith("id,body,urgent,urgent_score,")
    assert len(Path(out).read_text().splitlines()) == 1


def test_an_output_that_exists_is_kept_unless_forced(cli_there: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    out.write_text("mine")
    done = cli_there("predict", "--text", "hello", "-o", str(out))
    assert done.returncode == 1
    assert "exists already" in done.stderr
    assert out.read_text() == "mine"
    assert cli_there("predict", "--text", "hello", "-o", str(out), "--force").returncode == 0
    assert read_output(out)[0]["body"] == "hello"


def test_the_model_is_told(trained: Path, cli_there: Cli, tmp_path: Path) -> None:
    import hashlib

    content = (Project(trained).heads / "heads.json").read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    fingerprint = json.loads(content)["fingerprint"]
    out = tmp_path / "out.parquet"
    done = cli_there("predict", "--text", "a", "-o", str(out), "--model-column")
    told = json.loads(pq.read_schema(out).metadata[b"embedding_pipeline"])
    assert (told["heads_sha256"], told["fingerprint"]) == (sha256, fingerprint)
    assert told["version"] == pipeline.__version__
    (row,) = read_output(out)
    for part in (sha256[:12], fingerprint[:12], pipeline.__version__):
        assert part in str(row["model"])
        assert part in done.stdout


def test_tasks_and_thresholds(trained: Path, cli_there: Cli, tmp_path: Path) -> None:
    texts = read_texts(trained)[:50]
    with pipeline.load(trained) as model:
        p = model.predict_proba(texts)
    middle = float(p["urgent"]["high"].median())
    thresholds = {"urgent": middle, "topics": 0.0}
    with pipeline.load(trained, tasks=["topics", "urgent"], thresholds=thresholds) as model:
        found = model.predict(texts)
    assert list(found) == ["topics", "topics_score", "urgent", "urgent_score"]
    np.testing.assert_array_equal(found["urgent"] == "high", p["urgent"]["high"] > middle)
    assert all(tags == list(p["topics"]) for tags in found["topics"])
    out = tmp_path / "o.csv"
    options = ("--tasks", "urgent", "--threshold", f"urgent={middle!r}", "-o", str(out))
    (tmp_path / "t.txt").write_text("\n".join(texts))
    assert cli_there("predict", str(tmp_path / "t.txt"), *options).returncode == 0
    assert [row["urgent"] for row in read_output(out)] == found["urgent"].tolist()
    assert list(read_output(out)[0]) == ["body", "urgent", "urgent_score", "error"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ((), 2, "give either files, folders or -, or --text"),
        (("a.csv", "--text", "b"), 2, "give either files"),
        (("no-such-file.csv",), 1, "no-such-file.csv: no such file"),
        (("hello world",), 1, "give a text itself by --text"),
        (("tickets.csv", "--text-column", "bdy"), 1, "no column 'bdy'"),
        (("--text", "a", "--tasks", "urgant"), 1, "urgant: no such task; did you mean `urgent`?"),
        (("--text", "a", "--threshold", "level=0.5"), 1, "a ordinal head has no threshold"),
        (("--text", "a", "--threshold", "urgent=1.5"), 1, "must be from 0 to 1"),
        (("--text", "a", "--threshold", "urgent"), 2, "is not TASK=P"),
        (("--text", "a", "-o", "x.docx"), 1, "cannot tell the format"),
        (("--text", "a", "-o", "x.csv", "--format", "parquet"), 1, "--format: is parquet"),
        (("params.yaml",), 1, "cannot tell its format from its name"),
    ],
)
def test_mistakes_are_named(
    cli_there: Cli, arguments: tuple[str, ...], status: int, message: str
) -> None:
    done = cli_there("predict", *arguments)
    assert done.returncode == status, done.stdout
    assert message in done.stderr
    assert not Path("x.csv").exists()


def test_columns_of_labels_in_the_input_are_renamed(cli_there: Cli, trained: Path) -> None:
    done = cli_there("predict", "tickets.csv", "-o", "labelled.csv", "--force")
    assert done.returncode == 0
    assert "the column 'team' of the input is 'team_input' in the output" in done.stdout
    given = list(csv.DictReader((trained / "tickets.csv").open(encoding="utf-8")))
    found = read_output(trained / "labelled.csv")
    assert [row["team_input"] for row in found] == [row["team"] for row in given]
    (trained / "labelled.csv").unlink()


def test_a_backbone_that_changed_is_refused(
    trained: Path, tmp_path: Path, tiny_backbone: Path
) -> None:
    project = tmp_path / "other"
    shutil.copytree(trained, project)
    backbone = tmp_path / "backbone"
    shutil.copytree(tiny_backbone, backbone)
    path = project / "cache" / "heads" / "heads.json"
    # The record's own hash is made anew, so that the backbone's place is all that differs.
    from pipeline.files import add_hash, format_json

    record = json.loads(path.read_text())
    record["backbone"]["path"] = str(backbone)
    record.pop("sha256", None)
    path.write_bytes(format_json(add_hash(record)))
    with pipeline.load(project) as model:
        assert len(model.predict(NEW)) == 3
    weights = backbone / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(StageError, match=r"model\.safetensors has changed"):
        pipeline.load(project)
    (project / "cache" / "heads" / "heads.json").unlink()
    with pytest.raises(StageError, match="no such file"):
        pipeline.load(project)


def test_python_names_the_text_that_cannot_be_used(trained: Path) -> None:
    with pipeline.load(trained) as model:
        for texts in (["fine", " "], ["fine", None], ["fine", 3]):
            with pytest.raises(DataError, match="number 1"):
                model.predict(texts)
        with pytest.raises(DataError, match="a single text"):
            model.predict("fine")
        assert len(model.predict([])) == 0
        assert model.embed([]).shape == (0, len(model.heads.layers), 32)
        assert [len(table) for table in model.predict_proba([]).values()] == [0] * 4
        assert list(model.predict(pd.Series(["a", "b"], index=[5, 9])).index) == [0, 1]
    with pytest.raises(SettingsError, match="no such task"):
        pipeline.load(trained, tasks=["none"])


# --- terminals, signals, disks, memory


def run_in_terminal(folder: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """The exit status of a command, and what a terminal of 120 columns gets."""
    master, slave = pty.openpty()
    program = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=folder,
        stdout=slave,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "120", **environment},
    )
    os.close(slave)
    shown = b""
    while program.poll() is None or select.select([master], [], [], 0.2)[0]:
        if select.select([master], [], [], 0.2)[0]:
            try:
                shown += os.read(master, 65536)
            except OSError:
                break
    os.close(master)
    return program.wait(), shown.decode()


def test_a_terminal_gets_a_table(trained: Path) -> None:
    status, shown = run_in_terminal(trained, "predict", "--text", "a \033[31mserver", "--text", " ")
    lines = shown.splitlines()
    assert status == 3
    assert [line.split()[0] for line in lines[:2]] == ["body", "a"]
    assert "urgent_score" in lines[0]
    assert "\033[31m" not in lines[1]
    assert "blank text" in lines[2]


def test_a_closed_pipe_and_a_full_disk(trained: Path, tmp_path: Path) -> None:
    source = tmp_path / "many.txt"
    source.write_text("".join(f"text number {n}\n" for n in range(20_000)))
    command = f"{sys.executable} -m pipeline predict {source}"
    piped = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{command} | head -n 2"],
        cwd=trained,
        capture_output=True,
        text=True,
    )
    assert piped.returncode == 1
    assert piped.stdout.splitlines()[1].startswith("text number 0,")
    assert "Traceback" not in piped.stderr
    # A limit of the size of files is to a program what a full disk is.
    limited = subprocess.run(
        ["bash", "-c", f"ulimit -f 200; trap '' XFSZ; {command} -o {tmp_path}/out.csv"],
        cwd=trained,
        capture_output=True,
        text=True,
    )
    assert limited.returncode == 1, limited.stderr
    assert "cannot write" in limited.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many.txt"]


def test_ctrl_c_leaves_no_file(trained: Path, tmp_path: Path) -> None:
    import signal

    program = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "predict", "-", "-o", str(tmp_path / "out.csv")],
        cwd=trained,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert program.stdin is not None
    while not list(tmp_path.glob(".tmp-*")):  # written aside, so it has begun
        assert program.poll() is None
    program.send_signal(signal.SIGINT)
    _, error = program.communicate()
    assert program.returncode == 130
    assert b"interrupted" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_memory_does_not_grow_with_the_rows(trained: Path, tmp_path: Path, ending: str) -> None:
    """20,000 rows, each with a column of 4 kB, take no more memory than 5,000 but 30 MB of 60."""
    peaks = []
    for rows in (5_000, 20_000):
        source, out = tmp_path / f"{rows}.{ending}", tmp_path / f"{rows}-out.{ending}"
        write_large(source, rows)
        # The peak that the system counts for a child includes its parent's, but this one does not.
        code = (
            "import re, sys\nfrom pathlib import Path\nfrom pipeline.cli import cli\n"
            "try:\n    cli.main(sys.argv[1:], standalone_mode=False)\nfinally:\n"
            "    print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, "predict", str(source), "-o", str(out)],
            cwd=trained,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.splitlines()[-1]) / 1000)
        assert f"predict: {rows:,} rows" in done.stdout
    assert peaks[1] < peaks[0] + 30, f"{peaks} MB"


def write_large(path: Path, rows: int) -> None:
    if path.suffix == ".parquet":
        table = pa.table(
            {
                "body": [f"text number {n}" for n in range(rows)],
                "more": [f"{n} " + "x" * 4_000 for n in range(rows)],
            }
        )
        pq.write_table(table, path, row_group_size=1_000)
        return
    with path.open("w", encoding="utf-8") as file:
        if path.suffix == ".csv":
            file.write("body,more\n")
        for n in range(rows):
            row = f"text number {n}", f"{n} " + "x" * 4_000
            line = (
                ",".join(row)
                if path.suffix == ".csv"
                else json.dumps(dict(zip(("body", "more"), row, strict=True)))
            )
            file.write(line + "\n")


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_an_output_is_compressed_by_its_ending(trained: Path, tmp_path: Path, ending: str) -> None:
    texts = [argument for text in NEW for argument in ("--text", text)]
    for name in (f"out.{ending}", f"out.{ending}.gz", f"OUT.{ending}.ZST"):
        result = run_cli(trained, "predict", *texts, "-o", str(tmp_path / name))
        assert result.returncode == 0, result.stderr
    plain = (tmp_path / f"out.{ending}").read_bytes()
    assert gzip.decompress((tmp_path / f"out.{ending}.gz").read_bytes()) == plain
    packed = (tmp_path / f"OUT.{ending}.ZST").read_bytes()
    assert pa.CompressedInputStream(pa.BufferReader(packed), "zstd").read() == plain
    for name in ("out.parquet.gz", "out.parquet.zst"):
        refused = run_cli(trained, "predict", *texts, "-o", str(tmp_path / name))
        assert refused.returncode == 1
        assert "Parquet compresses its columns itself" in refused.stderr


def test_slices_of_files_label_each_row_once(cli_there: Cli, trained: Path, tmp_path: Path) -> None:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    texts = read_texts(trained)[:50]
    for number in range(5):
        frame = pd.DataFrame({"body": texts[10 * number : 10 * number + 10]})
        frame.to_csv(inputs / f"{number}.csv", index=False)
    whole = cli_there("predict", str(inputs), "-o", str(tmp_path / "out.csv.gz"))
    assert whole.returncode == 0, whole.stderr
    for number in (1, 2, 3):
        result = cli_there(
            "predict", str(inputs), "-o", str(tmp_path / "out.csv.gz"), "--slice", f"{number}/3"
        )
        assert result.returncode == 0, result.stderr
    parts = [pd.read_csv(tmp_path / f"out-000{n}-of-0003.csv.gz") for n in (1, 2, 3)]
    assert [len(part) for part in parts] == [20, 20, 10]
    expected = pd.read_csv(tmp_path / "out.csv.gz")
    found = pd.concat(parts).set_index("body").loc[expected["body"].drop_duplicates()]
    pd.testing.assert_frame_equal(
        found.groupby(level=0).first(), expected.groupby("body").first(), rtol=1e-5
    )
    nothing = cli_there("predict", str(inputs), "-o", str(tmp_path / "out.csv"), "--slice", "7/7")
    assert nothing.returncode == 0
    assert "slice 7/7 has no file" in nothing.stdout
    assert not list(tmp_path.glob("out-0007*"))


@pytest.mark.parametrize(
    "arguments", [("--text", "a", "-o", "o.csv"), ("-", "-o", "o.csv"), ("tickets.csv",)]
)
def test_a_slice_is_of_files_and_into_a_file(cli_there: Cli, arguments: tuple[str, ...]) -> None:
    refused = cli_there("predict", *arguments, "--slice", "1/2")
    assert refused.returncode == 1
    assert "--slice 1/2: labels files, and needs -o OUT" in refused.stderr
    wrong = cli_there("predict", "tickets.csv", "-o", "o.csv", "--slice", "3/2")
    assert "must be I/N" in wrong.stderr
