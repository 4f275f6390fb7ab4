"""What a log has of an upload's parts: part by part, or by orders, whose parts have numbers with gaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from amistore.backends import UploadedPart
from amistore.errors import InvalidRequestError
from amistore.objects.resumelog import ResumeLog, read_entry, write_entry

__all__ = [
    "ByOrders",
    "PartByPart",
    "PartEntries",
    "is_by_orders",
    "order_entry",
    "part_entry",
    "part_size_of",
    "upload_id_of",
]

_DAMAGED = "the resume log is damaged, or belongs to another run"


class PartEntries(Protocol):
    """How the entries of parts are read.

    Attributes:
        gaps: whether what stands behind a missing part counts.
    """

    gaps: bool

    def latest(self, entries: list[bytes]) -> list[bytes]:
        """The entries that count, in order."""
        ...

    def parts(self, entry: bytes) -> list[UploadedPart]:
        """The parts that an entry describes."""
        ...


class PartByPart:
    """Parts from 1 on, each with an entry once all before it are sent."""

    gaps = False

    def latest(self, entries: list[bytes]) -> list[bytes]:
        """The latest log entry of each part, in order.

        A part that the store lost is sent and logged again, and so are those behind it: its new entry counts,
        and none that stood behind the old one.
        """
        found: list[bytes] = []
        for entry in entries:
            number = read_entry(entry).get("part")
            if type(number) is not int or not 1 <= number <= len(found) + 1:
                raise InvalidRequestError(f"{_DAMAGED}: a part is missing")
            del found[number - 1 :]
            found.append(entry)
        return found

    def parts(self, entry: bytes) -> list[UploadedPart]:
        """The part that an entry describes."""
        said = read_entry(entry)
        return [_part(said.get("part"), said)]


def part_entry(part: UploadedPart, records: bytes) -> bytes:
    """The entry of a part, with the job's records."""
    return write_entry(part=part.part_number, **_facts(part)) + b"\n" + records


class ByOrders:
    """The parts of orders, in any order. An entry is of one order, or of several that were joined."""

    gaps = True

    def latest(self, entries: list[bytes]) -> list[bytes]:
        """The latest entry of each order, in order; one of joined orders replaces those of each."""
        found: dict[int, tuple[int, bytes]] = {}
        for entry in entries:
            said = read_entry(entry).get("orders")
            if not (isinstance(said, list) and len(said) == 2 and all(type(each) is int for each in said)):
                raise InvalidRequestError(f"{_DAMAGED}: no orders")
            first, last = said
            if not 0 <= first <= last < 10_000:
                raise InvalidRequestError(f"{_DAMAGED}: orders {first} to {last}")
            for number in [n for n, (end, _) in found.items() if n <= last and end >= first]:
                del found[number]
            found[first] = last, entry
        return [found[number][1] for number in sorted(found)]

    def parts(self, entry: bytes) -> list[UploadedPart]:
        """The parts that an entry describes; none of orders whose bytes go with the tail."""
        said = read_entry(entry).get("parts")
        if not isinstance(said, list) or not all(isinstance(each, dict) for each in said):
            raise InvalidRequestError(f"{_DAMAGED}: no parts")
        return [_part(each.get("part"), each) for each in said]


def order_entry(first: int, last: int, parts: Sequence[UploadedPart], records: Sequence[bytes]) -> bytes:
    """The entry of one order, or of several that were joined, with the records of their segments."""
    told = [{"part": part.part_number, **_facts(part)} for part in parts]
    return write_entry(orders=[first, last], parts=told) + b"\n" + b"".join(records)


def _facts(part: UploadedPart) -> dict[str, Any]:
    checksum = {} if part.checksum is None else {"checksum": part.checksum}
    return {"size": part.size, "etag": part.etag, **checksum}


def _part(number: object, said: Mapping[str, Any]) -> UploadedPart:
    """A part that a log entry describes."""
    try:
        size, etag, checksum = said["size"], said["etag"], said.get("checksum")
        if (
            type(number) is not int
            or type(size) is not int
            or not isinstance(etag, str)
            or not isinstance(checksum, (str, type(None)))
        ):
            raise KeyError("part of these types")
    except KeyError as error:
        raise InvalidRequestError(f"{_DAMAGED}: no {error}") from None
    return UploadedPart(part_number=number, size=size, etag=etag, checksum=checksum)


def is_by_orders(log: ResumeLog | None) -> bool | None:
    """Whether the runs of a log make orders; None where there are none yet."""
    entries = [] if log is None else log.entries()
    return read_entry(entries[0]).get("orders") is not None if entries else None


def part_size_of(entries: list[bytes], most: int) -> int:
    """The size of the parts of the log's run."""
    size = read_entry(entries[0]).get("part_size")
    if type(size) is not int or not 1 <= size <= most:
        raise InvalidRequestError(
            "the resume log says no part size: it is damaged, or an older amistore's; amistore.abandon ends "
            "its run"
        )
    return size


def upload_id_of(entries: list[bytes]) -> str | None:
    """The upload's id; None where the run never learned it."""
    if len(entries) < 2:
        return None
    upload_id = read_entry(entries[1]).get("upload")
    return upload_id if isinstance(upload_id, str) else None
