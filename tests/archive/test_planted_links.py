"""Where the archive chose a file's name, a link that somebody planted there is not followed."""

from __future__ import annotations

import io
import os
from pathlib import Path

import images
import pytest

import amistore
from amistore import BLOCK_SIZE
from amistore.model import BlockRange

CONTAINER = images.packed([(1, {0: images.block(1)})])
SNAPSHOT = "snap-00000000000000000"
DISK = f"{SNAPSHOT}.raw"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "there").write_bytes(b"precious")
    return folder


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}], ids=str)
@pytest.mark.parametrize("leads_to", ["there", "missing"])
@pytest.mark.parametrize("name", [DISK, "ami.json", f"{DISK}.part"])
def test_extract_writes_nothing_through_a_link(
    tmp_path: Path, outside: Path, name: str, leads_to: str, options: dict[str, bool]
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / name).symlink_to(outside / leads_to)
    with amistore.open(io.BytesIO(CONTAINER)) as archive:
        assert archive.volumes[0].snapshot_id == SNAPSHOT
        if name.endswith(".part") and "resume" not in options:
            archive.extract(target, **options)  # the name is not used
        else:
            with pytest.raises((amistore.InvalidRequestError, amistore.BackendError)):
                archive.extract(target, **options)
    assert os.listdir(outside) == ["there"]
    assert (outside / "there").read_bytes() == b"precious"
    assert (target / name).is_symlink()


def test_the_map_of_lost_blocks_replaces_a_link_or_is_refused(tmp_path: Path, outside: Path) -> None:
    lost = amistore.Snapshot(
        snapshot_id=SNAPSHOT, volume_size=1, lost_blocks=(BlockRange(first_block=3, block_count=1),)
    )
    container = images.packed([(1, {0: images.block(1)})], snapshots=(lost,))
    target = tmp_path / "target"
    target.mkdir()
    (target / f"{SNAPSHOT}.incomplete.raw.map").symlink_to(outside / "there")
    with amistore.open(io.BytesIO(container)) as archive, pytest.raises(amistore.InvalidRequestError):
        archive.extract(target, allow_lost=True, overwrite=True)
    assert (outside / "there").read_bytes() == b"precious"


def test_a_folder_that_the_caller_names_may_be_a_link(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "link").symlink_to(outside)
    with amistore.open(io.BytesIO(CONTAINER)) as archive:
        (disk,) = archive.extract(tmp_path / "link")
        archive.extract(tmp_path / "link", resume=True)
    with disk.open("rb") as file:
        assert file.read(BLOCK_SIZE) == images.block(1)
    assert sorted(os.listdir(outside)) == ["ami.json", DISK, "there"]


def test_recover_refuses_a_link_to_nothing_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "missing")
    with pytest.raises(amistore.InvalidRequestError, match="no file that can be replaced"):
        amistore.recover(io.BytesIO(b"of which nothing can be recovered"), tmp_path / "link")
