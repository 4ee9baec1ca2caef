"""An object store on this machine: moto's S3 server, which tests reach over loopback alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

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
