"""Paths of objects in an object store, such as ``s3://``, that serve as the paths of a store do.

An ``ObjectPath`` is a ``pathlib.Path`` as far as the store uses one: names, parents, listing,
reading, removing. What reaches for the file system of this machine by it fails at once. A rename is
a copy and a removal, which a kill may part, and there are no folders but by what lies in them.

Who may read what is settled by the store's own client, from the environment or from files in the
home folder; no credential is read, shown or kept here.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import io
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from pipeline.console import hide_in_url, hide_secrets
from pipeline.errors import ObjectStoreError, SettingsError
from pipeline.store.blocks import BlockCache

if TYPE_CHECKING:
    _MachinePath = Path
else:
    _MachinePath = type(Path())

T = TypeVar("T")

# Scheme of a URL → the extra of this package that brings its client.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
# Schemes whose objects are no place for a store: other machines do not see them, or cannot write.
_REFUSED = {"file", "local", "http", "https", "data", "hf"}
# A store that takes connections and says nothing ends a command after some 75 s on S3: rounds times
# attempts times the wait for one answer, which begins when the request is sent, however slowly.
_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 12.0  # without any part of an answer, or of a request that the store takes
_KEEP_SECONDS = 12.0  # that a connection stays open for the next request, as botocore has it
_ATTEMPTS = 3  # by botocore, which waits between them, and also where a store is busy or at fault
_ROUNDS = 2  # of these, by s3fs, which also asks again for an answer that breaks off in its midst
_UNSENT_BYTES = 1 << 17  # of a request, which the system holds
_READ_BYTES = 8 << 20  # of an object that is read from its beginning to its end, at a time
_REASON_CHARACTERS = 200  # of what a client says of an error
_TIMES = ("LastModified", "mtime", "updated", "created")  # of the facts that clients tell
_NOT_THERE = {"InvalidRange", "416"}  # codes of S3 for bytes behind the end of an object
# Codes of S3 for a condition that does not hold, or for two writes with conditions at once.
_CHANGED = {"PreconditionFailed", "412", "ConditionalRequestConflict"}
# Classes of the errors of a store that does not answer.
_SILENT = {
    "EndpointConnectionError", "ConnectTimeoutError", "ConnectionClosedError", "ReadTimeoutError",
    "ClientConnectorError", "ConnectionError", "TimeoutError",
}  # fmt: skip
# Code or class of an error, anywhere among its causes → what it means, and what to do.
_CAUSES: Mapping[str, tuple[str, str]] = {
    "NoSuchBucket": ("there is no such bucket", "create the bucket, or correct store.url"),
    "NoCredentialsError": (
        "no credentials for it were found",
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give this machine a "
        "role",
    ),
    "DefaultCredentialsError": (
        "no credentials for it were found",
        "set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`",
    ),
    "InvalidAccessKeyId": ("the store does not know the key", "check AWS_ACCESS_KEY_ID"),
    "SignatureDoesNotMatch": (
        "the secret is not that of the key",
        "check AWS_SECRET_ACCESS_KEY",
    ),
    "ExpiredToken": ("the credentials have expired", "get new ones and run the command again"),
    **dict.fromkeys(
        ("AccessDenied", "PermissionError", "Forbidden", "403"),
        (
            "the credentials that were found may not do this",
            "let them list, read, write and remove objects below store.url",
        ),
    ),
    **dict.fromkeys(
        _SILENT,
        (
            "the store does not answer",
            "check the network; the address of a store of your own is AWS_ENDPOINT_URL",
        ),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """What a store says of an object, or of what lies below a prefix.

    :param is_file: whether it is an object.
    :param size: its bytes.
    :param modified: seconds since 1970 of its last change, by the store's clock; 0 if not told.
    :param etag: what changes with its content; empty if not told.
    """

    is_file: bool
    size: int
    modified: float
    etag: str

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Facts:
        """Take them from what a client of fsspec tells."""
        time = next((told[key] for key in _TIMES if told.get(key)), 0.0)
        if isinstance(time, str):
            time = datetime.fromisoformat(time)
        seconds = time.timestamp() if isinstance(time, datetime) else float(time)
        etag = str(told.get("ETag") or told.get("etag") or "")
        return cls(told["type"] == "file", int(told.get("size") or 0), seconds, etag)


class ObjectClient:
    """One bucket of an object store, with the parts of objects that are kept here.

    :param scheme: the scheme of its URL.
    :param bucket: its name.
    :param blocks: the parts of objects that were read before.
    :ivar is_silent: whether the store has not answered the last request.
    """

    def __init__(self, scheme: str, bucket: str, blocks: BlockCache) -> None:
        self.scheme = scheme
        self.url = f"{scheme}://{bucket}"
        self.blocks = blocks
        self.is_silent = False
        self._system: Any = None
        self._opening = threading.Lock()

    @property
    def is_conditional(self) -> bool:
        """Whether the store itself refuses a write whose condition does not hold any more."""
        return self.scheme in {"s3", "s3a"}

    def call(self, path: ObjectPath, name: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of fsspec's file system.

        :param path: the object that it is about, for messages.
        :param name: name of the method.
        :param *arguments: its arguments.
        :param **options: its options.
        :raises FileNotFoundError: if the object is not there.
        :raises FileExistsError: if it is there, where it must not be.
        :raises ObjectStoreError: for whatever else the client or the store says.
        """
        if self._system is None:
            self.check()
        try:
            told = getattr(self._open(), name)(*arguments, **options)
            self.is_silent = False
            return told
        except FileExistsError:
            raise
        except Exception as error:
            names = list_causes(error)
            self.is_silent = bool(_SILENT & names)
            if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in names:
                reason = os.strerror(errno.ENOENT)
                raise FileNotFoundError(errno.ENOENT, reason, str(path)) from error
            if _CHANGED & names:
                raise FileExistsError(errno.EEXIST, "changed meanwhile", str(path)) from error
            raise explain(error, self.url, str(path)) from error

    def check(self) -> None:
        """Make sure that what the scheme needs is installed; nothing is asked of the store yet.

        :raises ObjectStoreError: if it is not, or nobody knows the scheme.
        """
        try:
            from fsspec import get_filesystem_class

            get_filesystem_class(self.scheme)
        except ImportError as error:
            raise explain(error, self.url, self.url) from error
        except ValueError as error:
            raise ObjectStoreError(
                f"store.url: {self.url}: no client for {self.scheme}:// is known",
                hint="give a URL such as s3://bucket/folder or gs://bucket/folder, or install the "
                f"package that brings {self.scheme}:// to fsspec",
            ) from error

    def _open(self) -> Any:
        with self._opening:
            if self._system is None:
                from fsspec.core import url_to_fs

                # A listing of before would hide what other machines have written since.
                options = _LIMITS[self.scheme]() if self.scheme in _LIMITS else {}
                self._system, _ = url_to_fs(f"{self.url}/", use_listings_cache=False, **options)
                self._system.retries = _ROUNDS  # which only s3fs heeds
            return self._system


