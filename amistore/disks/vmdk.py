"""The header of a VMDK image: one sparse extent that describes itself, and names no other file.

From VMware's "Virtual Disk Format 5.0"; all numbers are little-endian, and offsets count sectors.
"""

from __future__ import annotations

import re
import struct
from typing import Any, Final

from amistore.disks.imagefile import ImageFile

__all__ = ["AT_END", "HEADER", "check"]

_SECTOR: Final = 512
_MAGIC: Final = b"KDMV"
# Magic, version, flags, capacity, grain size, the description's offset and size, entries of a grain table,
# the redundant and the used grain directory's offsets, overhead.
HEADER: Final = struct.Struct("<4sIIQQQQIQQQ")
_AT_CAPACITY, _AT_DESCRIPTION, _AT_DIRECTORY = 12, 28, 56
AT_END: Final = 2**64 - 1  # the directory's offset where a footer has it
_FOOTER: Final = 3 * _SECTOR  # from the file's end: a marker, the header again, the end's marker

# qemu (block/vmdk.c) looks for a parent in 20 sectors behind the header, whatever the header says.
_DESCRIPTION: Final = 1
_DESCRIPTION_SIZE: Final = 20
_LARGEST_DESCRIPTION: Final = 2048  # sectors; what VMware writes has 20

_TYPES: Final = {"monolithicsparse", "streamoptimized"}
_EXTENT: Final = re.compile(r"(?:RW|RDONLY|NOACCESS)\s", re.IGNORECASE)
_OWN_EXTENT: Final = re.compile(r'(?:RW|RDONLY)\s+\d+\s+SPARSE\s+"[^"/\\]+"', re.IGNORECASE)
_NO_PARENT: Final = "ffffffff"
# What the file is instead, by its beginning.
_OTHERS: Final = {
    b"COWD": "an extent of VMware ESX",
    b"# Di": "a description of other files",
}


def check(image: ImageFile) -> None:
    """Refuse what is not one file of the types monolithicSparse or streamOptimized.

    Raises:
        InvalidRequestError: the image has or may have parts in other files, or its header is damaged.
    """
    magic = image.read(0, len(_MAGIC), "the header")
    if magic in _OTHERS:
        raise image.convertible(f"it is a VMDK image of another kind ({_OTHERS[magic]})", 0)
    if magic != _MAGIC:
        raise image.damaged("it does not begin as a sparse VMDK image", 0)
    header = _check_header(image, 0)
    start, sectors, directory = header[5], header[6], header[9]
    if start != _DESCRIPTION or not 0 < sectors <= _LARGEST_DESCRIPTION:
        raise image.convertible(
            f"its description has {sectors} sectors at sector {start}, and not some at sector 1",
            _AT_DESCRIPTION,
        )
    if directory == AT_END:
        _check_header(image, image.size - _FOOTER + _SECTOR)
    text = image.read(start * _SECTOR, sectors * _SECTOR, "the description")
    behind = min(_DESCRIPTION_SIZE * _SECTOR, image.size - start * _SECTOR)
    _check_description(image, text, image.read(start * _SECTOR, behind, "the description"))


def _check_header(image: ImageFile, offset: int) -> tuple[Any, ...]:
    header = image.unpack(HEADER, offset, "the header")
    magic, _, _, capacity = header[:4]
    if magic != _MAGIC:
        raise image.damaged("its footer does not begin as a header", offset)
    # Without a capacity qemu takes the description for one of other files, and opens these.
    image.check_disk_size(capacity * _SECTOR, offset + _AT_CAPACITY)
    return header


def _check_description(image: ImageFile, content: bytes, behind: bytes) -> None:
    """Of one extent that is this file, whatever its name is now.

    Args:
        image: the file.
        content: the description as the header has it.
        behind: the bytes that qemu searches for a parent.
    """
    where = _DESCRIPTION * _SECTOR
    if b"parentfilenamehint" in (content + b"\n" + behind).lower():
        raise image.convertible("it is based on another file (parentFileNameHint)", where)
    lines = content.split(b"\0", 1)[0].decode("latin-1").splitlines()
    facts: dict[str, list[str]] = {}
    for line in lines:
        name, _, value = line.partition("=")
        facts.setdefault(name.strip().lower(), []).append(value.strip().strip('"').lower())
    kinds = facts.get("createtype", [])
    if len(kinds) != 1 or kinds[0] not in _TYPES:
        raise image.convertible(f"it has the type {', '.join(kinds)[:100] or 'of none'}", where)
    if facts.get("parentcid", []) != [_NO_PARENT]:
        raise image.convertible("it is based on another file (parentCID)", where)
    extents = [line.strip() for line in lines if _EXTENT.match(line.strip())]
    if len(extents) != 1 or not _OWN_EXTENT.fullmatch(extents[0]):
        raise image.convertible("it has not one sparse extent that is this file", where)
