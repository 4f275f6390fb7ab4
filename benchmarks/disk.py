"""The disk that is measured with: an ext4 filesystem of real files, or one of the user's."""

from __future__ import annotations

import sys
from pathlib import Path

import attrs

from amistore import BLOCK_SIZE, GIB, DirectoryBackend

__all__ = ["Frames", "load_frames", "make_disk"]


@attrs.frozen
class Frames:
    """A snapshot's listed blocks in memory.

    Attributes:
        volume_size: in GiB.
        indexes: of the listed blocks.
        contents: of each frame: 8 blocks of 524,288 bytes, the last one fewer.
    """

    volume_size: int
    indexes: list[int]
    contents: list[bytes]

    @property
    def size(self) -> int:
        """Bytes of all blocks."""
        return len(self.indexes) * BLOCK_SIZE


def make_disk(path: Path, data: int) -> None:
    """Write a sparse raw disk with about `data` bytes of this machine's files, in ext4."""
    sys.path.append(str(Path(__file__).parents[1] / "examples"))
    import example_disk

    size = -(-(data + data // 2) // GIB) * GIB
    example_disk.make_disk(path, size=size, data=data, filesystem="ext4")


def load_frames(cloud: DirectoryBackend, snapshot_id: str, blocks_per_frame: int = 8) -> Frames:
    """Read a snapshot's blocks, as `amistore.pack` groups them."""
    pages = list(cloud.ebs.pages(snapshot_id))
    blocks = [block for page in pages for block in page.blocks]
    contents = []
    for first in range(0, len(blocks), blocks_per_frame):
        frame = blocks[first : first + blocks_per_frame]
        contents.append(
            b"".join(
                cloud.ebs.get_snapshot_block(snapshot_id, block.block_index, block.block_token).content
                for block in frame
            )
        )
    return Frames(pages[0].volume_size, [block.block_index for block in blocks], contents)
