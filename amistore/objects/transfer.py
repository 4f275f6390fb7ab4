"""`transfer`: an AMI from one backend to another, and `copy_object`: an archive between stores.

Two sets of credentials, no local disk: what is read from one side goes to the other through
bounded memory. On the way it is a container, so every block is verified as in any restore.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Generator, Iterator
from typing import BinaryIO, cast

from typing_extensions import Buffer

from amistore.archive.reader import ContainerFile
from amistore.backends import Backend, ObjectInfo, ObjectStore
from amistore.backends.ranges import ObjectRanges
from amistore.container import ContainerEnd, StoredSegment, container_events
from amistore.container.frames import check_frame
from amistore.errors import (
    AlreadyExistsError,
    CorruptArchiveError,
    InvalidRequestError,
    SourceChangedError,
)
from amistore.model import Image
from amistore.objects.restoration import unpack_object
from amistore.objects.resumelog import ResumeLog
from amistore.objects.upload import pack_object
from amistore.pipeline.foreign import foreign_errors
from amistore.pipeline.pack import pack
from amistore.pipeline.progress import ProgressCallback
from amistore.pipeline.unpack import unpack
from amistore.pipeline.workers import ordered_map, worker_pool
from amistore.units import MIB

__all__ = ["copy_object", "transfer"]

_LEVEL = 1  # of zstd, where nobody keeps the bytes
_RANGE = 8 * MIB  # bytes of a read

_logger = logging.getLogger("amistore")


def transfer(
    image_id: str,
    *,
    source: Backend,
    destination: Backend,
    name: str | None = None,
    keep: tuple[str, str] | None = None,
    logs: tuple[ResumeLog, ResumeLog] | None = None,
    workers: int | None = None,
    progress: ProgressCallback = None,
) -> str:
    """Make an AMI of one backend an AMI of another: between Regions, accounts or partitions.

    Args:
        image_id: in `source`.
        source: where the AMI is.
        destination: where it goes.
        name: of the new image; None for the same.
        keep: bucket of the destination, and key, of an archive to make on the way and to keep.
        logs: with `keep`, for storing and for restoring: what an earlier call with them has
            done is not done again.
        workers: segments worked on at once, on each side; None for the number of CPUs.
        progress: called with a `Progress`.

    Returns:
        The id of the new image.

    Raises:
        NotFoundError: no such image.
        InvalidRequestError: the image cannot be read, or not registered so.
        AlreadyExistsError: the name, or the object to keep, is taken.
        BackendError: either side failed. What was begun is deleted, but for what `logs` go on from.
    """
    if logs is not None and keep is None:
        raise InvalidRequestError("logs= is for keep=: what is not kept cannot be gone on with")
    packing, restoring = logs or (None, None)
    image = _describe(image_id, source)
    wanted = name or image.name
    going_on = restoring is not None and bool(restoring.entries())
    if wanted is not None and not going_on and destination.ec2.find_images(wanted):
        raise AlreadyExistsError(f"an image named {wanted!r} exists in the destination: give name=")
    if keep is None:
        pieces = pack(image, source.ebs, level=_LEVEL, workers=workers)
        with _PieceReader(pieces) as stream:
            restored = unpack(cast(BinaryIO, stream), destination.ebs, workers=workers, progress=progress)
    else:
        _store(image, source, destination, keep, packing, workers, progress)
        log = None if restoring is None else _HeldLog(restoring)
        restored = unpack_object(
            destination.s3, *keep, destination.ebs, log=log, workers=workers, progress=progress
        )
    return _register(restored, name, destination, restoring)


def _describe(image_id: str, source: Backend) -> Image:
    with foreign_errors("describe_image", image_id=image_id):
        image = source.ec2.describe_image(image_id)
        source.preflight(image)
        return image


def _store(
    image: Image,
    source: Backend,
    destination: Backend,
    keep: tuple[str, str],
    log: ResumeLog | None,
    workers: int | None,
    progress: ProgressCallback,
) -> None:
    """Make the archive to keep, unless an earlier call with the log has made it."""
    try:
        pack_object(image, source.ebs, destination.s3, *keep, log=log, workers=workers, progress=progress)
    except AlreadyExistsError:
        if log is None:
            raise
        container = ContainerFile(ObjectRanges(destination.s3, *keep))
        if container.image != image:
            raise
        _logger.info("%s/%s holds this image already", *keep)


def _register(restored: Image, name: str | None, destination: Backend, log: ResumeLog | None) -> str:
    """Register what was restored; with a log, find what an earlier call has registered."""
    wanted = name or restored.name
    try:
        with foreign_errors("register_image"):
            for found in destination.ec2.find_images(wanted) if log is not None and wanted else ():
                if found.snapshot_ids == restored.snapshot_ids:
                    destination.ec2.finish_registration(found.image_id, restored)
                    image_id = found.image_id
                    break
            else:
                image_id = destination.ec2.register_image(restored, name=name)
    except BaseException:
        if log is None:
            for snapshot_id in restored.snapshot_ids:
                try:
                    destination.ebs.delete_snapshot(snapshot_id)
                except Exception as error:
                    _logger.error("snapshot %s is left behind, delete it: %s", snapshot_id, error)
        raise
    if log is not None:
        log.clear()
    return image_id


class _HeldLog(ResumeLog):
    """A log that is not cleared when its run ends: the image is still to be registered."""

    def __init__(self, log: ResumeLog) -> None:
        self._log = log

    def entries(self) -> list[bytes]:
        return self._log.entries()

    def append(self, entry: bytes) -> None:
        self._log.append(entry)

    def clear(self) -> None:
        pass


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

    Every record, the index, the tail and each frame's CRC are checked; nothing is decompressed.

    Args:
        source: where it is.
        destination: where it goes; another store, or the same.
        place: bucket and key of the archive.
        to: bucket and key of the copy, which must not exist.
        expected_content_id: refuse another archive; 64 hexadecimal digits.
        workers: ranges read at once; None for the number of CPUs.

    Raises:
        NotFoundError: no such object.
        AlreadyExistsError: the copy's name is taken.
        CorruptArchiveError: the archive is damaged; no copy is left.
        SourceChangedError: the archive was replaced meanwhile.
    """
    with foreign_errors("head_object", bucket=place[0], key=place[1]):
        info = source.head_object(*place)
        ranges = ObjectRanges(source, *place)
    if ranges.etag != info.etag:
        raise SourceChangedError("the object was replaced", bucket=place[0], key=place[1])

    def read(offset: int) -> bytes:
        with foreign_errors("get_object_range", bucket=place[0], key=place[1]):
            return ranges.read(offset, _RANGE)

    with (
        worker_pool(workers, None) as (pool, limit),
        contextlib.closing(ordered_map(pool, read, range(0, info.size, _RANGE), limit)) as pieces,
        foreign_errors("put_object", bucket=to[0], key=to[1]),
    ):
        return destination.put_object(
            *to,
            _verified(_PieceReader(pieces), expected_content_id),
            metadata=info.metadata,
            if_none_match=True,
            part_size=max(16 * MIB, -(-info.size // 9_000)),
        )


def _verified(stream: _PieceReader, expected_content_id: str | None) -> Iterator[bytes]:
    """The bytes of a container as they come, checked no later than at its end."""
    events = container_events()
    step = next(events)
    while True:
        if isinstance(step, int):
            content = b"".join(_exactly(stream, step))
            yield content
            step = events.send(content)
            continue
        if isinstance(step, StoredSegment):
            contents = step.segment.frame_contents
            for frame, content_size, entry in zip(step.frames, contents, step.descriptor.frames, strict=True):
                check_frame(frame, content_size, entry.crc32)
        elif isinstance(step, ContainerEnd):
            found = step.index.content_id.hex()
            if expected_content_id not in (None, found):
                raise CorruptArchiveError(f"the content id is {found}, not {expected_content_id}")
            return
        step = next(events)


def _exactly(stream: _PieceReader, size: int) -> Iterator[bytes]:
    """`size` bytes, fewer only at the end."""
    while size:
        piece = stream.read(min(size, _RANGE))
        if not piece:
            return
        size -= len(piece)
        yield piece


class _PieceReader(io.RawIOBase):
    """The pieces of an iterator as a file; closing it closes the iterator."""

    def __init__(self, pieces: Generator[bytes, None, None]) -> None:
        self._pieces = pieces
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = memoryview(piece)
        view = memoryview(buffer).cast("B")
        count = min(len(view), len(self._left))
        view[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def close(self) -> None:
        self._pieces.close()
        super().close()
