"""The NBD protocol's numbers and structs: what a server of disks and its clients say to each other.

From "The NBD protocol" (github.com/NetworkBlockDevice/nbd, doc/proto.md), fixed newstyle negotiation. All
numbers are big-endian.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

__all__ = [
    "ALLOCATION",
    "CLIENT_FLAGS",
    "COMMAND_DF",
    "COMMAND_ONE",
    "EXPORT",
    "EXTENT",
    "FLAG_MULTI",
    "FLAG_PRESENT",
    "FLAG_READ_ONLY",
    "FLAG_SEND_CACHE",
    "FLAG_SEND_DF",
    "GREETING",
    "HANDSHAKE_FIXED",
    "HANDSHAKE_NO_ZEROES",
    "INIT_MAGIC",
    "OPTION",
    "OPTION_MAGIC",
    "OPTION_REPLY",
    "OPTION_REPLY_MAGIC",
    "REPLY_ERROR",
    "REQUEST",
    "REQUEST_MAGIC",
    "SIMPLE_REPLY",
    "SIMPLE_REPLY_MAGIC",
    "STATE_HOLE",
    "STATE_ZERO",
    "STRUCTURED_DONE",
    "STRUCTURED_REPLY",
    "STRUCTURED_REPLY_MAGIC",
    "Chunk",
    "Command",
    "Errno",
    "Info",
    "Option",
    "Reply",
    "chunk",
    "error_chunk",
    "option_reply",
    "parse_contexts",
    "parse_export",
    "string",
]

INIT_MAGIC: Final = 0x4E42444D41474943  # "NBDMAGIC"
OPTION_MAGIC: Final = 0x49484156454F5054  # "IHAVEOPT"
OPTION_REPLY_MAGIC: Final = 0x0003E889045565A9
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF

GREETING: Final = struct.Struct(">QQH")  # both magics, handshake flags
CLIENT_FLAGS: Final = struct.Struct(">I")
OPTION: Final = struct.Struct(">QII")  # magic, option, length of its data
OPTION_REPLY: Final = struct.Struct(">QIII")  # magic, option, reply, length of its data
EXPORT: Final = struct.Struct(">QH")  # size, transmission flags
REQUEST: Final = struct.Struct(">IHHQQI")  # magic, flags, command, cookie, offset, length
SIMPLE_REPLY: Final = struct.Struct(">IIQ")  # magic, error, cookie
STRUCTURED_REPLY: Final = struct.Struct(">IHHQI")  # magic, flags, chunk, cookie, length
EXTENT: Final = struct.Struct(">II")  # length, state

HANDSHAKE_FIXED: Final = 1
HANDSHAKE_NO_ZEROES: Final = 2
FLAG_PRESENT: Final = 1
FLAG_READ_ONLY: Final = 2
FLAG_SEND_DF: Final = 128
FLAG_MULTI: Final = 256
FLAG_SEND_CACHE: Final = 1024
COMMAND_DF: Final = 4
COMMAND_ONE: Final = 8
REPLY_ERROR: Final = 2**31  # the bit of all errors
STRUCTURED_DONE: Final = 1
ALLOCATION: Final = "base:allocation"
STATE_HOLE: Final = 1
STATE_ZERO: Final = 2


class Option(enum.IntEnum):
    """What a client asks for before it reads."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class Reply(enum.IntEnum):
    """The answer to an option; an error has the highest bit."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = 2**31 + 1
    ERR_POLICY = 2**31 + 2
    ERR_INVALID = 2**31 + 3
    ERR_UNKNOWN = 2**31 + 6
    ERR_SHUTDOWN = 2**31 + 7
    ERR_TOO_BIG = 2**31 + 9


class Info(enum.IntEnum):
    """What an answer to GO or INFO is about."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class Command(enum.IntEnum):
    """What a client asks for once it reads."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class Chunk(enum.IntEnum):
    """A piece of a structured reply."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR = 2**15 + 1
    ERROR_OFFSET = 2**15 + 2


class Errno(enum.IntEnum):
    """The errors of commands."""

    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108


_MOST_TEXT = 4096  # bytes; a client may refuse longer strings (doc/proto.md, "String values")


def string(text: str) -> bytes:
    """A text with its length before it."""
    encoded = text.encode()
    return len(encoded).to_bytes(4, "big") + encoded


def option_reply(option: int, reply: Reply, data: bytes = b"") -> bytes:
    """An answer to an option."""
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, reply, len(data)) + data


def chunk(cookie: int, kind: Chunk, fields: bytes = b"", *, follows: int = 0, done: bool = False) -> bytes:
    """A chunk of a structured reply, without its last `follows` bytes."""
    flags = STRUCTURED_DONE if done else 0
    length = len(fields) + follows
    return STRUCTURED_REPLY.pack(STRUCTURED_REPLY_MAGIC, flags, kind, cookie, length) + fields


def error_chunk(cookie: int, error: Errno, text: str, offset: int | None = None) -> bytes:
    """The last chunk of a reply that failed, at an offset of the disk if that is known."""
    message = text.encode(errors="replace")[:_MOST_TEXT].decode(errors="ignore").encode()
    fields = struct.pack(">IH", error, len(message)) + message
    if offset is None:
        return chunk(cookie, Chunk.ERROR, fields, done=True)
    return chunk(cookie, Chunk.ERROR_OFFSET, fields + struct.pack(">Q", offset), done=True)


def parse_export(data: bytes) -> tuple[str, list[int]]:
    """The export's name and the wanted facts, from the data of GO and INFO.

    Raises:
        ValueError: the data are malformed.
    """
    name, at = _parse_string(data, 0)
    count = _parse_number(data, at, 2)
    if len(data) != at + 2 + 2 * count:
        raise ValueError("the facts have another length")
    return name, [_parse_number(data, at + 2 + 2 * number, 2) for number in range(count)]


def parse_contexts(data: bytes) -> tuple[str, list[str]]:
    """The export's name and the queries, from the data of LIST_META_CONTEXT and SET_META_CONTEXT.

    Raises:
        ValueError: the data are malformed.
    """
    name, at = _parse_string(data, 0)
    count, at = _parse_number(data, at, 4), at + 4
    queries = []
    for _ in range(count):
        query, at = _parse_string(data, at)
        queries.append(query)
    if at != len(data):
        raise ValueError("something follows the queries")
    return name, queries


def _parse_string(data: bytes, at: int) -> tuple[str, int]:
    end = at + 4 + _parse_number(data, at, 4)
    if end > len(data):
        raise ValueError("a string is cut short")
    return data[at + 4 : end].decode(), end


def _parse_number(data: bytes, at: int, size: int) -> int:
    if at + size > len(data):
        raise ValueError("a number is cut short")
    return int.from_bytes(data[at : at + size], "big")
