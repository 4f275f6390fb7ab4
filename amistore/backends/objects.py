"""S3's interface: `ObjectStore`, ranged reads and multipart upload.

As in `blocks.py`: any `BackendError` may be raised, any method called from several threads. A method
raises `NotFoundError` for a bucket that is not there; for an object or upload that is not there where
it is not said to be fine. Keys are any text: no two of them are one object, and none leads out of its bucket.
"""

from __future__ import annotations

import abc
import contextlib
import io
import logging
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO, TypedDict

import attrs
from typing_extensions import Buffer

from amistore import forks
from amistore.backends.interface import Interface, composed
from amistore.backends.ranges import RangeReader, RangeStream
from amistore.errors import InvalidRequestError, NotFoundError
from amistore.units import MIB

__all__ = ["MultipartUpload", "ObjectInfo", "ObjectLocation", "ObjectRanges", "ObjectStore", "UploadedPart"]

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


class ObjectStore(Interface):
    """Where objects lie: S3's ranged reads and multipart upload.

    Attributes:
        where: names the store, so that a resume log is not used with another; may be empty.
        scheme: of the URLs that name its objects, such as ``"s3"``; empty where there are none.
    """

    where: str = ""
    scheme: str = ""

    @composed
    def at(self, bucket: str, key: str) -> ObjectLocation:
        """Name an object of this store, whether it exists or not."""
        return ObjectLocation(self, bucket, key)

    def head_bucket(self, bucket: str) -> None:
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
            AmistoreError: of any kind, `start` or `length` is negative.
        """

    @composed
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
        """Begin an upload and return its id; the object stays invisible, or as it was.

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
        """Store one part, over an earlier one of the same number.

        Args:
            bucket: of the upload.
            key: of the upload.
            upload_id: one that `create_multipart_upload` gave for this key.
            part_number: from 1 to 10,000; there may be gaps.
            content: of the part, valid only during the call: copy what you keep.

        Raises:
            NotFoundError: no such upload.
            AmistoreError: of any kind, the number is another.
        """

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
        """The parts that are there, ascending.

        Raises:
            NotFoundError: no such upload: it was completed, aborted, or is another key's.
        """

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
        """Make the object of these parts visible as a whole; parts that are not named are dropped.

        The upload is gone then. Of several completions of a key at once with `if_none_match`, one succeeds.

        Args:
            bucket: of the upload.
            key: of the upload.
            upload_id: of the upload.
            parts: as `upload_part` gave them, ascending, one at least.
            if_none_match: refuse when the object exists.

        Raises:
            AlreadyExistsError: `if_none_match` is set and the object exists.
            NotFoundError: no such upload.
            AmistoreError: of any kind, a part is not there, was replaced since, or is out of order.
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

    def list_keys(self, bucket: str, prefix: str = "") -> list[str]:
        """The keys with this prefix, in the order of their UTF-8 bytes.

        Override it where objects can be listed.

        Raises:
            NotFoundError: no such bucket.
            InvalidRequestError: this store cannot list.
        """
        raise InvalidRequestError(f"{type(self).__name__} cannot list objects: it has no list_keys")

    @composed
    def list_objects(self, bucket: str, prefix: str = "") -> Iterator[ObjectLocation]:
        """Give the objects whose keys have this prefix, by key in the order of their UTF-8 bytes.

        Raises:
            NotFoundError: no such bucket.
            InvalidRequestError: this store cannot list.
        """
        return (self.at(bucket, key) for key in self.list_keys(bucket, prefix))

    def list_multipart_uploads(self, bucket: str, prefix: str = "") -> list[MultipartUpload]:
        """Uploads of keys with this prefix that were neither completed nor aborted, by key.

        Override it to let lost uploads be found.
        """
        return []

    @composed
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

    @composed
    def open_object(self, bucket: str, key: str) -> io.BufferedReader:
        """An object as a seekable binary file, pinned to the ETag it has now."""
        return io.BufferedReader(RangeStream(ObjectRanges(self.at(bucket, key))), 1 * MIB)


def _is_store(location: object, attribute: attrs.Attribute[ObjectStore], store: object) -> None:
    if not isinstance(store, ObjectStore):
        remedy = "give its .s3" if hasattr(store, "s3") else "subclass amistore.backends.ObjectStore"
        raise InvalidRequestError(f"the store must be an ObjectStore, not {type(store).__name__}: {remedy}")


def _is_text(location: object, attribute: attrs.Attribute[str], text: object) -> None:
    if not isinstance(text, str) or not text:
        raise InvalidRequestError(f"an object's {attribute.name} must be a string, not {text!r:.80}")


class ObjectFacts(TypedDict):
    """Bucket and key of an object."""

    bucket: str
    key: str


@attrs.frozen
class ObjectLocation:
    """An object of a store, whether it exists or not; `ObjectStore.at` makes one.

    Attributes:
        store: the store that holds the bucket.
        bucket: the bucket's name.
        key: the object's key.
    """

    store: ObjectStore = attrs.field(validator=_is_store)
    bucket: str = attrs.field(validator=_is_text)
    key: str = attrs.field(validator=_is_text)

    def __str__(self) -> str:
        scheme = f"{self.store.scheme}://" if self.store.scheme else ""
        return f"{scheme}{self.bucket}/{self.key}"

    @property
    def facts(self) -> ObjectFacts:
        """Bucket and key, as errors tell them."""
        return {"bucket": self.bucket, "key": self.key}

    def head(self) -> ObjectInfo:
        """What is known of the object; see `ObjectStore.head_object`."""
        return self.store.head_object(self.bucket, self.key)

    def exists(self) -> bool:
        """Whether the object is there."""
        try:
            self.head()
        except NotFoundError:
            return False
        return True


class ObjectRanges(RangeReader):
    """An object of an `ObjectStore`, pinned to an ETag.

    Args:
        location: the object.
        info: what its completion said of it; None for what it is now.

    Attributes:
        location: as given.
        etag: of the object.
        metadata: the user's.
    """

    def __init__(self, location: ObjectLocation, info: ObjectInfo | None = None) -> None:
        self.name = f"{location.bucket}/{location.key}"
        self.location = location
        info = info or location.head()
        self.etag = info.etag
        self.size = info.size
        self.metadata = info.metadata

    @property
    def identity(self) -> dict[str, str]:
        at = self.location
        return {"store": at.store.where, "bucket": at.bucket, "key": at.key, "etag": self.etag}

    def read(self, offset: int, length: int) -> bytes:
        return self._read(self.location.store.get_object_range, offset, length)

    def read_intact(self, offset: int, length: int, intact: Callable[[bytes], bool]) -> bytes:
        return self._read(self.location.store.get_intact_range, offset, length, intact)

    def _read(self, get: Callable[..., bytes], offset: int, length: int, *checks: object) -> bytes:
        length = min(length, self.size - offset)
        if length <= 0:  # S3 refuses a range that starts behind the end
            return b""
        at = self.location
        return get(at.bucket, at.key, offset, length, *checks, if_match=self.etag)
