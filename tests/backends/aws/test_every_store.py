"""Whole archives on every store, each with its traits: stored, gone on with, verified, copied, restored."""

from __future__ import annotations

import filecmp
import functools
import multiprocessing
import os
import signal
from pathlib import Path

import images
import pytest
from backends.aws import gateways
from backends.aws.places import Place, front_end, place, resolve_localhost
from backends.aws.proxy import Fault
from objects import runs
from objects.runs import Calls

import amistore
from amistore.backends import RetryPolicy
from amistore.backends.aws.connection import Connection

__all__ = ["place"]

KEY = "größe/web.bin"


def logged_by(place: Place) -> int:
    """The number of parts after which a run is killed."""
    return 2 if place.traits.most_parts < 100 else 5


class Killing(amistore.FileResumeLog):
    """Kills this process as soon as it holds so many parts; others are being sent then."""

    most = 0

    def append(self, entry: bytes) -> None:
        super().append(entry)
        if len(parts_of(self)) == self.most:
            os.kill(os.getpid(), signal.SIGKILL)


def parts_of(log: amistore.ResumeLog) -> set[int]:
    """The numbers of the parts that a log has, which are a run of them from 1."""
    return {number for number, _ in enumerate((e for e in log.entries() if b'{"part":' in e), 1)}


def begin(place: Place, bucket: str, path: Path) -> None:
    """A run in a process of its own, which does not end well."""
    resolve_localhost()
    disks = place.disks
    with Killing(path) as log:
        log.most = logged_by(place)
        to = place.store().at(bucket, KEY)
        amistore.store(disks.image(), disks.source(), to, log=log, options=disks.options())


