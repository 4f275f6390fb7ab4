"""EC2's operations on snapshots and tags, and what an account tells of itself."""

from __future__ import annotations

from typing import Any

import pytest
from testing.models import client, refusal

from amistore.testing.aws import FakeAWS

OTHER = "210987654321"


def ids(ec2: Any, **arguments: Any) -> list[str]:
    return [snapshot["SnapshotId"] for snapshot in ec2.describe_snapshots(**arguments)["Snapshots"]]


def test_a_snapshot_is_described_with_all_that_it_has(aws: FakeAWS, ec2: Any) -> None:
    """EC2 API reference: Snapshot."""
    snapshot_id = aws.add_snapshot(
        volume_size=8, description="root", tags={"a": "b"}, encrypted=True, storage_tier="archive"
    )
    (found,) = ec2.describe_snapshots(SnapshotIds=[snapshot_id])["Snapshots"]
    assert {
        name: found[name] for name in ("VolumeSize", "Description", "State", "StorageTier", "Progress")
    } == {
        "VolumeSize": 8,
        "Description": "root",
        "State": "completed",
        "StorageTier": "archive",
        "Progress": "100%",
    }
    assert (found["Tags"], found["Encrypted"]) == ([{"Key": "a", "Value": "b"}], True)
    assert found["KmsKeyId"].startswith("arn:aws:kms:")


def test_snapshots_are_seen_by_those_who_may(aws: FakeAWS, ec2: Any) -> None:
    """EC2 API reference: DescribeSnapshots, "Owners" and "RestorableBy"."""
    own = aws.add_snapshot(volume_size=1)
    shared = aws.add_snapshot(volume_size=1, owner_id=OTHER, shared_with=[aws.account_id])
    public = aws.add_snapshot(volume_size=1, owner_id=OTHER, public=True)
    private = aws.add_snapshot(volume_size=1, owner_id=OTHER)
    assert ids(ec2) == [own, shared, public]
    assert ids(ec2, OwnerIds=["self"]) == [own]
    assert ids(ec2, RestorableByUserIds=["all"]) == [public]
    assert refusal(ids, ec2, SnapshotIds=[private])[:2] == (400, "InvalidSnapshot.NotFound")
    assert refusal(ids, ec2, SnapshotIds=["snap-xyz"])[:2] == (400, "InvalidSnapshotID.Malformed")
    assert refusal(ec2.delete_snapshot, SnapshotId=public)[:2] == (403, "AuthFailure")


def test_sharing_is_told_to_the_owner(aws: FakeAWS, ec2: Any) -> None:
    """EC2 API reference: DescribeSnapshotAttribute, DescribeImageAttribute."""
    snapshot_id = aws.add_snapshot(volume_size=1, public=True, shared_with=[OTHER])
    image_id = aws.add_image(name="web", mappings=[], shared_with=[OTHER])
    told = ec2.describe_snapshot_attribute(SnapshotId=snapshot_id, Attribute="createVolumePermission")
    assert told["CreateVolumePermissions"] == [{"Group": "all"}, {"UserId": OTHER}]
    told = ec2.describe_image_attribute(ImageId=image_id, Attribute="launchPermission")
    assert told["LaunchPermissions"] == [{"UserId": OTHER}]


def test_filters_choose_snapshots(aws: FakeAWS, ec2: Any) -> None:
    """EC2 API reference: DescribeSnapshots, Filters."""
    wanted = aws.add_snapshot(volume_size=8, tags={"Team": "a"}, description="root")
    aws.add_snapshot(volume_size=1, state="pending")
    for name, value in {
        "tag:Team": "a",
        "status": "completed",
        "volume-size": "8",
        "description": "r*t",
    }.items():
        assert ids(ec2, Filters=[{"Name": name, "Values": [value]}]) == [wanted]
    assert refusal(ids, ec2, Filters=[{"Name": "colour", "Values": ["red"]}])[1] == "InvalidParameterValue"


def test_snapshots_come_in_pages(aws: FakeAWS, ec2: Any) -> None:
    """EC2 API reference: "Pagination"."""
    wanted = [aws.add_snapshot(volume_size=1) for _ in range(11)]
    pages = ec2.get_paginator("describe_snapshots").paginate(PaginationConfig={"PageSize": 5})
    found = [[item["SnapshotId"] for item in page["Snapshots"]] for page in pages]
    assert found == [wanted[:5], wanted[5:10], wanted[10:]]


