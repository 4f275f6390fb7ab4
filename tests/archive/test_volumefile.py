"""A volume reads like the disk it was stored from, with few reads and bounded memory."""

from __future__ import annotations

import io
import random
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import images
import pytest

import amistore
from amistore import BLOCK_SIZE
from amistore.archive.archive import Archive
from amistore.archive.framecache import FrameCache
from amistore.archive.reader import ContainerFile
from amistore.backends.ranges import RangeReader
from amistore.container.layout import Layout

FORM = Layout(blocks_per_frame=2, blocks_per_segment=8)
BLOCKS = {i: images.block(i + 1) for i in range(40)} | {700: images.block(0), 2047: images.block(99)}
CONTAINER = images.packed([(1, BLOCKS), (1, {})], FORM)


class Counting(RangeReader):
    """Counts what is read; fails where it is told to."""

    def __init__(self, content: bytes) -> None:
        self.name = "counted"
        self.size = len(content)
        self.content = content
        self.reads: list[tuple[int, int]] = []
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> bytes:
        with self._lock:
            self.reads.append((offset, length))
        return self.content[offset : offset + length]


@pytest.fixture
def counting() -> Counting:
    return Counting(CONTAINER)


@pytest.fixture
def archive(counting: Counting) -> Archive:
    return Archive(ContainerFile(counting))


def expected(start: int, length: int) -> bytes:
    end = min(start + length, amistore.GIB)
    pieces = []
    while start < end:
        index, at = divmod(start, BLOCK_SIZE)
        piece = BLOCKS.get(index, bytes(BLOCK_SIZE))[at : at + end - start]
        pieces.append(piece)
        start += len(piece)
    return b"".join(pieces)


def test_opening_reads_once_where_the_index_is_short_and_twice_where_it_is_long(counting: Counting) -> None:
    Archive(ContainerFile(counting))
    assert len(counting.reads) == 1
    long = Counting(
        images.packed(
            [(2, {i: images.block(i % 3) for i in range(3000)})],
            Layout(blocks_per_frame=1, blocks_per_segment=1),
        )
    )
    Archive(ContainerFile(long))
    assert len(long.reads) == 2


def test_a_cold_block_takes_two_reads_and_a_warm_one_none(archive: Archive, counting: Counting) -> None:
    counting.reads.clear()
    with archive.volumes[0].open() as disk:
        for position in (9 * BLOCK_SIZE + 5, 9 * BLOCK_SIZE + 70_000, 8 * BLOCK_SIZE):
            disk.seek(position)
            assert disk.read(4096) == expected(position, 4096)
        assert len(counting.reads) == 2
        # The descriptor's read is as long as the descriptor, the frame's as the frame.
        assert counting.reads[0][0] + counting.reads[0][1] <= counting.reads[1][0]
        disk.seek(12 * BLOCK_SIZE)  # another frame of the same segment
        disk.read(1)
        assert len(counting.reads) == 3
        disk.seek(300 * BLOCK_SIZE)  # a hole between segments
        disk.read(10_000)
        assert len(counting.reads) == 3


def test_reading_in_order_merges_neighbouring_frames_into_one_read(
    archive: Archive, counting: Counting
) -> None:
    counting.reads.clear()
    with archive.volumes[0].open(workers=2) as disk:
        assert disk.read(41 * BLOCK_SIZE) == expected(0, 41 * BLOCK_SIZE)
    frames = 20 + 1  # of the first 40 blocks; the last two are a segment of their own
    descriptors = 6
    assert len(counting.reads) < descriptors + frames / 2


@pytest.mark.parametrize("requests", [0, 8])
@pytest.mark.parametrize("cache_size", [0, 1 << 16, 1 << 20, 64 << 20])
def test_any_pattern_of_reads_gives_the_disks_bytes(archive: Archive, cache_size: int, requests: int) -> None:
    chance = random.Random(cache_size)
    archive._container.cache = FrameCache(cache_size)
    archive._container.requests = requests
    with archive.volumes[0].open(workers=2) as disk:
        position = 0
        for _ in range(150):
            if chance.random() < 0.3:
                position = chance.choice([*BLOCKS, 41, 699, 2046]) * BLOCK_SIZE + chance.randrange(BLOCK_SIZE)
            length = chance.choice([1, 511, 4096, BLOCK_SIZE, 3 * BLOCK_SIZE + 7])
            disk.seek(position)
            assert disk.read(length) == expected(position, length)
            position = disk.tell()


