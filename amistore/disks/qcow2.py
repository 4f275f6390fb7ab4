"""The header of a qcow2 image: what it may say before qemu reads the image.

From qemu's docs/interop/qcow2.txt; all numbers are big-endian.
"""

from __future__ import annotations

import struct
from typing import Final

from amistore.disks.imagefile import ImageFile

__all__ = ["FEATURES", "HEADER", "check"]

_MAGIC: Final = b"QFI\xfb"
# Magic, version, backing file's offset and size, cluster bits, disk size, encryption, L1 entries, L1 and
# refcount table's offsets, clusters of the latter, snapshots and their offset. Version 2 ends here.
HEADER: Final = struct.Struct(">4sIQIIQIIQQIIQ")
FEATURES: Final = struct.Struct(
    ">QQQII"
)  # incompatible, compatible, autoclear, refcount order, header length
_EXTENSION: Final = struct.Struct(">II")  # type, length of its data, which is padded to 8 bytes
_EXTENSION_END: Final = 0
_EXTENSION_DATA_FILE: Final = 0x44415441
_EXTENSION_ENCRYPTION: Final = 0x0537BE77
_CORRUPT: Final = 1 << 1
_DATA_FILE: Final = 1 << 2
_KNOWN: Final = 1 << 0 | _CORRUPT | _DATA_FILE | 1 << 3 | 1 << 4  # dirty, compression type, extended L2
_CLUSTER_BITS: Final = range(9, 22)
# Where the header has its members.
_AT_VERSION, _AT_BACKING, _AT_CLUSTER_BITS, _AT_SIZE, _AT_ENCRYPTION = 4, 8, 20, 24, 32
_AT_FEATURES, _AT_LENGTH = 72, 100


def check(image: ImageFile) -> None:
    """Refuse what is not one qcow2 file of version 2 or 3 that stands alone.

    Raises:
        InvalidRequestError: the image names other files, is encrypted, or its header is damaged or unknown.
    """
    header = image.unpack(HEADER, 0, "the header")
    magic, version, backing, backing_size, cluster_bits, size, encryption = header[:7]
    if magic != _MAGIC:
        raise image.damaged("it does not begin as a qcow2 image", 0)
    if version == 1:
        raise image.convertible("it is a qcow image of version 1", _AT_VERSION, "qcow")
    if version not in (2, 3):
        raise image.convertible(f"it has version {version} of qcow2, which is unknown", _AT_VERSION)
    if backing or backing_size:
        raise image.convertible("it is based on another file (a backing file)", _AT_BACKING)
    if cluster_bits not in _CLUSTER_BITS:
        raise image.damaged(f"its clusters have 2^{cluster_bits} bytes", _AT_CLUSTER_BITS)
    if encryption:
        raise image.convertible("it is encrypted", _AT_ENCRYPTION)
    image.check_disk_size(size, _AT_SIZE)
    cluster = 1 << cluster_bits
    _check_extensions(image, _check_features(image, cluster) if version == 3 else HEADER.size, cluster)


def _check_features(image: ImageFile, cluster: int) -> int:
    """The header's length, of version 3."""
    incompatible, _, _, _, length = image.unpack(FEATURES, HEADER.size, "the header")
    if incompatible & _DATA_FILE:
        raise image.convertible("its data is in another file (a data file)", _AT_FEATURES)
    if incompatible & ~_KNOWN:
        raise image.convertible(f"it has unknown features ({incompatible & ~_KNOWN:#x})", _AT_FEATURES)
    if incompatible & _CORRUPT:
        raise image.refused(
            "it is marked as corrupt",
            _AT_FEATURES,
            "repair it with `qemu-img check -r all`, or take another copy",
        )
    if not HEADER.size + FEATURES.size <= length <= min(cluster, image.size) or length % 8:
        raise image.damaged(f"its header has {length} bytes", _AT_LENGTH)
    return int(length)


def _check_extensions(image: ImageFile, start: int, cluster: int) -> None:
    """They end with the first cluster, if not before."""
    area = image.read(0, min(cluster, image.size), "the header")
    while start <= len(area) - _EXTENSION.size:
        kind, length = _EXTENSION.unpack_from(area, start)
        if kind == _EXTENSION_END:
            return
        if kind == _EXTENSION_DATA_FILE:
            raise image.convertible("it names another file for its data (a data file)", start)
        if kind == _EXTENSION_ENCRYPTION:
            raise image.convertible("it is encrypted", start)
        if length > len(area) - start - _EXTENSION.size:
            raise image.damaged(f"a header extension has {length} bytes, more than its cluster", start)
        start += _EXTENSION.size + -(-length // 8) * 8
