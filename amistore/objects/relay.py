"""`relay_snapshots`: an image's snapshots, from a source to a sink block by block, without a container.

The caller's thread lists, starts snapshots and keeps the order; each worker proves one segment's blocks and
hands them on, in threads or by orders. The content id is that of the archive that `pack` would make.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import cast

import attrs
from typing_extensions import Buffer

from amistore import forks
from amistore.backends import BlockSink, BlockSource, SnapshotBlock
from amistore.backends.blocks import check_digest
from amistore.container.identity import archive_content_id, check_content_id, volume_content_id
from amistore.container.plan import Plan, PlannedSegment, PlannedVolume
from amistore.errors import BackendError, SourceChangedError
from amistore.model import Image
from amistore.objects.restorelog import RestoreLog
from amistore.pipeline.block_orders import BlockOrder, BlockOrders
from amistore.pipeline.gets import BlockGets, SegmentGets
from amistore.pipeline.orders import Cluster, limited, order_length, order_ranges
from amistore.pipeline.packing import segment_gets, segment_numbers
from amistore.pipeline.progress import Phase, Progress, ProgressCallback
from amistore.pipeline.puts import BlockPuts, PutBatch
from amistore.pipeline.shared import Shared
from amistore.pipeline.snapshots import RestoredSnapshots, RestorePolicy, WrittenVolume
from amistore.pipeline.tokens import OrderCut
from amistore.pipeline.workers import closing, worker_pool

__all__ = ["relay_snapshots"]


def relay_snapshots(
    planned: Plan,
    source: BlockSource,
    sink: BlockSink,
    policy: RestorePolicy,
    *,
    log: RestoreLog | None = None,
    whole: Callable[[], object] = lambda: None,
    workers: int | None,
    cluster: Cluster | None = None,
    progress: ProgressCallback,
) -> tuple[Image, bytes]:
    """Make an image's snapshots anew in a sink.

    Args:
        planned: the plan of the image's container, which is not made.
        source: the source of the blocks.
        sink: the sink that gets the new snapshots.
        policy: what is made of them.
        log: what earlier runs did; None for a run that nobody resumes. Every block is read again, and those
            that were put are compared with what the log says of them.
        whole: is called once all is put and before a snapshot is completed, to refuse a source that changed.
        workers: the number of segments worked on at once; None for the number of CPUs.
        cluster: who hands the blocks on by orders; None for threads of this process.
        progress: a function called with a `Progress` after each segment or order.

    Returns:
        The image on its new snapshots, and its content id.

    Raises:
        SourceChangedError: a snapshot is not what was listed.
        ChecksumMismatchError: a block does not have the checksum of its source.
        CorruptArchiveError: the content id is not the expected one; nothing was completed.
        BackendError: the source or the sink failed. Every started snapshot is deleted, unless there is a log.
    """
    log = RestoreLog(None, "import", {}, {}) if log is None else log
    relay = _Relay(planned, source, sink, policy, log)
    with forks.undoing(lambda error: log.undo(error, relay.snapshots)):
        volumes = relay.run(workers, cluster, progress)
        content_id = _content_id(planned, volumes)
        check_content_id(content_id, policy.expected)
        whole()
        image = relay.snapshots.image()
        relay.snapshots.complete(volumes)
    return image, content_id


def _content_id(planned: Plan, volumes: Sequence[WrittenVolume]) -> bytes:
    ids = [
        (volume.snapshot_id, volume_content_id(volume.size, made.blocks, made.linear, volume.runs.digest()))
        for volume, made in zip(planned.volumes, volumes, strict=True)
    ]
    return archive_content_id(planned.manifest, ids, bound=planned.bound)


@attrs.frozen
class _Task:
    """A segment to hand on: its blocks, the new snapshot's id, and the batch of puts in flight.

    Without the id, since an earlier run has put it, it is only hashed.
    """

    segment: PlannedSegment
    gets: SegmentGets
    target: str | None
    batch: PutBatch | None


@attrs.frozen
class _HandOn:
    """The worker's job for one segment: prove each block and put it; gives their digests."""

    sink: BlockSink

    def __call__(self, task: _Task) -> tuple[PlannedSegment, list[bytes]]:
        digests: list[bytes] = []
        put = self.sink.put_snapshot_block if task.batch is None else task.batch.put
        try:
            with task.gets as blocks:
                for index, block in zip(task.gets.indexes, blocks, strict=True):
                    digests.append(_proved(block, task.gets.snapshot_id, index))
                    if task.target is not None:
                        put(task.target, index, self._kept(block, task), digests[-1])
        except BackendError:
            if task.batch is not None:
                task.batch.wait()  # the error of a block before this one comes first
            raise
        return task.segment, digests

    def _kept(self, block: SnapshotBlock, task: _Task) -> Buffer:
        """The content until it is put: a source that is asked one by one may reuse its buffer."""
        return block.content if task.batch is None or task.gets.gets is not None else bytes(block.content)


