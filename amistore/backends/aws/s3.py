"""`AWSObjectStore`: S3, and servers that speak its protocol.

Each method makes one attempt of each call that it needs; `retries.py` repeats the method. No answer is
trusted: ranges, ETags and sizes are compared.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import attrs
import botocore.exceptions
from typing_extensions import Buffer

from amistore.backends import checks
from amistore.backends.aws.connection import Connection
from amistore.backends.aws.error_codes import SENT_BEFORE
from amistore.backends.aws.errors import aws_errors, code_of, member_of
from amistore.backends.aws.listing import listed_keys, listed_parts, listed_uploads
from amistore.backends.aws.probing import probe
from amistore.backends.aws.s3_buckets import bucket_warnings, check_region
from amistore.backends.aws.s3_heads import get_object, head_object
from amistore.backends.aws.s3_integrity import check_etag, checksum_of, is_stored, md5_of, range_of, size_of
from amistore.backends.aws.s3_metadata import decode_metadata, encode_metadata
from amistore.backends.aws.s3_names import check_bucket_name, is_access_point
from amistore.backends.aws.s3_storage_classes import archived, readable_class
from amistore.backends.aws.s3_versions import check_version, refuse_delete_marker
from amistore.backends.aws.settings import ObjectSettings
from amistore.backends.etags import bare_etag, is_same_etag
from amistore.backends.objects import ObjectInfo, ObjectStore
from amistore.backends.receiving import Content
from amistore.backends.stores import traits_of
from amistore.backends.traits import StoreTraits
from amistore.backends.uploads import MultipartUpload, UploadedPart
from amistore.errors import (
    AlreadyExistsError,
    BackendError,
    ChecksumMismatchError,
    InvalidRequestError,
    NotFoundError,
    SourceChangedError,
)

__all__ = ["AWSObjectStore"]

_ABORT_ROUNDS = 5  # S3 API reference, AbortMultipartUpload: "might be necessary to abort ... multiple times"
_OF_UPLOAD = re.compile(r"-\d+$")


class AWSObjectStore(ObjectStore):
    """S3's objects.

    Args:
        connection: the connection to AWS.
        settings: the settings for written objects.
        traits: where the store differs from Amazon's S3; None for what is known of the endpoint's host.
    """

    scheme = "s3"
    requests = 8  # of a few MiB each; more gain little (docs/decisions/0024)
    takes_versions = True

    def __init__(
        self,
        connection: Connection,
        settings: ObjectSettings | None = None,
        traits: StoreTraits | None = None,
    ) -> None:
        self._connection = connection
        self._settings = settings or ObjectSettings()
        self._url = connection.own_endpoint("s3")
        self.traits = traits or traits_of(self._url)
        self.traits.check_tags(self._settings.tags)
        self.where = f"S3 {self._url or connection.region_name}"

    def __repr__(self) -> str:
        return f"AWSObjectStore(connection={self._connection!r}, settings={self._settings!r})"

    def head_bucket(self, bucket: str) -> None:
        try:
            with self._calling("head_bucket", bucket) as place:
                check_region(self._client, place, self._connection.region_name)
        except NotFoundError as error:
            if urllib.parse.urlsplit(self._url or "").path.strip("/"):  # consoles show it with the bucket
                error.message += f"; is the bucket's name in the endpoint {self._url}? Leave it out there"
            raise

    def head_object(self, bucket: str, key: str, *, version: str | None = None) -> ObjectInfo:
        with self._calling("head_object", bucket, key):
            answer = self._head(bucket, key, version)
            return ObjectInfo(
                size=member_of(answer, "ContentLength"),
                etag=bare_etag(member_of(answer, "ETag")),
                metadata=decode_metadata(answer["Metadata"]),
            )

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
        """Read a range, as the interface says.

        Raises:
            ArchivedObjectError: the object's storage class cannot be read as it is.
        """
        return bytes(self._range(bucket, key, start, length, if_match, version))

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
        return self._range(bucket, key, start, length, if_match, version)

    def _range(
        self, bucket: str, key: str, start: int, length: int, if_match: str | None, version: str | None
    ) -> Content:
        checks.check_range(start, length)
        with self._calling("get_object_range", bucket, key, version=version) as place:
            if not length:
                check_etag(if_match, self._head(bucket, key, version)["ETag"])
                return b""
            try:
                wanted = {**place, "Range": f"bytes={start}-{start + length - 1}"}
                answer = get_object(self._client, wanted, if_match)
            except botocore.exceptions.ClientError as error:
                if code_of(error) == "InvalidObjectState":
                    raise archived(self._head(bucket, key, version)) from None
                if code_of(error) != "InvalidRange":
                    raise
                # Behind the end, or so it says: an archive must not look shorter than it is.
                found = self._head(bucket, key, version)
                check_etag(if_match, found["ETag"])
                if start < found["ContentLength"]:
                    raise BackendError("the server refuses a range that the object has") from None
                return b""
            with contextlib.closing(answer["Body"]) as body:
                check_etag(if_match, answer.get("ETag"))
                check_version(version, answer)
                return range_of(answer, body, start, length)

    def delete_object(self, bucket: str, key: str, *, if_match: str | None = None) -> None:
        with self._calling("delete_object", bucket, key) as place:
            condition: dict[str, str] = {}
            if if_match is not None:
                try:  # some servers take no notice of If-Match
                    check_etag(if_match, self._head(bucket, key)["ETag"])
                except NotFoundError:
                    return
                condition["IfMatch"] = f'"{if_match}"'
            try:
                self._client.delete_object(**place, **condition)
            except botocore.exceptions.ClientError as error:
                if code_of(error) != "NoSuchKey":  # of servers only; S3 answers 204
                    raise

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
                if conditional and code_of(error) in ("PreconditionFailed", "412"):
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
            except _NoSuchUploadError:
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

    def get_object_tagging(self, bucket: str, key: str) -> dict[str, str]:
        if not self.traits.tags:
            return super().get_object_tagging(bucket, key)
        with self._calling("get_object_tagging", bucket, key) as place:
            found = member_of(self._client.get_object_tagging(**place), "TagSet")
            return {str(member_of(tag, "Key")): str(member_of(tag, "Value")) for tag in found}

    def list_keys(self, bucket: str, prefix: str = "") -> list[str]:
        with self._calling("list_keys", bucket) as place:
            return listed_keys(functools.partial(self._client.list_objects_v2, **place), prefix)

    def list_multipart_uploads(self, bucket: str, prefix: str = "") -> list[MultipartUpload]:
        with self._calling("list_multipart_uploads", bucket) as place:
            return listed_uploads(functools.partial(self._client.list_multipart_uploads, **place), prefix)

    def restore_object(
        self,
        bucket: str,
        key: str,
        *,
        days: int | None,
        tier: str = "Standard",
        version: str | None = None,
    ) -> None:
        """Ask for a readable copy of an archived object; a second request is no error.

        Args:
            bucket: the bucket that holds the object.
            key: the object's key.
            days: the number of days that the copy stays; None for an object in Intelligent-Tiering, which
                moves back.
            tier: the retrieval tier, which decides time and price: ``Standard``, ``Bulk`` or ``Expedited``.
            version: the id of one of the object's versions; None for the latest.

        Raises:
            InvalidRequestError: the object is not archived.
        """
        request = {"GlacierJobParameters": {"Tier": tier}} | ({} if days is None else {"Days": days})
        with self._calling("restore_object", bucket, key, version=version) as place:
            try:
                self._client.restore_object(**place, RestoreRequest=request)
            except botocore.exceptions.ClientError as error:
                code = code_of(error)
                lies = self._head(bucket, key, version) if code == "InvalidObjectState" else {}
                if lies and (readable := readable_class(lies)):
                    raise InvalidRequestError(
                        f"the object lies in {readable} and can be read as it is: nothing is to be restored",
                        code=code,
                    ) from None
                if code not in ("RestoreAlreadyInProgress", "ObjectAlreadyInActiveTierError"):
                    raise

    def bucket_warnings(self, bucket: str) -> tuple[str, ...]:
        """Warnings about a bucket that is to hold disks: public access not blocked, no default encryption.

        Raises:
            NotFoundError: no such bucket.
            AccessDeniedError: the bucket is not yours, or not `expected_bucket_owner`'s.
            InvalidRequestError: the bucket is in another Region.
        """
        with self._calling("bucket_warnings", bucket) as place:
            check_region(self._client, place, self._connection.region_name)
            return bucket_warnings(self._client, place)

    def probe(self, bucket: str) -> StoreTraits:
        """Find out what the store does; see `AWSBackend.probe`."""
        self.head_bucket(bucket)
        with self._calling("probe", bucket) as place:
            return probe(self._client, place, self._settings, self.traits)

    def _head(self, bucket: str, key: str, version: str | None = None) -> Any:
        with self._calling("head_object", bucket, key, version=version) as place:
            answer = head_object(self._client, place)
            check_version(version, answer)
            return answer

    @property
    def _client(self) -> Any:
        return self._client_of(completes=False)

    def _client_of(self, *, completes: bool) -> Any:
        style = {"addressing_style": self.traits.addressing} if self.traits.addressing else {}
        return self._connection.client("s3", completes=completes, **style)

    @contextlib.contextmanager
    def _calling(
        self,
        operation: str,
        bucket: str,
        key: str | None = None,
        upload_id: str | None = None,
        version: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Check names, give the parameters that name what the call is of, and turn errors into ours."""
        facts = {"bucket": bucket} if key is None else {"bucket": bucket, "key": key}
        place: dict[str, Any] = {"Bucket": bucket}
        if not is_access_point(bucket):
            check_bucket_name(bucket)
        if key is not None:
            checks.check_key(key)
            place["Key"] = key
        if version is not None:
            place["VersionId"] = version
        with aws_errors(operation, **facts):
            if upload_id is not None:
                # With an empty one, a server may take the call for one on the object.
                if not upload_id or not upload_id.isprintable():
                    raise _NoSuchUploadError("no such upload")
                place["UploadId"] = upload_id
            if self._settings.expected_bucket_owner:
                place["ExpectedBucketOwner"] = self._settings.expected_bucket_owner
            try:
                yield place
            except botocore.exceptions.ClientError as error:
                if code_of(error) == "NoSuchUpload":
                    raise _NoSuchUploadError("NoSuchUpload: no such upload") from None
                refuse_delete_marker(error.response)
                raise


class _NoSuchUploadError(NotFoundError):
    """The upload does not exist, though the bucket does."""
