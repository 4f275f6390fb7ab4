"""Checks that an object store's answer is about the right bytes."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from amistore.backends.etags import bare_etag, is_same_etag
from amistore.backends.receiving import receive
from amistore.backends.traits import Checksum
from amistore.errors import BackendError, SourceChangedError
from amistore.units import MIB

__all__ = ["check_etag", "checksum_of", "is_stored", "md5_of", "range_of", "size_of"]

_LONGEST = 300.0  # seconds for a range; 32 MiB then come at 0.1 MB/s
_MAXIMUM_SKIPPED = 16 * MIB  # bytes read in vain where a server ignores ranges
_IS_MD5 = re.compile(r"[0-9a-f]{32}")
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


def size_of(content: BinaryIO) -> int:
    """The bytes of a part."""
    return content.seek(0, io.SEEK_END)


def checksum_of(content: BinaryIO, kind: Checksum | None) -> dict[str, str]:
    """The checksum of a part, as the client's parameter (API reference, UploadPart); empty for none."""
    if kind == "md5":
        return {"ContentMD5": base64.b64encode(md5_of(content)).decode()}
    return {} if kind is None else {"ChecksumCRC32": _crc32(content)}


def is_stored(answer: Mapping[str, Any], content: BinaryIO, sent: Mapping[str, str]) -> bool:
    """Whether the checksum that the answer tells, or the ETag if that is an MD5, is of what was sent."""
    stored = answer.get("ChecksumCRC32")
    if stored:
        return bool(stored == (sent.get("ChecksumCRC32") or _crc32(content)))
    # A server that says nothing of the checksum may not have looked at it.
    etag = bare_etag(answer["ETag"]).lower()
    if not _IS_MD5.fullmatch(etag) or str(answer.get("ServerSideEncryption", "")).startswith("aws:kms"):
        return True
    return md5_of(content).hex() == etag


def _crc32(content: BinaryIO) -> str:
    checksum = 0
    for piece in _pieces(content):
        checksum = zlib.crc32(piece, checksum)
    return base64.b64encode(checksum.to_bytes(4, "big")).decode()


def md5_of(content: BinaryIO) -> bytes:
    """The MD5 of a part, which is its ETag where it is not encrypted with a key of KMS."""
    digest = hashlib.md5(usedforsecurity=False)
    for piece in _pieces(content):
        digest.update(piece)
    return digest.digest()


def _pieces(content: BinaryIO) -> Iterator[bytes]:
    content.seek(0)
    while piece := content.read(MIB):
        yield piece
