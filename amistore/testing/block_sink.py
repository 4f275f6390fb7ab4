"""The suite for every `BlockSink`; the fixture `case` returns a `SinkCase`.

A sink cannot be read, so the case has a function that reads what was written.
"""

# ruff: noqa: S101, S106

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import attrs
import pytest

from amistore.backends import BlockSink
from amistore.errors import AmistoreError, ChecksumMismatchError, NotFoundError
from amistore.model import Snapshot, Tag
from amistore.testing.snapshots import block, linear, sha256, store_snapshot
from amistore.units import BLOCK_SIZE, GIB

__all__ = ["UNKNOWN", "BlockSinkContract", "SinkCase"]

_LAST = GIB // BLOCK_SIZE - 1
UNKNOWN = ["snap-00000000000000000", "", "../snap-00000000000000000", "snap-0000000000000000\0"]


@attrs.frozen(kw_only=True)
class SinkCase:
    """A sink, and a function that reads its completed snapshots.

    Attributes:
        sink: the sink to write to.
        read: a function that returns, for a snapshot's id, its size in GiB and its blocks' content by index;
            blocks of zeros may be left out.
    """

    sink: BlockSink
    read: Callable[[str], tuple[int, Mapping[int, bytes]]]

    def holds(self, snapshot_id: str, volume_size: int, blocks: Mapping[int, bytes]) -> bool:
        """Whether a completed snapshot has these blocks, and zeros elsewhere."""
        size, found = self.read(snapshot_id)
        return size == volume_size and _written(found) == _written(blocks)


def _written(blocks: Mapping[int, bytes]) -> dict[int, bytes]:
    return {index: bytes(content) for index, content in blocks.items() if any(content)}


