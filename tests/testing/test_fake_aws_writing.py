"""Snapshots started and completed, as the EBS direct APIs reference and its guide have it."""

from __future__ import annotations

from typing import Any

import pytest
from testing.models import block, client, complete, indexes, pages, put, refusal

from amistore.testing.aws import FakeAWS

NOT_VALID = (400, "ValidationException")
KEY = "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"


def state(ec2: Any, snapshot_id: str) -> dict[str, Any]:
    (found,) = ec2.describe_snapshots(SnapshotIds=[snapshot_id])["Snapshots"]
    return dict(found)


def started(ebs: Any, **members: Any) -> str:
    snapshot_id: str = ebs.start_snapshot(**({"VolumeSize": 1} | members))["SnapshotId"]
    return snapshot_id


def test_a_started_snapshot_is_pending_with_what_was_asked(ebs: Any, ec2: Any) -> None:
    """EBS direct APIs reference: StartSnapshot, "Response Elements"."""
    tags = [{"Key": "Name", "Value": "web"}]
    answer = ebs.start_snapshot(VolumeSize=65_536, Description="restored", Tags=tags)
    assert (answer["Status"], answer["VolumeSize"], answer["Tags"]) == ("pending", 65_536, tags)
    found = state(ec2, answer["SnapshotId"])
    assert (found["State"], found["Description"], found["Tags"]) == ("pending", "restored", tags)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"VolumeSize": 65_537}, "INVALID_VOLUME_SIZE"),
        ({"Timeout": 4321}, "INVALID_PARAMETER_VALUE"),
        ({"ClientToken": "x" * 65}, "INVALID_PARAMETER_VALUE"),
        ({"Description": "x" * 256}, "INVALID_PARAMETER_VALUE"),
        ({"Tags": [{"Key": "x" * 128, "Value": ""}]}, "INVALID_TAG"),
        ({"Tags": [{"Key": "aws:x", "Value": ""}]}, "INVALID_TAG"),
        ({"Tags": [{"Key": str(i), "Value": ""} for i in range(51)]}, "INVALID_TAG"),
        ({"KmsKeyArn": KEY}, "INVALID_CUSTOMER_KEY"),
        ({"Encrypted": True, "KmsKeyArn": "not a key"}, "INVALID_CUSTOMER_KEY"),
    ],
)
def test_a_start_that_breaks_a_rule_is_refused(
    aws: FakeAWS, ebs: Any, members: dict[str, Any], reason: str
) -> None:
    """EBS direct APIs reference: StartSnapshot; the guide on idempotency says 64 characters."""
    assert refusal(started, ebs, **members) == (*NOT_VALID, reason)
    assert not aws.snapshots


def test_a_client_token_starts_one_snapshot(aws: FakeAWS, ebs: Any) -> None:
    """EBS direct APIs guide: "Ensure idempotency in StartSnapshot API requests"."""
    first = started(ebs, ClientToken="one")
    assert started(ebs, ClientToken="one") == first
    assert started(ebs, ClientToken="two") != first
    assert refusal(started, ebs, ClientToken="one", VolumeSize=2)[:2] == (409, "ConflictException")
    assert len(aws.snapshots) == 2


def test_a_snapshot_that_is_not_completed_in_time_is_cancelled(aws: FakeAWS, ebs: Any, ec2: Any) -> None:
    """EBS direct APIs reference: StartSnapshot, Timeout, which counts from the last block."""
    usual, short = started(ebs), started(ebs, Timeout=10)
    aws.clock.advance(599)
    put(ebs, short, 0, block(0))
    aws.clock.advance(599)
    assert state(ec2, short)["State"] == "pending"
    aws.clock.advance(2)
    assert state(ec2, short)["State"] == "error"
    assert state(ec2, short)["StateMessage"]
    assert refusal(put, ebs, short, 0, block(0)) == (*NOT_VALID, "INVALID_SNAPSHOT_ID")
    assert state(ec2, usual)["State"] == "pending"
    aws.clock.advance(2401)
    assert state(ec2, usual)["State"] == "error"


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("ResourceNotFoundException", (404, "ResourceNotFoundException", "SNAPSHOT_NOT_FOUND")),
        ("ValidationException", (400, "ValidationException", "INVALID_SNAPSHOT_ID")),
    ],
)
def test_a_snapshot_may_not_exist_right_after_its_start(
    aws: FakeAWS, ebs: Any, ec2: Any, code: str, found: tuple[int, str, str]
) -> None:
    """EBS direct APIs guide: "Optimize performance"; EC2 API reference: "Eventual consistency"."""
    aws.behaviour.missing_seconds, aws.behaviour.missing_code = 120, code
    snapshot_id = started(ebs)
    assert refusal(put, ebs, snapshot_id, 0, block(0)) == found
    assert refusal(state, ec2, snapshot_id)[1] == "InvalidSnapshot.NotFound"
    aws.clock.advance(120)
    put(ebs, snapshot_id, 0, block(0))


