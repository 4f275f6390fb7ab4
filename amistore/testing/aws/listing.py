"""Pages of blocks, and the tokens that lead on from them."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from amistore.testing.aws.cloud import Cloud
from amistore.testing.aws.content import Content, position
from amistore.testing.aws.records import Snapshot
from amistore.testing.aws.tokens import PAGE_LIFETIME, TOKEN_LIFETIME
from amistore.units import BLOCK_SIZE
from amistore.wire.errors import invalid

__all__ = ["changed_blocks", "snapshot_blocks"]

SCANNED = 10_000
"""Indexes compared for one page of changes at most; a page may be empty for that."""


class Page:
    """Where one page begins, how much it may hold, and where the next one does.

    Args:
        cloud: whose clock, tokens and behaviour rule.
        snapshots: that are listed; their block tokens are renewed.
        query: the request's parameters.
    """

    def __init__(self, cloud: Cloud, snapshots: list[Snapshot], query: Mapping[str, str]) -> None:
        self._cloud = cloud
        self._snapshots = snapshots
        self._now = cloud.clock.now()
        behaviour = cloud.behaviour
        most = number(query, "maxResults", 100, 10_000)
        start = number(query, "startingBlockIndex", 0, 2**31 - 1)
        token = query.get("pageToken")
        self.start, self._page = (start or 0, 0) if token is None else self._opened(token)
        if token is None or behaviour.pages_renew_tokens:
            for snapshot in snapshots:
                snapshot.generation += 1
        self.most = most or behaviour.default_page_size
        if behaviour.short_pages:
            self.most = max(1, self.most // (2 + self._page % 3))
        self.empty = behaviour.empty_pages and self._page % 2 == 0
        self._expiry = self._now + TOKEN_LIFETIME

    def _opened(self, token: str) -> tuple[int, int]:
        opened = self._cloud.tokens.open_page(token)
        first = self._snapshots[1].number if len(self._snapshots) > 1 else 0
        if opened is None or opened[:2] != (self._snapshots[0].number, first):
            raise invalid("The NextToken is not valid.", "INVALID_PAGE_TOKEN")
        if self._now.timestamp() >= opened[4]:
            raise invalid("The NextToken has expired.", "INVALID_PAGE_TOKEN")
        return opened[2], opened[3]

    def token(self, snapshot: Snapshot, index: int) -> str:
        """The token of one block."""
        return self._cloud.tokens.block(snapshot.number, index, snapshot.generation, self._expiry)

    def answer(self, name: str, blocks: list[dict[str, Any]], following: int | None) -> dict[str, Any]:
        """The members of an answer whose next page begins at a block index; None ends the list."""
        listed = self._snapshots[0]
        members: dict[str, Any] = {
            name: blocks,
            "ExpiryTime": self._expiry.timestamp(),
            "VolumeSize": listed.volume_size,
            "BlockSize": BLOCK_SIZE,
        }
        if following is None and self._cloud.behaviour.empty_pages and blocks:
            following = blocks[-1]["BlockIndex"] + 1
        if following is not None:
            first = self._snapshots[1].number if len(self._snapshots) > 1 else 0
            end = self._now + PAGE_LIFETIME
            members["NextToken"] = self._cloud.tokens.page(
                listed.number, first, following, self._page + 1, end
            )
        return members


def snapshot_blocks(cloud: Cloud, snapshot: Snapshot, query: Mapping[str, str]) -> dict[str, Any]:
    """One page of ListSnapshotBlocks."""
    page = Page(cloud, [snapshot], query)
    indexes = snapshot.content.indexes
    begin = position(indexes, page.start)
    end = begin if page.empty else begin + page.most
    blocks = [{"BlockIndex": i, "BlockToken": page.token(snapshot, i)} for i in indexes[begin:end]]
    return page.answer("Blocks", blocks, indexes[end] if end < len(indexes) else None)


def changed_blocks(
    cloud: Cloud, first: Snapshot, second: Snapshot, query: Mapping[str, str]
) -> dict[str, Any]:
    """One page of ListChangedBlocks."""
    if not related(first, second):
        raise invalid("The snapshots are not of the same volume or lineage.", "UNRELATED_SNAPSHOTS")
    page = Page(cloud, [second, first], query)
    blocks: list[dict[str, Any]] = []
    scanned = 0
    for index, in_first, in_second in union(first.content, second.content, page.start):
        if page.empty or len(blocks) == page.most or scanned == SCANNED:
            return page.answer("ChangedBlocks", blocks, index)
        scanned += 1
        if in_first and in_second and same(first.content, second.content, index):
            continue
        block: dict[str, Any] = {"BlockIndex": index}
        if in_first:
            block["FirstBlockToken"] = page.token(first, index)
        if in_second:
            block["SecondBlockToken"] = page.token(second, index)
        blocks.append(block)
    return page.answer("ChangedBlocks", blocks, None)


def related(first: Snapshot, second: Snapshot) -> bool:
    """Whether two snapshots are of one volume, or one of them comes from the other."""
    if first.snapshot_id == second.snapshot_id:
        return False
    if first.lineage & second.lineage:
        return True
    return first.volume_id == second.volume_id != "vol-ffffffff"


def union(first: Content, second: Content, start: int) -> Iterator[tuple[int, bool, bool]]:
    """The blocks of both contents in order, and in which of them each is."""
    sides = [following(content, start, side) for side, content in enumerate((first, second))]
    for index, group in itertools.groupby(heapq.merge(*sides), key=lambda pair: pair[0]):
        present = {side for _, side in group}
        yield index, 0 in present, 1 in present


def following(content: Content, start: int, side: int) -> Iterator[tuple[int, int]]:
    indexes = content.indexes
    for place in range(position(indexes, start), len(indexes)):
        yield indexes[place], side


def same(first: Content, second: Content, index: int) -> bool:
    return first is second or first.block(index)[1] == second.block(index)[1]


def number(query: Mapping[str, str], name: str, least: int, most: int) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19 and least <= int(text) <= most):
        raise invalid(f"{name} must be a number from {least} to {most}.")
    return int(text)
