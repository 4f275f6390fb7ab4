"""`restore_snapshots`: snapshots from a container that is read by ranges, segment by segment; resumable.

A run verifies the whole container and puts each proved block. The tail is checked before the first snapshot
is started, and all of the container before one is completed.
"""

from __future__ import annotations

import hashlib
import logging
import operator
import secrets
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
    ChecksumMismatchError,
    InvalidRequestError,
    NotFoundError,
    SourceChangedError,
    advising,
    is_final,
)
from amistore.model import Image, Snapshot
from amistore.objects.restore_orders import RestoreOrder, SegmentRestore, SegmentTask
from amistore.objects.resumelog import (
    NoLog,
    ResumeLog,
    read_entry,
    read_task,
    write_entry,
)
from amistore.pipeline.orders import Cluster, Orders
from amistore.pipeline.progress import Phase, Progress, ProgressCallback
from amistore.pipeline.puts import BlockPuts
from amistore.pipeline.requests import Reads
from amistore.pipeline.shared import Shared
from amistore.pipeline.snapshots import RestoredSnapshots, RestorePolicy
from amistore.pipeline.workers import closing, worker_pool

__all__ = [
    "RestoreLog",
    "Restoring",
    "client_token",
    "restore_snapshots",
]


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
    identity = {
        **container.identity,
        "sink": sink.where,
        "content": container.index.content_id.hex(),
        "snapshots": None if policy.snapshots is None else list(policy.snapshots),
        "fill_holes": policy.fill_holes,
        "tags": {tag.key: tag.value for tag in policy.tags} or None,
    }
    journal = RestoreLog(NoLog() if log is None else log, identity)

    def undo(error: BaseException) -> None:
        if isinstance(error, NotFoundError) and restored.has(error.snapshot_id):
            error.retryable = True  # the next run begins another
        # What an earlier run has made is not deleted for an archive that is damaged by now: the
        # log stays, and `abandon` deletes it. Blocks that the log says were put and that are not there
        # are the log's fault.
        given_up = is_final(error) and (journal.fresh or isinstance(error, ChecksumMismatchError))
        if (log is None or given_up) and restored.undo():
            journal.log.clear()
            if not journal.fresh and isinstance(error, ChecksumMismatchError):
                error.retryable = True  # of blocks that an earlier run put: the next one puts all of them

    with forks.undoing(undo):
        with advising():
            Restoring(container, sink, restored, journal, progress).run(workers, cluster)
        image = restored.image()
        restored.complete(container.index.volumes)
    journal.log.end()
    return image


_logger = logging.getLogger("amistore")


def client_token(task: str, stored_id: str, generation: int) -> str:
    """A snapshot's client token: the same in each run, another for each attempt to make the snapshot."""
    return hashlib.sha256(f"{task} {stored_id} {generation}".encode()).hexdigest()[:64]


