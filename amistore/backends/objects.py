"""S3's interface: `ObjectStore`, ranged reads and multipart upload.

As in `blocks.py`, a method may raise any `BackendError` and may be called from several threads. It raises
`NotFoundError` for a missing bucket and, unless it says otherwise, for a missing object or upload. A key is
any text: two keys never name one object, and no key leads out of its bucket.
"""

from __future__ import annotations

import abc
import contextlib
import io
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO

from typing_extensions import Buffer

from amistore.backends.interface import Interface, composed
from amistore.backends.locations import ObjectInfo, ObjectLocation, ObjectRanges, version_option
from amistore.backends.ranges import RangeStream
from amistore.backends.receiving import Content
from amistore.backends.traits import AMAZON, StoreTraits
from amistore.backends.uploads import MultipartUpload, PiecesUpload, UploadedPart, nbytes
from amistore.errors import InvalidRequestError
from amistore.units import MIB

__all__ = ["ObjectStore"]


class ObjectStore(Interface):
    """A store of objects: S3's ranged reads and multipart upload.

    Attributes:
        where: the store's name, so that a resume log is not used with another store; may be empty.
        scheme: the scheme of its objects' URLs, such as ``"s3"``; empty where there are no URLs.
        requests: how many ranges to read, and parts to upload, at once, where each takes its time; 0 for one
            in each worker.
        traits: where the store differs from Amazon's S3.
        takes_versions: whether `at`, and the calls that read, take a version of an object.
    """

    where: str = ""
    scheme: str = ""
    requests: int = 0
    traits: StoreTraits = AMAZON
    takes_versions: bool = False

    @composed
    def at(self, bucket: str, key: str, *, version: str | None = None) -> ObjectLocation:
        """The location of an object of this store, which may exist or not.

        Args:
            bucket: the bucket that holds the object.
            key: the object's key.
            version: the id of one of the object's versions, to read it; None for the latest.

        Raises:
            InvalidRequestError: the store keeps no versions.
        """
        return ObjectLocation(self, bucket, key, version)

    def head_bucket(self, bucket: str) -> None:
        """Check whether a bucket can be used. Override it where that can be asked.

        Raises:
            NotFoundError: no such bucket.
            InvalidRequestError: the bucket is in another Region.
        """

    def bucket_warnings(self, bucket: str) -> tuple[str, ...]:
        """Warnings about a bucket that is to hold disks: public access not blocked, no default encryption.

        Override it where they can be asked for.
        """
        return ()

    @abc.abstractmethod
    def head_object(self, bucket: str, key: str, *, version: str | None = None) -> ObjectInfo:
        """Describe an object, or one of its versions, which is asked for only where the store has `versions`.

        Raises:
            NotFoundError: no such bucket or object.
        """

    @abc.abstractmethod
    def get_object_range(
        self,
        bucket: str,
        key: str,
        start: int,
        length: int,
        *,
        if_match: str | None = None,
        version: str | None = None,
    ) -> bytes:
        """Read `length` bytes from `start`: fewer only at the object's end, none behind it.

        As in `head_object`, a version is asked for only where the store has `versions`.

        Raises:
            NotFoundError: no such bucket or object.
            SourceChangedError: `if_match` is not the object's ETag.
            AmistoreError: `start` or `length` is negative; any class will do.
        """

    @composed
    def get_intact_range(
        self,
        bucket: str,
        key: str,
        start: int,
        length: int,
        intact: Callable[[Content], bool],
        *,
        if_match: str | None = None,
        version: str | None = None,
    ) -> Content:
        """Read a range as `get_object_range` does, for a reader that can recognize damage.

        `RetryingBackend` overrides it: bytes that are not intact may have been damaged on their way, so it
        makes another attempt. It returns the last attempt's bytes in any case; the reader refuses them. A
        store may give a view of memory that it received them in, without a copy.
        """
        return self.get_object_range(bucket, key, start, length, if_match=if_match, **version_option(version))

    @abc.abstractmethod
    def delete_object(self, bucket: str, key: str, *, if_match: str | None = None) -> None:
        """Remove an object; a missing one is no error.

        Raises:
            SourceChangedError: `if_match` is not the object's ETag; the object stays.
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
            bucket: the name of an existing bucket.
            key: the new object's key.
            metadata: the object's user metadata.
            tags: the object's tags, ten at most; a store without tags refuses them.
        """

    @abc.abstractmethod
    def upload_part(
        self, bucket: str, key: str, upload_id: str, part_number: int, content: Buffer
    ) -> UploadedPart:
        """Store one part, over an earlier one of the same number.

        Args:
            bucket: the upload's bucket.
            key: the upload's key.
            upload_id: the id that `create_multipart_upload` returned for this key.
            part_number: the part's number, 1 to 10,000; there may be gaps.
            content: the part's bytes, valid only during the call: copy what you keep.

        Raises:
            NotFoundError: no such upload.
            AmistoreError: the number is not 1 to 10,000; any class will do.
        """

    def upload_part_file(
        self, bucket: str, key: str, upload_id: str, part_number: int, file: BinaryIO
    ) -> UploadedPart:
        """Store one part from a whole file on the disk.

        Override it where a part can be sent without being held in memory.
        """
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            return self.upload_part(bucket, key, upload_id, part_number, content)
        finally:
            with contextlib.suppress(BufferError):  # an error's traceback holds a view: it goes with that
                content.close()

    @abc.abstractmethod
    def list_parts(self, bucket: str, key: str, upload_id: str) -> list[UploadedPart]:
        """The uploaded parts, ascending.

        A store that keeps a part that was replaced lists it too, in any order with those of its number. At
        completion such a store must take the one whose ETag is named.

        Raises:
            NotFoundError: no such upload: it was completed or aborted, or belongs to another key.
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
        """Make the object of these parts visible as a whole; other parts are dropped.

        The upload is then gone. Of several simultaneous completions of a key with `if_none_match`, one
        succeeds.

        Args:
            bucket: the upload's bucket.
            key: the upload's key.
            upload_id: the upload's id.
            parts: the parts from `upload_part`, ascending, at least one.
            if_none_match: whether to refuse a key that exists.

        Raises:
            AlreadyExistsError: `if_none_match` is set and the object exists.
            NotFoundError: no such upload.
            AmistoreError: a part is missing, was replaced since, or is out of order; any class will do.
        """

    @abc.abstractmethod
    def abort_multipart_upload(self, bucket: str, key: str, upload_id: str) -> None:
        """Drop an upload and its parts; a missing upload is no error."""

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
            InvalidRequestError: the store cannot list objects.
        """
        raise InvalidRequestError(f"{type(self).__name__} cannot list objects: give it a method list_keys")

    @composed
    def list_objects(self, bucket: str, prefix: str = "") -> Iterator[ObjectLocation]:
        """The locations of the objects whose keys have this prefix, in the order of the keys' UTF-8 bytes.

        Raises:
            NotFoundError: no such bucket.
            InvalidRequestError: the store cannot list objects.
        """
        return (self.at(bucket, key) for key in self.list_keys(bucket, prefix))

    def list_multipart_uploads(self, bucket: str, prefix: str = "") -> list[MultipartUpload]:
        """The unfinished uploads of keys with this prefix, by key.

        Override it so that lost uploads can be found.
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
        size: int | None = None,
    ) -> ObjectInfo:
        """Store a whole object from pieces of any size; an error leaves nothing behind.

        Args:
            bucket: the name of an existing bucket.
            key: the new object's key.
            content: the object's bytes, or pieces of them, such as `amistore.pack` yields and an opened file
                has.
            metadata: the object's user metadata.
            tags: the object's tags.
            if_none_match: whether to refuse a key that exists.
            part_size: the bytes of a part, which are collected in memory before it is sent; more where a
                known size needs more. Without a known size they are doubled after each tenth of the parts
                that an object may have.
            size: the content's size in bytes, or an upper bound; None where it is not known. It is known of
                bytes, and of what `amistore.pack` gives.

        Raises:
            InvalidRequestError: the size is not known, and the store takes equal parts only.
        """
        if isinstance(content, (str, os.PathLike)) or not isinstance(content, Iterable):
            raise InvalidRequestError(
                f"an object's content is bytes or pieces of them, not {type(content).__name__}: "
                "open a file with open(path, 'rb')"
            )
        pieces = [content] if isinstance(content, (bytes, bytearray, memoryview)) else content
        if size is None:
            known = isinstance(pieces, (list, tuple))
            size = sum(map(nbytes, pieces)) if known else getattr(content, "most_bytes", None)
        if size is None and self.traits.equal_parts:
            raise InvalidRequestError(
                "the store takes parts of one size only, for which the object's size must be known: give "
                "put_object a size=, which may be an upper bound"
            )
        if type(part_size) is not int or part_size < 1:
            raise InvalidRequestError(f"part_size must be a whole number from 1 on, not {part_size!r}")
        upload_id = self.create_multipart_upload(bucket, key, metadata=metadata, tags=tags)
        upload = PiecesUpload(self, bucket, key, upload_id)
        return upload.run(pieces, part_size, size, if_none_match=if_none_match)

    @composed
    def open_object(self, bucket: str, key: str) -> io.BufferedReader:
        """An object as a seekable binary file, pinned to its present ETag."""
        return io.BufferedReader(RangeStream(ObjectRanges(self.at(bucket, key))), 1 * MIB)
