"""R21: a disk with holes, restored under encryption and read as a volume, is right where they are filled."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import images
import pytest
from backends.aws.accounts import QUICK

import amistore
from amistore import BLOCK_SIZE, GIB, AWSBackend, SnapshotSettings
from amistore.testing.aws import Credential, FakeAWS

GIBIBYTES = 2 if os.environ.get("AMISTORE_LONG") else 1
BLOCKS = GIBIBYTES * GIB // BLOCK_SIZE


@pytest.fixture
def aws() -> Iterator[FakeAWS]:
    with FakeAWS(seed=1) as made:
        yield made


def account(aws: FakeAWS, *, credential: Credential | None = None, **options: Any) -> AWSBackend:
    given = aws.client_options(credential)
    url, region = given.pop("endpoint_url"), given["region_name"]
    urls = {"ec2": url, "ebs": url}
    return AWSBackend(
        boto3.Session(**given), region_name=region, endpoint_urls=urls, retries=QUICK, **options
    )


def local(folder: Path, size: int = GIBIBYTES * GIB, part: int = 10) -> tuple[amistore.DirectoryBackend, str]:
    """An AMI of a disk that has data in one of `part` blocks, some of it zeros."""
    with (folder / "disk.raw").open("wb") as disk:
        disk.truncate(size)
        for index in range(0, size // BLOCK_SIZE, part):
            disk.seek(index * BLOCK_SIZE)
            disk.write(images.block(index // part % 50))
    cloud = amistore.DirectoryBackend(folder / "cloud")
    cloud.s3.create_bucket("archive")
    return cloud, amistore.import_disks(folder / "disk.raw", cloud, name="web").image_id


def archived(folder: Path) -> amistore.DirectoryBackend:
    """That AMI's archive, as archive/web.bin."""
    cloud, image_id = local(folder)
    amistore.store(cloud.ec2.describe_image(image_id), cloud.ebs, cloud.s3.at("archive", "web.bin"))
    return cloud


def differing(aws: FakeAWS, snapshot_id: str, disk: Path, **options: Any) -> set[int]:
    """Blocks that a volume of the snapshot has, and the disk has not."""
    found = set()
    with disk.open("rb") as source:
        for index, block in enumerate(aws.read_volume(snapshot_id, **options)):
            if block != source.read(BLOCK_SIZE):
                found.add(index)
        assert not source.read(1)
    return found


HOLES = set(range(BLOCKS)) - set(range(0, BLOCKS, 10))


def made(aws: FakeAWS) -> str:
    (snapshot_id,) = aws.snapshots
    return snapshot_id


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if "fill_holes" in each.getMessage()]