class BlockSinkContract:
    """Writing: a refused call has no effect, and a completed snapshot holds what was put."""

    @pytest.fixture
    def case(self) -> SinkCase:
        """An empty sink, and the function that reads it."""
        raise NotImplementedError("override the fixture 'case'")

    def test_a_snapshot_gets_an_id_of_its_own_of_the_form_that_ebs_gives(self, case: SinkCase) -> None:
        ids = {case.sink.start_snapshot(1) for _ in range(3)}
        assert len(ids) == 3
        for snapshot_id in ids:
            Snapshot(snapshot_id=snapshot_id)

    @pytest.mark.parametrize("snapshot_id", UNKNOWN)
    def test_an_unknown_snapshot_cannot_be_written(self, case: SinkCase, snapshot_id: str) -> None:
        calls: dict[str, Callable[[], None]] = {
            "put_snapshot_block": lambda: case.sink.put_snapshot_block(
                snapshot_id, 0, block(1), sha256(block(1))
            ),
            "complete_snapshot": lambda: case.sink.complete_snapshot(snapshot_id, 0, linear({})),
            "delete_snapshot": lambda: case.sink.delete_snapshot(snapshot_id),
        }
        for verb, call in calls.items():
            with pytest.raises(NotFoundError) as raised:
                call()
            assert raised.value.operation == verb

    @pytest.mark.parametrize("completed", [False, True])
    def test_a_deleted_snapshot_cannot_be_written(self, case: SinkCase, completed: bool) -> None:
        snapshot_id, blocks = self._pending(case.sink)
        if completed:
            case.sink.complete_snapshot(snapshot_id, len(blocks), linear(blocks))
            case.sink.wait_snapshot(snapshot_id)
        case.sink.delete_snapshot(snapshot_id)
        with pytest.raises(NotFoundError):
            case.sink.put_snapshot_block(snapshot_id, 0, block(1), sha256(block(1)))
        with pytest.raises(NotFoundError):
            case.sink.delete_snapshot(snapshot_id)

    def test_gives_back_what_was_put(self, case: SinkCase) -> None:
        sink = case.sink
        blocks = {0: block(1), 3: block(2), 4: block(3), _LAST: block(4)}
        snapshot_id = store_snapshot(sink, 1, blocks)
        assert case.holds(snapshot_id, 1, blocks)

    def test_blocks_may_be_put_in_any_order(self, case: SinkCase) -> None:
        sink = case.sink
        blocks = {9: block(1), 2: block(2), 7: block(3), 0: block(4)}
        assert case.holds(store_snapshot(sink, 1, blocks), 1, blocks)

    def test_takes_any_buffer_and_keeps_none(self, case: SinkCase) -> None:
        sink = case.sink
        snapshot_id = sink.start_snapshot(1)
        content = bytearray(block(1))
        sink.put_snapshot_block(snapshot_id, 0, memoryview(content), sha256(block(1)))
        content[:] = block(2)
        sink.complete_snapshot(snapshot_id, 1, linear({0: block(1)}))
        sink.wait_snapshot(snapshot_id)
        assert case.holds(snapshot_id, 1, {0: block(1)})

    def test_a_block_put_again_is_replaced_and_counts_once(self, case: SinkCase) -> None:
        sink = case.sink
        snapshot_id = sink.start_snapshot(1)
        for seed in (1, 2):
            sink.put_snapshot_block(snapshot_id, 6, block(seed), sha256(block(seed)))
        sink.complete_snapshot(snapshot_id, 1, linear({6: block(2)}))
        sink.wait_snapshot(snapshot_id)
        assert case.holds(snapshot_id, 1, {6: block(2)})

    def test_two_snapshots_do_not_mix(self, case: SinkCase) -> None:
        sink = case.sink
        first, second = sink.start_snapshot(1), sink.start_snapshot(2)
        assert first != second
        sink.put_snapshot_block(first, 0, block(1), sha256(block(1)))
        sink.put_snapshot_block(second, 0, block(2), sha256(block(2)))
        sink.complete_snapshot(second, 1, linear({0: block(2)}))
        sink.complete_snapshot(first, 1, linear({0: block(1)}))
        sink.wait_snapshot(first)
        assert case.holds(first, 1, {0: block(1)})
        assert case.holds(second, 2, {0: block(2)})

    def test_takes_a_description_and_tags(self, case: SinkCase) -> None:
        sink = case.sink
        tags = (Tag(key="Name", value="größe"), Tag(key="empty", value=""))
        snapshot_id = sink.start_snapshot(1, description="Größe, 1 GiB", tags=tags)
        sink.complete_snapshot(snapshot_id, 0, linear({}))
        sink.wait_snapshot(snapshot_id)
        assert case.holds(snapshot_id, 1, {})

    def test_a_wrong_checksum_is_refused_and_nothing_stored(self, case: SinkCase) -> None:
        sink = case.sink
        snapshot_id = sink.start_snapshot(1)
        with pytest.raises(ChecksumMismatchError):
            sink.put_snapshot_block(snapshot_id, 0, block(1), sha256(block(2)))
        sink.complete_snapshot(snapshot_id, 0, linear({}))
        sink.wait_snapshot(snapshot_id)
        assert case.holds(snapshot_id, 1, {})

    @pytest.mark.parametrize("size", [0, 1, BLOCK_SIZE - 1, BLOCK_SIZE + 1])
    def test_a_block_of_another_size_is_refused(self, case: SinkCase, size: int) -> None:
        sink = case.sink
        snapshot_id = sink.start_snapshot(1)
        with pytest.raises(AmistoreError):
            sink.put_snapshot_block(snapshot_id, 0, bytes(size), sha256(bytes(size)))

    @pytest.mark.parametrize("index", [-1, _LAST + 1, 2**40])
    def test_a_block_outside_the_volume_is_refused(self, case: SinkCase, index: int) -> None:
        sink = case.sink
        snapshot_id = sink.start_snapshot(1)
        with pytest.raises(AmistoreError):
            sink.put_snapshot_block(snapshot_id, index, block(1), sha256(block(1)))

    @pytest.mark.parametrize("volume_size", [0, -1, 65_537])
    def test_a_volume_of_an_impossible_size_is_refused(self, case: SinkCase, volume_size: int) -> None:
        sink = case.sink
        with pytest.raises(AmistoreError):
            sink.start_snapshot(volume_size)

    @pytest.mark.parametrize("count", [0, 1, 3])
    def test_completing_with_a_wrong_count_is_refused(self, case: SinkCase, count: int) -> None:
        sink = case.sink
        snapshot_id, blocks = self._pending(sink)
        with pytest.raises(ChecksumMismatchError):
            sink.complete_snapshot(snapshot_id, count, linear(blocks))

    def test_completing_with_a_wrong_checksum_is_refused(self, case: SinkCase) -> None:
        sink = case.sink
        snapshot_id, blocks = self._pending(sink)
        with pytest.raises(ChecksumMismatchError):
            sink.complete_snapshot(snapshot_id, len(blocks), linear({0: block(2), 1: block(1)}))

    def test_a_refused_completion_can_be_done_right(self, case: SinkCase) -> None:
        sink = case.sink
        snapshot_id, blocks = self._pending(sink)
        with pytest.raises(ChecksumMismatchError):
            sink.complete_snapshot(snapshot_id, 1, linear(blocks))
        sink.complete_snapshot(snapshot_id, len(blocks), linear(blocks))
        sink.wait_snapshot(snapshot_id)
        assert case.holds(snapshot_id, 1, blocks)

    def test_a_completed_snapshot_cannot_be_written(self, case: SinkCase) -> None:
        sink = case.sink
        snapshot_id = store_snapshot(sink, 1, {0: block(1)})
        with pytest.raises(AmistoreError):
            sink.put_snapshot_block(snapshot_id, 0, block(2), sha256(block(2)))
        with pytest.raises(AmistoreError):
            sink.put_snapshot_block(snapshot_id, 1, block(2), sha256(block(2)))
        assert case.holds(snapshot_id, 1, {0: block(1)})

    def test_completing_again_with_the_same_checksum_is_fine(self, case: SinkCase) -> None:
        sink = case.sink
        snapshot_id = store_snapshot(sink, 1, {0: block(1)})
        sink.complete_snapshot(snapshot_id, 1, linear({0: block(1)}))
        sink.wait_snapshot(snapshot_id)
        assert case.holds(snapshot_id, 1, {0: block(1)})

    def test_the_same_client_token_gives_the_same_snapshot(self, case: SinkCase) -> None:
        sink = case.sink
        first = sink.start_snapshot(1, client_token="token-one")
        sink.put_snapshot_block(first, 0, block(1), sha256(block(1)))
        assert sink.start_snapshot(1, client_token="token-one") == first
        assert len({first, sink.start_snapshot(1, client_token="token-two"), sink.start_snapshot(1)}) == 3
        sink.complete_snapshot(first, 1, linear({0: block(1)}))
        sink.wait_snapshot(first)
        assert case.holds(first, 1, {0: block(1)})

    def test_deleting_one_snapshot_leaves_the_others(self, case: SinkCase) -> None:
        sink = case.sink
        kept = store_snapshot(sink, 1, {0: block(1)})
        sink.delete_snapshot(store_snapshot(sink, 1, {0: block(1)}))
        assert case.holds(kept, 1, {0: block(1)})

    def test_threads_put_into_one_snapshot_at_once(self, case: SinkCase) -> None:
        sink = case.sink
        blocks = {index: block(index) for index in range(1, 33)}
        snapshot_id = sink.start_snapshot(1)
        with ThreadPoolExecutor(8) as pool:
            puts = [
                pool.submit(sink.put_snapshot_block, snapshot_id, index, content, sha256(content))
                for index, content in blocks.items()
            ]
        for put in puts:
            put.result()
        sink.complete_snapshot(snapshot_id, len(blocks), linear(blocks))
        sink.wait_snapshot(snapshot_id)
        assert case.holds(snapshot_id, 1, blocks)

    @staticmethod
    def _pending(sink: BlockSink) -> tuple[str, dict[int, bytes]]:
        blocks = {0: block(1), 1: block(2)}
        snapshot_id = sink.start_snapshot(1)
        for index, content in blocks.items():
            sink.put_snapshot_block(snapshot_id, index, content, sha256(content))
        return snapshot_id, blocks
