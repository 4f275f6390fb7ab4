"""`VolumeReader`: a volume's segments, frames and blocks by their numbers, for all readers."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Generator

import attrs

from amistore.archive.reader import ContainerFile
from amistore.container.index import IndexedVolume
from amistore.container.records import SegmentDescriptor
from amistore.container.runs import Runs
from amistore.container.segments import DecodedFrame, StoredFrame, decode_frame
from amistore.errors import CorruptArchiveError
from amistore.model import BlockRange
from amistore.pipeline.workers import closing, worker_pool
from amistore.units import BLOCK_SIZE

__all__ = ["Hole", "VolumeReader", "VolumeSums"]


@attrs.frozen
class Hole:
    """Blocks that are not listed, from the requested one up to `end`."""

    end: int


class VolumeSums:
    """The parts of a volume's content id, collected from its segments in order.

    The index proves each segment. This proves that the index's sums are those of the segments.

    Attributes:
        blocks: the number of blocks so far.
    """

    def __init__(self) -> None:
        self.blocks = 0
        self._linear = hashlib.sha256()
        self._runs = Runs()

    def add(self, segment: SegmentDescriptor) -> None:
        """The next segment."""
        self.blocks += segment.runs.blocks
        self._linear.update(b"".join(segment.digests))
        for run in segment.runs:
            self._runs.append(*run)

    def check(self, indexed: IndexedVolume) -> Runs:
        """The listed blocks, if the segments agree with the index.

        Raises:
            CorruptArchiveError: the segments do not agree.
        """
        found = self.blocks, self._linear.digest(), self._runs.digest()
        if found != (indexed.blocks, indexed.linear, indexed.runs_digest):
            raise CorruptArchiveError(
                "the volume's blocks are not those that its content id stands for",
                record="INDX",
                snapshot_id=indexed.snapshot_id,
            )
        return self._runs


class VolumeReader:
    """One volume of an opened container. Usable from several threads.

    Attributes:
        container: the volume's container.
        indexed: the volume's entry in INDX.
        segments: the sequence numbers of its segments.
        frame_size: the decoded bytes of a frame, except the last of a segment.
        lost_blocks: the blocks of a recovered archive that could not be recovered.
    """

    def __init__(self, container: ContainerFile, number: int) -> None:
        self.container = container
        self.indexed = container.index.volumes[number]
        self.segments = container.segments_of(number)
        self.frame_size = container.head.layout.blocks_per_frame * BLOCK_SIZE
        self.lost_blocks: tuple[BlockRange, ...] = container.image.snapshot(
            self.indexed.snapshot_id
        ).lost_blocks
        self._lost_ends = [lost.end for lost in self.lost_blocks]

    def frames_of(self, sequence: int) -> int:
        """How many frames a segment has."""
        return len(self.container.head.layout.frame_contents(self.container.segment_blocks(sequence)))

    def locate(self, index: int) -> tuple[int, int] | Hole:
        """The segment and the frame that hold a block, or the hole around it."""
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

    def lost_from(self, index: int) -> BlockRange | None:
        """The first range of lost blocks that ends behind a block."""
        at = bisect_right(self._lost_ends, index)
        return self.lost_blocks[at] if at < len(self.lost_blocks) else None

    def descriptors(self, workers: int | None) -> Generator[SegmentDescriptor, None, None]:
        """Each segment's descriptor, in order, read in parallel.

        Raises:
            CorruptArchiveError: (at the end) they are not what the volume's content id stands for.
        """
        sums = VolumeSums()

        def read(sequence: int) -> SegmentDescriptor:
            return self.container.segment(sequence).descriptor

        with (
            worker_pool(workers, None, requests=self.container.requests) as pool,
            closing(pool.map(read, self.segments)) as descriptors,
        ):
            for descriptor in descriptors:
                sums.add(descriptor)
                yield descriptor
        sums.check(self.indexed)

    def read_frames(self, sequence: int, first: int, count: int, *, keep: bool) -> list[DecodedFrame]:
        """Consecutive frames of a segment, in one read once its descriptor is read.

        Args:
            sequence: the segment's number.
            first: the number of the first frame in it.
            count: the number of frames.
            keep: whether a cache will have them: then they keep their stored bytes, if these are far away.
        """
        located = self.container.segment(sequence)
        frames = enumerate(self.container.frames(located, first, count), first)
        if keep and self.container.requests:
            return [StoredFrame(located, number, frame).decode() for number, frame in frames]
        return [decode_frame(located, number, frame) for number, frame in frames]
