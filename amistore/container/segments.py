"""Segments as they are read: their place checked, their frames decoded, each block's SHA-256 proved."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

import attrs

from amistore.container.frames import check_frame, decompress
from amistore.container.plan import PlannedSegment
from amistore.container.records import SegmentDescriptor
from amistore.errors import CorruptArchiveError, locating
from amistore.units import BLOCK_SIZE

__all__ = [
    "DecodedBlock",
    "DecodedFrame",
    "LocatedSegment",
    "StoredFrame",
    "StoredSegment",
    "check_place",
    "check_segment",
    "check_stored_frame",
    "decode_frame",
    "decode_segment",
]


@attrs.frozen
class LocatedSegment:
    """A segment's descriptor, and where it stands.

    Attributes:
        descriptor: its SEGD.
        snapshot_id: of its volume.
        offset: the file offset of its SEGD.
        payload: the file offset of its first frame.
        frame_contents: bytes of content of each of its frames.
    """

    descriptor: SegmentDescriptor
    snapshot_id: str
    offset: int
    payload: int
    frame_contents: tuple[int, ...]

    @property
    def end(self) -> int:
        """The file offset behind its last frame."""
        return self.payload + self.descriptor.payload_size

    def frame_offset(self, number: int) -> int:
        """The file offset of one of its frames."""
        return self.payload + sum(frame.size for frame in self.descriptor.frames[:number])

    def first_block(self, number: int) -> int:
        """The index of the first block of one of its frames."""
        return self.descriptor.runs.slice(sum(self.frame_contents[:number]) // BLOCK_SIZE, 1).first

    def locating(self, number: int, block_index: int | None = None) -> AbstractContextManager[None]:
        """Tell the place of one of its frames in an error; without a block, that of its first."""
        return locating(
            record="frame",
            offset=self.frame_offset(number),
            segment=self.descriptor.sequence,
            snapshot_id=self.snapshot_id,
            block_index=self.first_block(number) if block_index is None else block_index,
        )


@attrs.frozen
class StoredSegment:
    """A segment with the bytes of its frames, which are not checked yet."""

    located: LocatedSegment
    frames: Sequence[bytes | memoryview]


def check_place(
    descriptor: SegmentDescriptor, file_id: bytes, volume: int, sequence: int, ordinal: int, frames: int
) -> None:
    """Refuse a SEGD that is not the one of this place in this file, or has another number of frames.

    Raises:
        CorruptArchiveError: it is not.
    """
    found = (descriptor.file_id, descriptor.volume, descriptor.sequence, descriptor.ordinal)
    if found != (file_id, volume, sequence, ordinal) or len(descriptor.frames) != frames:
        raise CorruptArchiveError("SEGD belongs to another file or another place")


def check_segment(descriptor: SegmentDescriptor, planned: PlannedSegment) -> None:
    """Refuse a SEGD that is not the one that the sparse map means.

    Raises:
        CorruptArchiveError: it is not.
    """
    place = planned.file_id, planned.volume, planned.sequence, planned.ordinal
    check_place(descriptor, *place, len(planned.frame_contents))
    if descriptor.runs != planned.runs:
        raise CorruptArchiveError("SEGD's blocks are not those of the sparse map")


@attrs.frozen
class DecodedBlock:
    """A block whose digest was checked."""

    index: int
    content: memoryview
    digest: bytes


@attrs.frozen
class StoredFrame:
    """A frame as it is stored: its segment, its number in it, and its bytes."""

    located: LocatedSegment
    number: int
    content: bytes

    def decode(self) -> DecodedFrame:
        """Decode it.

        Raises:
            CorruptArchiveError: it is not what its descriptor says, with the place.
        """
        decoded = decode_frame(self.located, self.number, self.content)
        decoded.stored = self
        return decoded


class DecodedFrame:
    """A frame's decoded content; a block's SHA-256 is proved when the block is asked for.

    Attributes:
        indexes: of its blocks, ascending.
        stored: as it is stored, where that is to be kept.
    """

    stored: StoredFrame | None = None

    def __init__(self, located: LocatedSegment, number: int, content: bytes) -> None:
        """Take its segment, its number in it, and the content."""
        count = len(content) // BLOCK_SIZE
        first = sum(located.frame_contents[:number]) // BLOCK_SIZE
        self.indexes = tuple(located.descriptor.runs.slice(first, count).indexes())
        self._place = located, number
        self._digests = located.descriptor.digests[first : first + count]
        self._content = memoryview(content)
        self._proved = bytearray(count)

    @property
    def size(self) -> int:
        """The bytes of its blocks."""
        return len(self._content)

    def block(self, place: int) -> DecodedBlock:
        """The frame's block of this place, from 0.

        Raises:
            CorruptArchiveError: its SHA-256 is wrong.
        """
        content = self._content[place * BLOCK_SIZE : (place + 1) * BLOCK_SIZE]
        if not self._proved[place]:
            if hashlib.sha256(content).digest() != self._digests[place]:
                located, number = self._place
                with located.locating(number, self.indexes[place]):
                    raise CorruptArchiveError("a block's SHA-256 is wrong")
            self._proved[place] = 1
        return DecodedBlock(self.indexes[place], content, self._digests[place])

    def blocks(self) -> Iterator[DecodedBlock]:
        """All its blocks."""
        return map(self.block, range(len(self.indexes)))


def check_stored_frame(located: LocatedSegment, number: int, frame: bytes | memoryview) -> None:
    """Refuse a frame whose CRC-32 or header is not what its segment says; nothing is decoded.

    Raises:
        CorruptArchiveError: it is not, with the place.
    """
    with located.locating(number):
        check_frame(frame, located.frame_contents[number], located.descriptor.frames[number].crc32)


def decode_frame(located: LocatedSegment, number: int, frame: bytes | memoryview) -> DecodedFrame:
    """Decode a segment's frame of this number.

    Raises:
        CorruptArchiveError: it is not what its descriptor says, with the place.
    """
    with located.locating(number):
        content = decompress(frame, located.frame_contents[number], located.descriptor.frames[number].crc32)
    return DecodedFrame(located, number, content)


def decode_segment(stored: StoredSegment) -> Iterator[DecodedBlock]:
    """Decode a segment's frames one by one and check each block's SHA-256.

    Raises:
        CorruptArchiveError: a frame or a block is not what its descriptor says, with the place.
    """
    for number, frame in enumerate(stored.frames):
        yield from decode_frame(stored.located, number, frame).blocks()
