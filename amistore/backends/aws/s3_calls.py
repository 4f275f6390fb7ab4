"""`S3Calls`: how calls of S3 are made; buckets and objects are described."""

from __future__ import annotations

import contextlib
import urllib.parse
from collections.abc import Iterator
from typing import Any

import botocore.exceptions

from amistore.backends import checks
from amistore.backends.aws.connection import Connection
from amistore.backends.aws.errors import aws_errors, code_of, member_of
from amistore.backends.aws.s3_buckets import check_region
from amistore.backends.aws.s3_heads import head_object
from amistore.backends.aws.s3_metadata import decode_metadata
from amistore.backends.aws.s3_names import check_bucket_name, is_access_point
from amistore.backends.aws.s3_versions import check_version, refuse_delete_marker
from amistore.backends.aws.settings import ObjectSettings
from amistore.backends.etags import bare_etag
from amistore.backends.locations import ObjectInfo
from amistore.backends.objects import ObjectStore
from amistore.backends.stores import traits_of
from amistore.backends.traits import StoreTraits
from amistore.errors import NotFoundError

__all__ = ["NoSuchUploadError", "S3Calls"]


class S3Calls(ObjectStore):
    """A connection to S3, with settings and traits.

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
                    raise NoSuchUploadError("no such upload")
                place["UploadId"] = upload_id
            if self._settings.expected_bucket_owner:
                place["ExpectedBucketOwner"] = self._settings.expected_bucket_owner
            try:
                yield place
            except botocore.exceptions.ClientError as error:
                if code_of(error) == "NoSuchUpload":
                    raise NoSuchUploadError("NoSuchUpload: no such upload") from None
                refuse_delete_marker(error.response)
                raise


class NoSuchUploadError(NotFoundError):
    """The upload does not exist, though the bucket does."""
