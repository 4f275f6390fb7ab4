"""The registry of images in EC2, on the strict fake."""

from __future__ import annotations

import base64
import datetime
import logging

import attrs
import pytest

pytest.importorskip("boto3")

from backends.aws.cases import START, Account

import amistore
from amistore.backends.retrying import RetryingBackend
from amistore.model import Fate
from amistore.model.fidelity import leaves
from amistore.testing import ImageRegistryContract, RegistryCase, block, store_snapshot
from amistore.testing.aws import FakeAWS

UEFI = base64.b64encode(b"AMZNUEFI" * 300).decode()


@pytest.fixture
def aws():
    with FakeAWS(start=START) as fake:
        yield fake


@pytest.fixture
def account(aws):
    return Account.of(aws)


class TestAWSImageRegistry(ImageRegistryContract):
    @pytest.fixture
    def registry(self, account):
        return RegistryCase(registry=account.registry, store=account.store)

    def test_keeps_every_attribute(self, registry):
        # EC2 keeps what RegisterImage takes: test_the_report_of_what_is_kept_is_true.
        image = full_image(registry.store)
        described = registry.registry.describe_image(registry.registry.register_image(image))
        fates = {each.attribute: each.fate for each in registry.registry.fidelity(image)}
        expected = {leaf.path: leaf.value for leaf in leaves(image) if fates[leaf.path] is Fate.KEPT}
        found = {leaf.path: leaf.value for leaf in leaves(described)}
        assert {path: found.get(path) for path in expected} == expected
        assert described.state == "available"
        assert [snapshot.state for snapshot in described.snapshots] == ["completed", "completed"]


def full_image(store: amistore.backends.BlockStore) -> amistore.Image:
    """An image with every attribute set to what another account's EC2 may have said."""
    described = [
        amistore.Snapshot(
            snapshot_id="snap-0123456789abcdef0",
            volume_size=size,
            description=f"snapshot {size}",
            owner_id="999999999999",
            start_time="2020-01-02T03:04:05.000Z",
            encrypted=True,
            kms_key_id="arn:aws:kms:eu-west-1:999999999999:key/k",
            volume_id="vol-0123456789abcdef0",
            storage_tier="standard",
            tags=(amistore.Tag(key="aws:backup", value="1"), amistore.Tag(key="size", value=str(size))),
            extra={"Progress2": "100%"},
        )
        for size in (1, 2)
    ]
    restored = []
    for each in described:
        snapshot_id = store.start_snapshot(
            each.volume_size,
            description=each.description,
            tags=[tag for tag in each.tags if tag.key == "size"],
        )
        store.complete_snapshot(snapshot_id, 0, EMPTY)
        store.wait_snapshot(snapshot_id)
        restored.append(attrs.evolve(each, snapshot_id=snapshot_id))
    first, second = (each.snapshot_id for each in restored)
    texts = {
        field.name: f"the {field.name}" for field in attrs.fields(amistore.Image) if field.name != "state"
    }
    return amistore.Image(
        **{
            **texts,
            "image_id": "ami-0123456789abcdef0",
            "name": "full",
            "architecture": "arm64",
            "virtualization_type": "hvm",
            "hypervisor": "xen",
            "image_type": "machine",
            "root_device_type": "ebs",
            "root_device_name": "/dev/xvda",
            "ena_support": True,
            "sriov_net_support": "simple",
            "boot_mode": "uefi",
            "tpm_support": "v2.0",
            "imds_support": "v2.0",
            "uefi_data": UEFI,
            "deprecation_time": "2030-01-02T03:04:00.000Z",
            "deregistration_protection": "enabled-with-cooldown",
            "product_codes": (
                amistore.model.ProductCode(product_code_id="code", product_code_type="marketplace"),
            ),
            "block_device_mappings": (
                amistore.BlockDeviceMapping(
                    device_name="/dev/xvda",
                    ebs=amistore.EbsBlockDevice(
                        snapshot_id=first,
                        volume_size=100,
                        volume_type="gp3",
                        iops=4000,
                        throughput=250,
                        delete_on_termination=False,
                        encrypted=True,
                        kms_key_id="arn:aws:kms:eu-west-1:999999999999:key/k",
                        outpost_arn="arn:aws:outposts:eu-west-1:999999999999:outpost/op-1",
                        extra={"NewInEbs": 1.5},
                    ),
                ),
                amistore.BlockDeviceMapping(
                    device_name="/dev/xvdb",
                    ebs=amistore.EbsBlockDevice(snapshot_id=second, volume_type="gp2", iops=300),
                ),
                amistore.BlockDeviceMapping(device_name="/dev/xvdd", virtual_name="ephemeral0"),
                amistore.BlockDeviceMapping(device_name="/dev/xvde", no_device=""),
                amistore.BlockDeviceMapping(
                    device_name="/dev/xvdf",
                    ebs=amistore.EbsBlockDevice(volume_size=8, volume_type="gp2", encrypted=True),
                ),
            ),
            "snapshots": tuple(restored),
            "tags": (amistore.Tag(key="Name", value="web"), amistore.Tag(key="aws:ec2:x", value="y")),
            "extra": {"LastLaunchedTime": "2025-01-02T03:04:05.000Z", "ImageAllowed": True},
        }
    )


