"""Reading a container from front to end.

Sans-IO: `container_events` is a generator that yields either a number, the bytes it wants
next, or an event; send it those bytes, fewer only at the end of the input. At each place it knows what must
follow, so it searches for nothing and trusts no claimed size. It checks everything except the blocks'
digests, which `decode_segment` (`segments.py`) checks. Imports the container's lower files only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from typing import Union

import attrs

from amistore.container import layout
from amistore.container.frames import Frame
from amistore.container.index import Index, Ledger, check_volumes
from amistore.container.members import PREAMBLE, PreludeReader, open_manifest
from amistore.container.plan import PlannedSegment, PlannedVolume, Shards, cut_segment
from amistore.container.records import Foot, Head, SegmentDescriptor, check_other, open_envelope, open_record
from amistore.container.segments import LocatedSegment, StoredSegment, check_segment
from amistore.errors import ArchiveError, CorruptArchiveError, TruncatedArchiveError, locating
from amistore.model import Image

__all__ = [
    "ContainerEnd",
    "ContainerStart",
    "Event",
    "VolumeStart",
    "container_events",
]


@attrs.frozen
class ContainerStart:
    """HEAD and the manifest were read."""

    head: Head
    image: Image


@attrs.frozen
class VolumeStart:
    """A volume's prelude was read: its size and runs are known, no block yet."""

    volume: PlannedVolume


@attrs.frozen
class ContainerEnd:
    """The tail was read, agrees with everything before, and nothing follows."""

    index: Index
    size: int


Event = Union[ContainerStart, VolumeStart, StoredSegment, ContainerEnd]
Reading = Generator[Union[int, Event], bytes, None]


def container_events() -> Reading:
    """Read one container; see the module's text for how to drive it.

    Raises:
        CorruptArchiveError: with offset, record, segment and volume where known.
        TruncatedArchiveError: the input ended before the container did.
        UnsupportedArchiveError: a newer format.
    """
    return _Reader().events()


