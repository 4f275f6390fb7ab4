"""`pack_object`: a container straight into an object, part by part, and on after a crash.

The log says of each part which segments it holds, and keeps their descriptors: what the
index at the container's end needs of them. A run that goes on plans anew, and takes from the
log what the plan, the upload's own list of parts and, in the end, the object confirm.

What was stored is told by what was computed here. The store is asked only whether it has that: by the
ETag of the object's completion, and by its last bytes, which bind all others.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from typing import Any

import attrs
import zstandard

from amistore import forks
from amistore.backends import BlockSource, ObjectInfo, ObjectStore, UploadedPart
from amistore.backends.checks import check_kind
from amistore.backends.objects import ObjectRanges
from amistore.container import EncodedSegment, Layout, Plan
from amistore.errors import (
    AlreadyExistsError,
    ArchiveError,
    BackendError,
    CorruptArchiveError,
    InvalidRequestError,
    NotFoundError,
    SourceChangedError,
)
from amistore.model import Image
from amistore.objects.carried import carried_part, check_end, check_object, part_entries, upload_id_of
from amistore.objects.finality import is_final
from amistore.objects.parts import Part, cut_parts, skip_segments
from amistore.objects.resumelog import (
    MemoryResumeLog,
    ResumeLog,
    check_log,
    read_task,
    write_entry,
)
from amistore.pipeline.foreign import foreign_errors
from amistore.pipeline.pack import check_packing, plan_pack
from amistore.pipeline.packing import PackedUnit, SegmentEncode, WrittenArchive, packed_units
from amistore.pipeline.progress import ProgressCallback
from amistore.pipeline.workers import ordered_map, worker_pool
from amistore.units import counted

__all__ = ["RUN_KEY", "StoredArchive", "pack_object"]

RUN_KEY = "amistore-run"
"""Of an object's metadata: which run made it."""

_logger = logging.getLogger("amistore")


@attrs.frozen(kw_only=True)
class StoredArchive:
    """An archive that was stored as an object.

    Attributes:
        bucket: the bucket that holds the object.
        key: of the object.
        size: in bytes.
        etag: of the object, as its completion gave it.
        content_id: computed while it was made, never read back: 64 hexadecimal digits. Keep it where
            nobody who can write the bucket can: `expected_content_id` proves later that it is this archive.
    """

    bucket: str
    key: str
    size: int
    etag: str
    content_id: str


def pack_object(
    image: Image,
    source: BlockSource,
    store: ObjectStore,
    bucket: str,
    key: str,
    *,
    log: ResumeLog | None = None,
    metadata: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
    if_none_match: bool = True,
    level: int = 3,
    snapshots: Iterable[str] | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: ProgressCallback = None,
    check_frames: bool = True,
    layout: Layout | None = None,
) -> StoredArchive:
    """Pack an image with its snapshots into one object, which appears when it is complete.

    Parts above 32 MiB, of images above some 300 GiB or of data that cannot be compressed, are kept
    in unlinked temporary files (in ``TMPDIR``) until they are sent: one for each worker, and one more.

    Args:
        image: what to pack, such as `describe_image` returns.
        source: where its snapshots are.
        store: where the object goes.
        bucket: must exist.
        key: of the object; ``<image id>.bin`` is EC2's.
        log: from which an earlier run that ended in a crash or an error is continued. Parts
            that it sent are not sent again, and their blocks not read. Without one, what was
            sent is removed on an error.
        metadata: of the object; `RUN_KEY` is added.
        tags: of the object.
        if_none_match: refuse when the object exists.
        level: zstd level; this and the options below as in `pack`.
        snapshots: ids of those to include.
        workers: segments worked on, and parts sent, at once.
        executor: where to work.
        progress: called with a `Progress`.
        check_frames: decode each frame and compare it.
        layout: how to cut the container; None for what fits its size.

    Returns:
        Where and what it is, with the content id that was computed.

    Raises:
        AlreadyExistsError: the object exists, with `if_none_match`.
        SourceChangedError: the image or a snapshot is not what it was in the run that is continued; or
            the object was replaced as soon as it was made.
        CorruptArchiveError: the store has not what was sent to it.
        InvalidRequestError: the log is of something else.
        BackendError: source or store failed; with a log the next run goes on from here.
    """
    check_packing(image, source, level, workers, executor)
    check_kind(store, ObjectStore, "store")
    check_log(log)
    planned = plan_pack(image, source, snapshots=snapshots, progress=progress, layout=layout)
    run = _Run(store, bucket, key, planned, level, MemoryResumeLog() if log is None else log)
    encode = SegmentEncode(source, level, check_frames)
    info = done = run.begin(metadata, tags, if_none_match)
    units = packed_units(
        planned, encode, carried=run.carried, workers=workers, executor=executor, progress=progress
    )

    def undo(error: BaseException) -> None:
        if log is not None and isinstance(error, BackendError) and run.outdated():
            error.retryable = True  # also of an upload that is gone: the next run begins another
        if done is None and (log is None or is_final(error)):
            run.undo()

    with forks.undoing(undo):
        if info is None:
            run.send(units, workers)
            info = run.complete(if_none_match)
        else:
            run.make_end(units)
        run.prove(info, workers, new=not done)
    run.log.end()
    return StoredArchive(
        bucket=bucket,
        key=key,
        size=info.size,
        etag=info.etag,
        content_id=run.written.content_id.hex(),
    )


