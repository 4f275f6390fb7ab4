"""Disk formats other than raw, recognized by their signatures.

A signature has at least 32 bits, so that no raw disk has one by accident: a disk's first sector is boot code,
a filesystem's, or zeros.
"""

from __future__ import annotations

import re
import shlex
import struct
from pathlib import Path

from amistore.errors import InvalidRequestError
from amistore.text import printable

__all__ = ["SECTOR", "refuse_foreign"]

SECTOR = 512
"""Bytes of the beginning and of the end of a file that tell its form."""

_QEMU = "qemu-img convert -f {} -O raw {{path}} {{path}}.raw".format
_READING = "\n{}".format

# What it is, how it begins, and the command that makes a raw disk of it; behind it the format to read it by.
_BEGINNINGS = [
    # An archive of ours begins with a zstd frame of 10 bytes before this name (docs/format.md, "Preamble").
    ("an amistore archive", rb".{10}README-amistore\.txt\0", "amistore.open(path).extract(folder)"),
    ("a qcow image", rb"QFI\xfb\0\0\0\x01", _QEMU("qcow")),  # qemu, docs/interop/qcow2.txt
    ("a qcow2 image", rb"QFI\xfb", _QEMU("qcow2") + _READING("qcow2")),
    # VMware's Virtual Disk Format 5.0: sparse extents, those of ESX, a file that names others.
    ("a VMDK image", rb"KDMV|COWD|# Disk DescriptorFile", _QEMU("vmdk") + _READING("vmdk")),
    ("a VHDX image", rb"vhdxfile", _QEMU("vhdx") + _READING("vhdx")),  # MS-VHDX, 2.2.1
    (
        "a dynamic VHD image",
        rb"conectix",
        _QEMU("vpc") + _READING("vhd"),
    ),  # Virtual Hard Disk Image Format Specification
    (
        "a VDI image",
        rb".{64}\x7f\x10\xda\xbe",
        _QEMU("vdi") + _READING("vdi"),
    ),  # VirtualBox, VDICore.h: VDI_IMAGE_SIGNATURE
    # RFC 1952: method, no reserved flags, time, how hard it was tried, the system.
    ("compressed", rb"\x1f\x8b\x08[\0-\x1f].{4}[\0\x02\x04][\0-\x0d\xff]", "gzip -dc {path} > {path}.raw"),
    ("compressed", rb"BZh[1-9]1AY&SY", "bzip2 -dc {path} > {path}.raw"),
    ("compressed", rb"\xfd7zXZ\0", "xz -dc {path} > {path}.raw"),
    ("compressed", rb"\x04\x22\x4d\x18", "lz4 -dc {path} > {path}.raw"),  # LZ4 frame format, 1.6
    ("compressed", rb"7z\xbc\xaf\x27\x1c", "7z x -so {path} > {path}.raw"),  # 7zFormat.txt
    ("a zip archive", rb"PK\x03\x04", "unzip -p {path} > {path}.raw"),  # APPNOTE.TXT, 4.3.7
    # POSIX, ustar: at 257. An OVA, and what Google's cloud exports, are tar archives.
    ("a tar archive", rb".{257}ustar", "tar -xOf {path} > {path}.raw"),
    ("a QED image", rb"QED\0", _QEMU("qed")),  # qemu, docs/interop/qed_spec.rst
    ("a Parallels image", rb"WithoutFreeSpace|WithouFreSpacExt", _QEMU("parallels")),
    ("compressed", rb"\x28\xb5\x2f\xfd", "zstd -dc {path} > {path}.raw"),  # RFC 8878, 3.1.1
]
_BEGINNING = re.compile(b"|".join(b"(%b)" % beginning for _, beginning, _ in _BEGINNINGS), re.DOTALL)
_FOOTER = b"conectix"
_FOOTER_SUM = struct.Struct(">64xI")  # the footer's checksum; the specification, "Hard Disk Footer Format"


def refuse_foreign(path: Path, first: bytes, last: bytes) -> None:
    """Refuse a file that is no raw disk.

    Args:
        path: the file's path, for the message.
        first: the first `SECTOR` bytes, or all.
        last: the last `SECTOR` bytes, or all.

    Raises:
        InvalidRequestError: the file has another format; the text has the command that converts it.
    """
    found = _BEGINNING.match(first)
    if found is not None and found.lastindex is not None:
        what, _, command = _BEGINNINGS[found.lastindex - 1]
        raise _foreign(path, what, command)
    if last[-SECTOR:].startswith(b"koly") and len(last) >= SECTOR:  # Apple's Disk Copy: UDIFResourceFile
        raise _foreign(path, "a DMG image", _QEMU("dmg"))
    if _is_footer(last):
        raise _foreign(path, "a fixed VHD image", _QEMU("vpc") + _READING("vhd"))


def _is_footer(sector: bytes) -> bool:
    """Whether a sector is a fixed VHD's footer; its checksum rules out leftovers on a larger disk."""
    if len(sector) < SECTOR or not sector.startswith(_FOOTER):
        return False
    found: int = _FOOTER_SUM.unpack_from(sector)[0]
    return found == ~(sum(sector) - sum(sector[64:68])) & 0xFFFFFFFF


def _foreign(path: Path, what: str, command: str) -> InvalidRequestError:
    command, _, format = command.partition("\n")
    reading = f'format="{format}" reads it, and ' if format else ""
    making = command.format(path=printable(shlex.quote(str(path))))
    return InvalidRequestError(
        f"{printable(str(path))} is {what}, no raw disk: {reading}`{making}` makes one of it; "
        'format="raw" takes its bytes as they are'
    )
