"""Reading a container from front to end, and decoding its segments.

Sans-IO: `container_events` is a generator that yields either a number, the bytes it wants
next, or an event; send it those bytes, fewer only at the end of the input. It knows at
each place what must stand there, so nothing is searched for and nothing is allocated on
a stranger's word. Everything but the blocks' digests is checked here; those are checked
by `decode_segment`, wherever it runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from typing import Union

import attrs

from amistore.container import layout, tar
from amistore.container.frames import FrameDecoder
from amistore.container.identity import file_id
from amistore.container.index import Index, Ledger, decode_member, manifest_of
from amistore.container.plan import (
    PlannedSegment,
    PlannedVolume,
    cut_segment,
    manifest_member,
    pad_size,
    prelude,
)
from amistore.container.preamble import PREAMBLE
from amistore.container.records import (
    Foot,
    Frame,
    Head,
    SegmentDescriptor,
    VolumeDescriptor,
    open_envelope,
    open_record,
)
from amistore.errors import (
    ArchiveError,
    CorruptArchiveError,
    TruncatedArchiveError,
)
from amistore.model import Image, decode_manifest
from amistore.units import BLOCK_SIZE

__all__ = [
    "ContainerEnd",
    "ContainerStart",
    "DecodedBlock",
    "Event",
    "StoredSegment",
    "VolumeStart",
    "container_events",
    "decode_frame",
    "decode_segment",
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
class StoredSegment:
    """A segment as it stands in the container: its frames are not decoded yet.

    `offset` is the file offset of its SEGD.
    """

    segment: PlannedSegment
    descriptor: SegmentDescriptor
    frames: list[bytes]
    snapshot_id: str
    offset: int


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
        self._volumes: list[PlannedVolume] = []
        self._segments = 0
        self._blocks = 0
        self._shard_start = 0
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
            try:
                volume = yield from self._prelude(number)
            except ArchiveError as error:
                raise error.locate(record="VOLD") from error.__cause__
            yield VolumeStart(volume)
            step = self._head.layout.blocks_per_segment
            for ordinal in range(0, volume.runs.blocks, step):
                planned = cut_segment(self._head.file_id, volume, ordinal, self._head.layout)
                try:
                    stored = yield from self._segment(planned, volume)
                except ArchiveError as error:
                    raise error.locate(
                        record="SEGD", segment=planned.sequence, snapshot_id=volume.snapshot_id
                    ) from error.__cause__
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

    def _record(self, kind: bytes, limit: int, fixed: int | None = None) -> Generator[int, bytes, bytes]:
        """The whole record of this kind; ones of unknown type are skipped where and if they may be."""
        name = kind.decode().rstrip("\0")
        while True:
            start = yield from self._take(layout.ENVELOPE.size, name)
            at = self._offset
            envelope = open_envelope(start)
            known = envelope.kind in layout.KNOWN
            if known and envelope.kind != kind:
                found = envelope.kind.decode().rstrip("\0")
                raise CorruptArchiveError(f"a {found} record stands where {name} is expected", record=name)
            if not known and kind not in (layout.VOLD, layout.SEGD):
                raise CorruptArchiveError(f"a record of unknown type stands before {name}", record=name)
            if envelope.size > (limit if known else layout.MAX_DESCRIPTOR):
                raise CorruptArchiveError(
                    f"a record of {envelope.size} bytes is beyond the limit", record=name
                )
            record = start + (yield from self._take(envelope.size - len(start), name))
            self._offset = at
            open_record(record, fixed if known else None)
            if known:
                return record
            self._ledger.add_other(len(record))

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
        try:
            self._head = Head.parse(_payload(record))
        except ArchiveError as error:
            raise error.locate(record="HEAD") from None
        frames = yield from self._frames(self._head.manifest_frames, "manifest")
        try:
            member = decode_member(b"".join(frames), self._head.manifest_frames, self._head.manifest_content)
            self._manifest = manifest_of(member)
            self._image = decode_manifest(self._manifest)
            if member != manifest_member(self._image, self._manifest):
                raise CorruptArchiveError("the manifest's tar member is not as a writer makes it")
        except ArchiveError as error:
            raise error.locate(record="manifest") from None
        self._ledger.add_front(record, b"".join(frames), b"".join((preamble, record, *frames)))

    def _prelude(self, number: int) -> Generator[int, bytes, PlannedVolume]:
        record = yield from self._record(layout.VOLD, layout.MAX_DESCRIPTOR)
        at = self._offset
        descriptor = VolumeDescriptor.parse(_payload(record))
        if (
            descriptor.file_id != self._head.file_id
            or descriptor.volume != number
            or descriptor.first_segment != self._segments
        ):
            raise CorruptArchiveError("VOLD belongs to another file or another place")
        frames = yield from self._frames(descriptor.frames, "VOLD")
        self._offset = at
        content = decode_member(b"".join(frames), descriptor.frames, descriptor.content)
        runs = tar.parse_map(content, descriptor.size)
        volume = PlannedVolume(
            number=number,
            snapshot_id=descriptor.snapshot_id,
            size=descriptor.size,
            runs=runs,
            first_segment=self._segments,
        )
        self._offset = at
        if (runs.blocks, len(runs), runs.digest()) != (
            descriptor.blocks,
            descriptor.runs,
            descriptor.runs_digest,
        ) or content != prelude(self._image, volume):
            raise CorruptArchiveError("tar headers and sparse map contradict VOLD or the manifest")
        if volume.snapshot_id not in self._image.snapshot_ids or (
            self._volumes and self._volumes[-1].snapshot_id >= volume.snapshot_id
        ):
            raise CorruptArchiveError(
                "no mapping of the image names this volume, or volumes are out of order",
                snapshot_id=volume.snapshot_id,
            )
        self._volumes.append(volume)
        self._ledger.add_volume(descriptor, b"".join((record, *frames)))
        return volume

    def _segment(
        self, planned: PlannedSegment, volume: PlannedVolume
    ) -> Generator[int, bytes, StoredSegment]:
        record = yield from self._record(layout.SEGD, layout.MAX_DESCRIPTOR)
        at = self._offset
        descriptor = SegmentDescriptor.parse(_payload(record))
        check_segment(descriptor, planned)
        frames = yield from self._frames(descriptor.frames, "SEGD")
        self._ledger.add_segment(descriptor, record)
        self._segments += 1
        self._blocks += planned.runs.blocks
        return StoredSegment(planned, descriptor, frames, volume.snapshot_id, at)

    def _pad(self) -> Generator[int, bytes, None]:
        if self._segments % self._head.layout.segments_per_shard or self._segments == self._head.segments:
            return
        size = pad_size(self._ledger.offset - self._shard_start)
        if size:
            record = yield from self._record(layout.PAD, size, 0)
            if (
                len(record) != size
                or record.count(0, layout.ENVELOPE.size, -layout.CRC.size) != size - layout.RECORD_OVERHEAD
            ):
                raise CorruptArchiveError("PAD has another length or does not hold zeros", record="PAD")
            self._ledger.add_other(size)
        self._shard_start = self._ledger.offset

    def _tail(self) -> Reading:
        head = self._head
        if (self._segments, self._blocks) != (head.segments, head.blocks) or head.file_id != file_id(
            self._manifest, [(v.size, v.runs.digest()) for v in self._volumes], head.layout
        ):
            raise CorruptArchiveError("HEAD's counts or file id are not those of the volumes", record="HEAD")
        data_end = self._ledger.offset
        end = yield from self._take(len(layout.END_FRAME), "end of tar")
        if end != layout.END_FRAME:
            raise CorruptArchiveError("the frame that ends the tar is damaged", record="end of tar")
        self._ledger.add_other(len(end))
        collected = self._ledger.index(self._manifest)
        limit = _index_limit(collected)
        record = yield from self._record(layout.INDX, limit, layout.INDX_FIXED.size)
        at = self._offset
        foot = Foot.parse((yield from self._take(layout.FOOT_SIZE, "FOOT")))
        expected = Foot(
            index_offset=at,
            index_length=len(record),
            data_end=data_end,
            blocks=self._blocks,
            index_digest=hashlib.sha256(record).digest(),
        )
        if foot != expected:
            raise CorruptArchiveError("FOOT is not that of this file", record="FOOT")
        if Index.parse(record) != collected:
            raise CorruptArchiveError("the index is not that of this file", record="INDX", offset=at)
        self._offset = self._end
        if (yield 1):
            raise CorruptArchiveError("bytes follow the container's end", record="FOOT")
        yield ContainerEnd(collected, self._end)


def _payload(record: bytes) -> bytes:
    return record[layout.ENVELOPE.size : -layout.CRC.size]


def _index_limit(index: Index) -> int:
    """Most bytes that the INDX record of this index can have."""
    volumes = len(index.volumes) * layout.INDX_VOLUME.size
    columns = len(index.offsets) * (32 + 3 * 8)
    return min(
        len(index.head)
        + len(index.manifest_frames)
        + volumes
        + columns
        + columns // 64
        + layout.MAX_DESCRIPTOR,
        layout.MAX_INDEX,
    )


def check_segment(descriptor: SegmentDescriptor, planned: PlannedSegment) -> None:
    """Refuse a SEGD that is not the one of this place in this file."""
    found = (descriptor.file_id, descriptor.volume, descriptor.sequence, descriptor.ordinal)
    if found != (planned.file_id, planned.volume, planned.sequence, planned.ordinal):
        raise CorruptArchiveError("SEGD belongs to another file or another place")
    if descriptor.runs != planned.runs or len(descriptor.frames) != len(planned.frame_contents):
        raise CorruptArchiveError("SEGD's blocks or frames are not those of the sparse map")


@attrs.frozen
class DecodedBlock:
    """A block whose digest was checked."""

    index: int
    content: memoryview
    digest: bytes


def decode_segment(
    descriptor: SegmentDescriptor, frames: list[bytes], frame_contents: tuple[int, ...]
) -> Iterator[DecodedBlock]:
    """Decode a segment's frames one by one and check each block's SHA-256.

    Raises:
        CorruptArchiveError: a frame or a block is not what its descriptor says.
    """
    decoder = FrameDecoder()
    for number, frame in enumerate(frames):
        yield from decode_frame(descriptor, number, frame, frame_contents, decoder)


def decode_frame(
    descriptor: SegmentDescriptor,
    number: int,
    frame: bytes,
    frame_contents: tuple[int, ...],
    decoder: FrameDecoder,
) -> list[DecodedBlock]:
    """Decode a segment's frame of this number and check its blocks' SHA-256."""
    first = sum(frame_contents[:number]) // BLOCK_SIZE
    count = frame_contents[number] // BLOCK_SIZE
    indexes = descriptor.runs.slice(first, count).indexes()
    try:
        entry = descriptor.frames[number]
        decoded = decoder.decode(frame, frame_contents[number], entry.crc32)
    except ArchiveError as error:
        raise error.locate(record="frame", segment=descriptor.sequence, block_index=next(indexes)) from None
    content = memoryview(decoded)
    blocks = []
    for at, (index, digest) in enumerate(
        zip(indexes, descriptor.digests[first : first + count], strict=True)
    ):
        block = content[at * BLOCK_SIZE : (at + 1) * BLOCK_SIZE]
        if hashlib.sha256(block).digest() != digest:
            raise CorruptArchiveError(
                "a block's SHA-256 is wrong",
                record="frame",
                segment=descriptor.sequence,
                block_index=index,
            )
        blocks.append(DecodedBlock(index, block, digest))
    return blocks
