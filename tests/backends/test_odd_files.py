"""What lies in the place of a backend's files is refused where it is no file, or none of ours."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from backends import oddities

import amistore
from amistore.testing import block, store_snapshot

# Thousands of calls that sync what they write: in memory, where there is a filesystem in it.
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


def test_no_call_waits_for_a_fifo_a_socket_or_a_device_in_the_place_of_any_file() -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as work:
        ended = subprocess.run(
            [sys.executable, "-m", oddities.__name__, work],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
        )
    lines = ended.stdout.splitlines()
    assert ended.returncode == 0, (lines[-1:], ended.stderr)
    assert len(lines) > 1000
    seen = ended.stdout
    for name in ("disk.raw", "digests", "digests.pending", "snapshot.json", "linear.json", "id: ", "tasks.db",
                 "upload.json", "00001", "archive/done", "@", "ami-"):  # fmt: skip
        assert f"{name}" in seen


@pytest.mark.parametrize("name", ["digests", "disk.raw"])
def test_a_fifo_among_a_snapshot_s_files_is_told_with_its_path(tmp_path: Path, name: str) -> None:
    cloud = amistore.DirectoryBackend(tmp_path)
    snapshot_id = store_snapshot(cloud.ebs, 1, {0: block(1)})
    path = tmp_path / "ebs" / snapshot_id / name
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(amistore.BackendError, match=f"{path} is no regular file: move it away"):
        cloud.ebs.get_snapshot_block(snapshot_id, 0, "")


@pytest.mark.parametrize("target", [".made.tmp", "/no/such/file"], ids=["itself", "nothing"])
def test_a_link_among_what_crashes_left_is_removed_and_keeps_nothing_else(
    tmp_path: Path, target: str
) -> None:
    cloud = amistore.DirectoryBackend(tmp_path)
    for name, make in ((".made.tmp", lambda path: path.symlink_to(target)), (".other.tmp", Path.touch)):
        make(tmp_path / "ec2" / name)
        os.utime(tmp_path / "ec2" / name, (0, 0), follow_symlinks=False)
    assert sorted(cloud.sweep()) == ["ec2/.made.tmp", "ec2/.other.tmp"]
    assert os.listdir(tmp_path / "ec2") == []


def test_a_description_larger_than_any_is_refused_before_it_is_read_into_memory(tmp_path: Path) -> None:
    cloud = amistore.DirectoryBackend(tmp_path)
    snapshot_id = store_snapshot(cloud.ebs, 1, {})
    path = tmp_path / "ebs" / snapshot_id / "snapshot.json"
    os.truncate(path, 1 << 40)
    with pytest.raises(amistore.BackendError, match=r"snapshot\.json is damaged: it has more than 8388608"):
        cloud.ebs.describe_snapshot(snapshot_id)


def test_no_description_is_written_that_could_not_be_read_again(tmp_path: Path) -> None:
    cloud = amistore.DirectoryBackend(tmp_path)
    cloud.s3.create_bucket("archive")
    with pytest.raises(amistore.InvalidRequestError, match="8388608 are the most"):
        cloud.s3.create_multipart_upload("archive", "key", metadata={"a": "x" * (8 << 20)})
    assert os.listdir(tmp_path / "s3/archive/.amistore/uploads") == []
    metadata = {"a": "x" * (7 << 20)}
    upload = cloud.s3.create_multipart_upload("archive", "key", metadata=metadata)
    part = cloud.s3.upload_part("archive", "key", upload, 1, b"x")
    cloud.s3.complete_multipart_upload("archive", "key", upload, [part])
    assert cloud.s3.head_object("archive", "key").metadata == metadata


def test_an_object_written_to_while_a_range_of_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud = amistore.DirectoryBackend(tmp_path)
    cloud.s3.create_bucket("archive")
    etag = cloud.s3.put_object("archive", "key", [b"old" * 1000]).etag
    read = os.pread

    def read_and_change(descriptor: int, length: int, offset: int) -> bytes:
        content = read(descriptor, length, offset)
        cloud.s3.path("archive", "key").write_bytes(b"new" * 1000)
        return content

    monkeypatch.setattr(os, "pread", read_and_change)
    with pytest.raises(amistore.SourceChangedError):
        cloud.s3.get_object_range("archive", "key", 0, 3000, if_match=etag)
