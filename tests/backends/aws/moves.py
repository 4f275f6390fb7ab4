"""A small AMI that is stored and restored whole, and what must hold whatever went wrong meanwhile."""

from __future__ import annotations

import functools
import hashlib

import images
from backends.aws.accounts import disks

import amistore
from amistore import Backend, Image, Layout
from amistore.testing.aws import FakeAWS

# Seven segments of 2 blocks for each volume, and three parts: the least of S3's, 5 MiB, is five segments.
LAYOUT = Layout(blocks_per_frame=1, blocks_per_segment=2)
KEY = "ami.bin"
NAME = "web-2"


@functools.cache
def volume(number: int) -> dict[int, bytes]:
    """14 blocks, most of which do not compress, one of zeros; with gaps between them."""
    blocks = {index * 3: images.noise(100 * number + index) for index in range(13)}
    return {**blocks, 2000: bytes(amistore.BLOCK_SIZE)}


def add_ami(aws: FakeAWS) -> str:
    """The AMI, of two volumes of 1 and 2 GiB."""
    ids = [aws.add_snapshot(volume_size=1 + number, blocks=volume(number)) for number in range(2)]
    return aws.add_image(
        name="web",
        root_device_name="/dev/sda",
        mappings=[
            {"deviceName": device, "ebs": {"snapshotId": snapshot_id}}
            for device, snapshot_id in zip(("/dev/sda", "/dev/sdb"), ids, strict=True)
        ],
        architecture="x86_64",
    )


@functools.cache
def expected_disks() -> dict[str, dict[int, str]]:
    """SHA-256 of each block of each device, as `disks` gives them."""
    return {
        device: {index: hashlib.sha256(content).hexdigest() for index, content in volume(number).items()}
        for number, device in enumerate(("/dev/sda", "/dev/sdb"))
    }


def store(backend: Backend, image_id: str, bucket: str, key: str = KEY, **options: object) -> None:
    """Describe the image, and pack it."""
    image = backend.ec2.describe_image(image_id)
    amistore.store(
        image,
        backend.ebs,
        backend.s3.at(bucket, key),
        workers=2,
        **options,
        options=amistore.PackOptions(layout=LAYOUT, part_size=5 * amistore.MIB),
    )


def restore(backend: Backend, bucket: str, key: str = KEY, **options: object) -> Image:
    """Unpack, register, and describe what was registered."""
    made = amistore.unpack(backend.s3.at(bucket, key), backend.ebs, workers=2, **options)  # type: ignore[arg-type]
    try:
        image_id = backend.ec2.register_image(made, name=NAME)
    except BaseException:
        for snapshot_id in made.snapshot_ids:  # as `transfer` does it
            backend.ebs.delete_snapshot(snapshot_id)
        raise
    return backend.ec2.describe_image(image_id)


def check_restored(aws: FakeAWS, image: Image) -> None:
    """The disks are the same, and nothing else was made."""
    assert disks(aws, image) == expected_disks()
    assert {aws.snapshots[snapshot_id].state for snapshot_id in image.snapshot_ids} == {"completed"}
    assert len(aws.snapshots) == 4
    assert len(aws.images) == 2


def check_nothing_made(aws: FakeAWS) -> None:
    """No snapshot, pending or completed, and no image beside the AMI's own."""
    assert len(aws.snapshots) == 2
    assert len(aws.images) == 1
