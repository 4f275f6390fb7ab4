"""`AWSObjectStore`: S3, and servers that speak its protocol.

Each method makes one attempt of each call that it needs; `retries.py` repeats the method. No answer is
trusted: ranges, ETags and sizes are compared.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

import botocore.exceptions

from amistore.backends import checks
from amistore.backends.aws.errors import code_of, member_of
from amistore.backends.aws.listing import listed_keys
from amistore.backends.aws.probing import probe
from amistore.backends.aws.s3_buckets import bucket_warnings, check_region
from amistore.backends.aws.s3_heads import get_object
from amistore.backends.aws.s3_integrity import check_etag, range_of
from amistore.backends.aws.s3_storage_classes import archived, readable_class
from amistore.backends.aws.s3_uploads import S3Uploads
from amistore.backends.aws.s3_versions import check_version
from amistore.backends.receiving import Content
from amistore.backends.traits import StoreTraits
from amistore.errors import BackendError, InvalidRequestError, NotFoundError

__all__ = ["AWSObjectStore"]


class AWSObjectStore(S3Uploads):
    """S3's objects.

    Args:
        connection: the connection to AWS.
        settings: the settings for written objects.
        traits: where the store differs from Amazon's S3; None for what is known of the endpoint's host.
    """

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

    def get_object_tagging(self, bucket: str, key: str) -> dict[str, str]:
        if not self.traits.tags:
            return super().get_object_tagging(bucket, key)
        with self._calling("get_object_tagging", bucket, key) as place:
            found = member_of(self._client.get_object_tagging(**place), "TagSet")
            return {str(member_of(tag, "Key")): str(member_of(tag, "Value")) for tag in found}

    def list_keys(self, bucket: str, prefix: str = "") -> list[str]:
        with self._calling("list_keys", bucket) as place:
            return listed_keys(functools.partial(self._client.list_objects_v2, **place), prefix)

    def restore_object(
        self,
        bucket: str,
        key: str,
        *,
        days: int | None,
        tier: str = "Standard",
        version: str | None = None,
    ) -> None:
        """Ask for a readable copy of an archived object; see `AWSBackend.restore_object`.

        A second request is no error.
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
