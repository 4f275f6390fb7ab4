"""`upload_archive`: a container goes straight into an object, part by part, and is resumed after a crash.

The log keeps the segment descriptors of each part, which the index at the container's end needs. A resumed
run plans anew, and takes from the log what the plan, the upload's own list of parts and, in the end, the
object confirm.

The result is computed here. The store only confirms it: by the ETag that the object has at its completion,
and by the object's last bytes, which bind all others.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping

import attrs
import zstandard

from amistore import forks
from amistore.backends import BlockSource, ObjectInfo, ObjectLocation, UploadedPart
from amistore.backends.objects import ObjectRanges
from amistore.container.encoder import EncodedSegment
from amistore.container.plan import Plan
from amistore.errors import InvalidRequestError, SourceChangedError
from amistore.model import Image
from amistore.objects.multipart import LoggedUpload
from amistore.objects.parts import Part, carried_segments, check_end, check_object, cut_parts, skip_segments
from amistore.objects.results import StoredArchive
from amistore.objects.resumelog import MemoryResumeLog, ResumeLog
from amistore.pipeline.pack import PackOptions, check_packing, plan_pack
from amistore.pipeline.packing import PackedUnit, SegmentEncode, WrittenArchive, packed_units
from amistore.pipeline.progress import ProgressCallback
from amistore.pipeline.requests import requests_of
from amistore.pipeline.workers import ordered_map, worker_pool

__all__ = ["upload_archive"]


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
    upload = _upload(to, MemoryResumeLog() if log is None else log, planned, level)
    run = _Run(upload, planned)
    encode = SegmentEncode(level, options.check_frames)
    info = done = run.begin(metadata, tags, overwrite)
    units = packed_units(
        planned,
        source,
        encode,
        carried=run.carried,
        workers=workers,
        executor=options.executor,
        progress=progress,
    )
    with forks.undoing(lambda error: upload.end_run(error, durable=log is not None, done=done is not None)):
        if info is None:
            run.send(units, workers)
            info = upload.complete(overwrite)
        else:
            run.make_end(units)
        run.prove(info, workers, new=not done)
    upload.log.end()
    return StoredArchive(location=to, size=info.size, etag=info.etag, content_id=run.written.content_id.hex())


def _upload(to: ObjectLocation, log: ResumeLog, planned: Plan, level: int) -> LoggedUpload:
    """The upload: the same plan, level and libzstd give the same bytes, so the log must have these."""
    return LoggedUpload(
        to,
        log,
        "pack",
        identity={
            "image": planned.image.image_id,
            "file": planned.file_id.hex(),
            "level": level,
            "libzstd": list(zstandard.ZSTD_VERSION),
        },
        changed={
            "file": SourceChangedError(
                "the image, its snapshots or the layout changed since the run of this log began: "
                "amistore.abandon ends that run",
                image_id=planned.image.image_id,
            )
        },
    )


@attrs.define
class _Run:
    """One run of packing into an object, or one that resumes another."""

    upload: LoggedUpload
    planned: Plan
    carried: list[EncodedSegment] = attrs.field(factory=list)
    written: WrittenArchive = attrs.field(init=False)

    def begin(
        self, metadata: Mapping[str, str], tags: Mapping[str, str] | None, overwrite: bool
    ) -> ObjectInfo | None:
        """Begin the upload, or take over an earlier run's parts; return the object if it is complete."""
        info = self.upload.begin(metadata, tags, overwrite)
        for number, entry in enumerate(self.upload.carried, 1):
            self.carried += carried_segments(number, entry, self.planned, len(self.carried))
        return info

    def send(self, units: Generator[PackedUnit, None, None], workers: int | None) -> None:
        """Send all parts that are missing; each is logged once all before it are."""
        with (
            contextlib.closing(units),
            worker_pool(workers, None, requests=requests_of(self.upload.to.store)) as (pool, limit),
            _closing_parts() as begun,
            contextlib.closing(
                ordered_map(
                    pool, self._send, self._cut(self._noted(units), begun), limit // 2, Part.in_memory
                )
            ) as sent,
        ):
            for part, records in sent:
                begun.popleft()
                self.upload.note(part, b"".join(records))

    def make_end(self, units: Generator[PackedUnit, None, None]) -> None:
        """Make the last part again, which the log does not have: the object must end with it."""
        with contextlib.closing(units):
            for unit in self._noted(units):
                unit.pieces.clear()

    def _noted(self, units: Iterator[PackedUnit]) -> Iterator[PackedUnit]:
        """The units; the last one's facts about the whole archive are kept."""
        for unit in units:
            if unit.written is not None:
                self.written = unit.written
            yield unit

    def _cut(self, units: Iterator[PackedUnit], begun: deque[Part]) -> Iterator[Part]:
        """The parts that are missing."""
        parts = self.upload.parts
        end = skip_segments(units, len(self.carried))
        if end != sum(part.size for part in parts):
            raise InvalidRequestError("the resume log's parts have another size than their segments")
        return cut_parts(units, self.planned.layout.part_size, len(parts) + 1, begun)

    def _send(self, part: Part) -> tuple[UploadedPart, list[bytes]]:
        """Runs in a worker."""
        return part.send(self.upload.to, self.upload.upload_id), part.records

    def prove(self, info: ObjectInfo, workers: int | None, *, new: bool) -> None:
        """Refuse an object whose last bytes, or parts from the log, are not what was packed."""
        count = len(self.carried) if new else self.planned.segments  # what this run has sent needs no more

        def check(ranges: ObjectRanges) -> None:
            if count:
                check_object(ranges, self.planned, count, workers)
            check_end(ranges, self.written.size, self.written.foot)

        self.upload.prove(info, check, new=new)


@contextlib.contextmanager
def _closing_parts() -> Iterator[deque[Part]]:
    """A list of parts begun and not sent; those left at the end are closed."""
    begun: deque[Part] = deque()
    try:
        yield begun
    finally:
        for part in begun:
            part.close()
