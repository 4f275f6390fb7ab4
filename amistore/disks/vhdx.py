"""The regions and metadata of a VHDX image, as far as they may name another file.

From Microsoft's [MS-VHDX]; all numbers are little-endian. qemu checks the checksums, and refuses a log that
is to be replayed as the image is opened to read.
"""

from __future__ import annotations

import struct
import uuid
from typing import Final

from amistore.disks.imagefile import ImageFile

__all__ = ["check"]

_SIGNATURE: Final = b"vhdxfile"
_REGION_TABLES: Final = (192 << 10, 256 << 10)  # 2.2.3; the second is a copy of the first
_REGION_TABLE: Final = struct.Struct("<4sIII")  # signature, checksum, entries, reserved
_REGION_SIGNATURE: Final = b"regi"
_REGION: Final = struct.Struct("<16sQII")  # id, offset, length, whether it is required
_METADATA: Final = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
_METADATA_TABLE: Final = struct.Struct("<8sHH20x")  # signature, reserved, entries
_METADATA_SIGNATURE: Final = b"metadata"
_ITEM: Final = struct.Struct("<16sIIII")  # id, offset in the region, length, flags, reserved
_MOST_ENTRIES: Final = 2047  # 2.2.3.1 and 2.6.1.1
_SMALLEST_REGION: Final = 1 << 20  # 2.2: a region begins behind the first MiB
_FILE_PARAMETERS: Final = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
_DISK_SIZE: Final = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le
_PARENT_LOCATOR: Final = uuid.UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c").bytes_le
_PARAMETERS: Final = struct.Struct("<II")  # 2.6.2.1: a block's size, flags
_HAS_PARENT: Final = 2
_SIZE: Final = struct.Struct("<Q")


def check(image: ImageFile) -> None:
    """Refuse what is not a VHDX image without a parent.

    Raises:
        InvalidRequestError: the image is based on another file, or damaged.
    """
    if image.read(0, len(_SIGNATURE), "the header") != _SIGNATURE:
        raise image.damaged("it does not begin as a VHDX image", 0)
    # qemu reads the first (block/vhdx.c); a reader that falls back to the other must find no parent there.
    first = _metadata_region(image, _REGION_TABLES[0])
    _check_metadata(image, *first)
    if image.read(_REGION_TABLES[1], 4, "the second region table") == _REGION_SIGNATURE:
        second = _metadata_region(image, _REGION_TABLES[1])
        if second != first:
            raise image.damaged("its two region tables differ", _REGION_TABLES[1])


def _metadata_region(image: ImageFile, table: int) -> tuple[int, int]:
    """The metadata's offset and length."""
    signature, _, count, _ = image.unpack(_REGION_TABLE, table, "the region table")
    if signature != _REGION_SIGNATURE or count > _MOST_ENTRIES:
        raise image.damaged(f"its region table has {count} entries, or none", table)
    entries = image.read(table + _REGION_TABLE.size, count * _REGION.size, "the region table")
    found = [
        (offset, length) for kind, offset, length, _ in _REGION.iter_unpack(entries) if kind == _METADATA
    ]
    if len(found) != 1:
        raise image.damaged(f"it has {len(found)} metadata regions", table)
    offset, length = found[0]
    if offset < _SMALLEST_REGION or offset > image.size - length:
        raise image.damaged(f"its metadata has {length} bytes at {offset}", table)
    return offset, length


def _check_metadata(image: ImageFile, start: int, length: int) -> None:
    signature, _, count = image.unpack(_METADATA_TABLE, start, "the metadata table")
    if signature != _METADATA_SIGNATURE or count > _MOST_ENTRIES:
        raise image.damaged(f"its metadata table has {count} entries, or none", start)
    table = image.read(start + _METADATA_TABLE.size, count * _ITEM.size, "the metadata table")
    items: dict[bytes, tuple[int, int]] = {}
    for number, (kind, offset, size, _, _) in enumerate(_ITEM.iter_unpack(table)):
        where = start + _METADATA_TABLE.size + number * _ITEM.size
        if kind == _PARENT_LOCATOR:
            raise image.convertible("it is based on another file (a parent locator)", where)
        if kind in items or offset + size > length:
            raise image.damaged(f"a metadata item has {size} bytes at {offset}, or is there twice", where)
        items[kind] = start + offset, size
    _, flags = _PARAMETERS.unpack(_item(image, items, _FILE_PARAMETERS, _PARAMETERS.size, start))
    if flags & _HAS_PARENT:
        raise image.convertible("it is based on another file (HasParent)", items[_FILE_PARAMETERS][0] + 4)
    (size,) = _SIZE.unpack(_item(image, items, _DISK_SIZE, _SIZE.size, start))
    image.check_disk_size(size, items[_DISK_SIZE][0])


def _item(image: ImageFile, items: dict[bytes, tuple[int, int]], kind: bytes, size: int, start: int) -> bytes:
    offset, found = items.get(kind, (start, 0))
    if found < size:
        raise image.damaged(f"metadata {uuid.UUID(bytes_le=kind)} has {found} bytes", offset)
    return image.read(offset, size, "the metadata")