def _limit_google() -> dict[str, Any]:
    """Options of gcsfs, which asks six times and waits half a minute in between in all."""
    import logging

    from aiohttp import ClientTimeout

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it shows a traceback of each failure
    waits = {"sock_connect": _CONNECT_SECONDS, "sock_read": _ANSWER_SECONDS}
    return {"requests_timeout": ClientTimeout(total=None, **waits)}


def _limit_s3() -> dict[str, Any]:
    """Options of s3fs by which nothing that a store may do or leave undone is waited for for ever.

    The limits are of silence, so that whatever goes on, however slowly, is not cut short.
    """
    from aiobotocore.config import AioConfig
    from aiobotocore.session import AioSession
    from botocore.exceptions import ParamValidationError
    from botocore.handlers import add_expect_header

    session = AioSession()
    # Else a write waits, without any limit, to be told to go on.
    session.unregister("before-call.s3", add_expect_header)
    config: dict[str, Any] = {
        "connect_timeout": _CONNECT_SECONDS,
        "read_timeout": _ANSWER_SECONDS,
        "retries": {"total_max_attempts": _ATTEMPTS, "mode": "standard"},
    }
    connector = {"keepalive_timeout": _KEEP_SECONDS, "socket_factory": _open_socket}
    with contextlib.suppress(ParamValidationError):  # aiobotocore before 3.3 does not take it
        AioConfig(connector_args=connector)
        config["connector_args"] = connector
    return {"session": session, "config_kwargs": config}


