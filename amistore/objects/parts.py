"""Parts of an upload: all have one size but the last, which is no larger.

Some stores demand it, among them Cloudflare R2 ("Upload objects", multipart uploads), and none minds.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO, Final, cast

import attrs

from amistore.backends import ObjectLocation, UploadedPart, files
from amistore.backends.traits import StoreTraits
from amistore.container.plan import Plan
from amistore.errors import BackendError, InvalidRequestError, StorageFullError
from amistore.objects.multipart import LoggedUpload
from amistore.pipeline.requests import requests_of
from amistore.pipeline.workers import closing, worker_pool
from amistore.units import MIB, sized

__all__ = ["SPOOL", "ObjectBounds", "Part", "Piece", "cut_parts", "part_size_for", "send_parts", "sent_parts"]

Piece = tuple[bytes, "bytes | None"]
"""Bytes of an object, and what the log is to keep of them with the part in which they begin."""

_USUAL: Final = 16 * MIB
"""Bytes of a part where no more are needed: three or four are sent at once within the budget of 48 MiB."""

SPOOL: Final = 32 * MIB  # bytes of a part from which on it is kept in a file
_ROOM = "set TMPDIR to a folder with room for parts"


def part_size_for(most_bytes: int, traits: StoreTraits, wanted: int | None = None) -> int:
    """The bytes of a part for an object of so many bytes at most.

    Args:
        most_bytes: the most bytes that the object may come to.
        traits: what the store can do.
        wanted: the caller's own size; None for 16 MiB, or more where the store takes too few parts, or less
            where the object is smaller: a part's memory is taken at once.

    Raises:
        InvalidRequestError: the caller's size does not fit the store or the object.
    """
    needed = -(-min(most_bytes, traits.most_bytes) // traits.most_parts)
    if wanted is None:
        usual = min(_USUAL, -(-most_bytes // MIB) * MIB)
        return min(max(-(-needed // MIB) * MIB, traits.least_part, usual), traits.largest_part)
    least, most = max(needed, traits.least_part), traits.largest_part
    if type(wanted) is not int or not least <= wanted <= most:
        raise InvalidRequestError(
            f"part_size must be a whole number from {least} to {most} for an object of up to "
            f"{sized(most_bytes)} in {traits.most_parts} parts, not {wanted!r}"
        )
    return wanted


class Part:
    """One part: in memory or, if it is large, in an unlinked temporary file.

    Args:
        number: the part's number, from 1.
        most: the most bytes that it gets.

    Attributes:
        number: the part's number, from 1.
        size: the part's size in bytes.
        records: what the log is to keep with it, of the pieces that begin in it.
        last: whether it is the upload's last part, which no log has: each run sends it.
    """

    def __init__(self, number: int, most: int) -> None:
        self.number = number
        self._most = most
        self.size = 0
        self.records: list[bytes] = []
        self.last = False
        self._content = bytearray()
        self._file: BinaryIO | None = None

    def add(self, piece: memoryview) -> None:
        """Append bytes."""
        start, self.size = self.size, self.size + len(piece)
        if self._most <= SPOOL:
            if not start:  # all of it at once: to grow copies what is there, again and again
                self._content = bytearray(self._most)
            with memoryview(self._content) as content:  # a bytearray would copy the piece first
                content[start : self.size] = piece
            return
        if self._file is None:
            self._file = _temporary_file()
        with files.operation("spool", path=tempfile.gettempdir(), room=_ROOM):
            files.write_at(self._file.fileno(), piece, start)

    def close(self) -> None:
        """Free the part's bytes."""
        self._content = bytearray()
        if self._file is not None:
            self._file.close()

    def content(self) -> bytes:
        """The part's bytes, which are freed."""
        if self._file is None:
            content = bytes(self._content[: self.size])
        else:
            content = files.read_at(self._file.fileno(), self.size, 0)
        self.close()
        return content

    def in_memory(self) -> int:
        """The bytes that it holds in memory until it is sent, not in a temporary file."""
        return self.size if self._file is None else 0

    def send(self, to: ObjectLocation, upload_id: str) -> UploadedPart:
        """Upload the part, and free its bytes."""
        if self._file is None:
            del self._content[self.size :]
            sent = to.store.upload_part(to.bucket, to.key, upload_id, self.number, self._content)
        else:
            sent = to.store.upload_part_file(to.bucket, to.key, upload_id, self.number, self._file)
        self.close()
        if (sent.part_number, sent.size) != (self.number, self.size):
            raise BackendError(
                f"part {self.number} of {self.size} bytes was stored as number {sent.part_number} "
                f"with {sent.size}",
                operation="upload_part",
                **to.facts,
            )
        return sent


