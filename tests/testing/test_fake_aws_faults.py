"""Troubles on the way, and what a test can count."""

from __future__ import annotations

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import botocore.exceptions
import pytest
from testing.models import block, client, complete, get, indexes, pages, put, refusal

from amistore.testing.aws import FakeAWS

LOST = (botocore.exceptions.HTTPClientError, botocore.exceptions.ConnectionError)


@pytest.fixture
def stored(aws: FakeAWS) -> str:
    return aws.add_snapshot(volume_size=1, blocks={index: block(index) for index in range(4)})


@pytest.mark.parametrize(
    ("kind", "ebs_says", "ec2_says"),
    [
        ("500", (500, "InternalServerException"), (500, "InternalError")),
        ("503", (503, "ServiceUnavailableException"), (503, "Unavailable")),
        ("throttle", (400, "RequestThrottledException"), (503, "RequestLimitExceeded")),
    ],
)
def test_answers_of_a_service_in_trouble(
    aws: FakeAWS, ebs: Any, ec2: Any, kind: Any, ebs_says: tuple[int, str], ec2_says: tuple[int, str]
) -> None:
    """Each API reference's "Common errors"."""
    rule = aws.faults.add("*", kind, times=2)
    assert refusal(ebs.start_snapshot, VolumeSize=1)[:2] == ebs_says
    assert refusal(ec2.describe_images)[:2] == ec2_says
    assert (rule.fired, dict(aws.snapshots)) == (2, {})
    ebs.start_snapshot(VolumeSize=1)


def test_the_calls_that_meet_a_fault_are_those_named(aws: FakeAWS, ebs: Any, stored: str) -> None:
    rule = aws.faults.add("ListSnapshotBlocks", "500", calls={2, 4})
    found = []
    for _ in range(5):
        try:
            ebs.list_snapshot_blocks(SnapshotId=stored)
            found.append("fine")
        except botocore.exceptions.ClientError:
            found.append("fault")
    assert found == ["fine", "fault", "fine", "fault", "fine"]
    assert rule.fired == 2


def test_chance_is_repeatable(aws: FakeAWS, ebs: Any, stored: str) -> None:
    found = []
    for _ in range(2):
        aws.faults.clear()
        aws.log.reset()
        aws.faults.add("ListSnapshotBlocks", "500", probability=0.5, seed=7)
        for _ in range(20):
            with contextlib.suppress(botocore.exceptions.ClientError):
                ebs.list_snapshot_blocks(SnapshotId=stored)
        found.append([entry.status for entry in aws.log.entries])
    assert found[0] == found[1]
    assert set(found[0]) == {200, 500}


def test_rules_of_one_seed_do_not_follow_each_other(aws: FakeAWS, ebs: Any, stored: str) -> None:
    found = []
    for kind in ("500", "503"):
        aws.faults.clear()
        aws.log.reset()
        aws.faults.add("ListSnapshotBlocks", kind, probability=0.5, seed=7)  # type: ignore[arg-type]
        for _ in range(30):
            with contextlib.suppress(botocore.exceptions.ClientError):
                ebs.list_snapshot_blocks(SnapshotId=stored)
        found.append([entry.status == 200 for entry in aws.log.entries])
    assert found[0] != found[1]
    assert True in found[0] and False in found[1]


def test_a_fault_of_one_block(aws: FakeAWS, ebs: Any, stored: str) -> None:
    aws.faults.add("GetSnapshotBlock", "500", snapshot_id=stored, block_index=2)
    listed = pages(ebs, stored)[0]["Blocks"]
    assert get(ebs, stored, listed[1]) == block(1)
    assert refusal(get, ebs, stored, listed[2])[0] == 500


def test_data_that_could_not_be_read(aws: FakeAWS, ebs: Any) -> None:
    """Seen in the field: 400, "Failed to read block data", which is to be retried."""
    snapshot_id = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    aws.faults.add("PutSnapshotBlock", "failed-to-read", calls=[1])
    found = refusal(put, ebs, snapshot_id, 0, block(0))
    assert found == (400, "ValidationException", "INVALID_PARAMETER_VALUE")
    put(ebs, snapshot_id, 0, block(0))


@pytest.mark.parametrize("kind", ["reset-before-body", "reset-before-answer"])
def test_a_reset_before_anything_was_done(aws: FakeAWS, ebs: Any, kind: Any) -> None:
    snapshot_id = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    aws.faults.add("PutSnapshotBlock", kind, calls=[1])
    with pytest.raises(LOST):
        put(ebs, snapshot_id, 0, block(0))
    assert aws.read_snapshot(snapshot_id) == {}
    put(ebs, snapshot_id, 0, block(0))
    assert aws.read_snapshot(snapshot_id) == {0: block(0)}


