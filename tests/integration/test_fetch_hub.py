"""`pipeline fetch` of a backbone from a hub: one that runs on this machine, and ones that are away.

The hub here answers what the client of `huggingface_hub` asks: the revision of a repository, then
each file. Nothing here needs the internet.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest

from pipeline.fetch import catalog
from pipeline.project import user_cache
from tests.conftest import Cli, edit_params
from tests.integration.test_fetch_web import count_calls

REVISION = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "models--acme--tiny"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(self.path.partition("?")[0])
        if path.startswith("http://"):  # as a proxy is asked
            self.server.proxied += 1
            path = "/" + path.removeprefix("http://").partition("/")[2]
        self.server.asked.append(f"{self.command} {path}")
        if path == "/":
            self._send(b"a hub")
        elif path.startswith("/api/"):
            kind, owner, name, *rest = path.removeprefix("/api/").split("/")
            repo = f"{owner}/{name}" if kind == "models" else f"{kind}/{owner}/{name}"
            if rest not in ([], ["revision", "main"], ["revision", REVISION]):
                self._refuse(404, "RevisionNotFound")
            elif repo not in self.server.repos:
                self._refuse(401, "RepoNotFound")
            else:
                files = sorted(self.server.repos[repo])
                siblings = [{"rfilename": file} for file in files]
                answer = {"id": f"{owner}/{name}", "sha": REVISION, "siblings": siblings}
                self._send(json.dumps(answer).encode())
        else:
            repo, _, source = path[1:].partition("/resolve/")
            if repo in self.server.gated:
                self._refuse(403, "GatedRepo")
            else:
                self._send_file(self.server.repos[repo][source.partition("/")[2]])

    def _send_file(self, content: bytes) -> None:
        if self.command == "GET" and len(content) > self.server.breaks_at:
            self._send(content[: self.server.breaks_at], length=len(content))
            self.close_connection = True
        else:
            self._send(content)

    def _send(self, body: bytes, length: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Hub(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.breaks_at = 1 << 60
        self.asked: list[str] = []
        self.proxied = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def tiny_files(tiny_backbone: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in tiny_backbone.iterdir()}


@pytest.fixture
def hub(
    tiny_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Hub]:
    """A hub that has `acme/tiny`, set as the hub of the commands that a test runs."""
    server = Hub()
    extra = {"pytorch_model.bin": b"pickled", "modeling.py": b"code", "onnx/config.json": b"{}"}
    server.repos["acme/tiny"] = tiny_files | extra
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    set_hub(server.url, monkeypatch, tmp_path)
    yield server
    server.shutdown()
    server.server_close()


def set_hub(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setenv("NO_PROXY", "*")
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hub_project(project: Path, private_cache: Path) -> Path:
    """A project that wants `acme/tiny`, all else in local files."""
    (project / "messages.csv").write_text("label,message\nham,hello\nspam,win\n")
    (project / "lexicon.txt").write_text("good\t1.9\t0.1\t[1]\n")
    edit_params(
        {
            "fetch.dataset": "messages.csv",
            "fetch.lexicon": "lexicon.txt",
            "fetch.backbones": ["acme/tiny"],
        }
    )
    return project


def read_record(kind: str = "backbone") -> dict[str, object]:
    record: dict[str, object] = json.loads(Path("cache/assets.json").read_text())[kind]
    return record


def assert_refused(result: subprocess.CompletedProcess[str], *messages: str) -> None:
    assert result.returncode == 1, result.stdout + result.stderr
    assert result.stderr.count("Error: ") == 1
    assert "Traceback" not in result.stdout + result.stderr
    for message in messages:
        assert message in result.stderr
    assert not Path("cache/assets.json").exists()


def assert_nothing_kept(user_cache: Path) -> None:
    assert [file for file in user_cache.rglob("*") if file.is_file()] == []
    assert list(user_cache.rglob(".tmp-*")) == []


def fill_hub_cache(hub: Hub, repo: str, **options: str) -> None:
    """As any other program would that loads the model."""
    call = f"huggingface_hub.hf_hub_download({repo!r}, name, **{options!r})"
    names = sorted(hub.repos[f"datasets/{repo}" if options else repo])
    code = f"import huggingface_hub\nfor name in {names!r}: {call}"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_from_the_hub(
    hub: Hub, hub_project: Path, private_cache: Path, tiny_files: dict[str, bytes], process: Cli
) -> None:
    result = process("fetch")
    assert result.returncode == 0, result.stderr
    assert result.stderr == "", "progress bars belong on a terminal only"
    record = read_record()
    assert record["id"] == "acme/tiny"
    assert record["revision"] == REVISION
    assert record["source"] == f"hub: acme/tiny@{REVISION[:12]}"
    folder = private_cache / str(record["folder"])
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == tiny_files | {
        "asset.json": (folder / "asset.json").read_bytes()
    }
    assert not any(file.is_symlink() for file in folder.iterdir())
    assert not any("pytorch_model" in line or "modeling" in line for line in hub.asked)
    asked = len(hub.asked)
    assert process("fetch").returncode == 0
    assert len(hub.asked) == asked, "a second fetch must not ask again"


def test_a_labelers_model_from_the_hub(
    hub: Hub, hub_project: Path, private_cache: Path, tiny_files: dict[str, bytes], process: Cli
) -> None:
    hub.repos["acme/judge"] = tiny_files | {"pytorch_model.bin": b"pickled"}
    edit_params({"prepare.labels.sentiment": {"labeler": "model", "model": "acme/judge"}})
    result = process("fetch")
    assert result.returncode == 0, result.stderr
    record = read_record("sentiment.model")
    assert (record["id"], record["revision"]) == ("acme/judge", REVISION)
    assert record["folder"] == "models/acme--judge"
    folder = private_cache / str(record["folder"])
    assert {file.name for file in folder.iterdir()} == {*tiny_files, "asset.json"}
    assert read_record()["id"] == "acme/tiny"
    edit_params({"prepare.labels.sentiment.model": "acme/other"})
    result = process("fetch")
    assert result.returncode == 1
    assert result.stderr.startswith("Error: model acme/other cannot be had")


def test_folder_loads_as_a_plain_model(
    hub: Hub, hub_project: Path, private_cache: Path, tiny_backbone: Path, process: Cli
) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    assert process("fetch").returncode == 0
    folder = private_cache / str(read_record()["folder"])
    tokens = AutoTokenizer.from_pretrained(folder)("see you at noon", return_tensors="pt")
    with torch.inference_mode():
        found, expected = (
            AutoModel.from_pretrained(path).eval()(**tokens).last_hidden_state
            for path in (folder, tiny_backbone)
        )
    assert torch.equal(found, expected)


def test_revision_of_the_user(hub: Hub, hub_project: Path, process: Cli) -> None:
    edit_params({"fetch.backbones": [f"acme/tiny@{REVISION}"]})
    assert process("fetch").returncode == 0
    assert f"GET /api/models/acme/tiny/revision/{REVISION}" in hub.asked
    assert read_record()["id"] == f"acme/tiny@{REVISION}"


def test_dataset_from_the_hub(
    hub: Hub, hub_project: Path, private_cache: Path, process: Cli
) -> None:
    content = b"label,message\nham,hi\n"
    hub.repos["datasets/acme/sms"] = {"data/train.csv": content, "data/test.csv": b"x"}
    edit_params({"fetch.dataset": "hf://datasets/acme/sms/data/train.csv"})
    assert process("fetch").returncode == 0
    record = read_record("dataset")
    assert record["files"] == {"data/train.csv": hashlib.sha256(content).hexdigest()}
    assert (private_cache / str(record["folder"]) / "data/train.csv").read_bytes() == content


def test_a_pattern_of_files_from_the_hub(
    hub: Hub, hub_project: Path, private_cache: Path, process: Cli
) -> None:
    files = {f"data/{n}.csv": f"label,message\nham,{n}\n".encode() for n in (2, 1)}
    hub.repos["datasets/acme/sms"] = {**files, "data/sub/3.csv": b"x", "data/4.tsv": b"x"}
    edit_params({"fetch.dataset": "hf://datasets/acme/sms/data/*.csv"})
    assert process("fetch").returncode == 0
    record = read_record("dataset")
    expected = {f"{n}.csv": files[f"data/{n}.csv"] for n in (1, 2)}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in expected.items()}
    assert record["files"] == hashes
    assert record["bytes"] == {name: len(content) for name, content in expected.items()}
    folder = private_cache / str(record["folder"])
    assert {path.name for path in folder.iterdir()} == {"asset.json", *expected}
    hub.repos.clear()
    assert process("fetch").returncode == 0  # what is kept serves


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("hf://datasets/acme/sms/data/none.csv", "acme/sms has no data/none.csv"),
        ("hf://datasets/acme/sms/data/*.tsv", "acme/sms has no data/*.tsv"),
        ("hf://datasets/acme/sms/*.csv", "acme/sms has no *.csv"),
        ("hf://datasets/acme/sms@1.0/data/a.csv", "acme/sms has no revision 1.0"),
        ("hf://datasets/acme/sms/", "must be hf://datasets/OWNER/NAME/FILE"),
        ("hf://acme/sms/a.csv", "must be hf://datasets/OWNER/NAME/FILE"),
    ],
)
def test_dataset_that_the_hub_lacks(
    url: str, message: str, hub: Hub, hub_project: Path, private_cache: Path, process: Cli
) -> None:
    hub.repos["datasets/acme/sms"] = {"data/a.csv": b"x", "data/b.csv": b"x"}
    edit_params({"fetch.dataset": url})
    assert_refused(process("fetch"), message)
    assert_nothing_kept(private_cache)


@pytest.mark.parametrize(
    ("case", "messages"),
    [
        ("pickled", ["hub: backbone acme/tiny: has no weights as safetensors", "never loaded"]),
        ("missing", ["hub: acme/none does not exist there, or is private"]),
        ("revision", ["hub: acme/tiny has no revision v9"]),
        ("gated", ["hub: acme/tiny is gated; log in with `hf auth login`"]),
        ("offline", ["hub: switched off by HF_HUB_OFFLINE"]),
        ("odd name", ["hub: acme/ti ny cannot be the name of a repository"]),
        ("pointer", ["model.safetensors is damaged or no safetensors file"]),
    ],
)
def test_refused(
    case: str,
    messages: list[str],
    hub: Hub,
    hub_project: Path,
    private_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    process: Cli,
) -> None:
    files = hub.repos["acme/tiny"]
    if case == "pickled":
        del files["model.safetensors"]
    elif case == "gated":
        hub.gated.add("acme/tiny")
    elif case == "offline":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    elif case == "pointer":
        files["model.safetensors"] = b"version https://git-lfs.github.com/spec/v1\n"
    names = {"missing": "acme/none", "revision": "acme/tiny@v9", "odd name": "acme/ti ny"}
    edit_params({"fetch.backbones": [names.get(case, "acme/tiny")]})
    sources = [
        "local folder: none of that name",
        "hub cache: not there",
        "package index: not known",
    ]
    assert_refused(process("fetch"), *messages, *sources, "next: ")
    assert_nothing_kept(private_cache)


def test_connection_that_always_breaks(
    hub: Hub, hub_project: Path, private_cache: Path, process: Cli
) -> None:
    """The client asks again for the rest a few times, then gives up."""
    hub.breaks_at = 1_000
    result = process("fetch")
    for file in hub.repos["acme/tiny"]:
        assert sum(line.startswith("GET ") and line.endswith(file) for line in hub.asked) <= 10
    assert_refused(result, "hub: peer closed connection without sending complete message body")
    assert "cannot write" not in result.stderr, "the network is to blame, not the disk"
    assert_nothing_kept(private_cache)


def test_from_the_hub_cache(
    hub: Hub, hub_project: Path, private_cache: Path, tiny_files: dict[str, bytes], process: Cli
) -> None:
    fill_hub_cache(hub, "acme/tiny")
    hub.shutdown()
    hub.server_close()
    result = process("fetch")
    assert result.returncode == 0, result.stderr
    record = read_record()
    assert record["revision"] == REVISION
    folder = private_cache / str(record["folder"])
    for name, content in tiny_files.items():
        assert (folder / name).read_bytes() == content
        assert not (folder / name).is_symlink(), "the hub's cache may be emptied"
    assert not (folder / "pytorch_model.bin").exists()


def test_dataset_from_the_hub_cache(hub: Hub, hub_project: Path, process: Cli) -> None:
    hub.repos["datasets/acme/sms"] = {"a.csv": b"label,message\nham,hi\n"}
    fill_hub_cache(hub, "acme/sms", repo_type="dataset")
    hub.repos.clear()
    edit_params({"fetch.dataset": "hf://datasets/acme/sms/a.csv", "fetch.backbones": ["acme/tiny"]})
    result = process("fetch")
    assert result.returncode == 1, "the backbone is in no source any more"
    assert "dataset" not in result.stderr
    assert "fetched   hf://datasets/acme/sms/a.csv: 1 file" in result.stdout


@pytest.mark.parametrize("damage", ["no blobs", "no weights"])
def test_damaged_hub_cache_leads_to_the_hub(
    damage: str, hub: Hub, hub_project: Path, private_cache: Path, tmp_path: Path, process: Cli
) -> None:
    fill_hub_cache(hub, "acme/tiny")
    folder = tmp_path / "hf-home/hub" / REPOSITORY
    if damage == "no blobs":
        shutil.rmtree(folder / "blobs")
        (folder / "blobs").mkdir()
    else:
        (folder / "snapshots" / REVISION / "model.safetensors").unlink()
    asked = len(hub.asked)
    result = process("fetch")
    assert result.returncode == 0, result.stderr
    assert len(hub.asked) > asked
    assert (private_cache / str(read_record()["folder"]) / "model.safetensors").is_file()


def test_refresh_asks_the_hub_before_its_cache(hub: Hub, hub_project: Path, process: Cli) -> None:
    fill_hub_cache(hub, "acme/tiny")
    asked = len(hub.asked)
    assert process("fetch").returncode == 0
    # Whether the model declares its pooling, the cache of another program does not tell.
    assert not any("/resolve/" in line for line in hub.asked[asked:])
    assert process("fetch", "--refresh").returncode == 0
    assert any("/resolve/" in line for line in hub.asked[asked:])


def test_refresh_without_the_hub_keeps_the_first_choice(
    hub: Hub, hub_project: Path, tiny_backbone: Path, process: Cli
) -> None:
    edit_params({"fetch.backbones": ["acme/tiny", str(tiny_backbone)]})
    assert process("fetch").returncode == 0
    record = read_record()
    hub.shutdown()
    hub.server_close()
    result = process("fetch", "--refresh")
    assert result.returncode == 0, result.stderr
    assert "backbone acme/tiny cannot be fetched again; what is here already stays" in result.stdout
    assert read_record() == record


@pytest.fixture
def hub_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    set_hub(url, monkeypatch, tmp_path)
    return url


@pytest.fixture
def hub_silent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[socket.socket]:
    """A port that takes the call and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        set_hub(name_url(server), monkeypatch, tmp_path)
        yield server


