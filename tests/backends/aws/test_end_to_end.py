"""An AMI with real filesystems: into an object of a real S3 server, and back, over HTTP."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path

import attrs
import images
import pytest
from backends.aws.accounts import account, disks, new_bucket
from backends.aws.proxy import fault_proxy
from objects.swaps import Swap

import amistore
from amistore import BLOCK_SIZE, GIB, Tag
from amistore.model import Fate
from amistore.testing import block
from amistore.testing.aws import FakeAWS

pytestmark = pytest.mark.xdist_group("swift")

UEFI = "QU1aTlVFRkk="


@pytest.fixture(scope="module")
def filesystem(tmp_path_factory) -> dict[int, bytes]:
    """The blocks of an ext4 with this Python's library in it; some of its blocks are zeros."""
    if not shutil.which("mke2fs"):
        pytest.skip("mke2fs is not installed")
    disk = tmp_path_factory.mktemp("ext4") / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(GIB)
    library = Path(sysconfig.get_path("stdlib"))
    files = disk.with_name("files")
    shutil.copytree(library / "email", files / "email")
    shutil.copytree(library / "asyncio", files / "asyncio")
    for number in range(10):
        (files / f"noise-{number}").write_bytes(images.noise(number, 2**20))
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", files, disk], check=True, capture_output=True)
    zeros = bytes(BLOCK_SIZE)
    with disk.open("rb") as file:
        pieces = enumerate(iter(lambda: file.read(BLOCK_SIZE), b""))
        blocks = {index: piece for index, piece in pieces if piece != zeros}
    return {**blocks, 5: blocks.get(5, bytes(BLOCK_SIZE)), 2047: bytes(BLOCK_SIZE)}


@pytest.fixture
def commercial(filesystem):
    with FakeAWS(region="us-east-2", account_id="111122223333") as aws:
        root = aws.add_snapshot(volume_size=1, blocks=filesystem, description="root", tags={"disk": "root"})
        data = aws.add_snapshot(volume_size=3, blocks={7: block(1), 6143: block(2)}, encrypted=True)
        aws.image_id = aws.add_image(
            name="web",
            root_device_name="/dev/xvda",
            mappings=[
                {
                    "deviceName": "/dev/xvda",
                    "ebs": {
                        "snapshotId": root,
                        "volumeSize": 8,
                        "volumeType": "gp3",
                        "iops": 3000,
                        "throughput": 125,
                        "deleteOnTermination": True,
                        "encrypted": False,
                    },
                },
                {"deviceName": "/dev/xvdf", "ebs": {"snapshotId": data, "encrypted": True}},
                {"deviceName": "/dev/xvdg", "virtualName": "ephemeral0"},
            ],
            tags={"Name": "größe", "aws:owner": "theirs", "team": "web"},
            uefi_data=UEFI,
            architecture="arm64",
            description="a web server",
            enaSupport=True,
            sriovNetSupport="simple",
            bootMode="uefi",
            tpmSupport="v2.0",
            imdsSupport="v2.0",
        )
        yield aws


@pytest.fixture
def government():
    with FakeAWS(region="us-gov-east-1", account_id="444455556666", partition="aws-us-gov") as aws:
        aws.behaviour.completion_describes = 1
        yield aws


