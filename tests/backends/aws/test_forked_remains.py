"""What a forked child is left of its parent's connections, locks and threads: nothing that it could use."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import functools
import gc
import http.server
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import boto3
import pytest
from archive.servers import Resource, serving
from backends.aws.test_forked_clients import (
    Account,
    account,  # noqa: F401 - a fixture, as the next one
    container,
    scheme,  # noqa: F401
    wrong,
)
from botocore.credentials import RefreshableCredentials
from children import answers

import amistore
from amistore import AWSBackend, forks
from amistore.backends.aws.connection import Connection
from amistore.testing.aws import FakeAWS

pytestmark = pytest.mark.xdist_group("forks")


def connected(url: str) -> int:
    """How many connections to a server this process has a descriptor of."""
    port = int(url.rpartition(":")[2].partition("/")[0])
    count = 0
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # one that has ended meanwhile, or is not connected
            if stat.S_ISSOCK(os.stat(int(name)).st_mode):
                with socket.socket(fileno=os.dup(int(name))) as copy:
                    count += copy.getpeername()[1:2] == (port,)
    return count


def test_a_child_closes_its_copies_and_the_parents_connections_work_on(account: Account) -> None:  # noqa: F811
    url = account.aws.endpoint_url
    account.packed(0)
    kept = connected(url)
    assert kept >= 3  # of the EC2 and EBS clients, and of the lean path

    def child() -> int:
        found = connected(url)
        gc.collect()
        return found

    # One child collects what it has inherited; the other one ends as the interpreter does.
    assert answers([child, atexit._run_exitfuncs]) == [0, None]
    before = account.aws.log.connections
    account.packed(0)
    assert account.aws.log.connections == before
    assert connected(url) == kept


def test_a_connection_in_use_at_the_fork_is_closed_in_the_child(account: Account) -> None:  # noqa: F811
    rule = account.aws.faults.add("GetSnapshotBlock", "silence", times=1)
    thread = threading.Thread(target=account.packed, args=(0,))
    thread.start()
    try:
        rule.wait_until_held()
        assert answers([lambda: connected(account.aws.endpoint_url)]) == [0]
    finally:
        rule.release()
        thread.join()


@pytest.mark.parametrize("scheme", ["http"], indirect=True)
def test_where_no_hook_was_called_the_doors_compare_the_process(
    account: Account,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another library's hook may come before ours, and use a backend."""
    with serving(Resource(container(1))) as url, amistore.open(url) as archive:
        assert archive.verify().ok
        monkeypatch.setattr(forks, "_registered", {})

        def job(number: int) -> Any:
            assert wrong(archive, 1) == []
            return account.job(number)

        found = answers([functools.partial(job, number) for number in range(8)])
    account.check(found)


# Credentials that are refreshed.


