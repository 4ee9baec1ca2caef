"""`fetch` of what lies on this machine already, and the small parts of the rest."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from pipeline.assets import check_files, read_assets
from pipeline.config import load_settings
from pipeline.errors import PipelineError
from pipeline.fetch import download, network
from pipeline.fetch import run as fetch
from pipeline.files import replace_folder
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
        (".", ".: is a folder that holds the project"),
        ("bare", "bare: no file of a known format in this folder: CSV, TSV"),
        ("/proc/self/mem", "cannot read /proc/self/mem: Input/output error"),
        ("x" * 300, "x: File name too long"),
        ("~no-such-user/a.csv", "~no-such-user/a.csv: no such file"),
        ("http://[::1/a.csv", "not a valid URL"),
        ("none://host/a.csv", "only http://, https://, hf://datasets/ and what fsspec knows"),
        ("https:///a.csv", "only http://, https://, hf://datasets/ and what fsspec knows"),
    ],
)
def test_dataset_that_cannot_be_had(name: str, message: str, local_project: Path) -> None:
    (local_project / "bare").mkdir()
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
    replace_folder(scratch / "content", target, scratch)
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
        replace_folder(scratch / "content", target, scratch)
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


@pytest.fixture
def no_network_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_network_settings")
@pytest.mark.parametrize(
    ("environment", "url", "variable"),
    [
        ({}, "http://host/a", None),
        ({"HTTP_PROXY": "p:1", "ALL_PROXY": "q:1"}, "http://host/a", "HTTP_PROXY"),
        ({"HTTP_PROXY": "p:1", "ALL_PROXY": "q:1"}, "https://host/a", "ALL_PROXY"),
        ({"HTTP_PROXY": "p:1", "http_proxy": "q:1"}, "http://host/a", "http_proxy"),
        ({"HTTP_PROXY": " "}, "http://host/a", None),
        ({"ALL_PROXY": "p:1", "NO_PROXY": "host"}, "http://host/a", None),
        ({"ALL_PROXY": "p:1", "no_proxy": "*"}, "http://other/a", None),
        ({"ALL_PROXY": "p:1", "NO_PROXY": "host"}, "http://other/a", "ALL_PROXY"),
    ],
)
def test_the_proxy_of_a_url(
    environment: dict[str, str], url: str, variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    proxy = network.find_proxy(url)
    assert (proxy.variable if proxy else None) == variable


@pytest.mark.usefixtures("no_network_settings")
@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "socks://127.0.0.1:9", "http://["])
def test_a_file_of_the_web_is_not_asked_for_past_a_proxy(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who names a proxy may not want to be seen without one."""
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(network.UnavailableError, match="cannot use the proxy in ALL_PROXY"):
        network.open_url("http://127.0.0.1:9/a.csv")


@pytest.mark.usefixtures("no_network_settings")
@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_certificates(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert network.find_bad_certificates() is None
    path = tmp_path / "certificates.pem"
    monkeypatch.setenv(variable, str(path))
    what = f"the certificates in {variable} cannot be read ({path}"
    assert network.find_bad_certificates() == f"{what}: No such file or directory)"
    path.write_text("no certificate")
    assert network.find_bad_certificates() == f"{what} holds none)"
    path.unlink()
    certifi = pytest.importorskip("certifi")
    shutil.copy(certifi.where(), path)
    assert network.find_bad_certificates() is None


@pytest.mark.usefixtures("no_network_settings")
def test_certificates_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path))
    monkeypatch.setenv("SSL_CERT_DIR", f"{tmp_path / 'none'}{os.pathsep}{tmp_path}")
    assert network.find_bad_certificates() is None
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    assert "SSL_CERT_DIR cannot be read" in str(network.find_bad_certificates())


def test_a_watched_download_ends_when_it_is_too_large(tmp_path: Path) -> None:
    """By a client that knows no limits; its thread is left behind and must not hold up the end."""
    released = threading.Event()

    def write() -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "file").write_bytes(bytes(3_000))
        released.wait(60)

    with pytest.raises(network.UnavailableError, match=r"more than 2\.0 kB"):
        network.run_watched(write, tmp_path, network.Pace(2_000))
    released.set()


@pytest.mark.parametrize("error", [ValueError("of the client"), KeyboardInterrupt()])
def test_a_watched_download_gives_what_its_client_gives(
    error: BaseException, tmp_path: Path
) -> None:
    assert network.run_watched(lambda: "revision", tmp_path, network.Pace(1)) == "revision"

    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        network.run_watched(fail, tmp_path, network.Pace(1))


def test_a_pause_is_a_fault_unless_it_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(network.time, "monotonic", lambda: clock[0])
    pace, patient = network.Pace(10**9), network.Pace(10**9, may_pause=True)
    for seconds, got in ((60.0, 0), (119.0, 10), (121.0, 200_000), (240.0, 300_000)):
        clock[0] = seconds
        pace.check(got)
        patient.check(got)
    clock[0] = 242.0
    with pytest.raises(network.UnavailableError, match=r"^too slow: 100,000 bytes in 121 s$"):
        pace.check(300_000)
    clock[0] = 5 * 3600.0
    patient.check(300_000)
    clock[0] = 7 * 3600.0
    with pytest.raises(network.UnavailableError, match="not done after 6 hours"):
        patient.check(400_000)
