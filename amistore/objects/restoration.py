"""`unpack_object`: snapshots from a container in an object store, segment by segment, and on after a crash.

`restoring.py` verifies all of it and puts each block that is proved. The tail
is checked before anything is started; nothing is completed before all has been checked.
"""

from __future__ import annotations

from collections.abc import Iterable

from amistore import forks
from amistore.archive.reader import ContainerFile
from amistore.backends import BlockSink, ObjectStore
from amistore.backends.checks import check_kind
from amistore.backends.objects import ObjectRanges
from amistore.container.identity import check_content_id, parse_content_id
from amistore.errors import ChecksumMismatchError, NotFoundError, advising
from amistore.model import Image, Tag
from amistore.objects.finality import is_final
from amistore.objects.restoring import RestoreLog, Restoring
from amistore.objects.resumelog import MemoryResumeLog, ResumeLog, check_log
from amistore.pipeline.foreign import foreign_errors
from amistore.pipeline.holes import HolePolicy
from amistore.pipeline.progress import ProgressCallback
from amistore.pipeline.snapshots import RestoredSnapshots

__all__ = ["restore_snapshots", "unpack_object"]


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
    journal = RestoreLog(MemoryResumeLog() if log is None else log, identity)

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
            Restoring(container, sink, restored, journal, progress).run(workers)
        image = restored.image()
        restored.complete(container.index.volumes)
    journal.log.end()
    return image
