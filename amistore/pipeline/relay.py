"""`relay_snapshots`: an image's snapshots, from a source to a sink block by block, without a container.

The caller's thread lists, starts snapshots and keeps the order; each worker proves one segment's blocks and
hands them on. The content id is that of the archive that `pack` would make.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import cast

import attrs
from typing_extensions import Buffer

from amistore import forks
from amistore.backends import BlockSink, BlockSource, SnapshotBlock
from amistore.backends.blocks import check_digest
from amistore.container.identity import archive_content_id, check_content_id, volume_content_id
from amistore.container.plan import Plan, PlannedVolume
from amistore.container.runs import Runs
from amistore.errors import BackendError
from amistore.model import Image
from amistore.pipeline.gets import BlockGets, SegmentGets
from amistore.pipeline.packing import segment_gets
from amistore.pipeline.progress import Phase, Progress, ProgressCallback
from amistore.pipeline.puts import BlockPuts, PutBatch
from amistore.pipeline.snapshots import RestoredSnapshots, RestorePolicy, WrittenVolume
from amistore.pipeline.workers import closing, worker_pool

__all__ = ["relay_snapshots"]


def relay_snapshots(
    planned: Plan,
    source: BlockSource,
    sink: BlockSink,
    policy: RestorePolicy,
    *,
    workers: int | None,
    progress: ProgressCallback,
) -> tuple[Image, bytes]:
    """Make an image's snapshots anew in a sink.

    Args:
        planned: the plan of the image's container, which is not made.
        source: the source of the blocks.
        sink: the sink that gets the new snapshots.
        policy: what is made of them.
        workers: the number of segments worked on at once; None for the number of CPUs.
        progress: a function called with a `Progress` after each segment.

    Returns:
        The image on its new snapshots, and its content id.

    Raises:
        SourceChangedError: a snapshot is not what was listed.
        ChecksumMismatchError: a block does not have the checksum of its source.
        CorruptArchiveError: the content id is not the expected one; nothing was completed.
        BackendError: the source or the sink failed. Every started snapshot is deleted.
    """
    relay = _Relay(planned, source, sink, policy)
    with forks.undoing(lambda _: relay.snapshots.undo()):
        volumes = relay.run(workers, progress)
        content_id = _content_id(planned, volumes)
        check_content_id(content_id, policy.expected)
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
    """A segment to hand on: its blocks, the new snapshot's id, and the batch of puts in flight."""

    volume: PlannedVolume
    runs: Runs
    gets: SegmentGets
    target: str
    batch: PutBatch | None


class _Relay:
    """The snapshots of one image on their way."""

    def __init__(self, planned: Plan, source: BlockSource, sink: BlockSink, policy: RestorePolicy) -> None:
        self._planned = planned
        self._source = source
        self._sink = sink
        self.snapshots = RestoredSnapshots(planned.image, sink, policy)

    def run(self, workers: int | None, progress: ProgressCallback) -> list[WrittenVolume]:
        """Hand on every block and fill holes; return what was put, in the plan's order of volumes."""
        planned, snapshots = self._planned, self.snapshots
        linear = [hashlib.sha256() for _ in planned.volumes]
        with worker_pool(workers, None) as pool:
            gets = BlockGets(self._source, None, pool.most)
            puts = BlockPuts(self._sink, None)

            def stop() -> None:
                gets.stop()
                puts.stop()

            handed = pool.map(self._hand_on, self._tasks(gets, puts), stop=stop)
            with closing(handed), gets, puts:
                done = 0
                for task, digests in handed:
                    puts.landed()
                    linear[task.volume.number].update(b"".join(digests))
                    snapshots.add(task.volume.snapshot_id, task.runs, digests)
                    done += len(digests)
                    progress(Progress(phase=Phase.UNPACK, blocks=done, total_blocks=planned.blocks))
            most = planned.layout.blocks_per_segment
            with closing(snapshots.fill(pool, None, most)) as filling:
                for _, done in filling:
                    progress(Progress(phase=Phase.FILL, blocks=done, total_blocks=snapshots.hole_blocks))
        return [
            WrittenVolume(volume.snapshot_id, volume.runs.blocks, digest.digest())
            for volume, digest in zip(planned.volumes, linear, strict=True)
        ]

    def _tasks(self, gets: BlockGets, puts: BlockPuts) -> Iterator[_Task]:
        """Each segment; its volume's snapshot is started first."""
        for volume in self._planned.volumes:
            target = cast(str, self.snapshots.begin(volume))  # the policy wants all of them
            self.snapshots.warn_of_holes(volume)
            for segment, blocks in segment_gets(self._planned, volume, self._source, gets):
                yield _Task(volume, segment.runs, blocks, target, puts.batch())

    def _hand_on(self, task: _Task) -> tuple[_Task, list[bytes]]:
        """Runs in a worker; gives the digests of the segment's blocks."""
        digests: list[bytes] = []
        put = self._sink.put_snapshot_block if task.batch is None else task.batch.put
        try:
            with task.gets as blocks:
                for index, block in zip(task.gets.indexes, blocks, strict=True):
                    digests.append(_proved(block, task.gets.snapshot_id, index))
                    put(task.target, index, self._kept(block, task), digests[-1])
        except BackendError:
            if task.batch is not None:
                task.batch.wait()  # the error of a block before this one comes first
            raise
        return task, digests

    def _kept(self, block: SnapshotBlock, task: _Task) -> Buffer:
        """The content until it is put: a source that is asked one by one may reuse its buffer."""
        return block.content if task.batch is None or task.gets.gets is not None else bytes(block.content)


def _proved(block: SnapshotBlock, snapshot_id: str, index: int) -> bytes:
    """The block's SHA-256, which is the one that its source gives."""
    if block.checksum is None:
        return hashlib.sha256(block.content).digest()
    if not block.proved:
        check_digest(block, snapshot_id, index)
    return block.checksum
