"""`pipeline fetch` of a dataset from a web server, and what stays when it goes wrong.

The server runs on this machine; nothing here needs the internet.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.server
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.assets import read_assets
from pipeline.config import load_settings
from pipeline.errors import AssetError, WriteError
from pipeline.fetch import catalog, download, network
from pipeline.fetch import run as fetch
from pipeline.fetch.catalog import UrlSource
from pipeline.project import Project
from tests.conftest import Cli, edit_params
from tests.disk import Disk

CSV = b"label,message\nham,see you at noon\nspam,win a prize\n"
NEWER = b"label,message\nham,see you at one\nspam,win a boat\nham,ok\n"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the test says; keeps quiet on the terminal."""

    server: Site

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.answer(self)

    def send(self, body: bytes, *, length: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        pass


class Site(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer: Callable[[Handler], None] = lambda handler: handler.send(CSV)
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:  # the client went away, as it should
        pass


@pytest.fixture
def site() -> Iterator[Site]:
    server = Site()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def web_project(
    project: Path, private_cache: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A project whose dataset is on the local server, all else in local files."""
    monkeypatch.setenv("NO_PROXY", "*")
    (project / "lexicon.txt").write_text("good\t1.9\t0.1\t[1]\n")
    make_backbone(project / "tiny")
    edit_params(
        {
            "fetch.dataset": f"{site.url}/data/messages.csv",
            "fetch.backbones": ["./tiny"],
        }
    )
    edit_lexicon("lexicon.txt")
    return project


def edit_lexicon(name: str) -> None:
    edit_params({"fetch.lexicon": name})


def make_backbone(folder: Path) -> None:
    """What `fetch` asks of a backbone; the smallest safetensors file holds no tensor."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")


def read_tree(*folders: Path) -> dict[str, bytes]:
    """Every file below the folders, but for the lock and the timings of the last run."""
    return {
        str(file): file.read_bytes()
        for folder in folders
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.parent.name != "timings" and not file.name.startswith(".lock")
    }


def find_scratch(folder: Path) -> list[Path]:
    return list(folder.rglob(".tmp-*"))


def assert_one_message(result: subprocess.CompletedProcess[str], status: int = 1) -> None:
    assert result.returncode == status, result.stdout + result.stderr
    assert result.stderr.count("Error: ") == 1
    assert "Traceback" not in result.stderr + result.stdout


def start_fetch(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", "fetch", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def count_calls(server: socket.socket) -> int:
    """How many connections wait at a port that nobody has answered at."""
    server.settimeout(0)
    calls = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            server.accept()[0].close()
            calls += 1
    return calls


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def break_half_way(handler: Handler) -> None:
    handler.send(NEWER, length=2 * len(NEWER))
    handler.close_connection = True


def break_chunks(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"ff\r\n" + NEWER)


def break_off(handler: Handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def answer_nonsense(handler: Handler) -> None:
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


def redirect_in_circles(handler: Handler) -> None:
    handler.send_response(302)
    handler.send_header("Location", handler.path)
    handler.end_headers()


def redirect_to(target: str) -> Callable[[Handler], None]:
    def redirect(handler: Handler) -> None:
        handler.send_response(302)
        handler.send_header("Location", target)
        handler.end_headers()

    return redirect


def send_status(status: int) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", "5")
        handler.end_headers()
        handler.wfile.write(b"label")

    return answer


def announce_too_much(handler: Handler) -> None:
    handler.send(CSV, length=catalog.MOST_BYTES + 1)


FAILURES = {
    "half": (break_half_way, f"broke after {len(NEWER)} of {2 * len(NEWER)} bytes"),
    "chunks": (break_chunks, "broke after"),
    "off": (break_off, "closed connection without response"),
    "404": (lambda handler: handler.send_error(404), "HTTP 404 Not Found"),
    "500": (lambda handler: handler.send_error(500), "HTTP 500"),
    "nonsense": (answer_nonsense, "SSH-2.0"),
    "circle": (redirect_in_circles, "HTTP 302"),
    "file": (redirect_to("file:///etc/hostname"), "HTTP 302"),
    "ftp": (redirect_to("ftp://127.0.0.1/a.csv"), "where it may not lead"),
    "data": (redirect_to("data:text/csv,a"), "HTTP 302"),
    "password": (
        redirect_to("http://me:s3cret@127.0.0.1/a.csv"),
        "redirects to http://…@127.0.0.1",
    ),
    "part": (send_status(206), "HTTP 206 Partial Content"),
    "accepted": (send_status(202), "HTTP 202 Accepted"),
    "large": (announce_too_much, "has more than 20.0 GB, the most that is taken"),
}


def test_plain_file(web_project: Path, private_cache: Path, site: Site, cli: Cli) -> None:
    result = cli("fetch")
    assert result.returncode == 0, result.stderr
    record = json.loads(Project().assets.read_text())["dataset"]
    assert record["files"] == {"messages.csv": hashlib.sha256(CSV).hexdigest()}
    assert record["source"] == f"{site.url}/data/messages.csv"
    assert (private_cache / record["folder"] / "messages.csv").read_bytes() == CSV
    assert not find_scratch(private_cache)
    assert site.asked == ["/data/messages.csv"]
    assert cli("fetch").returncode == 0
    assert site.asked == ["/data/messages.csv"], "a second fetch must not ask again"


@pytest.mark.parametrize("failure", FAILURES)
def test_failed_download(
    failure: str, web_project: Path, private_cache: Path, site: Site, cli: Cli
) -> None:
    site.answer, why = FAILURES[failure]
    result = cli("fetch")
    assert_one_message(result)
    assert why in result.stderr
    assert "next: " in result.stderr
    assert not Project().assets.exists()
    assert read_tree(private_cache) == {}
    assert not find_scratch(private_cache)


@pytest.mark.parametrize("failure", FAILURES)
def test_failed_refresh_keeps_what_is_there(
    failure: str,
    web_project: Path,
    private_cache: Path,
    site: Site,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = load_settings(Project().settings)
    fetch.run_fetch(Project(), settings)
    before = read_tree(private_cache, Project().cache)
    site.answer, why = FAILURES[failure]
    fetch.run_fetch(Project(), settings, refresh=True)
    out = capsys.readouterr().out
    assert "warning: " in out
    assert "cannot be fetched again; what is here already stays" in out
    assert why in out
    assert read_tree(private_cache, Project().cache) == before
    assert not find_scratch(private_cache)


def test_refresh_takes_the_new_file(
    web_project: Path, private_cache: Path, site: Site, cli: Cli
) -> None:
    assert cli("fetch").returncode == 0
    site.answer = lambda handler: handler.send(NEWER)
    assert cli("fetch", "--refresh").returncode == 0
    record = json.loads(Project().assets.read_text())["dataset"]
    assert record["files"]["messages.csv"] == hashlib.sha256(NEWER).hexdigest()
    assert (private_cache / record["folder"] / "messages.csv").read_bytes() == NEWER


def test_wrong_checksum(web_project: Path, private_cache: Path, site: Site, cli: Cli) -> None:
    edit_params({"fetch.dataset_sha256": hashlib.sha256(CSV).hexdigest()})
    assert cli("fetch").returncode == 0
    before = read_tree(private_cache, Project().cache)
    edit_params({"fetch.dataset_sha256": "0" * 64})
    site.answer = lambda handler: handler.send(NEWER)
    for arguments in (["fetch"], ["fetch", "--refresh"]):
        result = cli(*arguments)
        assert_one_message(result)
        assert hashlib.sha256(NEWER).hexdigest() in result.stderr
        assert f"but fetch.dataset_sha256 is {'0' * 64}" in result.stderr
        assert "correct or remove fetch.dataset_sha256" in result.stderr
        assert read_tree(private_cache, Project().cache) == before
    assert not find_scratch(private_cache)


def test_new_pin_fetches_the_new_file(web_project: Path, site: Site, cli: Cli) -> None:
    assert cli("fetch").returncode == 0
    site.answer = lambda handler: handler.send(NEWER)
    edit_params({"fetch.dataset_sha256": hashlib.sha256(NEWER).hexdigest()})
    assert cli("fetch").returncode == 0
    record = json.loads(Project().assets.read_text())["dataset"]
    assert record["files"]["messages.csv"] == hashlib.sha256(NEWER).hexdigest()


def test_server_that_never_answers(web_project: Path, private_cache: Path, cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        edit_params({"fetch.dataset": f"http://127.0.0.1:{silent.getsockname()[1]}/data.csv"})
        result = cli("fetch")
        assert count_calls(silent) == 1, "it must be asked once, by the brief probe"
    assert_one_message(result)
    assert "does not answer (timed out)" in result.stderr
    assert read_tree(private_cache) == {}


def test_server_that_stalls(
    web_project: Path, private_cache: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def stall(handler: Handler) -> None:
        handler.send(NEWER[:10], length=len(NEWER))
        released.wait(60)

    site.answer = stall
    monkeypatch.setattr(network, "STALL_SECONDS", 0.5)
    # Had it waited for the server to end, it would say "broke after 10 of … bytes".
    with pytest.raises(AssetError, match=r"broke after \d+ bytes \(timed out\)"):
        fetch.run_fetch(Project(), load_settings(Project().settings))
    released.set()
    assert not find_scratch(private_cache)


SECRET = "?token=s3cret&x=a%20b#fr4gment"


@pytest.mark.parametrize("outcome", ["fetched", "refused", "wrong", "invalid", "other scheme"])
def test_what_a_url_keeps_secret_is_asked_for_and_kept_nowhere(
    outcome: str, web_project: Path, private_cache: Path, site: Site, process: Cli
) -> None:
    url = site.url + "/data/messages.csv" + SECRET
    if outcome == "refused":
        site.answer = lambda handler: handler.send_error(403)
    elif outcome == "wrong":
        edit_params({"fetch.dataset_sha256": "0" * 64})
    elif outcome == "invalid":
        url = "http://[::1/a.csv" + SECRET
    elif outcome == "other scheme":
        url = "s3://bucket/a.csv" + SECRET
    edit_params({"fetch.dataset": url})
    result = process("fetch")
    if outcome == "fetched":
        assert result.returncode == 0, result.stderr
        assert site.asked == ["/data/messages.csv?token=s3cret&x=a%20b"]
        record = json.loads(Project().assets.read_text())["dataset"]
        assert record["id"] == record["source"] == site.url + "/data/messages.csv?…#…"
        assert (private_cache / record["folder"] / "messages.csv").read_bytes() == CSV
        assert process("fetch").returncode == 0
        assert len(site.asked) == 1, "a second fetch must not ask again"
    else:
        assert_one_message(result)
    written = {
        str(file): file.read_bytes()
        for folder in (Project().cache, private_cache)
        for file in folder.rglob("*")
        if file.is_file()
    }
    for text in (result.stdout, result.stderr, *written, *(str(c) for c in written.values())):
        assert "s3cret" not in text
        assert "fr4gment" not in text


def test_urls_that_differ_in_the_query_are_two_assets(web_project: Path, site: Site) -> None:
    site.answer = lambda handler: handler.send(handler.path.encode())
    for query in ("?v=1", "?v=2", "", "?v=1"):
        edit_params({"fetch.dataset": site.url + "/a.csv" + query})
        fetch.run_fetch(Project(), load_settings(Project().settings))
        asset = read_assets(Project().assets)["dataset"]
        assert (asset.locate(Project()) / "a.csv").read_text() == "/a.csv" + query
    assert site.asked == ["/a.csv?v=1", "/a.csv?v=2", "/a.csv"]


def test_what_an_older_version_kept_is_taken_and_loses_its_secret(
    web_project: Path, private_cache: Path, site: Site
) -> None:
    url = site.url + "/a.csv?token=s3cret"
    slug = url.replace("://", "--").replace("/", "--")
    old = private_cache / "datasets" / slug
    old.mkdir(parents=True)
    (old / "a.csv").write_bytes(CSV)
    files = {"a.csv": hashlib.sha256(CSV).hexdigest()}
    record = {"id": url, "source": url, "folder": f"datasets/{slug}", "files": files}
    (old / "asset.json").write_text(json.dumps(record))
    edit_params({"fetch.dataset": url})
    fetch.run_fetch(Project(), load_settings(Project().settings))
    assert site.asked == []
    asset = read_assets(Project().assets)["dataset"]
    assert (asset.locate(Project()) / "a.csv").read_bytes() == CSV
    kept = [str(path) for path in private_cache.rglob("*")]
    kept += [path.read_text() for path in private_cache.rglob("asset.json")]
    assert not any("s3cret" in text for text in (*kept, Project().assets.read_text()))


def test_a_redirect_within_the_scheme_is_followed(web_project: Path, site: Site) -> None:
    def answer(handler: Handler) -> None:
        if handler.path == "/moved.csv?signature=s3cret":
            handler.send(CSV)
        else:
            redirect_to("/moved.csv?signature=s3cret")(handler)

    site.answer = answer
    fetch.run_fetch(Project(), load_settings(Project().settings))
    asset = read_assets(Project().assets)["dataset"]
    assert (asset.locate(Project()) / "messages.csv").read_bytes() == CSV
    assert "s3cret" not in Project().assets.read_text()


@pytest.mark.parametrize(("target", "is_followed"), [("https", True), ("http", False)])
def test_a_redirect_may_add_encryption_but_not_drop_it(target: str, is_followed: bool) -> None:
    """urllib decides by what the handler makes of a redirect: no server with a certificate here."""
    source = "https" if target == "http" else "http"
    handler = network._SafeRedirects()
    request = urllib.request.Request(f"{source}://host/a.csv")
    arguments = (request, None, 302, "Found", {}, f"{target}://other/b.csv?token=s3cret")
    if is_followed:
        followed = handler.redirect_request(*arguments)
        assert followed is not None
        assert followed.full_url == "https://other/b.csv?token=s3cret"
    else:
        with pytest.raises(network.UnavailableError, match=r"http://other/b\.csv") as caught:
            handler.redirect_request(*arguments)
        assert "s3cret" not in str(caught.value)


def send_for_ever(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"x" * 100_000)


@pytest.mark.parametrize("limit", ["size", "pace", "time"])
def test_a_server_that_never_ends(
    limit: str,
    web_project: Path,
    private_cache: Path,
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if limit == "size":
        source = UrlSource(f"{site.url}/a.csv", "a.csv", most_bytes=1_000_000)
        monkeypatch.setattr(catalog, "DATASETS", {"corpus": (source,)})
        edit_params({"fetch.dataset": "corpus"})
        site.answer, why = send_for_ever, "has more than 1.0 MB, the most that is taken"
    elif limit == "pace":
        monkeypatch.setattr(network, "_SLOW_SECONDS", 0.2)
        monkeypatch.setattr(network, "_SLOW_BYTES", 1 << 30)
        site.answer, why = drip, "too slow: "
    else:
        monkeypatch.setattr(network, "_MOST_SECONDS", 0.2)
        site.answer, why = drip, "not done after "
    with pytest.raises(AssetError, match=why):
        fetch.run_fetch(Project(), load_settings(Project().settings))
    assert not Project().assets.exists()
    assert read_tree(private_cache) == {}
    assert not find_scratch(private_cache)


@pytest.mark.parametrize("pinned", [False, True])
def test_a_body_of_unknown_length_is_taken_with_a_warning_or_a_hash(
    pinned: bool, web_project: Path, site: Site, cli: Cli
) -> None:
    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(CSV)

    site.answer = answer
    if pinned:
        edit_params({"fetch.dataset_sha256": hashlib.sha256(CSV).hexdigest()})
    result = cli("fetch")
    assert result.returncode == 0, result.stderr
    assert ("did not say how long messages.csv is" in result.stdout) == (not pinned)
    assert ("checked by sha256" in result.stdout) == pinned


@pytest.mark.parametrize("kind", ["bomb", "large", "harmless"])
def test_a_member_that_would_fill_the_disk_is_not_unpacked(
    kind: str,
    web_project: Path,
    private_cache: Path,
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    body = bytes(3_000_000)  # which zip packs a thousand times smaller
    with zipfile.ZipFile(tmp_path / "archive.zip", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("corpus", body)
    packed = (tmp_path / "archive.zip").read_bytes()
    site.answer = lambda handler: handler.send(packed)
    sha256 = {"corpus.csv": hashlib.sha256(body).hexdigest()}
    most = 2_000_000 if kind == "large" else 10_000_000
    source = UrlSource(f"{site.url}/a.zip", "corpus.csv", "corpus", sha256, most_bytes=most)
    if kind == "bomb":
        monkeypatch.setattr(download, "_HARMLESS_BYTES", 1_000_000)
    monkeypatch.setattr(catalog, "DATASETS", {"corpus": (source,)})
    edit_params({"fetch.dataset": "corpus"})
    settings = load_settings(Project().settings)
    if kind == "harmless":
        fetch.run_fetch(Project(), settings)
        assert read_assets(Project().assets)["dataset"].files == sha256
        return
    monkeypatch.setattr(zipfile.ZipFile, "open", pytest.fail)
    with pytest.raises(AssetError, match=r"corpus has 3,000,000 bytes, packed into .*not unpacked"):
        fetch.run_fetch(Project(), settings)
    assert read_tree(private_cache) == {}


@pytest.mark.parametrize("content", ["good", "other member", "damaged", "no zip"])
def test_zip_member(
    content: str,
    web_project: Path,
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    body = CSV * 50
    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("readme" if content == "other member" else "inner/corpus", body)
    packed = archive.read_bytes()
    if content == "damaged":  # the first bytes of the compressed data
        start = packed.index(b"inner/corpus") + len(b"inner/corpus")
        packed = packed[:start] + b"\xff\xff\xff\xff" + packed[start + 4 :]
    if content == "no zip":
        packed = b"<html>please log in</html>"
    site.answer = lambda handler: handler.send(packed)
    source = UrlSource(
        url=f"{site.url}/archive.zip",
        file="corpus.csv",
        member="inner/corpus",
        sha256={"corpus.csv": hashlib.sha256(body).hexdigest()},
        reading={"format": "csv", "header": None},
    )
    monkeypatch.setattr(catalog, "DATASETS", {"corpus": (source,)})
    edit_params({"fetch.dataset": "corpus"})
    settings = load_settings(Project().settings)
    if content == "good":
        fetch.run_fetch(Project(), settings)
        asset = read_assets(Project().assets)["dataset"]
        assert (asset.locate(Project()) / "corpus.csv").read_bytes() == body
        assert asset.extra["format"] == "csv"
    else:
        with pytest.raises(AssetError, match=r"no item named|not the zip file it should be"):
            fetch.run_fetch(Project(), settings)
        assert not Project().assets.exists()


@pytest.mark.parametrize(
    ("path", "file"),
    [
        ("/a/data%20set.csv?version=2&x=%C3%A9#top", "data set.csv"),
        ("/a/übung 1.csv?q=ä b", "übung 1.csv"),
        ("/", "dataset"),
        ("/a/..%2f..%2fescape.csv", "escape.csv"),
        ("/a/%2e%2e", "dataset"),
        ("/asset.json", "dataset-asset.json"),
        ("/" + 300 * "x" + ".csv", 196 * "x" + ".csv"),
    ],
)
def test_odd_urls(path: str, file: str, web_project: Path, private_cache: Path, site: Site) -> None:
    edit_params({"fetch.dataset": site.url + path})
    fetch.run_fetch(Project(), load_settings(Project().settings))
    asset = read_assets(Project().assets)["dataset"]
    assert list(asset.files) == [file]
    assert (asset.locate(Project()) / file).read_bytes() == CSV
    assert asset.locate(Project()).is_relative_to(private_cache / "datasets")
    fetch.run_fetch(Project(), load_settings(Project().settings))
    assert len(site.asked) == 1, "what odd names hold must be found again"


def test_urls_that_share_a_folder_are_told_apart(web_project: Path, site: Site) -> None:
    site.answer = lambda handler: handler.send(handler.path.encode())
    for path in ("/a/b.csv", "/a--b.csv", "/a/b.csv"):
        edit_params({"fetch.dataset": site.url + path})
        fetch.run_fetch(Project(), load_settings(Project().settings))
        asset = read_assets(Project().assets)["dataset"]
        (name,) = asset.files
        assert (asset.locate(Project()) / name).read_bytes() == path.encode()


@pytest.mark.parametrize("damage", ["byte", "cut", "gone", "record", "no files", "list", "other"])
def test_damaged_copy_is_fetched_again(
    damage: str,
    web_project: Path,
    private_cache: Path,
    site: Site,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = load_settings(Project().settings)
    fetch.run_fetch(Project(), settings)
    before = read_tree(private_cache, Project().cache)
    (file,) = private_cache.rglob("messages.csv")
    record = file.with_name("asset.json")
    content = json.loads(record.read_text())
    if damage == "byte":
        file.write_bytes(CSV.replace(b"noon", b"moon"))
    elif damage == "cut":
        file.write_bytes(CSV[:10])
    elif damage == "gone":
        file.unlink()
    elif damage == "record":
        record.write_text(record.read_text()[:20])
    elif damage == "no files":
        record.write_text(json.dumps(content | {"files": {}}))
    elif damage == "list":
        record.write_text(json.dumps(content | {"files": ["messages.csv"]}))
    else:
        record.write_text(json.dumps(content | {"folder": "datasets/another"}))
    fetch.run_fetch(Project(), settings)
    assert "is damaged; fetching" in capsys.readouterr().out
    assert read_tree(private_cache, Project().cache) == before
    assert len(site.asked) == 2


def test_two_at_once(web_project: Path, private_cache: Path, site: Site, tmp_path: Path) -> None:
    """Two projects fetch the same into the same cache folder, and rename at the same moment."""
    second = tmp_path / "second"
    second.mkdir()
    for name in ("params.yaml", "lexicon.txt"):
        (second / name).write_bytes((web_project / name).read_bytes())
    make_backbone(second / "tiny")
    for arguments in ((), ("--refresh",)):
        together = threading.Barrier(2)

        def answer(handler: Handler, together: threading.Barrier = together) -> None:
            together.wait(60)
            handler.send(CSV)

        site.answer = answer
        runs = [start_fetch(folder, *arguments) for folder in (web_project, second)]
        for run in runs:
            out, err = run.communicate(timeout=60)
            assert run.returncode == 0, out + err
        assert Project(web_project).assets.read_bytes() == Project(second).assets.read_bytes()
        (file,) = private_cache.rglob("messages.csv")
        assert file.read_bytes() == CSV
        assert not find_scratch(private_cache)


def test_second_fetch_in_the_same_project_stops(web_project: Path, site: Site, cli: Cli) -> None:
    released = threading.Event()

    def answer(handler: Handler) -> None:
        released.wait(60)
        handler.send(CSV)

    site.answer = answer
    first = start_fetch(web_project)
    wait_until(lambda: site.asked)
    result = cli("fetch")
    released.set()
    out, err = first.communicate(timeout=60)
    assert first.returncode == 0, out + err
    assert_one_message(result)
    assert f"another run (process {first.pid}) is writing cache/" in result.stderr


def drip(handler: Handler) -> None:
    """Never ends: a byte now and then."""
    handler.send(b"label,message\n", length=1 << 30)
    while True:
        handler.wfile.write(b"x" * 4096)
        handler.wfile.flush()
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_download(
    number: int, status: int, web_project: Path, private_cache: Path, site: Site, cli: Cli
) -> None:
    assert cli("fetch").returncode == 0
    before = read_tree(private_cache, Project().cache)
    site.answer = drip
    run = start_fetch(web_project, "--refresh")
    wait_until(lambda: any(file.name == "download" for file in private_cache.rglob("*")))
    run.send_signal(number)
    out, err = run.communicate(timeout=60)
    assert run.returncode == status, out + err
    assert "interrupted; nothing is half-written" in err
    assert "Traceback" not in out + err
    assert read_tree(private_cache, Project().cache) == before
    assert not find_scratch(private_cache)


def test_killed_download(web_project: Path, private_cache: Path, site: Site, cli: Cli) -> None:
    site.answer = drip
    run = start_fetch(web_project)
    wait_until(lambda: any(file.name == "download" for file in private_cache.rglob("*")))
    run.kill()
    run.communicate(timeout=60)
    assert not Project().assets.exists()
    assert not (private_cache / "datasets").exists(), "nothing may stand under a final name"
    (left,) = find_scratch(private_cache)
    old = time.time() - 2 * 24 * 3600
    for entry in (left, *left.rglob("*")):
        os.utime(entry, (old, old))
    young = private_cache / ".tmp-young"  # a run that lives: its folder is old, its file is not
    young.mkdir()
    (young / "download").write_bytes(b"half")
    os.utime(young, (old, old))
    site.answer = lambda handler: handler.send(CSV)
    result = cli("fetch")
    assert result.returncode == 0, result.stderr
    assert find_scratch(private_cache) == [young]
    assert (young / "download").read_bytes() == b"half"


def test_full_disk(web_project: Path, private_cache: Path, site: Site, process: Cli) -> None:
    """A file-size limit is a full disk that root meets too."""
    assert process("fetch").returncode == 0
    before = read_tree(private_cache, Project().cache)
    site.answer = lambda handler: handler.send(NEWER * 10_000)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    result = process("fetch", "--refresh", preexec_fn=limit)
    assert_one_message(result)
    assert f"cannot write {private_cache}" in result.stderr
    assert "File too large; nothing that was there before has changed" in result.stderr
    assert read_tree(private_cache, Project().cache) == before
    assert not find_scratch(private_cache)


@pytest.mark.parametrize("reason", ["ENOSPC", "EROFS"])
def test_disk_that_fails_at_any_write(
    reason: str, web_project: Path, private_cache: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(Project().settings)
    fetch.run_fetch(Project(), settings)
    disk = Disk(monkeypatch, private_cache, web_project / "cache")
    disk.errno = getattr(errno, reason)
    failures = 0
    for number in range(1, 100):
        record = Project().assets.read_bytes()
        (file,) = private_cache.glob("datasets/*/messages.csv")
        old, new = file.read_bytes(), CSV + f"ham,{number}\n".encode()
        site.answer = lambda handler, body=new: handler.send(body)  # type: ignore[misc]
        disk.calls, disk.fails_at = 0, number
        failure = None
        try:
            fetch.run_fetch(Project(), settings, refresh=True)
        except WriteError as error:
            failure = error
        if failure is not None:
            failures += 1
            assert os.strerror(disk.errno) in failure.message
            assert failure.hint
            assert Project().assets.read_bytes() == record
            assert file.read_bytes() in (old, new)  # new if the disk failed after it had its name
        else:
            assert json.loads(Project().assets.read_text())["dataset"]["files"] == {
                "messages.csv": hashlib.sha256(new).hexdigest()
            }
        assert not find_scratch(private_cache)
        if disk.calls < number:
            break
    assert failures >= 8, "the disk was not asked for what this test thinks"
    assert disk.calls < number, "there was no end of writing"


def test_user_cache_that_cannot_be(
    web_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    occupied = tmp_path / "occupied"
    occupied.write_text("a file")
    monkeypatch.setenv("PIPELINE_CACHE_DIR", str(occupied))
    result = cli("fetch")
    assert_one_message(result)
    assert f"cannot write {occupied}" in result.stderr
    assert occupied.read_text() == "a file"
