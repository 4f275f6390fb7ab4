"""Block tokens of one snapshot: by pages of a listing, and renewed by another."""

from __future__ import annotations

import threading
from typing import Any

from amistore.backends.aws.errors import member_of
from amistore.backends.blocks import MOST_EMPTY_PAGES, Block, BlockPage
from amistore.errors import BackendError, SourceChangedError
from amistore.units import BLOCK_SIZE

__all__ = ["Tokens", "numbered"]

PAGE_SIZE = 10_000  # ListSnapshotBlocks, MaxResults: 100 to 10,000
_IN_FLIGHT = 4096  # blocks before a refused one for which a new listing gives tokens too


def numbered(block_token: str) -> tuple[int, str]:
    """Of a token as a page of ours gives it, the number of its listing, and EBS's own token."""
    listing, _, token = block_token.partition(":")
    return int(listing) if listing.isdecimal() else 0, token


class Tokens:
    """The newest block tokens of one snapshot, in place of refused ones."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.listing = 0
        self.renewed: dict[int, str] = {}

    def newer(self, block_index: int, listing: int) -> str | None:
        """A token from a newer listing than this one's."""
        return self.renewed.get(block_index) if self.listing > listing else None

    def page(self, client: Any, snapshot_id: str, first: int, place: dict[str, Any]) -> BlockPage:
        """List a page; whoever asks holds the lock.

        Args:
            client: boto3's client of EBS.
            snapshot_id: the snapshot's id.
            first: the index behind the last block listed so far.
            place: the parameters that say which page.
        """
        answer = client.list_snapshot_blocks(SnapshotId=snapshot_id, MaxResults=PAGE_SIZE, **place)
        self.listing += 1
        self.renewed = {}
        if member_of(answer, "BlockSize") != BLOCK_SIZE:
            raise BackendError(f"EBS has blocks of {answer['BlockSize']} bytes, not {BLOCK_SIZE}")
        blocks = [
            Block(block["BlockIndex"], f"{self.listing}:{block['BlockToken']}")
            for block in answer.get("Blocks", ())
        ]
        following = answer.get("NextToken")
        if following and blocks:
            first = blocks[-1].block_index + 1
        return BlockPage(
            volume_size=member_of(answer, "VolumeSize"),
            blocks=blocks,
            next_token=f"{first}:{following}" if following else None,
        )

    def renew(self, client: Any, snapshot_id: str, block_index: int) -> str:
        """List again, for the token of a block and of the blocks beside it; whoever asks holds the lock."""
        renewed: dict[int, str] = {}
        place: dict[str, Any] = {"StartingBlockIndex": max(0, block_index - _IN_FLIGHT)}
        empty = 0
        while block_index not in renewed:
            answer = client.list_snapshot_blocks(SnapshotId=snapshot_id, MaxResults=PAGE_SIZE, **place)
            empty = 0 if answer.get("Blocks") else empty + 1
            if empty > MOST_EMPTY_PAGES:
                raise BackendError("the listing makes no progress")
            renewed.update((each["BlockIndex"], each["BlockToken"]) for each in answer.get("Blocks", ()))
            if not answer.get("NextToken") or max(renewed, default=0) > block_index:
                break
            place = {"NextToken": answer["NextToken"]}
        if block_index not in renewed:
            raise SourceChangedError("the block was listed before and is no longer listed")
        self.listing += 1
        self.renewed = renewed
        return renewed[block_index]