class Containers(http.server.ThreadingHTTPServer):
    """Gives credentials as a container's agent does; those of the first request are about to end.

    Attributes:
        held: set when the second request has come, which waits for `release`.
    """

    daemon_threads = True

    def __init__(self, aws: FakeAWS) -> None:
        self.aws = aws
        self.requests = 0
        self.held = threading.Event()
        self.release = threading.Event()
        super().__init__(("127.0.0.1", 0), _Agent)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class _Agent(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Containers

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        server.requests += 1
        minutes = 5 if server.requests == 1 else 60
        if server.requests == 2:
            server.held.set()
            server.release.wait()
        ends = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(minutes=minutes)
        keys = server.aws.credential
        body = json.dumps(
            {
                "AccessKeyId": keys.access_key_id,
                "SecretAccessKey": keys.secret_access_key,
                "Token": None,
                "Expiration": ends.isoformat(),
            }
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Containers]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with FakeAWS() as aws, Containers(aws) as server:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", server.url)
        yield server
        server.release.set()
        server.shutdown()


def test_credentials_that_are_being_refreshed_at_the_fork_are_refreshed_in_the_child(
    agent: Containers,
) -> None:
    """botocore's lock is held by a thread that the child has not."""
    url = agent.aws.endpoint_url
    cloud = AWSBackend(region_name=agent.aws.region, endpoint_urls={"ec2": url, "ebs": url})
    snapshot_id = agent.aws.add_snapshot(volume_size=1, blocks={0: b"x" * amistore.BLOCK_SIZE})
    cloud.connection.session.get_credentials()

    def read() -> bytes:
        listed = cloud.ebs.list_snapshot_blocks(snapshot_id).blocks[0]
        return bytes(cloud.ebs.get_snapshot_block(snapshot_id, 0, listed.block_token).content[:1])

    thread = threading.Thread(target=read)
    thread.start()
    try:
        assert agent.held.wait(60)
        assert answers([read]) == [b"x"]
    finally:
        agent.release.set()
        thread.join()
    assert read() == b"x"


@attrs.define
class Refresher:
    """A user's way to new credentials, by a client that it keeps."""

    client: Any
    keys: Any

    def refresh(self) -> dict[str, Any]:
        self.client.get_caller_identity()
        ends = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
        return {
            "access_key": self.keys.access_key_id,
            "secret_key": self.keys.secret_access_key,
            "token": None,
            "expiry_time": ends.isoformat(),
        }


class OwnSession(boto3.Session):
    """As some users have it."""


WAYS: dict[str, Callable[[Refresher], Callable[[], dict[str, Any]]]] = {
    "a method": lambda refresher: refresher.refresh,
    "a closure": lambda refresher: lambda: refresher.refresh(),
    "a partial": lambda refresher: functools.partial(Refresher.refresh, refresher),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_users_own_refresh_shares_no_connection_and_no_lock_with_a_child(
    way: Callable[[Refresher], Callable[[], dict[str, Any]]],
) -> None:
    with FakeAWS() as aws:
        refresher = Refresher(boto3.client("sts", **aws.client_options()), aws.credential)
        refresh = way(refresher)
        session = OwnSession(region_name=aws.region)
        credentials = RefreshableCredentials.create_from_metadata(refresh(), refresh, "a user's")
        session._session._credentials = credentials
        connection = Connection(session, None, {"ec2": aws.endpoint_url})
        assert connected(aws.endpoint_url) == 1

        def child() -> tuple[int, bool]:
            inherited = connected(aws.endpoint_url)
            credentials._expiry_time = datetime.datetime.now(datetime.timezone.utc)
            return inherited, connection.client("ec2").describe_images()["Images"] == []

        with credentials._refresh_lock:
            assert answers([child]) == [(0, True)]
        refresher.client.close()


# obstore, whose threads no child has.

OBSTORE = """
import sys
sys.path[:0] = {path!r}
import amistore
from archive.servers import Resource, serving
from children import answers
from backends.aws.test_forked_clients import container, wrong

def opened():
    options = {{"endpoint": url.rpartition("/")[0], "access_key_id": "a", "secret_access_key": "b"}}
    options |= {{"region": "us-east-1", "client_options": {{"allow_http": True}}}}
    with amistore.open("s3://bucket/ami.bin", options=options) as archive:
        return wrong(archive, 1)

with serving(Resource(container(1))) as url:
    print(answers([opened]))
    opened()
    print(answers([opened]))
"""


def test_obstore_works_in_a_child_of_a_process_that_has_not_used_it_and_is_refused_after_that() -> None:
    pytest.importorskip("obstore")
    done = subprocess.run(
        [sys.executable, "-c", OBSTORE.format(path=sys.path)], capture_output=True, text=True, timeout=120
    )
    unused, used = done.stdout.splitlines()
    assert unused == "[[]]", done.stderr
    assert used.startswith("[InvalidRequestError(")
    assert "obstore works with threads" in used
    assert 'get_context("spawn")' in used
