"""A root device whose name is no mapping's: told before an AMI is stored, and restored or refused at once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import attrs
import images
import pytest
from tasks.accounts import BUCKET

import amistore
from amistore import TaskEngine
from amistore.testing import FaultyBackend

TAKEN = "/dev/sda1, its root device: /dev/sda is taken for it"
UNKNOWN = "no mapping is named /dev/sdx, the root device, and it is not known which of /dev/sda, /dev/sdb"


@pytest.fixture(params=["memory", "directory"])
def cloud(request: pytest.FixtureRequest, tmp_path: Path) -> FaultyBackend:
    kind = request.param
    inner = amistore.MemoryBackend() if kind == "memory" else amistore.DirectoryBackend(tmp_path / "cloud")
    inner.s3.create_bucket(BUCKET)
    return FaultyBackend(inner)


def odd(cloud: FaultyBackend, root: str) -> amistore.Image:
    """An image of two disks with such a root device."""
    ids = [images.snapshot(cloud.ebs, 1, {0: images.block(number)}) for number in (1, 2)]
    return images.image(ids, root_device_name=root)


def test_a_partition_of_a_mapped_disk_is_told_and_restored(
    cloud: FaultyBackend, caplog: pytest.LogCaptureFixture
) -> None:
    image_id = cloud.ec2.register_image(odd(cloud, "/dev/sda1"))
    with TaskEngine(cloud) as engine, caplog.at_level(logging.WARNING, "amistore"):
        (warning,) = engine.plan_store(image_id=image_id, bucket=BUCKET).warnings
        assert warning.endswith(TAKEN)
        assert warning in caplog.messages  # also of who makes no plan
        task = engine.wait(engine.create_store_image_task(image_id=image_id, bucket=BUCKET))
        place: dict[str, Any] = {"bucket": BUCKET, "object_key": task.object_key, "name": "odd"}
        (warning,) = engine.plan_restore(**place).warnings
        assert warning.endswith(TAKEN)
        restored = engine.wait(engine.create_restore_image_task(**place))
    image = cloud.ec2.describe_image(str(restored.image_id))
    assert image.root_mapping is not None
    assert image.root_mapping.device_name == "/dev/sda"
    assert image.root_mapping.ebs is not None
    root = str(image.root_mapping.ebs.snapshot_id)
    assert images.contents(cloud.ebs, root) == (1, {0: images.block(1)})


def test_one_that_is_not_known_is_told_before_the_store_and_refused_before_the_restore(
    cloud: FaultyBackend, caplog: pytest.LogCaptureFixture
) -> None:
    image = odd(cloud, "/dev/sdx")
    with caplog.at_level(logging.WARNING, "amistore"):
        cloud.preflight(image)
    (told,) = caplog.messages
    assert "by hand only" in told
    assert UNKNOWN in told
    place = {"bucket": BUCKET, "object_key": "odd.bin"}
    amistore.store(image, cloud.ebs, cloud.s3.at(*place.values()))
    cloud.calls.clear()
    with TaskEngine(cloud) as engine:
        for call in (engine.plan_restore, engine.create_restore_image_task):
            with pytest.raises(amistore.InvalidRequestError, match=UNKNOWN):
                call(**place, name="odd")
    with pytest.raises(amistore.InvalidRequestError, match=UNKNOWN):
        amistore.restore(cloud.s3.at(*place.values()), cloud, name="odd")
    assert not any(verb == "start_snapshot" for verb, *_ in cloud.calls)


def test_an_archive_without_the_root_device_is_refused_before_the_restore(cloud: FaultyBackend) -> None:
    root, data = (images.snapshot(cloud.ebs, 1, {0: images.block(number)}) for number in (1, 2))
    image = images.image([root, data])
    amistore.store(image, cloud.ebs, cloud.s3.at(BUCKET, "part.bin"), snapshots=[data])
    cloud.calls.clear()
    told = f"it does not have the root device /dev/sda, {root}"
    with pytest.raises(amistore.InvalidRequestError, match=told):
        amistore.restore(cloud.s3.at(BUCKET, "part.bin"), cloud)
    with TaskEngine(cloud) as engine, pytest.raises(amistore.InvalidRequestError, match=told):
        engine.create_restore_image_task(bucket=BUCKET, object_key="part.bin", name="part")
    assert not any(verb == "start_snapshot" for verb, *_ in cloud.calls)


def test_a_part_of_the_mappings_makes_no_root_device_known_that_was_not(cloud: FaultyBackend) -> None:
    """Of two partitions, neither of them the root device's name, the one that was stored may be the swap."""
    ids = [images.snapshot(cloud.ebs, 1, {0: images.block(number)}) for number in (1, 2)]
    mappings = [
        attrs.evolve(each, device_name=f"/dev/sda{number}")
        for number, each in enumerate(images.image(ids).block_device_mappings, 1)
    ]
    image = images.image(ids, block_device_mappings=tuple(mappings))
    amistore.store(image, cloud.ebs, cloud.s3.at(BUCKET, "part.bin"), snapshots=ids[1:])
    told = "named /dev/sda, the root device, and it is not known which of /dev/sda1, /dev/sda2 is meant"
    with pytest.raises(amistore.InvalidRequestError, match=told):
        amistore.restore(cloud.s3.at(BUCKET, "part.bin"), cloud)
    with TaskEngine(cloud) as engine, pytest.raises(amistore.InvalidRequestError, match=told):
        engine.create_restore_image_task(bucket=BUCKET, object_key="part.bin", name="part")
