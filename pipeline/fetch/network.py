"""How hosts are reached: through which proxy, with which certificates, how long, how much.

What keeps a host from serving becomes an ``UnavailableError`` that names what to mend: the
environment variable, if one is to blame.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

from pipeline.console import format_bytes, hide_secrets

_TIMEOUT_SECONDS = 4.0
STALL_SECONDS = 20.0
# No file that this project is made for is as large as this, or takes as long; a server that sends
# for ever would fill the disk.
_MOST_SECONDS = 6 * 3600.0
_SLOW_SECONDS = 120.0
_SLOW_BYTES = 120_000  # in that time: a kilobyte a second
_POLL_SECONDS = 0.2
_HTTP_PROXIES = {"http", "https"}
_SOCKS_PROXIES = {"socks4", "socks4a", "socks5", "socks5h"}
_Result = TypeVar("_Result")


class UnavailableError(Exception):
    """A source does not have the asset; the message says why, and the next source is tried.

    :param message: the reason; what URLs in it keep secret is left out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(hide_secrets(message))


class NoFilesError(UnavailableError):
    """A source answers, and has none of the files that were asked for."""


@dataclass(frozen=True)
class Proxy:
    """A proxy that the environment asks for.

    :param variable: the environment variable.
    :param url: its URL; ``http://`` is added where the variable has no scheme.
    """

    variable: str
    url: str

    @property
    def scheme(self) -> str:
        """The scheme of its URL, which says how to talk to it."""
        return self.url.partition("://")[0].lower()

    def find_fault(self) -> str | None:
        """What makes its URL useless, or ``None``; no network is asked."""
        try:
            parts = urlsplit(self.url)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            return str(error).partition(": ")[0].lower()
        if self.scheme not in _HTTP_PROXIES | _SOCKS_PROXIES:
            return f"its scheme is {self.scheme}, not http, https, socks5 or socks5h"
        return None if host else "it names no host"

    def explain(self, reason: str) -> str:
        """Why a host is out of reach, in words that name the variable.

        :param reason: what is wrong with the proxy.
        """
        return f"cannot use the proxy in {self.variable} ({reason})"


def list_proxies(*schemes: str) -> Iterator[Proxy]:
    """The proxies that the environment names, those of a scheme before that of all.

    :param *schemes: schemes of the URLs that are to be reached: ``http``, ``https``.
    """
    for scheme in (*schemes, "all"):
        for variable in (f"{scheme}_proxy", f"{scheme.upper()}_PROXY"):
            if value := os.environ.get(variable, "").strip():
                yield Proxy(variable, value if "://" in value else f"http://{value}")


def find_proxy(url: str) -> Proxy | None:
    """The proxy that a URL is asked through, or ``None``.

    :param url: the URL.
    """
    parts = urlsplit(url)
    if urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    return next(list_proxies(parts.scheme), None)


def find_bad_proxy() -> Proxy | None:
    """The first proxy of the environment that no client can use, or which needs SOCKS."""
    proxies = list(list_proxies("https", "http"))
    faulty = [proxy for proxy in proxies if proxy.find_fault()]
    socks = [proxy for proxy in proxies if proxy.scheme in _SOCKS_PROXIES]
    return next(iter(faulty + socks), None)


def find_bad_certificates() -> str | None:
    """Which environment variable names certificates that cannot be read, or ``None``."""
    for variable in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        name = os.environ.get(variable)
        if not name or (variable != "SSL_CERT_FILE" and Path(name).is_dir()):
            continue
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(name)
        except ssl.SSLError:
            return f"the certificates in {variable} cannot be read ({name} holds none)"
        except OSError as error:
            return f"the certificates in {variable} cannot be read ({name}: {error.strerror})"
    folders = os.environ.get("SSL_CERT_DIR", "")
    if folders and not any(Path(folder).is_dir() for folder in folders.split(os.pathsep)):
        return f"the certificates in SSL_CERT_DIR cannot be read ({folders}: no such folder)"
    return None


def describe_error(error: BaseException) -> str:
    """An error of the system or the network in a few words.

    :param error: what was raised.
    """
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}".strip()
    reason = getattr(error, "reason", None) or error
    text = str(getattr(reason, "strerror", None) or reason).strip()
    return text.splitlines()[0] if text else type(reason).__name__


def find_obstacle(url: str) -> str | None:
    """Why a host cannot be reached, or ``None`` if it answers, whatever it says.

    Its clients would retry for half a minute, so it is asked once, briefly. It is asked in a thread
    of its own, because looking up a name has no time-out.

    :param url: a URL of the host.
    """
    parts = urlsplit(url)
    origin = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    proxy = find_proxy(origin)
    if proxy is not None and (fault := proxy.find_fault()):
        return proxy.explain(fault)
    errors: list[BaseException | None] = []

    def ask() -> None:
        try:
            if proxy is not None and proxy.scheme in _SOCKS_PROXIES:
                _connect(proxy.url)
            else:
                request = urllib.request.Request(origin, method="HEAD")
                opener = urllib.request.build_opener(_handle_proxies(), _NoRedirects)
                opener.open(request, timeout=_TIMEOUT_SECONDS).close()
            errors.append(None)
        except urllib.error.HTTPError:
            errors.append(None)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_TIMEOUT_SECONDS + 1)
    error = errors[0] if errors else TimeoutError(f"no answer within {_TIMEOUT_SECONDS:.0f} s")
    if error is None:
        return None
    if _is_of_certificates(error) and (blame := find_bad_certificates()):
        return blame
    reason = describe_error(error)
    return proxy.explain(reason) if proxy else f"{origin} does not answer ({reason})"


