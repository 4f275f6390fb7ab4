"""How an archive shows itself, and that it closes what it opened."""

from __future__ import annotations

import io
import os
from html.parser import HTMLParser
from pathlib import Path

import images
import pytest

import amistore

HOSTILE = "<script>alert('1')</script> & \"quoted\""


class Cells(HTMLParser):
    """The tags and the texts of some HTML."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_notebook_shows_a_table_in_which_guest_text_is_only_text() -> None:
    container = images.packed([(1, {0: images.block(1), 9: images.block(2)})], name=HOSTILE)
    with amistore.open(io.BytesIO(container)) as archive:
        cells = Cells()
        cells.feed(archive._repr_html_())
    assert cells.tags == {"table", "tr", "th", "td"}
    assert f"ami-0123456789abcdef0 {HOSTILE}" in cells.texts
    for text in (archive.volumes[0].snapshot_id, "/dev/sda", "1 GiB", "1.0 MiB", archive.content_id):
        assert text in cells.texts


def test_reprs_tell_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "ami.bin").write_bytes(images.packed([(1, {0: images.block(1)})]))
    with amistore.open(tmp_path / "ami.bin") as archive:
        size = archive.size
        assert repr(archive) == (
            f"<Archive {tmp_path / 'ami.bin'}: ami-0123456789abcdef0, 1 volume, 1 block in {size} bytes>"
        )
        assert repr(archive.volumes[0]) == "<Volume /dev/sda snap-00000000000000000: 1 GiB, 1 block>"
        assert archive.volumes[0].device_names == ("/dev/sda",)


def test_a_closed_archive_is_a_typed_error_and_a_callers_file_stays_open(tmp_path: Path) -> None:
    path = tmp_path / "ami.bin"
    path.write_bytes(images.packed([(1, {0: images.block(1)})]))
    archive = amistore.open(path)
    archive.close()
    archive.close()
    with pytest.raises(amistore.BackendError, match="closed"):
        archive.volumes[0].open().read(1)
    with path.open("rb") as file:
        with amistore.open(file):
            pass
        assert not file.closed


def test_what_cannot_be_opened_leaves_no_file_open(tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"junk")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(amistore.CorruptArchiveError):
            amistore.open(tmp_path / "junk")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_pipe_and_a_folder_are_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(amistore.InvalidRequestError, match="neither a file nor a block device"):
            amistore.open(path)


@pytest.fixture
def three_devices(tmp_path: Path) -> Path:
    """The second of two snapshots is the root device, the first is mapped twice."""
    source = images.Volumes([(1, {0: images.block(1)}), (2, {0: images.block(2)})])
    data, root = source.volumes
    image = images.image([data, root, data], root_device_name="/dev/sdb1")
    path = tmp_path / "ami.bin"
    path.write_bytes(b"".join(amistore.pack(image, source)))
    return path


def test_the_root_volume_comes_first_and_volumes_are_found_by_device_and_by_snapshot(
    three_devices: Path,
) -> None:
    with amistore.open(three_devices) as archive:
        root, data = archive.volumes
        assert (root.device_names, data.device_names) == (("/dev/sdb",), ("/dev/sda", "/dev/sdc"))
        assert root.open().read(amistore.BLOCK_SIZE) == images.block(2)
        assert archive.root_volume is root
        assert [archive.volume(name) for name in ("/dev/sdb", root.snapshot_id)] == [root, root]
        assert [archive.volume(name) for name in ("/dev/sda", "/dev/sdc", data.snapshot_id)] == [data] * 3
        assert repr(data) == f"<Volume /dev/sda /dev/sdc {data.snapshot_id}: 1 GiB, 1 block>"
        for name in ("/dev/sdb1", "snap-0123456789abcdef0", ""):
            with pytest.raises(amistore.NotFoundError, match="/dev/sdb, /dev/sda, /dev/sdc"):
                archive.volume(name)


def test_extracted_disks_have_their_snapshots_names_in_the_order_of_the_volumes(
    three_devices: Path, tmp_path: Path
) -> None:
    with amistore.open(three_devices) as archive:
        paths = archive.extract(tmp_path / "disks")
        assert [path.name for path in paths] == [f"{each.snapshot_id}.raw" for each in archive.volumes]


def test_a_root_volume_that_is_not_known_or_not_there_is_not_found(tmp_path: Path) -> None:
    source = images.Volumes([(1, {0: images.block(1)}), (1, {0: images.block(2)})])
    first, second = source.volumes
    unknown, absent = tmp_path / "unknown.bin", tmp_path / "absent.bin"
    image = images.image([first, second], root_device_name="/dev/xvda")
    unknown.write_bytes(b"".join(amistore.pack(image, source)))
    absent.write_bytes(b"".join(amistore.pack(images.image([first, second]), source, snapshots=[second])))
    with amistore.open(unknown) as archive:
        assert [volume.snapshot_id for volume in archive.volumes] == [first, second]
        with pytest.raises(amistore.NotFoundError, match="/dev/xvda: take a volume by its device, /dev/sda"):
            archive.root_volume  # noqa: B018
    told = "no volume '/dev/sda' in the archive"
    with amistore.open(absent) as archive, pytest.raises(amistore.NotFoundError, match=told):
        archive.root_volume  # noqa: B018


def test_an_error_of_the_callers_file_that_is_of_ours_is_told_as_it_is() -> None:
    store = amistore.MemoryBackend().s3
    store.create_bucket("archive")
    store.put_object("archive", "ami.bin", images.packed([(1, {0: images.block(1)})]))
    with amistore.open(store.open_object("archive", "ami.bin")) as archive:
        store.put_object("archive", "ami.bin", images.packed([(1, {0: images.block(2)})]))
        with pytest.raises(amistore.SourceChangedError):
            archive.verify()
