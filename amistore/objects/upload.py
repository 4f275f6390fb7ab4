"""`ArchiveUpload`: a container goes straight into an object, part by part, and is resumed after a crash.

Parts are equal, so a segment may begin in one and end in another. The log keeps with each part the
descriptors of the segments that begin in it, which the index at the container's end needs. A resumed run
plans anew, and takes from the log what the plan, the upload's own list of parts and, in the end, the object
confirm. It makes the last segment of the log again, which may not be whole there.

The result is computed here. The store only confirms it: by the ETag that the object has at its completion,
and by the object's last bytes, which bind all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from typing import Any, Final

import zstandard

from amistore.archive.reader import ContainerFile, has_digest, is_exactly
from amistore.backends import BlockSource, ObjectLocation
from amistore.backends.locations import ObjectRanges
from amistore.backends.ranges import RangeReader
from amistore.container import layout
from amistore.container.encoder import EncodedSegment
from amistore.container.layout import END_FRAME
from amistore.container.plan import Plan
from amistore.container.records import SegmentDescriptor, open_envelope
from amistore.container.segments import check_segment
from amistore.errors import (
    AmistoreError,
    ArchiveError,
    CorruptArchiveError,
    InvalidRequestError,
    SourceChangedError,
)
from amistore.objects.multipart import LoggedUpload, StoredArchive
from amistore.objects.parts import Piece, part_size_for, send_parts
from amistore.objects.resumelog import ResumeLog
from amistore.pipeline.packing import PackedUnit, SegmentEncode, WrittenArchive, packed_units
from amistore.pipeline.progress import ProgressCallback
from amistore.pipeline.workers import closing, worker_pool

__all__ = ["ArchiveUpload", "check_end", "check_object", "logged_segments", "upload_identity"]

_OTHER_SIZE: Final = "the resume log's parts have another size than their segments"


class ArchiveUpload:
    """One run of packing into an object, or one that resumes another."""

    def __init__(
        self,
        planned: Plan,
        source: BlockSource,
        encode: SegmentEncode,
        to: ObjectLocation,
        log: ResumeLog | None,
        part_size: int | None,
    ) -> None:
        """Take the plan, its blocks, what makes its segments, the log, and the caller's size of parts.

        Without a log, what was made is removed on an error.
        """
        identity, changed = upload_identity(planned, encode, part_size)
        size = part_size_for(planned.most_bytes, to.store.traits, part_size)
        self._upload = LoggedUpload(to, log, "pack", size, identity, changed)
        self._planned = planned
        self._source = source
        self._encode = encode
        self._logged: list[EncodedSegment] = []
        self._begun = 0  # segments that earlier runs have sent, at least in part
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
            for entry in self._upload.carried:
                self._logged += logged_segments(entry, planned, len(self._logged))
            units = packed_units(
                planned,
                self._source,
                self._encode,
                carried=self._logged[:-1],
                workers=workers,
                executor=executor,
                progress=progress,
            )
            with closing(units):
                rest = self._missing(self._noted(units))
                if missing:
                    send_parts(self._upload, rest, workers)
                for _ in rest:  # the last part, which the log does not have, made again
                    pass

        def check(ranges: ObjectRanges, new: bool) -> None:
            if self._upload.carried or not new:  # what this run has sent needs no more
                count = self._begun if new else planned.segments
                check_object(ranges, planned, count, workers)
            check_end(ranges, self._written.size, self._written.foot)

        info = self._upload.run(metadata, tags, make, check, overwrite=overwrite)
        content_id = self._written.content_id.hex()
        return StoredArchive(location=self._upload.to, size=info.size, etag=info.etag, content_id=content_id)

    def _noted(self, units: Iterator[PackedUnit]) -> Iterator[PackedUnit]:
        """The units; the last one's facts about the whole archive are kept."""
        for unit in units:
            if unit.written is not None:
                self._written = unit.written
            yield unit

    def _missing(self, units: Iterator[PackedUnit]) -> Iterator[Piece]:
        """The bytes behind the parts that are there, and each segment's record with its first bytes.

        The record of a segment that begins in these parts is in the log.
        """
        there = self._upload.bytes_there()
        for unit in units:
            offset = unit.end - sum(map(len, unit.pieces))
            record = unit.segment
            if record is not None and offset < there:
                self._check_again(record)
                record = None
            if unit.end > there and self._begun < len(self._logged):
                raise InvalidRequestError(_OTHER_SIZE)
            while unit.pieces:
                piece = unit.pieces.pop(0)
                behind = piece[max(0, there - offset) :]
                offset += len(piece)
                if behind:
                    yield behind, record
                    record = None

    def _check_again(self, record: bytes) -> None:
        """Refuse a segment of which earlier runs have sent a part, and which is another one now."""
        if self._begun >= len(self._logged):
            raise InvalidRequestError(_OTHER_SIZE)
        if self._logged[self._begun].record != record:
            raise InvalidRequestError(
                f"segment {self._begun} is not the one that the resume log has: the log is damaged, or the "
                "source gives other blocks each time; amistore.abandon ends its run"
            )
        self._begun += 1


