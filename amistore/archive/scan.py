"""Finding what is left of a damaged container: every record that still proves itself.

A forward scan for "AMIS". A record counts when its CRC-32C is right; of a VOLD or INDX that is
damaged itself the place is kept, since what follows it may be whole. Over a segment
whose frames are all right the scan jumps, so containers in the guest's own files are not
taken for parts of this one.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable

import attrs

from amistore.archive.reader import has_crc, opens
from amistore.backends.ranges import RangeReader
from amistore.backends.receiving import Content
from amistore.container import layout
from amistore.container.frames import Frame
from amistore.container.members import PREAMBLE
from amistore.container.records import Head, SegmentDescriptor, VolumeDescriptor, open_envelope, open_record
from amistore.container.runs import Runs
from amistore.errors import ArchiveError, CorruptArchiveError, UnsupportedArchiveError
from amistore.units import MIB

__all__ = ["Found", "FoundSegment", "scan"]

_WINDOW = 64 * MIB
_RECORD_BUDGET = 32
"""How often a file's bytes may be checked as parts of records that are none, on average.

Damage makes a few; a file made of overlapping beginnings of records would take hours.
"""


@attrs.frozen
class FoundSegment:
    """A SEGD whose CRC is right, without its digests, of which there may be millions.

    Attributes:
        offset: the record's offset in the file.
        size: the record's size in bytes.
        record_digest: the record's SHA-256.
        file_id: the record's file id.
        volume: the record's volume number.
        sequence: the record's sequence number.
        ordinal: the record's ordinal.
        runs: the runs of its blocks.
        intact: whether each of its frames has the right CRC-32.
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
    """The result of a scan: records with their file offsets, in the file's order.

    `broken_volumes` and `indexes` are offsets of VOLD and INDX records, the one damaged, the
    other not checked. `ends` are offsets where an intact segment ends. `newer` are file ids of
    HEADs of a newer format, each with the error that tells of it.
    """

    heads: list[tuple[int, Head]] = attrs.field(factory=list)
    volumes: list[tuple[int, VolumeDescriptor]] = attrs.field(factory=list)
    broken_volumes: list[int] = attrs.field(factory=list)
    indexes: list[int] = attrs.field(factory=list)
    segments: list[FoundSegment] = attrs.field(factory=list)
    ends: list[int] = attrs.field(factory=list)
    newer: list[tuple[bytes, UnsupportedArchiveError]] = attrs.field(factory=list)


def scan(ranges: RangeReader, progress: Callable[[int], None]) -> Found:
    """Scan from front to end; `progress` gets the offset reached, again and again.

    Raises:
        CorruptArchiveError: the file is full of beginnings of records that are none.
        UnsupportedArchiveError: a record of a newer format stands where nothing before it is damaged.
    """
    scanning = _Scan(ranges)
    offset = 0
    budget = _RECORD_BUDGET * ranges.size + layout.MAX_DESCRIPTOR
    while True:
        at = scanning.window.find(layout.SIGNATURE, offset + layout.SKIPPABLE_HEADER)
        if at is None:
            return scanning.found
        start = at - layout.SKIPPABLE_HEADER
        offset, wasted = scanning.take(start)
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
            self._content = b""  # two windows need not be held at once
            self._content = self._ranges.read(offset, max(length, _WINDOW))
            self._start = offset
        at = offset - self._start
        return memoryview(self._content)[at : at + length]

    def read_intact(self, offset: int, length: int, intact: Callable[[Content], bool]) -> bytes:
        """As `read`; what is not intact may have been damaged on its way, and is asked for by itself."""
        content = bytes(self.read(offset, length))
        return content if intact(content) else bytes(self._ranges.read_intact(offset, length, intact))

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


class _Scan:
    def __init__(self, ranges: RangeReader) -> None:
        self.window = _Window(ranges)
        self.found = Found()
        # Where this archive's next record stands, as long as all before it is whole: only there a
        # newer one is this archive's, not that of another one on a guest's disk.
        self._following = len(PREAMBLE)

    def take(self, start: int) -> tuple[int, int]:
        """Check what may be a record; return where to continue, and the number of bytes checked in vain."""
        onward = start + len(layout.SIGNATURE)
        try:
            envelope = open_envelope(bytes(self.window.read(start, layout.ENVELOPE.size)))
        except ArchiveError:
            return onward, 0
        if envelope.kind == layout.INDX:
            self.found.indexes.append(start)
        described = envelope.kind in (layout.HEAD, layout.VOLD, layout.SEGD)
        follows = start == self._following
        if envelope.size > (layout.MIN_PART if follows else layout.MAX_DESCRIPTOR * described):
            return onward, 0
        is_whole = opens(functools.partial(open_record, kind=envelope.kind))
        try:
            record = self.window.read_intact(start, envelope.size, is_whole)
            end, onward = self._parse(start, record, envelope.kind)
        except ArchiveError as error:
            if follows and isinstance(error, UnsupportedArchiveError):
                raise error.locate(offset=start) from None
            if envelope.kind == layout.VOLD:
                self.found.broken_volumes.append(start)
            return onward, envelope.size
        if follows:
            self._following = end
        return onward, max(0, end - onward) if envelope.kind == layout.SEGD else 0

    def _parse(self, start: int, record: bytes, kind: bytes) -> tuple[int, int]:
        """Note a record; return where its payload ends, and where to continue the search."""
        end = start + len(record)
        if kind == layout.HEAD:
            try:
                head = Head.parse(record)
            except UnsupportedArchiveError as error:
                self.found.newer.append(
                    (layout.HEAD_FIXED.unpack_from(record, layout.ENVELOPE.size)[-3], error)
                )
                raise
            self.found.heads.append((start, head))
            return end + head.payload_size, end
        if kind == layout.VOLD:
            volume = VolumeDescriptor.parse(record)
            self.found.volumes.append((start, volume))
            return end + volume.payload_size, end
        if kind == layout.SEGD:
            descriptor = SegmentDescriptor.parse(record)
            segment = _segment(self.window, start, record, descriptor)
            self.found.segments.append(segment)
            behind = end + descriptor.payload_size
            if all(segment.intact):
                self.found.ends.append(behind)
                return behind, behind
            return behind, end
        open_record(record, kind)
        return end, end


def _segment(window: _Window, start: int, record: bytes, descriptor: SegmentDescriptor) -> FoundSegment:
    at = start + len(record)
    intact = bytearray()
    for frame in descriptor.frames:
        content = window.read_intact(at, frame.size, has_crc(frame.crc32))
        intact.append(Frame.of(content) == frame)
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
