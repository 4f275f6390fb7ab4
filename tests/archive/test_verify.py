"""`verify` finds all damage, names each place, and raises only when asked."""

from __future__ import annotations

import io
import os
from pathlib import Path

import images
import pytest

import amistore
from amistore.container import layout
from amistore.container.layout import Layout
from amistore.container.records import seal

FORM = Layout(blocks_per_frame=1, blocks_per_segment=2)
VOLUMES = [(1, {i * 2: images.block(i + 1) for i in range(9)}), (1, {}), (1, {5: images.block(0)})]
CONTAINER = images.packed(VOLUMES, FORM)


def report(container: bytes, **arguments: object) -> amistore.VerifyReport:
    with amistore.open(io.BytesIO(container)) as archive:
        return archive.verify(**arguments)  # type: ignore[arg-type]


def flipped(*places: int) -> bytes:
    damaged = bytearray(CONTAINER)
    for place in places:
        damaged[place] ^= 1
    return bytes(damaged)


def frame_places() -> list[tuple[int, int, int]]:
    """Segment, offset and first block of each frame of the first volume."""
    places = []
    with amistore.open(io.BytesIO(CONTAINER)) as archive:
        for sequence in range(5):
            located = archive._container.segment(sequence)
            for number in range(len(located.frame_contents)):
                places.append((sequence, located.frame_offset(number), located.first_block(number)))
    return places


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("workers", [1, 3])
def test_an_intact_archive_has_no_findings(quick: bool, workers: int) -> None:
    found = report(CONTAINER, quick=quick, workers=workers)
    assert found.ok
    assert found.check() is found
    assert (found.quick, found.size, found.volumes, found.segments, found.blocks) == (
        quick,
        len(CONTAINER),
        3,
        6,
        10,
    )
    assert found.throughput > 0
    assert "intact" in str(found)
    assert found.content_id in str(found)


def test_a_small_archive_is_told_in_units_of_its_size() -> None:
    text = str(
        amistore.VerifyReport(
            name="ami.bin",
            quick=False,
            content_id="",
            size=4096,
            volumes=1,
            segments=1,
            blocks=2048,
            seconds=0.005,
            findings=(amistore.CorruptArchiveError("x"),),
        )
    )
    assert "DAMAGED, 1 finding\n" in text
    assert text.endswith("take another copy, or amistore.recover saves what is left")
    assert "1 volume, 1 segment, 2,048 blocks (1.0 GiB)" in text
    assert "4.0 KiB in 0.0050 s, 800.0 KiB/s" in text


@pytest.mark.parametrize("quick", [True, False])
def test_every_damaged_place_is_a_finding_of_its_own(quick: bool) -> None:
    frames = frame_places()
    descriptor = CONTAINER.index(b"AMISSEGD", CONTAINER.index(b"AMISSEGD") + 1)
    damaged = flipped(
        100,  # PREAMBLE
        CONTAINER.index(b"AMISVOLD") + 40,
        descriptor + 60,
        frames[0][1] + 20,
        frames[7][1] + 20,
        frames[8][1] + 20,
    )
    found = report(damaged, quick=quick)
    assert not found.ok
    assert [(each.record, each.segment, each.block_index) for each in found.findings] == [
        ("PREAMBLE", None, None),
        ("VOLD", None, None),
        ("frame", 0, frames[0][2]),
        ("SEGD", 1, None),
        ("frame", 3, frames[7][2]),
        ("frame", 4, frames[8][2]),
    ]
    assert [each.offset for each in found.findings[2:]] == [
        frames[0][1],
        descriptor - 8,
        frames[7][1],
        frames[8][1],
    ]
    assert f"offset {frames[8][1]}" in str(found)
    with pytest.raises(amistore.CorruptArchiveError):
        found.check()


def test_another_content_id_than_the_expected_one_is_a_finding() -> None:
    right = report(CONTAINER).content_id
    assert report(CONTAINER, expected_content_id=right.upper()).ok
    with pytest.raises(amistore.InvalidRequestError, match="64 hexadecimal digits"):
        report(CONTAINER, expected_content_id="abc")
    found = report(CONTAINER, expected_content_id="0" * 64)
    assert len(found.findings) == 1
    assert right in str(found)


def test_a_quick_check_refuses_to_prove_a_content_id() -> None:
    right = report(CONTAINER).content_id
    with pytest.raises(amistore.InvalidRequestError, match="reads no block"):
        report(CONTAINER, expected_content_id=right, quick=True)


def with_inserted(record: bytes, at: int) -> bytes:
    """The container with a record before what stands at `at`, index and foot made right for it."""
    from container.test_forgery import Pieces

    pieces = Pieces.of(CONTAINER)
    pieces.body.insert(at, (b"XTRA", record))
    data = pieces.front
    offsets = type(pieces.index.offsets)("Q")
    volumes = []
    import attrs

    for kind, piece in pieces.body:
        if kind == layout.SEGD:
            offsets.append(len(data))
        elif kind == layout.VOLD:
            volumes.append(attrs.evolve(pieces.index.volumes[len(volumes)], offset=len(data)))
        data += piece
    pieces.index = attrs.evolve(pieces.index, offsets=offsets, volumes=tuple(volumes))
    return pieces.build(rebuild_index=False)


