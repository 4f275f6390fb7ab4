"""The tar view: headers of plain members and of GNU-sparse 1.0 members.

POSIX.1-2001 pax, "ustar Interchange Format"; GNU tar manual, "PAX Format, Version 1.0".
No `size` record is written in a pax header: with one beside the GNU.sparse records
Python's tarfile takes it for the sparse size and skips the next member. Sizes of 8 GiB
and more are base-256 in the ustar header, which GNU tar, bsdtar and Python all read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from amistore.container.runs import Runs
from amistore.errors import CorruptArchiveError, InvalidRequestError
from amistore.units import BLOCK_SIZE

__all__ = ["file_header", "padding", "parse_map", "sparse_header"]

RECORD = 512
_OCTAL_LIMIT = 8**11
_COUNT = re.compile(rb"(\d{1,8})\n")
_PAIR = re.compile(rb"(\d{1,20})\n(\d{1,20})\n")


def padding(size: int) -> int:
    """Zero bytes that follow `size` bytes up to a whole tar record of 512."""
    return -size % RECORD


def file_header(name: str, size: int, mtime: int, kind: bytes = b"0") -> bytes:
    """A ustar header. `name` is ASCII of at most 100 bytes; `mtime` in seconds since 1970."""
    header = bytearray(RECORD)
    header[0 : len(name)] = name.encode("ascii")
    header[100:108] = b"0000600\0"
    header[108:116] = header[116:124] = b"0000000\0"
    if size < _OCTAL_LIMIT:
        header[124:136] = b"%011o\0" % size
    else:
        header[124:136] = b"\x80" + size.to_bytes(11, "big")
    header[136:148] = b"%011o\0" % mtime
    header[148:156] = b" " * 8
    header[156:157] = kind
    header[257:265] = b"ustar\x0000"
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def sparse_header(directory: str, file: str, size: int, runs: Runs, mtime: int) -> bytes:
    """All that stands before the blocks of a sparse member: pax header, ustar header, map.

    Args:
        directory: directory of the member.
        file: its file name.
        size: its size in bytes, holes included.
        runs: its blocks.
        mtime: seconds since 1970.
    """
    pax = b"".join(
        _pax_record(key, value)
        for key, value in (
            ("GNU.sparse.major", "1"),
            ("GNU.sparse.minor", "0"),
            ("GNU.sparse.name", f"{directory}/{file}"),
            ("GNU.sparse.realsize", str(size)),
        )
    )
    sparse_map = _sparse_map(size, runs)
    stored = len(sparse_map) + runs.blocks * BLOCK_SIZE
    return b"".join(
        (
            file_header(f"{directory}/PaxHeaders.0/{file}", len(pax), mtime, b"x"),
            pax + bytes(padding(len(pax))),
            file_header(f"{directory}/GNUSparseFile.0/{file}", stored, mtime),
            sparse_map,
        )
    )


def _pax_record(key: str, value: str) -> bytes:
    body = f" {key}={value}\n".encode()
    length = len(body)
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def _sparse_map(size: int, runs: Runs) -> bytes:
    ends_in_hole = runs.end * BLOCK_SIZE != size
    document = bytearray(b"%d\n" % (len(runs) + ends_in_hole))
    for start, count in runs:
        document += b"%d\n%d\n" % (start * BLOCK_SIZE, count * BLOCK_SIZE)
    if ends_in_hole:
        document += b"%d\n0\n" % size  # GNU tar ends a file whose end is a hole so
    return bytes(document) + bytes(padding(len(document)))


def parse_map(prelude: bytes, size: int) -> Runs:
    """The runs in the map of a `sparse_header` for a file of `size` bytes.

    The caller proves the rest by building the header again from what this returns.

    Raises:
        CorruptArchiveError: not a map that `sparse_header` writes.
    """
    # Two headers of one record each, and one record of pax body between them.
    count = _COUNT.match(prelude, 3 * RECORD)
    if count is None:
        raise CorruptArchiveError("the sparse map is invalid: no number of pairs")
    try:
        runs = Runs(_pairs(prelude, count.end(), int(count[1])))
    except InvalidRequestError as error:
        raise CorruptArchiveError(f"the sparse map is invalid: {error}") from None
    if runs.end * BLOCK_SIZE > size:
        raise CorruptArchiveError("the sparse map reaches beyond the volume")
    return runs


def _pairs(prelude: bytes, at: int, count: int) -> Iterator[tuple[int, int]]:
    """First block and number of blocks of each pair of the map, but for one of length 0 at its end."""
    for number in range(count):
        pair = _PAIR.match(prelude, at)
        if pair is None:
            raise CorruptArchiveError(f"the sparse map is invalid: pair {number} of {count} is none")
        at = pair.end()
        if pair[2] != b"0" or number + 1 < count:
            yield int(pair[1]) // BLOCK_SIZE, int(pair[2]) // BLOCK_SIZE
