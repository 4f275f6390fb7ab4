"""A raw disk from a stream is whole and in order, in bounded memory, or it is an error."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import random
import struct
import threading
from collections.abc import Callable
from typing import BinaryIO

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from amistore import GIB, MIB, BackendError, InvalidRequestError
from amistore.disks.streams import COMPRESSIONS, StreamDisk
from amistore.units import BLOCK_SIZE

NOISE = random.Random(5).randbytes(BLOCK_SIZE + 12345)
DISK = NOISE + bytes(2 * BLOCK_SIZE) + NOISE[:77777]


def zstd(content: bytes, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(content)


def unsized(content: bytes) -> bytes:
    """As `zstd -c` of a pipe: without the content's size, with several blocks."""
    compressor = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    return compressor.compress(content) + compressor.flush()


def skipped(content: bytes) -> bytes:
    return struct.pack("<II", 0x184D2A5A, len(content)) + content


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstd,
}
WHOLE = {
    **{name: (name, compress(DISK)) for name, compress in COMPRESS.items()},
    **{
        f"{name} of three members": (name, b"".join(map(compress, (DISK[:99], b"", DISK[99:]))))
        for name, compress in COMPRESS.items()
    },
    "zstd with a checksum": ("zstd", zstd(DISK, write_checksum=True)),
    "zstd of no size": ("zstd", unsized(DISK)),
    "zstd of a pipe": ("zstd", zstd(DISK, write_content_size=False)),
    "zstd between frames that are skipped": ("zstd", skipped(b"") + zstd(DISK) + skipped(DISK[:200_000])),
}


class Trickle(io.RawIOBase):
    """A stream that gives what it wants, as a pipe does."""

    def __init__(self, content: bytes, sizes: list[int]) -> None:
        self._left = io.BytesIO(content)
        self._sizes = sizes

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        self._sizes.append(self._sizes.pop(0))
        return self._left.read(min(size, self._sizes[-1]))


def content_of(source: BinaryIO, compression: str | None, volume_size: int = 1) -> bytes:
    blocks = list(StreamDisk(source, volume_size, compression).blocks())
    assert [index for index, _ in blocks] == list(range(len(blocks)))
    assert {len(content) for _, content in blocks} <= {BLOCK_SIZE}
    return b"".join(content for _, content in blocks)


