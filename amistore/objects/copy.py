"""`copy_object`: an archive from one store to another, verified on the way.

Through bounded memory, and no disk of this machine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from amistore.backends import ObjectInfo, ObjectStore
from amistore.backends.checks import check_kind
from amistore.backends.objects import ObjectRanges
from amistore.container import ContainerEnd, StoredSegment, container_events, decode_segment
from amistore.container.identity import check_content_id, parse_content_id
from amistore.container.segments import check_stored_frame
from amistore.errors import (
    AlreadyExistsError,
    InvalidRequestError,
    NotFoundError,
    advising,
)
from amistore.objects.piecereader import PieceReader
from amistore.pipeline.foreign import foreign_errors
from amistore.pipeline.workers import ordered_map, worker_pool
from amistore.units import MIB

__all__ = ["copy_object"]

_RANGE = 8 * MIB  # bytes of a read


def copy_object(
    source: ObjectStore,
    destination: ObjectStore,
    place: tuple[str, str],
    to: tuple[str, str],
    *,
    expected_content_id: str | None = None,
    workers: int | None = None,
) -> ObjectInfo:
    """Copy an archive between stores, verified on the way: the copy appears only if all of it is right.

    Every record, the index, the tail and each frame's CRC are checked. Nothing is decompressed but with
    an expected content id: to prove that, each block is decoded and hashed.

    Args:
        source: where it is.
        destination: where it goes; another store, or the same.
        place: bucket and key of the archive.
        to: bucket and key of the copy, which must not exist.
        expected_content_id: refuse another archive; 64 hexadecimal digits.
        workers: ranges read at once; None for the number of CPUs.

    Returns:
        What the store tells of the copy: size, ETag, metadata.

    Raises:
        NotFoundError: no such object.
        AlreadyExistsError: the copy's name is taken.
        CorruptArchiveError: the archive is damaged; no copy is left.
        SourceChangedError: the archive was replaced meanwhile.
    """
    expected = parse_content_id(expected_content_id)
    for store, role in ((source, "source"), (destination, "destination")):
        check_kind(store, ObjectStore, role)
    for each in (place, to):
        if not isinstance(each, tuple) or len(each) != 2:
            raise InvalidRequestError(
                f"a place is a bucket and a key, such as ('archive', 'web.bin'), not {each!r}"
            )
    with foreign_errors("head_object", bucket=place[0], key=place[1]):
        ranges = ObjectRanges(source, *place)
    with contextlib.suppress(NotFoundError), foreign_errors("head_object", bucket=to[0], key=to[1]):
        destination.head_object(*to)
        raise AlreadyExistsError(
            "the object exists: give another key, or delete it first", bucket=to[0], key=to[1]
        )

    def read(offset: int) -> bytes:
        with foreign_errors("get_object_range", bucket=place[0], key=place[1]):
            return ranges.read(offset, _RANGE)

    with (
        worker_pool(workers, None) as (pool, limit),
        contextlib.closing(ordered_map(pool, read, range(0, ranges.size, _RANGE), limit)) as pieces,
        foreign_errors("put_object", bucket=to[0], key=to[1]),
        advising(),
    ):
        return destination.put_object(
            *to,
            _verified(PieceReader(pieces), expected),
            metadata=ranges.metadata,
            if_none_match=True,
            part_size=max(16 * MIB, -(-ranges.size // 9_000)),
        )


def _verified(stream: PieceReader, expected: bytes | None) -> Iterator[bytes]:
    """The bytes of a container as they come, checked no later than at its end; with an expected id proved."""
    events = container_events()
    step = next(events)
    while True:
        if isinstance(step, int):
            content = b"".join(_exactly(stream, step))
            yield content
            step = events.send(content)
            continue
        if isinstance(step, StoredSegment):
            if expected is None:
                for number, frame in enumerate(step.frames):
                    check_stored_frame(step.located, number, frame)
            else:
                for _ in decode_segment(step):
                    pass
        elif isinstance(step, ContainerEnd):
            check_content_id(step.index.content_id, expected)
            return
        step = next(events)


def _exactly(stream: PieceReader, size: int) -> Iterator[bytes]:
    """`size` bytes, fewer only at the end."""
    while size:
        piece = stream.read(min(size, _RANGE))
        if not piece:
            return
        size -= len(piece)
        yield piece
