"""The suite for every `BlockStore`; the fixture `store` returns an empty one.

Use a store with the shortest possible pages, so that lists have several.
"""

# ruff: noqa: S101

from __future__ import annotations

import functools

import pytest

from amistore.backends import BlockStore
from amistore.errors import AmistoreError, NotFoundError
from amistore.model import Tag
from amistore.testing.block_sink import UNKNOWN, BlockSinkContract, SinkCase
from amistore.testing.snapshots import block, linear, read_snapshot, store_snapshot

__all__ = ["BlockStoreContract"]


class BlockStoreContract(BlockSinkContract):
    """Writing as in every sink, and reading what was written."""

    """Writing, and reading what was written."""

    @pytest.fixture
    def store(self) -> BlockStore:
        """A store to write to."""
        raise NotImplementedError("override the fixture 'store'")

    @pytest.fixture
    def case(self, store: BlockStore) -> SinkCase:
        """The store as a sink."""
        return SinkCase(sink=store, read=functools.partial(read_snapshot, store))

    def test_a_block_of_zeros_that_was_put_is_listed(self, store: BlockStore) -> None:
        blocks = {1: block(0), 5: block(0)}
        assert read_snapshot(store, store_snapshot(store, 2, blocks)) == (2, blocks)

    def test_an_empty_snapshot_lists_nothing(self, store: BlockStore) -> None:
        assert read_snapshot(store, store_snapshot(store, 3, {})) == (3, {})

    def test_a_listing_of_several_pages_is_whole(self, store: BlockStore) -> None:
        blocks = {index: block(index % 3) for index in range(0, 46, 2)}
        assert read_snapshot(store, store_snapshot(store, 1, blocks)) == (1, blocks)

    def test_a_pending_snapshot_cannot_be_read(self, store: BlockStore) -> None:
        snapshot_id, _ = self._pending(store)
        with pytest.raises(AmistoreError):
            store.list_snapshot_blocks(snapshot_id)
        with pytest.raises(AmistoreError):
            store.get_snapshot_block(snapshot_id, 0, "")

    def test_is_described_with_size_description_tags_and_state(self, store: BlockStore) -> None:
        tags = (Tag(key="Name", value="größe"), Tag(key="empty", value=""))
        snapshot_id = store.start_snapshot(3, description="Größe, 3 GiB", tags=tags)
        pending = store.describe_snapshot(snapshot_id)
        assert (pending.snapshot_id, pending.volume_size, pending.state) == (snapshot_id, 3, "pending")
        assert pending.description == "Größe, 3 GiB"
        assert sorted((tag.key, tag.value) for tag in pending.tags) == [("Name", "größe"), ("empty", "")]
        store.complete_snapshot(snapshot_id, 0, linear({}))
        store.wait_snapshot(snapshot_id)
        assert store.describe_snapshot(snapshot_id).state == "completed"

    def test_what_is_said_of_encryption_beforehand_is_what_a_started_snapshot_has(
        self, store: BlockStore
    ) -> None:
        said = store.encrypts_snapshots()
        assert said in (None, bool(store.describe_snapshot(store.start_snapshot(1)).encrypted))

    @pytest.mark.parametrize("snapshot_id", UNKNOWN)
    def test_an_unknown_snapshot_is_not_found(self, store: BlockStore, snapshot_id: str) -> None:
        with pytest.raises(NotFoundError):
            store.list_snapshot_blocks(snapshot_id)
        with pytest.raises(NotFoundError):
            store.get_snapshot_block(snapshot_id, 0, "")
        with pytest.raises(NotFoundError) as raised:
            store.describe_snapshot(snapshot_id)
        assert raised.value.operation == "describe_snapshot"

    @pytest.mark.parametrize("completed", [False, True])
    def test_a_deleted_snapshot_is_not_found(self, store: BlockStore, completed: bool) -> None:
        snapshot_id, blocks = self._pending(store)
        if completed:
            store.complete_snapshot(snapshot_id, len(blocks), linear(blocks))
            store.wait_snapshot(snapshot_id)
        store.delete_snapshot(snapshot_id)
        with pytest.raises(NotFoundError):
            store.list_snapshot_blocks(snapshot_id)
        with pytest.raises(NotFoundError):
            store.describe_snapshot(snapshot_id)