def test_a_snapshot_may_not_exist_for_some_calls(aws: FakeAWS, ebs: Any) -> None:
    """EBS direct APIs guide: "Optimize performance"."""
    aws.behaviour.missing_calls = 2
    snapshot_id = started(ebs)
    for _ in range(2):
        assert refusal(put, ebs, snapshot_id, 0, block(0))[0] == 404
    put(ebs, snapshot_id, 0, block(0))


def test_encryption_follows_what_is_asked_and_the_account(aws: FakeAWS, ebs: Any, ec2: Any) -> None:
    """EBS direct APIs guide: "Encryption outcomes: No parent snapshot"."""
    assert not state(ec2, started(ebs))["Encrypted"]
    assert state(ec2, started(ebs, Encrypted=True))["KmsKeyId"].startswith("arn:aws:kms:us-east-1:")
    assert state(ec2, started(ebs, Encrypted=True, KmsKeyArn=KEY))["KmsKeyId"] == KEY
    aws.behaviour.encryption_by_default = True
    assert state(ec2, started(ebs))["Encrypted"]
    assert refusal(started, ebs, Encrypted=False)[:2] == NOT_VALID
    assert ec2.get_ebs_encryption_by_default()["EbsEncryptionByDefault"]
    assert ec2.get_ebs_default_kms_key_id()["KmsKeyId"]


def test_encryption_follows_the_parent(aws: FakeAWS, ebs: Any, ec2: Any) -> None:
    """EBS direct APIs guide: "Encryption outcomes", with an encrypted and an unencrypted parent."""
    plain = aws.add_snapshot(volume_size=1)
    secret = aws.add_snapshot(volume_size=1, encrypted=True, kms_key_arn=KEY)
    assert not state(ec2, started(ebs, ParentSnapshotId=plain))["Encrypted"]
    assert state(ec2, started(ebs, ParentSnapshotId=secret))["KmsKeyId"] == KEY
    for parent in (plain, secret):
        for wanted in (True, False):
            assert refusal(started, ebs, ParentSnapshotId=parent, Encrypted=wanted)[:2] == NOT_VALID
    aws.behaviour.encryption_by_default = True
    assert refusal(started, ebs, ParentSnapshotId=plain)[:2] == NOT_VALID


def test_a_child_has_its_parents_blocks_under_its_own(aws: FakeAWS, ebs: Any) -> None:
    """EBS direct APIs guide: "Write Amazon EBS snapshots": incremental snapshots."""
    parent = aws.add_snapshot(volume_size=1, blocks={0: block(0), 1: block(1)})
    child = started(ebs, ParentSnapshotId=parent)
    own = {1: block(10), 7: block(7)}
    for index, data in own.items():
        put(ebs, child, index, data)
    complete(ebs, child, own)
    assert indexes(pages(ebs, child)) == [0, 1, 7]
    assert aws.read_snapshot(child) == {0: block(0), **own}
    changed = ebs.list_changed_blocks(FirstSnapshotId=parent, SecondSnapshotId=child)["ChangedBlocks"]
    assert [item["BlockIndex"] for item in changed] == [1, 7]


