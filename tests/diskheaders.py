"""The smallest files that pass for disk images, and what a hostile one says instead, field by field."""

from __future__ import annotations

import struct
import uuid

from amistore import MIB

__all__ = ["HOSTILE", "WHOLE", "qcow2", "vdi", "vhd", "vhdx", "vmdk"]

SIZE = 16 * MIB
OTHER = b"/etc/shadow"


def qcow2(
    *,
    version: int = 3,
    backing: int = 0,
    backing_size: int = 0,
    bits: int = 16,
    size: int = SIZE,
    encryption: int = 0,
    features: int = 0,
    length: int = 104,
    extensions: bytes = bytes(8),
    magic: bytes = b"QFI\xfb",
    cut: int = 65536,
) -> bytes:
    header = struct.pack(
        ">4sIQIIQIIQQIIQ", magic, version, backing, backing_size, bits, size, encryption, 1, 65536, 0, 1, 0, 0
    )
    if version == 3:
        header += struct.pack(">QQQII", features, 0, 0, 4, length)
    return (header + extensions).ljust(65536, b"\0")[:cut]


DESCRIPTION = """# Disk DescriptorFile
version=1
CID=fffffffe
parentCID=ffffffff
createType="monolithicSparse"

# Extent description
RW 32768 SPARSE "disk.vmdk"

# The Disk Data Base
ddb.virtualHWVersion = "4"
"""


def vmdk(
    text: str = DESCRIPTION,
    *,
    capacity: int = SIZE // 512,
    start: int = 1,
    sectors: int = 20,
    directory: int = 26,
    behind: bytes = b"",
    magic: bytes = b"KDMV",
    footer: bytes = b"",
) -> bytes:
    header = struct.pack("<4sIIQQQQIQQQ", magic, 1, 3, capacity, 128, start, sectors, 512, 21, directory, 128)
    content = header.ljust(512, b"\0") + text.encode().ljust(max(0, min(sectors, 4096)) * 512, b"\0") + behind
    return content.ljust(65536, b"\0") + footer


def vhd(
    kind: int = 3,
    *,
    size: int = SIZE,
    header: int = 512,
    copy: bytes | None = None,
    block: int = 2 * MIB,
    entries: int = 8,
    table: int = 1536,
    cookie: bytes = b"cxsparse",
    wrong: int = 0,
    data: bytes = b"",
) -> bytes:
    where = 2**64 - 1 if kind == 2 else header
    fields = (b"conectix", 2, 0x10000, where, 0, b"win ", 0, b"Wi2k", size, size, 0, kind, 0, b"i" * 16)
    footer = bytearray(struct.pack(">8sIIQI4sI4sQQIII16s", *fields).ljust(512, b"\0"))
    footer[64:68] = struct.pack(">I", (~sum(footer) + wrong) & 0xFFFFFFFF)
    if kind == 2:
        return data.ljust(min(size, SIZE), b"\0") + bytes(footer)
    sparse = bytearray(
        struct.pack(">8sQQIIII", cookie, 2**64 - 1, table, 0x10000, entries, block, 0).ljust(1024, b"\0")
    )
    sparse[36:40] = struct.pack(">I", (~sum(sparse) + wrong) & 0xFFFFFFFF)
    return (bytes(footer) if copy is None else copy) + bytes(sparse) + b"\xff" * 512 + bytes(footer)


PARAMETERS = "caa16737-fa36-4d43-b3b6-33f0aa44e76b"
DISK_SIZE = "2fa54224-cd1b-4876-b211-5dbed83bf4b8"
LOCATOR = "a8d35f2d-b30b-454d-abf7-d3d84834ab0c"
METADATA = "8b7ca206-4790-4b9a-b8fe-575f050f886e"


def vhdx(
    *,
    flags: int = 0,
    size: int = SIZE,
    more: list[tuple[str, int, int]] | None = None,
    count: int | None = None,
    region: int = MIB,
    length: int = 128 << 10,
    regions: int = 1,
    second: int = MIB,
    magic: bytes = b"vhdxfile",
) -> bytes:
    file = bytearray(MIB + (128 << 10))
    file[:8] = magic
    for at, where in ((192 << 10, region), (256 << 10, second)):
        entry = struct.pack("<16sQII", uuid.UUID(METADATA).bytes_le, where, length, 1)
        struct.pack_into("<4sIII", file, at, b"regi", 0, regions, 0)
        file[at + 16 : at + 16 + 32 * min(regions, 2)] = entry * min(regions, 2)
    items = [(PARAMETERS, 65536, 8), (DISK_SIZE, 65544, 8), *(more or [])]
    struct.pack_into("<8sHH", file, MIB, b"metadata", 0, len(items) if count is None else count)
    for number, (kind, offset, item) in enumerate(items):
        struct.pack_into("<16sIII", file, MIB + 32 * (number + 1), uuid.UUID(kind).bytes_le, offset, item, 4)
    struct.pack_into("<IIQ", file, MIB + 65536, 32 * MIB, flags, size)
    return bytes(file)


