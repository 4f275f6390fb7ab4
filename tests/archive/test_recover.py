"""What survives damage comes back, byte for byte; what does not is told, and never passed off as anything."""

from __future__ import annotations

import contextlib
import io
import os
import random
from collections.abc import Mapping
from pathlib import Path

import attrs
import images
import pytest
import zstandard

import amistore
from amistore import BLOCK_SIZE
from amistore.archive import pieces, recovery
from amistore.archive.recovery import RecoveryReport
from amistore.container import frames as coded
from amistore.container import layout, members, segments
from amistore.container.frames import Frame, FrameEncoder
from amistore.container.index import Index
from amistore.container.layout import Layout
from amistore.container.members import prelude
from amistore.container.plan import PlannedVolume
from amistore.container.records import Foot, SegmentDescriptor, VolumeDescriptor, open_envelope
from amistore.container.runs import Runs
from amistore.testing import FaultyBackend

LONG = bool(os.environ.get("AMISTORE_LONG"))
FORM = Layout(blocks_per_frame=1, blocks_per_segment=2)
FIRST = {i * 3 % 1900 + i // 2: images.block(i + 1) for i in range(80)} | {1999: images.block(0)}
SECOND = {i: images.block(i + 500) for i in range(24)}
VOLUMES: list[tuple[int, Mapping[int, bytes]]] = [(1, FIRST), (2, {}), (1, SECOND)]
CONTAINER = images.packed(VOLUMES, FORM, tags=(amistore.Tag(key="Name", value="web"),))
NAMES = sorted(images.Volumes(VOLUMES).volumes)
CONTENTS = dict(zip(NAMES, (dict(blocks) for _, blocks in VOLUMES), strict=True))


@attrs.frozen
class Part:
    """A part of the container: its kind, where it is, and which frame of which segment."""

    kind: str
    start: int
    end: int
    blocks: tuple[tuple[str, int], ...] = ()  # that are lost with it


def parts(container: bytes) -> list[Part]:
    foot = Foot.parse(container[-layout.FOOT_SIZE :])
    index = Index.parse(container[foot.index_offset : foot.index_offset + foot.index_length])
    head = container.index(b"AMISHEAD") - 8
    found = [
        Part("preamble", 0, head),
        Part("head", head, head + len(index.head)),
        Part("manifest", head + len(index.head), index.front_end),
        Part("index", foot.index_offset, foot.index_offset + foot.index_length),
        Part("tail", foot.data_end, foot.index_offset),
        Part("foot", len(container) - layout.FOOT_SIZE, len(container)),
    ]
    for volume in index.volumes:
        size = open_envelope(container[volume.offset : volume.offset + 20]).size
        found.append(Part("VOLD", volume.offset, volume.offset + size))
        found.append(Part("map", volume.offset + size, volume.offset + volume.length))
    for start in index.offsets:
        size = open_envelope(container[start : start + 20]).size
        descriptor = SegmentDescriptor.parse(container[start : start + size])
        name = index.volumes[descriptor.volume].snapshot_id
        indexes = [(name, each) for each in descriptor.runs.indexes()]
        found.append(Part("SEGD", start, start + size, tuple(indexes)))
        at = start + size
        for number, frame in enumerate(descriptor.frames):
            blocks = indexes[number * FORM.blocks_per_frame :][: FORM.blocks_per_frame]
            found.append(Part("frame", at, at + frame.size, tuple(blocks)))
            at += frame.size
    return found


PARTS = parts(CONTAINER)


def test_the_container_has_fifty_segments_and_more() -> None:
    assert sum(part.kind == "SEGD" for part in PARTS) >= 50


def damage(container: bytes, places: list[int], chance: random.Random) -> bytes:
    damaged = bytearray(container)
    for place in places:
        damaged[place] ^= chance.randrange(1, 256)
    return bytes(damaged)


def check(damaged: bytes, lost: set[tuple[str, int]], tmp_path: Path) -> RecoveryReport:
    """Recover; prove that all but `lost` came back, and that those are told."""
    target = tmp_path / "recovered.bin"
    target.unlink(missing_ok=True)
    report = amistore.recover(io.BytesIO(damaged), target, workers=1)
    told = {
        (volume.snapshot_id, index)
        for volume in report.volumes
        for each in volume.lost
        for index in range(each.first_block, each.end)
    }
    listed = {(name, index) for name, blocks in CONTENTS.items() for index in blocks}
    assert lost <= told
    assert told & listed == lost
    if all(volume.exact for volume in report.volumes):
        assert told == lost
    with amistore.open(target) as archive:
        archive.verify().check()
        assert [volume.snapshot_id for volume in archive.volumes] == NAMES
        assert [volume.size >> 30 for volume in archive.volumes] == [size for size, _ in VOLUMES]
    backend = amistore.MemoryBackend()
    with target.open("rb") as file:
        image = amistore.unpack(file, backend.ebs, allow_lost=True, workers=1)
    for name, snapshot_id in pairs(image):
        _, blocks = images.contents(backend.ebs, snapshot_id)
        kept = {index: each for index, each in CONTENTS[name].items() if (name, index) not in lost}
        assert blocks == kept
    return report


def pairs(image: amistore.Image) -> list[tuple[str, str]]:
    """Archived and restored snapshot id of each mapping."""
    return [
        (NAMES[number], mapping.ebs.snapshot_id)
        for number, mapping in enumerate(image.block_device_mappings)
        if mapping.ebs is not None and mapping.ebs.snapshot_id is not None
    ]


def losses(places: list[int]) -> set[tuple[str, int]]:
    return {block for part in PARTS for block in part.blocks for at in places if part.start <= at < part.end}


def copies_of_the_manifest(places: list[int]) -> int:
    """How many of the two are hit."""
    manifest = next(part for part in PARTS if part.kind == "manifest")
    size = manifest.end - manifest.start
    content = CONTAINER[manifest.start : manifest.end]
    second = CONTAINER.index(content, manifest.end)
    return sum(any(start <= at < start + size for at in places) for start in (manifest.start, second))


@pytest.mark.parametrize("kind", sorted({part.kind for part in PARTS}))
def test_one_damaged_place_of_each_kind_loses_only_itself(kind: str, tmp_path: Path) -> None:
    chance = random.Random(kind)
    candidates = [part for part in PARTS if part.kind == kind]
    for part in chance.sample(candidates, min(3, len(candidates))):
        place = chance.randrange(part.start, part.end)
        report = check(damage(CONTAINER, [place], chance), losses([place]), tmp_path)
        assert report.complete is not bool(losses([place]))
        assert all(volume.exact for volume in report.volumes) or kind in ("map", "SEGD")


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("seed", range(50 if LONG else 4))
def test_damaged_places_anywhere_lose_only_themselves(count: int, seed: int, tmp_path: Path) -> None:
    chance = random.Random(f"{count} {seed}")
    kinds = sorted({part.kind for part in PARTS})
    while True:
        chosen = []
        for _ in range(count):
            kind = chance.choice(kinds)
            chosen.append(chance.choice([part for part in PARTS if part.kind == kind]))
        places = [chance.randrange(part.start, part.end) for part in chosen]
        if copies_of_the_manifest(places) < 2:
            break
    check(damage(CONTAINER, places, chance), losses(places), tmp_path)


def test_both_copies_of_head_may_be_lost(tmp_path: Path) -> None:
    chance = random.Random(1)
    first = CONTAINER.index(b"AMISHEAD")
    second = CONTAINER.index(b"AMISHEAD", first + 1)
    check(damage(CONTAINER, [first + 30, second + 30], chance), set(), tmp_path)


def test_front_and_tail_may_be_cut_off_in_turn(tmp_path: Path) -> None:
    vold = next(part for part in PARTS if part.kind == "VOLD")
    check(bytes(vold.start) + CONTAINER[vold.start :], set(), tmp_path)
    tail = next(part for part in PARTS if part.kind == "tail")
    check(CONTAINER[: tail.start], set(), tmp_path)


def test_a_hole_in_the_middle_loses_what_it_covers(tmp_path: Path) -> None:
    segments = [part for part in PARTS if part.kind == "SEGD"]
    start, end = segments[10].start, segments[14].start
    lost = {block for part in segments[10:14] for block in part.blocks}
    check(CONTAINER[:start] + bytes(end - start) + CONTAINER[end:], lost, tmp_path)
    check(CONTAINER[:start] + CONTAINER[end:], lost, tmp_path)  # bytes that are gone, not zeros


def test_an_archive_cut_in_its_first_volume_names_all_of_the_rest_as_lost(tmp_path: Path) -> None:
    segments = [part for part in PARTS if part.kind == "SEGD"]
    report = amistore.recover(io.BytesIO(CONTAINER[: segments[20].start]), tmp_path / "new.bin")
    lost = {
        (volume.snapshot_id, index)
        for volume in report.volumes
        for each in volume.lost
        for index in range(each.first_block, each.end)
    }
    expected = {block for part in segments[20:] for block in part.blocks}
    assert expected <= lost
    assert [volume.recovered for volume in report.volumes] == [40, 0, 0]
    assert [volume.exact for volume in report.volumes] == [True, False, False]
    with amistore.open(tmp_path / "new.bin") as archive, pytest.raises(amistore.LostBlocksError):
        archive.volumes[2].open().read(1)


def test_an_undamaged_archive_is_recovered_whole_and_has_the_same_content_id(tmp_path: Path) -> None:
    report = check(CONTAINER, set(), tmp_path)
    assert report.complete
    assert report.findings == ()
    with amistore.open(io.BytesIO(CONTAINER)) as archive:
        assert report.content_id == archive.content_id


def test_without_any_manifest_the_error_says_so_and_leaves_no_file(tmp_path: Path) -> None:
    manifest = next(part for part in PARTS if part.kind == "manifest")
    second = CONTAINER.index(CONTAINER[manifest.start : manifest.end], manifest.end)
    damaged = damage(CONTAINER, [manifest.start + 40, second + 40], random.Random(1))
    with pytest.raises(amistore.CorruptArchiveError, match="neither copy of the manifest"):
        amistore.recover(io.BytesIO(damaged), tmp_path / "new.bin")
    for other in (b"", b"hello", bytes(100_000)):
        with pytest.raises(amistore.CorruptArchiveError, match="no amistore container"):
            amistore.recover(io.BytesIO(other), tmp_path / "new.bin")
    assert list(tmp_path.iterdir()) == []


def test_a_container_on_the_guests_disk_is_not_taken_for_a_part_of_this_one(tmp_path: Path) -> None:
    inner = images.packed([(1, {i: images.noise(i) for i in range(3)})], FORM)
    guest = {i: inner[i * BLOCK_SIZE :][:BLOCK_SIZE].ljust(BLOCK_SIZE, b"\0") for i in range(4)}
    outer = images.packed([(1, guest)], FORM)
    assert outer.count(b"AMISSEGD") > 1
    # The outer segment's first frame is damaged, so the scan looks into it.
    start = outer.index(b"AMISSEGD")
    damaged = bytearray(outer)
    damaged[start + 3000] ^= 1
    report = amistore.recover(io.BytesIO(bytes(damaged)), tmp_path / "new.bin")
    assert [volume.recovered for volume in report.volumes] == [3]
    with amistore.open(tmp_path / "new.bin") as archive, archive.volumes[0].open() as disk:
        disk.seek(BLOCK_SIZE)
        assert disk.read(3 * BLOCK_SIZE) == guest[1] + guest[2] + guest[3]


@pytest.fixture
def lossy(tmp_path: Path) -> Path:
    """An archive that lost blocks of its first and last volume."""
    frames = [part for part in PARTS if part.kind == "frame"]
    places = [frames[0].start + 30, frames[-1].start + 30]
    damaged = damage(CONTAINER, places, random.Random(3))
    amistore.recover(io.BytesIO(damaged), tmp_path / "lossy.bin")
    return tmp_path / "lossy.bin"


def test_restoring_lost_blocks_needs_to_be_allowed(lossy: Path) -> None:
    backend = amistore.MemoryBackend()
    with lossy.open("rb") as file, pytest.raises(amistore.LostBlocksError, match="allow_lost=True"):
        amistore.unpack(file, backend.ebs)
    assert images.leftovers(backend) == []
    with lossy.open("rb") as file:  # the volume that lost nothing may be had without
        amistore.unpack(file, backend.ebs, snapshots=NAMES[1:2])
    assert len(images.leftovers(backend)) == 1


def test_a_lost_block_is_read_as_an_error_and_its_neighbours_as_they_were(lossy: Path) -> None:
    with amistore.open(lossy) as archive:
        volume = archive.volumes[2]
        (lost,) = volume.lost_blocks
        with volume.open() as disk:
            with pytest.raises(amistore.LostBlocksError) as caught:
                disk.read()
            assert caught.value.block_index == lost.first_block
            disk.seek((lost.first_block - 1) * BLOCK_SIZE)
            assert disk.read(BLOCK_SIZE) == SECOND[lost.first_block - 1]
            disk.seek(lost.end * BLOCK_SIZE)
            assert disk.read(100) == bytes(100)
        assert "LOST" in repr(volume)


def test_extracting_marks_lost_blocks_and_writes_a_map_for_ddrescue(lossy: Path, tmp_path: Path) -> None:
    with amistore.open(lossy) as archive:
        with pytest.raises(amistore.LostBlocksError):
            archive.extract(tmp_path / "disks")
        assert not (tmp_path / "disks").exists()
        paths = archive.extract(tmp_path / "disks", allow_lost=True)
        lost = archive.volumes[2].lost_blocks[0]
    assert [path.name for path in paths] == [
        f"{NAMES[0]}.incomplete.raw",
        f"{NAMES[1]}.raw",
        f"{NAMES[2]}.incomplete.raw",
    ]
    with paths[2].open("rb") as disk:
        disk.seek(lost.first_block * BLOCK_SIZE)
        for _ in range(lost.block_count):
            assert disk.read(BLOCK_SIZE).startswith(b"amistore: this block was lost")
    rows = [
        line.split()
        for line in paths[2].with_name(f"{paths[2].name}.map").read_text().splitlines()
        if not line.startswith("#")
    ][1:]
    assert [
        (int(row[0], 16) // BLOCK_SIZE, int(row[1], 16) // BLOCK_SIZE) for row in rows if row[2] == "-"
    ] == [(lost.first_block, lost.block_count)]
    assert sum(int(row[1], 16) for row in rows) == paths[2].stat().st_size


def test_tar_shows_a_volume_with_lost_blocks_under_a_name_that_tells(lossy: Path) -> None:
    import tarfile

    import zstandard

    with lossy.open("rb") as file:
        stream = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        with tarfile.open(fileobj=io.BytesIO(stream.read())) as tar:
            assert [Path(name).name for name in tar.getnames()][2:] == [
                f"{NAMES[0]}.incomplete.raw",
                f"{NAMES[1]}.raw",
                f"{NAMES[2]}.incomplete.raw",
            ]


def test_recovering_a_recovered_archive_keeps_what_it_had_lost(lossy: Path, tmp_path: Path) -> None:
    again = amistore.recover(lossy, tmp_path / "again.bin")
    with amistore.open(lossy) as before, amistore.open(tmp_path / "again.bin") as after:
        assert before.content_id == after.content_id == again.content_id
        assert [v.lost_blocks for v in before.volumes] == [v.lost_blocks for v in after.volumes]
    assert not again.complete


def test_the_report_can_be_read(tmp_path: Path) -> None:
    frame = [part for part in PARTS if part.kind == "frame"][3]
    report = amistore.recover(
        io.BytesIO(damage(CONTAINER, [frame.start + 20], random.Random(5))), tmp_path / "new.bin"
    )
    text = str(report)
    assert "0.5 MiB were lost" in text
    assert f"{NAMES[0]}: 80 blocks recovered, 1 lost" in text


def test_a_target_that_exists_is_not_touched(tmp_path: Path) -> None:
    target = tmp_path / "new.bin"
    target.write_bytes(b"precious")
    with pytest.raises(amistore.AlreadyExistsError):
        amistore.recover(io.BytesIO(CONTAINER), target)
    assert target.read_bytes() == b"precious"
    with pytest.raises(amistore.NotFoundError, match="no such folder"):
        amistore.recover(io.BytesIO(CONTAINER), tmp_path / "none" / "new.bin")
    with pytest.raises(amistore.InvalidRequestError, match="writes to a path"):
        amistore.recover(io.BytesIO(CONTAINER), io.BytesIO())  # type: ignore[arg-type]


def test_a_volume_whose_descriptor_and_index_are_gone_is_known_by_its_tar_headers(tmp_path: Path) -> None:
    volume = [part for part in PARTS if part.kind == "VOLD"][2]
    damaged = bytearray(CONTAINER)
    damaged[volume.start : volume.end] = bytes(volume.end - volume.start)
    index = next(part for part in PARTS if part.kind == "index")
    damaged[index.end - 1] ^= 1
    report = check(bytes(damaged), set(), tmp_path)
    assert report.volumes[2].exact


def test_a_file_of_overlapping_beginnings_of_records_is_given_up() -> None:
    start = CONTAINER[: CONTAINER.index(b"AMISHEAD") - 8]
    envelope = layout.ENVELOPE.pack(layout.SKIPPABLE_MAGIC, 65_000, b"AMIS", b"SEGD", 1, 1)
    with pytest.raises(amistore.CorruptArchiveError, match="beginnings of records"):
        amistore.recover(io.BytesIO(start + envelope * 50_000), "never-made.bin")
    assert not Path("never-made.bin").exists()


class CountingBytes(io.BytesIO):
    """Bytes that count how many of them were read."""

    count = 0

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        self.count += len(content)
        return content


@pytest.mark.parametrize(
    "spam",
    [
        layout.ENVELOPE.pack(layout.SKIPPABLE_MAGIC, 2**28, b"AMIS", b"INDX", 1, 1),
        SegmentDescriptor(
            file_id=bytes(16),
            volume=0,
            sequence=0,
            ordinal=0,
            runs=Runs([(0, 1)]),
            frames=(Frame(8 << 20, 1),),
            digests=(bytes(32),),
        ).encode(),
    ],
    ids=["INDX", "SEGD"],
)
def test_many_records_that_claim_much_are_not_followed_each_to_its_end(spam: bytes, tmp_path: Path) -> None:
    small = images.packed([(1, {0: images.block(1)})], FORM)
    content = CountingBytes(small + spam * 5000)
    with contextlib.suppress(amistore.CorruptArchiveError):
        amistore.recover(content, tmp_path / "new.bin", workers=1)
    assert content.count < 100 * (len(small) + len(spam) * 5000)


def test_small_frames_that_decode_to_much_are_decoded_within_a_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = images.packed([(1, {0: images.block(1)})], FORM)
    start = small.index(b"AMISVOLD") - 8
    size = open_envelope(small[start : start + 20]).size
    vold = VolumeDescriptor.parse(small[start : start + size])
    bomb = zstandard.ZstdCompressor(write_checksum=True).compress(b"1\n" * (4 << 20))
    lure = attrs.evolve(vold, frames=(Frame.of(bomb),)).encode() + bomb
    damaged = small[:start] + lure * 60 + small[start + 200 :]
    assert len(damaged) < 80_000
    decoded = 0
    decompress = coded.decompress

    def counted(frame: bytes, content_size: int, crc32: int) -> bytes:
        nonlocal decoded
        decoded += content_size
        return decompress(frame, content_size, crc32)

    for module in (coded, members, pieces, segments):
        monkeypatch.setattr(module, "decompress", counted)
    with contextlib.suppress(amistore.CorruptArchiveError):
        amistore.recover(io.BytesIO(damaged), tmp_path / "new.bin", workers=1)
    assert decoded < 20 << 20


def appended(
    container: bytes, volume: VolumeDescriptor, planned: PlannedVolume, image: amistore.Image
) -> bytes:
    """The container without its tail, and a VOLD of another file with a valid prelude behind it."""
    content = b"".join(prelude(image, planned))
    frames = FrameEncoder(3, check=True).encode_all([content])
    forged = attrs.evolve(
        volume,
        file_id=b"\xee" * 16,
        blocks=planned.runs.blocks,
        runs=len(planned.runs),
        runs_digest=planned.runs.digest(),
        content=len(content),
        frames=tuple(Frame.of(frame) for frame in frames),
    )
    foot = Foot.parse(container[-layout.FOOT_SIZE :])
    return container[: foot.data_end] + forged.encode() + b"".join(frames)


@pytest.mark.parametrize("runs", [[(0, 2), (100, 4)], [], [(5, 1)]])
def test_the_sparse_map_of_another_file_is_not_believed(runs: list[tuple[int, int]], tmp_path: Path) -> None:
    blocks = {i: images.block(i + 1) for i in range(6)}
    source = images.Volumes([(1, blocks)])
    image = images.image(source.volumes)
    container = b"".join(amistore.pack(image, source, options=amistore.PackOptions(layout=FORM)))
    start = container.index(b"AMISVOLD") - 8
    size = open_envelope(container[start : start + 20]).size
    volume = VolumeDescriptor.parse(container[start : start + size])
    planned = PlannedVolume(
        number=0, snapshot_id=volume.snapshot_id, size=1 << 30, runs=Runs(runs), first_segment=0
    )
    damaged = bytearray(appended(container, volume, planned, image))
    report = amistore.recover(io.BytesIO(bytes(damaged)), tmp_path / "one.bin")
    assert (report.complete, report.volumes[0].recovered) == (True, 6)
    # Not even where the archive's own map is lost.
    damaged[start + size + 50] ^= 1
    report = amistore.recover(io.BytesIO(bytes(damaged)), tmp_path / "two.bin")
    assert images.read_blocks((tmp_path / "two.bin").read_bytes()) == {
        (volume.snapshot_id, index): content for index, content in blocks.items()
    }


@pytest.mark.parametrize("damage_at", ["HEAD", "VOLD", "HEAD and VOLD"])
def test_a_subset_of_the_snapshots_keeps_its_name_without_the_tail(damage_at: str, tmp_path: Path) -> None:
    source = images.Volumes([(1, {0: images.block(1)}), (1, {7: images.block(2), 9: images.block(3)})])
    image = images.image(source.volumes)
    second = sorted(source.volumes)[1]
    container = b"".join(
        amistore.pack(image, source, snapshots=[second], options=amistore.PackOptions(layout=FORM))
    )
    damaged = bytearray(container[: Foot.parse(container[-layout.FOOT_SIZE :]).data_end])
    for kind in damage_at.split(" and "):
        damaged[damaged.index(b"AMIS" + kind.encode()) + 40] ^= 1
    report = amistore.recover(io.BytesIO(bytes(damaged)), tmp_path / "new.bin")
    assert images.read_blocks((tmp_path / "new.bin").read_bytes()) == {
        (second, index): source.volumes[second][1][index] for index in (7, 9)
    }
    # Without HEAD nobody can tell that the other snapshot was not packed.
    assert report.complete is (damage_at == "VOLD")


def test_very_many_losses_are_told_in_ranges_that_hold_what_was_not_listed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_MOST_RANGES", 500)  # of 10,000: six GiB of blocks would be lost
    blocks = {i * 2: images.block(1) for i in range(600)}
    blocks[30_000] = images.block(2)
    form = Layout(blocks_per_frame=16, blocks_per_segment=128)
    container = bytearray(images.packed([(16, blocks)], form))
    place = -1
    while (place := container.find(b"AMISSEGD", place + 1)) >= 0:
        if container.find(b"AMISSEGD", place + 1) >= 0:  # all but the last segment
            container[place + 30] ^= 1
    report = amistore.recover(io.BytesIO(bytes(container)), tmp_path / "new.bin")
    (volume,) = report.volumes
    assert not volume.exact
    assert len(volume.lost) == 1
    lost = volume.lost[0]
    kept = images.read_blocks((tmp_path / "new.bin").read_bytes())
    assert {index for _, index in kept} | {index for index in blocks if index < lost.end} == set(blocks)
    assert all(content == blocks[index] for (_, index), content in kept.items())


def test_a_segment_with_more_frames_than_its_layout_has_is_left_alone(tmp_path: Path) -> None:
    start = CONTAINER.index(b"AMISSEGD") - 8
    size = open_envelope(CONTAINER[start : start + 20]).size
    descriptor = SegmentDescriptor.parse(CONTAINER[start : start + size])
    forged = attrs.evolve(descriptor, frames=descriptor.frames * 3).encode()
    foot = Foot.parse(CONTAINER[-layout.FOOT_SIZE :])
    damaged = CONTAINER[:start] + forged + CONTAINER[start + size : foot.data_end]
    report = amistore.recover(io.BytesIO(damaged), tmp_path / "new.bin")
    assert report.bytes_lost == 2 * BLOCK_SIZE


@pytest.mark.parametrize("number", [2, 1024, 2**32 - 1])
def test_a_segment_of_a_volume_that_cannot_be_is_left_alone(number: int, tmp_path: Path) -> None:
    small = images.packed([(1, {0: images.block(1), 9: images.block(2)})], FORM)
    start = small.index(b"AMISSEGD") - 8
    size = open_envelope(small[start : start + 20]).size
    descriptor = SegmentDescriptor.parse(small[start : start + size])
    forged = attrs.evolve(descriptor, volume=number).encode()
    damaged = bytearray(small[:start] + forged + small[start + size :][:-300])
    damaged[damaged.index(b"AMISHEAD") + 30] ^= 1
    report = amistore.recover(io.BytesIO(bytes(damaged)), tmp_path / "new.bin")
    assert report.volumes[0].recovered == 0
    assert not report.complete


def test_what_is_damaged_on_its_way_only_is_not_lost(tmp_path: Path) -> None:
    cloud = amistore.MemoryBackend()
    cloud.s3.create_bucket("bucket")
    cloud.s3.put_object("bucket", "key", CONTAINER)
    with amistore.open(io.BytesIO(CONTAINER)) as archive:
        content_id = archive.content_id
    fired = 0
    calls = range(1, 60, 1 if LONG else 6)
    for number in calls:
        faulty = FaultyBackend(cloud)
        fault = faulty.add_fault("get_object_range", "flipped", calls=[number])
        target = tmp_path / f"{number}.bin"
        store = amistore.RetryingBackend(faulty, amistore.RetryPolicy(base_delay=0.001)).s3
        report = amistore.recover(store.at("bucket", "key"), target, workers=1)
        assert report.complete
        assert report.content_id == content_id
        assert not report.findings
        fired += fault.fired
    assert fired == len(calls)
