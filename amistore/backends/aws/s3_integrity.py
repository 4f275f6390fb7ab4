"""Checks that an object store's answer is about the right bytes."""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections.abc import Mapping
from typing import Any, BinaryIO

from amistore.backends.etags import bare_etag, is_same_etag
from amistore.backends.receiving import receive
from amistore.errors import BackendError, SourceChangedError
from amistore.units import MIB

__all__ = ["check_etag", "checksum_of", "is_stored_md5", "range_of"]

_LONGEST = 300.0  # seconds for a range; 32 MiB then come at 0.1 MB/s
_MAXIMUM_SKIPPED = 16 * MIB  # bytes read in vain where a server ignores ranges
_MD5 = re.compile(r"[0-9a-f]{32}")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


def range_of(answer: Mapping[str, Any], body: Any, start: int, length: int) -> memoryview:
    """The range's bytes; refuse an answer that does not prove which bytes it has."""
    told = answer.get("ContentRange")
    if told is None:
        # All of the object: the server does not know ranges.
        if start > _MAXIMUM_SKIPPED:
            raise BackendError("the server does not give ranges of objects")
        size = answer["ContentLength"]
        _read(body, min(start, size))
        return _read(body, min(length, max(0, size - start)))
    found = _CONTENT_RANGE.fullmatch(told)
    first, last, size = (int(number) for number in found.groups()) if found else (-1, -1, -1)
    if first != start or last != min(start + length, size) - 1:
        raise BackendError(f"asked for bytes {start}-{start + length - 1}, the server gave {told!r}")
    return _read(body, last - first + 1)


def _read(body: Any, count: int) -> memoryview:
    content = receive(body.read, count, _LONGEST)
    if len(content) < count:
        raise BackendError(f"the answer broke off after {len(content)} of {count} bytes", retryable=True)
    return content


def check_etag(wanted: str | None, found: str | None) -> None:
    """Check the ETag of the answer itself: some servers ignore If-Match."""
    if wanted is not None and found is None:
        raise BackendError("the answer has no ETag", retryable=True)
    if wanted is not None and found is not None and not is_same_etag(wanted, found):
        raise SourceChangedError("the object was replaced")


def checksum_of(content: BinaryIO) -> tuple[int, str]:
    """Size, and CRC-32 as S3 writes it (API reference, "Checking object integrity")."""
    size = checksum = 0
    content.seek(0)
    while piece := content.read(MIB):
        checksum = zlib.crc32(piece, checksum)
        size += len(piece)
    return size, base64.b64encode(checksum.to_bytes(4, "big")).decode()


def is_stored_md5(answer: Mapping[str, Any], content: BinaryIO) -> bool:
    """Whether the ETag is the content's MD5, or cannot be an MD5."""
    etag = bare_etag(answer["ETag"]).lower()
    if not _MD5.fullmatch(etag) or str(answer.get("ServerSideEncryption", "")).startswith("aws:kms"):
        return True
    content.seek(0)
    digest = hashlib.md5(usedforsecurity=False)
    while piece := content.read(MIB):
        digest.update(piece)
    return bool(digest.hexdigest() == etag)