def name_url(server: socket.socket) -> str:
    return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("hub_fixture", ["hub_away", "hub_silent"])
def test_hub_away_second_choice(
    hub_fixture: str,
    hub_project: Path,
    tiny_backbone: Path,
    request: pytest.FixtureRequest,
    process: Cli,
) -> None:
    """Each of two backbones is looked for at the hub, which is probed once."""
    hub = request.getfixturevalue(hub_fixture)
    hub_away = hub if isinstance(hub, str) else name_url(hub)
    edit_params({"fetch.backbones": ["acme/tiny", "acme/small", str(tiny_backbone)]})
    result = process("fetch")
    if isinstance(hub, socket.socket):
        assert count_calls(hub) == 1
    assert result.returncode == 0, result.stderr
    assert f"warning: backbone acme/tiny cannot be had; using {tiny_backbone} instead" in (
        result.stdout
    )
    assert result.stdout.count(f"hub: {hub_away} does not answer") == 2
    assert "pipeline fetch && dvc repro" in result.stdout
    record = read_record()
    assert record["id"] == str(tiny_backbone)
    assert record["wanted"] == "acme/tiny"


def test_hub_away_single_choice(
    hub_away: str, hub_project: Path, private_cache: Path, process: Cli
) -> None:
    assert_refused(
        process("fetch"),
        "backbone acme/tiny cannot be had:",
        "local folder: none of that name",
        "hub cache: not there",
        f"hub: {hub_away} does not answer (",
        "package index: not known there",
        "next: check the network, or give a local path in the settings",
    )
    assert_nothing_kept(private_cache)


