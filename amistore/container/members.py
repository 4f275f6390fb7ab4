"""The tar members beside the disks: README, manifest and sparse maps, out of their frames and proved.

What is parsed is proved by building it again: a reader accepts only what a writer makes.
"""

from __future__ import annotations

import hashlib

from amistore.container import layout, tar
from amistore.container.frames import FrameDecoder
from amistore.container.plan import (
    PlannedVolume,
    check_lost_blocks,
    manifest_member,
    prelude,
)
from amistore.container.records import Frame, Head, VolumeDescriptor, piece_sizes
from amistore.container.tar import file_header, padding
from amistore.errors import ArchiveError, CorruptArchiveError, InvalidRequestError
from amistore.model import Image, decode_manifest
from amistore.units import BLOCK_SIZE

__all__ = [
    "PREAMBLE",
    "PreludeReader",
    "check_volume",
    "decode_member",
    "is_prelude",
    "open_manifest",
    "open_prelude",
    "read_manifest",
]

_MEMBER = (
    file_header(layout.README_NAME, len(layout.README), 0)
    + layout.README
    + bytes(padding(len(layout.README)))
)

PREAMBLE = layout.raw_frame(_MEMBER, layout.PREAMBLE_CHECKSUM)
"""A frame of one RAW block, so that `strings FILE | head` shows what the file is."""


def decode_member(frames: bytes, table: tuple[Frame, ...], content: int) -> bytes:
    """The content of consecutive frames, each of 8 MiB but the last."""
    if sum(frame.size for frame in table) != len(frames) or len(table) != len(piece_sizes(content)):
        raise CorruptArchiveError("frames are not as long as their table says")
    decoder = FrameDecoder()
    pieces = []
    at = 0
    for frame, size in zip(table, piece_sizes(content), strict=True):
        pieces.append(decoder.decode(frames[at : at + frame.size], size, frame.crc32))
        at += frame.size
    return b"".join(pieces)


def open_manifest(head: Head, frames: bytes) -> tuple[bytes, Image]:
    """The manifest's bytes and the image that they describe.

    Args:
        head: has the table of the frames.
        frames: all of them.

    Raises:
        CorruptArchiveError: not as a writer makes it.
        UnsupportedArchiveError: another major version.
    """
    try:
        member = decode_member(frames, head.manifest_frames, head.manifest_content)
        manifest = read_manifest(member)
        image = decode_manifest(manifest)
        if member != manifest_member(image, manifest):
            raise CorruptArchiveError("the manifest's tar member is not as a writer makes it")
        if image.lost_blocks != head.lost_blocks:
            raise CorruptArchiveError("HEAD and the manifest differ on whether blocks were lost")
    except ArchiveError as error:
        raise error.locate(record="manifest") from None
    return manifest, image


def read_manifest(member: bytes) -> bytes:
    """The manifest in its tar member.

    Raises:
        CorruptArchiveError: the header's size is none, or more than is there.
    """
    try:
        size = int(member[124:135], 8)
    except ValueError:
        raise CorruptArchiveError("the manifest's tar header has no size") from None
    if not 512 + size <= len(member):
        raise CorruptArchiveError("the manifest is longer than its tar member")
    return member[512 : 512 + size]


def check_volume(volume: VolumeDescriptor, file_id: bytes, number: int, first_segment: int) -> None:
    """Refuse a VOLD that is not the one of this place in this file.

    Raises:
        CorruptArchiveError: it is not.
    """
    if (volume.file_id, volume.volume, volume.first_segment) != (file_id, number, first_segment):
        raise CorruptArchiveError("VOLD belongs to another file or another place")


def is_prelude(digest: bytes, image: Image, volume: PlannedVolume) -> bool:
    """Whether tar headers and sparse map of this SHA-256 are those that a writer makes for a volume."""
    built = hashlib.sha256()
    for piece in prelude(image, volume):
        built.update(piece)
    return built.digest() == digest and volume.runs.end * BLOCK_SIZE <= volume.size


class PreludeReader:
    """The volume whose tar headers and sparse map are in the frames behind its VOLD, one by one.

    They may have 134 MB: of a frame nothing is kept but its runs.
    """

    def __init__(self, descriptor: VolumeDescriptor, image: Image) -> None:
        self._descriptor = descriptor
        self._image = image
        self._sizes = zip(descriptor.frames, piece_sizes(descriptor.content), strict=True)
        self._decoder = FrameDecoder()
        self._map = tar.SparseMap()
        self._digest = hashlib.sha256()

    def feed(self, frame: bytes) -> None:
        """The next frame's bytes.

        Raises:
            CorruptArchiveError: it is not what VOLD says, or holds no part of a map.
        """
        entry, size = next(self._sizes)
        content = self._decoder.decode(frame, size, entry.crc32)
        self._digest.update(content)
        self._map.feed(content)

    def volume(self) -> PlannedVolume:
        """The volume, after the last frame.

        Raises:
            CorruptArchiveError: the map contradicts VOLD or the manifest.
        """
        descriptor, image, runs = self._descriptor, self._image, self._map.runs
        volume = PlannedVolume(
            number=descriptor.volume,
            snapshot_id=descriptor.snapshot_id,
            size=descriptor.size,
            runs=runs,
            first_segment=descriptor.first_segment,
        )
        sums = descriptor.blocks, descriptor.runs, descriptor.runs_digest
        if (runs.blocks, len(runs), runs.digest()) != sums or not is_prelude(
            self._digest.digest(), image, volume
        ):
            raise CorruptArchiveError("tar headers and sparse map contradict VOLD or the manifest")
        if volume.snapshot_id not in image.snapshot_ids:
            raise CorruptArchiveError(
                "no mapping of the image names this volume", snapshot_id=volume.snapshot_id
            )
        try:
            check_lost_blocks(image, volume)
        except InvalidRequestError as error:
            raise CorruptArchiveError(error.message) from None
        return volume


def open_prelude(descriptor: VolumeDescriptor, frames: bytes, image: Image) -> PlannedVolume:
    """As `PreludeReader`, of all frames.

    Raises:
        CorruptArchiveError: they contradict VOLD or the manifest.
    """
    if descriptor.payload_size != len(frames):
        raise CorruptArchiveError("frames are not as long as their table says")
    reader = PreludeReader(descriptor, image)
    at = 0
    for frame in descriptor.frames:
        reader.feed(frames[at : at + frame.size])
        at += frame.size
    return reader.volume()
