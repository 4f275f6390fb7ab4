"""`S3Uploads`: multipart uploads. No answer is trusted: ETags, checksums and sizes are compared."""

from __future__ import annotations

import contextlib
import functools
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import attrs
import botocore.exceptions
from typing_extensions import Buffer

from amistore.backends import checks
from amistore.backends.aws.error_codes import REFUSED_CONDITION, SENT_BEFORE
from amistore.backends.aws.errors import code_of
from amistore.backends.aws.listing import listed_parts, listed_uploads
from amistore.backends.aws.s3_calls import NoSuchUploadError, S3Calls
from amistore.backends.aws.s3_integrity import checksum_of, is_stored, md5_of, size_of
from amistore.backends.aws.s3_metadata import encode_metadata
from amistore.backends.etags import bare_etag, is_same_etag
from amistore.backends.locations import ObjectInfo
from amistore.backends.uploads import MultipartUpload, UploadedPart
from amistore.errors import (
    AlreadyExistsError,
    BackendError,
    ChecksumMismatchError,
    NotFoundError,
    SourceChangedError,
)

__all__ = ["S3Uploads"]

_ABORT_ROUNDS = 5  # S3 API reference, AbortMultipartUpload: "might be necessary to abort ... multiple times"
_OF_UPLOAD = re.compile(r"-\d+$")


