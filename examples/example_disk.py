"""Make a raw disk with a partition table and a filesystem full of this machine's own files.

Needs no root rights: `mke2fs` makes an ext4 filesystem, and where it is not installed
pycdlib (``pip install 'amistore[demo]'``) makes an ISO 9660 one.
"""

from __future__ import annotations

import os
import shutil
import stat
import struct
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["collect_files", "find_mke2fs", "make_disk"]

MIB = 1 << 20
SECTOR = 512
PARTITION_START = MIB  # bytes; where today's partitioning tools put the first one
LINUX, ISO9660 = 0x83, 0x96  # partition types of an MBR


def make_disk(path: Path, *, size: int, data: int, filesystem: str | None = None) -> str:
    """Write a sparse raw disk of `size` bytes with about `data` bytes of files.

    Args:
        path: of the new disk.
        size: of the whole disk in bytes.
        data: bytes of files to put into it.
        filesystem: "ext4" or "iso9660"; None for ext4 if it can be made.

    Returns:
        The filesystem that was made.
    """
    mke2fs = None if filesystem == "iso9660" else find_mke2fs()
    if filesystem == "ext4" and mke2fs is None:
        raise FileNotFoundError("mke2fs is not installed (package e2fsprogs)")
    with path.open("wb") as disk:
        disk.truncate(size)
    with tempfile.TemporaryDirectory(dir=path.parent) as staging:
        files = Path(staging, "files")
        collect_files(files, data)
        if mke2fs:
            offset = f"offset={PARTITION_START}"
            blocks = f"{(size - PARTITION_START) // 1024}k"
            subprocess.run(
                [mke2fs, "-q", "-F", "-t", "ext4", "-E", offset, "-d", files, path, blocks], check=True
            )
        else:
            _write_iso(files, Path(staging, "filesystem.iso"), path)
    _write_partition_table(path, size, LINUX if mke2fs else ISO9660)
    return "ext4" if mke2fs else "iso9660"


def find_mke2fs() -> str | None:
    """The program's path; it often lies where only root's PATH leads."""
    return shutil.which("mke2fs", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


def collect_files(target: Path, data: int) -> None:
    """Copy about `data` bytes of Python's and the system's files into a new folder.

    Where the machine has fewer, it has them again in further folders.
    """
    copied = round = 0
    while copied < data:
        before = copied
        for root in (
            Path(sysconfig.get_path("stdlib")),
            Path("/usr/bin"),
            Path("/usr/lib"),
            Path("/usr/share"),
        ):
            for file, size in _regular_files(root):
                copy = target / f"copy-{round}" / file.relative_to(file.anchor)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
                copied += size
                if copied >= data:
                    return
        if copied == before:
            raise FileNotFoundError("there are no files to fill a disk with")
        round += 1


def _regular_files(root: Path) -> Iterator[tuple[Path, int]]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - {"site-packages", "dist-packages", "__pycache__"})
        for name in sorted(names):
            file = Path(folder, name)
            status = file.lstat()
            if stat.S_ISREG(status.st_mode) and os.access(file, os.R_OK):
                yield file, status.st_size


def _write_iso(files: Path, iso_path: Path, disk_path: Path) -> None:
    """An ISO 9660 filesystem with a folder of files per folder, full names by Rock Ridge."""
    import pycdlib

    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, rock_ridge="1.09", vol_ident="AMISTORE")
    for number, (folder, _, names) in enumerate(os.walk(files)):
        if names:
            short = f"/D{number:06}"
            iso.add_directory(short, rr_name=os.path.relpath(folder, files).replace(os.sep, "-")[-200:])
        for place, name in enumerate(sorted(names)):
            iso.add_file(str(Path(folder, name)), f"{short}/F{place:06}.;1", rr_name=name[-200:])
    iso.write(str(iso_path))
    iso.close()
    with iso_path.open("rb") as iso_file, disk_path.open("r+b") as disk:
        disk.seek(PARTITION_START)
        shutil.copyfileobj(iso_file, disk, MIB)


def _write_partition_table(path: Path, size: int, kind: int) -> None:
    """A master boot record with one partition, in LBA alone: the CHS fields say 'beyond CHS'."""
    beyond = b"\xfe\xff\xff"
    start, sectors = PARTITION_START // SECTOR, (size - PARTITION_START) // SECTOR
    partition = struct.pack("<B3sB3sII", 0x80, beyond, kind, beyond, start, sectors)
    with path.open("r+b") as disk:
        disk.seek(446)
        disk.write(partition.ljust(64, b"\0") + b"\x55\xaa")
