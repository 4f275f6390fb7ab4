"""Forked children of a process that is at work on AWS: right blocks through connections of their own (R19).

A block's answer names no block, so one that went to another process verifies as intact there. The
blocks here say of which snapshot and which index they are.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import io
import multiprocessing
import os
import shutil
import sysconfig
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import boto3
import pytest
from archive.servers import Resource, free_port, running, serving
from backends.aws.conftest import require
from backends.aws.proxy import fault_proxy
from children import answers
from images import image, snapshot

import amistore
from amistore import AWSBackend
from amistore.testing.aws import FakeAWS
from amistore.testing.aws.certificate import make_certificate

pytestmark = [
    pytest.mark.xdist_group("forks"),
    # Python 3.12 warns of threads at a fork, which are what is tried here.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]

CHILDREN = 200 if os.environ.get("AMISTORE_LONG") else 10
BLOCKS = 6


def marked(number: int, index: int) -> bytes:
    """A block that says of which snapshot and which index it is."""
    return (bytes([number]) * 4 + index.to_bytes(4, "big")).ljust(amistore.BLOCK_SIZE, bytes([number]))


def wrong(archive: amistore.Archive, number: int) -> list[int]:
    """The indexes of blocks that are not the snapshot's."""
    with archive.volumes[0].open() as disk:
        return [
            index
            for index in range(BLOCKS)
            if disk.seek(index * amistore.BLOCK_SIZE) < 0
            or disk.read(amistore.BLOCK_SIZE) != marked(number, index)
        ]


@pytest.fixture(params=["http", "https"])
def scheme(request: pytest.FixtureRequest) -> str:
    if request.param == "https":
        require("openssl", shutil.which("openssl"))
    return str(request.param)


@attrs.frozen
class Account:
    """An account with five images of one snapshot each, and a backend that has read."""

    aws: FakeAWS
    cloud: AWSBackend
    images: tuple[amistore.Image, ...]

    @classmethod
    def of(cls, aws: FakeAWS) -> Account:
        keys = aws.credential
        session = boto3.Session(keys.access_key_id, keys.secret_access_key, region_name=aws.region)
        cloud = AWSBackend(session, endpoint_urls={"ec2": aws.endpoint_url, "ebs": aws.endpoint_url})
        images = []
        for number in range(5):
            snapshot_id = aws.add_snapshot(
                volume_size=1, blocks=functools.partial(marked, number), indexes=range(BLOCKS)
            )
            root = {"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": snapshot_id}}
            images.append(cloud.ec2.describe_image(aws.add_image(name=f"web-{number}", mappings=[root])))
        account = cls(aws, cloud, tuple(images))
        account.packed(0)
        return account

    def packed(self, number: int) -> bytes:
        return b"".join(amistore.pack(self.images[number], self.cloud.ebs, workers=2))

    def job(self, number: int) -> tuple[str, str]:
        """What a child does: pack an image, prove it, restore it. Gives the new snapshot."""
        number = number % 4 + 1
        content = self.packed(number)
        archive = amistore.open(io.BytesIO(content))
        assert archive.verify().ok
        if differing := wrong(archive, number):
            return f"blocks {differing} are others', and verify as intact", ""
        made = amistore.unpack(io.BytesIO(content), self.cloud.ebs, workers=2)
        return "right", made.snapshot_ids[0]

    def check(self, found: list[Any]) -> None:
        """Every child answered that its blocks are right, and what it restored is."""
        assert [each[0] if isinstance(each, tuple) else each for each in found] == ["right"] * len(found)
        for child, (_, snapshot_id) in enumerate(found):
            number = child % 4 + 1
            expected = {index: marked(number, index) for index in range(BLOCKS)}
            assert self.aws.read_snapshot(snapshot_id) == expected


