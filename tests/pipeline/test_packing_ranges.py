"""A container is made range by range, each by itself: the same bytes, and a tail from records alone."""

from __future__ import annotations

from itertools import pairwise

import attrs
import images
import pytest

import amistore
from amistore.container.encoder import ContainerWriter, EncodedSegment
from amistore.container.records import SegmentDescriptor
from amistore.pipeline.pack import plan_pack
from amistore.pipeline.packing import PackedUnit, SegmentEncode, packed_units, range_units
from amistore.pipeline.progress import untold

LEVEL = 3


def encoded(unit: PackedUnit) -> EncodedSegment:
    """The segment of a unit, whose pieces are its record, its frames and, at a shard's end, PAD."""
    assert unit.segment is not None
    descriptor = SegmentDescriptor.parse(unit.segment)
    return EncodedSegment(descriptor, unit.segment, list(unit.pieces[1 : 1 + len(descriptor.frames)]))


@pytest.mark.parametrize(
    ("blocks", "per_shard", "begins"),
    [
        ([2, 2], 1, [0, 2, 4]),  # at a volume
        ([4], 1, [0, 1, 3, 4]),  # inside of one
        ([3, 0], 1, [0, 1, 3]),  # one without segments, at the end
        ([0, 1, 3], 2, [0, 2, 4]),
        ([3, 4], 3, [0, 3, 6, 7]),
        ([], 1, [0, 0]),
    ],
)
def test_ranges_of_shards_and_a_tail_of_records_are_the_container(
    blocks: list[int], per_shard: int, begins: list[int]
) -> None:
    source = images.Volumes((1, {i: images.block(i + 1) for i in range(count)}) for count in blocks)
    form = amistore.Layout(blocks_per_frame=1, blocks_per_segment=1, segments_per_shard=per_shard)
    planned = plan_pack(images.image(source.volumes), source, snapshots=None, progress=untold, layout=form)
    units = list(packed_units(planned, source, SegmentEncode(LEVEL, check_frames=False)))
    whole = b"".join(piece for unit in units for piece in unit.pieces)
    segments = [encoded(unit) for unit in units if unit.segment is not None]

    made = b""
    for begin, end in pairwise(begins):
        writer = ContainerWriter(planned, LEVEL)
        for unit in range_units(planned, writer, range(begin, end), iter(segments[begin:end])):
            made += b"".join(unit.pieces)

    writer = ContainerWriter(planned, LEVEL)
    records = (attrs.evolve(segment, frames=[]) for segment in segments)
    for _ in range_units(planned, writer, range(planned.segments), records):
        pass
    assert made + b"".join(writer.tail()) == whole
