"""Settings for written objects (encryption, storage class, tags, bucket owner) and for new snapshots."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping
from typing import Any, Literal, get_args

import attrs

from amistore.errors import InvalidValueError
from amistore.model import Tag
from amistore.model.fields import boolean, many, text

__all__ = ["ObjectSettings", "SnapshotSettings", "setting_of", "settings_of"]

Encryption = Literal["AES256", "aws:kms", "aws:kms:dsse"]

# S3 API reference, CreateMultipartUpload: at most ten tags; CreateStoreImageTask, S3ObjectTag:
# lengths and the reserved prefix.
_MAXIMUM_TAGS = 10
_MAXIMUM_TAG_KEY = 128
_MAXIMUM_TAG_VALUE = 256


def _check_account(instance: ObjectSettings, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not (isinstance(value, str) and re.fullmatch(r"[0-9]{12}", value)):
        raise _invalid(attribute, value, "an account is 12 digits")


def _check_encryption(instance: ObjectSettings, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and value not in get_args(Encryption):
        raise _invalid(attribute, value, f"encryption is one of {', '.join(get_args(Encryption))}")


def _check_key(instance: ObjectSettings, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is None:
        return
    kind = bool if attribute.name == "bucket_key_enabled" else str
    if type(value) is not kind or value == "":
        raise _invalid(attribute, value, "this is True or False" if kind is bool else "this names a KMS key")
    if not str(instance.server_side_encryption).startswith("aws:kms"):
        raise _invalid(attribute, value, 'this goes with server_side_encryption="aws:kms"')


def _check_storage_class(instance: ObjectSettings, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not (isinstance(value, str) and re.fullmatch(r"[A-Z_]+", value)):
        raise _invalid(attribute, value, "a storage class is capital letters and _")


def _copy(tags: Any) -> Any:
    return dict(tags) if isinstance(tags, Mapping) else tags


def _check_tags(instance: ObjectSettings, attribute: attrs.Attribute[Any], tags: Any) -> None:
    if not isinstance(tags, dict):
        raise _invalid(attribute, tags, "tags are a mapping of strings to strings")
    if len(tags) > _MAXIMUM_TAGS:
        raise _invalid(attribute, len(tags), f"an object has {_MAXIMUM_TAGS} tags at most")
    for key, value in tags.items():
        if not isinstance(key, str) or not 1 <= len(key) <= _MAXIMUM_TAG_KEY:
            raise _invalid(attribute, key, f"a tag's key has 1 to {_MAXIMUM_TAG_KEY} characters")
        if key.lower().startswith("aws:"):
            raise _invalid(attribute, key, "tags that begin with aws: are AWS's own")
        if not isinstance(value, str) or len(value) > _MAXIMUM_TAG_VALUE:
            raise _invalid(attribute, value, f"a tag's value has {_MAXIMUM_TAG_VALUE} characters at most")


def _invalid(attribute: attrs.Attribute[Any], value: object, rule: str) -> InvalidValueError:
    field = f"ObjectSettings.{attribute.name}"
    return InvalidValueError(f"{field}: {rule}, not {value!r}", field=field, value=value)


@attrs.frozen(kw_only=True)
class ObjectSettings:
    """Settings for written objects; None leaves a setting to the bucket.

    Attributes:
        expected_bucket_owner: the only account, of 12 digits, whose bucket any call accepts.
        server_side_encryption: the encryption: ``AES256``, ``aws:kms`` or ``aws:kms:dsse``.
        sse_kms_key_id: the KMS key's id, ARN or alias; None for AWS's own key of the account.
        bucket_key_enabled: whether S3 asks KMS for one key for the bucket, not one for each object.
        storage_class: the storage class, such as ``STANDARD_IA`` or ``DEEP_ARCHIVE``.
        tags: the objects' tags, ten at most, with keys up to 128 and values up to 256 characters.

    Raises:
        InvalidValueError: a value breaks one of these rules.
    """

    expected_bucket_owner: str | None = attrs.field(default=None, validator=_check_account)
    server_side_encryption: Encryption | None = attrs.field(default=None, validator=_check_encryption)
    sse_kms_key_id: str | None = attrs.field(default=None, validator=_check_key)
    bucket_key_enabled: bool | None = attrs.field(default=None, validator=_check_key)
    storage_class: str | None = attrs.field(default=None, validator=_check_storage_class)
    tags: Mapping[str, str] = attrs.field(factory=dict, converter=_copy, validator=_check_tags)

    def of_upload(self, tags: Mapping[str, str]) -> dict[str, Any]:
        """These settings as parameters of CreateMultipartUpload; `tags` are set over the settings' tags."""
        merged = {**self.tags, **tags}
        _check_tags(self, attrs.fields(ObjectSettings).tags, merged)
        given = {
            "ServerSideEncryption": self.server_side_encryption,
            "SSEKMSKeyId": self.sse_kms_key_id,
            "BucketKeyEnabled": self.bucket_key_enabled,
            "StorageClass": self.storage_class,
            "Tagging": urllib.parse.urlencode(merged, quote_via=urllib.parse.quote) or None,
        }
        return {name: value for name, value in given.items() if value is not None}


