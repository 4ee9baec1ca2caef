"""An object store on this machine: moto's S3 server, which tests reach over loopback alone."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

BUCKET = "vectors"
SECRET = "s3cret-of-the-tests"


@dataclass(frozen=True)
class ObjectServer:
    """A running server.

    :param address: its URL.
    """

    address: str

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables by which clients find it, and pay no heed to this user's own settings."""
        return {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": "/nonexistent",
            "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextlib.contextmanager
def serve_objects() -> Iterator[ObjectServer]:
    """Run the server in a thread of this process, at a port that the system chooses."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield ObjectServer(f"http://{host}:{port}")
    finally:
        server.stop()


@contextlib.contextmanager
def use_objects(server: ObjectServer) -> Iterator[None]:
    """Let clients of this process find the server, and an empty bucket there."""
    import boto3
    from s3fs import S3FileSystem

    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        S3FileSystem.clear_instance_cache()
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        try:
            yield
        finally:
            for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
                for entry in page.get("Contents", []):
                    client.delete_object(Bucket=BUCKET, Key=entry["Key"])
            client.delete_bucket(Bucket=BUCKET)
            S3FileSystem.clear_instance_cache()


class SlowServer:
    """A server that takes connections, and answers none, or each after a slow reading.

    :param pause_seconds: pause before each piece that is read; ``None`` to read nothing.
    :ivar connections: the connections that were made to it.
    """

    _PIECE_BYTES = 1 << 15

    def __init__(self, pause_seconds: float | None = None) -> None:
        self.connections: list[socket.socket] = []
        self._pause_seconds = pause_seconds
        self._listening = socket.socket()
        # What the system takes in for a program that does not read is little.
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._PIECE_BYTES)
        self._listening.bind(("127.0.0.1", 0))
        self._listening.listen(64)

    def __enter__(self) -> ObjectServer:
        threading.Thread(target=self._accept, daemon=True).start()
        return ObjectServer(f"http://127.0.0.1:{self._listening.getsockname()[1]}")

    def __exit__(self, *exception: object) -> None:
        for opened in [self._listening, *self.connections]:
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
            opened.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self.connections.append(connection)
                if self._pause_seconds is not None:
                    threading.Thread(target=self._answer, args=[connection], daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        assert self._pause_seconds is not None
        with contextlib.suppress(OSError):
            head, _, body = connection.recv(self._PIECE_BYTES).partition(b"\r\n\r\n")
            (length,) = re.findall(rb"(?i)content-length: *(\d+)", head)
            got = len(body)
            while got < int(length):
                time.sleep(self._pause_seconds)
                got += len(connection.recv(self._PIECE_BYTES))
            connection.sendall(b'HTTP/1.1 200 OK\r\nETag: "1"\r\nContent-Length: 0\r\n\r\n')


@contextlib.contextmanager
def use_server(server: ObjectServer) -> Iterator[None]:
    """Let clients of this process find a server."""
    from s3fs import S3FileSystem

    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        S3FileSystem.clear_instance_cache()
        yield
        S3FileSystem.clear_instance_cache()


@contextlib.contextmanager
def serve_refusals(code: str) -> Iterator[ObjectServer]:
    """Run a server that answers every request by an error of S3.

    :param code: the code of the error.
    """

    class Refusal(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def refuse(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>"
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body.encode())

        do_GET = do_PUT = do_DELETE = do_HEAD = refuse  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Nothing is said."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusal)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield ObjectServer(f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
