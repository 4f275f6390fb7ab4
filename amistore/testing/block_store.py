"""What every `BlockStore` does; fixture `store` gives an empty one.

Several pages are best tested with a store whose pages are as short as it allows.
"""

# ruff: noqa: S101, S106

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from amistore.backends import BlockStore
from amistore.errors import AmistoreError, ChecksumMismatchError, NotFoundError
from amistore.model import Tag
from amistore.testing.snapshots import block, linear, read_snapshot, sha256, store_snapshot
from amistore.units import BLOCK_SIZE, GIB

__all__ = ["BlockStoreContract"]

_LAST = GIB // BLOCK_SIZE - 1
_UNKNOWN = ["snap-00000000000000000", "", "../snap-00000000000000000", "snap-0000000000000000\0"]


class BlockStoreContract:
    """Writing, and reading what was written."""

    @pytest.fixture
    def store(self) -> BlockStore:
        """A store to write to."""
        raise NotImplementedError("override the fixture 'store'")

    def test_gives_back_what_was_put(self, store: BlockStore) -> None:
        blocks = {0: block(1), 3: block(2), 4: block(3), _LAST: block(4)}
        snapshot_id = store_snapshot(store, 1, blocks)
        assert read_snapshot(store, snapshot_id) == (1, blocks)

    def test_blocks_may_be_put_in_any_order(self, store: BlockStore) -> None:
        blocks = {9: block(1), 2: block(2), 7: block(3), 0: block(4)}
        assert read_snapshot(store, store_snapshot(store, 1, blocks)) == (1, blocks)

    def test_a_block_of_zeros_that_was_put_is_listed(self, store: BlockStore) -> None:
        blocks = {1: block(0), 5: block(0)}
        assert read_snapshot(store, store_snapshot(store, 2, blocks)) == (2, blocks)

    def test_an_empty_snapshot_lists_nothing(self, store: BlockStore) -> None:
        assert read_snapshot(store, store_snapshot(store, 3, {})) == (3, {})

    def test_a_listing_of_several_pages_is_whole(self, store: BlockStore) -> None:
        blocks = {index: block(index % 3) for index in range(0, 46, 2)}
        assert read_snapshot(store, store_snapshot(store, 1, blocks)) == (1, blocks)

    def test_takes_any_buffer_and_keeps_none(self, store: BlockStore) -> None:
        snapshot_id = store.start_snapshot(1)
        content = bytearray(block(1))
        store.put_snapshot_block(snapshot_id, 0, memoryview(content), sha256(block(1)))
        content[:] = block(2)
        store.complete_snapshot(snapshot_id, 1, linear({0: block(1)}))
        store.wait_snapshot(snapshot_id)
        assert read_snapshot(store, snapshot_id) == (1, {0: block(1)})

    def test_a_block_put_again_is_replaced_and_counts_once(self, store: BlockStore) -> None:
        snapshot_id = store.start_snapshot(1)
        for seed in (1, 2):
            store.put_snapshot_block(snapshot_id, 6, block(seed), sha256(block(seed)))
        store.complete_snapshot(snapshot_id, 1, linear({6: block(2)}))
        store.wait_snapshot(snapshot_id)
        assert read_snapshot(store, snapshot_id) == (1, {6: block(2)})

    def test_two_snapshots_do_not_mix(self, store: BlockStore) -> None:
        first, second = store.start_snapshot(1), store.start_snapshot(2)
        assert first != second
        store.put_snapshot_block(first, 0, block(1), sha256(block(1)))
        store.put_snapshot_block(second, 0, block(2), sha256(block(2)))
        store.complete_snapshot(second, 1, linear({0: block(2)}))
        store.complete_snapshot(first, 1, linear({0: block(1)}))
        store.wait_snapshot(first)
        assert read_snapshot(store, first) == (1, {0: block(1)})
        assert read_snapshot(store, second) == (2, {0: block(2)})

    def test_takes_a_description_and_tags(self, store: BlockStore) -> None:
        tags = (Tag(key="Name", value="größe"), Tag(key="empty", value=""))
        snapshot_id = store.start_snapshot(1, description="Größe, 1 GiB", tags=tags)
        store.complete_snapshot(snapshot_id, 0, linear({}))
        store.wait_snapshot(snapshot_id)
        assert read_snapshot(store, snapshot_id) == (1, {})

    def test_a_wrong_checksum_is_refused_and_nothing_stored(self, store: BlockStore) -> None:
        snapshot_id = store.start_snapshot(1)
        with pytest.raises(ChecksumMismatchError):
            store.put_snapshot_block(snapshot_id, 0, block(1), sha256(block(2)))
        store.complete_snapshot(snapshot_id, 0, linear({}))
        store.wait_snapshot(snapshot_id)
        assert read_snapshot(store, snapshot_id) == (1, {})

    @pytest.mark.parametrize("size", [0, 1, BLOCK_SIZE - 1, BLOCK_SIZE + 1])
    def test_a_block_of_another_size_is_refused(self, store: BlockStore, size: int) -> None:
        snapshot_id = store.start_snapshot(1)
        with pytest.raises(AmistoreError):
            store.put_snapshot_block(snapshot_id, 0, bytes(size), sha256(bytes(size)))

    @pytest.mark.parametrize("index", [-1, _LAST + 1, 2**40])
    def test_a_block_outside_the_volume_is_refused(self, store: BlockStore, index: int) -> None:
        snapshot_id = store.start_snapshot(1)
        with pytest.raises(AmistoreError):
            store.put_snapshot_block(snapshot_id, index, block(1), sha256(block(1)))

    @pytest.mark.parametrize("volume_size", [0, -1, 65_537])
    def test_a_volume_of_an_impossible_size_is_refused(self, store: BlockStore, volume_size: int) -> None:
        with pytest.raises(AmistoreError):
            store.start_snapshot(volume_size)

    @pytest.mark.parametrize("count", [0, 1, 3])
    def test_completing_with_a_wrong_count_is_refused(self, store: BlockStore, count: int) -> None:
        snapshot_id, blocks = self._pending(store)
        with pytest.raises(ChecksumMismatchError):
            store.complete_snapshot(snapshot_id, count, linear(blocks))

    def test_completing_with_a_wrong_checksum_is_refused(self, store: BlockStore) -> None:
        snapshot_id, blocks = self._pending(store)
        with pytest.raises(ChecksumMismatchError):
            store.complete_snapshot(snapshot_id, len(blocks), linear({0: block(2), 1: block(1)}))

    def test_a_refused_completion_can_be_done_right(self, store: BlockStore) -> None:
        snapshot_id, blocks = self._pending(store)
        with pytest.raises(ChecksumMismatchError):
            store.complete_snapshot(snapshot_id, 1, linear(blocks))
        store.complete_snapshot(snapshot_id, len(blocks), linear(blocks))
        store.wait_snapshot(snapshot_id)
        assert read_snapshot(store, snapshot_id) == (1, blocks)

    def test_a_pending_snapshot_cannot_be_read(self, store: BlockStore) -> None:
        snapshot_id, _ = self._pending(store)
        with pytest.raises(AmistoreError):
            store.list_snapshot_blocks(snapshot_id)
        with pytest.raises(AmistoreError):
            store.get_snapshot_block(snapshot_id, 0, "")

    def test_a_completed_snapshot_cannot_be_written(self, store: BlockStore) -> None:
        snapshot_id = store_snapshot(store, 1, {0: block(1)})
        with pytest.raises(AmistoreError):
            store.put_snapshot_block(snapshot_id, 0, block(2), sha256(block(2)))
        with pytest.raises(AmistoreError):
            store.put_snapshot_block(snapshot_id, 1, block(2), sha256(block(2)))
        assert read_snapshot(store, snapshot_id) == (1, {0: block(1)})

    def test_completing_again_with_the_same_checksum_is_fine(self, store: BlockStore) -> None:
        snapshot_id = store_snapshot(store, 1, {0: block(1)})
        store.complete_snapshot(snapshot_id, 1, linear({0: block(1)}))
        store.wait_snapshot(snapshot_id)
        assert read_snapshot(store, snapshot_id) == (1, {0: block(1)})

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

    def test_the_same_client_token_gives_the_same_snapshot(self, store: BlockStore) -> None:
        first = store.start_snapshot(1, client_token="token-one")
        store.put_snapshot_block(first, 0, block(1), sha256(block(1)))
        assert store.start_snapshot(1, client_token="token-one") == first
        assert len({first, store.start_snapshot(1, client_token="token-two"), store.start_snapshot(1)}) == 3
        store.complete_snapshot(first, 1, linear({0: block(1)}))
        store.wait_snapshot(first)
        assert read_snapshot(store, first) == (1, {0: block(1)})

    @pytest.mark.parametrize("snapshot_id", _UNKNOWN)
    def test_an_unknown_snapshot_is_not_found(self, store: BlockStore, snapshot_id: str) -> None:
        with pytest.raises(NotFoundError):
            store.list_snapshot_blocks(snapshot_id)
        with pytest.raises(NotFoundError):
            store.get_snapshot_block(snapshot_id, 0, "")
        with pytest.raises(NotFoundError):
            store.put_snapshot_block(snapshot_id, 0, block(1), sha256(block(1)))
        with pytest.raises(NotFoundError):
            store.complete_snapshot(snapshot_id, 0, linear({}))
        with pytest.raises(NotFoundError):
            store.delete_snapshot(snapshot_id)
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
            store.put_snapshot_block(snapshot_id, 0, block(1), sha256(block(1)))
        with pytest.raises(NotFoundError):
            store.delete_snapshot(snapshot_id)

    def test_deleting_one_snapshot_leaves_the_others(self, store: BlockStore) -> None:
        kept = store_snapshot(store, 1, {0: block(1)})
        store.delete_snapshot(store_snapshot(store, 1, {0: block(1)}))
        assert read_snapshot(store, kept) == (1, {0: block(1)})

    def test_threads_put_into_one_snapshot_at_once(self, store: BlockStore) -> None:
        blocks = {index: block(index) for index in range(1, 33)}
        snapshot_id = store.start_snapshot(1)
        with ThreadPoolExecutor(8) as pool:
            puts = [
                pool.submit(store.put_snapshot_block, snapshot_id, index, content, sha256(content))
                for index, content in blocks.items()
            ]
        for put in puts:
            put.result()
        store.complete_snapshot(snapshot_id, len(blocks), linear(blocks))
        store.wait_snapshot(snapshot_id)
        assert read_snapshot(store, snapshot_id) == (1, blocks)

    @staticmethod
    def _pending(store: BlockStore) -> tuple[str, dict[int, bytes]]:
        blocks = {0: block(1), 1: block(2)}
        snapshot_id = store.start_snapshot(1)
        for index, content in blocks.items():
            store.put_snapshot_block(snapshot_id, index, content, sha256(content))
        return snapshot_id, blocks
