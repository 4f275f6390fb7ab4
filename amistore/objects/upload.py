"""`ArchiveUpload`: a container goes straight into an object, part by part, and is resumed after a crash.

A part has whole segments. The log keeps the segment descriptors of each part, which the index at the
container's end needs. A resumed run plans anew, and takes from the log what the plan, the upload's own list
of parts and, in the end, the object confirm.

The result is computed here. The store only confirms it: by the ETag that the object has at its completion,
and by the object's last bytes, which bind all others.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Executor
from typing import BinaryIO, cast

import attrs
import zstandard

from amistore.archive.reader import ContainerFile, has_digest
from amistore.backends import BlockSource, ObjectLocation, UploadedPart, files
from amistore.backends.objects import ObjectRanges
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
    SourceChangedError,
    StorageFullError,
)
from amistore.objects.multipart import LoggedUpload, StoredArchive
from amistore.objects.resumelog import ResumeLog, read_entry
from amistore.pipeline.packing import PackedUnit, SegmentEncode, WrittenArchive, packed_units
from amistore.pipeline.progress import ProgressCallback
from amistore.pipeline.requests import requests_of
from amistore.pipeline.workers import closing, ordered_map, worker_pool
from amistore.units import MIB

__all__ = ["ArchiveUpload", "ObjectBounds", "Part", "check_end"]

_SPOOL = 32 * MIB  # bytes of a part from which on it is kept in a file
_ROOM = "set TMPDIR to a folder with room for parts"
_MOST = layout.MAX_PART - 64 * MIB  # a part ends behind the segment that reaches this


class ArchiveUpload:
    """One run of packing into an object, or one that resumes another."""

    def __init__(
        self,
        planned: Plan,
        source: BlockSource,
        encode: SegmentEncode,
        to: ObjectLocation,
        log: ResumeLog | None,
    ) -> None:
        """Take the plan, its blocks, what makes its segments, and the log.

        Without a log, what was made is removed on an error.
        """
        changed = SourceChangedError(
            "the image, its snapshots or the layout changed since the run of this log began: "
            "amistore.abandon ends that run",
            image_id=planned.image.image_id,
        )
        # The same plan, level and libzstd give the same bytes, so the log must have these.
        identity = {
            "image": planned.image.image_id,
            "file": planned.file_id.hex(),
            "level": encode.level,
            "libzstd": list(zstandard.ZSTD_VERSION),
        }
        self._upload = LoggedUpload(to, log, "pack", identity, {"file": changed})
        self._planned = planned
        self._source = source
        self._encode = encode
        self._carried: list[EncodedSegment] = []
        self._written: WrittenArchive

    def run(
        self,
        metadata: Mapping[str, str],
        tags: Mapping[str, str] | None,
        *,
        overwrite: bool,
        workers: int | None,
        executor: Executor | None,
        progress: ProgressCallback,
    ) -> StoredArchive:
        """Pack into the object; see `store` for the arguments and errors."""
        planned = self._planned

        def make(missing: bool) -> None:
            for number, entry in enumerate(self._upload.carried, 1):
                self._carried += _carried_segments(number, entry, planned, len(self._carried))
            units = packed_units(
                planned,
                self._source,
                self._encode,
                carried=self._carried,
                workers=workers,
                executor=executor,
                progress=progress,
            )
            with closing(units):
                if missing:
                    self._send(units, workers)
                for unit in self._noted(units):  # the last part, which the log does not have, made again
                    unit.pieces.clear()

        def check(ranges: ObjectRanges, new: bool) -> None:
            count = len(self._carried) if new else planned.segments  # what this run has sent needs no more
            if count:
                _check_object(ranges, planned, count, workers)
            check_end(ranges, self._written.size, self._written.foot)

        info = self._upload.run(metadata, tags, make, check, overwrite=overwrite)
        content_id = self._written.content_id.hex()
        return StoredArchive(location=self._upload.to, size=info.size, etag=info.etag, content_id=content_id)

    def _send(self, units: Generator[PackedUnit, None, None], workers: int | None) -> None:
        """Send all parts that are missing; each is logged once all before it are."""
        with (
            worker_pool(workers, None, requests=requests_of(self._upload.to.store)) as (pool, limit),
            _closing_parts() as begun,
            closing(
                ordered_map(
                    pool, self._send_part, self._cut(self._noted(units), begun), limit // 2, Part.in_memory
                )
            ) as sent,
        ):
            for part, records in sent:
                begun.popleft()
                self._upload.note(part, b"".join(records))

    def _noted(self, units: Iterator[PackedUnit]) -> Iterator[PackedUnit]:
        """The units; the last one's facts about the whole archive are kept."""
        for unit in units:
            if unit.written is not None:
                self._written = unit.written
            yield unit

    def _cut(self, units: Iterator[PackedUnit], begun: deque[Part]) -> Iterator[Part]:
        """The parts that are missing."""
        count, end = len(self._carried), 0
        while count:
            unit = next(units)
            end = unit.end
            count -= unit.segment is not None
        parts = self._upload.parts
        if end != sum(part.size for part in parts):
            raise InvalidRequestError("the resume log's parts have another size than their segments")
        return _cut_parts(units, self._planned.layout.part_size, len(parts) + 1, begun)

    def _send_part(self, part: Part) -> tuple[UploadedPart, list[bytes]]:
        """Runs in a worker."""
        return part.send(self._upload.to, self._upload.upload_id), part.records


@contextlib.contextmanager
def _closing_parts() -> Iterator[deque[Part]]:
    """A list of parts begun and not sent; those left at the end are closed."""
    begun: deque[Part] = deque()
    try:
        yield begun
    finally:
        for part in begun:
            part.close()


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


def _cut_parts(
    units: Iterator[PackedUnit], part_size: int, number: int, begun: deque[Part]
) -> Iterator[Part]:
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
    found = ranges.read_intact(offset, len(foot), lambda content: content == foot)
    if (ranges.size, found) != (size, foot):
        raise CorruptArchiveError(
            "the object does not end as what was sent does", record="FOOT", offset=offset
        )


def _check_object(ranges: RangeReader, planned: Plan, count: int, workers: int | None) -> None:
    """Refuse an object of another plan, or whose front, preludes or first segments are not its index's.

    Only the index was made whole by the run that completed the object; the first `count` segments came from a
    log. Parts can be read once their upload is completed, so this comes after it.
    """
    container = ContainerFile(ranges)
    if container.head.file_id != planned.file_id:  # not made by any run of this plan
        raise InvalidRequestError("the resume log belongs to another object: amistore.abandon ends its run")
    index = container.index
    volumes = ((volume.offset, volume.length, volume.prelude_digest) for volume in index.volumes)
    for offset, length, digest in ((0, index.front_end, index.front_digest), *volumes):
        wrong = "a part belongs to another run than the resume log says"
        container.read(offset, length, "front or VOLD", has_digest(digest), wrong)
    with (
        worker_pool(workers, None, requests=container.requests) as (pool, limit),
        closing(ordered_map(pool, container.segment, range(count), limit)) as found,
    ):
        for _ in found:
            pass


def _carried_segments(number: int, entry: bytes, planned: Plan, sequence: int) -> list[EncodedSegment]:
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
