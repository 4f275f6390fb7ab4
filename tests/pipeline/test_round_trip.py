"""What is packed and unpacked is what was there: R15, shapes of volumes, hostile metadata."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path

import attrs
import images
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import Buffer

import amistore
from amistore.backends.memory import _MemoryEBS
from amistore.model import decode_manifest, encode_manifest

LONG = bool(os.environ.get("AMISTORE_LONG"))
GIB_BLOCKS = amistore.GIB // amistore.BLOCK_SIZE
SHAPES: dict[str, list[tuple[int, Mapping[int, bytes]]]] = {
    "no volume": [],
    "an empty snapshot": [(1, {})],
    "the first block only": [(1, {0: images.block(1)})],
    "the last block only": [(1, {GIB_BLOCKS - 1: images.block(1)})],
    "every block, all zero": [(1, {i: images.block(0) for i in range(GIB_BLOCKS)})],
    "every other block": [(1, {i: images.block(i % 5) for i in range(0, 200, 2)})],
    "listed zeros among holes": [(1, {3: images.block(0), 4: images.block(4), 9: images.block(0)})],
    "incompressible": [(1, {i: images.noise(i) for i in range(20)})],
    "64 TiB with four blocks": [
        (
            65536,
            {
                0: images.block(1),
                7 * 2**20: images.block(0),
                2**26: images.block(2),
                2**27 - 1: images.block(3),
            },
        )
    ],
    "many volumes": [(1 + i % 3, {i: images.block(i)} if i % 3 else {}) for i in range(40)],
    "empty ones around": [(1, {}), (2, {5: images.block(5)}), (1, {}), (1, {})],
}


class Sharing(_MemoryEBS):
    """Keeps equal blocks once, so that a volume of a GiB of them takes little memory."""

    def __init__(self) -> None:
        super().__init__(page_size=100)
        self._kept: dict[bytes, bytes] = {}

    def put_snapshot_block(
        self, snapshot_id: str, block_index: int, content: Buffer, checksum: bytes
    ) -> None:
        super().put_snapshot_block(snapshot_id, block_index, content, checksum)
        blocks = self._snapshots[snapshot_id].blocks
        blocks[block_index] = self._kept.setdefault(checksum, blocks[block_index])


def restored(container: bytes) -> list[tuple[int, dict[int, bytes]]]:
    """Size and blocks of each volume of the image that unpacking gives, in order."""
    ebs = Sharing()
    image = amistore.unpack(io.BytesIO(container), ebs)
    mappings = [m.ebs.snapshot_id for m in image.block_device_mappings if m.ebs and m.ebs.snapshot_id]
    return [images.contents(ebs, snapshot_id) for snapshot_id in mappings]


CASES = [
    pytest.param(shape, form, id=f"{shape}-{name}")
    for shape in SHAPES
    for name, form in (("default", None), ("small", images.SMALL))
    if LONG or (shape, name) != ("every block, all zero", "small")  # seconds of sums alone
]


@pytest.mark.parametrize(("shape", "form"), CASES)
def test_every_listed_block_and_no_other_comes_back(shape: str, form: amistore.Layout | None) -> None:
    volumes = SHAPES[shape][:26]  # device names of `images.image` are letters
    container = images.packed(volumes, form)
    assert restored(container) == [(size, dict(blocks)) for size, blocks in volumes]
    images.read_seekable(container)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 3),
            st.dictionaries(st.integers(0, GIB_BLOCKS - 1), st.integers(0, 3), max_size=12),
        ),
        max_size=4,
    ),
    st.integers(1, 16),
    st.integers(1, 4),
)
def test_any_volumes_in_any_layout_come_back(
    drawn: list[tuple[int, dict[int, int]]], per_frame: int, frames: int
) -> None:
    volumes = [(size, {i: images.block(seed) for i, seed in blocks.items()}) for size, blocks in drawn]
    form = amistore.Layout(blocks_per_frame=per_frame, blocks_per_segment=per_frame * frames)
    container = images.packed(volumes, form)
    assert restored(container) == [(size, dict(sorted(blocks.items()))) for size, blocks in volumes]
    with amistore.open(io.BytesIO(container)) as archive:
        for volume, (size, blocks) in zip(archive.volumes, volumes, strict=True):
            assert volume.size == size * amistore.GIB
            with volume.open() as disk:
                for index in [*blocks, 0, 1, size * GIB_BLOCKS - 1]:
                    disk.seek(index * amistore.BLOCK_SIZE)
                    assert disk.read(amistore.BLOCK_SIZE) == blocks.get(index, images.block(0))


HOSTILE = ["\n", "\0", "../../etc/passwd", "ä€𝄞\u202e", "x" * 10_000, '"\\', "ami-1\r\n", " ", "-rf"]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_and_tags_come_back_unchanged(text: str) -> None:
    source = images.Volumes([(1, {1: images.block(1)})])
    (snapshot_id,) = source.volumes
    image = images.image(
        [snapshot_id],
        name=text,
        description=text,
        tags=(amistore.Tag(key=text, value=text),),
        snapshots=(amistore.Snapshot(snapshot_id=snapshot_id, description=text, volume_size=1),),
    )
    container = b"".join(amistore.pack(image, source))
    with amistore.open(io.BytesIO(container)) as archive:
        assert archive.image == image
        archive.verify().check()


def test_a_snapshot_mapped_twice_is_one_volume_and_ephemeral_disks_stay() -> None:
    source = images.Volumes([(1, {1: images.block(1)})])
    (snapshot_id,) = source.volumes
    twice = images.image([snapshot_id, snapshot_id])
    ephemeral = amistore.BlockDeviceMapping(device_name="/dev/sdz", virtual_name="ephemeral0")
    image = attrs.evolve(twice, block_device_mappings=(*twice.block_device_mappings, ephemeral))
    backend = amistore.MemoryBackend()
    back = amistore.unpack(io.BytesIO(b"".join(amistore.pack(image, source))), backend.ebs)
    assert len(images.leftovers(backend)) == 1
    assert [m.ebs.snapshot_id for m in back.block_device_mappings if m.ebs] == images.leftovers(backend) * 2
    assert back.block_device_mappings[2] == ephemeral


def test_a_subset_of_snapshots_is_packed_and_restored_and_the_rest_left_out() -> None:
    source = images.Volumes([(1, {i: images.block(i + 1)}) for i in range(3)])
    first, second, third = source.volumes
    image = images.image(source.volumes)
    container = b"".join(amistore.pack(image, source, snapshots=[third, first]))
    with amistore.open(io.BytesIO(container)) as archive:
        assert [volume.snapshot_id for volume in archive.volumes] == [first, third]
        assert archive.image == image
        archive.verify().check()
    backend = amistore.MemoryBackend()
    back = amistore.unpack(io.BytesIO(container), backend.ebs, snapshots=[third])
    (restored_id,) = images.leftovers(backend)
    assert images.contents(backend.ebs, restored_id) == (1, {2: images.block(3)})
    assert [m.device_name for m in back.block_device_mappings] == ["/dev/sdc"]
    with pytest.raises(amistore.InvalidRequestError, match="snap-00000000000000009"):
        amistore.pack(image, source, snapshots=["snap-00000000000000009"])
    with pytest.raises(amistore.InvalidRequestError, match=second):
        amistore.unpack(io.BytesIO(container), backend.ebs, snapshots=[second])


def test_a_restored_volume_has_the_same_content_id_under_its_new_name() -> None:
    first = amistore.MemoryBackend()
    old = images.snapshot(first.ebs, 1, {5: images.block(1), 6: images.block(0)})
    container = b"".join(amistore.pack(images.image([old]), first.ebs))
    second = amistore.MemoryBackend()
    back = amistore.unpack(io.BytesIO(container), second.ebs)
    again = b"".join(
        amistore.pack(back, second.ebs, level=9, options=amistore.PackOptions(layout=images.SMALL))
    )
    with amistore.open(io.BytesIO(container)) as a, amistore.open(io.BytesIO(again)) as b:
        assert a.volumes[0].snapshot_id != b.volumes[0].snapshot_id
        assert a.volumes[0].content_id == b.volumes[0].content_id
        assert a.content_id != b.content_id  # the manifest names other snapshots


def test_unknown_members_of_a_newer_manifest_go_through_an_archive_unchanged() -> None:
    source = images.Volumes([(1, {})])
    image = images.image(source.volumes, extra={"ManifestVersion": "1.9", "Quantum": {"Spin": [1, None]}})
    with amistore.open(io.BytesIO(b"".join(amistore.pack(image, source)))) as archive:
        assert archive.image == image
        assert decode_manifest(encode_manifest(archive.image)) == image


@pytest.mark.parametrize(
    ("position", "length"),
    [(0, 10), (amistore.GIB - 5, 100), (3 * amistore.BLOCK_SIZE - 7, 20), (amistore.GIB, 1), (2**40, 1)],
)
def test_a_volume_reads_like_the_disk_file_at_any_place(position: int, length: int, tmp_path: Path) -> None:
    blocks = {2: images.noise(2), 3: images.noise(3), 2047: images.noise(4)}
    with (
        (tmp_path / "disk.raw").open("w+b") as disk,
        amistore.open(io.BytesIO(images.packed([(1, blocks)]))) as archive,
    ):
        disk.truncate(amistore.GIB)
        for index, content in blocks.items():
            disk.seek(index * amistore.BLOCK_SIZE)
            disk.write(content)
        file = io.BufferedReader(archive.volumes[0].open())
        for each in (file, disk):
            each.seek(position)
        assert file.read(length) == disk.read(length)
