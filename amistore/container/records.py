"""Records: objects for the structs of `layout.py`, encoded and parsed with every check that needs no context.

Each `encode()` gives the whole record, envelope and CRC included; each `parse()` takes that.
Imports the container's lower files only.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import attrs

from amistore.container import layout
from amistore.container.envelope import open_envelope, open_record, seal
from amistore.container.layout import Layout
from amistore.container.runs import Runs
from amistore.errors import (
    ArchiveError,
    CorruptArchiveError,
    InvalidValueError,
    UnsupportedArchiveError,
)
from amistore.units import BLOCK_SIZE, GIB

__all__ = [
    "Foot",
    "Frame",
    "Head",
    "SegmentDescriptor",
    "VolumeDescriptor",
    "index_limit",
    "prelude_limit",
    "refuse_newer",
]


_SNAPSHOT_ID = re.compile(rb"snap-(?:[0-9a-f]{17}|[0-9a-f]{8})")


@attrs.frozen
class Frame:
    """A frame's compressed size in bytes and zlib's CRC-32 of its compressed bytes."""

    size: int
    crc32: int

    @classmethod
    def of(cls, frame: bytes) -> Frame:
        """The entry of these compressed bytes."""
        return cls(len(frame), zlib.crc32(frame))


def refuse_newer(content: bytes) -> None:
    """Let through what does not begin with a whole record of a newer format.

    For bytes that are not those expected: they are damaged, unless such a record proves itself.

    Raises:
        UnsupportedArchiveError: it does.
    """
    with contextlib.suppress(CorruptArchiveError):
        envelope = open_envelope(content[: layout.ENVELOPE.size])
        record = content[: envelope.size]
        open_record(record, envelope.kind)
        if envelope.kind == layout.HEAD:
            Head.parse(record)


def frame_table(frames: Sequence[Frame]) -> bytes:
    """The entries of these frames, one behind the other."""
    return b"".join(layout.FRAME_ENTRY.pack(frame.size, frame.crc32) for frame in frames)


def read_frame_table(table: bytes, frames: int) -> tuple[Frame, ...]:
    """The entries of a table that must hold exactly `frames` of them."""
    if len(table) != frames * layout.FRAME_ENTRY.size:
        raise CorruptArchiveError("the frame table has another length than its count says")
    entries = tuple(Frame(*entry) for entry in layout.FRAME_ENTRY.iter_unpack(table))
    for entry in entries:
        if not 1 <= entry.size <= layout.MAX_FRAME_SIZE:
            raise CorruptArchiveError(f"a frame of {entry.size} bytes is beyond the limit")
    return entries


def read_snapshot_id(field: bytes) -> str:
    """The id in a NUL-padded field of 24 bytes."""
    name = field.rstrip(b"\0")
    if not _SNAPSHOT_ID.fullmatch(name):
        raise CorruptArchiveError("a snapshot id is malformed")
    return name.decode()


def _opened(record: bytes, kind: bytes, form: struct.Struct) -> tuple[bytes, tuple[Any, ...]]:
    """A record's payload, and the fields of its fixed part."""
    payload = open_record(record, kind)
    if len(payload) < form.size:
        raise CorruptArchiveError("a record is shorter than its fixed part")
    return payload, form.unpack_from(payload)


def piece_sizes(content: int) -> list[int]:
    """Content sizes of the frames that hold a member's `content` bytes: 8 MiB each, the last the rest."""
    full, rest = divmod(content, layout.MAX_FRAME_CONTENT)
    return [layout.MAX_FRAME_CONTENT] * full + [rest] * bool(rest)