_LIMITS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "s3": _limit_s3, "s3a": _limit_s3, "gs": _limit_google, "gcs": _limit_google
}  # fmt: skip


def _open_socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket that fails when the other side takes nothing of what is sent to it.

    What waits in the system to be sent is kept short, so that the wait for an answer does not begin
    while megabytes are still on their way through a slow network.

    :param address: family, type and protocol, as ``getaddrinfo`` gives them, and what follows.
    """
    opened = socket.socket(*address[:3])
    limits = {"TCP_USER_TIMEOUT": int(_ANSWER_SECONDS * 1000), "TCP_NOTSENT_LOWAT": _UNSENT_BYTES}
    for name, limit in limits.items():
        option = getattr(socket, name, None)  # of Linux
        if option is not None:
            opened.setsockopt(socket.IPPROTO_TCP, option, limit)
    return opened


def list_causes(error: BaseException | None) -> set[str]:
    """The names and codes of an error and of all that have caused it."""
    names: set[str] = set()
    while error is not None:
        names |= {kind.__name__ for kind in type(error).__mro__}
        response = getattr(error, "response", None)
        if isinstance(response, Mapping):
            names.add(str(response.get("Error", {}).get("Code")))
        error = error.__cause__ or error.__context__
    return names


def explain(error: Exception, bucket: str, what: str) -> ObjectStoreError:
    """The message of an object store that does not serve.

    :param error: what its client raised.
    :param bucket: the URL of the bucket.
    :param what: the URL of the object.
    """
    if isinstance(error, ImportError):
        scheme = bucket.partition("://")[0]
        extra = _EXTRAS.get(scheme)
        return ObjectStoreError(
            f"{bucket}: the client for {scheme}:// is not installed",
            hint=f"run `pip install 'embedding-pipeline[{extra}]'`" if extra else str(error),
        )
    names = list_causes(error)
    known = next((_CAUSES[name] for name in _CAUSES if name in names), None)
    if known is not None:
        where = bucket if "NoSuchBucket" in names else what
        return ObjectStoreError(f"{where}: {known[0]}", hint=known[1])
    reason = hide_secrets(" ".join(str(error).split()))[:_REASON_CHARACTERS]
    return ObjectStoreError(
        f"{what}: the store does not serve ({type(error).__name__}: {reason})",
        hint="what was finished is there; run the command again",
    )


_CLIENTS: dict[tuple[str, str], ObjectClient] = {}  # scheme and bucket → client


class ObjectPath(_MachinePath):
    """The path of an object, or of all objects below a prefix.

    Paths that a listing gives know what it said of them: whether they are objects, and their size.
    """

    _facts: Facts | None = None

    def __fspath__(self) -> str:
        raise TypeError(f"{self} is no file of this machine")

    def __str__(self) -> str:
        return f"{self.parts[0]}//{'/'.join(self.parts[1:])}"

    @property
    def client(self) -> ObjectClient:
        """The client of the bucket."""
        return _CLIENTS[self.parts[0].rstrip(":"), self.parts[1]]

    @property
    def key(self) -> str:
        """Bucket and key, as fsspec has them."""
        return "/".join(self.parts[1:])

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of fsspec's file system on this object, as ``ObjectClient.call`` does."""
        return self.client.call(self, name, self.key, *arguments, **options)

    def read_facts(self) -> Facts:
        """What the store says of it now.

        :raises FileNotFoundError: if nothing is there.
        """
        return Facts.read(self.call("info"))

    def _get_facts(self) -> Facts | None:
        if self._facts is not None:
            return self._facts
        try:
            return self.read_facts()
        except FileNotFoundError:
            return None

    def exists(self, **_: Any) -> bool:
        return self._get_facts() is not None

    def is_file(self, **_: Any) -> bool:
        facts = self._get_facts()
        return facts is not None and facts.is_file

    def is_dir(self, **_: Any) -> bool:
        facts = self._get_facts()
        return facts is not None and not facts.is_file

    def is_symlink(self) -> bool:
        return False

    def stat(self, **_: Any) -> os.stat_result:
        facts = self._facts or self.read_facts()
        seconds = int(facts.modified)
        return os.stat_result((0, 0, 0, 0, 0, 0, facts.size, seconds, seconds, seconds))

    def lstat(self) -> os.stat_result:
        return self.stat()

    def iterdir(self) -> Iterator[ObjectPath]:  # type: ignore[override]  # not a generator's type
        for told in self.call("ls", detail=True):
            name = str(told["name"]).rstrip("/").rpartition("/")[2]
            child = self / name
            if name and child.key.strip("/") == str(told["name"]).strip("/"):
                child._facts = Facts.read(told)
                yield child

    def glob(self, pattern: str, **_: Any) -> Iterator[ObjectPath]:  # type: ignore[override]
        try:
            yield from (path for path in self.iterdir() if fnmatch.fnmatch(path.name, pattern))
        except FileNotFoundError:
            return

    def read_bytes(self) -> bytes:
        return bytes(self.call("cat_file"))

    def read_range(self, offset: int, size: int) -> bytes:
        """Some bytes; fewer where the object ends before.

        :param offset: the first, from 0.
        :param size: number of bytes.
        """
        if offset < 0 or size <= 0:
            return b""
        try:
            return bytes(self.call("cat_file", start=offset, end=offset + size))
        except ObjectStoreError as error:
            if _NOT_THERE & list_causes(error):
                return b""
            raise

    def open(self, mode: str = "r", *_: Any, **__: Any) -> IO[Any]:  # type: ignore[override]
        if mode != "rb":
            raise ValueError(f"{self}: an object is read as bytes, and written whole")
        return io.BufferedReader(_Reader(self), _READ_BYTES)

    def write_bytes(self, data: Any) -> int:
        """Write an object whole, in one request."""
        self.call("pipe_file", data, **_as_one(self.client, len(data)))
        return len(data)

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self.call("rm_file")
        except FileNotFoundError:
            if not missing_ok:
                raise

    def replace(self, target: Any) -> Any:
        """Copy it within the store, then remove it; what had the name before is overwritten."""
        if not isinstance(target, ObjectPath) or target.client is not self.client:
            raise ValueError(f"{target} is not in the bucket of {self}")
        self.call("cp_file", target.key)
        self.unlink(missing_ok=True)
        return target

    def rename(self, target: Any) -> Any:
        return self.replace(target)

    def mkdir(self, *_: Any, **__: Any) -> None:
        """There are no folders to make."""

    def rmdir(self) -> None:
        """There are no folders to remove."""

    def resolve(self, *_: Any, **__: Any) -> ObjectPath:
        return self

    def absolute(self) -> ObjectPath:
        return self


