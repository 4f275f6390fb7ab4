"""What makes new files, in a folder of a filesystem without hard links: run on a mount of its own."""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import images
from mounts import mounted

import amistore
from amistore import MIB

CONTAINER = images.packed([(1, {0: images.block(1), 5: images.block(2)})])


def links(folder: Path) -> bool:
    (folder / "one").touch()
    try:
        os.link(folder / "one", folder / "two")
    except OSError:
        return False
    return True


def told(call: Callable[[], object]) -> str:
    try:
        return str(call())
    except amistore.AmistoreError as error:
        return type(error).__name__


def work(folder: Path) -> dict[str, str]:
    def recover() -> bool:
        return amistore.recover(io.BytesIO(CONTAINER), folder / "new.bin").complete

    def put() -> int:
        return cloud.s3.put_object("archive", "key", [b"content"], if_none_match=True).size

    def backend() -> bool:
        return amistore.DirectoryBackend(folder / "cloud").s3.where == cloud.s3.where

    cloud = amistore.DirectoryBackend(folder / "cloud")
    cloud.s3.create_bucket("archive")
    seen = {
        "recover": told(recover),
        "recover again": told(recover),
        "put": told(put),
        "put again": told(put),
    }
    with amistore.open(folder / "new.bin") as archive:
        seen["verify"] = told(lambda: archive.verify().ok)
    seen["get"] = told(lambda: cloud.s3.get_object_range("archive", "key", 0, 99))
    seen["identity"] = told(backend)
    seen["hidden"] = str([name for name in os.listdir(folder) if name.startswith(".")])
    return seen


@contextlib.contextmanager
def fat(work: Path) -> Iterator[Path | None]:
    yield mounted("vfat", work, "mkfs.vfat", size=64 * MIB)


@contextlib.contextmanager
def fuse(work: Path) -> Iterator[Path | None]:
    """A folder through rclone, as people mount a cloud's drive."""
    mount, folder = work / "mount", work / "folder"
    mount.mkdir()
    folder.mkdir()
    command = ["rclone", "mount", f":local:{folder}", mount, "--vfs-cache-mode", "writes"]
    command += ["--cache-dir", work / "cache", "--config", os.devnull]
    before = mount.stat().st_dev
    process = subprocess.Popen(
        command,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: ctypes.CDLL(None).prctl(1, signal.SIGKILL),  # PR_SET_PDEATHSIG
    )
    try:
        while process.poll() is None and mount.stat().st_dev == before:
            pass
        yield None if process.poll() is not None else mount
    finally:
        process.kill()
        process.wait()
        subprocess.run(["umount", "--lazy", mount], stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    with {"fat": fat, "fuse": fuse}[sys.argv[1]](Path(sys.argv[2])) as folder:
        json.dump(None if folder is None else {"links": links(folder), **work(folder)}, sys.stdout)
