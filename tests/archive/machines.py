"""A Debian on a disk with a boot loader of its own, beside a disk of data, and qemu that boots them.

Nothing is mounted, and no loop device is made: what is killed leaves files only.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import select
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import attrs
import pytest
from mounts import require

from amistore import GIB, MIB

__all__ = ["Boot", "Machine", "boot", "make_machine", "noise", "require_tools"]

BOOTED = "AMISTORE-BOOTED"
"""What the guest says once it has proved its files."""

MBR = Path("/usr/lib/syslinux/mbr/mbr.bin")  # package syslinux-common
PACKAGES = "linux-image-cloud-amd64,systemd-sysv"
PROVED = ["/usr/bin/bash", "/usr/bin/perl", "/usr/lib/systemd/systemd", "/etc/debian_version"]
ROOT_START = 128 * MIB  # the boot loader, kernel and initrd are before it

# Once the data is mounted the guest tells what it reads, and ends itself.
PROVE = f"""#!/bin/sh
dmesg -n 1  # no line of the kernel's amid the sums
exec >/dev/ttyS0 2>&1
find {" ".join(PROVED)} /srv/data -type f -exec sha256sum {{}} + | sed 's/^/SUM /'
date >/written && sync && echo WRITTEN
echo {BOOTED}
systemctl poweroff --no-wall
"""
UNIT = """[Unit]
RequiresMountsFor=/srv/data
After=local-fs.target
[Service]
Type=oneshot
ExecStart=/usr/local/sbin/prove
[Install]
WantedBy=multi-user.target
"""
# The names of disks are the bus's; labels are on the disks themselves.
FSTAB = "LABEL=root / ext4 rw 0 0\nLABEL=data /srv/data ext4 ro 0 0\n"
LOADER = """SERIAL 0 115200
DEFAULT debian
LABEL debian
LINUX vmlinuz
INITRD initrd.img
APPEND root=LABEL=root console=ttyS0 systemd.show_status=0
"""


@attrs.frozen
class Machine:
    """Two raw disks, and what their files are.

    Attributes:
        root: the disk with boot loader and Debian.
        data: the disk of data.
        sums: SHA-256 in hexadecimal of the files that the guest proves, by path.
    """

    root: Path
    data: Path
    sums: dict[str, str]


def noise(number: int) -> bytes:
    """What a file of the disk of data holds."""
    return random.Random(number).randbytes(4 * MIB + number)


def require_tools() -> None:
    """Skip without root, who alone makes a Debian whose files are root's, or without a tool."""
    if os.geteuid():
        pytest.skip("only root makes a Debian")
    for tool in ("mmdebstrap", "sfdisk", "mkfs.vfat", "mcopy", "syslinux", "mke2fs", "qemu-system-x86_64"):
        require(tool)
    if not MBR.exists() and not os.environ.get("AMISTORE_REQUIRE_TOOLS"):
        pytest.skip("syslinux-common is not installed")


def make_machine(folder: Path) -> Machine:
    """Make both disks in an empty folder. It takes about a minute, and needs Debian's packages and root."""
    debian, data = folder / "debian", folder / "files"
    _make_debian(debian)
    data.mkdir()
    for number in range(8):
        (data / f"noise-{number}").write_bytes(noise(number))
    with (data / "sparse").open("wb") as sparse:
        sparse.seek(100 * MIB)
        sparse.write(b"the end")
    sums = {name: _sum(debian / name[1:]) for name in PROVED}
    sums |= {f"/srv/data/{path.name}": _sum(path) for path in data.iterdir()}
    machine = Machine(root=folder / "root.raw", data=folder / "data.raw", sums=sums)
    _make_bootable(machine.root, debian)
    _make_ext4(machine.root, debian, "root", ROOT_START)
    with machine.data.open("wb") as disk:
        disk.truncate(GIB)
    _make_ext4(machine.data, data, "data", 0)
    shutil.rmtree(debian)
    shutil.rmtree(data)
    return machine


def _make_debian(debian: Path) -> None:
    options = ["--mode=root", "--variant=minbase", f"--include={PACKAGES}", "--format=directory", "--quiet"]
    _run("mmdebstrap", *options, "bookworm", debian)
    (debian / "etc/fstab").write_text(FSTAB)
    (debian / "srv/data").mkdir()
    (debian / "usr/local/sbin/prove").write_text(PROVE)
    (debian / "usr/local/sbin/prove").chmod(0o755)
    units = debian / "etc/systemd/system"
    (units / "prove.service").write_text(UNIT)
    (units / "multi-user.target.wants/prove.service").symlink_to("/etc/systemd/system/prove.service")
    (units / "serial-getty@ttyS0.service").symlink_to("/dev/null")  # its prompt would be amid the sums


