"""Block sources and sinks that cost next to nothing, so that what is measured is amistore."""

from __future__ import annotations

import random
from collections.abc import Sequence

from typing_extensions import Buffer

from amistore import BLOCK_SIZE, GIB, BlockDeviceMapping, EbsBlockDevice, Image, Tag
from amistore.backends import Block, BlockPage, BlockSink, BlockSource, SnapshotBlock
from amistore.units import KIB

__all__ = ["SNAPSHOT_ID", "DroppingSink", "GeneratedSource", "MemorySource", "image_of_one_snapshot"]

SNAPSHOT_ID = "snap-0123456789abcdef0"
PAGE_SIZE = 10_000  # blocks, the most that ListSnapshotBlocks gives at once


def image_of_one_snapshot(snapshot_id: str = SNAPSHOT_ID) -> Image:
    """An image with one snapshot."""
    return Image(
        image_id="ami-0123456789abcdef0",
        name="benchmark",
        architecture="x86_64",
        root_device_name="/dev/xvda",
        root_device_type="ebs",
        virtualization_type="hvm",
        block_device_mappings=(
            BlockDeviceMapping(device_name="/dev/xvda", ebs=EbsBlockDevice(snapshot_id=snapshot_id)),
        ),
    )


class MemorySource(BlockSource):
    """Blocks that lie in memory, as views of frame contents: serving one copies nothing."""

    def __init__(self, volume_size: int, indexes: Sequence[int], contents: Sequence[bytes]) -> None:
        """Take the size in GiB, the listed indexes, and the blocks' bytes, a frame's together."""
        self._volume_size = volume_size
        views = (memoryview(content) for content in contents)
        blocks = (view[at : at + BLOCK_SIZE] for view in views for at in range(0, len(view), BLOCK_SIZE))
        self._blocks = dict(zip(indexes, blocks, strict=True))

    def list_snapshot_blocks(self, snapshot_id: str, *, next_token: str | None = None) -> BlockPage:
        return BlockPage(volume_size=self._volume_size, blocks=[Block(index) for index in self._blocks])

    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> SnapshotBlock:
        return SnapshotBlock(self._blocks[block_index])


class GeneratedSource(BlockSource):
    """A fully allocated volume of any size: half of each block is noise, half is text."""

    def __init__(self, volume_size: int) -> None:
        """Take the size in GiB."""
        self._volume_size = volume_size
        self._half = BLOCK_SIZE // 2
        # 31 pieces of noise: no two blocks of a frame share one.
        self._noise = memoryview(random.Random(1).randbytes(31 * self._half))

    def list_snapshot_blocks(self, snapshot_id: str, *, next_token: str | None = None) -> BlockPage:
        start = int(next_token or 0)
        end = min(start + PAGE_SIZE, self._volume_size * GIB // BLOCK_SIZE)
        return BlockPage(
            volume_size=self._volume_size,
            blocks=[Block(index, "token") for index in range(start, end)],
            next_token=str(end) if end < self._volume_size * GIB // BLOCK_SIZE else None,
        )

    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> SnapshotBlock:
        at = block_index % 31 * self._half
        line = f"block {block_index} of a volume that nobody has to store first\n".encode().ljust(128, b".")
        return SnapshotBlock(b"".join((self._noise[at : at + self._half], line * (256 * KIB // 128))))


class DroppingSink(BlockSink):
    """Takes blocks and forgets them."""

    def start_snapshot(
        self,
        volume_size: int,
        *,
        description: str = "",
        tags: Sequence[Tag] = (),
        client_token: str | None = None,
    ) -> str:
        return SNAPSHOT_ID

    def put_snapshot_block(
        self, snapshot_id: str, block_index: int, content: Buffer, checksum: bytes
    ) -> None:
        pass

    def complete_snapshot(self, snapshot_id: str, changed_blocks_count: int, checksum: bytes) -> None:
        pass

    def delete_snapshot(self, snapshot_id: str) -> None:
        pass
