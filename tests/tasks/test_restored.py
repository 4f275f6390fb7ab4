"""Images and snapshots as restores show them: pending, available, failed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from tasks.accounts import BUCKET, account, held, registered, snapshots, stored

import amistore
from amistore import DirectoryBackend, MemoryBackend, Tag, TagSpecification, TaskEngine
from amistore.backends import Backend
from amistore.tasks.journal import Journal
from amistore.testing import FaultyBackend

TAGS = [
    TagSpecification(resource_type="image", tags=[Tag(key="stage", value="test")]),
    TagSpecification(resource_type="snapshot", tags=[Tag(key="owner", value="us")]),
]


def directory(tmp_path: Path) -> tuple[DirectoryBackend, str]:
    cloud = DirectoryBackend(tmp_path / "cloud")
    cloud.s3.create_bucket(BUCKET)
    return cloud, registered(cloud)


@pytest.fixture(params=["memory", "directory"])
def cloud(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Backend, str]:
    return account() if request.param == "memory" else directory(tmp_path)


def test_an_image_is_pending_at_once_and_what_is_told_of_it_then_stays_true(
    cloud: tuple[Backend, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amistore.tasks.run._REPORT", 3600.0)  # however slow it is, no progress is noted
    backend, image_id = cloud
    key = stored(backend, image_id)
    with TaskEngine(backend) as engine:
        with held(type(backend.ebs), "complete_snapshot") as reached:
            task = engine.create_restore_image_task(
                bucket=BUCKET, object_key=key, name="web-2", tag_specifications=TAGS
            )
            (early,) = engine.describe_images([str(task.image_id)])
            assert reached.wait(60)
            (pending,) = engine.describe_images([str(task.image_id)])
            assert pending in engine.describe_images()
            (described,) = engine.describe_restore_image_tasks()
            begun = engine.describe_snapshots([str(each.snapshot_id) for each in described.snapshots])
        engine.wait(task)
        (available,) = engine.describe_images([str(task.image_id)])
        completed = engine.describe_snapshots(available.snapshot_ids)
    assert early.state == pending.state == "pending"
    assert available.state == "available"
    assert available == backend.ec2.describe_image(str(task.image_id))
    assert attrs.evolve(available, snapshots=()) == pending
    assert pending.tags == (*pending.tags[:-1], Tag(key="stage", value="test"))
    assert {each.snapshot_id for each in begun} == set(available.snapshot_ids)
    assert {each.state for each in begun} == {"pending"}
    assert {each.extra["Progress"] for each in begun} == {"0%"}
    assert [(each.state, each.extra["Progress"]) for each in completed] == [("completed", "100%")] * 2


def test_an_image_whose_restore_waits_is_pending_without_its_snapshots() -> None:
    cloud, image_id = account()
    cloud.ec2.region_name = "eu-west-1"
    key = stored(cloud, image_id)
    with TaskEngine(cloud, concurrency=1) as engine:
        with held(cloud.ebs, "start_snapshot") as reached:
            engine.create_restore_image_task(bucket=BUCKET, object_key=key, name="web-2")
            assert reached.wait(60)
            second = engine.create_restore_image_task(bucket=BUCKET, object_key=key, name="web-3")
            (waiting,) = engine.describe_images([str(second.image_id)])
            assert (waiting.state, waiting.name, waiting.snapshot_ids) == ("pending", "web-3", ())
            assert (waiting.source_image_id, waiting.source_image_region) == (image_id, "eu-west-1")
            assert waiting.root_device_name == cloud.ec2.describe_image(image_id).root_device_name
        engine.wait()
        assert {image.state for image in engine.describe_images()} == {"available"}


def test_an_image_is_the_registrys_as_soon_as_it_has_it() -> None:
    cloud, image_id = account()
    key = stored(cloud, image_id)
    with TaskEngine(cloud) as engine:
        with held(engine._journal, "complete") as reached:
            task = engine.create_restore_image_task(bucket=BUCKET, object_key=key, name="web-2")
            assert reached.wait(60)
            assert engine.describe_restore_image_tasks()[0].state == "InProgress"
            (image,) = engine.describe_images([str(task.image_id)])
            assert image.state == "available"
            assert image in engine.describe_images()
            assert {each.state for each in engine.describe_images()} == {"available"}
        engine.wait()


def failed_restore(cloud: MemoryBackend, key: str, engine: TaskEngine) -> amistore.RestoreImageTask:
    with held(cloud.ebs, "put_snapshot_block") as reached:
        task = engine.create_restore_image_task(
            bucket=BUCKET, object_key=key, name="web-2", tag_specifications=TAGS
        )
        assert reached.wait(60)
        engine.cancel(task)
    with pytest.raises(amistore.TaskFailedError, match="cancelled"):
        engine.wait(task)
    return engine.describe_restore_image_tasks()[0]


def test_a_failed_restore_leaves_an_image_and_snapshots_described_as_failed_for_31_days() -> None:
    cloud, image_id = account()
    key = stored(cloud, image_id)
    before = snapshots(cloud)
    days = 0.0
    with TaskEngine(cloud, clock=lambda: days * 86_400) as engine:
        task = failed_restore(cloud, key, engine)
        begun = [each.snapshot_id for each in task.snapshots if each.snapshot_id]
        assert begun
        assert snapshots(cloud) == before
        days = 30.9
        (image,) = engine.describe_images([str(task.image_id)])
        assert image in engine.describe_images()
        assert image.state == "failed"
        assert image.extra["StateReason"]["Message"] == "cancelled"
        assert image.snapshot_ids == tuple(sorted(begun))
        for snapshot in engine.describe_snapshots(begun):
            assert snapshot in engine.describe_snapshots()
            assert snapshot.state == "error"
            assert snapshot.extra == {"Progress": "0%", "StateMessage": "cancelled"}
            assert snapshot.tags == (Tag(key="owner", value="us"),)
        days = 31.1
        with pytest.raises(amistore.NotFoundError):
            engine.describe_images([str(task.image_id)])
        with pytest.raises(amistore.NotFoundError):
            engine.describe_snapshots(begun)
        assert [image.image_id for image in engine.describe_images()] == [image_id]
        assert {each.snapshot_id for each in engine.describe_snapshots()} == before


def test_a_snapshot_that_a_failed_restore_could_not_delete_yet_is_an_error_all_the_same() -> None:
    cloud, image_id = account()
    key = stored(cloud, image_id)
    faulty = FaultyBackend(cloud)
    with TaskEngine(faulty) as engine:
        faulty.add_fault("put_snapshot_block", "refusal")
        faulty.add_fault("delete_snapshot", "refusal", times=9)
        engine.create_restore_image_task(bucket=BUCKET, object_key=key, name="web-2")
        with pytest.raises(amistore.AccessDeniedError):
            engine.wait()
        (task,) = engine.describe_restore_image_tasks()
        engine.cancel(task)
        with pytest.raises(amistore.TaskFailedError):
            engine.wait()
        left = str(task.snapshots[0].snapshot_id)
        assert cloud.ebs.describe_snapshot(left).state == "pending"
        assert engine.describe_snapshots([left])[0].state == "error"


def test_what_was_removed_after_a_restore_is_described_no_more() -> None:
    cloud, image_id = account()
    key = stored(cloud, image_id)
    with TaskEngine(cloud) as engine:
        task = engine.wait(engine.create_restore_image_task(bucket=BUCKET, object_key=key, name="web-2"))
        first, second = (str(each.snapshot_id) for each in task.snapshots)
        cloud.ec2.deregister_image(str(task.image_id))
        cloud.ebs.delete_snapshot(first)
        assert [image.image_id for image in engine.describe_images()] == [image_id]
        listed = {each.snapshot_id for each in engine.describe_snapshots()}
        assert second in listed
        assert first not in listed
        for call, gone in ((engine.describe_images, task.image_id), (engine.describe_snapshots, first)):
            with pytest.raises(amistore.NotFoundError):
                call([str(gone)])


@pytest.mark.parametrize(
    ("call", "given", "code"),
    [
        (TaskEngine.describe_images, ["ami-1"], "InvalidAMIID.Malformed"),
        (TaskEngine.describe_images, "ami-0123456789abcdef0", "InvalidParameterValue"),
        (TaskEngine.describe_snapshots, ["snap-../x"], "InvalidSnapshotID.Malformed"),
        (TaskEngine.describe_snapshots, 5, "InvalidParameterValue"),
    ],
)
def test_an_id_of_another_form_and_what_is_no_list_of_ids_is_refused(
    call: Callable[[TaskEngine, object], object], given: object, code: str
) -> None:
    with TaskEngine(MemoryBackend()) as engine:
        with pytest.raises(amistore.InvalidRequestError) as caught:
            call(engine, given)
        assert caught.value.code == code


def test_the_journal_keeps_no_uefi_data_of_an_image(tmp_path: Path) -> None:
    cloud, image_id = directory(tmp_path)
    image = attrs.evolve(cloud.ec2.describe_image(image_id), uefi_data="c2VjcmV0LXZhcmlhYmxl")
    key = stored(cloud, cloud.ec2.register_image(image, name="uefi"))
    with TaskEngine(cloud) as engine:
        task = engine.create_restore_image_task(bucket=BUCKET, object_key=key, name="web-2")
        journal = Journal(str(cloud.journal))
        assert "c2VjcmV0" not in str(journal.task(task.task_id))
        journal.close()
        engine.wait()
    assert cloud.ec2.describe_image(str(task.image_id)).uefi_data == image.uefi_data
