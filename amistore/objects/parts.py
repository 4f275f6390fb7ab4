"""Parts of an archive's upload: whole segments each, as they are cut, or as a log has them."""

from __future__ import annotations

import contextlib
import tempfile
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO, cast

import attrs

from amistore.archive.reader import ContainerFile, has_digest, is_exactly
from amistore.backends import ObjectLocation, UploadedPart, files
from amistore.backends.ranges import RangeReader
from amistore.container import EncodedSegment, Plan, SegmentDescriptor, layout
from amistore.container.envelope import open_envelope
from amistore.container.plan import worst_segment
from amistore.container.segments import check_segment
from amistore.errors import (
    ArchiveError,
    BackendError,
    CorruptArchiveError,
    InvalidRequestError,
    StorageFullError,
)
from amistore.objects.resumelog import read_entry
from amistore.pipeline.packing import PackedUnit
from amistore.pipeline.workers import ordered_map, worker_pool
from amistore.units import MIB

__all__ = [
    "ObjectBounds",
    "Part",
    "carried_segments",
    "check_end",
    "check_object",
    "cut_parts",
    "skip_segments",
]


_SPOOL = 32 * MIB  # bytes of a part from which on it is kept in a file
_ROOM = "set TMPDIR to a folder with room for parts"
_MOST = layout.MAX_PART - 64 * MIB  # a part ends behind the segment that reaches this


class Part:
    """One part: in memory or, if it is large, in an unlinked temporary file.

    Attributes:
        number: from 1 on.
        size: in bytes.
        records: the SEGD records of its segments; none of the last part, which each run sends.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.size = 0
        self.records: list[bytes] = []
        self._content = bytearray()
        self._file: BinaryIO | None = None

    def add(self, unit: PackedUnit) -> None:
        """Take a unit's pieces out of it."""
        if unit.segment is not None:
            self.records.append(unit.segment)
        pieces = unit.pieces
        while pieces:
            piece = pieces.pop(0)
            self.size += len(piece)
            if self._file is None and self.size <= _SPOOL:
                self._content += piece
                continue
            if self._file is None:
                self._file = _temporary_file()
            with files.operation("spool", path=tempfile.gettempdir(), room=_ROOM):
                if self._content:
                    files.write_at(self._file.fileno(), self._content, 0)
                    self._content = bytearray()
                files.write_at(self._file.fileno(), piece, self.size - len(piece))

    def close(self) -> None:
        """Let go of its bytes."""
        self._content = bytearray()
        if self._file is not None:
            self._file.close()

    def send(self, to: ObjectLocation, upload_id: str) -> UploadedPart:
        """Upload it, and let go of its bytes."""
        if self._file is None:
            sent = to.store.upload_part(to.bucket, to.key, upload_id, self.number, self._content)
        else:
            sent = to.store.upload_part_file(to.bucket, to.key, upload_id, self.number, self._file)
        self.close()
        if (sent.part_number, sent.size) != (self.number, self.size):
            raise BackendError(
                f"part {self.number} of {self.size} bytes was stored as number {sent.part_number} "
                f"with {sent.size}",
                operation="upload_part",
                **to.facts,
            )
        return sent


def _temporary_file() -> BinaryIO:
    with files.operation("spool"):
        try:
            # Without a buffer, whose rest a close would try to write after the disk was full.
            return cast(BinaryIO, tempfile.TemporaryFile(prefix="amistore-", buffering=0))
        except FileNotFoundError as error:  # each folder that there is was tried, and could not be written
            raise StorageFullError(f"{error.strerror}: {_ROOM}") from None


def cut_parts(units: Iterator[PackedUnit], part_size: int, number: int, begun: deque[Part]) -> Iterator[Part]:
    """Parts of the units that are left, numbered from `number` on.

    Args:
        units: of a container.
        part_size: bytes from which on a part ends behind a segment.
        number: of the first part.
        begun: gets each part before it has its first byte, so that all can be closed on an error.

    Raises:
        InvalidRequestError: more parts than an object may have.
    """
    part = Part(number)
    begun.append(part)
    for unit in units:
        part.add(unit)
        if unit.segment is not None and part.size >= min(part_size, _MOST):
            number += 1
            if number > layout.MAX_PARTS:
                raise InvalidRequestError(
                    f"more than {layout.MAX_PARTS} parts: the layout's parts are too small"
                )
            yield part
            part = Part(number)
            begun.append(part)
    part.records.clear()
    yield part