@pytest.fixture
def behind_proxy(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The same hub, in an environment whose proxies and certificates the test sets."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    return hub


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:{closed}", "Connection refused"),
        ("all_proxy", "socks5h://me:s3cret@127.0.0.1:{closed}", "Connection refused"),
        ("ALL_PROXY", "socks5://me:s3cret@127.0.0.1:{open}", "socksio"),
        ("all_proxy", "socks://127.0.0.1:{closed}", "its scheme is socks, not http, https, socks5"),
        ("HTTP_PROXY", "nonsense.invalid", ""),
        ("HTTP_PROXY", "http://me:s3cret@127.0.0.1:{closed}", "Connection refused"),
        ("http_proxy", "http://[bad", "invalid ipv6 url"),
        ("HTTP_PROXY", "http://127.0.0.1:99999", "port out of range"),
        ("ALL_PROXY", "http://127.0.0.1:{closed}", "Connection refused"),
        ("ALL_PROXY", "http://", "it names no host"),
        # The client sets up all of them, whichever it needs.
        ("HTTPS_PROXY", "ftp://127.0.0.1:{closed}", "its scheme is ftp"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named(
    variable: str,
    value: str,
    why: str,
    behind_proxy: Hub,
    hub_project: Path,
    tiny_backbone: Path,
    monkeypatch: pytest.MonkeyPatch,
    process: Cli,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    open_port = behind_proxy.url.rpartition(":")[2]
    monkeypatch.setenv(variable, value.format(closed=closed, open=open_port))
    edit_params({"fetch.backbones": ["acme/tiny", str(tiny_backbone)]})
    result = process("fetch")
    assert result.returncode == 0, result.stderr
    assert f"    hub: cannot use the proxy in {variable} (" in result.stdout
    assert why in result.stdout
    assert "s3cret" not in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert read_record()["id"] == str(tiny_backbone)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("NO_PROXY", "127.0.0.1"),
        ("HTTP_PROXY", "http://127.0.0.1:{open}"),
        ("ALL_PROXY", "http://127.0.0.1:{open}"),
        ("HTTP_PROXY", "127.0.0.1:{open}"),
    ],
)
def test_a_proxy_that_can_be_used_is_used(
    variable: str,
    value: str,
    behind_proxy: Hub,
    hub_project: Path,
    monkeypatch: pytest.MonkeyPatch,
    process: Cli,
) -> None:
    """The hub is its own proxy."""
    monkeypatch.setenv(variable, value.format(open=behind_proxy.url.rpartition(":")[2]))
    if variable == "NO_PROXY":
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    result = process("fetch")
    assert result.returncode == 0, result.stderr
    assert read_record()["revision"] == REVISION
    expected = 0 if variable == "NO_PROXY" else len(behind_proxy.asked)
    assert behind_proxy.proxied == expected


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_certificates_that_cannot_be_read_are_named(
    variable: str,
    content: bytes | None,
    behind_proxy: Hub,
    hub_project: Path,
    tmp_path: Path,
    tiny_backbone: Path,
    monkeypatch: pytest.MonkeyPatch,
    process: Cli,
) -> None:
    path = tmp_path / "certificates.pem"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv(variable, str(path))
    edit_params({"fetch.backbones": ["acme/tiny", str(tiny_backbone)]})
    result = process("fetch")
    assert result.returncode == 0, result.stderr
    assert "cannot write" not in result.stdout + result.stderr
    if read_record()["id"] == str(tiny_backbone):  # the client may not care for a folder
        assert f"    hub: the certificates in {variable} cannot be read (" in result.stdout
    else:
        assert variable == "SSL_CERT_DIR"


def test_certificates_of_other_programs_do_not_matter(
    behind_proxy: Hub, hub_project: Path, monkeypatch: pytest.MonkeyPatch, process: Cli
) -> None:
    """Nor are they blamed for what the hub lacks."""
    edit_params({"fetch.backbones": ["acme/none"]})
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(variable, "/no/such.pem")
    assert_refused(process("fetch"), "hub: acme/none does not exist there, or is private")


def test_a_file_name_of_the_hub_leads_nowhere_else(
    hub: Hub, hub_project: Path, private_cache: Path, process: Cli
) -> None:
    hub.repos["acme/tiny"]["model-../../../../evil.safetensors"] = b"x"
    assert process("fetch").returncode == 0
    assert not any("evil" in line for line in hub.asked)


ROWS_SHA256 = hashlib.sha256(
    b'["ham", "see \\"you\\"\\nat noon"]\n["spam", "win, now"]\n'
).hexdigest()


KNOWN_CSV = b'label,message\nham,"see ""you""\nat noon"\nspam,"win, now"\n'
# A dataset whose file on the hub nobody has pinned, but whose rows are known.
KNOWN_ROWS = catalog.HubSource(
    repo="acme/sms",
    revision=None,
    kind="dataset",
    patterns=("sms.csv",),
    reading={"format": "csv", "header": None},
    columns=("label", "message"),
    rows_sha256=ROWS_SHA256,
)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (KNOWN_CSV, None),
        (b'\xef\xbb\xbf"message","label"\r\n"see ""you""\nat noon",ham\r\n"win, now",spam', None),
        (b'label,message\nham,"see ""you""\nat noon"\nham,"win, now"\n', "has other rows than"),
        (b'label,message\nham,"see ""you""\nat noon"\n', "has other rows than the original"),
        (b"label,text\nham,a\n", "is not the table it should be (no column message)"),
        (b"label,message\nham,\xff\n", "is not the table it should be ("),
        (b"", "is not the table it should be (no column label)"),
    ],
)
def test_rows_of_an_unpinned_file_are_held_to_the_original(
    content: bytes, why: str | None, hub: Hub, hub_project: Path, tmp_path: Path
) -> None:
    hub.repos["datasets/acme/sms"] = {"sms.csv": content}
    # In a process of its own, since the hub's client reads its environment when it is imported.
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from pipeline.fetch.catalog import HubSource\n"
        "from pipeline.fetch.run import Fetcher\n"
        "from pipeline.project import Project\n"
        f"source = {KNOWN_ROWS!r}\n"
        "Fetcher(Path(sys.argv[1]), Project()).fetch('corpus', 'dataset', (source,))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "kept")], capture_output=True, text=True
    )
    if why is None:
        assert result.returncode == 0, result.stderr
        assert "checked by the sha256 of its rows" in result.stdout
        (file,) = (tmp_path / "kept").rglob("sms.csv")
        assert file.read_bytes() == content
    else:
        assert f"hub: sms.csv {why}" in result.stderr
        assert not list((tmp_path / "kept").rglob("sms.csv"))


