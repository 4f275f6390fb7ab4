"""zstd frames and their tables: made whole, and decoded only after their header was checked.

python-zstandard ignores `max_output_size` where a header declares a size, and its
streaming readers accept truncated frames in silence: so the header is parsed first, and
an exact slice is decoded in one shot.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import attrs
import zstandard

from amistore.container import layout
from amistore.errors import AmistoreError, CorruptArchiveError

__all__ = [
    "LONGEST_HEADER",
    "Frame",
    "FrameEncoder",
    "check_frame",
    "cut_frames",
    "declared_content",
    "decode_member",
    "decompress",
    "frame_table",
    "leading_frame",
    "piece_sizes",
    "read_frame_table",
]

LONGEST_HEADER: Final = 18
"""Most bytes of a frame's header (RFC 8878, 3.1.1.1)."""

_RLE_BLOCK = 1


@attrs.frozen
class Frame:
    """A frame's compressed size in bytes and zlib's CRC-32 of its compressed bytes."""

    size: int
    crc32: int

    @classmethod
    def of(cls, frame: bytes) -> Frame:
        """The entry of these compressed bytes."""
        return cls(len(frame), zlib.crc32(frame))


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


class FrameEncoder:
    """Compress contents of at most 8 MiB to one frame each. One thread at a time."""

    def __init__(self, level: int, *, check: bool) -> None:
        """Take a zstd level, and whether each frame is decoded and compared before it is returned."""
        self._compressor = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
        self._check = zstandard.ZstdDecompressor() if check else None

    def encode(self, content: bytes | bytearray) -> bytes:
        """One frame with content size and checksum.

        Raises:
            AmistoreError: the frame does not decode to what went in (faulty memory or libzstd).
        """
        frame = self._compressor.compress(content)
        if self._check is not None:
            try:
                same = self._check.decompress(frame, allow_extra_data=False) == content
            except zstandard.ZstdError:
                same = False
            if not same:
                raise AmistoreError(
                    "a compressed frame did not decode to its content, so it was not handed out: "
                    "suspect the machine's memory"
                )
        # python-zstandard leaves a frame in the buffer of its longest possible size: of a container of many
        # short frames, kept as pieces, that is as much memory as the image.
        return bytes(memoryview(frame))

    def encode_all(self, contents: Iterable[bytes]) -> list[bytes]:
        """Frames of 8 MiB of content each, but the last, that hold all contents behind each other."""
        frames: list[bytes] = []
        rest = bytearray()
        for content in contents:
            rest += content
            while len(rest) > layout.MAX_FRAME_CONTENT:
                frames.append(self.encode(rest[: layout.MAX_FRAME_CONTENT]))
                del rest[: layout.MAX_FRAME_CONTENT]
        return [*frames, self.encode(rest)] if rest else frames


def check_frame(frame: bytes | memoryview, content_size: int, crc32: int) -> None:
    """Refuse a frame whose CRC-32 (zlib's, of all of it) or header is not what it must be.

    Raises:
        CorruptArchiveError: it is not; nothing was decoded or allocated.
    """
    if zlib.crc32(frame) != crc32:
        raise CorruptArchiveError("a frame's CRC-32 is wrong")
    try:
        header = zstandard.get_frame_parameters(frame)
    except zstandard.ZstdError as error:
        raise CorruptArchiveError(f"a frame has no valid zstd header: {error}") from None
    if (
        frame[:4] != layout.ZSTD_MAGIC
        or header.content_size != content_size
        or header.window_size > layout.MAX_WINDOW
        or header.dict_id
        or not header.has_checksum
    ):
        raise CorruptArchiveError(
            f"a frame's header declares {header.content_size} bytes, window {header.window_size}, "
            f"dictionary {header.dict_id}, checksum {bool(header.has_checksum)}; "
            f"expected {content_size} bytes, window up to {layout.MAX_WINDOW}, "
            "no dictionary and a checksum"
        )


def decompress(frame: bytes | memoryview, content_size: int, crc32: int) -> bytes:
    """The content of exactly one frame.

    Args:
        frame: its compressed bytes, no more and no fewer.
        content_size: bytes it must declare and hold.
        crc32: zlib's CRC-32 of `frame`.

    Raises:
        CorruptArchiveError: any check fails; nothing is allocated before the header's passed.
    """
    check_frame(frame, content_size, crc32)
    decompressor = zstandard.ZstdDecompressor(max_window_size=layout.MAX_WINDOW)
    try:
        content = decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptArchiveError(f"a frame does not decode: {error}") from None
    if len(content) != content_size:
        raise CorruptArchiveError(f"a frame holds {len(content)} bytes, not {content_size}")
    return content


def cut_frames(frames: bytes, table: Sequence[Frame]) -> Iterator[bytes]:
    """Consecutive frames, one by one.

    Raises:
        CorruptArchiveError: they are not as long as their table says.
    """
    if sum(frame.size for frame in table) != len(frames):
        raise CorruptArchiveError("frames are not as long as their table says")
    at = 0
    for frame in table:
        yield frames[at : at + frame.size]
        at += frame.size


def decode_member(frames: bytes, table: Sequence[Frame], content: int) -> bytes:
    """The content of consecutive frames, each of 8 MiB but the last.

    Raises:
        CorruptArchiveError: they are not those of the table.
    """
    sizes = piece_sizes(content)
    if len(sizes) != len(table):
        raise CorruptArchiveError("frames are not as long as their table says")
    cut = zip(cut_frames(frames, table), table, sizes, strict=True)
    return b"".join([decompress(frame, size, entry.crc32) for frame, entry, size in cut])


def piece_sizes(content: int) -> list[int]:
    """Content sizes of the frames that hold a member's `content` bytes: 8 MiB each, the last the rest."""
    full, rest = divmod(content, layout.MAX_FRAME_CONTENT)
    return [layout.MAX_FRAME_CONTENT] * full + [rest] * bool(rest)


def declared_content(start: bytes) -> int:
    """The bytes of content that a frame declares of which nothing else is known.

    Args:
        start: its first `LONGEST_HEADER` bytes.

    Raises:
        CorruptArchiveError: no frame stands here, or one larger than ours.
    """
    try:
        size = zstandard.get_frame_parameters(start).content_size
    except zstandard.ZstdError as error:
        raise CorruptArchiveError(f"a frame has no valid zstd header: {error}") from None
    if start[:4] != layout.ZSTD_MAGIC or not 1 <= size <= layout.MAX_FRAME_CONTENT:
        raise CorruptArchiveError("no frame of this format stands here")
    return size


def leading_frame(content: bytes) -> bytes:
    """The frame that `content`, its header among it, begins with (RFC 8878, 3.1.1: blocks, then a checksum).

    Raises:
        CorruptArchiveError: it is cut short.
    """
    at = zstandard.frame_header_size(content)
    while at + 3 <= len(content):
        block = int.from_bytes(content[at : at + 3], "little")
        last, kind, size = block & 1, block >> 1 & 3, block >> 3
        at += 3 + (1 if kind == _RLE_BLOCK else size)
        if last:
            return content[: at + 4]
    raise CorruptArchiveError("a frame is cut short")
