"""The header of a VDI image, dynamic or fixed.

From VirtualBox's src/VBox/Storage/VDICore.h; all numbers are little-endian.
"""

from __future__ import annotations

import struct
from typing import Final

from amistore.disks.imagefile import ImageFile

__all__ = ["HEADER", "check"]

# A text; magic, version, the header's size, type, flags; a comment; the offsets of the block map and of the
# blocks; geometry; the disk's size, a block's size and extra bytes, blocks, allocated blocks; the ids of the
# image, of its last change, of the image it is linked to and of that one's last change.
HEADER: Final = struct.Struct("<64x4sIIII256xII20xQIIII16s16s16s16s")
_MAGIC: Final = b"\x7f\x10\xda\xbe"
_VERSION: Final = 0x00010001
_NORMAL, _FIXED, _UNDO, _DIFFERENCING = 1, 2, 3, 4
_AT_MAGIC, _AT_VERSION, _AT_TYPE, _AT_MAP, _AT_SIZE, _AT_BLOCKS, _AT_LINK = 64, 68, 76, 340, 368, 384, 424
_NO_ID: Final = bytes(16)
_ENTRY: Final = 4  # bytes of the block map


def check(image: ImageFile) -> None:
    """Refuse what is not a dynamic or fixed VDI image without a parent.

    Raises:
        InvalidRequestError: the image is based on another file, or damaged.
    """
    fields = image.unpack(HEADER, 0, "the header")
    magic, version, _, kind, _, table, _, size, block, _, blocks, _, _, _, link, parent = fields
    if magic != _MAGIC:
        raise image.damaged("it does not begin as a VDI image", _AT_MAGIC)
    if version != _VERSION:
        raise image.convertible(f"it has version {version >> 16}.{version & 0xFFFF}, not 1.1", _AT_VERSION)
    if kind in (_UNDO, _DIFFERENCING) or link != _NO_ID or parent != _NO_ID:
        raise image.convertible("it is based on another file (a differencing image)", _AT_LINK)
    if kind not in (_NORMAL, _FIXED):
        raise image.damaged(f"it has the type {kind}", _AT_TYPE)
    image.check_disk_size(size, _AT_SIZE)
    if blocks * block < size or table > image.size - blocks * _ENTRY:
        raise image.damaged(f"its map of {blocks} blocks is behind the file's end, or too short", _AT_BLOCKS)
