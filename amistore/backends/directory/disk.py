"""Reading a raw disk file: which blocks exist, and what they hold."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from amistore.units import BLOCK_SIZE

__all__ = ["data_blocks", "read_block"]


def data_blocks(descriptor: int, size: int) -> Iterator[int]:
    """Indexes of the blocks that hold any allocated byte, ascending.

    Holes are found with SEEK_DATA and SEEK_HOLE; where the filesystem does not know them
    every block counts.
    """
    done = 0
    position = 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
            position = os.lseek(descriptor, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
            start, position = position, size
        end = -(-min(position, size) // BLOCK_SIZE)
        yield from range(max(done, start // BLOCK_SIZE), end)
        done = max(done, end)


def read_block(descriptor: int, index: int) -> bytes:
    """A block of the disk, filled up with zeros behind the file's end."""
    content = b""
    while len(content) < BLOCK_SIZE:
        piece = os.pread(descriptor, BLOCK_SIZE - len(content), index * BLOCK_SIZE + len(content))
        if not piece:
            break
        content += piece
    return content.ljust(BLOCK_SIZE, b"\0")


def disk_size(path: Path, descriptor: int) -> int:
    """Size in bytes of a file or a block device."""
    size = os.lseek(descriptor, 0, os.SEEK_END)
    if not size:
        raise OSError(errno.EINVAL, "the disk is empty", str(path))
    return size