@attrs.frozen(kw_only=True)
class Head:
    """HEAD: what the whole container is, and the frames of the manifest that follow it.

    `lost_blocks`: the manifest lists blocks that were lost.
    """

    layout: Layout
    volumes: int
    segments: int
    blocks: int
    file_id: bytes
    manifest_content: int
    manifest_frames: tuple[Frame, ...]
    lost_blocks: bool = False

    @property
    def payload_size(self) -> int:
        """Compressed bytes of the manifest's frames."""
        return sum(frame.size for frame in self.manifest_frames)

    def encode(self) -> bytes:
        fixed = layout.HEAD_FIXED.pack(
            layout.LOST_BLOCKS if self.lost_blocks else 0,
            0,
            BLOCK_SIZE,
            self.layout.blocks_per_frame,
            self.layout.blocks_per_segment,
            self.layout.segments_per_shard,
            self.layout.part_size,
            self.volumes,
            self.segments,
            self.blocks,
            self.file_id,
            self.manifest_content,
            len(self.manifest_frames),
        )
        return seal(layout.HEAD, fixed + frame_table(self.manifest_frames))

    @classmethod
    def parse(cls, record: bytes) -> Head:
        payload, (incompatible, _, block_size, *rest) = _opened(record, layout.HEAD, layout.HEAD_FIXED)
        per_frame, per_segment, per_shard, part_size, volumes, segments, blocks, file_id, content, frames = (
            rest
        )
        unknown = incompatible & ~layout.KNOWN_INCOMPATIBLE
        if unknown:
            raise UnsupportedArchiveError(
                f"unknown incompatible features {unknown:#x}: install a newer amistore", record="HEAD"
            )
        if block_size != BLOCK_SIZE:
            raise UnsupportedArchiveError(f"blocks of {block_size} bytes are not known", record="HEAD")
        try:
            form = Layout(
                blocks_per_frame=per_frame,
                blocks_per_segment=per_segment,
                segments_per_shard=per_shard,
                part_size=part_size,
            )
        except InvalidValueError as error:
            raise CorruptArchiveError(str(error)) from None
        head = cls(
            layout=form,
            volumes=volumes,
            segments=segments,
            blocks=blocks,
            file_id=file_id,
            manifest_content=content,
            manifest_frames=read_frame_table(payload[layout.HEAD_FIXED.size :], frames),
            lost_blocks=bool(incompatible & layout.LOST_BLOCKS),
        )
        limit = layout.MAX_MANIFEST + 2 * 512
        if (
            head.volumes > layout.MAX_VOLUMES
            or not 1 <= head.manifest_content <= limit
            or len(head.manifest_frames) != len(piece_sizes(head.manifest_content))
            or not head.blocks >= head.segments >= head.layout.segments(head.blocks)
        ):
            raise CorruptArchiveError("HEAD's counts contradict each other or are beyond the limits")
        return head


def _most_content(runs: int) -> int:
    """Most bytes of a prelude's content: headers, and two numbers of up to 14 digits for each run."""
    return 5 * 512 + 32 * (runs + 2)


def prelude_limit(runs: int) -> int:
    """Most bytes of VOLD and the frames of a prelude of so many runs."""
    frames = piece_sizes(_most_content(min(runs, layout.MAX_RUNS)))
    return layout.MAX_DESCRIPTOR + len(frames) * layout.MAX_FRAME_SIZE


def index_limit(head: int, manifest_frames: int, volumes: int, segments: int) -> int:
    """Most bytes of an INDX with so many bytes of HEAD and manifest frames, volumes and segments."""
    columns = segments * layout.INDX_COLUMNS * 8
    fixed = head + manifest_frames + volumes * layout.INDX_VOLUME.size + segments * 32
    return fixed + columns + columns // 64 + layout.MAX_DESCRIPTOR


@attrs.frozen(kw_only=True)
class VolumeDescriptor:
    """VOLD: one volume, and the frames of its tar headers and sparse map that follow it.

    `size` in bytes; `first_segment` is the sequence number of its first segment.
    """

    file_id: bytes
    volume: int
    snapshot_id: str
    first_segment: int
    size: int
    blocks: int
    runs: int
    runs_digest: bytes
    content: int
    frames: tuple[Frame, ...]

    @property
    def payload_size(self) -> int:
        """Compressed bytes of the prelude's frames."""
        return sum(frame.size for frame in self.frames)

    def encode(self) -> bytes:
        fixed = layout.VOLD_FIXED.pack(
            self.file_id,
            self.volume,
            self.snapshot_id.encode(),
            self.first_segment,
            self.size,
            self.blocks,
            self.runs,
            self.runs_digest,
            self.content,
            len(self.frames),
        )
        return seal(layout.VOLD, fixed + frame_table(self.frames))

    @classmethod
    def parse(cls, record: bytes) -> VolumeDescriptor:
        payload, fields = _opened(record, layout.VOLD, layout.VOLD_FIXED)
        file_id, volume, snapshot_id, first, size, blocks, runs, digest, content, frames = fields
        descriptor = cls(
            file_id=file_id,
            volume=volume,
            snapshot_id=read_snapshot_id(snapshot_id),
            first_segment=first,
            size=size,
            blocks=blocks,
            runs=runs,
            runs_digest=digest,
            content=content,
            frames=read_frame_table(payload[layout.VOLD_FIXED.size :], frames),
        )
        if (
            size % GIB
            or not 1 <= size // GIB <= layout.MAX_VOLUME_GIB
            or blocks * BLOCK_SIZE > size
            or not min(blocks, 1) <= runs <= min(blocks, layout.MAX_RUNS)
            or not 4 * 512 <= content <= _most_content(runs)  # three records of headers, one or more of map
            or frames != len(piece_sizes(content))
        ):
            raise CorruptArchiveError("VOLD's counts contradict each other or are beyond the limits")
        return descriptor