def _connect(url: str) -> None:
    """Make sure that somebody listens where a SOCKS proxy should."""
    parts = urlsplit(url)
    socket.create_connection((parts.hostname, parts.port or 1080), _TIMEOUT_SECONDS).close()


def explain_client_error(chain: list[BaseException], reason: str) -> str | None:
    """Which variable of the environment is to blame for an error of an HTTP client, or ``None``.

    :param chain: the error and its causes.
    :param reason: the error in a few words.
    """
    if any(_is_of_certificates(link) for link in chain) and (blame := find_bad_certificates()):
        return blame
    # The hub's client guesses at proxies in its own messages, so these say nothing.
    own = [link for link in chain if not type(link).__module__.startswith("huggingface_hub")]
    said = " ".join(f"{type(link).__name__} {link}" for link in own).lower()
    bad = find_bad_proxy()
    if bad is not None and any(word in said for word in ("proxy", "socks", "invalidurl")):
        return bad.explain(bad.find_fault() or reason)
    proxy = next(list_proxies("https", "http"), None)
    return proxy.explain(reason) if proxy is not None and "proxyerror" in said else None


def _is_of_certificates(error: BaseException) -> bool:
    """Whether an error may come from certificates: of TLS, or of a file that cannot be read."""
    # The hub's client has subclasses of FileNotFoundError for what the hub lacks.
    if type(error) in {FileNotFoundError, IsADirectoryError, PermissionError}:
        return True
    if isinstance(error, ssl.SSLError) or isinstance(getattr(error, "reason", None), ssl.SSLError):
        return True
    return "certificate" in str(error).lower()


def _handle_proxies() -> urllib.request.BaseHandler:
    """Urllib's own handling of proxies, which does not know of ``ALL_PROXY``."""
    urls = {}
    for scheme in ("http", "https"):
        proxy = next(list_proxies(scheme), None)
        if proxy is not None and proxy.scheme in _HTTP_PROXIES:
            urls[scheme] = proxy.url
    return urllib.request.ProxyHandler(urls or None)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Takes a redirect for an answer."""

    def redirect_request(self, *_: Any) -> None:
        return None


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to the same scheme, and from ``http`` to ``https``, to no other."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        new = urlsplit(newurl)
        if new.scheme not in {urlsplit(req.full_url).scheme, "https"} or "@" in new.netloc:
            raise UnavailableError(f"redirects to {newurl}, where it may not lead")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def open_url(url: str) -> http.client.HTTPResponse:
    """Ask for a file on the web.

    :param url: the file's URL; what has to be quoted in it is.
    :returns: the answer, whose status is 200.
    :raises UnavailableError: if there is none, or another one.
    """
    proxy = find_proxy(url)
    if proxy is not None and (fault := proxy.find_fault()):
        raise UnavailableError(proxy.explain(fault))
    if proxy is not None and proxy.scheme in _SOCKS_PROXIES:
        raise UnavailableError(proxy.explain("files of the web need an http:// proxy"))
    parts = urlsplit(url)
    safe = "/%:@!$&'()*+,;=~?[]"  # what is quoted already stays so
    plain = parts._replace(
        path=quote(parts.path, safe), query=quote(parts.query, safe), fragment=""
    )
    request = urllib.request.Request(
        urlunsplit(plain), headers={"User-Agent": "embedding-pipeline"}
    )
    opener = urllib.request.build_opener(_handle_proxies(), _SafeRedirects)
    try:
        answer: http.client.HTTPResponse = opener.open(request, timeout=STALL_SECONDS)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if _is_of_certificates(error) and (blame := find_bad_certificates()):
            raise UnavailableError(blame) from error
        raise UnavailableError(describe_error(error)) from error
    if answer.status != 200:  # such as 206, a part of the file that was not asked for
        answer.close()
        raise UnavailableError(f"HTTP {answer.status} {answer.reason}".strip())
    return answer


class Pace:
    """Ends a download that is too large, too slow or too long.

    :param most_bytes: the largest size that the download may have.
    :param may_pause: whether no bytes for some minutes are no sign of a dead connection.
    """

    def __init__(self, most_bytes: int, *, may_pause: bool = False) -> None:
        self._most_bytes = most_bytes
        self._may_pause = may_pause
        self._started = self._since = time.monotonic()
        self._got_then = 0

    def check(self, got: int) -> None:
        """Take note of how far the download is.

        :param got: the bytes so far.
        :raises UnavailableError: if it must end.
        """
        if got > self._most_bytes:
            raise UnavailableError(
                f"has more than {format_bytes(self._most_bytes)}, the most that is taken"
            )
        now = time.monotonic()
        if now - self._started > _MOST_SECONDS:
            raise UnavailableError(f"not done after {_MOST_SECONDS / 3600:g} hours")
        if self._may_pause or now - self._since < _SLOW_SECONDS:
            return
        if got - self._got_then < _SLOW_BYTES:
            raise UnavailableError(
                f"too slow: {got - self._got_then:,} bytes in {now - self._since:.0f} s"
            )
        self._since, self._got_then = now, got


def run_watched(call: Callable[[], _Result], folder: Path, pace: Pace) -> _Result:
    """Run a download by a client that knows no limits, and watch what it writes.

    A download that has to end goes on in its thread until it notices that the folder has gone, or
    until this process ends.

    :param call: the download.
    :param folder: the folder that it writes to.
    :param pace: the limits.
    :returns: what the call returns.
    :raises UnavailableError: if a limit is exceeded.
    """
    results: list[_Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_SECONDS)
        pace.check(measure_folder(folder))
    if errors:
        raise errors[0]
    return results[0]


def measure_folder(folder: Path) -> int:
    """The bytes of all files below a folder, which may come and go meanwhile.

    :param folder: the folder.
    """
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += file.lstat().st_size
    return total
