"""`restore_snapshots`: snapshots from a container that is read by ranges, segment by segment; resumable.

A run verifies the whole container and puts each proved block. The tail is checked before the first snapshot
is started, and all of the container before one is completed.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, cast

from amistore import forks
from amistore.archive.orders import archive_ranges
from amistore.archive.reader import ContainerFile
from amistore.archive.verification import Checked, Verification, check_mapped
from amistore.backends import BlockSink
from amistore.backends.checks import check_kind
from amistore.container.identity import check_content_id
from amistore.container.plan import PlannedVolume
from amistore.container.segments import LocatedSegment, StoredSegment
from amistore.errors import (
    ArchiveError,
    SourceChangedError,
    advising,
)
from amistore.model import Image
from amistore.objects.restore_orders import RestoreOrder, SegmentRestore, SegmentTask
from amistore.objects.restorelog import RestoreLog
from amistore.objects.resumelog import ResumeLog
from amistore.pipeline.orders import Cluster, Orders
from amistore.pipeline.progress import Phase, Progress, ProgressCallback
from amistore.pipeline.puts import BlockPuts
from amistore.pipeline.requests import Reads
from amistore.pipeline.shared import Shared
from amistore.pipeline.snapshots import RestoredSnapshots, RestorePolicy
from amistore.pipeline.workers import closing, worker_pool

__all__ = ["Restoring", "restore_snapshots"]


def restore_snapshots(
    container: ContainerFile,
    sink: BlockSink,
    policy: RestorePolicy,
    *,
    log: ResumeLog | None,
    workers: int | None,
    cluster: Cluster | None,
    progress: ProgressCallback,
) -> Image:
    """`unpack` for an opened archive, read from the bytes that it is pinned to."""
    check_kind(sink, BlockSink, "sink")
    check_content_id(container.index.content_id, policy.expected)  # what is restored is proved to be of it
    restored = RestoredSnapshots(container.image, sink, policy)
    identity: dict[str, Any] = {
        **container.identity,
        "sink": sink.where,
        "content": container.index.content_id.hex(),
        "snapshots": None if policy.snapshots is None else list(policy.snapshots),
        "fill_holes": policy.fill_holes,
        "tags": {tag.key: tag.value for tag in policy.tags} or None,
    }
    changed = SourceChangedError(
        "the archive was replaced since the run of this log began: amistore.abandon ends that run",
        bucket=identity.get("bucket"),
        key=identity.get("key"),
    )
    journal = RestoreLog(log, "unpack", identity, {"etag": changed, "content": changed})

    with forks.undoing(lambda error: journal.undo(error, restored)):
        with advising():
            Restoring(container, sink, restored, journal, progress).run(workers, cluster)
        image = restored.image()
        restored.complete(container.index.volumes)
    journal.end()
    return image


class Restoring:
    """A verification of an object that puts each proved block, and then fills the holes."""

    def __init__(
        self,
        container: ContainerFile,
        sink: BlockSink,
        restored: RestoredSnapshots,
        log: RestoreLog,
        progress: ProgressCallback,
    ) -> None:
        self._container = container
        self._sink = sink
        self._restored = restored
        self._log = log
        self._progress = progress

    def run(self, workers: int | None, cluster: Cluster | None) -> None:
        """Put every block, and fill holes once the whole container has verified."""
        container = self._container
        verification = Verification(container, _raise)
        volumes = cast("list[PlannedVolume]", verification.volumes())  # all of them: damage was raised
        found = self._by_threads(volumes, workers) if cluster is None else self._by_orders(volumes, cluster)
        with closing(found) as checked:
            blocks = 0
            for segment in verification.segments(checked):
                self._note_put(segment)
                blocks += container.segment_blocks(segment.sequence)
                self._report(Phase.UNPACK, blocks, container.head.blocks, segment.end)
        verification.end()
        most = container.head.layout.blocks_per_segment
        filling = self._restored.filling(workers, cluster, most, self._log.filled)
        with closing(filling) as pieces:
            for piece, blocks in pieces:
                self._log.note_filled(piece.stored_id, piece.end)
                self._report(Phase.FILL, blocks, self._restored.hole_blocks, container.size)

    def _by_threads(
        self, volumes: list[PlannedVolume], workers: int | None
    ) -> Generator[Checked, None, None]:
        """Each segment, once its blocks are put."""
        container = self._container
        restore = SegmentRestore(container, self._sink)
        with worker_pool(workers, None) as pool:
            puts = BlockPuts(self._sink, None)
            loads = container.loads()
            tasks = self._tasks(volumes, loads, puts)
            most = loads.most(pool.count)
            segments = pool.map(restore, tasks, restore.weigh, most=most, stop=puts.stop)
            with closing(segments) as checked, loads, puts:
                for each in checked:
                    puts.landed()
                    yield each

    def _tasks(
        self, volumes: list[PlannedVolume], loads: Reads[StoredSegment], puts: BlockPuts
    ) -> Iterator[SegmentTask]:
        """Each segment; its volume's snapshot is begun first."""
        for volume in volumes:
            first = self._log.begin(volume, self._restored, self._sink)
            target = self._restored.get(volume.snapshot_id)
            for sequence in self._container.segments_of(volume.number):
                load = None if sequence < first else loads.begin(sequence)
                yield SegmentTask(volume, sequence, target, load, puts.batch())

    def _by_orders(self, volumes: list[PlannedVolume], cluster: Cluster) -> Generator[Checked, None, None]:
        """Each segment, once a worker has put its blocks; the maps, which workers lack, are compared here."""
        count = sum(1 for _ in archive_ranges(self._container))
        rate = cluster.share(self._sink, count)
        with (
            Orders[list[Checked]](cluster, self._sink) as out,
            closing(out.map(self._orders(volumes, rate))) as ended,
        ):
            for _, checked in ended:
                for each in checked:
                    located = cast(LocatedSegment, each.located)
                    check_mapped(self._container, volumes[self._container.volume_of(each.sequence)], located)
                    yield each

    def _orders(self, volumes: list[PlannedVolume], rate: float | None) -> Iterator[RestoreOrder]:
        """Each order; its volume's snapshot is begun first."""
        container, sink = Shared(self._container), Shared(self._sink)
        begun = -1
        first = 0
        for number, sequences in enumerate(archive_ranges(self._container)):
            at = self._container.volume_of(sequences.start)
            while begun < at:  # also those without segments
                begun += 1
                first = self._log.begin(volumes[begun], self._restored, self._sink)
            yield RestoreOrder(
                number=number,
                container=container,
                index_digest=self._container.foot.index_digest,
                sequences=sequences,
                sink=sink,
                target=self._restored.get(volumes[at].snapshot_id),
                first=first,
                rate=rate,
            )
        for volume in volumes[begun + 1 :]:
            self._log.begin(volume, self._restored, self._sink)

    def _note_put(self, segment: Checked) -> None:
        located = cast(LocatedSegment, segment.located)
        stored_id = located.snapshot_id
        if self._restored.get(stored_id) is not None and segment.sequence >= self._log.put(stored_id):
            self._log.note_put(stored_id, segment.sequence + 1)
        self._restored.add(stored_id, located.descriptor.runs, located.descriptor.digests)

    def _report(self, phase: Phase, done: int, total: int, stored: int) -> None:
        self._progress(Progress(phase=phase, blocks=done, total_blocks=total, stored_bytes=stored))


def _raise(error: ArchiveError) -> None:
    raise error
