"""S3's interface: `ObjectStore`, ranged reads and multipart upload.

As in `blocks.py`: any `BackendError` may be raised, any method called from several threads.
"""

from __future__ import annotations

import abc
import contextlib
import io
import logging
import mmap
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import BinaryIO

import attrs
from typing_extensions import Buffer

from amistore import forks
from amistore.backends.ranges import RangeReader, RangeStream
from amistore.errors import AmistoreError, BackendError, InvalidRequestError
from amistore.units import MIB

__all__ = ["MultipartUpload", "ObjectInfo", "ObjectRanges", "ObjectStore", "UploadedPart"]

_logger = logging.getLogger("amistore")


@attrs.frozen(kw_only=True)
class ObjectInfo:
    """An object: size in bytes, ETag (opaque), and user metadata."""

    size: int
    etag: str
    metadata: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class UploadedPart:
    """A part of a multipart upload: its number (from 1), size in bytes and ETag (opaque)."""

    part_number: int
    size: int
    etag: str


@attrs.frozen(kw_only=True)
class MultipartUpload:
    """An upload that was begun and neither completed nor aborted."""

    key: str
    upload_id: str


class ObjectStore(abc.ABC):
    """Where objects lie: S3's ranged reads and multipart upload.

    Attributes:
        where: names the place, so that a resume log is not used with another; may be empty.
    """

    where: str = ""

    def head_bucket(self, bucket: str) -> None:  # noqa: B027 - nothing is known, here
        """Find out whether a bucket can be used. Override it where that can be asked.

        Raises:
            NotFoundError: no such bucket.
            InvalidRequestError: it lies in another Region.
        """

    def bucket_warnings(self, bucket: str) -> tuple[str, ...]:
        """What is unwise about a bucket for disks: public access not blocked, no default encryption.

        Override it where that can be asked.
        """
        return ()

    @abc.abstractmethod
    def head_object(self, bucket: str, key: str) -> ObjectInfo:
        """What is known of an object.

        Raises:
            NotFoundError: no such bucket or object.
        """

    @abc.abstractmethod
    def get_object_range(
        self, bucket: str, key: str, start: int, length: int, *, if_match: str | None = None
    ) -> bytes:
        """Read `length` bytes from `start`, fewer only at the object's end, and none behind it.

        Raises:
            NotFoundError: no such bucket or object.
            SourceChangedError: `if_match` is not the object's ETag.
        """

    def get_intact_range(
        self,
        bucket: str,
        key: str,
        start: int,
        length: int,
        intact: Callable[[bytes], bool],
        *,
        if_match: str | None = None,
    ) -> bytes:
        """As `get_object_range`, of bytes that a reader can tell from damaged ones.

        `RetryingBackend` overrides it: there what is not intact is one more reason for another
        attempt, since it may have been damaged on its way. The last attempt's bytes are given
        whatever they are, and their reader refuses them.
        """
        return self.get_object_range(bucket, key, start, length, if_match=if_match)

    @abc.abstractmethod
    def delete_object(self, bucket: str, key: str, *, if_match: str | None = None) -> None:
        """Remove an object; one that is not there is fine.

        Raises:
            SourceChangedError: `if_match` is not the object's ETag; it stays.
        """

    @abc.abstractmethod
    def create_multipart_upload(
        self,
        bucket: str,
        key: str,
        *,
        metadata: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Begin an upload and return its id; the object stays invisible.

        Args:
            bucket: must exist.
            key: of the new object.
            metadata: user metadata.
            tags: of the object, ten at most; a store without tags refuses them.
        """

    @abc.abstractmethod
    def upload_part(
        self, bucket: str, key: str, upload_id: str, part_number: int, content: Buffer
    ) -> UploadedPart:
        """Store one part, over an earlier one of the same number (1 to 10,000)."""

    def upload_part_file(
        self, bucket: str, key: str, upload_id: str, part_number: int, file: BinaryIO
    ) -> UploadedPart:
        """Store one part from a file on the disk, from its start to its end.

        Override it where a part can be sent without being in memory as a whole.
        """
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            return self.upload_part(bucket, key, upload_id, part_number, content)
        finally:
            with contextlib.suppress(BufferError):  # an error's traceback holds a view: it goes with that
                content.close()

    @abc.abstractmethod
    def list_parts(self, bucket: str, key: str, upload_id: str) -> list[UploadedPart]:
        """The parts that are there, ascending."""

    @abc.abstractmethod
    def complete_multipart_upload(
        self,
        bucket: str,
        key: str,
        upload_id: str,
        parts: Sequence[UploadedPart],
        *,
        if_none_match: bool = False,
    ) -> ObjectInfo:
        """Make the object of these parts, in ascending order, visible as a whole.

        Raises:
            AlreadyExistsError: `if_none_match` is set and the object exists.
        """

    @abc.abstractmethod
    def abort_multipart_upload(self, bucket: str, key: str, upload_id: str) -> None:
        """Drop an upload and its parts; one that is not there is fine."""

    def get_object_tagging(self, bucket: str, key: str) -> dict[str, str]:
        """An object's tags.

        Raises:
            NotFoundError: no such bucket or object.
        """
        self.head_object(bucket, key)
        return {}

    def list_multipart_uploads(self, bucket: str, prefix: str = "") -> list[MultipartUpload]:
        """Uploads of keys with this prefix that were neither completed nor aborted, by key.

        Override it to let lost uploads be found.
        """
        return []

    def put_object(
        self,
        bucket: str,
        key: str,
        content: bytes | bytearray | memoryview | Iterable[Buffer],
        *,
        metadata: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        if_none_match: bool = False,
        part_size: int = 16 * MIB,
    ) -> ObjectInfo:
        """Store a whole object from pieces of any size; nothing is left behind on an error.

        Args:
            bucket: must exist.
            key: of the new object.
            content: bytes, or pieces of bytes, such as `amistore.pack` yields and an opened file has.
            metadata: user metadata.
            tags: of the object.
            if_none_match: refuse when the object exists.
            part_size: bytes that are collected in memory before a part is sent; doubled after
                each 1,000 parts, since an object has 10,000 at most.
        """
        if isinstance(content, (str, os.PathLike)) or not isinstance(content, Iterable):
            raise InvalidRequestError(
                f"an object's content is bytes or pieces of them, not {type(content).__name__}: "
                "open a file with open(path, 'rb')"
            )
        pieces = [content] if isinstance(content, (bytes, bytearray, memoryview)) else content
        upload = self.create_multipart_upload(bucket, key, metadata=metadata, tags=tags)
        process = os.getpid()

        def abort(_: BaseException) -> None:
            try:
                self.abort_multipart_upload(bucket, key, upload)
            except Exception as error:  # the first error is the one to tell
                _logger.error("upload %s of %s/%s is left behind, abort it: %s", upload, bucket, key, error)

        with forks.undoing(abort):
            parts: list[UploadedPart] = []
            pending = bytearray()
            for piece in pieces:
                forks.check_owner(process, "this upload")
                pending += piece
                # Doubled every 1,000 parts, so that 10,000 of them hold the largest object.
                if len(pending) >= part_size << len(parts) // 1000:
                    parts.append(self.upload_part(bucket, key, upload, len(parts) + 1, pending))
                    pending = bytearray()
            if pending or not parts:
                parts.append(self.upload_part(bucket, key, upload, len(parts) + 1, pending))
            forks.check_owner(process, "this upload")
            return self.complete_multipart_upload(bucket, key, upload, parts, if_none_match=if_none_match)

    def open_object(self, bucket: str, key: str) -> io.BufferedReader:
        """An object as a seekable binary file, pinned to the ETag it has now."""
        return io.BufferedReader(RangeStream(ObjectRanges(self, bucket, key)), 1 * MIB)


class ObjectRanges(RangeReader):
    """An object of an `ObjectStore`, pinned to an ETag.

    Args:
        store: where it is.
        bucket: the bucket that holds the object.
        key: of the object.
        info: what its completion said of it; None for what it is now.

    Attributes:
        store, bucket, key: as given.
        etag: of the object.
        metadata: the user's.
    """

    def __init__(self, store: ObjectStore, bucket: str, key: str, info: ObjectInfo | None = None) -> None:
        self.name = f"{bucket}/{key}"
        self.store = store
        self.bucket = bucket
        self.key = key
        info = info or store.head_object(bucket, key)
        self.etag = info.etag
        self.size = info.size
        self.metadata = info.metadata

    def read(self, offset: int, length: int) -> bytes:
        return self._read(self.store.get_object_range, offset, length)

    def read_intact(self, offset: int, length: int, intact: Callable[[bytes], bool]) -> bytes:
        return self._read(self.store.get_intact_range, offset, length, intact)

    def _read(self, get: Callable[..., bytes], offset: int, length: int, *checks: object) -> bytes:
        length = min(length, self.size - offset)
        if length <= 0:  # S3 refuses a range that starts behind the end
            return b""
        try:
            content = get(self.bucket, self.key, offset, length, *checks, if_match=self.etag)
        except (AmistoreError, MemoryError):
            raise
        except Exception as error:
            message = f"{self.name}: {type(error).__name__}: {error}"
            raise BackendError(message, operation="get_object_range") from error
        if not isinstance(content, bytes):
            raise InvalidRequestError(
                f"{type(self.store).__name__}.get_object_range must give bytes, not {type(content).__name__}"
            )
        return content