# SHA-256 of nothing: LINEAR over no blocks.
EMPTY = bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")


@pytest.mark.parametrize("tags", [(), (amistore.Tag(key="Name", value="of the registry"),)])
def test_the_report_of_what_is_kept_is_true(aws, tags) -> None:
    account = Account.of(aws, image_tags=tags)
    image = full_image(account.store)
    reports = account.registry.fidelity(image, name="another")
    described = account.registry.describe_image(account.registry.register_image(image, name="another"))
    after = {leaf.path: leaf.value for leaf in leaves(described)}
    before = {leaf.path: leaf.value for leaf in leaves(image)}
    fates = {each.attribute: each.fate for each in reports}
    assert set(fates) == set(before)
    for path, value in before.items():
        if fates[path] is Fate.KEPT:
            assert after.get(path) == value, path
        if fates[path] is Fate.DROPPED:
            assert after.get(path) != value, path
    assert {fate: list(fates.values()).count(fate) for fate in Fate}[Fate.KEPT] > 40
    for path in ("uefi_data", "boot_mode", "tpm_support", "deprecation_time", "deregistration_protection"):
        assert fates[path] is Fate.KEPT


def test_all_that_an_image_of_ec2_says_is_described(aws, account) -> None:
    snapshot_id = aws.add_snapshot(
        volume_size=2, description="root", tags={"aws:backup": "1"}, encrypted=True, storage_tier="archive"
    )
    image_id = aws.add_image(
        name="web",
        mappings=[{"deviceName": "/dev/xvda", "ebs": {"snapshotId": snapshot_id, "volumeSize": 9}}],
        tags={"Name": "web", "aws:x": "y"},
        uefi_data=UEFI,
        deprecation_time=START,
        architecture="arm64",
        productCodes=[{"productCode": "code", "type": "marketplace"}],
        platform="windows",
        sourceImageId="ami-00000000000000001",
        sourceImageRegion="eu-west-1",
        lastLaunchedTime="2025-01-02T03:04:05.000Z",
    )
    image = account.registry.describe_image(image_id)
    assert image.uefi_data == UEFI
    assert image.architecture == "arm64"
    assert image.deprecation_time == image.creation_date == "2026-01-02T03:04:05.000Z"
    assert image.product_codes == (
        amistore.model.ProductCode(product_code_id="code", product_code_type="marketplace"),
    )
    assert image.platform == "windows"
    assert (image.source_image_id, image.source_image_region) == ("ami-00000000000000001", "eu-west-1")
    assert image.extra["LastLaunchedTime"] == "2025-01-02T03:04:05.000Z"
    assert "Public" not in image.extra
    assert [tag.key for tag in image.tags] == ["Name", "aws:x"]
    (snapshot,) = image.snapshots
    assert (snapshot.snapshot_id, snapshot.volume_size, snapshot.description) == (snapshot_id, 2, "root")
    assert (snapshot.encrypted, snapshot.storage_tier) == (True, "archive")
    assert snapshot.kms_key_id == aws.snapshots[snapshot_id].kms_key_arn
    assert snapshot.start_time == "2026-01-02T03:04:05.000Z"
    assert snapshot.tags == (amistore.Tag(key="aws:backup", value="1"),)
    assert account.registry.describe_images() == [image]


