"""What a dataset's URL stands for: a source, whose kind its scheme tells."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from pipeline.assets import RECORD
from pipeline.console import hide_in_url
from pipeline.corpus.file_sets import has_wildcards
from pipeline.errors import SettingsError
from pipeline.fetch.catalog import HubSource, StoreSource, UrlSource

_KEY = "fetch.dataset"
_FILE_NAME_BYTES = 200


def parse_url(url: str, *, is_pinned: bool) -> HubSource | UrlSource | StoreSource:
    """The source that a dataset's URL stands for.

    :param url: the URL.
    :param is_pinned: whether the user demands a hash of the file.
    :raises SettingsError: if it is none, or holds a password.
    """
    scheme = url.partition("://")[0].lower()
    if scheme == "hf":
        return _parse_hub_url(url)
    shown = hide_in_url(url)
    try:
        parts = urlsplit(url)
        host, secret = parts.hostname, "@" in parts.netloc
    except ValueError as error:
        raise SettingsError(
            f"{_KEY}: {shown}: not a valid URL ({error})", hint="correct it, or give a path"
        ) from error
    if secret:
        raise SettingsError(
            f"{_KEY}: the URL at {host} holds a user name or password, which a settings file is no "
            "place for",
            hint="download the file yourself and give its path",
        )
    if scheme in {"file", "local"} or "::" in url:
        raise SettingsError(
            f"{_KEY}: {shown}: is a URL of files on this machine, or of one file within another",
            hint="give the path of the file itself",
        )
    if not host or not (scheme in {"http", "https"} or _is_known_store(scheme)):
        raise SettingsError(
            f"{_KEY}: {shown}: only http://, https://, hf://datasets/ and what fsspec knows, such "
            "as s3:// and gs://, can be fetched",
            hint="download the file yourself and give its path",
        )
    if scheme not in {"http", "https"}:
        return StoreSource(url)
    return UrlSource(url=url, file=name_file(unquote(parts.path)), is_pinned=is_pinned)


def _is_known_store(scheme: str) -> bool:
    from fsspec import available_protocols
    from fsspec.registry import registry

    return scheme in available_protocols() or scheme in registry


def _parse_hub_url(url: str) -> HubSource:
    parts = url.removeprefix("hf://").split("/")
    if len(parts) < 4 or parts[0] != "datasets" or not all(parts):
        raise SettingsError(
            f"{_KEY}: {url}: must be hf://datasets/OWNER/NAME/FILE",
            hint="FILE may be a pattern, such as data/*.parquet",
        )
    repo, _, revision = parts[2].partition("@")
    file = "/".join(parts[3:])
    return HubSource(
        repo=f"{parts[1]}/{repo}",
        revision=revision or None,
        kind="dataset",
        patterns=(file,),
        is_set=has_wildcards(file),
    )


def name_file(path: str) -> str:
    """The name for a file from the web: whatever its URL holds, a plain name in its own folder.

    :param path: its path there.
    """
    file = re.sub(r"[\x00-\x1f\\]", "_", path.rpartition("/")[2])
    while len(file.encode()) > _FILE_NAME_BYTES:  # the end is what tells the format
        file = file[1:]
    if file in {"", ".", ".."}:
        return "dataset"
    return f"dataset-{file}" if file == RECORD else file