def _temporary_file() -> BinaryIO:
    with files.operation("spool"):
        try:
            # Without a buffer, whose rest a close would try to write after the disk was full.
            return cast(BinaryIO, tempfile.TemporaryFile(prefix="amistore-", buffering=0))
        except FileNotFoundError as error:  # each folder that there is was tried, and could not be written
            raise StorageFullError(f"{error.strerror}: {_ROOM}") from None


def send_parts(upload: LoggedUpload, pieces: Iterator[Piece], workers: int | None) -> None:
    """Send what is missing of an upload; each part is logged once all before it are.

    Args:
        upload: the upload.
        pieces: the object's bytes behind the parts that are there.
        workers: the number of parts sent at once; None for the number of CPUs.
    """
    to, size = upload.to, upload.part_size
    traits = to.store.traits
    most = min(traits.most_parts, -(-traits.largest_object // size))
    advice = f"it cannot hold the archive ({to})"
    if upload.given is not None:
        advice += "; or its log has a smaller size of parts, and amistore.abandon ends its run"
    begun: deque[Part] = deque()
    parts = cut_parts(pieces, size, len(upload.parts) + 1, most, begun, advice)
    for part, uploaded in sent_parts(to, upload.upload_id, parts, begun, workers):
        upload.note(uploaded, None if part.last else b"".join(part.records))


def sent_parts(
    to: ObjectLocation, upload_id: str, parts: Iterator[Part], begun: deque[Part], workers: int | None
) -> Iterator[tuple[Part, UploadedPart]]:
    """Send parts, several at once; yields each in order.

    Args:
        to: the object's location.
        upload_id: the upload's id.
        parts: the parts.
        begun: the parts that are begun and not sent; those that are left on an error are closed.
        workers: the number of parts sent at once; None for the number of CPUs.
    """

    def send(part: Part) -> tuple[Part, UploadedPart]:
        return part, part.send(to, upload_id)

    try:
        with (
            worker_pool(workers, None, requests=requests_of(to.store)) as pool,
            closing(pool.map(send, parts, Part.in_memory, most=pool.count, least=1)) as sent,
        ):
            for part, uploaded in sent:
                begun.popleft()
                yield part, uploaded
    except BaseException:
        for left in begun:
            left.close()
        raise


def cut_parts(
    pieces: Iterator[Piece], size: int, number: int, most: int, begun: deque[Part], advice: str = ""
) -> Iterator[Part]:
    """Cut pieces into parts; the last one comes once there are no more pieces.

    Args:
        pieces: the pieces, the first one at the first part's beginning.
        size: the bytes of each part but the last.
        number: the first part's number.
        most: the most parts of the upload.
        begun: a list that gets each part before its first byte, so that all can be closed on an error.
        advice: what to do where there are more.

    Raises:
        InvalidRequestError: there are more parts than an object may have.
    """
    if number > most:
        raise _too_many(most, size, advice)
    part = Part(number, size)
    begun.append(part)
    for content, record in pieces:
        rest = memoryview(content)
        while rest:
            if part.size == size:
                if part.number == most:
                    raise _too_many(most, size, advice)
                yield part
                part = Part(part.number + 1, size)
                begun.append(part)
            if record is not None:
                part.records.append(record)
                record = None
            taken = rest[: size - part.size]
            part.add(taken)
            rest = rest[len(taken) :]
    part.last = True
    yield part


def _too_many(most: int, size: int, advice: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"the archive needs more than the {most} parts of {sized(size)} that the store takes: {advice}"
    )


@attrs.frozen(kw_only=True)
class ObjectBounds:
    """Upper bounds for the object of a plan, reached if nothing compresses.

    Attributes:
        size: the object's size in bytes.
        part_size: the size in bytes of a part but the last.
        parts: the number of parts of its upload.
        spooled: the bytes of parts in temporary files at one time.
    """

    size: int
    part_size: int
    parts: int
    spooled: int

    @classmethod
    def of(cls, planned: Plan, workers: int, traits: StoreTraits) -> ObjectBounds:
        """The bounds for so many workers, known before a block is read."""
        size = planned.most_bytes
        part_size = part_size_for(size, traits)
        return cls(
            size=size,
            part_size=part_size,
            parts=min(-(-size // part_size), traits.most_parts),
            # One for each worker, and the one that is being cut.
            spooled=min((workers + 1) * part_size, size) if part_size > SPOOL else 0,
        )