def test_what_is_on_this_machine_comes_before_the_network(
    hub: Hub, hub_project: Path, tmp_path: Path
) -> None:
    """A machine without a network must not wait for a host whose file the hub's cache has."""
    hub.repos["datasets/acme/sms"] = {"sms.csv": KNOWN_CSV}
    fill_hub_cache(hub, "acme/sms", repo_type="dataset")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        script = (
            "import sys\n"
            "from pathlib import Path\n"
            "from pipeline.fetch.catalog import HubSource, UrlSource\n"
            "from pipeline.fetch.run import Fetcher\n"
            "from pipeline.project import Project\n"
            f"sources = UrlSource('{name_url(silent)}/a.zip', 'a.csv'), {KNOWN_ROWS!r}\n"
            "asset = Fetcher(Path(sys.argv[1]), Project()).fetch('corpus', 'dataset', sources)\n"
            "print(asset.source)\n"
        )
        result = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "kept")], capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        assert count_calls(silent) == 0
    assert f"hub: datasets/acme/sms@{REVISION[:12]}" in result.stdout


def test_the_default_dataset_prefers_what_is_pinned(real_assets: Path) -> None:
    """Its file on the hub must have the rows that the notebook's reader finds in the original."""
    sources = catalog.DATASETS["sms-spam-collection"]
    assert sources[0].sha256
    for source in sources:
        assert source.sha256 or (isinstance(source, catalog.HubSource) and source.rows_sha256)
    record = json.loads((real_assets / "cache/assets.json").read_text())["dataset"]
    (name,) = record["files"]
    frame = pd.read_csv(
        user_cache() / record["folder"] / name,
        sep="\t" if name.endswith(".tsv") else ",",
        names=["label", "message"],
        header=None if name.endswith(".tsv") else 0,
        keep_default_na=False,
    )
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in frame.values.tolist()]
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert [s.rows_sha256 for s in sources if isinstance(s, catalog.HubSource)] == [expected]