def test_images_of_others_are_described_but_not_listed(aws, account, caplog) -> None:
    snapshot_id = aws.add_snapshot(volume_size=1, owner_id="999999999999", public=True)
    image_id = aws.add_image(
        name="theirs",
        owner_id="999999999999",
        public=True,
        mappings=[{"deviceName": "/dev/xvda", "ebs": {"snapshotId": snapshot_id}}],
    )
    assert account.registry.describe_image(image_id).name == "theirs"
    assert "leaving out the UEFI data of" in caplog.text
    assert account.registry.describe_images() == []
    assert account.registry.find_images("theirs") == []


def test_a_snapshot_that_is_not_to_be_seen_does_not_hide_its_image(aws, account) -> None:
    there = aws.add_snapshot(volume_size=1)
    aws.add_snapshot(volume_size=1, snapshot_id="snap-00000000000000000", owner_id="999999999999")
    image_id = aws.add_image(
        name="web",
        mappings=[
            {"deviceName": "/dev/xvda", "ebs": {"snapshotId": there}},
            {"deviceName": "/dev/xvdb", "ebs": {"snapshotId": "snap-00000000000000000"}},
        ],
    )
    image = account.registry.describe_image(image_id)
    assert image.snapshot_ids == ("snap-00000000000000000", there)
    assert [snapshot.snapshot_id for snapshot in image.snapshots] == [there]


@pytest.mark.parametrize("short", [False, True])
def test_images_and_snapshots_of_many_pages_are_all_described(aws, account, short) -> None:
    aws.behaviour.short_pages = short
    for number in range(1100):
        snapshot_id = aws.add_snapshot(volume_size=1)
        aws.add_image(
            name=f"web-{number}",
            mappings=[{"deviceName": "/dev/xvda", "ebs": {"snapshotId": snapshot_id}}],
            bootMode="legacy-bios",
        )
    images = account.registry.describe_images()
    assert [image.image_id for image in images] == sorted(aws.images)
    assert all(len(image.snapshots) == 1 for image in images)


def test_an_image_is_found_by_its_name_alone(account) -> None:
    image = account.image()
    wanted = account.registry.register_image(image, name="web")
    account.registry.register_image(image, name="web-2")
    assert [found.image_id for found in account.registry.find_images("web")] == [wanted]
    assert account.registry.find_images("w*b") == []
    assert account.registry.find_images("nothing") == []


def test_registering_waits_until_the_image_is_available(aws, account) -> None:
    aws.behaviour.image_seconds = 3600
    image_id = account.registry.register_image(account.image())
    assert aws.images[image_id].state == "available"
    assert aws.clock.now() >= START + datetime.timedelta(hours=1)


def test_an_image_that_fails_is_an_error_with_its_reason(aws, account) -> None:
    aws.behaviour.image_seconds = 10
    aws.behaviour.image_failure = "the snapshot could not be read"
    with pytest.raises(amistore.BackendError, match=r"failed: .*the snapshot could not be read") as caught:
        account.registry.register_image(account.image())
    assert caught.value.image_id in aws.images
    assert not caught.value.retryable


