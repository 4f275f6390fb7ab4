"""A raw disk that comes as a stream, compressed or not: read once, from its front to its end.

A compressed stream is whole only where its last member, or frame, has ended: what is cut off is an error,
never a shorter disk. What each call decompresses is bounded, also for a stream that was made to burst.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final, Protocol

import zstandard

from amistore.disks.signatures import SECTOR
from amistore.errors import BackendError, InvalidRequestError, foreign_errors
from amistore.text import printable
from amistore.units import BLOCK_SIZE, GIB, KIB, MIB, counted

__all__ = ["COMPRESSIONS", "StreamDisk"]

COMPRESSIONS: Final = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
"""The compressions by the ends of files' names."""

_PIECE: Final = 128 * KIB  # bytes that are read at once
_XZ_MEMORY: Final = 256 * MIB  # `xz -9` needs 65 MiB to decompress (its manual, "Presets")

# RFC 8878, 3.1.1 and 3.1.2; numbers are little-endian.
_ZSTD_MAGIC: Final = 0xFD2FB528
_ZSTD_SKIPPABLE: Final = range(0x184D2A50, 0x184D2A60)
_ZSTD_RLE, _ZSTD_RESERVED = 1, 3  # types of a block
_ZSTD_LARGEST_BLOCK: Final = 128 * KIB
_ZSTD_CHECKSUM: Final = 4  # bytes behind the last block


