"""Where a filesystem has no hard links, what was worked for is not lost, and nothing is replaced."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import images
import pytest
from backends import linkless
from mounts import in_namespace, require

import amistore
from amistore.backends import files

# FAT and exFAT; SMB; FUSE before Linux 6.13; Android's.
ANSWERS = [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES]


@pytest.mark.xdist_group("loop")
@pytest.mark.parametrize(("kind", "tools"), [("fat", ["mkfs.vfat"]), ("fuse", ["fusermount3", "rclone"])])
def test_a_filesystem_without_hard_links_gets_archives_and_objects(
    tmp_path: Path, kind: str, tools: list[str]
) -> None:
    for tool in tools:
        require(tool)
    found = in_namespace("backends.linkless", kind, tmp_path)
    if found is None:
        pytest.skip(f"this kernel mounts no {kind}")
    assert found == {
        "links": False,
        "recover": "True",
        "recover again": "AlreadyExistsError",
        "verify": "True",
        "put": "7",
        "put again": "AlreadyExistsError",
        "get": "b'content'",
        "identity": "True",
        "hidden": "[]",
    }


@pytest.fixture(params=ANSWERS, ids=errno.errorcode.get)
def linkless_folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def link(source: object, target: str | os.PathLike[str]) -> None:
        raise OSError(request.param, os.strerror(request.param), source, None, target)

    monkeypatch.setattr(os, "link", link)
    return tmp_path


def test_each_way_to_say_it_is_understood(linkless_folder: Path) -> None:
    seen = linkless.work(linkless_folder)
    assert seen["recover"] == seen["verify"] == seen["identity"] == "True"
    assert seen["recover again"] == seen["put again"] == "AlreadyExistsError"
    with amistore.open(linkless_folder / "new.bin") as archive:
        archive.extract(linkless_folder / "disks")
        with pytest.raises(amistore.AlreadyExistsError):
            archive.extract(linkless_folder / "disks")


def test_a_name_that_is_taken_meanwhile_is_not_replaced(linkless_folder: Path) -> None:
    path = linkless_folder / "file"
    with pytest.raises(FileExistsError), files.new_file(path) as descriptor:
        files.write_at(descriptor, b"ours", 0)
        path.write_bytes(b"another's")
    assert path.read_bytes() == b"another's"
    assert os.listdir(linkless_folder) == ["file"]


def test_a_renaming_that_fails_leaves_no_empty_file(
    linkless_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: Path, target: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(source))

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="Input/output"), files.new_file(linkless_folder / "file"):
        pass
    assert os.listdir(linkless_folder) == []


def test_an_interrupt_behind_the_renaming_does_not_remove_what_was_made(
    linkless_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.replace

    def interrupted(source: Path, target: Path) -> None:
        rename(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    path = linkless_folder / "file"
    with pytest.raises(KeyboardInterrupt), files.new_file(path) as descriptor:
        files.write_at(descriptor, b"of hours of work", 0)
    assert path.read_bytes() == b"of hours of work"
    assert os.listdir(linkless_folder) == ["file"]


def test_a_folder_that_cannot_be_written_to_is_told_before_the_work() -> None:
    folder = Path("/proc")  # root may write to all others
    with pytest.raises(amistore.BackendError, match=r"/proc/\.new"):
        amistore.recover(io.BytesIO(b"of which nothing can be recovered"), folder / "new.bin")
    with (
        amistore.open(io.BytesIO(images.packed([(1, {0: images.block(1)})]))) as archive,
        pytest.raises(amistore.BackendError, match=r"/proc/\.new"),
    ):
        archive.volumes[0].extract(folder / "new.raw", overwrite=True)