def vdi(
    kind: int = 1,
    *,
    size: int = SIZE,
    version: int = 0x10001,
    link: bytes = bytes(16),
    parent: bytes = bytes(16),
    blocks: int = 16,
    table: int = 512,
    magic: int = 0xBEDA107F,
) -> bytes:
    fields = (magic, version, 400, kind, 0, table, 1024, size, MIB, 0, blocks, 0)
    ids = (b"i" * 16, b"j" * 16, link, parent)
    header = struct.pack("<64xIIIII256xII20xQIIII16s16s16s16s", *fields, *ids)
    return header.ljust(512, b"\0") + b"\xff" * 512


WHOLE: dict[str, list[bytes]] = {
    "qcow2": [
        qcow2(),
        qcow2(version=2),
        qcow2(features=0b11001),
        qcow2(extensions=struct.pack(">II4s4xII", 0xE2792ACA, 4, b"raw\0", 0, 0)),
    ],
    "vmdk": [
        vmdk(),
        vmdk(DESCRIPTION.replace("\n", "\r\n")),
        vmdk(DESCRIPTION.replace("monolithicSparse", "streamOptimized").replace("RW", "RDONLY")),
        vmdk(directory=2**64 - 1, footer=bytes(512) + vmdk()[:512] + bytes(512)),
    ],
    "vhd": [vhd(), vhd(2), vhd(2, data=b"a disk")],
    "vhdx": [vhdx()],
    "vdi": [vdi(), vdi(2)],
}
"""By format: files that are taken."""


def _described(old: str, new: str) -> bytes:
    assert old in DESCRIPTION
    return vmdk(DESCRIPTION.replace(old, new))


_EXTENT = 'RW 32768 SPARSE "disk.vmdk"'

