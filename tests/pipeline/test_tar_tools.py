"""A container is a zstd file and a tar for the tools of the world, with no amistore installed."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import images
import pytest
import zstandard
from mounts import require

import amistore
from amistore.backends.extents import blocks_of, extents
from amistore.container.encoder import ContainerWriter, EncodedSegment, encode_segment
from amistore.container.plan import plan
from amistore.container.runs import Runs


def gnu_tar(container: Path, target: Path) -> list[str]:
    require("zstd")
    command = [require("tar"), "xvf", container, "-C", target]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert not done.stderr
    return done.stdout.split()


def bsdtar(container: Path, target: Path) -> list[str]:
    command = [require("bsdtar"), "xvf", container, "-C", target]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stderr.replace("x ", "").split()


def python_tarfile(container: Path, target: Path) -> list[str]:
    names = []
    with container.open("rb") as file:
        stream = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                names.append(member.name)
                archive.extract(
                    member, target, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {})
                )  # type: ignore[arg-type]
    return names


LONG = bool(os.environ.get("AMISTORE_LONG"))

# In one worker: the archive of 8 GiB is made once.
pytestmark = pytest.mark.xdist_group("tar")

TOOLS = [gnu_tar, bsdtar, python_tarfile]
Extract = Callable[[Path, Path], list[str]]


def same_disk(path: Path, size: int, blocks: dict[int, bytes]) -> None:
    """The file has these blocks and zeros elsewhere."""
    assert path.stat().st_size == size
    zeros = images.block(0)
    with path.open("rb") as file:
        for index in sorted({*blocks, *blocks_of(extents(file.fileno(), size))}):
            file.seek(index * amistore.BLOCK_SIZE)
            assert file.read(amistore.BLOCK_SIZE) == blocks.get(index, zeros), index


VOLUMES = {
    "holes at both ends": (1, {5: images.noise(5), 6: images.block(6), 900: images.block(0)}),
    "first and last block": (1, {0: images.block(1), 2047: images.noise(2)}),
    "empty": (1, {}),
    "many runs": (1, {i: images.block(1 + i % 7) for i in range(0, 1200, 2)}),
}


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("container") / "ami.bin"
    path.write_bytes(images.packed(VOLUMES.values()))
    return path


@pytest.mark.parametrize("extract", TOOLS)
def test_tar_extracts_every_disk_and_the_manifest(container: Path, tmp_path: Path, extract: Extract) -> None:
    names = extract(container, tmp_path)
    folder = "ami-0123456789abcdef0"
    disks = [f"snap-{number:017x}.raw" for number in range(len(VOLUMES))]
    assert names == ["README-amistore.txt", f"{folder}/ami.json", *(f"{folder}/{disk}" for disk in disks)]
    for disk, (size, blocks) in zip(disks, VOLUMES.values(), strict=True):
        same_disk(tmp_path / folder / disk, size * amistore.GIB, blocks)
    if (
        extract is not python_tarfile
    ):  # which writes holes by seeking too, but some filesystems do not keep them
        assert (tmp_path / folder / disks[2]).stat().st_blocks * 512 < amistore.MIB
    manifest = json.loads((tmp_path / folder / "ami.json").read_text())
    assert manifest["Name"] == "web"
    assert "amistore" in (tmp_path / "README-amistore.txt").read_text()


PIECE = 128 << 10
"""Bytes that stay in the processor's cache; larger pieces would each be given new pages."""


def piped(*command: str | Path) -> Iterator[bytes]:
    """What a tool writes to its standard output."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, pipesize=amistore.MIB) as process:
        assert process.stdout is not None
        while piece := process.stdout.read(PIECE):
            yield piece
    assert process.returncode == 0


def members(container: Path) -> Iterator[Iterator[bytes]]:
    """The contents of the members, one after the other, as Python's tarfile reads them."""
    with container.open("rb") as file:
        stream = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                content = archive.extractfile(member)
                assert content is not None
                yield iter(lambda content=content: content.read(PIECE), b"")  # type: ignore[misc]


TO_A_PIPE: dict[str, Callable[[Path], Iterator[bytes]]] = {
    "gnu_tar": lambda path: piped(require("tar"), "-b256", "-xOf", path),  # else it reads 10 KiB at once
    "bsdtar": lambda path: piped(require("bsdtar"), "xOf", path),
    "python_tarfile": lambda path: itertools.chain.from_iterable(members(path)),
}


MANY = 8 * 2048 + 1
"""Blocks whose bytes no octal number of a tar header counts."""


