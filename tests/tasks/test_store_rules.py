"""What EC2's guide says of CreateStoreImageTask, rule by rule."""

from __future__ import annotations

import subprocess
from pathlib import Path
from urllib.parse import quote

import images
import pytest
from tasks.accounts import BUCKET, DISKS, account, held, registered, stored

import amistore
from amistore import BlockDeviceMapping, DirectoryBackend, EbsBlockDevice, MemoryBackend, Tag, TaskEngine

RICH = {
    "description": "größe & more",
    "architecture": "arm64",
    "owner_id": "111122223333",
    "ena_support": True,
    "boot_mode": "uefi",
    "tpm_support": "v2.0",
    "imds_support": "v2.0",
    "tags": (Tag(key="team", value="images"),),
}


def rich(cloud: MemoryBackend) -> str:
    """An AMI with many attributes, and tags of it and of its snapshots."""
    ids = [images.snapshot(cloud.ebs, 1, disk) for disk in DISKS]
    image = images.image(ids, **RICH).with_tags(snapshot_tags=[Tag(key="disk", value="of web")])
    return cloud.ec2.register_image(image)


def empty() -> MemoryBackend:
    cloud = MemoryBackend()
    cloud.s3.create_bucket(BUCKET)
    return cloud


def test_the_object_is_named_like_the_ami_also_behind_a_prefix() -> None:
    cloud, image_id = account()
    with TaskEngine(cloud) as engine:
        plain = engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
        nested = engine.create_store_image_task(image_id=image_id, bucket=f"{BUCKET}/2026/web/")
        assert (plain.object_key, plain.bucket) == (f"{image_id}.bin", BUCKET)
        assert (nested.object_key, nested.bucket) == (f"2026/web/{image_id}.bin", BUCKET)
        engine.wait()
    for task in (plain, nested):
        with amistore.open(cloud.s3.open_object(BUCKET, task.object_key)) as archive:
            assert archive.image.image_id == image_id


def test_the_object_appears_only_when_the_task_is_completed() -> None:
    cloud, image_id = account()
    with TaskEngine(cloud) as engine:
        with held(cloud.s3, "complete_multipart_upload") as reached:
            task = engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
            assert reached.wait(60)
            with pytest.raises(amistore.NotFoundError):
                cloud.s3.head_object(BUCKET, task.object_key)
            assert engine.describe_store_image_tasks()[0].state == "InProgress"
        engine.wait(task)
    assert cloud.s3.head_object(BUCKET, task.object_key).size


def test_the_call_returns_while_the_work_is_still_to_be_done() -> None:
    cloud, image_id = account()
    with TaskEngine(cloud) as engine, held(cloud.ebs, "get_snapshot_block"):
        task = engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
        assert (task.state, task.progress_percentage) == ("InProgress", 0)


def test_one_object_holds_all_metadata_all_tags_and_every_disk() -> None:
    cloud = empty()
    image_id = rich(cloud)
    key = stored(cloud, image_id)
    with amistore.open(cloud.s3.open_object(BUCKET, key)) as archive:
        archive.verify().check()
        assert archive.image == cloud.ec2.describe_image(image_id)
        assert archive.image.tags == RICH["tags"]
        assert [each.tags for each in archive.image.snapshots] == [(Tag(key="disk", value="of web"),)] * 2
        assert sorted(volume.blocks for volume in archive.volumes) == [1, 3]


def test_the_object_says_name_description_registration_owner_and_time() -> None:
    cloud = empty()
    image_id = rich(cloud)
    with TaskEngine(cloud, clock=lambda: 1_700_000_000.25) as engine:
        task = engine.wait(engine.create_store_image_task(image_id=image_id, bucket=BUCKET))
    metadata = dict(cloud.s3.head_object(BUCKET, task.object_key).metadata)
    assert metadata.pop("amistore-run")
    assert metadata == {
        "ami-name": "web",
        "ami-description": "größe & more",
        "ami-registration-date": "2026-01-02T03:04:05.000Z",
        "ami-owner-account": "111122223333",
        "ami-store-timestamp": "2023-11-14T22:13:20.250Z",
        "amistore-task": task.task_id,
    }


