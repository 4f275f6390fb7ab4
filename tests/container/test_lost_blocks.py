"""Lost blocks in a description: kept, guarded by HEAD, and never at odds with what is listed."""

from __future__ import annotations

import io

import attrs
import images
import pytest

import amistore
from amistore.container import layout
from amistore.container.records import Head, open_envelope

BLOCKS = {3: images.block(1), 4: images.block(2)}
SNAPSHOT = "snap-00000000000000000"


def packed(*lost: tuple[int, int]) -> bytes:
    ranges = tuple(amistore.model.BlockRange(first_block=first, block_count=count) for first, count in lost)
    known = amistore.Snapshot(snapshot_id=SNAPSHOT, lost_blocks=ranges)
    return images.packed([(1, BLOCKS)], snapshots=(known,))


def test_they_come_back_in_the_image_and_their_volume() -> None:
    container = packed((0, 3), (2047, 1))
    with amistore.open(io.BytesIO(container)) as archive:
        assert [(each.first_block, each.end) for each in archive.volumes[0].lost_blocks] == [
            (0, 3),
            (2047, 2048),
        ]
        archive.verify().check()
    backend = amistore.MemoryBackend()
    image = amistore.unpack(io.BytesIO(container), backend.ebs, allow_lost=True)
    assert image.snapshots[0].lost_blocks == archive.volumes[0].lost_blocks
    # Packed again, it is still known.
    again = b"".join(amistore.pack(image, backend.ebs))
    with pytest.raises(amistore.LostBlocksError):
        amistore.unpack(io.BytesIO(again), backend.ebs)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ([(3, 1)], "block 3 was lost, but it is listed"),
        ([(0, 4)], "block 3 was lost, but it is listed"),
        ([(2040, 9)], "outside the volume"),
        ([(100, 10), (105, 1)], "overlap"),
    ],
)
def test_those_that_cannot_be_are_refused(lost: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(amistore.InvalidRequestError, match=message):
        packed(*lost)


@pytest.mark.parametrize(
    "members", [{"first_block": -1, "block_count": 1}, {"first_block": 0, "block_count": 0}]
)
def test_a_range_of_no_blocks_is_refused(members: dict[str, int]) -> None:
    with pytest.raises(amistore.InvalidValueError):
        amistore.model.BlockRange(**members)


@pytest.mark.parametrize("lost", [[], [(0, 1)]])
def test_head_and_manifest_must_agree_on_whether_there_are_any(lost: list[tuple[int, int]]) -> None:
    container = packed(*lost)
    start = container.index(b"AMISHEAD") - 8
    size = open_envelope(container[start : start + layout.ENVELOPE.size]).size
    head = Head.parse(container[start : start + size])
    assert head.lost_blocks is bool(lost)
    forged = attrs.evolve(head, lost_blocks=not lost).encode()
    container = container.replace(container[start : start + size], forged, 1)
    with pytest.raises(amistore.CorruptArchiveError, match="differ on whether blocks were lost"):
        amistore.unpack(io.BytesIO(container), amistore.MemoryBackend().ebs, allow_lost=True)
