"""`unpack_object`: snapshots from a container in an object store, segment by segment, and on after a crash.

A full verification (`archive/verification.py`) that puts each block it has proved. The tail
is checked before anything is started; nothing is completed before all has been checked.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import operator
import secrets
from collections.abc import Iterable
from typing import Any, cast

from amistore import forks
from amistore.archive.reader import ContainerFile, LoadedSegment
from amistore.archive.verification import Verification
from amistore.backends import BlockSink, ObjectStore
from amistore.backends.checks import check_kind
from amistore.backends.objects import ObjectRanges
from amistore.container import DecodedBlock, PlannedVolume, SegmentDescriptor
from amistore.container.identity import check_content_id, parse_content_id
from amistore.errors import (
    ArchiveError,
    ChecksumMismatchError,
    InvalidRequestError,
    NotFoundError,
    SourceChangedError,
    advising,
)
from amistore.model import Image, Tag
from amistore.objects.finality import is_final
from amistore.objects.resumelog import (
    MemoryResumeLog,
    ResumeLog,
    check_log,
    read_entry,
    read_task,
    write_entry,
)
from amistore.pipeline.foreign import foreign_errors
from amistore.pipeline.holes import HolePolicy
from amistore.pipeline.progress import Phase, Progress, ProgressCallback
from amistore.pipeline.snapshots import RestoredSnapshots
from amistore.pipeline.workers import worker_pool

__all__ = ["client_token", "restore_snapshots", "unpack_object"]

_logger = logging.getLogger("amistore")


def unpack_object(
    store: ObjectStore,
    bucket: str,
    key: str,
    sink: BlockSink,
    *,
    log: ResumeLog | None = None,
    expected_content_id: str | None = None,
    snapshots: Iterable[str] | None = None,
    tags: Iterable[Tag] = (),
    fill_holes: bool = False,
    allow_lost: bool = False,
    workers: int | None = None,
    progress: ProgressCallback = None,
) -> Image:
    """Restore the snapshots of a container in a store, verifying all of it.

    As `unpack`, but each worker reads its segments by itself, and the object's end is checked
    before the first snapshot is started.

    Args:
        store: where the object is.
        bucket: the bucket that holds the object.
        key: of the object.
        sink: where new snapshots are made.
        log: from which an earlier run that ended in a crash or an error is continued: segments
            that it has put are neither read nor put again. Without one, the snapshots that were
            begun are deleted on an error.
        expected_content_id: refuse another archive; 64 hexadecimal digits.
        snapshots: ids, as in the archive, of those to restore; None for all. All are verified.
        tags: set on every new snapshot, over those that were stored.
        fill_holes: put a block of zeros for each block that a snapshot does not list; see `unpack`.
            A run that is continued must have the same.
        allow_lost: restore snapshots with lost blocks, too; see `unpack`.
        workers: segments worked on at once; None for the number of CPUs.
        progress: called with a `Progress` after each segment.

    Returns:
        The stored image on its new snapshots, ready for `register_image`.

    Raises:
        NotFoundError: no such object.
        CorruptArchiveError: damaged bytes, with the place; no snapshot was completed.
        SourceChangedError: the object was replaced, during the run or since the one continued.
        LostBlocksError: blocks of a snapshot were lost, without `allow_lost`.
        InvalidRequestError: the log is of something else.
        BackendError: the store or the sink failed; with a log the next run goes on from here.
    """
    check_kind(store, ObjectStore, "store")
    check_kind(sink, BlockSink, "sink")
    check_log(log)
    expected = parse_content_id(expected_content_id)
    with foreign_errors("head_object", bucket=bucket, key=key):
        ranges = ObjectRanges(store, bucket, key)
        container = ContainerFile(ranges)
    return restore_snapshots(
        ranges,
        container,
        sink,
        HolePolicy(fill_holes),
        log=log,
        expected=expected,
        snapshots=snapshots,
        tags=tags,
        allow_lost=allow_lost,
        workers=workers,
        progress=progress,
    )


def restore_snapshots(
    ranges: ObjectRanges,
    container: ContainerFile,
    sink: BlockSink,
    holes: HolePolicy,
    *,
    log: ResumeLog | None,
    expected: bytes | None,
    snapshots: Iterable[str] | None = None,
    tags: Iterable[Tag] = (),
    allow_lost: bool,
    workers: int | None,
    progress: ProgressCallback,
) -> Image:
    """`unpack_object` of an object that is opened: all of it is read from what `ranges` are pinned to."""
    check_content_id(container.index.content_id, expected)  # what is restored is proved to be of this id
    chosen = None if snapshots is None else sorted({snapshots} if isinstance(snapshots, str) else snapshots)
    image = container.image.with_tags(snapshot_tags=tags)
    restored = RestoredSnapshots(image, sink, chosen, allow_lost, holes)
    identity = {
        "store": ranges.store.where,
        "sink": sink.where,
        "bucket": ranges.bucket,
        "key": ranges.key,
        "etag": ranges.etag,
        "content": container.index.content_id.hex(),
        "snapshots": chosen,
        "fill_holes": holes.fill,
    }
    journal = _Journal(MemoryResumeLog() if log is None else log, identity)

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
            _Restoration(container, sink, restored, journal, progress).run(workers)
        image = restored.image()
        restored.complete(container.index.volumes)
    journal.log.end()
    return image


def client_token(task: str, stored_id: str, generation: int) -> str:
    """The client token of a snapshot: the same in each run, another for each attempt to make it."""
    return hashlib.sha256(f"{task} {stored_id} {generation}".encode()).hexdigest()[:64]


class _Journal:
    """What the log says of an earlier run of the same restore."""

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
            "the object was replaced since the run began that the resume log is of: "
            "amistore.abandon ends that run",
            bucket=identity["bucket"],
            key=identity["key"],
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
        """Generation and id of the snapshot that an earlier run began; 0 and None for none."""
        return self._snapshots.get(stored_id, (0, None))

    def note_beginning(self, stored_id: str, generation: int, size: int) -> None:
        """Before the call: its answer, and with it the new snapshot's id, may be lost."""
        self.log.append(write_entry(volume=stored_id, generation=generation, size=size))

    def note_begun(self, stored_id: str, generation: int, snapshot_id: str, size: int) -> None:
        self._begin(stored_id, generation, snapshot_id)
        self.log.append(write_entry(volume=stored_id, generation=generation, snapshot=snapshot_id, size=size))

    def _begin(self, stored_id: str, generation: int, snapshot_id: str) -> None:
        """What was put into the snapshot before is not in this one."""
        self._snapshots[stored_id] = generation, snapshot_id
        self._put.pop(stored_id, None)
        self._filled.pop(stored_id, None)

    def put(self, stored_id: str) -> int:
        """The sequence number of the first segment that was not put for sure."""
        return self._put.get(stored_id, 0)

    def note_put(self, stored_id: str, end: int) -> None:
        self._put[stored_id] = end
        self.log.append(write_entry(volume=stored_id, put=end))

    def filled(self, stored_id: str) -> int:
        """The block index before which all holes were filled for sure."""
        return self._filled.get(stored_id, 0)

    def note_filled(self, stored_id: str, end: int) -> None:
        self.log.append(write_entry(volume=stored_id, filled=end))