class S3Uploads(S3Calls):
    """Uploads to S3, whose calls `S3Calls` makes."""

    def create_multipart_upload(
        self,
        bucket: str,
        key: str,
        *,
        metadata: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        encoded = encode_metadata(metadata or {})
        with self._calling("create_multipart_upload", bucket, key) as place:
            self.traits.check_tags(tags)
            algorithm = {"ChecksumAlgorithm": "CRC32"} if self.traits.checksum == "crc32" else {}
            wanted = self._settings.server_side_encryption
            answer = self._client.create_multipart_upload(
                **place, **self._settings.of_upload(tags or {}), **algorithm, Metadata=encoded
            )
            upload_id = str(answer["UploadId"])
            if wanted and answer.get("ServerSideEncryption") != wanted:
                self.abort_multipart_upload(bucket, key, upload_id)
                raise BackendError(f"the server does not encrypt with {wanted}")
            return upload_id

    def upload_part(
        self, bucket: str, key: str, upload_id: str, part_number: int, content: Buffer
    ) -> UploadedPart:
        # The two kinds of bytes that botocore takes.
        body = content if isinstance(content, (bytes, bytearray)) else bytes(content)
        return self._upload(bucket, key, upload_id, part_number, io.BytesIO(body), body)

    def upload_part_file(
        self, bucket: str, key: str, upload_id: str, part_number: int, file: BinaryIO
    ) -> UploadedPart:
        return self._upload(bucket, key, upload_id, part_number, file, file)

    def _upload(
        self, bucket: str, key: str, upload_id: str, part_number: int, content: BinaryIO, body: Any
    ) -> UploadedPart:
        checks.check_part_number(part_number)
        with self._calling("upload_part", bucket, key, upload_id) as place:
            sent = checksum_of(content, self.traits.checksum)
            size = size_of(content)
            content.seek(0)
            try:
                answer = self._client.upload_part(**place, PartNumber=part_number, Body=body, **sent)
            except botocore.exceptions.ClientError as error:
                if self.traits.replaceable_parts or not self._may_be_there(error):
                    raise
                checksum, etag = sent.get("ChecksumCRC32"), md5_of(content).hex()
                part = UploadedPart(part_number=part_number, size=size, etag=etag, checksum=checksum)
                return self._sent_before(bucket, key, upload_id, part, error)
            if not is_stored(answer, content, sent):
                # A part that is taken once stays as it is.
                raise ChecksumMismatchError(
                    f"part {part_number} was not stored as it was sent",
                    retryable=self.traits.replaceable_parts,
                )
            return UploadedPart(
                part_number=part_number,
                size=size,
                etag=bare_etag(answer["ETag"]),
                checksum=answer.get("ChecksumCRC32"),
            )

    def _may_be_there(self, refusal: botocore.exceptions.ClientError) -> bool:
        """Whether a part may be refused because it was sent before; rclone's code has other meanings, too."""
        code = code_of(refusal)
        return code in SENT_BEFORE and (self.traits.part_listing or code != "NotImplemented")

    def _sent_before(
        self, bucket: str, key: str, upload_id: str, part: UploadedPart, refusal: Exception
    ) -> UploadedPart:
        """A part whose answer was lost, from the list; without one the completion compares what it names."""
        if not self.traits.part_listing:
            return part
        found = self.list_parts(bucket, key, upload_id)
        there = [listed for listed in found if listed.part_number == part.part_number]
        if not there:
            raise refusal
        for listed in there:
            if part.is_like(listed):
                return attrs.evolve(part, etag=listed.etag)
        raise BackendError(
            f"part {part.part_number} is there with other bytes, or with an ETag that is no MD5, and the "
            "store takes no part twice: amistore.abandon ends a log's run, and another one begins"
        )

    def list_parts(self, bucket: str, key: str, upload_id: str) -> list[UploadedPart]:
        try:
            with self._calling("list_parts", bucket, key, upload_id) as place:
                return listed_parts(functools.partial(self._client.list_parts, **place))
        except BackendError as error:
            if type(error) is BackendError and not error.retryable and self.traits.part_listing:
                error.message += "; of a store that lists no parts say StoreTraits(part_listing=False)"
            raise

    def complete_multipart_upload(
        self,
        bucket: str,
        key: str,
        upload_id: str,
        parts: Sequence[UploadedPart],
        *,
        if_none_match: bool = False,
    ) -> ObjectInfo:
        """Make the object, as the interface says.

        After a `retryable` error the object may exist: check its metadata and size before you take the upload
        for lost.
        """
        with self._calling("complete_multipart_upload", bucket, key, upload_id) as place:
            checks.check_order(parts)
            conditional = if_none_match and self.traits.conditional_completion
            if if_none_match:
                self._refuse_existing(bucket, key)
            # S3 wants the checksums of an upload that was created with them.
            named = [
                {"PartNumber": part.part_number, "ETag": f'"{part.etag}"'}
                | ({"ChecksumCRC32": part.checksum} if part.checksum else {})
                for part in parts
            ]
            try:
                answer = self._client_of(completes=True).complete_multipart_upload(
                    **place,
                    MultipartUpload={"Parts": named},
                    **({"IfNoneMatch": "*"} if conditional else {}),
                )
            except botocore.exceptions.ClientError as error:
                if conditional and code_of(error) in REFUSED_CONDITION:
                    raise AlreadyExistsError("the object exists") from None
                raise
            info = self._completed(bucket, key)
            # rclone's objects have another ETag than their completion said, and none of an upload.
            if _OF_UPLOAD.search(info.etag) and not is_same_etag(info.etag, answer.get("ETag", info.etag)):
                raise SourceChangedError("the object was replaced as soon as it was made")
            if info.size != sum(part.size for part in parts):
                raise BackendError(f"the object has {info.size} bytes, which is not the sum of its parts")
            return info

    def _completed(self, bucket: str, key: str) -> ObjectInfo:
        """The object that was just made; another attempt finds it where it cannot be seen at once."""
        try:
            return self.head_object(bucket, key)
        except NotFoundError as error:
            error.message += "; its upload is completed"
            error.retryable = True
            raise

    def _refuse_existing(self, bucket: str, key: str) -> None:
        """Refuse a key that exists: some servers ignore If-None-Match."""
        with contextlib.suppress(NotFoundError):
            self._head(bucket, key)
            raise AlreadyExistsError("the object exists")

    def abort_multipart_upload(self, bucket: str, key: str, upload_id: str) -> None:
        """Drop an upload until no part of it is left; a missing upload is no error.

        Raises:
            BackendError: parts are left, since some were still being sent; `retryable`.
        """
        for _ in range(_ABORT_ROUNDS):
            try:
                with self._calling("abort_multipart_upload", bucket, key, upload_id) as place:
                    try:
                        self._client.abort_multipart_upload(**place)
                    except botocore.exceptions.ClientError as error:
                        if code_of(error) == "NoSuchKey":  # Swift's answer where it was completed
                            return
                        raise
                    if not self.traits.part_listing or not self._has_parts(place):
                        return
            except NoSuchUploadError:
                return
        raise BackendError(
            f"upload {upload_id} still has parts, which cost money: abort it again",
            retryable=True,
            operation="abort_multipart_upload",
            bucket=bucket,
            key=key,
        )

    def _has_parts(self, place: Mapping[str, Any]) -> bool:
        """Whether an aborted upload still has parts; False where the server does not list them."""
        try:
            return bool(listed_parts(functools.partial(self._client.list_parts, **place)))
        except botocore.exceptions.ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (405, 501):
                return False
            raise

    def list_multipart_uploads(self, bucket: str, prefix: str = "") -> list[MultipartUpload]:
        with self._calling("list_multipart_uploads", bucket) as place:
            return listed_uploads(functools.partial(self._client.list_multipart_uploads, **place), prefix)
