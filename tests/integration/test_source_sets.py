"""Datasets of several files: folders, patterns, lists, texts a file each, object stores."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from ruamel.yaml import YAML

from pipeline.config import PrepareSettings, load_settings
from pipeline.predict.inputs import open_inputs
from pipeline.project import Project
from tests.conftest import Cli, run_cli

Run = Callable[..., tuple[str, list[str]]]
LABELS: dict[str, object] = {"good": {"column": "label", "classes": [0, 1]}}
SECRET = "s3cret-key"


def make_rows(first: int, number: int = 20) -> list[tuple[str, str]]:
    return [(str(n % 2), f"message number {n} is here") for n in range(first, first + number)]


def make_csv(rows: list[tuple[str, str]]) -> bytes:
    return "".join(f"{label},{text}\n" for label, text in [("label", "text"), *rows]).encode()


def compress_zstd(content: bytes) -> bytes:
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, "zstd") as stream:
        stream.write(content)
    return bytes(packed.getvalue())


PARTS = [make_rows(0), make_rows(20), make_rows(40)]
TEXTS = [text for part in PARTS for _, text in part]


@pytest.fixture
def run(project: Path, tiny_backbone: Path, private_cache: Path, cli: Cli) -> Run:
    """Fetch and prepare a dataset with some settings; what the commands said, and the texts."""

    def call(
        dataset: object,
        *,
        fails: bool = False,
        labels: object = None,
        fetch: object = None,
        stages: tuple[str, ...] = ("fetch", "prepare"),
        **settings: object,
    ) -> tuple[str, list[str]]:
        content = {
            "fetch": {"dataset": dataset, "backbones": [str(tiny_backbone)], **(fetch or {})},  # type: ignore[dict-item]
            "prepare": {
                "text_column": "text", "labels": LABELS if labels is None else labels, **settings
            },
        }  # fmt: skip
        Project().settings.write_text(json.dumps(content))
        said = ""
        for stage in stages:
            result = cli(stage)
            said += result.stdout + result.stderr
            if result.returncode:
                break
        assert result.returncode == (1 if fails else 0), said
        assert "Traceback" not in said
        if fails:
            return result.stderr, []
        return said, pq.read_table(Project().texts_file)["text"].to_pylist()

    return call


def read_dataset() -> dict[str, Any]:
    record: dict[str, Any] = json.loads(Project().assets.read_text())["dataset"]
    return record


def hash_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_parts(folder: Path) -> None:
    """Three files whose order of rows is that of their names, not that of their writing."""
    folder.mkdir()
    for name, part in (("c.csv", PARTS[2]), ("a.csv", PARTS[0]), ("b.csv", PARTS[1])):
        (folder / name).write_bytes(make_csv(part))


@pytest.mark.parametrize("dataset", ["data", "data/", "data/*.csv", "data/[abc].csv", "./dat?"])
def test_rows_of_folders_and_patterns_are_in_the_order_of_names(
    project: Path, run: Run, dataset: str
) -> None:
    write_parts(project / "data")
    (project / "data" / ".hidden.csv").write_bytes(make_csv(PARTS[0]))
    (project / "data" / "notes.md").write_text("no data")
    if dataset == "./dat?":  # a pattern of folders matches no file
        said, _ = run(dataset, fails=True)
        assert "fetch.dataset: ./dat?: no file matches it" in said
        return
    _, texts = run(dataset)
    assert texts == TEXTS
    record = read_dataset()
    contents = {n: (project / "data" / n).read_bytes() for n in ("a.csv", "b.csv", "c.csv")}
    assert record["files"] == {name: hash_of(content) for name, content in contents.items()}
    assert record["bytes"] == {name: len(content) for name, content in contents.items()}


def test_a_list_is_in_its_own_order_and_mixes_formats(project: Path, run: Run) -> None:
    (project / "one.csv").write_bytes(make_csv(PARTS[0]))
    table = pa.table({"text": [t for _, t in PARTS[1]], "label": [int(n) for n, _ in PARTS[1]]})
    pq.write_table(table, project / "a.parquet")
    (project / "more").mkdir()
    records = [{"label": int(label), "text": text} for label, text in PARTS[2]]
    (project / "more" / "z.json.zst").write_bytes(compress_zstd(json.dumps(records).encode()))
    _, texts = run(["one.csv", "a.parquet", "more/*"])
    assert texts == TEXTS
    labels = pq.read_table(Project().labels_file)["good"].to_pylist()
    assert labels == [n % 2 for n in range(60)]
    assert [m["id"] for m in read_dataset()["members"]] == ["one.csv", "a.parquet", "more/*"]
    _, texts = run(["a.parquet", "one.csv"])
    assert texts == TEXTS[20:40] + TEXTS[:20]


def test_all_compressions_in_one_folder(project: Path, run: Run) -> None:
    (project / "data").mkdir()
    packers = {"a.csv.gz": gzip.compress, "b.csv.bz2": bz2.compress, "c.csv.zst": compress_zstd}
    for part, (name, compress) in zip(PARTS, packers.items(), strict=True):
        (project / "data" / name).write_bytes(compress(make_csv(part)))
    assert run("data")[1] == TEXTS


def test_predict_reads_zstd(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv.zst").write_bytes(compress_zstd(make_csv(PARTS[0])))
    settings = PrepareSettings(text_column="text", labels={})
    with open_inputs([str(tmp_path / "in")], [], settings, None, None, "lines") as inputs:
        texts = [t for _, _, block in inputs.iterate_blocks(7) for t in block["text"]]
    assert texts == TEXTS[:20]


def test_changed_added_and_removed_files_are_noticed(project: Path, run: Run, cli: Cli) -> None:
    write_parts(project / "data")
    for dataset in ("data", "data/*.csv", ["data", "data/../one.csv"]):
        (project / "one.csv").write_bytes(make_csv(PARTS[0]))
        run(dataset)
        name = dataset if isinstance(dataset, str) else "data"
        (project / "data" / "d.csv").write_bytes(make_csv(PARTS[0]))
        result = cli("prepare")
        assert f"dataset {name}: d.csv came since it was fetched" in result.stderr
        (project / "data" / "d.csv").unlink()
        before = (project / "data" / "b.csv").read_bytes()
        (project / "data" / "b.csv").write_bytes(before.replace(b"21", b"12"))
        assert "b.csv has changed since it was fetched" in cli("prepare").stderr
        (project / "data" / "b.csv").unlink()
        assert "b.csv is not there any more" in cli("prepare").stderr
        (project / "data" / "b.csv").write_bytes(before)
        assert cli("prepare").returncode == 0


def test_messages_name_the_file_and_the_row_in_it(project: Path, run: Run) -> None:
    write_parts(project / "data")
    rows = list(PARTS[1])
    rows[3], rows[5] = ("7", rows[3][1]), ("1", '" "')
    (project / "data" / "b.csv").write_bytes(make_csv(rows))
    said, _ = run("data", fails=True)
    assert "data/b.csv: row 3 (the first is 0): unknown label for good: '7'" in said
    assert "data/b.csv: row 5 (the first is 0): blank text" in said
    said, texts = run("data", on_bad_rows="drop")
    assert "data/b.csv: row 3 (the first is 0)" in said
    assert texts == TEXTS[:23] + TEXTS[24:25] + TEXTS[26:]
    assert pq.read_table(Project().texts_file)["row"].to_pylist()[22:25] == [22, 24, 26]
    (project / "data" / "b.csv").write_bytes(b"label,body\n0,x\n")
    said, _ = run("data", fails=True)
    assert "data/b.csv: no column 'text'; the source has 'label', 'body'" in said
    (project / "data" / "b.csv").write_bytes(b"label,text\n0,x,y\n")
    assert "data/b.csv: line 2" in run("data", fails=True)[0]


def test_a_part_without_rows_is_one_of_several_and_none_alone(project: Path, run: Run) -> None:
    write_parts(project / "data")
    (project / "data" / "b.csv").write_bytes(make_csv([]))
    assert run("data")[1] == TEXTS[:20] + TEXTS[40:]
    (project / "data" / "b.csv").write_bytes(b"")
    assert "data/b.csv: the file is empty" in run("data", fails=True)[0]
    for name in "abc":
        (project / "data" / f"{name}.csv").write_bytes(make_csv([]))
    assert "has a header but no rows" in run("data", fails=True)[0]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("nothing", "nothing: no such file"),
        ("*.none", "*.none: no file matches it"),
        ("bare", "bare: no file of a known format in this folder"),
        (["a.csv", "a*.csv"], "a.csv is a file of a.csv and of a*.csv"),
        (["a.csv", "nothing.csv"], "nothing.csv: no such file"),
        ([], "fetch.dataset: must be"),
        ([["a.csv"]], "fetch.dataset"),
    ],
)
def test_mistakes_in_the_name_are_one_message(
    project: Path, run: Run, dataset: object, message: str
) -> None:
    (project / "a.csv").write_bytes(make_csv(PARTS[0]))
    (project / "bare").mkdir()
    (project / "bare" / "x.doc").write_text("x")
    said, _ = run(dataset, fails=True)
    assert message in said
    assert not Project().assets.exists()


@pytest.mark.parametrize("dataset", ["data", "data/*.csv", ["data/a.csv"]])
def test_a_hash_is_for_one_file(project: Path, run: Run, dataset: object) -> None:
    write_parts(project / "data")
    pin = {"dataset_sha256": hash_of(make_csv(PARTS[0]))}
    said, _ = run(dataset, fails=True, fetch=pin)
    assert "fetch.dataset_sha256: is the hash of one file, and fetch.dataset names several" in said
    assert run("data/a.csv", fetch=pin)[1] == TEXTS[:20]


def test_a_name_with_signs_of_patterns_is_a_file_where_there_is_one(
    project: Path, run: Run
) -> None:
    (project / "data[1].csv").write_bytes(make_csv(PARTS[0]))
    (project / "data1.csv").write_bytes(make_csv(PARTS[1]))
    assert run("data[1].csv")[1] == TEXTS[:20]
    (project / "data[1].csv").unlink()
    assert run("data[1].csv")[1] == TEXTS[20:40]


def write_texts(folder: Path, *, sub: bool = True) -> dict[str, str]:
    """Files of texts, by labels in sub-folders or none: name → text."""
    texts = {}
    for n in range(40):
        place = ("pos/" if n % 2 else "neg/") if sub else ""
        texts[f"{place}{n:02}.txt"] = f"review {n}, “quoted”\nwith a second line, of {n}"
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n", "utf-8")
    return texts


@pytest.mark.parametrize("dataset", ["reviews", "reviews/*/*.txt", ["reviews"]])
def test_texts_in_files_have_their_folder_as_label(
    project: Path, run: Run, dataset: object
) -> None:
    written = write_texts(project / "reviews")
    (project / "reviews" / "pos" / ".DS_Store").write_bytes(b"\x00")
    said, texts = run(dataset, labels={"mood": {"column": "label"}})
    assert texts == [written[name] for name in sorted(written)]
    labels = pq.read_table(Project().labels_file)
    names = json.loads(labels.schema.field("mood").metadata[b"classes"])
    assert [names[n] for n in labels["mood"].to_pylist()] == ["neg"] * 20 + ["pos"] * 20
    (project / "reviews" / "pos" / "07.txt").write_text(" ")
    said, _ = run(dataset, fails=True, labels={"mood": {"column": "label"}})
    assert "reviews/pos/07.txt: blank text" in said
    (project / "reviews" / "pos" / "07.txt").write_bytes(b"caf\xe9")
    said, _ = run(dataset, fails=True, labels={"mood": {"column": "label"}})
    assert "reviews/pos/07.txt: line 1: byte 0xe9" in said


def test_all_stages_on_many_files_and_a_page_that_stays_short(project: Path, run: Run) -> None:
    write_texts(project / "reviews")
    (project / "more.csv").write_text("text,label\n" + "one more,pos\nand another,neg\n")
    stages = ("fetch", "prepare", "embed", "train-heads", "report")
    run(["reviews", "more.csv"], labels={"mood": {"column": "label"}}, stages=stages)
    page = (Project().report / "report.html").read_text("utf-8")
    assert "reviews, more.csv" in page
    assert "neg/19.txt" not in page  # odd numbers are pos
    assert page.count(".txt<br>") == 20
    assert "and 21 more files" in page


def test_texts_in_a_flat_folder_have_no_label(project: Path, run: Run) -> None:
    written = write_texts(project / "notes", sub=False)
    assert run("notes", labels={})[1] == list(written.values())
    said, _ = run("notes", fails=True, labels={"mood": {"column": "label"}})
    assert "notes: no column 'label'; the source has 'text', 'file'" in said
    labels = {"name": {"column": "file"}}
    run("notes", labels=labels)
    about = pq.read_schema(Project().labels_file).field("name").metadata
    assert json.loads(about[b"classes"]) == sorted(written)


def test_texts_deeper_than_a_folder_of_labels_are_refused(project: Path, run: Run) -> None:
    write_texts(project / "imdb" / "train")
    said, _ = run("imdb", fails=True)
    assert "imdb/train/neg/00.txt: lies deeper than in a sub-folder of imdb" in said
    assert run("imdb/train", labels={"mood": {"column": "label"}})[1]


def test_tables_come_before_texts_beside_them(project: Path, run: Run) -> None:
    write_parts(project / "data")
    (project / "data" / "README.txt").write_text("about the data")
    said, texts = run("data")
    assert texts == TEXTS
    assert "data: not read, as there are tables: README.txt" in said


class SecretFileSystem(MemoryFileSystem):
    """A store of objects that wants a key, and counts what is asked of it."""

    protocol = "vault"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    opened: ClassVar[list[str]] = []
    fault: ClassVar[Exception | None] = None
    is_short: ClassVar[bool] = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("vault://", "memory://")))

    def _open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        self.opened.append(path)
        if self.fault is not None:
            raise self.fault
        if self.is_short:
            return io.BytesIO(super()._open(path, *args, **kwargs).read()[:-1])
        return super()._open(path, *args, **kwargs)


@pytest.fixture
def vault(monkeypatch: pytest.MonkeyPatch) -> type[SecretFileSystem]:
    fsspec.register_implementation("vault", SecretFileSystem, clobber=True)
    monkeypatch.setitem(fsspec.config.conf, "vault", {"key": SECRET})
    monkeypatch.setattr(SecretFileSystem, "store", {})
    monkeypatch.setattr(SecretFileSystem, "pseudo_dirs", [""])
    monkeypatch.setattr(SecretFileSystem, "opened", [])
    monkeypatch.setattr(SecretFileSystem, "fault", None)
    system = fsspec.filesystem("vault", key=SECRET)
    for name, part in zip("cab", (PARTS[2], PARTS[0], PARTS[1]), strict=True):
        system.pipe(f"/bucket/data/{name}.csv", make_csv(part))
    system.pipe("/bucket/data/_SUCCESS", b"")
    SecretFileSystem.opened.clear()
    return SecretFileSystem


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("vault://bucket/data/a.csv", TEXTS[:20]),
        ("vault://bucket/data", TEXTS),
        ("vault://bucket/data/", TEXTS),
        ("vault://bucket/data/*.csv", TEXTS),
        ("vault://bucket/*/[ab].csv", TEXTS[:40]),
        (["vault://bucket/data/c.csv", "vault://bucket/data/a.csv"], TEXTS[40:] + TEXTS[:20]),
    ],
)
def test_files_of_stores_are_downloaded_once(
    vault: type[SecretFileSystem],
    run: Run,
    private_cache: Path,
    dataset: str,
    expected: list[str],
) -> None:
    said, texts = run(dataset)
    assert texts == expected
    opened = len(vault.opened)
    assert opened == len(expected) // 20
    said += run(dataset)[0]
    assert len(vault.opened) == opened
    kept = [path for path in private_cache.rglob("*") if path.is_file()]
    seen = [said, Project().assets.read_text(), *map(str, kept), *(p.read_text() for p in kept)]
    assert not any(SECRET in text for text in seen)
    assert not any(path.name.startswith(".tmp") for path in private_cache.iterdir())


def test_texts_of_stores(vault: type[SecretFileSystem], run: Run) -> None:
    system = fsspec.filesystem("vault", key=SECRET)
    for n in range(40):
        system.pipe(f"/texts/{'ab'[n % 2]}/{n:02}.txt", f"text {n}".encode())
    for dataset in ("vault://texts", "vault://texts/*/*.txt"):
        _, texts = run(dataset, labels={"kind": {"column": "label"}})
        assert texts == [f"text {n}" for n in (*range(0, 40, 2), *range(1, 40, 2))]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("vault://bucket/none.csv", "vault://bucket/none.csv is not there"),
        ("vault://bucket/data/*.tsv", "vault://bucket/data/*.tsv: no file matches it"),
        ("vault://empty", "vault://empty"),
        (f"vault://{SECRET}:pass@bucket/data", "holds a user name or password"),
        ("file:///etc/passwd", "is a URL of files on this machine"),
        ("zip://a.csv::vault://bucket/a.zip", "of one file within another"),
        ("vaultt://bucket/data", "and what fsspec knows"),
    ],
)
def test_what_stores_lack_is_one_message(
    vault: type[SecretFileSystem], run: Run, private_cache: Path, dataset: str, message: str
) -> None:
    said, _ = run(dataset, fails=True)
    assert message in said
    assert SECRET not in said
    assert not list((private_cache / "datasets").glob("*"))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (PermissionError("Access Denied"), "may not be read (Access Denied)"),
        (RuntimeError(f"401 of https://x.y/z?sig={SECRET}"), "cannot be read (401 of https://"),
        (OSError("broken pipe"), "cannot be read (broken pipe)"),
    ],
)
def test_what_stores_refuse_is_one_message_and_leaves_nothing(
    vault: type[SecretFileSystem],
    run: Run,
    private_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Exception,
    message: str,
) -> None:
    monkeypatch.setattr(vault, "fault", fault)
    said, _ = run("vault://bucket/data", fails=True)
    assert message in said
    assert SECRET not in said
    assert not [path for path in private_cache.rglob("*") if path.is_file()]


def test_sizes_and_hashes_hold_for_stores_too(
    vault: type[SecretFileSystem], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "vault://bucket/data/a.csv"
    pin = {"dataset_sha256": hash_of(make_csv(PARTS[0]))}
    assert run(url, fetch=pin)[1] == TEXTS[:20]
    wrong = {"dataset_sha256": "0" * 64}
    assert "but fetch.dataset_sha256 is 000" in run(url, fails=True, fetch=wrong)[0]
    said, _ = run("vault://bucket/data", fails=True, fetch=pin)
    assert "fetch.dataset_sha256 is for one file, not for 3" in said
    monkeypatch.setattr(vault, "is_short", True)
    said, _ = run("vault://bucket/data/b.csv", fails=True)
    size = len(make_csv(PARTS[1]))
    assert f"b.csv ended after {size - 1:,} of {size:,} bytes" in said
    monkeypatch.setattr("pipeline.fetch.object_stores.MOST_BYTES", 1000)
    assert "has more than" in run("vault://bucket/data/*.csv", fails=True)[0]


@pytest.mark.parametrize(("scheme", "extra"), [("s3", "s3"), ("gs", "gcs")])
def test_a_missing_client_is_named_with_what_installs_it(
    run: Run, monkeypatch: pytest.MonkeyPatch, scheme: str, extra: str
) -> None:
    from fsspec.registry import _registry

    monkeypatch.delitem(_registry, scheme, raising=False)  # it may hold what is loaded already
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    said, _ = run(f"{scheme}://bucket/a.csv", fails=True)
    assert f"the client for {scheme}:// is not installed" in said
    assert f"pip install 'embedding-pipeline[{extra}]'" in said


def read_flow(folder: Path) -> list[str]:
    flow = YAML(typ="safe", pure=True).load((folder / "dvc.yaml").read_text())
    deps: list[str] = flow["stages"]["fetch"].get("deps", [])
    return deps


@pytest.mark.parametrize(
    ("data", "dataset", "deps"),
    [
        (["data"], "data", ["data"]),
        (["data/*.csv"], "data/*.csv", ["data"]),
        (["data/b.csv", "data/a.csv"], ("data/b.csv", "data/a.csv"), ["data/b.csv", "data/a.csv"]),
        (["*.csv"], "*.csv", ["top.csv"]),
    ],
)
def test_init_takes_several_files(
    tmp_path: Path,
    tiny_backbone: Path,
    monkeypatch: pytest.MonkeyPatch,
    data: list[str],
    dataset: object,
    deps: list[str],
) -> None:
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    write_parts(tmp_path / "data")
    (tmp_path / "top.csv").write_bytes(make_csv(PARTS[0]))
    given = [word for name in data for word in ("--data", name)]
    backbone = f"fetch.backbones=[{tiny_backbone}]"
    result = run_cli(
        tmp_path, "init", *given, "--text", "text", "--task", "good=label", "--set", backbone
    )
    assert result.returncode == 0, result.stderr
    assert load_settings(tmp_path / "params.yaml").fetch.dataset == dataset
    assert read_flow(tmp_path) == deps
    for stage in ("fetch", "prepare"):
        result = run_cli(tmp_path, stage)
        assert result.returncode == 0, result.stderr
    assert "tip: to let DVC" not in result.stdout
    added = run_cli(tmp_path, "init", "--task", "again=label")
    assert added.returncode == 0, added.stderr


def test_init_of_a_folder_of_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    write_texts(tmp_path / "reviews")
    result = run_cli(tmp_path, "init", "--data", "reviews")
    assert "--data reviews --text text --task label" in result.stderr
    result = run_cli(tmp_path, "init", "--data", "reviews", "--text", "text", "--task", "label")
    assert result.returncode == 0, result.stderr
    assert "neg, pos" in result.stdout
    assert read_flow(tmp_path) == ["reviews"]