def skip_segments(units: Iterator[PackedUnit], count: int) -> int:
    """Pass by the units up to the `count`-th segment; the file offset behind it."""
    end = 0
    while count:
        unit = next(units)
        end = unit.end
        count -= unit.segment is not None
    return end


@attrs.frozen(kw_only=True)
class ObjectBounds:
    """The most that an object of a plan can be, which it is where nothing of it can be compressed.

    Attributes:
        size: in bytes.
        parts: of its upload.
        spooled: bytes of parts that are in temporary files at once.
    """

    size: int
    parts: int
    spooled: int

    @classmethod
    def of(cls, planned: Plan, workers: int) -> ObjectBounds:
        """What is known before a block is read, for so many workers."""
        size = planned.most_bytes
        cut = min(planned.layout.part_size, _MOST)
        # Up to a byte less than `cut` is there when the unit comes behind which the part ends; a
        # PAD makes no segment longer than the least part.
        longest = cut + planned.overhead + max(worst_segment(planned.layout), layout.MIN_PART)
        return cls(
            size=size,
            parts=min(planned.segments, size // cut) + 1,
            # One for each worker, and the one that is being cut.
            spooled=min((workers + 1) * longest, size) if min(longest, size) > _SPOOL else 0,
        )


def check_end(ranges: RangeReader, size: int, foot: bytes) -> None:
    """Find at an object's end what was sent: FOOT, which binds the index and so all digests.

    Args:
        ranges: the object.
        size: in bytes, of what was sent.
        foot: its last bytes.

    Raises:
        CorruptArchiveError: something else is there.
    """
    offset = size - len(foot)
    found = ranges.read_intact(offset, len(foot), is_exactly(foot))
    if (ranges.size, found) != (size, foot):
        raise CorruptArchiveError(
            "the object does not end as what was sent does", record="FOOT", offset=offset
        )


def check_object(ranges: RangeReader, planned: Plan, count: int, workers: int | None) -> None:
    """Find in an object the front, the preludes and the first segments that its index stands for.

    The index is the one thing that the run which completed the object made whole. Parts cannot
    be read before their upload is completed, so this comes after it.

    Args:
        ranges: the object.
        planned: what it must be.
        count: of the first segments, those that came from a log.
        workers: descriptors read at once.

    Raises:
        InvalidRequestError: it is not an archive of this plan.
        ArchiveError: a part is not what its log said, or is damaged.
    """
    container = ContainerFile(ranges)
    if container.head.file_id != planned.file_id:  # not made by any run of this plan
        raise InvalidRequestError("the resume log is of another object: amistore.abandon ends its run")
    _check_preludes(container)

    with (
        worker_pool(workers, None) as (pool, limit),
        contextlib.closing(ordered_map(pool, container.segment, range(count), limit)) as found,
    ):
        for _ in found:
            pass


def _check_preludes(container: ContainerFile) -> None:
    """Front and preludes, which lie in parts of an earlier run, are those that this run makes."""
    index = container.index
    volumes = ((volume.offset, volume.length, volume.prelude_digest) for volume in index.volumes)
    for offset, length, digest in ((0, index.front_end, index.front_digest), *volumes):
        wrong = "a part is of another run than the resume log says"
        container.read(offset, length, "front or VOLD", has_digest(digest), wrong)


def carried_segments(number: int, entry: bytes, planned: Plan, sequence: int) -> list[EncodedSegment]:
    """The segments of a part as the log has them, from `sequence` on, each checked against the plan."""
    described, records = read_entry(entry), entry.partition(b"\n")[2]
    segments: list[EncodedSegment] = []
    try:
        if described["part"] != number or not records:
            raise KeyError("part")
        at = 0
        while at < len(records):
            size = open_envelope(records[at : at + layout.ENVELOPE.size]).size
            record = records[at : at + size]
            descriptor = SegmentDescriptor.parse(record)
            if sequence >= planned.segments:
                raise KeyError("segments beyond the plan")
            check_segment(descriptor, planned.segment(sequence))
            segments.append(EncodedSegment(descriptor, record, []))
            sequence += 1
            at += size
    except (ArchiveError, KeyError) as error:
        raise InvalidRequestError(f"the resume log is damaged, or of another run: {error}") from None
    return segments