def test_reading_ahead_goes_on_after_frames_that_were_in_the_cache(
    archive: Archive, counting: Counting
) -> None:
    with archive.volumes[0].open(workers=1) as disk:
        disk.read(8 * BLOCK_SIZE)
        disk.seek(0)
        disk.read(8 * BLOCK_SIZE)  # from the cache, in order
        counting.reads.clear()
        assert disk.read(32 * BLOCK_SIZE) == expected(8 * BLOCK_SIZE, 32 * BLOCK_SIZE)
    assert len(counting.reads) < 4 + 16 / 2


@pytest.mark.parametrize("requests", [0, 8])
def test_the_cache_is_bounded(archive: Archive, requests: int) -> None:
    archive._container.requests = requests
    tracemalloc.start()
    try:
        archive._container.cache = FrameCache(2 << 20)
        with archive.volumes[0].open(workers=1) as disk:
            for index in [*range(0, 40, 4), *range(2, 40, 4)]:  # never in order
                disk.seek(index * BLOCK_SIZE)
                disk.read(10)
        assert tracemalloc.get_traced_memory()[1] < 6 << 20
    finally:
        tracemalloc.stop()


def test_the_cache_is_bounded_where_frames_far_away_do_not_compress() -> None:
    blocks = {index: images.noise(index) for index in range(40)}
    archive = Archive(ContainerFile(Counting(images.packed([(1, blocks)], FORM))))
    archive._container.requests = 8
    archive._container.cache = FrameCache(4 << 20)
    tracemalloc.start()
    try:
        with archive.volumes[0].open(workers=1) as disk:
            for index in [*range(0, 40, 4), *range(2, 40, 4)]:  # never in order
                disk.seek(index * BLOCK_SIZE)
                assert disk.read(10) == blocks[index][:10]
        assert tracemalloc.get_traced_memory()[1] < 9 << 20
    finally:
        tracemalloc.stop()


def test_whence_end_of_file_and_what_cannot_be_done(archive: Archive) -> None:
    disk = archive.volumes[0].open()
    assert disk.seek(0, io.SEEK_END) == amistore.GIB
    assert disk.read(10) == b""
    assert disk.seek(-BLOCK_SIZE, io.SEEK_END) == 2047 * BLOCK_SIZE
    assert disk.read(2 * BLOCK_SIZE) == BLOCKS[2047]
    with pytest.raises(ValueError, match="cannot seek"):
        disk.seek(-1)
    with pytest.raises(io.UnsupportedOperation):
        disk.write(b"x")
    disk.close()
    disk.close()
    with pytest.raises(ValueError, match="closed"):
        disk.read(1)
    with pytest.raises(amistore.InvalidRequestError):
        amistore.open(io.BytesIO(), cache_size=-1)
    with pytest.raises(amistore.InvalidRequestError):
        archive.volumes[0].open(workers=0)
    assert archive.volumes[1].open().read(100) == bytes(100)


def test_a_closed_file_leaves_no_thread(archive: Archive) -> None:
    before = threading.active_count()
    with archive.volumes[0].open(workers=3) as disk:
        disk.read(30 * BLOCK_SIZE)
        assert threading.active_count() > before
    assert threading.active_count() == before


def test_one_archive_is_read_from_many_threads(archive: Archive) -> None:
    def read(seed: int) -> bool:
        chance = random.Random(seed)
        with archive.volumes[0].open(workers=1) as disk:
            for _ in range(30):
                position = chance.randrange(41 * BLOCK_SIZE)
                disk.seek(position)
                if disk.read(5000) != expected(position, 5000):
                    return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(16)))


def test_only_the_blocks_that_are_read_are_proved_and_each_of_them_is() -> None:
    """A frame whose second block has another digest in its descriptor."""
    import attrs
    from container.test_forgery import Pieces, descriptor_of

    pieces = Pieces.of(images.packed([(1, {0: images.block(1), 1: images.block(2)})], FORM))
    at = pieces.segments()[0]
    record, descriptor = descriptor_of(pieces.body[at][1])
    forged = attrs.evolve(descriptor, digests=(descriptor.digests[0], bytes(32)))
    pieces.body[at] = (pieces.body[at][0], forged.encode() + pieces.body[at][1][len(record) :])
    archive = amistore.open(io.BytesIO(pieces.build(rebuild_index=True)))
    with archive, archive.volumes[0].open() as disk:
        assert disk.read(BLOCK_SIZE) == images.block(1)
        for _ in range(2):
            disk.seek(BLOCK_SIZE + 10)
            with pytest.raises(amistore.CorruptArchiveError, match="SHA-256") as caught:
                disk.read(10)
            found = (caught.value.block_index, caught.value.snapshot_id)
            assert found == (1, archive.volumes[0].snapshot_id)


