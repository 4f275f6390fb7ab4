"""Whole archives on SeaweedFS and on JuiceFS's gateway: stored, gone on with, copied, restored."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
from pathlib import Path

import images
import pytest
from backends.aws import gateways
from backends.aws.conftest import bucket_of, connect
from objects import runs
from objects.runs import Calls

import amistore
from amistore.backends.aws.connection import Connection
from amistore.backends.aws.s3 import AWSObjectStore
from amistore.testing import BucketCase

# 63 MiB that do not compress, in 13 parts.
VOLUMES: list[tuple[int, dict[int, bytes]]] = [
    (1, {2 * i: images.noise(i) for i in range(90)} | {1000: images.block(0)}),
    (2, {i: images.noise(500 + i) for i in range(4000, 4036)}),
]
PARTS = 13
LOGGED = 5


def source() -> images.Volumes:
    return images.Volumes(VOLUMES)


IMAGE = images.image(source().volumes)


@functools.cache
def expected() -> bytes:
    return b"".join(amistore.pack(IMAGE, source(), options=runs.PACKING))


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in ("seaweedfs", "juicefs")]
)
def connection(request: pytest.FixtureRequest) -> Connection:
    """A connection to each server."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Connection)
    return found


@pytest.fixture
def objects(connection: Connection) -> BucketCase:
    return bucket_of(connection)


def test_an_image_of_many_parts_is_stored_verified_and_restored(objects: BucketCase) -> None:
    calls = Calls(objects.store)
    to = objects.store.at(objects.bucket, "größe/web.bin")
    tags = {"team": "images"}
    stored = amistore.store(IMAGE, source(), to, options=runs.PACKING, tags=tags)
    assert sorted(calls.parts()) == list(range(1, PARTS + 1))
    assert runs.is_there(stored)
    assert objects.store.get_object_tagging(objects.bucket, to.key) == tags
    with amistore.open(stored) as archive:
        archive.verify(expected_content_id=stored.content_id).check()
    [found] = amistore.find_archives(objects.store, objects.bucket)
    cloud = amistore.MemoryBackend()
    restored = amistore.restore(found, cloud, name="web-2", expected_content_id=stored.content_id)
    image = cloud.ec2.describe_image(restored.image_id)
    assert runs.disks(cloud.ebs, image) == VOLUMES
    assert objects.store.list_multipart_uploads(objects.bucket) == []


class Killing(amistore.FileResumeLog):
    """Kills this process as soon as it holds so many parts; others are being sent then."""

    def append(self, entry: bytes) -> None:
        super().append(entry)
        if len(parts_of(self)) == LOGGED:
            os.kill(os.getpid(), signal.SIGKILL)


def parts_of(log: amistore.ResumeLog) -> set[int]:
    """The numbers of the parts that a log has, which are a run of them from 1."""
    return {number for number, _ in enumerate((e for e in log.entries() if b'{"part":' in e), 1)}


def begin(url: str, bucket: str, path: Path) -> None:
    """A run in a process of its own, which does not end well."""
    store = AWSObjectStore(connect(url, access_key=gateways.ACCESS_KEY, secret_key=gateways.SECRET_KEY))
    with Killing(path) as log:
        amistore.store(IMAGE, source(), store.at(bucket, "web.bin"), log=log, options=runs.PACKING)


def test_a_run_that_was_killed_is_gone_on_with_and_no_logged_part_is_sent_again(
    connection: Connection, objects: BucketCase, tmp_path: Path
) -> None:
    url = connection.endpoint_urls["s3"]
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["boto3", "amistore.testing", "botocore.auth", "urllib3"])
    process = processes.Process(target=begin, args=(url, objects.bucket, tmp_path / "log"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    calls = Calls(objects.store)
    to = objects.store.at(objects.bucket, "web.bin")
    with amistore.FileResumeLog(tmp_path / "log") as log:
        assert parts_of(log) == set(range(1, LOGGED + 1))
        stored = amistore.store(IMAGE, source(), to, log=log, options=runs.PACKING)
    assert sorted(calls.parts()) == list(range(LOGGED + 1, PARTS + 1))
    assert runs.is_there(stored)
    assert objects.store.open_object(objects.bucket, "web.bin").read() == expected()
    assert objects.store.list_multipart_uploads(objects.bucket) == []


def test_an_archive_is_copied_in_within_and_out(objects: BucketCase, tmp_path: Path) -> None:
    at = functools.partial(objects.store.at, objects.bucket)
    (tmp_path / "in.bin").write_bytes(runs.expected())
    amistore.copy(tmp_path / "in.bin", at("first"))
    amistore.copy(at("first"), at("second"), log=tmp_path / "log")
    amistore.copy(at("second"), tmp_path / "out.bin")
    assert (tmp_path / "out.bin").read_bytes() == runs.expected()
    assert objects.store.list_keys(objects.bucket) == ["first", "second"]
    assert objects.store.list_multipart_uploads(objects.bucket) == []
