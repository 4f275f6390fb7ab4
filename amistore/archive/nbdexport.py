"""`NBDExport`: a volume as the NBD server gives it, by pieces of data and of zeros."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import attrs

from amistore.archive.volumefile import VolumeFile
from amistore.archive.volumereader import Hole, VolumeReader
from amistore.errors import advising, foreign_errors
from amistore.units import BLOCK_SIZE, MIB, ZERO_DIGEST
from amistore.wire import nbd

__all__ = ["NBDExport", "Piece"]

_PIECE: Final = 4 * MIB
"""Most bytes of a piece, so that a client takes no more memory than that for its reads."""


@attrs.frozen
class Piece:
    """A piece of a disk.

    Attributes:
        offset: the offset of its first byte.
        length: the number of its bytes.
        content: its bytes; None for zeros.
    """

    offset: int
    length: int
    content: bytes | None


@attrs.frozen
class NBDExport:
    """A volume that is served.

    Attributes:
        volume: the volume.
        description: a text for people.
    """

    volume: VolumeReader
    description: str

    @property
    def size(self) -> int:
        """The disk's size in bytes."""
        return self.volume.indexed.size

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """The length in bytes and the state of each stretch of a part; neighbours have other states.

        Descriptors tell them: nothing is decompressed. Lost blocks are allocated, and no zeros.

        Raises:
            CorruptArchiveError: a descriptor is damaged.
            BackendError: the archive cannot be read.
        """
        end = offset + length
        start, state = offset, -1
        while offset < end:
            stop, found = self._extent(offset // BLOCK_SIZE)
            if found != state and offset > start:
                yield offset - start, state
                start = offset
            state = found
            offset = min(stop * BLOCK_SIZE, end)
        yield end - start, state

    def _extent(self, index: int) -> tuple[int, int]:
        """Where blocks of the state of a block end, and this state."""
        place = self.volume.locate(index)
        if isinstance(place, Hole):
            lost = self.volume.lost_from(index)
            if lost is None or lost.first_block > index:
                end = place.end if lost is None else min(place.end, lost.first_block)
                return end, nbd.STATE_HOLE | nbd.STATE_ZERO
            return lost.end, 0
        descriptor = self.volume.container.segment(place[0]).descriptor
        run_end = descriptor.runs.run_end(index)
        ordinal = descriptor.runs.ordinal(index) or 0  # 0 for the first, too: it is listed
        digests = iter(descriptor.digests[ordinal : ordinal + run_end - index])
        zero = next(digests) == ZERO_DIGEST
        end = index + 1
        for digest in digests:
            if (digest == ZERO_DIGEST) != zero:
                break
            end += 1
        return end, nbd.STATE_ZERO if zero else 0

    def read(self, disk: VolumeFile, offset: int, length: int) -> Iterator[Piece]:
        """The pieces of a part, in order.

        Args:
            disk: the volume, opened by the caller.
            offset: the part's first byte.
            length: its bytes.

        Raises:
            AmistoreError: the archive is damaged, a block was lost, or the archive cannot be read.
        """
        with advising(), foreign_errors("read"):
            for size, state in self.extents(offset, length):
                if state & nbd.STATE_ZERO:
                    yield Piece(offset, size, None)
                else:
                    for start in range(offset, offset + size, _PIECE):
                        disk.seek(start)
                        count = min(_PIECE, offset + size - start)
                        yield Piece(start, count, disk.read(count))
                offset += size
