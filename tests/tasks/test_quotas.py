"""How much may be in progress, where that is refused: the guide's quotas, its own example, and others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import boto3
import images
import pytest
from tasks.accounts import BUCKET, held

import amistore
from amistore import MemoryBackend, Quotas, TaskEngine


def account(*sizes: int) -> tuple[MemoryBackend, list[str]]:
    """A backend with an AMI of each size in GiB."""
    cloud = MemoryBackend()
    cloud.s3.create_bucket(BUCKET)
    ids = []
    for number, size in enumerate(sizes):
        snapshot_id = images.snapshot(cloud.ebs, size, {number: images.block(number + 1)})
        ids.append(cloud.ec2.register_image(images.image([snapshot_id], name=f"image-{number}")))
    return cloud, ids


@contextlib.contextmanager
def working(cloud: MemoryBackend, quotas: Quotas | None = None) -> Iterator[TaskEngine]:
    """An engine whose tasks stay in progress until the block ends, and are completed then."""
    with TaskEngine(cloud, quotas=quotas) as engine:
        with held(cloud.s3, "create_multipart_upload"), held(cloud.ebs, "start_snapshot"):
            yield engine
        engine.wait()


def store(engine: TaskEngine, image_id: str) -> None:
    engine.create_store_image_task(image_id=image_id, bucket=BUCKET, on_quota="refuse")


def refused(engine: TaskEngine, image_id: str) -> None:
    with pytest.raises(amistore.InvalidRequestError) as caught:
        store(engine, image_id)
    assert caught.value.code == "ResourceLimitExceeded"
    assert "amistore.Quotas.aws()" in str(caught.value)


def test_the_guides_example_300_in_progress_admits_another_task() -> None:
    cloud, ids = account(100, 200, 1000, 1)
    with working(cloud) as engine:
        for image_id in ids[:3]:
            store(engine, image_id)
        refused(engine, ids[3])


def test_the_guides_example_800_in_progress_admits_none_until_it_has_ended() -> None:
    cloud, ids = account(800, 1)
    with working(cloud) as engine:
        store(engine, ids[0])
        refused(engine, ids[1])
        assert len(engine.describe_store_image_tasks()) == 1
    with TaskEngine(cloud) as engine:
        store(engine, ids[1])
        engine.wait()


@pytest.mark.parametrize(("size", "admitted"), [(599, True), (600, False), (601, False)])
def test_less_than_600_in_progress_admits(size: int, admitted: bool) -> None:
    cloud, ids = account(size, 1)
    with working(cloud) as engine:
        store(engine, ids[0])
        (store if admitted else refused)(engine, ids[1])


@pytest.mark.parametrize(("size", "admitted"), [(299, True), (300, False)])
def test_less_than_300_of_restoring_admits_by_the_size_after_it(size: int, admitted: bool) -> None:
    cloud, ids = account(size)
    with TaskEngine(cloud) as engine:
        store(engine, ids[0])
        engine.wait()
    with working(cloud) as engine:

        def restore(name: str) -> None:
            engine.create_restore_image_task(
                bucket=BUCKET, object_key=f"{ids[0]}.bin", name=name, on_quota="refuse"
            )

        restore("first")
        if admitted:
            restore("second")
        else:
            with pytest.raises(amistore.InvalidRequestError) as caught:
                restore("second")
            assert caught.value.code == "ResourceLimitExceeded"


def test_storing_and_restoring_have_quotas_of_their_own() -> None:
    cloud, ids = account(300, 599)
    with TaskEngine(cloud) as engine:
        store(engine, ids[0])
        engine.wait()
    with working(cloud) as engine:
        store(engine, ids[1])
        engine.create_restore_image_task(bucket=BUCKET, object_key=f"{ids[0]}.bin", name="restored")


@pytest.mark.parametrize(("size", "admitted"), [(1024, True), (1025, False)])
def test_an_ami_has_one_terabyte_at_most(size: int, admitted: bool) -> None:
    cloud, ids = account(size)
    with working(cloud) as engine:
        (store if admitted else refused)(engine, ids[0])


def test_an_archive_of_more_than_the_quota_is_not_restored() -> None:
    cloud, ids = account(1025)
    cloud.s3.put_object(BUCKET, "big.bin", amistore.pack(cloud.ec2.describe_image(ids[0]), cloud.ebs))
    with TaskEngine(cloud) as engine:
        with pytest.raises(amistore.InvalidRequestError) as caught:
            engine.create_restore_image_task(bucket=BUCKET, object_key="big.bin", name="big")
        assert caught.value.code == "ResourceLimitExceeded"


def test_a_snapshot_that_is_mapped_twice_counts_once() -> None:
    cloud = MemoryBackend()
    cloud.s3.create_bucket(BUCKET)
    snapshot_id = images.snapshot(cloud.ebs, 400, {})
    twice = cloud.ec2.register_image(images.image([snapshot_id, snapshot_id], name="twice"))
    other = cloud.ec2.register_image(images.image([snapshot_id], name="other"))
    with working(cloud) as engine:
        store(engine, twice)
        store(engine, other)


def test_profiles_are_todays_quotas_and_none() -> None:
    cloud, ids = account(5000, 1)
    with working(cloud, Quotas.aws()) as engine:
        store(engine, ids[0])
        refused(engine, ids[1])
    cloud, ids = account(65_536, 5001)
    with working(cloud, Quotas.unlimited()) as engine:
        for image_id in ids:
            store(engine, image_id)


def test_a_failed_task_takes_no_quota() -> None:
    cloud, ids = account(800, 1)
    with TaskEngine(cloud) as engine:
        with held(cloud.ebs, "get_snapshot_block") as reached:
            store(engine, ids[0])
            assert reached.wait(60)
            for snapshot_id in cloud.ec2.describe_image(ids[0]).snapshot_ids:
                cloud.ebs.delete_snapshot(snapshot_id)
        with pytest.raises(amistore.TaskFailedError):
            engine.wait()
        store(engine, ids[1])
        engine.wait(engine.describe_store_image_tasks()[0])


def test_an_engine_has_the_quotas_of_its_backend_and_those_of_aws_are_todays() -> None:
    session = boto3.Session("AKIDEXAMPLE", "canary", "canary", region_name="us-east-2")
    aws = amistore.AWSBackend(session)
    for cloud in (aws, amistore.RetryingBackend(aws)):
        with TaskEngine(cloud, journal=":memory:") as engine:
            assert engine.quotas == Quotas.aws()
    with TaskEngine(aws, journal=":memory:", quotas=Quotas()) as engine:
        assert engine.quotas == Quotas()
    with TaskEngine(MemoryBackend()) as engine:
        assert engine.quotas == Quotas()


@pytest.mark.parametrize("value", [0, -1, 1.5, "600", True])
def test_a_quota_is_whole_gib(value: object) -> None:
    with pytest.raises(amistore.InvalidValueError) as caught:
        Quotas(store_in_progress=value)
    assert caught.value.field == "Quotas.store_in_progress"