def test_an_ami_goes_into_an_object_and_comes_back_in_another_partition(
    commercial, government, swift, tmp_path, filesystem
):
    source, destination = account(commercial, swift), account(government, swift)
    bucket = new_bucket(swift)
    image = source.ec2.describe_image(commercial.image_id)
    source.preflight(image)
    key = f"{image.image_id}.bin"
    amistore.store(image, source.ebs, source.s3.at(bucket, key))

    # GNU tar opens what lies in the bucket.
    copy = tmp_path / "ami.bin"
    with source.s3.open_object(bucket, key) as stored, copy.open("wb") as file:
        shutil.copyfileobj(stored, file)
    subprocess.run(["tar", "-xf", copy, "-C", tmp_path], check=True)
    snapshot_id = image.block_device_mappings[0].ebs.snapshot_id
    disk = tmp_path / image.image_id / f"{snapshot_id}.raw"
    assert disk.stat().st_size == GIB
    with disk.open("rb") as file:
        for index, content in filesystem.items():
            file.seek(index * BLOCK_SIZE)
            assert file.read(BLOCK_SIZE) == content

    made = amistore.unpack(destination.s3.at(bucket, key), destination.ebs)
    reports = destination.ec2.fidelity(made, name="web-2")
    image_id = destination.ec2.register_image(made, name="web-2")

    new = destination.ec2.describe_image(image_id)
    assert disks(government, new) == disks(commercial, image)
    assert [each.state for each in new.snapshots] == ["completed", "completed"]
    # Every attribute is as it was, or the report says what became of it.
    kept = {each.attribute for each in reports if each.fate is Fate.KEPT}
    told = {each.attribute: each.fate for each in reports}
    now = {each.attribute: each.value for each in destination.ec2.fidelity(new)}
    for each in reports:
        if each.attribute in kept:
            assert now[each.attribute] == each.value, each
    for attribute, fate in {
        "architecture": Fate.KEPT,
        "boot_mode": Fate.KEPT,
        "description": Fate.KEPT,
        "ena_support": Fate.KEPT,
        "imds_support": Fate.KEPT,
        "sriov_net_support": Fate.KEPT,
        "tpm_support": Fate.KEPT,
        "uefi_data": Fate.KEPT,
        "image_id": Fate.REMAPPED,
        "name": Fate.REMAPPED,
    }.items():
        assert told[attribute] is fate, attribute
    assert (new.uefi_data, new.name) == (UEFI, "web-2")
    assert [(tag.key, tag.value) for tag in new.tags] == [("Name", "größe"), ("team", "web")]
    root = new.snapshot(new.block_device_mappings[0].ebs.snapshot_id)
    assert (root.description, root.tags) == ("root", (Tag(key="disk", value="root"),))


@pytest.mark.parametrize("keep", [False, True])
def test_transfer_moves_an_ami_with_one_get_a_block_and_few_connections(commercial, government, swift, keep):
    place = (new_bucket(swift), "kept.bin") if keep else None
    with fault_proxy(swift) as s3:
        source, destination = account(commercial, s3.url), account(government, s3.url)
        keeping = destination.s3.at(*place) if place else None
        told = amistore.transfer(
            commercial.image_id, source=source, destination=destination, name="moved", keep=keeping, workers=2
        )
        # What is not kept goes by no object store.
        assert bool(s3.requests) == keep
    image = source.ec2.describe_image(commercial.image_id)
    moved = destination.ec2.describe_image(told.image_id)
    assert moved.name == "moved"
    assert disks(government, moved) == disks(commercial, image)
    blocks = sum(len(each) for each in disks(commercial, image).values())
    # Preflight lists both snapshots and gets a block of each; packing lists both twice.
    assert commercial.log.counts["GetSnapshotBlock"] == blocks + 2
    assert commercial.log.counts["ListSnapshotBlocks"] == 3 * 2
    assert government.log.counts["PutSnapshotBlock"] == blocks
    for aws in (commercial, government):
        assert aws.log.connections <= blocks + 2 * 2 + 2  # requests in flight, workers, EBS and EC2
    if keep:
        with amistore.open((account(government, swift).s3).at(place[0], place[1])) as archive:
            assert archive.image == image


def test_a_transfer_to_a_taken_name_is_refused_before_anything_is_read(commercial, government, swift):
    source, destination = account(commercial, swift), account(government, swift)
    snapshot_id = government.add_snapshot(volume_size=1)
    government.add_image(
        name="web", mappings=[{"deviceName": "/dev/xvda", "ebs": {"snapshotId": snapshot_id}}]
    )
    with pytest.raises(amistore.AlreadyExistsError, match="web"):
        amistore.transfer(commercial.image_id, source=source, destination=destination)
    assert set(government.snapshots) == {snapshot_id}


