"""Files of object stores and other file systems that fsspec reads, such as s3:// and gs://.

Who may read what is settled by the stores' own clients, from the environment or from files in the
home folder; no credential is read, shown or kept here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.console import count, hide_in_url, say, show_progress
from pipeline.corpus.file_sets import (
    LISTED_LEVELS,
    choose_files,
    choose_matches,
    has_wildcards,
    split_pattern,
)
from pipeline.errors import DataError
from pipeline.fetch.catalog import MOST_BYTES
from pipeline.fetch.network import Pace, UnavailableError, describe_error, run_watched
from pipeline.fetch.urls import name_file

_BLOCK_BYTES = 1 << 20  # of a file, copied at a time
# Scheme of a URL → the extra of this package that brings its client.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


@dataclass(frozen=True)
class _StoredFile:
    """A file of a store.

    :param path: its path, as the store's client takes it.
    :param size: its bytes; ``None`` if the client does not tell.
    """

    path: str
    size: int | None


def download_stored_files(url: str, content: Path) -> None:
    """Copy the files that a URL stands for: one, those of a folder, or those of a pattern.

    :param url: the URL.
    :param content: an empty folder for the files; their names are relative to the URL's folder.
    :raises UnavailableError: if the URL cannot be read, or has no file of a known format.
    """
    system = _open_system(url)
    pace = Pace(MOST_BYTES)
    files = run_watched(lambda: _list_files(system, url), content, pace)
    total = sum(file.size or 0 for file in files.values())
    Pace(MOST_BYTES).check(total)
    label = f"fetching {count(len(files), 'file')}"
    with show_progress(label, total, "bytes") as advance:

        def copy() -> None:
            for name, file in files.items():
                _copy_file(system, file, content / name, advance)

        run_watched(copy, content, Pace(MOST_BYTES))


def _open_system(url: str) -> Any:
    """The client for a URL, a ``fsspec.AbstractFileSystem``.

    :raises UnavailableError: if there is none, with what to install.
    """
    from fsspec.core import url_to_fs

    scheme = url.partition("://")[0].lower()
    try:
        system, _ = url_to_fs(url)
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        remedy = f"run `pip install 'embedding-pipeline[{extra}]'`" if extra else str(error)
        raise UnavailableError(f"the client for {scheme}:// is not installed; {remedy}") from error
    except Exception as error:
        raise UnavailableError(_describe(error, url)) from error
    system.invalidate_cache()  # a listing of before would hide new files
    return system


def _list_files(system: Any, url: str) -> dict[str, _StoredFile]:
    """The files that a URL stands for: the name of each here → the file."""
    with _explain(url):
        found, folder = _ask_for_files(system, url)
    shown = hide_in_url(url)
    prefix = f"{folder.rstrip('/')}/"
    by_name = {path.removeprefix(prefix): path for path in found}
    try:
        if _is_pattern(url):
            names = choose_matches(shown, by_name).names
        elif folder in found:
            return {name_file(folder): _StoredFile(folder, _get_size(found[folder]))}
        else:
            chosen = choose_files(shown, by_name)
            if beside := chosen.describe_beside():
                say(f"{shown}: {beside}")
            names = chosen.names
    except DataError as error:
        raise UnavailableError(error.message) from error
    files: dict[str, _StoredFile] = {}
    for name in names:
        plain = "/".join(map(name_file, name.split("/")))
        if plain in files:
            raise UnavailableError(f"two of its files would be called {plain} here")
        files[plain] = _StoredFile(by_name[name], _get_size(found[by_name[name]]))
    return files


def _is_pattern(url: str) -> bool:
    # A question mark begins the query of a URL.
    return has_wildcards(url.replace("?", ""))


def _ask_for_files(system: Any, url: str) -> tuple[Mapping[str, Any], str]:
    """What the store tells of the files of a URL, path → facts, and the path that they lie below.

    For a URL of one file, that is the path of the file.
    """
    if _is_pattern(url):
        folder = system._strip_protocol(split_pattern(url)[0])
        found = system.glob(system._strip_protocol(url), detail=True)
    else:
        folder = system._strip_protocol(url)
        facts = system.info(folder)
        if facts["type"] != "directory":
            return {folder: facts}, folder
        found = system.find(folder, maxdepth=LISTED_LEVELS, detail=True)
    return {path: facts for path, facts in found.items() if facts["type"] == "file"}, folder


def _get_size(facts: Mapping[str, Any]) -> int | None:
    size = facts.get("size")
    return size if isinstance(size, int) else None


def _copy_file(
    system: Any, file: _StoredFile, target: Path, advance: Callable[[int], None]
) -> None:
    """Copy one file; an error of this machine's disk goes through unchanged."""
    target.parent.mkdir(parents=True, exist_ok=True)
    got = 0
    with target.open("wb") as copy:
        for block in _iterate_blocks(system, file.path):
            copy.write(block)
            got += len(block)
            advance(len(block))
    if file.size is not None and got != file.size:
        raise UnavailableError(f"{target.name} ended after {got:,} of {file.size:,} bytes")


def _iterate_blocks(system: Any, path: str) -> Iterator[bytes]:
    with _explain(path):
        opened = system.open(path, "rb")
    with contextlib.closing(opened):
        while True:
            with _explain(path):
                block: bytes = opened.read(_BLOCK_BYTES)
            if not block:
                return
            yield block


@contextlib.contextmanager
def _explain(name: str) -> Iterator[None]:
    """Turn whatever a store's client raises into the reason why the store does not serve."""
    try:
        yield
    except Exception as error:
        raise UnavailableError(_describe(error, name)) from error


def _describe(error: Exception, name: str) -> str:
    shown = hide_in_url(name) if "://" in name else name
    if isinstance(error, FileNotFoundError):
        return f"{shown} is not there"
    reason = describe_error(error)
    if isinstance(error, PermissionError):
        return f"{shown} may not be read ({reason})"
    return f"{shown} cannot be read ({reason})"
