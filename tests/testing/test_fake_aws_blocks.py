"""Blocks written and read, as the EBS direct APIs reference and its guide have it."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from testing.models import block, client, complete, get, indexes, pages, put, refusal, sha256

from amistore.testing.aws import FakeAWS
from amistore.testing.aws.content import Pool
from amistore.units import BLOCK_SIZE

NOT_VALID = (400, "ValidationException")


@pytest.fixture
def pending(ebs: Any) -> str:
    snapshot_id: str = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    return snapshot_id


@pytest.fixture
def stored(aws: FakeAWS) -> str:
    return aws.add_snapshot(volume_size=1, blocks={0: block(0), 3: block(3), 2047: block(5)})


def first_block(ebs: Any, snapshot_id: str) -> dict[str, Any]:
    listed: dict[str, Any] = ebs.list_snapshot_blocks(SnapshotId=snapshot_id)["Blocks"][0]
    return listed


def test_what_was_put_is_listed_and_read(aws: FakeAWS, ebs: Any, pending: str) -> None:
    """EBS direct APIs guide: "Write Amazon EBS snapshots with EBS direct APIs"."""
    blocks = {2: block(2), 2047: block(9), 0: bytes(BLOCK_SIZE)}
    for index, data in blocks.items():
        assert put(ebs, pending, index, data)["Checksum"] == sha256(data)
    assert complete(ebs, pending, blocks)["Status"] == "completed"
    listing = pages(ebs, pending)
    assert indexes(listing) == [0, 2, 2047]
    assert {b["BlockIndex"]: get(ebs, pending, b) for b in listing[0]["Blocks"]} == blocks
    assert aws.read_snapshot(pending) == blocks


def test_a_block_comes_with_its_length_and_checksum(ebs: Any, stored: str) -> None:
    """EBS direct APIs reference: GetSnapshotBlock, "Response Elements"."""
    listed = first_block(ebs, stored)
    answer = ebs.get_snapshot_block(SnapshotId=stored, **listed)
    assert (answer["DataLength"], answer["Checksum"], answer["ChecksumAlgorithm"]) == (
        BLOCK_SIZE,
        sha256(block(0)),
        "SHA256",
    )
    assert answer["BlockData"].read() == block(0)


def test_a_block_put_again_replaces_the_first(aws: FakeAWS, ebs: Any, pending: str) -> None:
    """EBS direct APIs reference: PutSnapshotBlock, "the existing data is overwritten"."""
    put(ebs, pending, 0, block(1))
    put(ebs, pending, 0, block(2))
    complete(ebs, pending, {0: block(2)})
    assert aws.read_snapshot(pending) == {0: block(2)}


@pytest.mark.parametrize(
    "changed",
    [
        {"DataLength": BLOCK_SIZE - 1},
        {"Checksum": sha256(b"something else")},
        {"BlockData": block(1)[:-1]},
        {"ChecksumAlgorithm": "MD5"},
        {"Progress": 101},
        {"BlockIndex": 2048},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_put_that_breaks_a_rule_is_refused(
    aws: FakeAWS, ebs: Any, pending: str, changed: dict[str, Any]
) -> None:
    """EBS direct APIs reference: PutSnapshotBlock, "Request Parameters"."""
    members = {
        "SnapshotId": pending,
        "BlockIndex": 0,
        "BlockData": block(1),
        "DataLength": BLOCK_SIZE,
        "Checksum": sha256(block(1)),
        "ChecksumAlgorithm": "SHA256",
    }
    assert refusal(ebs.put_snapshot_block, **(members | changed))[:2] == NOT_VALID
    assert aws.read_snapshot(pending) == {}


def test_nothing_is_put_into_a_completed_snapshot(ebs: Any, stored: str) -> None:
    """EBS direct APIs reference: CompleteSnapshot, "You cannot write new blocks"."""
    assert refusal(put, ebs, stored, 0, block(1)) == (*NOT_VALID, "INVALID_SNAPSHOT_ID")


def test_nothing_is_read_from_a_pending_snapshot(ebs: Any, pending: str) -> None:
    """FAQ for EBS direct APIs: "Can a snapshot be accessed if it has a pending status? No"."""
    put(ebs, pending, 0, block(1))
    found = refusal(ebs.list_snapshot_blocks, SnapshotId=pending)
    assert found == (*NOT_VALID, "INVALID_SNAPSHOT_ID")


def test_a_token_is_of_one_block_of_one_snapshot(aws: FakeAWS, ebs: Any, stored: str) -> None:
    """EBS direct APIs guide: "Concepts", block tokens."""
    token = first_block(ebs, stored)["BlockToken"]
    other = aws.add_snapshot(volume_size=1, blocks={0: block(0)})
    first_block(ebs, other)
    for snapshot_id, index in ((stored, 3), (other, 0)):
        found = refusal(ebs.get_snapshot_block, SnapshotId=snapshot_id, BlockIndex=index, BlockToken=token)
        assert found == (*NOT_VALID, "INVALID_BLOCK_TOKEN")


@pytest.mark.parametrize("token", ["AAAA", "not/base64=", "A"])
def test_a_token_cannot_be_made_up(ebs: Any, stored: str, token: str) -> None:
    """EBS direct APIs reference: ValidationException, Reason INVALID_BLOCK_TOKEN."""
    found = refusal(ebs.get_snapshot_block, SnapshotId=stored, BlockIndex=0, BlockToken=token)
    assert found == (*NOT_VALID, "INVALID_BLOCK_TOKEN")


def test_a_token_dies_after_seven_days(aws: FakeAWS, ebs: Any, stored: str) -> None:
    """FAQ for EBS direct APIs: "Block tokens are valid for seven days"."""
    listed = first_block(ebs, stored)
    aws.clock.advance(7 * 86_400 - 1)
    assert get(ebs, stored, listed) == block(0)
    aws.clock.advance(2)
    assert refusal(get, ebs, stored, listed) == (*NOT_VALID, "INVALID_BLOCK_TOKEN")


def test_a_token_dies_when_the_snapshot_is_listed_again(ebs: Any, stored: str) -> None:
    """EBS direct APIs reference: Block, BlockToken."""
    old, new = first_block(ebs, stored), first_block(ebs, stored)
    assert refusal(get, ebs, stored, old) == (*NOT_VALID, "INVALID_BLOCK_TOKEN")
    assert get(ebs, stored, new) == block(0)


@pytest.mark.parametrize("renew", [False, True])
def test_a_further_page_kills_earlier_tokens_where_that_is_chosen(
    aws: FakeAWS, ebs: Any, renew: bool
) -> None:
    """Not documented: both are possible."""
    snapshot_id = aws.add_snapshot(volume_size=1, blocks=block, indexes=range(150))
    aws.behaviour.pages_renew_tokens = renew
    first, second = pages(ebs, snapshot_id, MaxResults=100)
    assert get(ebs, snapshot_id, second["Blocks"][0]) == block(100)
    if renew:
        assert refusal(get, ebs, snapshot_id, first["Blocks"][0])[2] == "INVALID_BLOCK_TOKEN"
    else:
        assert get(ebs, snapshot_id, first["Blocks"][0]) == block(0)


@pytest.mark.parametrize(
    "facts", [{"public": True}, {"storage_tier": "archive"}, {"outpost_arn": "arn:aws:outposts:x"}]
)
def test_snapshots_that_the_apis_do_not_support_are_refused(
    aws: FakeAWS, ebs: Any, facts: dict[str, Any]
) -> None:
    """FAQ for EBS direct APIs: public snapshots, local snapshots on Outposts; "Archive snapshots"."""
    snapshot_id = aws.add_snapshot(volume_size=1, blocks={0: block(0)}, **facts)
    assert refusal(ebs.list_snapshot_blocks, SnapshotId=snapshot_id) == (*NOT_VALID, "INVALID_SNAPSHOT_ID")


def test_a_shared_snapshot_is_read_and_not_written_and_a_private_one_neither(aws: FakeAWS) -> None:
    """EBS direct APIs reference: AccessDeniedException, Reason UNAUTHORIZED_ACCOUNT."""
    other = aws.add_credential(account_id="210987654321")
    shared = aws.add_snapshot(volume_size=1, blocks={0: block(0)}, shared_with=[other.account_id])
    private = aws.add_snapshot(volume_size=1, blocks={0: block(0)})
    ebs = client(aws, "ebs", other)
    denied = (403, "AccessDeniedException", "UNAUTHORIZED_ACCOUNT")
    assert get(ebs, shared, first_block(ebs, shared)) == block(0)
    assert refusal(put, ebs, shared, 0, block(1)) == denied
    assert refusal(ebs.list_snapshot_blocks, SnapshotId=private) == denied
    ebs.close()


@pytest.mark.parametrize("operation", ["read", "write", "start"])
def test_an_encrypted_snapshot_needs_its_key(aws: FakeAWS, ebs: Any, operation: str) -> None:
    """EBS direct APIs guide: "Permissions to use AWS KMS keys"."""
    stored = aws.add_snapshot(volume_size=1, blocks={0: block(0)}, encrypted=True)
    pending = ebs.start_snapshot(VolumeSize=1, Encrypted=True)["SnapshotId"]
    keyless = client(aws, "ebs", aws.add_credential(denied=["kms:*"]))
    calls = {
        "read": lambda: keyless.list_snapshot_blocks(SnapshotId=stored),
        "write": lambda: put(keyless, pending, 0, block(1)),
        "start": lambda: keyless.start_snapshot(VolumeSize=1, Encrypted=True),
    }
    assert refusal(calls[operation]) == (403, "AccessDeniedException", "DEPENDENCY_ACCESS_DENIED")
    keyless.close()


def test_a_snapshot_that_is_not_there_is_not_found(ebs: Any) -> None:
    """EBS direct APIs reference: ResourceNotFoundException."""
    found = refusal(ebs.list_snapshot_blocks, SnapshotId="snap-0123456789abcdef0")
    assert found == (404, "ResourceNotFoundException", "SNAPSHOT_NOT_FOUND")
    found = refusal(ebs.list_snapshot_blocks, SnapshotId="vol-0123456789abcdef0")
    assert found == (*NOT_VALID, "INVALID_SNAPSHOT_ID")


def test_equal_blocks_are_kept_once(aws: FakeAWS, ebs: Any, pending: str) -> None:
    for index in range(64):
        put(ebs, pending, index, block(7))
    assert len({id(data) for data in aws.read_snapshot(pending).values()}) == 1


def test_a_tebibyte_is_listed_and_read_without_being_there(aws: FakeAWS, ebs: Any) -> None:
    snapshot_id = aws.add_snapshot(volume_size=1024, blocks=block, indexes=range(0, 1024 * 2048, 2))
    last = ebs.list_snapshot_blocks(SnapshotId=snapshot_id, StartingBlockIndex=1024 * 2048 - 300)
    assert len(last["Blocks"]) == 150
    assert last["VolumeSize"] == 1024
    assert get(ebs, snapshot_id, last["Blocks"][-1]) == block(1024 * 2048 - 2)


def test_blocks_beyond_those_in_memory_are_kept_in_a_file_and_read_as_they_were_put() -> None:
    pool = Pool(2)
    blocks = {hashlib.sha256(each).digest(): each for each in map(block, range(1, 7))}
    for _ in range(2):
        for digest, each in blocks.items():
            pool.keep(digest, each)
    assert len(pool) == 6
    assert [pool.read(digest) for digest in blocks] == list(blocks.values())
