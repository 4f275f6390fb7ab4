"""A container in a seekable file: its index, and any segment or block by its number.

Opening reads the end and the index; a block read for the first time takes two more reads,
its segment's descriptor and its frame. Usable from several threads.
"""

from __future__ import annotations

import hashlib
import io
import threading
from typing import BinaryIO

import attrs

from amistore.backends.rangefile import RangeFile
from amistore.container import PREAMBLE, Foot, Head, Index, SegmentDescriptor
from amistore.container.identity import file_id
from amistore.container.layout import FOOT_SIZE, MAX_DESCRIPTOR
from amistore.container.plan import manifest_member
from amistore.container.records import open_record
from amistore.errors import (
    ArchiveError,
    BackendError,
    CorruptArchiveError,
    TruncatedArchiveError,
)
from amistore.model import Image, decode_manifest

__all__ = ["ContainerFile", "LocatedSegment", "WholeFile"]


@attrs.frozen
class LocatedSegment:
    """A segment's descriptor, the file offset of its first frame, and its frames' content sizes."""

    descriptor: SegmentDescriptor
    offset: int
    frame_contents: tuple[int, ...]


class ContainerFile:
    """An opened container.

    Attributes:
        name: for messages.
        size: in bytes.
        index: INDX, authenticated by FOOT.
        head: from the index.
        image: from the index's copy of the manifest.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._lock = threading.Lock()
        self.name = name
        try:
            self.size = file.seek(0, io.SEEK_END)
        except (OSError, ValueError) as error:
            raise BackendError(
                f"{name} cannot be opened for random access: {error}", operation="open"
            ) from error
        self.index: Index
        self.head: Head
        self.index, self.head = self._read_index()
        self.image: Image = self._read_image()

    def read(self, offset: int, length: int, record: str) -> bytes:
        """Exactly `length` bytes from `offset`."""
        try:
            with self._lock:
                self._file.seek(offset)
                content = b""
                while len(content) < length:
                    piece = self._file.read(length - len(content))
                    if not piece:
                        break
                    content = content + piece if content else piece
        except ValueError as error:
            raise BackendError(f"{self.name}: {error}", operation="read") from None
        except OSError as error:
            raise BackendError(f"{self.name}: {error.strerror}", operation="read") from error
        if len(content) != length:
            raise TruncatedArchiveError(
                f"{length} bytes are expected here, there are {len(content)}", offset=offset, record=record
            )
        return content

    def _read_index(self) -> tuple[Index, Head]:
        foot_offset = max(0, self.size - FOOT_SIZE)
        try:
            foot = Foot.parse(self.read(foot_offset, self.size - foot_offset, "FOOT"))
            if foot.index_offset + foot.index_length != foot_offset:
                raise CorruptArchiveError("FOOT's offsets are not those of this file", record="FOOT")
        except CorruptArchiveError as error:
            start = self.read(0, min(self.size, len(PREAMBLE)), "PREAMBLE")
            if not start or not PREAMBLE.startswith(start):
                raise CorruptArchiveError("this is no amistore container", offset=0) from None
            raise TruncatedArchiveError(
                "the file does not end as an archive does: it is cut short, damaged there, or something "
                f"follows it ({error.message})",
                record="FOOT",
                offset=foot_offset,
            ) from None
        record = self.read(foot.index_offset, foot.index_length, "INDX")
        try:
            if hashlib.sha256(record).digest() != foot.index_digest:
                raise CorruptArchiveError("the index's SHA-256 is not the one in FOOT", record="INDX")
            index = Index.parse(record)
            if index.end > foot.data_end or sum(v.blocks for v in index.volumes) != foot.blocks:
                raise CorruptArchiveError("the index contradicts FOOT", record="INDX")
            head = index.parse_head()
            volumes = [(volume.size, volume.runs_digest) for volume in index.volumes]
            if head.blocks != foot.blocks or head.file_id != file_id(index.manifest(), volumes, head.layout):
                raise CorruptArchiveError("HEAD's counts or file id are not those of the volumes")
            return index, head
        except ArchiveError as error:
            raise error.locate(offset=foot.index_offset, record="INDX") from None

    def _read_image(self) -> Image:
        manifest = self.index.manifest()
        image = decode_manifest(manifest)
        if manifest_member(image, manifest) != self.index.manifest_member():
            raise CorruptArchiveError("the manifest's tar member is not as a writer makes it", record="INDX")
        before = ""
        for volume in self.index.volumes:
            if volume.snapshot_id <= before or volume.snapshot_id not in image.snapshot_ids:
                raise CorruptArchiveError(
                    "volumes are not those of the image's mappings, in order",
                    record="INDX",
                    snapshot_id=volume.snapshot_id,
                )
            before = volume.snapshot_id
        return image

    def _place(self, sequence: int) -> tuple[int, int]:
        """Number of the volume of a segment, and the ordinal of its first block."""
        first = 0
        for number, volume in enumerate(self.index.volumes):
            if sequence < first + volume.segments:
                return number, (sequence - first) * self.head.layout.blocks_per_segment
            first += volume.segments
        raise IndexError(sequence)

    def segment(self, sequence: int) -> LocatedSegment:
        """A segment by its sequence number, its SEGD authenticated by the index."""
        offset = self.index.offsets[sequence]
        record = self.read(offset, min(MAX_DESCRIPTOR, self.size - offset), "SEGD")
        record = record[: int.from_bytes(record[4:8], "little") + 8]
        try:
            if hashlib.sha256(record).digest() != self.index.segment_digest(sequence):
                raise CorruptArchiveError("SEGD's SHA-256 is not the one in the index")
            descriptor = SegmentDescriptor.parse(open_record(record))
            contents = tuple(self.head.layout.frame_contents(descriptor.runs.blocks))
            if (
                descriptor.sequence != sequence
                or (descriptor.volume, descriptor.ordinal) != self._place(sequence)
                or descriptor.file_id != self.head.file_id
                or descriptor.runs.first != self.index.firsts[sequence]
                or descriptor.runs.end - 1 != self.index.lasts[sequence]
                or len(descriptor.frames) != len(contents)
            ):
                raise CorruptArchiveError("SEGD belongs to another file or another place")
        except ArchiveError as error:
            raise error.locate(record="SEGD", offset=offset, segment=sequence) from None
        return LocatedSegment(descriptor, offset + len(record), contents)


class WholeFile(RangeFile):
    """A container's bytes from the first on, whatever else is read meanwhile."""

    def __init__(self, container: ContainerFile) -> None:
        self._container = container
        super().__init__(container.size)

    def _fill(self, position: int, view: memoryview) -> int:
        view[:] = self._container.read(position, len(view), "file")
        return len(view)