HOSTILE: dict[str, tuple[str, bytes, str]] = {
    "qcow2 with a backing file": ("qcow2", qcow2(backing=512, backing_size=11), "backing file"),
    "qcow2 with a backing file of no length": ("qcow2", qcow2(backing=512), "backing file"),
    "qcow2 with a backing file's length": ("qcow2", qcow2(backing_size=11), "backing file"),
    "qcow2 of version 2 with a backing file": (
        "qcow2",
        qcow2(version=2, backing=512, backing_size=11),
        "backing",
    ),
    "qcow2 with a data file": ("qcow2", qcow2(features=4), "data file"),
    "qcow2 with a data file's name": (
        "qcow2",
        qcow2(extensions=struct.pack(">II4s4xII11s", 0xE2792ACA, 4, b"raw\0", 0x44415441, 11, OTHER)),
        "data file",
    ),
    "qcow2 of version 2 with a data file's name": (
        "qcow2",
        qcow2(version=2, extensions=struct.pack(">II11s", 0x44415441, 11, OTHER)),
        "data file",
    ),
    "qcow2 with a key": ("qcow2", qcow2(extensions=struct.pack(">IIQQ", 0x0537BE77, 16, 0, 0)), "encrypted"),
    "qcow2 with a feature of tomorrow": ("qcow2", qcow2(features=1 << 5), "unknown features"),
    "qcow2 with the last feature": ("qcow2", qcow2(features=1 << 63), "unknown features"),
    "qcow2 that is corrupt": ("qcow2", qcow2(features=2), "marked as corrupt"),
    "qcow2 that is encrypted": ("qcow2", qcow2(encryption=2), "encrypted"),
    "qcow2 of small clusters": ("qcow2", qcow2(bits=8), "clusters"),
    "qcow2 of large clusters": ("qcow2", qcow2(bits=22), "clusters"),
    "qcow2 of huge clusters": ("qcow2", qcow2(bits=2**32 - 1), "clusters"),
    "qcow2 of version 1": ("qcow2", qcow2(version=1), "-f qcow -O"),
    "qcow2 of version 4": ("qcow2", qcow2(version=4), "version 4"),
    "qcow2 without a disk": ("qcow2", qcow2(size=0), "empty"),
    "qcow2 of too large a disk": ("qcow2", qcow2(size=(64 << 40) + 1), "at most"),
    "qcow2 of a long header": ("qcow2", qcow2(length=65544), "header has"),
    "qcow2 of a short header": ("qcow2", qcow2(length=96), "header has"),
    "qcow2 of an odd header": ("qcow2", qcow2(length=105), "header has"),
    "qcow2 of a long extension": ("qcow2", qcow2(extensions=struct.pack(">II", 1, 2**32 - 1)), "extension"),
    "qcow2 that is cut off": ("qcow2", qcow2(cut=90), "of a file of 90"),
    "qcow2 that is VMDK": ("qcow2", vmdk(), "begin as a qcow2"),
    "VMDK with a parent": ("vmdk", _described("parentCID=ffffffff", "parentCID=12345678"), "parentCID"),
    "VMDK with two parents": (
        "vmdk",
        _described("parentCID=ffffffff", "parentCID=ffffffff\nparentCID=12345678"),
        "parentCID",
    ),
    "VMDK with a parent's name": (
        "vmdk",
        _described("version=1", f'version=1\nparentFileNameHint="{OTHER.decode()}"'),
        "parentFileNameHint",
    ),
    "VMDK with a parent's name behind its text": (
        "vmdk",
        vmdk(f'{DESCRIPTION}\0parentFileNameHint="{OTHER.decode()}"'),
        "parentFileNameHint",
    ),
    "VMDK with a parent's name behind its description": (
        "vmdk",
        vmdk(sectors=1, behind=b'parentFileNameHint="%b"' % OTHER),
        "parentFileNameHint",
    ),
    "VMDK of an extent elsewhere": ("vmdk", _described("disk.vmdk", OTHER.decode()), "one sparse extent"),
    "VMDK of an extent elsewhere on Windows": (
        "vmdk",
        _described("disk.vmdk", "..\\disk"),
        "one sparse extent",
    ),
    "VMDK of a flat extent": (
        "vmdk",
        _described(_EXTENT, f'RW 32768 FLAT "{OTHER.decode()}" 0'),
        "one sparse extent",
    ),
    "VMDK of two extents": ("vmdk", _described(_EXTENT, f"{_EXTENT}\n{_EXTENT}"), "one sparse extent"),
    "VMDK of two extents, one of zeros": (
        "vmdk",
        _described(_EXTENT, f"{_EXTENT}\nRW 1 ZERO"),
        "one sparse extent",
    ),
    "VMDK of no extent": ("vmdk", _described(_EXTENT, ""), "one sparse extent"),
    "flat VMDK": ("vmdk", _described("monolithicSparse", "monolithicFlat"), "type monolithicflat"),
    "VMDK of two types": (
        "vmdk",
        _described("version=1", 'createType="streamOptimized"'),
        "type streamoptimized, monolithicsparse",
    ),
    "VMDK of no type": ("vmdk", _described("createType", "type"), "of none"),
    "VMDK of a capacity of none": ("vmdk", vmdk(capacity=0), "empty"),
    "VMDK of too large a capacity": ("vmdk", vmdk(capacity=2**64 - 1), "at most"),
    "VMDK whose footer has no capacity": (
        "vmdk",
        vmdk(directory=2**64 - 1, footer=bytes(512) + vmdk(capacity=0)[:512] + bytes(512)),
        "empty",
    ),
    "VMDK without its footer": ("vmdk", vmdk(directory=2**64 - 1), "footer"),
    "VMDK without a description": ("vmdk", vmdk(start=0, sectors=0), "at sector 1"),
    "VMDK with its description elsewhere": ("vmdk", vmdk(start=40), "at sector 1"),
    "VMDK of a huge description": ("vmdk", vmdk(sectors=2**63), "at sector 1"),
    "VMDK of a description behind its end": ("vmdk", vmdk(sectors=2048)[:65536], "of a file of 65536"),
    "VMDK description": ("vmdk", DESCRIPTION.encode(), "description of other files"),
    "VMDK of ESX": ("vmdk", b"COWD".ljust(2048, b"\0"), "ESX"),
    "differencing VHD": ("vhd", vhd(4), "differencing"),
    "VHD of type 5": ("vhd", vhd(5), "type 5"),
    "VHD of a wrong checksum": ("vhd", vhd(wrong=1), "checksum"),
    "VHD whose two footers differ": ("vhd", vhd(copy=vhd(4)[:512]), "not a copy"),
    "VHD without its first footer": ("vhd", vhd(copy=bytes(512)), "no footer"),
    "VHD without its last footer": ("vhd", vhd()[:-512], "no footer"),
    "VHD of another header": ("vhd", vhd(cookie=b"cxdense "), "no dynamic disk header"),
    "VHD of a header behind its end": ("vhd", vhd(header=2**63), "of a file of"),
    "VHD of odd blocks": ("vhd", vhd(block=3 * MIB), "blocks have"),
    "VHD of blocks of nothing": ("vhd", vhd(block=0), "blocks have"),
    "VHD of few blocks": ("vhd", vhd(entries=7), "too few"),
    "VHD of many blocks": ("vhd", vhd(entries=2**32 - 1), "behind the file's end"),
    "VHD of a table behind its end": ("vhd", vhd(table=2**64 - 1), "behind the file's end"),
    "VHD without a disk": ("vhd", vhd(size=0), "empty"),
    "VHD of too large a disk": ("vhd", vhd(size=2**63), "at most"),
    "fixed VHD that is cut off": ("vhd", vhd(2, size=SIZE + 512), "of a file of"),
    "fixed VHD that begins as a dynamic one": ("vhd", vhd(2, data=vhd()[:1536]), "begins as a dynamic"),
    "VHD of a few bytes": ("vhd", b"conectix", "of a file of 8"),
    "VHDX with a parent": ("vhdx", vhdx(flags=2), "HasParent"),
    "VHDX with a parent's locator": ("vhdx", vhdx(more=[(LOCATOR, 65600, 64)]), "parent locator"),
    "VHDX of no file parameters": ("vhdx", vhdx(count=0), "has 0 bytes"),
    "VHDX of no size": ("vhdx", vhdx(count=1), "has 0 bytes"),
    "VHDX of file parameters twice": ("vhdx", vhdx(more=[(PARAMETERS, 65600, 8)]), "twice"),
    "VHDX of an item behind its end": ("vhdx", vhdx(more=[(METADATA, 2**32 - 1, 8)]), "metadata item"),
    "VHDX of too many items": ("vhdx", vhdx(count=2048), "2048 entries"),
    "VHDX of a region behind its end": ("vhdx", vhdx(region=2**63), "metadata has"),
    "VHDX of a region in its header": ("vhdx", vhdx(region=0), "metadata has"),
    "VHDX of two metadata regions": ("vhdx", vhdx(regions=2), "2 metadata regions"),
    "VHDX of no regions": ("vhdx", vhdx(regions=0), "0 metadata regions"),
    "VHDX of too many regions": ("vhdx", vhdx(regions=2**32 - 1), "entries"),
    "VHDX of two tables": ("vhdx", vhdx(second=MIB + 512, length=66 << 10), "differ"),
    "VHDX of another beginning": ("vhdx", vhdx(magic=b"vhdxfil3"), "begin as a VHDX"),
    "VHDX of too large a disk": ("vhdx", vhdx(size=2**63), "at most"),
    "VHDX without a disk": ("vhdx", vhdx(size=0), "empty"),
    "differencing VDI": ("vdi", vdi(4), "differencing"),
    "VDI of an undone state": ("vdi", vdi(3), "differencing"),
    "VDI with a parent": ("vdi", vdi(parent=b"p" * 16), "differencing"),
    "VDI with a link": ("vdi", vdi(link=b"p" * 16), "differencing"),
    "VDI of type 0": ("vdi", vdi(0), "type 0"),
    "VDI of version 0.1": ("vdi", vdi(version=1), "0.1, not 1.1"),
    "VDI of few blocks": ("vdi", vdi(blocks=15), "too short"),
    "VDI of many blocks": ("vdi", vdi(blocks=2**32 - 1), "behind the file's end"),
    "VDI of another beginning": ("vdi", vdi(magic=0), "begin as a VDI"),
    "VDI without a disk": ("vdi", vdi(size=0), "empty"),
    "VDI of too large a disk": ("vdi", vdi(size=2**63), "at most"),
}
"""By name: a format, a file that is refused, and words of the refusal."""
