"""Finding what is left of a damaged container: every record that still proves itself.

A forward scan for "AMIS". A record counts when its CRC-32C is right; of a VOLD or INDX that is
damaged itself the place is kept, since what follows it may be whole. Over a segment
whose frames are all right the scan jumps, so containers in the guest's own files are not
taken for parts of this one.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable

import attrs

from amistore.archive.reader import has_crc, opens
from amistore.backends.ranges import RangeReader
from amistore.container import Head, Runs, SegmentDescriptor, VolumeDescriptor, layout
from amistore.container.records import Frame, open_envelope, open_record
from amistore.errors import ArchiveError, CorruptArchiveError
from amistore.units import MIB

__all__ = ["Found", "FoundSegment", "scan"]

_WINDOW = 64 * MIB
_RECORD_BUDGET = 32
"""How often a file's bytes may be checked as parts of records that are none, on average.

Damage makes a few; a file made of overlapping beginnings of records would take hours.
"""


@attrs.frozen
class FoundSegment:
    """A SEGD whose CRC is right: what it says but for digests, of which there may be millions.

    Attributes:
        offset: of the record in the file.
        size: of the record in bytes.
        record_digest: SHA-256 of the record.
        file_id: as it says.
        volume: as it says.
        sequence: as it says.
        ordinal: as it says.
        runs: its blocks.
        intact: which of its frames have the right CRC-32.
    """

    offset: int
    size: int
    record_digest: bytes
    file_id: bytes
    volume: int
    sequence: int
    ordinal: int
    runs: Runs
    intact: bytes

    @property
    def payload(self) -> int:
        """The file offset of its first frame."""
        return self.offset + self.size


@attrs.frozen
class Found:
    """What a scan found: records with their file offsets, in the file's order.

    `broken_volumes` and `indexes` are offsets of VOLD and INDX records, the one damaged, the
    other not checked. `ends` are offsets where an intact segment ends.
    """

    heads: list[tuple[int, Head]] = attrs.field(factory=list)
    volumes: list[tuple[int, VolumeDescriptor]] = attrs.field(factory=list)
    broken_volumes: list[int] = attrs.field(factory=list)
    indexes: list[int] = attrs.field(factory=list)
    segments: list[FoundSegment] = attrs.field(factory=list)
    ends: list[int] = attrs.field(factory=list)


def scan(ranges: RangeReader, progress: Callable[[int], None]) -> Found:
    """Scan from front to end; `progress` gets the offset reached, again and again."""
    found = Found()
    window = _Window(ranges)
    offset = 0
    budget = _RECORD_BUDGET * ranges.size + layout.MAX_DESCRIPTOR
    while True:
        at = window.find(layout.SIGNATURE, offset + layout.SKIPPABLE_HEADER)
        if at is None:
            return found
        start = at - layout.SKIPPABLE_HEADER
        offset, wasted = _take(window, start, found)
        budget -= wasted
        if budget < 0:
            raise CorruptArchiveError("there are too many beginnings of records that are none", offset=start)
        progress(offset)


class _Window:
    """A sliding piece of the file, so that neighbouring small reads cost one."""

    def __init__(self, ranges: RangeReader) -> None:
        self._ranges = ranges
        self._start = 0
        self._content = b""

    def read(self, offset: int, length: int) -> memoryview:
        """`length` bytes, fewer at the file's end."""
        if not self._start <= offset or offset + length > self._start + len(self._content):
            self._content = self._ranges.read(offset, max(length, _WINDOW))
            self._start = offset
        at = offset - self._start
        return memoryview(self._content)[at : at + length]

    def read_intact(self, offset: int, length: int, intact: Callable[[bytes], bool]) -> bytes:
        """As `read`; what is not intact may have been damaged on its way, and is asked for by itself."""
        content = bytes(self.read(offset, length))
        return content if intact(content) else self._ranges.read_intact(offset, length, intact)

    def find(self, wanted: bytes, offset: int) -> int | None:
        """The offset of the next place that holds `wanted`."""
        while offset < self._ranges.size:
            self.read(offset, len(wanted))
            at = self._content.find(wanted, offset - self._start)
            if at >= 0:
                return self._start + at
            end = self._start + len(self._content)
            if end >= self._ranges.size:
                return None
            offset = max(offset + 1, end - len(wanted) + 1)
        return None


def _take(window: _Window, start: int, found: Found) -> tuple[int, int]:
    """Look at what may be a record: the offset to go on from, and how many bytes were checked in vain."""
    onward = start + len(layout.SIGNATURE)
    try:
        envelope = open_envelope(bytes(window.read(start, layout.ENVELOPE.size)))
    except ArchiveError:
        return onward, 0
    if envelope.kind == layout.INDX:
        found.indexes.append(start)
    if envelope.kind not in (layout.HEAD, layout.VOLD, layout.SEGD) or envelope.size > layout.MAX_DESCRIPTOR:
        return onward, 0
    try:
        record = window.read_intact(start, envelope.size, opens(open_record))
        payload = open_record(record)
        if envelope.kind == layout.HEAD:
            found.heads.append((start, Head.parse(payload)))
        elif envelope.kind == layout.VOLD:
            found.volumes.append((start, VolumeDescriptor.parse(payload)))
        else:
            descriptor = SegmentDescriptor.parse(payload)
            segment = _segment(window, start, record, descriptor)
            found.segments.append(segment)
            if all(segment.intact):
                found.ends.append(segment.payload + descriptor.payload_size)
                return found.ends[-1], 0
            return segment.payload, descriptor.payload_size
    except ArchiveError:
        if envelope.kind == layout.VOLD:
            found.broken_volumes.append(start)
        return onward, envelope.size
    return start + len(record), 0


def _segment(window: _Window, start: int, record: bytes, descriptor: SegmentDescriptor) -> FoundSegment:
    at = start + len(record)
    intact = bytearray()
    for frame in descriptor.frames:
        content = window.read_intact(at, frame.size, has_crc(frame.crc32))
        intact.append(Frame(len(content), zlib.crc32(content)) == frame)
        at += frame.size
    return FoundSegment(
        offset=start,
        size=len(record),
        record_digest=hashlib.sha256(record).digest(),
        file_id=descriptor.file_id,
        volume=descriptor.volume,
        sequence=descriptor.sequence,
        ordinal=descriptor.ordinal,
        runs=descriptor.runs,
        intact=bytes(intact),
    )
