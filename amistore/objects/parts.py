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
from amistore.container import layout
from amistore.container.encoder import EncodedSegment
from amistore.container.plan import Plan, worst_segment
from amistore.container.records import SegmentDescriptor, open_envelope
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
        number: the part's number, from 1.
        size: the part's size in bytes.
        records: the SEGD records of its segments; none for the last part, which each run sends.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.size = 0
        self.records: list[bytes] = []
        self._content = bytearray()
        self._file: BinaryIO | None = None

    def add(self, unit: PackedUnit) -> None:
        """Append a unit; its pieces move into the part."""
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
        """Free the part's bytes."""
        self._content = bytearray()
        if self._file is not None:
            self._file.close()

    def in_memory(self) -> int:
        """The bytes that it holds in memory until it is sent, not in a temporary file."""
        return self.size if self.size <= _SPOOL else 0

    def send(self, to: ObjectLocation, upload_id: str) -> UploadedPart:
        """Upload the part, and free its bytes."""
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
    """Cut the remaining units into parts, numbered from `number`.

    Args:
        units: the units of a container.
        part_size: the size in bytes at which a part ends behind the next segment.
        number: the first part's number.
        begun: a list that gets each part before its first byte, so that all can be closed on an error.

    Raises:
        InvalidRequestError: there are more parts than an object may have.
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
    """Skip the units up to the `count`-th segment, and return the file offset behind it."""
    end = 0
    while count:
        unit = next(units)
        end = unit.end
        count -= unit.segment is not None
    return end


@attrs.frozen(kw_only=True)
class ObjectBounds:
    """Upper bounds for the object of a plan, reached if nothing compresses.

    Attributes:
        size: the object's size in bytes.
        parts: the number of parts of its upload.
        spooled: the bytes of parts in temporary files at one time.
    """

    size: int
    parts: int
    spooled: int

    @classmethod
    def of(cls, planned: Plan, workers: int) -> ObjectBounds:
        """The bounds for so many workers, known before a block is read."""
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
    """Refuse an object whose end is not the FOOT that was sent, which binds the index and so all digests.

    Args:
        ranges: the object's bytes.
        size: the number of bytes that were sent.
        foot: the last bytes that were sent.

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
    """Refuse an object whose front, preludes or first segments are not those of its index.

    Only the index was made whole by the run that completed the object. Parts can be read once their upload
    is completed, so this comes after it.

    Args:
        ranges: the object's bytes.
        planned: the container that the object must be.
        count: the number of first segments, which came from a log.
        workers: the number of descriptors read at once.

    Raises:
        InvalidRequestError: the object is not an archive of this plan.
        ArchiveError: a part is not what the log says, or is damaged.
    """
    container = ContainerFile(ranges)
    if container.head.file_id != planned.file_id:  # not made by any run of this plan
        raise InvalidRequestError("the resume log belongs to another object: amistore.abandon ends its run")
    _check_preludes(container)

    with (
        worker_pool(workers, None, requests=container.requests) as (pool, limit),
        contextlib.closing(ordered_map(pool, container.segment, range(count), limit)) as found,
    ):
        for _ in found:
            pass


def _check_preludes(container: ContainerFile) -> None:
    """Refuse a front or prelude, in a part of an earlier run, that differs from what this run makes."""
    index = container.index
    volumes = ((volume.offset, volume.length, volume.prelude_digest) for volume in index.volumes)
    for offset, length, digest in ((0, index.front_end, index.front_digest), *volumes):
        wrong = "a part belongs to another run than the resume log says"
        container.read(offset, length, "front or VOLD", has_digest(digest), wrong)


def carried_segments(number: int, entry: bytes, planned: Plan, sequence: int) -> list[EncodedSegment]:
    """The segments of a part, as the log has them, from `sequence` on, each checked against the plan."""
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
        raise InvalidRequestError(f"the resume log is damaged, or belongs to another run: {error}") from None
    return segments
