"""What a run takes over from a log, and whether it makes the object that was planned."""

from __future__ import annotations

import contextlib

from amistore.archive.reader import ContainerFile, has_digest, is_exactly
from amistore.backends import UploadedPart
from amistore.backends.ranges import RangeReader
from amistore.container import EncodedSegment, Plan, SegmentDescriptor, layout
from amistore.container.envelope import open_envelope
from amistore.container.segments import check_segment
from amistore.errors import ArchiveError, CorruptArchiveError, InvalidRequestError
from amistore.objects.resumelog import read_entry
from amistore.pipeline.packing import WrittenArchive
from amistore.pipeline.workers import ordered_map, worker_pool

__all__ = ["carried_part", "check_object", "part_entries", "upload_id_of"]


def check_end(ranges: RangeReader, written: WrittenArchive) -> None:
    """Find at an object's end what was written there: FOOT, which binds the index and so all digests.

    Raises:
        CorruptArchiveError: something else is there.
    """
    offset = written.size - len(written.foot)
    found = ranges.read_intact(offset, len(written.foot), is_exactly(written.foot))
    if (ranges.size, found) != (written.size, written.foot):
        raise CorruptArchiveError(
            "the object does not end as what was packed does", record="FOOT", offset=offset
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


def carried_part(
    number: int, entry: bytes, planned: Plan, sequence: int
) -> tuple[UploadedPart, list[EncodedSegment]]:
    """A part as the log has it, each of its segments, from `sequence` on, checked against the plan."""
    described, records = read_entry(entry), entry.partition(b"\n")[2]
    try:
        part = UploadedPart(part_number=described["part"], size=described["size"], etag=described["etag"])
        if part.part_number != number or not records:
            raise KeyError("part")
        segments: list[EncodedSegment] = []
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
    return part, segments


def part_entries(entries: list[bytes]) -> list[bytes]:
    """The entry of each part from the first on.

    A part that the store had lost is sent and noted again, and those behind it: its new entry
    counts, and none that stood behind the old one.
    """
    found: list[bytes] = []
    for entry in entries:
        number = read_entry(entry).get("part")
        if type(number) is not int or not 1 <= number <= len(found) + 1:
            raise InvalidRequestError("the resume log is damaged, or of another run: a part is missing")
        del found[number - 1 :]
        found.append(entry)
    return found


def upload_id_of(entries: list[bytes]) -> str | None:
    """The id of the upload; None where the run did not come to know it."""
    if len(entries) < 2:
        return None
    upload_id = read_entry(entries[1]).get("upload")
    return upload_id if isinstance(upload_id, str) else None
