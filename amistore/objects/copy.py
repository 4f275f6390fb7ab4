"""`copy`: an archive from one store to another, verified on the way.

The bytes pass through bounded memory, and no local disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator

import attrs

from amistore import forks
from amistore.archive.reader import ContainerFile
from amistore.backends import ObjectLocation
from amistore.backends.checks import check_kind
from amistore.backends.objects import ObjectRanges, UploadedPart
from amistore.container import layout
from amistore.container.decoder import ContainerEnd, ContainerStart, container_events
from amistore.container.identity import check_content_id, parse_content_id
from amistore.container.segments import StoredSegment, check_stored_frame, decode_segment
from amistore.errors import CorruptArchiveError, SourceChangedError, advising
from amistore.objects.multipart import RUN_KEY, LoggedUpload
from amistore.objects.parts import check_end
from amistore.objects.results import StoredArchive
from amistore.objects.resumelog import MemoryResumeLog, ResumeLog, using_log
from amistore.pipeline.progress import Phase, Progress, ProgressCallback, ProgressOption, reporting
from amistore.pipeline.requests import requests_of
from amistore.pipeline.unpack import PieceReader
from amistore.pipeline.workers import ordered_map, worker_pool
from amistore.units import MIB

__all__ = ["copy"]

_RANGE = 8 * MIB  # bytes of a read
_PART = 16 * MIB  # bytes of a part, more where there would be too many
_MOST_PARTS = 9_000


def copy(
    archive: ObjectLocation,
    to: ObjectLocation,
    *,
    log: ResumeLog | str | os.PathLike[str] | None = None,
    expected_content_id: str | None = None,
    workers: int | None = None,
    progress: ProgressOption = None,
) -> StoredArchive:
    """Copy an archive between stores, verified on the way: the copy appears only if all of it is right.

    Every record, the index, the tail and each frame's CRC are checked. Blocks are decoded and hashed only to
    prove an expected content id.

    Args:
        archive: the location of the archive.
        to: the location of the copy, in the same store or another; it must not exist.
        log: a path, or a log, from which a failed or killed run is resumed: its parts are read and verified
            again, but not sent again. Without a log, parts are removed on an error.
        expected_content_id: the only content id to accept, 64 hexadecimal digits; None for any.
        workers: the number of ranges read at once; None for the number of CPUs.
        progress: True for a bar (extra ``progress``), or a function called with a `Progress`.

    Returns:
        The copy's location, size, ETag and content id. The content id is proved if one was expected, else it
        is what the archive claims.

    Raises:
        NotFoundError: no such object.
        AlreadyExistsError: the copy's key exists.
        CorruptArchiveError: the archive is damaged; no copy is left.
        SourceChangedError: the archive was replaced, during this run or since the resumed one.
        InvalidRequestError: the log belongs to another job.
    """
    expected = parse_content_id(expected_content_id)
    for given, role in ((archive, "archive"), (to, "target")):
        check_kind(given, ObjectLocation, role, "backend.s3.at(bucket, key) gives one")
    with reporting(progress) as report, using_log(log) as opened:
        verified = _Verified(expected, report)
        ranges = ObjectRanges(archive)
        if expected is not None:  # what is claimed, before the work; `_Verified` proves it
            with advising():
                check_content_id(ContainerFile(ranges).index.content_id, expected)
        part_size = max(_PART, -(-ranges.size // _MOST_PARTS))
        upload = _begin(ranges, to, part_size, MemoryResumeLog() if opened is None else opened)
        info = done = upload.begin(_metadata(ranges), None, overwrite=False)
        with forks.undoing(
            lambda error: upload.end_run(error, durable=opened is not None, done=done is not None)
        ):
            sending = _Sending(ranges, upload, part_size, sends=info is None)
            with advising():
                sending.run(verified, workers)
            info = info or upload.complete(overwrite=False)
            upload.prove(info, sending.prove, new=not done)
        upload.log.end()
    return StoredArchive(location=to, size=info.size, etag=info.etag, content_id=verified.content_id.hex())


def _begin(ranges: ObjectRanges, to: ObjectLocation, part_size: int, log: ResumeLog) -> LoggedUpload:
    replaced = SourceChangedError(
        "the archive was replaced since the run of this log began: amistore.abandon ends that run",
        **ranges.location.facts,
    )
    identity = {f"from_{name}": value for name, value in ranges.identity.items()}
    return LoggedUpload(
        to, log, "copy", {**identity, "part_size": part_size}, changed={"from_etag": replaced}
    )


def _metadata(ranges: ObjectRanges) -> dict[str, str]:
    """The archive's metadata without the id of its run: another run makes the copy."""
    return {name: value for name, value in ranges.metadata.items() if name != RUN_KEY}


@attrs.frozen
class _Part:
    """A part of a copy, and what the log keeps of it."""

    number: int
    content: bytearray
    records: bytes

    def size(self) -> int:
        return len(self.content)