def upload_identity(
    planned: Plan, encode: SegmentEncode, part_size: int | None, orders: list[int] | None = None
) -> tuple[dict[str, Any], dict[str, AmistoreError]]:
    """What the runs of a log share, and the errors for what has changed.

    Args:
        planned: the plan.
        encode: makes a segment.
        part_size: the caller's size of parts; None for any.
        orders: how the container is cut into orders; None where it is not.
    """
    changed = SourceChangedError(
        "the image, its snapshots or the layout changed since the run of this log began: "
        "amistore.abandon ends that run",
        image_id=planned.image.image_id,
    )
    # The same plan, level and libzstd give the same bytes, so the log must have these.
    identity: dict[str, Any] = {
        "image": planned.image.image_id,
        "file": planned.file_id.hex(),
        "level": encode.level,
        "libzstd": list(zstandard.ZSTD_VERSION),
        "orders": orders,
    }
    if part_size is not None:
        identity["part_size"] = part_size
    other = InvalidRequestError(
        "this log's run has other parts, which the store does not take now: give the traits that it had, or "
        "another log; amistore.abandon ends that run"
    )
    return identity, {"file": changed, "orders": other}


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


def check_object(ranges: RangeReader, planned: Plan, count: int, workers: int | None) -> None:
    """Refuse an object of another plan, or whose front, preludes or first segments are not its index's.

    Only the index was made whole by the run that completed the object; the first `count` segments came from a
    log. Parts can be read once their upload is completed, so this comes after it.
    """
    container = ContainerFile(ranges)
    if container.head.file_id != planned.file_id:  # not made by any run of this plan
        raise InvalidRequestError("the resume log belongs to another object: amistore.abandon ends its run")
    index, wrong = container.index, "a part belongs to another run than the resume log says"
    container.read(container.foot.data_end, len(END_FRAME), "end of tar", is_exactly(END_FRAME), wrong)
    volumes = ((volume.offset, volume.length, volume.prelude_digest) for volume in index.volumes)
    for offset, length, digest in ((0, index.front_end, index.front_digest), *volumes):
        container.read(offset, length, "front or VOLD", has_digest(digest), wrong)
    with (
        worker_pool(workers, None, requests=container.requests) as pool,
        closing(pool.map(container.segment, range(count))) as found,
    ):
        for _ in found:
            pass


def logged_segments(
    entry: bytes, planned: Plan, sequence: int, count: int | None = None
) -> list[EncodedSegment]:
    """The segments of a log's entry, as many as are there or as many as there must be; the plan must agree.

    Args:
        entry: the entry.
        planned: the plan.
        sequence: the number of the first segment.
        count: the number of segments; None for any.
    """
    records = entry.partition(b"\n")[2]
    segments: list[EncodedSegment] = []
    try:
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
        if count not in (None, len(segments)):
            raise KeyError(f"{count} segments")
    except (ArchiveError, KeyError) as error:
        raise InvalidRequestError(f"the resume log is damaged, or belongs to another run: {error}") from None
    return segments