def test_a_transfer_that_cannot_register_leaves_no_snapshots(commercial, government, swift):
    source, destination = account(commercial, swift), account(government, swift)
    government.faults.add("RegisterImage", "500", calls=range(2, 100))  # the first is the dry run
    with pytest.raises(amistore.BackendError, match="InternalError"):
        amistore.transfer(commercial.image_id, source=source, destination=destination)
    assert government.log.counts["CompleteSnapshot"] == 2
    assert (dict(government.snapshots), dict(government.images)) == ({}, {})


@pytest.mark.parametrize("denied", ["ec2:RegisterImage", "ec2:CreateTags"])
@pytest.mark.parametrize("keep", [False, True])
def test_what_may_not_be_registered_is_told_before_any_data_move(commercial, government, swift, keep, denied):
    source = account(commercial, swift)
    credential = government.add_credential(denied=[denied])
    destination = account(government, swift, credential=credential)
    place = (new_bucket(swift), "kept.bin") if keep else None
    keeping = destination.s3.at(*place) if place else None
    with pytest.raises(amistore.AccessDeniedError, match=f"could not be registered in the end.*{denied}"):
        amistore.transfer(commercial.image_id, source=source, destination=destination, keep=keeping)
    assert commercial.log.counts["GetSnapshotBlock"] == 2  # of the source's own preflight
    assert government.log.counts["StartSnapshot"] == 0
    store = account(government, swift).s3
    if keep:
        with pytest.raises(amistore.NotFoundError):
            store.head_object(*place)
    bucket = new_bucket(swift)
    amistore.store(source.ec2.describe_image(commercial.image_id), source.ebs, store.at(bucket, "web.bin"))
    with pytest.raises(amistore.AccessDeniedError, match="in the end"):
        amistore.restore(store.at(bucket, "web.bin"), destination)
    assert government.log.counts["StartSnapshot"] == 0


@pytest.mark.parametrize("keep", [False, True])
def test_what_a_new_image_will_not_have_is_logged_once(commercial, government, swift, keep, caplog):
    source, destination = account(commercial, swift), account(government, swift)
    keeping = destination.s3.at(new_bucket(swift), "kept.bin") if keep else None
    amistore.transfer(commercial.image_id, source=source, destination=destination, keep=keeping)
    (warned,) = [each for each in caplog.messages if "is restored without" in each]
    assert (
        f"{commercial.image_id} is restored without tags[aws:owner].key = 'aws:owner' dropped: tags" in warned
    )
    assert "kept" not in warned
    assert "remapped" not in warned


def test_a_transfer_with_logs_goes_on_where_it_ended(commercial, government, swift, tmp_path):
    source, destination = account(commercial, swift), account(government, swift)
    place = (new_bucket(swift), "kept.bin")

    def move(destination):
        return amistore.transfer(
            commercial.image_id,
            source=source,
            destination=destination,
            keep=destination.s3.at(*place),
            log=tmp_path / "move.log",
        )

    government.faults.add("RegisterImage", "500", calls=range(2, 100))  # the first one is a dry run
    with pytest.raises(amistore.BackendError, match="InternalError"):
        move(destination)
    government.faults.clear()
    puts = government.log.counts["PutSnapshotBlock"]
    snapshots = set(government.snapshots)
    image_id = move(destination).image_id
    assert government.log.counts["PutSnapshotBlock"] == puts
    assert set(government.snapshots) == snapshots
    assert set(government.images) == {image_id}
    assert list(tmp_path.iterdir()) == []