def test_none_of_several(hub_away: str, hub_project: Path, process: Cli) -> None:
    edit_params({"fetch.backbones": ["acme/tiny", "./no-such-folder"]})
    assert_refused(
        process("fetch"),
        "none of the backbones can be had",
        "backbone acme/tiny cannot be had:",
        "backbone ./no-such-folder: no such folder",
    )


# What a model declares, as bge does.
DECLARED = {
    "modules.json": b'[{"idx": 0, "name": "0", "path": "",'
    b' "type": "sentence_transformers.models.Transformer"}, {"idx": 1, "name": "1",'
    b' "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]',
    "1_Pooling/config.json": b'{"word_embedding_dimension": 32, "pooling_mode_cls_token": true}',
    "sentence_bert_config.json": b'{"max_seq_length": 64}',
    "config_sentence_transformers.json": b'{"prompts": {"query": "query: "}}',
}


def hash_all(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def test_what_a_backbone_declares_is_fetched(
    hub: Hub, hub_project: Path, private_cache: Path, tiny_files: dict[str, bytes], process: Cli
) -> None:
    hub.repos["acme/tiny"] = hub.repos["acme/tiny"] | DECLARED
    assert process("fetch").returncode == 0
    record = read_record()
    assert record["declared"] is True
    assert record["files"] == hash_all(tiny_files | DECLARED)
    folder = private_cache / str(record["folder"])
    assert all((folder / name).read_bytes() == content for name, content in DECLARED.items())
    asked = len(hub.asked)
    assert process("fetch").returncode == 0
    assert len(hub.asked) == asked


def test_what_was_fetched_without_its_declaration_gets_it(
    hub: Hub, hub_project: Path, private_cache: Path, tiny_files: dict[str, bytes], process: Cli
) -> None:
    """Earlier versions did not look for it, and other programs fill the hub's cache without it."""
    assert process("fetch").returncode == 0
    record = read_record()
    assert record["declared"] is False
    path = private_cache / str(record["folder"]) / "asset.json"
    before = {k: v for k, v in json.loads(path.read_text()).items() if k != "declared"}
    path.write_text(json.dumps(before))  # as an earlier version left it
    hub.repos["acme/tiny"] = hub.repos["acme/tiny"] | DECLARED
    asked = len(hub.asked)
    result = process("fetch")
    assert result.returncode == 0, result.stderr
    assert "fetched   acme/tiny: 4 files that it lacked" in result.stdout + result.stderr
    assert not any("safetensors" in line for line in hub.asked[asked:])
    record = read_record()
    assert (record["declared"], record["files"]) == (True, hash_all(tiny_files | DECLARED))

    shutil.rmtree(private_cache)
    hub.repos["acme/tiny"] = dict(tiny_files)
    fill_hub_cache(hub, "acme/tiny")
    hub.repos["acme/tiny"] = tiny_files | DECLARED
    result = process("fetch")
    assert result.returncode == 0, result.stderr
    record = read_record()
    assert str(record["source"]).startswith("hub cache") or record["declared"] is True
    assert record["files"] == hash_all(tiny_files | DECLARED)


def test_a_declaration_that_cannot_be_looked_up_is_said(
    hub: Hub, hub_project: Path, private_cache: Path, process: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert process("fetch").returncode == 0
    path = private_cache / str(read_record()["folder"]) / "asset.json"
    before = {k: v for k, v in json.loads(path.read_text()).items() if k != "declared"}
    path.write_text(json.dumps(before))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = process("fetch")
    assert result.returncode == 0
    said = " ".join(result.stdout.split())
    assert "acme/tiny is here without modules.json" in said
    assert "takes the mean: hub: switched off by HF_HUB_OFFLINE" in said
    assert "declared" not in read_record()
