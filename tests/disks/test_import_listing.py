"""Which blocks an import lists: the same ones whatever was read before, and zeros as it is asked to."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from backends import filesystems
from mounts import in_namespace, require

import amistore
from amistore import BLOCK_SIZE, GIB
from amistore.disks import fiemap


@pytest.mark.xdist_group("loop")
def test_a_listing_is_the_same_before_and_after_the_disk_is_read(tmp_path: Path) -> None:
    for _, mkfs in filesystems.KINDS.values():
        for tool in mkfs[:1]:
            require(tool)
    found = in_namespace("backends.filesystems", tmp_path)
    form = "{:16} {:>7} {:>7}   {:>7} {:>7}   {:>5}".format
    print(form("filesystem", "before", "after", "SEEK_DATA", "after", "mmap"))
    for kind, seen in found.items():
        told = "seen" if seen["stores"] else "missed"
        counts = (len(seen["before"]), len(seen["after"]), seen["data before"], seen["data after"])
        print(form(kind, *counts, told))
    assert {"tmpfs"} < set(found)
    written = [*filesystems.DATA, *filesystems.WRITTEN_ZEROS]
    for kind, seen in found.items():
        # tmpfs has no FIEMAP, and holds what is only allocated for a hole.
        allocated = [] if kind == "tmpfs" else list(filesystems.ALLOCATED)
        assert seen["before"] == seen["after"] == written + allocated, kind
        assert seen["unlisted"] == list(filesystems.DATA), kind
        assert seen["stores"] == (kind != "tmpfs"), kind


def disk_of(path: Path, size: int, written: dict[int, bytes]) -> Path:
    with path.open("wb") as disk:
        disk.truncate(size)
        for index, content in written.items():
            disk.seek(index * BLOCK_SIZE)
            disk.write(content)
    return path


def blocks(cloud: amistore.DirectoryBackend, image_id: str) -> list[int]:
    pages = cloud.ebs.pages(cloud.ec2.describe_image(image_id).snapshot_ids[0])
    return [block.block_index for page in pages for block in page.blocks]


def test_more_extents_than_are_asked_for_at_once_are_all_found(tmp_path: Path) -> None:
    size = 1100 * 8192
    with (tmp_path / "disk.raw").open("w+b") as disk:
        disk.truncate(size)
        for number in range(1, 1100):
            disk.seek(number * 8192)
            disk.write(b"x" * 4096)
        disk.flush()
        if not fiemap.mapping_is_known(disk.fileno()):
            pytest.skip("the filesystem has no FIEMAP")
        found = list(fiemap.mapped(disk.fileno(), size))
        assert found == [(number * 8192, number * 8192 + 4096) for number in range(1, 1100)]
        assert list(fiemap.mapped(disk.fileno(), 8192 + 100)) == [(8192, 8192 + 100)]


def test_a_disk_of_nothing_but_a_hole_lists_no_block(tmp_path: Path) -> None:
    cloud = amistore.DirectoryBackend(tmp_path / "cloud")
    disk = disk_of(tmp_path / "disk.raw", GIB, {})
    assert blocks(cloud, amistore.import_disks(disk, cloud, name="web").image_id) == []


@pytest.mark.parametrize("zeros", ["listed", "unlisted"])
def test_zeros_that_are_no_holes_are_told_and_decided_by_the_caller(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, zeros: str
) -> None:
    caplog.set_level(logging.INFO, "amistore")
    written = {0: b"x", 2: bytes(3 * BLOCK_SIZE), 9: bytes(BLOCK_SIZE - 1) + b"x"}
    # The last block is shorter than others, and zeros too.
    disk = disk_of(tmp_path / "disk.raw", 11 * BLOCK_SIZE + 5, {**written, 11: bytes(5)})
    cloud = amistore.DirectoryBackend(tmp_path / "cloud")
    source = amistore.DiskSource(disk, zeros=zeros)  # type: ignore[arg-type]
    listed = blocks(cloud, amistore.import_disks(source, cloud, name="web").image_id)
    assert listed == ([0, 2, 3, 4, 9, 11] if zeros == "listed" else [0, 9])
    done = 'are listed; zeros="unlisted" leaves them out' if zeros == "listed" else "are left out"
    assert caplog.messages == [f"disk.raw: 2.0 MiB of zeros {done}"]


def test_a_disk_without_zeros_is_not_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "amistore")
    disk = disk_of(tmp_path / "disk.raw", GIB, {0: b"x"})
    amistore.import_disks(disk, amistore.DirectoryBackend(tmp_path / "cloud"), name="web")
    assert caplog.messages == []


@pytest.mark.parametrize("wrong", [{"zeros": "skip"}, {"zeros": None}, {"format": "qcow3"}, {"format": ""}])
def test_other_ways_to_import_are_refused_before_the_disk_is_read(
    tmp_path: Path, wrong: dict[str, str]
) -> None:
    cloud = amistore.DirectoryBackend(tmp_path / "cloud")
    with pytest.raises(amistore.InvalidRequestError, match=next(iter(wrong))):
        disk = amistore.DiskSource("/no/such/disk", **wrong)  # type: ignore[arg-type]
        amistore.import_disks(disk, cloud, name="web")


def test_a_filesystem_that_answers_nonsense_is_a_typed_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = disk_of(tmp_path / "disk.raw", GIB, {0: b"x"})

    def nonsense(descriptor: int, call: int, answer: bytearray) -> None:
        answer[20:24] = (1).to_bytes(4, "little") if len(answer) > 32 else bytes(4)

    monkeypatch.setattr("fcntl.ioctl", nonsense)
    cloud = amistore.DirectoryBackend(tmp_path / "cloud")
    with pytest.raises(amistore.BackendError, match="FIEMAP"):
        amistore.import_disks(disk, cloud, name="web")
    assert os.listdir(cloud.path / "ebs") == []
