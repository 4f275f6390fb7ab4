"""`restore_stream`: a container's bytes, from any binary stream, become snapshots.

The caller's thread reads and checks the stream in order; each worker decodes and hashes one segment, whose
blocks `puts.py` puts. No snapshot is completed before the tail has verified, and any error deletes the
started snapshots.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import Executor
from typing import BinaryIO, cast

from typing_extensions import Buffer

from amistore import forks
from amistore.backends import BlockSink
from amistore.container.decoder import ContainerEnd, ContainerStart, Event, VolumeStart, container_events
from amistore.container.identity import check_content_id
from amistore.container.segments import StoredSegment
from amistore.errors import InvalidRequestError, advising, foreign_errors, machine_limits
from amistore.model import Image
from amistore.pipeline.orders import Cluster
from amistore.pipeline.progress import Phase, Progress, ProgressCallback, untold
from amistore.pipeline.puts import BlockPuts, PutBatch
from amistore.pipeline.snapshots import RestoredSnapshots, RestorePolicy, SegmentPut
from amistore.pipeline.workers import check_picklable, closing, worker_count, worker_pool
from amistore.units import MIB

__all__ = [
    "PieceReader",
    "restore_stream",
]


def restore_stream(
    stream: BinaryIO,
    sink: BlockSink,
    policy: RestorePolicy,
    *,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: ProgressCallback = untold,
) -> Image:
    """Restore the snapshots of a container from a stream; arguments and errors as in `unpack`."""
    check_picklable(executor, sink, "sink")
    with machine_limits(), advising():
        restore = _Restore(sink, read_events(stream), policy)
    with forks.undoing(lambda _: restore.snapshots.undo()):
        with advising():
            end = restore.run(workers, executor, progress)
        image = restore.snapshots.image()
        restore.snapshots.complete(end.index.volumes)
    return image


def read_events(stream: BinaryIO) -> Iterator[Event]:
    """Drive the container's reader with a stream."""
    events = container_events()
    step = next(events)
    while True:
        if isinstance(step, int):
            step = events.send(_read(stream, step))
        else:
            yield step
            # Nothing of an event is kept here while the next one is read.
            step = 0
            try:
                step = next(events)
            except StopIteration:
                return


def _read(stream: BinaryIO, size: int) -> bytes:
    """Read `size` bytes, fewer only at the end; memory grows as bytes arrive, not by the claimed size."""
    pieces = []
    while size:
        limit = min(size, 8 * MIB)
        with foreign_errors("read"):
            piece = stream.read(limit)
        if not isinstance(piece, bytes) or len(piece) > limit:
            raise InvalidRequestError(
                f"reading from {type(stream).__name__} gave {type(piece).__name__}, not up to {limit} bytes: "
                "unpack takes a binary file or stream in blocking mode"
            )
        if not piece:
            break
        pieces.append(piece)
        size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class _Restore:
    """One restore from a stream: it turns the container's events into snapshots."""

    def __init__(self, sink: BlockSink, events: Iterator[Event], policy: RestorePolicy) -> None:
        self._sink = sink
        self._events = events
        start = cast(ContainerStart, next(events))  # the reader's first event
        self._total = start.head.blocks
        self._per_piece = start.head.layout.blocks_per_segment
        self.snapshots = RestoredSnapshots(start.image, sink, policy)
        self._stored_bytes = 0
        self._expected = policy.expected
        self._end: ContainerEnd | None = None

    def run(self, workers: int | None, executor: Executor | None, progress: ProgressCallback) -> ContainerEnd:
        """Put every block, and fill holes once the whole container has verified."""

        def report(phase: Phase, done: int, total: int) -> None:
            stored = self._stored_bytes
            progress(Progress(phase=phase, blocks=done, total_blocks=total, stored_bytes=stored))

        with worker_pool(workers, executor) as pool:
            done = 0
            puts = BlockPuts(self._sink, executor)
            with (
                closing(
                    pool.map(SegmentPut(self._sink), self._items(puts), _weigh, stop=puts.stop)
                ) as segments,
                puts,
            ):
                for blocks in segments:
                    puts.landed()
                    done += blocks
                    report(Phase.UNPACK, done, self._total)
        cluster = None if executor is None else Cluster(executor, worker_count(workers))
        with closing(self.snapshots.filling(workers, cluster, self._per_piece)) as pieces:
            for _, done in pieces:
                report(Phase.FILL, done, self.snapshots.hole_blocks)
        return cast(ContainerEnd, self._end)  # the reader ends with it, or raises

    def _items(self, puts: BlockPuts) -> Iterator[tuple[StoredSegment, str | None, PutBatch | None]]:
        """Read on, starting snapshots as their volumes come."""
        for event in self._events:
            if isinstance(event, VolumeStart):
                self.snapshots.begin(event.volume)
                self.snapshots.warn_of_holes(event.volume)
            elif isinstance(event, StoredSegment):
                located = event.located
                self._stored_bytes = located.offset
                descriptor = located.descriptor
                self.snapshots.add(located.snapshot_id, descriptor.runs, descriptor.digests)
                yield event, self.snapshots.get(located.snapshot_id), puts.batch()
            elif isinstance(event, ContainerEnd):
                check_content_id(event.index.content_id, self._expected)
                self._end = event
            del event  # up to 32 MiB, while the next one is read


def _weigh(item: tuple[StoredSegment, str | None, PutBatch | None]) -> int:
    return sum(frame.size for frame in item[0].located.descriptor.frames)


class PieceReader(io.RawIOBase):
    """An iterator's pieces as a file; the iterator's owner closes it."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = memoryview(piece)
        view = memoryview(buffer).cast("B")
        count = min(len(view), len(self._left))
        view[:count] = self._left[:count]
        self._left = self._left[count:]
        return count
