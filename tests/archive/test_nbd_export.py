"""Disks come out in other formats by qemu-img: whole, proved and with their holes, or not at all."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import images
import pytest
from mounts import require

import amistore
from amistore import BLOCK_SIZE, GIB
from amistore.container.layout import Layout

FORM = Layout(blocks_per_frame=2, blocks_per_segment=4)
BLOCKS = {i: images.block(i + 1) for i in range(16)} | {700: images.block(0), 2047: images.block(99)}
CONTAINER = images.packed([(1, BLOCKS), (2, {4095: images.block(3)})], FORM)
FORMATS = {"qcow2": "qcow2", "vmdk": "vmdk", "vhd": "vpc", "vhdx": "vhdx", "vdi": "vdi"}  # as qemu names them


@pytest.fixture
def archive() -> Iterator[amistore.Archive]:
    with amistore.open(io.BytesIO(CONTAINER)) as archive:
        yield archive


@pytest.fixture
def tool() -> str:
    return require("qemu-img")


@pytest.fixture(autouse=True)
def _no_threads_are_left() -> Iterator[None]:
    before = threading.enumerate()
    yield
    assert set(threading.enumerate()) <= set(before)


def qemu_img(tool: str, *arguments: str | Path) -> str:
    return subprocess.run(
        [tool, *map(str, arguments)], check=True, capture_output=True, text=True, timeout=120
    ).stdout


def fake(tool: str, folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A qemu-img of ours, before the right one."""
    folder.mkdir()
    (folder / "qemu-img").write_text(f"#!/bin/sh\nreal={tool}\n{script}\n")
    (folder / "qemu-img").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_disk_of_each_format_is_the_extracted_one_and_keeps_its_holes(
    archive: amistore.Archive, kind: str, tmp_path: Path, tool: str
) -> None:
    disk, raw = tmp_path / f"-disk: 1.{kind}", tmp_path / "disk.raw"
    done: list[int] = []
    archive.volumes[0].extract(
        disk,
        format=kind,
        expected_content_id=archive.content_id,
        progress=lambda event: done.append(event.blocks),
    )
    archive.volumes[0].extract(raw)
    assert done == sorted(done)
    assert done[-1] == len(BLOCKS)
    assert disk.stat().st_blocks * 512 < 18 * BLOCK_SIZE + 16 * 1024 * 1024  # VHDX has blocks of 8 MiB
    assert sorted(each.name for each in tmp_path.iterdir()) == [disk.name, "disk.raw"]
    qemu_img(tool, "convert", "-f", FORMATS[kind], "-O", "raw", disk, tmp_path / "back.raw")
    back = tmp_path / "back.raw"
    assert back.stat().st_size == GIB
    assert back.stat().st_blocks <= raw.stat().st_blocks
    assert "Images are identical" in qemu_img(tool, "compare", "-f", "raw", "-F", "raw", raw, back)


def test_a_qcow2_has_the_archives_holes_and_no_others(
    archive: amistore.Archive, tmp_path: Path, tool: str
) -> None:
    archive.volumes[0].extract(tmp_path / "disk.qcow2", format="qcow2")
    qemu_img(tool, "check", tmp_path / "disk.qcow2")
    with archive.serve_nbd() as server:
        told = qemu_img(
            tool, "compare", "-f", "qcow2", "-F", "raw", tmp_path / "disk.qcow2", server.uri("/dev/sda")
        )
    assert "Images are identical" in told
    assert (tmp_path / "disk.qcow2").stat().st_mode & 0o777 == 0o600  # as a raw disk


