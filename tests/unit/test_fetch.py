"""`fetch` of what lies on this machine already, and the small parts of the rest."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from pathlib import Path

import pytest

from pipeline.assets import check_files, read_assets
from pipeline.config import load_settings
from pipeline.errors import PipelineError
from pipeline.fetch import download
from pipeline.fetch import run as fetch
from pipeline.project import Project
from tests.conftest import edit_params

SAFETENSORS = (2).to_bytes(8, "little") + b"{}"  # the smallest there is: no tensor


@pytest.fixture
def local_project(project: Path, private_cache: Path) -> Path:
    (project / "messages.csv").write_text("label,message\nham,hello\nspam,win\n")
    (project / "lexicon.txt").write_text("good\t1.9\t0.1\t[1]\n")
    tiny = project / "tiny"
    tiny.mkdir()
    (tiny / "config.json").write_text("{}")
    (tiny / "tokenizer.json").write_text("{}")
    (tiny / "model.safetensors").write_bytes(SAFETENSORS)
    (tiny / "README.md").write_text("not needed")
    edit_params(
        {
            "fetch.dataset": "messages.csv",
            "fetch.lexicon": "lexicon.txt",
            "fetch.backbones": ["./tiny"],
        }
    )
    return project


def run_fetch() -> None:
    fetch.run_fetch(Project(), load_settings(Project().settings))


def refuse() -> PipelineError:
    with pytest.raises(PipelineError) as caught:
        run_fetch()
    assert not Project().assets.exists()
    return caught.value


def cut_weights(folder: Path) -> None:
    """As `save_pretrained` does with large weights."""
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for name in names:
        (folder / name).write_bytes(SAFETENSORS)
    index = {"metadata": {}, "weight_map": {"a": names[0], "b": names[1], "c": names[0]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_local_files(local_project: Path, private_cache: Path) -> None:
    run_fetch()
    content = (local_project / "messages.csv").read_bytes()
    found = read_assets(Project().assets)
    assert found["dataset"].files == {"messages.csv": hashlib.sha256(content).hexdigest()}
    assert found["dataset"].locate(Project()) / "messages.csv" == local_project / "messages.csv"
    assert set(found["backbone"].files) == {"config.json", "tokenizer.json", "model.safetensors"}
    assert str(local_project) not in Project().assets.read_text(), "the same on every machine"
    assert not private_cache.exists(), "what is local is not copied"
    for kind, asset in found.items():
        check_files(asset, kind, asset.locate(Project()))


def test_cut_weights(local_project: Path) -> None:
    cut_weights(local_project / "tiny")
    run_fetch()
    assert {
        name for name in read_assets(Project().assets)["backbone"].files if "model" in name
    } == {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    }


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no weights", "has no weights as safetensors (pickled weights are never loaded)"),
        ("pickled", "has no weights as safetensors (pickled weights are never loaded)"),
        ("other weights", "has no weights as safetensors (pickled weights are never loaded)"),
        ("no tokenizer", "has no tokenizer.json"),
        ("no config", "has no config.json"),
        ("empty folder", "has no config.json"),
        ("no piece", "has no model-00002-of-00002.safetensors"),
        ("damaged index", "model.safetensors.index.json is damaged"),
        ("odd index", "model.safetensors.index.json is damaged"),
        ("pointer", "model.safetensors is damaged or no safetensors file"),
        ("empty weights", "model.safetensors is damaged or no safetensors file"),
        ("cut short", "model.safetensors is damaged or no safetensors file"),
        ("unreadable", "cannot read "),
        ("no such folder", "no such folder, and not a hub id (owner/name)"),
    ],
)
def test_backbone_folder_that_cannot_serve(case: str, message: str, local_project: Path) -> None:
    tiny = local_project / "tiny"
    weights = tiny / "model.safetensors"
    if case in {"no piece", "damaged index", "odd index"}:
        cut_weights(tiny)
    if case in {"no weights", "pickled", "other weights", "unreadable"}:
        weights.unlink()
    if case == "pickled":
        (tiny / "pytorch_model.bin").write_bytes(b"\x80\x04pickled")
    elif case == "other weights":
        (tiny / "adapter_model.safetensors").write_bytes(SAFETENSORS)
    elif case == "no tokenizer":
        (tiny / "tokenizer.json").unlink()
    elif case == "no config":
        (tiny / "config.json").unlink()
    elif case == "empty folder":
        shutil.rmtree(tiny)
        tiny.mkdir()
    elif case == "no piece":
        (tiny / "model-00002-of-00002.safetensors").unlink()
    elif case == "damaged index":
        (tiny / "model.safetensors.index.json").write_text('{"weight_map": ')
    elif case == "odd index":
        (tiny / "model.safetensors.index.json").write_text('{"weight_map": ["a"]}')
    elif case == "pointer":
        weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    elif case == "empty weights":
        weights.write_bytes(b"")
    elif case == "cut short":
        weights.write_bytes((1000).to_bytes(8, "little") + b'{"a":')
    elif case == "unreadable":
        weights.symlink_to("/proc/self/mem")  # which not even root can read
    elif case == "no such folder":
        shutil.rmtree(tiny)
    error = refuse()
    assert error.message.startswith("backbone ./tiny: ")
    assert message in error.message
    assert error.hint


def test_second_folder_serves(local_project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_params({"fetch.backbones": ["./none", "./tiny"]})
    run_fetch()
    backbone = read_assets(Project().assets)["backbone"]
    assert backbone.id == "./tiny"
    assert backbone.extra["wanted"] == "./none"
    out = capsys.readouterr().out
    assert "warning: backbone ./none cannot be had; using ./tiny instead" in out
    assert "pipeline fetch && dvc repro" in out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mesages.csv", "mesages.csv: no such file; did you mean `messages.csv`?"),
        ("sms-spam-colection", "no such file; did you mean `sms-spam-collection`?"),
        ("tiny", "tiny: is a folder, not a file"),
        ("/proc/self/mem", "cannot read /proc/self/mem: Input/output error"),
        ("x" * 300, "x: File name too long"),
        ("~no-such-user/a.csv", "~no-such-user/a.csv: no such file"),
        ("http://[::1/a.csv", "not a valid URL"),
        ("ftp://host/a.csv", "only http://, https:// and hf://datasets/ can be fetched"),
        ("https:///a.csv", "only http://, https:// and hf://datasets/ can be fetched"),
    ],
)
def test_dataset_that_cannot_be_had(name: str, message: str, local_project: Path) -> None:
    edit_params({"fetch.dataset": name})
    error = refuse()
    assert error.message.startswith("fetch.dataset: ")
    assert message in error.message
    assert error.hint


def test_password_in_a_url_is_neither_taken_nor_shown(local_project: Path) -> None:
    edit_params({"fetch.dataset": "https://me:secret@host/a.csv"})
    error = refuse()
    assert "holds a user name or password" in error.message
    assert "secret" not in error.message + str(error.hint)


def test_lexicon_that_cannot_be_had(local_project: Path) -> None:
    edit_params({"fetch.lexicon": "vadr"})
    error = refuse()
    assert error.message == ("fetch.lexicon: vadr: no such file; did you mean `vader`?")


def test_a_lexicon_is_fetched_only_for_a_label_that_wants_one(local_project: Path) -> None:
    run_fetch()
    assert list(read_assets(Project().assets)) == ["dataset", "lexicon", "backbone"]
    edit_params(
        {
            "fetch.lexicon": "none.txt",
            "prepare.labels": {"spam": {"column": "label"}},
            "heads.tasks": {"spam": {}},
        }
    )
    run_fetch()
    assert list(read_assets(Project().assets)) == ["dataset", "backbone"]


def test_near_backbone_is_suggested(local_project: Path) -> None:
    edit_params({"fetch.backbones": ["all-MiniLM-L6-v2"]})
    assert "did you mean `sentence-transformers/all-MiniLM-L6-v2`?" in refuse().message


def test_local_dataset_with_a_pin(local_project: Path) -> None:
    found = hashlib.sha256((local_project / "messages.csv").read_bytes()).hexdigest()
    edit_params({"fetch.dataset_sha256": "0" * 64})
    error = refuse()
    assert error.message == (
        f"dataset messages.csv: messages.csv has sha256 {found}, but "
        f"fetch.dataset_sha256 is {'0' * 64}"
    )
    edit_params({"fetch.dataset_sha256": found})
    run_fetch()
    assert read_assets(Project().assets)["dataset"].files == {"messages.csv": found}


def test_another_run_comes_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is free, and taken again before the new folder has it."""
    target, scratch = tmp_path / "target", tmp_path / "scratch"
    for folder in (target, scratch / "content"):
        folder.mkdir(parents=True)
        (folder / "file").write_text(folder.name)
    rename = Path.rename
    others: list[Path] = []

    def interfere(path: Path, other: Path) -> Path:
        if path.name == "content" and not others:
            others.append(target)
            target.mkdir()
            (target / "file").write_text("of the other run")
        return rename(path, other)

    monkeypatch.setattr(Path, "rename", interfere)
    fetch._replace_folder(scratch / "content", target, scratch)
    assert others
    assert (target / "file").read_text() == "content"


def test_folder_comes_back_if_the_new_one_cannot_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, scratch = tmp_path / "target", tmp_path / "scratch"
    for folder in (target, scratch / "content"):
        folder.mkdir(parents=True)
        (folder / "file").write_text(folder.name)
    rename = Path.rename

    def fail(path: Path, other: Path) -> Path:
        if path.name == "content":
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(path, other)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="No space left"):
        fetch._replace_folder(scratch / "content", target, scratch)
    assert (target / "file").read_text() == "target"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("ERROR: Could not install: [Errno 28] No space left on device: 'x'", errno.ENOSPC),
        ("Data processing error: I/O error: File too large (os error 27)", errno.EFBIG),
        ("NewConnectionError: [Errno 111] Connection refused", None),
        ("ERROR: No matching distribution found for a==28", None),
    ],
)
def test_disk_errors_in_the_words_of_others(text: str, number: int | None) -> None:
    error = download._find_disk_error(text)
    assert (error.errno if error else None) == number
