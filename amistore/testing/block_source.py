"""The suite for every `BlockSource`; the fixture `source` returns a `SnapshotCase`."""

# ruff: noqa: S101

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from amistore.errors import NotFoundError
from amistore.testing.snapshots import SnapshotCase, read_snapshot, sha256
from amistore.units import BLOCK_SIZE, GIB

__all__ = ["BlockSourceContract"]


class BlockSourceContract:
    """Reading. The case should hold several blocks: the first, the last, one of zeros."""

    @pytest.fixture
    def source(self) -> SnapshotCase:
        """A source, a completed snapshot in it, and the snapshot's content."""
        raise NotImplementedError("override the fixture 'source'")

    def test_lists_the_blocks_that_exist_ascending(self, source: SnapshotCase) -> None:
        pages = list(source.source.pages(source.snapshot_id))
        indexes = [listed.block_index for page in pages for listed in page.blocks]
        assert indexes == sorted(source.blocks)

    def test_every_page_has_the_size_of_the_volume(self, source: SnapshotCase) -> None:
        sizes = {page.volume_size for page in source.source.pages(source.snapshot_id)}
        assert sizes == {source.volume_size}

    def test_no_listed_block_lies_outside_the_volume(self, source: SnapshotCase) -> None:
        end = source.volume_size * GIB // BLOCK_SIZE
        for page in source.source.pages(source.snapshot_id):
            assert all(0 <= listed.block_index < end for listed in page.blocks)

    def test_the_last_page_has_no_token(self, source: SnapshotCase) -> None:
        *before, last = source.source.pages(source.snapshot_id)
        assert last.next_token is None
        assert None not in [page.next_token for page in before]

    def test_gives_each_listed_block_whole(self, source: SnapshotCase) -> None:
        assert read_snapshot(source.source, source.snapshot_id) == (source.volume_size, dict(source.blocks))

    def test_a_checksum_that_is_given_is_right(self, source: SnapshotCase) -> None:
        for page in source.source.pages(source.snapshot_id):
            for listed in page.blocks:
                got = source.source.get_snapshot_block(
                    source.snapshot_id, listed.block_index, listed.block_token
                )
                assert got.checksum in (None, sha256(bytes(got.content)))

    def test_a_second_listing_is_like_the_first(self, source: SnapshotCase) -> None:
        listings = [
            [listed.block_index for page in source.source.pages(source.snapshot_id) for listed in page.blocks]
            for _ in range(2)
        ]
        assert listings[0] == listings[1]

    def test_gives_blocks_in_any_order_to_several_threads(self, source: SnapshotCase) -> None:
        wanted = [listed for page in source.source.pages(source.snapshot_id) for listed in page.blocks] * 4
        random.Random(1).shuffle(wanted)  # noqa: S311
        with ThreadPoolExecutor(8) as pool:
            got = list(
                pool.map(
                    lambda listed: source.source.get_snapshot_block(
                        source.snapshot_id, listed.block_index, listed.block_token
                    ),
                    wanted,
                )
            )
        for listed, found in zip(wanted, got, strict=True):
            assert bytes(found.content) == source.blocks[listed.block_index]

    @pytest.mark.parametrize("snapshot_id", ["snap-00000000000000000", "", "no/snapshot", "snap-\0"])
    def test_an_unknown_snapshot_is_not_found(self, source: SnapshotCase, snapshot_id: str) -> None:
        with pytest.raises(NotFoundError):
            source.source.list_snapshot_blocks(snapshot_id)
