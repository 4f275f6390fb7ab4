"""A disk that changes while it is imported is refused, and nothing is left of the image."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import amistore
from amistore import BLOCK_SIZE
from amistore.backends.directory.ebs import DirectoryEBS
from amistore.disks import rawdisk
from amistore.disks.rawdisk import open_disk

BLOCKS = 20


@pytest.fixture
def cloud(tmp_path: Path) -> amistore.DirectoryBackend:
    return amistore.DirectoryBackend(tmp_path / "cloud")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"A" * BLOCKS * BLOCK_SIZE)
    return path


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"B" * BLOCKS * BLOCK_SIZE)


def overwrite_and_reset_the_time(path: Path) -> None:
    status = path.stat()
    overwrite(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def truncate_and_regrow(path: Path) -> None:
    os.truncate(path, 3 * BLOCK_SIZE)
    os.truncate(path, BLOCKS * BLOCK_SIZE)


def punch(path: Path) -> None:
    subprocess.run(["fallocate", "--punch-hole", "--length", str(BLOCK_SIZE), str(path)], check=True)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"C")


CHANGES: list[Callable[[Path], None]] = [
    overwrite,
    overwrite_and_reset_the_time,
    truncate_and_regrow,
    punch,
    grow,
    lambda path: os.truncate(path, BLOCK_SIZE // 2),
    lambda path: os.truncate(path, 0),
]


def change_at(
    monkeypatch: pytest.MonkeyPatch, number: int, change: Callable[[Path], None], path: Path
) -> None:
    """Change the disk once, after the block of this number has been put."""
    put = DirectoryEBS.put_snapshot_block
    done: list[int] = []

    def putting(self: DirectoryEBS, snapshot_id: str, index: int, *rest: object) -> None:
        put(self, snapshot_id, index, *rest)  # type: ignore[arg-type]
        if index == number and not done:
            done.append(index)
            change(path)

    monkeypatch.setattr(DirectoryEBS, "put_snapshot_block", putting)


@pytest.mark.parametrize("number", [0, 10, BLOCKS - 1])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_refused_whenever_it_comes_and_nothing_is_left(
    cloud: amistore.DirectoryBackend,
    disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
    number: int,
) -> None:
    change_at(monkeypatch, number, change, disk)
    with pytest.raises(amistore.SourceChangedError, match=r"disk\.raw changed while it was read"):
        amistore.import_disks(disk, cloud, name="web")
    assert os.listdir(cloud.path / "ebs") == os.listdir(cloud.path / "ec2") == []
    # What has changed by itself is a disk as others are; the name is free.
    if disk.stat().st_size:
        amistore.import_disks(disk, cloud, name="web")


def test_the_end_before_the_known_one_is_a_change_and_no_zeros(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the file says nothing of it, as on a network filesystem that asks its server later."""
    with open_disk(disk) as opened:
        os.truncate(disk, 5 * BLOCK_SIZE + 77)
        monkeypatch.setattr(opened, "check", lambda: None)
        assert opened.read(4) == b"A" * BLOCK_SIZE
        for index in (5, 6):
            with pytest.raises(amistore.SourceChangedError, match=f"ends at byte {5 * BLOCK_SIZE + 77}|byte"):
                opened.read(index)


def test_what_is_renamed_into_the_disk_s_place_is_not_read(
    cloud: amistore.DirectoryBackend, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").write_bytes(b"B" * BLOCKS * BLOCK_SIZE)
    change_at(monkeypatch, 3, lambda path: (tmp_path / "other").replace(path) and None, disk)
    with pytest.raises(amistore.SourceChangedError):
        amistore.import_disks(disk, cloud, name="web")


def test_reading_a_disk_is_no_change(
    cloud: amistore.DirectoryBackend, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_at(monkeypatch, 3, lambda path: path.read_bytes() and None, disk)
    amistore.import_disks(disk, cloud, name="web")


def test_a_change_after_the_opening_has_another_time(disk: Path) -> None:
    """A disk made just now is waited for until the clock that files are stamped with has gone on."""
    with open_disk(disk):
        assert time.time_ns() >= disk.stat().st_ctime_ns + 50_000_000


@pytest.mark.parametrize("age", [0, 1_000_000_000])
def test_times_of_whole_seconds_are_waited_for_as_fat_s(age: int) -> None:
    stamp = time.time_ns() // 1_000_000_000 * 1_000_000_000 - age
    rawdisk._wait_for_another_time(stamp)
    assert time.time_ns() >= stamp + 2_000_000_000


@pytest.fixture
def device(disk: Path) -> Iterator[Path]:
    if os.geteuid() or not shutil.which("losetup"):
        pytest.skip("a loop device needs root and losetup")
    made = subprocess.run(["losetup", "--find", "--show", str(disk)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    yield Path(made.stdout.strip())
    subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


@pytest.mark.xdist_group("loop")
def test_a_device_is_imported_and_a_write_to_it_noticed(
    cloud: amistore.DirectoryBackend, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = amistore.import_disks(device, cloud, name="web").image
    pages = cloud.ebs.pages(image.snapshot_ids[0])
    assert [block.block_index for page in pages for block in page.blocks] == list(range(BLOCKS))
    change_at(monkeypatch, 3, overwrite, device)
    with pytest.raises(amistore.SourceChangedError):
        amistore.import_disks(device, cloud, name="web 2")


@pytest.mark.xdist_group("loop")
def test_a_device_that_is_in_use_is_refused_with_the_remedy(
    cloud: amistore.DirectoryBackend, device: Path, tmp_path: Path
) -> None:
    held = os.open(device, os.O_RDONLY | os.O_EXCL)  # as mount holds it
    try:
        with pytest.raises(amistore.InvalidRequestError, match=r"mounted or otherwise in use.*: unmount it"):
            amistore.import_disks(device, cloud, name="web")
    finally:
        os.close(held)
    amistore.import_disks(device, cloud, name="web")