class StreamDisk:
    """A raw disk from a stream, in blocks.

    Args:
        source: the stream, such as ``sys.stdin.buffer``; the caller closes it.
        volume_size: the volume's size in GiB; the disk may be shorter.
        compression: ``"gzip"``, ``"bzip2"``, ``"xz"``, ``"zstd"``, or None for a raw disk.
        name: what messages call the stream.

    Attributes:
        last: the last sector that was read, or all bytes of a shorter disk.

    Raises:
        InvalidRequestError: the compression is unknown, or the size is not positive.
    """

    def __init__(
        self, source: BinaryIO, volume_size: int, compression: str | None = None, name: str = "the stream"
    ) -> None:
        if compression is not None and compression not in _DECODERS:
            raise InvalidRequestError(f"the compression {compression!r} is none of {', '.join(_DECODERS)}")
        if volume_size < 1:
            raise InvalidRequestError(f"a volume has 1 GiB at least, not {volume_size}")
        self._input = _Input(source, printable(name))
        self._volume_size = volume_size
        self._compression = compression
        self._begun = False
        self.last = b""

    def blocks(self) -> Iterator[tuple[int, bytes]]:
        """All blocks as pairs of an index and the content, ascending; the last is filled up with zeros.

        At most a few MiB are held, beside the window of the compression.

        Raises:
            InvalidRequestError: the disk is empty or larger than the volume, or was read before.
            BackendError: the stream cannot be read, is cut off, damaged, or followed by something else.
        """
        if self._begun:
            raise InvalidRequestError(f"{self._input.name} was read before, and can be read only once")
        self._begun = True
        size = 0
        rest = bytearray()
        for piece in self._pieces():
            size += len(piece)
            if size > self._volume_size * GIB:
                raise InvalidRequestError(
                    f"{self._input.name} is longer than the volume of {self._volume_size} GiB: give a larger "
                    "volume_size"
                )
            rest += piece
            self.last = (self.last + piece)[-SECTOR:]
            while len(rest) >= BLOCK_SIZE:
                yield (size - len(rest)) // BLOCK_SIZE, bytes(rest[:BLOCK_SIZE])
                del rest[:BLOCK_SIZE]
        if not size:
            raise InvalidRequestError(f"{self._input.name} is empty")
        if rest:
            yield size // BLOCK_SIZE, bytes(rest).ljust(BLOCK_SIZE, b"\0")

    def _pieces(self) -> Iterator[bytes]:
        if self._compression is None:
            while piece := self._input.some():
                yield piece
            return
        if not self._input.more():
            raise InvalidRequestError(f"{self._input.name} is empty")
        while self._input.more():
            try:
                yield from _DECODERS[self._compression](self._input)
            except (OSError, ValueError, EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
                raise self._input.damaged(f"no {self._compression} stream, or {error}") from error


class _Input:
    """A stream as a decoder takes it: some bytes, or exactly so many; what was too much is given back."""

    def __init__(self, source: BinaryIO, name: str) -> None:
        self.name = name
        self._source = source
        self._rest = b""
        self._read = 0

    def more(self) -> bool:
        """Whether another byte is left."""
        if not self._rest:
            with foreign_errors("read"):
                piece = self._source.read(_PIECE)
            if piece is None:  # a stream of Python's that does not wait
                raise BackendError(
                    f"{self.name} has nothing to read now: give one that waits", operation="read"
                )
            self._rest = piece
            self._read += len(piece)
        return bool(self._rest)

    def some(self) -> bytes:
        """The next bytes; none at the end."""
        self.more()
        piece, self._rest = self._rest, b""
        return piece

    def exactly(self, length: int) -> bytes:
        """The next bytes, as many as this.

        Raises:
            BackendError: the stream ends before.
        """
        content = bytearray()
        while len(content) < length:
            if not self.more():
                raise self.cut_off()
            left = length - len(content)
            content += self._rest[:left]
            self._rest = self._rest[left:]
        return bytes(content)

    def give_back(self, content: bytes) -> None:
        """Have these bytes come again."""
        self._rest = content + self._rest

    def damaged(self, what: str) -> BackendError:
        """An error for what cannot be decompressed."""
        where = self._read - len(self._rest)
        return BackendError(
            f"{self.name} is damaged, or something else follows the disk: {what} (about byte {where}): take "
            "another copy",
            operation="read",
        )

    def cut_off(self) -> BackendError:
        """An error for a stream that ends too early."""
        return BackendError(
            f"{self.name} is cut off after {counted(self._read, 'byte')}: take another copy, or resend it",
            operation="read",
        )


class _Decoder(Protocol):
    """As bz2 and lzma have it."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = ...) -> bytes: ...


def _gzip(source: _Input) -> Iterator[bytes]:
    """One member of a gzip file (RFC 1952, 2.2)."""
    decoder = zlib.decompressobj(zlib.MAX_WBITS | 16)
    while not decoder.eof:
        piece = decoder.unconsumed_tail or source.some()
        content = decoder.decompress(piece, MIB)
        if content:
            yield content
        elif not piece:
            raise source.cut_off()
    source.give_back(decoder.unused_data)


def _stream(decoder: _Decoder, source: _Input) -> Iterator[bytes]:
    """One stream of a bzip2 or xz file."""
    while not decoder.eof:
        piece = source.some() if decoder.needs_input else b""
        if decoder.needs_input and not piece:
            raise source.cut_off()
        content = decoder.decompress(piece, MIB)
        if content:
            yield content
    source.give_back(decoder.unused_data)


def _zstd(source: _Input) -> Iterator[bytes]:
    """One frame, decoded block by block, so that its end is known and what comes out is bounded.

    python-zstandard's readers take a frame that is cut off for a whole one, and its decompressobj has no
    bound: of 4 bytes each come 128 KiB.
    """
    start = source.exactly(8)
    magic, length = struct.unpack("<II", start)
    if magic in _ZSTD_SKIPPABLE:
        while length:
            length -= len(source.exactly(min(length, _PIECE)))
        return
    if magic != _ZSTD_MAGIC:
        raise source.damaged("no zstd frame begins here")
    source.give_back(start)
    header = source.exactly(_zstd_header_size(start[4]))
    has_checksum = bool(header[4] & 4)
    decoder = zstandard.ZstdDecompressor().decompressobj()
    yield decoder.decompress(header)
    is_last = False
    while not is_last:
        head = source.exactly(3)
        number = int.from_bytes(head, "little")
        is_last, kind, size = bool(number & 1), number >> 1 & 3, number >> 3
        if kind == _ZSTD_RESERVED or size > _ZSTD_LARGEST_BLOCK:
            raise source.damaged(f"a zstd block of type {kind} has {size} bytes")
        body = source.exactly(1 if kind == _ZSTD_RLE else size)
        yield decoder.decompress(head + body)
    if has_checksum:
        yield decoder.decompress(source.exactly(_ZSTD_CHECKSUM))
    if not decoder.eof:
        raise source.damaged("a zstd frame does not end with its last block")


def _zstd_header_size(descriptor: int) -> int:
    """Bytes of a frame's header with its magic, by its fifth byte (RFC 8878, 3.1.1.1.1)."""
    is_single = descriptor >> 5 & 1
    content_size = (1 if is_single else 0, 2, 4, 8)[descriptor >> 6]
    dictionary = (0, 1, 2, 4)[descriptor & 3]
    return 5 + (1 - is_single) + dictionary + content_size


_DECODERS: Final[dict[str, Callable[[_Input], Iterator[bytes]]]] = {
    "gzip": _gzip,
    "bzip2": lambda source: _stream(bz2.BZ2Decompressor(), source),
    "xz": lambda source: _stream(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY), source),
    "zstd": _zstd,
}
