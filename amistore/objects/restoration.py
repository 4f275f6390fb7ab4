"""`restore_snapshots`: snapshots from a container that is read by ranges, segment by segment; resumable.

`restoring.py` verifies all of it and puts each block that is proved. The tail
is checked before anything is started; nothing is completed before all has been checked.
"""

from __future__ import annotations

from collections.abc import Iterable

from amistore import forks
from amistore.archive.reader import ContainerFile
from amistore.backends import BlockSink
from amistore.backends.checks import check_kind
from amistore.container.identity import check_content_id
from amistore.errors import ChecksumMismatchError, NotFoundError, advising
from amistore.model import Image, Tag
from amistore.objects.finality import is_final
from amistore.objects.restoring import RestoreLog, Restoring
from amistore.objects.resumelog import MemoryResumeLog, ResumeLog
from amistore.pipeline.holes import HolePolicy
from amistore.pipeline.progress import ProgressCallback
from amistore.pipeline.snapshots import RestoredSnapshots

__all__ = ["restore_snapshots"]


def restore_snapshots(
    container: ContainerFile,
    sink: BlockSink,
    holes: HolePolicy,
    *,
    log: ResumeLog | None,
    expected: bytes | None,
    snapshots: Iterable[str] | None = None,
    tags: Iterable[Tag],
    allow_lost: bool,
    workers: int | None,
    progress: ProgressCallback,
) -> Image:
    """`unpack` of an archive that is opened: all of it is read from what that is pinned to."""
    check_kind(sink, BlockSink, "sink")
    check_content_id(container.index.content_id, expected)  # what is restored is proved to be of this id
    chosen = None if snapshots is None else sorted({snapshots} if isinstance(snapshots, str) else snapshots)
    image = container.image.with_tags(snapshot_tags=tags)
    restored = RestoredSnapshots(image, sink, chosen, allow_lost, holes)
    identity = {
        **container.identity,
        "sink": sink.where,
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
