"""Lists by pages, read to their end; a list that never ends is refused."""

from __future__ import annotations

import functools
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import botocore.exceptions

from amistore.backends.aws.errors import member_of
from amistore.backends.blocks import MOST_EMPTY_PAGES
from amistore.backends.etags import bare_etag
from amistore.backends.uploads import MultipartUpload, UploadedPart
from amistore.errors import BackendError

__all__ = ["listed_keys", "listed_parts", "listed_uploads", "pages"]

# S3 user guide, "Amazon S3 multipart upload limits": 10,000; and as many that were replaced and kept.
_MOST_PARTS = 20_000
_MOST_UPLOADS = 1_000_000  # of a list; a server that invents them for ever must not fill the memory
_MOST_KEYS = 10_000_000  # some gigabyte of names


def pages(
    ask: Callable[..., Any], following: Callable[[Any], Mapping[str, Any]], member: str
) -> Iterator[Mapping[str, Any]]:
    """Every page of a list.

    Args:
        ask: a function that returns a page, given the result of `following`; nothing for the first page.
        following: a function that returns a page's parameters for the next one; empty for the last page.
        member: the member of a page that holds the list.

    Raises:
        BackendError: a page leads back to an earlier one, or too many pages are empty.
    """
    place: Mapping[str, Any] = {}
    empty = 0
    asked: set[tuple[Any, ...]] = set()
    while True:
        page = ask(**place)
        yield page
        place = following(page)
        if not place:
            return
        empty = 0 if page.get(member) else empty + 1
        if tuple(place.values()) in asked or empty > MOST_EMPTY_PAGES:
            raise BackendError(f"the service lists the same {member} again and again")
        asked.add(tuple(place.values()))


def listed_keys(ask: Callable[..., Any], prefix: str) -> list[str]:
    """The keys of a bucket's objects; `ask` is boto3's list_objects_v2 for it."""

    def following(page: Mapping[str, Any]) -> dict[str, str]:
        return {"ContinuationToken": member_of(page, "NextContinuationToken")} if _more(page) else {}

    found: list[str] = []
    for page in pages(_encoded(ask, prefix), following, "Contents"):
        keys = map(_decoded(page), (member_of(each, "Key") for each in page.get("Contents", [])))
        # A server that ignores the prefix must not have others' objects taken for those asked for.
        found += [key for key in keys if key.startswith(prefix)]
        if len(found) > _MOST_KEYS:
            raise BackendError(f"the service lists more than {_MOST_KEYS} objects: give a longer prefix")
    return found


def listed_uploads(ask: Callable[..., Any], prefix: str) -> list[MultipartUpload]:
    """The uploads of a bucket; `ask` is boto3's list_multipart_uploads for it."""

    def following(page: Mapping[str, Any]) -> dict[str, str]:
        if not _more(page):
            return {}
        key = _decoded(page)(page.get("NextKeyMarker", ""))
        return {"KeyMarker": key, "UploadIdMarker": page.get("NextUploadIdMarker", "")}

    found: list[MultipartUpload] = []
    try:
        for page in pages(_encoded(ask, prefix), following, "Uploads"):
            decoded = _decoded(page)
            found += [
                MultipartUpload(key=decoded(each["Key"]), upload_id=each["UploadId"])
                for each in page.get("Uploads", [])
            ]
            if len(found) > _MOST_UPLOADS:
                raise BackendError(f"the service lists more than {_MOST_UPLOADS} uploads")
    except botocore.exceptions.ClientError as error:
        if error.response["Error"].get("Code") != "NoSuchUpload":  # rclone's answer where there is none
            raise
    # A server that ignores the prefix would have another's uploads aborted. SeaweedFS lists by their ids.
    return sorted(
        (upload for upload in found if upload.key.startswith(prefix)), key=lambda upload: upload.key
    )


def listed_parts(ask: Callable[..., Any]) -> list[UploadedPart]:
    """The parts of an upload, each with its CRC-32 if the server keeps it; `ask` is boto3's list_parts.

    Of a number that was uploaded several times, a server may list each upload: what it says twice, as of a
    part that was sent again, is one part.
    """

    def following(page: Mapping[str, Any]) -> dict[str, int]:
        return {"PartNumberMarker": page.get("NextPartNumberMarker", 0)} if _more(page) else {}

    found: set[UploadedPart] = set()
    for page in pages(ask, following, "Parts"):
        known = len(found)
        for each in page.get("Parts", []):
            number, etag = each["PartNumber"], bare_etag(each["ETag"])
            found.add(
                UploadedPart(
                    part_number=number, size=each["Size"], etag=etag, checksum=each.get("ChecksumCRC32")
                )
            )
        if page.get("Parts") and len(found) == known:
            raise BackendError("the service lists the same Parts again and again")
        if len(found) > _MOST_PARTS:
            raise BackendError(f"the service lists more than {_MOST_PARTS} parts")
    return sorted(found, key=lambda part: part.part_number)


def _more(page: Mapping[str, Any]) -> bool:
    return bool(page.get("IsTruncated"))


def _encoded(ask: Callable[..., Any], prefix: str) -> Callable[..., Any]:
    return functools.partial(ask, Prefix=prefix, EncodingType="url")


def _decoded(page: Mapping[str, Any]) -> Callable[[str], str]:
    """Keys may hold characters that XML cannot, so they come URL-encoded."""
    return urllib.parse.unquote_plus if page.get("EncodingType") == "url" else str
