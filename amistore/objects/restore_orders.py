"""Restoring segments: the worker's job for one, and the orders of several."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs

from amistore.archive.orders import ArchiveOrder
from amistore.archive.reader import ContainerFile
from amistore.archive.verification import Checked, check_mapped
from amistore.backends import BlockSink
from amistore.container.plan import PlannedVolume
from amistore.container.segments import StoredSegment
from amistore.pipeline.orders import limited
from amistore.pipeline.puts import BlockPuts, PutBatch
from amistore.pipeline.requests import Reads
from amistore.pipeline.shared import Shared
from amistore.pipeline.snapshots import SegmentPut
from amistore.pipeline.workers import closing, worker_pool

__all__ = ["RestoreOrder", "SegmentRestore", "SegmentTask"]


@attrs.frozen
class SegmentTask:
    """A segment to work on.

    Attributes:
        volume: the segment's volume; None where somebody else compares it with the map.
        sequence: the segment's number.
        target: the new snapshot's id; None to prove the segment only.
        load: loads the segment; None where an earlier run put it, so that only its descriptor is checked.
        batch: the batch of its puts, where they are in flight.
    """

    volume: PlannedVolume | None
    sequence: int
    target: str | None
    load: Callable[[], StoredSegment] | None
    batch: PutBatch | None


@attrs.frozen
class SegmentRestore:
    """The worker's job for one segment: check, decode and put it."""

    container: ContainerFile
    sink: BlockSink

    def weigh(self, task: SegmentTask) -> int:
        """The bytes that a task loads."""
        return self.container.segment_size(task.sequence) if task.load else 0

    def __call__(self, task: SegmentTask) -> Checked:
        container, sequence = self.container, task.sequence
        with container.locating(sequence):
            stored = task.load() if task.load else StoredSegment(container.segment(sequence), ())
        located = stored.located
        if task.volume is not None:
            check_mapped(container, task.volume, located)
        SegmentPut(self.sink)((stored, task.target, task.batch))
        return Checked(sequence, located.end, located)


@attrs.frozen(kw_only=True, eq=False)
class RestoreOrder(ArchiveOrder["list[Checked]"]):
    """Restore some segments.

    Attributes:
        sink: the sink that gets the blocks.
        target: the new snapshot's id; None to prove the segments only.
        first: the number of the first segment that no earlier run put.
        rate: the most puts a second.
    """

    sink: Shared[BlockSink]
    target: str | None
    first: int
    rate: float | None

    def read(self, container: ContainerFile) -> list[Checked]:
        restore = SegmentRestore(container, limited(self.sink.value, self.rate))
        checked: list[Checked] = []
        with worker_pool(1, None) as pool:
            puts = BlockPuts(restore.sink, None)
            loads = container.loads()
            tasks = self._tasks(loads, puts)
            most = loads.most(pool.count)
            segments = pool.map(restore, tasks, restore.weigh, most=most, stop=puts.stop)
            with closing(segments) as restored, loads, puts:
                for each in restored:
                    puts.landed()
                    checked.append(each)
        return checked

    def _tasks(self, loads: Reads[StoredSegment], puts: BlockPuts) -> Iterator[SegmentTask]:
        for sequence in self.sequences:
            load = None if sequence < self.first else loads.begin(sequence)
            yield SegmentTask(
                volume=None, sequence=sequence, target=self.target, load=load, batch=puts.batch()
            )
