"""Whether a disk image's tables and clusters lie inside its file.

qemu reads zeros behind a file's end: of an image that was cut off it would give a disk with zeros in it, and
no error. VHD, VHDX and streamOptimized VMDK images qemu refuses by itself.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable
from typing import Final, Literal

from amistore.disks import qcow2, vdi, vmdk
from amistore.disks.imagefile import ImageFile
from amistore.errors import InvalidRequestError
from amistore.units import MIB

__all__ = ["check_clusters"]

_LARGEST_TABLE: Final = 32 * MIB  # of a first level: qemu's QCOW_MAX_L1_SIZE; what VMDK needs is less
_SECTOR: Final = 512

# qcow2, "L1 table entry" and "L2 table entry".
_HOST: Final = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED: Final = 1 << 62
_READS_AS_ZEROS: Final = 1
_EXTENDED: Final = 1 << 4  # of the incompatible features: a bitmap of 32 subclusters behind each entry

_VMDK_FIRST_GRAIN: Final = 2  # 0 is no grain, 1 one of zeros
_VMDK_COMPRESSED: Final = 1 << 16
_VDI_FREE: Final = 0xFFFF_FFFE  # from here on an entry stands for zeros


def check_clusters(image: ImageFile, format: str) -> None:
    """Refuse an image that was cut off, or whose tables name what is not in the file.

    Args:
        image: the image, whose header was judged.
        format: its format.

    Raises:
        InvalidRequestError: a table, or content that a table names, lies behind the file's end.
    """
    if format in _CHECKS:
        _CHECKS[format](image)


def _refused(image: ImageFile, what: str, offset: int, end: int) -> InvalidRequestError:
    return image.refused(
        f"{what} ends at byte {end}, and the file at {image.size}: it was cut off, or is damaged",
        offset,
        "take another copy",
    )


def _numbers(image: ImageFile, kind: Literal["I", "Q"], offset: int, count: int, order: str) -> array[int]:
    """A table of numbers of 4 or 8 bytes."""
    numbers = array(kind)
    length = count * numbers.itemsize
    if length > _LARGEST_TABLE:
        raise image.damaged(f"a table would have {length} bytes", offset)
    if offset + length > image.size:
        raise _refused(image, "a table", offset, offset + length)
    numbers.frombytes(image.read(offset, length, "a table"))
    if sys.byteorder != order:
        numbers.byteswap()
    return numbers


def _check_qcow2(image: ImageFile) -> None:
    _, version, _, _, bits, size, _, entries, offset, *_ = image.unpack(qcow2.HEADER, 0, "the header")
    features = image.unpack(qcow2.FEATURES, qcow2.HEADER.size, "the header")[0] if version == 3 else 0
    extended = bool(features & _EXTENDED)
    cluster = 1 << bits
    per_table = cluster // (16 if extended else 8)
    needed = -(-size // (cluster * per_table))
    if entries < needed:
        raise image.damaged(f"its first table has {entries} entries, and needs {needed}", offset)
    for number, first in enumerate(_numbers(image, "Q", offset, needed, "big")):
        if first & _HOST:
            table = _numbers(image, "Q", first & _HOST, cluster // 8, "big")
            bitmaps = table[1::2] if extended else None
            _check_l2(image, table[::2] if extended else table, bitmaps, number * per_table, bits, size)


def _check_l2(
    image: ImageFile, table: array[int], bitmaps: array[int] | None, before: int, bits: int, size: int
) -> None:
    """The entries of an L2 table behind so many others."""
    cluster = 1 << bits
    shift = 62 - (bits - 8)  # qcow2, "Compressed Clusters Descriptor"
    for at, entry in enumerate(table):
        if not entry:
            continue
        if entry & _COMPRESSED:
            start = entry & (1 << shift) - 1
            end = start // _SECTOR * _SECTOR + (((entry & _COMPRESSED - 1) >> shift) + 1) * _SECTOR
        else:
            start = entry & _HOST
            length = min(cluster, size - (before + at) * cluster)
            if bitmaps is not None:
                length = min(length, (bitmaps[at] & 0xFFFF_FFFF).bit_length() * cluster // 32)
            elif entry & _READS_AS_ZEROS:
                continue
            if not start or length <= 0:
                continue
            end = start + length
        if end > image.size:
            raise _refused(image, f"cluster {before + at}", start, end)
        if start < cluster:
            raise image.damaged(f"cluster {before + at} is where the header is", start)


def _check_vmdk(image: ImageFile) -> None:
    header = image.unpack(vmdk.HEADER, 0, "the header")
    flags, capacity, grain, per_table, directory = header[2], header[3], header[4], header[7], header[9]
    if directory == vmdk.AT_END:
        return
    if not grain or not 0 < per_table <= _SECTOR:
        raise image.damaged(f"a grain has {grain} sectors, and a table {per_table} entries", 0)
    tables = -(-capacity // (grain * per_table))
    for number, first in enumerate(_numbers(image, "I", directory * _SECTOR, tables, "little")):
        if not first:
            continue
        for at, entry in enumerate(_numbers(image, "I", first * _SECTOR, per_table, "little")):
            place = number * per_table + at
            length = min(grain, capacity - place * grain)
            if flags & _VMDK_COMPRESSED:
                length = min(length, 1)  # as long as it says itself, and qemu refuses one that is shorter
            end = (entry + length) * _SECTOR
            if entry >= _VMDK_FIRST_GRAIN and length > 0 and end > image.size:
                raise _refused(image, f"grain {place}", entry * _SECTOR, end)


def _check_vdi(image: ImageFile) -> None:
    fields = image.unpack(vdi.HEADER, 0, "the header")
    table, start, size, block, blocks = fields[5], fields[6], fields[7], fields[8], fields[10]
    entries = _numbers(image, "I", table, blocks, "little")
    for number, entry in enumerate(entries):
        length = min(block, size - number * block)
        end = start + entry * block + length
        if entry < _VDI_FREE and length > 0 and end > image.size:
            raise _refused(image, f"block {number}", start + entry * block, end)


_CHECKS: Final[dict[str, Callable[[ImageFile], None]]] = {
    "qcow2": _check_qcow2,
    "vmdk": _check_vmdk,
    "vdi": _check_vdi,
}
