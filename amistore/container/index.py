"""INDX: the index at the end of a container, and the ledger that collects it segment by segment.

Writer and streaming reader keep the same `Ledger`: the one writes what it collected, the
other compares it with what it reads.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import attrs

from amistore.container import identity, layout
from amistore.container.frames import Frame, FrameEncoder, decode_member, frame_table, read_frame_table
from amistore.container.members import open_manifest
from amistore.container.records import (
    Head,
    SegmentDescriptor,
    VolumeDescriptor,
    open_record,
    read_snapshot_id,
    seal,
)
from amistore.errors import CorruptArchiveError, locating
from amistore.model import Image
from amistore.units import BLOCK_SIZE, GIB

__all__ = ["Index", "IndexedVolume", "Ledger", "check_volumes"]

_COLUMN_LEVEL = 3


@attrs.frozen
class IndexedVolume:
    """A volume as INDX knows it. Offsets, lengths and `size` in bytes; the order is that of the struct.

    `offset` and `length` are those of VOLD and the prelude's frames together.
    """

    snapshot_id: str
    offset: int
    length: int
    size: int
    blocks: int
    runs: int
    segments: int
    linear: bytes
    runs_digest: bytes
    content_id: bytes
    prelude_digest: bytes

    def encode(self) -> bytes:
        snapshot_id, *facts = attrs.astuple(self)
        return layout.INDX_VOLUME.pack(snapshot_id.encode(), *facts)

    @classmethod
    def parse(cls, fields: tuple[Any, ...]) -> IndexedVolume:
        snapshot_id, *facts = fields
        return cls(read_snapshot_id(snapshot_id), *facts)

    def is_of(self, volume: VolumeDescriptor) -> bool:
        """Whether a VOLD says the same."""
        same = ("snapshot_id", "size", "blocks", "runs", "runs_digest")
        return all(getattr(self, name) == getattr(volume, name) for name in same)

    def check(self) -> None:
        """What it says agrees with itself."""
        if self.length > layout.prelude_limit(self.runs):
            raise CorruptArchiveError("a volume's prelude is longer than its runs allow")
        if self.size % GIB or not 1 <= self.size // GIB <= layout.MAX_VOLUME_GIB:
            raise CorruptArchiveError("a volume's size is no whole number of GiB, or beyond the limit")
        if self.content_id != identity.volume_content_id(
            self.size, self.blocks, self.linear, self.runs_digest
        ):
            raise CorruptArchiveError("a volume's content id is not that of its sums")


@attrs.frozen(kw_only=True)
class Index:
    """What INDX holds.

    `offsets`, `firsts` and `lasts` have an entry per segment: file offset of its SEGD, first
    and last block index. `segment_digests` is 32 bytes per segment: SHA-256 of its SEGD.
    """

    head: bytes
    manifest_frames: bytes
    front_digest: bytes
    front_end: int
    content_id: bytes
    volumes: tuple[IndexedVolume, ...]
    offsets: array[int]
    firsts: array[int]
    lasts: array[int]
    segment_digests: bytes | memoryview

    @property
    def end(self) -> int:
        """A file offset before which all that it points to begins."""
        last = max((volume.offset + volume.length for volume in self.volumes), default=self.front_end)
        return max(last, self.offsets[-1] if self.offsets else 0)

    def segment_digest(self, sequence: int) -> bytes:
        """SHA-256 that the SEGD record of this segment must have."""
        return bytes(self.segment_digests[32 * sequence : 32 * sequence + 32])

    def encode(self) -> bytes:
        """The whole INDX record."""
        columns = map(_encode_column, (self.offsets, self.firsts, self.lasts))
        frames = FrameEncoder(_COLUMN_LEVEL, check=True).encode_all(columns)
        table = frame_table([Frame.of(frame) for frame in frames])
        volumes = b"".join(volume.encode() for volume in self.volumes)
        fixed = layout.INDX_FIXED.pack(
            self.front_digest,
            self.front_end,
            len(self.head),
            len(self.manifest_frames),
            len(self.volumes),
            len(self.offsets),
            sum(map(len, frames)),
            len(frames),
            self.content_id,
        )
        return seal(
            layout.INDX,
            fixed,
            self.head,
            self.manifest_frames,
            volumes,
            table,
            *frames,
            self.segment_digests,
        )

    @classmethod
    @locating(record="INDX")
    def parse(cls, record: bytes) -> Index:
        """Take the whole record, whose SHA-256 the caller compared with FOOT's.

        Raises:
            CorruptArchiveError: lengths, counts or order contradict each other.
            UnsupportedArchiveError: an INDX of a newer version.
        """
        payload = open_record(record, layout.INDX)
        (front_digest, front_end, head, manifest, volumes, segments, columns, frames, content_id) = (
            layout.INDX_FIXED.unpack_from(payload)
        )
        table = volumes * layout.INDX_VOLUME.size
        lengths = head, manifest, table, frames * layout.FRAME_ENTRY.size, columns, 32 * segments
        if layout.INDX_FIXED.size + sum(lengths) != len(payload) or volumes > layout.MAX_VOLUMES:
            raise CorruptArchiveError("INDX's length does not follow from its counts")
        if len(record) > layout.index_limit(head, manifest, volumes, segments):
            raise CorruptArchiveError(f"a record of {len(record)} bytes is beyond the limit")
        ends = list(accumulate(lengths, initial=layout.INDX_FIXED.size))
        parts = [payload[start:end] for start, end in pairwise(ends)]
        numbers = _decode_columns(parts[4], read_frame_table(parts[3], frames), segments)
        index = cls(
            head=parts[0],
            manifest_frames=parts[1],
            front_digest=front_digest,
            front_end=front_end,
            content_id=content_id,
            volumes=tuple(IndexedVolume.parse(v) for v in layout.INDX_VOLUME.iter_unpack(parts[2])),
            offsets=numbers[0],
            firsts=numbers[1],
            lasts=numbers[2],
            segment_digests=parts[5],
        )
        index._check()
        return index

    def _check(self) -> None:
        """Order and sums; whether the bytes agree with it is seen when they are read."""
        if sum(volume.segments for volume in self.volumes) != len(self.offsets):
            raise CorruptArchiveError("the volumes' segments are not those of the columns")
        least = layout.RECORD_OVERHEAD + layout.SEGD_FIXED.size
        before = self.front_end
        sequence = 0
        for volume in self.volumes:
            volume.check()
            if volume.offset < before or volume.length < layout.RECORD_OVERHEAD:
                raise CorruptArchiveError("the volumes' preludes overlap or are out of order")
            before = volume.offset + volume.length
            last = -1
            for _ in range(volume.segments):
                first = self.firsts[sequence]
                if self.offsets[sequence] < before or not last < first <= self.lasts[sequence]:
                    raise CorruptArchiveError("segments overlap or are out of order", segment=sequence)
                before = self.offsets[sequence] + least
                last = self.lasts[sequence]
                sequence += 1
            if (last + 1) * BLOCK_SIZE > volume.size:
                raise CorruptArchiveError("a block lies beyond its volume", segment=sequence - 1)

    def open(self) -> tuple[Head, Image]:
        """HEAD and the image, from their copies, proved against the content and file ids.

        Raises:
            CorruptArchiveError: they are not those of the volumes.
            UnsupportedArchiveError: a newer format.
        """
        head = Head.parse(self.head)
        manifest, image = open_manifest(head, self.manifest_frames)
        bound = check_volumes(head, manifest, image, self.volumes)
        if self.content_id != _content_id(manifest, self.volumes, bound):
            raise CorruptArchiveError("the content id is not that of manifest and volumes")
        return head, image


def check_volumes(head: Head, manifest: bytes, image: Image, volumes: Sequence[IndexedVolume]) -> bool:
    """Prove that HEAD, manifest and all of an archive's volumes belong together.

    Returns:
        By which formula the archive has its ids: `bound` of `identity.file_id`.

    Raises:
        CorruptArchiveError: they do not.
    """
    segments, blocks = sum(each.segments for each in volumes), sum(each.blocks for each in volumes)
    if (len(volumes), segments, blocks) != (head.volumes, head.segments, head.blocks):
        raise CorruptArchiveError("HEAD's counts are not those of the volumes")
    if any(each.segments != head.layout.segments(each.blocks) for each in volumes):
        raise CorruptArchiveError("a volume has more or fewer segments than its blocks need")
    names = [volume.snapshot_id for volume in volumes]
    if names != sorted(set(names)) or not set(names) <= set(image.snapshot_ids):
        raise CorruptArchiveError("volumes are not those of the image's mappings, in order")
    sums = [(volume.snapshot_id, volume.size, volume.runs_digest) for volume in volumes]
    return identity.find_formula(head.file_id, manifest, sums, head.layout, image.snapshot_ids)


def _content_id(manifest: bytes, volumes: Sequence[IndexedVolume], bound: bool) -> bytes:
    sums = ((volume.snapshot_id, volume.content_id) for volume in volumes)
    return identity.archive_content_id(manifest, sums, bound=bound)


def _encode_column(column: array[int]) -> bytes:
    deltas = array("Q", column)
    for at in range(len(column) - 1, 0, -1):
        deltas[at] = (column[at] - column[at - 1]) % 2**64
    if sys.byteorder == "big":
        deltas.byteswap()
    return deltas.tobytes()


def _decode_columns(frames: bytes, table: tuple[Frame, ...], segments: int) -> list[array[int]]:
    # Each of these entries is bounded by a digest of 32 bytes that is really there.
    content = decode_member(frames, table, segments * layout.INDX_COLUMNS * 8)
    columns = []
    for at in range(layout.INDX_COLUMNS):
        deltas = array("Q", content[at * segments * 8 : (at + 1) * segments * 8])
        if sys.byteorder == "big":
            deltas.byteswap()
        columns.append(array("Q", (total % 2**64 for total in accumulate(deltas))))
    return columns


@attrs.define
class _VolumeSums:
    """A volume while its segments go by."""

    volume: VolumeDescriptor
    offset: int
    length: int
    prelude_digest: bytes
    segments: int = 0
    linear: Any = attrs.field(factory=hashlib.sha256)

    def indexed(self) -> IndexedVolume:
        volume, linear = self.volume, self.linear.digest()
        sums = volume.size, volume.blocks
        return IndexedVolume(
            volume.snapshot_id,
            self.offset,
            self.length,
            *sums,
            volume.runs,
            self.segments,
            linear,
            volume.runs_digest,
            identity.volume_content_id(*sums, linear, volume.runs_digest),
            self.prelude_digest,
        )


class Ledger:
    """Collects an `Index` while a container is written or read from front to end.

    `offset` is the number of bytes accounted for so far: whoever meets PAD, or a record that may be skipped,
    adds its size. The front comes first, then each volume and its segments in order.
    """

    def __init__(self) -> None:
        self.offset = 0
        self._head = self._manifest_frames = self._front_digest = b""
        self._front_end = 0
        self._volumes: list[_VolumeSums] = []
        self._offsets = array("Q")
        self._firsts = array("Q")
        self._lasts = array("Q")
        self._digests = bytearray()

    def add_front(self, head: bytes, manifest_frames: bytes, front: bytes) -> None:
        """All bytes before the first volume."""
        self.offset += len(front)
        self._head = head
        self._manifest_frames = manifest_frames
        self._front_digest = hashlib.sha256(front).digest()
        self._front_end = self.offset

    def add_volume(self, descriptor: VolumeDescriptor, length: int, digest: bytes) -> None:
        """A volume's VOLD, and length and SHA-256 of it and the prelude's frames together."""
        self._volumes.append(_VolumeSums(descriptor, self.offset, length, digest))
        self.offset += length

    def add_segment(self, descriptor: SegmentDescriptor, record: bytes) -> None:
        """A segment's SEGD record, parsed and as bytes."""
        self._volumes[-1].segments += 1
        self._volumes[-1].linear.update(b"".join(descriptor.digests))
        self._offsets.append(self.offset)
        self._firsts.append(descriptor.runs.first)
        self._lasts.append(descriptor.runs.end - 1)
        self._digests += hashlib.sha256(record).digest()
        self.offset += len(record) + descriptor.payload_size

    def volumes(self) -> list[IndexedVolume]:
        """The volumes that were collected."""
        return [volume.indexed() for volume in self._volumes]

    def index(self, manifest: bytes, *, bound: bool) -> Index:
        """What was collected; `bound` as in `identity.archive_content_id`."""
        volumes = self.volumes()
        return Index(
            head=self._head,
            manifest_frames=self._manifest_frames,
            front_digest=self._front_digest,
            front_end=self._front_end,
            content_id=_content_id(manifest, volumes, bound),
            volumes=tuple(volumes),
            offsets=self._offsets,
            firsts=self._firsts,
            lasts=self._lasts,
            segment_digests=memoryview(self._digests).toreadonly(),  # 64 MiB of 64 TiB
        )
