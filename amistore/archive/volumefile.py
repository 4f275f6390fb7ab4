"""`VolumeFile`: a volume as a file, with a cache of decoded frames and read-ahead.

For sequential reads, threads fetch and decode groups of frames ahead of the caller. For any other read one
frame is fetched, and only the needed blocks are hashed. Memory is bounded: the cache, and two groups of 8 MiB
for each thread and one more.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from amistore import forks
from amistore.archive.volumereader import Hole, VolumeReader
from amistore.backends.ranges import RangeFile
from amistore.container import DecodedFrame
from amistore.errors import AmistoreError, InvalidRequestError, LostBlocksError, machine_limits
from amistore.pipeline.workers import worker_count
from amistore.units import BLOCK_SIZE, MIB

__all__ = ["VolumeFile"]

_GROUP_SIZE = 8 * MIB
"""Decoded bytes that are read ahead at once, in one read."""

_Place = tuple[int, int]  # sequence number of a segment, number of a frame in it


class VolumeFile(RangeFile):
    """A volume as a read-only file. One thread at a time."""

    def __init__(self, volume: VolumeReader, *, cache_size: int, workers: int | None) -> None:
        if type(cache_size) is not int or cache_size < 0:
            raise InvalidRequestError(f"cache_size must be a whole number from 0 on, not {cache_size!r}")
        self._volume = volume
        self._cache_size = cache_size
        self._workers = worker_count(workers)
        self._start()
        forks.register(self, VolumeFile._start)
        self._lost_starts = [lost.first_block for lost in volume.lost_blocks]
        super().__init__(volume.indexed.size)

    def _start(self) -> None:
        """Begin with an empty cache; in a forked child again, where no thread answers earlier requests."""
        self._cache = _FrameCache(self._cache_size)
        self._ahead = _ReadAhead(self._volume, self._workers)
        self._place: _Place | None = None

    def close(self) -> None:
        """End the threads that read ahead."""
        if not self.closed and hasattr(self, "_ahead"):  # not if it was refused at birth
            self._ahead.stop()
            self._cache.clear()
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
        frame = self._frame(place)
        at = frame.indexes.index(index)
        length = min(len(view), BLOCK_SIZE - start)
        view[:length] = frame.block(at).content[start : start + length]
        return length

    def _hole_end(self, index: int, end: int) -> int:
        """The end of the hole, or the beginning of lost blocks before it."""
        at = bisect_right(self._lost_starts, index) - 1
        if at >= 0 and index < self._volume.lost_blocks[at].end:
            raise LostBlocksError(
                "the block was lost before this archive was recovered: what it held is not known",
                snapshot_id=self._volume.indexed.snapshot_id,
                block_index=index,
            )
        following = self._lost_starts[at + 1 : at + 2]
        return min([end, *following])

    def _frame(self, place: _Place) -> DecodedFrame:
        frame = self._cache.get(place) or self._ahead.take(place)
        if frame is None:
            frame = self._volume.read_frames(*place, 1)[0]
        self._cache.put(place, frame)
        if place != self._place:
            if self._place is not None and place == self._following(self._place):
                self._ahead.start(self._following(place))
            else:
                self._ahead.drop()
            self._place = place
        return frame

    def _following(self, place: _Place) -> _Place:
        sequence, number = place
        if number + 1 < self._volume.frames_of(sequence):
            return sequence, number + 1
        return sequence + 1, 0


class _FrameCache:
    """Decoded frames; the least recently used are dropped first, and at least one is kept."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._used = 0
        self._frames: OrderedDict[_Place, DecodedFrame] = OrderedDict()

    def get(self, place: _Place) -> DecodedFrame | None:
        frame = self._frames.get(place)
        if frame is not None:
            self._frames.move_to_end(place)
        return frame

    def put(self, place: _Place, frame: DecodedFrame) -> None:
        if place in self._frames:
            return
        self._frames[place] = frame
        self._used += len(frame.indexes) * BLOCK_SIZE
        while self._used > self._size and len(self._frames) > 1:
            _, dropped = self._frames.popitem(last=False)
            self._used -= len(dropped.indexes) * BLOCK_SIZE

    def clear(self) -> None:
        self._frames.clear()
        self._used = 0


class _ReadAhead:
    """Groups of frames that threads fetch, in the order of their use."""

    def __init__(self, volume: VolumeReader, workers: int) -> None:
        self._volume = volume
        self._workers = workers
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[tuple[_Place, Future[list[DecodedFrame]]]] = deque()
        self._arrived: dict[_Place, DecodedFrame] = {}
        self._next: Iterator[tuple[_Place, int]] | None = None

    def start(self, place: _Place) -> None:
        """Read ahead from a frame on, unless that is under way."""
        if self._next is None:
            self._next = self._groups(place)
        while len(self._pending) <= 2 * self._workers:
            group = next(self._next, None)
            if group is None:
                return
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="amistore-read")
            self._pending.append((group[0], self._pool.submit(self._fetch, *group)))

    def take(self, place: _Place) -> DecodedFrame | None:
        """Wait for a frame that is read ahead; None for a frame outside the next group."""
        while len(self._pending) > 1 and self._pending[1][0] <= place:
            self._pending.popleft()  # what it held was in the cache
        if self._pending and self._pending[0][0] == place:
            (sequence, first), future = self._pending.popleft()
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

    def _groups(self, place: _Place) -> Iterator[tuple[_Place, int]]:
        sequence, first = place
        while sequence < self._volume.segments.stop:
            frames = self._volume.frames_of(sequence)
            step = max(1, _GROUP_SIZE // self._volume.frame_size)
            while first < frames:
                count = min(step, frames - first)
                yield (sequence, first), count
                first += count
            sequence, first = sequence + 1, 0

    def _fetch(self, place: _Place, count: int) -> list[DecodedFrame]:
        frames = self._volume.read_frames(*place, count)
        for frame in frames:
            for _ in frame.blocks():  # hashed here, beside the caller
                pass
        return frames