def test_a_reset_of_a_query(aws: FakeAWS, ec2: Any) -> None:
    aws.faults.add("DescribeImages", "reset-before-body", calls=[1])
    with pytest.raises(LOST):
        ec2.describe_images()
    assert ec2.describe_images()["Images"] == []


def test_a_lost_reply_leaves_its_effect(aws: FakeAWS, ebs: Any, ec2: Any) -> None:
    for operation, call in {
        "StartSnapshot": lambda: ebs.start_snapshot(VolumeSize=1, ClientToken="one"),
        "DeleteSnapshot": lambda: ec2.delete_snapshot(SnapshotId=next(iter(aws.snapshots))),
    }.items():
        aws.faults.add(operation, "lost-reply", calls=[1])
        with pytest.raises(LOST):
            call()
        assert len(aws.snapshots) == (operation == "StartSnapshot")
        if operation == "StartSnapshot":
            assert call()["SnapshotId"] in aws.snapshots
            assert len(aws.snapshots) == 1


def test_completion_of_which_the_reply_was_lost(aws: FakeAWS, ebs: Any) -> None:
    snapshot_id = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    aws.faults.add("CompleteSnapshot", "lost-reply")
    with pytest.raises(LOST):
        complete(ebs, snapshot_id, {})
    assert aws.snapshots[snapshot_id].state == "completed"


def test_a_500_after_the_effect(aws: FakeAWS, ebs: Any, ec2: Any) -> None:
    aws.faults.add("*", "500-after", times=2)
    assert refusal(ebs.start_snapshot, VolumeSize=1)[:2] == (500, "InternalServerException")
    (snapshot_id,) = aws.snapshots
    assert refusal(ec2.delete_snapshot, SnapshotId=snapshot_id)[:2] == (500, "InternalError")
    assert not aws.snapshots


def test_a_body_that_breaks_off(aws: FakeAWS, ebs: Any, stored: str) -> None:
    listed = pages(ebs, stored)[0]["Blocks"][0]
    aws.faults.add("GetSnapshotBlock", "short-body", calls=[1])
    with pytest.raises((botocore.exceptions.IncompleteReadError, botocore.exceptions.ResponseStreamingError)):
        get(ebs, stored, listed)
    assert get(ebs, stored, listed) == block(0)


def test_a_body_with_a_flipped_bit(aws: FakeAWS, ebs: Any, stored: str) -> None:
    listed = pages(ebs, stored)[0]["Blocks"][0]
    aws.faults.add("GetSnapshotBlock", "flipped-bit", calls=[1])
    wrong = int.from_bytes(get(ebs, stored, listed), "big") ^ int.from_bytes(block(0), "big")
    assert wrong.bit_count() == 1
    assert get(ebs, stored, listed) == block(0)


def test_an_error_inside_a_success(aws: FakeAWS, stored: str) -> None:
    import boto3

    aws.faults.add("GetSnapshotBlock", "error-inside")
    ebs = boto3.client("ebs", **aws.client_options())
    listed = ebs.list_snapshot_blocks(SnapshotId=stored)["Blocks"][0]
    answer = ebs.get_snapshot_block(SnapshotId=stored, **listed)
    assert "Checksum" not in answer
    assert "Message" in json.loads(answer["BlockData"].read())
    ebs.close()


def test_silence_lasts_until_the_client_gives_up(aws: FakeAWS, stored: str) -> None:
    hasty = client(aws, "ebs", read_timeout=0.05)
    aws.faults.add("ListSnapshotBlocks", "silence", calls=[1])
    with pytest.raises(botocore.exceptions.ReadTimeoutError):
        hasty.list_snapshot_blocks(SnapshotId=stored)
    hasty.close()


@pytest.mark.parametrize("kind", ["silence", "slow-drip"])
def test_what_is_held_ends_with_the_server(kind: Any) -> None:
    with FakeAWS() as aws, ThreadPoolExecutor(1) as pool:
        snapshot_id = aws.add_snapshot(volume_size=1, blocks={0: block(0)})
        ebs = client(aws, "ebs")
        listed = pages(ebs, snapshot_id)[0]["Blocks"][0]
        rule = aws.faults.add("GetSnapshotBlock", kind)
        call = pool.submit(get, ebs, snapshot_id, listed)
        rule.wait_until_held()
        aws.close()
        if kind == "silence":
            assert isinstance(call.exception(), LOST)
        else:
            assert call.exception() is not None or call.result() == block(0)
        ebs.close()


