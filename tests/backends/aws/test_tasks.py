"""The three task calls on AWS: EBS and EC2 from the strict fake, S3 from OpenStack Swift."""

from __future__ import annotations

from pathlib import Path

import pytest
from backends.aws.accounts import account, disks, new_bucket

import amistore
from amistore import Tag, TagSpecification, TaskEngine
from amistore.testing import block
from amistore.testing.aws import FakeAWS

pytestmark = pytest.mark.xdist_group("swift")


@pytest.fixture
def commercial():
    with FakeAWS(region="us-east-2") as aws:
        ids = [
            aws.add_snapshot(volume_size=1, blocks={3: block(1), 2047: block(0)}),
            aws.add_snapshot(volume_size=2),
        ]
        mappings = [
            {"deviceName": f"/dev/xvd{letter}", "ebs": {"snapshotId": snapshot_id}}
            for letter, snapshot_id in zip("ab", ids, strict=True)
        ]
        aws.image_id = aws.add_image(name="web", mappings=mappings, tags={"team": "web"}, enaSupport=True)
        yield aws


@pytest.fixture
def government():
    with FakeAWS(region="us-gov-east-1", partition="aws-us-gov") as aws:
        aws.behaviour.completion_describes = 1
        yield aws


def test_an_ami_is_stored_by_a_task_and_restored_by_another_in_another_partition(
    commercial, government, swift, tmp_path: Path
) -> None:
    source, destination = account(commercial, swift), account(government, swift)
    bucket = new_bucket(swift)
    with TaskEngine(source, journal=tmp_path / "source.db") as engine:
        task = engine.wait(
            engine.create_store_image_task(image_id=commercial.image_id, bucket=f"{bucket}/2026")
        )
    assert task.s3_object_key == f"2026/{commercial.image_id}.bin"
    metadata = destination.s3.head_object(bucket, task.object_key).metadata
    assert (metadata["ami-name"], metadata["ami-region"]) == ("web", "us-east-2")
    given = [TagSpecification(resource_type="snapshot", tags=[Tag(key="restored", value="yes")])]
    with TaskEngine(destination, journal=tmp_path / "destination.db") as engine:
        begun = engine.create_restore_image_task(
            bucket=bucket, object_key=task.object_key, tag_specifications=given
        )
        assert begun.image_id is None  # EC2 gives ids with images
        ended = engine.wait(begun)
    new = destination.ec2.describe_image(str(ended.image_id))
    assert disks(government, new) == disks(commercial, source.ec2.describe_image(commercial.image_id))
    assert (new.name, new.ena_support) == ("web", True)
    assert {each.snapshot_id for each in ended.snapshots} == set(new.snapshot_ids)
    for snapshot in new.snapshots:
        assert Tag(key="restored", value="yes") in snapshot.tags


def test_a_restore_that_may_not_be_registered_is_refused_before_it_begins(
    commercial, government, swift, tmp_path: Path
) -> None:
    source, bucket = account(commercial, swift), new_bucket(swift)
    with TaskEngine(source, journal=tmp_path / "source.db") as engine:
        task = engine.wait(engine.create_store_image_task(image_id=commercial.image_id, bucket=bucket))
    restricted = government.add_credential(denied=["ec2:RegisterImage"])
    destination = account(government, swift, credential=restricted)
    with TaskEngine(destination, journal=tmp_path / "destination.db") as engine:
        with pytest.raises(amistore.AccessDeniedError, match="ec2:RegisterImage"):
            engine.create_restore_image_task(bucket=bucket, object_key=task.object_key)
        assert len(engine.describe_restore_image_tasks()) == 0
    assert len(government.snapshots) == 0


def test_one_journal_holds_the_tasks_of_several_places_apart(
    commercial, government, swift, tmp_path: Path
) -> None:
    bucket, journal = new_bucket(swift), tmp_path / "tasks.db"
    with (
        TaskEngine(account(commercial, swift), journal=journal) as here,
        TaskEngine(account(government, swift), journal=journal) as there,
    ):
        task = here.wait(here.create_store_image_task(image_id=commercial.image_id, bucket=bucket))
        assert [each.task_id for each in here.describe_store_image_tasks()] == [task.task_id]
        assert len(there.describe_store_image_tasks()) == 0
        assert there.resume() == ()


def test_two_engines_of_one_account_that_store_one_ami_both_come_to_an_end(
    commercial, swift, tmp_path: Path
) -> None:
    buckets = [new_bucket(swift) for _ in range(2)]
    engines = [
        TaskEngine(account(commercial, swift), journal=tmp_path / f"{number}.db") for number in range(2)
    ]
    tasks = [
        engine.create_store_image_task(image_id=commercial.image_id, bucket=bucket)
        for engine, bucket in zip(engines, buckets, strict=True)
    ]
    ended = [engine.wait(task) for engine, task in zip(engines, tasks, strict=True)]
    for engine in engines:
        engine.close()
    assert ended[0].content_id == ended[1].content_id


def test_a_task_that_an_engine_left_is_finished_by_the_next_one(commercial, swift, tmp_path: Path) -> None:
    cloud, bucket, journal = account(commercial, swift), new_bucket(swift), tmp_path / "tasks.db"
    with TaskEngine(cloud, journal=journal) as engine:
        task = engine.create_store_image_task(image_id=commercial.image_id, bucket=bucket)
    with TaskEngine(account(commercial, swift), journal=journal) as engine:
        ended = engine.wait(task)
        restored = engine.wait(
            engine.create_restore_image_task(bucket=bucket, object_key=ended.object_key, name="web-2")
        )
    assert cloud.s3.list_multipart_uploads(bucket) == []
    new = cloud.ec2.describe_image(str(restored.image_id))
    assert disks(commercial, new) == disks(commercial, cloud.ec2.describe_image(commercial.image_id))


def test_what_ec2_refuses_to_store_is_refused_before_there_is_a_task(
    commercial, swift, tmp_path: Path
) -> None:
    cloud, bucket = account(commercial, swift), new_bucket(swift)
    snapshot_id = cloud.ec2.describe_image(commercial.image_id).snapshot_ids[0]
    image_id = commercial.add_image(
        name="old",
        mappings=[{"deviceName": "/dev/xvda", "ebs": {"snapshotId": snapshot_id}}],
        virtualizationType="paravirtual",
    )
    with TaskEngine(cloud, journal=tmp_path / "tasks.db") as engine:
        with pytest.raises(amistore.InvalidRequestError):
            engine.create_store_image_task(image_id=image_id, bucket=bucket)
        assert len(engine.describe_store_image_tasks()) == 0
