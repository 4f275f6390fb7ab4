"""Block sources and sinks that cost next to nothing, so that what is measured is amistore."""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from typing_extensions import Buffer

from amistore import BLOCK_SIZE, GIB, BlockDeviceMapping, EbsBlockDevice, Image, NotFoundError, Tag
from amistore.backends import (
    Block,
    BlockPage,
    BlockSink,
    BlockSource,
    ObjectInfo,
    ObjectStore,
    SnapshotBlock,
    StoreTraits,
    UploadedPart,
)
from amistore.units import KIB

__all__ = [
    "SNAPSHOT_ID",
    "DroppingSink",
    "DroppingStore",
    "GeneratedSource",
    "MemorySource",
    "PooledSource",
    "image_of_one_snapshot",
]

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

    @staticmethod
    def page(volume_size: int, next_token: str | None) -> BlockPage:
        """A page of the listing of a volume whose every block is allocated."""
        start = int(next_token or 0)
        end = min(start + PAGE_SIZE, volume_size * GIB // BLOCK_SIZE)
        return BlockPage(
            volume_size=volume_size,
            blocks=[Block(index, "token") for index in range(start, end)],
            next_token=str(end) if end < volume_size * GIB // BLOCK_SIZE else None,
        )

    def list_snapshot_blocks(self, snapshot_id: str, *, next_token: str | None = None) -> BlockPage:
        return self.page(self._volume_size, next_token)

    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> SnapshotBlock:
        at = block_index % 31 * self._half
        line = f"block {block_index} of a volume that nobody has to store first\n".encode().ljust(128, b".")
        return SnapshotBlock(b"".join((self._noise[at : at + self._half], line * (256 * KIB // 128))))


class PooledSource(BlockSource):
    """A fully allocated volume, whose blocks are those of a file, again and again.

    Each process that it is sent to maps the file, which stays in the page cache.
    """

    def __init__(self, path: Path, volume_size: int) -> None:
        """Take the file's path, and the volume's size in GiB."""
        self._path = path
        self._volume_size = volume_size
        self._pool: memoryview | None = None

    def __reduce__(self) -> tuple[type[PooledSource], tuple[Path, int]]:
        return PooledSource, (self._path, self._volume_size)

    def list_snapshot_blocks(self, snapshot_id: str, *, next_token: str | None = None) -> BlockPage:
        return GeneratedSource.page(self._volume_size, next_token)

    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> SnapshotBlock:
        if self._pool is None:
            with self._path.open("rb") as file:
                self._pool = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        at = block_index * BLOCK_SIZE % len(self._pool)
        return SnapshotBlock(self._pool[at : at + BLOCK_SIZE])


class DroppingStore(ObjectStore):
    """Counts parts and drops them, wherever it is sent to; it keeps the last one that its own process sends.

    That is the archive's end, which is read once the upload is completed.
    """

    traits = StoreTraits(part_listing=False)

    def __init__(self) -> None:
        self._process = os.getpid()
        self._tail = b""
        self._metadata: dict[str, str] = {}
        self._made: ObjectInfo | None = None

    def head_object(self, bucket: str, key: str, *, version: str | None = None) -> ObjectInfo:
        if self._made is None:
            raise NotFoundError("no such object")
        return self._made

    def get_object_range(
        self,
        bucket: str,
        key: str,
        start: int,
        length: int,
        *,
        if_match: str | None = None,
        version: str | None = None,
    ) -> bytes:
        at = start - (self.head_object(bucket, key).size - len(self._tail))
        return self._tail[at : at + length]

    def delete_object(self, bucket: str, key: str, *, if_match: str | None = None) -> None:
        self._made = None

    def create_multipart_upload(
        self,
        bucket: str,
        key: str,
        *,
        metadata: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        self._metadata = dict(metadata or {})
        return "upload"

    def upload_part(
        self, bucket: str, key: str, upload_id: str, part_number: int, content: Buffer
    ) -> UploadedPart:
        size = memoryview(content).nbytes
        if os.getpid() == self._process:
            self._tail = bytes(content)
        return UploadedPart(part_number=part_number, size=size, etag=f"{part_number}-{size}")

    def list_parts(self, bucket: str, key: str, upload_id: str) -> list[UploadedPart]:
        return []

    def complete_multipart_upload(
        self,
        bucket: str,
        key: str,
        upload_id: str,
        parts: Sequence[UploadedPart],
        *,
        if_none_match: bool = False,
    ) -> ObjectInfo:
        size = sum(part.size for part in parts)
        self._made = ObjectInfo(size=size, etag="etag", metadata=self._metadata)
        return self._made

    def abort_multipart_upload(self, bucket: str, key: str, upload_id: str) -> None:
        pass


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
