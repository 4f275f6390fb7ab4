"""Storing and restoring by orders: two worker processes against one, on one machine.

The blocks come from a file that each worker maps, and parts and puts are counted and dropped there: neither
a server nor the coordinator takes the workers' cores.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import statistics
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import attrs
import zstandard

import amistore
from amistore import BLOCK_SIZE, GIB
from amistore.backends import BlockSource
from benchmarks.blocks import (
    SNAPSHOT_ID,
    DroppingSink,
    DroppingStore,
    PooledSource,
    image_of_one_snapshot,
)
from benchmarks.disk import Frames
from benchmarks.table import Row

__all__ = ["measure_cluster"]

GOAL = 1.8
ORDERS = 4
VOLUME = 2  # GiB: four orders, two for each of two processes
Work = Callable[[Executor, int], object]


@attrs.frozen
class Took:
    """What one round took: its seconds, and CPU seconds of the coordinator and of the workers."""

    seconds: float
    coordinator: float
    workers: float


def measure_cluster(frames: Frames, repeats: int, work: Path) -> Iterator[Row]:
    """Rounds of one process and of two that follow each other, for each kind of executor.

    Args:
        frames: the blocks of a disk.
        repeats: the number of rounds.
        work: the folder of temporary files.
    """
    blocks, archive = work / "cluster-blocks", work / "cluster.bin"
    with blocks.open("wb") as file:
        file.writelines(frames.contents)
    source = PooledSource(blocks, VOLUME)
    amistore.store(image_of_one_snapshot(), source, archive)

    def store(executor: Executor, workers: int) -> None:
        to = DroppingStore().at("bucket", "archive.bin")
        amistore.store(image_of_one_snapshot(), source, to, executor=executor, workers=workers)

    def restore(executor: Executor, workers: int) -> None:
        amistore.unpack(archive, DroppingSink(), executor=executor, workers=workers)

    def plain(executor: Executor, workers: int) -> None:
        count = VOLUME * GIB // BLOCK_SIZE
        pieces = [range(start, start + count // ORDERS) for start in range(0, count, count // ORDERS)]
        for future in [executor.submit(compress, source, piece) for piece in pieces]:
            future.result()

    jobs = {"hashing and compressing alone": plain, "store": store, "restore": restore}
    try:
        with _processes(1) as one, _processes(2) as two:
            _warm_up(source, one, two)
            for name, job in jobs.items():
                yield from _rows(f"{name}, ProcessPoolExecutor", job, one, two, repeats)
        del jobs["hashing and compressing alone"]
        try:
            with _dask(1) as one, _dask(2) as two:
                _warm_up(source, one, two)
                for name, job in jobs.items():
                    yield from _rows(f"{name}, Dask", job, one, two, repeats)
        except ImportError:
            yield Row(name="Dask", value=None, note="distributed is not installed")
    finally:
        blocks.unlink()
        archive.unlink()


def _warm_up(source: BlockSource, *executors: Executor) -> None:
    """Have each process import what it needs, and map the blocks."""
    for executor in executors:
        wait([executor.submit(compress, source, range(64)) for _ in range(4)])


def _rows(name: str, work: Work, one: Executor, two: Executor, repeats: int) -> Iterator[Row]:
    """The ratio of speeds; and what it would be by the CPU alone, on cores that nobody else uses."""
    rounds = [(_took(work, one, 1), _took(work, two, 2)) for _ in range(repeats)]
    ratio = statistics.median(alone.seconds / both.seconds for alone, both in rounds)
    speeds = [
        statistics.median(VOLUME * GIB / each.seconds for each in column)
        for column in zip(*rounds, strict=True)
    ]
    note = f"{speeds[1] / 1e6:,.0f} of {speeds[0] / 1e6:,.0f} MB/s"
    goal = None if name.startswith("hashing") else GOAL
    yield Row(name=f"{name}: two processes against one", value=ratio, goal=goal, at_least=True, note=note)
    if any(took.workers for pair in rounds for took in pair):
        alone, both, share = (
            statistics.median(values)
            for values in zip(
                *((a.workers, b.workers, b.coordinator / b.workers) for a, b in rounds), strict=True
            )
        )
        note = f"workers' CPU {both:.1f} s, of one {alone:.1f} s; the coordinator's is {share:.2%} of it"
        yield Row(name=f"{name}: by the CPU", value=2 * alone / both, goal=goal, at_least=True, note=note)


def _took(work: Work, executor: Executor, workers: int) -> Took:
    start, cpu, others = time.perf_counter(), time.process_time(), _workers_cpu()
    work(executor, workers)
    return Took(time.perf_counter() - start, time.process_time() - cpu, _workers_cpu() - others)


def _workers_cpu() -> float:
    """CPU seconds of this process's children so far; 0 where there is no /proc."""
    ticks = 0
    for child in multiprocessing.active_children():
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])  # utime and stime, see proc(5)
    return ticks / os.sysconf("SC_CLK_TCK")


def _processes(count: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))


@contextlib.contextmanager
def _dask(count: int) -> Iterator[Executor]:
    """Processes of one thread; the scheduler is a thread of this process, which is the coordinator."""
    import distributed

    address: dict[str, Any] = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with (
        distributed.LocalCluster(n_workers=count, threads_per_worker=1, **address) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client.get_executor()


def compress(source: BlockSource, indexes: range) -> None:
    """Runs in a worker: what two processes can do at once where they share nothing."""
    compressor = zstandard.ZstdCompressor(level=3, write_checksum=True, write_content_size=True)
    decompressor = zstandard.ZstdDecompressor()
    for start in range(indexes.start, indexes.stop, 8):
        blocks = [
            source.get_snapshot_block(SNAPSHOT_ID, index, "").content for index in range(start, start + 8)
        ]
        for block in blocks:
            hashlib.sha256(block).digest()
        content = b"".join(blocks)
        frame = compressor.compress(content)
        zlib.crc32(frame)
        if decompressor.decompress(frame) != content:
            raise AssertionError("a frame did not decode to its content")