@pytest.mark.parametrize("tool", [tool for tool in TO_A_PIPE if LONG or tool != "gnu_tar"])
def test_a_member_of_more_than_8_gib_and_the_one_behind_it_are_extracted(large_disk: Path, tool: str) -> None:
    # To a pipe: nobody has 10 GiB of disk or memory for it.
    front = b"".join(itertools.chain.from_iterable(itertools.islice(members(large_disk), 2)))
    large = len(front) + 9 * amistore.GIB
    listed = {0: front, large + 7 * amistore.BLOCK_SIZE: images.noise(7)}
    end, zeros = 0, bytes(PIECE)
    for piece in TO_A_PIPE[tool](large_disk):
        expected = zeros[: len(piece)]
        for start, content in listed.items():  # what of them falls into the piece
            place = range(max(start, end), min(start + len(content), end + len(piece)))
            if place:
                there = content[place.start - start : place.stop - start]
                expected = expected[: place.start - end] + there + expected[place.stop - end :]
        assert piece == expected, end
        end += len(piece)
    assert end == large + amistore.GIB


def test_gnu_tar_knows_the_size_of_such_a_member_and_extracts_the_one_behind_it(
    large_disk: Path, tmp_path: Path
) -> None:
    """In the long form it gives all bytes: it writes them in pieces of 512, which takes it half a minute."""
    require("zstd")
    tar = [require("tar"), "-b256", "-f", large_disk, "-C", tmp_path]
    disks = [f"ami-0123456789abcdef0/snap-{number:017x}.raw" for number in range(2)]
    with subprocess.Popen([*tar, "-tv", disks[0]], stdout=subprocess.PIPE) as listing:
        assert listing.stdout is not None
        told = listing.stdout.readline()
        listing.kill()  # before it has read the member
    assert int(told.split()[2]) == 9 * amistore.GIB
    subprocess.run([*tar, "-x", disks[1]], check=True)
    same_disk(tmp_path / disks[1], amistore.GIB, {7: images.noise(7)})


@pytest.fixture(scope="module")
def large_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two volumes, the first with more than 8 GiB of listed zeros; more than one shard, so with PAD.

    It is written as packing does, but a segment of zeros is compressed once for all that are like it.
    """
    ids = list(images.Volumes([(9, {}), (1, {})]).volumes)
    volumes = [(ids[0], 9, Runs([(0, MANY)])), (ids[1], 1, Runs([(7, 1)]))]
    planned = plan(images.image(ids), volumes)
    writer = ContainerWriter(planned, 1)
    pieces = writer.front()
    zeros: dict[int, EncodedSegment] = {}  # by the number of blocks
    for volume in planned.volumes:
        pieces += writer.volume(volume)
        for number in range(planned.layout.segments(volume.runs.blocks)):
            segment = planned.segment(volume.first_segment + number)
            blocks = itertools.repeat((images.noise(7) if volume.number else images.block(0), None))
            count = segment.runs.blocks
            made = None if volume.number else zeros.get(count)
            made = made or encode_segment(segment, blocks, level=1, check=False)
            zeros.setdefault(count, made)
            place = {"sequence": segment.sequence, "ordinal": segment.ordinal, "runs": segment.runs}
            descriptor = attrs.evolve(made.descriptor, **place)
            pieces += writer.segment(EncodedSegment(descriptor, descriptor.encode(), made.frames))
    path = tmp_path_factory.mktemp("large") / "ami.bin"
    path.write_bytes(b"".join([*pieces, *writer.tail()]))
    assert b"AMISPAD\0" in path.read_bytes()
    return path


def test_zstd_verifies_the_file(container: Path) -> None:
    subprocess.run([require("zstd"), "-tq", container], check=True)


def test_strings_and_file_show_what_it_is(container: Path) -> None:
    if shutil.which("strings"):
        shown = subprocess.run(["strings", container], check=True, capture_output=True, text=True).stdout
        assert "Amazon Machine Image (AMI)" in "\n".join(shown.splitlines()[:20])
        assert "tar xf FILE" in shown
    assert b"Amazon Machine Image (AMI)" in container.read_bytes()[:1024]
    if shutil.which("file"):
        shown = subprocess.run(["file", container], check=True, capture_output=True, text=True).stdout
        assert "Zstandard" in shown


def test_the_padded_archive_verifies_for_both_readers(large_disk: Path) -> None:
    with amistore.open(large_disk) as archive:
        archive.verify(quick=True).check()  # the tools have read its blocks
        assert archive.volumes[0].blocks == MANY
    damaged = bytearray(large_disk.read_bytes())
    at = damaged.index(b"AMISPAD\0")
    damaged[at + 1000] ^= 1
    with (
        amistore.open(io.BytesIO(bytes(damaged))) as archive,
        pytest.raises(amistore.CorruptArchiveError, match="PAD"),
    ):
        archive.verify(quick=True).check()