def test_an_object_of_a_server_that_is_swapped_is_neither_restored_nor_told(commercial, swift):
    bucket = new_bucket(swift)
    image_id = commercial.image_id
    image = account(commercial, swift).ec2.describe_image(image_id)
    other = images.Volumes([])
    other.volumes = {each: (8, {0: images.noise(9)}) for each in image.snapshot_ids}
    evil = b"".join(amistore.pack(attrs.evolve(image, snapshots=()), other))
    there = set(commercial.images), set(commercial.snapshots)
    for at, copied in ((0, False), (2, True)):  # tests/objects/test_swapped_objects.py has every call
        cloud = account(commercial, swift)
        key = f"{at}.bin"
        swap = Swap(cloud.s3.inner, evil, at, copied, key, bucket=bucket)
        with pytest.raises(amistore.SourceChangedError):
            amistore.transfer(
                image_id, source=cloud, destination=cloud, name=key, keep=cloud.s3.at(bucket, key)
            )
        assert swap.calls is not None
        assert swap.calls >= at
        assert (set(commercial.images), set(commercial.snapshots)) == there


def test_an_archive_is_copied_between_stores_only_if_it_is_whole(commercial, swift):
    source = account(commercial, swift)
    image = source.ec2.describe_image(commercial.image_id)
    memory = amistore.MemoryBackend()
    memory.s3.create_bucket("bucket")
    there = new_bucket(swift)
    packed = b"".join(amistore.pack(image, source.ebs))
    memory.s3.put_object("bucket", "ami.bin", [packed], metadata={"name": "größe"})
    with amistore.open(memory.s3.at("bucket", "ami.bin")) as archive:
        content_id = archive.content_id

    copied = amistore.copy(memory.s3.at("bucket", "ami.bin"), source.s3.at(there, "copy.bin"))
    assert copied.size == len(packed)
    assert source.s3.head_object(there, "copy.bin").metadata["name"] == "größe"
    with source.s3.open_object(there, "copy.bin") as file:
        assert file.read() == packed
    with pytest.raises(amistore.AlreadyExistsError):
        amistore.copy(memory.s3.at("bucket", "ami.bin"), source.s3.at(there, "copy.bin"))
    with pytest.raises(amistore.CorruptArchiveError, match=content_id):
        amistore.copy(
            memory.s3.at("bucket", "ami.bin"), source.s3.at(there, "other.bin"), expected_content_id="0" * 64
        )
    small = images.packed([(1, {index: images.noise(index) for index in range(4)})])
    for at in range(3, len(small), len(small) // 100):
        damaged = bytearray(small)
        damaged[at] ^= 4
        memory.s3.put_object("bucket", "damaged.bin", [damaged])
        with pytest.raises(amistore.ArchiveError):
            amistore.copy(memory.s3.at("bucket", "damaged.bin"), memory.s3.at("bucket", "to.bin"))
        with pytest.raises(amistore.NotFoundError):
            memory.s3.head_object("bucket", "to.bin")
    assert memory.s3.list_multipart_uploads("bucket") == []


def test_what_cannot_be_read_is_told_before_a_transfer_starts(commercial, government, swift):
    denied = commercial.add_credential(denied=["kms:Decrypt"])
    source = account(commercial, swift, credential=denied)
    with pytest.raises(amistore.AccessDeniedError, match=r"(?s)snap-.*kms:Decrypt"):
        amistore.transfer(commercial.image_id, source=source, destination=account(government, swift))
    assert commercial.log.counts["GetSnapshotBlock"] <= 2
    assert dict(government.snapshots) == {}


def test_the_same_snapshot_mapped_twice_is_moved_once(commercial, government, swift):
    source = account(commercial, swift)
    image = source.ec2.describe_image(commercial.image_id)
    first = image.block_device_mappings[0]
    twice = attrs.evolve(
        image,
        block_device_mappings=(first, attrs.evolve(first, device_name="/dev/xvdz")),
        snapshots=(image.snapshot(first.ebs.snapshot_id),),
    )
    bucket = new_bucket(swift)
    amistore.store(twice, source.ebs, source.s3.at(bucket, "twice.bin"))
    made = amistore.unpack(source.s3.at(bucket, "twice.bin"), account(government, swift).ebs)
    assert len(made.snapshot_ids) == len(government.snapshots) == 1
