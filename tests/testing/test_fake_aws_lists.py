"""Pages of blocks, as ListSnapshotBlocks and ListChangedBlocks of the EBS direct APIs have them."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from testing.models import block, get, indexes, pages, refusal

from amistore.testing.aws import FakeAWS
from amistore.units import BLOCK_SIZE

NOT_VALID = (400, "ValidationException")


@pytest.fixture
def stored(aws: FakeAWS) -> str:
    return aws.add_snapshot(volume_size=2, blocks=block, indexes=range(5, 1005, 2))


def test_pages_are_ascending_and_hold_as_many_blocks_as_asked(ebs: Any, stored: str) -> None:
    """FAQ for EBS direct APIs: "The block indexes returned are unique, and in numerical order"."""
    listing = pages(ebs, stored, MaxResults=200)
    assert [len(page["Blocks"]) for page in listing] == [200, 200, 100]
    assert indexes(listing) == list(range(5, 1005, 2))
    assert {(page["VolumeSize"], page["BlockSize"]) for page in listing} == {(2, BLOCK_SIZE)}


def test_a_page_tells_when_its_tokens_expire(aws: FakeAWS, ebs: Any, stored: str) -> None:
    """FAQ for EBS direct APIs: seven days."""
    told = ebs.list_snapshot_blocks(SnapshotId=stored)["ExpiryTime"] - aws.clock.now()
    assert abs(told - datetime.timedelta(days=7)) < datetime.timedelta(milliseconds=1)


@pytest.mark.parametrize("most", [10_001])
def test_max_results_has_bounds(ebs: Any, stored: str, most: int) -> None:
    """EBS direct APIs reference: ListSnapshotBlocks, "Valid Range". The SDK checks the least."""
    assert refusal(ebs.list_snapshot_blocks, SnapshotId=stored, MaxResults=most)[:2] == NOT_VALID


def test_a_list_starts_at_the_next_block_there_is(ebs: Any, stored: str) -> None:
    """EBS direct APIs reference: "from this block index or the next valid block index"."""
    assert indexes(pages(ebs, stored, StartingBlockIndex=1000)) == [1001, 1003]


def test_a_token_overrides_the_starting_index(ebs: Any, stored: str) -> None:
    """FAQ for EBS direct APIs: "NextToken is used and StartingBlockIndex is ignored"."""
    token = ebs.list_snapshot_blocks(SnapshotId=stored, MaxResults=100)["NextToken"]
    page = ebs.list_snapshot_blocks(SnapshotId=stored, NextToken=token, StartingBlockIndex=900)
    assert page["Blocks"][0]["BlockIndex"] == 205


def test_a_next_token_lives_for_an_hour(aws: FakeAWS, ebs: Any, stored: str) -> None:
    """FAQ for EBS direct APIs: "next tokens are valid for 60 minutes"."""
    token = ebs.list_snapshot_blocks(SnapshotId=stored, MaxResults=100)["NextToken"]
    aws.clock.advance(3599)
    assert ebs.list_snapshot_blocks(SnapshotId=stored, NextToken=token)["Blocks"]
    aws.clock.advance(2)
    found = refusal(ebs.list_snapshot_blocks, SnapshotId=stored, NextToken=token)
    assert found == (*NOT_VALID, "INVALID_PAGE_TOKEN")


def test_a_next_token_is_of_one_list(aws: FakeAWS, ebs: Any, stored: str) -> None:
    """EBS direct APIs reference: ValidationException, Reason INVALID_PAGE_TOKEN."""
    token = ebs.list_snapshot_blocks(SnapshotId=stored, MaxResults=100)["NextToken"]
    other = aws.add_snapshot(volume_size=1, blocks={0: block(0)})
    for snapshot_id, used in ((other, token), (stored, "AAAA")):
        found = refusal(ebs.list_snapshot_blocks, SnapshotId=snapshot_id, NextToken=used)
        assert found == (*NOT_VALID, "INVALID_PAGE_TOKEN")


def test_short_and_empty_pages_still_lead_to_every_block(aws: FakeAWS, ebs: Any, stored: str) -> None:
    """EBS direct APIs reference: "less blocks than MaxResults or an empty array of blocks"."""
    aws.behaviour.short_pages = aws.behaviour.empty_pages = True
    listing = pages(ebs, stored, MaxResults=100)
    assert indexes(listing) == list(range(5, 1005, 2))
    sizes = [len(page["Blocks"]) for page in listing]
    assert sizes[0] == 0
    assert sizes[-1] == 0
    assert max(sizes) < 100


def test_an_empty_snapshot_has_one_empty_page(aws: FakeAWS, ebs: Any) -> None:
    """EBS direct APIs reference: ListSnapshotBlocks, Blocks."""
    snapshot_id = aws.add_snapshot(volume_size=1)
    (page,) = pages(ebs, snapshot_id)
    assert page["Blocks"] == []


def changes(ebs: Any, first: str, second: str, **arguments: Any) -> list[dict[str, Any]]:
    answers = [ebs.list_changed_blocks(FirstSnapshotId=first, SecondSnapshotId=second, **arguments)]
    while token := answers[-1].get("NextToken"):
        answers.append(
            ebs.list_changed_blocks(
                FirstSnapshotId=first, SecondSnapshotId=second, NextToken=token, **arguments
            )
        )
    return [item for answer in answers for item in answer["ChangedBlocks"]]


@pytest.mark.parametrize("odd", [False, True])
def test_changes_are_listed_with_the_tokens_of_the_sides_that_have_them(
    aws: FakeAWS, ebs: Any, odd: bool
) -> None:
    """EBS direct APIs reference: ChangedBlock."""
    aws.behaviour.empty_pages = aws.behaviour.short_pages = odd
    before = {i: block(i) for i in range(300)}
    after = {**before, 10: block(-1), 500: block(500)}
    del after[20]
    first = aws.add_snapshot(volume_size=1, blocks=before, volume_id="vol-0123456789abcdef0")
    second = aws.add_snapshot(volume_size=1, blocks=after, volume_id="vol-0123456789abcdef0")
    found = {item.pop("BlockIndex"): item for item in changes(ebs, first, second, MaxResults=100)}
    assert {index: set(item) for index, item in found.items()} == {
        10: {"FirstBlockToken", "SecondBlockToken"},
        20: {"FirstBlockToken"},
        500: {"SecondBlockToken"},
    }
    assert get(ebs, first, {"BlockIndex": 10, "BlockToken": found[10]["FirstBlockToken"]}) == block(10)
    assert get(ebs, second, {"BlockIndex": 10, "BlockToken": found[10]["SecondBlockToken"]}) == block(-1)


def test_listing_changes_kills_the_tokens_of_both_snapshots(aws: FakeAWS, ebs: Any) -> None:
    """EBS direct APIs guide: "Read snapshots with EBS direct APIs"; which page kills is ours."""
    first = aws.add_snapshot(volume_size=1, blocks={0: block(0)})
    second = aws.add_snapshot(volume_size=1, blocks={0: block(1)}, parent_snapshot_id=first)
    tokens = {name: pages(ebs, name)[0]["Blocks"][0] for name in (first, second)}
    changes(ebs, first, second)
    for name, listed in tokens.items():
        assert refusal(get, ebs, name, listed)[2] == "INVALID_BLOCK_TOKEN"


def test_snapshots_of_different_lineage_are_not_compared(aws: FakeAWS, ebs: Any) -> None:
    """EBS direct APIs reference: ValidationException, Reason UNRELATED_SNAPSHOTS."""
    first, second = (aws.add_snapshot(volume_size=1) for _ in range(2))
    found = refusal(ebs.list_changed_blocks, FirstSnapshotId=first, SecondSnapshotId=second)
    assert found == (*NOT_VALID, "UNRELATED_SNAPSHOTS")


def test_changes_need_a_first_snapshot(aws: FakeAWS, ebs: Any) -> None:
    """EBS direct APIs reference: ListChangedBlocks, "otherwise, an error occurs"."""
    second = aws.add_snapshot(volume_size=1)
    assert refusal(ebs.list_changed_blocks, SecondSnapshotId=second)[:2] == NOT_VALID
