"""`probe`: finds out what a store can do, with small objects and with uploads that are aborted."""

from __future__ import annotations

import base64
import bisect
import contextlib
import hashlib
import logging
import secrets
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import attrs
import botocore.exceptions

from amistore.backends.aws.error_codes import REFUSED_CONDITION, SENT_BEFORE
from amistore.backends.aws.errors import aws_errors, code_of, member_of
from amistore.backends.aws.settings import ObjectSettings
from amistore.backends.traits import MOST_PARTS, Checksum, StoreTraits
from amistore.errors import (
    AccessDeniedError,
    AmistoreError,
    BackendError,
    ChecksumMismatchError,
    InvalidRequestError,
    NotFoundError,
    StorageFullError,
)
from amistore.units import MIB

__all__ = ["probe"]

_logger = logging.getLogger("amistore")

_REMOVALS: Final = 3  # attempts
_LEAST: Final = 5 * MIB  # bytes of a part before the last


def probe(client: Any, place: Mapping[str, str], settings: ObjectSettings, known: StoreTraits) -> StoreTraits:
    """Try what a store does. Some 10 MiB are sent; what cannot be removed again is logged.

    The least and the largest part, the largest object and the addressing are not tried.

    Args:
        client: the S3 client.
        place: the parameters that name the bucket and, where known, its owner.
        settings: the settings for written objects.
        known: the traits for what is not tried.

    Raises:
        InvalidRequestError: the bucket has Object Lock.
        AccessDeniedError: a permission to make or read objects, or for Object Lock's configuration, is
            missing.
        BackendError: the store takes no uploads, or a call failed.
    """
    _refuse_locked(client, place)
    encryption = attrs.evolve(settings, tags={}, storage_class=None).of_upload({})
    asked = _Probe(client, place, encryption)
    try:
        return attrs.evolve(
            known,
            equal_parts=asked.equal_parts(),
            most_parts=asked.most_parts(),
            part_listing=asked.part_listing(),
            replaceable_parts=asked.replaceable_parts(),
            part_gaps=asked.part_gaps(),
            checksum=asked.checksum(),
            conditional_completion=asked.conditional_completion(),
            tags=asked.tags(),
        )
    except _RefusedError as refused:
        raise refused.error from None


def _refuse_locked(client: Any, place: Mapping[str, str]) -> None:
    locked = False
    with contextlib.suppress(_RefusedError), _refusals():  # most servers have no such call
        answer = client.get_object_lock_configuration(**place)
        locked = answer.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") == "Enabled"
    if locked:
        raise InvalidRequestError(
            "the bucket has Object Lock, and may keep what a probe makes: give a bucket without it"
        )


