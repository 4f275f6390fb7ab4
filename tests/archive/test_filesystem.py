"""A filesystem inside an archive is read where it lies, and little is fetched for it."""

from __future__ import annotations

import io
import shutil
import subprocess

import images
import pytest
from archive.servers import Resource, serving

import amistore
from amistore import MIB

pytsk3 = pytest.importorskip("pytsk3")


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An archive of a disk with a real ext4: two folders, small files, 48 MiB of noise."""
    if not shutil.which("mke2fs"):
        pytest.skip("mke2fs is not installed")
    work = tmp_path_factory.mktemp("ext4")
    files = work / "files"
    (files / "etc").mkdir(parents=True)
    (files / "var" / "log").mkdir(parents=True)
    (files / "etc" / "hostname").write_text("web-1\n")
    (files / "etc" / "größe").write_text("an odd name\n")
    for number in range(12):
        (files / "var" / "log" / f"noise-{number}").write_bytes(images.noise(number, 4 * MIB))
    disk = work / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(amistore.GIB)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", files, disk], check=True, capture_output=True)
    cloud = amistore.DirectoryBackend(work / "cloud")
    image = amistore.import_disks(disk, cloud, name="web").image
    return b"".join(amistore.pack(image, cloud.ebs))


class Disk(pytsk3.Img_Info):  # type: ignore[misc]
    """A binary file as The Sleuth Kit's image."""

    def __init__(self, file: io.BufferedReader, size: int) -> None:
        self._file = file
        self._size = size
        super().__init__(url="", type=pytsk3.TSK_IMG_TYPE_EXTERNAL)

    def close(self) -> None:
        pass

    def read(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(size)

    def get_size(self) -> int:
        return self._size


def names(filesystem: pytsk3.FS_Info, path: str) -> set[str]:
    found = {entry.info.name.name.decode() for entry in filesystem.open_dir(path)}
    return found - {".", "..", "$OrphanFiles", "lost+found"}


def test_the_sleuth_kit_lists_and_reads_an_ext4_over_http(container: bytes) -> None:
    resource = Resource(container)
    with serving(resource) as url, amistore.open(url) as archive:
        volume = archive.volumes[0]
        with volume.open() as raw, io.BufferedReader(raw, 64 * 1024) as file:  # type: ignore[type-var]
            filesystem = pytsk3.FS_Info(Disk(file, volume.size))
            assert names(filesystem, "/") == {"etc", "var"}
            assert names(filesystem, "/etc") == {"hostname", "größe"}
            assert names(filesystem, "/var/log") == {f"noise-{number}" for number in range(12)}
            hostname = filesystem.open("/etc/hostname")
            assert hostname.read_random(0, hostname.info.meta.size) == b"web-1\n"
    assert len(container) > 48 * MIB
    fetched = 0
    for request in resource.requests:
        first, last = request.rsplit("=", 1)[1].split("-")
        fetched += int(last) - int(first or 0) + 1 if first else int(last)
    # Metadata of ext4 lies in a few places of some frames each.
    assert fetched < len(container) / 3
    assert len(resource.requests) < 40