def test_the_longest_metadata_fits_where_s3_has_2048_bytes() -> None:
    cloud = empty()
    snapshot_id = images.snapshot(cloud.ebs, 1, {})
    image = images.image([snapshot_id], name="x" * 128, description="ü" * 4000, owner_id="1" * 12)
    image_id = cloud.ec2.register_image(image)
    key = stored(cloud, image_id)
    metadata = cloud.s3.head_object(BUCKET, key).metadata
    assert sum(len(name) + len(quote(value)) + 7 for name, value in metadata.items()) <= 2048
    assert metadata["ami-description"].startswith("üü")
    with amistore.open(cloud.s3.open_object(BUCKET, key)) as archive:
        assert archive.image.description == "ü" * 4000


def test_object_tags_are_set_as_given() -> None:
    cloud, image_id = account()
    with TaskEngine(cloud) as engine:
        tags = [Tag(key="team", value="images"), Tag(key="empty", value="")]
        engine.wait(engine.create_store_image_task(image_id=image_id, bucket=BUCKET, s3_object_tags=tags))
    assert cloud.s3.get_object_tagging(BUCKET, f"{image_id}.bin") == {"team": "images", "empty": ""}


def test_what_can_be_compressed_takes_less_room() -> None:
    cloud = empty()
    sizes = []
    for number, content in enumerate([images.block(1), images.noise(1)]):
        snapshot_id = images.snapshot(cloud.ebs, 1, dict.fromkeys(range(16), content))
        image_id = cloud.ec2.register_image(images.image([snapshot_id], name=f"web-{number}"))
        sizes.append(cloud.s3.head_object(BUCKET, stored(cloud, image_id)).size)
    assert sizes[0] * 10 < sizes[1]


def test_tasks_wait_for_their_turn_first_in_first_out() -> None:
    cloud, image_id = account()
    wanted = [image_id, *(registered(cloud, f"other-{number}") for number in range(3))]
    with TaskEngine(cloud, concurrency=1) as engine:
        with held(cloud.s3, "upload_part") as reached:
            for each in wanted:
                engine.create_store_image_task(image_id=each, bucket=BUCKET)
            assert reached.wait(60)
            waiting = engine.describe_store_image_tasks()[:3]
            assert {(task.state, task.progress_percentage) for task in waiting} == {("InProgress", 0)}
        engine.wait()
    times = [cloud.s3.head_object(BUCKET, f"{each}.bin").metadata["ami-store-timestamp"] for each in wanted]
    assert times == sorted(times)


def test_two_tasks_that_read_one_snapshot_take_turns_and_others_go_on_beside_them() -> None:
    # Listing a snapshot ends the block tokens that another lister of it has.
    cloud, image_id = account()
    other = registered(cloud, "other")
    for bucket in ("second", "third"):
        cloud.s3.create_bucket(bucket)
    with TaskEngine(cloud, concurrency=3) as engine:
        with held(cloud.s3, "complete_multipart_upload", of=BUCKET) as reached:
            first = engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
            assert reached.wait(60)
            second = engine.create_store_image_task(image_id=image_id, bucket="second")
            third = engine.create_store_image_task(image_id=other, bucket="third")
            assert engine.wait(third).state == "Completed"
            assert engine.describe_store_image_tasks(image_ids=[image_id])[0].progress_percentage == 0
        assert [task.task_id for task in engine.wait()] == [first.task_id, second.task_id, third.task_id]


def test_an_ami_without_snapshots_and_a_paravirtual_one_are_refused() -> None:
    cloud = empty()
    ephemeral = BlockDeviceMapping(device_name="/dev/sdb", virtual_name="ephemeral0")
    instance = images.image([], block_device_mappings=[ephemeral], root_device_name=None)
    snapshot_id = images.snapshot(cloud.ebs, 1, {})
    old = images.image([snapshot_id], name="old", virtualization_type="paravirtual")
    for image in (instance, old):
        image_id = cloud.ec2.register_image(image)
        with TaskEngine(cloud) as engine:
            with pytest.raises(amistore.InvalidRequestError) as caught:
                engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
            assert caught.value.code == "UnsupportedOperation"
            assert len(engine.describe_store_image_tasks()) == 0


