"""A container that is read by ranges: its index, and any segment by its number.

Opening reads the end and, if it does not fit in there, the index. The first read of a block takes two more
reads: its segment's descriptor and its frame. Several threads may use it. The front and the preludes are not
read: INDX has their content, and `verification.py` compares the two.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import accumulate
from typing import Any

from amistore import forks
from amistore.archive.framecache import CACHE_SIZE, FrameCache
from amistore.backends.ranges import RangeReader
from amistore.backends.receiving import Content
from amistore.backends.remote import TAIL
from amistore.container.index import Index
from amistore.container.layout import FOOT, FOOT_SIZE, MAX_DESCRIPTOR, descriptor_limit
from amistore.container.members import PREAMBLE
from amistore.container.records import Foot, Head, SegmentDescriptor, refuse_newer
from amistore.container.segments import LocatedSegment, StoredSegment, check_place
from amistore.errors import ArchiveError, CorruptArchiveError, TruncatedArchiveError, locating
from amistore.model import Image
from amistore.pipeline.requests import Reads, requests_of
from amistore.text import printable

__all__ = ["ContainerFile", "has_crc", "has_digest", "is_exactly", "opens"]

_logger = logging.getLogger("amistore")

_KEPT_DESCRIPTORS = 128
"""Parsed SEGD records that are kept, of some 7 KiB each."""


def _has_foot(tail: Content) -> bool:
    return FOOT in bytes(tail[-FOOT_SIZE:])


class ContainerFile:
    """An opened container.

    Attributes:
        name: the name for messages.
        size: the size in bytes.
        foot: the FOOT record.
        index: the INDX record, authenticated by FOOT.
        head: the HEAD record, from the index.
        image: the image, from the index's copy of the manifest.
        identity, metadata, requests: the attributes of its `RangeReader`.
        cache: the decoded frames that are kept.
    """

    def __init__(self, ranges: RangeReader, cache: FrameCache | None = None) -> None:
        self._ranges = ranges
        self.cache = cache or FrameCache(CACHE_SIZE)
        self._renew_lock()
        forks.register(self, ContainerFile._renew_lock)
        self._located: OrderedDict[int, LocatedSegment] = OrderedDict()
        self.name = ranges.name
        self.size = ranges.size
        self.identity = ranges.identity
        self.requests = requests_of(ranges)
        self.metadata = ranges.metadata
        self.foot: Foot
        self.index: Index
        self.head: Head
        self.image: Image
        tail = self._read_tail()
        self.foot = self._open_foot(tail[-FOOT_SIZE:])
        start = self.foot.index_offset - (self.size - len(tail))
        if start >= 0:
            record = tail[start : start + self.foot.index_length]
        else:
            record = self._read(
                self.foot.index_offset, self.foot.index_length, "INDX", has_digest(self.foot.index_digest)
            )
        with locating(offset=self.foot.index_offset, record="INDX"):
            self._open_index(record)
        counts = [volume.segments for volume in self.index.volumes]
        self._first_segments: list[int] = list(accumulate(counts, initial=0))

    def __reduce__(self) -> tuple[Any, ...]:
        return ContainerFile, (self._ranges,)  # another process reads the index by itself

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()

    def _read_tail(self) -> bytes:
        """The last bytes; what is no archive is not read again, as damaged bytes of one are."""
        place = max(0, self.size - TAIL), min(self.size, TAIL), "FOOT"
        tail = self._read(*place, lambda tail: not _has_foot(tail) or self._tail_is_intact(tail))
        if _has_foot(tail) or self._ranges.read(0, len(PREAMBLE)) != PREAMBLE:
            return tail
        return self._read(*place, self._tail_is_intact)

    def _open_foot(self, record: bytes) -> Foot:
        offset = self.size - len(record)
        try:
            foot = Foot.parse(record)
            if foot.index_offset + foot.index_length != offset:
                raise CorruptArchiveError("FOOT's offsets are not those of this file", record="FOOT")
        except CorruptArchiveError as error:
            start = self._ranges.read(0, len(PREAMBLE))
            if not start or not PREAMBLE.startswith(start):
                raise CorruptArchiveError(
                    f"{self.name} is no amistore container, or both its ends are damaged; "
                    "amistore.recover looks for what is left",
                    offset=0,
                ) from None
            raise TruncatedArchiveError(
                "the file does not end as an archive does: it is cut short, damaged there, or something "
                f"follows it ({error.message}); amistore.recover saves what is left",
                record="FOOT",
                offset=offset,
            ) from None
        return foot

    def _tail_is_intact(self, tail: Content) -> bool:
        try:
            foot = Foot.parse(bytes(tail[-FOOT_SIZE:]))
        except ArchiveError:
            return False
        start = len(tail) - FOOT_SIZE - foot.index_length
        return start < 0 or has_digest(foot.index_digest)(tail[start:-FOOT_SIZE])

    def _open_index(self, record: bytes) -> None:
        if not has_digest(self.foot.index_digest)(record):
            refuse_newer(record)
            raise CorruptArchiveError(
                "the index's SHA-256 is not the one in FOOT: amistore.recover saves what is left"
            )
        self.index = Index.parse(record)
        self.head, self.image = self.index.open()
        if self.index.end > self.foot.data_end or self.head.blocks != self.foot.blocks:
            raise CorruptArchiveError("the index contradicts FOOT")

    def read(
        self, offset: int, length: int, record: str, intact: Callable[[Content], bool], wrong: str
    ) -> bytes:
        """Read exactly `length` bytes from `offset` that are `intact`; else the error says `wrong`."""
        content = self._read(offset, length, record, intact)
        if not intact(content):
            refuse_newer(content)
            raise CorruptArchiveError(wrong, record=record, offset=offset)
        return content

    def _read(self, offset: int, length: int, record: str, intact: Callable[[Content], bool]) -> bytes:
        return bytes(self._view(offset, length, record, intact))

    def _view(self, offset: int, length: int, record: str, intact: Callable[[Content], bool]) -> Content:
        """Read exactly `length` bytes from `offset`; over a network, read again what is not `intact`."""
        told = False

        def check(content: Content) -> bool:
            nonlocal told
            good = len(content) == length and intact(content)
            if not good and not told:
                told = True
                place = f"bytes {offset} to {offset + length - 1} ({record})"
                _logger.warning("%s: %s seem damaged, reading them again", printable(self.name), place)
            return good

        content = self._ranges.read_intact(offset, length, check)
        if len(content) != length:
            raise TruncatedArchiveError(
                f"{length} bytes are expected here, there are {len(content)}", offset=offset, record=record
            )
        return content

    def close(self) -> None:
        """Close the file."""
        self._ranges.close()

    def volume_of(self, sequence: int) -> int:
        """The number of the volume that a segment belongs to."""
        return bisect_right(self._first_segments, sequence) - 1

    def segments_of(self, volume: int) -> range:
        """The sequence numbers of a volume's segments."""
        return range(*self._first_segments[volume : volume + 2])

    def segment_blocks(self, sequence: int) -> int:
        """The number of a segment's listed blocks."""
        volume = self.volume_of(sequence)
        number = sequence - self._first_segments[volume]
        return self.head.layout.segment_blocks(number, self.index.volumes[volume].blocks)

    def segment_end(self, sequence: int) -> int:
        """The file offset of what follows a segment in the index, an upper bound of its end."""
        volume = self.volume_of(sequence)
        if sequence + 1 < self._first_segments[volume + 1]:
            return self.index.offsets[sequence + 1]
        return self.volume_end(volume)

    def segment_size(self, sequence: int) -> int:
        """The bytes of a segment and of what stands behind it, up to what follows it in the index."""
        return self.segment_end(sequence) - self.index.offsets[sequence]

    def volume_end(self, number: int) -> int:
        """The file offset of what follows a volume in the index."""
        following = self.index.volumes[number + 1 : number + 2]
        return following[0].offset if following else self.foot.data_end

    def segment(self, sequence: int) -> LocatedSegment:
        """A segment by its sequence number, its SEGD authenticated by the index."""
        with self._lock:
            located = self._located.get(sequence)
            if located is not None:
                self._located.move_to_end(sequence)
                return located
        offset = self.index.offsets[sequence]
        content = self._read(
            offset,
            self._descriptor_limit(sequence),
            "SEGD",
            lambda content: self._descriptor_is_intact(sequence, content),
        )
        located = self._parse(sequence, content)
        with self._lock:
            self._located[sequence] = located
            if len(self._located) > _KEPT_DESCRIPTORS:
                self._located.popitem(last=False)
        return located

    def load(self, sequence: int) -> StoredSegment:
        """A segment and its frames, in one read."""
        offset = self.index.offsets[sequence]
        blocks = self.segment_blocks(sequence)
        most = MAX_DESCRIPTOR + self.head.layout.frame_limit(blocks)
        located: LocatedSegment | None = None

        def intact(content: Content) -> bool:
            nonlocal located
            if not self._descriptor_is_intact(sequence, content):
                return False
            located = self._parse(sequence, content)
            return _frames_are_intact(located, 0, memoryview(content)[located.payload - offset :])

        length = min(self.segment_end(sequence) - offset, most)
        content = self._view(offset, length, f"segment {sequence}", intact)
        if located is None:
            located = self._parse(sequence, content)
        frames: list[bytes | memoryview] = list(
            _cut(located, 0, memoryview(content)[located.payload - offset :])
        )
        missing = len(located.descriptor.frames) - len(frames)
        if missing:  # frames longer than zstd makes them
            frames += self.frames(located, len(frames), missing)
        return StoredSegment(located, frames)

    def loads(self) -> Reads[StoredSegment]:
        """`load`, begun ahead of the workers where the bytes are far away."""
        return Reads(self.load, self.requests)

    def frames(self, located: LocatedSegment, first: int, count: int) -> list[bytes]:
        """Consecutive frames of a segment, in one read."""
        offset = located.frame_offset(first)
        size = sum(frame.size for frame in located.descriptor.frames[first : first + count])
        content = self._view(
            offset, size, "frame", lambda content: _frames_are_intact(located, first, memoryview(content))
        )
        return [bytes(piece) for piece in _cut(located, first, memoryview(content))]

    def locating(self, sequence: int) -> AbstractContextManager[None]:
        """Add a segment's place to errors about its bytes."""
        return locating(
            record="SEGD",
            offset=self.index.offsets[sequence],
            segment=sequence,
            snapshot_id=self.index.volumes[self.volume_of(sequence)].snapshot_id,
        )

    def _descriptor_is_intact(self, sequence: int, content: Content) -> bool:
        return has_digest(self.index.segment_digest(sequence))(_descriptor(content))

    def _descriptor_limit(self, sequence: int) -> int:
        """Most bytes that the SEGD of a segment can have."""
        blocks = self.segment_blocks(sequence)
        first, last = self.index.firsts[sequence], self.index.lasts[sequence]
        frames = len(self.head.layout.frame_contents(blocks))
        if not blocks <= last - first + 1:
            raise CorruptArchiveError("more blocks than fit between the first and the last", segment=sequence)
        offset = self.index.offsets[sequence]
        return min(descriptor_limit(blocks, frames, first, last), self.segment_end(sequence) - offset)

    def _parse(self, sequence: int, content: Content) -> LocatedSegment:
        """The segment whose SEGD `content` begins with."""
        offset = self.index.offsets[sequence]
        record = _descriptor(content)
        volume, head, index = self.volume_of(sequence), self.head, self.index
        with self.locating(sequence):
            if not self._descriptor_is_intact(sequence, content):
                refuse_newer(record)
                raise CorruptArchiveError("SEGD's SHA-256 is not the one in the index")
            descriptor = SegmentDescriptor.parse(record)
            blocks = self.segment_blocks(sequence)
            contents = head.layout.frame_contents(blocks)
            check_place(
                descriptor,
                file_id=head.file_id,
                volume=volume,
                sequence=sequence,
                ordinal=(sequence - self._first_segments[volume]) * head.layout.blocks_per_segment,
                frames=len(contents),
            )
            found = descriptor.runs.blocks, descriptor.runs.first, descriptor.runs.end - 1
            if found != (blocks, index.firsts[sequence], index.lasts[sequence]):
                raise CorruptArchiveError("SEGD's blocks are not those of the index")
            located = LocatedSegment(
                descriptor, index.volumes[volume].snapshot_id, offset, offset + len(record), contents
            )
            if located.end > self.segment_end(sequence):
                raise CorruptArchiveError("the segment reaches into what follows it")
        return located


