"""What EC2's guide says of CreateRestoreImageTask, rule by rule."""

from __future__ import annotations

from pathlib import Path

import attrs
import images
import pytest
from objects.swaps import put_in_place
from tasks.accounts import BUCKET, DISKS, account, disks, held, registered, snapshots, stored

import amistore
from amistore import Backend, MemoryBackend, Tag, TagSpecification, TaskEngine


def archived() -> tuple[MemoryBackend, str, str]:
    """A backend with an AMI and its object: the AMI's id and the object's key."""
    cloud, image_id = account()
    return cloud, image_id, stored(cloud, image_id)


def restored(cloud: Backend, key: str, name: str | None = "web-2", **options: object) -> amistore.Image:
    """The image that a task makes of an object."""
    with TaskEngine(cloud) as engine:
        task = engine.create_restore_image_task(bucket=BUCKET, object_key=key, name=name, **options)
        return cloud.ec2.describe_image(str(engine.wait(task).image_id))


def test_metadata_and_mappings_are_those_of_the_stored_ami() -> None:
    cloud = MemoryBackend()
    cloud.s3.create_bucket(BUCKET)
    ids = [images.snapshot(cloud.ebs, 1, disk) for disk in DISKS]
    image = images.image(
        ids, description="größe", architecture="arm64", ena_support=True, boot_mode="uefi", uefi_data="AAEC"
    )
    image_id = cloud.ec2.register_image(image)
    found = restored(cloud, stored(cloud, image_id))
    new = dict(
        zip(cloud.ec2.describe_image(image_id).snapshot_ids, _in_place(cloud, image_id, found), strict=True)
    )
    original = cloud.ec2.describe_image(image_id)
    expected = attrs.evolve(
        original.with_snapshots(new), image_id=found.image_id, name="web-2", source_image_id=image_id
    )
    assert found == attrs.evolve(expected, snapshots=found.snapshots)
    assert [each.volume_size for each in found.snapshots] == [1, 1]


def _in_place(cloud: Backend, image_id: str, found: amistore.Image) -> list[str]:
    """The new snapshot for each of the old, by the devices that map them."""
    old = cloud.ec2.describe_image(image_id)
    new = {each.device_name: each.ebs.snapshot_id for each in found.block_device_mappings if each.ebs}
    by_old = {each.ebs.snapshot_id: new[each.device_name] for each in old.block_device_mappings if each.ebs}
    return [str(by_old[each]) for each in old.snapshot_ids]


def test_without_a_name_the_ami_has_that_of_the_original_which_must_be_free() -> None:
    cloud, image_id, key = archived()
    with TaskEngine(cloud) as engine:
        with pytest.raises(amistore.AlreadyExistsError, match="'web'"):
            engine.create_restore_image_task(bucket=BUCKET, object_key=key)
        with pytest.raises(amistore.AlreadyExistsError, match="'web'"):
            engine.create_restore_image_task(bucket=BUCKET, object_key=key, name="web")
        assert len(engine.describe_restore_image_tasks()) == 0
    cloud.ec2.deregister_image(image_id)
    assert restored(cloud, key, None).name == "web"


def test_two_restores_to_one_name_are_not_begun() -> None:
    cloud, _, key = archived()
    with TaskEngine(cloud) as engine:
        with held(cloud.ebs, "put_snapshot_block"):
            first = engine.create_restore_image_task(bucket=BUCKET, object_key=key, name="web-2")
            with pytest.raises(amistore.AlreadyExistsError, match=first.task_id):
                engine.create_restore_image_task(bucket=BUCKET, object_key=key, name="web-2")
        engine.wait()


def test_the_ami_gets_a_new_id_at_once_which_leads_to_an_image_at_the_end() -> None:
    cloud, image_id, key = archived()
    with TaskEngine(cloud) as engine:
        with held(cloud.ebs, "put_snapshot_block"):
            task = engine.create_restore_image_task(bucket=BUCKET, object_key=key, name="web-2")
            assert task.image_id not in (None, image_id)
        assert engine.wait(task).image_id == task.image_id
    assert cloud.ec2.describe_image(str(task.image_id)).name == "web-2"


def test_an_ami_is_restored_any_number_of_times() -> None:
    cloud, image_id, key = archived()
    with TaskEngine(cloud) as engine:
        for number in range(3):
            engine.create_restore_image_task(bucket=BUCKET, object_key=key, name=f"copy-{number}")
        made = {task.image_id for task in engine.wait()}  # type: ignore
    assert len({*made, image_id}) == 4
    for each in made:
        assert disks(cloud, each) == DISKS


def test_tags_are_those_of_the_archive_and_over_them_those_that_were_given() -> None:
    cloud = MemoryBackend()
    cloud.s3.create_bucket(BUCKET)
    ids = [images.snapshot(cloud.ebs, 1, disk) for disk in DISKS]
    own = [Tag(key="team", value="images"), Tag(key="stage", value="old")]
    image = images.image(ids, tags=tuple(own)).with_tags(snapshot_tags=[Tag(key="disk", value="web")])
    key = stored(cloud, cloud.ec2.register_image(image))
    found = restored(
        cloud,
        key,
        tag_specifications=[
            TagSpecification(resource_type="image", tags=[Tag(key="stage", value="new")]),
            TagSpecification(resource_type="snapshot", tags=[Tag(key="restored", value="yes")]),
        ],
    )
    assert {tag.key: tag.value for tag in found.tags} == {"team": "images", "stage": "new"}
    for snapshot in found.snapshots:
        assert {tag.key: tag.value for tag in snapshot.tags} == {"disk": "web", "restored": "yes"}
        described = cloud.ebs.describe_snapshot(snapshot.snapshot_id)
        assert Tag(key="restored", value="yes") in described.tags


