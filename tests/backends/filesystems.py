"""What an import lists of one disk on several kinds of filesystems; run in a mount namespace."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from mounts import mounted

import amistore
from amistore import BLOCK_SIZE, MIB
from amistore.backends.extents import blocks_of, extents
from amistore.disks.rawdisk import open_disk

KINDS: dict[str, tuple[int, list[str]]] = {
    "ext4": (64 * MIB, ["mke2fs", "-q", "-t", "ext4"]),
    "xfs": (300 * MIB, ["mkfs.xfs", "-q"]),  # the least that it takes
    "btrfs": (128 * MIB, ["mkfs.btrfs", "-q"]),
    "tmpfs": (0, []),
}
ZERO_RANGE = 0x10  # FALLOC_FL_ZERO_RANGE, linux/falloc.h
DATA, WRITTEN_ZEROS, ALLOCATED = (0,), (3, 4), range(8, 40)


def make(disk: Path) -> None:
    """Data, written zeros, and what was only allocated: by `fallocate -z` where there is that."""
    with disk.open("wb") as file:
        file.truncate(32 * MIB)
        file.write(b"data" * 1000)
        file.seek(WRITTEN_ZEROS[0] * BLOCK_SIZE)
        file.write(bytes(len(WRITTEN_ZEROS) * BLOCK_SIZE))
        file.flush()
        start, length = ALLOCATED[0] * BLOCK_SIZE, len(ALLOCATED) * BLOCK_SIZE
        fallocate = ctypes.CDLL(None).fallocate
        if fallocate(file.fileno(), ZERO_RANGE, ctypes.c_long(start), ctypes.c_long(length)):
            os.posix_fallocate(file.fileno(), start, length)
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def listed(disk: Path, work: Path, **options: Any) -> list[int]:
    cloud = amistore.DirectoryBackend(tempfile.mkdtemp(dir=work))
    image = amistore.import_disks(amistore.DiskSource(disk, **options), cloud, name="web").image
    return [block.block_index for page in cloud.ebs.pages(image.snapshot_ids[0]) for block in page.blocks]


def with_data(disk: Path) -> int:
    """Blocks that SEEK_DATA tells of."""
    with disk.open("rb") as file:
        return len(list(blocks_of(extents(file.fileno(), 32 * MIB))))


def notices_stores(disk: Path) -> bool:
    """Whether a store through mmap is noticed while the disk is open, into a page that was dirty before."""
    with disk.open("r+b") as file, mmap.mmap(file.fileno(), BLOCK_SIZE) as memory:
        memory[7] = 1
        with open_disk(disk) as opened:
            memory[7] = 2
            try:
                opened.check()
            except amistore.SourceChangedError:
                return True
    return False


def observe(mount: Path, work: Path) -> dict[str, Any]:
    disk = mount / "disk.raw"
    make(disk)
    seen: dict[str, Any] = {"data before": with_data(disk), "before": listed(disk, work)}
    with disk.open("rb") as file:
        while file.read(MIB):
            pass
    seen |= {"data after": with_data(disk), "after": listed(disk, work)}
    return seen | {"unlisted": listed(disk, work, zeros="unlisted"), "stores": notices_stores(disk)}


def overlay(lower: Path) -> Path | None:
    folders = {name: lower / name for name in ("lowerdir", "upperdir", "workdir", "overlay")}
    for folder in folders.values():
        folder.mkdir()
    target = folders.pop("overlay")
    options = ",".join(f"{name}={folder}" for name, folder in folders.items())
    done = subprocess.run(
        ["mount", "-t", "overlay", "-o", options, "overlay", str(target)], stderr=sys.stderr
    )
    return None if done.returncode else target


def main(work: Path) -> None:
    mounts = {kind: mounted(kind, work, *mkfs, size=size) for kind, (size, mkfs) in KINDS.items()}
    below = mounts["ext4"]
    mounts["overlay on ext4"] = overlay(below) if below else None
    json.dump({kind: observe(mount, work) for kind, mount in mounts.items() if mount}, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
