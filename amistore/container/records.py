"""Records: objects for the structs of `layout.py`, encoded and parsed with every check that needs no context.

A record is an envelope, a payload and their CRC-32C (crcmod's). Each `encode()` gives the whole record, each
`parse()` takes it. Imports the container's lower files only.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import struct
import sys
import warnings
from collections.abc import Callable
from typing import Any

import attrs
import crcmod.predefined

from amistore.container import layout
from amistore.container.frames import Frame, frame_table, piece_sizes, read_frame_table
from amistore.container.layout import Layout
from amistore.container.runs import Runs
from amistore.errors import CorruptArchiveError, InvalidValueError, UnsupportedArchiveError, locating
from amistore.model.fields import SNAPSHOT_ID
from amistore.units import BLOCK_SIZE, GIB

__all__ = [
    "Envelope",
    "Foot",
    "Head",
    "SegmentDescriptor",
    "VolumeDescriptor",
    "check_other",
    "check_others",
    "crc32c",
    "open_envelope",
    "open_record",
    "pad_record",
    "read_snapshot_id",
    "refuse_newer",
    "seal",
]

crc32c: Callable[[bytes], int] = crcmod.predefined.mkPredefinedCrcFun("crc-32c")
"""CRC-32C (Castagnoli) of some bytes."""

# crcmod installs without a compiler and then says nothing of being a hundred times slower.
if not getattr(sys.modules.get("crcmod.crcmod"), "_usingExtension", True):
    warnings.warn(
        "crcmod runs without its C extension: records are checked more slowly, data is not "
        "affected. To mend it: install a C compiler and the Python headers, then "
        "'pip install --force-reinstall --no-binary :all: crcmod'",
        RuntimeWarning,
        stacklevel=2,
    )


@attrs.frozen
class Envelope:
    """A record's first 20 bytes, which its CRC has not proved yet.

    Attributes:
        kind: its type.
        size: of the whole record, in bytes.
        is_ours: whether type, version and flags are those of this version of the format.
        critical: whether who does not know it must refuse the file.
    """

    kind: bytes
    size: int
    is_ours: bool
    critical: bool


def seal(kind: bytes, payload: bytes, *tail: bytes | memoryview) -> bytes:
    """A whole record; the CRC covers all but `tail`."""
    length = layout.RECORD_OVERHEAD - layout.SKIPPABLE_HEADER + len(payload) + sum(map(len, tail))
    head = layout.ENVELOPE.pack(
        layout.SKIPPABLE_MAGIC, length, layout.SIGNATURE, kind, layout.RECORD_VERSION, layout.CRITICAL
    )
    fixed = head + payload
    return b"".join((fixed, *tail, layout.CRC.pack(crc32c(fixed))))


def open_envelope(start: bytes) -> Envelope:
    """The envelope in the first 20 bytes of a record.

    Raises:
        CorruptArchiveError: no record of this format stands here.
    """
    if len(start) != layout.ENVELOPE.size:
        raise CorruptArchiveError("a record is cut short")
    magic, length, signature, kind, version, flags = layout.ENVELOPE.unpack(start)
    size = length + layout.SKIPPABLE_HEADER
    if magic != layout.SKIPPABLE_MAGIC or signature != layout.SIGNATURE or size < layout.RECORD_OVERHEAD:
        raise CorruptArchiveError("no record stands here")
    is_ours = kind in layout.KNOWN and (version, flags) == (layout.RECORD_VERSION, layout.CRITICAL)
    return Envelope(kind, size, is_ours, kind in layout.KNOWN or bool(flags & layout.CRITICAL))


def open_record(record: bytes, kind: bytes) -> bytes:
    """The payload of a record, by its exact bytes and the type that it must have.

    Only a right CRC tells a newer format: without it version, flags or type are damaged.

    Raises:
        CorruptArchiveError: the CRC is wrong, or another record stands here.
        UnsupportedArchiveError: a whole record of a newer version, or a critical one of unknown type.
    """
    envelope = open_envelope(record[: layout.ENVELOPE.size])
    end = len(record) - layout.CRC.size
    fixed = layout.COVERED.get(envelope.kind) if envelope.is_ours else None
    covered = end if fixed is None else layout.ENVELOPE.size + fixed
    if envelope.size != len(record) or covered > end:
        raise CorruptArchiveError("a record has another length than it says")
    if layout.CRC.unpack(record[end:]) != (crc32c(record[:covered]),):
        raise CorruptArchiveError("a record's CRC-32C is wrong")
    if envelope.critical and not envelope.is_ours:
        raise UnsupportedArchiveError(
            f"a {_name(envelope.kind)} record of a version, of flags or of a type that are not known: "
            "install a newer amistore"
        )
    if envelope.kind != kind:
        raise CorruptArchiveError(
            f"a {_name(envelope.kind)} record stands where {_name(kind)} is expected", record=_name(kind)
        )
    return record[layout.ENVELOPE.size : end]


def _name(kind: bytes) -> str:
    return kind.decode("ascii", "backslashreplace").rstrip("\0")


def check_other(record: bytes, before: int) -> None:
    """Refuse a record that may not be skipped, behind so many that were skipped in the same place.

    Raises:
        CorruptArchiveError: damaged, too long, one too many, or a record that belongs elsewhere.
        UnsupportedArchiveError: a critical one.
    """
    kind = open_envelope(record[: layout.ENVELOPE.size]).kind
    open_record(record, kind)
    if kind in layout.KNOWN or len(record) > layout.MAX_DESCRIPTOR:
        raise CorruptArchiveError("a record stands here that belongs elsewhere, or is beyond the limit")
    if before >= layout.MAX_OTHERS:
        raise CorruptArchiveError(f"more than {layout.MAX_OTHERS} records of unknown type in one place")


def check_others(content: bytes) -> None:
    """Refuse what is not a few records that may be skipped; see `check_other`."""
    at = count = 0
    while at < len(content):
        size = open_envelope(content[at : at + layout.ENVELOPE.size]).size
        check_other(content[at : at + size], count)
        count += 1
        at += size


def pad_record(size: int) -> bytes:
    """A PAD record of `size` bytes, at least 24: zeros between envelope and CRC."""
    return seal(layout.PAD, b"", bytes(size - layout.RECORD_OVERHEAD))


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


def read_snapshot_id(field: bytes) -> str:
    """The id in a NUL-padded field of 24 bytes."""
    name = field.rstrip(b"\0").decode("ascii", "replace")
    if not re.fullmatch(SNAPSHOT_ID, name):
        raise CorruptArchiveError("a snapshot id is malformed")
    return name


def _opened(record: bytes, kind: bytes, form: struct.Struct) -> tuple[bytes, tuple[Any, ...]]:
    """A record's payload, and the fields of its fixed part."""
    payload = open_record(record, kind)
    if len(payload) < form.size:
        raise CorruptArchiveError("a record is shorter than its fixed part")
    return payload, form.unpack_from(payload)