def test_a_filled_disk_read_as_an_encrypted_volume_is_its_source_byte_for_byte(
    aws: FakeAWS, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cloud = archived(tmp_path)
    destination = account(aws, snapshots=SnapshotSettings(encrypted=True))
    amistore.restore(cloud.s3.at("archive", "web.bin"), destination, fill_holes=True, workers=4)
    assert aws.snapshots[made(aws)].encrypted
    assert differing(aws, made(aws), tmp_path / "disk.raw") == set()
    assert told(caplog) == []


def test_without_filling_the_holes_are_noise_and_one_warning_tells(
    aws: FakeAWS, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    aws.behaviour.encryption_by_default = True  # nobody asked for it
    cloud = archived(tmp_path)
    amistore.restore(cloud.s3.at("archive", "web.bin"), account(aws))
    assert differing(aws, made(aws), tmp_path / "disk.raw") == HOLES
    (warning,) = told(caplog)
    size = len(HOLES) * BLOCK_SIZE / GIB
    assert f"{size:.1f} GiB of it are holes" in warning or "MiB of it are holes" in warning
    assert made(aws) in warning
    assert [each.levelno for each in caplog.records if "fill_holes" in each.getMessage()] == [logging.WARNING]


def test_an_unencrypted_restore_is_right_and_noise_where_it_is_launched_encrypted(
    aws: FakeAWS, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cloud = archived(tmp_path)
    amistore.restore(cloud.s3.at("archive", "web.bin"), account(aws))
    assert told(caplog) == []
    assert differing(aws, made(aws), tmp_path / "disk.raw") == set()
    assert differing(aws, made(aws), tmp_path / "disk.raw", encrypted=True) == HOLES


SETTINGS: list[tuple[bool, dict[str, Any], bool]] = [
    (False, {}, False),
    (True, {}, True),
    (False, {"encrypted": True}, True),
    (False, {"kms_key_arn": "arn:aws:kms:us-east-1:123456789012:key/mine"}, True),
]


@pytest.mark.parametrize(("by_default", "settings", "encrypted"), SETTINGS)
@pytest.mark.parametrize("keep", [None, ("archive", "kept.bin")])
def test_a_transfer_tells_before_anything_is_begun(
    aws: FakeAWS,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    by_default: bool,
    settings: dict[str, Any],
    encrypted: bool,
    keep: tuple[str, str] | None,
) -> None:
    aws.behaviour.encryption_by_default = by_default
    source, image_id = local(tmp_path, GIB, 1000)
    services = account(aws, snapshots=SnapshotSettings(**settings))
    destination = amistore.Backend(ebs=services.ebs, s3=source.s3, ec2=services.ec2)
    begun: list[bool] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "fill_holes" in record.getMessage():
                begun.append(bool(aws.snapshots) or (keep is not None and bool(uploads(source))))

    handler = Handler()
    logging.getLogger("amistore").addHandler(handler)
    try:
        kept = keep and destination.s3.at(*keep)
        amistore.transfer(image_id, source=source, destination=destination, name="moved", keep=kept)
    finally:
        logging.getLogger("amistore").removeHandler(handler)
    assert aws.snapshots[made(aws)].encrypted == encrypted
    assert begun == [False] * encrypted
    assert len(told(caplog)) == encrypted


def uploads(cloud: amistore.DirectoryBackend) -> list[Any]:
    return list(cloud.s3.list_multipart_uploads("archive"))


def test_who_may_not_ask_for_encryption_by_default_is_told_when_the_snapshot_is_started(
    aws: FakeAWS, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    aws.behaviour.encryption_by_default = True
    source, image_id = local(tmp_path, GIB, 1000)
    credential = aws.add_credential(denied=["ec2:GetEbsEncryptionByDefault"])
    destination = account(aws, credential=credential)
    assert destination.ebs.encrypts_snapshots() is None
    amistore.transfer(image_id, source=source, destination=destination)
    (warning,) = told(caplog)
    assert made(aws) in warning


def test_a_disk_without_holes_is_not_warned_of(aws: FakeAWS, caplog: pytest.LogCaptureFixture) -> None:
    aws.behaviour.encryption_by_default = True
    source = amistore.MemoryBackend()  # a GiB of data, but one block of memory
    snapshot_id = images.snapshot(source.ebs, 1, dict.fromkeys(range(GIB // BLOCK_SIZE), images.block(1)))
    image_id = source.ec2.register_image(images.image([snapshot_id]))
    amistore.transfer(image_id, source=source, destination=account(aws))
    assert len(aws.read_snapshot(made(aws))) == GIB // BLOCK_SIZE
    assert told(caplog) == []


def test_several_volumes_are_told_of_once(aws: FakeAWS, caplog: pytest.LogCaptureFixture) -> None:
    aws.behaviour.encryption_by_default = True
    memory = amistore.MemoryBackend()
    ids = [images.snapshot(memory.ebs, 1, {number: images.block(1)}) for number in range(3)]
    for number, told_before in enumerate((True, False)):
        caplog.clear()
        if told_before:
            image_id = memory.ec2.register_image(images.image(ids))
            amistore.transfer(image_id, source=memory, destination=account(aws), name=f"web-{number}")
        else:
            volumes = [(1, {number: images.block(1)}) for number in range(3)]
            memory.s3.create_bucket("archive")
            memory.s3.put_object("archive", "web.bin", [images.packed(volumes)])
            amistore.unpack(memory.s3.at("archive", "web.bin"), account(aws).ebs)
        assert len(told(caplog)) == 1


def test_a_snapshot_that_is_not_known_everywhere_yet_is_waited_for(
    aws: FakeAWS, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    aws.behaviour.encryption_by_default = True
    aws.behaviour.missing_calls = 2
    volumes = [(1, {5: images.block(1)})]
    memory = amistore.MemoryBackend()
    memory.s3.create_bucket("archive")
    memory.s3.put_object("archive", "web.bin", [images.packed(volumes)])
    amistore.unpack(memory.s3.at("archive", "web.bin"), account(aws).ebs)
    assert len(told(caplog)) == 1


def test_noise_is_the_same_in_each_reading_and_another_in_each_block(aws: FakeAWS) -> None:
    snapshot_id = aws.add_snapshot(volume_size=1, blocks={0: images.block(1)}, encrypted=True)
    first, second = (list(itertools.islice(aws.read_volume(snapshot_id), 50)) for _ in range(2))
    assert first == second
    assert len(set(first)) == 50
    plain = aws.add_snapshot(volume_size=1, blocks={0: images.block(1)})
    assert set(itertools.islice(aws.read_volume(plain), 50)) == {images.block(1), bytes(BLOCK_SIZE)}
    with pytest.raises(KeyError):
        aws.read_volume("snap-0123456789abcdef0")