def test_a_snapshot_deleted_meanwhile_fails_the_task() -> None:
    cloud, image_id = account()
    with TaskEngine(cloud) as engine:
        with held(cloud.ebs, "get_snapshot_block") as reached:
            task = engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
            assert reached.wait(60)
            for snapshot_id in cloud.ec2.describe_image(image_id).snapshot_ids:
                cloud.ebs.delete_snapshot(snapshot_id)
        with pytest.raises(amistore.TaskFailedError, match="no such snapshot"):
            engine.wait(task)
    with pytest.raises(amistore.NotFoundError):
        cloud.s3.head_object(BUCKET, task.object_key)


def test_a_second_copy_in_the_same_bucket_is_refused_and_the_first_stays() -> None:
    cloud, image_id = account()
    with TaskEngine(cloud) as engine:
        with held(cloud.s3, "upload_part") as reached:
            first = engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
            assert reached.wait(60)
            with pytest.raises(amistore.AlreadyExistsError, match=first.task_id):
                engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
        engine.wait()
        before = cloud.s3.head_object(BUCKET, first.object_key)
        with pytest.raises(amistore.AlreadyExistsError):
            engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
        assert len(engine.describe_store_image_tasks()) == 1
    assert cloud.s3.head_object(BUCKET, first.object_key) == before


def test_two_amis_and_two_buckets_are_two_objects() -> None:
    cloud, image_id = account()
    cloud.s3.create_bucket("other")
    other = registered(cloud, "other")
    with TaskEngine(cloud) as engine:
        engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
        engine.create_store_image_task(image_id=image_id, bucket="other")
        engine.create_store_image_task(image_id=other, bucket=BUCKET)
        assert {task.state for task in engine.wait()} == {"Completed"}


def test_a_bucket_of_another_region_is_refused() -> None:
    cloud, image_id = account()

    def head_bucket(bucket: str) -> None:
        raise amistore.InvalidRequestError(f"{bucket} lies in another Region", code="InvalidRequest")

    cloud.s3.head_bucket = head_bucket
    with TaskEngine(cloud) as engine:
        with pytest.raises(amistore.InvalidRequestError, match="another Region"):
            engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
        assert len(engine.describe_store_image_tasks()) == 0


def test_encrypted_snapshots_are_stored_in_plain() -> None:
    cloud = empty()
    snapshot_id = images.snapshot(cloud.ebs, 1, DISKS[1])
    ebs = EbsBlockDevice(snapshot_id=snapshot_id, encrypted=True)
    mapping = BlockDeviceMapping(device_name="/dev/sda", ebs=ebs)
    image_id = cloud.ec2.register_image(images.image([], block_device_mappings=[mapping]))
    with amistore.open(cloud.s3.open_object(BUCKET, stored(cloud, image_id))) as archive:
        disk = archive.volumes[0].open()
        disk.seek(3 * amistore.BLOCK_SIZE)
        assert disk.read(amistore.BLOCK_SIZE) == DISKS[1][3]


def test_tar_extracts_what_a_task_has_stored(tmp_path: Path) -> None:
    cloud = DirectoryBackend(tmp_path / "cloud")
    cloud.s3.create_bucket(BUCKET)
    image_id = registered(cloud)
    path = cloud.s3.path(BUCKET, stored(cloud, image_id))
    subprocess.run(["tar", "-xf", path, "-C", tmp_path], check=True)
    extracted = {}
    for snapshot_id in cloud.ec2.describe_image(image_id).snapshot_ids:
        with (tmp_path / image_id / f"{snapshot_id}.raw").open("rb") as disk:
            for index in images.contents(cloud.ebs, snapshot_id)[1]:
                disk.seek(index * amistore.BLOCK_SIZE)
                extracted[snapshot_id, index] = disk.read(amistore.BLOCK_SIZE)
    expected = {
        (snapshot_id, index): content
        for snapshot_id in cloud.ec2.describe_image(image_id).snapshot_ids
        for index, content in images.contents(cloud.ebs, snapshot_id)[1].items()
    }
    assert extracted == expected
