"""Reading an opened archive: in order beside `unpack`, at random, verifying it, both ways."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import amistore
from amistore import BLOCK_SIZE, MIB
from benchmarks.blocks import DroppingSink, MemorySource, image_of_one_snapshot
from benchmarks.disk import Frames
from benchmarks.table import Row, interleave

__all__ = ["measure_reading"]

WORKERS = 2
SEQUENTIAL_GOAL, RANDOM_GOAL = 0.80, 25.0
RANDOM_READS = 300


def measure_reading(frames: Frames, repeats: int, work: Path) -> Iterable[Row]:
    """Sequential reading against `unpack` of the same file, random reads of 4 KiB, and `verify`."""
    source = MemorySource(frames.volume_size, frames.indexes, frames.contents)
    with tempfile.NamedTemporaryFile(dir=work) as file:  # it stays in the page cache
        for piece in amistore.pack(image_of_one_snapshot(), source, workers=WORKERS):
            file.write(piece)
        file.flush()
        path = Path(file.name)
        yield from _sequential(path, frames, repeats)
        yield from _random(path, frames.indexes)
        yield from _in_a_store(path, repeats)


def _sequential(path: Path, frames: Frames, repeats: int) -> Iterable[Row]:
    def unpack() -> None:
        with path.open("rb", buffering=0) as stream:
            amistore.unpack(stream, DroppingSink(), workers=WORKERS)

    def read() -> None:
        buffer = bytearray(MIB)
        with amistore.open(path) as archive, archive.volumes[0].open(workers=WORKERS) as disk:
            while disk.readinto(buffer):
                pass

    def verify(quick: bool) -> None:
        with amistore.open(path) as archive:
            archive.verify(quick=quick, workers=WORKERS).check()

    unpacked, sequential, full, quick = interleave(
        [unpack, read, lambda: verify(False), lambda: verify(True)], repeats
    )
    speed = frames.size / 1e6
    for name, seconds, goal in (
        ("read in order", sequential, SEQUENTIAL_GOAL),
        ("verify", full, None),
        ("verify quickly", quick, None),
    ):
        yield Row(
            name=f"{name}: speed as a part of unpack's",
            value=unpacked / seconds,
            goal=goal,
            at_least=True,
            note=f"{speed / seconds:,.0f} of {speed / unpacked:,.0f} MB/s",
        )


def _in_a_store(path: Path, repeats: int) -> Iterable[Row]:
    """What it costs to check each range as it comes, so that a damaged one is asked for again."""
    memory = amistore.MemoryBackend()
    memory.s3.create_bucket("bucket")
    with path.open("rb") as file:
        memory.s3.put_object("bucket", "key", iter(lambda: file.read(16 * MIB), b""))
    checking = amistore.RetryingBackend(memory).s3

    def verify(store: amistore.backends.ObjectStore, quick: bool) -> None:
        with amistore.open(store.at("bucket", "key")) as archive:
            archive.verify(quick=quick, workers=WORKERS).check()

    plain, checked, plain_quick, checked_quick = interleave(
        [
            lambda: verify(memory.s3, False),
            lambda: verify(checking, False),
            lambda: verify(memory.s3, True),
            lambda: verify(checking, True),
        ],
        repeats,
    )
    for name, without, with_check in (
        ("verify", plain, checked),
        ("verify quickly", plain_quick, checked_quick),
    ):
        yield Row(
            name=f"{name} in a store: time with each range checked, of that without",
            value=with_check / without,
            note=f"{with_check:.2f} and {without:.2f} s",
        )


def _random(path: Path, listed: list[int]) -> Iterable[Row]:
    """Each read is of a block whose frame was not read before."""
    times = []
    chosen = random.Random(1).sample(listed, min(RANDOM_READS, len(listed)))
    with amistore.open(path) as archive, archive.volumes[0].open() as disk:
        for index in chosen:
            start = time.perf_counter()
            disk.seek(index * BLOCK_SIZE + 4096)
            disk.read(4096)
            times.append(time.perf_counter() - start)
    yield Row(
        name="read 4 KiB at random, median",
        value=statistics.median(times) * 1000,
        unit="ms",
        goal=RANDOM_GOAL,
        note=f"{len(times)} reads, the slowest {max(times) * 1000:.1f} ms",
    )