def _make_bootable(disk: Path, debian: Path) -> None:
    """Give a disk a partition table, and a boot loader with kernel and initrd in its first partition."""
    with disk.open("wb") as file:
        file.truncate(GIB)
    sectors = ROOT_START // 512
    table = f"label: dos\nstart=2048, size={sectors - 2048}, type=c, bootable\nstart={sectors}, type=83\n"
    _run("sfdisk", "--quiet", disk, given=table)
    fat = disk.with_suffix(".fat")
    with fat.open("wb") as file:
        file.truncate(ROOT_START - MIB)
    _run("mkfs.vfat", "-F", "32", "-h", "2048", fat)  # as many sectors will be before it
    loader = disk.with_suffix(".cfg")
    loader.write_text(LOADER)
    (kernel,) = (debian / "boot").glob("vmlinuz-*")
    (initrd,) = (debian / "boot").glob("initrd.img-*")
    for path, name in ((kernel, "vmlinuz"), (initrd, "initrd.img"), (loader, "syslinux.cfg")):
        _run("mcopy", "-i", fat, path, f"::{name}")
    _run("syslinux", "--install", fat)
    _run("dd", f"if={fat}", f"of={disk}", "bs=1M", "seek=1", "conv=notrunc,sparse", "status=none")
    with disk.open("r+b") as file:
        file.write(MBR.read_bytes())
    fat.unlink()
    loader.unlink()


def _make_ext4(disk: Path, files: Path, label: str, start: int) -> None:
    place = ["-E", f"offset={start}"] if start else []
    size = f"{(GIB - start) // 1024}k"
    _run("mke2fs", "-q", "-F", "-t", "ext4", "-L", label, "-d", files, *place, disk, size)


def _run(program: str, *words: object, given: str = "") -> None:
    command = [require(program), *map(str, words)]
    done = subprocess.run(command, input=given, text=True, capture_output=True, timeout=600)
    assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(MIB):
            digest.update(piece)
        return digest.hexdigest()


@attrs.frozen
class Boot:
    """What a guest said on its serial line.

    Attributes:
        text: all of it.
        seconds: seconds from qemu's start to the marker.
    """

    text: str
    seconds: float

    @property
    def sums(self) -> dict[str, str]:
        """What it found its files to be, by path."""
        return {path: digest for digest, path in re.findall(r"SUM ([0-9a-f]{64})  (\S+)", self.text)}


def boot(drives: Sequence[tuple[str, str]], *, at_most: float = 240) -> Boot:
    """Boot from disks, under emulation (TCG), until the guest has turned itself off.

    Nothing is written to the disks.

    Args:
        drives: the file or URI of each disk, and its format; the first one is booted from.
        at_most: seconds after which qemu is killed.

    Raises:
        TimeoutError: the guest is not done by then.
        RuntimeError: qemu ended before the marker, or as a failure.
    """
    command = [require("qemu-system-x86_64"), "-accel", "tcg,tb-size=128", "-cpu", "max"]
    command += ["-smp", "2", "-m", "512"]
    command += ["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot", "-snapshot"]
    command += ["-device", "virtio-rng-pci"]  # the kernel waits for noise
    for file, form in drives:
        command += ["-drive", f"file={file.replace(',', ',,')},format={form},if=virtio"]
    began = time.monotonic()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as qemu:
        try:
            return _follow(qemu, began, began + at_most)
        finally:
            qemu.kill()


def _follow(qemu: subprocess.Popen[bytes], began: float, deadline: float) -> Boot:
    assert qemu.stdout is not None
    said, seconds = b"", None
    while select.select([qemu.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
        piece = os.read(qemu.stdout.fileno(), 1 << 16)
        said += piece
        if seconds is None and f"{BOOTED}\r\n".encode() in said:
            seconds = time.monotonic() - began
        if not piece:
            break
    else:
        raise TimeoutError(f"the guest is not done: {_end(said)}")
    with contextlib.suppress(subprocess.TimeoutExpired):
        qemu.wait(10)  # its output has ended, and so has it, soon
    if seconds is None or qemu.returncode != 0:
        raise RuntimeError(f"qemu ended with {qemu.returncode}: {_end(said)}")
    return Boot(text=said.decode(errors="replace"), seconds=seconds)


def _end(said: bytes) -> str:
    return said[-4000:].decode(errors="replace")
