"""`copy`: an archive from one store to another, verified on the way.

The bytes pass through bounded memory, and no local disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from amistore.archive.opening import Openable, open_ranges
from amistore.archive.reader import ContainerFile
from amistore.backends import ObjectInfo, ObjectLocation, checks
from amistore.backends.locations import ObjectRanges
from amistore.backends.ranges import RangeReader
from amistore.container import layout
from amistore.container.decoder import ContainerEnd, ContainerStart, container_events
from amistore.container.identity import check_content_id, parse_content_id
from amistore.container.segments import StoredSegment, check_stored_frame, decode_segment
from amistore.errors import CorruptArchiveError, InvalidRequestError, SourceChangedError, advising
from amistore.objects.multipart import RUN_KEY, LoggedUpload, StoredArchive
from amistore.objects.parts import Piece, part_size_for, send_parts
from amistore.objects.resumelog import ResumeLog, using_log
from amistore.objects.store import file_target, write_file
from amistore.objects.upload import check_end
from amistore.pipeline.progress import Phase, Progress, ProgressCallback, ProgressOption, reporting
from amistore.pipeline.requests import requests_of
from amistore.pipeline.unpack import PieceReader
from amistore.pipeline.workers import closing, worker_pool
from amistore.units import MIB, sized

__all__ = ["copy"]

_RANGE = 8 * MIB  # bytes of a read


def copy(
    archive: Openable,
    to: ObjectLocation | str | os.PathLike[str],
    *,
    log: ResumeLog | str | os.PathLike[str] | None = None,
    expected_content_id: str | None = None,
    workers: int | None = None,
    progress: ProgressOption = None,
    options: Mapping[str, Any] | None = None,
) -> StoredArchive:
    """Copy an archive between stores, verified on the way: the copy appears only if all of it is right.

    Every record, the index, the tail and each frame's CRC are checked. Blocks are decoded and hashed only to
    prove an expected content id.

    Args:
        archive: the archive's location, path, URL or open file, as in `open`.
        to: the location of the copy, in the same store or another, or the path of a file; it must not exist.
        log: for objects, a path, or a log, from which a failed or killed run is resumed: its parts are read
            and verified again, but not sent again. Without a log, parts are removed on an error.
        expected_content_id: the only content id to accept, 64 hexadecimal digits; None for any.
        workers: the number of ranges read at once; None for the number of CPUs.
        progress: True for a bar (extra ``progress``), or a function called with a `Progress`.
        options: the options for a URL, as in `open`.

    Returns:
        The copy's location, size, ETag and content id. The content id is proved if one was expected, else it
        is what the archive claims.

    Raises:
        NotFoundError: no such archive, bucket or folder.
        AlreadyExistsError: the copy's key or file exists.
        CorruptArchiveError: the archive is damaged; no copy is left.
        SourceChangedError: the archive was replaced, during this run or since the resumed one.
        InvalidRequestError: the log belongs to another job.
    """
    expected = parse_content_id(expected_content_id)
    target = checks.check_target(to) if isinstance(to, ObjectLocation) else file_target(to, overwrite=False)
    if isinstance(target, Path) and log is not None:
        raise InvalidRequestError("log= goes with an object, not with a file")
    with (
        reporting(progress) as report,
        using_log(log) as opened,
        contextlib.closing(open_ranges(archive, options)) as ranges,
    ):
        if expected is not None:  # what is claimed, before the work; `_Verified` proves it
            with advising():
                check_content_id(ContainerFile(ranges).index.content_id, expected)
        verified = _Verified(ranges, expected, report)
        etag = None
        if isinstance(target, Path):
            with closing(verified.pieces(workers)) as pieces, advising():
                size = write_file(pieces, target, overwrite=False)
        else:
            info = _Sending(verified, target, opened).run(workers)
            size, etag = info.size, info.etag
    return StoredArchive(location=target, size=size, etag=etag, content_id=verified.content_id.hex())


class _Sending:
    """A copy into an object, part by part."""

    def __init__(self, verified: _Verified, to: ObjectLocation, log: ResumeLog | None) -> None:
        """Take the archive's bytes and the object's location; None as log to remove parts on an error."""
        ranges = verified.ranges
        self._verified = verified
        identity = {f"from_{name}": value for name, value in ranges.identity.items()}
        replaced = SourceChangedError(
            "the archive was replaced since the run of this log began: amistore.abandon ends that run",
            bucket=ranges.identity.get("bucket"),
            key=ranges.identity.get("key"),
        )
        most = to.store.traits.most_bytes
        if ranges.size > most:
            raise InvalidRequestError(
                f"the archive has {sized(ranges.size)}, and the objects of {to.store.where or 'the store'} "
                f"{sized(most)} at most: copy it to another store"
            )
        part_size = part_size_for(ranges.size, to.store.traits)
        self._upload = LoggedUpload(to, log, "copy", part_size, identity, {"from_etag": replaced})
        self._end = b""  # the archive's last bytes
        # Of what earlier runs have sent: nothing of a log is believed.
        self._there = 0
        self._digests: list[Any] = []

    def run(self, workers: int | None) -> ObjectInfo:
        """Read and verify the whole archive, and send the missing parts.

        Each part is logged once it is uploaded, except the last: it is sent once all has verified.
        """

        def make(missing: bool) -> None:
            self._there = self._upload.bytes_there() if missing else self._verified.ranges.size
            with closing(self._verified.pieces(workers)) as pieces, advising():
                rest = self._missing(pieces)
                if missing:
                    send_parts(self._upload, rest, workers)
                for _ in rest:
                    pass

        # Another run makes the copy, so it gets another run's id.
        facts = {name: value for name, value in self._verified.ranges.metadata.items() if name != RUN_KEY}
        return self._upload.run(facts, None, make, self._check, overwrite=False)

    def _missing(self, pieces: Iterator[bytes]) -> Iterator[Piece]:
        """The bytes that are not there; what is there is hashed."""
        offset, size = 0, self._upload.part_size
        for piece in pieces:
            self._end = piece[-layout.FOOT_SIZE :]  # the last piece is FOOT
            while piece and offset < self._there:
                if offset % size == 0:
                    self._digests.append(hashlib.sha256())
                hashed = piece[: min(size - offset % size, self._there - offset)]
                self._digests[-1].update(hashed)
                offset += len(hashed)
                piece = piece[len(hashed) :]
            if piece:
                yield piece, None

    def _check(self, copied: ObjectRanges, new: bool) -> None:
        """Refuse a copy that lacks the archive's end, or whose parts of earlier runs differ."""
        for number, digest in enumerate(self._digests):
            found = hashlib.sha256()
            start = number * self._upload.part_size
            end = min(start + self._upload.part_size, self._there)
            for offset in range(start, end, _RANGE):
                found.update(copied.read(offset, min(_RANGE, end - offset)))
            if found.digest() != digest.digest():
                raise CorruptArchiveError("a part of an earlier run is not the archive's", offset=start)
        check_end(copied, self._verified.ranges.size, self._end)


@attrs.define
class _Verified:
    """The bytes of a container in order, checked by its end.

    Attributes:
        ranges: the bytes.
        expected: the content id that is proved; None for any, unproved.
        progress: a function called with a `Progress` after each segment.
        content_id: the archive's content id, known at the end.
    """

    ranges: RangeReader
    expected: bytes | None
    progress: ProgressCallback
    content_id: bytes = b""

    def pieces(self, workers: int | None) -> Generator[bytes, None, None]:
        """All bytes, read in parallel."""
        with (
            worker_pool(workers, None, requests=requests_of(self.ranges)) as pool,
            closing(pool.map(self._read, range(0, self.ranges.size, _RANGE), most=pool.count + 1)) as ranges,
        ):
            yield from self._checked(PieceReader(ranges))

    def _read(self, offset: int) -> bytes:
        return self.ranges.read(offset, _RANGE)

    def _checked(self, stream: PieceReader) -> Iterator[bytes]:
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