def _as_one(client: ObjectClient, size: int) -> dict[str, Any]:
    """Options by which an object goes in a single request, as it then is there whole or not."""
    return {"chunksize": max(size, 1)} if client.is_conditional else {}


def create_object(path: ObjectPath, content: bytes) -> str | None:
    """Write an object that must not be there.

    A store that knows no conditions is asked first whether it is, so that another machine may come
    in between.

    :param path: the object.
    :param content: its bytes.
    :returns: its etag; ``None`` if the object is there already, which is left as it is.
    """
    if path.client.is_conditional:
        try:
            told = path.call(
                "pipe_file", content, IfNoneMatch="*", **_as_one(path.client, len(content))
            )
        except FileExistsError:
            return _find_written(path, content)
        return str(told.get("ETag", "")) if isinstance(told, Mapping) else path.read_facts().etag
    if path.exists():
        return None
    path.write_bytes(content)
    return path.read_facts().etag


def replace_object(path: ObjectPath, content: bytes, before: bytes, etag: str) -> str | None:
    """Write an object over another one that must still be the same.

    :param path: the object.
    :param content: its new bytes.
    :param before: the bytes that it has, for stores that know no conditions.
    :param etag: the etag that it has.
    :returns: its new etag; ``None`` if another run has changed or removed it, and nothing is done.
    """
    if path.client.is_conditional:
        try:
            told = path.call(
                "pipe_file", content, IfMatch=etag, **_as_one(path.client, len(content))
            )
        except (FileExistsError, FileNotFoundError):
            return _find_written(path, content)
        return str(told.get("ETag", "")) if isinstance(told, Mapping) else path.read_facts().etag
    with contextlib.suppress(FileNotFoundError):
        if path.read_bytes() == before:
            path.write_bytes(content)
            return path.read_facts().etag
    return None


