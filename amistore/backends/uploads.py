"""Uploads by parts: what a store tells of them, and how an object's bytes are cut."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import attrs
from typing_extensions import Buffer

from amistore import forks
from amistore.errors import InvalidRequestError

if TYPE_CHECKING:
    from amistore.backends.locations import ObjectInfo
    from amistore.backends.objects import ObjectStore

__all__ = ["MultipartUpload", "PiecesUpload", "UploadedPart", "cut", "nbytes"]

_DIGEST = re.compile("[0-9A-Fa-f]{32}")  # an ETag that tells of the bytes, as an MD5 does
_logger = logging.getLogger("amistore")


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

    def may_be(self, listed: UploadedPart) -> bool:
        """Whether a list's part, which has another ETag, may have the same bytes: nothing says it has not."""
        same_place = (self.part_number, self.size) == (listed.part_number, listed.size)
        compared = None not in (self.checksum, listed.checksum)
        digests = _DIGEST.fullmatch(self.etag) and _DIGEST.fullmatch(listed.etag)
        return same_place and not compared and not digests


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


@attrs.frozen
class PiecesUpload:
    """An upload of pieces, part by part, that is aborted on an error.

    Attributes:
        store: the store.
        bucket: the bucket's name.
        key: the object's key.
        upload_id: the upload's id.
    """

    store: ObjectStore
    bucket: str
    key: str
    upload_id: str

    def run(
        self, pieces: Iterable[Buffer], part_size: int, size: int | None, *, if_none_match: bool
    ) -> ObjectInfo:
        """Send all pieces and complete the upload; see `ObjectStore.put_object` for the arguments."""
        traits, process = self.store.traits, os.getpid()
        if size is not None:  # rounded up, so that equal parts suffice
            part_size = min(max(part_size, -(-size // traits.most_parts)), traits.largest_part)
        grow_after = traits.most_parts // 10 if size is None else 0
        place = self.bucket, self.key, self.upload_id
        with forks.undoing(lambda _: self._abort()):
            parts: list[UploadedPart] = []
            for part in cut(pieces, part_size, grow_after=grow_after, largest=traits.largest_part):
                forks.check_owner(process, "this upload")
                if len(parts) == traits.most_parts:
                    raise InvalidRequestError(
                        f"the object needs more than the {traits.most_parts} parts that the store takes: "
                        "give a larger part_size=, or the content's size="
                    )
                parts.append(self.store.upload_part(*place, len(parts) + 1, part))
            forks.check_owner(process, "this upload")
            return self.store.complete_multipart_upload(*place, parts, if_none_match=if_none_match)

    def _abort(self) -> None:
        try:
            self.store.abort_multipart_upload(self.bucket, self.key, self.upload_id)
        except Exception as error:  # the first error is the one to tell
            location = self.store.at(self.bucket, self.key)
            _logger.error("upload %s of %s is left behind, abort it: %s", self.upload_id, location, error)