def test_a_damaged_frame_does_not_take_its_neighbours_with_it(counting: Counting) -> None:
    archive = Archive(ContainerFile(counting))
    located = archive._container.segment(2)
    damaged = bytearray(CONTAINER)
    damaged[located.frame_offset(2) + 50] ^= 1  # blocks 20 and 21
    counting.content = bytes(damaged)
    with archive.volumes[0].open(workers=2) as disk:
        for index in range(20):
            assert disk.read(BLOCK_SIZE) == BLOCKS[index]
        with pytest.raises(amistore.CorruptArchiveError) as caught:
            disk.read(1)
        assert caught.value.block_index == 20


def test_damage_under_read_ahead_is_raised_where_it_is_reached(counting: Counting) -> None:
    archive = Archive(ContainerFile(counting))
    located = archive._container.segment(2)
    damaged = bytearray(CONTAINER)
    damaged[located.payload + 100] ^= 1
    counting.content = bytes(damaged)
    with archive.volumes[0].open(workers=2) as disk:
        assert disk.read(16 * BLOCK_SIZE) == expected(0, 16 * BLOCK_SIZE)
        with pytest.raises(amistore.CorruptArchiveError) as caught:
            disk.read(1)
        assert (caught.value.segment, caught.value.block_index) == (2, 16)
        disk.seek(18 * BLOCK_SIZE)  # the segment's next frame is whole
        assert disk.read(BLOCK_SIZE) == BLOCKS[18]


def fetched(counting: Counting, archive: Archive) -> tuple[int, int]:
    """Bytes that were read of frames, and of those frames that lie in them, each once."""
    container = archive._container
    frames = [
        (located.frame_offset(number), frame.size)
        for located in map(container.segment, range(len(container.index.offsets)))
        for number, frame in enumerate(located.descriptor.frames)
    ]
    places = {offset for offset, _ in frames}
    reads = [each for each in counting.reads if each[0] in places]
    distinct = {frame for frame in frames for start, length in reads if start <= frame[0] < start + length}
    return sum(length for _, length in reads), sum(size for _, size in distinct)


def test_random_reads_by_several_readers_fetch_each_frame_once(archive: Archive, counting: Counting) -> None:
    chance = random.Random(5)
    places = [chance.choice(sorted(BLOCKS)) * BLOCK_SIZE + 4096 * chance.randrange(100) for _ in range(400)]
    touched = {archive.volumes[0]._reader.locate(place // BLOCK_SIZE) for place in places}

    def read(part: list[int]) -> None:
        with archive.volumes[0].open() as disk:
            for place in part:
                disk.seek(place)
                assert disk.read(4096) == expected(place, 4096)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, (places[start::4] for start in range(4))))
    read_bytes, distinct = fetched(counting, archive)
    assert read_bytes == distinct
    assert len([each for each in counting.reads if each[1] > 0]) <= 1 + 8 + len(touched) + 8


def test_a_boots_trace_fetches_little_that_it_does_not_read() -> None:
    """Short runs in order at many places, as of files that a guest reads."""
    blocks = {i: images.block(i + 1) for i in range(128)}
    counting = Counting(images.packed([(1, blocks)], FORM))
    archive = Archive(ContainerFile(counting))
    chance = random.Random(7)
    touched = set()
    with archive.volumes[0].open(workers=2) as disk:
        for _ in range(120):
            position = chance.randrange(124) * BLOCK_SIZE
            for _ in range(chance.randrange(1, 24)):
                disk.seek(position)
                assert disk.read(65_536)
                touched.add(archive.volumes[0]._reader.locate(position // BLOCK_SIZE))
                position = min(position + 65_536, 127 * BLOCK_SIZE)
    container = archive._container
    wanted = sum(container.segment(place[0]).descriptor.frames[place[1]].size for place in touched)  # type: ignore[index]
    read_bytes, _ = fetched(counting, archive)
    assert read_bytes <= 1.1 * wanted