class _Restoration(Verification):
    """A verification that puts what it has proved into new snapshots."""

    _phase = Phase.UNPACK

    def __init__(
        self,
        container: ContainerFile,
        sink: BlockSink,
        restored: RestoredSnapshots,
        journal: _Journal,
        progress: ProgressCallback,
    ) -> None:
        super().__init__(container, quick=False, progress=progress)
        self._sink = sink
        self._restored = restored
        self._journal = journal
        # By the number of the volume: from this segment on, blocks are put.
        self._first: dict[int, int] = {}

    def _note(self, findings: Iterable[ArchiveError]) -> None:
        for finding in findings:
            raise finding

    def run(self, workers: int | None) -> None:
        """Put every block, and fill holes once the whole container has verified."""
        super().run(workers)
        most = self._container.head.layout.blocks_per_segment
        done = sum(
            holes.before(self._journal.filled(stored_id)) for stored_id, holes in self._restored.holes.items()
        )
        with (
            worker_pool(workers, None) as (pool, limit),
            contextlib.closing(self._restored.fill(pool, limit, most, self._journal.filled)) as pieces,
        ):
            for piece in pieces:
                self._journal.note_filled(piece.stored_id, piece.end)
                done += piece.blocks
                self._report_filled(done)

    def _report_filled(self, done: int) -> None:
        if self._progress is not None:
            self._progress(
                Progress(
                    phase=Phase.FILL,
                    blocks=done,
                    total_blocks=self._restored.hole_blocks,
                    stored_bytes=self._container.size,
                )
            )

    def _begin(self, number: int, volume: PlannedVolume | None) -> None:
        """Start a volume's snapshot, or go on with the one that an earlier run began."""
        volume = cast(PlannedVolume, volume)  # where it is damaged, that was raised
        generation, before = self._journal.begun(volume.snapshot_id)
        # Asked first: a sink may give the token of a snapshot that was deleted to a new, empty one.
        if before is not None and not self._usable(before):
            _logger.warning("snapshot %s cannot be resumed: starting another", before)
            generation += 1
            before = None
        # With the same token: the same snapshot, if it is one that this task began.
        token = client_token(self._journal.task, volume.snapshot_id, generation)
        if before is None and self._restored.wanted(volume.snapshot_id):
            self._journal.note_beginning(volume.snapshot_id, generation, volume.size)
        snapshot_id = self._restored.begin(volume, client_token=token)
        if snapshot_id is not None and snapshot_id == before:
            first = self._first[number] = self._journal.put(volume.snapshot_id)
            _logger.info("resuming snapshot %s at segment %d", snapshot_id, first)
        elif snapshot_id is not None:
            self._journal.note_begun(volume.snapshot_id, generation, snapshot_id, volume.size)
            self._restored.warn_of_holes(volume)

    def _usable(self, snapshot_id: str) -> bool:
        with foreign_errors("describe_snapshot", snapshot_id=snapshot_id):
            try:
                return self._sink.describe_snapshot(snapshot_id).state in ("pending", "completed")
            except NotFoundError:
                return False

    def _load(self, sequence: int) -> LoadedSegment:
        """Of a segment that was put, the descriptor alone."""
        if self._was_put(sequence):
            return LoadedSegment(self._container.segment(sequence), ())
        return super()._load(sequence)

    def _was_put(self, sequence: int) -> bool:
        return sequence < self._first.get(self._container.volume_of(sequence), 0)

    def _done(self, sequence: int, descriptor: SegmentDescriptor | None) -> None:
        volume = self._container.index.volumes[self._container.volume_of(sequence)]
        if self._restored.get(volume.snapshot_id) is not None and not self._was_put(sequence):
            self._journal.note_put(volume.snapshot_id, sequence + 1)
        self._restored.add(volume.snapshot_id, cast(SegmentDescriptor, descriptor))

    def _block(self, snapshot_id: str, block: DecodedBlock) -> None:
        target = self._restored.get(snapshot_id)
        if target is not None:
            with foreign_errors("put_snapshot_block", snapshot_id=target, block_index=block.index):
                self._sink.put_snapshot_block(target, block.index, block.content, block.digest)