class _Described:
    """A record that describes the frames behind it."""

    frames: tuple[Frame, ...]

    @property
    def payload_size(self) -> int:
        """Compressed bytes of the frames."""
        return sum(frame.size for frame in self.frames)


@attrs.frozen(kw_only=True)
class Head(_Described):
    """HEAD: what the whole container is, and the frames of the manifest that follow it.

    `content` is the bytes of the manifest's tar member; `lost_blocks`: the manifest lists blocks that were
    lost.
    """

    layout: Layout
    volumes: int
    segments: int
    blocks: int
    file_id: bytes
    content: int
    frames: tuple[Frame, ...]
    lost_blocks: bool = False

    def encode(self) -> bytes:
        fixed = layout.HEAD_FIXED.pack(
            layout.LOST_BLOCKS if self.lost_blocks else 0,
            0,
            BLOCK_SIZE,
            *attrs.astuple(self.layout),
            self.volumes,
            self.segments,
            self.blocks,
            self.file_id,
            self.content,
            len(self.frames),
        )
        return seal(layout.HEAD, fixed + frame_table(self.frames))

    @classmethod
    def parse(cls, record: bytes) -> Head:
        payload, (incompatible, _, block_size, *fields) = _opened(record, layout.HEAD, layout.HEAD_FIXED)
        unknown = incompatible & ~layout.KNOWN_INCOMPATIBLE
        if unknown:
            raise UnsupportedArchiveError(
                f"unknown incompatible features {unknown:#x}: install a newer amistore", record="HEAD"
            )
        if block_size != BLOCK_SIZE:
            raise UnsupportedArchiveError(f"blocks of {block_size} bytes are not known", record="HEAD")
        names = [field.name for field in attrs.fields(Layout)]
        volumes, segments, blocks, file_id, content, frames = fields[len(names) :]
        try:
            form = Layout(**dict(zip(names, fields, strict=False)))
        except InvalidValueError as error:
            raise CorruptArchiveError(str(error)) from None
        if (
            volumes > layout.MAX_VOLUMES
            or not 1 <= content <= layout.MAX_MANIFEST + 2 * 512
            or frames != len(piece_sizes(content))
            or not blocks >= segments >= form.segments(blocks)
        ):
            raise CorruptArchiveError("HEAD's counts contradict each other or are beyond the limits")
        return cls(
            layout=form,
            volumes=volumes,
            segments=segments,
            blocks=blocks,
            file_id=file_id,
            content=content,
            frames=read_frame_table(payload[layout.HEAD_FIXED.size :], frames),
            lost_blocks=bool(incompatible & layout.LOST_BLOCKS),
        )


