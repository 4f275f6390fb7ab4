"""A machine boots from its archive, where it lies and after a restore, and finds its files as they were.

Some minutes, with Debian's packages: ``nox -s boot``. Its figures are in docs/booting.md.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import boto3
import pytest
from archive.machines import Boot, Machine, boot, make_machine, noise, require_tools
from backends.aws.accounts import QUICK
from mounts import require

import amistore
from amistore import BLOCK_SIZE, MIB, AWSBackend
from amistore.archive import NBDServer
from amistore.testing.aws import FakeAWS

pytestmark = [
    pytest.mark.skipif(not os.environ.get("AMISTORE_LONG"), reason="takes minutes: nox -s boot"),
    pytest.mark.xdist_group("boot"),
]
ROOT, DATA = "/dev/xvda", "/dev/sdf"
RANGE_SERVER = Path(__file__).parents[2] / "examples" / "range_server.py"


@attrs.frozen
class Stored:
    """A machine, the archive of its AMI, and what storing it gave."""

    machine: Machine
    path: Path
    content_id: str


def account(aws: FakeAWS, **options: Any) -> AWSBackend:
    given = aws.client_options()
    url, region = given.pop("endpoint_url"), given["region_name"]
    urls = {"ec2": url, "ebs": url}
    session = boto3.Session(**given)
    return AWSBackend(session, region_name=region, endpoint_urls=urls, retries=QUICK, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("boot")
    yield path
    shutil.rmtree(path)  # a GiB, which pytest would keep


@pytest.fixture(scope="module")
def stored(folder: Path) -> Stored:
    """A machine of two disks, imported as an AMI and stored."""
    require_tools()
    machine = make_machine(folder)
    path = folder / "machine.bin"
    with FakeAWS(seed=1) as aws:
        cloud = account(aws)
        made = amistore.import_disks({ROOT: machine.root, DATA: machine.data}, cloud, name="machine")
        kept = amistore.store(made.image_id, cloud, path)
    used = sum(disk.stat().st_blocks * 512 for disk in (machine.root, machine.data))
    show("an archive", f"{size(path)} of two disks with {used / MIB:.0f} MiB of data")
    return Stored(machine=machine, path=path, content_id=kept.content_id)


def show(what: str, figures: str) -> None:
    print(f"\n{what}: {figures}", flush=True)


def size(path: Path) -> str:
    return f"{path.stat().st_size / MIB:.1f} MiB"


def assert_booted(booted: Boot, machine: Machine) -> None:
    assert "Linux version" in booted.text  # its boot loader gave the kernel the right console
    assert booted.sums == machine.sums
    assert "WRITTEN" in booted.text


def served(server: NBDServer) -> list[tuple[str, str]]:
    return [(server.uri(name), "raw") for name in (ROOT, DATA)]


def test_the_disks_themselves_boot(stored: Stored) -> None:
    booted = boot([(str(stored.machine.root), "raw"), (str(stored.machine.data), "raw")])
    assert_booted(booted, stored.machine)
    show("the raw disks", f"{booted.seconds:.1f} s until the marker")


@pytest.mark.parametrize("place", [{}, {"port": 0}], ids=["unix", "tcp"])
def test_a_machine_boots_from_an_archive_on_a_disk(stored: Stored, place: dict[str, int]) -> None:
    with amistore.open(stored.path) as archive, archive.serve_nbd(**place) as server:  # type: ignore[arg-type]
        booted = boot(served(server))
        assert server.errors == ()
    assert_booted(booted, stored.machine)
    how = "TCP" if place else "a Unix socket"
    show(f"the archive on a disk, NBD by {how}", f"{booted.seconds:.1f} s until the marker")


def test_a_machine_boots_from_an_archive_behind_http_which_gives_a_part_of_it(stored: Stored) -> None:
    spec = importlib.util.spec_from_file_location("range_server", RANGE_SERVER)
    assert spec is not None and spec.loader is not None
    range_server = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(range_server)
    with (
        range_server.serve(stored.path) as (url, sizes),
        amistore.open(url) as archive,
        archive.serve_nbd() as server,
    ):
        booted = boot(served(server))
        assert server.errors == ()
    assert_booted(booted, stored.machine)
    whole = stored.path.stat().st_size
    assert sum(sizes) < whole
    given = f"{sum(sizes) / MIB:.1f} of {size(stored.path)} in {len(sizes)} answers"
    show("the archive behind HTTP", f"{booted.seconds:.1f} s until the marker; {given}")


def test_a_machine_meets_damage_as_an_error_of_the_file_that_has_it(stored: Stored, folder: Path) -> None:
    damaged = folder / "damaged.bin"
    shutil.copyfile(stored.path, damaged)
    with amistore.open(damaged) as archive, damaged.open("r+b") as file:
        place = place_of(archive, DATA, noise(3)[2 * MIB :][:64])
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1]))
    with amistore.open(damaged) as archive, archive.serve_nbd() as server:
        booted = boot(served(server))
        assert {type(error) for error in server.errors} == {amistore.CorruptArchiveError}
    assert "/srv/data/noise-3: Input/output error" in booted.text
    assert "/srv/data/noise-3" not in booted.sums
    assert booted.sums.items() < stored.machine.sums.items()
    lost = len(stored.machine.sums) - len(booted.sums)
    show("a flipped bit", f"{lost} of {len(stored.machine.sums)} files cannot be read, none is wrong")


def place_of(archive: amistore.Archive, device: str, content: bytes) -> int:
    """The offset in an archive of a byte in the frame that holds this content of a disk."""
    volume = archive.volume(device)
    with volume.open() as disk:
        index = next(index for index in range(volume.size // BLOCK_SIZE) if content in disk.read(BLOCK_SIZE))
    where = volume._reader.locate(index)
    assert isinstance(where, tuple)
    segment = archive._container.segment(where[0])
    frames = segment.descriptor.frames
    return segment.payload + sum(each.size for each in frames[: where[1]]) + frames[where[1]].size // 2


def test_a_machine_that_was_restored_under_encryption_boots_as_qcow2(stored: Stored, folder: Path) -> None:
    machine = stored.machine
    raw = {ROOT: machine.root, DATA: machine.data}
    with FakeAWS(seed=2) as aws:
        other = account(aws, snapshots=amistore.SnapshotSettings(encrypted=True))
        restored = amistore.restore(
            stored.path, other, name="again", expected_content_id=stored.content_id, fill_holes=True
        )
        for mapping in restored.image.block_device_mappings:
            assert mapping.ebs is not None and mapping.ebs.snapshot_id is not None
            assert aws.snapshots[mapping.ebs.snapshot_id].encrypted
            with raw[mapping.device_name].open("rb") as content:  # a volume of it has no noise anywhere
                volume = aws.read_volume(mapping.ebs.snapshot_id)
                assert all(block == content.read(BLOCK_SIZE) for block in volume)
                assert not content.read(1)
        amistore.store(restored.image_id, other, folder / "again.bin")
    copies = {name: folder / f"{disk.stem}.qcow2" for name, disk in raw.items()}
    with amistore.open(folder / "again.bin") as archive:
        for name, copy in copies.items():
            archive.volume(name).extract(copy, format="qcow2")
            compare = [require("qemu-img"), "compare", "-f", "raw", "-F", "qcow2", str(raw[name]), str(copy)]
            subprocess.run(compare, check=True, timeout=120, stdout=subprocess.DEVNULL)
    booted = boot([(str(copy), "qcow2") for copy in copies.values()])
    assert_booted(booted, machine)
    sizes = " and ".join(size(copy) for copy in copies.values())
    show("qcow2 after a restore", f"{booted.seconds:.1f} s until the marker; files of {sizes}")
