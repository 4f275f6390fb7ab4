"""`upload_archive`: a container straight into an object, part by part, and on after a crash.

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
from typing import Any

import attrs
import zstandard

from amistore import forks
from amistore.backends import BlockSource, ObjectInfo, ObjectLocation, UploadedPart
from amistore.backends.objects import ObjectRanges
from amistore.container import EncodedSegment, Plan
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
from amistore.objects.results import StoredArchive
from amistore.objects.resumelog import (
    MemoryResumeLog,
    ResumeLog,
    read_task,
    write_entry,
)
from amistore.pipeline.foreign import foreign_errors
from amistore.pipeline.pack import PackOptions, check_packing, plan_pack
from amistore.pipeline.packing import PackedUnit, SegmentEncode, WrittenArchive, packed_units
from amistore.pipeline.progress import ProgressCallback
from amistore.pipeline.workers import ordered_map, worker_pool
from amistore.units import counted

__all__ = ["RUN_KEY", "refuse_existing", "upload_archive"]

RUN_KEY = "amistore-run"
"""Of an object's metadata: which run made it."""

_logger = logging.getLogger("amistore")


def upload_archive(
    image: Image,
    source: BlockSource,
    to: ObjectLocation,
    *,
    log: ResumeLog | None,
    metadata: Mapping[str, str],
    tags: Mapping[str, str] | None,
    overwrite: bool,
    level: int,
    snapshots: Iterable[str] | None,
    workers: int | None,
    progress: ProgressCallback,
    options: PackOptions,
) -> StoredArchive:
    """Pack an image with its snapshots into one object; see `store` for the arguments and errors."""
    check_packing(image, source, level, workers, options.executor)
    planned = plan_pack(image, source, snapshots=snapshots, progress=progress, layout=options.layout)
    run = _Run(to, planned, level, MemoryResumeLog() if log is None else log)
    encode = SegmentEncode(source, level, options.check_frames)
    info = done = run.begin(metadata, tags, overwrite)
    units = packed_units(
        planned, encode, carried=run.carried, workers=workers, executor=options.executor, progress=progress
    )

    def undo(error: BaseException) -> None:
        if log is not None and isinstance(error, BackendError) and run.outdated():
            error.retryable = True  # also of an upload that is gone: the next run begins another
        if done is None and (log is None or is_final(error)):
            run.undo()

    with forks.undoing(undo):
        if info is None:
            run.send(units, workers)
            info = run.complete(overwrite)
        else:
            run.make_end(units)
        run.prove(info, workers, new=not done)
    run.log.end()
    return StoredArchive(location=to, size=info.size, etag=info.etag, content_id=run.written.content_id.hex())


def refuse_existing(to: ObjectLocation) -> None:
    """Tell before the work what completing an upload would tell after it.

    Raises:
        AlreadyExistsError: the object exists.
    """
    with foreign_errors("head_object", **to.facts):
        if to.exists():
            raise AlreadyExistsError("the object exists: give another key, or delete it first", **to.facts)


@attrs.define
class _Run:
    """One run, or the continuation of one."""

    to: ObjectLocation
    planned: Plan
    level: int
    log: ResumeLog
    upload_id: str = ""
    task: str = ""
    parts: list[UploadedPart] = attrs.field(factory=list)
    carried: list[EncodedSegment] = attrs.field(factory=list)
    written: WrittenArchive = attrs.field(init=False)

    def begin(
        self, metadata: Mapping[str, str], tags: Mapping[str, str] | None, overwrite: bool
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
                    _logger.info("resuming %s: %s uploaded", self.to, counted(len(self.parts), "part"))
                    return None
                _logger.warning("the upload to %s is gone: starting over", self.to)
            self.log.clear()
        if not overwrite:
            refuse_existing(self.to)
        self.task = secrets.token_hex(16)
        self.log.append(write_entry(kind="pack", task=self.task, **self._identity()))
        with forks.undoing(lambda _: self.undo()):
            with foreign_errors("create_multipart_upload", **self.to.facts):
                self.upload_id = self.to.store.create_multipart_upload(
                    self.to.bucket, self.to.key, metadata={**metadata, RUN_KEY: self.task}, tags=tags
                )
            self.log.append(write_entry(upload=self.upload_id))
        return None

    def _identity(self) -> dict[str, Any]:
        """What a log must say to be of this run: the same plan gives the same bytes with the same libzstd."""
        return {
            "store": self.to.store.where,
            **self.to.facts,
            "image": self.planned.image.image_id,
            "file": self.planned.file_id.hex(),
            "level": self.level,
            "libzstd": list(zstandard.ZSTD_VERSION),
        }

    def _continue(self, entries: list[bytes]) -> bool:
        """Take over what the log says and the upload has; whether it is there."""
        try:
            with foreign_errors("list_parts", **self.to.facts):
                listed = self.to.store.list_parts(self.to.bucket, self.to.key, self.upload_id)
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
        with contextlib.suppress(NotFoundError), foreign_errors("head_object", **self.to.facts):
            info = self.to.head()
            if info.metadata.get(RUN_KEY) == self.task:
                return info
        return None

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
        with foreign_errors("upload_part", **self.to.facts):
            return part.send(self.to, self.upload_id), part.records

    def complete(self, overwrite: bool) -> ObjectInfo:
        """Make the object visible."""
        try:
            with foreign_errors("complete_multipart_upload", **self.to.facts):
                info = self.to.store.complete_multipart_upload(
                    self.to.bucket, self.to.key, self.upload_id, self.parts, if_none_match=not overwrite
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
                for part in self.to.store.list_parts(self.to.bucket, self.to.key, self.upload_id)
            }
        except Exception as error:
            return isinstance(error, NotFoundError)
        return any(there.get(part.part_number) != part for part in self.parts)

    def prove(self, info: ObjectInfo, workers: int | None, *, new: bool) -> None:
        """Refuse an object that is not what was packed, by its last bytes and what came from the log.

        One that this run has made is deleted; one that was there, or is another's, is not.
        """
        ranges = ObjectRanges(self.to, info)
        count = len(self.carried) if new else self.planned.segments  # what this run has sent needs no more
        try:
            with foreign_errors("get_object_range", **self.to.facts):
                if count:
                    check_object(ranges, self.planned, count, workers)
                check_end(ranges, self.written)
        except (ArchiveError, SourceChangedError) as error:
            replaced = SourceChangedError("the object was replaced as soon as it was made", **self.to.facts)
            if isinstance(error, SourceChangedError) or self._made() is None:
                raise replaced from None
            if not new:
                raise CorruptArchiveError(
                    f"the object that an earlier run made is not what was packed, or its log is not: verify "
                    f"it before you delete it: {error}"
                ) from None
            try:
                with foreign_errors("delete_object", **self.to.facts):
                    # Another's that has taken its place stays: an archive lost is worse than one left.
                    self.to.store.delete_object(self.to.bucket, self.to.key, if_match=info.etag)
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
                self.to.store.abort_multipart_upload(self.to.bucket, self.to.key, self.upload_id)
            except Exception as error:
                _logger.error("upload %s of %s is left behind, abort it: %s", self.upload_id, self.to, error)
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