def has_digest(digest: bytes) -> Callable[[Content], bool]:
    """A check of bytes by their SHA-256."""
    return lambda content: hashlib.sha256(content).digest() == digest


def is_exactly(expected: bytes) -> Callable[[Content], bool]:
    """A check of bytes that are known."""
    return lambda content: content == expected


def has_crc(crc32: int) -> Callable[[Content], bool]:
    """A check of bytes by their CRC-32."""
    return lambda content: zlib.crc32(content) == crc32


def opens(parse: Callable[[bytes], object]) -> Callable[[Content], bool]:
    """A check of bytes by their parser."""

    def check(content: Content) -> bool:
        try:
            parse(bytes(content))
        except CorruptArchiveError:
            return False
        return True

    return check


def _descriptor(content: Content) -> bytes:
    """The SEGD that `content` begins with."""
    return bytes(content[: min(int.from_bytes(content[4:8], "little") + 8, MAX_DESCRIPTOR)])


def _frames_are_intact(located: LocatedSegment, first: int, content: memoryview) -> bool:
    """Whether the frames from the `first` on that `content` holds have their CRCs."""
    found = zip(_cut(located, first, content), located.descriptor.frames[first:], strict=False)
    return all(zlib.crc32(piece) == frame.crc32 for piece, frame in found)


def _cut(located: LocatedSegment, first: int, content: memoryview) -> Iterator[memoryview]:
    """The bytes of the frames from the `first` on that `content` holds."""
    at = 0
    for frame in located.descriptor.frames[first:]:
        if at + frame.size > len(content):
            return
        yield content[at : at + frame.size]
        at += frame.size
