"""`diff` and `compare` tell exactly what differs, from descriptors alone."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping

import attrs
import images
import pytest
from hypothesis import given
from hypothesis import strategies as st

import amistore
from amistore import BLOCK_SIZE
from amistore.archive import archive as archives
from amistore.archive.reader import ContainerFile
from amistore.backends.ranges import RangeReader
from amistore.container.layout import Layout
from amistore.model import BlockRange

FORM = Layout(blocks_per_frame=2, blocks_per_segment=4)
BLOCKS = {i: images.block(i + 1) for i in range(12)} | {2047: images.block(0)}


def indexes(ranges: tuple[BlockRange, ...]) -> list[int]:
    return [index for each in ranges for index in range(each.first_block, each.end)]


def packed(blocks: Mapping[int, bytes], **members: object) -> io.BytesIO:
    return io.BytesIO(images.packed([(1, blocks)], FORM, **members))


def test_equal_archives_do_not_differ() -> None:
    found = images.difference(packed(BLOCKS), packed(BLOCKS))
    assert found.equal
    assert found.bytes_changed == 0
    assert [volume.equal for volume in found.volumes] == [True]


def test_changed_added_and_removed_blocks_are_told_apart() -> None:
    after = {index: content for index, content in BLOCKS.items() if index not in (3, 4)}
    after |= {7: images.block(70), 8: images.block(80), 100: images.block(0), 101: images.block(9)}
    after[2047] = images.block(5)
    found = images.difference(packed(BLOCKS), packed(after))
    (volume,) = found.volumes
    assert indexes(volume.changed) == [7, 8, 2047]
    assert volume.changed[0] == BlockRange(first_block=7, block_count=2)
    assert (indexes(volume.added), indexes(volume.filled)) == ([101], [100])
    assert indexes(volume.removed) == [3, 4]
    assert found.bytes_changed == volume.bytes_changed == 6 * BLOCK_SIZE
    assert not found.equal
    assert str(found) == (
        f"/dev/sda ({volume.before} -> {volume.after}): "
        "3 blocks changed, 1 block added, 1 block filled, 2 blocks removed; 3.0 MiB"
    )


@given(
    st.dictionaries(st.integers(0, 30), st.integers(0, 3), max_size=20),
    st.dictionaries(st.integers(0, 30), st.integers(0, 3), max_size=20),
)
def test_any_two_volumes(before: dict[int, int], after: dict[int, int]) -> None:
    found = images.difference(
        packed({index: images.block(seed) for index, seed in before.items()}),
        packed({index: images.block(seed) for index, seed in after.items()}),
        workers=1,
    )
    (volume,) = found.volumes
    both = sorted(before.keys() & after.keys())
    assert indexes(volume.changed) == [index for index in both if before[index] != after[index]]
    new = sorted(after.keys() - before.keys())
    assert indexes(volume.added) == [index for index in new if after[index]]
    assert indexes(volume.filled) == [index for index in new if not after[index]]
    assert indexes(volume.removed) == sorted(before.keys() - after.keys())


def test_attributes_are_told_by_their_path() -> None:
    before = packed(BLOCKS, tags=(amistore.Tag(key="Name", value="a"), amistore.Tag(key="Old", value="x")))
    after = packed(BLOCKS, tags=(amistore.Tag(key="Name", value="b"),), boot_mode="uefi")
    found = images.difference(before, after)
    assert [(each.name, each.before, each.after) for each in found.attributes] == [
        ("BootMode", None, "uefi"),
        ("Tags[Name].Value", "a", "b"),
        ("Tags[Old].Key", "Old", None),
        ("Tags[Old].Value", "x", None),
    ]
    assert "Tags[Name].Value: 'a' -> 'b'" in str(found)
    assert not found.equal


def test_volumes_are_paired_by_device_and_what_is_left_is_added_or_removed() -> None:
    cloud = amistore.MemoryBackend()
    root = images.snapshot(cloud.ebs, 1, BLOCKS)
    grown = images.snapshot(cloud.ebs, 2, BLOCKS)
    data = images.snapshot(cloud.ebs, 1, {5: images.block(5)})
    before = images.image([root, data])
    after = images.image([grown])
    first, second = (io.BytesIO(b"".join(amistore.pack(each, cloud.ebs))) for each in (before, after))
    found = images.difference(first, second)
    by_device = {volume.devices: volume for volume in found.volumes}
    disk = by_device[("/dev/sda",)]
    assert (disk.before, disk.after, disk.size_before >> 30, disk.size_after >> 30) == (root, grown, 1, 2)
    assert (disk.bytes_changed, disk.equal) == (0, False)
    assert "1 -> 2 GiB" in str(disk)
    gone = by_device[("/dev/sdb",)]
    assert (gone.before, gone.after, indexes(gone.removed)) == (data, None, [5])
    back = images.difference(second, first)
    assert [(each.before, indexes(each.added)) for each in back.volumes if each.before is None] == [
        (None, [5])
    ]


class Counting(RangeReader):
    name = "counted"

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.size = len(content)
        self.bytes_read = 0

    def read(self, offset: int, length: int) -> bytes:
        self.bytes_read += length
        return self.content[offset : offset + length]


def test_no_payload_is_read() -> None:
    noise = {i: images.noise(i) for i in range(8)}
    readers = [
        Counting(images.packed([(1, blocks)], FORM)) for blocks in (noise, noise | {9: images.noise(9)})
    ]
    first, second = (archives.Archive(ContainerFile(reader)) for reader in readers)
    for reader in readers:
        reader.bytes_read = 0
    found = images.difference(first, second)
    assert indexes(found.volumes[0].added) == [9]
    assert all(reader.bytes_read < 2000 for reader in readers)


def test_an_archive_equals_the_snapshot_it_was_made_of_and_the_one_restored_from_it() -> None:
    cloud = amistore.MemoryBackend()
    snapshot_id = images.snapshot(cloud.ebs, 1, BLOCKS)
    container = b"".join(amistore.pack(images.image([snapshot_id]), cloud.ebs))
    assert images.difference(io.BytesIO(container), cloud.ebs).equal
    restored = amistore.unpack(io.BytesIO(container), cloud.ebs)
    found = images.difference(
        io.BytesIO(container), cloud.ebs, snapshots={snapshot_id: restored.snapshot_ids[0]}
    )
    assert found.equal
    assert found.volumes[0].after == restored.snapshot_ids[0]


def test_a_restored_image_is_compared_device_by_device() -> None:
    cloud = amistore.MemoryBackend()
    ids = [images.snapshot(cloud.ebs, 1, {number: images.block(number)}) for number in range(5)]
    container = b"".join(amistore.pack(images.image(ids), cloud.ebs))
    restored = amistore.unpack(io.BytesIO(container), cloud.ebs)
    found = images.difference(io.BytesIO(container), cloud.ebs, snapshots=restored)
    assert found.equal
    assert len(found.volumes) == 5
    twice = images.image([ids[0], ids[0]])
    container = b"".join(amistore.pack(twice, cloud.ebs))
    with pytest.raises(amistore.InvalidRequestError, match="on several devices"):
        images.difference(io.BytesIO(container), cloud.ebs, snapshots=images.image(ids[:2]))
    less = attrs.evolve(restored, block_device_mappings=restored.block_device_mappings[1:])
    with pytest.raises(amistore.InvalidRequestError, match="has no snapshot for"):
        images.difference(io.BytesIO(container), cloud.ebs, snapshots=less)


def test_a_filled_copy_has_filled_blocks_and_no_others_that_differ() -> None:
    cloud = amistore.MemoryBackend()
    container = packed(BLOCKS)
    image = amistore.unpack(io.BytesIO(container.getvalue()), cloud.ebs, fill_holes=True)
    found = images.difference(container, cloud.ebs, snapshots=image)
    (volume,) = found.volumes
    assert indexes(volume.filled) == sorted(set(range(2048)) - set(BLOCKS))
    assert (volume.changed, volume.added, volume.removed, found.bytes_changed) == ((), (), (), 0)
    assert not found.equal  # a filled copy's content id is another
    assert "2,035 blocks filled; 0.0 MiB" in str(found)
    # The other way round zeros are missing, which is no filling: under encryption noise stands there.
    kept = io.BytesIO(b"".join(amistore.pack(image, cloud.ebs)))
    (back,) = images.difference(kept, container).volumes
    assert (indexes(back.removed), back.filled) == (indexes(volume.filled), ())


def test_a_live_snapshot_that_differs_is_told_block_by_block() -> None:
    cloud = amistore.MemoryBackend()
    snapshot_id = images.snapshot(cloud.ebs, 1, BLOCKS)
    other = images.snapshot(cloud.ebs, 2, {**BLOCKS, 5: images.block(50), 60: images.block(1)})
    container = b"".join(amistore.pack(images.image([snapshot_id]), cloud.ebs))
    seen: list[amistore.Progress] = []
    found = images.difference(
        io.BytesIO(container), cloud.ebs, snapshots={snapshot_id: other}, progress=seen.append
    )
    (volume,) = found.volumes
    assert (indexes(volume.changed), indexes(volume.added), indexes(volume.removed)) == ([5], [60], [])
    assert volume.size_after == 2 * amistore.GIB
    assert seen[-1].phase is amistore.pipeline.Phase.COMPARE
    assert seen[-1].blocks == seen[-1].total_blocks == 13


def test_a_source_that_lies_about_its_checksums_does_not_make_things_equal() -> None:
    class Lying(images.Volumes):
        def get_snapshot_block(
            self, snapshot_id: str, block_index: int, block_token: str
        ) -> amistore.backends.SnapshotBlock:
            got = super().get_snapshot_block(snapshot_id, block_index, block_token)
            return attrs.evolve(got, checksum=hashlib.sha256(BLOCKS[block_index]).digest())

    source = Lying([(1, {**BLOCKS, 2: images.block(99)})])
    found = images.difference(packed(BLOCKS), source)
    assert indexes(found.volumes[0].changed) == [2]


def test_what_was_lost_is_unknown_and_never_equal() -> None:
    lost = (amistore.model.BlockRange(first_block=100, block_count=2),)
    known = amistore.Snapshot(snapshot_id="snap-00000000000000000", lost_blocks=lost)
    container = packed(BLOCKS, snapshots=(known,))
    live = images.difference(container, images.Volumes([(1, BLOCKS)]))
    assert (live.equal, live.bytes_changed, live.volumes[0].unknown) == (False, 0, lost)
    assert "2 blocks unknown" in str(live)
    found = images.difference(packed(BLOCKS), container)
    assert (found.volumes[0].equal, found.volumes[0].unknown) == (False, lost)
    # What stands on the other side in their place is neither added nor changed.
    other = images.difference(container, images.Volumes([(1, {**BLOCKS, 101: images.block(5)})]))
    assert (other.volumes[0].added, other.volumes[0].unknown) == ((), lost)


def test_requests_that_make_no_sense_are_refused() -> None:
    cloud = amistore.MemoryBackend()
    with pytest.raises(amistore.NotFoundError):
        images.difference(packed(BLOCKS), cloud.ebs)
    with pytest.raises(amistore.InvalidRequestError, match="no volume of the archive"):
        images.difference(packed(BLOCKS), cloud.ebs, snapshots={"snap-00000000000000009": "snap-00000000"})
    with pytest.raises(amistore.InvalidRequestError, match=r"give its \.ebs"):
        images.difference(packed(BLOCKS), cloud)  # type: ignore[arg-type]
    with pytest.raises(amistore.CorruptArchiveError):
        images.difference(packed(BLOCKS), io.BytesIO(b"no archive"))
