"""`copy`: an archive from one store to another, verified on the way.

Through bounded memory, and no disk of this machine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import attrs

from amistore.backends import ObjectLocation
from amistore.backends.checks import check_kind
from amistore.backends.objects import ObjectRanges
from amistore.container import ContainerEnd, ContainerStart, StoredSegment, container_events, decode_segment
from amistore.container.identity import check_content_id, parse_content_id
from amistore.container.segments import check_stored_frame
from amistore.errors import advising
from amistore.objects.piecereader import PieceReader
from amistore.objects.results import StoredArchive
from amistore.objects.upload import refuse_existing
from amistore.pipeline.foreign import foreign_errors
from amistore.pipeline.progress import Phase, Progress, ProgressCallback
from amistore.pipeline.workers import ordered_map, worker_pool
from amistore.units import MIB

__all__ = ["copy"]

_RANGE = 8 * MIB  # bytes of a read


def copy(
    archive: ObjectLocation,
    to: ObjectLocation,
    *,
    expected_content_id: str | None = None,
    workers: int | None = None,
    progress: ProgressCallback = None,
) -> StoredArchive:
    """Copy an archive between stores, verified on the way: the copy appears only if all of it is right.

    Every record, the index, the tail and each frame's CRC are checked. Nothing is decompressed but with
    an expected content id: to prove that, each block is decoded and hashed.

    Args:
        archive: the object to copy.
        to: the copy, in the same store or another; it must not exist.
        expected_content_id: refuse another archive; 64 hexadecimal digits.
        workers: ranges read at once; None for the number of CPUs.
        progress: called with a `Progress`.

    Returns:
        Where the copy is, its size and ETag, and its content id: proved with an expected one, else what
        the archive claims.

    Raises:
        NotFoundError: no such object.
        AlreadyExistsError: the copy's name is taken.
        CorruptArchiveError: the archive is damaged; no copy is left.
        SourceChangedError: the archive was replaced meanwhile.
    """
    expected = parse_content_id(expected_content_id)
    for given, role in ((archive, "archive"), (to, "target")):
        check_kind(given, ObjectLocation, role, "backend.s3.at(bucket, key) gives one")
    with foreign_errors("head_object", **archive.facts):
        ranges = ObjectRanges(archive)
    refuse_existing(to)

    def read(offset: int) -> bytes:
        with foreign_errors("get_object_range", **archive.facts):
            return ranges.read(offset, _RANGE)

    verified = _Verified(expected, progress)
    with (
        worker_pool(workers, None) as (pool, limit),
        contextlib.closing(ordered_map(pool, read, range(0, ranges.size, _RANGE), limit)) as pieces,
        foreign_errors("put_object", **to.facts),
        advising(),
    ):
        info = to.store.put_object(
            to.bucket,
            to.key,
            verified.pieces(PieceReader(pieces)),
            metadata=ranges.metadata,
            if_none_match=True,
            part_size=max(16 * MIB, -(-ranges.size // 9_000)),
        )
    return StoredArchive(location=to, size=info.size, etag=info.etag, content_id=verified.content_id.hex())


@attrs.define
class _Verified:
    """The bytes of a container as they come, checked no later than at its end.

    Attributes:
        expected: what the content id must be, then proved; None for what it is.
        progress: called with a `Progress` after each segment.
        content_id: the archive's, at the end.
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
        if self.progress is not None:
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