def test_only_so_many_snapshots_are_pending(aws: FakeAWS, ebs: Any) -> None:
    """Amazon EBS endpoints and quotas: "Pending snapshots per account" (100)."""
    aws.behaviour.pending_snapshots = 2
    first, _ = started(ebs), started(ebs)
    found = refusal(started, ebs)
    assert found == (402, "ServiceQuotaExceededException", "DEPENDENCY_SERVICE_QUOTA_EXCEEDED")
    complete(ebs, first, {})
    started(ebs)


@pytest.mark.parametrize(
    "changed",
    [{"ChangedBlocksCount": 3}, {"Checksum": "A" * 43 + "="}, {"ChecksumAggregationMethod": "TREE"}],
    ids=lambda changed: next(iter(changed)),
)
def test_completing_with_wrong_facts_is_refused(ebs: Any, ec2: Any, changed: dict[str, Any]) -> None:
    """EBS direct APIs reference: CompleteSnapshot, "Request Parameters"."""
    snapshot_id = started(ebs)
    blocks = {0: block(0), 1: block(1)}
    for index, data in blocks.items():
        put(ebs, snapshot_id, index, data)
    put(ebs, snapshot_id, 1, block(1))  # an attempt more, not a block
    assert refusal(complete, ebs, snapshot_id, blocks, **changed)[:2] == NOT_VALID
    assert state(ec2, snapshot_id)["State"] == "pending"
    assert complete(ebs, snapshot_id, blocks)["Status"] == "completed"
    assert refusal(complete, ebs, snapshot_id, blocks) == (*NOT_VALID, "INVALID_SNAPSHOT_ID")


def test_the_checksum_may_be_left_out(ebs: Any) -> None:
    """EBS direct APIs reference: CompleteSnapshot, Checksum is not required."""
    answer = ebs.complete_snapshot(SnapshotId=started(ebs), ChangedBlocksCount=0)
    assert answer["Status"] == "completed"


def test_completion_takes_its_time(aws: FakeAWS, ebs: Any, ec2: Any) -> None:
    """EBS direct APIs guide: "an asynchronous workflow that seals the snapshot"."""
    aws.behaviour.completion_seconds = 30
    snapshot_id = started(ebs)
    assert complete(ebs, snapshot_id, {})["Status"] == "pending"
    assert refusal(put, ebs, snapshot_id, 0, block(0)) == (*NOT_VALID, "INVALID_SNAPSHOT_ID")
    assert state(ec2, snapshot_id)["State"] == "pending"
    aws.clock.advance(30)
    found = state(ec2, snapshot_id)
    assert (found["State"], found["Progress"]) == ("completed", "100%")


def test_completion_takes_some_looks(aws: FakeAWS, ebs: Any, ec2: Any) -> None:
    """EBS direct APIs reference: CompleteSnapshot, Status: pending."""
    aws.behaviour.completion_describes = 2
    snapshot_id = started(ebs)
    complete(ebs, snapshot_id, {})
    assert [state(ec2, snapshot_id)["State"] for _ in range(3)] == ["pending", "pending", "completed"]


def test_completion_may_fail(aws: FakeAWS, ebs: Any, ec2: Any) -> None:
    """EC2 API reference: Snapshot, status and statusMessage."""
    aws.behaviour.completion_failure = "The KMS key is disabled."
    snapshot_id = started(ebs)
    complete(ebs, snapshot_id, {})
    found = state(ec2, snapshot_id)
    assert (found["State"], found["StateMessage"]) == ("error", "The KMS key is disabled.")


def test_progress_is_what_the_writer_tells(ebs: Any, ec2: Any) -> None:
    """EBS direct APIs reference: PutSnapshotBlock, Progress."""
    snapshot_id = started(ebs)
    put(ebs, snapshot_id, 0, block(0), Progress=40)
    assert state(ec2, snapshot_id)["Progress"] == "40%"


def test_tags_need_a_permission(aws: FakeAWS) -> None:
    """EBS direct APIs guide: "Control access": tagging takes ec2:CreateTags."""
    untagged = client(aws, "ebs", aws.add_credential(denied=["ec2:CreateTags"]))
    started(untagged)
    assert refusal(started, untagged, Tags=[{"Key": "a", "Value": "b"}])[1] == "AccessDeniedException"
    untagged.close()
