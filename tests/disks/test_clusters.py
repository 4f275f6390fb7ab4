"""An image that was cut off is refused: qemu itself reads zeros behind a file's end."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import images
import pytest

import amistore
from amistore import BLOCK_SIZE, MIB, DiskSource

pytestmark = pytest.mark.skipif(
    shutil.which("qemu-img") is None and not os.environ.get("AMISTORE_REQUIRE_TOOLS"), reason="no qemu-img"
)

SIZE = 33 * MIB + 7 * 512
WRITTEN = {1: images.noise(1), 2: images.noise(2), 40: images.noise(3)}
FORMATS: dict[str, tuple[str, list[str]]] = {
    "qcow2": ("qcow2", []),
    "qcow2, compressed": ("qcow2", ["-c"]),
    "qcow2, extended": ("qcow2", ["-o", "extended_l2=on,cluster_size=128k"]),
    "qcow2, version 2": ("qcow2", ["-o", "compat=0.10"]),
    "qcow2, small clusters": ("qcow2", ["-o", "cluster_size=512"]),
    "vmdk": ("vmdk", []),
    "vmdk, stream-optimized": ("vmdk", ["-o", "subformat=streamOptimized"]),
    "vdi": ("vdi", []),
    "vhd": ("vhd", ["-o", "force_size=on"]),
    "vhdx": ("vhdx", []),
}


def made(folder: Path, name: str) -> Path:
    raw = folder / "disk.raw"
    with raw.open("wb") as disk:
        disk.truncate(SIZE)
        for index, content in WRITTEN.items():
            disk.seek(index * BLOCK_SIZE)
            disk.write(content)
    suffix, options = FORMATS[name]
    path = folder / f"disk.{suffix}"
    driver = {"vhd": "vpc"}.get(suffix, suffix)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", driver, *options, raw, path], check=True)
    return path


def found(path: Path) -> dict[int, bytes]:
    with DiskSource(path, zeros="unlisted") as disk:
        return images.contents(disk, disk.snapshot_id)[1]


@pytest.mark.parametrize("name", FORMATS)
def test_a_whole_image_is_read_and_one_that_is_cut_off_anywhere_is_refused(tmp_path: Path, name: str) -> None:
    path = made(tmp_path, name)
    assert found(path) == WRITTEN
    size = path.stat().st_size
    rng = random.Random(name)
    for end in (size - 512, size - 65536, *(rng.randrange(1024, size) for _ in range(4))):
        os.truncate(path, end)
        with pytest.raises(amistore.AmistoreError):
            found(path)
        if end < 1 << 20:
            break
        path = made(tmp_path, name)


def put(path: Path, offset: int, form: str, value: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(struct.pack(form, value))


def get(path: Path, offset: int, form: str) -> Any:
    with path.open("rb") as file:
        file.seek(offset)
        return struct.unpack(form, file.read(struct.calcsize(form)))[0]


@pytest.mark.parametrize("where", ["l1 table", "l2 table", "cluster", "compressed cluster", "header"])
def test_a_qcow2_table_that_names_what_is_not_in_the_file_is_refused(tmp_path: Path, where: str) -> None:
    path = made(tmp_path, "qcow2")
    l1 = get(path, 40, ">Q")
    l2 = get(path, l1, ">Q") & 0x00FF_FFFF_FFFF_FE00
    entry = l2 + 8 * 8  # the first cluster of block 1
    assert get(path, entry, ">Q") & 1 << 63
    far = 1 << 40
    change = {
        "l1 table": (40, far),
        "l2 table": (l1, 1 << 63 | far),
        "cluster": (entry, 1 << 63 | far),
        "compressed cluster": (entry, 1 << 62 | far),
        "header": (entry, 1 << 63 | 512),
    }
    put(path, change[where][0], ">Q", change[where][1])
    with pytest.raises(amistore.InvalidRequestError, match=r"cut off, or is damaged|where the header is"):
        found(path)


@pytest.mark.parametrize("where", ["directory", "table", "grain"])
def test_a_vmdk_table_that_names_what_is_not_in_the_file_is_refused(tmp_path: Path, where: str) -> None:
    path = made(tmp_path, "vmdk")
    directory = get(path, 56, "<Q") * 512
    table = get(path, directory, "<I") * 512
    offset, form = {"directory": (56, "<Q"), "table": (directory, "<I"), "grain": (table + 4 * 8, "<I")}[
        where
    ]
    put(path, offset, form, 1 << 30)
    with pytest.raises(amistore.InvalidRequestError, match="cut off, or is damaged"):
        found(path)


def test_a_vdi_map_that_names_what_is_not_in_the_file_is_refused(tmp_path: Path) -> None:
    path = made(tmp_path, "vdi")
    put(path, get(path, 340, "<I"), "<I", 1 << 20)
    with pytest.raises(amistore.InvalidRequestError, match="cut off, or is damaged"):
        found(path)