def test_source_image_and_region_are_noted() -> None:
    cloud, image_id = account()
    cloud.ec2.region_name = "us-east-2"
    found = restored(cloud, stored(cloud, image_id))
    assert (found.source_image_id, found.source_image_region) == (image_id, "us-east-2")


def test_an_object_copied_to_another_account_and_region_is_restored_there() -> None:
    cloud, image_id, key = archived()
    other = MemoryBackend()
    other.ec2.region_name = "us-gov-east-1"
    other.s3.create_bucket(BUCKET)
    amistore.copy(cloud.s3.at(BUCKET, key), other.s3.at(BUCKET, "copied.bin"))
    found = restored(other, "copied.bin", None)
    assert found.name == "web"
    assert disks(other, found.image_id) == disks(cloud, image_id)


def test_an_object_that_pack_made_is_restored_like_one_of_a_task() -> None:
    cloud, image_id = account()
    image = cloud.ec2.describe_image(image_id)
    cloud.s3.put_object(BUCKET, "packed.bin", amistore.pack(image, cloud.ebs))
    assert disks(cloud, restored(cloud, "packed.bin").image_id) == DISKS


def test_progress_shows_in_each_snapshot_and_never_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    cloud = MemoryBackend()
    cloud.s3.create_bucket(BUCKET)
    ids = [
        images.snapshot(cloud.ebs, 1, {index: images.block(index) for index in range(140)}) for _ in (1, 2)
    ]
    key = stored(cloud, cloud.ec2.register_image(images.image(ids)))
    monkeypatch.setattr("amistore.tasks.run._REPORT", 0.0)
    told: list[amistore.RestoreImageTask] = []
    put = cloud.ebs.put_snapshot_block
    with TaskEngine(cloud, workers=1) as engine:

        def look(*arguments: object) -> None:
            told.extend(engine.describe_restore_image_tasks())
            put(*arguments)

        cloud.ebs.put_snapshot_block = look
        task = engine.create_restore_image_task(bucket=BUCKET, object_key=key, name="web-2")
        told.append(engine.wait(task))
    for number in (0, 1):
        percentages = [each.snapshots[number].progress_percentage for each in told]
        assert percentages == sorted(percentages)
        assert len(set(percentages)) >= 3
    whole = [each.progress_percentage for each in told]
    assert whole == sorted(whole)
    assert whole[-1] == 100


def test_a_damaged_object_is_refused_and_nothing_is_made() -> None:
    cloud, _, key = archived()
    content = cloud.s3.open_object(BUCKET, key).read()
    cloud.s3.put_object(BUCKET, "cut.bin", [content[:-100]])
    before = snapshots(cloud)
    with TaskEngine(cloud) as engine:
        with pytest.raises(amistore.CorruptArchiveError):
            engine.create_restore_image_task(bucket=BUCKET, object_key="cut.bin", name="web-2")
        assert len(engine.describe_restore_image_tasks()) == 0
    assert snapshots(cloud) == before


def test_a_registry_that_cannot_say_what_it_keeps_refuses_the_call_and_nothing_is_made() -> None:
    cloud, _, key = archived()

    def fidelity(*arguments: object, **options: object) -> None:
        raise RuntimeError("no answer")

    put_in_place(cloud.ec2, "fidelity", fidelity)
    with TaskEngine(cloud) as engine:
        with pytest.raises(amistore.BackendError, match="no answer"):
            engine.create_restore_image_task(bucket=BUCKET, object_key=key, name="web-2")
        assert len(engine.describe_restore_image_tasks()) == 0


def test_damage_in_the_middle_fails_the_task_and_its_snapshots_are_deleted() -> None:
    cloud, _, key = archived()
    content = bytearray(cloud.s3.open_object(BUCKET, key).read())
    content[content.index(b"AMISSEGD") + 900] ^= 1
    cloud.s3.put_object(BUCKET, "bent.bin", [bytes(content)])
    before = snapshots(cloud)
    with TaskEngine(cloud) as engine:
        task = engine.create_restore_image_task(bucket=BUCKET, object_key="bent.bin", name="web-2")
        with pytest.raises(amistore.TaskFailedError):
            engine.wait(task)
        (failed,) = engine.describe_restore_image_tasks()
    assert failed.state == "Failed"
    assert failed.failure_reason
    assert snapshots(cloud) == before
    assert [image.name for image in cloud.ec2.describe_images()] == ["web"]


def test_an_object_that_was_replaced_while_the_task_waited_fails_it() -> None:
    cloud, _, key = archived()
    other = stored(cloud, registered(cloud, "other"))
    content = cloud.s3.open_object(BUCKET, other).read()
    with TaskEngine(cloud, concurrency=1) as engine:
        with held(cloud.ebs, "put_snapshot_block") as reached:
            engine.create_restore_image_task(bucket=BUCKET, object_key=other, name="other-2")
            assert reached.wait(60)
            task = engine.create_restore_image_task(bucket=BUCKET, object_key=key, name="web-2")
            cloud.s3.put_object(BUCKET, key, [content])
        with pytest.raises(amistore.TaskFailedError, match="content id"):
            engine.wait(task)


def test_the_task_is_gone_on_with_after_its_engine_was_left(tmp_path: Path) -> None:
    cloud = amistore.DirectoryBackend(tmp_path / "cloud")
    cloud.s3.create_bucket(BUCKET)
    key = stored(cloud, registered(cloud))
    with TaskEngine(cloud) as engine:
        task = engine.create_restore_image_task(bucket=BUCKET, object_key=key, name="web-2")
    with TaskEngine(cloud) as engine:
        engine.resume()
        found = engine.wait(task)
    assert found.image_id == task.image_id
    assert disks(cloud, str(found.image_id)) == DISKS