class RestoreLog:
    """The log of a restore: what earlier runs did, and what this one notes."""

    def __init__(self, log: ResumeLog, identity: dict[str, Any]) -> None:
        self.log = log
        # By the stored id: generation and id of the new snapshot; which segments it has: those before; and
        # the block index before which its holes are filled.
        self._snapshots: dict[str, tuple[int, str]] = {}
        self._put: dict[str, int] = {}
        self._filled: dict[str, int] = {}
        entries = log.entries()
        self.fresh = not entries
        if not entries:
            self.task = secrets.token_hex(16)
            log.append(write_entry(kind="unpack", task=self.task, **identity))
            return
        changed = SourceChangedError(
            "the archive was replaced since the run of this log began: amistore.abandon ends that run",
            bucket=identity.get("bucket"),
            key=identity.get("key"),
        )
        self.task = read_task(entries[0], "unpack", identity, {"etag": changed, "content": changed})
        try:
            for entry in map(read_entry, entries[1:]):
                if "put" in entry:
                    self._put[entry["volume"]] = operator.index(entry["put"])
                elif "filled" in entry:
                    self._filled[entry["volume"]] = operator.index(entry["filled"])
                elif "snapshot" in entry:
                    self._begin(entry["volume"], operator.index(entry["generation"]), entry["snapshot"])
        except (KeyError, TypeError):
            raise InvalidRequestError("the resume log is damaged") from None

    def begun(self, stored_id: str) -> tuple[int, str | None]:
        """The generation and id of the snapshot that an earlier run began; 0 and None for none."""
        return self._snapshots.get(stored_id, (0, None))

    def note_beginning(self, known: Snapshot, generation: int, size: int) -> None:
        """Note a snapshot before it is begun: the answer with its id may be lost.

        A sink tells it once more only for the same facts.
        """
        facts = {
            "volume": known.snapshot_id,
            "generation": generation,
            "size": size,
            "description": known.description or "",
            "tags": [[tag.key, tag.value] for tag in known.tags],
        }
        self.log.append(write_entry(**facts))

    def note_begun(self, stored_id: str, generation: int, snapshot_id: str, size: int) -> None:
        self._begin(stored_id, generation, snapshot_id)
        self.log.append(write_entry(volume=stored_id, generation=generation, snapshot=snapshot_id, size=size))

    def _begin(self, stored_id: str, generation: int, snapshot_id: str) -> None:
        """Note a new snapshot, into which nothing was put yet."""
        if not isinstance(snapshot_id, str):
            raise TypeError(snapshot_id)
        self._snapshots[stored_id] = generation, snapshot_id
        self._put.pop(stored_id, None)
        self._filled.pop(stored_id, None)

    def put(self, stored_id: str) -> int:
        """The sequence number of the first segment that may be missing."""
        return self._put.get(stored_id, 0)

    def note_put(self, stored_id: str, end: int) -> None:
        self._put[stored_id] = end
        self.log.append(write_entry(volume=stored_id, put=end))

    def filled(self, stored_id: str) -> int:
        """The block index before which all holes are filled."""
        return self._filled.get(stored_id, 0)

    def note_filled(self, stored_id: str, end: int) -> None:
        self.log.append(write_entry(volume=stored_id, filled=end))


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
            first = self._begin(volume)
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
                first = self._begin(volumes[begun])
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
            self._begin(volume)

    def _note_put(self, segment: Checked) -> None:
        located = cast(LocatedSegment, segment.located)
        stored_id = located.snapshot_id
        if self._restored.get(stored_id) is not None and segment.sequence >= self._log.put(stored_id):
            self._log.note_put(stored_id, segment.sequence + 1)
        self._restored.add(stored_id, located.descriptor.runs, located.descriptor.digests)

    def _begin(self, volume: PlannedVolume) -> int:
        """Start a volume's snapshot, or resume the one that an earlier run began.

        Returns:
            The sequence number of the first segment that may be missing.
        """
        stored_id = volume.snapshot_id
        generation, before = self._log.begun(stored_id)
        # Asked first: a sink may give the token of a snapshot that was deleted to a new, empty one.
        if before is not None and not self._usable(before):
            _logger.warning("snapshot %s cannot be resumed: starting another", before)
            generation += 1
            before = None
        # With the same token: the same snapshot, if it is one that this task began.
        token = client_token(self._log.task, stored_id, generation)
        if before is None and self._restored.wanted(stored_id):
            self._log.note_beginning(self._restored.known(stored_id), generation, volume.size)
        snapshot_id = self._restored.begin(volume, client_token=token)
        if snapshot_id is None:
            return 0
        if snapshot_id == before:
            first = self._log.put(stored_id)
            _logger.info("resuming snapshot %s at segment %d", snapshot_id, first)
            return first
        self._log.note_begun(stored_id, generation, snapshot_id, volume.size)
        self._restored.warn_of_holes(volume)
        return 0

    def _usable(self, snapshot_id: str) -> bool:
        try:
            return self._sink.describe_snapshot(snapshot_id).state in ("pending", "completed")
        except NotFoundError:
            return False

    def _report(self, phase: Phase, done: int, total: int, stored: int) -> None:
        self._progress(Progress(phase=phase, blocks=done, total_blocks=total, stored_bytes=stored))


def _raise(error: ArchiveError) -> None:
    raise error
