"""Uploads by parts: what a store tells of them, and how an object's bytes are cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import attrs
from typing_extensions import Buffer

__all__ = ["MultipartUpload", "UploadedPart", "cut", "nbytes"]


@attrs.frozen(kw_only=True)
class UploadedPart:
    """A part of a multipart upload.

    Attributes:
        part_number: the part's number, from 1.
        size: the part's size in bytes.
        etag: the part's ETag, opaque.
        checksum: the part's checksum as the store wrote it, which some stores want at completion; None where
            the store tells none. It does not count where parts are compared.
    """

    part_number: int
    size: int
    etag: str
    checksum: str | None = attrs.field(default=None, eq=False)

    def is_like(self, listed: UploadedPart) -> bool:
        """Whether a list's part is this one: by number, size, and ETag or checksum."""
        same_bytes = self.checksum is not None and self.checksum == listed.checksum
        same_place = (self.part_number, self.size) == (listed.part_number, listed.size)
        return same_place and (same_bytes or self.etag == listed.etag)


@attrs.frozen(kw_only=True)
class MultipartUpload:
    """An upload that was begun, and neither completed nor aborted."""

    key: str
    upload_id: str


def nbytes(content: Buffer) -> int:
    """The bytes of a piece."""
    return memoryview(content).nbytes


def cut(pieces: Iterable[Buffer], size: int, *, grow_after: int, largest: int) -> Iterator[bytearray]:
    """Pieces cut into parts of one size, or of one that is doubled after so many; the last one is no larger.

    Args:
        pieces: the bytes.
        size: the bytes of the first part, 1 at least.
        grow_after: the number of parts after which they are doubled; 0 for never.
        largest: the most bytes of a part that was doubled.
    """
    part, full = bytearray(), size
    count = 0
    for piece in pieces:
        rest = memoryview(piece).cast("B")
        while rest:
            if len(part) == full:
                yield part
                count += 1
                part = bytearray()
                if grow_after:
                    full = min(size << count // grow_after, max(size, largest))
            taken = rest[: full - len(part)]
            part += taken
            rest = rest[len(taken) :]
    yield part
