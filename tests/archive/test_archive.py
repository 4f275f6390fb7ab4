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
        assert repr(archive.volumes[0]) == "<Volume snap-00000000000000000: 1 GiB, 1 block>"
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