@pytest.mark.parametrize("place", range(10))
def test_the_readers_agree_on_where_a_record_of_unknown_type_may_stand(place: int) -> None:
    """Before a volume or a segment, not before the end: for the streaming and the seekable reader."""
    record = bytearray(seal(b"XTRA", b"later"))
    record[18:20] = b"\0\0"  # not critical
    import crcmod.predefined

    record[-4:] = crcmod.predefined.mkPredefinedCrcFun("crc-32c")(bytes(record[:-4])).to_bytes(4, "little")
    container = with_inserted(bytes(record), place)
    accepted = []
    for read in (images.read_streaming, images.read_seekable, images.read_quickly):
        try:
            read(container)
            accepted.append(True)
        except amistore.ArchiveError:
            accepted.append(False)
    assert accepted == [place < 9] * 3


def test_bytes_that_are_no_record_between_two_segments_are_refused() -> None:
    for junk in (b"junk", bytes(30), seal(layout.PAD, b"", bytes(8))):
        found = report(with_inserted(junk, 3))
        assert [each.record for each in found.findings] == ["record"]


def test_pads_are_checked_by_both_readers() -> None:
    form = Layout(blocks_per_frame=1, blocks_per_segment=1, segments_per_shard=3)
    container = images.packed([(1, {i: images.block(i) for i in range(8)})], form)
    assert container.count(b"AMISPAD") == 2
    assert report(container).ok
    start = container.index(b"AMISPAD") - 8
    size = int.from_bytes(container[start + 4 : start + 8], "little") + 8
    for place in (start + 100, start + 5_000_000, start + size - 1):
        damaged = bytearray(container)
        damaged[place] ^= 1
        with pytest.raises(amistore.CorruptArchiveError):
            images.read_streaming(bytes(damaged))
        assert [each.record for each in report(bytes(damaged)).findings] == ["PAD"]


def test_a_file_that_changes_while_it_is_open_is_found(tmp_path: Path) -> None:
    path = tmp_path / "ami.bin"
    path.write_bytes(CONTAINER)
    with amistore.open(path) as archive:
        frames = [place for sequence, place, _ in frame_places() if sequence == 0]
        with path.open("r+b") as file:
            for place in (*frames, len(CONTAINER) - 40):
                file.seek(place)
                file.write(b"changed")
        for read in (archive.verify, archive.volumes[0].open().read):
            with pytest.raises(amistore.SourceChangedError, match="changed while it was open"):
                read()


def test_a_file_that_only_its_time_of_change_says_to_have_changed_is_read(tmp_path: Path) -> None:
    path = tmp_path / "ami.bin"
    path.write_bytes(CONTAINER)
    with amistore.open(path) as archive:
        os.utime(path, ns=(1, 1))
        assert archive.verify().ok
        assert archive.volumes[0].open().read(8) == images.block(1)[:8]


def test_bytes_that_change_unseen_while_they_are_open_are_found() -> None:
    content = io.BytesIO(CONTAINER)
    with amistore.open(content) as archive:
        content.seek(-40, io.SEEK_END)
        content.write(b"changed")
        assert "changed while it was open" in str(archive.verify(quick=True))


def test_a_truncated_file_is_a_finding_not_an_error() -> None:
    content = io.BytesIO(CONTAINER)
    with amistore.open(content) as archive:
        content.truncate(8000)
        found = archive.verify()
        assert found.findings
        assert isinstance(found.findings[-1], amistore.TruncatedArchiveError)


def test_progress_tells_how_far_it_is() -> None:
    seen: list[amistore.Progress] = []
    report(CONTAINER, progress=seen.append)
    assert [each.blocks for each in seen] == [2, 4, 6, 8, 9, 10]
    assert {(each.phase, each.total_blocks) for each in seen} == {(amistore.pipeline.Phase.VERIFY, 10)}
    assert [each.stored_bytes for each in seen] == sorted(each.stored_bytes for each in seen)


def test_another_intact_archive_is_told_from_a_damaged_one() -> None:
    damaged = bytearray(CONTAINER)
    damaged[CONTAINER.index(b"AMISSEGD") + 30] ^= 1
    told = []
    for content in (CONTAINER, bytes(damaged)):
        with amistore.open(io.BytesIO(content)) as archive:
            report = archive.verify(expected_content_id="0" * 64, workers=1)
            told.append(str(report).splitlines()[0].partition(": ")[2])
            assert report.another and not report.ok
            with pytest.raises(amistore.CorruptArchiveError, match="another archive"):
                report.check()
            assert not archive.verify(expected_content_id=archive.content_id, workers=1).another
    assert told == [
        "another archive than the expected one, intact",
        "another archive than the expected one, DAMAGED, 1 finding",
    ]
