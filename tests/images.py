"""Small images and containers for tests of the container and the pipeline."""

from __future__ import annotations

import functools
import hashlib
import io
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import amistore
from amistore.archive.comparison import Difference
from amistore.container.layout import Layout

SMALL = Layout(blocks_per_frame=2, blocks_per_segment=4)
"""A layout with many segments and frames in little data."""


@functools.lru_cache(64)  # volumes of thousands of equal blocks take one block's memory
def block(seed: int) -> bytes:
    """A block that compresses to some 700 bytes and is unique to its seed; zeros for seed 0."""
    if not seed:
        return bytes(amistore.BLOCK_SIZE)
    return (random.Random(seed).randbytes(600) * 1000)[: amistore.BLOCK_SIZE]


def noise(seed: int, size: int = amistore.BLOCK_SIZE) -> bytes:
    """A block that does not compress."""
    return random.Random(seed).randbytes(size)


def snapshot(ebs: amistore.backends.BlockSink, size: int, blocks: Mapping[int, bytes]) -> str:
    """A completed snapshot of `size` GiB with these blocks."""
    snapshot_id = ebs.start_snapshot(size)
    linear = hashlib.sha256()
    for index in sorted(blocks):
        digest = hashlib.sha256(blocks[index]).digest()
        ebs.put_snapshot_block(snapshot_id, index, blocks[index], digest)
        linear.update(digest)
    ebs.complete_snapshot(snapshot_id, len(blocks), linear.digest())
    return snapshot_id


def image(snapshot_ids: Iterable[str], **members: object) -> amistore.Image:
    """An image that maps these snapshots."""
    mappings = tuple(
        amistore.BlockDeviceMapping(
            device_name=f"/dev/sd{chr(97 + number)}",
            ebs=amistore.EbsBlockDevice(snapshot_id=snapshot_id, volume_size=9),
        )
        for number, snapshot_id in enumerate(snapshot_ids)
    )
    given = {
        "image_id": "ami-0123456789abcdef0",
        "name": "web",
        "creation_date": "2026-01-02T03:04:05.000Z",
        "root_device_name": "/dev/sda",
        "block_device_mappings": mappings,
        **members,
    }
    return amistore.Image(**given)  # type: ignore[arg-type]


def contents(ebs: amistore.backends.BlockSource, snapshot_id: str) -> tuple[int, dict[int, bytes]]:
    """Size in GiB and every listed block of a snapshot."""
    size = next(ebs.pages(snapshot_id)).volume_size
    return size, dict(blocks_of(ebs, snapshot_id))


def blocks_of(ebs: amistore.backends.BlockSource, snapshot_id: str) -> Iterator[tuple[int, bytes]]:
    """Every listed block of a snapshot."""
    for page in ebs.pages(snapshot_id):
        for each in page.blocks:
            got = ebs.get_snapshot_block(snapshot_id, each.block_index, each.block_token)
            yield each.block_index, bytes(got.content)


class Volumes(amistore.backends.BlockSource):
    """A source of given volumes, each a size in GiB and blocks, under ids that ascend."""

    def __init__(self, volumes: Iterable[tuple[int, Mapping[int, bytes]]]) -> None:
        self.volumes = {f"snap-{number:017x}": volume for number, volume in enumerate(volumes)}

    def list_snapshot_blocks(
        self, snapshot_id: str, *, next_token: str | None = None
    ) -> amistore.backends.BlockPage:
        size, blocks = self.volumes[snapshot_id]
        return amistore.backends.BlockPage(
            volume_size=size, blocks=[amistore.backends.Block(i) for i in sorted(blocks)]
        )

    def get_snapshot_block(
        self, snapshot_id: str, block_index: int, block_token: str
    ) -> amistore.backends.SnapshotBlock:
        return amistore.backends.SnapshotBlock(self.volumes[snapshot_id][1][block_index])


def difference(before: Any, after: Any, **options: Any) -> Difference:
    """What `Archive.compare` finds; each side is opened if it is not."""
    if isinstance(before, amistore.Archive):
        return before.compare(after, **options)
    with amistore.open(before) as archive:
        return archive.compare(after, **options)


def packed(
    volumes: Iterable[tuple[int, Mapping[int, bytes]]], form: Layout | None = SMALL, **members: object
) -> bytes:
    """A container of these volumes, each a size in GiB and blocks."""
    source = Volumes(volumes)
    return b"".join(
        amistore.pack(image(source.volumes, **members), source, options=amistore.PackOptions(layout=form))
    )


def leftovers(backend: amistore.MemoryBackend) -> list[str]:
    """Ids of snapshots that are there, of whatever state."""
    return sorted(backend.ebs._snapshots)


def read_streaming(container: bytes) -> amistore.Image:
    """Unpack; on an error, prove that nothing is left behind."""
    backend = amistore.MemoryBackend()
    try:
        return amistore.unpack(io.BytesIO(container), backend.ebs, workers=1)
    except amistore.AmistoreError:
        assert leftovers(backend) == []
        raise


def read_quickly(container: bytes) -> None:
    """Open, and verify all of it without decompressing."""
    with amistore.open(io.BytesIO(container)) as archive:
        archive.verify(quick=True, workers=1).check()


def read_blocks(container: bytes) -> dict[tuple[str, int], bytes]:
    """Open, and read every listed block of every volume as a file does."""
    blocks = {}
    with amistore.open(io.BytesIO(container)) as archive:
        for volume in archive.volumes:
            with volume.open(workers=1) as disk:
                for each in volume.listed(workers=1):
                    for index in range(each.first_block, each.end):
                        disk.seek(index * amistore.BLOCK_SIZE)
                        blocks[volume.snapshot_id, index] = disk.read(amistore.BLOCK_SIZE)
    return blocks


def read_seekable(container: bytes) -> None:
    """Open, and verify all of it."""
    with amistore.open(io.BytesIO(container)) as archive:
        archive.verify(workers=1).check()
