"""Warnings about a bucket that is to hold disks, and the check of its Region."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import botocore.exceptions

from amistore.backends.aws.error_codes import STORE_APART
from amistore.backends.aws.errors import code_of
from amistore.backends.aws.s3_heads import head_bucket
from amistore.backends.aws.s3_names import is_access_point
from amistore.errors import InvalidRequestError

__all__ = ["bucket_warnings", "check_region"]

_DENIED = frozenset({"AccessDenied", "403"})
_UNKNOWN = frozenset({"NotImplemented", "501", "MethodNotAllowed", "405"})
# S3 API reference, GetPublicAccessBlock and GetBucketEncryption.
_NO_BLOCK = "NoSuchPublicAccessBlockConfiguration"
_NO_ENCRYPTION = "ServerSideEncryptionConfigurationNotFoundError"


def check_region(client: Any, place: Mapping[str, Any], region_name: str) -> None:
    """Refuse a bucket of another Region; a missing one raises botocore's error.

    Args:
        client: boto3's client of S3.
        place: the parameters that name the bucket and, where known, its owner.
        region_name: the Region that the bucket should be in.
    """
    found = head_bucket(client, place).get("BucketRegion") or region_name
    if found != region_name:
        raise InvalidRequestError(
            f"the bucket {place['Bucket']} lies in {found}, and this backend's Region is {region_name}: give "
            f"region_name={found!r}; {STORE_APART}",
            code="InaccessibleStorageLocation",
        )


def bucket_warnings(client: Any, place: Mapping[str, Any]) -> tuple[str, ...]:
    """As `AWSObjectStore.bucket_warnings`; raises botocore's errors."""
    if is_access_point(place["Bucket"]):  # S3 user guide, "Access point compatibility"
        return (
            "an access point does not tell whether its bucket blocks public access and has default "
            "encryption: ask with the bucket's name",
        )
    warnings = [
        _warning(
            lambda: _blocks_public_access(client.get_public_access_block(**place)),
            _NO_BLOCK,
            "the bucket does not block public access",
        ),
        _warning(
            lambda: _encrypts(client.get_bucket_encryption(**place)),
            _NO_ENCRYPTION,
            "the bucket has no default encryption",
        ),
    ]
    return tuple(warning for warning in warnings if warning)


def _warning(is_set: Callable[[], bool | None], absent: str, warning: str) -> str | None:
    try:
        return warning if is_set() is False else None
    except botocore.exceptions.ClientError as error:
        code = code_of(error)
        if code == absent:
            return warning
        if code in _DENIED:
            return f"access denied; cannot check whether {warning}"
        if code in _UNKNOWN:
            return None
        raise


def _blocks_public_access(answer: Mapping[str, Any]) -> bool | None:
    names = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    block = answer.get("PublicAccessBlockConfiguration")
    # Servers that do not know the question answer another one, a list of the bucket's keys.
    return all(block.get(name) for name in names) if block else None


def _encrypts(answer: Mapping[str, Any]) -> bool | None:
    return True if answer.get("ServerSideEncryptionConfiguration", {}).get("Rules") else None
