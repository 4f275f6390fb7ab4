"""`VolumeFile`: a volume as a file, with read-ahead.

For reads in order, threads fetch and decode groups of frames ahead of the caller. For any other read one
frame is fetched, and only the needed blocks are hashed. Memory is bounded: the cache of the archive, and a
group of 8 MiB for each thread and one more.
"""

from __future__ import annotations

import contextlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from amistore import forks
from amistore.archive.volumereader import Hole, VolumeReader
from amistore.backends.ranges import RangeFile
from amistore.container.segments import DecodedFrame
from amistore.errors import AmistoreError, LostBlocksError, machine_limits
from amistore.pipeline.workers import worker_count
from amistore.units import BLOCK_SIZE, MIB

__all__ = ["VolumeFile"]

_GROUP_SIZE = 8 * MIB
"""Decoded bytes that are read ahead at once, in one read."""

_Place = tuple[int, int]  # sequence number of a segment, number of a frame in it


class VolumeFile(RangeFile):
    """A volume as a read-only file. One thread at a time.

    Args:
        volume: the volume, whose container's cache is used.
        workers: the number of threads that decode ahead; None for the number of CPUs.
        in_order: whether all of it is read from the beginning on.
    """

    def __init__(self, volume: VolumeReader, *, workers: int | None, in_order: bool = False) -> None:
        self._volume = volume
        self._workers = worker_count(workers)
        self._in_order = in_order
        self._start()
        forks.register(self, VolumeFile._start)
        super().__init__(volume.indexed.size)

    def _start(self) -> None:
        """Begin anew; in a forked child again, where no thread answers earlier requests."""
        threads = max(self._workers, self._volume.container.requests)
        self._ahead = _ReadAhead(self._volume, threads, keep=not self._in_order)
        self._place: _Place | None = None
        self._frame: DecodedFrame | None = None
        self._run = 0  # bytes of frames that were read in order

    def close(self) -> None:
        """End the threads that read ahead."""
        if not self.closed and hasattr(self, "_ahead"):  # not if it was refused at birth
            self._ahead.stop()
            self._frame = None
        super().close()

    @machine_limits()
    def _fill(self, position: int, view: memoryview) -> int:
        """Read up to the end of the block or hole at the position."""
        index, start = divmod(position, BLOCK_SIZE)
        place = self._volume.locate(index)
        if isinstance(place, Hole):
            length = min(len(view), self._hole_end(index, place.end) * BLOCK_SIZE - position)
            view[:length] = bytes(length)
            return length
        frame = self._frame_at(place, len(view))
        at = frame.indexes.index(index)
        length = min(len(view), BLOCK_SIZE - start)
        view[:length] = frame.block(at).content[start : start + length]
        return length

    def _hole_end(self, index: int, end: int) -> int:
        """The end of the hole, or the beginning of lost blocks before it."""
        lost = self._volume.lost_from(index)
        if lost is not None and lost.first_block <= index:
            raise LostBlocksError(
                "the block was lost before this archive was recovered: what it held is not known",
                snapshot_id=self._volume.indexed.snapshot_id,
                block_index=index,
            )
        return end if lost is None else min(end, lost.first_block)

    def _frame_at(self, place: _Place, wanted: int) -> DecodedFrame:
        """A frame; `wanted` bytes from it on are to be read now."""
        if self._frame is not None and place == self._place:
            return self._frame
        following = self._place is not None and place == self._following(self._place)
        self._run = self._run + self._volume.frame_size if following else 0
        if not following:
            self._ahead.drop()  # the caller now reads elsewhere
        if self._in_order:
            frame = self._fetch(place, 2**63)
        else:
            cache = self._volume.container.cache
            frame = cache.get(place, lambda: self._fetch(place, wanted - self._volume.frame_size))
        self._place, self._frame = place, frame
        return frame

    def _fetch(self, place: _Place, sure: int) -> DecodedFrame:
        """Fetch a frame, and begin to fetch what follows: what is `sure` to be read, and what may be."""
        size = self._volume.frame_size
        # A guess is worth a fraction of what proved it: random reads fetch nothing that they do not touch.
        count = max(-(-sure // size), (max(0, sure) + self._run // 4) // size)
        self._ahead.start(self._following(place), count)
        arrived = self._ahead.take(place)
        return arrived or self._volume.read_frames(*place, 1, keep=not self._in_order)[0]

    def _following(self, place: _Place) -> _Place:
        sequence, number = place
        if number + 1 < self._volume.frames_of(sequence):
            return sequence, number + 1
        return sequence + 1, 0


class _ReadAhead:
    """Groups of frames that threads fetch, in the order of their use."""

    def __init__(self, volume: VolumeReader, threads: int, *, keep: bool) -> None:
        self._volume = volume
        self._threads = threads
        self._keep = keep
        self._pool: ThreadPoolExecutor | None = None
        # The first frame of each group, how many frames it has, and what fetches it.
        self._pending: deque[tuple[_Place, int, Future[list[DecodedFrame]]]] = deque()
        self._arrived: dict[_Place, DecodedFrame] = {}
        self._next: _Place | None = None

    def start(self, place: _Place, wanted: int) -> None:
        """Read so many frames ahead, from a frame on; where that is under way, go on with it."""
        wanted -= sum(count for _, count, _ in self._pending)
        sequence, first = max(self._next or place, place)
        while wanted > 0 and sequence < self._volume.segments.stop and len(self._pending) <= self._threads:
            frames = self._volume.frames_of(sequence)
            count = min(max(1, _GROUP_SIZE // self._volume.frame_size), frames - first, wanted)
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="amistore-read")
            fetching = self._pool.submit(self._fetch, (sequence, first), count)
            self._pending.append(((sequence, first), count, fetching))
            wanted -= count
            first += count
            sequence, first = (sequence, first) if first < frames else (sequence + 1, 0)
            self._next = sequence, first

    def take(self, place: _Place) -> DecodedFrame | None:
        """Wait for a frame that is read ahead; None for a frame outside the next group."""
        while len(self._pending) > 1 and self._pending[1][0] <= place:
            self._pending.popleft()  # what it held was in the cache
        if self._pending and self._pending[0][0] <= place:
            (sequence, first), _, future = self._pending.popleft()
            # Where a group fails, each of its frames is read by itself when it is wanted.
            with contextlib.suppress(AmistoreError):
                frames = enumerate(future.result(), first)
                self._arrived = {(sequence, number): frame for number, frame in frames}
            del future  # its error's traceback holds this frame
        return self._arrived.pop(place, None)

    def drop(self) -> None:
        """Drop what was read ahead: the caller now reads elsewhere."""
        for *_, future in self._pending:
            future.cancel()
        self._pending.clear()
        self._arrived.clear()
        self._next = None

    def stop(self) -> None:
        """End the threads."""
        self.drop()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _fetch(self, place: _Place, count: int) -> list[DecodedFrame]:
        frames = self._volume.read_frames(*place, count, keep=self._keep)
        for frame in frames:
            for _ in frame.blocks():  # hashed here, beside the caller
                pass
        return frames