@attrs.frozen(kw_only=True, eq=False)
class _RelayOrder(BlockOrder["list[bytes]"]):
    """Hand some segments on; gives the digests of their blocks.

    Attributes:
        sink: the sink that gets the blocks.
        target: the new snapshot's id.
        put_rate: the most puts a second.
    """

    sink: Shared[BlockSink]
    target: str
    put_rate: float | None

    def work(self) -> list[bytes]:
        source = limited(self.source.value, self.rate)
        sink = limited(self.sink.value, self.put_rate)
        found: list[bytes] = []
        with worker_pool(1, None) as pool:
            gets, puts = BlockGets(source, None, pool.most), BlockPuts(sink, None)
            tasks = (_Task(segment, blocks, self.target, puts.batch()) for segment, blocks in self.gets(gets))
            handed = pool.map(_HandOn(sink), tasks, stop=_stopping(gets, puts))
            with closing(handed), gets, puts:
                for _, digests in handed:
                    puts.landed()
                    found += digests
        return found


def _stopping(gets: BlockGets, puts: BlockPuts) -> Callable[[], None]:
    def stop() -> None:
        gets.stop()
        puts.stop()

    return stop


class _Relay:
    """The snapshots of one image on their way."""

    def __init__(
        self, planned: Plan, source: BlockSource, sink: BlockSink, policy: RestorePolicy, log: RestoreLog
    ) -> None:
        self._planned = planned
        self._source = source
        self._sink = sink
        self._log = log
        self.snapshots = RestoredSnapshots(planned.image, sink, policy)

    def run(
        self, workers: int | None, cluster: Cluster | None, progress: ProgressCallback
    ) -> list[WrittenVolume]:
        """Hand on every block and fill holes; return what was put, in the plan's order of volumes."""
        planned, snapshots = self._planned, self.snapshots
        linear = [hashlib.sha256() for _ in planned.volumes]
        handed = self._by_threads(workers) if cluster is None else self._by_orders(cluster)
        with closing(handed):
            done = 0
            for segment, digests in handed:
                linear[segment.volume].update(b"".join(digests))
                stored_id = planned.volumes[segment.volume].snapshot_id
                self._note_put(stored_id, segment, digests)
                snapshots.add(stored_id, segment.runs, digests)
                done += len(digests)
                progress(Progress(phase=Phase.UNPACK, blocks=done, total_blocks=planned.blocks))
        most = planned.layout.blocks_per_segment
        with closing(snapshots.filling(workers, cluster, most, self._log.filled)) as filling:
            for piece, done in filling:
                self._log.note_filled(piece.stored_id, piece.end)
                progress(Progress(phase=Phase.FILL, blocks=done, total_blocks=snapshots.hole_blocks))
        return [
            WrittenVolume(volume.snapshot_id, volume.runs.blocks, digest.digest())
            for volume, digest in zip(planned.volumes, linear, strict=True)
        ]

    def _by_threads(self, workers: int | None) -> Generator[tuple[PlannedSegment, list[bytes]], None, None]:
        """Each segment with its digests, once its blocks are put."""
        with worker_pool(workers, None) as pool:
            gets = BlockGets(self._source, None, pool.most)
            puts = BlockPuts(self._sink, None)
            handed = pool.map(_HandOn(self._sink), self._tasks(gets, puts), stop=_stopping(gets, puts))
            with closing(handed), gets, puts:
                for each in handed:
                    puts.landed()
                    yield each

    def _tasks(self, gets: BlockGets, puts: BlockPuts) -> Iterator[_Task]:
        """Each segment; its volume's snapshot is started first."""
        for volume in self._planned.volumes:
            first = self._log.begin(volume, self.snapshots, self._sink)
            target = self.snapshots.get(volume.snapshot_id)  # the policy wants all of them
            for segment, blocks in segment_gets(self._planned, volume, self._source, gets):
                yield _Task(segment, blocks, None if segment.sequence < first else target, puts.batch())

    def _begin(self, volume: PlannedVolume) -> str:
        self._log.begin(volume, self.snapshots, self._sink)
        return cast(str, self.snapshots.get(volume.snapshot_id))

    def _note_put(self, stored_id: str, segment: PlannedSegment, digests: list[bytes]) -> None:
        """Note a segment that was put, or compare one that an earlier run put with what it noted."""
        end = segment.sequence + 1
        digest = hashlib.sha256(b"".join(digests)).hexdigest()
        if end > self._log.put(stored_id):
            self._log.note_put(stored_id, end, digest)
        elif digest != self._log.digest(stored_id, end):
            raise SourceChangedError(
                "the blocks are not those that an earlier run of this log has put: amistore.abandon ends it",
                snapshot_id=stored_id,
                block_index=segment.runs.first,
            )

    def _by_orders(self, cluster: Cluster) -> Generator[tuple[PlannedSegment, list[bytes]], None, None]:
        """Each segment with its digests, once a worker has put its blocks."""
        planned = self._planned
        targets = list(map(self._begin, planned.volumes))
        source, sink = Shared(self._source), Shared(self._sink)
        cuts = _cuts(planned)
        rate, put_rate = (cluster.share(each, len(cuts)) for each in (self._source, self._sink))

        def make(cut: OrderCut) -> _RelayOrder:
            return _RelayOrder(
                number=cut.number,
                source=source,
                snapshot_id=cut.volume.snapshot_id,
                segments=tuple(map(planned.segment, cut.segments)),
                rate=rate,
                sink=sink,
                target=targets[cut.volume.number],
                put_rate=put_rate,
            )

        made: dict[int, list[bytes]] = {}
        with BlockOrders[list[bytes]](cluster, planned, self._source, cuts, make, self._sink) as orders:
            for cut in cuts:
                while cut.number not in made:
                    order, digests = orders.ended(cut.number, made)
                    made[order.number] = digests
                orders.forget(cut.number)
                digests = made.pop(cut.number)
                for segment in map(planned.segment, cut.segments):
                    count = segment.runs.blocks
                    yield segment, digests[:count]
                    digests = digests[count:]


def _cuts(planned: Plan) -> list[OrderCut]:
    """The orders' segments."""
    length = order_length(planned.layout.blocks_per_segment)
    cuts: list[OrderCut] = []
    for volume in planned.volumes:
        for segments in order_ranges(segment_numbers(planned, volume), length):
            cuts.append(OrderCut(number=len(cuts), volume=volume, segments=segments))
    return cuts


def _proved(block: SnapshotBlock, snapshot_id: str, index: int) -> bytes:
    """The block's SHA-256, which is the one that its source gives."""
    if block.checksum is None:
        return hashlib.sha256(block.content).digest()
    if not block.proved:
        check_digest(block, snapshot_id, index)
    return block.checksum
