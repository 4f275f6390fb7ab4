"""What is no raw disk is refused with the command that makes one of it, and no raw disk is taken for it."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import re
import shutil
import struct
import subprocess
from pathlib import Path

import images
import pytest
import zstandard
from mounts import require

import amistore
from amistore import MIB
from amistore.container import layout
from amistore.disks.signatures import SECTOR, refuse_foreign

RAW = b"raw disk" * 1000


def footer(kind: int = 2) -> bytes:
    """Of a VHD; the fields that nobody looks at here are zeros."""
    fields = struct.pack(">8sIIQI4sI4sQQIII", b"conectix", 2, 0x10000, 2**64 - 1, 0, b"win ", 0, b"Wi2k",
                         MIB, MIB, 0, kind, 0)  # fmt: skip
    sector = bytearray(fields.ljust(SECTOR, b"\0"))
    sector[64:68] = struct.pack(">I", ~sum(sector) & 0xFFFFFFFF)
    return bytes(sector)


FOREIGN = {
    "qcow": (b"QFI\xfb\0\0\0\x01", "qemu-img convert -f qcow -O raw"),
    "qcow2": (b"QFI\xfb\0\0\0\x02", "qemu-img convert -f qcow2 -O raw"),
    "qcow2 of today": (b"QFI\xfb\0\0\0\x03", "qemu-img convert -f qcow2 -O raw"),
    "sparse VMDK": (b"KDMV\x01\0\0\0", "qemu-img convert -f vmdk -O raw"),
    "VMDK of ESX": (b"COWD\x01\0\0\0", "qemu-img convert -f vmdk -O raw"),
    "VMDK descriptor": (b"# Disk DescriptorFile\nversion=1\n", "qemu-img convert -f vmdk -O raw"),
    "VHDX": (b"vhdxfile", "qemu-img convert -f vhdx -O raw"),
    "dynamic VHD": (footer(3), "qemu-img convert -f vpc -O raw"),
    "fixed VHD": (RAW + footer(), "qemu-img convert -f vpc -O raw"),
    "VDI": (b"<<< Any VM >>>\n".ljust(64, b"\0") + b"\x7f\x10\xda\xbe", "qemu-img convert -f vdi -O raw"),
    "gzip": (gzip.compress(RAW), "gzip -dc"),
    "bzip2": (bz2.compress(RAW), "bzip2 -dc"),
    "xz": (lzma.compress(RAW), "xz -dc"),
    "zstd": (zstandard.compress(RAW), "zstd -dc"),
    "archive": (images.packed([(1, {0: images.block(1)})]), "amistore.open(path).extract(folder)"),
}


@pytest.fixture
def cloud(tmp_path: Path) -> amistore.DirectoryBackend:
    return amistore.DirectoryBackend(tmp_path / "cloud")


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_raw_disk_is_refused_unless_the_caller_insists(
    cloud: amistore.DirectoryBackend, tmp_path: Path, name: str
) -> None:
    content, command = FOREIGN[name]
    disk = tmp_path / "a disk.raw"
    disk.write_bytes(content if name == "fixed VHD" else content.ljust(64 * 1024, b"\0"))
    with pytest.raises(amistore.InvalidRequestError, match=re.escape(f"`{command}")):
        amistore.import_disks(disk, cloud, name="web")
    assert list((cloud.path / "ebs").iterdir()) == []
    image = amistore.import_disks(amistore.DiskSource(disk, format="raw"), cloud, name="web").image
    assert cloud.ebs.get_snapshot_block(image.snapshot_ids[0], 0, "").content.startswith(content[:100])


@pytest.mark.parametrize("size", [1, 5, 67, 511, 512])
def test_a_disk_smaller_than_two_sectors_is_none_of_them(
    cloud: amistore.DirectoryBackend, tmp_path: Path, size: int
) -> None:
    (tmp_path / "disk.raw").write_bytes(b"conectiy".ljust(size, b"\0")[:size])
    amistore.import_disks(tmp_path / "disk.raw", cloud, name="web")


@pytest.mark.parametrize(
    "last", [footer()[:-1] + b"\x01", b"\0" + footer()[:-1], footer()[:64] + bytes(4) + footer()[68:]]
)
def test_a_footer_with_another_checksum_or_place_is_a_disk_s_own_bytes(last: bytes) -> None:
    refuse_foreign(Path("disk.raw"), bytes(SECTOR), last)


def test_a_million_random_sectors_are_raw() -> None:
    """Each window of random bytes is a random sector."""
    noise = random.Random(12).randbytes(1_000_000 + SECTOR)
    for offset in range(1_000_000):
        sector = noise[offset : offset + SECTOR]
        refuse_foreign(Path("disk.raw"), sector, sector)


@pytest.mark.parametrize(
    "tool",
    ["mke2fs -q -t ext4", "mkfs.xfs -q", "mkfs.btrfs -q", "mkswap -q"],
)
def test_disks_of_this_system_s_tools_are_raw(
    cloud: amistore.DirectoryBackend, tmp_path: Path, tool: str
) -> None:
    name, *options = tool.split()
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(300 * MIB)
    subprocess.run([require(name), *options, disk], check=True, stdout=subprocess.DEVNULL)
    amistore.import_disks(disk, cloud, name="web")


def test_a_boot_sector_is_raw() -> None:
    for beginning in (
        b"\xeb\x63\x90",
        b"\xeb\x58\x90mkfs.fat",
        b"\xfa\x33\xc0",
        b"LUKS\xba\xbe\0\x02",
        b"hsqs",
    ):
        refuse_foreign(Path("disk.raw"), beginning.ljust(510, b"\0") + b"\x55\xaa", bytes(SECTOR))


@pytest.mark.parametrize(
    "options",
    [
        "qcow",
        "qcow2",
        "vdi",
        "vhdx",
        "vmdk",
        "vmdk subformat=monolithicFlat",
        "vmdk subformat=streamOptimized",
        "vpc force_size=on",
        "vpc subformat=fixed,force_size=on",
    ],
)
def test_the_command_of_the_refusal_makes_the_disk(
    cloud: amistore.DirectoryBackend, tmp_path: Path, options: str
) -> None:
    require("qemu-img")
    kind, *more = options.split()
    raw = tmp_path / "raw"
    raw.write_bytes(random.Random(1).randbytes(MIB) + bytes(MIB))
    image = tmp_path / "an image"
    settings = [word for option in more for word in ("-o", option)]
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", kind, *settings, raw, image], check=True)
    with pytest.raises(amistore.InvalidRequestError) as refused:
        amistore.import_disks(image, cloud, name="web")
    command = re.search("`(.*)`", str(refused.value))
    assert command is not None
    subprocess.run(command[1], shell=True, check=True)
    made = tmp_path / "an image.raw"
    assert made.read_bytes() == raw.read_bytes()
    amistore.import_disks(made, cloud, name="web")


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "zstd"])
def test_the_command_of_the_refusal_decompresses(
    cloud: amistore.DirectoryBackend, tmp_path: Path, name: str
) -> None:
    if not shutil.which(name):
        pytest.skip(f"{name} is not installed")
    image = tmp_path / "it's; compressed"
    image.write_bytes(FOREIGN[name][0])
    with pytest.raises(amistore.InvalidRequestError) as refused:
        amistore.import_disks(image, cloud, name="web")
    command = re.search("`(.*)`", str(refused.value))
    assert command is not None
    subprocess.run(command[1], shell=True, check=True)
    assert Path(f"{image}.raw").read_bytes() == RAW


def test_an_archive_s_first_bytes_are_those_of_the_format() -> None:
    content = FOREIGN["archive"][0]
    assert content[10:].startswith(layout.README_NAME.encode() + b"\0")