@attrs.frozen(kw_only=True)
class SnapshotSettings:
    """Settings for restored snapshots.

    Attributes:
        encrypted: True to encrypt; None for the account's default. With encryption by default EBS always
            encrypts.
        kms_key_arn: the ARN of the key to encrypt with; None for the account's default key.
        tags: the tags to add to the archive's.

    Raises:
        InvalidValueError: a value has the wrong type, or a key is given with ``encrypted=False``.
    """

    encrypted: bool | None = boolean()
    kms_key_arn: str | None = text()
    tags: tuple[Tag, ...] = many(Tag, key="key")

    def __attrs_post_init__(self) -> None:
        if self.kms_key_arn is not None and (self.encrypted is False or not self.kms_key_arn):
            field = "SnapshotSettings.kms_key_arn"
            message = f"{field} is a key to encrypt with, and encrypted is {self.encrypted}"
            if not self.kms_key_arn:
                message = f"{field} must be the ARN of a key, not empty"
            raise InvalidValueError(message, field=field, value=self.kms_key_arn)


# The beginning of each header's name, the longer one first, and how it is left out.
_NO_CHECKSUM = "give StoreTraits(checksum=None)"
_HEADERS: Mapping[str, str] = {
    "x-amz-tagging": "leave out ObjectSettings.tags",
    "x-amz-storage-class": "leave out ObjectSettings.storage_class",
    "x-amz-server-side-encryption-aws-kms-key-id": "leave out ObjectSettings.sse_kms_key_id",
    "x-amz-server-side-encryption-bucket-key-enabled": "leave out ObjectSettings.bucket_key_enabled",
    "x-amz-server-side-encryption": "leave out ObjectSettings.server_side_encryption",
    "x-amz-expected-bucket-owner": "leave out ObjectSettings.expected_bucket_owner",
    "x-amz-sdk-checksum": _NO_CHECKSUM,
    "x-amz-checksum": _NO_CHECKSUM,
    "content-md5": _NO_CHECKSUM,
    "if-none-match": "give StoreTraits(conditional_completion=False)",
    "x-amz-request-payer": "leave out AWSBackend.requester_pays",
}


def setting_of(text: str) -> str:
    """How to leave out the header of these settings that a text names; empty if it names none."""
    return next((remedy for header, remedy in _HEADERS.items() if header in text.lower()), "")


def settings_of(operation: str) -> str:
    """How to leave out the headers that an operation sends, of which a server does not say which it means."""
    owner = "ObjectSettings.expected_bucket_owner"
    if operation == "create_multipart_upload":
        others = "tags, storage_class and server_side_encryption"
        return f"leave out {owner}, {others} as far as they are set, or {_NO_CHECKSUM}"
    if operation == "complete_multipart_upload":
        return f"leave out {owner} if it is set, or {_HEADERS['if-none-match']}"
    return f"leave out {owner} if it is set, or {_NO_CHECKSUM}"
