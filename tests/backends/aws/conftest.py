"""S3 servers that are started once for all tests, and stores over them."""

from __future__ import annotations

import functools
import os
import secrets
import sysconfig
from collections.abc import Iterator
from typing import Any

import boto3
import botocore.session
import pytest
from archive.servers import free_port, program, running
from backends.aws import gateways
from backends.aws.swift import ACCESS_KEY, SECRET_KEY, swift_server

from amistore.backends import StoreTraits, retrying
from amistore.backends.aws.connection import Connection
from amistore.backends.aws.ebs import AWSBlockStore
from amistore.backends.aws.s3 import AWSObjectStore
from amistore.backends.aws.settings import ObjectSettings
from amistore.pipeline.gets import BlockGets
from amistore.testing import BucketCase


@pytest.fixture(scope="session", autouse=True)
def _models_are_read_once() -> Iterator[None]:
    """Each session reads its services' models, EC2's in a tenth of a second; here they share them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.session, "create_loader", functools.cache(botocore.session.create_loader))
        yield


@pytest.fixture(params=["by threads", "in flight"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a block is got and put: in the caller's thread, or begun and waited for."""
    if request.param == "in flight":
        for kind in (AWSBlockStore, retrying._ManyInFlight):

            def got(self: Any, *arguments: Any) -> Any:
                if isinstance(self, AWSBlockStore):
                    return self.begin_get(*arguments).result(60)
                with BlockGets(self, None, 1) as gets:  # which compares digests
                    snapshot_id, index, token = arguments
                    return next(iter(gets.segment(snapshot_id, [index], [token])))

            def put(self: Any, *arguments: Any) -> Any:
                return self.begin_put(*arguments).result(60)

            monkeypatch.setattr(kind, "get_snapshot_block", got)
            monkeypatch.setattr(kind, "put_snapshot_block", put)
    return str(request.param)


def connect(url: str, *, access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY) -> Connection:
    session = boto3.Session(
        aws_access_key_id=access_key, aws_secret_access_key=secret_key, region_name="us-east-1"
    )
    return Connection(session, None, {"s3": url})


def require(name: str, program: str | None) -> None:
    """Skip without a program, or fail where all must be there."""
    if program is None and os.environ.get("AMISTORE_REQUIRE_TOOLS"):
        pytest.fail(f"{name} is not installed")
    if program is None:
        pytest.skip(f"needs {name}")


def bucket_of(
    connection: Connection, settings: ObjectSettings | None = None, traits: StoreTraits | None = None
) -> BucketCase:
    """A new bucket."""
    bucket = f"b{secrets.token_hex(8)}"
    store = AWSObjectStore(connection, settings, traits)
    store._client.create_bucket(Bucket=bucket)
    return BucketCase(store=store, bucket=bucket)


@pytest.fixture(scope="session")
def moto() -> Iterator[Connection]:
    """A moto server, started once, which takes parts of any size."""
    port = free_port()
    program = f"{sysconfig.get_path('scripts')}/moto_server"
    command = ["env", "S3_UPLOAD_PART_MIN_SIZE=1", program, "-H", "127.0.0.1", "-p", str(port)]
    with running(command, port):
        yield connect(f"http://127.0.0.1:{port}")


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Swift, started once."""
    require("swift-proxy-server", program("swift-proxy-server"))
    with swift_server(tmp_path_factory.mktemp("swift")) as url:
        yield url


@pytest.fixture(scope="session")
def swift_connection(swift: str) -> Connection:
    return connect(swift)


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """A SeaweedFS, started once."""
    require("weed", program("weed"))
    with gateways.seaweedfs_server(tmp_path_factory.mktemp("seaweedfs")) as url:
        connection = connect(url, access_key=gateways.ACCESS_KEY, secret_key=gateways.SECRET_KEY)
        gateways.wait_until_it_stores(connection)
        yield connection


@pytest.fixture(scope="session")
def juicefs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """A gateway of JuiceFS, started once."""
    require("juicefs", program("juicefs"))
    with gateways.juicefs_server(tmp_path_factory.mktemp("juicefs")) as url:
        yield connect(url, access_key=gateways.ACCESS_KEY, secret_key=gateways.SECRET_KEY)


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """An rclone that serves a folder, started once."""
    program = f"{sysconfig.get_path('scripts')}/rclone"
    port = free_port()
    words = ["serve", "s3", "--config", "/dev/null", "--auth-key", "key,secretsecret"]
    command = [program, *words, "--addr", f"127.0.0.1:{port}", tmp_path_factory.mktemp("rclone")]
    with running(command, port):
        yield connect(f"http://127.0.0.1:{port}", access_key="key", secret_key="secretsecret")
