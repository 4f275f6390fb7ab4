"""What all records have in common: the envelope before a payload, and the CRC-32C behind it.

Next: `records.py`, what each payload says. Imports the container's lower files only.
"""

from __future__ import annotations

import attrs

from amistore.container import layout
from amistore.container.checksum import crc32c
from amistore.errors import CorruptArchiveError, UnsupportedArchiveError

__all__ = ["Envelope", "check_other", "check_others", "open_envelope", "open_record", "pad_record", "seal"]


@attrs.frozen
class Envelope:
    """A record's first 20 bytes, which its CRC has not proved yet.

    Attributes:
        kind: its type.
        size: of the whole record, in bytes.
        is_ours: whether type, version and flags are those of this version of the format.
        critical: whether who does not know it must refuse the file.
    """

    kind: bytes
    size: int
    is_ours: bool
    critical: bool


def seal(kind: bytes, payload: bytes, *, tail: bytes = b"") -> bytes:
    """A whole record; the CRC covers all but `tail`."""
    length = layout.RECORD_OVERHEAD - layout.SKIPPABLE_HEADER + len(payload) + len(tail)
    head = layout.ENVELOPE.pack(
        layout.SKIPPABLE_MAGIC, length, layout.SIGNATURE, kind, layout.RECORD_VERSION, layout.CRITICAL
    )
    fixed = head + payload
    return fixed + tail + layout.CRC.pack(crc32c(fixed))


def open_envelope(start: bytes) -> Envelope:
    """The envelope in the first 20 bytes of a record.

    Raises:
        CorruptArchiveError: no record of this format stands here.
    """
    if len(start) != layout.ENVELOPE.size:
        raise CorruptArchiveError("a record is cut short")
    magic, length, signature, kind, version, flags = layout.ENVELOPE.unpack(start)
    size = length + layout.SKIPPABLE_HEADER
    if magic != layout.SKIPPABLE_MAGIC or signature != layout.SIGNATURE or size < layout.RECORD_OVERHEAD:
        raise CorruptArchiveError("no record stands here")
    is_ours = kind in layout.KNOWN and (version, flags) == (layout.RECORD_VERSION, layout.CRITICAL)
    return Envelope(kind, size, is_ours, kind in layout.KNOWN or bool(flags & layout.CRITICAL))


def open_record(record: bytes, kind: bytes) -> bytes:
    """The payload of a record.

    Only a right CRC tells a newer format: without it version, flags or type are damaged.

    Args:
        record: its bytes, exactly.
        kind: the type that it must have.

    Raises:
        CorruptArchiveError: the CRC is wrong, or another record stands here.
        UnsupportedArchiveError: a whole record of a newer version, or a critical one of unknown type.
    """
    envelope = open_envelope(record[: layout.ENVELOPE.size])
    end = len(record) - layout.CRC.size
    fixed = layout.COVERED.get(envelope.kind) if envelope.is_ours else None
    covered = end if fixed is None else layout.ENVELOPE.size + fixed
    if envelope.size != len(record) or covered > end:
        raise CorruptArchiveError("a record has another length than it says")
    if layout.CRC.unpack(record[end:]) != (crc32c(record[:covered]),):
        raise CorruptArchiveError("a record's CRC-32C is wrong")
    if envelope.critical and not envelope.is_ours:
        raise UnsupportedArchiveError(
            f"a {_name(envelope.kind)} record of a version, of flags or of a type that are not known: "
            "install a newer amistore"
        )
    if envelope.kind != kind:
        raise CorruptArchiveError(
            f"a {_name(envelope.kind)} record stands where {_name(kind)} is expected", record=_name(kind)
        )
    return record[layout.ENVELOPE.size : end]


def _name(kind: bytes) -> str:
    return kind.decode("ascii", "backslashreplace").rstrip("\0")


def check_other(record: bytes, before: int) -> None:
    """Refuse a record that may not be skipped.

    Args:
        record: its bytes, exactly.
        before: how many that were skipped stand before it in the same place.

    Raises:
        CorruptArchiveError: damaged, too long, one too many, or a record that belongs elsewhere.
        UnsupportedArchiveError: a critical one.
    """
    kind = open_envelope(record[: layout.ENVELOPE.size]).kind
    open_record(record, kind)
    if kind in layout.KNOWN or len(record) > layout.MAX_DESCRIPTOR:
        raise CorruptArchiveError("a record stands here that belongs elsewhere, or is beyond the limit")
    if before >= layout.MAX_OTHERS:
        raise CorruptArchiveError(f"more than {layout.MAX_OTHERS} records of unknown type in one place")


def check_others(content: bytes) -> None:
    """Refuse what is not a few records that may be skipped; see `check_other`."""
    at = count = 0
    while at < len(content):
        size = open_envelope(content[at : at + layout.ENVELOPE.size]).size
        check_other(content[at : at + size], count)
        count += 1
        at += size


def pad_record(size: int) -> bytes:
    """A PAD record of `size` bytes, at least 24: zeros between envelope and CRC."""
    return seal(layout.PAD, b"", tail=bytes(size - layout.RECORD_OVERHEAD))
