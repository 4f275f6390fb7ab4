"""Reading a raw disk file: which parts exist, and what they hold."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from amistore.backends import files
from amistore.errors import InvalidRequestError
from amistore.units import BLOCK_SIZE

__all__ = ["data_blocks", "disk_size", "extents", "read_block"]


def extents(descriptor: int, size: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """The allocated parts of a file between two offsets, as offsets from and to, ascending.

    Holes are found with SEEK_DATA and SEEK_HOLE; where the filesystem does not know them
    all is one part.
    """
    while start < size:
        try:
            start = os.lseek(descriptor, start, os.SEEK_DATA)
            end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
            end = size
        if start < end:
            yield start, end
        start = end


def data_blocks(descriptor: int, size: int) -> Iterator[int]:
    """Indexes of the blocks that hold any allocated byte, ascending."""
    done = 0
    for start, end in extents(descriptor, size):
        after = -(-end // BLOCK_SIZE)
        yield from range(max(done, start // BLOCK_SIZE), after)
        done = after


def read_block(descriptor: int, index: int) -> bytes:
    """A block of the disk, filled up with zeros behind the file's end."""
    return files.read_at(descriptor, BLOCK_SIZE, index * BLOCK_SIZE).ljust(BLOCK_SIZE, b"\0")


def disk_size(path: Path, descriptor: int) -> int:
    """Size in bytes of a file or a block device."""
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise InvalidRequestError(f"{path} is neither a file nor a block device")
    size = os.lseek(descriptor, 0, os.SEEK_END)
    if not size:
        raise InvalidRequestError(f"{path} is empty")
    return size
