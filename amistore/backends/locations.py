"""Objects by their location in a store, and the ranges of one that is pinned to its ETag."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import attrs

from amistore.backends.interface import Interface
from amistore.backends.ranges import RangeReader
from amistore.backends.receiving import Content
from amistore.errors import InvalidRequestError, NotFoundError
from amistore.text import printable

if TYPE_CHECKING:
    from amistore.backends.objects import ObjectStore

__all__ = [
    "ObjectFacts",
    "ObjectInfo",
    "ObjectLocation",
    "ObjectRanges",
    "refuse_version",
    "version_option",
]

R = TypeVar("R")


@attrs.frozen(kw_only=True)
class ObjectInfo:
    """An object's size in bytes, ETag (opaque) and user metadata."""

    size: int
    etag: str
    metadata: Mapping[str, str] = attrs.field(factory=dict)


def refuse_version(version: object) -> None:
    """Refuse any version, where a store keeps none."""
    if version is not None:
        raise InvalidRequestError("the store keeps no versions of objects: leave out version=")


def version_option(version: str | None) -> Any:
    """A version as an argument; none where none is wanted, for a store that knows no such argument."""
    return {} if version is None else {"version": version}


def _is_store(location: object, attribute: attrs.Attribute[ObjectStore], store: object) -> None:
    if not (isinstance(store, Interface) and hasattr(store, "create_multipart_upload")):
        remedy = "give its .s3" if hasattr(store, "s3") else "subclass amistore.backends.ObjectStore"
        raise InvalidRequestError(f"the store must be an ObjectStore, not {type(store).__name__}: {remedy}")


def _is_text(location: object, attribute: attrs.Attribute[str], text: object) -> None:
    if not isinstance(text, str) or not text:
        raise InvalidRequestError(f"an object's {attribute.name} must be a string, not {text!r:.80}")


def _is_version(location: ObjectLocation, attribute: attrs.Attribute[Any], version: object) -> None:
    if version is None:
        return
    if not isinstance(version, str) or not version:
        raise InvalidRequestError(f"an object's version must be a string, not {version!r:.80}")
    if not location.store.takes_versions:
        refuse_version(version)


class ObjectFacts(TypedDict):
    """An object's bucket and key."""

    bucket: str
    key: str


@attrs.frozen
class ObjectLocation:
    """An object's location, whether the object exists or not; `ObjectStore.at` makes one.

    Attributes:
        store: the store that holds the bucket.
        bucket: the bucket's name.
        key: the object's key.
        version: the id of one of the object's versions, which can only be read; None for the latest.
    """

    store: ObjectStore = attrs.field(validator=_is_store)
    bucket: str = attrs.field(validator=_is_text)
    key: str = attrs.field(validator=_is_text)
    version: str | None = attrs.field(default=None, validator=_is_version)

    def __str__(self) -> str:
        scheme = f"{self.store.scheme}://" if self.store.scheme else ""
        version = f"?versionId={self.version}" if self.version else ""
        return printable(f"{scheme}{self.bucket}/{self.key}{version}")

    @property
    def facts(self) -> ObjectFacts:
        """Bucket and key as the attributes of an error."""
        return {"bucket": self.bucket, "key": self.key}

    def head(self) -> ObjectInfo:
        """Describe the object, as `ObjectStore.head_object` does."""
        return self.store.head_object(self.bucket, self.key, **version_option(self.version))

    def exists(self) -> bool:
        """Whether the object exists."""
        try:
            self.head()
        except NotFoundError:
            return False
        return True


class ObjectRanges(RangeReader):
    """An object of an `ObjectStore`, pinned to an ETag.

    Args:
        location: the object's location.
        info: the object's description, from its completion; None to ask for it.

    Attributes:
        location: the object's location.
        etag: the ETag that the object is pinned to.
        metadata: the object's user metadata.
    """

    def __init__(self, location: ObjectLocation, info: ObjectInfo | None = None) -> None:
        self.name = str(location)
        self.location = location
        self.requests = location.store.requests
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

    def read_intact(self, offset: int, length: int, intact: Callable[[Content], bool]) -> Content:
        return self._read(self.location.store.get_intact_range, offset, length, intact)

    def _read(self, get: Callable[..., R], offset: int, length: int, *checks: object) -> R | bytes:
        length = min(length, self.size - offset)
        if length <= 0:  # S3 refuses a range that starts behind the end
            return b""
        at = self.location
        version = version_option(at.version)
        return get(at.bucket, at.key, offset, length, *checks, if_match=self.etag, **version)