@attrs.frozen(kw_only=True)
class SegmentDescriptor:
    """SEGD: one segment's blocks, their SHA-256 digests, and the frames that follow it.

    `ordinal` is the number of listed blocks of the volume before its first.
    """

    file_id: bytes
    volume: int
    sequence: int
    ordinal: int
    runs: Runs
    frames: tuple[Frame, ...]
    digests: tuple[bytes, ...]

    @property
    def payload_size(self) -> int:
        """Compressed bytes of its frames."""
        return sum(frame.size for frame in self.frames)

    def encode(self) -> bytes:
        runs = self.runs.encode()
        fixed = layout.SEGD_FIXED.pack(
            self.file_id,
            self.volume,
            self.sequence,
            self.ordinal,
            self.runs.blocks,
            len(self.frames),
            len(runs),
        )
        return seal(layout.SEGD, fixed + runs + frame_table(self.frames) + b"".join(self.digests))

    @classmethod
    def parse(cls, record: bytes) -> SegmentDescriptor:
        payload, fields = _opened(record, layout.SEGD, layout.SEGD_FIXED)
        file_id, volume, sequence, ordinal, blocks, frames, varints = fields
        table = layout.SEGD_FIXED.size + varints
        digests = table + frames * layout.FRAME_ENTRY.size
        if len(payload) != digests + blocks * 32 or not 1 <= blocks <= layout.MAX_SEGMENT_BLOCKS:
            raise CorruptArchiveError("SEGD's length does not follow from its counts")
        runs = Runs.decode(payload[layout.SEGD_FIXED.size : table])
        if runs.blocks != blocks:
            raise CorruptArchiveError(f"SEGD's runs hold {runs.blocks} blocks, not {blocks!r}")
        return cls(
            file_id=file_id,
            volume=volume,
            sequence=sequence,
            ordinal=ordinal,
            runs=runs,
            frames=read_frame_table(payload[table:digests], frames),
            digests=tuple(payload[at : at + 32] for at in range(digests, len(payload), 32)),
        )


@attrs.frozen(kw_only=True)
class Foot:
    """FOOT: the last bytes of a container. Offsets and lengths in bytes."""

    index_offset: int
    index_length: int
    data_end: int
    blocks: int
    index_digest: bytes

    @classmethod
    def of(cls, index: bytes, data_end: int, blocks: int) -> Foot:
        """That of a container, by its INDX record, the offset of END_FRAME and its number of blocks."""
        return cls(
            index_offset=data_end + len(layout.END_FRAME),
            index_length=len(index),
            data_end=data_end,
            blocks=blocks,
            index_digest=hashlib.sha256(index).digest(),
        )

    def encode(self) -> bytes:
        return seal(
            layout.FOOT,
            layout.FOOT_FIXED.pack(
                self.index_offset, self.index_length, self.data_end, self.blocks, self.index_digest
            ),
        )

    @classmethod
    def parse(cls, record: bytes) -> Foot:
        """Take the last bytes of the object, exactly.

        Raises:
            CorruptArchiveError: they are no FOOT, or its offsets contradict each other.
            UnsupportedArchiveError: a FOOT of a newer version.
        """
        try:
            payload, fields = _opened(record, layout.FOOT, layout.FOOT_FIXED)
        except ArchiveError as error:
            raise error.locate(record="FOOT") from None
        if len(payload) != layout.FOOT_FIXED.size:
            raise CorruptArchiveError("FOOT has another length", record="FOOT")
        names = (field.name for field in attrs.fields(cls))
        foot = cls(**dict(zip(names, fields, strict=True)))
        if foot.data_end + len(layout.END_FRAME) != foot.index_offset or foot.index_length > layout.MAX_INDEX:
            raise CorruptArchiveError("FOOT's offsets contradict each other", record="FOOT")
        return foot
