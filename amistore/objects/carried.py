"""What a run takes over from a log, and whether it makes the object that was planned."""

from __future__ import annotations

import contextlib

from amistore.archive.reader import ContainerFile, has_digest, is_exactly
from amistore.backends.ranges import RangeReader
from amistore.container import EncodedSegment, Plan, SegmentDescriptor, layout
from amistore.container.envelope import open_envelope
from amistore.container.segments import check_segment
from amistore.errors import ArchiveError, CorruptArchiveError, InvalidRequestError
from amistore.objects.resumelog import read_entry
from amistore.pipeline.workers import ordered_map, worker_pool

__all__ = ["carried_segments", "check_end", "check_object"]


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