class _RefusedError(Exception):
    """The store does not do what it was asked for."""

    def __init__(self, error: AmistoreError, code: str) -> None:
        super().__init__(code)
        self.error = error
        self.code = code


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Tell refusals from errors that say nothing of the store: of credentials, permissions, the moment."""
    code = ""
    try:
        with aws_errors("probe"):
            try:
                yield
            except botocore.exceptions.ClientError as error:
                code = code_of(error)
                raise
    except AmistoreError as error:
        passes = isinstance(error, BackendError) and error.retryable
        if isinstance(error, ChecksumMismatchError):
            passes = False  # the probe sent a wrong one
        if not code or passes or isinstance(error, (AccessDeniedError, StorageFullError)):
            raise
        raise _RefusedError(error, code) from None


@attrs.define
class _Upload:
    """An upload whose calls are refused or not."""

    client: Any
    place: Mapping[str, str]
    etags: dict[int, str] = attrs.field(factory=dict)

    def takes(self, number: int, content: bytes, **checksum: str) -> bool:
        """Whether it takes a part."""
        with contextlib.suppress(_RefusedError), _refusals():
            answer = self.client.upload_part(**self.place, PartNumber=number, Body=content, **checksum)
            self.etags[number] = member_of(answer, "ETag")
            return True
        return False

    def complete(self, **condition: str) -> None:
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in sorted(self.etags.items())]
        with _refusals():
            self.client.complete_multipart_upload(**self.place, MultipartUpload={"Parts": parts}, **condition)

    def completes(self) -> bool:
        """Whether it can be completed."""
        with contextlib.suppress(_RefusedError):
            self.complete()
            return True
        return False


@attrs.frozen
class _Probe:
    client: Any
    bucket: Mapping[str, str]
    encryption: Mapping[str, Any]

    @contextlib.contextmanager
    def _object(self) -> Iterator[Mapping[str, str]]:
        """An object's place, which is removed at the end."""
        place = {**self.bucket, "Key": f"amistore-probe-{secrets.token_hex(8)}"}
        try:
            yield place
        finally:
            self._remove(self.client.delete_object, place)

    @contextlib.contextmanager
    def _upload(self, place: Mapping[str, str], **settings: str) -> Iterator[_Upload]:
        """An upload, which is aborted at the end."""
        with _refusals():
            answer = self.client.create_multipart_upload(**place, **self.encryption, **settings)
            upload_id = member_of(answer, "UploadId")
        whole = {**place, "UploadId": upload_id}
        try:
            yield _Upload(self.client, whole)
        finally:
            self._remove(self.client.abort_multipart_upload, whole)

    def _remove(self, call: Callable[..., Any], place: Mapping[str, str]) -> None:
        left: AmistoreError | None = None
        for _ in range(_REMOVALS):
            try:
                with _refusals():
                    call(**place)
                return
            except _RefusedError as refused:
                left = refused.error
            except AmistoreError as error:
                left = error
            if isinstance(left, NotFoundError):  # it is not there any more
                return
        _logger.error("a probe left %s behind: %s", place["Key"], left)

    @contextlib.contextmanager
    def _new(self, **settings: str) -> Iterator[_Upload]:
        with self._object() as place, self._upload(place, **settings) as upload:
            yield upload

    def equal_parts(self) -> bool:
        """Whether parts must have one size."""
        with self._new() as upload:
            sizes = (_LEAST + 1, _LEAST, 1)
            taken = all(upload.takes(number, bytes(size)) for number, size in enumerate(sizes, 1))
            return not (taken and upload.completes())

    def most_parts(self) -> int:
        def refuses(number: int) -> bool:
            with self._new() as upload:
                return not upload.takes(number, b"x")

        if not refuses(MOST_PARTS):
            return MOST_PARTS
        return max(1, bisect.bisect_left(range(1, MOST_PARTS), True, key=refuses))

    def part_listing(self) -> bool:
        with contextlib.suppress(_RefusedError), self._new() as upload, _refusals():
            upload.takes(1, b"x")
            found = self.client.list_parts(**upload.place).get("Parts", ())
            return [part.get("PartNumber") for part in found] == [1]
        return False

    def replaceable_parts(self) -> bool:
        with self._new() as upload:
            if not upload.takes(1, b"x"):
                return True
            try:
                with _refusals():
                    self.client.upload_part(**upload.place, PartNumber=1, Body=b"y")
            except _RefusedError as refused:
                if refused.code not in SENT_BEFORE:
                    raise
                return False
            return True

    def part_gaps(self) -> bool:
        with self._new() as upload:
            return upload.takes(2, b"x") and upload.completes()

    def checksum(self) -> Checksum | None:
        """A checksum that it compares: it takes the right one and refuses a wrong one."""
        kinds: tuple[tuple[Checksum, Callable[[bytes], dict[str, str]], dict[str, str]], ...] = (
            ("crc32", _crc32, {"ChecksumAlgorithm": "CRC32"}),
            ("md5", _md5, {}),
        )
        for kind, checksum, settings in kinds:
            with contextlib.suppress(_RefusedError), self._new(**settings) as upload:
                wrong = checksum(b"y")
                if upload.takes(1, b"x", **checksum(b"x")) and not upload.takes(2, b"x", **wrong):
                    return kind
        return None

    def conditional_completion(self) -> bool:
        with self._object() as place:
            with self._upload(place) as upload:
                upload.takes(1, b"x")
                upload.completes()
            with self._upload(place) as upload:
                upload.takes(1, b"y")
                try:
                    upload.complete(IfNoneMatch="*")
                except _RefusedError as refused:
                    return refused.code in REFUSED_CONDITION
                return False

    def tags(self) -> bool:
        with contextlib.suppress(_RefusedError), self._object() as place:
            with self._upload(place, Tagging="amistore=probe") as upload:
                upload.takes(1, b"x")
                upload.completes()
            with _refusals():
                try:
                    found = self.client.get_object_tagging(**place)
                except botocore.exceptions.ClientError as error:
                    if code_of(error) in ("InternalError", "500"):  # rclone's, which has no such call
                        return False
                    raise
            return {"Key": "amistore", "Value": "probe"} in found.get("TagSet", ())
        return False


def _crc32(content: bytes) -> dict[str, str]:
    return {"ChecksumCRC32": base64.b64encode(zlib.crc32(content).to_bytes(4, "big")).decode()}


def _md5(content: bytes) -> dict[str, str]:
    digest = hashlib.md5(content, usedforsecurity=False).digest()
    return {"ContentMD5": base64.b64encode(digest).decode()}