class _Reader:
    def __init__(self) -> None:
        self._ledger = Ledger()
        self._last_volume = ""
        self._segments = 0
        # Where the piece now looked at starts, for errors, and where it ends.
        self._offset = self._end = 0

    def events(self) -> Reading:
        try:
            yield from self._container()
        except ArchiveError as error:
            raise error.locate(offset=self._offset) from error.__cause__

    def _container(self) -> Reading:
        yield from self._front()
        yield ContainerStart(self._head, self._image)
        for number in range(self._head.volumes):
            with locating(record="VOLD"):
                volume = yield from self._prelude(number)
            yield VolumeStart(volume)
            step = self._head.layout.blocks_per_segment
            for ordinal in range(0, volume.runs.blocks, step):
                planned = cut_segment(self._head.file_id, volume, ordinal, self._head.layout)
                with locating(record="SEGD", segment=planned.sequence, snapshot_id=volume.snapshot_id):
                    stored = yield from self._segment(planned, volume)
                yield stored
                del stored  # up to 32 MiB that only the receiver should hold
                yield from self._pad()
        yield from self._tail()

    def _take(self, size: int, record: str) -> Generator[int, bytes, bytes]:
        self._offset = self._end
        data = yield size
        self._end += len(data)
        if len(data) < size:
            self._offset = self._end
            raise TruncatedArchiveError(
                f"the input ends where {size - len(data)} more bytes are expected", record=record
            )
        return data

    def _record(self, kind: bytes, limit: int) -> Generator[int, bytes, bytes]:
        """The whole record of this kind, if its parser agrees; others are skipped where they may be."""
        name = kind.decode().rstrip("\0")
        others = 0
        while True:
            start = yield from self._take(layout.ENVELOPE.size, name)
            at = self._offset
            envelope = open_envelope(start)
            if envelope.size > (limit if envelope.kind == kind else layout.MAX_DESCRIPTOR):
                raise CorruptArchiveError(
                    f"a record of {envelope.size} bytes is beyond the limit", record=name
                )
            record = start + (yield from self._take(envelope.size - len(start), name))
            self._offset = at
            if envelope.kind in layout.KNOWN or kind not in (layout.VOLD, layout.SEGD):
                return record
            check_other(record, others)
            others += 1
            self._ledger.offset += len(record)

    def _frames(self, table: tuple[Frame, ...], name: str) -> Generator[int, bytes, list[bytes]]:
        frames = []
        for frame in table:
            frames.append((yield from self._take(frame.size, name)))
        return frames

    # Parts of a container, in their order.

    def _front(self) -> Reading:
        preamble = yield from self._take(len(layout.ZSTD_MAGIC), "PREAMBLE")
        if preamble != layout.ZSTD_MAGIC:
            raise CorruptArchiveError(
                "this is no amistore container: it does not start with a zstd frame", record="PREAMBLE"
            )
        preamble += yield from self._take(len(PREAMBLE) - len(preamble), "PREAMBLE")
        if preamble != PREAMBLE:
            self._offset = 0
            raise CorruptArchiveError(
                "this is no amistore container of format version 1, or its first bytes are damaged",
                record="PREAMBLE",
            )
        record = yield from self._record(layout.HEAD, layout.MAX_DESCRIPTOR)
        with locating(record="HEAD"):
            self._head = Head.parse(record)
        self._shards = Shards(self._head.layout, self._head.segments)
        frames = yield from self._frames(self._head.frames, "manifest")
        self._manifest, self._image = open_manifest(self._head, b"".join(frames))
        self._ledger.add_front(record, b"".join(frames), b"".join((preamble, record, *frames)))

    def _prelude(self, number: int) -> Generator[int, bytes, PlannedVolume]:
        record = yield from self._record(layout.VOLD, layout.MAX_DESCRIPTOR)
        at = self._offset
        prelude = PreludeReader(record, self._head.file_id, number, self._segments)
        digest = hashlib.sha256(record)
        for entry in prelude.descriptor.frames:
            frame = yield from self._take(entry.size, "VOLD")
            self._offset = at
            digest.update(frame)
            prelude.feed(frame)
            del frame  # up to 8 MiB, while the next one is read
        volume = prelude.volume(self._image)
        if self._last_volume >= volume.snapshot_id:
            raise CorruptArchiveError("volumes are out of order", snapshot_id=volume.snapshot_id)
        self._last_volume = volume.snapshot_id
        self._ledger.add_volume(prelude.descriptor, self._end - at, digest.digest())
        return volume

    def _segment(
        self, planned: PlannedSegment, volume: PlannedVolume
    ) -> Generator[int, bytes, StoredSegment]:
        record = yield from self._record(layout.SEGD, layout.MAX_DESCRIPTOR)
        at = self._offset
        descriptor = SegmentDescriptor.parse(record)
        check_segment(descriptor, planned)
        frames = yield from self._frames(descriptor.frames, "SEGD")
        self._ledger.add_segment(descriptor, record)
        self._segments += 1
        frame_contents = planned.frame_contents
        located = LocatedSegment(descriptor, volume.snapshot_id, at, at + len(record), frame_contents)
        return StoredSegment(located, frames)

    def _pad(self) -> Generator[int, bytes, None]:
        pad = self._shards.pad(self._segments, self._ledger.offset)
        if pad:
            record = yield from self._record(layout.PAD, len(pad))
            open_record(record, layout.PAD)
            if record != pad:
                raise CorruptArchiveError("PAD has another length or does not hold zeros", record="PAD")
            self._ledger.offset += len(pad)

    def _tail(self) -> Reading:
        with locating(record="HEAD"):
            bound = check_volumes(self._head, self._manifest, self._image, self._ledger.volumes())
        data_end = self._ledger.offset
        end = yield from self._take(len(layout.END_FRAME), "end of tar")
        if end != layout.END_FRAME:
            raise CorruptArchiveError("the frame that ends the tar is damaged", record="end of tar")
        collected = self._ledger.index(self._manifest, bound=bound)
        front = len(collected.head), len(collected.manifest_frames)
        limit = layout.index_limit(*front, len(collected.volumes), self._segments)
        record = yield from self._record(layout.INDX, min(limit, layout.MAX_INDEX))
        at = self._offset
        index = Index.parse(record)
        foot = Foot.parse((yield from self._take(layout.FOOT_SIZE, "FOOT")))
        if foot != Foot.of(record, data_end, self._head.blocks):
            raise CorruptArchiveError("FOOT is not that of this file", record="FOOT")
        if index != collected:
            raise CorruptArchiveError("the index is not that of this file", record="INDX", offset=at)
        self._offset = self._end
        if (yield 1):
            raise CorruptArchiveError("bytes follow the container's end", record="FOOT")
        yield ContainerEnd(collected, self._end)