@attrs.frozen
class VolumeDescriptor(_Described):
    """VOLD: one volume, and the frames of its tar headers and sparse map that follow it.

    `size` in bytes; `first_segment` is the sequence number of its first segment; `content` is the bytes of
    headers and map. The fields have the order of the struct.
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

    def encode(self) -> bytes:
        file_id, volume, snapshot_id, *facts, frames = attrs.astuple(self, recurse=False)
        fixed = layout.VOLD_FIXED.pack(file_id, volume, snapshot_id.encode(), *facts, len(frames))
        return seal(layout.VOLD, fixed + frame_table(frames))

    @classmethod
    def parse(cls, record: bytes) -> VolumeDescriptor:
        payload, fields = _opened(record, layout.VOLD, layout.VOLD_FIXED)
        facts = [*fields]
        facts[2] = read_snapshot_id(facts[2])
        facts[-1] = read_frame_table(payload[layout.VOLD_FIXED.size :], facts[-1])
        found = cls(*facts)
        if (
            found.size % GIB
            or not 1 <= found.size // GIB <= layout.MAX_VOLUME_GIB
            or found.blocks * BLOCK_SIZE > found.size
            or not min(found.blocks, 1) <= found.runs <= min(found.blocks, layout.MAX_RUNS)
            # Three records of headers, one or more of map.
            or not 4 * 512 <= found.content <= layout.prelude_content_limit(found.runs)
            or len(found.frames) != len(piece_sizes(found.content))
        ):
            raise CorruptArchiveError("VOLD's counts contradict each other or are beyond the limits")
        return found


@attrs.frozen(kw_only=True)
class SegmentDescriptor(_Described):
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

    def encode(self) -> bytes:
        runs = self.runs.encode()
        place = self.file_id, self.volume, self.sequence, self.ordinal
        fixed = layout.SEGD_FIXED.pack(*place, self.runs.blocks, len(self.frames), len(runs))
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


@attrs.frozen
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
        digest = hashlib.sha256(index).digest()
        return cls(data_end + len(layout.END_FRAME), len(index), data_end, blocks, digest)

    def encode(self) -> bytes:
        return seal(layout.FOOT, layout.FOOT_FIXED.pack(*attrs.astuple(self)))

    @classmethod
    @locating(record="FOOT")
    def parse(cls, record: bytes) -> Foot:
        """Take the last bytes of the object, exactly.

        Raises:
            CorruptArchiveError: they are no FOOT, or its offsets contradict each other.
            UnsupportedArchiveError: a FOOT of a newer version.
        """
        payload, fields = _opened(record, layout.FOOT, layout.FOOT_FIXED)
        if len(payload) != layout.FOOT_FIXED.size:
            raise CorruptArchiveError("FOOT has another length")
        foot = cls(*fields)
        if foot.data_end + len(layout.END_FRAME) != foot.index_offset or foot.index_length > layout.MAX_INDEX:
            raise CorruptArchiveError("FOOT's offsets contradict each other")
        return foot
