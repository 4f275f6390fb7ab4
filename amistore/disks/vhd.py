"""The footer and header of a VHD image, fixed or dynamic.

From Microsoft's "Virtual Hard Disk Image Format Specification"; all numbers are big-endian.
"""

from __future__ import annotations

import struct
from typing import Any, Final

from amistore.disks.imagefile import ImageFile

__all__ = ["check"]

# Cookie, features, version, the header's offset, time, creator and its version and system, original and
# current size, geometry, type, checksum, id; the rest is reserved.
_FOOTER: Final = struct.Struct(">8sIIQI4sI4sQQIII16s428x")
_FOOTER_COOKIE: Final = b"conectix"
_FOOTER_SUM: Final = 64
_AT_SIZE, _AT_TYPE = 48, 60
_FIXED, _DYNAMIC, _DIFFERENCING = 2, 3, 4
# Cookie, next structure, the table's offset, version, the table's entries, a block's size, checksum; the rest
# is of differencing disks.
_HEADER: Final = struct.Struct(">8sQQIIII984x")
_HEADER_COOKIE: Final = b"cxsparse"
_HEADER_SUM: Final = 36
_AT_TABLE, _AT_ENTRIES, _AT_BLOCK = 16, 28, 32
_ENTRY: Final = 4  # bytes
_SMALLEST_BLOCK, _LARGEST_BLOCK = 512, 1 << 30


def check(image: ImageFile) -> None:
    """Refuse what is not a whole fixed or dynamic VHD image.

    Raises:
        InvalidRequestError: the image is based on another file, or damaged.
    """
    end = image.size - _FOOTER.size
    footer = _footer(image, end)
    kind, offset, size = footer[11], footer[3], footer[9]
    if kind == _DIFFERENCING:
        raise image.convertible("it is based on another file (a differencing disk)", end + _AT_TYPE)
    if kind not in (_FIXED, _DYNAMIC):
        raise image.damaged(f"it has the type {kind}", end + _AT_TYPE)
    image.check_disk_size(size, end + _AT_SIZE)
    # qemu looks at the beginning first, and takes a footer there for a dynamic disk's (block/vpc.c).
    if kind == _FIXED:
        if size > end:
            raise image.damaged(f"its disk has {size} bytes, of a file of {image.size}", end + _AT_SIZE)
        if image.read(0, len(_FOOTER_COOKIE), "the disk") == _FOOTER_COOKIE:
            raise image.convertible("it is a fixed disk that begins as a dynamic one", 0)
    elif _footer(image, 0) != footer:
        raise image.damaged("its first sector is not a copy of its footer", 0)
    else:
        _check_header(image, offset, size)


def _footer(image: ImageFile, offset: int) -> tuple[Any, ...]:
    sector = image.read(offset, _FOOTER.size, "the footer")
    if not sector.startswith(_FOOTER_COOKIE):
        raise image.damaged("it has no footer of a VHD image", offset)
    _check_sum(image, sector, _FOOTER_SUM, offset)
    return _FOOTER.unpack(sector)


def _check_header(image: ImageFile, offset: int, size: int) -> None:
    """The header of a dynamic disk, and that its table is in the file and has all of the disk."""
    content = image.read(offset, _HEADER.size, "the dynamic disk header")
    if not content.startswith(_HEADER_COOKIE):
        raise image.damaged("it has no dynamic disk header", offset)
    _check_sum(image, content, _HEADER_SUM, offset)
    _, _, table, _, entries, block, _ = _HEADER.unpack(content)
    if not _SMALLEST_BLOCK <= block <= _LARGEST_BLOCK or block & (block - 1):
        raise image.damaged(f"its blocks have {block} bytes", offset + _AT_BLOCK)
    if entries * block < size:
        raise image.damaged(f"its table has {entries} blocks, too few for its disk", offset + _AT_ENTRIES)
    if table > image.size - entries * _ENTRY:
        raise image.damaged(f"its table of {entries} blocks is behind the file's end", offset + _AT_TABLE)


def _check_sum(image: ImageFile, content: bytes, at: int, offset: int) -> None:
    """The one's complement of the sum of all other bytes."""
    found = int.from_bytes(content[at : at + 4], "big")
    if found != ~(sum(content) - sum(content[at : at + 4])) & 0xFFFFFFFF:
        raise image.damaged("a checksum is wrong", offset + at)
