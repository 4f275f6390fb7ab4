"""Disks come out byte for byte: to sparse files, devices and streams; whole, or not at all."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import images
import pytest
from typing_extensions import Buffer

import amistore
from amistore import BLOCK_SIZE, GIB
from amistore.backends.extents import blocks_of, extents
from amistore.container.layout import Layout

FORM = Layout(blocks_per_frame=2, blocks_per_segment=4)
BLOCKS = {i: images.block(i + 1) for i in range(20)} | {700: images.block(0), 2047: images.block(99)}
CONTAINER = images.packed([(1, BLOCKS), (2, {4095: images.block(3)})], FORM)
LISTED = len(BLOCKS) * BLOCK_SIZE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "ami.bin").write_bytes(CONTAINER)
    return tmp_path / "ami.bin"


@pytest.fixture
def archive(path: Path) -> Iterator[amistore.Archive]:
    with amistore.open(path) as archive:
        yield archive


ZEROS = bytes(BLOCK_SIZE)


def assert_right(disk: Path) -> None:
    """The disk is the first volume; what the filesystem says is a hole of it reads as zeros."""
    with disk.open("rb") as file:
        assert file.seek(0, os.SEEK_END) == GIB
        for index in sorted({*BLOCKS, *blocks_of(extents(file.fileno(), GIB))}):
            file.seek(index * BLOCK_SIZE)
            if file.read(BLOCK_SIZE) != BLOCKS.get(index, ZEROS):
                raise AssertionError(index)


class Compared(io.RawIOBase):
    """A stream that compares what it is given with the first volume, so that nobody writes a GiB."""

    def __init__(self) -> None:
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, content: Buffer, /) -> int:
        given = memoryview(content).cast("B")
        at = 0
        while at < len(given):
            index, inner = divmod(self.size + at, BLOCK_SIZE)
            piece = bytes(given[at : at + BLOCK_SIZE - inner])  # views are compared byte by byte, slowly
            assert piece == BLOCKS.get(index, ZEROS)[inner : inner + len(piece)], index
            at += len(piece)
        self.size += len(given)
        return len(given)


def test_a_disk_is_written_with_its_holes(archive: amistore.Archive, tmp_path: Path) -> None:
    target = tmp_path / "disk.raw"
    archive.volumes[0].extract(target)
    assert_right(target)
    assert target.stat().st_size == GIB
    assert target.stat().st_blocks * 512 <= LISTED + 64 * 1024
    assert sorted(each.name for each in tmp_path.iterdir()) == ["ami.bin", "disk.raw"]


def test_a_file_is_replaced_only_when_that_is_asked_for(archive: amistore.Archive, tmp_path: Path) -> None:
    target = tmp_path / "disk.raw"
    target.write_bytes(b"precious")
    with pytest.raises(amistore.AlreadyExistsError):
        archive.volumes[0].extract(target)
    with pytest.raises(amistore.AlreadyExistsError):
        archive.volumes[0].extract(target, resume=True)
    assert target.read_bytes() == b"precious"
    archive.volumes[0].extract(target, overwrite=True)
    assert_right(target)


def test_only_files_are_replaced(archive: amistore.Archive, path: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "device").symlink_to("/dev/null")
    for name, message in (
        ("fifo", "no file that can be replaced"),
        ("folder", "no file that can be replaced"),
        ("device", "no file that can be replaced"),
        ("link", "is the archive itself"),
        ("ami.bin", "is the archive itself"),
    ):
        with pytest.raises(amistore.InvalidRequestError, match=message):
            archive.volumes[0].extract(tmp_path / name, overwrite=True)
    assert path.read_bytes() == CONTAINER
    assert Path("/dev/null").is_char_device()
    for target in (5, path.open("rb")):
        with pytest.raises(amistore.InvalidRequestError, match="open for writing"):
            archive.volumes[0].extract(target)  # type: ignore[arg-type]
        if not isinstance(target, int):
            target.close()


def test_a_link_is_followed(archive: amistore.Archive, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "disk.raw")
    archive.volumes[0].extract(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert_right(tmp_path / "elsewhere" / "disk.raw")


def test_a_missing_folder_is_named(archive: amistore.Archive, tmp_path: Path) -> None:
    with pytest.raises(amistore.NotFoundError, match=f"no such folder: {tmp_path / 'none'}"):
        archive.volumes[0].extract(tmp_path / "none" / "disk.raw")


def test_all_volumes_and_the_manifest_go_into_a_folder(archive: amistore.Archive, tmp_path: Path) -> None:
    paths = archive.extract(tmp_path / "out" / "disks")
    assert [each.name for each in paths] == [f"{volume.snapshot_id}.raw" for volume in archive.volumes]
    assert_right(paths[0])
    assert paths[1].stat().st_size == 2 * GIB
    manifest = json.loads((paths[0].parent / "ami.json").read_bytes())
    assert manifest["ImageId"] == archive.image.image_id
    with pytest.raises(amistore.AlreadyExistsError):
        archive.extract(paths[0].parent)
    paths[1].unlink()
    archive.extract(paths[0].parent, resume=True)
    assert paths[1].stat().st_size == 2 * GIB


def test_files_that_are_there_are_proved_before_an_extraction_goes_on(
    archive: amistore.Archive, tmp_path: Path
) -> None:
    paths = archive.extract(tmp_path / "disks")
    archive.extract(tmp_path / "disks", resume=True)
    with paths[0].open("r+b") as disk:
        disk.seek(300 * BLOCK_SIZE)
        disk.write(b"x")
    with pytest.raises(amistore.AlreadyExistsError, match="is not the volume"):
        archive.extract(tmp_path / "disks", resume=True)
    paths[0].write_bytes(b"short")
    with pytest.raises(amistore.AlreadyExistsError, match="is not the volume"):
        archive.extract(tmp_path / "disks", resume=True)
    archive.extract(tmp_path / "disks", overwrite=True)
    assert_right(paths[0])
    (tmp_path / "disks" / "ami.json").write_text("{}")
    with pytest.raises(amistore.AlreadyExistsError, match="is not this archive's"):
        archive.extract(tmp_path / "disks", resume=True)


def test_a_stream_that_takes_nothing_is_a_typed_error(archive: amistore.Archive) -> None:
    class Full(io.RawIOBase):
        def __init__(self, answer: int | None) -> None:
            self.answer = answer

        def writable(self) -> bool:
            return True

        def write(self, content: object, /) -> int | None:
            return self.answer

    for answer in (0, -1, None, 2**40):
        with pytest.raises(amistore.BackendError, match=f"write gave {answer}"):
            archive.volumes[0].extract(Full(answer))  # type: ignore[arg-type]


def test_a_stream_gets_every_byte_in_order(archive: amistore.Archive) -> None:
    compared = Compared()
    archive.volumes[0].extract(compared)  # type: ignore[arg-type]
    assert compared.size == GIB


def test_a_pipe_gets_every_byte_and_a_reader_that_goes_away_is_a_typed_error(
    archive: amistore.Archive,
) -> None:
    compared = Compared()
    out, into = os.pipe()
    with open(out, "rb") as there, ThreadPoolExecutor(1) as reader:
        done = reader.submit(shutil.copyfileobj, there, compared, BLOCK_SIZE)
        with open(into, "wb") as pipe:
            archive.volumes[0].extract(pipe)
        done.result(60)
    assert compared.size == GIB
    ends = subprocess.Popen(
        ["head", "-c", "100"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, bufsize=0
    )
    assert ends.stdin is not None
    with pytest.raises(amistore.BackendError, match="Broken pipe"):
        archive.volumes[0].extract(ends.stdin)  # type: ignore[arg-type]
    ends.stdin.close()
    ends.wait()


def damaged(path: Path) -> None:
    """The archive with a flipped bit in its last segment of the first volume."""
    with amistore.open(path) as archive:
        place = archive._container.segment(5).payload + 30
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_damage_leaves_no_file_or_with_resume_a_part_to_go_on_from(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    damaged(path)
    target = tmp_path / "disk.raw"
    with amistore.open(path) as archive:
        with pytest.raises(amistore.CorruptArchiveError):
            archive.volumes[0].extract(target)
        assert sorted(each.name for each in tmp_path.iterdir()) == ["ami.bin"]
        with pytest.raises(amistore.CorruptArchiveError):
            archive.volumes[0].extract(target, resume=True)
    part = tmp_path / "disk.raw.part"
    assert part.exists()
    assert not target.exists()
    path.write_bytes(whole)
    with amistore.open(path) as archive:
        loaded: list[int] = []
        load = archive._container.load
        archive._container.load = lambda sequence: loaded.append(sequence) or load(sequence)  # type: ignore[method-assign, func-returns-value]
        archive.volumes[0].extract(target, resume=True, workers=1)
    assert loaded == [5]
    assert_right(target)
    assert not part.exists()


def test_resuming_proves_what_is_there_and_mends_it(archive: amistore.Archive, tmp_path: Path) -> None:
    target = tmp_path / "disk.raw"
    part = tmp_path / "disk.raw.part"
    archive.volumes[0].extract(part)
    with part.open("r+b") as file:
        file.seek(9 * BLOCK_SIZE + 5)
        file.write(b"rot")
        file.truncate(19 * BLOCK_SIZE)
    archive.volumes[0].extract(target, resume=True)
    assert_right(target)
    assert target.stat().st_blocks * 512 <= LISTED + 64 * 1024


def test_a_part_with_foreign_bytes_in_a_hole_is_refused(archive: amistore.Archive, tmp_path: Path) -> None:
    with (tmp_path / "disk.raw.part").open("wb") as file:
        file.seek(300 * BLOCK_SIZE + 77)
        file.write(b"foreign")
    with pytest.raises(amistore.BackendError, match="holds bytes of something else") as caught:
        archive.volumes[0].extract(tmp_path / "disk.raw", resume=True)
    assert caught.value.block_index == 300
    assert not (tmp_path / "disk.raw").exists()


def _extract_slowly(path: Path, target: Path, ready: object) -> None:
    def stop(progress: amistore.Progress) -> None:
        if progress.blocks >= 12:
            ready.set()  # type: ignore[attr-defined]
            signal.pause()

    with amistore.open(path) as archive:
        archive.volumes[0].extract(target, resume=True, workers=1, progress=stop)


def test_a_killed_extraction_holds_its_lock_and_is_resumed_after_it(path: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    target = tmp_path / "disk.raw"
    process = context.Process(target=_extract_slowly, args=(path, target, ready))
    process.start()
    assert ready.wait(60)
    with amistore.open(path) as archive:
        with pytest.raises(amistore.BackendError, match="another extraction"):
            archive.volumes[0].extract(target, resume=True)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert not target.exists()
        archive.volumes[0].extract(target, resume=True)
    assert_right(target)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["ami.bin", "disk.raw"]


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A block device of 1 GiB that holds other bytes."""
    if os.geteuid() or not shutil.which("losetup"):
        pytest.skip("a loop device needs root and losetup")
    backing = tmp_path / "backing"
    with backing.open("wb") as file:
        file.truncate(GIB)
        for index in (0, 19, 20, 500, 699, 701, 2046):
            file.seek(index * BLOCK_SIZE)
            file.write(b"old bytes " * 1000)
    made = subprocess.run(["losetup", "--find", "--show", str(backing)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    name = Path(made.stdout.strip())
    yield name
    subprocess.run(["losetup", "--detach", str(name)], check=True)


HOLE_AT_THE_END = images.packed([(1, {i: images.block(i) for i in (3, 20, 700)})], FORM)


@pytest.mark.xdist_group("loop")
def test_zeros_are_written_behind_the_last_block_of_a_device(device: Path) -> None:
    with amistore.open(io.BytesIO(HOLE_AT_THE_END)) as archive:
        archive.volumes[0].extract(device, overwrite=True)
        with device.open("rb") as found, archive.volumes[0].open() as expected:
            while content := expected.read(BLOCK_SIZE):
                assert found.read(BLOCK_SIZE) == content


@pytest.mark.xdist_group("loop")
def test_a_block_device_gets_the_disk_and_zeros_for_its_holes(
    archive: amistore.Archive, device: Path
) -> None:
    with pytest.raises(amistore.AlreadyExistsError, match="block device"):
        archive.volumes[0].extract(device)
    with pytest.raises(amistore.InvalidRequestError, match="the volume has"):
        archive.volumes[1].extract(device, overwrite=True)
    archive.volumes[0].extract(device, overwrite=True)
    assert_right(device)


def test_progress_ends_at_all_blocks(archive: amistore.Archive, tmp_path: Path) -> None:
    seen: list[amistore.Progress] = []
    archive.volumes[0].extract(tmp_path / "disk.raw", progress=seen.append)
    assert [each.blocks for each in seen] == [4, 8, 12, 16, 20, 22]