@pytest.fixture
def account(scheme: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    with FakeAWS(tls=scheme == "https") as aws:
        if scheme == "https":
            monkeypatch.setenv("AWS_CA_BUNDLE", aws.ca_bundle)
        yield Account.of(aws)


@contextlib.contextmanager
def meanwhile(read: Callable[[], None]) -> Iterator[None]:
    """A thread of this process reads all the time; it must not notice that there are forks."""
    done = threading.Event()
    problems: list[Exception] = []
    begun = threading.Event()

    def work() -> None:
        while not done.is_set():
            try:
                read()
            except Exception as problem:
                problems.append(problem)
                return
            finally:
                begun.set()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        begun.wait()
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert problems == []


@pytest.mark.usefixtures("way")
def test_children_read_and_write_their_own_blocks_while_threads_of_the_parent_read(account: Account) -> None:
    def read() -> None:
        assert wrong(amistore.open(io.BytesIO(account.packed(0))), 0) == []

    with meanwhile(read):
        found = answers([functools.partial(account.job, number) for number in range(CHILDREN)])
    account.check(found)


# A backend that is a global, as pools and servers that fork their workers have it.

SHARED: list[Account] = []


def shared_job(number: int) -> tuple[str, str]:
    return SHARED[0].job(number)


@pytest.mark.parametrize("scheme", ["http"], indirect=True)
@pytest.mark.parametrize("kind", ["Pool", "ProcessPoolExecutor", "prefork"])
def test_a_backend_that_is_a_global_works_in_every_worker(account: Account, kind: str) -> None:
    context = multiprocessing.get_context("fork")
    SHARED[:] = [account]
    numbers = range(8)
    if kind == "Pool":
        with context.Pool(4) as pool:
            found = pool.map_async(shared_job, numbers).get(60)
    elif kind == "ProcessPoolExecutor":
        with concurrent.futures.ProcessPoolExecutor(4, mp_context=context) as executor:
            found = list(executor.map(shared_job, numbers, timeout=60))
    else:  # workers that the master forks once, and that answer several requests each
        per_worker = answers(
            [lambda first=first: [account.job(first + n) for n in (0, 4)] for first in range(4)]
        )
        found = [worker[turn] for turn in (0, 1) for worker in per_worker]
    account.check(found)


# Archives that the parent has opened, in S3 and at a URL.


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    port = free_port()
    program = f"{sysconfig.get_path('scripts')}/moto_server"
    with running([program, "-H", "127.0.0.1", "-p", str(port)], port):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def certificate(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path | None:
    """For servers that are to speak TLS; botocore and urllib3 trust it."""
    if scheme == "http":
        return None
    made = make_certificate(tmp_path)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(made))
    monkeypatch.setenv("SSL_CERT_FILE", str(made))
    return made


@contextlib.contextmanager
def secured(url: str, certificate: Path | None) -> Iterator[str]:
    """The same server behind TLS, where there is a certificate."""
    if certificate is None:
        yield url
        return
    origin, slash, path = url.removeprefix("http://").partition("/")
    with fault_proxy(f"http://{origin}", certificate=certificate) as proxy:
        yield f"{proxy.url}{slash}{path}"


def container(number: int) -> bytes:
    source = amistore.MemoryBackend()
    snapshot_id = snapshot(source.ebs, 1, {index: marked(number, index) for index in range(BLOCKS)})
    return b"".join(amistore.pack(image([snapshot_id]), source.ebs, workers=1))


def check_opened(archives: dict[int, amistore.Archive]) -> None:
    def job(number: int) -> str:
        archive = archives[number % 4 + 1]
        return "right" if archive.verify().ok and not wrong(archive, number % 4 + 1) else "wrong"

    def read() -> None:
        assert [wrong(archive, number) for number, archive in archives.items()] == [[]] * len(archives)

    read()
    with meanwhile(read):
        found = answers([functools.partial(job, number) for number in range(CHILDREN)])
    assert found == ["right"] * CHILDREN


def test_archives_opened_in_s3_are_read_by_children(moto: str, certificate: Path | None) -> None:
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(secured(moto, certificate))
        session = boto3.Session("key", "secret", region_name="us-east-1")
        store = AWSBackend(session, endpoint_urls={"s3": url}).s3
        bucket = "archive" if certificate is None else "archive-tls"
        session.client("s3", endpoint_url=url).create_bucket(Bucket=bucket)
        archives = {}
        for number in range(1, 5):
            store.put_object(bucket, f"{number}.bin", container(number))
            archive = amistore.open(store.at(bucket, f"{number}.bin"))
            archives[number] = stack.enter_context(archive)
        check_opened(archives)


def test_archives_opened_at_a_url_are_read_by_children(certificate: Path | None) -> None:
    with contextlib.ExitStack() as stack:
        archives = {}
        for number in range(1, 5):
            plain = stack.enter_context(serving(Resource(container(number))))
            url = stack.enter_context(secured(plain, certificate))
            archives[number] = stack.enter_context(amistore.open(url))
        check_opened(archives)