@pytest.mark.parametrize("operation", ["DescribeImages", "EnableImageDeprecation"])
@pytest.mark.parametrize("kind", ["503", "throttle", "reset-before-answer"])
def test_troubles_after_registering_pass(aws, account, operation, kind) -> None:
    aws.faults.add(operation, kind, times=3)
    image_id = account.registry.register_image(account.image(deprecation_time="2030-01-01T00:00:00.000Z"))
    assert aws.images[image_id].deprecation_time is not None


@pytest.mark.parametrize(
    ("operation", "members"),
    [
        ("EnableImageDeprecation", {"deprecation_time": "2030-01-01T00:00:00.000Z"}),
        (
            "EnableImageDeregistrationProtection",
            {"deregistration_protection": "enabled-without-cooldown"},
        ),
    ],
)
def test_what_cannot_be_set_afterwards_is_logged_and_the_image_is_there(
    aws, caplog, operation, members
) -> None:
    account = Account.of(aws, aws.add_credential(denied=[f"ec2:{operation}"]))
    with caplog.at_level(logging.WARNING, "amistore"):
        image_id = account.registry.register_image(account.image(**members))
    assert aws.images[image_id].state == "available"
    assert image_id in caplog.text
    assert f"ec2:{operation}" in caplog.text


@pytest.mark.parametrize("protection", ["enabled-with-cooldown", "enabled-without-cooldown"])
def test_a_protected_image_is_protected_again_and_not_deregistered(account, protection) -> None:
    image_id = account.registry.register_image(account.image(deregistration_protection=protection))
    assert account.registry.describe_image(image_id).deregistration_protection == protection
    with pytest.raises(amistore.BackendError, match="OperationNotPermitted"):
        account.registry.deregister_image(image_id)


def test_a_lost_answer_of_register_image_leaves_one_image_that_is_finished(aws, account) -> None:
    aws.behaviour.image_seconds = 30
    aws.faults.add("RegisterImage", "lost-reply", times=1)
    backend = amistore.Backend(ebs=account.store, s3=amistore.MemoryBackend().s3, ec2=account.registry)
    image = account.image(deprecation_time="2030-01-01T00:00:00.000Z")
    image_id = RetryingBackend(backend).ec2.register_image(image)
    assert list(aws.images) == [image_id]
    assert aws.images[image_id].state == "available"
    assert aws.images[image_id].deprecation_time is not None


def test_a_wrapped_registry_reports_like_itself(account) -> None:
    backend = amistore.Backend(ebs=account.store, s3=amistore.MemoryBackend().s3, ec2=account.registry)
    image = account.image(owner_id="999999999999")
    reports = RetryingBackend(backend).ec2.fidelity(image)
    assert reports == account.registry.fidelity(image)
    assert {each.attribute: each.fate for each in reports}["owner_id"] is Fate.REMAPPED


def test_tags_of_the_registry_are_set(aws) -> None:
    account = Account.of(aws, image_tags=[amistore.Tag(key="Restored", value="yes")])
    image_id = account.registry.register_image(account.image(tags=(amistore.Tag(key="Name", value="web"),)))
    assert aws.images[image_id].tags == {"Name": "web", "Restored": "yes"}


def test_paravirtual_images_are_refused_before_ec2_is_asked(aws, account) -> None:
    with pytest.raises(amistore.InvalidRequestError) as caught:
        account.registry.register_image(account.image(virtualization_type="paravirtual"))
    assert caught.value.code == "UnsupportedOperation"
    assert not aws.images


@pytest.mark.parametrize("action", ["DescribeImages", "DescribeImageAttribute", "DescribeSnapshots"])
def test_a_missing_permission_is_named(aws, action) -> None:
    snapshot_id = store_snapshot(Account.of(aws).store, 1, {0: block(1)})
    image_id = aws.add_image(
        name="web", mappings=[{"deviceName": "/dev/xvda", "ebs": {"snapshotId": snapshot_id}}]
    )
    account = Account.of(aws, aws.add_credential(denied=[f"ec2:{action}"]))
    with pytest.raises(amistore.AccessDeniedError, match=f"ec2:{action}"):
        account.registry.describe_image(image_id)