@attrs.define
class _Sending:
    """The bytes of a copy, part by part.

    Attributes:
        ranges: the archive's bytes.
        upload: the copy's upload.
        part_size: the size in bytes of each part except the last.
        sends: whether parts are missing; False if an earlier run completed the copy.
        end: the archive's last bytes.
        digests: the digests of the first parts, which this run did not send: nothing of a log is believed.
    """

    ranges: ObjectRanges
    upload: LoggedUpload
    part_size: int
    sends: bool
    end: bytes = b""
    digests: list[bytes] = attrs.field(factory=list)

    def run(self, verified: _Verified, workers: int | None) -> None:
        """Read and verify the whole archive, and send the missing parts.

        Each part is logged once it is uploaded, except the last: it is sent once all has verified.
        """
        to = requests_of(self.upload.to.store)
        with (
            worker_pool(workers, None, requests=self.ranges.requests) as (readers, most),
            contextlib.closing(
                ordered_map(readers, self._read, range(0, self.ranges.size, _RANGE), most // 2 + 1)
            ) as pieces,
            worker_pool(workers, None, requests=to) as (senders, most),
            contextlib.closing(
                ordered_map(senders, self._send, self._parts(verified, pieces), most // 2, _Part.size)
            ) as sent,
        ):
            for part, records in sent:
                self.upload.note(part, records)

    def _read(self, offset: int) -> bytes:
        return self.ranges.read(offset, _RANGE)

    def _parts(self, verified: _Verified, pieces: Iterator[bytes]) -> Iterator[_Part]:
        """The parts that are missing; the last one comes once all has verified."""
        pending = bytearray()
        number = 1
        for piece in verified.pieces(PieceReader(pieces)):
            pending += piece
            while len(pending) > self.part_size + layout.FOOT_SIZE:
                yield from self._missing(_Part(number, pending[: self.part_size], b"verified"))
                del pending[: self.part_size]
                number += 1
        self.end = bytes(pending[-layout.FOOT_SIZE :])
        yield from self._missing(_Part(number, pending, b""))

    def _missing(self, part: _Part) -> Iterator[_Part]:
        if part.number <= len(self.upload.carried) or not self.sends:
            self.digests.append(hashlib.sha256(part.content).digest())
        else:
            yield part

    def _send(self, part: _Part) -> tuple[UploadedPart, bytes]:
        """Runs in a thread."""
        to = self.upload.to
        sent = to.store.upload_part(to.bucket, to.key, self.upload.upload_id, part.number, part.content)
        return sent, part.records

    def prove(self, copied: ObjectRanges) -> None:
        """Refuse a copy that lacks the archive's end, or whose parts of earlier runs differ."""
        for number, digest in enumerate(self.digests):
            found = hashlib.sha256()
            start = number * self.part_size
            for offset in range(start, min(start + self.part_size, copied.size), _RANGE):
                found.update(copied.read(offset, min(_RANGE, start + self.part_size - offset)))
            if found.digest() != digest:
                raise CorruptArchiveError("a part of an earlier run is not the archive's", offset=start)
        check_end(copied, self.ranges.size, self.end)


@attrs.define
class _Verified:
    """The bytes of a container in order, checked by its end.

    Attributes:
        expected: the content id that is proved; None for any, unproved.
        progress: a function called with a `Progress` after each segment.
        content_id: the archive's content id, known at the end.
    """

    expected: bytes | None
    progress: ProgressCallback
    content_id: bytes = b""

    def pieces(self, stream: PieceReader) -> Iterator[bytes]:
        events = container_events()
        step = next(events)
        blocks = total = 0
        while True:
            if isinstance(step, int):
                content = b"".join(_exactly(stream, step))
                yield content
                step = events.send(content)
                continue
            if isinstance(step, ContainerStart):
                total = step.head.blocks
            elif isinstance(step, StoredSegment):
                self._check(step)
                blocks += step.located.descriptor.runs.blocks
                self._report(blocks, total, step.located.end)
            elif isinstance(step, ContainerEnd):
                self.content_id = step.index.content_id
                check_content_id(self.content_id, self.expected)
                return
            step = next(events)

    def _check(self, stored: StoredSegment) -> None:
        if self.expected is None:
            for number, frame in enumerate(stored.frames):
                check_stored_frame(stored.located, number, frame)
            return
        for _ in decode_segment(stored):
            pass

    def _report(self, blocks: int, total: int, stored: int) -> None:
        event = Progress(phase=Phase.COPY, blocks=blocks, total_blocks=total, stored_bytes=stored)
        self.progress(event)


def _exactly(stream: PieceReader, size: int) -> Iterator[bytes]:
    """`size` bytes, fewer only at the end."""
    while size:
        piece = stream.read(min(size, _RANGE))
        if not piece:
            return
        size -= len(piece)
        yield piece
