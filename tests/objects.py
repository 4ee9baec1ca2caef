"""An object store on this machine: moto's S3 server, which tests reach over loopback alone."""

from __future__ import annotations

import contextlib
import threading
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