def test_all_volumes_of_an_archive_come_out_in_a_format(
    archive: amistore.Archive, tmp_path: Path, tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = archive.extract("disks: all", format="qcow2")
    assert [path.name for path in paths] == [f"{volume.snapshot_id}.qcow2" for volume in archive.volumes]
    assert sorted(each.name for each in Path("disks: all").iterdir()) == [
        "ami.json",
        *(p.name for p in paths),
    ]
    assert '"virtual-size": 2147483648' in qemu_img(tool, "info", "--output=json", paths[1].absolute())
    with pytest.raises(amistore.AlreadyExistsError):
        archive.extract("disks: all", format="qcow2")
    archive.extract("disks: all", format="qcow2", overwrite=True)


def test_a_file_is_replaced_only_when_that_is_asked_for(
    archive: amistore.Archive, tmp_path: Path, tool: str
) -> None:
    target = tmp_path / "disk.qcow2"
    target.write_bytes(b"precious")
    with pytest.raises(amistore.AlreadyExistsError):
        archive.volumes[0].extract(target, format="qcow2")
    assert target.read_bytes() == b"precious"
    archive.volumes[0].extract(target, format="qcow2", overwrite=True)
    assert target.read_bytes()[:4] == b"QFI\xfb"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_that_appears_meanwhile_is_not_replaced(
    archive: amistore.Archive, tmp_path: Path, tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "disk.qcow2"
    fake(tool, tmp_path / "bin", f'echo precious > {target}; exec "$real" "$@"', monkeypatch)
    with pytest.raises(amistore.AlreadyExistsError):
        archive.volumes[0].extract(target, format="qcow2")
    assert target.read_text() == "precious\n"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["bin", "disk.qcow2"]


@pytest.mark.parametrize("script", ['exec "$real" "$@"', 'shift; exec "$real" convert --salvage "$@"'])
def test_damage_is_raised_as_itself_and_leaves_no_disk(
    tmp_path: Path, tool: str, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tool, tmp_path / "bin", script, monkeypatch)
    with amistore.open(io.BytesIO(CONTAINER)) as archive:
        place = archive._container.segment(1).payload + 30
    content = bytearray(CONTAINER)
    content[place] ^= 1
    (tmp_path / "out").mkdir()
    with amistore.open(io.BytesIO(bytes(content))) as archive:
        with pytest.raises(amistore.CorruptArchiveError, match=r"amistore\.recover") as caught:
            archive.volumes[0].extract(tmp_path / "out" / "disk.qcow2", format="qcow2")
        assert caught.value.segment == 1
        archive.volumes[1].extract(tmp_path / "out" / "other.qcow2", format="qcow2")
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["other.qcow2"]


def test_an_archive_of_another_content_id_is_refused_before_anything_is_written(
    archive: amistore.Archive, tmp_path: Path, tool: str
) -> None:
    with pytest.raises(amistore.CorruptArchiveError):
        archive.volumes[0].extract(tmp_path / "disk.qcow2", format="qcow2", expected_content_id="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_an_index_that_its_segments_contradict_is_refused(tmp_path: Path, tool: str) -> None:
    with amistore.open(io.BytesIO(CONTAINER)) as archive:
        indexed = archive.volumes[0]._reader.indexed
        object.__setattr__(indexed, "linear", bytes(32))  # as if an attacker had written it
        with pytest.raises(amistore.CorruptArchiveError, match="content id"):
            archive.volumes[0].extract(tmp_path / "disk.qcow2", format="qcow2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        ("echo it is broken >&2; exit 1", amistore.BackendError, "disk.qcow2: it is broken"),
        ("echo No space left on device >&2; exit 1", amistore.StorageFullError, "No space left"),
        ("exit 7", amistore.BackendError, "it ended with 7"),
    ],
)
def test_what_qemu_img_says_as_it_fails_is_told(
    archive: amistore.Archive,
    tmp_path: Path,
    tool: str,
    script: str,
    error: type[Exception],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake(tool, tmp_path / "bin", script, monkeypatch)
    with pytest.raises(error, match=message):
        archive.volumes[0].extract(tmp_path / "disk.qcow2", format="qcow2")
    assert [each.name for each in tmp_path.iterdir()] == ["bin"]


def test_an_interrupt_ends_qemu_img_and_leaves_no_disk(
    archive: amistore.Archive, tmp_path: Path, tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f'echo $$ > {tmp_path}/pid; echo "    (3.00/100%)"; exec sleep 1000'
    fake(tool, tmp_path / "bin", script, monkeypatch)

    def interrupt(_: amistore.Progress) -> None:
        raise KeyboardInterrupt

    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        archive.volumes[0].extract(tmp_path / "out" / "disk.qcow2", format="qcow2", progress=interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert list((tmp_path / "out").iterdir()) == []


def test_without_qemu_img_its_package_is_named(
    archive: amistore.Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for extract in (archive.extract, archive.volumes[0].extract):
        with pytest.raises(amistore.InvalidRequestError, match="qemu-utils"):
            extract(tmp_path / "out", format="qcow2")
    assert list(tmp_path.iterdir()) == []
    archive.volumes[0].extract(tmp_path / "disk.raw", format="raw")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"format": "qcow"}, "raw, qcow2, vmdk, vhd, vhdx, vdi, not 'qcow'"),
        ({"format": None}, "not None"),
        ({"format": "qcow2", "resume": True}, "resume=True is for raw disks only"),
        ({"format": "qcow2", "allow_lost": True}, "allow_lost=True is for raw disks only"),
    ],
)
def test_what_only_raw_disks_can_have_is_refused(
    archive: amistore.Archive, tmp_path: Path, given: dict[str, object], message: str
) -> None:
    for extract in (archive.extract, archive.volumes[0].extract):
        with pytest.raises(amistore.InvalidRequestError, match=message):
            extract(tmp_path / "out", **given)  # type: ignore[operator]
    assert list(tmp_path.iterdir()) == []


def test_a_stream_gets_raw_disks_only(archive: amistore.Archive, tool: str) -> None:
    with pytest.raises(amistore.InvalidRequestError, match="to a stream only raw"):
        archive.volumes[0].extract(io.BytesIO(), format="qcow2")


@pytest.mark.xdist_group("loop")
def test_a_device_gets_raw_disks_only(archive: amistore.Archive, tmp_path: Path, tool: str) -> None:
    if os.geteuid() or not shutil.which("losetup"):
        pytest.skip("a loop device needs root and losetup")
    (tmp_path / "backing").write_bytes(bytes(BLOCK_SIZE))
    command = ["losetup", "--find", "--show", str(tmp_path / "backing")]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    device = made.stdout.strip()
    try:
        with pytest.raises(amistore.InvalidRequestError, match="to a block device only raw"):
            archive.volumes[0].extract(device, format="qcow2", overwrite=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_a_volume_with_lost_blocks_is_refused(tmp_path: Path, tool: str) -> None:
    with amistore.open(io.BytesIO(CONTAINER)) as archive:
        place = archive._container.segment(1).payload + 30
    content = bytearray(CONTAINER)
    content[place] ^= 1
    amistore.recover(io.BytesIO(bytes(content)), tmp_path / "lossy.bin")
    with amistore.open(tmp_path / "lossy.bin") as archive, pytest.raises(amistore.LostBlocksError):
        archive.extract(tmp_path / "disks", format="qcow2")
    assert not (tmp_path / "disks").exists()