def padded(content: bytes) -> bytes:
    return content.ljust(-(-len(content) // BLOCK_SIZE) * BLOCK_SIZE, b"\0")


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("size", [1 << 20, 1000])
def test_a_compressed_disk_is_whole_and_in_order(name: str, size: int) -> None:
    compression, content = WHOLE[name]
    assert content_of(Trickle(content, [size, 3]), compression) == padded(DISK)


@pytest.mark.parametrize("length", [1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, len(DISK)])
def test_a_raw_disk_is_filled_up_with_zeros(length: int) -> None:
    assert content_of(io.BytesIO(DISK[:length]), None) == padded(DISK[:length])


def test_a_pipe_is_read_to_its_end() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as source, open(writing, "wb") as sink:

        def write() -> None:
            with sink:
                sink.write(DISK)

        thread = threading.Thread(target=write)
        thread.start()
        assert content_of(source, None) == padded(DISK)
        thread.join()


@pytest.mark.parametrize("name", WHOLE)
def test_a_disk_that_is_cut_off_is_refused(name: str) -> None:
    """Everywhere in the first and last bytes, and at some places between; but not between two members."""
    compression, content = WHOLE[name]
    ends = {len(content)}
    if "three" in name:
        first = len(COMPRESS[compression](DISK[:99]))
        ends |= {first, first + len(COMPRESS[compression](b""))}
    if "skipped" in name:
        ends |= {8, len(skipped(b"") + zstd(DISK))}
    near = (
        *range(1, 30),
        *range(len(content) - 30, len(content)),
        *range(30, len(content), len(content) // 9),
    )
    for length in sorted(set(near) - ends):
        with pytest.raises(BackendError, match=r"cut off|damaged"):
            content_of(io.BytesIO(content[:length]), compression)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("garbage", [b"\0", b"x", b"something else that follows", NOISE[:9999]])
def test_what_follows_the_disk_is_refused(name: str, garbage: bytes) -> None:
    compression, content = WHOLE[name]
    with pytest.raises(BackendError, match=r"cut off|damaged"):
        content_of(io.BytesIO(content + garbage), compression)


@pytest.mark.parametrize("compression", COMPRESS)
def test_another_compression_is_refused(compression: str) -> None:
    for other, compress in COMPRESS.items():
        if other != compression:
            with pytest.raises(BackendError, match="damaged"):
                content_of(io.BytesIO(compress(DISK)), compression)


@pytest.mark.parametrize("compression", [None, *COMPRESS])
def test_a_disk_longer_than_its_volume_is_refused_before_the_block_behind_it(compression: str | None) -> None:
    class Zeros(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            return bytes(size)

    disk = StreamDisk(Zeros(), 1)
    if compression is not None:
        part = COMPRESS[compression](bytes(16 * MIB))
        disk = StreamDisk(io.BytesIO(part * 64 + COMPRESS[compression](b"x")), 1, compression)
    last = -1
    with pytest.raises(InvalidRequestError, match="longer than the volume of 1 GiB"):
        for index, _ in disk.blocks():
            last = index
    assert last == GIB // BLOCK_SIZE - 1


@pytest.mark.parametrize("compression", COMPRESS)
def test_a_stream_that_bursts_gives_a_mib_at_most_at_once(compression: str) -> None:
    disk = StreamDisk(io.BytesIO(COMPRESS[compression](bytes(32 * MIB))), 1, compression)
    pieces = [len(piece) for piece in disk._pieces()]
    assert sum(pieces) == 32 * MIB
    assert max(pieces) <= MIB


@pytest.mark.parametrize("compression", [None, *COMPRESS])
def test_an_empty_disk_is_refused(compression: str | None) -> None:
    with pytest.raises(InvalidRequestError, match="is empty"):
        content_of(io.BytesIO(b""), compression)
    if compression is not None:
        with pytest.raises(InvalidRequestError, match="is empty"):
            content_of(io.BytesIO(COMPRESS[compression](b"")), compression)


def test_a_stream_is_read_once() -> None:
    disk = StreamDisk(io.BytesIO(DISK), 1)
    list(disk.blocks())
    with pytest.raises(InvalidRequestError, match="only once"):
        list(disk.blocks())


def test_a_stream_that_fails_is_a_typed_error() -> None:
    class Broken(io.RawIOBase):
        def __init__(self, answer: Exception | None) -> None:
            self._answer = answer

        def read(self, size: int = -1) -> None:
            if self._answer is not None:
                raise self._answer

    with pytest.raises(BackendError, match="OSError: gone"):
        content_of(Broken(OSError("gone")), "gzip")
    with pytest.raises(BackendError, match="nothing to read now"):
        content_of(Broken(None), None)


def test_unknown_compressions_and_volumes_of_nothing_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="none of gzip, bzip2, xz, zstd"):
        StreamDisk(io.BytesIO(), 1, "lz4")
    with pytest.raises(InvalidRequestError, match="1 GiB at least"):
        StreamDisk(io.BytesIO(), 0)
    assert sorted(COMPRESSIONS.values()) == sorted(COMPRESS)


SMALL = {name: compress(NOISE[:5000] + bytes(5000)) for name, compress in COMPRESS.items()}


@given(st.sampled_from(sorted(SMALL)), st.data())
def test_flipped_bytes_give_the_disk_or_a_typed_error(compression: str, data: st.DataObject) -> None:
    content = bytearray(SMALL[compression])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(BackendError, InvalidRequestError):
        content_of(io.BytesIO(bytes(content)), compression)


@given(st.sampled_from(sorted(SMALL)), st.binary(max_size=200))
def test_any_bytes_give_a_typed_error_or_a_disk(compression: str, content: bytes) -> None:
    beginning = {"gzip": 10, "bzip2": 10, "xz": 12, "zstd": 6}[compression]
    for stream in (content, SMALL[compression][:beginning] + content):
        with contextlib.suppress(BackendError, InvalidRequestError):
            content_of(io.BytesIO(stream), compression)
