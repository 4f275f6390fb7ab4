"""The preflight tells what would make storing an image fail, before anything starts."""

from __future__ import annotations

import attrs
import pytest

pytest.importorskip("boto3")

from backends.aws.cases import START, Account

import amistore
from amistore.backends.aws.preflight import preflight
from amistore.testing import block
from amistore.testing.aws import FakeAWS

THEM = "999999999999"


@pytest.fixture
def aws():
    with FakeAWS(start=START) as fake:
        yield fake


def added(aws: FakeAWS, *snapshots: dict[str, object], **members: object) -> str:
    """An image of snapshots with these members, each with one block."""
    mappings = [
        {
            "deviceName": f"/dev/xvd{'abcdefg'[number]}",
            "ebs": {"snapshotId": aws.add_snapshot(volume_size=1, blocks={7: block(1)}, **each)},
        }
        for number, each in enumerate(snapshots)
    ]
    return aws.add_image(name="web", mappings=mappings, **members)


def check(aws: FakeAWS, image_id: str, *, denied: tuple[str, ...] = ()) -> None:
    account = Account.of(aws, aws.add_credential(denied=denied))
    image = account.registry.describe_image(image_id)
    preflight(image, registry=account.registry, blocks=account.store)


def snapshot_ids(aws: FakeAWS, image_id: str) -> list[str]:
    return aws.images[image_id].snapshot_ids


@pytest.mark.parametrize(
    "snapshot", [{}, {"encrypted": True}, {"owner_id": THEM, "shared_with": ["123456789012"]}]
)
def test_images_that_can_be_read_pass(aws, snapshot) -> None:
    check(aws, added(aws, snapshot, {}))


def test_an_empty_snapshot_passes(aws) -> None:
    snapshot_id = aws.add_snapshot(volume_size=1)
    check(
        aws,
        aws.add_image(name="web", mappings=[{"deviceName": "/dev/xvda", "ebs": {"snapshotId": snapshot_id}}]),
    )


@pytest.mark.parametrize("empty_pages", [False, True])
def test_a_block_is_read_of_each_snapshot(aws, empty_pages) -> None:
    aws.behaviour.empty_pages = empty_pages
    image_id = added(aws, {}, {})
    check(aws, image_id)
    assert set(aws.log.blocks) == {("GetSnapshotBlock", each, 7) for each in snapshot_ids(aws, image_id)}


@pytest.mark.parametrize(
    ("snapshot", "kind", "told"),
    [
        (
            {"storage_tier": "archive"},
            amistore.InvalidRequestError,
            ["archive tier", "restore-snapshot-tier"],
        ),
        (
            {"outpost_arn": "arn:aws:outposts:us-east-1:123456789012:outpost/op-1"},
            amistore.InvalidRequestError,
            ["Outpost", "copy-snapshot"],
        ),
        ({"state": "pending"}, amistore.InvalidRequestError, ["pending", "wait"]),
        ({"state": "error"}, amistore.InvalidRequestError, ["error", "another image"]),
        ({"public": True}, amistore.BackendError, ["public", "copy-image"]),
        ({"public": True, "owner_id": THEM}, amistore.BackendError, [THEM, "public", "copy-image"]),
        ({"owner_id": THEM}, amistore.NotFoundError, ["us-east-1", "shared"]),
    ],
)
def test_a_snapshot_that_cannot_be_read_is_told_with_reason_and_remedy(aws, snapshot, kind, told) -> None:
    image_id = added(aws, {}, snapshot)
    with pytest.raises(kind) as caught:
        check(aws, image_id)
    good, bad = snapshot_ids(aws, image_id)
    assert bad in str(caught.value)
    assert good not in str(caught.value)
    for word in told:
        assert word in str(caught.value)


@pytest.mark.parametrize("action", ["ebs:ListSnapshotBlocks", "ebs:GetSnapshotBlock", "kms:Decrypt"])
def test_a_missing_permission_is_told(aws, action) -> None:
    image_id = added(aws, {"encrypted": True})
    with pytest.raises(amistore.AccessDeniedError, match=action) as caught:
        check(aws, image_id, denied=(action,))
    (snapshot_id,) = snapshot_ids(aws, image_id)
    assert caught.value.snapshot_id == snapshot_id
    assert aws.snapshots[snapshot_id].kms_key_arn in str(caught.value)


def test_a_snapshot_that_is_gone_is_told(aws) -> None:
    aws.add_snapshot(volume_size=1, snapshot_id="snap-00000000000000000", owner_id="999999999999")
    image_id = aws.add_image(
        name="web", mappings=[{"deviceName": "/dev/xvda", "ebs": {"snapshotId": "snap-00000000000000000"}}]
    )
    with pytest.raises(amistore.NotFoundError, match="deleted") as caught:
        check(aws, image_id)
    assert caught.value.snapshot_id == "snap-00000000000000000"


def test_all_findings_are_told_at_once(aws) -> None:
    image_id = added(aws, {"storage_tier": "archive"}, {"owner_id": THEM}, {"public": True})
    with pytest.raises(amistore.AmistoreError, match="3 reasons") as caught:
        check(aws, image_id)
    for snapshot_id in snapshot_ids(aws, image_id):
        assert snapshot_id in str(caught.value)


@pytest.mark.parametrize("state", ["pending", "failed", "disabled"])
def test_an_image_that_is_not_available_is_refused(aws, state) -> None:
    account = Account.of(aws)
    image = attrs.evolve(account.registry.describe_image(added(aws, {})), state=state)
    with pytest.raises(amistore.InvalidRequestError, match=state) as caught:
        preflight(image, registry=account.registry, blocks=account.store)
    assert caught.value.code == "InvalidAMIID.Unavailable"


@pytest.mark.parametrize(
    "members", [{"virtualizationType": "paravirtual"}, {"rootDeviceType": "instance-store"}]
)
def test_images_that_no_task_stores_are_refused(aws, members) -> None:
    with pytest.raises(amistore.InvalidRequestError) as caught:
        check(aws, added(aws, {}, **members))
    assert caught.value.code == "UnsupportedOperation"


def test_throttling_is_no_finding(aws) -> None:
    image_id = added(aws, {})
    aws.faults.add("ListSnapshotBlocks", "throttle")
    with pytest.raises(amistore.ThrottledError) as caught:
        check(aws, image_id)
    assert caught.value.retryable


@pytest.mark.parametrize(
    "members",
    [
        {"virtualization_type": "paravirtual"},
        {"root_device_type": "instance-store"},
        {"block_device_mappings": ()},
    ],
)
def test_any_backend_refuses_what_no_task_stores(members) -> None:
    ebs = amistore.EbsBlockDevice(snapshot_id="snap-0123456789abcdef0")
    image = amistore.Image(
        image_id="ami-0123456789abcdef0",
        block_device_mappings=(amistore.BlockDeviceMapping(device_name="/dev/xvda", ebs=ebs),),
    )
    amistore.MemoryBackend().preflight(image)
    with pytest.raises(amistore.InvalidRequestError) as caught:
        amistore.MemoryBackend().preflight(attrs.evolve(image, **members))
    assert caught.value.code == "UnsupportedOperation"
