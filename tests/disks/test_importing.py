"""Disks become an AMI on every backend, and go on after a crash; what changed, or is none, is refused."""

from __future__ import annotations

import bz2
import filecmp
import gzip
import io
import lzma
import os
import pickle
import shutil
import signal
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import children
import images
import pytest
import zstandard
from backends.aws.accounts import QUICK
from objects.runs import Calls

import amistore
from amistore import BLOCK_SIZE, GIB, MIB, AWSBackend, DiskSource
from amistore.backends import Backend
from amistore.testing import BlockSourceContract, SnapshotCase
from amistore.testing.aws import FakeAWS

TAG = amistore.Tag(key="team", value="web")
ROOT = {0: images.block(1), 3: images.noise(2), 70: images.noise(3), 71: images.block(0)}
DATA = {index * 2: images.noise(10 + index) for index in range(40)}


def disk_of(path: Path, blocks: dict[int, bytes], size: int = GIB) -> Path:
    with path.open("wb") as disk:
        disk.truncate(size)
        for index, content in blocks.items():
            disk.seek(index * BLOCK_SIZE)
            disk.write(content)
    return path


@pytest.fixture
def disks(tmp_path: Path) -> dict[str, str | os.PathLike[str] | DiskSource]:
    """A root disk and one of data, with holes."""
    data = DiskSource(disk_of(tmp_path / "data.raw", DATA), volume_size=2)
    return {"/dev/xvda": str(disk_of(tmp_path / "root.raw", ROOT)), "/dev/sdf": data}


@pytest.fixture
def aws() -> Iterator[FakeAWS]:
    with FakeAWS(seed=1) as made:
        yield made


def account(aws: FakeAWS, **options: Any) -> AWSBackend:
    given = aws.client_options()
    url, region = given.pop("endpoint_url"), given["region_name"]
    urls = {"ec2": url, "ebs": url}
    return AWSBackend(
        boto3.Session(**given), region_name=region, endpoint_urls=urls, retries=QUICK, **options
    )


def imported(backend: Backend, image: amistore.Image) -> dict[str, tuple[int, dict[int, bytes]]]:
    """Size and blocks of each device."""
    return {
        mapping.device_name: images.contents(backend.ebs, str(mapping.ebs.snapshot_id))
        for mapping in image.block_device_mappings
        if mapping.ebs is not None
    }


EXPECTED = {"/dev/xvda": (1, ROOT), "/dev/sdf": (2, DATA)}


