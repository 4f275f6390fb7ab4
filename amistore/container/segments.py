"""Segments as they are read: their place checked, their frames decoded, each block's SHA-256 proved."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import attrs

from amistore.container import layout
from amistore.container.frames import FrameDecoder
from amistore.container.plan import PlannedSegment
from amistore.container.records import SegmentDescriptor
from amistore.errors import ArchiveError, CorruptArchiveError
from amistore.units import BLOCK_SIZE

__all__ = [
    "DecodedBlock",
    "DecodedFrame",
    "check_segment",
    "decode_frame",
    "decode_segment",
    "descriptor_limit",
]


def check_segment(descriptor: SegmentDescriptor, planned: PlannedSegment) -> None:
    """Refuse a SEGD that is not the one of this place in this file."""
    found = (descriptor.file_id, descriptor.volume, descriptor.sequence, descriptor.ordinal)
    if found != (planned.file_id, planned.volume, planned.sequence, planned.ordinal):
        raise CorruptArchiveError("SEGD belongs to another file or another place")
    if descriptor.runs != planned.runs or len(descriptor.frames) != len(planned.frame_contents):
        raise CorruptArchiveError("SEGD's blocks or frames are not those of the sparse map")


def descriptor_limit(blocks: int, frames: int, first: int, last: int) -> int:
    """Most bytes of the SEGD of so many blocks between two block indexes, these included.

    What a reader asks for that knows the index only: exact but for the varints of the runs.
    """
    holes = last - first + 1 - blocks
    runs = min(blocks, holes + 1)
    # A gap or count takes a byte for each 7 bits; no gap but the first is above `holes`.
    varints = _varint_size(first) + (runs - 1) * _varint_size(holes) + runs * _varint_size(blocks)
    fixed = layout.RECORD_OVERHEAD + layout.SEGD_FIXED.size
    return min(fixed + varints + frames * layout.FRAME_ENTRY.size + 32 * blocks, layout.MAX_DESCRIPTOR)


def _varint_size(number: int) -> int:
    return max(1, -(-number.bit_length() // 7))


@attrs.frozen
class DecodedBlock:
    """A block whose digest was checked."""

    index: int
    content: memoryview
    digest: bytes


class DecodedFrame:
    """A frame's decoded content; a block's SHA-256 is proved when the block is asked for.

    Attributes:
        indexes: of its blocks, ascending.
    """

    def __init__(self, descriptor: SegmentDescriptor, first: int, content: bytes) -> None:
        """Take the descriptor, the place of the first block in the segment, and the content."""
        count = len(content) // BLOCK_SIZE
        self.indexes = tuple(descriptor.runs.slice(first, count).indexes())
        self._segment = descriptor.sequence
        self._digests = descriptor.digests[first : first + count]
        self._content = memoryview(content)
        self._proved = bytearray(count)

    def block(self, place: int) -> DecodedBlock:
        """The frame's block of this place, from 0.

        Raises:
            CorruptArchiveError: its SHA-256 is wrong.
        """
        content = self._content[place * BLOCK_SIZE : (place + 1) * BLOCK_SIZE]
        if not self._proved[place]:
            if hashlib.sha256(content).digest() != self._digests[place]:
                raise CorruptArchiveError(
                    "a block's SHA-256 is wrong",
                    record="frame",
                    segment=self._segment,
                    block_index=self.indexes[place],
                )
            self._proved[place] = 1
        return DecodedBlock(self.indexes[place], content, self._digests[place])

    def blocks(self) -> Iterator[DecodedBlock]:
        """All its blocks."""
        return map(self.block, range(len(self.indexes)))


def decode_frame(
    descriptor: SegmentDescriptor,
    number: int,
    frame: bytes,
    frame_contents: Sequence[int],
    decoder: FrameDecoder,
) -> DecodedFrame:
    """Decode a segment's frame of this number.

    Raises:
        CorruptArchiveError: it is not what its descriptor says.
    """
    first = sum(frame_contents[:number]) // BLOCK_SIZE
    try:
        content = decoder.decode(frame, frame_contents[number], descriptor.frames[number].crc32)
    except ArchiveError as error:
        index = descriptor.runs.slice(first, 1).first
        raise error.locate(record="frame", segment=descriptor.sequence, block_index=index) from None
    return DecodedFrame(descriptor, first, content)


def decode_segment(
    descriptor: SegmentDescriptor, frames: Sequence[bytes], frame_contents: Sequence[int], offset: int
) -> Iterator[DecodedBlock]:
    """Decode a segment's frames one by one and check each block's SHA-256.

    Args:
        descriptor: its SEGD.
        frames: all of them.
        frame_contents: bytes of content of each.
        offset: file offset of the first one, for errors.

    Raises:
        CorruptArchiveError: a frame or a block is not what its descriptor says.
    """
    decoder = FrameDecoder()
    for number, frame in enumerate(frames):
        try:
            yield from decode_frame(descriptor, number, frame, frame_contents, decoder).blocks()
        except ArchiveError as error:
            raise error.locate(offset=offset) from None
        offset += len(frame)