def test_an_archive_whose_run_is_killed_is_gone_on_with_verified_and_restored(
    place: Place, tmp_path: Path
) -> None:
    """No logged part is sent again; of the blocks in them, those of one segment at most are read again."""
    objects, disks = place.bucket(), place.disks
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["boto3", "amistore.testing", "botocore.auth", "urllib3"])
    process = processes.Process(target=begin, args=(place, objects.bucket, tmp_path / "log"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    calls, source = Calls(objects.store), disks.source()
    read = Calls(source)
    to = objects.store.at(objects.bucket, KEY)
    size = disks.pack(tmp_path / "expected")
    logged, parts = logged_by(place), -(-size // disks.part_size)
    with amistore.FileResumeLog(tmp_path / "log") as log:
        assert parts_of(log) == set(range(1, logged + 1))
        stored = amistore.store(disks.image(), source, to, log=log, options=disks.options())
    assert sorted(calls.parts()) == list(range(logged + 1, parts + 1))
    missing = (size - logged * disks.part_size) // amistore.BLOCK_SIZE
    assert read.made["get_snapshot_block"] <= missing + 1 + disks.segment
    assert runs.is_there(stored)
    assert objects.store.list_multipart_uploads(objects.bucket) == []
    with amistore.open(stored) as archive:
        archive.verify(expected_content_id=stored.content_id).check()
    cloud = amistore.DirectoryBackend(tmp_path / "cloud")
    restored = amistore.restore(to, cloud, name="web-2", expected_content_id=stored.content_id)
    assert disks.are(cloud.ebs, cloud.ec2.describe_image(restored.image_id))


def test_an_archive_is_copied_in_within_and_out(place: Place, tmp_path: Path) -> None:
    objects, disks = place.bucket(), place.disks
    at = functools.partial(objects.store.at, objects.bucket)
    size = disks.pack(tmp_path / "in.bin")
    amistore.copy(tmp_path / "in.bin", at("first"))
    amistore.copy(at("first"), at("second"), log=tmp_path / "log")
    amistore.copy(at("second"), tmp_path / "out.bin")
    assert filecmp.cmp(tmp_path / "in.bin", tmp_path / "out.bin", shallow=False)
    assert objects.store.list_keys(objects.bucket) == ["first", "second"]
    assert objects.store.list_multipart_uploads(objects.bucket) == []
    assert [each.size for each in amistore.find_archives(objects.store, objects.bucket)] == [size] * 2


def test_tags_are_kept_or_refused_before_anything_is_sent(place: Place) -> None:
    objects, tags = place.bucket(), {"team": "images"}
    to = objects.store.at(objects.bucket, KEY)
    given = runs.IMAGE, runs.source(), to
    if place.traits.tags:
        amistore.store(*given, options=amistore.PackOptions(layout=runs.LAYOUT), tags=tags)
        assert objects.store.get_object_tagging(objects.bucket, KEY) == tags
        return
    calls = Calls(objects.store)
    with pytest.raises(amistore.InvalidRequestError, match="the store's objects have no tags"):
        amistore.store(*given, tags=tags)
    assert calls.parts() == []
    assert objects.store.list_multipart_uploads(objects.bucket) == []
    assert not to.exists()


def test_metadata_of_any_text_is_kept(place: Place) -> None:
    objects = place.bucket()
    metadata = {"name": "größe 日本", "Owner": "Zoë"}
    stored = objects.store.put_object(objects.bucket, KEY, b"x", metadata=metadata)
    assert objects.store.head_object(objects.bucket, KEY) == stored
    assert stored.metadata == metadata


def test_of_eight_racing_creates_one_whole_object_is_there(place: Place) -> None:
    gateways.check_race(place.bucket())


@pytest.mark.parametrize("fault", [Fault.RESET_AFTER, Fault.LOST_REPLY])
@pytest.mark.parametrize("name", ["each-part-once", "mega-s4", "cloudflare-r2"])
def test_a_part_whose_answer_was_lost_is_sent_again_or_found_there(
    moto: Connection, name: str, fault: Fault, tmp_path: Path
) -> None:
    with front_end(name, moto) as (place, proxy):
        case, disks = place.bucket(), place.disks
        cloud = amistore.AWSBackend(
            place.connect().session,
            endpoint_urls={"s3": place.url},
            traits=place.traits,
            retries=RetryPolicy(base_delay=0.001),
        )
        proxy.fail("upload_part", fault, nth=3)
        to = cloud.s3.at(case.bucket, KEY)
        stored = amistore.store(disks.image(), disks.source(), to, options=disks.options())
        parts = -(-disks.pack(tmp_path / "expected") // disks.part_size)
        assert proxy.requests["upload_part"] == parts + 1
        assert runs.is_there(stored)
        amistore.copy(to, tmp_path / "stored")
        assert filecmp.cmp(tmp_path / "stored", tmp_path / "expected", shallow=False)


@pytest.mark.parametrize("name", ["google-cloud-storage", "cloudflare-r2", "mega-s4", "alibaba-oss"])
def test_a_transfer_keeps_its_archive_and_tasks_work_on_public_stores(moto: Connection, name: str) -> None:
    cloud = runs.cloud()
    ids = [images.snapshot(cloud.ebs, size, blocks) for size, blocks in runs.VOLUMES]
    image_id = cloud.ec2.register_image(images.image(ids), name="web")
    with front_end(name, moto) as (place, _):
        objects = place.bucket()
        target = amistore.MemoryBackend()
        keep = objects.store.at(objects.bucket, KEY)
        moved = amistore.transfer(image_id, source=cloud, destination=target, keep=keep)
        assert runs.disks(target.ebs, target.ec2.describe_image(moved.image_id)) == runs.VOLUMES
        combined = amistore.Backend(ebs=cloud.ebs, s3=objects.store, ec2=cloud.ec2)
        bucket = objects.bucket
        with amistore.TaskEngine(combined, journal=":memory:") as engine:
            stored = engine.wait(engine.create_store_image_task(image_id=image_id, bucket=bucket))
            again = engine.wait(
                engine.create_restore_image_task(bucket=bucket, object_key=stored.object_key, name="third")
            )
        assert runs.disks(cloud.ebs, cloud.ec2.describe_image(str(again.image_id))) == runs.VOLUMES
        found = amistore.find_archives(objects.store, bucket)
        assert {each.location.key for each in found} == {KEY, stored.object_key}
