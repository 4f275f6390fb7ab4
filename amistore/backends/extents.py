"""The parts of a file that hold data, and the blocks of a disk that they overlap."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator

from amistore.units import BLOCK_SIZE

__all__ = ["blocks_of", "extents"]


def extents(descriptor: int, size: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """The parts of a file between two offsets that hold data, as pairs of offsets, ascending.

    SEEK_DATA and SEEK_HOLE find the holes; where the filesystem does not know them, there is one part.
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


def blocks_of(parts: Iterable[tuple[int, int]]) -> Iterator[int]:
    """The indexes of the blocks that overlap ascending parts of a disk, ascending."""
    done = 0
    for start, end in parts:
        after = -(-end // BLOCK_SIZE)
        yield from range(max(done, start // BLOCK_SIZE), after)
        done = after