def _find_written(path: ObjectPath, content: bytes) -> str | None:
    """The etag of an object whose write was refused, if the write has come through all the same.

    A client asks again where an answer is lost, and is then refused for what it has written itself.
    """
    try:
        etag = path.read_facts().etag
        return etag if path.read_bytes() == content else None
    except FileNotFoundError:
        return None


class _Reader(io.RawIOBase):
    """An object as a file that can be read, by ranges."""

    def __init__(self, path: ObjectPath) -> None:
        self._path = path
        self._size = path.stat().st_size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._at)
        content = self._path.read_range(self._at, wanted)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def open_objects(url: str, blocks: BlockCache) -> ObjectPath:
    """The path of what a URL names; nothing is asked of the store yet.

    :param url: the URL of a prefix in a bucket.
    :param blocks: the parts of objects that were read before.
    :raises SettingsError: if it is no such URL.
    """
    check_url(url)
    scheme, _, rest = url.rstrip("/").partition("://")
    bucket, *names = rest.split("/")
    scheme = scheme.lower()
    _CLIENTS[scheme, bucket] = ObjectClient(scheme, bucket, blocks)
    return ObjectPath(f"{scheme}:", bucket, *names)


def check_url(url: str) -> None:
    """Refuse a URL that names no folder in an object store, or holds a secret.

    :param url: as a person wrote it.
    :raises SettingsError: saying what is wrong with it, without what it may keep secret.
    """
    scheme, mark, rest = url.partition("://")
    parts = rest.rstrip("/").split("/")
    if not mark or not scheme or "::" in url or scheme.lower() in _REFUSED:
        raise SettingsError(
            f"store.url: {_hide_secret(url)}: must be the URL of a folder in an object store, such "
            "as s3://bucket/folder",
            hint="for a folder of this machine, or one that it shares, make cache/embeddings a "
            "symbolic link to it",
        )
    if any(sign in rest for sign in "@?#"):
        raise SettingsError(
            f"store.url: {_hide_secret(url)}: must hold no user, password or query",
            hint="give credentials by the environment, as the store's client reads them, and the "
            "address of a store of your own by AWS_ENDPOINT_URL",
        )
    if len(parts) < 2 or not all(parts) or {".", ".."} & set(parts):
        raise SettingsError(
            f"store.url: {url}: must name a folder in a bucket, such as {scheme}://bucket/folder",
            hint="name a folder, which need not be there yet",
        )


def _hide_secret(url: str) -> str:
    """A URL as it may be shown, even if it is written wrong: a secret may hold ``/``, ``?``, ``#``.

    :param url: as a person wrote it.
    """
    scheme, mark, rest = url.partition("://") if "://" in url else ("", "", url)
    _, sign, name = rest.rpartition("@")
    if sign and {"?", "#"} & set(rest):  # which of them ends the secret, nobody can tell
        return f"{scheme}{mark}…"
    shown = f"…@{name}" if sign else name
    return hide_in_url(f"{scheme}{mark}{shown}") if mark else re.split("[?#]", shown)[0]