@attrs.define
class _Run:
    """One run, or the continuation of one."""

    store: ObjectStore
    bucket: str
    key: str
    planned: Plan
    level: int
    log: ResumeLog
    upload_id: str = ""
    task: str = ""
    parts: list[UploadedPart] = attrs.field(factory=list)
    carried: list[EncodedSegment] = attrs.field(factory=list)
    written: WrittenArchive = attrs.field(init=False)

    def begin(
        self, metadata: Mapping[str, str] | None, tags: Mapping[str, str] | None, if_none_match: bool
    ) -> ObjectInfo | None:
        """Begin an upload, or go on with the log's; gives the object if that is there already."""
        entries = self.log.entries()
        if entries:
            changed = SourceChangedError(
                "the image, its snapshots or the layout are not what they were when the run began that "
                "the resume log is of: amistore.abandon ends that run",
                image_id=self.planned.image.image_id,
            )
            self.task = read_task(entries[0], "pack", self._identity(), {"file": changed})
            upload_id = upload_id_of(entries)
            if upload_id is not None:
                self.upload_id = upload_id
                info = self._made()
                if info is not None:
                    self._abort()
                    self._carry(part_entries(entries[2:]), None)
                    return info
                if self._continue(part_entries(entries[2:])):
                    place = f"{self.bucket}/{self.key}"
                    _logger.info("%s: %s there, going on", place, counted(len(self.parts), "part"))
                    return None
                _logger.warning("the upload to %s/%s is gone: starting over", self.bucket, self.key)
            self.log.clear()
        if if_none_match:
            self._refuse_existing()
        self.task = secrets.token_hex(16)
        self.log.append(write_entry(kind="pack", task=self.task, **self._identity()))
        with forks.undoing(lambda _: self.undo()):
            with foreign_errors("create_multipart_upload", bucket=self.bucket, key=self.key):
                self.upload_id = self.store.create_multipart_upload(
                    self.bucket, self.key, metadata={**(metadata or {}), RUN_KEY: self.task}, tags=tags
                )
            self.log.append(write_entry(upload=self.upload_id))
        return None

    def _identity(self) -> dict[str, Any]:
        """What a log must say to be of this run: the same plan gives the same bytes with the same libzstd."""
        return {
            "store": self.store.where,
            "bucket": self.bucket,
            "key": self.key,
            "image": self.planned.image.image_id,
            "file": self.planned.file_id.hex(),
            "level": self.level,
            "libzstd": list(zstandard.ZSTD_VERSION),
        }

    def _continue(self, entries: list[bytes]) -> bool:
        """Take over what the log says and the upload has; whether it is there."""
        try:
            with foreign_errors("list_parts", bucket=self.bucket, key=self.key):
                listed = self.store.list_parts(self.bucket, self.key, self.upload_id)
        except NotFoundError:
            return False
        self._carry(entries, {part.part_number: part for part in listed})
        return True

    def _carry(self, entries: list[bytes], there: Mapping[int, UploadedPart] | None) -> None:
        """Take over the log's parts, up to the first that is not there; all of an object that is."""
        for number, entry in enumerate(entries, 1):
            part, segments = carried_part(number, entry, self.planned, len(self.carried))
            if there is not None and there.get(number) != part:
                break
            self.parts.append(part)
            self.carried += segments

    def _made(self) -> ObjectInfo | None:
        """The object, if it is this run's."""
        place = {"bucket": self.bucket, "key": self.key}
        with contextlib.suppress(NotFoundError), foreign_errors("head_object", **place):
            info = self.store.head_object(self.bucket, self.key)
            if info.metadata.get(RUN_KEY) == self.task:
                return info
        return None

    def _refuse_existing(self) -> None:
        """Tell before the work what completing would tell after it."""
        place = {"bucket": self.bucket, "key": self.key}
        with contextlib.suppress(NotFoundError), foreign_errors("head_object", **place):
            self.store.head_object(self.bucket, self.key)
            raise AlreadyExistsError(
                "the object exists: give another key, or delete it first",
                bucket=self.bucket,
                key=self.key,
            )

    def send(self, units: Generator[PackedUnit, None, None], workers: int | None) -> None:
        """Send all parts that were not carried over; each is logged once all before it are."""
        with (
            contextlib.closing(units),
            worker_pool(workers, None) as (pool, limit),
            _closing_parts() as begun,
            contextlib.closing(
                ordered_map(pool, self._send, self._cut(self._noted(units), begun), limit // 2)
            ) as sent,
        ):
            for part, records in sent:
                begun.popleft()
                self.parts.append(part)
                if records:
                    entry = write_entry(part=part.part_number, size=part.size, etag=part.etag)
                    self.log.append(entry + b"\n" + b"".join(records))

    def make_end(self, units: Generator[PackedUnit, None, None]) -> None:
        """Make again what the log has nothing of, the last part: what the object must end with."""
        with contextlib.closing(units):
            for unit in self._noted(units):
                unit.pieces.clear()

    def _noted(self, units: Iterator[PackedUnit]) -> Iterator[PackedUnit]:
        """The units, of which the last one tells what the whole is."""
        for unit in units:
            if unit.written is not None:
                self.written = unit.written
            yield unit

    def _cut(self, units: Iterator[PackedUnit], begun: deque[Part]) -> Iterator[Part]:
        """The parts that were not carried over."""
        end = skip_segments(units, len(self.carried))
        if end != sum(part.size for part in self.parts):
            raise InvalidRequestError("the resume log's parts have another size than their segments")
        return cut_parts(units, self.planned.layout.part_size, len(self.parts) + 1, begun)

    def _send(self, part: Part) -> tuple[UploadedPart, list[bytes]]:
        """Runs in a worker."""
        with foreign_errors("upload_part", bucket=self.bucket, key=self.key):
            return part.send(self.store, self.bucket, self.key, self.upload_id), part.records

    def complete(self, if_none_match: bool) -> ObjectInfo:
        """Make the object visible."""
        try:
            with foreign_errors("complete_multipart_upload", bucket=self.bucket, key=self.key):
                info = self.store.complete_multipart_upload(
                    self.bucket, self.key, self.upload_id, self.parts, if_none_match=if_none_match
                )
        except BackendError:
            # This attempt or an earlier one, whose answer was lost, may have made it.
            ours = self._made()
            if ours is None:
                raise
            info = ours
            self._abort()
        self.upload_id = ""
        return info

    def outdated(self) -> bool:
        """Whether the upload is gone, or its parts are not those this run has sent.

        Another run has changed it, or a sweep or a rule of the bucket aborted it; the next run begins
        with what is there.
        """
        if not self.upload_id:
            return False
        try:
            there = {
                part.part_number: part
                for part in self.store.list_parts(self.bucket, self.key, self.upload_id)
            }
        except Exception as error:
            return isinstance(error, NotFoundError)
        return any(there.get(part.part_number) != part for part in self.parts)

    def prove(self, info: ObjectInfo, workers: int | None, *, new: bool) -> None:
        """Refuse an object that is not what was packed, by its last bytes and what came from the log.

        One that this run has made is deleted; one that was there, or is another's, is not.
        """
        ranges = ObjectRanges(self.store, self.bucket, self.key, info)
        count = len(self.carried) if new else self.planned.segments  # what this run has sent needs no more
        try:
            with foreign_errors("get_object_range", bucket=self.bucket, key=self.key):
                if count:
                    check_object(ranges, self.planned, count, workers)
                check_end(ranges, self.written)
        except (ArchiveError, SourceChangedError) as error:
            replaced = SourceChangedError(
                "the object was replaced as soon as it was made", bucket=self.bucket, key=self.key
            )
            if isinstance(error, SourceChangedError) or self._made() is None:
                raise replaced from None
            if not new:
                raise CorruptArchiveError(
                    f"the object that an earlier run made is not what was packed, or its log is not: verify "
                    f"it before you delete it: {error}"
                ) from None
            try:
                with foreign_errors("delete_object", bucket=self.bucket, key=self.key):
                    # Another's that has taken its place stays: an archive lost is worse than one left.
                    self.store.delete_object(self.bucket, self.key, if_match=info.etag)
            except SourceChangedError as refusal:
                if self._made() is None:
                    raise replaced from None
                raise CorruptArchiveError(
                    f"the object is not what was packed, and was not deleted, delete it: {refusal}; {error}"
                ) from None
            raise CorruptArchiveError(
                f"the object of {info.size} bytes was not what was packed, and was deleted: {error}"
            ) from None

    def undo(self) -> None:
        """Abort the upload, and end the run, unless that failed."""
        if self._abort():
            self.log.clear()

    def _abort(self) -> bool:
        """Abort the upload, or what a store that died while it completed it has left of it.

        Gives whether it is gone; what cannot be aborted is logged by its id.
        """
        if self.upload_id:
            try:
                self.store.abort_multipart_upload(self.bucket, self.key, self.upload_id)
            except Exception as error:
                _logger.error(
                    "upload %s of %s/%s is left behind, abort it: %s",
                    self.upload_id,
                    self.bucket,
                    self.key,
                    error,
                )
                return False
            self.upload_id = ""
        return True


@contextlib.contextmanager
def _closing_parts() -> Iterator[deque[Part]]:
    """Parts that were begun and not sent yet; those left at the end are closed."""
    begun: deque[Part] = deque()
    try:
        yield begun
    finally:
        for part in begun:
            part.close()
