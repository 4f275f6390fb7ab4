"""`VolumeReader`: a volume's segments, frames and blocks by their numbers. What all readings share."""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Generator, Iterator

import attrs

from amistore.archive.reader import ContainerFile, LoadedSegment, LocatedSegment
from amistore.container import (
    DecodedBlock,
    DecodedFrame,
    FrameDecoder,
    SegmentDescriptor,
    decode_frame,
    decode_segment,
)
from amistore.errors import ArchiveError
from amistore.model import BlockRange
from amistore.pipeline.workers import ordered_map, worker_pool
from amistore.units import BLOCK_SIZE

__all__ = ["Hole", "VolumeReader"]


@attrs.frozen
class Hole:
    """Blocks that are not listed, from the one asked for up to `end`."""

    end: int


class VolumeReader:
    """One volume of an opened container. Usable from several threads.

    Attributes:
        container: that it is of.
        indexed: what INDX says of it.
        segments: the sequence numbers of its segments.
        frame_size: decoded bytes of a frame, but for the last of a segment.
        lost_blocks: what could not be recovered, in a recovered archive.
    """

    def __init__(self, container: ContainerFile, number: int) -> None:
        self.container = container
        self.indexed = container.index.volumes[number]
        first = container.first_segment(number)
        self.segments = range(first, first + self.indexed.segments)
        self.frame_size = container.head.layout.blocks_per_frame * BLOCK_SIZE
        self.lost_blocks: tuple[BlockRange, ...] = container.image.snapshot(
            self.indexed.snapshot_id
        ).lost_blocks

    def frames_of(self, sequence: int) -> int:
        """How many frames a segment has."""
        return len(self.container.head.layout.frame_contents(self.container.segment_blocks(sequence)))

    def locate(self, index: int) -> tuple[int, int] | Hole:
        """The segment and the frame that hold a block, or the hole that it is in."""
        firsts, lasts = self.container.index.firsts, self.container.index.lasts
        sequence = bisect_right(firsts, index, self.segments.start, self.segments.stop) - 1
        if sequence >= self.segments.start and index <= lasts[sequence]:
            located = self.container.segment(sequence)
            ordinal = located.descriptor.runs.ordinal(index)
            if ordinal is not None:
                return sequence, ordinal * BLOCK_SIZE // located.frame_contents[0]
            return Hole(located.descriptor.runs.after(index))
        if sequence + 1 < self.segments.stop:
            return Hole(firsts[sequence + 1])
        return Hole(self.indexed.size // BLOCK_SIZE)

    def descriptors(self, workers: int | None) -> Generator[SegmentDescriptor, None, None]:
        """Each segment's descriptor, in order, read in parallel."""

        def read(sequence: int) -> SegmentDescriptor:
            return self.container.segment(sequence).descriptor

        with (
            worker_pool(workers, None) as (pool, limit),
            contextlib.closing(ordered_map(pool, read, self.segments, limit)) as descriptors,
        ):
            yield from descriptors

    def read_frames(self, sequence: int, first: int, count: int) -> list[DecodedFrame]:
        """Consecutive frames of a segment, in one read after that of its descriptor."""
        located = self.container.segment(sequence)
        frames = self.container.frames(located, first, count)
        decoder = FrameDecoder()
        return [self._decode(located, number, frame, decoder) for number, frame in enumerate(frames, first)]

    def blocks(self, loaded: LoadedSegment) -> Iterator[DecodedBlock]:
        """The blocks of a segment, decoded and checked."""
        located = loaded.located
        try:
            yield from decode_segment(
                located.descriptor, loaded.frames, located.frame_contents, located.offset
            )
        except ArchiveError as error:
            raise error.locate(snapshot_id=self.indexed.snapshot_id) from None

    def frame(self, loaded: LoadedSegment, number: int) -> DecodedFrame:
        """One frame of a segment that was read."""
        return self._decode(loaded.located, number, loaded.frames[number], FrameDecoder())

    def _decode(
        self, located: LocatedSegment, number: int, frame: bytes, decoder: FrameDecoder
    ) -> DecodedFrame:
        try:
            return decode_frame(located.descriptor, number, frame, located.frame_contents, decoder)
        except ArchiveError as error:
            raise error.locate(
                offset=located.frame_offset(number), snapshot_id=self.indexed.snapshot_id
            ) from None