def test_a_drip_goes_on_when_it_is_released(aws: FakeAWS, ebs: Any, stored: str) -> None:
    listed = pages(ebs, stored)[0]["Blocks"][0]
    rule = aws.faults.add("GetSnapshotBlock", "slow-drip")
    answer = ebs.get_snapshot_block(SnapshotId=stored, **listed)
    begun = answer["BlockData"].read(64)
    rule.release()
    assert begun + answer["BlockData"].read() == block(0)


def test_requests_at_once_are_counted(aws: FakeAWS, stored: str) -> None:
    ebs = client(aws, "ebs")
    listed = pages(ebs, stored)[0]["Blocks"]
    rule = aws.faults.add("GetSnapshotBlock", "slow-drip")
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(get, ebs, stored, item) for item in listed[:3]]
        rule.wait_until_held(3)
        assert aws.log.in_flight == 3
        rule.release()
        assert [call.result() for call in calls] == [block(0), block(1), block(2)]
    assert (aws.log.in_flight, aws.log.most_in_flight) == (0, 3)
    ebs.close()


def test_requests_are_counted_and_logged_without_secrets(aws: FakeAWS, ebs: Any, stored: str) -> None:
    for listed in pages(ebs, stored)[0]["Blocks"][:2]:
        get(ebs, stored, listed)
    get(ebs, stored, listed)
    assert aws.log.counts == {"ListSnapshotBlocks": 1, "GetSnapshotBlock": 3}
    assert aws.log.blocks == {("GetSnapshotBlock", stored, 0): 1, ("GetSnapshotBlock", stored, 1): 2}
    assert [(entry.operation, entry.block_index) for entry in aws.log.entries][-1] == ("GetSnapshotBlock", 1)
    told = f"{aws.log.entries} {aws.credential}"
    assert aws.credential.secret_access_key not in told
    assert "BlockToken" not in told
    assert aws.log.connections == 1


def test_many_threads_share_the_fake(aws: FakeAWS) -> None:
    ebs = client(aws, "ebs", max_pool_connections=8)
    snapshot_id = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    blocks = {index: block(index % 5) for index in range(200)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: put(ebs, snapshot_id, index, blocks[index]), blocks))
        complete(ebs, snapshot_id, blocks)
        listing = pages(ebs, snapshot_id, MaxResults=100)
        assert indexes(listing) == list(blocks)
        found = pool.map(
            lambda item: get(ebs, snapshot_id, item), [b for page in listing for b in page["Blocks"]]
        )
        assert list(found) == list(blocks.values())
    assert aws.log.in_flight == 0
    assert aws.log.most_in_flight <= 8
    assert aws.log.connections <= 8
    ebs.close()


@pytest.mark.parametrize(
    "blocks",
    [{0: b"short"}, {2048: block(0)}, {-1: block(0)}, block],
    ids=["short", "beyond", "before", "no range"],
)
def test_snapshots_that_cannot_be_are_not_added(aws: FakeAWS, blocks: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        aws.add_snapshot(volume_size=1, blocks=blocks)
    assert dict(aws.snapshots) == {}


@pytest.mark.parametrize(
    ("operation", "kind"),
    [("PutSnapshotBlok", "500"), ("put_snapshot_block", "500"), ("", "500"), ("PutSnapshotBlock", "550")],
)
def test_a_fault_that_could_never_happen_is_refused(aws: FakeAWS, operation: str, kind: Any) -> None:
    with pytest.raises(ValueError, match=r"there is no (operation|kind)"):
        aws.faults.add(operation, kind)


def test_a_limit_of_no_operation_is_refused(aws: FakeAWS) -> None:
    with pytest.raises(ValueError, match="there is no operation 'GetSnapshotBlocks'"):
        aws.throttle("GetSnapshotBlocks", every=2)
    for operation in ("GetSnapshotBlock", "RegisterImage", "GetCallerIdentity"):
        aws.throttle(operation, every=2)


def test_time_does_not_run_backwards(aws: FakeAWS) -> None:
    with pytest.raises(ValueError, match="backwards"):
        aws.clock.advance(-1)


def test_it_serves_only_while_it_is_open() -> None:
    aws = FakeAWS()
    with pytest.raises(RuntimeError, match="with block"):
        _ = aws.endpoint_url
    with aws:
        assert aws.endpoint_url.startswith("http://127.0.0.1:")
    aws.close()