def test_a_snapshot_in_use_stays(aws: FakeAWS, ec2: Any) -> None:
    """EC2 API reference: DeleteSnapshot; "Error codes", InvalidSnapshot.InUse."""
    snapshot_id = aws.add_snapshot(volume_size=1)
    mapping = {"deviceName": "/dev/xvda", "ebs": {"snapshotId": snapshot_id}}
    image_id = aws.add_image(name="web", mappings=[mapping])
    assert refusal(ec2.delete_snapshot, SnapshotId=snapshot_id)[:2] == (400, "InvalidSnapshot.InUse")
    ec2.deregister_image(ImageId=image_id)
    ec2.delete_snapshot(SnapshotId=snapshot_id)
    assert refusal(ec2.delete_snapshot, SnapshotId=snapshot_id)[1] == "InvalidSnapshot.NotFound"


def test_tags_are_set_changed_and_taken_off(aws: FakeAWS, ec2: Any) -> None:
    """EC2 API reference: CreateTags, DeleteTags, DescribeTags."""
    snapshot_id = aws.add_snapshot(volume_size=1, tags={"aws:backup": "x"})
    image_id = aws.add_image(name="web", mappings=[])
    ec2.create_tags(
        Resources=[snapshot_id, image_id], Tags=[{"Key": "a", "Value": "1"}, {"Key": "b", "Value": ""}]
    )
    ec2.create_tags(Resources=[image_id], Tags=[{"Key": "a", "Value": "2"}])
    found = ec2.describe_tags(Filters=[{"Name": "key", "Values": ["a"]}])["Tags"]
    assert [(tag["ResourceType"], tag["Value"]) for tag in found] == [("image", "2"), ("snapshot", "1")]
    ec2.delete_tags(Resources=[image_id], Tags=[{"Key": "a", "Value": "other"}, {"Key": "b"}])
    assert aws.images[image_id].tags == {"a": "2"}
    ec2.delete_tags(Resources=[snapshot_id])
    assert aws.snapshots[snapshot_id].tags == {"aws:backup": "x"}


@pytest.mark.parametrize(
    ("tags", "code"),
    [
        ([{"Key": "aws:x", "Value": ""}], "InvalidParameterValue"),
        ([{"Key": "x" * 129, "Value": ""}], "InvalidTagKey.Malformed"),
        ([{"Key": "x", "Value": "x" * 257}], "InvalidParameterValue"),
        ([{"Key": str(i), "Value": ""} for i in range(51)], "TagLimitExceeded"),
    ],
)
def test_tags_have_rules(aws: FakeAWS, ec2: Any, tags: list[dict[str, str]], code: str) -> None:
    """EC2 user guide: "Tag restrictions"."""
    snapshot_id = aws.add_snapshot(volume_size=1)
    assert refusal(ec2.create_tags, Resources=[snapshot_id], Tags=tags)[:2] == (400, code)
    assert aws.snapshots[snapshot_id].tags == {}


def test_a_dry_run_tells_whether_it_would_do(aws: FakeAWS, ec2: Any) -> None:
    """EC2 API reference: "Common query parameters", DryRun."""
    snapshot_id = aws.add_snapshot(volume_size=1)
    assert refusal(ec2.delete_snapshot, SnapshotId=snapshot_id, DryRun=True)[:2] == (412, "DryRunOperation")
    denied = client(aws, "ec2", aws.add_credential(denied=["ec2:DeleteSnapshot"]))
    found = refusal(denied.delete_snapshot, SnapshotId=snapshot_id, DryRun=True)
    assert found[:2] == (403, "UnauthorizedOperation")
    assert snapshot_id in aws.snapshots
    denied.close()


def test_the_region_and_who_asks_are_told() -> None:
    """EC2 API reference: DescribeRegions; STS API reference: GetCallerIdentity."""
    with FakeAWS(region="cn-north-1", account_id="111122223333", partition="aws-cn") as aws:
        ec2, sts = client(aws, "ec2"), client(aws, "sts", aws.add_credential(user="alice"))
        (region,) = ec2.describe_regions()["Regions"]
        assert region["RegionName"] == "cn-north-1"
        assert region["Endpoint"] == "ec2.cn-north-1.amazonaws.com.cn"
        found = sts.get_caller_identity()
        assert (found["Account"], found["Arn"]) == ("111122223333", "arn:aws-cn:iam::111122223333:user/alice")
        ec2.close()
        sts.close()
