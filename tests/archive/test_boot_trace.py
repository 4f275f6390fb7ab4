"""A guest's recorded boot from an archive far away fetches what it touches, once."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import images

import amistore
from amistore import BLOCK_SIZE
from amistore.archive.archive import Archive
from amistore.archive.framecache import FrameCache
from amistore.archive.reader import ContainerFile
from amistore.backends.ranges import RangeReader


class Blocks(Mapping[int, bytes]):
    """Blocks of these numbers that compress to a 32nd, made as they are asked for."""

    def __init__(self, runs: list[tuple[int, int]]) -> None:
        self.indexes = [index for first, count in runs for index in range(first, first + count)]

    def __getitem__(self, index: int) -> bytes:
        return random.Random(index).randbytes(BLOCK_SIZE // 32).ljust(BLOCK_SIZE, b"x")

    def __iter__(self) -> Iterator[int]:
        return iter(self.indexes)

    def __len__(self) -> int:
        return len(self.indexes)


class Far(RangeReader):
    """An archive far away, and the bytes that were fetched of it."""

    requests = 8

    def __init__(self, content: bytes) -> None:
        self.name = "far"
        self.size = len(content)
        self.content = content
        self.fetched = 0

    def read(self, offset: int, length: int) -> bytes:
        self.fetched += length
        return self.content[offset : offset + length]


def recorded() -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The disk's listed blocks, and what was read of it in sectors; each a first one and a count."""
    text = Path(__file__).parent.parent / "data" / "boot.txt"
    lines = [line for line in text.read_text().splitlines() if not line.startswith("#")]
    pairs = [[(int(first), int(count)) for first, count in _split(line)] for line in lines]
    return pairs[0], [pair for line in pairs[1:] for pair in line]


def _split(line: str) -> list[list[str]]:
    return [pair.split(",") for pair in line.split()]


def test_what_is_fetched_for_a_boot_is_little_more_than_the_frames_that_it_touches() -> None:
    runs, reads = recorded()
    blocks = Blocks(runs)
    far = Far(images.packed([(2, blocks)], form=None))
    archive = Archive(ContainerFile(far))
    opened = far.fetched
    touched = set()
    with archive.volumes[0].open(workers=2) as disk:
        for sector, count in reads:
            position = disk.seek(sector * 512)
            content = disk.read(count * 512)
            for index in range(position // BLOCK_SIZE, -(-(position + len(content)) // BLOCK_SIZE)):
                place = archive.volumes[0]._reader.locate(index)
                if isinstance(place, tuple):
                    touched.add(place)
    container = archive._container
    wanted = sum(container.segment(segment).descriptor.frames[frame].size for segment, frame in touched)
    assert len(touched) > 40
    descriptors = sum(container._descriptor_limit(segment) for segment in {place[0] for place in touched})
    assert far.fetched - opened - descriptors <= 1.1 * wanted


def test_a_frame_that_is_decoded_again_is_the_same_where_all_are_dropped_soon() -> None:
    runs, reads = recorded()
    blocks = Blocks(runs)
    archive = Archive(
        ContainerFile(Far(images.packed([(2, blocks)], form=None)), FrameCache(9 * amistore.MIB))
    )
    with archive.volumes[0].open(workers=2) as disk:
        for sector, count in reads[:300]:
            index, start = divmod(disk.seek(sector * 512), BLOCK_SIZE)
            length = min(count * 512, BLOCK_SIZE - start)
            expected = blocks[index][start : start + length] if index in blocks.indexes else bytes(length)
            assert disk.read(length) == expected