class TestDiskSource(BlockSourceContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> SnapshotCase:
        blocks = {**ROOT, 2047: images.block(9)}
        disk = DiskSource(disk_of(tmp_path / "root.raw", blocks))
        return SnapshotCase(source=disk, snapshot_id=disk.snapshot_id, volume_size=1, blocks=blocks)


@pytest.mark.parametrize("kind", ["memory", "folder", "aws"])
def test_two_disks_become_an_ami_on_every_backend_with_one_content_id(
    disks: dict[str, Any], aws: FakeAWS, tmp_path: Path, kind: str
) -> None:
    backends: dict[str, Callable[[], Backend]] = {
        "memory": amistore.MemoryBackend,
        "folder": lambda: amistore.DirectoryBackend(tmp_path / "cloud"),
        "aws": lambda: account(aws),
    }
    backend = backends[kind]()
    facts = {"name": "web", "architecture": "arm64", "boot_mode": "uefi"}
    made = amistore.import_disks(disks, backend, image_tags=[TAG], **facts)
    found = backend.ec2.describe_image(made.image_id)
    assert (found.name, found.architecture, found.boot_mode) == ("web", "arm64", "uefi")
    assert found.root_device_name == "/dev/xvda" and TAG in found.tags
    assert imported(backend, found) == EXPECTED
    other = amistore.import_disks(
        {name: disk if isinstance(disk, DiskSource) else DiskSource(disk) for name, disk in disks.items()},
        amistore.MemoryBackend(),
        **facts,
    )
    assert made.content_id == other.content_id


def test_a_disk_is_packed_without_any_backend(tmp_path: Path) -> None:
    disk = DiskSource(disk_of(tmp_path / "root.raw", ROOT))
    packed = amistore.pack(images.image([disk.snapshot_id]), disk)
    with disk, packed, (tmp_path / "web.bin").open("wb") as file:
        file.writelines(packed)
    with amistore.open(tmp_path / "web.bin") as archive:
        archive.root_volume.extract(tmp_path / "copy.raw")
    assert filecmp.cmp(tmp_path / "copy.raw", tmp_path / "root.raw", shallow=False)


def test_one_disk_becomes_a_snapshot(tmp_path: Path, aws: FakeAWS) -> None:
    snapshot_id = amistore.import_snapshot(
        disk_of(tmp_path / "root.raw", ROOT), account(aws).ebs, description="a root disk", tags=[TAG]
    )
    assert aws.read_snapshot(snapshot_id) == ROOT
    found = account(aws).ebs.describe_snapshot(snapshot_id)
    assert (found.description, found.tags, found.state) == ("a root disk", (TAG,), "completed")


@pytest.mark.parametrize("fill", [False, True])
def test_a_sparse_disk_into_an_encrypted_account_is_filled_or_warned_of(
    tmp_path: Path, aws: FakeAWS, caplog: pytest.LogCaptureFixture, fill: bool
) -> None:
    backend = account(aws, snapshots=amistore.SnapshotSettings(encrypted=True))
    disk = disk_of(tmp_path / "root.raw", ROOT)
    made = amistore.import_disks(disk, backend, name="web", fill_holes=fill)
    with disk.open("rb") as source:
        right = [block == source.read(BLOCK_SIZE) for block in aws.read_volume(made.image.snapshot_ids[0])]
    assert len(right) == GIB // BLOCK_SIZE and all(right[index] for index in ROOT)
    assert all(right) == fill
    assert ("fill_holes=True" in caplog.text) == (not fill)


@pytest.mark.parametrize(
    "verb", ["start_snapshot", "put_snapshot_block", "complete_snapshot", "register_image"]
)
@pytest.mark.parametrize("late", [False, True])
def test_an_error_leaves_nothing_and_with_a_log_the_next_call_puts_only_what_is_missing(
    disks: dict[str, Any], tmp_path: Path, verb: str, late: bool
) -> None:
    backend, log = amistore.MemoryBackend(), tmp_path / "import.log"
    calls = Calls(backend.ebs, backend.ec2)
    number = 30 if verb == "put_snapshot_block" else 1
    error = amistore.BackendError("the network is gone", operation=verb, retryable=True)
    calls.fail(verb, number, error, late=late)
    with pytest.raises(amistore.BackendError, match="the network is gone"):
        amistore.import_disks(disks, backend, name="web", workers=1)
    if verb != "register_image":
        assert not backend.ec2.find_images("web")
    backend = amistore.MemoryBackend()
    calls = Calls(backend.ebs, backend.ec2)
    calls.fail(verb, number, error, late=late)
    with pytest.raises(amistore.BackendError, match="the network is gone"):
        amistore.import_disks(disks, backend, name="web", log=log, workers=1)
    before = calls.made["put_snapshot_block"]
    made = amistore.import_disks(disks, backend, name="web", log=log, workers=1)
    put = calls.made["put_snapshot_block"] - before
    assert imported(backend, made.image) == EXPECTED
    # The root disk's segment was put whole, and noted; the one in which the error came is put again.
    missing = {"start_snapshot": len(ROOT) + len(DATA), "put_snapshot_block": len(DATA)}
    assert put == missing.get(verb, 0)
    assert not log.exists() and len(backend.ec2.find_images("web")) == 1


def test_an_import_that_is_killed_goes_on_and_puts_no_block_twice_that_was_logged(
    disks: dict[str, Any], tmp_path: Path
) -> None:
    cloud, log = amistore.DirectoryBackend(tmp_path / "cloud"), tmp_path / "import.log"

    def killed(event: amistore.Progress) -> None:
        if event.phase is amistore.pipeline.Phase.UNPACK and event.blocks > 20:
            os.kill(os.getpid(), signal.SIGKILL)

    child = children.fork()
    if not child:
        try:
            amistore.import_disks(disks, cloud, name="web", log=log, workers=1, progress=killed)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    calls = Calls(cloud.ebs)
    made = amistore.import_disks(disks, cloud, name="web", log=log, workers=1)
    assert imported(cloud, made.image) == EXPECTED
    assert calls.made["put_snapshot_block"] < len(ROOT) + len(DATA) - 4
    assert len(list(cloud.path.glob("ebs/snap-*"))) == 2


@pytest.mark.parametrize("change", ["a block that was put", "another block is there", "other options"])
def test_a_disk_that_changed_since_the_killed_run_is_refused_and_abandon_removes_what_it_left(
    disks: dict[str, Any], tmp_path: Path, change: str
) -> None:
    backend, log = amistore.MemoryBackend(), tmp_path / "import.log"
    calls = Calls(backend.ebs)
    error = amistore.BackendError("gone", operation="complete_snapshot", retryable=True)
    calls.fail("complete_snapshot", 1, error)
    with pytest.raises(amistore.BackendError):
        amistore.import_disks(disks, backend, name="web", log=log)
    options: dict[str, Any] = {}
    if change == "other options":
        options["fill_holes"] = True
    else:
        index = 3 if change == "a block that was put" else 100
        with open(str(disks["/dev/xvda"]), "r+b") as disk:
            disk.seek(index * BLOCK_SIZE)
            disk.write(b"changed")
    with pytest.raises((amistore.SourceChangedError, amistore.InvalidRequestError), match="abandon"):
        amistore.import_disks(disks, backend, name="web", log=log, **options)
    assert log.exists() and not backend.ec2.find_images("web")
    amistore.abandon(log, backend)
    assert not log.exists()


def test_a_disk_that_changes_while_the_next_one_is_read_is_refused_and_nothing_is_left(
    disks: dict[str, Any],
) -> None:
    backend = amistore.MemoryBackend()
    root = Path(str(disks["/dev/xvda"]))
    calls = Calls(backend.ebs)

    def change() -> None:
        with root.open("r+b") as disk:
            disk.seek(5 * MIB)
            disk.write(b"written meanwhile")

    calls.fail("put_snapshot_block", len(ROOT) + 10, change)
    with pytest.raises(amistore.SourceChangedError, match=r"root\.raw changed"):
        amistore.import_disks(disks, backend, name="web", workers=1)
    assert calls.failed
    assert not backend.ec2.find_images("web")
    assert calls.made["delete_snapshot"] == 2 and not calls.made["complete_snapshot"]


def test_a_sparse_disk_of_five_tebibytes_takes_no_more_memory_than_a_small_one(tmp_path: Path) -> None:
    disk = disk_of(tmp_path / "disk.raw", {0: images.noise(1), 10_000_000: images.noise(2)}, 5 * 1024 * GIB)
    backend = amistore.MemoryBackend()
    made = amistore.import_disks(disk, backend, name="web")
    assert imported(backend, made.image)["/dev/xvda"][1].keys() == {0, 10_000_000}
    assert made.image.snapshots[0].volume_size == 5 * 1024


def test_what_cannot_be_imported_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    backend, disk = amistore.MemoryBackend(), disk_of(tmp_path / "root.raw", ROOT, GIB + 1)
    calls = Calls(backend.ebs)
    twice = DiskSource(disk)
    for given, text in (
        (DiskSource(disk, volume_size=1), "needs 2 GiB, more than volume_size=1"),
        ({"/dev/xvda": twice, "/dev/sdf": twice}, "given twice"),
        ({}, "1 to 1024 disks, not 0"),
        (7, "disk must be a path"),
    ):
        with pytest.raises(amistore.InvalidRequestError, match=text):
            amistore.import_disks(given, backend, name="web")  # type: ignore[arg-type]
    assert not calls.made["start_snapshot"]
    with pytest.raises(amistore.InvalidRequestError, match="volume_size is a whole number"):
        DiskSource(disk, volume_size=0)
    with pytest.raises(amistore.InvalidRequestError, match=r"give its \.ebs"):
        amistore.import_snapshot(disk, backend)  # type: ignore[arg-type]


def test_a_source_is_closed_opened_again_and_sent_to_another_process(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    disk = DiskSource(disk_of(tmp_path / "root.raw", ROOT))
    for source in (disk, pickle.loads(pickle.dumps(disk))):
        for _ in range(2):
            with source:
                assert images.contents(source, source.snapshot_id) == (1, ROOT)
    assert set(os.listdir("/proc/self/fd")) == before


COMPRESSED = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    "": bytes,
}


@pytest.mark.parametrize(("suffix", "fill"), [*((each, False) for each in COMPRESSED), (".gz", True)])
def test_a_compressed_disk_becomes_a_snapshot_as_it_is_read(
    tmp_path: Path, aws: FakeAWS, caplog: pytest.LogCaptureFixture, suffix: str, fill: bool
) -> None:
    raw = disk_of(tmp_path / "disk.raw", ROOT, 100 * BLOCK_SIZE + 7)
    path = tmp_path / f"disk.raw{suffix}"
    path.write_bytes(COMPRESSED[suffix](raw.read_bytes()))
    backend = account(aws, snapshots=amistore.SnapshotSettings(encrypted=True))
    stream = amistore.DiskStream(path, volume_size=1)
    snapshot_id = amistore.import_snapshot(stream, backend.ebs, fill_holes=fill)
    found = aws.read_snapshot(snapshot_id)
    assert found.keys() == (set(range(GIB // BLOCK_SIZE)) if fill else {0, 3, 70, 71} - {71})
    assert all(content == ROOT.get(index, bytes(BLOCK_SIZE)) for index, content in found.items())
    assert ("fill_holes=True" in caplog.text) == (not fill)
    assert aws.snapshots[snapshot_id].description == f"Imported from disk.raw{suffix}"


@pytest.mark.parametrize("wrong", ["cut off", "too long", "put", "log"])
def test_a_stream_that_is_not_whole_leaves_no_snapshot(tmp_path: Path, wrong: str) -> None:
    raw = disk_of(tmp_path / "disk.raw", DATA, 90 * BLOCK_SIZE).read_bytes()
    content = gzip.compress(raw)
    if wrong == "too long":
        content += gzip.compress(bytes(GIB))
    backend = amistore.MemoryBackend()
    calls = Calls(backend.ebs)
    if wrong == "put":
        calls.fail("put_snapshot_block", 20, amistore.BackendError("gone", operation="put_snapshot_block"))
    stream = amistore.DiskStream(
        io.BytesIO(content[:-9] if wrong == "cut off" else content), volume_size=1, compression="gzip"
    )
    log = tmp_path / "log" if wrong == "log" else None
    with pytest.raises(amistore.AmistoreError, match=r"cut off|longer than the volume|gone|does not go"):
        amistore.import_snapshot(stream, backend.ebs, log=log)
    assert calls.made["delete_snapshot"] == calls.made["start_snapshot"] == (wrong != "log")
    assert not calls.made["complete_snapshot"]


@pytest.mark.parametrize("format", ["qcow2", "vmdk", "vhd", "vhdx", "vdi"])
def test_an_image_of_another_format_is_imported_to_the_content_id_of_the_raw_disk(
    tmp_path: Path, format: str
) -> None:
    if not shutil.which("qemu-img") and not os.environ.get("AMISTORE_REQUIRE_TOOLS"):
        pytest.skip("qemu-img is not installed")
    raw = disk_of(tmp_path / "disk.raw", {**ROOT, **DATA})
    path = tmp_path / f"disk.{format}"
    driver = "vpc" if format == "vhd" else format
    options = ["-o", "force_size=on"] if format == "vhd" else []
    subprocess.run(["qemu-img", "convert", "-O", driver, *options, raw, path], check=True)
    backend = amistore.MemoryBackend()
    # Which zeros are holes is not the same in all of them.
    with DiskSource(path, zeros="unlisted") as disk, DiskSource(raw, zeros="unlisted") as expected:
        # Their images have the same names, so that nothing but the blocks can differ.
        ids = [amistore.import_snapshot(each, backend.ebs) for each in (disk, expected)]
        packed = [amistore.pack(images.image([each.snapshot_id]), each) for each in (disk, expected)]
        for each in packed:
            for _ in each:
                pass
    assert packed[0].content_id == packed[1].content_id
    assert images.contents(backend.ebs, ids[0]) == images.contents(backend.ebs, ids[1])


def test_a_source_that_was_sent_to_another_process_refuses_a_disk_that_changed_since(tmp_path: Path) -> None:
    path = disk_of(tmp_path / "disk.raw", ROOT)
    disk = DiskSource(path)
    assert images.contents(disk, disk.snapshot_id) == (1, ROOT)
    sent = pickle.dumps(disk)
    with path.open("r+b") as file:
        file.seek(40 * BLOCK_SIZE)
        file.write(b"written meanwhile")
    other = pickle.loads(sent)
    with pytest.raises(amistore.SourceChangedError, match="not what another process has opened"):
        other.get_snapshot_block(other.snapshot_id, 0, "")


def a_tar(content: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        member = tarfile.TarInfo("disk.raw")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def a_zip(content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("disk.raw", content)
    return packed.getvalue()


FOREIGN: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "tar": a_tar,
    "zip": a_zip,
    "qcow2": lambda content: b"QFI\xfb\0\0\0\3" + content,
    "qed": lambda content: b"QED\0" + content,
    "dmg": lambda content: content + b"koly".ljust(512, b"\0"),
    "fixed vhd": lambda content: content + vhd_footer(),
}


def vhd_footer() -> bytes:
    footer = bytearray(b"conectix".ljust(512, b"\0"))
    footer[64:68] = (~sum(footer) & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(footer)


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("compressed", [False, True])
def test_a_stream_or_disk_of_another_format_is_refused_unless_its_bytes_are_wanted(
    tmp_path: Path, kind: str, compressed: bool
) -> None:
    content = FOREIGN[kind](images.noise(1) * 3)
    backend = amistore.MemoryBackend()
    calls = Calls(backend.ebs)
    given = gzip.compress(content) if compressed else content
    options: dict[str, Any] = {"volume_size": 1, "compression": "gzip" if compressed else None}
    with pytest.raises(amistore.InvalidRequestError, match=r'format="raw" takes its bytes'):
        amistore.import_snapshot(amistore.DiskStream(io.BytesIO(given), **options), backend.ebs)
    assert calls.made["delete_snapshot"] == calls.made["start_snapshot"] == 1
    stream = amistore.DiskStream(io.BytesIO(given), format="raw", **options)
    snapshot_id = amistore.import_snapshot(stream, backend.ebs)
    found = images.contents(backend.ebs, snapshot_id)[1]
    assert b"".join(found[index] for index in sorted(found))[: len(content)] == content
    if not compressed:
        (tmp_path / "disk").write_bytes(content)
        with pytest.raises(amistore.InvalidRequestError, match=r'format="raw" takes its bytes'):
            amistore.import_snapshot(tmp_path / "disk", backend.ebs)


def test_a_mapping_of_another_snapshot_is_refused_and_one_without_is_added(tmp_path: Path) -> None:
    disk, backend = disk_of(tmp_path / "disk.raw", ROOT), amistore.MemoryBackend()
    other = amistore.BlockDeviceMapping(
        device_name="/dev/sdh", ebs=amistore.EbsBlockDevice(snapshot_id="snap-0123456789abcdef0")
    )
    with pytest.raises(amistore.InvalidRequestError, match="/dev/sdh is on snap-0123456789abcdef0"):
        amistore.import_disks(disk, backend, name="web", block_device_mappings=[other])
    empty = amistore.BlockDeviceMapping(device_name="/dev/sdh", virtual_name="ephemeral0")
    made = amistore.import_disks(disk, backend, name="web", block_device_mappings=[empty])
    assert empty in made.image.block_device_mappings
