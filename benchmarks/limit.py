"""The limit: the same hashing and compression over the same frames, with plain threads and nothing else.

No listing, no records, no order, no errors: what is faster than this does less work.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import zstandard
from typing_extensions import Buffer

import amistore
from amistore import BLOCK_SIZE
from amistore.archive.reader import ContainerFile
from amistore.backends.ranges import StreamRanges
from benchmarks.blocks import DroppingSink, MemorySource, image_of_one_snapshot
from benchmarks.disk import Frames
from benchmarks.table import Row, interleave

__all__ = ["compare_with_limit"]

WORKERS = 2
PACK_GOAL, UNPACK_GOAL = 0.90, 0.85
T = TypeVar("T")


def compare_with_limit(frames: Frames, repeats: int, work: Path) -> Iterable[Row]:
    """Pack without and with `check_frames`, and unpack, each against its limit."""
    image = image_of_one_snapshot()
    source = MemorySource(frames.volume_size, frames.indexes, frames.contents)
    for check in (False, True):

        def pack(check: bool = check) -> None:
            for _ in amistore.pack(
                image, source, workers=WORKERS, options=amistore.PackOptions(check_frames=check)
            ):
                pass

        def pack_limit(check: bool = check) -> None:
            compress_all(frames.contents, check=check)

        name = "pack, frames checked" if check else "pack, frames not checked"
        yield _row(name, frames.size, interleave([pack, pack_limit], repeats), PACK_GOAL)

    container = b"".join(
        amistore.pack(image, source, workers=WORKERS, options=amistore.PackOptions(check_frames=False))
    )
    stored = list(_stored_frames(container))

    with tempfile.TemporaryFile(buffering=0, dir=work) as file:  # it stays in the page cache
        file.write(container)

        def unpack() -> None:
            file.seek(0)
            amistore.unpack(file, DroppingSink(), workers=WORKERS)

        seconds = interleave([unpack, lambda: decompress_all(stored)], repeats)
    yield _row("unpack", frames.size, seconds, UNPACK_GOAL)


def _row(name: str, size: int, seconds: list[float], goal: float) -> Row:
    ours, limit = seconds
    return Row(
        name=f"{name}: speed as a part of the limit's",
        value=limit / ours,
        goal=goal,
        at_least=True,
        note=f"{size / ours / 1e6:,.0f} of {size / limit / 1e6:,.0f} MB/s",
    )


def compress_all(contents: Sequence[bytes], *, check: bool) -> None:
    """SHA-256 of each block, a compressed frame and its CRC-32; with `check` decoded and compared."""

    def worker(items: Iterable[bytes]) -> None:
        compressor = zstandard.ZstdCompressor(level=3, write_checksum=True, write_content_size=True)
        decompressor = zstandard.ZstdDecompressor()
        for content in items:
            for block in _blocks(content):
                hashlib.sha256(block).digest()
            frame = compressor.compress(content)
            zlib.crc32(frame)
            if check and decompressor.decompress(frame) != content:
                raise AssertionError("a frame did not decode to its content")

    _in_threads(worker, contents)


def decompress_all(stored: Sequence[tuple[memoryview, int, tuple[bytes, ...]]]) -> None:
    """CRC-32 of each frame, its content, and the SHA-256 of each block."""

    def worker(items: Iterable[tuple[memoryview, int, tuple[bytes, ...]]]) -> None:
        decompressor = zstandard.ZstdDecompressor()
        for frame, crc32, digests in items:
            if zlib.crc32(frame) != crc32:
                raise AssertionError("CRC-32")
            for block, digest in zip(_blocks(decompressor.decompress(frame)), digests, strict=True):
                if hashlib.sha256(block).digest() != digest:
                    raise AssertionError("SHA-256")

    _in_threads(worker, stored)


def _stored_frames(container: bytes) -> Iterable[tuple[memoryview, int, tuple[bytes, ...]]]:
    """Each frame of a container, its CRC-32 and its blocks' digests."""
    view = memoryview(container)
    file = ContainerFile(StreamRanges(io.BytesIO(container)))
    for sequence in range(len(file.index.offsets)):
        segment = file.segment(sequence)
        at, block = segment.payload, 0
        for frame, content in zip(segment.descriptor.frames, segment.frame_contents, strict=True):
            count = content // BLOCK_SIZE
            yield view[at : at + frame.size], frame.crc32, segment.descriptor.digests[block : block + count]
            at += frame.size
            block += count


def _blocks(content: Buffer) -> Iterable[memoryview]:
    view = memoryview(content)
    return (view[at : at + BLOCK_SIZE] for at in range(0, len(view), BLOCK_SIZE))


def _in_threads(worker: Callable[[Iterable[T]], None], items: Sequence[T]) -> None:
    """Run the worker in each thread; they take the items from one iterator (`next` is atomic)."""
    shared = iter(items)
    threads = [threading.Thread(target=worker, args=(shared,)) for _ in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
